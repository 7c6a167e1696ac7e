"""The command `python -m clar.sweep`: plan a sweep, run what is not done, print its tables.

The driver knows no tensor: workers train, the storage holds what they found, and everything here is read from there.
"""

import importlib
import json
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from clar import datasets, local, packing, progress, space, status
from clar.cli import (
    DataCache,
    DataRoot,
    MaxLost,
    Preset,
    Seeds,
    Setting,
    Storage,
    TrackingURI,
    code_version,
    command,
    configure,
    gpus_here,
    preset_of,
    storage_path,
)  # fmt: skip
from clar.clips import ClipStore, cores
from clar.config import Runtime, TrialConfig, parse_settings
from clar.errors import UserError
from clar.files import at_once, is_folder, read_bytes, read_json, remove, write_json
from clar.packing import Share
from clar.plan import Plan, check_ways
from clar.presets import BY_SIZE
from clar.result import TrialFolder
from clar.rounds import Budget, Goal, Halving, Precision
from clar.search import Searching
from clar.space import Space, Study
from clar.status import duration
from clar.tracking import Tracker, default_uri, shown

_STARTED = time.time()
_TRACKED, _FRESH = "tracked.json", "fresh.json"
_LOG_LINES = 3
_SEEN_SECONDS = 90.0
"""NFS may keep for a minute what it knows of a folder."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    name: Annotated[str, typer.Argument(help="A sweep of --list, or a Python file.", show_default=False)] = "",
    dataset: Annotated[
        list[str] | None,
        typer.Option(help="Data set, default digits; repeatable, or several with commas.", show_default=False),
    ] = None,
    preset: Preset = None,
    setting: Setting = None,
    seeds: Seeds = 1,
    folds: Annotated[
        bool, typer.Option("--folds", help="Test every trial on each fold of its data set; tables show the mean.")
    ] = False,
    storage: Storage = Path("clar_runs"),
    tracking_uri: TrackingURI = None,
    address: Annotated[
        str | None,
        typer.Option(help="A Ray cluster: HOST:PORT of its head, or auto on one of its nodes; default: RAY_ADDRESS, or "
                     "else this machine.", show_default=False),
    ] = None,
    cpus_per_trial: Annotated[
        int | None,
        typer.Option(min=1, help="CPUs, and torch threads, of each trial; default: 1, on a GPU up to 4.",
                     show_default=False),
    ] = None,
    gpus_per_trial: Annotated[
        str | None,
        typer.Option(metavar="X|auto", help="GPUs of each trial, 0.25 for a quarter; auto: measure how many trials "
                     "fit, or on a CPU how many threads are best; default: 1 if there is one.", show_default=False),
    ] = None,
    data_root: DataRoot = None,
    data_cache: DataCache = None,
    halving: Annotated[bool, typer.Option("--halving", help="Stop the weaker trials early, rung by rung.")] = False,
    rungs: Annotated[
        str | None,
        typer.Option(metavar="E,E", help="Epochs of the rungs; default: a quarter and half.", show_default=False),
    ] = None,
    keep: Annotated[
        float | None, typer.Option(help="Share that goes on at a rung; default: 0.5.", show_default=False)
    ] = None,
    precision: Annotated[
        float | None,
        typer.Option(metavar="POINTS", help="Add seeds to the cells that cannot be told from the best, until they can, "
                     "or are known to ± POINTS.", show_default=False),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="N|Nh", help="Of --precision: trials in all, or GPU-hours.", show_default=False),
    ] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Of a search: candidates.", show_default=False)] = None,
    generation: Annotated[
        int | None, typer.Option(min=1, help="Of a search: candidates chosen at a time.", show_default=False)
    ] = None,
    objectives: Annotated[
        str | None,
        typer.Option(help="Of a search: what it is to make best, default valid_top1; valid_top1,gpu_seconds weighs "
                     "cost too.", show_default=False),
    ] = None,
    retries: Annotated[int, typer.Option(min=0, help="Tries of a trial that failed, from its checkpoint.")] = 2,
    max_lost: MaxLost = 300.0,
    trial_timeout: Annotated[
        float | None,
        typer.Option(min=0.1, metavar="SECONDS", help="A trial that finishes no epoch for so long counts as hung, "
                     "is ended and tried again.", show_default=False),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Train all again; what was there is kept aside.")] = False,
    accept_version: Annotated[
        list[int] | None,
        typer.Option(metavar="N", help="Take results of this older results version as done; repeatable.",
                     show_default=False),
    ] = None,
    grid_everywhere: Annotated[
        bool,
        typer.Option("--grid-everywhere", help="Of `paper` on several data sets: the augmentations on all of them, not "
                     "on the first alone."),
    ] = False,
    baselines: Annotated[
        bool,
        typer.Option("--baselines/--no-baselines", help="Hold every table against chance, log-mel statistics, an "
                     "untrained encoder and a supervised one."),
    ] = True,
    make_report: Annotated[
        bool, typer.Option("--report/--no-report", help="End with the report, as `python -m analysis.report` makes it.")
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run; train nothing.")] = False,
    show_list: Annotated[bool, typer.Option("--list", help="Show the sweeps that exist.")] = False,
    show_status: Annotated[
        bool, typer.Option("--status", help="Show how a sweep of the storage stands, without a name all of them.")
    ] = False,
) -> int:  # fmt: skip
    """Run a sweep, or go on with it: finished trials are not trained again, the others go on where they stopped."""
    # Without emoji: `scenes:100: ` would be taken for one.
    console = Console(highlight=False, soft_wrap=True, emoji=False)
    if show_list:
        for known, summary in space.available().items():
            console.print(f"{known:16} {summary}", markup=False)
        return 0
    if show_status:
        return status.show(name, storage_path(storage, make=False), console)
    if not name:
        raise UserError("name a sweep; `python -m clar.sweep --list` shows all")
    chosen = space.load(name)
    options = {
        "halving": halving, "rungs": rungs, "keep": keep, "precision": precision, "budget": budget, "trials": trials,
        "generation": generation, "objectives": objectives, "fresh": fresh, "accept_version": accept_version,
        "dry_run": dry_run, "folds": folds,
    }  # fmt: skip
    check_ways(chosen, seeds, options)
    if grid_everywhere and not chosen.first_only:
        raise UserError(f"--grid-everywhere: {chosen.name} runs everything on all data sets anyway; leave it out")
    here = {"CPU": float(cores()), "GPU": float(gpus_here())}
    address = _address(address)
    with _cluster(address) if address else nullcontext(here) as resources:
        slots = Slots.of(resources, cpus_per_trial, gpus_per_trial)
        settings, names = setting or [], _names(dataset)
        fields = parse_settings(settings)
        training_clips: dict[str, int] = {}

        def bases_of(study: Study) -> list[TrialConfig]:
            alone = study.name in chosen.first_only and not grid_everywhere
            found = []
            for one in names[:1] if alone else names:
                base = configure(one, preset, settings, slots.gpus > 0, training_clips.get(one), **study.settings)
                found.append(_any_fold(base, fields) if folds else base)
            return found

        bases = {study.name: bases_of(study) for study in chosen.studies}
        # The sweep is planned before the data are read: a mistake in it should not wait for them.
        planned = [(base, study.plan(base, 1, fields)) for study in chosen.studies for base in bases[study.name]]
        for study in chosen.studies if baselines else ():
            for base in bases[study.name]:
                study.beside(base, [base])
        goals = tuple(part.strip() for part in (objectives or "valid_top1").split(","))
        if not slots.gpus and "gpu_seconds" in goals:
            console.print("there is no GPU here: the cost is train_seconds in place of gpu_seconds")
            goals = tuple("train_seconds" if goal == "gpu_seconds" else goal for goal in goals)
        if preset_of(preset, slots.gpus > 0) not in BY_SIZE:  # else the epochs are not known yet
            _ways(chosen, bases, halving, rungs, keep, goals, (trials, generation), fields)
        more = Precision(precision, Budget.parse(budget) if budget else None, _interval()) if precision else None
        widest = max(bases.values(), key=len)
        used = list(dict.fromkeys(base.dataset for base in widest))
        if folds and not any(map(datasets.folds, used)):
            raise UserError(f"--folds: no folds in {', '.join(used)}; leave it out, or name a data set that has some")
        if data_root and not any(map(datasets.takes_root, used)):
            raise UserError(f"--data-root {data_root}: {', '.join(used)} take no folder; leave it out")
        missing = [one for one in used if not datasets.built(one)]
        if dry_run and data_root is None and missing:
            titles = [f"{base.dataset}: {config.title(base)}" for base, configs in planned for config in configs]
            _show_unprepared(chosen, titles, folds, slots, missing, console)
            return 0
        place = storage_path(storage, make=not dry_run)
        before_data = time.time()
        stores = {one: datasets.load(one, data_root if datasets.takes_root(one) else None) for one in used}
        data_seconds = time.time() - before_data
        # Where a preset goes by the size of the data, it is known from here on.
        training_clips |= {
            one: len(stores[base.dataset].split("train")) for one, base in zip(names, widest, strict=True)
        }
        bases = {study.name: bases_of(study) for study in chosen.studies}
        stops, searches = _ways(chosen, bases, halving, rungs, keep, goals, (trials, generation), fields)
        plan = Plan(
            chosen, bases, place, stores, seeds, tuple(fields), tuple(accept_version or ()), stops, searches, more,
            folds, baselines,
        )  # fmt: skip
        waiting = _replay(plan) if dry_run else ""
        shares = Shares(slots, plan, resources, address)
        console.print(f"{chosen.name}: {plan.summary()}; {shares}", markup=False)
        if dry_run:
            _show(plan, shares, waiting, console)
            return 0
        driver = _Driver(
            plan,
            shares,
            console,
            data_seconds,
            retries,
            trial_timeout,
            make_report,
            data_cache.expanduser().absolute() if data_cache else None,
            max_lost,
            address,
        )
        return driver.run(tracking_uri or default_uri(place), fresh)


def _ways(
    chosen: Space, bases: dict[str, list[TrialConfig]], halving: bool, rungs: str | None, keep: float | None,
    goals: tuple[str, ...], candidates: tuple[int | None, int | None], fields: Iterable[str],
) -> tuple[dict[str, Halving], list[Searching]]:  # fmt: skip
    """How to stop trials early, by data set, and the searches; `candidates` in all and at a time."""
    share = 0.5 if keep is None else keep
    widest = max(bases.values(), key=len)
    stops = {base.dataset: Halving.of(base, _rungs(rungs), share) for base in widest if halving}
    trials, generation = candidates
    searches = [
        Searching(study, base, goals,
                  trials or study.search.trials, generation or study.search.generation, tuple(fields))
        for study in chosen.studies if study.search for base in bases[study.name]
    ]  # fmt: skip
    return stops, searches


def _names(dataset: list[str] | None) -> list[str]:
    """The data sets asked for, several with commas; in a text with a path, only commas before a name are such."""
    known = "|".join(datasets.names())
    commas = {text: rf",(?=\s*(?:{known})\b)" if "/" in text else "," for text in dataset or []}
    names = [part.strip() for text, comma in commas.items() for part in re.split(comma, text)]
    return [name for name in names if name] or ["digits"]


def _any_fold(base: TrialConfig, chosen: Iterable[str]) -> TrialConfig:
    """What trials on all folds have in common: everything but the fold.

    Raises:
        UserError: the user has chosen one.
    """
    if "fold" in chosen:
        raise UserError(f"--folds and --set fold={base.fold}: all of them, or one; leave one of the two out")
    return base.but(fold=None)


def _rungs(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in (text or "").split(",") if part.strip())
    except ValueError:
        raise UserError(f"--rungs {text}: epochs with commas between them, such as 4,8") from None


def _interval() -> Callable[..., tuple[float, float, float]]:
    from analysis.statistics import mean_interval

    return mean_interval


@dataclass(frozen=True)
class Slots:
    """How many trials run at a time, and what each gets, unless that is measured (`auto`).

    `count` is 0 where there is no node for trials yet, and nothing is known of those that will come.
    """

    count: int
    cpus: int
    gpus: float
    total_cpus: int
    total_gpus: int
    auto: bool = False

    @classmethod
    def of(cls, resources: dict[str, float], cpus: int | None, gpus_text: str | None) -> "Slots":
        """As many as the machine or cluster has room for.

        Raises:
            UserError: not one trial fits.
        """
        total_cpus, total_gpus = int(resources["CPU"]), int(resources.get("GPU", 0))
        auto = gpus_text == "auto"
        if not total_cpus:
            if auto or gpus_text is None or cpus is None:
                raise UserError(
                    "the cluster has no node for trials yet; say what each is to get: --cpus-per-trial N and "
                    "--gpus-per-trial X, 0 for none"
                )
            return cls(0, cpus, _number(gpus_text), 0, 0)
        if auto and cpus is not None:
            raise UserError(f"--gpus-per-trial auto chooses the CPUs too; leave out --cpus-per-trial {cpus}")
        default = 1.0 if total_gpus else 0.0
        gpus = default if gpus_text is None or auto else _number(gpus_text)
        if gpus > total_gpus:
            raise UserError(f"--gpus-per-trial {gpus:g}: there are {total_gpus} GPUs here; ask for fewer")
        by_gpu = _fitting(gpus, total_gpus) if gpus else total_cpus
        if cpus is None:
            cpus = max(1, min(4, total_cpus // by_gpu)) if gpus else 1
        if cpus > total_cpus:
            raise UserError(f"--cpus-per-trial {cpus}: there are {total_cpus} CPUs here; ask for fewer")
        return cls(min(by_gpu, total_cpus // cpus), cpus, gpus, total_cpus, total_gpus, auto)

    def capacity(self, share: Share) -> int:
        """How many trials of a share run at a time."""
        by_gpu = _fitting(share.gpus, self.total_gpus) if share.gpus else self.total_cpus
        return max(1, min(by_gpu, self.total_cpus // share.cpus))

    def __str__(self) -> str:
        gpu = f" and {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.count or 'as many as find room'} at a time, each {self.cpus} CPU{gpu}"


def _fitting(gpus: float, total: int) -> int:
    """How many trials that take so much of one GPU, or so many, all of them hold."""
    return total // int(gpus) if gpus >= 1 else total * int(1 / gpus)


def _number(text: str) -> float:
    try:
        gpus = float(text)
    except ValueError:
        gpus = math.nan
    if not math.isfinite(gpus) or gpus < 0 or (gpus > 1 and gpus != int(gpus)):
        raise UserError(f"--gpus-per-trial {text}: a share of one GPU, whole GPUs, or auto")
    return gpus


class Shares:
    """What each trial gets of the machine: the same for all, or measured for each kind of trial."""

    def __init__(self, slots: Slots, plan: Plan, resources: dict[str, float], address: str | None) -> None:
        self.slots, self.plan, self.resources, self.address = slots, plan, resources, address
        self.known: dict[str, Share] = {}
        if slots.auto:
            self.measure([folder.config for folder in plan.open()])

    def measure(self, configs: list[TrialConfig], release: Callable[[], None] = lambda: None) -> None:
        """See to it that the share of each of these trials is known; `release` makes room on the cluster to measure."""
        if not self.slots.auto:
            return
        missing = [config for config in configs if packing.kind(config) not in self.known]
        if missing:
            release()
            stores = {name: store.path for name, store in self.plan.stores.items()}
            run = _measure_on_cluster(self.slots.total_gpus > 0) if self.address else packing.here
            self.known |= packing.shares(missing, stores, self.resources, self.plan.storage, run)

    def of(self, config: TrialConfig) -> Share:
        """The share of a trial."""
        fixed = Share(self.slots.cpus, self.slots.gpus)
        return self.known.get(packing.kind(config), fixed) if self.slots.auto else fixed

    def __str__(self) -> str:
        if not self.slots.auto:
            return str(self.slots)
        if not self.known:
            return "shares are measured when there is something to train"
        return "; ".join(
            f"{kind}: {self.slots.capacity(share)} at a time, each {share}" + (f" ({share.note})" if share.note else "")
            for kind, share in self.known.items()
        )


def _measure_on_cluster(gpu: bool) -> Callable[[packing.Request], packing.Answer]:
    from clar import pool

    return lambda request: pool.measure(request, gpu)


def _show_unprepared(
    chosen: Space, titles: list[str], folds: bool, slots: Slots, missing: list[str], console: Console
) -> None:
    """The trials of a sweep whose data are not there yet, so that none can be done."""
    trials = f"{len(titles)} trials, without seeds{' and folds' if folds else ''}" if titles else "a search"
    console.print(f"{chosen.name}: {trials}; {slots}", markup=False)
    for title in titles:
        console.print(f"  to do  {title}", markup=False)
    console.print(
        f"{', '.join(missing)}: not prepared on this machine; the first run does that, or says how", markup=False
    )


def _show(plan: Plan, shares: Shares, waiting: str, console: Console) -> None:
    """The trials, where each stands, and how long the rest would take; nothing is decided that is not yet."""
    cut = plan.cut()
    titles = plan.titles()
    for identity, folder in plan.folders.items():
        if identity in cut:
            state = "cut"
        elif plan.result(folder) is not None:
            state = "done"
        else:
            epochs = len(folder.epochs())
            state = f"after epoch {epochs}" if epochs else "failed" if folder.failure() else "to do"
        console.print(f"  {identity}  {state:14} {titles[identity]}", markup=False)
    left = plan.open()
    seconds = [result.train_seconds for _, result in plan.results()]
    if not left and not waiting:
        console.print("nothing to train")
    elif seconds:
        estimate = sum(median(seconds) / shares.slots.capacity(shares.of(folder.config)) for folder in left)
        console.print(f"about {duration(estimate)} for {len(left)} trials, going by {len(seconds)} that are done")
    else:
        console.print(f"{len(left)} trials to train; none is done here to estimate their time from")
    if waiting:
        console.print(waiting)


def _replay(plan: Plan) -> str:
    """Go through the rounds that the storage has answers to; what can be said of those after."""
    number = plan.replay()
    if number is None or not (plan.halving or plan.searches or plan.precision):
        return ""
    return f"round {number} is next; what comes after it depends on its results"


def _address(given: str | None) -> str | None:
    """The cluster to use, None: this machine. RAY_ADDRESS is what Ray itself goes by, and sets for submitted jobs.

    Raises:
        UserError: RAY_ADDRESS is where jobs are submitted, and the user relies on it.
    """
    known = os.environ.get("RAY_ADDRESS", "").strip()
    jobs = known.startswith(("http://", "https://"))
    if given == "auto" and jobs:
        raise UserError(
            f"--address auto: RAY_ADDRESS={known} is for `ray job submit`; unset it, or name HOST:PORT of the head"
        )
    address = given or ("" if jobs else known)
    return None if address in ("", "local") else address


@contextmanager
def _cluster(address: str | None, cpus: int = 0, gpus: int = 0) -> Iterator[dict[str, float]]:
    """Ray, imported when it is needed: the other uses of this command are twice as fast without."""
    from clar import cluster

    with cluster.connect(address, cpus, gpus) as resources:
        yield resources


@dataclass
class _Driver:
    """Runs a plan."""

    plan: Plan
    shares: Shares
    console: Console
    data_seconds: float
    retries: int
    timeout: float | None
    make_report: bool = True
    data_cache: Path | None = None
    max_lost: float = 300.0
    address: str | None = None
    published: dict[str, Path] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    version: str = field(default_factory=code_version)

    def run(self, uri: str, fresh: bool) -> int:
        """Everything that is open, then the tables. Gives the command's exit code."""
        plan, console = self.plan, self.console
        marker = _Fresh(plan, fresh, console)
        with plan.output.driver():
            plan.record("running", self.version, tracking_uri=self._tracked_at(uri))
            with Tracker(uri, plan.output, lambda line: console.print(line, markup=False)) as tracker:
                self.watch = _Watch(plan, self.shares, tracker, console, self.data_seconds, self.failures)
                full = self._rounds(marker)
                whole = not plan.open()
                # The clock stops here: what the report takes is no cost of the trials.
                spent = self._spent()
                plan.record("done" if whole else "failed", self.version, **spent)
                # Tables show what was found; what could not be found is said below them.
                note, files = self._report()
                plan.output.write_report(note, [file.relative_to(plan.output.path).as_posix() for file in files])
                if not self._tracked(uri):
                    tracker.finish()
            if whole and tracker.complete:
                write_json(plan.output.path / _TRACKED, self._tracking(uri))
        if not full:
            marker.finish()
        self._closing_lines(files, uri, full, spent.get("clock"))
        return 0 if whole else 1

    def _rounds(self, marker: "_Fresh") -> str:
        """Reach the goals of every round; what was in the way of going on, empty: nothing."""
        plan, pool = self.plan, _LazyPool(self, self.address)
        several = bool(plan.halving or plan.searches or plan.precision)
        decided = 0
        with pool:
            for number, goals in enumerate(plan.rounds(), 1):
                decided = self._say_decisions(decided)
                marker.archive([goal.folder for goal in goals])
                reached = at_once(Goal.reached, goals, plan.storage)
                left = [goal for goal, done in zip(goals, reached, strict=True) if not done]
                if left:
                    self.shares.measure([goal.folder.config for goal in left], pool.release)
                    plan.record("running", self.version)
                    if several:
                        self.console.print(_headline(number, left), markup=False)
                    full = pool.run([self._job(goal) for goal in left])
                    if full:
                        return full
                    self._wait_to_see([goal for goal in left if goal.folder.identity in self.watch.reached])
        self._say_decisions(decided)
        return ""

    def _wait_to_see(self, goals: list[Goal]) -> None:
        """Wait for what other nodes have written: on a network file system it may be seen here a little later."""
        give_up = time.monotonic() + _SEEN_SECONDS
        while goals and time.monotonic() < give_up:
            reached = at_once(Goal.reached, goals, self.plan.storage)
            goals = [goal for goal, seen in zip(goals, reached, strict=True) if not seen]
            if goals:
                time.sleep(1)

    def _say_decisions(self, said: int) -> int:
        """Print the decisions of early stopping that are new; gives how many there are."""
        decisions = [decision for halving in self.plan.halving.values() for decision in halving.decisions]
        for decision in decisions[said:]:
            self.console.print(str(decision), markup=False)
        return len(decisions)

    def _job(self, goal: Goal) -> Any:
        from clar.trial import Job

        folder = goal.folder
        share = self.shares.of(folder.config)
        parent = self.plan.parent(folder)
        return Job(
            identity=folder.identity,
            config=folder.config.model_dump(mode="json"),
            until=goal.epoch,
            runtime=Runtime(
                device="cuda" if share.gpus else "cpu",
                threads=share.cpus,
                storage=self.plan.storage,
                store=self._store(folder.config.dataset),
                code_version=self.version,
                gpu_share=min(1.0, share.gpus or 1.0),
                data_cache=self.data_cache,
                max_lost=self.max_lost,
            ),
            share=share,
            after=parent.identity if parent else None,
            pretraining_version=parent.version if parent else None,
        )

    def _store(self, dataset: str) -> Path:
        """Where the workers find a data set: nodes of a cluster whose storage is a bucket see nothing else."""
        if dataset not in self.published:
            path = self.plan.stores[dataset].path
            elsewhere = self.address and not is_folder(self.plan.storage)
            self.published[dataset] = local.publish(ClipStore.open(path), self.plan.storage) if elsewhere else path
        return self.published[dataset]

    def _tracked_at(self, uri: str) -> str | None:
        """What a report may know of the tracking URI: None for the storage's own, which moves with it; no password."""
        if uri == default_uri(self.plan.storage):
            return None
        return "" if "@" in uri else uri

    def _spent(self) -> dict[str, Any]:
        """What this run of the command has cost, to be added to what earlier ones have; nothing where nothing ran."""
        if not self.watch.busy:
            return {}
        before = (self.plan.output.read() or {}).get("wall_seconds", 0.0)
        clock = self.watch.clock()
        return {"clock": clock, "wall_seconds": before + clock["sweep_seconds"]}

    def _report(self) -> tuple[str, list[Path]]:
        """Print the tables and the claims, and make the report; gives the note for MLflow and all files."""
        from analysis import outcome, report

        plan, say = self.plan, partial(self.console.print, markup=False)
        tables = outcome.write(plan, live=False)
        outcome.show(tables, self.console)
        if not self.make_report:
            tables.draw()
            return tables.markdown(), tables.files
        found = report.Loaded(plan, plan.output.read() or {}, False, str(plan.storage), [])
        try:
            with progress.bar("report") as bar:
                made = report.current(found, tables) or report.extend(found, tables, advance=bar.show)
        except Exception as error:
            # The trials are done and their tables printed: what is wrong with the report is no fault of the sweep's.
            name = plan.space.path or plan.space.name
            say(f"the report could not be made ({error}); `python -m analysis.report {name}` tries again")
            tables.draw()
            return tables.markdown(), tables.files
        for verdict in made.verdicts:
            say(verdict)
        return report.note(tables, made), tables.files

    def _tracked(self, uri: str) -> bool:
        """Whether all of this sweep has been written to the tracking store at `uri`, and it is still there."""
        path = self.plan.output.path / _TRACKED
        database = Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
        if database and not database.exists():
            return False
        return read_json(path) == self._tracking(uri)

    def _tracking(self, uri: str) -> dict[str, Any]:
        trials = {identity: folder.run_token() for identity, folder in self.plan.folders.items()}
        return {"uri": shown(uri), "trials": trials, "cut": sorted(self.plan.cut())}

    def _closing_lines(self, files: list[Path], uri: str, full: str, clock: dict[str, float] | None) -> None:
        """Where everything lies, what it cost, and what went wrong."""
        picture = next((file for file in files if file.suffix == ".png"), None)
        page = next((file for file in files if file.suffix == ".html"), None)
        lines = [f"table    {files[0]}"]
        lines += [f"{what} {file}" for what, file in (("picture ", picture), ("report  ", page)) if file]
        lines.append(f"MLflow   {shown(uri)}")
        if clock:
            first = clock.get("first_trial_after_seconds")
            lines.append(
                f"clock    {duration(clock['sweep_seconds'])}, first trial "
                f"{'never' if first is None else f'after {first:.0f} s'}; Ray, MLflow and driver took "
                f"{100 * clock['overhead_share']:.1f} % of it"
            )
        missing = 0
        for folder in self.plan.open():
            if folder.identity in self.failures:
                lines.append(f"failed   {self.plan.title(folder)}: {self.failures[folder.identity]}")
                # A trial whose pre-training failed has no log of its own.
                where = parent if not folder.log.exists() and (parent := self.plan.parent(folder)) else folder
                lines += [f"         | {line}" for line in where.last_log_lines(_LOG_LINES).splitlines()]
                lines.append(f"         log: {where.log}")
            else:
                missing += 1
        if full:
            lines.append(f"full     {full}; nothing finished is lost: make room, and the same command goes on")
        elif missing:
            lines.append(f"missing  {missing} trials left no result in {self.plan.storage}; do the workers see it?")
        self.console.print("\n".join(line for line in lines if line), markup=False)


