"""A sweep's trials as a pandas frame: a row a trial, its configuration, its state and what it found.

What the claims and a user's own tables are made of.
"""

from typing import Any

import pandas as pd

from clar.config import TrialConfig
from clar.plan import Plan
from clar.result import TrialFolder, TrialResult

FIELDS = tuple(TrialConfig.model_fields)
"""Columns that say what a trial is, seed and data set among them; several values are one text: `a > b`, `1,2`."""

METRICS = tuple(name for name in TrialResult.__dataclass_fields__ if name != "epochs")
"""Columns that say what it found, NaN where it is not done or has no such number."""


def frame(plan: Plan, live: bool = True) -> pd.DataFrame:
    """The trials of a plan in its order, as its studies ask for them, without pre-trainings that stand in no table.

    Trials that differ in a field that does not matter for them, such as the temperature of a supervised one, have a row
    each and share their `identity`.

    Args:
        plan: the sweep, replayed.
        live: whether somebody drives it, see `state_of`.

    Returns:
        `identity`, `title`, `state`, `code_version`, the fields of `TrialConfig`, the numbers of `TrialResult`, and
        `curve`: accuracy of the linear probe on valid by epoch, a dict.
    """
    cut = plan.cut()
    rows = []
    asked = {member.config: member.folder for member in plan.members}
    for config, folder in asked.items():
        result = plan.result(folder)
        row: dict[str, Any] = {
            "identity": folder.identity,
            "title": plan.title(folder),
            "state": state_of(plan, folder, cut, live),
            "code_version": folder.code_version(),
            **{name: as_text(name, value) for name, value in config.model_dump().items()},
        }
        # A trial that this sweep has cut may have run through in another one; here it is cut.
        row |= {name: getattr(result, name) if result and row["state"] == "done" else None for name in METRICS}
        row["curve"] = {one.epoch: one.valid_top1 for one in (result.epochs if result else folder.epochs())
                        if one.valid_top1 is not None}  # fmt: skip
        rows.append(row)
    table = pd.DataFrame(rows, columns=["identity", "title", "state", "code_version", *FIELDS, *METRICS, "curve"])
    return table.astype(dict.fromkeys(METRICS, float))


def as_text(field: str, value: Any) -> Any:
    """A field's value as it is shown: `fade > time_mask` and `1,2` for several, one number for itself."""
    if not isinstance(value, tuple | list):
        return value
    if field == "augmentations":
        return " > ".join(value)
    return value[0] if len(value) == 1 else ",".join(map(str, value))


def state_of(plan: Plan, folder: TrialFolder, cut: set[str], live: bool = True) -> str:
    """`done`, `cut`, `failed`, `running`, `stopped` (begun, not finished, and nobody at it) or `missing`."""
    if folder.identity in cut:
        return "cut"
    if plan.result(folder) is not None:
        return "done"
    if folder.failure() is not None:
        return "failed"
    if not folder.code_version():
        return "missing"
    return "running" if live else "stopped"
