"""What the tests share: small data sets, made once a session, and a cache that is not the user's."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clar import building, clips
from clar.clips import ClipStore, Source
from tests.running import Command

TONES = {"low": 300.0, "middle": 700.0, "high": 1500.0, "top": 3100.0}


def pytest_configure() -> None:
    # Two workers' threads on two cores would wait for each other; results do not depend on it.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


LONGEST = (
    "test_faults", "test_clusters", "test_cluster", "test_sweep", "test_storage", "test_tracking_server", "test_ui",
    "test_tracking", "test_trainer",
)  # fmt: skip
"""Files of tests that take minutes. Begun first: else one process has such a file left when the other is at its end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def tones(count: int = 192, samples: int = 4000, seed: int = 0, noise: float = 0.1) -> Source:
    """Four classes of noisy tones at 16 kHz: learnt in a few steps."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % len(TONES)
    hertz = np.array(list(TONES.values()))[labels] * rng.uniform(0.9, 1.1, count)
    place = np.arange(samples) / 16_000
    waves = 0.3 * np.sin(2 * np.pi * hertz[:, None] * place + rng.uniform(0, 6, (count, 1)))
    waves += noise * rng.normal(size=waves.shape)
    content = np.clip(np.round(waves * 32767), -32768, 32767).astype(np.int16)
    return Source(
        name="tones", classes=list(TONES), sample_rate=16_000, samples=samples,
        files=[f"{i}.wav" for i in range(count)], stamps=[str(seed)] * count, labels=labels,
        splits=np.array([0, 0, 0, 1, 2, 0], np.uint8).repeat(len(TONES))[np.arange(count) % (6 * len(TONES))],
        decode=lambda start, stop: (content[start:stop], [None] * (stop - start)), shard=32,
    )  # fmt: skip


@pytest.fixture(scope="session")
def tone_store(tmp_path_factory: pytest.TempPathFactory) -> ClipStore:
    return building.build(tmp_path_factory.mktemp("tones") / "store", tones())


@pytest.fixture(scope="session")
def folded_store(tmp_path_factory: pytest.TempPathFactory) -> ClipStore:
    """The tones in three folds of 96, 48 and 48 clips: tested on these, a trial trains on 48, 96 and 48."""
    source = tones()
    folds = np.array([1, 1, 2, 3], np.uint8).repeat(len(TONES))[np.arange(len(source.files)) % (4 * len(TONES))]
    folded = dataclasses.replace(source, folds=folds, splits=clips.fold_splits(folds, 3))
    return building.build(tmp_path_factory.mktemp("folded") / "store", folded)


@pytest.fixture(scope="session")
def small_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder for tests that run commands; the small `digits` in it is synthesised once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def command(tmp_path: Path, small_cache: Path) -> Command:
    """The commands, in a folder of the test's own with the studies of `tests.running`."""
    return Command(tmp_path, small_cache)


@pytest.fixture
def run_datasets(capsys, monkeypatch):
    """Runs `python -m clar.datasets` with arguments in this process, which saves a second of imports."""

    from clar.cli import command
    from clar.datasets.__main__ import app

    def run_here(*arguments: object) -> subprocess.CompletedProcess:
        monkeypatch.setattr(sys, "argv", ["clar.datasets", *map(str, arguments)])
        capsys.readouterr()
        code = command(app)
        said = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, said.out, said.err)

    return run_here
