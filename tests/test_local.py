"""A node's own copy of a store: made once, whole or not at all, and where it cannot be, the store itself is read.

And what memory is free.
"""

import dataclasses
import errno
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


def overwrite(copy):
    with open(copy / "clips.int16", "r+b") as file:
        file.seek(5000)
        file.write(b"\x11\x22")


DAMAGES = {
    "truncated": lambda copy: os.truncate(copy / "clips.int16", 1000),
    "of the same length": overwrite,
    "other labels": lambda copy: np.save(copy / "labels.npy", np.load(copy / "labels.npy")[::-1]),
    "without a file": lambda copy: (copy / "splits.npy").unlink(),
    "no JSON": lambda copy: (copy / "meta.json").write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_copy_is_made_again(store, tmp_path, damage):
    copy = local.copy(store.path, tmp_path / "node")
    DAMAGES[damage](copy.path)
    again = local.copy(store.path, tmp_path / "node")
    assert again.path == copy.path
    assert np.array_equal(again.clips, store.clips)
    assert np.array_equal(again.labels, store.labels)


def test_trials_that_read_a_damaged_copy_keep_it_while_it_is_made_again(store, tmp_path):
    """The files are put in place anew, never written over: nobody's memory map changes or ends early."""
    copy = local.copy(store.path, tmp_path / "node")
    overwrite(copy.path)
    before = np.array(copy.clips)
    again = local.copy(store.path, tmp_path / "node")
    assert np.array_equal(copy.clips, before)
    assert not np.array_equal(again.clips, before)


@pytest.mark.parametrize("there", ["truncated copy", "copy of a killed process"])
def test_ruins_do_not_take_the_room_of_a_new_copy(store, tmp_path, monkeypatch, there):
    """On a disk that has room for one copy."""
    copy = local.copy(store.path, tmp_path / "node")
    if there == "truncated copy":
        os.truncate(copy.path / "clips.int16", store.clips.nbytes - 2)
    else:
        copy.path.rename(tmp_path / "node" / f".{copy.path.name}.partial")

    def usage(folder):
        used = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        free = local._SPARE + store.clips.nbytes * 3 // 2 - used
        return shutil._ntuple_diskusage(10**12, used, free)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert local.copy(store.path, tmp_path / "node").path == copy.path


@pytest.fixture
def other(tmp_path, store) -> ClipStore:
    """The clips of `store` under other labels."""
    from clar.building import build

    source = tones()
    labels = source.labels[::-1].copy()
    return build(tmp_path / "shared" / "other", dataclasses.replace(source, name="other", labels=labels))


def test_copies_of_the_same_clips_share_them(store, other, tmp_path):
    """As their stores do: NSynth by family and by pitch is 39 GB of disk and of page cache, and not twice that."""
    first, second = local.copy(store.path, tmp_path / "node"), local.copy(other.path, tmp_path / "node")
    assert (first.path / "clips.int16").samefile(second.path / "clips.int16")
    assert not (first.path / "clips.int16").samefile(store.path / "clips.int16")
    assert np.array_equal(second.labels, other.labels)
    before = [copy.path.stat().st_ino for copy in (first, second)]
    again = [local.copy(one.path, tmp_path / "node") for one in (store, other)]
    assert [copy.path.stat().st_ino for copy in again] == before


def test_copies_share_nothing_where_files_have_one_name(store, other, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    first, second = local.copy(store.path, tmp_path / "node"), local.copy(other.path, tmp_path / "node")
    assert not (first.path / "clips.int16").samefile(second.path / "clips.int16")
    assert np.array_equal(second.clips, other.clips)


@pytest.mark.parametrize("hidden", [False, True])
def test_damaged_clips_are_not_shared(store, other, tmp_path, hidden):
    """Also where a disk has lost a bit, so that the file looks as it did."""
    clips = local.copy(store.path, tmp_path / "node").path / "clips.int16"
    before = clips.stat()
    overwrite(clips.parent)
    if hidden:
        os.utime(clips, ns=(before.st_atime_ns, before.st_mtime_ns))
    copy = local.copy(other.path, tmp_path / "node")
    assert copy.path.parent == tmp_path / "node"
    assert np.array_equal(copy.clips, other.clips)


def test_a_store_in_the_folder_of_copies_is_not_copied(store, tmp_path):
    """`--data-cache` may name the folder of decoded data sets, by whatever path."""
    (tmp_path / "link").symlink_to(store.path.parent)
    for folder in (store.path.parent, tmp_path / "link", tmp_path):
        assert local.copy(store.path, folder).path == store.path
    assert [path.name for path in store.path.parent.iterdir() if path.is_dir()] == [store.path.name]


def test_a_store_that_lies_beside_the_folder_is_copied(store):
    """Paths that begin alike are not one inside the other."""
    folder = store.path.parent.with_name(store.path.parent.name + "_node")
    assert local.copy(store.path, folder).path.parent == folder


def test_a_copy_in_a_folder_that_has_become_read_only_is_used(store, tmp_path, monkeypatch):
    copy = local.copy(store.path, tmp_path / "node")

    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(local, "held", refuse)
    assert local.copy(store.path, tmp_path / "node").path == copy.path
    with pytest.raises(UserError, match=r"--data-cache .*other: cannot keep a copy of tones there: Read-only file"):
        local.copy(store.path, tmp_path / "other")


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


# Slow enough that the others ask for the copy meanwhile.
COPIED = """
import sys, time
from clar import local
real = local._copy
def noted(store, target):
    print("copied")
    time.sleep(1)
    return real(store, target)
local._copy = noted
print(local.copy(*sys.argv[1:]).path)
"""


def test_trials_of_a_node_copy_once(store, tmp_path):
    script = [sys.executable, "-c", COPIED, store.path, tmp_path / "node"]
    trials = [subprocess.Popen(script, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [trial.communicate()[0].splitlines() for trial in trials]
    assert [trial.returncode for trial in trials] == [0, 0, 0]
    assert sorted(lines[0] for lines in said if len(lines) > 1) == ["copied"]
    assert len({lines[-1] for lines in said}) == 1


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


MEMINFO = "MemTotal: 64000000 kB\nMemFree: 1000 kB\nMemAvailable: 50000000 kB\nHugePages_Total: 0\n"
NONE_V1 = 9223372036854771712


def machine(root: Path, cgroup: str | None, groups: dict[str, dict[str, object]]) -> Path:
    """The files of a made-up machine: which groups a process is in, and what the groups say."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(MEMINFO)
    if cgroup is not None:
        (root / "proc/self/cgroup").write_text(cgroup)
    for group, files in groups.items():
        folder = root / "sys/fs/cgroup" / group
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_text(f"{content}\n")
    return root


def v2(most: object, current: int, high: object = "max", stat: str = "") -> dict[str, object]:
    return {"memory.max": most, "memory.high": high, "memory.current": current, "memory.stat": stat}


def v1(most: int, usage: int, stat: str = "") -> dict[str, object]:
    return {"memory.limit_in_bytes": most, "memory.usage_in_bytes": usage, "memory.stat": stat}


JOB = "system.slice/slurmstepd.scope/job_7"
SLURM = f"0::/{JOB}/step_0/user/task_0\n"
PODS = "4:cpu,cpuacct:/kubepods/pod1/c\n3:hugetlb,memory:/kubepods/pod1/c\n1:name=systemd:/kubepods/pod1/c\n0::/\n"
CACHE = "anon 100\nfile 900\nshmem 600\ninactive_file 200\nactive_file 100\nslab_reclaimable 9\n"
CACHE_V1 = "cache 900\ninactive_file 1\nactive_file 1\ntotal_inactive_file 200\ntotal_active_file 100\n"


@pytest.mark.parametrize(
    ("cgroup", "groups", "free"),
    [
        pytest.param(None, {}, 51_200_000_000, id="no groups"),
        pytest.param("0::/\n", {"": {"memory.stat": CACHE}}, 51_200_000_000, id="the root group has no limit"),
        pytest.param("0::/\n", {"": v2(5000, 1000)}, 4000, id="a container in its own namespace"),
        pytest.param(SLURM, {"": v2(9000, 1), JOB: v2(5000, 1000)}, 4000, id="the job above the task"),
        pytest.param(SLURM, {JOB: v2(5000, 1000), f"{JOB}/step_0": v2(3000, 900)}, 2100, id="the step in the job"),
        pytest.param(SLURM, {JOB: v2(5000, 4000), f"{JOB}/step_0": v2(3000, 900)}, 1000, id="steps beside it"),
        pytest.param(SLURM, {JOB: v2("max", 1000)}, 51_200_000_000, id="unlimited"),
        pytest.param(SLURM, {JOB: v2("max", 1000, high=4000)}, 3000, id="slowed down beyond a limit"),
        pytest.param(SLURM, {JOB: v2(5000, 1000, high=4000)}, 3000, id="both limits"),
        pytest.param(SLURM, {JOB: v2(5000, 1000, stat=CACHE)}, 4300, id="pages of files, but not shared memory"),
        pytest.param(SLURM, {JOB: v2(5000, 6000)}, 0, id="above its limit"),
        pytest.param(SLURM, {JOB: {"memory.max": 5000}}, 51_200_000_000, id="half a group"),
        pytest.param(SLURM, {JOB: v2("", 0)}, 51_200_000_000, id="an empty file"),
        pytest.param("0::/../other\n", {"": v2(5000, 1000)}, 4000, id="a group outside the namespace"),
        pytest.param(PODS, {"memory": v1(NONE_V1, 9), "memory/kubepods": v1(7000, 3000)}, 4000, id="v1, a parent"),
        pytest.param(PODS, {"memory": v1(5000, 1000, CACHE_V1)}, 4300, id="v1, a container that sees its own group"),
        pytest.param(PODS, {"memory": v1(NONE_V1, 9)}, 51_200_000_000, id="v1, unlimited"),
        pytest.param(PODS, {"": v2(1, 0), "cpu/kubepods/pod1/c": v1(1, 0)}, 1, id="v2 beside v1"),
    ],
)
def test_free_memory_is_the_least_room_of_all_groups(tmp_path, cgroup, groups, free):
    assert local.free_memory(machine(tmp_path, cgroup, groups)) == free


def test_free_memory_of_a_system_that_does_not_say(tmp_path):
    assert local.free_memory(tmp_path) is None
