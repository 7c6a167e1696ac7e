"""A sweep's results as the paper's comparison tables: numbers in a pandas frame, and texts for terminal and papers.

A `Grid` is what a table is made of, one entry a trial; `cells` makes it numbers; the rest writes them. Tables that are
no grid, such as the best trials of a search, are `Listing`s; both are written by the same code.
"""

import csv
import io
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import variance
from typing import Any, NamedTuple

import pandas as pd
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from analysis.statistics import LEVEL, Agreement, best_and_ties, mean_interval, pareto_front

Axis = tuple[str, tuple[str, ...] | None]
"""What an axis of the table is called, and its values in order; None: as the entries bring them."""

MARK = "†"
"""Of a cell that cannot be told from the best."""

_CELL_STATES = ("failed", "running", "stopped", "cut", "done", "missing")
"""Of a cell without a number, that of its trials which says most about why."""

_UNFINISHED = tuple(state for state in _CELL_STATES if state != "done")

_LABEL_WIDTH = 28
"""Characters up to which a row's name stays on one line of the terminal."""


class Entry(NamedTuple):
    """One trial of a table.

    Attributes:
        row: its value on the row axis.
        column: and on the column axis.
        state: `done`, `failed`, `cut` (by early stopping), `running`, `stopped` (half-way) or `missing`.
        value: the metric, where the trial is done and has one.
        seed: of the trial.
        code_version: that computed it, as `clar.cli.code_version` writes it; "" where unknown.
        folds: the trials of which this entry is the mean, one a fold; empty where it is one trial.
    """

    row: str
    column: str
    state: str
    value: float | None
    seed: int
    code_version: str = ""
    folds: "tuple[Entry, ...]" = ()

    @classmethod
    def mean(cls, folds: "Sequence[Entry]") -> "Entry":
        """One seed on all folds of its data set: the mean, where all are done; else the state that says why not.

        Folds are no repeats: of five, any two share a third or two thirds of their training clips. So they make one
        value, and whatever counts values, or judges by their scatter, goes by seeds.
        """
        first, values = folds[0], [_number(fold.value) for fold in folds]
        state = worst(fold.state for fold in folds)
        mean = math.fsum(values) / len(values) if all(map(_has_value, folds)) else None
        version = max(fold.code_version for fold in folds) if state == "done" else ""
        return cls(first.row, first.column, state, mean, first.seed, version, tuple(folds))


def worst(states: Iterable[str]) -> str:
    """Of several trials' states that which says most about why they have no number together; `done` where all are."""
    present = set(states)
    return next((state for state in _UNFINISHED if state in present), "done")