def _headline(number: int, goals: list[Goal]) -> str:
    epochs = {goal.epoch for goal in goals}
    where = ", ".join(sorted("the end" if epoch is None else f"epoch {epoch}" for epoch in epochs))
    return f"round {number}: {len(goals)} trials to {where}"


class _LazyPool:
    """Ray and its workers, from the first trial that must run to the last."""

    def __init__(self, driver: _Driver, address: str | None) -> None:
        self.driver, self.address = driver, address
        self.stack = ExitStack()
        self.pool: Any = None

    def __enter__(self) -> "_LazyPool":
        return self

    def __exit__(self, *error: Any) -> None:
        self.driver.watch.stop()
        self.stack.__exit__(*error)

    def release(self) -> None:
        """End the workers that have nothing to do."""
        if self.pool:
            self.pool.release()

    def run(self, jobs: list[Any]) -> str:
        """Run the jobs to their ends; says what was in the way, a full disk, or nothing."""
        from clar import cluster, pool

        driver = self.driver
        if not self.pool:
            driver.watch.start()
            driver.watch.tracker.begin()
            slots = driver.shares.slots
            if not self.address:
                self.stack.enter_context(cluster.connect(None, slots.total_cpus, slots.total_gpus))
            self.pool = self.stack.enter_context(
                pool.Pool(driver.watch.report, driver.watch.say, driver.retries, driver.timeout)
            )
        try:
            self.pool.run(jobs)
        except pool.StorageFull as error:
            return str(error)
        except KeyboardInterrupt:
            driver.plan.record("interrupted", driver.version, **driver._spent())
            raise
        except cluster.ClusterLost as error:
            driver.plan.record("interrupted", driver.version, **driver._spent())
            print(f"error: {error}; the same command goes on from here", file=sys.stderr)
            raise typer.Exit(1) from error
        return ""


