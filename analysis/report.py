"""`python -m analysis.report NAME`: a sweep's answer: tables, statistics, the paper's claims, one page to look at.

Works on a finished sweep and on a running one, from the storage or from any MLflow tracking server. A sweep makes its
own report when it ends, by the same code.
"""

import errno
import hashlib
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pandas as pd
import typer
from rich.console import Console

from analysis import costs, load, outcome, page, pivot, reference, tables
from analysis.claims import EPOCHS, PAPER, POINTS, Claim, Judgement, effect_text, fewer_epochs, judge, p_text
from analysis.load import Loaded
from analysis.outcome import Figure, Outcome
from analysis.page import Example, Folded, Part, Picture, Section, Sound, Verdict
from analysis.results import METRICS, frame, over_folds
from analysis.statistics import LEVEL, Effect, TwoWay, two_way
from analysis.tables import Listing
from clar import __version__, datasets, space, tracking
from clar import progress as progress_bar
from clar.cli import command, storage_path
from clar.config import AUGMENTATIONS, RESULTS_VERSION
from clar.errors import UserError
from clar.files import place as place_of
from clar.files import read_json, write_json
from clar.plan import Plan
from clar.result import TrialFolder

PAGE, FOLDER = "report.html", "report"
"""The page, and the folder of the files that only the report has."""

_INPUTS = "inputs.json"
_STEPS = 6
_METRIC = "test_top1"
_PAIRS_SHOWN = 8
_TRIAL_COLUMNS = ("title", "state", "test_top1", "test_top5", "valid_top1", "train_seconds", "identity")

Advance = load.Advance


@dataclass(frozen=True)
class Options:
    """What a report shows beside its own.

    Attributes:
        reference: a CSV of published values, see `analysis.reference`.
        claims: a Python file with `CLAIMS`, see `analysis.claims`.
        target: accuracy, a share, that the claim about epochs asks for.
        pivot: rows, columns and metric of one more table; see `analysis.pivot`.
        where: conditions of that table.
    """

    reference: Path | None = None
    claims: Path | None = None
    target: float | None = None
    pivot: tuple[str, str, str] | None = None
    where: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """What `extend` made: the page, and the judged claims in a line each."""

    path: Path
    verdicts: list[str]


def extend(
    found: Loaded,
    out: Outcome,
    options: Options = Options(),
    advance: Advance = lambda *_: None,
    meanwhile: Callable[[], object] = lambda: None,
) -> Report:
    """Add to a sweep's tables all else that the report has, draw all figures, and write the page.

    Args:
        found: the sweep.
        out: its tables, as `analysis.outcome.write` gives them.
        options: what to show beside.
        advance: told how far it is.
        meanwhile: called when there is nothing to do but to wait for another process.

    Raises:
        UserError: an option is wrong.
    """
    trials = frame(found.plan, found.live)
    # What compares goes by seeds; trials of one seed on several folds are one value of it.
    seeds = over_folds(trials) if found.plan.folds else trials
    spread, table = out.folder / FOLDER, _as_csv(trials)
    with _portraits(found, seeds, spread) as portraits:
        advance("statistics", 1, _STEPS)
        _effects(out)
        _published(out, options)
        first = [_pivot(found.plan, out, trials, seeds, options)] if options.pivot else []
        advance("claims", 2, _STEPS)
        judged, silent = _judged(found, options, seeds)
        _judgements(out, judged, silent)
        out.section("costs", "Costs")
        out.listing(costs.table(found.plan, found.about, found.live), f"{FOLDER}/costs")
        out.text(f"{FOLDER}/trials.csv", table)
        advance("figures", 3, _STEPS)
        out.draw(f"{FOLDER}/drawn.json")
        advance("embeddings and examples", 4, _STEPS)
        meanwhile()
        made = portraits()
    advance("page", 5, _STEPS)
    out.text(f"{FOLDER}/report.md", out.markdown(headings=True))
    out.text(PAGE, page.render(_page(found, out, trials, judged, made, first)))
    out.files += [spread / name for name in made.get("files", []) if not name.endswith(".wav")]
    verdicts = [*map(str, judged), *silent]
    files = [path.relative_to(out.folder).as_posix() for path in out.files]
    write_json(spread / _INPUTS, {"inputs": _inputs(found, table, options), "files": files, "verdicts": verdicts})
    advance("page", _STEPS, _STEPS)
    return Report(out.folder / PAGE, verdicts)


