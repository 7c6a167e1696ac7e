"""How the sweeps of a storage stand, seen from any machine that sees it: `python -m clar.sweep NAME --status`.

Reads only what the driver and the trials have written: no Ray, no data set, and nothing is made or changed. What is
written meanwhile is seen or not, and is no error.
"""

import fcntl
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, Literal

from rich.console import Console

from clar.errors import UserError, near
from clar.files import is_folder, read_json
from clar.result import SweepFolder, TrialFolder

State = Literal["done", "running", "waiting", "failed", "cut"]
STATES: tuple[State, ...] = ("done", "running", "waiting", "failed", "cut")

_READERS = 32
"""Files read at a time: of a store far away, each takes tens of milliseconds."""
_SHOWN = 10
_DRIVER = re.compile(r"\.driver-(?P<host>.+)-\d+-[0-9a-f]+\.lock")

Files = dict[str, set[str]]
"""Names of the JSON files of every trial of a storage, by identity."""


@dataclass(frozen=True)
class Trial:
    """A trial as its files show it.

    Attributes:
        identity: of the trial.
        title: in a few words.
        state: `waiting` has not begun, stands at a rung of early stopping, or has no driver any more.
        epoch: the last finished one, of a trial that has begun and is not done.
        epochs: how many it is to have.
        clips_per_second: of that epoch.
        changed: when it last wrote something, seconds since 1970; 0: not known.
        valid_top1: of a trial that is done.
        seconds: what a trial that is done took.
        reason: of a failure.
    """

    identity: str
    title: str
    state: State
    epoch: int = 0
    epochs: int = 0
    clips_per_second: float = 0.0
    changed: float = 0.0
    valid_top1: float = 0.0
    seconds: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class Status:
    """How one sweep stands.

    Attributes:
        folder: of the sweep.
        about: what its `sweep.json` holds.
        hosts: where drivers are at work on it.
        trials: all that are planned up to now.
        changed: when something last happened, seconds since 1970.
    """

    folder: SweepFolder
    about: dict[str, Any]
    hosts: list[str]
    trials: list[Trial]
    changed: float

    @property
    def code(self) -> int:
        """The command's exit code: 0 done or under way, 1 at an end with trials that have no result."""
        return 0 if self.hosts or self.about.get("state") == "done" else 1

    def of(self, state: State) -> list[Trial]:
        """Its trials in a state."""
        return [trial for trial in self.trials if trial.state == state]

    def state(self) -> str:
        """What becomes of it at this moment."""
        if self.hosts:
            return f"running, driven by {', '.join(self.hosts)}"
        said = self.about.get("state")
        goes_on = "the same command goes on with it"
        if said == "running":
            return f"stopped: no driver is at work on it; {goes_on}"
        return {"done": "done", "failed": f"ended, not all trials are done; {goes_on}"}.get(
            str(said), f"{said or 'stopped'}; {goes_on}"
        )

    def time(self) -> str:
        """What a trial takes, and how long the rest will; empty where nothing is under way or known.

        Goes by the trials that are done and the number that run now: breaks between two runs of the command, and how
        many nodes there were before, do not matter.
        """
        done, running = self.of("done"), self.of("running")
        if not done or not running:
            return "none is done here to estimate the time left from" if running else ""
        each = mean(trial.seconds for trial in done)
        recipe = self.about.get("recipe") or {}
        known = not any(recipe.get(way) for way in ("halving", "searches", "precision"))
        begun = sum(trial.epoch / max(1, trial.epochs) for trial in running)
        left = each * (len(self.of("waiting")) + len(running) - begun) / len(running)
        rate = 3600 * len(running) / each if each else 0.0
        speed = sum(trial.clips_per_second for trial in running)
        return (
            f"about {duration(left)} left; " if known else "what is next depends on the results; "
        ) + f"{duration(each)} a trial, {rate:,.0f} trials an hour, {speed:,.0f} clips/s"


def show(name: str, storage: Path, console: Console) -> int:
    """Print how a sweep stands, or without a name in a line each how all of them do; gives the exit code.

    Args:
        name: of a sweep, `NAME-KEY` as its folder is called, or its Python file.
        storage: an absolute path.
        console: to print on.

    Raises:
        UserError: there is no such storage or sweep.
    """
    if not storage.is_dir():
        raise UserError(f"--storage {storage}: no such folder; name the one that the sweep was run with")
    every = [sweep for sweep in SweepFolder.all(storage) if sweep.name != "train"]
    # From elsewhere the file of a user's own study need not be there.
    stem = Path(name).stem if name.endswith(".py") else name
    found = [sweep for sweep in every if stem in ("", sweep.name, sweep.path.name)]
    if name and not found:
        names = dict.fromkeys(sweep.name for sweep in every)
        raise UserError(f"no sweep {name!r} in {storage}{near(stem, names) if names else '; it holds no sweep yet'}")
    if not found:
        console.print(f"no sweeps in {storage}", markup=False)
    files = listing(storage)
    stands = [status for sweep in found if (status := read(sweep, files, whole=bool(name))) is not None]
    for status in sorted(stands, key=lambda status: status.changed):
        for line in _lines(status) if name else [_line(status)]:
            console.print(line, markup=False)
    return max((status.code for status in stands), default=0) if name else 0


