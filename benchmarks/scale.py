"""What the driver of a large sweep costs, on a simulated cluster: `python -m benchmarks scale`.

Real: the command `python -m clar.sweep` with all that it does, Ray's own processes of every node (which declares its
CPUs and GPUs), every trial's files in the storage, MLflow on SQLite. Simulated: a trial sleeps, and a node's workers
share one process: a process for each of 512 slots would take 30 GB. So it is not measured what
Ray takes to start that many; from then on it has the same calls, streams and reports to carry.

The nodes share this machine's cores with the driver, which on a cluster has the head node to itself.
"""

import argparse
import asyncio
import functools
import itertools
import math
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.data import describe_machine, seconds
from benchmarks.sweep import DATASET, MEGABYTE, finish, own_cache, settings, write_study
from clar import cluster as clusters
from clar import datasets, space, status, sweep, trial
from clar import pool as pools
from clar.cli import command, configure
from clar.clips import ClipStore
from clar.config import TrialConfig
from clar.packing import Share
from clar.plan import Plan
from clar.result import EpochRecord, TrialFolder, TrialResult

EPOCHS = 3
EVENTS = EPOCHS + 3
"""What a worker reports of a trial: that it has it, that it has started, every epoch, the end."""
_SECONDS, _TIMES = "CLAR_SCALE_SECONDS", "CLAR_SCALE_TIMES"
CELLS = 50
SIZES = (5_000, 20_000)
"""Trials of the second measurement."""
_STORE = 80 * 2**20


class Run(NamedTuple):
    """A trial in a slot: which slot, and when it began and ended there, seconds since 1970."""

    slot: str
    began: float
    ended: float


class Sample(NamedTuple):
    """A look at the processes: when, CPU seconds up to then by kind, and the driver's memory in bytes."""

    at: float
    cpu: dict[str, float]
    resident: int
    unique: int


class Figures(NamedTuple):
    """What is measured, in the steady state: from when all slots have had a trial until none waits any more."""

    window: float
    driver_cores: float
    resident: float
    unique: float
    delays: list[float]
    busy: float
    events: float
    ray_cores: dict[str, float]
    first: float
    full: float
    tail: float


