import dataclasses
import json
import subprocess
import sys

import pytest

from clar.config import AUGMENTATIONS, RESULTS_VERSION, Runtime, TrialConfig, parse_settings
from clar.errors import UserError
from clar.presets import PRESETS, preset


def test_identity_is_the_same_in_another_process_and_for_fields_in_another_order() -> None:
    code = "from clar.config import TrialConfig; print(TrialConfig(loss='supervised', seed=3).identity('f' * 64))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert TrialConfig(seed=3, loss="supervised").identity("f" * 64) == other
    assert len(other) == 16
    assert int(other, 16) >= 0


# What enters a trial's identity, each with a value that is not the default. A new field belongs here, or into Runtime.
IN_THE_IDENTITY = {
    "dataset": "speech_commands_10", "input": "raw", "loss": "supervised", "augmentations": ("fade",),
    "augmentation_probability": 0.25, "augmentation_strength": 0.5, "label_fraction": 0.1, "seed": 1, "epochs": 100,
    "batch_size": 32, "optimizer": "adamw", "learning_rate": 0.5, "weight_decay": 0.0, "warmup_epochs": 1,
    "temperature": 0.1, "precision": "bf16", "front_end": "released", "window_ms": 32, "hop_ms": 4, "bins": 64,
    "encoder_width": 8, "encoder_blocks": (1, 1, 1, 1), "head": "released", "projection_hidden": 64,
    "projection_dim": 32, "probe_every": 5, "fade_shapes": "released", "finetune_epochs": 50,
    "finetune_learning_rate": 0.05, "fold": 3, "channels": ("mel",), "encoder": "released",
    "stretch": "resampled", "mask": "released", "coloured_noise": "released", "second_view": (),
    "cross_entropy_weight": 2.0, "probe_labels": "all", "scaling": "fixed", "pooling": "time",
}  # fmt: skip
MATTERS_FOR = {
    "cross_entropy_weight": {"loss": "clar"}, "probe_labels": {"label_fraction": 0.5},
    "encoder": {"input": "raw"}, "stretch": {"augmentations": ("time_stretch",)},
    "coloured_noise": {"augmentations": ("mixed_noise",)},
}  # fmt: skip
"""By field, the trials that it matters for, where the default is none of them."""
NOT_IN_THE_IDENTITY = {"device", "threads", "storage", "store", "code_version", "gpu_share", "data_cache", "max_lost"}


def test_every_field_is_one_that_enters_the_identity_or_one_that_does_not() -> None:
    assert set(TrialConfig.model_fields) == set(IN_THE_IDENTITY)
    assert {field.name for field in dataclasses.fields(Runtime)} == NOT_IN_THE_IDENTITY
    assert not set(IN_THE_IDENTITY) & NOT_IN_THE_IDENTITY


def test_where_ones_own_files_lie_does_not_enter_the_identity() -> None:
    here, there = TrialConfig(dataset="folder:/data/birds"), TrialConfig(dataset="folder:/home/me/birds#seed=0")
    assert here.identity("ab") == there.identity("ab") != here.identity("cd")
    assert here.identity() != there.identity()  # without a fingerprint the place is all there is
    assert TrialConfig(dataset="digits:400").identity("ab") != TrialConfig(dataset="digits").identity("ab")


@pytest.mark.parametrize("field", sorted(IN_THE_IDENTITY))
def test_every_field_changes_the_identity(field: str) -> None:
    # Fine-tuning runs both stages, and so is the loss that every field matters for.
    base = TrialConfig(**{"loss": "finetune", **MATTERS_FOR.get(field, {})})
    assert base.but(**{field: IN_THE_IDENTITY[field]}).identity() != base.identity()


def test_a_field_that_matters_for_one_loss_does_not_for_another() -> None:
    supervised, ours = TrialConfig(loss="supervised"), TrialConfig(loss="clar")
    for name, value in (("temperature", 0.1), ("projection_dim", 32)):
        assert supervised.but(**{name: value}).identity() == supervised.identity()
        assert ours.but(**{name: value}).identity() != ours.identity()
    for name in ("finetune_epochs", "finetune_learning_rate"):
        assert ours.but(**{name: IN_THE_IDENTITY[name]}).identity() == ours.identity()
    for other in ({"loss": "supervised"}, {"loss": "self_supervised"}, {"loss": "finetune"}, {"epochs": 0}):
        assert ours.but(cross_entropy_weight=2, **other).identity() == ours.but(**other).identity()