@dataclass(frozen=True)
class Grid:
    """One table to be.

    Attributes:
        title: the sentence above it.
        rows: what the rows are called, and their names in order. A name that only an entry has comes last.
        columns: the same for the columns.
        entries: the trials, in any order: it changes nothing but that of names that the axes do not have.
        share: the values are shares from 0 to 1, shown in per cent; else they are shown as they are.
        maximise: the best is the largest, else the smallest.
        within: what is compared: all cells of the `table`, or those of each `column` or `row` (accuracies on other
            data, or with other labels, are of another task), or `nothing`.
        shown: what a column is called in print, where that is more than its name.
        remarks: notes of its own, a sentence each.
    """

    title: str
    rows: Axis
    columns: Axis
    entries: list[Entry]
    share: bool = True
    maximise: bool = True
    within: str = "table"
    shown: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listing:
    """A table as texts: a header, rows, which cells stand out. `console.print` of one fits it to the console.

    Attributes:
        title: the sentence above it.
        header: a name for each column.
        rows: of texts, each as long as the header; the first is the row's name.
        bold: (row, column), counted from 0, of the cells that stand out.
        left: columns whose texts are set to the left; the first always is.
        best_first: the first rows matter most; a terminal that is too narrow for the table shows those only.
    """

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    bold: frozenset[tuple[int, int]] = frozenset()
    left: frozenset[int] = frozenset()
    best_first: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.to_rich(options.max_width)

    def to_rich(self, width: int | None = None) -> Table:
        """For a terminal; where it is wider than `width`, texts take several lines, and Rich folds what is wider still.

        Of a table with the best first, a narrow terminal shows as many as fit, side by side.
        """
        table = self._rich(broken=False)
        if width is None or _width(table) <= width:
            return table
        if self.best_first:
            for count in range(len(self.rows), 2, -1):
                turned = self._turned(count)._rich(broken=True)
                if _width(turned) <= width:
                    return turned
        return self._rich(broken=True)

    def to_markdown(self) -> str:
        """In Markdown's pipe syntax, without the title."""
        rule = ["---", *("---" if self._is_left(column) else "---:" for column in range(1, len(self.header)))]
        lines = [[_markdown(name) for name in self.header], rule]
        for i, row in enumerate(self.rows):
            lines.append(
                [_strong(_markdown(text)) if (i, j) in self.bold else _markdown(text) for j, text in enumerate(row)]
            )
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def to_latex(self) -> str:
        """A `tabular`, without the title; needs the package booktabs."""

        def line(texts: Iterable[str]) -> str:
            return f"{' & '.join(texts)} \\\\\n"

        body = "".join(
            line(f"\\textbf{{{_latex(text)}}}" if (i, j) in self.bold else _latex(text) for j, text in enumerate(row))
            for i, row in enumerate(self.rows)
        )
        kinds = "".join("l" if self._is_left(column) else "r" for column in range(len(self.header)))
        head = line(map(_latex, self.header))
        return f"\\begin{{tabular}}{{{kinds}}}\n\\toprule\n{head}\\midrule\n{body}\\bottomrule\n\\end{{tabular}}\n"

    def to_csv(self) -> str:
        """The texts, comma-separated."""
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([self.header, *self.rows])
        return out.getvalue()

    def _is_left(self, column: int) -> bool:
        return column == 0 or column in self.left

    def _turned(self, count: int) -> "Listing":
        """The first rows as columns."""
        lines = list(zip(self.header, *self.rows[:count], strict=True))
        title = (
            self.title if count == len(self.rows) else f"{self.title} ({count} of {len(self.rows)} fit here)".strip()
        )
        return Listing(title, lines[0], lines[1:], frozenset((j - 1, i + 1) for i, j in self.bold if i < count))

    def _rich(self, broken: bool) -> Table:
        # As Text, so that no name is taken for Rich's markup or for an emoji.
        title = Text(self.title, style="table.title") if self.title else None
        table = Table(title=title, title_justify="left", header_style="")
        for j, name in enumerate(map(_one_line, self.header)):
            left = self._is_left(j)
            # Long names take two lines, so that the paper's table fits 80 columns.
            shown = name if j == 0 else name.replace("_", "_\n")
            longest = max((len(row[j]) for row in self.rows), default=0)
            table.add_column(
                Text(shown), justify="left" if left else "right", overflow="fold",
                no_wrap=j == 0 and max(longest, len(name)) <= _LABEL_WIDTH,
            )  # fmt: skip
        for i, row in enumerate(self.rows):
            table.add_row(
                *(
                    Text().append(
                        _broken(text) if broken and j else text, "bold reverse" if (i, j) in self.bold else ""
                    )
                    for j, text in enumerate(map(_one_line, row))
                )
            )
        return table


def cells(source: Grid) -> pd.DataFrame:
    """One row a cell: `row`, `column`, `mean`, `low` and `high` (95 %), `n`, `state`, `p`, `best` and `tied`.

    A seed counts once: where a cell holds several of its trials, as their mean. `low` and `high` are NaN for one seed,
    `mean` too for none. `state` is `done` where there is a number, else why there is none, and empty where no trial
    asks for the cell. `best` is the best of what the cell is compared with, see `Grid.within`; `p` that of a paired
    test against it, corrected by Holm over these cells, see `analysis.statistics.best_and_ties`; `tied` says that it
    was tested and cannot be told from the best.
    """
    members: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in source.entries:
        members[entry.row, entry.column].append(entry)
    rows = _names(source.rows, (entry.row for entry in source.entries))
    columns = _names(source.columns, (entry.column for entry in source.entries))
    places = [(row, column) for row in rows for column in columns]
    values = {place: _by_seed(members.get(place, [])) for place in places}
    intervals = {place: mean_interval(by_seed.values()) for place, by_seed in values.items()}
    families = {
        "table": [places],
        "column": [[one for one in places if one[1] == column] for column in columns],
        "row": [[one for one in places if one[0] == row] for row in rows],
    }
    best: set[tuple[str, str]] = set()
    tests: dict[tuple[str, str], float] = {}
    for family in families.get(source.within, []):
        first, found = best_and_ties({place: values[place] for place in family}, source.maximise)
        tests |= found  # type: ignore[arg-type]
        # Means that differ in their last bits only are equal, and all of them the best.
        means = {place: round(intervals[place][0], 12) for place in family if values[place]}
        best |= {place for place in means if first is not None and means[place] == means[first]}  # type: ignore[index]
    lines = []
    for place in places:
        present = {entry.state for entry in members.get(place, [])}
        state = "done" if values[place] else next((state for state in _CELL_STATES if state in present), "")
        p = tests.get(place, math.nan)
        tied = p >= LEVEL and place not in best
        lines.append((*place, *intervals[place], len(values[place]), state, p, place in best, tied))
    kinds = {"mean": float, "low": float, "high": float, "n": int, "p": float, "best": bool, "tied": bool}
    return pd.DataFrame(
        lines, columns=["row", "column", "mean", "low", "high", "n", "state", "p", "best", "tied"]
    ).astype(kinds)


