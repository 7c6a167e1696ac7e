"""Raw waveform against spectrogram as the encoder's input, for every loss, over the data sets given."""

from collections.abc import Iterator

from clar.config import TrialConfig

INPUTS, LOSSES = ("raw", "spectrogram"), ("supervised", "self_supervised", "clar")

ROWS, COLUMNS = ("input, loss", tuple(f"{name}, {loss}" for loss in LOSSES for name in INPUTS)), ("data set", None)
METRICS = ("test_top1", "test_top5")
WITHIN = "column"


def trials(base: TrialConfig) -> Iterator[TrialConfig]:
    """The base with either input under each loss."""
    for loss in LOSSES:
        for name in INPUTS:
            yield base.but(input=name, loss=loss)


def cell(trial: TrialConfig) -> tuple[str, str]:
    """Row and column of a trial in the table."""
    return f"{trial.input}, {trial.loss}", trial.dataset


def table(trial: TrialConfig) -> str:
    """One table for all data sets."""
    return "all data sets"