def test_which_labels_the_probe_sees_matters_where_training_sees_fewer() -> None:
    for loss in ("clar", "supervised", "finetune"):
        every, some = TrialConfig(loss=loss), TrialConfig(loss=loss, label_fraction=0.1)
        assert every.but(probe_labels="all").identity() == every.identity()
        assert some.but(probe_labels="all").identity() != some.identity()
        # One training serves both.
        assert some.but(probe_labels="all").pretraining() == some
        assert some.but(probe_labels="all").stage_epochs == 0
    # Training without labels, probed with all of them, is the trial with all labels.
    plain = TrialConfig(loss="self_supervised")
    both = plain.but(label_fraction=0.1, probe_labels="all")
    assert both.identity() == plain.identity()
    assert both.pretraining() is None
    assert both.stage_epochs == plain.epochs


def test_statistics_are_one_trial_a_data_set() -> None:
    base = TrialConfig(input="statistics", loss="self_supervised", epochs=0)
    for fields in ({"seed": 3}, {"encoder_width": 8}, {"bins": 32}, {"augmentations": ()}, {"precision": "bf16"}):
        assert base.but(**fields).identity() == base.identity()
    assert base.but(label_fraction=0.1).identity() != base.identity()
    assert base.but(label_fraction=0.1, seed=1).identity() != base.but(label_fraction=0.1).identity()
    assert base.but(dataset="notes").identity() != base.identity()
    with pytest.raises(UserError, match="input = statistics has no encoder to train with loss = clar, epochs = 1020"):
        TrialConfig(input="statistics")


def test_finetuning_tries_rates_that_follow_the_optimizers() -> None:
    base = TrialConfig(loss="finetune", epochs=50, learning_rate=0.2)
    assert base.rates == pytest.approx((0.2, 0.06, 0.02))
    assert (base.epochs_a_rate, base.stage_epochs) == (5, 15)
    assert base.but(finetune_epochs=5).identity() == base.identity() != base.but(finetune_epochs=6).identity()
    one = base.but(finetune_learning_rate=0.01)
    assert one.rates == (0.01,)
    assert one.stage_epochs == 5
    assert TrialConfig(loss="finetune", epochs=0).epochs_a_rate == 1


def test_augmentations_that_cannot_matter_do_not_come_back_by_their_number() -> None:
    for base in (
        TrialConfig(input="statistics", loss="self_supervised", epochs=0),
        TrialConfig(loss="self_supervised", epochs=0),
    ):
        assert base.but(augmentation_probability=(0.5, 0)).identity() == base.identity()


def test_the_form_of_a_trial_that_identity_is_computed_on() -> None:
    config = TrialConfig(
        augmentations=("fade", "time_mask", "time_shift"), augmentation_probability=(0.5, 0, 0.5),
        augmentation_strength=(1, 1, 0), window_ms=16, hop_ms=8, probe_every=2000, finetune_epochs=7,
    )  # fmt: skip
    assert config.canonical() == TrialConfig(augmentations=("fade",), probe_every=1020)
    assert config.canonical().canonical() == config.canonical()
    assert TrialConfig(front_end="released", window_ms=128).canonical() == TrialConfig(front_end="released")
    assert TrialConfig(front_end="released", window_ms=16).canonical().window_ms == 16
    assert TrialConfig(augmentation_strength=0, fade_shapes="released").canonical() == TrialConfig(augmentations=())
    raw = TrialConfig(input="raw", front_end="released", window_ms=128, hop_ms=4, bins=64, channels=("mel",))
    assert raw.canonical() == TrialConfig(input="raw")
    assert TrialConfig(encoder="released").canonical() == TrialConfig()
    assert TrialConfig(input="raw", encoder="released").canonical().encoder == "released"


def test_channels_come_in_one_order() -> None:
    mixed = TrialConfig(**parse_settings(["channels=mel, magnitude"]))
    assert mixed.channels == ("magnitude", "mel")
    assert mixed == TrialConfig(channels=("magnitude", "mel"))
    assert TrialConfig(channels=("phase", "mel", "magnitude")) == TrialConfig()