def current(found: Loaded, out: Outcome) -> Report | None:
    """The report that is there already, where nothing has changed since; its files are then among the outcome's."""
    known = read_json(out.folder / FOLDER / _INPUTS)
    table = _as_csv(frame(found.plan, found.live))
    if known.get("inputs") != _inputs(found, table, Options()):
        return None
    files = [out.folder / name for name in known["files"]]
    if not all(path.exists() for path in files):
        return None
    out.files[:] = files
    return Report(out.folder / PAGE, known["verdicts"])


def note(out: Outcome, report: Report) -> str:
    """What the sweep has found, in Markdown: the claims, then the tables."""
    claims = "".join(f"- {verdict}\n" for verdict in report.verdicts)
    tables_of = Outcome(out.folder, {key: one for key, one in out.sections.items() if key not in ("claims", "costs")})
    return f"{claims}\n{tables_of.markdown()}" if claims else tables_of.markdown()


def _as_csv(trials: pd.DataFrame) -> str:
    return trials.drop(columns="curve").to_csv(index=False)


def _inputs(found: Loaded, table: str, options: Options) -> str:
    """A hash of all that the report is made of."""
    given = [
        path.read_text(errors="replace") for path in (options.reference, options.claims) if path and path.is_file()
    ]
    about = [found.about.get(name) for name in ("recipe", "code_version", "wall_seconds", "reused")]
    content = [__version__, table, about, found.live, options.target, options.pivot, options.where, given]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Statistics and claims
# ---------------------------------------------------------------------------------------------------------------------


def _pivot(plan: Plan, out: Outcome, trials: pd.DataFrame, seeds: pd.DataFrame, options: Options) -> str:
    """The user's own table, of single folds where it names them; the key of its section."""
    assert options.pivot is not None
    rows, columns, metric = options.pivot
    by_fold = "fold" in (rows, columns, *(condition.partition("=")[0].strip() for condition in options.where))
    grid, notes = pivot.grid(trials if by_fold else seeds, rows, columns, metric, options.where)
    if plan.folds and not by_fold:
        notes.append(tables.folds_note(map(plan.folds_of, plan.stores)))
    cells = tables.cells(grid)
    out.section("your table", "Your table")
    stem = outcome.stem_of(rows, "by", columns, metric)
    out.grids[stem] = out.current, grid, cells
    out.listing(tables.listing(grid, cells), f"{FOLDER}/{stem}", cells.to_csv(index=False))
    out.say("\n".join([*notes, *tables.notes(grid, cells)]))
    return "your table"


def _effects(out: Outcome) -> None:
    """For each table whose rows and columns are the same things in two places: what each adds in either."""
    for stem, (section, grid, cells) in list(out.grids.items()):
        if list(dict.fromkeys(cells["row"])) != list(dict.fromkeys(cells["column"])) or cells["row"].nunique() < 3:
            continue
        # The diagonal is one augmentation alone and no pair: it says nothing about order.
        rows = [
            (entry.row, entry.column, entry.seed, entry.value) for entry in grid.entries
            if entry.row != entry.column and entry.state == "done" and entry.value is not None
        ]  # fmt: skip
        found = two_way(pd.DataFrame(rows, columns=["first", "second", "seed", "value"]))
        if found is None:
            continue
        out.section(section)
        names = list(dict.fromkeys(cells["row"]))
        where = f"{FOLDER}/{stem}-effects"
        out.listing(_level_table(found, names), where, pd.DataFrame(found.levels).to_csv(index=False))
        ordered = sorted(found.levels, key=lambda one: names.index(one.name))
        title = "What an augmentation adds as first and as second of a pair"
        out.figure(where, f"{title}, with 95 % intervals.", "effects", ordered, title)
        out.listing(
            _variance_table(found), f"{FOLDER}/{stem}-variance", pd.DataFrame(found.sources).to_csv(index=False)
        )
        if found.pairs:
            listing = _pair_table(found)
            out.listing(listing, f"{FOLDER}/{stem}-interactions", pd.DataFrame(found.pairs).to_csv(index=False))


