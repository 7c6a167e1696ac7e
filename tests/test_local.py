"""A node's own copy of a store: made once, whole or not at all, and where it cannot be, the store itself is read."""

import errno
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clar import local
from clar.clips import ClipStore
from clar.errors import UserError
from tests.conftest import tones


@pytest.fixture
def store(tmp_path) -> ClipStore:
    from clar.building import build

    return build(tmp_path / "shared" / "tones", tones())


def test_a_copy_is_the_store_elsewhere(store, tmp_path):
    copy = local.copy(store.path, tmp_path / "node")
    assert copy.path.parent == tmp_path / "node"
    assert copy.fingerprint == store.fingerprint
    assert np.array_equal(copy.clips, store.clips)
    assert copy.files == store.files
    assert not (copy.path / "clips.int16").samefile(store.path / "clips.int16")


def test_without_a_folder_it_is_the_store_itself(store):
    assert local.copy(store.path, None).path == store.path


def test_the_second_trial_copies_nothing(store, tmp_path, monkeypatch):
    first = local.copy(store.path, tmp_path / "node")
    monkeypatch.setattr(local, "_copy", lambda store, target: pytest.fail("copied again"))
    assert local.copy(store.path, tmp_path / "node").path == first.path


def test_a_damaged_copy_is_made_again(store, tmp_path):
    copy = local.copy(store.path, tmp_path / "node")
    os.truncate(copy.path / "clips.int16", 1000)
    assert np.array_equal(local.copy(store.path, tmp_path / "node").clips, store.clips)


def test_what_arrives_wrong_is_not_believed(store, tmp_path, monkeypatch):
    real, spoilt = shutil.copyfile, []

    def spoil(old, new, bar):
        real(old, new)
        if new.name == "clips.int16" and len(spoilt) < times:
            spoilt.append(new)
            with open(new, "r+b") as file:
                file.seek(5000)
                file.write(b"\x11\x22")

    monkeypatch.setattr(local, "_copy_file", spoil)
    times = 1
    assert local.copy(store.path, tmp_path / "once").fingerprint == store.fingerprint
    assert len(spoilt) == 1
    times = 9
    with pytest.raises(UserError, match=r"has the fingerprint \w{16} and not \w{16}, twice"):
        local.copy(store.path, tmp_path / "always")
    assert not [path for path in (tmp_path / "always").iterdir() if path.is_dir()]


def test_a_disk_that_fills_up_meanwhile_leaves_the_store_where_it_is(store, tmp_path, monkeypatch, capsys):
    def full(old, new, bar):
        new.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(local, "_copy_file", full)
    assert local.copy(store.path, tmp_path / "node").path == store.path
    assert "is full: tones is read from" in capsys.readouterr().err
    assert not [path for path in (tmp_path / "node").iterdir() if path.is_dir()]


def test_a_small_disk_leaves_the_store_where_it_is(store, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**8))
    assert local.copy(store.path, tmp_path / "node").path == store.path
    assert f"it is read from {store.path}" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_named(store, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match=r"--data-cache .*node: cannot keep a copy of tones there: Not a dir"):
        local.copy(store.path, tmp_path / "file" / "node")


def _copy(path: Path, folder: Path, log: Path) -> None:
    real = local._copy

    def noted(store: ClipStore, target: Path) -> ClipStore:
        with open(log, "a") as file:
            file.write("copied\n")
        return real(store, target)

    local._copy = noted
    print(local.copy(path, folder).fingerprint)


def test_trials_of_a_node_copy_once(store, tmp_path):
    context = multiprocessing.get_context("spawn")
    arguments = (store.path, tmp_path / "node", tmp_path / "log")
    workers = [context.Process(target=_copy, args=arguments) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert (tmp_path / "log").read_text() == "copied\n"


KILLED = """
import os, signal, sys
from pathlib import Path
from clar import local
real = local._copy_file
def copy_file(old, new, bar):
    if new.name == "labels.npy":
        os.kill(os.getpid(), signal.SIGKILL)
    real(old, new, bar)
local._copy_file = copy_file
local.copy(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_copy_that_was_killed_is_none(store, tmp_path):
    script = [sys.executable, "-c", KILLED, store.path, tmp_path / "node"]
    assert subprocess.run(script, capture_output=True).returncode == -9
    assert not [path for path in (tmp_path / "node").iterdir() if not path.name.startswith(".")]
    assert np.array_equal(local.copy(store.path, tmp_path / "node").clips, store.clips)


def test_free_memory_is_what_the_system_says():
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    free = local.free_memory()
    assert free is not None
    assert 0 <= free <= 1.2 * available
