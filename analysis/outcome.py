"""What a sweep has found, from its plan and the storage: tables and figures, printed and as files."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from types import MappingProxyType
from typing import Any, NamedTuple

import pandas as pd
from rich.console import Console

from analysis import tables
from analysis.claims import NOT_CONVERGED
from analysis.results import mean_curve, state_of
from analysis.statistics import Agreement, kendall_tau, pareto_front
from analysis.tables import Entry, Grid, Listing
from clar import __version__
from clar.baselines import CHANCE, LOG_MEL, Labels
from clar.config import RESULTS_VERSION, TrialConfig
from clar.files import read_json, write_atomically, write_json
from clar.plan import Member, Plan
from clar.result import TrialFolder
from clar.rounds import score_at
from clar.search import COSTS, Candidate, Searching, best_of
from clar.space import Study

METRIC_TITLES = {
    "test_top1": "Test top-1 of the linear probe",
    "test_top5": "Test top-5 of the linear probe",
    "valid_top1": "Validation top-1 of the linear probe",
    "knn_test_top1": "Test top-1 of nearest neighbours",
    "head_test_top1": "Test top-1 of the trained head",
}

CHOSEN_OVER_FOLDS = (
    "What is valid for one fold is test for another: the test accuracy of what was chosen on valid, over all folds, is "
    "a little too good."
)

_BEST, _METRIC = 10, "test_top1"


class Figure(NamedTuple):
    """A figure to be drawn: by which function of `analysis.figures`, from what, into which files, and what it shows."""

    function: str
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]
    path: Path
    alt: str


Piece = str | Listing | Figure


@dataclass
class Section:
    """What belongs together: sentences, tables and figures."""

    title: str
    pieces: list[Piece] = field(default_factory=list)


@dataclass
class Outcome:
    """A sweep's tables and figures, in sections, and the files that they are in.

    Figures take seconds to draw, so they are drawn after the tables have been printed, and not again where nothing has
    changed since they were.
    """

    folder: Path
    sections: dict[str, Section] = field(default_factory=dict)
    grids: dict[str, tuple[str, Grid, pd.DataFrame]] = field(default_factory=dict)
    """By stem: key of the section, table, its cells."""
    files: list[Path] = field(default_factory=list)
    current: str = ""
    _undrawn: list[Figure] = field(default_factory=list)
    _content: Any = field(default_factory=lambda: hashlib.sha256(__version__.encode()))

    def section(self, key: str, title: str = "") -> Section:
        """Begin a section, or go on with one; what follows is in it."""
        self.current = key
        return self.sections.setdefault(key, Section(title or key))

    def say(self, piece: Piece) -> None:
        """One more piece of the current section."""
        self.section(self.current).pieces.append(piece)

    def text(self, name: str, text: str) -> None:
        """A file of text."""
        write_atomically(path := self.folder / name, text)
        self.files.append(path)
        self._content.update(f"{name}\n{text}".encode())

    def listing(self, listing: Listing, stem: str, csv: str | None = None) -> None:
        """A table, and its files `stem`.csv and `stem`.tex; `csv` has the numbers where the texts are rounded."""
        self.say(listing)
        self.text(f"{stem}.csv", listing.to_csv() if csv is None else csv)
        self.text(f"{stem}.tex", listing.to_latex())

    def figure(self, stem: str, alt: str, function: str, *arguments: Any, **options: Any) -> None:
        """A figure `stem`.png and `stem`.svg, see `Figure`."""
        figure = Figure(function, arguments, options, self.folder / stem, alt)
        self.say(figure)
        self._undrawn.append(figure)

    def draw(self, record: str = "drawn.json") -> None:
        """Draw the figures that were added since the last call, where they are not there already.

        `record` is the file that remembers what they were drawn from: all texts up to now.
        """
        path, content = self.folder / record, self._content.hexdigest()
        known = read_json(path)
        drawn = [self.folder / name for name in known.get("files", [])]
        if known.get("content") != content or not all(path.exists() for path in drawn):
            from analysis import figures

            drawn = [
                path
                for figure in self._undrawn
                for path in getattr(figures, figure.function)(*figure.arguments, path=figure.path, **figure.options)
            ]
            names = [file.relative_to(self.folder).as_posix() for file in drawn]
            write_json(path, {"content": content, "files": names})
        self._undrawn.clear()
        self.files += drawn

    def markdown(self, headings: bool = False) -> str:
        """Sentences and tables in Markdown; with headings also the figures, by name."""
        parts = []
        for section in self.sections.values():
            if headings and section.pieces:
                parts.append(f"## {section.title}\n")
            for piece in section.pieces:
                if isinstance(piece, Listing):
                    parts += [f"{piece.title}\n", piece.to_markdown()] if piece.title else [piece.to_markdown()]
                elif isinstance(piece, str):
                    parts += [f"{line}\n" for line in piece.splitlines()]
                elif headings:
                    name = piece.path.relative_to(self.folder).as_posix()
                    parts.append(f"![{piece.alt}]({name}.svg)\n")
        return "\n".join(parts)


def write(plan: Plan, live: bool = True, folder: Path | None = None) -> Outcome:
    """Work out the tables of a plan and write them into the sweep's folder; `Outcome.draw` adds the figures.

    The same storage gives the same bytes.

    Args:
        plan: the sweep, as far as it has gone.
        live: whether somebody drives it.
        folder: for the files; None: the sweep's own.
    """
    outcome = Outcome(folder or plan.output.path)
    plan.refresh()
    grids = list(_grids(plan, live))
    for study, metric, stem, grid, beside in grids:
        outcome.section(study.name, heading(study.name))
        _grid(outcome, "table" if len(grids) == 1 else stem, grid, metric, beside, single=len(grids) == 1)
    for search in plan.searches:
        outcome.section(search.study.name, heading(search.study.name))
        _search(plan, outcome, search)
        beside = _beside(plan, search.study, {"best": {(search.base.dataset, Labels.of(search.base))}}, _METRIC, live)
        _hold_against(outcome, stem_of("search", search.study.name, search.base.dataset), beside)
    _curves(plan, outcome)
    _agreement(plan, outcome)
    if plan.precision:
        outcome.section("more seeds", "More seeds")
        for name, reason in plan.precision.reasons.items():
            outcome.say(f"{name}: no more seeds, since {reason}.")
        outcome.say("Seeds were added where the results were close: marks, tests and claims are a little too sure.")
    outcome.text("table.md", outcome.markdown())
    outcome.files.insert(0, outcome.files.pop())
    return outcome


def heading(name: str) -> str:
    """A study's name as a heading: `Hyperparameters`."""
    return name.replace("_", " ").capitalize()


