"""Clips a step, which are each other's negatives: an eighth, a quarter, half and all of the preset's."""

from collections.abc import Iterator

from clar.config import TrialConfig

SHARES = (0.125, 0.25, 0.5, 1.0)
AROUND = ("batch_size", "learning_rate")
ROWS, COLUMNS = ("loss", ("self_supervised", "clar")), ("batch", None)


def trials(base: TrialConfig) -> Iterator[TrialConfig]:
    """The base with each batch, at a learning rate that grows as its square root, under either contrastive loss."""
    for loss in ROWS[1]:
        for share in SHARES:
            batch, rate = max(2, round(share * base.batch_size)), base.learning_rate * share**0.5
            yield base.but(loss=loss, batch_size=batch, learning_rate=rate)


def cell(trial: TrialConfig) -> tuple[str, str]:
    """Row and column of a trial in the table."""
    return trial.loss, str(trial.batch_size)
