"""A table of any two fields of the trials, for a study of one's own."""

from collections.abc import Mapping, Sequence

import pandas as pd

from analysis.results import FIELDS, METRICS
from analysis.tables import Entry, Grid
from clar.errors import UserError, near

SMALL = ("train_seconds", "gpu_seconds", "cpu_seconds", "energy_joules")
"""Numbers of which less is better; they are no shares."""

_PLAIN = ("probe_l2",)
_TASKS = ("dataset", "label_fraction", "fold")
"""Fields whose values are different tasks: accuracies on other clips, or with other labels, are not compared."""


def grid(
    trials: pd.DataFrame, rows: str, columns: str, metric: str = "test_top1", where: Sequence[str] = ()
) -> tuple[Grid, list[str]]:
    """A number of the trials by two of their fields, and what a reader has to know about the table.

    A cell is the mean over whatever else differs among its trials, taken seed by seed, so that `n` counts seeds; a seed
    that lacks some of a cell's trials is left out. The notes name the fields that it is taken over, and say where cells
    do not hold the same trials.

    Args:
        trials: the frame of `analysis.results.frame`.
        rows: a field.
        columns: another one.
        metric: one of the frame's numbers.
        where: `field=value`: only trials with this value.

    Raises:
        UserError: there is no such field, metric or value.
    """
    for option, name in (("--rows", rows), ("--columns", columns)):
        _known(option, name, FIELDS)
    _known("--metric", metric, METRICS)
    if rows == columns:
        raise UserError(f"--rows {rows} --columns {columns}: two different fields")
    chosen = trials
    for condition in where:
        chosen = _having(chosen, condition)
    chosen = chosen.assign(**{name: chosen[name].map(str) for name in (rows, columns)})
    others = [
        name for name in FIELDS
        if name not in ("seed", rows, columns) and chosen[name].nunique(dropna=False) > 1
    ]  # fmt: skip
    entries, left_out = [], 0
    contents = []
    for (row, column), cell in chosen.groupby([rows, columns], sort=False):
        what = cell[others].astype(str).agg(" ".join, axis=1) if others else pd.Series("", index=cell.index)
        whole = frozenset(what)
        contents.append(whole)
        for seed, group in cell.groupby("seed", sort=False):
            if frozenset(what[group.index]) != whole:
                left_out += 1
                continue
            known = group.drop_duplicates("identity")
            states = set(known["state"])
            state = next(
                (name for name in ("failed", "running", "stopped", "cut", "missing") if name in states), "done"
            )
            # A mean over some of a cell's trials would say something else than one over all.
            value = float(known[metric].mean(skipna=False)) if state == "done" else None
            version = max(known["code_version"]) if state == "done" else ""
            entries.append(Entry(str(row), str(column), state, value, int(str(seed)), version))
    notes = []
    if others:
        notes.append(f"each number is a mean over {', '.join(others)}; --where field=value chooses one of them")
    if left_out:
        notes.append(f"seeds that lack some of a cell's trials are left out: {left_out}")
    if len(set(contents)) > 1:
        notes.append("cells do not hold the same trials: they differ in more than their row and column")
    tasks = (rows in _TASKS, columns in _TASKS)
    within = {(True, True): "nothing", (True, False): "row", (False, True): "column"}.get(tasks, "table")
    conditions = f", {', '.join(where)}" if where else ""
    unit = "" if metric in SMALL or metric in _PLAIN else ", %"
    source = Grid(
        f"{metric}{unit}, by {rows} and {columns}{conditions}.",
        (rows, _ordered(trials[rows], chosen[rows])), (columns, _ordered(trials[columns], chosen[columns])), entries,
        share=bool(unit), maximise=metric not in SMALL, within="nothing" if metric in _PLAIN else within,
    )  # fmt: skip
    return source, notes


def _known(option: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        raise UserError(f"{option} {name}: no such field of a trial{near(name, names)}")


def _having(trials: pd.DataFrame, condition: str) -> pd.DataFrame:
    name, equals, value = (part.strip() for part in condition.partition("="))
    if not equals:
        raise UserError(f"--where {condition}: write field=value, for example --where loss=clar")
    _known("--where", name, FIELDS)
    texts = trials[name].map(str)
    found = trials[texts == value]
    if found.empty:
        raise UserError(f"--where {condition}: no trial has it{near(value, dict.fromkeys(texts))}")
    return found


def _ordered(values: pd.Series, shown: pd.Series) -> tuple[str, ...]:
    """Those that are shown: numbers by size, texts as the trials bring them."""
    unique = list(dict.fromkeys(values))
    if all(isinstance(value, int | float) for value in unique):
        unique.sort()
    there = set(shown)
    return tuple(text for text in dict.fromkeys(map(str, unique)) if text in there)


def varied(trials: pd.DataFrame) -> Mapping[str, int]:
    """The fields that differ among the trials, and how many values each has."""
    return {name: count for name in FIELDS if (count := trials[name].nunique(dropna=False)) > 1}