class _Fresh:
    """`--fresh`: which trainings are to be put aside. Kept until the sweep is whole, so that it can be interrupted."""

    def __init__(self, plan: Plan, wanted: bool, console: Console) -> None:
        self.path = plan.output.path / _FRESH
        self.old: set[str] = set()
        if not wanted:
            return
        if self.path.exists():
            console.print("--fresh was interrupted before: what has been trained since it began is kept")
        else:
            begun = [path.parent.name for path in plan.storage.glob("trials/*/config.json")]
            folders = [TrialFolder.open(plan.storage, identity) for identity in begun]
            write_json(self.path, sorted(map(_training, folders)))
        self.old = set(json.loads(read_bytes(self.path)))
        self.archive(list(plan.folders.values()))
        plan.forget()

    def archive(self, folders: list[TrialFolder]) -> None:
        """Put aside what was trained before."""
        for folder in folders:
            if self.old and _training(folder) in self.old:
                folder.archive()

    def finish(self) -> None:
        """The sweep has run through: the next --fresh begins anew."""
        remove(self.path)


def _training(folder: TrialFolder) -> str:
    """Names one training of a trial; one that was begun by a version without run tokens goes by its identity."""
    return folder.run_token() or f"identity {folder.identity}"


@dataclass
class _Watch:
    """Follows a running sweep: progress for the user, news for the tracker, seconds for the clock."""

    plan: Plan
    shares: Shares
    tracker: Tracker
    console: Console
    data_seconds: float
    failures: dict[str, str]
    busy: dict[str, dict[float, float]] = field(default_factory=dict)
    placements: set[str] = field(default_factory=set)
    reached: set[str] = field(default_factory=set)
    first_start: float | None = None
    ended: int = 0
    best: tuple[float, str] = (0.0, "")
    progress: Progress | None = None

    def start(self) -> None:
        """Show progress from here on."""
        self.open = max(1, len(self.plan.open()))
        for folder, result in self.plan.results():
            self.best = max(self.best, (result.valid_top1, self.plan.title(folder)))
        self.done = len(self.plan.results())
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
            console=self.console, disable=not self.console.is_terminal,
        )  # fmt: skip
        self.progress.start()
        self.task = self.progress.add_task(
            self.plan.space.name, total=len(self.plan.folders), completed=self.done, note="starting Ray"
        )

    def stop(self) -> None:
        """Show no more progress."""
        if self.progress:
            self.progress.stop()

    def say(self, line: str) -> None:
        """One line for the user."""
        self.console.print(line, markup=False)

    def say_placement(self, where: str) -> None:
        """Where trials have their clips from, once each way; how much room there was differs from trial to trial."""
        way = where.partition(" (")[0]
        if where and way not in self.placements:
            self.placements.add(way)
            self.say(where)

    def report(self, report: Any) -> None:
        """One report of one trial, see `clar.trial.Report`."""
        folder = self.plan.folders[report.identity]
        self.say_placement(report.note)
        if self.first_start is None and report.started:
            # What the table needs takes seconds to import: now, while the trials train, and not when they are done.
            threading.Thread(target=importlib.import_module, args=["analysis.figures"], daemon=True).start()
        if report.started:
            self.first_start = min(self.first_start or report.started, report.started)
            self.busy.setdefault(folder.identity, {})[report.started] = report.busy_seconds
        if report.state in ("done", "paused"):
            self.reached.add(folder.identity)
        if report.state == "failed":
            self.fail(folder, report.reason)
        elif report.state == "done":
            self.best = max(self.best, (report.metrics["valid_top1"], self.plan.title(folder)))
            self.tracker.trial(folder)
            seconds = report.metrics["train_seconds"]
            self.end(f"{self.plan.title(folder)}: test top-1 {report.metrics['test_top1']:.3f}, {seconds:.1f} s")
        elif report.state in ("paused", "stopped"):
            self.tracker.trial(folder)
        elif report.state == "epoch":
            self.tracker.epochs(folder)
            self.note()

    def fail(self, folder: TrialFolder, reason: str) -> None:
        """A trial that was given up."""
        self.failures[folder.identity] = reason
        try:
            folder.write_failure(reason)
        except OSError as error:
            self.say(f"{folder.path}: {error.strerror}")
        self.tracker.trial(folder)
        self.end(f"{self.plan.title(folder)} failed: {reason}")

    def end(self, line: str) -> None:
        """A trial is done or given up."""
        self.ended += 1
        total = len(self.plan.folders)
        done = self.done + self.ended
        self.console.print(f"[{done:{len(str(total))}}/{total}] {line}", markup=False)
        if self.progress:
            self.progress.update(self.task, completed=done, total=total)
        self.note()
        # Where there is no bar, its news comes as a line now and then.
        if not self.console.is_terminal and self.ended % 10 == 0 and self.ended < self.open:
            self.console.print(f"  {self.news()}", markup=False)

    def clock(self) -> dict[str, float]:
        """What the sweep has cost up to now, seconds; preparing the data set apart.

        The share is slot-time: of the time that the slots were there, how much went into anything but trials.
        """
        wall = time.time() - _STARTED - self.data_seconds
        used = 0.0
        for identity, runs in self.busy.items():
            capacity = self.shares.slots.capacity(self.shares.of(self.plan.folders[identity].config))
            used += sum(runs.values()) / min(capacity, self.open)
        clock = {
            "sweep_seconds": wall,
            "trial_seconds": sum(sum(runs.values()) for runs in self.busy.values()),
            "trials_run": len(self.busy),
            "overhead_share": 1 - used / wall,
        }
        if self.first_start:
            clock["first_trial_after_seconds"] = self.first_start - _STARTED - self.data_seconds
        return clock

    def note(self) -> None:
        """Bring the progress bar's text up to date."""
        if self.progress:
            self.progress.update(self.task, note=self.news())

    def news(self) -> str:
        """Time left and the best so far, by valid: test is not to be chosen by."""
        parts = []
        left = len(self.plan.folders) - self.done - self.ended
        if self.ended and self.first_start and left > 0 and not self.plan.halving:
            each = (time.time() - self.first_start) / self.ended
            parts.append(f"about {duration(each * left)} left")
        if self.best[1]:
            parts.append(f"best on valid {self.best[0]:.3f}: {self.best[1]}")
        return "; ".join(parts) or "training"


if __name__ == "__main__":
    sys.exit(command(app))
