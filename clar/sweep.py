"""The command `python -m clar.sweep`: plan a sweep, run what is not done, print its table.

The driver knows no tensor: workers train, the storage holds what they found, and everything here is read from there.
"""

import importlib
import json
import math
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from clar import datasets, space
from clar.cli import (
    DataRoot,
    Dataset,
    Preset,
    Seeds,
    Setting,
    Storage,
    TrackingURI,
    code_version,
    command,
    configure,
    cpus_here,
    gpus_here,
    storage_path,
)  # fmt: skip
from clar.clips import ClipStore
from clar.config import TrialConfig, parse_settings
from clar.errors import UserError
from clar.files import write_atomically, write_json
from clar.result import TrialFolder, TrialResult
from clar.space import Space
from clar.tracking import Tracker, default_uri

_STARTED = time.time()
_TRACKED = "tracked.json"
_TELL_SECONDS = 15.0

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    name: Annotated[str, typer.Argument(help="A sweep of --list, or a Python file.", show_default=False)] = "",
    dataset: Dataset = "digits",
    preset: Preset = None,
    setting: Setting = None,
    seeds: Seeds = 1,
    storage: Storage = Path("clar_runs"),
    tracking_uri: TrackingURI = None,
    address: Annotated[
        str | None, typer.Option(help="A Ray cluster; default: this machine.", show_default=False)
    ] = None,
    cpus_per_trial: Annotated[
        int | None,
        typer.Option(min=1, help="CPUs, and torch threads, of each trial; default: 1, on a GPU up to 4.",
                     show_default=False),
    ] = None,
    gpus_per_trial: Annotated[
        float | None,
        typer.Option(min=0, help="GPUs of each trial, 0.25 for a quarter; default: 1 if there is one.",
                     show_default=False),
    ] = None,
    data_root: DataRoot = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run; start nothing.")] = False,
    show_list: Annotated[bool, typer.Option("--list", help="Show the sweeps that exist.")] = False,
) -> int:  # fmt: skip
    """Run a sweep, or go on with it: finished trials are not trained again, the others go on where they stopped."""
    console = Console(highlight=False, soft_wrap=True)
    if show_list:
        for known, summary in space.available().items():
            console.print(f"{known:16} {summary}", markup=False)
        return 0
    if not name:
        raise UserError("name a sweep; `python -m clar.sweep --list` shows all")
    chosen = space.load(name)
    here = {"CPU": float(cpus_here()), "GPU": float(gpus_here())}
    with _cluster(address) if address else nullcontext(here) as resources:
        slots = Slots.of(resources, cpus_per_trial, gpus_per_trial)
        base = configure(dataset, preset, setting or [], slots.gpus > 0, **chosen.settings)
        # The sweep is planned before the data are read: a mistake in it should not wait for them.
        configs = chosen.plan(base, seeds, parse_settings(setting or []))
        if dry_run and data_root is None and not datasets.built(base.dataset):
            _show_unprepared(chosen, configs, slots, console)
            return 0
        place = storage_path(storage, make=not dry_run)
        before_data = time.time()
        store = datasets.load(base.dataset, data_root)
        data_seconds = time.time() - before_data
        for config in configs:
            config.check_batch(len(store.split("train")))
        plan = Plan(chosen, base, place, store, [TrialFolder(place, config, store.fingerprint) for config in configs])
        console.print(f"{chosen.name}: {plan.summary()}; {slots}", markup=False)
        if dry_run:
            _show(plan, slots, console)
            return 0
        uri = tracking_uri or default_uri(place)
        tracker = Tracker(uri, chosen.name, place, base, plan.key, code_version(), console.print)
        if not plan.open() and plan.tracked(uri):
            _closing_lines(plan, _report(plan, console), uri, {}, {}, console)
            return 0
        watch: _Watch | None = None
        with tracker:
            if plan.open():
                watch = _Watch(plan, slots, tracker, console, data_seconds)
                with nullcontext() if address else _cluster(None, slots.total_cpus, slots.total_gpus):
                    _run(plan, slots, watch)
            files = _report(plan, console)
            done = [folder for folder, _ in plan.finished()]
            whole = len(done) == len(plan.folders)
            tracker.finish(done, files, files[0].read_text(), watch.clock if watch else dict, whole)
        if whole and tracker.complete:
            plan.set_tracked(uri)
    failures = watch.failures if watch else {}
    _closing_lines(plan, files, uri, watch.clock() if watch else {}, failures, console)
    return 0 if whole else 1