@pytest.mark.parametrize(
    ("name", "option"),
    [("fade", "fade_shapes"), ("time_stretch", "stretch"), ("time_mask", "mask"), ("mixed_noise", "coloured_noise")],
)
def test_a_variant_counts_where_its_augmentation_acts(name: str, option: str) -> None:
    variant = {option: IN_THE_IDENTITY[option]}
    for fields in ({"augmentations": (name,)}, {"augmentations": ("pitch_shift", name, "time_shift")}):
        assert TrialConfig(**fields, **variant).identity() != TrialConfig(**fields).identity()
    for fields in (
        {"augmentations": ("pitch_shift",)},
        {"augmentations": (name,), "augmentation_strength": 0},
        {"augmentations": (name, "time_shift"), "augmentation_probability": (0, 1)},
        {"augmentations": (name,), "epochs": 0},
    ):
        assert TrialConfig(**fields, **variant).identity() == TrialConfig(**fields).identity()


def test_a_second_view_that_differs() -> None:
    config = TrialConfig(augmentations=("fade",), second_view=("time_shift", "time_mask"))
    assert config.title() == "fade, second view time_shift > time_mask, seed 0"
    assert config.but(second_view=()).title(config) == "fade, second view no augmentation, seed 0"
    assert config.but(second_view=None).title() == config.but(second_view=("fade",)).title() == "fade, seed 0"
    assert config.canonical() == config
    assert TrialConfig(**json.loads(json.dumps(config.model_dump(mode="json")))) == config
    for text, names in (("fade, time_shift", ("fade", "time_shift")), ("", ()), ("none", None)):
        assert TrialConfig(**parse_settings([f"second_view={text}"])).second_view == names
    assert TrialConfig(second_view="fade > time_shift").second_view == ("fade", "time_shift")  # as MLflow shows it


def test_a_second_view_counts_where_it_differs_and_something_acts() -> None:
    config = TrialConfig(augmentations=("fade",), second_view=("fade",))
    assert config.canonical() == TrialConfig(augmentations=("fade",))
    for nothing in ({"augmentation_probability": 0}, {"augmentation_strength": 0}):
        silent = config.but(second_view=("time_mask",), mask="released", **nothing)
        assert silent.canonical() == TrialConfig(augmentations=())
    assert config.but(epochs=0, second_view=()).identity() == config.but(epochs=0).identity()
    # An augmentation of the second view alone acts too, and so do its options.
    second = TrialConfig(augmentations=(), second_view=("time_mask",))
    for change in ({"augmentation_probability": 0.2}, {"augmentation_strength": 2}, {"mask": "released"}):
        assert second.but(**change).identity() != second.identity()
    assert second.but(fade_shapes="released").identity() == second.identity()
    assert TrialConfig(augmentations=(), second_view=()).canonical() == TrialConfig(augmentations=())


def test_identities_of_version_1_are_found() -> None:
    # As the code of that version computed them.
    demo = TrialConfig(
        loss="self_supervised", seed=3, epochs=2, batch_size=32, optimizer="adamw", learning_rate=3e-3, warmup_epochs=0,
        temperature=0.2, probe_every=2, hop_ms=16, bins=64, encoder_width=16, encoder_blocks=(1, 1, 1, 1),
    )  # fmt: skip
    assert demo.identity("f" * 64, version=1) == "ace1e9dd509b96c2"
    assert demo.but(augmentation_probability=0.25).identity("f" * 64, version=1) == "494b00c1e00dc0b0"
    assert demo.identity("f" * 64) == demo.identity("f" * 64, RESULTS_VERSION) != "ace1e9dd509b96c2"
    # What was called lars up to version 2 is called lamb.
    lars, lamb = (TrialConfig(optimizer=name) for name in ("lars", "lamb"))
    assert lamb.identity(version=2) == "24a356cdf5a6e31c"
    assert lars.identity(version=2) not in (lamb.identity(version=2), lars.identity(), lamb.identity())


