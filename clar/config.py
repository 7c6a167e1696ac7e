"""TrialConfig: every knob of one trial, validated and frozen; presets; identity.

A trial is a plain value. An ablation is a base with some fields changed: `base.but(loss="clar", temperature=0.1)`.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

from clar.errors import UserError, near

AUGMENTATIONS = ("pitch_shift", "fade", "white_noise", "mixed_noise", "time_mask", "time_shift", "time_stretch")
"""Short names of the paper's seven augmentations, in the paper's order: the axes of its 7 x 7 table."""

CHANNELS = ("magnitude", "phase", "mel")
"""The pictures that a spectrogram is made of, in this order."""

STRONGEST = 2.0
"""Largest `augmentation_strength`: fades over the whole clip from each side, shifts by 30 semitones."""

RESULTS_VERSION = 3
"""Raised with every change of the code that changes what a trial computes: older results are then trained again."""

Input = Literal["spectrogram", "raw", "statistics"]
"""`statistics`: no encoder, but averages of a log-mel spectrogram, see `clar.features.Statistics`: a baseline."""

Loss = Literal["clar", "self_supervised", "supervised", "finetune"]
"""`finetune`: self-supervised pre-training, then supervised training of that encoder."""

Optimizer = Literal["lars", "lamb", "adamw", "released"]
"""`released`: the gradient rescaled as LARS does, then handed to Adam, as the authors' public code does."""

Scaling = Literal["none", "fixed"]
Pooling = Literal["mean", "time"]
Precision = Literal["float32", "bf16"]
ProbeLabels = Literal["seen", "all"]
Variant = Literal["paper", "released"]
"""`paper`: as published. `released`: as the authors' public code does it, where that differs."""

Stretch = Literal["cropped", "resampled"]
"""How a stretched clip comes to its old length: cropped or padded, or resampled, which moves its pitch instead."""

WINDOW_MS = {"paper": 16.0, "released": 128.0}
"""Each front end's own STFT window, where `window_ms` says none."""

HOP_MS = 8.0
"""Both front ends' own STFT stride."""

FINETUNE_RATES = (1.0, 0.3, 0.1)
"""Multiples of the pre-training's learning rate that fine-tuning tries where it is told none."""

FINETUNE_SHARE = 0.1
"""Of the pre-training's epochs, that each try of fine-tuning takes where it is told no number."""
_OPTIONS = {"fade": "fade_shapes", "time_stretch": "stretch", "time_mask": "mask", "mixed_noise": "coloured_noise"}
"""The field that chooses between variants of an augmentation."""

_FINETUNE = ("finetune_epochs", "finetune_learning_rate")