@dataclass(frozen=True)
class Slots:
    """How many trials run at a time, and what each gets."""

    count: int
    cpus: int
    gpus: float
    total_cpus: int
    total_gpus: int

    @classmethod
    def of(cls, resources: dict[str, float], cpus: int | None, gpus: float | None) -> "Slots":
        """As many as the machine or cluster has room for.

        Raises:
            UserError: not one trial fits.
        """
        total_cpus, total_gpus = int(resources["CPU"]), int(resources.get("GPU", 0))
        if gpus is None:
            gpus = 1.0 if total_gpus else 0.0
        if not math.isfinite(gpus) or (gpus > 1 and gpus != int(gpus)):
            raise UserError(f"--gpus-per-trial {gpus:g}: a share of one GPU, or whole GPUs")
        if gpus > total_gpus:
            raise UserError(f"--gpus-per-trial {gpus:g}: there are {total_gpus} GPUs here; ask for fewer")
        by_gpu = (total_gpus // int(gpus) if gpus >= 1 else total_gpus * int(1 / gpus)) if gpus else total_cpus
        if cpus is None:
            cpus = max(1, min(4, total_cpus // by_gpu)) if gpus else 1
        if cpus > total_cpus:
            raise UserError(f"--cpus-per-trial {cpus}: there are {total_cpus} CPUs here; ask for fewer")
        return cls(min(by_gpu, total_cpus // cpus), cpus, gpus, total_cpus, total_gpus)

    def __str__(self) -> str:
        gpu = f" and {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.count} at a time, each {self.cpus} CPU{gpu}"


@dataclass(frozen=True)
class Plan:
    """What a sweep is to train, and what of it is done."""

    space: Space
    base: TrialConfig
    storage: Path
    store: ClipStore
    folders: list[TrialFolder]

    @property
    def key(self) -> str:
        """What this sweep's table and parent run are kept by: more seeds of the same sweep have the same key."""
        return self.base.identity(self.store.fingerprint)

    @property
    def output(self) -> Path:
        """Where its tables and figures go."""
        return self.storage / "sweeps" / f"{self.space.name}-{self.key}"

    def finished(self) -> list[tuple[TrialFolder, TrialResult]]:
        """The trials that are done, with their results."""
        return [(folder, result) for folder in self.folders if (result := folder.result()) is not None]

    def open(self) -> list[TrialFolder]:
        """The trials that are not done."""
        return [folder for folder in self.folders if folder.result() is None]

    def title(self, folder: TrialFolder) -> str:
        """A trial in a few words, with all that it does not share with the others."""
        return folder.config.title(self.base)

    def tracked(self, uri: str) -> bool:
        """Whether all of this sweep has been written to the tracking store at `uri`, and it is still there."""
        path = self.output / _TRACKED
        database = Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
        if not path.exists() or (database and not database.exists()):
            return False
        return json.loads(path.read_text()) == self._tracking(uri)

    def set_tracked(self, uri: str) -> None:
        """Note that all of it has been written there."""
        write_json(self.output / _TRACKED, self._tracking(uri))

    def _tracking(self, uri: str) -> dict[str, Any]:
        return {"uri": uri, "trials": [folder.identity for folder in self.folders]}

    def summary(self) -> str:
        """How many there are and how many of them are done."""
        done = len(self.folders) - len(self.open())
        return f"{len(self.folders)} trials on {self.base.dataset}, {done} of them done"


def _show_unprepared(chosen: Space, configs: list[TrialConfig], slots: Slots, console: Console) -> None:
    """The trials of a sweep whose data are not there yet, so that none can be done."""
    dataset = configs[0].dataset if configs else "nothing"
    console.print(f"{chosen.name}: {len(configs)} trials on {dataset}; {slots}", markup=False)
    for config in configs:
        console.print(f"  to do  {config.title()}", markup=False)
    console.print(f"{dataset} is not prepared on this machine: the first run does that, and nothing is done yet")


def _show(plan: Plan, slots: Slots, console: Console) -> None:
    """The trials, where each stands, and how long the rest would take."""
    for folder in plan.folders:
        epochs = len(folder.epochs())
        state = "done" if folder.result() else f"after epoch {epochs}" if epochs else "to do"
        console.print(f"  {folder.identity}  {state:14} {plan.title(folder)}", markup=False)
    seconds = [result.train_seconds for _, result in plan.finished()]
    waiting = len(plan.open())
    if not waiting:
        console.print("nothing to train")
    elif seconds:
        estimate = waiting * median(seconds) / slots.count
        console.print(f"about {_duration(estimate)} for {waiting} trials, going by {len(seconds)} that are done")
    else:
        console.print(f"{waiting} trials to train; none is done here, so there is nothing to estimate their time from")


@contextmanager
def _cluster(address: str | None, cpus: int = 0, gpus: int = 0) -> Iterator[dict[str, float]]:
    """Ray, imported when it is needed: the other uses of this command are twice as fast without."""
    from clar import trial

    with trial.cluster(address, cpus, gpus) as resources:
        yield resources


def _run(plan: Plan, slots: Slots, watch: "_Watch") -> None:
    """Train what is open."""
    from clar import trial

    folders = plan.open()
    version = code_version()
    jobs = [
        {
            "identity": folder.identity,
            "config": folder.config.model_dump(mode="json"),
            "storage": str(plan.storage),
            "store": str(plan.store.path),
            "device": "cuda" if slots.gpus else "cpu",
            "threads": slots.cpus,
            "code_version": version,
        }
        for folder in folders
    ]
    with watch:
        trial.run_all(jobs, slots.cpus, slots.gpus, watch.report, watch.lost)


@dataclass
class _Watch:
    """Follows a running sweep: progress for the user, news for the tracker, seconds for the clock."""

    plan: Plan
    slots: Slots
    tracker: Tracker
    console: Console
    data_seconds: float
    failures: dict[str, str] = field(default_factory=dict)
    busy: dict[str, float] = field(default_factory=dict)
    told: dict[str, float] = field(default_factory=dict)
    first_start: float | None = None
    ended: int = 0
    open: int = 0
    best: tuple[float, str] = (0.0, "")

    def __enter__(self) -> "_Watch":
        self.folders = {folder.identity: folder for folder in self.plan.folders}
        self.total = len(self.folders)
        self.open = self.total - len(self.plan.finished())
        for folder, result in self.plan.finished():
            self.best = max(self.best, (result.valid_top1, self.plan.title(folder)))
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
            console=self.console, disable=not self.console.is_terminal,
        )  # fmt: skip
        self.progress.start()
        self.task = self.progress.add_task(
            self.plan.space.name, total=self.total, completed=self.total - self.open, note="starting Ray"
        )
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def report(self, report: dict[str, Any]) -> None:
        """One report of one trial, see `clar.trial.Report`."""
        folder = self.folders[report["identity"]]
        if self.first_start is None:
            # What the table needs takes seconds to import: now, while the trials train, and not when they are done.
            threading.Thread(target=importlib.import_module, args=["analysis.figures"], daemon=True).start()
        self.first_start = min(self.first_start or report["started"], report["started"])
        self.busy[folder.identity] = report["busy_seconds"]
        if "failure" in report:
            self.fail(folder, report["failure"])
        elif "final" in report:
            final = report["final"]
            self.best = max(self.best, (final["valid_top1"], self.plan.title(folder)))
            self.tracker.trial(folder)
            self.end(f"{self.plan.title(folder)}: test top-1 {final['test_top1']:.3f}, {final['train_seconds']:.1f} s")
        else:
            # MLflow shows a running trial's epochs too, but a thousand short ones are not worth a write each.
            if time.time() - self.told.get(folder.identity, report["started"]) > _TELL_SECONDS:
                self.told[folder.identity] = time.time()
                self.tracker.trial(folder)
            self.note()

    def lost(self, job: dict[str, Any], reason: str) -> None:
        """A worker that died without a word."""
        self.fail(self.folders[job["identity"]], reason)

    def fail(self, folder: TrialFolder, reason: str) -> None:
        self.failures[folder.identity] = reason
        self.tracker.failed(folder, reason)
        self.end(f"{self.plan.title(folder)} failed: {reason}")

    def end(self, line: str) -> None:
        self.ended += 1
        done = self.total - self.open + self.ended
        self.console.print(f"[{done:{len(str(self.total))}}/{self.total}] {line}", markup=False)
        self.progress.update(self.task, completed=done)
        self.note()
        # Where there is no bar, its news comes as a line now and then.
        if not self.console.is_terminal and self.ended % 10 == 0 and self.ended < self.open:
            self.console.print(f"  {self.news()}", markup=False)

    def clock(self) -> dict[str, float]:
        """What the sweep has cost up to now, seconds; preparing the data set apart.

        The share is slot-time: of the time that the slots were there, how much went into anything but trials.
        """
        wall = time.time() - _STARTED - self.data_seconds
        slot_seconds = min(self.slots.count, self.open) * wall
        clock = {"sweep_seconds": wall, "overhead_share": 1 - sum(self.busy.values()) / slot_seconds}
        if self.first_start:
            clock["first_trial_after_seconds"] = self.first_start - _STARTED - self.data_seconds
        return clock

    def note(self) -> None:
        self.progress.update(self.task, note=self.news())

    def news(self) -> str:
        """Time left and the best so far, by valid: test is not to be chosen by."""
        parts = []
        if self.ended and self.first_start:
            each = (time.time() - self.first_start) / self.ended
            parts.append(f"about {_duration(each * (self.open - self.ended))} left")
        if self.best[1]:
            parts.append(f"best on valid {self.best[0]:.3f}: {self.best[1]}")
        return "; ".join(parts) or "training"


def _report(plan: Plan, console: Console) -> list[Path]:
    """Print the sweep's table and write it, as text and as a picture. The first file is the Markdown table."""
    from analysis import tables

    results = [(folder.config, result) for folder, result in plan.finished()]
    title = f"{plan.space.summary} Test top-1 of the linear probe, %, {plan.base.dataset}."
    table = tables.cells(plan.space, results)
    console.print()
    # Without a terminal there is no width to keep to, and a wrapped number is no number.
    wide = console if console.is_terminal else Console(highlight=False, width=max(120, console.width))
    wide.print(tables.to_rich(plan.space, table, title))
    texts = {
        "table.md": f"{title}\n\n{tables.to_markdown(plan.space, table)}",
        "table.csv": table.to_csv(index=False),
        "table.tex": tables.to_latex(plan.space, table),
    }
    for name, text in texts.items():
        write_atomically(plan.output / name, text)
    from analysis import figures

    pictures = figures.heat_map(tables.grid(plan.space, table), title, plan.output / "heat_map")
    return [*(plan.output / name for name in texts), *pictures]


def _closing_lines(
    plan: Plan, files: list[Path], uri: str, clock: dict[str, float], failures: dict[str, str], console: Console
) -> None:
    """Where everything lies, what it cost, and what went wrong."""
    picture = next(file for file in files if file.suffix == ".png")
    lines = [f"table    {files[0]}", f"picture  {picture}", f"MLflow   {uri}"]
    if clock:
        first = clock.get("first_trial_after_seconds")
        lines.append(
            f"clock    {_duration(clock['sweep_seconds'])}, first trial "
            f"{'never' if first is None else f'after {first:.0f} s'}; Ray, MLflow and driver took "
            f"{100 * clock['overhead_share']:.1f} % of it"
        )
    missing = 0
    for folder in plan.open():
        if folder.identity in failures:
            lines.append(f"failed   {plan.title(folder)}: {failures[folder.identity]}\n         log: {folder.log}")
        else:
            missing += 1
    if missing:
        lines.append(f"missing  {missing} trials left no result in {plan.storage}; workers must see the same folder")
    console.print("\n".join(lines), markup=False)


def _duration(seconds: float) -> str:
    """`45 s`, `4 min 20 s`, `43 min`, `3.4 h`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 10:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


if __name__ == "__main__":
    sys.exit(command(app))
