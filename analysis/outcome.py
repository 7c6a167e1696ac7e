"""What a sweep has found, from its plan and the storage: tables and figures, printed and as files."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console, RenderableType

from analysis import tables
from analysis.statistics import Agreement, kendall_tau, pareto_front
from analysis.tables import Entry, Grid
from clar import __version__
from clar.config import RESULTS_VERSION
from clar.files import write_atomically, write_json
from clar.plan import Member, Plan
from clar.result import TrialFolder
from clar.rounds import score_at
from clar.search import COSTS, Candidate, Searching, best_of

METRIC_TITLES = {
    "test_top1": "Test top-1 of the linear probe",
    "test_top5": "Test top-5 of the linear probe",
    "valid_top1": "Validation top-1 of the linear probe",
    "knn_test_top1": "Test top-1 of nearest neighbours",
    "head_test_top1": "Test top-1 of the trained head",
}

_BEST = 10
_DRAWN = "drawn.json"


@dataclass
class Outcome:
    """A sweep's tables as they are printed, and all files that belong to it, the Markdown first.

    Figures take seconds to draw, so they are drawn after the tables have been printed, and not again where nothing has
    changed since they were.
    """

    folder: Path
    shown: list[RenderableType] = field(default_factory=list)
    markdown: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    drawings: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)
    content: Any = field(default_factory=lambda: hashlib.sha256(__version__.encode()))

    def text(self, name: str, text: str) -> None:
        """A file of text."""
        write_atomically(path := self.folder / name, text)
        self.files.append(path)
        self.content.update(f"{name}\n{text}".encode())

    def figure(self, name: str, *arguments: Any) -> None:
        """A figure to be drawn, by name of its function in `analysis.figures`, from what the texts say."""
        self.drawings.append((name, arguments))

    def draw(self) -> None:
        """Draw the figures, where they are not there already."""
        record, content = self.folder / _DRAWN, self.content.hexdigest()
        known = json.loads(record.read_text()) if record.exists() else {}
        drawn = [self.folder / name for name in known.get("files", [])]
        if known.get("content") != content or not all(path.exists() for path in drawn):
            from analysis import figures

            drawn = [path for name, arguments in self.drawings for path in getattr(figures, name)(*arguments)]
            write_json(record, {"content": content, "files": [path.name for path in drawn]})
        self.files += drawn

    def add(self, shown: RenderableType, markdown: str) -> None:
        """One more piece, for the terminal and for the Markdown file."""
        self.shown.append(shown)
        self.markdown.append(markdown)

    def listing(self, listing: tables.Listing) -> None:
        """A table that is no grid."""
        # The sentence stands by itself: as a table's title it would be folded to the table's width.
        self.add(listing.title, f"{listing.title}\n")
        self.add(dataclasses.replace(listing, title=""), listing.to_markdown())


def write(plan: Plan) -> Outcome:
    """Work out the tables of a plan and write them into the sweep's folder; `Outcome.draw` adds the figures.

    The same storage gives the same bytes.
    """
    outcome = Outcome(plan.output.path)
    grids = list(_grids(plan))
    for stem, grid in grids:
        _grid(plan, outcome, "table" if len(grids) == 1 else stem, grid, single=len(grids) == 1)
    for search in plan.searches:
        _search(plan, outcome, search)
    _curves(plan, outcome)
    _agreement(plan, outcome)
    if plan.precision:
        lines = [f"{name}: no more seeds, since {reason}." for name, reason in plan.precision.reasons.items()]
        if lines:
            outcome.add("\n".join(lines), "".join(f"{line}\n" for line in lines))
    outcome.text("table.md", "\n".join(outcome.markdown))
    outcome.files.insert(0, outcome.files.pop())
    return outcome


def show(outcome: Outcome, console: Console) -> None:
    """Print it."""
    # Without a terminal there is no width to keep to, and a wrapped number is no number.
    wide = console if console.is_terminal else Console(highlight=False, width=max(160, console.width))
    for piece in outcome.shown:
        if isinstance(piece, str):
            console.print()
        wide.print(piece, markup=not isinstance(piece, str))


def state_of(plan: Plan, folder: TrialFolder, cut: set[str]) -> str:
    """`done`, `cut`, `failed`, `running` (begun and not finished) or `missing`."""
    if folder.identity in cut:
        return "cut"
    if plan.result(folder) is not None:
        return "done"
    if folder.failure() is not None:
        return "failed"
    return "running" if folder.code_version() else "missing"


def _grids(plan: Plan) -> Iterator[tuple[str, Grid]]:
    """Every table of the plan's grids, with a name for its files."""
    cut = plan.cut()
    for study in plan.space.studies:
        members: dict[str, list[Member]] = {}
        for member in plan.members:
            if member.study is study and not study.search:
                members.setdefault(study.table(member.config), []).append(member)
        for name, standing in members.items():
            cells = [study.cell(member.config) for member in standing]
            rows, columns = (
                (title, values or tuple(dict.fromkeys(cell[place] for cell in cells)))
                for place, (title, values) in enumerate((study.rows, study.columns))
            )
            states = [state_of(plan, member.folder, cut) for member in standing]
            for metric in study.metrics:
                entries, seen = [], set()
                for member, (row, column), state in zip(standing, cells, states, strict=True):
                    # What differs in fields that do not matter is one trial, and no second seed.
                    if (key := (member.folder.identity, row, column)) in seen:
                        continue
                    seen.add(key)
                    result = plan.result(member.folder) if state == "done" else None
                    value = getattr(result, metric) if result else None
                    version = _version(member.folder) if state == "done" else ""
                    # A head that knows no classes has no accuracy: nothing is missing there.
                    said = state if value is not None or state != "done" else "missing"
                    entries.append(Entry(row, column, said, value, member.config.seed, version))
                title = f"{study.summary} {METRIC_TITLES[metric]}, %, {name}."
                yield _stem(study.name, name, metric), Grid(title, rows, columns, entries)