def show(outcome: Outcome, console: Console) -> None:
    """Print its sentences and tables."""
    # Without a terminal there is no width to keep to, and a wrapped number is no number.
    wide = console if console.is_terminal else Console(highlight=False, width=max(160, console.width), emoji=False)
    for section in outcome.sections.values():
        for piece in section.pieces:
            if isinstance(piece, Figure):
                continue
            if isinstance(piece, Listing):
                # The sentence stands by itself: as a table's title it would be folded to the table's width.
                wide.print()
                if piece.title:
                    wide.print(piece.title, markup=False)
                wide.print(dataclasses.replace(piece, title=""))
            else:
                wide.print(piece, markup=False)


Context = tuple[str, Labels]
"""What a cell and its baselines have in common: the data set, and what of its labels is seen."""


def _grids(plan: Plan, live: bool) -> Iterator[tuple[Study, str, str, Grid, Grid | None]]:
    """Every table of the plan's grids: its study, its metric, a name for its files, and what to hold it against."""
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
            states = [state_of(plan, member.folder, cut, live) for member in standing]
            seeds = [_on_all_folds(plan, member.config) for member in standing]
            over = _over_folds(plan, [member.config.dataset for member in standing])
            contexts: dict[str, set[Context]] = {}
            for member, (_, column) in zip(standing, cells, strict=True):
                contexts.setdefault(column, set()).add((member.config.dataset, Labels.of(member.config)))
            for metric in study.metrics:
                seen: set[tuple[str, str, str]] = set()
                found: dict[tuple[str, str, TrialConfig], list[Entry]] = {}
                for member, (row, column), state, one in zip(standing, cells, states, seeds, strict=True):
                    # What differs in fields that do not matter is one trial, and no second seed.
                    if (key := (member.folder.identity, row, column)) in seen:
                        continue
                    seen.add(key)
                    result = plan.result(member.folder) if state == "done" else None
                    value = getattr(result, metric) if result else None
                    version = _version(member.folder) if state == "done" else ""
                    # A head that knows no classes has no accuracy: nothing is missing there.
                    said = state if value is not None or state != "done" else "missing"
                    entry = Entry(row, column, said, value, member.config.seed, version)
                    found.setdefault((row, column, one), []).append(entry)
                entries = [
                    Entry.mean(folds) if plan.folds_of(one.dataset) else folds[0] for (*_, one), folds in found.items()
                ]
                shown = _clips_seen(plan, standing, study)
                title = f"{study.summary} {METRIC_TITLES[metric]}, %, {name}{_protocol(standing)}{over}."
                yield (
                    study, metric, stem_of(study.name, name, metric),
                    Grid(title, rows, columns, entries, within=study.within, shown=shown,
                         remarks=_not_converged(plan, standing, study)),
                    _beside(plan, study, contexts, metric, live, shown),
                )  # fmt: skip