def _level_table(found: TwoWay, names: Sequence[str]) -> Listing:
    by = {(one.name, one.place): one for one in found.levels}
    rows = []
    for name in names:
        cells = [by.get((name, place)) for place in ("first", "second")]
        rows.append((name, *(text for one in cells for text in (_points(one), "-" if one is None else _p(one.p)))))
    told = "over the seeds" if found.pairs else "over the pairs, since one seed alone has no scatter of its own"
    return Listing(
        f"What each augmentation adds to a pair, in percentage points above the mean of all pairs, the other one "
        f"alike; 95 % interval, p by t-test {told}, Holm's correction (of p, not of the intervals).",
        ("augmentation", "as first", "p, first", "as second", "p, second"), rows,
    )  # fmt: skip


def _pair_table(found: TwoWay) -> Listing:
    ordered = sorted(found.pairs, key=lambda one: (one.p, -abs(one.effect)))
    some = [one for one in ordered if one.p < LEVEL] or ordered
    rows = [(one.name, _points(one), _p(one.p)) for one in some[:_PAIRS_SHOWN]]
    count = sum(one.p < LEVEL for one in found.pairs)
    return Listing(
        f"Interaction: pairs that give more, or less, than their two augmentations add up to; {count} of "
        f"{len(found.pairs)} do so with p < {LEVEL:g} (Holm). The strongest:",
        ("pair", "beyond the sum", "p"), rows,
    )  # fmt: skip


def _variance_table(found: TwoWay) -> Listing:
    rows = [
        (one.name, str(one.df), f"{100 * one.share:.1f}", "-" if one.f != one.f else f"{one.f:.1f}", _p(one.p))
        for one in found.sources
    ]
    seeds = "one seed" if found.seeds == 1 else f"{found.seeds} seeds as blocks"
    return Listing(
        f"Two-way analysis of variance of the pairs, {seeds}: does it matter which augmentation comes first, which "
        f"second, and which are together? Type II: shares need not add up to 100.",
        ("source", "df", "share of variance, %", "F", "p"), rows,
    )  # fmt: skip


def _points(one: Effect | None) -> str:
    if one is None:
        return "-"
    # Adding 0 makes 0 of -0.
    low, effect, high = (round(100 * value, 1) + 0 for value in (one.low, one.effect, one.high))
    return f"{effect:+.1f}" if low != low else f"{effect:+.1f} ({low:.1f} to {high:.1f})"


def _p(p: float) -> str:
    return "-" if p != p else p_text(p).removeprefix("= ")


def _published(out: Outcome, options: Options) -> None:
    """Published values beside ours."""
    if options.reference is None:
        return
    grids = {stem: grid for stem, (_, grid, _) in out.grids.items()}
    places = {stem: list(zip(cells["row"], cells["column"], strict=True)) for stem, (*_, cells) in out.grids.items()}
    for stem, values in reference.read(options.reference, grids, places).items():
        section, grid, cells = out.grids[stem]
        out.section(section)
        listing = tables.against(
            grid, cells, values, f"Published values ({options.reference.name}) beside ours: {grid.title}"
        )
        out.listing(listing, f"{FOLDER}/{stem}-published")


def _judged(found: Loaded, options: Options, trials: pd.DataFrame) -> tuple[list[Judgement], list[str]]:
    """The claims with something to say: the paper's, the user's; and a line for each of the user's that has nothing."""
    paper = [*PAPER[:-1], Claim(PAPER[-1].statement, fewer_epochs(options.target), unit=EPOCHS)]
    files = [found.plan.space.path, options.claims]
    own = [claim for path in files if path for claim in _from_file(path, required=path == options.claims)]
    judged = judge([*paper, *own], trials)
    known = {id(one.claim) for one in judged}
    return judged, [f"{one.statement}: this sweep has no such trials" for one in own if id(one) not in known]


