"""The paper's front end against the released code's, and the length of the paper's window."""

from collections.abc import Iterator

from clar.config import TrialConfig

SETTINGS = {"input": "spectrogram"}

FRONT_ENDS = {
    "paper, 16 ms": {"front_end": "paper", "window_ms": 16},
    "paper, 32 ms": {"front_end": "paper", "window_ms": 32},
    "paper, 64 ms": {"front_end": "paper", "window_ms": 64},
    "released, 128 ms": {"front_end": "released", "window_ms": 128},
}
ROWS, COLUMNS = ("front end", tuple(FRONT_ENDS)), ("loss", ("self_supervised", "clar"))
WITHIN = "column"


def trials(base: TrialConfig) -> Iterator[TrialConfig]:
    """The base with each front end, under either contrastive loss."""
    for fields in FRONT_ENDS.values():
        for loss in COLUMNS[1]:
            yield base.but(loss=loss, **fields)


def cell(trial: TrialConfig) -> tuple[str, str]:
    """Row and column of a trial in the table."""
    return f"{trial.front_end}, {trial.window_ms:g} ms", trial.loss