def _clips_seen(plan: Plan, standing: Sequence[Member], study: Study) -> dict[str, str]:
    """For columns that differ in the share of the labels: how many clips that is, as far as results say it."""
    if len({member.config.label_fraction for member in standing}) < 2:
        return {}
    counts: dict[str, set[int]] = {}
    for member in standing:
        result = plan.result(member.folder)
        if result is not None and result.labelled_clips is not None:
            # Training without labels, and a probe of all of them, is the trial with another share.
            alike = member.config.canonical().label_fraction == member.config.label_fraction
            counts.setdefault(study.cell(member.config)[1], set()).update({int(result.labelled_clips)} if alike else ())
    ranges = {
        column: f"{min(found):,}" + f"-{max(found):,}" * (len(found) > 1) for column, found in counts.items() if found
    }
    return {column: f"{column} ({clips})" for column, clips in ranges.items()}


def _not_converged(plan: Plan, standing: Iterable[Member], study: Study) -> tuple[str, ...]:
    """A note on the cells whose supervised training is still near a guess's loss; none where there is no such cell."""
    cells = dict.fromkeys(
        " / ".join(study.cell(member.config)) for member in standing
        if (result := plan.result(member.folder)) is not None and (result.loss_left or 0) > NOT_CONVERGED
    )  # fmt: skip
    if not cells:
        return ()
    return (
        f"not converged, with a training loss above {NOT_CONVERGED:g} of a guess's, ln C: {'; '.join(cells)}; no claim "
        f"against them is confirmed",
    )


def _protocol(standing: Iterable[Member]) -> str:
    """For a title: which labels the probe is fitted on; empty where all of these trials see all labels."""
    labels = {Labels.of(member.config) for member in standing}
    probes = {one.probe_labels for one in labels if one.fraction < 1}
    if not probes:
        return ""
    seen, every = "the labels that training sees", "all labels"
    return f", probe fitted on {' or '.join({'seen': seen, 'all': every}[one] for one in sorted(probes, reverse=True))}"


