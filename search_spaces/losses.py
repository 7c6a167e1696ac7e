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
    """The base with every loss and label fraction, its probe fitted on the labels seen, and once more on all.

    All of `self_supervised` and `finetune` share one pre-training, and the two probes one encoder.
    """
    for probe_labels in ("seen", "all"):
        for loss in LOSSES:
            for fraction in FRACTIONS:
                yield base.but(loss=loss, label_fraction=fraction, probe_labels=probe_labels)


def cell(trial: TrialConfig) -> tuple[str, str]:
    """Row and column of a trial in the table."""
    return trial.loss, f"{100 * trial.label_fraction:g} %"


def table(trial: TrialConfig) -> str:
    """One table for each protocol of the probe."""
    return trial.dataset if trial.probe_labels == "seen" else f"{trial.dataset}, all labels"


def curve(trial: TrialConfig) -> str | None:
    """Convergence: the probe's accuracy by epoch, where all labels may be seen."""
    whole = trial.label_fraction == 1 and trial.probe_labels == "seen"
    return trial.loss if whole and trial.loss != "finetune" else None
