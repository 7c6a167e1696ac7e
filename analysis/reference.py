"""Published values that the user has at hand, to stand beside ours.

A CSV with a header: `row` and `column` as our table names them, `published` in per cent as papers print it, and
`table`, the name of our table's file without suffix, where the sweep has several:

    table,row,column,published
    losses-digits-test_top1,clar,10 %,71.2
"""

import csv
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from analysis.tables import Grid
from clar.errors import UserError, near

Published = dict[tuple[str, str], float]
"""By row and column, as shares."""

_NEEDED = ("row", "column", "published")


def read(path: Path, grids: Mapping[str, Grid], cells: Mapping[str, Iterable[tuple[str, str]]]) -> dict[str, Published]:
    """The published values of each table.

    Args:
        path: the CSV.
        grids: our tables by name.
        cells: row and column of each cell of each table.

    Raises:
        UserError: the file cannot be read, lacks a column, or names a table or cell that there is not; a value is no
            percentage, or a cell is given twice.
    """
    try:
        lines = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines(), skipinitialspace=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--reference {path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    header = list(lines[0]) if lines else []
    lacking = [name for name in _NEEDED if name not in header]
    if lacking:
        raise UserError(
            f"--reference {path}: lacks the column {lacking[0]}; its first line is table,row,column,published"
        )
    found: dict[str, Published] = {}
    for number, line in enumerate(lines, 2):
        where = f"--reference {path}, line {number}"
        table = (line.get("table") or "").strip() or _only(grids, where)
        if table not in grids:
            raise UserError(f"{where}: no table {table!r}{near(table, grids)}")
        cell = ((line["row"] or "").strip(), (line["column"] or "").strip())
        for axis, name, names in zip(("row", "column"), cell, zip(*cells[table], strict=True), strict=True):
            if name not in names:
                raise UserError(f"{where}: table {table} has no {axis} {name!r}{near(name, dict.fromkeys(names))}")
        if cell in found.setdefault(table, {}):
            raise UserError(f"{where}: {cell[0]} / {cell[1]} is given twice")
        found[table][cell] = _share(line["published"], where)
    shares = [value for values in found.values() for value in values.values()]
    # One value may be a small percentage; several would be no table.
    if len(shares) > 1 and max(shares) <= 0.01:
        raise UserError(f"--reference {path}: all values are at most 1; write per cent, 71.2 rather than 0.712")
    return found


def _only(grids: Mapping[str, Grid], where: str) -> str:
    if len(grids) != 1:
        raise UserError(f"{where}: name the table, in a column `table`: {', '.join(grids) or 'this sweep has none'}")
    return next(iter(grids))


def _share(text: str | None, where: str) -> float:
    try:
        value = float((text or "").strip().removesuffix("%"))
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100:
        raise UserError(f"{where}: published = {text!r} is no percentage from 0 to 100")
    return value / 100
