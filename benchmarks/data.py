"""How fast clips are decoded, opened and gathered: `python -m benchmarks data`.

Building from 16 kHz WAV stands beside plain soundfile.read in one process per core, resampling beside librosa.load in
one thread, at its own quality (soxr HQ), each in the same run, taken in turns. Files come from the page cache, but for
the batches from a store that is not in memory: its pages are dropped before each batch, or with --large it is larger
than the memory. Every figure is the median of repeated runs with the smallest and the largest.
"""

import argparse
import csv
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from clar.building import build
from clar.clips import ClipStore, Source, cores
from clar.datasets.decode import decode_files, resample

RATE = SAMPLES = 16_000
BATCH = 256
NSYNTH = 305_979
"""Clips of the largest data set."""

Row = tuple[str, str, list[float]]
"""What, its unit, and one value a run."""


def main(argv: list[str]) -> int:
    """Measure, print a table, write `--csv`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks data", description=__doc__)
    parser.add_argument("--clips", type=int, default=20_000, help="files to decode [%(default)s]")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each measurement [%(default)s]")
    parser.add_argument("--large", type=float, default=0, metavar="GB", help="batches from a store of this size")
    parser.add_argument("--csv", type=Path, help="also write the table there")
    options = parser.parse_args(argv)
    if options.clips < 1000 or options.repeats < 1:
        parser.error("--clips must be at least 1000 and --repeats at least 1")
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), options.clips, options.repeats, options.large)
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


def measure(folder: Path, clips: int, repeats: int, large: float) -> list[Row]:
    """All measurements; writes its files under `folder`."""
    store, building = measure_building(folder, clips, repeats)
    return [
        *building,
        *measure_resampling(folder, repeats),
        *measure_opening(folder, store, repeats),
        *measure_batches(store, repeats),
        *measure_cold_batches(folder, repeats, large),
        ("memory that building 1 GB takes", "MB", [memory_of_building(folder)]),
    ]


def measure_building(folder: Path, clips: int, repeats: int) -> tuple[ClipStore, list[Row]]:
    """Clips a second into a store, on all cores, and of a plain loop in a process per core."""
    root = folder / "16000"
    files = write_files(root, clips, RATE)
    plain_loop(root, files)  # into the page cache
    built: list[float] = []
    plain: list[float] = []
    for _ in range(repeats):
        plain.append(clips / plain_seconds(root, files))
        # Gone before the next: a virtual machine that takes ever new memory for the page cache waits for its host.
        shutil.rmtree(folder / "store", ignore_errors=True)
        built.append(clips / seconds(partial(build, folder / "store", source_of(root, files))))
    ratio = [ours / theirs for ours, theirs in zip(built, plain, strict=True)]
    return ClipStore.open(folder / "store"), [
        ("build from 16 kHz WAV", "clips/s", built),
        (f"plain soundfile.read, {cores()} processes", "clips/s", plain),
        ("build / plain read (target 0.8)", "", ratio),
    ]


def measure_resampling(folder: Path, repeats: int) -> list[Row]:
    """Clips of 44.1 kHz a second, in one thread, here and by librosa, and what of 8 kHz and above comes through."""
    import librosa
    import soxr

    root, count = folder / "44100", 500
    files = write_files(root, count, 44_100)
    decode = decode_files(root, files, RATE, SAMPLES)
    decode(0, 10)
    librosa.load(root / files[0], sr=RATE)
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(repeats):
        theirs.append(count / seconds(lambda: [librosa.load(root / file, sr=RATE) for file in files]))
        ours.append(count / seconds(partial(decode, 0, count)))
    ratio = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    quality = [
        (name, [aliasing(one)], [passband_error(one)])
        for name, one in (
            ("ours", lambda sound: resample(sound, 44_100, RATE)),
            ("soxr HQ", lambda sound: soxr.resample(sound, 44_100, RATE, quality="HQ")),
        )
    ]
    return [
        ("decode 44.1 kHz WAV to 16 kHz, one thread", "clips/s", ours),
        ("librosa.load(sr=16000), soxr HQ, one thread", "clips/s", theirs),
        ("ours / librosa (target 3)", "", ratio),
        *((f"loudest alias of a tone above 8 kHz, {name}", "dB", alias) for name, alias, _ in quality),
        *((f"error of a tone below 7.3 kHz, {name}", "dB", error) for name, _, error in quality),
    ]


def aliasing(convert: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> float:
    """The loudest, in dB of the tone, that comes out of tones from the new Nyquist frequency to the old one."""
    tones = [convert(tone(hertz, 44_100)) for hertz in np.linspace(RATE / 2, 22_000, 60)]
    return float(20 * np.log10(max(np.abs(out[1000:-1000]).max() for out in tones)))


def passband_error(convert: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> float:
    """The largest difference, in dB of the tone, between a tone that passes and the same tone made at 16 kHz."""
    errors = [
        np.abs(convert(tone(hertz, 44_100))[:RATE] - tone(hertz, RATE))[1000:-1000].max()
        for hertz in np.linspace(100, 7300, 60)
    ]
    return float(20 * np.log10(max(errors)))


def tone(hertz: float, rate: int) -> NDArray[np.float32]:
    """A second of a sine of amplitude 1."""
    return np.sin(2 * np.pi * hertz * np.arange(rate) / rate).astype(np.float32)


def measure_opening(folder: Path, store: ClipStore, repeats: int) -> list[Row]:
    """Milliseconds until a store is open: a small one, and one of NSynth's size, whose clips are a hole in a file."""
    large = folder / "large"
    large.mkdir()
    labels = np.arange(NSYNTH) % 11
    np.save(large / "labels.npy", labels)
    np.save(large / "splits.npy", (np.arange(NSYNTH) % 3).astype(np.uint8))
    (large / "files.txt").write_text("".join(f"nsynth-train/audio/{i:036d}.wav\n" for i in range(NSYNTH)))
    with open(large / "clips.int16", "wb") as file:
        file.truncate(2 * 64_000 * NSYNTH)
    meta = json.loads((store.path / "meta.json").read_text())
    sizes = {path.name: path.stat().st_size for path in large.iterdir()}
    changes = {"clips": NSYNTH, "samples": 64_000, "classes": list("abcdefghijk"), "bytes": sizes}
    (large / "meta.json").write_text(json.dumps(meta | changes))
    return [
        (
            f"open a store of {len(ClipStore.open(path)):,} clips",
            "ms",
            [1000 * seconds(partial(ClipStore.open, path)) for _ in range(20 * repeats)],
        )
        for path in (store.path, large)
    ]


