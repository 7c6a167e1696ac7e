"""Clips per second of the augmentations on one CPU thread, beside what else could do the job, in the same run.

    python -m benchmarks augment [--repeats 5] [--csv FILE]

Ours run on a batch of 256 clips, each with its own parameters. The peers run as their users call them for that: librosa
and NumPy clip by clip, torch-audiomentations on the batch with mode="per_example". All clips are augmented (p = 1), in
the paper's ranges. Measurements go round by round, everything once a round, so that a slow minute of the machine hits
all alike; medians with least and greatest are shown.
"""

import argparse
import platform
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from clar.augment import COLOURS, MixedNoise, compose

BATCH = 256
SAMPLE_RATE = 16_000
SAMPLES = SAMPLE_RATE

_SLOW_PEER_CLIPS = 16
"""Peers that take 5 to 50 ms a clip run on part of the batch: their speed does not depend on it, the waiting does."""


_MEASUREMENT_SECONDS = 0.1
"""Copying a batch takes a millisecond: too short to time once."""


@dataclass(frozen=True)
class _Subject:
    """One thing to time: `call` handles `clips` clips."""

    augmentation: str
    who: str
    call: Callable[[], object]
    clips: int = BATCH


@dataclass(frozen=True)
class _Target:
    """`ours` shall be at least `factor` times as fast as `peer`."""

    augmentation: str
    peer: str
    factor: float


TARGETS = (
    _Target("pitch_shift", "librosa", 2),
    _Target("pitch_shift", "torch-audiomentations", 8),
    _Target("time_stretch", "librosa", 2),
    _Target("fade", "copying the batch", 1 / 5),
    _Target("time_mask", "copying the batch", 1 / 5),
    _Target("time_shift", "copying the batch", 1 / 5),
    _Target("white_noise", "drawing the noise", 1 / 2),
    _Target("mixed_noise", "torch-audiomentations", 3),
    _Target("mixed_noise, pink only", "torch-audiomentations", 3),
)


