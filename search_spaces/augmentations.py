"""The paper's augmentation study: every augmentation alone and every ordered pair, 7 x 7, self-supervised."""

from collections.abc import Iterator

from clar.config import AUGMENTATIONS, TrialConfig

# What the study fixes; `--set` may still change it.
SETTINGS = {"input": "spectrogram", "loss": "self_supervised"}

ROWS, COLUMNS = ("first", AUGMENTATIONS), ("second", AUGMENTATIONS)


def trials(base: TrialConfig) -> Iterator[TrialConfig]:
    """The base with the augmentations changed; the diagonal is one augmentation alone."""
    for first in AUGMENTATIONS:
        for second in AUGMENTATIONS:
            yield base.but(augmentations=(first,) if first == second else (first, second))


def cell(trial: TrialConfig) -> tuple[str, str]:
    """Row and column of a trial in the table."""
    return trial.augmentations[0], trial.augmentations[-1]


def references(base: TrialConfig) -> dict[str, TrialConfig]:
    """What the pairs are to be held against, beside the baselines."""
    return {
        "no augmentation": base.but(augmentations=()),
        "all seven": base.but(augmentations=AUGMENTATIONS),
        "fade, the other view time_mask": base.but(augmentations=("fade",), second_view=("time_mask",)),
    }
