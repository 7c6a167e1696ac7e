"""A sweep's trials as a pandas frame: a row a trial, its configuration, its state and what it found.

What the claims and a user's own tables are made of.
"""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import pandas as pd

from analysis.tables import worst
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
    # As objects: a column of numbers with a gap would make 3.0 of fold 3.
    fold = pd.Series([config.fold for config in asked], table.index, object)
    return table.assign(fold=fold).astype(dict.fromkeys(METRICS, float))


def over_folds(trials: pd.DataFrame) -> pd.DataFrame:
    """A frame whose trials are tested on all folds of their data sets, with one row for all folds of a seed.

    Folds are no repeats, since they share training clips; what compares, compares seeds, by their means over the folds.

    Args:
        trials: as `frame` gives it, of a plan with folds.

    Returns:
        The same columns: numbers are means, NaN where a fold has none; `state` is `done` where all folds are, else the
        worst of them; `curve` is that of `mean_curve`; `fold` is None; `identity` and `title` are those of the first
        fold. Trials on data sets without folds are as they were.
    """
    alike = [name for name in FIELDS if name != "fold"]
    rows = []
    for _, folds in trials.groupby(alike, sort=False, dropna=False):
        state = worst(folds["state"])
        row = folds.iloc[0].to_dict()
        if len(folds) > 1:
            row |= {name: folds[name].mean(skipna=False) for name in METRICS}
            row |= {"state": state, "fold": None, "curve": mean_curve(list(folds["curve"]))}
            row |= {"code_version": folds["code_version"].max()}
        rows.append(row)
    return pd.DataFrame(rows, columns=trials.columns).astype(dict.fromkeys(METRICS, float))


def mean_curve(curves: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Values by epoch of one seed on several folds, as their mean at those epochs that all folds have reached."""
    common = [epoch for epoch in curves[0] if all(epoch in curve for curve in curves)]
    return {epoch: mean(curve[epoch] for curve in curves) for epoch in common}


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