def _from_file(path: Path, required: bool) -> list[Claim]:
    """`CLAIMS` of a Python file, which is the user's own code and is run."""
    if required and not path.is_file():
        raise UserError(f"--claims {path}: no such file; name a Python file with CLAIMS")
    found = getattr(space.run_file(path), "CLAIMS", None)
    if found is None and not required:
        return []
    if not isinstance(found, list | tuple) or not all(isinstance(one, Claim) for one in found):
        raise UserError(f"{path}: CLAIMS must be a list of analysis.claims.Claim, not {found!r}")
    return list(found)


class _ForestRow(NamedTuple):
    """A row of the figure of claims."""

    label: str
    effect: float
    low: float
    high: float
    unit: str
    verdict: str


def _judgements(out: Outcome, judged: list[Judgement], silent: list[str]) -> None:
    out.section("claims", "Claims")
    for line in silent:
        out.say(line)
    if not judged:
        return
    rows, forest = [], []
    for one in judged:
        scale, unit = (100, "percentage points") if one.claim.unit == POINTS else (1, one.claim.unit)
        for part in one.parts:
            effect = effect_text(part, one.claim.unit)
            rows.append((one.claim.statement, part.label, part.verdict, effect, _p(part.p), str(part.n), part.needs))
            label = f"{one.claim.statement}: {part.label}"
            numbers = (scale * part.effect, scale * part.low, scale * part.high)
            forest.append(_ForestRow(label, *numbers, unit, part.verdict))
    title = (
        f"What each claim compares: confirmed above, refuted below its margin with p < {LEVEL:g} (paired t-test over "
        f"the seeds, for epochs a permutation test; Holm's correction over the parts of a claim, not of the intervals)."
    )
    header = ("claim", "where", "verdict", "effect, 95 % interval", "p", "n", "what would decide it")
    out.listing(Listing(title, header, rows, left=frozenset({1, 2, 6})), f"{FOLDER}/claims")
    out.figure(
        f"{FOLDER}/claims", "Effects of the claims' parts with 95 % intervals.", "claims", forest, "The claims' effects"
    )


# ---------------------------------------------------------------------------------------------------------------------
# What needs tensors: in a process of its own
# ---------------------------------------------------------------------------------------------------------------------