def main(argv: list[str]) -> int:
    """Measure and print a table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks scale", description=__doc__)
    parser.add_argument("--only", choices=["cluster", "tables"], help="one of the two measurements")
    parser.add_argument("--nodes", type=int, default=64, help="of the cluster, beside its head [%(default)s]")
    parser.add_argument("--gpus", type=int, default=8, help="of a node, one a trial [%(default)s]")
    parser.add_argument("--trials", type=int, default=5000, help="of the sweep [%(default)s]")
    parser.add_argument("--seconds", type=float, default=50.0, help="that a trial sleeps, +- 20 %% [%(default)s]")
    options = parser.parse_args(argv)
    slots = options.nodes * options.gpus
    if min(slots, options.seconds) <= 0 or options.trials < 3 * slots:
        parser.error("--trials must be at least three a slot, for a steady state to be seen")
    console = Console(highlight=False)
    # Unix sockets allow no long path.
    with tempfile.TemporaryDirectory(prefix="cs-", dir="/tmp") as folder, own_cache(Path(folder) / "cache"):
        place = Path(folder)
        datasets.load(DATASET)
        measured = []
        if options.only != "cluster":
            measured.append(tables(place))
        if options.only != "tables":
            os.environ |= {"RAY_TMPDIR": folder, _SECONDS: str(options.seconds), _TIMES: str(place / "times")}
            began = time.time()
            with cluster(options.nodes, options.gpus) as address:
                up = time.time() - began
                console.print(f"{options.nodes} nodes x {options.gpus} GPUs are up after {up:.0f} s", markup=False)
                figures = measure(place, address, options.trials, slots)
            title = f"{options.trials:,} trials of {options.seconds:g} s in {slots} slots"
            measured.append(table(figures, title))
    console.print(describe_machine())
    console.print(*measured, sep="\n")
    return 0


def tables(place: Path) -> Table:
    """What the driver does on its own with many trials that are done, and a look at them from elsewhere: no cluster."""
    shown = Table("trials", "plan", "results", "sweep.json", "tables", "--status", title="Without a cluster, seconds")
    for count in SIZES:
        shown.add_row(f"{count:,}", *(f"{value:.1f}" for value in alone(place / str(count), count)))
    return shown


def alone(folder: Path, count: int) -> list[float]:
    """Seconds of: planning, reading all results, recording the sweep, writing its tables, `--status`."""
    from analysis import outcome

    folder.mkdir()
    file, storage = write_study(folder, CELLS), folder / "runs"
    finish(storage, file, count // CELLS)
    chosen, store = space.load(file), datasets.load(DATASET)
    (study,) = chosen.studies
    base = configure(DATASET, "demo", settings(), False, **study.settings)
    began = time.perf_counter()
    plan = Plan(chosen, {study.name: [base]}, storage, {DATASET: store}, count // CELLS)
    planned = time.perf_counter() - began
    parts: list[Callable[[], object]] = [
        plan.open, functools.partial(plan.record, "done", ""), functools.partial(outcome.write, plan, live=False),
        lambda: status.read(plan.output, status.listing(storage)),
    ]  # fmt: skip
    return [planned, *map(seconds, parts)]


@contextmanager
def cluster(nodes: int, gpus: int) -> Iterator[str]:
    """A cluster of so many nodes on this machine, reachable from it alone; gives its address."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(16))
    with clusters.on_loopback() as here:
        each = {"node_ip_address": here, "object_store_memory": _STORE}
        started = Cluster(initialize_head=True, head_node_args={**each, "num_cpus": 0, "include_dashboard": False})
        try:
            for _ in range(nodes):
                started.add_node(wait=False, num_cpus=gpus, num_gpus=gpus, **each)
            started.wait_for_nodes()
            yield started.address
        finally:
            # Node after node they are given time to end well, which nobody needs.
            for node in (*started.worker_nodes, started.head_node):
                node.kill_all_processes(check_alive=False, allow_graceful=False)
            ray.shutdown()