def _beside(
    plan: Plan, study: Study, contexts: Mapping[str, set[Context]], metric: str, live: bool,
    shown: Mapping[str, str] = MappingProxyType({}),
) -> Grid | None:  # fmt: skip
    """What stands below a table: its baselines and references, a column for each context that the table has.

    Args:
        plan: the sweep.
        study: the table's.
        contexts: of the table's cells, by column.
        metric: the table's.
        live: whether somebody drives the sweep.
        shown: what the table's columns are called in print.
    """
    every = set[Context]().union(*contexts.values())
    if len(every) == 1:
        named = {context: [metric] for context in every}
    elif all(len(one) == 1 for one in contexts.values()):
        named = {context: [column for column, one in contexts.items() if context in one] for context in every}
    else:
        several = len({dataset for dataset, _ in every}) > 1
        named = {(dataset, labels): [f"{dataset}, {labels}" if several else str(labels)] for dataset, labels in every}
    entries: dict[tuple[str, str, TrialConfig], list[Entry]] = {}
    for one in plan.beside:
        places = named.get((one.config.dataset, Labels.of(one.config)), [])
        if one.study is not study or not places:
            continue
        state = state_of(plan, one.folder, set(), live)
        result = plan.result(one.folder) if state == "done" else None
        found = [(one.name, getattr(result, metric) if result else None)]
        if one.name == LOG_MEL and "test" in metric:
            found.insert(0, (CHANCE, getattr(result, f"chance_{metric[-4:]}") if result else None))
        for name, value in found:
            for column in places:
                entry = Entry(name, column, state, value, one.config.seed, _version(one.folder) if result else "")
                entries.setdefault((name, column, _on_all_folds(plan, one.config)), []).append(entry)
    if not entries:
        return None
    rows = tuple(dict.fromkeys(name for name, *_ in entries))
    known = {column for columns in named.values() for column in columns}
    columns = tuple(column for column in contexts if column in known) or tuple(sorted(known))
    title = f"To hold it against: the same probe on the same clips. {METRIC_TITLES[metric]}, %."
    means = [Entry.mean(folds) if len(folds) > 1 else folds[0] for folds in entries.values()]
    return Grid(title, ("baseline", rows), ("", columns), means, within="nothing", shown=shown)


def _on_all_folds(plan: Plan, config: TrialConfig) -> TrialConfig:
    """What a trial has in common with those of its seed on the other folds; itself where there are none."""
    return config.but(fold=None) if plan.folds_of(config.dataset) else config


def _over_folds(plan: Plan, datasets: Iterable[str]) -> str:
    """For a title: that the values on these data sets are means; empty where they are not."""
    counts = [plan.folds_of(dataset) for dataset in datasets]
    return f", mean over {tables.folds_text(counts)}" if any(counts) else ""


def _version(folder: TrialFolder) -> str:
    """Version of the code that trained a trial; the results version is named where an old one hid it."""
    version = folder.code_version()
    return version if folder.version == RESULTS_VERSION or "+r" in version else f"{version}+r{folder.version}"


def stem_of(*parts: str) -> str:
    """A name for files, from names that may hold anything."""
    return "-".join(re.sub(r"[^A-Za-z0-9_.]+", "_", part).strip("_") for part in parts)


def _hold_against(outcome: Outcome, stem: str, beside: Grid | None) -> None:
    """The baselines below a table."""
    if beside is not None:
        cells = tables.cells(beside)
        listing = tables.listing(beside, cells)
        listing = dataclasses.replace(listing, header=("baseline", *listing.header[1:]))
        outcome.listing(listing, f"{stem}-baselines", cells.to_csv(index=False))