def _version(folder: TrialFolder) -> str:
    """Version of the code that trained a trial; the results version is named where an old one hid it."""
    version = folder.code_version()
    return version if folder.version == RESULTS_VERSION or "+r" in version else f"{version}+r{folder.version}"


def _stem(*parts: str) -> str:
    return "-".join(re.sub(r"[^A-Za-z0-9_.]+", "_", part).strip("_") for part in parts)


def _grid(plan: Plan, outcome: Outcome, stem: str, grid: Grid, single: bool) -> None:

    cells = tables.cells(grid)
    notes = tables.notes(grid)
    outcome.listing(tables.listing(grid, cells))
    if notes:
        outcome.add("\n".join(notes), "".join(f"{note}\n" for note in notes))
    for suffix, text in ((".csv", cells.to_csv(index=False)), (".tex", tables.to_latex(grid, cells))):
        outcome.text(f"{stem}{suffix}", text)
    picture = plan.output.path / ("heat_map" if single else f"{stem}-heat_map")
    means, states = tables.grid(grid, cells), tables.grid(grid, cells, "state")
    outcome.figure("heat_map", means, grid.title, picture, states)


def _search(plan: Plan, outcome: Outcome, search: Searching) -> None:
    """The best candidates, what mattered, and with two objectives the front of those that no other beats in both."""

    ranked = search.ranked()
    stem = "search" if len(plan.searches) == 1 else _stem("search", search.study.name, search.base.dataset)
    title = f"{search.study.summary} By {' and '.join(search.objectives)}, {search.base.dataset}."
    front: set[int] = set()
    if len(search.objectives) == 2:
        done = [one for one in ranked if one.values is not None]
        signs = [-1 if name in COSTS else 1 for name in search.objectives]
        points = [(signs[0] * one.values[0], -signs[1] * one.values[1]) for one in done if one.values]
        front = {done[place].number for place in pareto_front(points)}
        plain = [(one.values[1], one.values[0]) for one in done if one.values]
        on_front = [place for place, one in enumerate(done) if one.number in front]
        outcome.figure(
            "pareto", plain, [str(one.number) for one in done], on_front,
            title, plan.output.path / f"{stem}-pareto", _axis(search.objectives[1]), _axis(search.objectives[0]),
            (search.objectives[1] not in COSTS, search.objectives[0] not in COSTS),
        )  # fmt: skip
    rows = [_row(search, one) for one in ranked]
    objectives = [tables.Objective(name, name not in COSTS, name not in COSTS) for name in search.objectives]
    identities = {"identity": [one.folders[0].identity for one in ranked]}
    frame = pd.DataFrame(rows).assign(**identities)
    outcome.text(f"{stem}.csv", frame.to_csv(index=False))
    counted = ", ".join(
        f"{count} {state}"
        for state in ("done", "cut", "failed", "missing")
        if (count := sum(one.state == state for one in ranked))
    )
    more = " Front 1: no other candidate is better in one objective and as good in the other." if front else ""
    heading = f"{title} {len(ranked)} candidates: {counted}.{more}"
    outcome.listing(tables.search_table(rows, objectives, heading, max(_BEST, len(front))))
    best = best_of(ranked)
    if best is not None:
        results = [result for folder in best.folders if (result := plan.result(folder)) is not None]
        test = sum(result.test_top1 for result in results) / len(results)
        which = f"best by {search.objectives[0]}: number {best.number}, {plan.title(best.folders[0])}"
        line = f"{which}; its test top-1 {100 * test:.1f} %"
        outcome.add(line, f"{line}\n")
    importance = search.importance()
    if importance:
        heading = (
            f"Importance (fANOVA): share of the variance of {search.objectives[0]} that a choice explains, over the "
            f"choices that every candidate has."
        )
        listing = tables.importance_table(importance, heading)
        outcome.listing(listing)
        outcome.text(f"{stem}-importance.csv", listing.to_csv())
        outcome.figure("importance", importance, heading, plan.output.path / f"{stem}-importance")


