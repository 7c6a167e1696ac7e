"""What a sweep costs beside its trials: `python -m benchmarks sweep`.

Everything is measured through the real command and the real files, in a storage and a cache of their own. Every figure
is the median of repeated runs with the smallest and the largest, beside the target that the project has set itself.
"""

import argparse
import csv
import ctypes
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.data import SAMPLES, describe_machine, seconds
from clar import datasets, space
from clar.building import build
from clar.cli import code_version, configure
from clar.clips import ClipStore, Source
from clar.config import TrialConfig
from clar.result import EpochRecord, TrialFolder, TrialResult

MEGABYTE = 10**6
DATASET = "digits:120"
TINY = {"epochs": 1, "batch_size": 16, "encoder_width": 1, "bins": 8, "projection_hidden": 8, "projection_dim": 8}
"""A trial of nearly no work: a few steps and a probe, some tens of milliseconds."""

STUDY = '''"""Trials of nearly no work."""

TEMPERATURES = {temperatures}
ROWS, COLUMNS = ("temperature", tuple(map(str, TEMPERATURES))), ("seeds", ("all",))


def trials(base):
    return [base.but(temperature=temperature) for temperature in TEMPERATURES]


def cell(trial):
    return str(trial.temperature), "all"
'''


class Row(NamedTuple):
    """One measurement: what, its unit, a value a run, and the target where there is one: at most so much."""

    what: str
    unit: str
    values: list[float]
    target: float | None = None


def main(argv: list[str]) -> int:
    """Measure, print a table, write `--csv`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks sweep", description=__doc__)
    parser.add_argument("--only", choices=list(MEASUREMENTS), action="append", help="one of them; repeatable")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each measurement [%(default)s]")
    parser.add_argument("--csv", type=Path, help="also write the table there")
    options = parser.parse_args(argv)
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    console = Console(highlight=False)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="clar-benchmark-") as folder, own_cache(Path(folder) / "cache"):
        for name in options.only or MEASUREMENTS:
            console.print(f"measuring: {name}", markup=False)
            place = Path(folder) / name
            place.mkdir()
            rows += MEASUREMENTS[name](place, options.repeats)
    machine = describe_machine()
    console.print(machine)
    table = Table("measurement", "median", "min", "max", "unit", "target", title="Sweeps")
    for row in rows:
        numbers = [f"{f(row.values):,.4g}" for f in (statistics.median, min, max)]
        table.add_row(row.what, *numbers, row.unit, _verdict(row))
    console.print(table)
    if options.csv:
        with open(options.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["measurement", "median", "min", "max", "runs", "unit", "target", "machine"])
            for what, unit, values, target in rows:
                figures = [statistics.median(values), min(values), max(values), len(values)]
                writer.writerow([what, *figures, unit, target, machine])
    return 0


def _verdict(row: Row) -> str:
    if row.target is None:
        return ""
    return f"{row.target:g}" + ("" if statistics.median(row.values) <= row.target else ", missed")


@contextmanager
def own_cache(folder: Path) -> Iterator[None]:
    """A cache of its own for this process and the commands that it starts."""
    before = os.environ.get("CLAR_CACHE")
    os.environ["CLAR_CACHE"] = str(folder)
    try:
        yield
    finally:
        del os.environ["CLAR_CACHE"]
        if before is not None:
            os.environ["CLAR_CACHE"] = before


# ---------------------------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------------------------


def memory(folder: Path, repeats: int) -> list[Row]:
    """What a second trial on the machine adds for its data, beside plain `np.load`."""
    megabytes = 600
    store, array = write_data(folder, megabytes)
    shared = [second_trial_memory(store, _read_store) for _ in range(repeats)]
    loaded = [second_trial_memory(array, _read_array) for _ in range(repeats)]
    return [
        Row(f"second trial, memory for {megabytes} MB of data", "MB", shared, 40),
        Row("the same with np.load", "MB", loaded),
    ]


def write_data(folder: Path, megabytes: int) -> tuple[Path, Path]:
    """A store of noise, and its clips as one `.npy` file; where they lie."""
    count = megabytes * MEGABYTE // (2 * SAMPLES)
    noise = np.random.default_rng(0).normal(0, 3000, 2 * SAMPLES).astype(np.int16)
    source = Source(
        name="benchmark",
        classes=["a", "b"],
        sample_rate=16_000,
        samples=SAMPLES,
        files=[f"{i}.wav" for i in range(count)],
        stamps=[""] * count,
        labels=np.arange(count) % 2,
        splits=(np.arange(count) // 2 % 3).astype(np.uint8),
        decode=lambda start, stop: (
            np.stack([np.roll(noise, i)[:SAMPLES] for i in range(start, stop)]),
            [None] * (stop - start),
        ),
    )
    store = build(folder / "store", source)
    np.save(folder / "clips.npy", store.clips)
    return store.path, folder / "clips.npy"


def second_trial_memory(path: Path, read: Callable[[Path], object]) -> float:
    """Megabytes that a second process has for itself after it has read all of the data, while a first one holds them.

    Pages that it shares with others are not counted.

    Args:
        path: of the data.
        read: opens them, reads every clip once, and gives what a trial keeps.
    """
    spawn = multiprocessing.get_context("spawn")
    added = 0.0
    readers = []
    for _ in range(2):
        ours, theirs = spawn.Pipe()
        reader = spawn.Process(target=_reader, args=(path, read, theirs))
        reader.start()
        readers.append((reader, ours))
        added = ours.recv()
    for reader, ours in readers:
        ours.close()
        reader.join()
    return added


def _reader(path: Path, read: Callable[[Path], object], parent: Connection) -> None:
    """One trial's process: reads the data, tells what that added, and holds them until the parent hangs up."""
    import clar.trainer  # noqa: F401 - loaded before the first look, as in a worker

    before = unique_bytes()
    kept = read(path)
    parent.send((unique_bytes() - before) / MEGABYTE)
    parent.poll(None)
    del kept