class TrialConfig(BaseModel):
    """One training trial. Defaults are the paper's; every field that matters enters the trial's identity.

    Raises:
        UserError: a field is unknown, or its value has the wrong type or lies outside its range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    dataset: str = Field("digits", min_length=1, description="name of a data set, see `python -m clar.datasets list`")
    input: Input = "spectrogram"
    loss: Loss = "clar"
    augmentations: tuple[str, ...] = Field(("fade", "time_mask"), description="short names, applied in this order")
    second_view: tuple[str, ...] | None = Field(
        None, description="augmentations of the second view; none: those of the first, `augmentations`"
    )
    augmentation_probability: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        (0.5,), description="for each clip and view: one number for all augmentations, or one for each in order"
    )
    augmentation_strength: tuple[Annotated[float, Field(ge=0, le=STRONGEST)], ...] = Field(
        (1.0,), description="of the paper's range: one number for all augmentations, or one for each; 0 is none of it"
    )
    fade_shapes: Variant = Field("paper", description="paper: three shapes of fade; released: five")
    stretch: Stretch = Field("cropped", description="how time_stretch keeps the length; resampled moves the pitch")
    mask: Variant = Field("paper", description="paper: up to an eighth; released: an eighth, for half of the masked")
    coloured_noise: Variant = Field("paper", description="released: pink and brown noise clip the audio to [0, 1]")
    label_fraction: float = Field(1.0, gt=0, le=1, description="share of the training labels that may be seen")
    probe_labels: ProbeLabels = Field(
        "seen", description="labels that the probe is fitted on: those that training saw, or all (released code)"
    )
    fold: int | None = Field(
        None,
        ge=1,
        description="to test on, of a data set with folds; none: the set's own split, which tests on the last",
    )
    seed: int = Field(0, ge=0, lt=2**63)

    epochs: int = Field(1020, ge=0, description="0 evaluates the untrained encoder")
    batch_size: int = Field(1024, ge=2, description="clips a step; each gives two views")
    optimizer: Optimizer = "lars"
    learning_rate: float = Field(1.0, gt=0)
    weight_decay: float = Field(1e-6, ge=0, description="not on biases nor on batch norm")
    warmup_epochs: int = Field(10, ge=0, description="linear warm-up, then cosine decay to 0")
    temperature: float = Field(0.5, gt=0, description="of NT-Xent")
    cross_entropy_weight: float = Field(
        1.0, ge=0, description="beside NT-Xent, for loss=clar; the released code's is 2"
    )
    precision: Precision = "float32"
    finetune_epochs: int | None = Field(
        None,
        ge=1,
        description="supervised epochs at each rate, after the pre-training of loss=finetune; none: a tenth",
    )
    finetune_learning_rate: float | None = Field(
        None,
        gt=0,
        description="of those epochs: cosine decay to 0, no warm-up; none: the best on valid of 1, 0.3 and 0.1 times "
        "learning_rate",
    )

    front_end: Variant = "paper"
    window_ms: float | None = Field(
        None, gt=0, le=1000, description="STFT window; none: the front end's (16, released 128)"
    )
    hop_ms: float | None = Field(None, gt=0, le=1000, description="STFT stride; none: the front end's (8)")
    bins: int = Field(128, ge=8, le=1024, description="height F of the 3 x F x T input")
    channels: tuple[str, ...] = Field(
        CHANNELS, description="of the spectrogram: magnitude, phase, mel, or some of them"
    )
    scaling: Scaling = Field(
        "none", description="of the spectrogram's decibels; none: as they are; fixed: (dB + 40) / 20"
    )
    encoder: Variant = Field("paper", description="of raw input: paper: max pool of 3 in the stem; released: of 9")
    encoder_width: int = Field(64, ge=1, description="channels of the first stage; the representation has 8 x as many")
    encoder_blocks: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (2, 2, 2, 2), description="residual blocks in each of the four stages; 2,2,2,2 is ResNet-18"
    )
    pooling: Pooling = Field(
        "mean", description="of the last stage; mean: over frequency and time; time: each height of the picture apart"
    )
    head: Variant = "paper"
    projection_hidden: int = Field(512, ge=1, description="width of the two hidden layers of the head")
    projection_dim: int = Field(128, ge=1, description="dimension of the projection that NT-Xent compares")
    probe_every: int = Field(
        1, ge=1, description="epochs between linear probes on valid; the last epoch always has one"
    )

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise UserError(_one_line(error)) from None

    @field_validator("second_view", mode="before")
    @classmethod
    def _names_in_a_text(cls, names: Any) -> Any:
        """Split what a command line (`fade,time_mask`) or a run's parameters (`fade > time_mask`) say."""
        if isinstance(names, str):
            return tuple(name.strip() for name in names.replace(">", ",").split(",") if name.strip())
        return names

    @field_validator("augmentations", "second_view")
    @classmethod
    def _known_augmentations(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in names or ():
            if name not in AUGMENTATIONS:
                raise ValueError(f"no augmentation {name!r}{near(name, AUGMENTATIONS)}")
        return names

    @field_validator("augmentation_probability", "augmentation_strength", mode="before")
    @classmethod
    def _bare_number(cls, numbers: Any) -> Any:
        return tuple(numbers) if isinstance(numbers, list | tuple) else (numbers,)

    @field_validator("augmentation_probability", "augmentation_strength")
    @classmethod
    def _one_or_one_each(cls, numbers: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        count = len(info.data.get("augmentations", numbers))  # absent where they were refused themselves
        if not numbers or len(numbers) not in (1, count):
            raise ValueError(f"needs one number, or one for each of the {count} augmentations; got {len(numbers)}")
        return numbers[:1] if len(set(numbers)) == 1 else numbers

    @field_serializer("augmentation_probability", "augmentation_strength", when_used="json")
    def _plain_number(self, numbers: tuple[float, ...]) -> float | tuple[float, ...]:
        return numbers[0] if len(numbers) == 1 else numbers

    @field_validator("channels")
    @classmethod
    def _known_channels(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in CHANNELS:
                raise ValueError(f"no channel {name!r}{near(name, CHANNELS)}")
        if not names or len(set(names)) < len(names):
            raise ValueError(f"needs one or more of {','.join(CHANNELS)}, each once")
        return tuple(name for name in CHANNELS if name in names)

    @field_validator("encoder_blocks")
    @classmethod
    def _four_stages(cls, blocks: tuple[int, ...]) -> tuple[int, ...]:
        if len(blocks) != 4:
            raise ValueError(f"needs four numbers, one a stage, such as 2,2,2,2; got {len(blocks)}")
        return blocks

    @model_validator(mode="after")
    def _warmup_fits(self) -> Self:
        if self.epochs and self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs = {self.warmup_epochs} leaves none of epochs = {self.epochs}; lower it")
        return self

    @model_validator(mode="after")
    def _statistics_learn_nothing(self) -> Self:
        if self.input == "statistics" and (self.epochs or self.loss != "self_supervised"):
            raise ValueError(
                f"input = statistics has no encoder to train with loss = {self.loss}, epochs = {self.epochs}; "
                f"set loss=self_supervised, epochs=0"
            )
        return self

    @model_validator(mode="after")
    def _one_number_for_two_views(self) -> Self:
        for name in ("augmentation_probability", "augmentation_strength"):
            if self.second_view is not None and len(getattr(self, name)) > 1:
                raise ValueError(
                    f"second_view needs {name} of one number, for both views; got {len(getattr(self, name))}"
                )
        return self

    def but(self, **changes: Any) -> "TrialConfig":
        """This trial with some fields changed, validated anew."""
        return TrialConfig(**{**self.model_dump(), **changes})

    def on_folds(self, count: int) -> "list[TrialConfig]":
        """This trial tested on each of so many folds; of 0, itself."""
        return [self.but(fold=fold) for fold in range(1, count + 1)] or [self]

    def differences(self) -> dict[str, Any]:
        """The fields that differ from the defaults, as JSON values: what makes this trial this trial."""
        changed = {name for name, field in TrialConfig.model_fields.items() if getattr(self, name) != field.default}
        return self.model_dump(mode="json", include=changed)

    @property
    def stage_epochs(self) -> int:
        """Epochs that this trial trains itself; its pre-training's are not among them."""
        if self.probes_only:
            return 0
        return len(self.rates) * self.epochs_a_rate

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates that the trial trains with, one after the other, each from the start."""
        if self.loss != "finetune":
            return (self.learning_rate,)
        if self.finetune_learning_rate is not None:
            return (self.finetune_learning_rate,)
        return tuple(share * self.learning_rate for share in FINETUNE_RATES)

    @property
    def epochs_a_rate(self) -> int:
        """Epochs with each of the `rates`."""
        if self.loss != "finetune":
            return self.epochs
        return self.finetune_epochs or max(1, round(FINETUNE_SHARE * self.epochs))

    @property
    def probes_only(self) -> bool:
        """Whether the trial trains nothing and probes the encoder of another."""
        return self.label_fraction < 1 and (self.loss == "self_supervised") == (self.probe_labels == "seen")

    def pretraining(self) -> "TrialConfig | None":
        """The trial whose encoder this one starts from; None where it starts from random weights.

        Self-supervised training sees no labels, so all label fractions share one pre-training: with label_fraction
        below 1 a self-supervised trial trains nothing and probes that encoder with its share of the labels. Other
        trials whose probe sees more labels than their training probe the encoder of the one whose probe does not.
        """
        if self.probes_only and self.probe_labels == "all":
            return self.but(probe_labels="seen")
        if self.loss == "finetune":
            stage_two = {name: TrialConfig.model_fields[name].default for name in _FINETUNE}
            return self.but(loss="self_supervised", label_fraction=1.0, **stage_two)
        if self.probes_only:
            return self.but(label_fraction=1.0)
        return None

    def canonical(self) -> "TrialConfig":
        """This trial with everything that cannot influence its result in one form: equal results, equal canonical.

        Fields without influence are at their defaults, augmentations that never act are gone, and numbers that say what
        would be so anyway (the front end's own window, a probe less often than the last epoch) say it in one way.
        """
        changes: dict[str, Any] = {name: TrialConfig.model_fields[name].default for name in self.idle_fields()}
        acting = self._acting_augmentations()
        if "augmentations" in changes:
            pass
        elif acting and len(acting) < len(self.augmentations):
            names, probabilities, strengths = zip(*acting, strict=True)
            changes |= {"augmentations": names}
            changes |= {"augmentation_probability": probabilities, "augmentation_strength": strengths}
        elif not acting:
            changes["augmentations"] = ()
        if self.second_view == self.augmentations:
            changes["second_view"] = None
        if "window_ms" not in changes and self.window_ms == WINDOW_MS[self.front_end]:
            changes["window_ms"] = None
        if "hop_ms" not in changes and self.hop_ms == HOP_MS:
            changes["hop_ms"] = None
        if self.finetune_epochs == max(1, round(FINETUNE_SHARE * self.epochs)):
            changes["finetune_epochs"] = None
        if "probe_every" not in changes:
            changes["probe_every"] = min(self.probe_every, max(self.epochs, self.epochs_a_rate, 1))
        return self.but(**changes)

    def idle_fields(self) -> frozenset[str]:
        """Names of the fields that cannot influence this trial's result, whatever their value."""
        idle: set[str] = set()
        finetune = self.loss == "finetune"
        if self.input == "statistics":
            acting_ones = {"dataset", "input", "loss", "epochs", "label_fraction", "probe_labels", "fold"}
            # The seed says which labels are seen.
            idle |= {*TrialConfig.model_fields} - acting_ones - ({"seed"} if self.probes_only else set())
        if self.label_fraction == 1:
            idle.add("probe_labels")
        elif self.loss == "self_supervised" and self.probe_labels == "all":
            idle |= {"label_fraction", "probe_labels"}
        if self.input == "raw":
            idle |= {"front_end", "window_ms", "hop_ms", "bins", "channels", "scaling", "pooling"}
        else:
            idle.add("encoder")
        if self.loss == "supervised":
            idle |= {"temperature", "projection_dim"}
        if self.loss != "clar":
            idle.add("cross_entropy_weight")
        if not finetune:
            idle |= set(_FINETUNE)
        if self.epochs == 0:
            # The untrained encoder: nothing steps, unless it is fine-tuned.
            idle |= {"warmup_epochs", "temperature", "cross_entropy_weight"}
            if not finetune or self.finetune_learning_rate is not None:
                idle.add("learning_rate")
            if not finetune:
                idle |= {"batch_size", "optimizer", "weight_decay", "probe_every", "augmentations", "second_view"}
            if self.loss == "self_supervised":
                idle |= {"head", "projection_hidden", "projection_dim"}
            if finetune:
                idle.add("projection_dim")
        acting = {name for name, *_ in self._acting_augmentations()}
        if all((*self.augmentation_probability, *self.augmentation_strength)):
            acting |= set(self.second_view or ())
        if not acting:
            idle.add("second_view")
        if not acting or "augmentations" in idle:
            idle |= {"augmentation_probability", "augmentation_strength"}
        for name, option in _OPTIONS.items():
            if name not in acting or "augmentations" in idle:
                idle.add(option)
        return frozenset(idle)

    def _acting_augmentations(self) -> list[tuple[str, float, float]]:
        """Name, probability and strength of each augmentation that ever changes a clip."""
        count = len(self.augmentations)
        probabilities, strengths = (
            numbers * count if len(numbers) == 1 else numbers
            for numbers in (self.augmentation_probability, self.augmentation_strength)
        )
        every = zip(self.augmentations, probabilities, strengths, strict=True)
        return [(name, probability, strength) for name, probability, strength in every if probability and strength]

    def identity(self, data_fingerprint: str = "", version: int = RESULTS_VERSION) -> str:
        """16 hex digits, equal for equal trials on any machine.

        A hash of what of `canonical` differs from the defaults, so a field added later, at its default, changes no
        identity, and neither does one that does not matter for this trial.

        Args:
            data_fingerprint: `ClipStore.fingerprint`; with it the same trial on other data is another trial.
            version: of the results; an older one finds what an older version of the code left.
        """
        trial = self.canonical().differences()
        if version < 3 and self.optimizer in ("lars", "lamb"):
            # Up to version 2, `lars`, the default, was what is now called lamb.
            trial.pop("optimizer", None)
            trial |= {"optimizer": "lars with momentum"} if self.optimizer == "lars" else {}
        if version < 3 and self.loss == "finetune":
            # None had other meanings: a hundred epochs at 0.1.
            trial |= {"finetune": [len(self.rates), self.epochs_a_rate]} if self.finetune_epochs is None else {}
        base, _, place = self.dataset.partition(":")
        if data_fingerprint and "/" in place:
            # Where one's own files lie is not what they are: the fingerprint says that, on every machine.
            trial["dataset"] = base
        content = {"version": version, "data": data_fingerprint, "trial": trial}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def title(self, base: "TrialConfig | None" = None) -> str:
        """The trial in a few words: `fade > time_mask, seed 0`; with a base, also what else differs from it."""
        shown = [" > ".join(self.augmentations) or "no augmentation"]
        idle = {"augmentations", "seed", *self.idle_fields()}
        if "second_view" not in idle and self.second_view not in (None, self.augmentations):
            shown.append(f"second view {' > '.join(self.second_view or ()) or 'no augmentation'}")
        idle.add("second_view")
        for name, value in self.model_dump().items() if base else ():
            if name not in idle and value != getattr(base, name):
                shown.append(f"{name} {','.join(map(_short, value)) if isinstance(value, tuple) else _short(value)}")
        return ", ".join([*shown, f"seed {self.seed}"])

    def check_batch(self, training_clips: int) -> None:
        """See to it that an epoch has a batch.

        Raises:
            UserError: the batch is larger than the training set.
        """
        if (self.epochs or self.stage_epochs) and self.batch_size > training_clips:
            raise UserError(
                f"batch_size = {self.batch_size} is more than the {training_clips} training clips of {self.dataset}; "
                f"lower it"
            )


@dataclass(frozen=True)
class Runtime:
    """What a trial is given to run with. None of it changes what the trial is, so none of it enters its identity.

    `threads` are torch's; with another number the last bits of a result may differ. `gpu_share` is the trial's part of
    its GPU, above 0 to 1: so much of the GPU's energy is its own. `data_cache` is a folder on the node's own disk, from
    which it reads a copy of the store. `max_lost` are the seconds of work that are lost, at most, with its process.
    """

    device: str
    threads: int
    storage: Path
    store: Path
    code_version: str
    gpu_share: float = 1.0
    data_cache: Path | None = None
    max_lost: float = 300.0


def parse_settings(settings: list[str]) -> dict[str, Any]:
    """`["epochs=3", "augmentations=fade,time_mask"]` as fields of TrialConfig. Never evaluates anything.

    Values stay text, which TrialConfig converts and checks; fields that are lists are split at commas.

    Raises:
        UserError: no `=`, an unknown field, or a field given twice.
    """
    fields: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        name, text = name.strip(), text.strip()
        if not equals:
            raise UserError(f"--set {setting}: write field=value, for example --set epochs=3")
        if name not in TrialConfig.model_fields:
            raise UserError(f"--set {setting}: no field {name!r}{near(name, TrialConfig.model_fields)}")
        if name in fields:
            raise UserError(f"--set {setting}: {name} is given twice")
        if isinstance(TrialConfig.model_fields[name].default, tuple):
            fields[name] = tuple(part.strip() for part in text.split(",") if part.strip())
        elif text.lower() == "none" and TrialConfig.model_fields[name].default is None:
            fields[name] = None
        else:
            fields[name] = text
    return fields


def _short(value: Any) -> str:
    """A value as a title shows it: of a number drawn at random, four digits say enough."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _one_line(error: ValidationError) -> str:
    """What pydantic found first, as one line with the field, its value and the way out."""
    first = error.errors()[0]
    field = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        return f"no field {field!r}{near(field, TrialConfig.model_fields)}"
    message = first["msg"].removeprefix("Value error, ").replace("Input should be ", "must be ", 1)
    if first["type"] == "literal_error":
        message = f"not one of its values{near(first['input'], get_args(TrialConfig.model_fields[field].annotation))}"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if not field:
        return message + more
    value = first["input"]
    shown = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return f"{field} = {shown!s}: {message}{more}"