def _axis(name: str) -> str:
    return name.replace("_", " ")


def _row(search: Searching, one: Candidate) -> dict[str, Any]:
    values: list[float | None] = [*one.values] if one.values else [None] * len(search.objectives)
    return {
        "number": one.number,
        "state": one.state,
        **dict(zip(search.objectives, values, strict=True)),
        **one.chosen,
    }


def _curves(plan: Plan, outcome: Outcome) -> None:
    """The probe's accuracy by epoch, for the studies that ask for it."""

    for study in plan.space.studies:
        if study.curve is None:
            continue
        rows: dict[str, list[dict[str, Any]]] = {}
        for member in plan.members:
            line = study.curve(member.config) if member.study is study else None
            if line is None:
                continue
            about = {"line": line, "seed": member.config.seed}
            rows.setdefault(member.config.dataset, []).extend(
                about | {"epoch": record.epoch, "valid_top1": record.valid_top1}
                for record in member.folder.epochs()
                if record.valid_top1 is not None
            )
        for dataset, points in rows.items():
            stem = _stem("curves", study.name, dataset) if len(plan.space.studies) * len(rows) > 1 else "curves"
            outcome.text(f"{stem}.csv", pd.DataFrame(points).to_csv(index=False))
            lines: dict[str, dict[int, list[float]]] = {}
            for point in points:
                lines.setdefault(point["line"], {}).setdefault(point["epoch"], []).append(point["valid_top1"])
            title = f"Convergence: the linear probe's accuracy on valid by epoch, {dataset}."
            outcome.figure("curves", lines, title, plan.output.path / stem, "valid top-1, %")


def _agreement(plan: Plan, outcome: Outcome) -> None:
    """How well each rung ordered the trials, judged by those that ran through, and the record of what was decided."""
    if not plan.halving:
        return
    record = {dataset: halving.record() for dataset, halving in plan.halving.items()}
    outcome.text("rungs.json", json.dumps(record, indent=2) + "\n")
    for dataset, halving in plan.halving.items():
        pairs: dict[int, list[tuple[float, float]]] = {rung: [] for rung in halving.rungs}
        for folder in plan.folders.values():
            result = plan.result(folder)
            if folder.config.dataset != dataset or result is None or folder.config.pretraining() is not None:
                continue
            for rung in halving.rungs:
                score = score_at(rung, folder)
                if score is not None:
                    pairs[rung].append((score, result.test_top1))
        agreements: dict[int, Agreement] = {
            rung: kendall_tau([score for score, _ in points], [final for _, final in points])
            for rung, points in pairs.items()
        }
        cut = halving.cut(list(plan.folders.values()))
        through = max(map(len, pairs.values()), default=0)
        anyway = sum(plan.result(plan.folders[identity]) is not None for identity in cut)
        heading = (
            f"Does early stopping choose well? Kendall's tau between the probe's accuracy on valid at a rung and the "
            f"final test top-1, over the {through} trials that ran through, {dataset}. {len(cut)} were cut here, "
            f"{anyway} of them ran through in another sweep and are counted."
        )
        if anyway < len(cut):
            heading += (
                " The best alone are more alike than all would be, which lowers tau; run the sweep without --halving "
                "once to see all."
            )
        listing = tables.agreement_table(agreements, heading)
        outcome.listing(listing)
        stem = "rungs" if len(plan.halving) == 1 else _stem("rungs", dataset)
        outcome.text(f"{stem}-agreement.csv", listing.to_csv())
        scores = [
            {"rung": rung, "valid_top1": score, "final_test_top1": final}
            for rung, points in pairs.items()
            for score, final in points
        ]
        outcome.text(f"{stem}-scores.csv", pd.DataFrame(scores).to_csv(index=False))
        outcome.figure("rung_scatter", pairs, agreements, heading.partition(" Kendall")[0], plan.output.path / stem)
