"""A search for good hyperparameters: optimizer, loss and strength of the augmentations, by Optuna's TPE."""

from typing import Any

from clar.config import AUGMENTATIONS, TrialConfig

SETTINGS = {"input": "spectrogram", "loss": "self_supervised"}
TRIALS, GENERATION = 48, 8
AROUND = ("learning_rate", "batch_size")


def suggest(trial: Any, base: TrialConfig) -> TrialConfig:
    """The base with what Optuna chooses; how likely and how strong an augmentation is, only for those in use."""
    first = trial.suggest_categorical("first", AUGMENTATIONS)
    second = trial.suggest_categorical("second", AUGMENTATIONS)
    names = (first,) if first == second else (first, second)
    return base.but(
        learning_rate=trial.suggest_float("learning_rate", base.learning_rate / 10, base.learning_rate * 10, log=True),
        weight_decay=trial.suggest_float("weight_decay", 1e-8, 1e-2, log=True),
        temperature=trial.suggest_float("temperature", 0.05, 1.0, log=True),
        batch_size=trial.suggest_categorical("batch_size", (base.batch_size, max(2, base.batch_size // 2))),
        projection_dim=trial.suggest_categorical("projection_dim", (32, 64, 128, 256)),
        augmentations=names,
        augmentation_probability=tuple(trial.suggest_float(f"probability of {name}", 0.2, 1.0) for name in names),
        augmentation_strength=tuple(trial.suggest_float(f"strength of {name}", 0.2, 1.5) for name in names),
    )