def grid(source: Grid, table: pd.DataFrame, what: str = "mean") -> pd.DataFrame:
    """One of `cells`' columns as a rows x columns frame, in the table's own order."""
    rows, columns = list(dict.fromkeys(table["row"])), list(dict.fromkeys(table["column"]))
    frame = pd.DataFrame(table[what].to_numpy().reshape(len(rows), len(columns)), index=rows, columns=columns)
    return frame.rename_axis(index=source.rows[0], columns=source.columns[0])


def texts(source: Grid, table: pd.DataFrame) -> pd.DataFrame:
    """The table as it is printed, shares in per cent: `61.0 ± 2.3` is the mean and half its 95 % interval over seeds.

    One seed has no interval. A cell that lacks seeds which others have says how many it has. One that cannot be told
    from the best ends in `†`. A cell without a number says why: `cut`, `failed`, `running`, `stopped`, `missing`, or
    `-` where the trial is done and has no such number; it is empty where no trial asks for it.
    """
    unfinished = {(entry.row, entry.column) for entry in source.entries if not _has_value(entry)}
    most = int(table["n"].max()) if len(table) else 0

    def text(row: str, column: str, mean: float, high: float, n: int, state: str, tied: bool) -> str:
        if not n:
            return "-" if state == "done" else state
        number = quantity(mean, source.share)
        if n > 1:
            number += f" ± {quantity(high - mean, source.share)}"
        if n < most and (row, column) in unfinished:
            number += f" (n={n})"
        return f"{number}{MARK}" if tied else number

    fields = ["row", "column", "mean", "high", "n", "state", "tied"]
    written = [text(*line) for line in table[fields].itertuples(index=False)]
    return grid(source, table.assign(text=written), "text")


def listing(source: Grid, table: pd.DataFrame) -> Listing:
    """The table as texts, the best cells bold."""
    frame = texts(source, table)
    best = grid(source, table, "best").to_numpy(dtype=bool)
    return Listing(
        source.title,
        (
            f"{source.rows[0]} \\ {source.columns[0]}",
            *(source.shown.get(name, name) for name in map(str, frame.columns)),
        ),
        [(str(row), *map(str, values)) for row, values in zip(frame.index, frame.to_numpy(), strict=True)],
        frozenset((int(i), int(j) + 1) for i, j in zip(*best.nonzero(), strict=True)),
    )


def quantity(value: float, share: bool) -> str:
    """`61.0`, in per cent, of a share; else three digits."""
    return f"{100 * value:.1f}" if share else f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def to_rich(source: Grid, table: pd.DataFrame) -> Listing:
    """The table for `console.print`, which fits it to the console."""
    return listing(source, table)


def to_markdown(source: Grid, table: pd.DataFrame) -> str:
    """The table in Markdown's pipe syntax, without title and notes."""
    return listing(source, table).to_markdown()


def to_latex(source: Grid, table: pd.DataFrame) -> str:
    """The table in LaTeX, without title and notes; needs the package booktabs."""
    return listing(source, table).to_latex()


