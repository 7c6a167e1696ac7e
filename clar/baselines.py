"""What every result is to be held against: the same probe, on the same clips, of encoders that nobody has pre-trained.

Baselines are trials like any other, so they are trained once a data set, stored, tracked and reported as these are.
"""

from typing import NamedTuple

from clar.config import ProbeLabels, TrialConfig

CHANCE, LOG_MEL = "chance", "log-mel statistics"
"""Chance needs no trial: every result knows it, see `TrialResult.chance_top1`."""


class Labels(NamedTuple):
    """What of the labels a trial may see; its baselines see the same."""

    fraction: float
    probe_labels: ProbeLabels

    @classmethod
    def of(cls, trial: TrialConfig) -> "Labels":
        """Those of a trial; where it sees all of them, so does its probe."""
        return cls(trial.label_fraction, "seen" if trial.label_fraction == 1 else trial.probe_labels)

    def __str__(self) -> str:
        probe = ", all by the probe" if self.probe_labels == "all" else ""
        return f"{100 * self.fraction:g} % of labels{probe}"


def baselines(base: TrialConfig, labels: Labels) -> dict[str, TrialConfig]:
    """The baselines of trials like `base` by name, with so many labels."""
    base = base.but(label_fraction=labels.fraction, probe_labels=labels.probe_labels)
    untrained = base.but(loss="self_supervised", epochs=0, warmup_epochs=0)
    return {
        LOG_MEL: untrained.but(input="statistics"),
        "untrained encoder": untrained,
        "supervised": base.but(loss="supervised"),
    }
