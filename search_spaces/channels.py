"""Which pictures of a clip the encoder gets: STFT magnitude, STFT phase, mel spectrogram, in every combination."""

from collections.abc import Iterator
from itertools import combinations

from clar.config import CHANNELS, TrialConfig

SETTINGS = {"input": "spectrogram"}

SUBSETS = tuple(subset for count in (1, 2, 3) for subset in combinations(CHANNELS, count))
ROWS, COLUMNS = ("channels", tuple(" + ".join(subset) for subset in SUBSETS)), ("loss", ("self_supervised", "clar"))
WITHIN = "column"


def trials(base: TrialConfig) -> Iterator[TrialConfig]:
    """The base with each subset of the channels, under either contrastive loss."""
    for subset in SUBSETS:
        for loss in COLUMNS[1]:
            yield base.but(channels=subset, loss=loss)


def cell(trial: TrialConfig) -> tuple[str, str]:
    """Row and column of a trial in the table."""
    return " + ".join(trial.channels), trial.loss