def _subjects() -> list[_Subject]:
    """Everything to time. Imports the peers.

    Raises:
        ModuleNotFoundError: the `bench` extra is not installed.
    """
    import librosa
    import torch_audiomentations as tam

    generator = torch.Generator().manual_seed(0)
    clips_BT = 0.1 * torch.randn(BATCH, SAMPLES, generator=generator)
    clips_B1T = clips_BT[:, None]
    few_CT = clips_BT[:_SLOW_PEER_CLIPS].numpy()
    rng = np.random.default_rng(0)

    def each(function: Callable[[np.ndarray], np.ndarray], clips: np.ndarray) -> Callable[[], object]:
        return lambda: np.stack([function(clip) for clip in clips])

    def numpy_fade(clip: np.ndarray) -> np.ndarray:
        begin, end = rng.integers(1, SAMPLES // 2 + 1, 2)
        out = clip.copy()
        out[:begin] *= np.linspace(0, 1, begin, dtype=np.float32)
        out[-end:] *= np.linspace(1, 0, end, dtype=np.float32)
        return out

    def numpy_mask(clip: np.ndarray) -> np.ndarray:
        length = rng.integers(1, SAMPLES // 8 + 1)
        start = rng.integers(SAMPLES - length + 1)
        out = clip.copy()
        out[start : start + length] = 0
        return out

    def numpy_white(clip: np.ndarray) -> np.ndarray:
        noise = rng.standard_normal(SAMPLES, dtype=np.float32)
        return clip + noise * np.sqrt(np.mean(clip**2) / np.mean(noise**2) / 10 ** rng.uniform(0, 2))

    def per_example(transform: type, **ranges: float) -> Callable[..., object]:
        return transform(mode="per_example", p=1.0, sample_rate=SAMPLE_RATE, output_type="dict", **ranges)

    tam_pitch = per_example(tam.PitchShift, min_transpose_semitones=-15, max_transpose_semitones=15)
    tam_noise = per_example(tam.AddColoredNoise, min_snr_in_db=0, max_snr_in_db=20, min_f_decay=0, max_f_decay=2)
    tam_pink = per_example(tam.AddColoredNoise, min_snr_in_db=0, max_snr_in_db=20, min_f_decay=1, max_f_decay=1)
    tam_shift = per_example(tam.Shift, min_shift=-0.5, max_shift=0.5)
    pink = MixedNoise(probability=1, colours=("pink",))
    batch = clips_BT.numpy()

    subjects = []
    for name in ("pitch_shift", "time_stretch", "fade", "time_mask", "time_shift", "white_noise", "mixed_noise"):
        augment = compose([name], SAMPLE_RATE, probability=1)
        subjects.append(_Subject(name, "ours", lambda augment=augment: augment(clips_BT, generator)))  # type: ignore[misc]
        if name in ("fade", "time_mask", "time_shift"):
            subjects.append(_Subject(name, "copying the batch", clips_BT.clone))
    draw = lambda: torch.randn(BATCH, SAMPLES, generator=generator)  # noqa: E731
    few_C1T = clips_B1T[:_SLOW_PEER_CLIPS]
    subjects += [
        _Subject(
            "pitch_shift",
            "librosa",
            each(lambda clip: librosa.effects.pitch_shift(clip, sr=SAMPLE_RATE, n_steps=rng.uniform(-15, 15)), few_CT),
            len(few_CT),
        ),
        _Subject(
            "pitch_shift",
            "torch-audiomentations",
            lambda: tam_pitch(few_C1T, sample_rate=SAMPLE_RATE),
            len(few_C1T),
        ),
        _Subject(
            "time_stretch",
            "librosa",
            each(
                lambda clip: librosa.util.fix_length(
                    librosa.effects.time_stretch(clip, rate=rng.uniform(0.5, 1.5)), size=SAMPLES
                ),
                few_CT,
            ),
            len(few_CT),
        ),
        _Subject("fade", "NumPy (linear only)", each(numpy_fade, batch)),
        _Subject("time_mask", "NumPy (zeros only)", each(numpy_mask, batch)),
        _Subject(
            "time_shift",
            "NumPy",
            each(lambda clip: np.roll(clip, rng.integers(-SAMPLES // 2, SAMPLES // 2 + 1)), batch),
        ),
        _Subject("time_shift", "torch-audiomentations", lambda: tam_shift(clips_B1T, sample_rate=SAMPLE_RATE)),
        _Subject("white_noise", "drawing the noise", draw),
        _Subject("white_noise", "NumPy", each(numpy_white, batch)),
        _Subject("mixed_noise", "torch-audiomentations", lambda: tam_noise(clips_B1T, sample_rate=SAMPLE_RATE)),
        _Subject("mixed_noise, pink only", "ours", lambda: pink(clips_BT, generator)),
        _Subject(
            "mixed_noise, pink only", "torch-audiomentations", lambda: tam_pink(clips_B1T, sample_rate=SAMPLE_RATE)
        ),
    ]
    order = [*dict.fromkeys(target.augmentation for target in TARGETS)]
    return sorted(subjects, key=lambda subject: order.index(subject.augmentation))


def _clips_per_second(subject: _Subject) -> float:
    """Speed of one measurement: a call to warm up (plans, tables, caches, pages), then as many as fill a while."""
    begin = time.perf_counter()
    subject.call()
    calls = max(1, round(_MEASUREMENT_SECONDS / (time.perf_counter() - begin)))
    begin = time.perf_counter()
    for _ in range(calls):
        subject.call()
    return calls * subject.clips / (time.perf_counter() - begin)


def run(repeats: int = 5) -> pd.DataFrame:
    """Time everything on one thread.

    Returns:
        One row an augmentation and contender: clips_per_second (median), slowest, fastest, and for a contender with a
        target: ratio (ours / theirs), target, met.

    Raises:
        ModuleNotFoundError: the `bench` extra is not installed.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # torch-audiomentations warns about its own calls into torchaudio and julius at every call.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            subjects = _subjects()
            speeds: list[list[float]] = [[] for _ in subjects]
            for _ in range(repeats):
                for subject, speed in zip(subjects, speeds, strict=True):
                    speed.append(_clips_per_second(subject))
    finally:
        torch.set_num_threads(threads)

    ours = {s.augmentation: median(speed) for s, speed in zip(subjects, speeds, strict=True) if s.who == "ours"}
    factors = {(target.augmentation, target.peer): target.factor for target in TARGETS}
    rows = []
    for subject, speed in zip(subjects, speeds, strict=True):
        ratio = ours[subject.augmentation] / median(speed)
        target = factors.get((subject.augmentation, subject.who))
        rows.append(
            {
                "augmentation": subject.augmentation,
                "who": subject.who,
                "clips_per_second": median(speed),
                "slowest": min(speed),
                "fastest": max(speed),
                "ratio": None if subject.who == "ours" else ratio,
                "target": target,
                "met": None if target is None else ratio >= target,
            }
        )
    return pd.DataFrame(rows)


def _cpu_model() -> str:
    """From Linux's /proc, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def setting(repeats: int) -> str:
    """What the figures depend on: versions, CPU, threads, sizes."""
    packages = ("torch", "numpy", "librosa", "torch-audiomentations")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    return (
        f"{versions}\n{_cpu_model()}, 1 thread; {BATCH} clips of {SAMPLES / SAMPLE_RATE:g} s at {SAMPLE_RATE} Hz, "
        f"colours {', '.join(COLOURS)}; medians of {repeats} rounds (slowest - fastest)"
    )


def show(results: pd.DataFrame, repeats: int, console: Console) -> None:
    """The results as a table."""
    table = Table(title="Augmentations, clips per second", caption=setting(repeats), caption_justify="left")
    for column in ("augmentation", "who"):
        table.add_column(column)
    for column in ("clips/s", "range", "ours is", "target", ""):
        table.add_column(column, justify="right")
    before = None
    for row in results.to_dict("records"):
        if before not in (None, row["augmentation"]):
            table.add_section()
        table.add_row(
            "" if before == row["augmentation"] else str(row["augmentation"]),
            str(row["who"]),
            f"{row['clips_per_second']:,.0f}",
            f"{row['slowest']:,.0f} - {row['fastest']:,.0f}",
            "" if pd.isna(row["ratio"]) else f"{row['ratio']:.2f} x",
            "" if pd.isna(row["target"]) else f">= {row['target']:g} x",
            "" if row["met"] is None or pd.isna(row["met"]) else "pass" if row["met"] else "MISS",
        )
        before = row["augmentation"]
    console.print(table)


def main(argv: list[str]) -> int:
    """`python -m benchmarks augment`; 0 even where a target is missed, 2 where the peers are not installed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks augment", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="rounds to take medians of (default 5)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the figures there too")
    arguments = parser.parse_args(argv)
    if arguments.repeats < 1:
        parser.error(f"--repeats {arguments.repeats}: needs at least 1")
    try:
        results = run(arguments.repeats)
    except ModuleNotFoundError as error:
        print(f"{error.name} is not installed; the peers come with: pip install 'clar[bench]'", file=sys.stderr)
        return 2
    show(results, arguments.repeats, Console())
    if arguments.csv:
        results.to_csv(arguments.csv, index=False)
        print(f"written to {arguments.csv}")
    return 0