def notes(source: Grid, table: pd.DataFrame | None = None) -> list[str]:
    """What a reader of the table has to know, one sentence a line: mixed versions first, then what is not there.

    With the table's `cells`, also what its marks mean.
    """
    # What is counted are trials, also where each value is a mean of several.
    trials = [trial for entry in source.entries for trial in entry.folds or (entry,)]
    done = [entry for entry in trials if entry.state == "done"]
    lines = []
    results = Counter(_results_version(entry.code_version) for entry in done)
    if len(results) > 1:
        lines.append(
            f"mixes results versions {_counted(results, 'and')}: computed in different ways, not to be compared"
        )
    codes = Counter(entry.code_version or "unknown" for entry in done)
    if len(codes) > 1:
        lines.append(f"code versions differ: {_counted(codes)}")
    states = Counter(entry.state for entry in trials)
    for state, said in (
        ("failed", "failed"), ("cut", "cut by early stopping"), ("running", "still running"),
        ("stopped", "stopped half-way"), ("missing", "missing"),
    ):  # fmt: skip
        if states[state]:
            lines.append(f"{_trials(states[state])} {said}")
    without = sum(not _has_value(entry) for entry in done)
    if without:
        lines.append(f"{_trials(without)} done without this number")
    seeds: dict[tuple[str, str], set[int]] = defaultdict(set)
    for entry in source.entries:
        if _has_value(entry):
            seeds[entry.row, entry.column].add(entry.seed)
    numbers = [len(known) for known in seeds.values()]
    if max(numbers, default=0) > 1:
        few, many = min(numbers), max(numbers)
        over = f"{many} seeds" if few == many else f"the seeds, {few} to {many} a cell"
        lines.append(f"± is half the 95 % interval of the mean over {over} (Student's t)")
    if any(entry.folds for entry in source.entries):
        lines += _folds(source)
    if table is not None:
        lines += _marks(source, table)
    return [*lines, *source.remarks]


def folds_text(counts: Iterable[int]) -> str:
    """What values are the mean over, by the number of folds of each, 0 for one that has none: `5 folds`."""
    numbers = set(counts)
    return f"{numbers.pop()} folds" if len(numbers) == 1 else "the folds that a data set has"


def folds_note(counts: Iterable[int]) -> str:
    """That values are means over folds, see `folds_text`."""
    return (
        f"each value is the mean over {folds_text(counts)}; folds share training clips and are no repeats, so "
        f"intervals and tests go over the seeds"
    )


def _folds(source: Grid) -> Iterator[str]:
    """That values are means over folds, and how these scatter.

    One number for the table and none a cell: beside a mean, it would be read as its interval, which it is not. Folds
    differ in their clips, and share clips for training.
    """
    yield folds_note(len(entry.folds) for entry in source.entries)
    whole = [entry for entry in source.entries if len(entry.folds) > 1 and _has_value(entry)]
    if whole:
        within = [variance([_number(fold.value) for fold in entry.folds]) for entry in whole]
        scatter = math.sqrt(math.fsum(within) / len(within))
        unit = " points" if source.share else ""
        yield (
            f"from fold to fold a cell scatters by {quantity(scatter, source.share)}{unit} (standard deviation): folds "
            f"differ in difficulty, and this is no interval"
        )


def _marks(source: Grid, table: pd.DataFrame) -> Iterator[str]:
    """What bold and the mark mean in a table of several cells."""
    if (table["n"] > 0).sum() < 2 or not table["best"].any():
        return
    of = f" of each {source.within}" if source.within in ("column", "row") else ""
    if table["p"].isna().all():
        yield f"bold: the best mean{of}; with one seed nothing can be told from it, use --seeds 3 or more"
        return
    told = "; every other cell can be" if not table["tied"].any() else ""
    yield (
        f"bold: the best mean{of}; {MARK}: cannot be told from it (paired t-test over the seeds, Holm's correction, "
        f"p >= {LEVEL:g}){told}"
    )
    untested = int((table["p"].isna() & ~table["best"] & (table["n"] > 0)).sum())
    if untested:
        yield f"not compared, for lack of two seeds in common with the best: {untested} cell{'s' * (untested > 1)}"


def against(source: Grid, table: pd.DataFrame, published: Mapping[tuple[str, str], float], title: str = "") -> Listing:
    """Our cells beside published ones: row, column, ours, published, the difference with our 95 % interval.

    Args:
        source: the table.
        table: its `cells`.
        published: by row and column, in the table's own unit (shares from 0 to 1).
        title: above it.
    """
    ours = texts(source, table)
    rows = []
    for row, column, *numbers, n in table[["row", "column", "mean", "low", "high", "n"]].itertuples(index=False):
        value = published.get((str(row), str(column)))
        if value is None:
            continue
        mean, low, high = (_signed_text(quantity(float(number) - value, source.share)) for number in numbers)
        difference = "-" if not n else mean if n == 1 else f"{mean} ({low} to {high})"
        text = str(ours.loc[row, column]).removesuffix(MARK)
        rows.append((str(row), str(column), text, quantity(value, source.share), difference))
    header = (source.rows[0], source.columns[0], "ours", "published", "difference")
    return Listing(title, header, rows, left=frozenset({1}))


