"""A storage on a disk and one in a bucket of a real S3 server: the same code, the same results."""

import itertools
import json
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import filelock
import pytest

from clar import buckets, files, local, train, trainer
from clar.cli import storage_path
from clar.clips import ClipStore
from clar.config import TrialConfig
from clar.errors import UserError
from clar.result import SweepFolder, TrialFolder
from tests import nodes, s3
from tests.running import TINY, Command, wait_for

SMALL = TrialConfig(
    dataset="tones", epochs=3, batch_size=32, warmup_epochs=0, encoder_width=2, bins=16, projection_hidden=16,
    probe_every=1, optimizer="adamw", learning_rate=1e-3,
)  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[s3.Moody]:
    """An S3 server that can be in several moods."""
    with s3.moto() as url, s3.moody(url) as moody:
        yield moody


@pytest.fixture
def bucket(server: s3.Moody, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place in a new bucket."""
    for name, value in s3.environment(server.url).items():
        monkeypatch.setenv(name, value)
    # Clients keep the address that they were made with.
    buckets._Patient.clear_instance_cache()
    yield files.place(f"s3://{s3.make_bucket(server.url)}/runs")
    server.mood, server.conditions, server.forgetful = "well", True, 0


@pytest.fixture(params=["folder", "bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A storage of each kind."""
    return tmp_path / "runs" if request.param == "folder" else request.getfixturevalue("bucket")


def test_files_are_written_read_moved_and_removed(storage: Path) -> None:
    path = storage / "trials" / "a" / "x.json"
    assert files.read_json(path) == {}
    with pytest.raises(FileNotFoundError):
        files.read_bytes(path)
    files.write_json(path, {"ä": 1})
    files.write_atomically(storage / "trials" / "a" / "b.bin", lambda file: file.write(bytes(3)))
    assert files.read_json(path) == {"ä": 1}
    assert path.exists()
    assert path.is_file()
    assert abs(path.stat().st_mtime - time.time()) < 60
    assert [found.parent.name for found in storage.glob("trials/*/x.json")] == ["a"]
    files.append(storage / "log.txt", "one\n")
    files.append(storage / "log.txt", "twö\n")
    assert files.read_bytes(storage / "log.txt").decode() == "one\ntwö\n"
    with files.on_disk(path) as copy:
        assert json.loads(copy.read_text()) == {"ä": 1}
    files.move(storage / "trials" / "a", storage / "replaced" / "a-1", last="x.json")
    assert not (storage / "trials" / "a").exists()
    assert sorted(found.name for found in (storage / "replaced" / "a-1").iterdir()) == ["b.bin", "x.json"]
    files.remove(storage / "log.txt")
    files.remove(storage / "log.txt")
    assert not (storage / "log.txt").exists()
    assert pickle.loads(pickle.dumps(storage)) == storage
    assert (storage / "a" / "b").relative_to(storage).as_posix() == "a/b"


def test_a_reader_never_sees_half_a_record(storage: Path) -> None:
    path, over = storage / "record", threading.Event()
    contents = [bytes([letter]) * 3_000_000 for letter in b"ab"]
    files.write_atomically(path, contents[0])

    def write() -> None:
        for count in range(20):
            files.write_atomically(path, contents[count % 2])
        over.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not over.is_set():
        content = files.read_bytes(path)
        assert content in contents
        seen.add(content[0])
    writer.join()
    assert seen == set(b"ab")


def test_a_lock_is_one_process_only(storage: Path) -> None:
    path = storage / "locks" / "a.lock"
    with files.lock(path, timeout=0):
        with pytest.raises(filelock.Timeout), files.lock(path, timeout=0):
            pass
        began = time.monotonic()
        with pytest.raises(filelock.Timeout), files.lock(path, timeout=0.7):
            pass
        assert time.monotonic() - began >= 0.7
    with files.lock(path, timeout=0) as again:
        assert again


COUNT = """
import sys
from clar import files

storage = files.place(sys.argv[1])
for _ in range(10):
    with files.lock(storage / "locks" / "count.lock"):
        count = files.read_json(storage / "count.json").get("count", 0)
        files.write_json(storage / "count.json", {"count": count + 1})
"""


@pytest.mark.slow
def test_processes_that_count_together_lose_nothing(storage: Path) -> None:
    counting = [subprocess.Popen([sys.executable, "-c", COUNT, str(storage)]) for _ in range(3)]
    assert [process.wait(120) for process in counting] == [0, 0, 0]
    assert files.read_json(storage / "count.json") == {"count": 30}


@pytest.mark.slow
def test_a_lock_in_a_bucket_outlives_its_holder_by_a_minute_at_most(
    bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "LEASE_SECONDS", 4.0)
    monkeypatch.setattr(buckets, "_RENEW_SECONDS", 0.5)
    path = bucket / "a.lock"
    code = f"from clar import files; import os; files.lock(files.place({str(path)!r})).acquire(); os._exit(0)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert path.exists()
    # It is renewed: nobody takes it from one who lives.
    with files.lock(path, timeout=60), pytest.raises(filelock.Timeout), files.lock(path, timeout=8):
        pass
    assert not path.exists()


def test_a_lock_whose_answer_was_lost_is_held_all_the_same(bucket: Path, server: s3.Moody) -> None:
    server.forgetful = 1
    with files.lock(bucket / "a.lock", timeout=0), pytest.raises(filelock.Timeout):
        files.lock(bucket / "a.lock", timeout=0).acquire()


def test_whoever_lost_a_lock_does_not_free_that_of_another(bucket: Path) -> None:
    path = bucket / "a.lock"
    mine = files.lock(path)
    mine.acquire()
    files.write_atomically(path, "another's")
    mine.release()
    assert files.read_bytes(path) == b"another's"


def test_what_cannot_be_a_storage_is_said_in_a_line(
    bucket: Path, server: s3.Moody, monkeypatch: pytest.MonkeyPatch
) -> None:
    for uri, message in {
        "gs://audio/runs": "gs://: a storage is a folder or s3://BUCKET/PREFIX",
        "s3://audio": "s3://audio: no s3://BUCKET/PREFIX",
        "s3://key:secret@audio/runs": "credentials belong into the environment",
    }.items():
        with pytest.raises(UserError, match=message) as raised:
            files.place(uri)
        assert "secret" not in str(raised.value)
    with pytest.raises(UserError, match="there is no bucket absent; make it first"):
        storage_path(files.place("s3://absent/runs"))
    server.conditions = False
    with pytest.raises(UserError, match=r"writes twice .*If-None-Match"):
        storage_path(bucket)
    server.conditions = True
    assert storage_path(bucket) == bucket
    assert storage_path(bucket, make=False) == bucket
    assert not bucket.exists(), "the check leaves nothing behind"
    for name in s3.CREDENTIALS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    buckets._Patient.clear_instance_cache()
    with pytest.raises(UserError, match="no credentials; give them by AWS_PROFILE"):
        storage_path(files.place(str(bucket)))


def test_a_server_that_is_ill_or_away_for_a_while_is_asked_again(
    bucket: Path, server: s3.Moody, capsys: pytest.CaptureFixture[str]
) -> None:
    for mood in ("ill", "away"):
        server.mood = mood  # type: ignore[assignment]
        threading.Timer(3.0, lambda: setattr(server, "mood", "well")).start()
        files.write_json(bucket / "x.json", {mood: 1})
        assert server.mood == "well"
        assert files.read_json(bucket / "x.json") == {mood: 1}
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 2
        assert "does not answer" in said[0]
        assert said[1].endswith("/runs/x.json answers again")


def test_a_server_that_stays_away_and_one_that_is_full(
    bucket: Path, server: s3.Moody, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets._Patient, "patience", 1.0)
    server.mood = "ill"
    with pytest.raises(OSError, match="no answer") as raised:
        files.write_json(bucket / "x.json", {})
    assert raised.value.filename == f"{bucket}/x.json"
    server.mood = "full"
    with pytest.raises(OSError, match="not now") as raised:
        files.write_json(bucket / "x.json", {})
    assert raised.value.errno == 28


def test_checkpoints_are_written_as_often_as_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pace = files.Pace(0.01, 300.0)
    writes = []
    # Two hours of steps of half a second, with an epoch every 20 s and checkpoints of 2 s.
    for step in range(1, 14_401):
        now += 0.5
        if (step % 40 == 0 and pace.due()) or pace.overdue():
            with pace.writing():
                now += 2.0
            writes.append(now)
    gaps = [after - before for before, after in itertools.pairwise(writes)]
    assert 2.0 * len(writes) / now <= 0.01
    assert max(gaps) <= 300.0
    # So dear that both cannot be had: then no more is lost than may be.
    pace = files.Pace(0.01, 60.0)
    began = now
    writes = []
    while now < began + 3600:
        now += 0.5
        if pace.overdue():
            with pace.writing():
                now += 5.0
            writes.append(now)
    assert max(after - before for before, after in itertools.pairwise(writes)) <= 60.0


def test_a_trial_in_a_bucket_is_the_trial_in_a_folder(
    tone_store: ClipStore, bucket: Path, tmp_path: Path, server: s3.Moody
) -> None:
    """And so is one that is stopped, and goes on from its checkpoint in the bucket."""
    local = TrialFolder(tmp_path, SMALL, tone_store.fingerprint)
    remote = TrialFolder(bucket, SMALL, tone_store.fingerprint)
    expected = train.run(local, tone_store)
    assert expected is not None
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked == 5

    with pytest.raises(trainer.Stopped):
        train.run(remote, tone_store, stop=stop)
    assert remote.result() is None
    assert (remote.path / trainer.CHECKPOINT).exists()
    assert len(remote.epochs()) == 1
    assert train.run(remote, tone_store, until=2) is None
    assert len(remote.epochs()) == 2
    found = train.run(remote, tone_store)
    assert found is not None
    assert found.same_as(expected)
    assert remote.result() == found
    assert not (remote.path / trainer.CHECKPOINT).exists()
    assert remote.last_log_lines(1).endswith("s")
    assert remote.last_log_lines(99).count("epoch ") >= 3
    weights = [trainer.load_encoder(folder.path / trainer.ENCODER).module.state_dict() for folder in (local, remote)]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
    remote.archive()
    assert remote.result() is None
    assert (bucket / "replaced" / f"{remote.identity}-1" / "result.json").exists()
    assert not remote.path.exists()


def test_a_sweep_in_a_bucket_knows_its_drivers(bucket: Path) -> None:
    sweep = SweepFolder(bucket, "study", "0" * 16)
    assert not sweep.drivers_alive()
    with sweep.driver():
        assert sweep.drivers_alive()
        sweep.write({"name": "study"})
    assert not sweep.drivers_alive()
    assert [found.path.name for found in SweepFolder.all(bucket)] == ["study-0000000000000000"]


def test_a_store_in_a_bucket_is_fetched_once_a_node(
    tone_store: ClipStore, bucket: Path, server: s3.Moody, tmp_path: Path
) -> None:
    place = local.publish(tone_store, bucket)
    assert place.parent == bucket / "data"
    asked = len(server.asked)
    assert local.publish(tone_store, bucket) == place
    assert not [path for method, path in server.asked[asked:] if method in ("PUT", "POST")]
    copy = local.copy(place, tmp_path / "node")
    assert copy.path.parent == tmp_path / "node"
    assert copy.fingerprint == tone_store.fingerprint
    assert (copy.clips == tone_store.clips).all()
    asked = len(server.asked)
    assert local.copy(place, tmp_path / "node").path == copy.path
    assert len(server.asked) == asked, "a node that has it asks for nothing"
    # What arrives wrong is not believed, nor what is not there.
    files.write_atomically(place / "clips.int16", bytes(tone_store.clips.nbytes))
    with pytest.raises(UserError, match=r"has the fingerprint \w{16} and not \w{16}, twice"):
        local.copy(place, tmp_path / "other")
    files.write_atomically(place / "labels.npy", b"")
    with pytest.raises(UserError, match="of no store and not"):
        local.copy(place, tmp_path / "other")
    files.remove(place / "meta.json")
    with pytest.raises(UserError, match="there is no clip store at s3://"):
        local.copy(place, tmp_path / "other")
    assert not [path for path in (tmp_path / "other").iterdir() if path.is_dir()]


@pytest.mark.slow
def test_nodes_that_see_nothing_but_the_bucket(
    command: Command, bucket: Path, server: s3.Moody, tmp_path: Path
) -> None:
    """Data, trials and tables go by it: what the driver has on its disk, the workers cannot know."""
    command.sweep("study.py", *TINY)
    expected = command.results()
    own, command.storage = command.environment["CLAR_CACHE"], bucket
    with nodes.running() as cluster:
        cluster.environment["CLAR_CACHE"] = str(tmp_path / "of-workers")
        cluster.start(0)
        cluster.start(2)
        command.environment = {**cluster.environment, "CLAR_CACHE": own, "COLUMNS": "120"}
        output = command.sweep("study.py", *TINY, "--address", cluster.address)
    assert "failed" not in output
    assert list(tmp_path.glob("of-workers/digits-*/clips.int16"))
    found = command.results()
    assert found.keys() == expected.keys()
    assert all(found[identity].same_as(result) for identity, result in expected.items())


@pytest.mark.slow
def test_a_sweep_in_a_bucket_outlives_a_bad_hour_and_ends_as_one_in_a_folder(
    command: Command, bucket: Path, server: s3.Moody, small_cache: Path, tmp_path: Path
) -> None:
    """The server is ill and then away in the middle, and full at the end of another; nothing is lost."""
    long = [argument.replace("epochs=2", "epochs=20") for argument in TINY]
    command.sweep("study.py", *long)
    expected, tables = command.results(), _tables(command.storage)
    command.storage = bucket
    command.environment = s3.environment(server.url) | {
        name: command.environment[name] for name in ("CLAR_CACHE", "COLUMNS")
    }
    process = command.start("clar.sweep", "study.py", *long, "--no-report", "--storage", str(bucket))
    wait_for(lambda: any(True for _ in bucket.glob("trials/*/checkpoint.pt")), process)
    for mood in ("ill", "away"):
        server.mood = mood  # type: ignore[assignment]
        time.sleep(4)
        server.mood = "well"
        time.sleep(1)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    assert "failed" not in output
    found = command.results()
    assert found.keys() == expected.keys()
    assert all(found[identity].same_as(result) for identity, result in expected.items())
    assert _tables(bucket) == tables
    # Again: nothing to train, and now the report; MLflow's database cannot lie in a bucket.
    output = command.sweep("study.py", *long, report=True)
    assert f"report   {bucket}/sweeps/study-" in output
    assert (next(bucket.glob("sweeps/study-*")) / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert f"sqlite:///{small_cache}/mlflow/" in output
    assert "up to date" in command.run("clar.tracking", "sync", "--storage", str(bucket))
    # Full: said in a line, and gone on with when there is room.
    server.mood = "full"
    process = command.start("clar.sweep", "study.py", *long, "--seeds", "2", "--no-report", "--storage", str(bucket))
    output, _ = process.communicate(timeout=900)
    assert process.returncode != 0
    assert "Traceback" not in output
    server.mood = "well"
    command.sweep("study.py", *TINY, "--seeds", "2")
    assert len(command.results()) == 6


def _tables(storage: Path) -> dict[str, bytes]:
    (folder,) = {path.parent for path in storage.glob("sweeps/study-*/table.md")}
    return {path.name: files.read_bytes(path) for path in folder.iterdir() if path.suffix in (".md", ".csv", ".tex")}