@contextmanager
def _portraits(found: Loaded, trials: pd.DataFrame, folder: Path) -> Iterator[Callable[[], dict[str, Any]]]:
    """Start making them, on another core; what is yielded waits for them, and gives what `portraits.json` says.

    It says `missing`, with the reason, where they cannot be made here.
    """
    best = _best(found.plan, trials)
    dataset = next(iter(found.plan.stores))
    used = {name for member in found.plan.members for name in member.config.augmentations}
    names = [name for name in AUGMENTATIONS if name in used]
    process, reason = None, ""
    try:
        store = _store(found.plan, dataset)
        arguments = ["--store", str(store), "--out", str(folder), *(f"--augmentation={name}" for name in names)]
        if best is not None:
            found.fetch(best)
            title = f"Test clips of {dataset}, as the best run sees them: {found.plan.title(best)}"
            if (best.path / "encoder.safetensors").exists():
                arguments += ["--trial", str(best.path), "--title", title]
        process = subprocess.Popen(
            [sys.executable, "-m", "analysis.portraits", *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
    except (UserError, OSError) as error:
        reason = str(error)
    except Exception as error:  # the tracking server has no encoder
        reason = tracking.one_line(error)

    def wait() -> dict[str, Any]:
        if process is None:
            return {"missing": reason}
        output, _ = process.communicate()
        if process.returncode:
            lines = output.strip().splitlines() or [f"exit code {process.returncode}"]
            return {"missing": lines[-1].removeprefix("error: ")}
        return read_json(folder / "portraits.json")

    try:
        yield wait
    finally:
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()


def _best(plan: Plan, trials: pd.DataFrame) -> TrialFolder | None:
    """The trial of the best accuracy on valid: test is not to be chosen by."""
    # With several data sets, on the first: of the easiest it would say the least.
    done = trials[(trials["state"] == "done") & (trials["dataset"] == next(iter(plan.stores)))]
    if done.empty:
        return None
    first = done.sort_values(["valid_top1", "identity"], ascending=[False, True]).iloc[0]
    return plan.folders[first["identity"]]


def _store(plan: Plan, dataset: str) -> Path:
    """Where the clips are: where the sweep had them, else where this machine has the same."""
    recorded = plan.stores[dataset]
    if (recorded.path / "meta.json").is_file():
        return recorded.path
    if datasets.built(dataset) and (here := datasets.load(dataset)).fingerprint == recorded.fingerprint:
        return here.path
    raise UserError(f"the clips of {dataset} are not on this machine")


# ---------------------------------------------------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------------------------------------------------


def _page(
    found: Loaded, out: Outcome, trials: pd.DataFrame, judged: list[Judgement], made: dict[str, Any], first: list[str]
) -> page.Page:
    plan, about = found.plan, found.about
    sections = [Section("Claims", verdicts)] if (verdicts := _verdicts(judged, out)) else []
    skipped = {"claims", "costs", *first}
    sections += [_section(out, key) for key in first]
    sections += [_section(out, key) for key in out.sections if key not in skipped and out.sections[key].pieces]
    sections += _pictures(made, out.folder / FOLDER)
    sections.append(_section(out, "costs"))
    compared = tuple(part for part in _section(out, "claims").parts if not isinstance(part, str))
    details = (Folded("Every comparison of the claims", compared),) if compared else ()
    sections.append(Section("Details", (*details, Folded(f"All {len(trials)} trials", (_trial_table(trials),)))))
    base = {name: value for bases in plan.bases.values() for name, value in bases[0].differences().items()}
    settings = ", ".join(f"{name} {_shown(value)}" for name, value in base.items() if name not in ("dataset", "seed"))
    fingerprints = ", ".join(f"{name} ({store.fingerprint[:12]})" for name, store in plan.stores.items())
    sections.append(Section("How it was made", (
        f"Fields that differ from the defaults in all trials: {settings or 'none'}.",
        "Accuracies are shares of the test clips, in per cent. Intervals are those of the mean over the seeds, and say "
        "nothing of other clips. Tests are paired by seed; test clips are looked at once, after all choices.",
        *_on_folds(plan),
        f"The tables of this page, as CSV and LaTeX, and all trials lie beside it, in {FOLDER}/.",
    )))  # fmt: skip
    facts = (
        ("Data", fingerprints),
        ("Trials", progress(found)),
        ("Seeds", ", ".join(map(str, sorted(trials["seed"].unique()))) if trials["seed"].nunique() < 9
         else f"{trials['seed'].nunique()}"),
        ("Sweep", f"{plan.space.name}-{plan.output.key}"),
        ("Code", f"clar {about.get('code_version', '')}, results version {RESULTS_VERSION}"),
    )  # fmt: skip
    return page.Page(f"{plan.space.name} on {plan.datasets}", _summary(found, judged), facts, tuple(sections))


def _on_folds(plan: Plan) -> Iterator[str]:
    """What a reader has to know where each trial is tested on all folds."""
    folds = {name: count for name in plan.stores if (count := plan.folds_of(name))}
    if folds:
        over = ", ".join(f"{count} folds of {name}" for name, count in folds.items())
        yield (
            f"Each value is the mean over the {over}: a trial a fold. Folds share training clips and are no repeats, "
            f"so n, intervals and tests go by seeds. {outcome.CHOSEN_OVER_FOLDS}"
        )


def progress(found: Loaded) -> str:
    """`120 of 245 done, 3 failed, 2 running`, pre-trainings among them."""
    cut = found.plan.cut()
    states = Counter(outcome.state_of(found.plan, one, cut, found.live) for one in found.plan.folders.values())
    total = sum(states.values())
    others = ", ".join(f"{count} {state}" for state, count in sorted(states.items()) if state != "done")
    return f"{states['done']} of {total} done" + (f", {others}" if others else "")


def _summary(found: Loaded, judged: list[Judgement]) -> str:
    left = len(found.plan.open())
    state = "running" if found.live else "not running, and not finished" if left else "done"
    counts = [f"{sum(one.verdict == verdict for one in judged)} {verdict}"
              for verdict in ("confirmed", "refuted", "undecided")]  # fmt: skip
    claims = f" Claims: {', '.join(counts)}." if judged else ""
    return f"{found.plan.space.summary} The sweep is {state}: {progress(found)}.{claims}"


def _verdicts(judged: list[Judgement], out: Outcome) -> tuple[Part, ...]:
    verdicts: list[Part] = []
    for one in judged:
        text = f"{one.evidence[:1].upper()}{one.evidence[1:]}."
        verdicts.append(Verdict(one.claim.statement, one.verdict, text))  # type: ignore[arg-type]
    return (*verdicts, *(piece for piece in out.sections["claims"].pieces if isinstance(piece, str)))


def _section(out: Outcome, key: str) -> Section:
    section = out.sections[key]
    parts: list[Part] = []
    for piece in section.pieces:
        if isinstance(piece, Figure):
            parts.append(Picture(piece.path, piece.alt))
        else:
            parts.append(piece)
    return Section(section.title, tuple(parts))


def _pictures(made: dict[str, Any], folder: Path) -> list[Section]:
    if "missing" in made:
        return [Section("Embeddings and examples", (f"Not made: {made['missing']}.",))]
    sections = []
    mapped = made.get("embedding_map")
    if mapped:
        picture = Picture((folder / mapped["picture"]).with_suffix(""), f"Map of the test clips: {mapped['title']}", "")
        sections.append(Section("Embeddings of the best run", (mapped["text"], picture)))
    examples = [
        Example(
            one["name"], one["text"],
            (Sound("before", folder / one["before"]), Sound("after", folder / one["after"])),
            Picture((folder / one["picture"]).with_suffix(""), f"Waveform, spectrogram before and after {one['name']}"),
        )
        for one in made.get("examples", [])
    ]  # fmt: skip
    if examples:
        sections.append(Section("What the augmentations do", tuple(examples)))
    return sections


def _trial_table(trials: pd.DataFrame) -> Listing:
    varied = [name for name in pivot.varied(trials) if name != "seed"]
    columns = [*_TRIAL_COLUMNS[:2], *varied, "seed", *_TRIAL_COLUMNS[2:]]
    rows = []
    for values in trials[columns].itertuples(index=False, name=None):
        rows.append(tuple(_cell(name, value) for name, value in zip(columns, values, strict=True)))
    header = tuple(f"{name}, %" if name.endswith(("_top1", "_top5")) else name for name in columns)
    left = frozenset(i for i, name in enumerate(columns) if name not in METRICS and name != "seed")
    return Listing("", header, rows, left=left)


def _cell(name: str, value: Any) -> str:
    if name in METRICS:
        return "-" if value != value else f"{100 * value:.1f}" if name.endswith(("_top1", "_top5")) else f"{value:.1f}"
    return _shown(value)


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    name: Annotated[str, typer.Argument(help="A sweep's name, NAME-KEY, or its Python file.", show_default=False)],
    storage: Annotated[
        Path | None,
        typer.Option(metavar="PATH|URI", parser=place_of, show_default=False,
                     help="Folder of the sweep's trials, or s3://BUCKET/PREFIX; default: clar_runs."),
    ] = None,
    tracking_uri: Annotated[
        str | None,
        typer.Option(help="Without --storage: read the sweep from this MLflow server. With it: log the report there "
                     "(default: where the sweep was logged).", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for tables, figures and page; default: the sweep's own.", show_default=False),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Published values to show beside ours: table,row,column,published.",
                     show_default=False),
    ] = None,
    claims: Annotated[
        Path | None, typer.Option(metavar="FILE.py", help="Claims of your own: CLAIMS = [...].", show_default=False)
    ] = None,
    target: Annotated[
        float | None,
        typer.Option(metavar="PERCENT", help="Accuracy on valid that the claim about epochs asks for; default: what "
                     "all runs reach.", show_default=False),
    ] = None,
    rows: Annotated[str | None, typer.Option(help="One more table: the field of its rows.", show_default=False)] = None,
    columns: Annotated[str | None, typer.Option(help="The field of its columns.", show_default=False)] = None,
    metric: Annotated[str, typer.Option(help="What it shows.")] = _METRIC,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=VALUE", help="Only such trials in it; repeatable.", show_default=False),
    ] = None,
    log: Annotated[bool, typer.Option("--log/--no-log", help="Log the report to MLflow.")] = True,
) -> int:  # fmt: skip
    """Tables, statistics, claims, figures and one page of a sweep, finished or running."""
    console = Console(highlight=False, soft_wrap=True, emoji=False)
    if (rows is None) != (columns is None):
        raise UserError("--rows and --columns: a table needs both")
    if metric != _METRIC and rows is None:
        raise UserError(f"--metric {metric}: of the table that --rows and --columns ask for; name them")
    if where and rows is None:
        raise UserError(f"--where {where[0]}: of the table that --rows and --columns ask for; name them")
    if target is not None and not 0 < target <= 100:
        raise UserError(f"--target {target:g}: an accuracy in per cent, above 0 and up to 100")
    chosen = (rows, columns, metric) if rows is not None and columns is not None else None
    options = Options(reference, claims, None if target is None else target / 100, chosen, tuple(where or ()))
    with tempfile.TemporaryDirectory(prefix="clar-report-") as temporary, progress_bar.bar(name) as bar:
        remote = tracking_uri if storage is None else None
        if remote:
            found = load.from_mlflow(name, remote, Path(temporary), bar.show)
        else:
            found = load.from_storage(name, storage_path(storage or Path("clar_runs"), make=False))
        place = out or (Path(f"clar_report/{found.plan.output.path.name}") if remote else found.plan.output.path)
        uri, said = _where(found, remote or tracking_uri, logged=log and out is None)
        bar.show("tables", 0, _STEPS)
        try:
            made = outcome.write(found.plan, found.live, place.absolute())
            report = extend(found, made, options, bar.show, partial(_warm, uri, found))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(f"{error.filename or place}: {error.strerror}; name another folder with --out") from error
        bar.show("MLflow", _STEPS, _STEPS)
        if uri:
            said = _log(found, made, report, uri)
    for other in found.others:
        console.print(f"another sweep of this name: {other}; name it so to see its report", markup=False)
    outcome.show(made, console)
    console.print()
    for line in report.verdicts:
        console.print(line, markup=False)
    console.print(f"{found.plan.space.name} ({found.source}): {progress(found)}", markup=False)
    console.print(f"page     {report.path}\ntables   {made.files[0]}\nMLflow   {said}", markup=False)
    return 0