def measure_batches(store: ClipStore, repeats: int) -> list[Row]:
    """Clips a second in random batches, from the page cache."""
    rng = np.random.default_rng(0)
    batches = [rng.choice(len(store), BATCH, replace=False) for _ in range(100)]
    for batch in batches:
        store.clips[batch]
    values = [BATCH * len(batches) / seconds(lambda: [store.clips[batch] for batch in batches]) for _ in range(repeats)]
    return [(f"random batches of {BATCH} from the page cache", "clips/s", values)]


def measure_cold_batches(folder: Path, repeats: int, large: float) -> list[Row]:
    """Clips of 4 s a second in random batches from a store that is not in memory, by the memory map and read ahead."""
    samples = 64_000
    count = max(8192, round(large * 1e9 / (2 * samples)))
    path = folder / "cold"
    block = np.random.default_rng(0).integers(-3000, 3000, (256, samples)).astype(np.int16)
    source = Source(
        name="cold", classes=["a"], sample_rate=RATE, samples=samples,
        files=[f"{i}.wav" for i in range(count)], stamps=[""] * count, labels=np.zeros(count, np.int64),
        splits=(np.arange(count) % 3).astype(np.uint8),
        decode=lambda start, stop: (block[np.arange(start, stop) % 256], [None] * (stop - start)),
    )  # fmt: skip
    store = build(path, source)
    rng = np.random.default_rng(1)
    mapped: list[float] = []
    ahead: list[float] = []
    with open(path / "clips.int16", "rb") as file:
        for _ in range(4 * repeats):
            for advised, values in ((False, mapped), (True, ahead)):
                batch = rng.choice(count, BATCH, replace=False)
                if not large:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                start = time.perf_counter()
                if advised:
                    store.will_need(batch)
                _ = store.clips[batch]
                values.append(BATCH / (time.perf_counter() - start))
    size = f"{store.clips.nbytes / 1e9:.0f} GB" if large else "not in memory"
    return [
        (f"random batches of {BATCH} x 4 s, store {size}, memory map alone", "clips/s", mapped),
        (f"random batches of {BATCH} x 4 s, store {size}, will_need first", "clips/s", ahead),
    ]