def measure(place: Path, address: str, trials: int, slots: int) -> Figures:
    """One sweep on the cluster, watched from outside."""
    cells = math.gcd(trials, CELLS)
    study = write_study(place, cells)
    chosen = [part for setting in [*settings(), f"epochs={EPOCHS}"][1:] for part in ("--set", setting)]
    line = [
        sys.executable, "-m", "benchmarks.scale", study, "--dataset", DATASET, "--preset", "demo", "--seeds",
        str(trials // cells), "--storage", str(place / "runs"), "--address", address, "--no-report",
        "--no-baselines", *chosen,
    ]  # fmt: skip
    began = time.time()
    with open(place / "output.txt", "w") as output:
        driver = subprocess.Popen(line, stdout=output, stderr=subprocess.STDOUT)
    with driver, watched(driver.pid) as samples:
        code = driver.wait()
    ended = time.time()
    if code:
        raise SystemExit(f"{' '.join(line)}\n{(place / 'output.txt').read_text()[-5000:]}\nexit code {code}")
    runs = [Run(slot, float(start), float(end)) for file in (place / "times").iterdir()
            for slot, start, end in (row.split() for row in file.read_text().splitlines())]  # fmt: skip
    if len(runs) != trials:
        raise SystemExit(f"{len(runs):,} trials were run, not {trials:,}")
    return evaluate(runs, samples, began, ended, slots)


def evaluate(runs: list[Run], samples: list[Sample], began: float, ended: float, slots: int) -> Figures:
    """The figures of a sweep, from when trials ran and what processes took.

    Args:
        runs: of all trials.
        samples: in the order of time.
        began: when the command was started.
        ended: when it ended.
        slots: how many there are.
    """
    by_slot: dict[str, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.began):
        by_slot[run.slot].append(run)
    if len(by_slot) != slots:
        raise SystemExit(f"{len(by_slot)} slots had a trial, not {slots}")
    full, empty = max(those[0].began for those in by_slot.values()), max(run.began for run in runs)
    window = empty - full
    delays = [after.began - before.ended for those in by_slot.values() for before, after in itertools.pairwise(those)]
    busy = sum(max(0.0, min(run.ended, empty) - max(run.began, full)) for run in runs)
    within = [sample for sample in samples if full <= sample.at <= empty]
    first, last = within[0], within[-1]
    cores = {kind: (last.cpu[kind] - first.cpu.get(kind, 0.0)) / (last.at - first.at) for kind in last.cpu}
    return Figures(
        window=window,
        driver_cores=cores.pop("driver"),
        resident=max(sample.resident for sample in samples) / MEGABYTE,
        unique=max(sample.unique for sample in samples) / MEGABYTE,
        delays=sorted(delays),
        busy=busy / (slots * window),
        events=EVENTS * sum(full <= run.ended <= empty for run in runs) / window,
        ray_cores=cores,
        first=min(run.began for run in runs) - began,
        full=full - began,
        tail=ended - max(run.ended for run in runs),
    )


def table(figures: Figures, title: str) -> Table:
    """The figures beside the targets that the project has set itself."""
    shown = Table("measurement", "value", "unit", "target", title=title)
    p95 = figures.delays[math.ceil(0.95 * len(figures.delays)) - 1]
    for what, value, unit, target, missed in (
        ("driver, CPU", f"{figures.driver_cores:.2f}", "cores", "1", figures.driver_cores > 1),
        ("driver, memory at most", f"{figures.resident:,.0f}", "MB", "2,000", figures.resident > 2000),
        ("the same without pages that it shares", f"{figures.unique:,.0f}", "MB", "", False),
        ("slots busy", f"{100 * figures.busy:.1f}", "%", "95", figures.busy < 0.95),
        ("slot free to next trial, median", f"{1000 * statistics.median(figures.delays):,.0f}", "ms", "", False),
        ("the same, 95 % of them within", f"{1000 * p95:,.0f}", "ms", "", False),
        ("reports that the driver takes", f"{figures.events:.1f}", "1/s", "", False),
        ("steady state, from all slots up to none waits", f"{figures.window:.0f}", "s", "", False),
        ("command to first trial", f"{figures.first:.1f}", "s", "", False),
        ("command to all slots up", f"{figures.full:.1f}", "s", "", False),
        ("last trial to the end: MLflow, tables", f"{figures.tail:.1f}", "s", "", False),
        *((f"{kind}, CPU", f"{cores:.2f}", "cores", "", False) for kind, cores in sorted(figures.ray_cores.items())),
    ):
        shown.add_row(what, value, unit, target + (", missed" if missed else ""))
    return shown


# ---------------------------------------------------------------------------------------------------------------------
# Looking on from outside
# ---------------------------------------------------------------------------------------------------------------------


@contextmanager
def watched(driver: int) -> Iterator[list[Sample]]:
    """Samples of the driver, and of all processes that this one has started, once a second while the block runs."""
    samples: list[Sample] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(1.0):
            with suppress(OSError):  # the driver has ended
                samples.append(_sample(driver))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def _sample(driver: int) -> Sample:
    cpu: dict[str, float] = defaultdict(float)
    cpu["driver"] = _cpu_seconds(driver)
    for pid in _descendants(os.getpid()) - {driver}:
        with suppress(OSError):
            cpu[_kind(Path(f"/proc/{pid}/cmdline").read_bytes())] += _cpu_seconds(pid)
    resident = int(Path(f"/proc/{driver}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    lines = Path(f"/proc/{driver}/smaps_rollup").read_text().splitlines()
    unique = 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean:", "Private_Dirty:")))
    return Sample(time.time(), dict(cpu), resident, unique)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _kind(line: bytes) -> str:
    if b"Host" in line.split(b"\0")[0]:
        return "Ray: processes of the workers"
    for name, kind in ((b"gcs_server", "Ray: control store"), (b"raylet/raylet", "Ray: raylets")):
        if name in line:
            return kind
    return "Ray: agents"


def _descendants(ancestor: int) -> set[int]:
    parents = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with suppress(OSError):
                parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
    found: set[int] = set()
    for pid in parents:
        line = [pid]
        while line[-1] > 1 and line[-1] != ancestor:
            line.append(parents.get(line[-1], 0))
        if line[-1] == ancestor:
            found.update(line[:-1])
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The driver's process, and the workers
# ---------------------------------------------------------------------------------------------------------------------


class Host:
    """All workers of a node in one process, in one thread; a Ray actor.

    Args:
        number: of the node.
    """

    def __init__(self, number: int) -> None:
        self.number, self.fingerprint = number, ""
        self.times = Path(os.environ[_TIMES]) / str(number)
        self.times.parent.mkdir(exist_ok=True)

    async def stop(self) -> None:
        """Trials that sleep have nothing to write."""

    async def run_in(self, slot: int, job: trial.Job) -> AsyncIterator[trial.Report]:
        """A trial that does nothing, but leaves the files and gives the reports of one that trains."""
        import ray

        began = time.time()
        yield trial.Report(job.identity, "begun", worker=(ray.get_runtime_context().get_node_id(), os.getpid()))
        self.fingerprint = self.fingerprint or ClipStore.open(job.runtime.store).fingerprint
        folder = TrialFolder(job.runtime.storage, TrialConfig(**job.config), self.fingerprint)
        chance = int(job.identity, 16) % 1000 / 1000
        pause = float(os.environ[_SECONDS]) * (0.8 + 0.4 * chance) / EPOCHS
        started = time.time()
        yield trial.Report(job.identity, "started", started=started)
        folder.begin(job.runtime.code_version)
        epochs: list[EpochRecord] = []
        for epoch in range(1, EPOCHS + 1):
            await asyncio.sleep(pause)
            epochs.append(EpochRecord(epoch, 1.0, chance, 0.1, 1000.0))
            folder.write_epochs(epochs)
            spent = time.time() - started
            yield trial.Report(job.identity, "epoch", started, spent, epoch=epoch, valid_top1=chance)
        result = TrialResult(chance, chance, chance, 0.1, chance, None, pause * EPOCHS, pause * EPOCHS, tuple(epochs))
        folder.write_result(result)
        yield trial.Report(job.identity, "done", started, time.time() - started, metrics=result.metrics())
        with open(self.times, "a") as file:
            file.write(f"{self.number}-{slot} {began} {time.time()}\n")


class _Method:
    """A method of a host for one of its slots, called as an actor's is."""

    def __init__(self, method: Any, slot: int) -> None:
        self.method, self.slot = method, slot

    def options(self, **options: Any) -> "_Method":
        return _Method(self.method.options(**options), self.slot)

    def remote(self, *arguments: Any) -> Any:
        return self.method.remote(self.slot, *arguments)


class _Worker:
    """What the pool takes for an actor: a slot of a host."""

    def __init__(self, host: Any, slot: int) -> None:
        self.run, self.stop = _Method(host.run_in, slot), host.stop
        self.__ray_ready__ = host.__ray_ready__


def drive() -> int:
    """The command `clar.sweep`, with workers that sleep; its exit code."""
    import ray

    numbers = itertools.count()
    free: list[_Worker] = []

    def make_worker(self: pools.Pool, share: Share) -> _Worker:
        if not free:
            slots = int(max(node["Resources"].get("GPU", 0) for node in ray.nodes()))
            options = {"num_cpus": slots, "num_gpus": slots, "max_concurrency": slots + 2}
            host: Any = ray.remote(Host).options(**options).remote(next(numbers))
            free.extend(_Worker(host, slot) for slot in range(slots))
        return free.pop()

    pools.Pool.make_worker = make_worker  # type: ignore[method-assign]
    with clusters.on_loopback():
        return command(sweep.app)


if __name__ == "__main__":
    sys.exit(drive())