def test_what_a_trial_starts_from() -> None:
    base = TrialConfig(epochs=50, finetune_epochs=7, finetune_learning_rate=0.2)
    whole = base.but(loss="self_supervised")
    shared = {
        base.but(loss=loss, label_fraction=fraction).pretraining().identity()
        for loss, fraction in (("finetune", 1), ("finetune", 0.1), ("self_supervised", 0.1), ("self_supervised", 0.01))
    }
    assert shared == {whole.identity()}
    for loss in ("clar", "supervised"):
        assert base.but(loss=loss, label_fraction=0.1).pretraining() is None
        assert base.but(loss=loss, label_fraction=0.1).stage_epochs == 50
    assert whole.pretraining() is None
    assert whole.stage_epochs == 50
    assert whole.but(label_fraction=0.1).stage_epochs == 0
    assert base.but(loss="finetune").stage_epochs == 7


def test_title_says_what_differs_and_matters() -> None:
    base = TrialConfig(**preset("demo"))
    shown = base.but(loss="supervised", temperature=0.3, augmentation_strength=(0.5, 2), seed=4).title(base)
    assert shown == "fade > time_mask, loss supervised, augmentation_strength 0.5,2, seed 4"
    assert base.but(loss="finetune").pretraining().title(base) == "fade > time_mask, loss self_supervised, seed 0"


def test_one_number_for_all_augmentations_or_one_for_each() -> None:
    for given in (0.25, "0.25", (0.25,), [0.25, 0.25]):
        assert TrialConfig(augmentation_probability=given).augmentation_probability == (0.25,)
    config = TrialConfig(augmentation_probability=(0.25, 1), augmentation_strength=(2, 0.5))
    assert config.augmentation_probability == (0.25, 1.0)
    assert config.differences() == {"augmentation_probability": [0.25, 1.0], "augmentation_strength": [2.0, 0.5]}
    assert TrialConfig(augmentation_strength=0.5).differences() == {"augmentation_strength": 0.5}
    parsed = TrialConfig(**parse_settings(["augmentation_strength=0.5, 2", "augmentation_probability=0.1"]))
    assert (parsed.augmentation_strength, parsed.augmentation_probability) == ((0.5, 2.0), (0.1,))


def test_fine_tuning_alone_needs_a_batch_too() -> None:
    with pytest.raises(UserError, match="batch_size = 1024 is more than the 100"):
        TrialConfig(epochs=0, loss="finetune").check_batch(100)
    TrialConfig(epochs=0).check_batch(100)


def test_data_and_order_of_augmentations_change_the_identity_but_a_default_spelled_out_does_not() -> None:
    base = TrialConfig()
    assert base.identity("a") != base.identity("b")
    assert TrialConfig(augmentations=("fade", "time_mask")).identity() == base.identity()
    assert TrialConfig(augmentations=("time_mask", "fade")).identity() != base.identity()
    assert TrialConfig(learning_rate=1).identity() == base.identity()