def _signed_text(number: str) -> str:
    return number if number.startswith("-") else f"+{number}"


class Objective(NamedTuple):
    """A number that a search makes large or small.

    Attributes:
        name: of the key under which each row of a search has it.
        maximise: else it is to be small.
        share: from 0 to 1, shown in per cent.
    """

    name: str
    maximise: bool = True
    share: bool = True


def search_table(
    rows: Sequence[Mapping[str, Any]],
    objectives: Sequence[Objective] = (Objective("valid_top1"),),
    title: str = "",
    top: int | None = 10,
) -> Listing:
    """The best trials of a search: rank, objectives, state, and what was varied.

    Equal trials have the same rank. With two objectives the rank is the front that a trial is on: 1 is the Pareto
    front, 2 the front of those left without it, and so on; within a front the best in the first objective comes first.
    Trials without all objectives come last and have no rank. Equal ones keep their order: give them in a fixed one.

    Args:
        rows: one a trial: the objectives by name (None or NaN where there is none), `state`, and the varied fields by
            name. A field that a trial does not have, as in a conditional search, is empty there.
        objectives: one or two.
        title: the sentence above it.
        top: rows shown; None: all.

    Raises:
        ValueError: not one or two objectives.
    """
    if not 1 <= len(objectives) <= 2:
        raise ValueError(f"a search table has one or two objectives, not {len(objectives)}")
    ranks = _ranks([[_number(row.get(one.name)) for one in objectives] for row in rows], objectives)
    order = sorted(ranks, key=lambda i: (ranks[i], -_signed(rows[i], objectives[0]), i))
    order += [i for i in range(len(rows)) if i not in ranks]
    names = [one.name for one in objectives]
    fields = list(dict.fromkeys(key for row in rows for key in row if key not in (*names, "state")))
    shown = [
        (
            str(ranks.get(i, "")),
            *(_objective_text(rows[i].get(one.name), one) for one in objectives),
            str(rows[i].get("state", "")),
            *(_field_text(rows[i].get(name)) for name in fields),
        )
        for i in order[:top]
    ]
    bold = {(i, j) for i, row in enumerate(shown) if row[0] == "1" for j in range(1, 1 + len(objectives))}
    header = (
        "rank" if len(objectives) == 1 else "front",
        *(f"{one.name}, %" if one.share else one.name for one in objectives),
        "state",
        *map(str, fields),
    )
    words = {j for j in range(len(header)) if not all(_is_number(row[j]) for row in shown)}
    return Listing(
        title, header, shown, frozenset(bold), frozenset(words - {*range(1, 1 + len(objectives))}), best_first=True
    )


def importance_table(importance: Mapping[str, float], title: str = "") -> Listing:
    """How much of a search's scatter each field explains, in per cent, the most important first."""
    ordered = sorted(importance.items(), key=lambda item: (-_or(item[1], -math.inf), item[0]))
    rows = [(name, "-" if math.isnan(_number(share)) else f"{100 * share:.1f}") for name, share in ordered]
    return Listing(title, ("field", "importance, %"), rows)


def agreement_table(agreements: Mapping[int, Agreement], title: str = "") -> Listing:
    """Kendall's tau between the order at each rung and the final one, its 95 % interval, the trials behind it."""
    rows = [
        (
            str(rung),
            _or_dash(one.tau),
            "-" if math.isnan(_number(one.low)) else f"{one.low:.2f} to {one.high:.2f}",
            str(one.n),
        )
        for rung, one in sorted(agreements.items())
    ]
    return Listing(title, ("rung, epoch", "tau", "95 % interval", "trials"), rows)


def _names(axis: Axis, found: Iterable[str]) -> list[str]:
    """The axis's names, each once, and after them those that it does not have."""
    return list(dict.fromkeys([*(axis[1] or ()), *found]))


def _has_value(entry: Entry) -> bool:
    return entry.state == "done" and not math.isnan(_number(entry.value))