def read(sweep: SweepFolder, files: Files, whole: bool = True) -> Status | None:
    """How a sweep stands; None where it has just been deleted.

    Args:
        sweep: the sweep.
        files: of all trials of its storage.
        whole: look into the trials' files too, and not only at which there are.

    Raises:
        UserError: its `sweep.json` is damaged.
    """
    about = sweep.read()
    if about is None:
        return None
    titles, cut, hosts = about.get("titles", {}), set(about.get("cut", ())), _drivers(sweep)
    trials = []
    for identity in about.get("trials", ()):
        state = _state(files.get(identity, set()), identity in cut, bool(hosts))
        trials.append(Trial(identity, titles.get(identity, identity), state))
    if whole:
        rungs = {rung for rungs, _ in (about.get("recipe") or {}).get("halving", {}).values() for rung in rungs}
        with ThreadPoolExecutor(_READERS) as pool:
            trials = list(pool.map(partial(_look, sweep.storage, rungs, bool(hosts)), trials))
    changed = max([_changed(sweep.path / "sweep.json"), *(trial.changed for trial in trials)])
    return Status(sweep, about, hosts, trials, changed)


def listing(storage: Path) -> Files:
    """All in one listing, which an object store gives a thousand at a time; `glob` would ask it for each trial."""
    found: Files = {}
    for path in (storage / "trials").rglob("*.json"):
        found.setdefault(path.parent.name, set()).add(path.name)
    return found


def _drivers(sweep: SweepFolder) -> list[str]:
    """Hosts of the drivers that are alive. Unlike `SweepFolder.drivers_alive` it forgets none, and needs no rights."""
    hosts = set()
    for path in sweep.path.glob(".driver-*.lock"):
        name = _DRIVER.fullmatch(path.name)
        if name and _held(path):
            hosts.add(name["host"])
    return sorted(hosts)


def _held(lock: Path) -> bool:
    """Whether a process holds a lock, see `clar.files.lock`."""
    if not is_folder(lock):
        from clar import buckets

        return time.time() - _changed(lock) < buckets.LEASE_SECONDS
    try:
        with open(lock, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # just removed, or locks are not for this reader
        return lock.exists()
    return False


def _state(names: set[str], cut: bool, live: bool) -> State:
    """Of a trial, by the files that there are."""
    if "result.json" in names:
        return "done"
    if cut:
        return "cut"
    if "failure.json" in names:
        return "failed"
    return "running" if live and "config.json" in names else "waiting"


def _look(storage: Path, rungs: set[int], live: bool, trial: Trial) -> Trial:
    """The same with what its files say; those may have gone, or come, since they were listed."""
    path = storage / "trials" / trial.identity
    if trial.state == "done":
        result = read_json(path / "result.json")
        if result:
            return replace(trial, valid_top1=result["valid_top1"], seconds=result["train_seconds"])
        damaged = f"{path / 'result.json'} is damaged; delete it to train this trial again"
        return replace(trial, state="failed", reason=damaged) if (path / "result.json").exists() else trial
    if trial.state == "failed":
        return replace(trial, reason=str(read_json(path / "failure.json").get("reason", "")))
    if trial.state == "cut":
        return trial
    try:
        folder = TrialFolder.open(storage, trial.identity)
        epochs = folder.epochs()
    except UserError:  # it has not begun, or has been put aside
        return replace(trial, state="waiting")
    begun, changed = _changed(path / "config.json"), _changed(path / "epochs.json")
    # A trial that goes on after a rung says so before it trains.
    at_rung = len(epochs) in rungs and changed > begun
    return replace(
        trial,
        state="running" if live and not at_rung else "waiting",
        epoch=len(epochs),
        epochs=folder.config.stage_epochs,
        clips_per_second=epochs[-1].clips_per_second if epochs else 0.0,
        changed=max(begun, changed),
    )


def _changed(path: Path) -> float:
    """When a file was written, seconds since 1970; 0 where there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _line(status: Status) -> str:
    """A sweep in a line."""
    failed = len(status.of("failed"))
    return (
        f"{status.folder.path.name}  {len(status.of('done')):,} of {len(status.trials):,} trials done"
        f"{f', {failed:,} failed' if failed else ''}; {status.state()}; {_ago(status.changed)}"
    )


def _lines(status: Status) -> Iterator[str]:
    """A sweep in some lines, those that have something to say."""
    yield f"{status.folder.path.name} on {status.about.get('dataset', '?')}: {status.state()}"
    counts = ", ".join(f"{len(those):,} {state}" for state in STATES if (those := status.of(state)))
    yield f"trials   {counts or 'none yet'}, of {len(status.trials):,}; last news {_ago(status.changed)}"
    if time_left := status.time():
        yield f"time     {time_left}"
    if done := status.of("done"):
        best = max(done, key=lambda trial: trial.valid_top1)
        yield f"best     on valid {best.valid_top1:.3f}: {best.title}"
    # The longest silent first: those are in trouble, if any are.
    running = sorted(status.of("running"), key=lambda trial: trial.changed)
    yield from _few(
        "running  ", running, lambda one: f"{one.title}: epoch {one.epoch} of {one.epochs}, {_ago(one.changed)}"
    )
    yield from _few("failed   ", status.of("failed"), lambda one: f"{one.title}: {one.reason}")


def _few(label: str, trials: list[Trial], text: Callable[[Trial], str]) -> Iterator[str]:
    for trial in trials[:_SHOWN]:
        yield label + text(trial)
    if len(trials) > _SHOWN:
        yield f"{label}and {len(trials) - _SHOWN:,} more"


def _ago(moment: float) -> str:
    """How long something is past; clocks of two machines may differ."""
    return f"{duration(max(0.0, time.time() - moment))} ago" if moment else "at no known time"


def duration(seconds: float) -> str:
    """`45 s`, `4 min 20 s`, `43 min`, `3.4 h`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 10:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
