"""How long a report takes: `python -m benchmarks report`.

The real command over trials that are written by hand, with an encoder for the map of embeddings, in a storage and a
cache of their own; as a whole process, MLflow included. The first run makes MLflow's database and all pictures and is
shown beside: the targets are for it, too.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.data import describe_machine, seconds
from benchmarks.sweep import own_cache
from clar import datasets, space
from clar.cli import code_version, configure
from clar.config import AUGMENTATIONS
from clar.plan import Plan
from clar.result import EpochRecord, TrialResult

SIZES = {5: 20.0, 102: 60.0}
"""Seeds of the 7 x 7 grid, and the target in seconds."""


def main(argv: list[str]) -> int:
    """Measure and print a table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks report", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each size after the first [%(default)s]")
    options = parser.parse_args(argv)
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    console = Console(highlight=False)
    table = Table("trials", "first run, s", "again, median, s", "min", "max", "target, s", title="Reports")
    with tempfile.TemporaryDirectory(prefix="clar-benchmark-") as folder, own_cache(Path(folder) / "cache"):
        for seeds, target in SIZES.items():
            storage = Path(folder) / str(seeds)
            count = fill(storage, seeds)
            console.print(f"measuring: {count} trials")
            first, *again = (seconds(partial(run, storage)) for _ in range(1 + options.repeats))
            numbers = [f"{f(again):.1f}" for f in (statistics.median, min, max)]
            missed = "" if max(first, statistics.median(again)) <= target else ", missed"
            table.add_row(str(count), f"{first:.1f}", *numbers, f"{target:g}{missed}")
    console.print(describe_machine())
    console.print(table)
    return 0


def run(storage: Path) -> None:
    """One report, as a user asks for it; what was made before stays only where the trials are the same."""
    command = [sys.executable, "-m", "analysis.report", "augmentations", "--storage", str(storage)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "COLUMNS": "120"})


def fill(storage: Path, seeds: int) -> int:
    """The finished augmentation grid with so many seeds; how many trials it has."""
    from clar.trainer import ENCODER, Model, save_encoder

    store = datasets.load("digits")
    sweep = space.load("augmentations")
    bases = {study.name: [configure("digits", "demo", [], False, **study.settings)] for study in sweep.studies}
    storage.mkdir(parents=True)
    plan = Plan(sweep, bases, storage, {"digits": store}, seeds)
    noise = np.random.default_rng(0)
    version = code_version()
    worth = dict(zip(AUGMENTATIONS, noise.normal(0, 0.05, len(AUGMENTATIONS)), strict=True))
    model = Model(next(iter(plan.folders.values())).config, store.sample_rate, len(store.classes))
    for folder in plan.folders.values():
        value = 0.5 + sum(worth[name] for name in folder.config.augmentations) + noise.normal(0, 0.02)
        epochs = tuple(EpochRecord(e, 1.0, value, 0.1, 500.0) for e in range(1, folder.config.epochs + 1))
        folder.begin(version)
        folder.write_epochs(epochs)
        save_encoder(folder.path / ENCODER, model.encoder, folder.config, store)
        folder.write_result(TrialResult(value, value, value, 0.1, value, None, 9.0, 0.0, epochs, 9.0))
    plan.record("done", version, wall_seconds=9.0 * len(plan.folders))
    return len(plan.folders)
