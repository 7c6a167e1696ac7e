"""TrialConfig: every knob of one trial, validated and frozen; presets; identity.

A trial is a plain value. An ablation is a base with some fields changed: `base.but(loss="clar", temperature=0.1)`.
"""

import hashlib
import json
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from clar.errors import UserError, near

AUGMENTATIONS = ("pitch_shift", "fade", "white_noise", "mixed_noise", "time_mask", "time_shift", "time_stretch")
"""Short names of the paper's seven augmentations, in the paper's order: the axes of its 7 x 7 table."""

RESULTS_VERSION = 1
"""Raised with every change of the code that changes what a trial computes: older results are then trained again."""

Input = Literal["spectrogram", "raw"]
Loss = Literal["clar", "self_supervised", "supervised"]
Optimizer = Literal["lars", "adamw"]
Precision = Literal["float32", "bf16"]
Variant = Literal["paper", "released"]
"""`paper`: as published. `released`: as the authors' public code does it, where that differs."""


class TrialConfig(BaseModel):
    """One training trial. Defaults are the paper's; all fields enter the trial's identity.

    Raises:
        UserError: a field is unknown, or its value has the wrong type or lies outside its range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    dataset: str = Field("digits", min_length=1, description="name of a data set, see `python -m clar.datasets list`")
    input: Input = "spectrogram"
    loss: Loss = "clar"
    augmentations: tuple[str, ...] = Field(("fade", "time_mask"), description="short names, applied in this order")
    augmentation_probability: float = Field(0.5, ge=0, le=1, description="of each augmentation, for each clip and view")
    fade_shapes: Variant = Field("paper", description="paper: three shapes of fade; released: five")
    label_fraction: float = Field(1.0, gt=0, le=1, description="share of the training labels that may be seen")
    seed: int = Field(0, ge=0, lt=2**63)

    epochs: int = Field(1020, ge=0, description="0 evaluates the untrained encoder")
    batch_size: int = Field(1024, ge=2, description="clips a step; each gives two views")
    optimizer: Optimizer = "lars"
    learning_rate: float = Field(1.0, gt=0)
    weight_decay: float = Field(1e-6, ge=0, description="not on biases nor on batch norm")
    warmup_epochs: int = Field(10, ge=0, description="linear warm-up, then cosine decay to 0")
    temperature: float = Field(0.5, gt=0, description="of NT-Xent")
    precision: Precision = "float32"

    front_end: Variant = "paper"
    window_ms: float | None = Field(
        None, gt=0, le=1000, description="STFT window; none: the front end's (16, released 128)"
    )
    hop_ms: float | None = Field(None, gt=0, le=1000, description="STFT stride; none: the front end's (8)")
    bins: int = Field(128, ge=8, le=1024, description="height F of the 3 x F x T input")
    encoder_width: int = Field(64, ge=1, description="channels of the first stage; the representation has 8 x as many")
    encoder_blocks: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (2, 2, 2, 2), description="residual blocks in each of the four stages; 2,2,2,2 is ResNet-18"
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

    @field_validator("augmentations")
    @classmethod
    def _known_augmentations(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in AUGMENTATIONS:
                raise ValueError(f"no augmentation {name!r}{near(name, AUGMENTATIONS)}")
        return names

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

    def but(self, **changes: Any) -> "TrialConfig":
        """This trial with some fields changed, validated anew."""
        return TrialConfig(**{**self.model_dump(), **changes})

    def differences(self) -> dict[str, Any]:
        """The fields that differ from the defaults, as JSON values: what makes this trial this trial."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def identity(self, data_fingerprint: str = "") -> str:
        """16 hex digits, equal for equal trials on any machine.

        A hash of what differs from the defaults, so a field added later, at its default, changes no identity.

        Args:
            data_fingerprint: `ClipStore.fingerprint`; with it the same trial on other data is another trial.
        """
        content = {"version": RESULTS_VERSION, "data": data_fingerprint, "trial": self.differences()}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def title(self, base: "TrialConfig | None" = None) -> str:
        """The trial in a few words: `fade > time_mask, seed 0`; with a base, also what else differs from it."""
        shown = [" > ".join(self.augmentations) or "no augmentation"]
        for name, value in self.model_dump().items() if base else ():
            if name not in ("augmentations", "seed") and value != getattr(base, name):
                shown.append(f"{name} {value}")
        return ", ".join([*shown, f"seed {self.seed}"])

    def check_batch(self, training_clips: int) -> None:
        """See to it that an epoch has a batch.

        Raises:
            UserError: the batch is larger than the training set.
        """
        if self.epochs and self.batch_size > training_clips:
            raise UserError(
                f"batch_size = {self.batch_size} is more than the {training_clips} training clips of {self.dataset}; "
                f"lower it"
            )


# Released code, epochs over its four GPUs together: a step here sees as many clips as a step there.
_PAPER_SCHEDULES: dict[str, dict[str, int]] = {
    "speech_commands_10": {"batch_size": 1024, "epochs": 1020},
    "speech_commands_35": {"batch_size": 512, "epochs": 1020},
    "nsynth_family": {"batch_size": 128, "epochs": 120},
    "nsynth_pitch": {"batch_size": 64, "epochs": 120},
    "esc_50": {"batch_size": 256, "epochs": 2000},
    "esc_10": {"batch_size": 256, "epochs": 2000},
}

# Sizes at which a cell of the augmentation table takes seconds on one CPU thread and still means something;
# EXPERIMENTS.md has the sizes that were tried.
_DEMO: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 32,
    "optimizer": "adamw",
    "learning_rate": 3e-3,
    "warmup_epochs": 0,
    "temperature": 0.2,
    "probe_every": 2,
    "hop_ms": 16,
    "bins": 64,
    "encoder_width": 16,
    "encoder_blocks": (1, 1, 1, 1),
}

PRESETS = ("demo", "paper")


def preset(name: str, dataset: str = "digits") -> dict[str, Any]:
    """The fields that a preset sets, for one data set.

    `demo` is small enough for a laptop; `paper` is the published size with the released code's schedule.

    Raises:
        UserError: there is no such preset.
    """
    if name == "demo":
        return {"dataset": dataset, **_DEMO}
    if name == "paper":
        return {"dataset": dataset, "precision": "bf16", **_PAPER_SCHEDULES.get(dataset, {})}
    raise UserError(f"no preset {name!r}{near(name, PRESETS)}")


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