def _by_seed(entries: Iterable[Entry]) -> dict[int, float]:
    """A cell's value for each seed; where a cell holds several trials of one seed, their mean."""
    seeds: dict[int, list[float]] = defaultdict(list)
    for entry in entries:
        if _has_value(entry):
            seeds[entry.seed].append(_number(entry.value))
    return {seed: math.fsum(values) / len(values) for seed, values in seeds.items()}


def _number(value: object) -> float:
    """A float; NaN for what is none."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan


def _or(value: float, otherwise: float) -> float:
    return otherwise if math.isnan(_number(value)) else value


def _or_dash(value: float) -> str:
    return "-" if math.isnan(_number(value)) else f"{value:.2f}"


def _is_number(text: str) -> bool:
    return text in ("", "-") or not math.isnan(_number(text))


def _results_version(code_version: str) -> str:
    """`r2` of `0.1.0+r2.g1a2b3c4`."""
    found = re.search(r"\+(r\d+)(?=\.|$)", code_version)
    return found[1] if found else "unknown"


def _counted(counts: Mapping[str, int], last: str = "") -> str:
    """`r1 (3 trials) and r2 (46 trials)`, in the order of their numbers."""
    shown = [f"{name} ({_trials(counts[name])})" for name in sorted(counts, key=_natural)]
    if last:
        return f"{', '.join(shown[:-1])} {last} {shown[-1]}"
    return ", ".join(shown)


def _natural(name: str) -> list[tuple[int, str]]:
    """A key under which r2 comes before r10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _trials(count: int) -> str:
    return "1 trial" if count == 1 else f"{count} trials"


def _signed(row: Mapping[str, Any], objective: Objective) -> float:
    """The objective so that more is better."""
    return _number(row.get(objective.name)) * (1 if objective.maximise else -1)


def _ranks(values: list[list[float]], objectives: Sequence[Objective]) -> dict[int, int]:
    """Rank by index, of the trials that have every objective."""
    known = [i for i, numbers in enumerate(values) if not any(map(math.isnan, numbers))]
    better = {i: [x if one.maximise else -x for x, one in zip(values[i], objectives, strict=True)] for i in known}
    if len(objectives) == 1:
        return {i: 1 + sum(better[j][0] > better[i][0] for j in known) for i in known}
    ranks: dict[int, int] = {}
    front = 0
    while known:
        front += 1
        for place in pareto_front([(better[i][0], -better[i][1]) for i in known]):
            ranks[known[place]] = front
        known = [i for i in known if i not in ranks]
    return ranks


def _objective_text(value: object, objective: Objective) -> str:
    number = _number(value)
    if math.isnan(number):
        return "-"
    return f"{100 * number:.1f}" if objective.share else _field_text(number)


def _field_text(value: object) -> str:
    """A choice: three digits say enough of a number that was drawn."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, tuple | list):
        return ", ".join(map(_field_text, value))
    return str(value)


def _width(table: Table) -> int:
    """Characters that a table takes where there is room for it; the title wraps and does not count."""
    console = Console(width=100_000)
    plain, table.title = table.title, None
    try:
        return Measurement.get(console, console.options, table).maximum
    finally:
        table.title = plain


def _broken(text: str) -> str:
    """A cell's text on several short lines, its mark on the first, where there is room."""
    if text.endswith(MARK) and " " in text:
        text = text.removesuffix(MARK).replace(" ", f"{MARK} ", 1)
    return re.sub(r" (?=\(n=)|(?<=_)(?=.)", "\n", text.replace(" ± ", "\n±"))


def positive(name: object) -> float | None:
    """The number that a name is, if it is one above 0; `10 %` is."""
    try:
        number = float(str(name).strip().removesuffix("%"))
    except ValueError:
        return None
    return number if 0 < number < math.inf else None


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _strong(text: str) -> str:
    return f"**{text}**" if text else text


def _markdown(text: str) -> str:
    r"""Text as it stands, in a table of Markdown: a `|` would end the cell, others would start something.

    Underscores within a word start nothing and stay: `pitch_shift`.
    """
    return re.sub(r"[\\`*\[\]<>~$|]|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", _one_line(text))


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "±": r"$\pm$", "†": r"$\dagger$", "×": r"$\times$", "τ": r"$\tau$", "–": "--",
    # After a row's end, \\, a star or a bracket would be an option of it.
    "[": "{[}", "]": "{]}", "*": "{*}",
}  # fmt: skip


def _latex(text: str) -> str:
    """Text as it stands, in LaTeX."""
    return "".join(_LATEX.get(character, character) for character in _one_line(text))