def _grid(outcome: Outcome, stem: str, grid: Grid, metric: str, beside: Grid | None, single: bool) -> None:
    cells = tables.cells(grid)
    outcome.grids[stem] = outcome.current, grid, cells
    outcome.listing(tables.listing(grid, cells), stem, cells.to_csv(index=False))
    if notes := tables.notes(grid, cells):
        outcome.say("\n".join(notes))
    _hold_against(outcome, stem, beside)
    means, low, high, states, marks, best = (
        tables.grid(grid, cells, what) for what in ("mean", "low", "high", "state", "tied", "best")
    )
    before = "" if single else f"{stem}-"
    outcome.figure(
        f"{before}heat_map", f"Heat map of the table: {grid.title}", "heat_map",
        means, grid.title, states=states, marks=marks, best=best,
    )  # fmt: skip
    # Columns that are numbers, such as the share of labels, are an axis.
    if len(means) > 1 and len(means.columns) > 1 and all(tables.positive(name) for name in means.columns):
        outcome.figure(
            f"{before}lines", f"The table's rows as lines: {grid.title}", "lines_by_column",
            means, low, high, grid.title, ylabel=f"{METRIC_TITLES.get(metric, metric)}, %",
        )  # fmt: skip


def _search(plan: Plan, outcome: Outcome, search: Searching) -> None:
    """The best candidates, what mattered, and with two objectives the front of those that no other beats in both."""
    ranked = search.ranked()
    stem = "search" if len(plan.searches) == 1 else stem_of("search", search.study.name, search.base.dataset)
    over = _over_folds(plan, [search.base.dataset])
    title = f"{search.study.summary} By {' and '.join(search.objectives)}, {search.base.dataset}{over}."
    front: set[int] = set()
    if len(search.objectives) == 2:
        done = [one for one in ranked if one.values is not None]
        signs = [-1 if name in COSTS else 1 for name in search.objectives]
        points = [(signs[0] * one.values[0], -signs[1] * one.values[1]) for one in done if one.values]
        front = {done[place].number for place in pareto_front(points)}
        plain = [(one.values[1], one.values[0]) for one in done if one.values]
        on_front = [place for place, one in enumerate(done) if one.number in front]
    rows = [_row(search, one) for one in ranked]
    objectives = [tables.Objective(name, name not in COSTS, name not in COSTS) for name in search.objectives]
    frame = pd.DataFrame(rows).assign(identity=[one.folders[0].identity for one in ranked])
    counted = ", ".join(
        f"{count} {state}"
        for state in ("done", "cut", "failed", "missing")
        if (count := sum(one.state == state for one in ranked))
    )
    more = " Front 1: no other candidate is better in one objective and as good in the other." if front else ""
    sentence = f"{title} {len(ranked)} candidates: {counted}.{more}"
    best_ones = tables.search_table(rows, objectives, sentence, max(_BEST, len(front)))
    outcome.listing(best_ones, stem, frame.to_csv(index=False))
    best = best_of(ranked)
    if best is not None:
        results = [result for folder in best.folders if (result := plan.result(folder)) is not None]
        test = sum(result.test_top1 for result in results) / len(results)
        which = f"best by {search.objectives[0]}: number {best.number}, {plan.title(best.folders[0])}"
        outcome.say(f"{which}; its test top-1 {100 * test:.1f} %")
        if over:
            outcome.say(CHOSEN_OVER_FOLDS)
    if front:
        cost, value = search.objectives[1], search.objectives[0]
        outcome.figure(
            f"{stem}-pareto", f"Pareto front: {title}", "pareto",
            plain, [f"number {one.number}" for one in done], on_front, title, xlabel=_axis(cost), ylabel=_axis(value),
            shares=(cost not in COSTS, value not in COSTS),
        )  # fmt: skip
    importance = search.importance()
    if importance:
        sentence = (
            f"Importance (fANOVA): share of the variance of {search.objectives[0]} that a choice explains, over the "
            f"choices that every candidate has."
        )
        outcome.listing(tables.importance_table(importance, sentence), f"{stem}-importance")
        outcome.figure(f"{stem}-importance", f"Bars of the table: {sentence}", "importance", importance, sentence)


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
        trials: dict[tuple[str, TrialConfig], list[dict[int, float]]] = {}
        for member in plan.members:
            line = study.curve(member.config) if member.study is study else None
            if line is None:
                continue
            curve = {one.epoch: one.valid_top1 for one in member.folder.epochs() if one.valid_top1 is not None}
            trials.setdefault((line, _on_all_folds(plan, member.config)), []).append(curve)
        rows: dict[str, list[dict[str, Any]]] = {}
        for (line, config), curves in trials.items():
            about = {"line": line, "seed": config.seed}
            rows.setdefault(config.dataset, []).extend(
                about | {"epoch": epoch, "valid_top1": value} for epoch, value in mean_curve(curves).items()
            )
        outcome.section(study.name, heading(study.name))
        for dataset, points in rows.items():
            stem = stem_of("curves", study.name, dataset) if len(plan.space.studies) * len(rows) > 1 else "curves"
            outcome.text(f"{stem}.csv", pd.DataFrame(points).to_csv(index=False))
            lines: dict[str, dict[int, list[float]]] = {}
            for point in points:
                lines.setdefault(point["line"], {}).setdefault(point["epoch"], []).append(point["valid_top1"])
            over = _over_folds(plan, [dataset])
            title = f"Convergence: the linear probe's accuracy on valid by epoch, {dataset}{over}."
            outcome.figure(stem, title, "curves", lines, title, ylabel="valid top-1, %")


