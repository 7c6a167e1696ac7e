import json
import subprocess
import sys

import pytest

from clar.config import AUGMENTATIONS, PRESETS, TrialConfig, parse_settings, preset
from clar.errors import UserError


def test_identity_is_the_same_in_another_process_and_for_fields_in_another_order() -> None:
    code = "from clar.config import TrialConfig; print(TrialConfig(loss='supervised', seed=3).identity('f' * 64))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert TrialConfig(seed=3, loss="supervised").identity("f" * 64) == other
    assert len(other) == 16
    assert int(other, 16) >= 0


@pytest.mark.parametrize("field", sorted(TrialConfig.model_fields))
def test_every_field_changes_the_identity(field: str) -> None:
    changed = {
        "dataset": "speech_commands_10", "input": "raw", "loss": "supervised", "augmentations": ("fade",),
        "augmentation_probability": 0.25, "label_fraction": 0.1, "seed": 1, "epochs": 100, "batch_size": 32,
        "optimizer": "adamw", "learning_rate": 0.5, "weight_decay": 0.0, "warmup_epochs": 1, "temperature": 0.1,
        "precision": "bf16", "front_end": "released", "window_ms": 32, "hop_ms": 4, "bins": 64, "encoder_width": 8,
        "encoder_blocks": (1, 1, 1, 1), "head": "released", "projection_hidden": 64, "projection_dim": 32,
        "probe_every": 5, "fade_shapes": "released",
    }  # fmt: skip
    assert TrialConfig(**{field: changed[field]}).identity() != TrialConfig().identity()


def test_data_and_order_of_augmentations_change_the_identity_but_a_default_spelled_out_does_not() -> None:
    base = TrialConfig()
    assert base.identity("a") != base.identity("b")
    assert TrialConfig(augmentations=("fade", "time_mask")).identity() == base.identity()
    assert TrialConfig(augmentations=("time_mask", "fade")).identity() != base.identity()
    assert TrialConfig(learning_rate=1).identity() == base.identity()


def test_config_survives_json() -> None:
    config = TrialConfig(**preset("demo")).but(augmentations=("pitch_shift",), window_ms=20)
    assert TrialConfig(**json.loads(json.dumps(config.model_dump(mode="json")))) == config


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"loss": "superviced"}, "loss = superviced: not one of its values; did you mean supervised"),
        ({"epoch": 3}, "no field 'epoch'; did you mean epochs"),
        ({"epochs": "many"}, "epochs = many: must be a valid integer"),
        ({"epochs": -1}, "epochs = -1: must be greater than or equal to 0"),
        ({"learning_rate": "nan"}, "learning_rate = nan: must be a finite number"),
        ({"augmentations": ("fad",)}, "no augmentation 'fad'; did you mean fade"),
        ({"encoder_blocks": (1, 1)}, "encoder_blocks = 1,1: needs four numbers"),
        ({"epochs": 3, "warmup_epochs": 3}, "warmup_epochs = 3 leaves none of epochs = 3"),
        ({"label_fraction": 0}, "label_fraction = 0: must be greater than 0"),
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
    assert TrialConfig(**preset(name, dataset)).dataset == dataset


def test_unknown_preset_names_the_near_one() -> None:
    with pytest.raises(UserError, match="did you mean demo"):
        preset("demoo")


def test_the_seven_augmentations_of_the_paper() -> None:
    assert len(set(AUGMENTATIONS)) == 7
