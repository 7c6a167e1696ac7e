"""Supervised, self-supervised, fine-tuned and CLAR, by the share of labels that may be seen."""

from collections.abc import Iterator

from clar.config import TrialConfig

LOSSES = ("supervised", "self_supervised", "finetune", "clar")
FRACTIONS = (1.0, 0.2, 0.1, 0.01)

SETTINGS = {"input": "spectrogram"}

ROWS = ("loss", LOSSES)
COLUMNS = ("labels seen", tuple(f"{100 * fraction:g} %" for fraction in FRACTIONS))
WITHIN = "column"


def trials(base: TrialConfig) -> Iterator[TrialConfig]:
    """The base with every loss and label fraction; all of `self_supervised` and `finetune` share one pre-training."""
    for loss in LOSSES:
        for fraction in FRACTIONS:
            yield base.but(loss=loss, label_fraction=fraction)


def cell(trial: TrialConfig) -> tuple[str, str]:
    """Row and column of a trial in the table."""
    return trial.loss, f"{100 * trial.label_fraction:g} %"


def curve(trial: TrialConfig) -> str | None:
    """Convergence: the probe's accuracy by epoch, where all labels may be seen."""
    return trial.loss if trial.label_fraction == 1 and trial.loss != "finetune" else None
