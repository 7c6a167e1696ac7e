"""Raw waveform against spectrogram as the encoder's input, self-supervised, over the data sets given."""

from collections.abc import Iterator

from clar.config import TrialConfig

SETTINGS = {"loss": "self_supervised"}

ROWS, COLUMNS = ("input", ("raw", "spectrogram")), ("data set", None)
METRICS = ("test_top1", "test_top5")
WITHIN = "column"


def trials(base: TrialConfig) -> Iterator[TrialConfig]:
    """The base with either input."""
    for name in ROWS[1]:
        yield base.but(input=name)


def cell(trial: TrialConfig) -> tuple[str, str]:
    """Row and column of a trial in the table."""
    return trial.input, trial.dataset


def table(trial: TrialConfig) -> str:
    """One table for all data sets."""
    return "all data sets"