def test_config_survives_json() -> None:
    config = TrialConfig(**preset("demo")).but(augmentations=("pitch_shift", "fade"), window_ms=20)
    for one in (config, config.but(augmentation_probability=0.2), config.but(augmentation_strength=(0.5, 2))):
        assert TrialConfig(**json.loads(json.dumps(one.model_dump(mode="json")))) == one


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"loss": "superviced"}, "loss = superviced: not one of its values; did you mean supervised"),
        ({"epoch": 3}, "no field 'epoch'; did you mean epochs"),
        ({"epochs": "many"}, "epochs = many: must be a valid integer"),
        ({"epochs": -1}, "epochs = -1: must be greater than or equal to 0"),
        ({"learning_rate": "nan"}, "learning_rate = nan: must be a finite number"),
        ({"augmentations": ("fad",)}, "no augmentation 'fad'; did you mean fade"),
        ({"second_view": ("fad",)}, "second_view = fad: no augmentation 'fad'; did you mean fade"),
        (
            {"second_view": (), "augmentation_strength": (1, 2)},
            "second_view needs augmentation_strength of one number, for both views; got 2",
        ),
        ({"cross_entropy_weight": -1}, "cross_entropy_weight = -1: must be greater than or equal to 0"),
        ({"channels": ("mell",)}, "no channel 'mell'; did you mean mel"),
        ({"channels": ("mel", "mel")}, "channels = mel,mel: needs one or more of magnitude,phase,mel, each once"),
        ({"channels": ()}, "needs one or more of magnitude,phase,mel, each once"),
        ({"encoder_blocks": (1, 1)}, "encoder_blocks = 1,1: needs four numbers"),
        ({"epochs": 3, "warmup_epochs": 3}, "warmup_epochs = 3 leaves none of epochs = 3"),
        ({"label_fraction": 0}, "label_fraction = 0: must be greater than 0"),
        ({"augmentation_probability": 1.5}, "augmentation_probability = 1.5: must be less than or equal to 1"),
        ({"augmentation_strength": (1, 2.5)}, "augmentation_strength = 2.5: must be less than or equal to 2"),
        (
            {"augmentation_strength": (1, 1, 1)},
            "1,1,1: needs one number, or one for each of the 2 augmentations; got 3",
        ),
        ({"augmentation_probability": ()}, "needs one number, or one for each of the 2 augmentations; got 0"),
        ({"augmentation_probability": None}, "augmentation_probability = None: must be a valid number"),
        ({"loss": "finetune", "finetune_epochs": 0}, "finetune_epochs = 0: must be greater than or equal to 1"),
        ({"seed": 2**63}, "seed = 9223372036854775808: must be less than"),
    ],
)
def test_a_bad_field_is_named_in_one_line(fields: dict, said: str) -> None:
    with pytest.raises(UserError) as caught:
        TrialConfig(**fields)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["epochs"], "write field=value"),
        (["epoks=3"], "no field 'epoks'; did you mean epochs"),
        (["epochs=3", "epochs=4"], "epochs is given twice"),
    ],
)
def test_a_bad_setting_is_named(settings: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_settings(settings)


def test_settings_are_text_until_validated_and_never_evaluated() -> None:
    fields = parse_settings(
        ["epochs=30", "augmentations=fade, time_shift", "window_ms=none", "dataset=__import__('os')"]
    )
    config = TrialConfig(**fields)
    assert config.epochs == 30
    assert config.augmentations == ("fade", "time_shift")
    assert config.window_ms is None
    assert config.dataset == "__import__('os')"


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("dataset", ["digits", "speech_commands_10", "esc_50"])
def test_presets_are_valid(name: str, dataset: str) -> None:
    found = TrialConfig(**preset(name, dataset)).dataset
    assert found == (
        f"{dataset}:v0.01" if dataset == "speech_commands_10" and name in ("paper", "released") else dataset
    )
    assert TrialConfig(**preset(name, "speech_commands_10:v0.02")).dataset == "speech_commands_10:v0.02"


@pytest.mark.parametrize("name", ["small", "paper", "released"])
@pytest.mark.parametrize("clips", [40, 84, 240, 1320, 1400, 14_000, 105_000])
def test_a_set_without_a_published_schedule_gets_one_by_its_size(name: str, clips: int) -> None:
    config = TrialConfig(**preset(name, "folder:/x", clips))
    steps = config.epochs * (clips // config.batch_size)
    wanted = 300 if name == "small" else 18_000
    assert steps > 0.75 * wanted
    assert steps < 1.25 * wanted or config.epochs == 1
    # An epoch has steps, and few clips are left out of it.
    assert clips // config.batch_size >= 4
    assert clips % config.batch_size < 0.13 * clips
    probes = config.epochs / config.probe_every
    assert probes <= (6 if name == "small" else 400)
    assert TrialConfig(**preset("paper", "nsynth_family", clips)).epochs == 120


def test_the_released_preset_has_every_option_that_is_called_released() -> None:
    fields = preset("released")
    for name, field in TrialConfig.model_fields.items():
        if "released" in str(field.annotation) and name not in ("precision",):
            assert fields[name] == "released", name
    assert (fields["stretch"], fields["cross_entropy_weight"], fields["probe_labels"]) == ("resampled", 2, "all")


def test_unknown_preset_names_the_near_one() -> None:
    with pytest.raises(UserError, match="did you mean demo"):
        preset("demoo")


def test_the_seven_augmentations_of_the_paper() -> None:
    assert len(set(AUGMENTATIONS)) == 7