def _read_store(path: Path) -> object:
    """As a trial does it: batches as float32, every clip of the store."""
    import torch

    from clar.trainer import Clips

    store = ClipStore.open(path)
    clips = Clips(store, torch.device("cpu"))
    for start in range(0, len(store), 256):
        clips(np.arange(start, min(start + 256, len(store))))
    return clips


def _read_array(path: Path) -> object:
    """What one would write first."""
    clips = np.load(path)
    for start in range(0, len(clips), 256):
        clips[start : start + 256].astype(np.float32)
    return clips


def unique_bytes() -> int:
    """Memory that this process uses and shares with no other (USS), by Linux."""
    # glibc keeps what was freed, such as the batches that have gone by: given back, so that only what is used counts.
    ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean:", "Private_Dirty:")))


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------


def overhead(folder: Path, repeats: int) -> list[Row]:
    """200 trials of nearly no work on two cores: what a trial costs beside itself."""
    count, slots = 200, 2
    study = write_study(folder, 10)
    datasets.load(DATASET)
    clocks, trials = [], []
    for run in range(repeats):
        storage = folder / str(run)
        with _cores(slots):
            command(study, storage, "--seeds", str(count // 10), says=f"{count}/{count}")
        (about,) = [json.loads(path.read_text()) for path in storage.glob("sweeps/*/sweep.json")]
        clocks.append(about["clock"])
        results = [json.loads(path.read_text()) for path in storage.glob("trials/*/result.json")]
        trials.append(statistics.median(result["train_seconds"] for result in results))
    # The first trial of a worker also imports the rest of torch, which the command's clock counts as the trial's time.
    strict = [clock["sweep_seconds"] / count - trial / slots for clock, trial in zip(clocks, trials, strict=True)]
    return [
        Row(
            f"{count} trials on {slots} cores: driver, Ray and MLflow, a trial, start-up included", "s",
            [clock["overhead_share"] * clock["sweep_seconds"] / count for clock in clocks], 0.15,
        ),
        Row("the same, with what workers spend on importing torch", "s", strict),
        Row("command to first trial, once", "s", [clock["first_trial_after_seconds"] for clock in clocks]),
        Row("a trial itself", "s", trials),
        Row("the whole sweep", "s", [clock["sweep_seconds"] for clock in clocks]),
    ]  # fmt: skip


@contextmanager
def _cores(count: int) -> Iterator[None]:
    """So many cores, at most, for this process and the commands that it starts."""
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(own)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)


def done(folder: Path, repeats: int) -> list[Row]:
    """A sweep that finds its 49 trials done: until its table stands there."""
    storage = folder / "runs"
    finish(storage, "augmentations", seeds=1)
    show = partial(command, "augmentations", storage, says="49 of them done")
    first = seconds(show)
    again = [seconds(show) for _ in range(repeats)]
    return [
        Row("49 trials done: the table", "s", again, 5),
        Row("the first time, MLflow written from the storage", "s", [first]),
    ]


def dry_run(folder: Path, repeats: int) -> list[Row]:
    """5,000 finished trials in the storage."""
    count, study, storage = 5000, write_study(folder, 50), folder / "runs"
    finish(storage, study, seeds=count // 50)
    show = partial(command, study, storage, "--seeds", str(count // 50), "--dry-run", says=f"{count} of them done")
    return [Row(f"{count:,} trials done: --dry-run", "s", [seconds(show) for _ in range(repeats)], 10)]


def write_study(folder: Path, temperatures: int) -> str:
    """The file of a study with so many cells."""
    path = folder / "study.py"
    path.write_text(STUDY.format(temperatures=[round(0.1 + 0.01 * i, 2) for i in range(temperatures)]))
    return str(path)


def settings() -> list[str]:
    """TINY as the command line has it."""
    return [f"{name}={value}" for name, value in TINY.items()]


def command(study: str, storage: Path, *arguments: str, says: str = "") -> None:
    """Run the sweep's command on the CPU. It must end well and say what it is expected to; else its output is shown."""
    chosen = [part for setting in settings() for part in ("--set", setting)]
    options = ["--dataset", DATASET, "--preset", "demo", "--gpus-per-trial", "0", "--storage", str(storage), *chosen]
    line = [sys.executable, "-m", "clar.sweep", study, "--no-baselines", *options, *arguments]
    finished = subprocess.run(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if finished.returncode or says not in finished.stdout:
        raise SystemExit(f"{' '.join(line)}\n{finished.stdout}\nexit code {finished.returncode}, {says!r} expected")


def finish(storage: Path, name: str, seeds: int) -> None:
    """Write the folders of all trials of a study, as if they had been trained."""
    store = datasets.load(DATASET)
    (study,) = space.load(name).studies
    base = configure(DATASET, "demo", settings(), False, **study.settings)
    version = code_version()
    chance = random.Random(0)
    outcomes = [(config, chance.random()) for config in study.plan(base, seeds)]

    def write(outcome: tuple[TrialConfig, float]) -> None:
        config, accuracy = outcome
        trial = TrialFolder(storage, config, store.fingerprint)
        epochs = (EpochRecord(1, 1 - accuracy, accuracy, 1e-3, 1000.0),)
        trial.begin(version)
        trial.write_epochs(epochs)
        trial.write_result(TrialResult(accuracy, accuracy, accuracy, 0.1, accuracy, None, 1.0, 0.0, epochs))

    # Each file waits for the disk: several at a time.
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(write, outcomes))


MEASUREMENTS: dict[str, Callable[[Path, int], list[Row]]] = {
    "memory": memory, "overhead": overhead, "done": done, "dry_run": dry_run,
}  # fmt: skip
