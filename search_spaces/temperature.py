"""Temperature of NT-Xent, self-supervised and joint."""

from collections.abc import Iterator

from clar.config import TrialConfig

TEMPERATURES = (0.05, 0.1, 0.2, 0.5, 1.0)
ROWS, COLUMNS = ("loss", ("self_supervised", "clar")), ("temperature", tuple(map(str, TEMPERATURES)))


def trials(base: TrialConfig) -> Iterator[TrialConfig]:
    """The base with each temperature, under either loss that has one."""
    for loss in ROWS[1]:
        for temperature in TEMPERATURES:
            yield base.but(loss=loss, temperature=temperature)


def cell(trial: TrialConfig) -> tuple[str, str]:
    """Row and column of a trial in the table."""
    return trial.loss, str(trial.temperature)
