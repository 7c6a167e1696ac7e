"""Presets: the sizes and schedules at which a study runs, for each data set by what it can bear.

`demo` trains in seconds on a CPU, `small` in minutes; `paper` is the published size, `released` the same with all that
the authors' public code does otherwise. EXPERIMENTS.md has what `small` was tuned by, one table a knob.
"""

from typing import Any

from clar.errors import UserError, near

PRESETS = ("demo", "small", "paper", "released")

# The released code's schedules, over its four GPUs together: a step here sees as many clips as a step there.
_PUBLISHED: dict[str, dict[str, int]] = {
    "speech_commands_10": {"batch_size": 1024, "epochs": 1020},
    "speech_commands_35": {"batch_size": 512, "epochs": 1020},
    "nsynth_family": {"batch_size": 128, "epochs": 120},
    "nsynth_pitch": {"batch_size": 64, "epochs": 120},
    "esc_50": {"batch_size": 256, "epochs": 2000},
    # Three of ESC-10's folds are 240 clips: a step sees them all.
    "esc_10": {"batch_size": 240, "epochs": 2000},
}

_RELEASED: dict[str, Any] = {
    "front_end": "released",
    "encoder": "released",
    "head": "released",
    "optimizer": "released",
    "cross_entropy_weight": 2.0,
    "fade_shapes": "released",
    "stretch": "resampled",
    "mask": "released",
    "coloured_noise": "released",
    "probe_labels": "all",
}

# What a small encoder learns from in few steps, whatever the data.
_FEW_STEPS: dict[str, Any] = {
    "optimizer": "adamw",
    "warmup_epochs": 0,
    "temperature": 0.2,
    "window_ms": 32,
    "hop_ms": 16,
    "bins": 64,
    "channels": ("mel",),
    "scaling": "fixed",
    "encoder": "released",
    "encoder_blocks": (1, 1, 1, 1),
    "pooling": "time",
    "head": "released",
}

_DEMO: dict[str, Any] = {
    **_FEW_STEPS,
    "epochs": 2,
    "batch_size": 32,
    "learning_rate": 3e-3,
    "probe_every": 2,
    "encoder_width": 16,
    "finetune_epochs": 2,
}

_SMALL: dict[str, Any] = {
    **_FEW_STEPS,
    "augmentations": ("pitch_shift", "time_stretch", "mixed_noise", "fade", "time_mask"),
    "epochs": 30,
    "batch_size": 128,
    "learning_rate": 2e-3,
    "weight_decay": 1e-4,
    "probe_every": 10,
    "encoder_width": 32,
    "projection_hidden": 256,
    "projection_dim": 64,
    "finetune_epochs": 10,
}

BY_SIZE = {"small": (300, 128, 3), "paper": (18_000, 1024, 200), "released": (18_000, 1024, 200)}
"""Steps in all, the largest batch, and probes on the way, where no schedule is published: 18,000 are those of the
paper's grid."""


def preset(name: str, dataset: str = "digits", training_clips: int | None = None) -> dict[str, Any]:
    """The fields that a preset sets, for one data set.

    Args:
        name: one of `PRESETS`.
        dataset: its name. The paper's Speech Commands with ten words are v0.01: that is what it stands for there.
        training_clips: how many it trains on; None: not known yet.

    Raises:
        UserError: there is no such preset.
    """
    if name not in PRESETS:
        raise UserError(f"no preset {name!r}{near(name, PRESETS)}")
    if name == "demo":
        return {"dataset": dataset, **_DEMO}
    if name == "small":
        return {"dataset": dataset, **_SMALL, **_by_size(name, training_clips)}
    if dataset == "speech_commands_10":
        dataset = "speech_commands_10:v0.01"
    schedule = _PUBLISHED.get(dataset.partition(":")[0]) or _by_size(name, training_clips)
    return {"dataset": dataset, "precision": "bf16", **(_RELEASED if name == "released" else {}), **schedule}


def _by_size(name: str, clips: int | None) -> dict[str, int]:
    """As many steps on any number of clips: a batch of a quarter of them at most, epochs and probes to fit."""
    if clips is None:
        return {}
    steps, largest, probes = BY_SIZE[name]
    batch = max(2, min(largest, 1 << max(1, clips // 4).bit_length() - 1))
    epochs = max(1, round(steps / max(1, clips // batch)))
    fitted = {"batch_size": batch, "epochs": epochs, "probe_every": max(1, epochs // probes)}
    if name == "small":
        return {**fitted, "finetune_epochs": max(1, round(epochs / 3))}
    return {**fitted, "warmup_epochs": epochs // 100}