def _where(found: Loaded, given: str | None, logged: bool) -> tuple[str, str]:
    """The tracking URI to log the report to; where there is none, why."""
    if not logged:
        return "", "nothing is logged, with --out or --no-log"
    known = given or found.about.get("tracking_uri", None)
    if known == "":
        return "", "not logged: the sweep's own URI holds a password and was not kept; give it by --tracking-uri"
    return known or tracking.default_uri(found.plan.storage), ""


def _warm(uri: str, found: Loaded) -> None:
    """Load MLflow, and make its database where there is none; what is wrong there is said when something is written."""
    if uri:
        with suppress(Exception):
            tracking.connect(uri, found.plan.storage)


def _log(found: Loaded, made: Outcome, report: Report, uri: str) -> str:
    """Write the report's files and note to the sweep's parent run; what to tell the user of it."""
    names = [path.relative_to(made.folder).as_posix() for path in made.files]
    said = note(made, report)
    try:
        if found.parent:
            tracking.upload(uri, found.parent, made.folder, names, said)
        else:
            found.plan.output.write_report(said, names)
            tracking.write_parent(uri, found.plan.output)
    except Exception as error:
        return f"{tracking.shown(uri)} cannot be written ({tracking.one_line(error)[:150]}); all is in {made.folder}"
    return tracking.shown(uri)


if __name__ == "__main__":
    sys.exit(command(app))
