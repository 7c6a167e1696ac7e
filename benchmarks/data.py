"""How fast clips are decoded, opened and gathered: `python -m benchmarks data`.

Beside each decoding rate stands a plain loop over soundfile.read in one process, without checks, in the same run.
Every figure is the median of repeated runs with the smallest and the largest; files come from the page cache.
"""

import argparse
import csv
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import soundfile
from rich.console import Console
from rich.table import Table

from clar.clips import ClipStore, Source, build, cores
from clar.datasets.decode import decode_files

RATE = SAMPLES = 16_000
BATCH = 256


def main(argv: list[str]) -> int:
    """Measure, print a table, write `--csv`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks data", description=__doc__)
    parser.add_argument("--clips", type=int, default=4000, help="files to decode [%(default)s]")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each measurement [%(default)s]")
    parser.add_argument("--csv", type=Path, help="also write the table there")
    options = parser.parse_args(argv)
    if options.clips < 100 or options.repeats < 1:
        parser.error("--clips must be at least 100 and --repeats at least 1")
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), options.clips, options.repeats)
    machine = describe_machine()
    console = Console(highlight=False)
    console.print(machine)
    table = Table("measurement", "median", "min", "max", "unit", title=f"{options.clips:,} clips of 1 s")
    for what, unit, values in rows:
        table.add_row(what, *(f"{f(values):,.4g}" for f in (statistics.median, min, max)), unit)
    console.print(table)
    if options.csv:
        with open(options.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["measurement", "median", "min", "max", "runs", "unit", "machine"])
            for what, unit, values in rows:
                writer.writerow([what, statistics.median(values), min(values), max(values), len(values), unit, machine])
    return 0


def measure(folder: Path, clips: int, repeats: int) -> list[tuple[str, str, list[float]]]:
    """(what, unit, one value a run) of every measurement; writes its files under `folder`."""
    rows: list[tuple[str, str, list[float]]] = []
    for rate, note in ((RATE, "16 kHz WAV"), (44_100, "44.1 kHz WAV, resampled")):
        root = folder / str(rate)
        files = write_files(root, clips, rate)
        decode = decode_files(root, files, RATE, SAMPLES)
        decode(0, 10)  # imports, and the filter where it resamples
        plain_loop(root, files)
        source = Source(
            name="benchmark",
            classes=["a", "b"],
            sample_rate=RATE,
            samples=SAMPLES,
            files=files,
            stamps=[""] * clips,
            labels=np.arange(clips) % 2,
            splits=(np.arange(clips) // 2 % 3).astype(np.uint8),
            decode=decode,
        )
        # Taken in turns, so that a busy moment of the machine meets both.
        built: list[float] = []
        plain: list[float] = []
        for run in range(repeats):
            built.append(clips / seconds(partial(build, folder / f"store-{rate}-{run}", source)))
            plain.append(clips / seconds(partial(plain_loop, root, files)))
        rows.append((f"decode and store, {note}", "clips/s", built))
        rows.append((f"plain soundfile loop, {note.partition(',')[0]}, read only", "clips/s", plain))
    path = folder / f"store-{RATE}-0"
    rows.append(("open the store", "ms", [1000 * seconds(partial(ClipStore.open, path)) for _ in range(20 * repeats)]))
    store = ClipStore.open(path)
    rng = np.random.default_rng(0)
    batches = [rng.choice(clips, BATCH, replace=clips < BATCH) for _ in range(100)]
    gather: list[float] = []
    for _ in range(repeats):
        gather.append(BATCH * len(batches) / seconds(lambda: [store.clips[batch] for batch in batches]))
    rows.append((f"gather random batches of {BATCH}", "clips/s", gather))
    return rows


def write_files(root: Path, clips: int, rate: int) -> list[str]:
    """`clips` one-second 16-bit WAV files of noise under `root`; their names."""
    root.mkdir()
    noise = np.random.default_rng(0).normal(0, 3000, 2 * rate).astype(np.int16)
    files = [f"{i:06d}.wav" for i in range(clips)]
    for i, file in enumerate(files):
        soundfile.write(root / file, np.roll(noise, i)[:rate], rate, "PCM_16")
    return files


def plain_loop(root: Path, files: list[str]) -> None:
    """What one would write first."""
    for file in files:
        soundfile.read(root / file, dtype="int16")


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def describe_machine() -> str:
    """Processor, cores and versions in one line."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "soundfile", "scipy"))
    return (
        f"{cpu}, {cores()} of {os.cpu_count()} cores, Python {platform.python_version()}, {packages}, "
        f"libsndfile {soundfile.__libsndfile_version__}"
    )