def _agreement(plan: Plan, outcome: Outcome) -> None:
    """How well each rung ordered the trials, judged by those that ran through, and the record of what was decided."""
    if not plan.halving:
        return
    outcome.section("early stopping", "Early stopping")
    record = {dataset: halving.record() for dataset, halving in plan.halving.items()}
    outcome.text("rungs.json", json.dumps(record, indent=2) + "\n")
    for dataset, halving in plan.halving.items():
        pairs: dict[int, list[tuple[float, float]]] = {rung: [] for rung in halving.rungs}
        trials: dict[TrialConfig, list[TrialFolder]] = {}
        for folder in plan.folders.values():
            own = folder.config.dataset == dataset and folder.identity not in plan.apart
            if own and folder.config.pretraining() is None:
                trials.setdefault(_on_all_folds(plan, folder.config), []).append(folder)
        # Folds of one seed make one pair: as several, they would be taken for trials of their own.
        for folds in trials.values():
            finals = [result.test_top1 for folder in folds if (result := plan.result(folder)) is not None]
            for rung in halving.rungs:
                scores = [score for folder in folds if (score := score_at(rung, folder)) is not None]
                if len(finals) == len(scores) == len(folds):
                    pairs[rung].append((mean(scores), mean(finals)))
        agreements: dict[int, Agreement] = {
            rung: kendall_tau([score for score, _ in points], [final for _, final in points])
            for rung, points in pairs.items()
        }
        cut = halving.cut(list(plan.folders.values()))
        through = max(map(len, pairs.values()), default=0)
        anyway = sum(plan.result(plan.folders[identity]) is not None for identity in cut)
        count = plan.folds_of(dataset)
        counted = f"{through} means over {count} folds, of trials that ran" if count else f"{through} trials that ran"
        sentence = (
            f"Does early stopping choose well? Kendall's tau between the probe's accuracy on valid at a rung and the "
            f"final test top-1, over the {counted} through, {dataset}. {len(cut)}{' trials' if count else ''} were cut "
            f"here, {anyway} of them ran through in another sweep and are counted."
        )
        if anyway < len(cut):
            sentence += (
                " The best alone are more alike than all would be, which lowers tau; run the sweep without --halving "
                "once to see all."
            )
        stem = "rungs" if len(plan.halving) == 1 else stem_of("rungs", dataset)
        outcome.listing(tables.agreement_table(agreements, sentence), f"{stem}-agreement")
        lines = [
            {"rung": rung, "valid_top1": score, "final_test_top1": final}
            for rung, points in pairs.items()
            for score, final in points
        ]
        outcome.text(f"{stem}-scores.csv", pd.DataFrame(lines).to_csv(index=False))
        question = sentence.partition(" Kendall")[0]
        outcome.figure(
            stem, f"Accuracy at the rungs and at the end: {question}", "rung_scatter", pairs, agreements, question
        )