def memory_of_building(folder: Path) -> float:
    """Megabytes by which a process grows that builds a store of 8,000 clips of 4 s from WAV files."""
    root = folder / "long"
    root.mkdir()
    noise = np.random.default_rng(0).normal(0, 3000, 64_000).astype(np.int16)
    soundfile.write(root / "0.wav", noise, RATE, "PCM_16")
    for i in range(1, 8000):
        os.link(root / "0.wav", root / f"{i}.wav")
    script = (
        "import re, sys\nfrom pathlib import Path\nfrom benchmarks.data import source_of\n"
        "from clar.building import build\n"
        # Not getrusage's maximum, which a process takes over from the one that starts it.
        "def most(): return int(re.search(r'VmHWM:\\s*(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "root = Path(sys.argv[1])\nsource = source_of(root, [f'{i}.wav' for i in range(8000)], 64_000)\n"
        "before = most()\nbuild(root.parent / 'long-store', source)\nprint(most() - before)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(root)], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1]) / 1024


def source_of(root: Path, files: Sequence[str], samples: int = SAMPLES) -> Source:
    """What a store of WAV files is built from."""
    count = len(files)
    return Source(
        name="benchmark", classes=["a", "b"], sample_rate=RATE, samples=samples, files=files, stamps=[""] * count,
        labels=np.arange(count) % 2, splits=(np.arange(count) // 2 % 3).astype(np.uint8),
        decode=decode_files(root, files, RATE, samples),
    )  # fmt: skip


def write_files(root: Path, clips: int, rate: int) -> list[str]:
    """`clips` one-second 16-bit WAV files of noise under `root`; their names."""
    root.mkdir()
    noise = np.random.default_rng(0).normal(0, 3000, 2 * rate).astype(np.int16)
    files = [f"{i:06d}.wav" for i in range(clips)]
    for i, file in enumerate(files):
        soundfile.write(root / file, np.roll(noise, i)[:rate], rate, "PCM_16")
    return files


def plain_seconds(root: Path, files: Sequence[str]) -> float:
    """Seconds of `plain_loop` in a process per core; they are there, with soundfile imported, before the clock starts.

    Processes of their own and no pool, whose threads in this process would keep `build` from forking.
    """
    script = (
        "import json, sys\nfrom pathlib import Path\nfrom benchmarks.data import plain_loop\n"
        "root, files = json.loads(sys.stdin.readline())\nplain_loop(Path(root), files[:50])\n"
        "print(flush=True)\nsys.stdin.readline()\nplain_loop(Path(root), files)\nprint(flush=True)"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(cores())
    ]

    def tell(process: subprocess.Popen[str], line: str) -> None:
        assert process.stdin
        process.stdin.write(f"{line}\n")
        process.stdin.flush()

    def wait(process: subprocess.Popen[str]) -> None:
        assert process.stdout
        process.stdout.readline()

    for core, process in enumerate(processes):
        tell(process, json.dumps([str(root), files[core :: cores()]]))
    for process in processes:
        wait(process)
    start = time.perf_counter()
    for process in processes:
        tell(process, "")
    for process in processes:
        wait(process)
    taken = time.perf_counter() - start
    for process in processes:
        process.communicate()
    return taken


def plain_loop(root: Path, files: Sequence[str]) -> None:
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
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "soundfile", "scipy", "librosa", "soxr"))
    return (
        f"{cpu}, {cores()} of {os.cpu_count()} cores, Python {platform.python_version()}, {packages}, "
        f"libsndfile {soundfile.__libsndfile_version__}"
    )
