"""What MLflow is told, and that nothing of it is lost or told twice: a real MLflow, on SQLite and as a server.

Trials' folders are made by hand, without training. What a database holds is read with SQL, not through MLflow.
"""

import contextlib
import http.client
import io
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from clar import tracking
from clar.config import TrialConfig
from clar.presets import preset
from clar.result import EpochRecord, SweepFolder, TrialFolder, TrialResult
from clar.tracking import Tracker, default_uri

BASE = TrialConfig(**preset("demo"))
FINAL = {
    "test_top1": 0.5, "test_top5": 0.9, "probe_l2": 0.1, "knn_test_top1": 0.4, "train_seconds": 3.0, "gpu_seconds": 0.0
}  # fmt: skip


def begin(storage: Path, seed: int, epochs: int = 0) -> TrialFolder:
    """A trial that has begun, and finished some epochs; every seed another one."""
    folder = TrialFolder(storage, BASE.but(seed=seed, epochs=8), "fingerprint")
    folder.begin("1.2.3")
    folder.log.write_text(f"log of seed {seed}\n")
    train(folder, epochs)
    return folder


def train(folder: TrialFolder, epochs: int, speed: float = 100.0) -> None:
    folder.write_epochs(
        [EpochRecord(e, 1 / e, 0.1 * e if e % 2 == 0 else None, 0.01, speed + e) for e in range(1, epochs + 1)]
    )


def end(folder: TrialFolder) -> TrialFolder:
    """The trial gets its result."""
    (folder.path / "encoder.safetensors").write_bytes(b"weights")
    train(folder, 8)
    folder.write_result(TrialResult(**FINAL, valid_top1=0.8, head_test_top1=None, epochs=tuple(folder.epochs())))
    return folder


def sweep_of(folders: list[TrialFolder], state: str = "done", name: str = "study", **more: object) -> SweepFolder:
    """The sweep of these trials, as its driver describes it."""
    sweep = SweepFolder(folders[0].storage, name, "key")
    sweep.path.mkdir(parents=True, exist_ok=True)
    (sweep.path / "table.csv").write_text("a,b\n")
    sweep.write(
        {
            "name": name, "key": "key", "dataset": "digits", "base": BASE.model_dump(mode="json"),
            "code_version": "1.2.3", "trials": [folder.identity for folder in folders],
            "titles": {folder.identity: f"seed {folder.config.seed}" for folder in folders}, "state": state,
            "note": "# A table", "files": ["table.csv"], "clock": {"sweep_seconds": 12.5}, **more,
        }
    )  # fmt: skip
    return sweep


class Said(list[str]):
    """What the user was told, but for what depends on the speed of the machine."""

    def __call__(self, line: str) -> None:
        if not line.startswith("waiting for"):
            self.append(line)


def sync(storage: Path, uri: str = "", code: int = 0) -> str:
    """The command, in this process, which has loaded MLflow: what it said."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        assert tracking.sync(storage, uri or None) == code, said.getvalue()
    return said.getvalue()


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "clar.tracking", *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)


class Runs:
    """What a database holds."""

    def __init__(self, database: Path) -> None:
        self.database = database

    def rows(self, query: str, *values: object) -> list[tuple]:
        with contextlib.closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True)) as connection:
            return connection.execute(query, values).fetchall()

    def all(self, deleted: bool = False) -> dict[str, list[str]]:
        """Identity (the key, for a parent) -> statuses of its runs."""
        found: dict[str, list[str]] = {}
        stage = "deleted" if deleted else "active"
        for identity, status in self.rows(
            "select t.value, r.status from runs r join tags t on t.run_uuid = r.run_uuid "
            "where t.key in ('clar.identity', 'clar.parent') and r.lifecycle_stage = ?",
            stage,
        ):
            found.setdefault(identity, []).append(status)
        return found

    def content(self, identity: str) -> dict[str, object]:
        """All that a trial's one run says, without MLflow's own random names."""
        ((run, name, start, stop, status),) = self.rows(
            "select r.run_uuid, r.name, r.start_time, r.end_time, r.status from runs r join tags t "
            "on t.run_uuid = r.run_uuid where t.value = ? and t.key in ('clar.identity', 'clar.parent') "
            "and r.lifecycle_stage = 'active'",
            identity,
        )
        tags = dict(self.rows("select key, value from tags where run_uuid = ?", run))
        tags.pop("mlflow.parentRunId", None)
        return {
            "name": name,
            "times": (start, stop) if "clar.identity" in tags else (),
            "status": status,
            "tags": tags,
            "params": dict(self.rows("select key, value from params where run_uuid = ?", run)),
            "metrics": sorted(self.rows("select key, step, value, timestamp from metrics where run_uuid = ?", run)),
        }

    def everything(self) -> list[list[tuple]]:
        return [self.rows(f"select * from {table}") for table in ("runs", "tags", "params", "metrics", "experiments")]

    def doubled(self) -> list[tuple]:
        """Metrics that a run has twice at one step."""
        return self.rows("select run_uuid, key, step from metrics group by run_uuid, key, step having count(*) > 1")


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Making one takes MLflow seconds: once, to be copied."""
    folder = tmp_path_factory.mktemp("database")
    tracking.connect(f"sqlite:///{folder / 'empty.db'}", folder)
    return folder / "empty.db"


@pytest.fixture
def storage(tmp_path: Path, empty_database: Path) -> Path:
    path = tmp_path / "storage"
    path.mkdir()
    shutil.copy(empty_database, path / "mlflow.db")
    return path


def wait_for(what: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def test_a_sweep_as_mlflow_shows_it(storage: Path) -> None:
    folders = [end(begin(storage, seed)) for seed in range(2)]
    failed = begin(storage, 2, epochs=3)
    failed.write_failure("OutOfMemoryError: too big")
    cut, waiting = begin(storage, 3, epochs=2), TrialFolder(storage, BASE.but(seed=4), "fingerprint")
    sweep = sweep_of([*folders, failed, cut, waiting], cut=[cut.identity])
    said = Said()
    with sweep.driver(), Tracker(default_uri(storage), sweep, said) as tracker:
        for folder in folders:
            tracker.trial(folder)
        tracker.finish()
    assert tracker.complete
    assert said == []
    database = Runs(storage / "mlflow.db")
    assert [name for (name,) in database.rows("select name from experiments")] == ["Default", "clar/study"]
    assert database.all() == {
        "key": ["FINISHED"], folders[0].identity: ["FINISHED"], folders[1].identity: ["FINISHED"],
        failed.identity: ["FAILED"], cut.identity: ["KILLED"],
    }  # fmt: skip
    run = database.content(folders[0].identity)
    assert run["name"] == "seed 0"
    assert set(run["params"]) == set(TrialConfig.model_fields)
    assert run["params"]["augmentations"] == "fade > time_mask"
    expected = {"clar.identity": folders[0].identity, "clar.sweep": "study", "clar.code_version": "1.2.3",
                "clar.dataset_fingerprint": "fingerprint", "clar.state": "done"}  # fmt: skip
    assert expected.items() <= run["tags"].items()
    metrics = {(name, step): value for name, step, value, _ in run["metrics"]}
    assert {step: metrics["train_loss", step] for step in range(1, 9)} == {e: 1 / e for e in range(1, 9)}
    assert {step for name, step in metrics if name == "valid_top1"} == {2, 4, 6, 8}
    assert metrics["clips_per_second", 8] == 108.0
    assert {name: metrics[name, 8] for name in FINAL} == FINAL
    assert len(metrics) == 8 + 4 + 8 + len(FINAL)
    assert database.content(failed.identity)["tags"]["clar.failure"] == "OutOfMemoryError: too big"
    assert database.content(cut.identity)["tags"]["clar.state"] == "cut"
    parent = database.content("key")
    assert parent["name"] == "study on digits"
    assert parent["tags"]["mlflow.note.content"] == "# A table"
    assert [row[:3] for row in parent["metrics"]] == [("sweep_seconds", 0, 12.5)]
    files = sorted(path.name for path in (storage / "mlartifacts").rglob("*") if path.is_file())
    assert files == sorted(["config.json", "log.txt"] * 4 + ["encoder.safetensors"] * 2 + ["sweep.json", "table.csv"])
    assert not any(path.is_symlink() for path in (storage / "mlartifacts").rglob("*"))


def test_sync_writes_what_is_missing_and_twice_adds_nothing(storage: Path) -> None:
    folders = [end(begin(storage, seed)) for seed in range(3)]
    sweep_of([*folders, begin(storage, 3, epochs=5)], state="interrupted")
    sweep_of(folders[:1], name="other")
    output = sync(storage)
    assert output.splitlines() == ["other-key: 2 runs written, 0 up to date", "study-key: 5 runs written, 0 up to date"]
    database = Runs(storage / "mlflow.db")
    before = database.everything()
    output = sync(storage)
    assert output.splitlines() == ["other-key: 0 runs written, 2 up to date", "study-key: 0 runs written, 5 up to date"]
    assert database.everything() == before


def test_a_lost_database_is_rebuilt_as_it_was(storage: Path, tmp_path: Path, empty_database: Path) -> None:
    """All of it, times too: what the storage says, whoever writes it and when."""
    folders = [begin(storage, seed, epochs=1) for seed in range(3)]
    sweep = sweep_of(folders)
    with Tracker(default_uri(storage), sweep, print) as tracker:
        for epochs in (1, 4, 5):
            for folder in folders[:2]:
                train(folder, epochs)
                tracker.trial(folder)
            time.sleep(0.2)
        for folder in folders[:2]:
            end(folder)
            tracker.trial(folder)
        tracker.finish()
    shutil.copy(empty_database, tmp_path / "again.db")
    sync(storage, f"sqlite:///{tmp_path / 'again.db'}")
    live, again = Runs(storage / "mlflow.db"), Runs(tmp_path / "again.db")
    assert len(live.all()) == 4
    for identity in live.all():
        assert live.content(identity) == again.content(identity)


def test_a_trial_trained_anew_has_a_new_run(storage: Path) -> None:
    folder = end(begin(storage, 0))
    sweep_of([folder, other := end(begin(storage, 1))])
    sync(storage)
    folder.archive()
    sweep_of([begin(storage, 0, epochs=2), other], state="interrupted")
    sync(storage)
    database = Runs(storage / "mlflow.db")
    assert database.all() == {"key": ["KILLED"], folder.identity: ["KILLED"], other.identity: ["FINISHED"]}
    assert database.all(deleted=True) == {folder.identity: ["FINISHED"]}
    assert {step for _, step, *_ in database.content(folder.identity)["metrics"]} == {1, 2}


def test_an_epoch_that_was_trained_again_is_written_once(storage: Path) -> None:
    """A trial that goes on from a checkpoint repeats an epoch, at another speed."""
    folder = begin(storage, 0, epochs=3)
    sweep = sweep_of([folder], state="interrupted")
    sync(storage)
    train(folder, 5, speed=900)
    with Tracker(default_uri(storage), sweep, print) as tracker:
        tracker.finish()
    database = Runs(storage / "mlflow.db")
    speeds = [value for name, _, value, _ in database.content(folder.identity)["metrics"] if name == "clips_per_second"]
    assert speeds == [101, 102, 103, 904, 905]
    assert database.doubled() == []


def test_a_damaged_trial_stops_no_other(storage: Path) -> None:
    folders = [end(begin(storage, seed)) for seed in range(4)]
    sweep = sweep_of(folders)
    (folders[0].path / "result.json").write_text("{")
    (folders[1].path / "config.json").write_text("{")
    said = Said()
    with Tracker(default_uri(storage), sweep, said) as tracker:
        for folder in folders:
            tracker.trial(folder)
        tracker.finish()
    assert not tracker.complete
    (line,) = said
    assert "result.json is damaged" in line
    assert f"`python -m clar.tracking sync --storage {storage}` writes what is missing" in line
    assert set(Runs(storage / "mlflow.db").all()) == {"key", folders[2].identity, folders[3].identity}
    assert "config.json is damaged" in sync(storage, code=1)


def test_two_storages_of_one_sweep_have_their_own_runs(storage: Path, tmp_path: Path) -> None:
    for place in (storage, tmp_path / "other"):
        sweep_of([end(begin(place, 0))])
        sync(place, default_uri(storage))
    assert sorted(map(len, Runs(storage / "mlflow.db").all().values())) == [2, 2]
    assert "0 runs written" in sync(storage)


def test_what_the_user_deleted_in_mlflow_is_written_again(storage: Path) -> None:
    from mlflow.tracking import MlflowClient

    folder = end(begin(storage, 0))
    sweep_of([folder])
    sync(storage)
    client = MlflowClient(default_uri(storage))
    experiment = client.get_experiment_by_name("clar/study").experiment_id
    for run in client.search_runs([experiment]):
        client.delete_run(run.info.run_id)
    sync(storage)
    assert Runs(storage / "mlflow.db").all() == {"key": ["FINISHED"], folder.identity: ["FINISHED"]}
    client.delete_experiment(experiment)
    sync(storage)
    assert Runs(storage / "mlflow.db").all() == {"key": ["FINISHED"], folder.identity: ["FINISHED"]}


@pytest.mark.parametrize("lock_held", [False, True])
def test_an_interrupted_sweep_leaves_no_run_running(storage: Path, lock_held: bool) -> None:
    """Neither where the tracker ends after its driver, nor where it ends before, the driver's lock still held."""
    folders = [begin(storage, seed, epochs=1) for seed in range(2)]
    sweep = sweep_of(folders, state="running")
    database = Runs(storage / "mlflow.db")
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        tracker = Tracker(default_uri(storage), sweep, print)
        for context in [sweep.driver(), tracker] if lock_held else [tracker, sweep.driver()]:
            stack.enter_context(context)
        for folder in folders:
            tracker.trial(folder)
        wait_for(lambda: list(database.all().values()) == [["RUNNING"]] * 3)
        end(folders[0])
        raise KeyboardInterrupt
    assert not sweep.drivers_alive()
    assert database.all() == {"key": ["KILLED"], folders[0].identity: ["FINISHED"], folders[1].identity: ["KILLED"]}
    assert database.content(folders[1].identity)["tags"]["clar.state"] == "stopped"


def test_a_sweep_with_nothing_to_tell_leaves_mlflow_alone(tmp_path: Path) -> None:
    sweep = sweep_of([end(begin(tmp_path, 0))])
    began = time.monotonic()
    with Tracker(default_uri(tmp_path), sweep, print):
        pass
    assert time.monotonic() - began < 0.5
    assert not (tmp_path / "mlflow.db").exists()


def test_a_sweep_that_goes_on_is_running_and_keeps_its_note(storage: Path) -> None:
    folder = end(begin(storage, 0))
    sweep_of([folder])
    sync(storage)
    sweep, database = sweep_of([folder], state="running", note="", files=[], clock={}), Runs(storage / "mlflow.db")
    with sweep.driver(), Tracker(default_uri(storage), sweep, print) as tracker:
        tracker.begin()
        wait_for(lambda: database.all()["key"] == ["RUNNING"])
    # It came to nothing, and nobody said that it is finished.
    assert database.all()["key"] == ["KILLED"]
    assert database.content("key")["tags"]["mlflow.note.content"] == "# A table"


_DRIVER = """
import sys, time
from pathlib import Path
from clar.result import SweepFolder, TrialFolder
from clar.tracking import Tracker, default_uri

storage = Path(sys.argv[1])
sweep = SweepFolder(storage, "study", "key")
with sweep.driver(), Tracker(default_uri(storage), sweep, print) as tracker:
    for identity in sweep.read()["trials"]:
        tracker.trial(TrialFolder.open(storage, identity))
    print("driving", flush=True)
    time.sleep(300)
"""


@pytest.mark.slow
def test_runs_left_running_by_a_killed_driver_are_ended_and_resumed(storage: Path) -> None:
    folders = [begin(storage, seed, epochs=2) for seed in range(2)]
    sweep, uri = sweep_of(folders, state="running"), default_uri(storage)
    database = Runs(storage / "mlflow.db")
    running = {"key": ["RUNNING"], folders[0].identity: ["RUNNING"], folders[1].identity: ["RUNNING"]}
    with subprocess.Popen([sys.executable, "-c", _DRIVER, str(storage)], stdout=subprocess.DEVNULL) as driver:
        try:
            wait_for(lambda: database.all() == running)
            # Beside a living driver, nothing is at an end: neither for sync, nor for a driver that is interrupted.
            train(folders[0], 3)
            sync(storage)
            assert database.all() == running
            with contextlib.suppress(KeyboardInterrupt), sweep.driver(), Tracker(uri, sweep, print) as own:
                own.trial(folders[1])
                time.sleep(1)
                raise KeyboardInterrupt
            assert database.all() == running
        finally:
            driver.kill()
    sync(storage)
    killed = {"key": ["KILLED"], folders[0].identity: ["KILLED"], folders[1].identity: ["KILLED"]}
    assert database.all() == killed
    assert database.content(folders[0].identity)["tags"]["clar.state"] == "stopped"
    before = database.everything()
    sync(storage)
    assert database.everything() == before
    with sweep.driver(), Tracker(uri, sweep, print) as tracker:
        for folder in folders:
            train(folder, 4)
            tracker.trial(folder)
        wait_for(lambda: database.all() == running)
        end(folders[0])
        end(folders[1])
        sweep_of(folders)
        tracker.finish()
    assert database.all() == {identity: ["FINISHED"] for identity in killed}
    assert database.doubled() == []


_WRITER = """
import sys, time
from pathlib import Path
from clar.result import SweepFolder, TrialFolder
from clar.tracking import Tracker

storage, uri, number = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
sweep = SweepFolder(storage, "study", "key")
folders = [TrialFolder.open(storage, identity) for identity in sweep.read()["trials"]]
with sweep.driver(), Tracker(uri, sweep, print) as tracker:
    tracker.begin()
    while tracker._progress == 0:
        time.sleep(0.01)
    (storage / f"ready-{number}").touch()
    while not (storage / "go").exists():
        time.sleep(0.001)
    for folder in folders:
        tracker.trial(folder)
    tracker.finish()
assert tracker.complete
"""


@pytest.mark.slow
def test_two_drivers_and_a_sync_at_once_write_everything_once(tmp_path: Path) -> None:
    """They race for the database, the experiment and the parent, then from one moment on for each trial."""
    storage = tmp_path / "storage"
    folders = [end(begin(storage, seed)) for seed in range(20)] + [begin(storage, 20, epochs=3)]
    sweep_of(folders)
    line = [sys.executable, "-c", _WRITER, str(storage), default_uri(storage)]
    drivers = [subprocess.Popen([*line, str(number)], stdout=subprocess.PIPE, text=True) for number in range(2)]
    try:
        wait_for(lambda: len(list(storage.glob("ready-*"))) == 2, 120)
        (storage / "go").touch()
        sync(storage)
        for driver in drivers:
            said = driver.communicate(timeout=900)[0]
            assert "cannot be written" not in said
            assert driver.returncode == 0
    finally:
        for driver in drivers:
            driver.kill()
            driver.wait()
    database = Runs(storage / "mlflow.db")
    assert database.all(deleted=True) == {}
    sync(storage)
    statuses = {folder.identity: ["FINISHED"] for folder in folders}
    assert database.all() == {**statuses, folders[-1].identity: ["KILLED"], "key": ["FINISHED"]}
    assert database.all(deleted=True) == {}
    assert database.doubled() == []


def test_a_dead_server_is_said_once_and_costs_seconds(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_PATIENCE_SECONDS", 2.0)
    folder = end(begin(storage, 0))
    said, uri = Said(), f"http://127.0.0.1:{free_port()}"
    began = time.monotonic()
    with Tracker(uri, sweep_of([folder]), said) as tracker:
        tracker.trial(folder)
        assert time.monotonic() - began < 0.1
        tracker.finish()
    assert time.monotonic() - began < 20
    assert not tracker.complete
    assert said[0] == f"MLflow at {uri} cannot be written; the trials go on"
    assert f"`python -m clar.tracking sync --storage {storage} --tracking-uri {uri}` writes what is missing" in said[1]
    assert len(said) == 2
    done = command("sync", "--storage", str(storage), "--tracking-uri", uri)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: MLflow at {uri} cannot be written (")


class Server:
    """A real `mlflow server` that can be killed and started again, on one database and one port."""

    def __init__(self, folder: Path, database: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.database = folder / "server.db"
        shutil.copy(database, self.database)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        line = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port",
                str(self.port), "--backend-store-uri", f"sqlite:///{self.database}", "--artifacts-destination",
                str(self.folder / "artifacts")]  # fmt: skip
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        # A session of its own, so that its workers can be killed with it.
        self.process = subprocess.Popen(line, env=environment, start_new_session=True, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)  # fmt: skip
        wait_for(self.answers, 120)

    def answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        with contextlib.closing(connection), contextlib.suppress(OSError):
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        return False

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"), empty_database)
    server.start()
    try:
        yield server
    finally:
        server.kill()


class Proxy:
    """Between a tracker and the server: passes requests on, late, not at all, or without their answer."""

    def __init__(self, port: int) -> None:
        proxy = self
        self.failing = False
        self.seconds = 0.0
        self.lost_share = 0.0
        self.requests = 0
        chance = random.Random(0)

        class Handler(BaseHTTPRequestHandler):
            def pass_on(self) -> None:
                proxy.requests += 1
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if proxy.failing:
                    return self.answer(500, b"out of order")
                time.sleep(proxy.seconds)
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                with contextlib.closing(connection):
                    connection.request(self.command, self.path, body, {"Content-Type": "application/json"})
                    answer = connection.getresponse()
                    content = answer.read()
                if chance.random() < proxy.lost_share:
                    return self.answer(502, b"lost")
                return self.answer(answer.status, content)

            def answer(self, status: int, content: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *values: object) -> None:
                pass

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = pass_on

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self.http.server_address[1]}"


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    proxy = Proxy(server.port)
    thread = threading.Thread(target=proxy.http.serve_forever, daemon=True)
    thread.start()
    yield proxy
    proxy.http.shutdown()
    thread.join()
    proxy.http.server_close()


def finished(server: Server, folders: list[TrialFolder]) -> bool:
    """Whether each of these trials has one whole run, and none a second one."""
    there = Runs(server.database).all()
    return all(there.get(folder.identity) == ["FINISHED"] for folder in folders)


@pytest.mark.slow
def test_a_server_that_dies_and_comes_back(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL while a tracker writes; what is missing is written when it is back, before the sweep ends."""
    monkeypatch.setattr(tracking, "_RETRY_SECONDS", 1.0)
    folders = [end(begin(tmp_path, 100 + seed)) for seed in range(12)]
    said, uri = Said(), f"http://127.0.0.1:{server.port}"
    with Tracker(uri, sweep_of(folders, name="killed"), said) as tracker:
        for folder in folders[:8]:
            tracker.trial(folder)
        wait_for(lambda: finished(server, folders[:2]))
        server.kill()
        assert not finished(server, folders[:8])
        for folder in folders[8:]:
            tracker.trial(folder)
        wait_for(lambda: said == [f"MLflow at {uri} cannot be written; the trials go on"])
        server.start()
        wait_for(lambda: len(said) == 2)
        assert finished(server, folders)
        tracker.finish()
    assert tracker.complete
    assert said[1:] == [f"MLflow at {uri} is back, and what it missed is written"]
    assert Runs(server.database).doubled() == []
    assert sync(tmp_path, uri) == "killed-key: 0 runs written, 13 up to date\n"


@pytest.mark.slow
def test_a_server_that_answers_errors_for_a_while(
    proxy: Proxy, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_RETRY_SECONDS", 0.5)
    folders = [end(begin(tmp_path, 200 + seed)) for seed in range(4)]
    said = Said()
    proxy.failing = True
    with Tracker(proxy.uri, sweep_of(folders, name="errors"), said) as tracker:
        for folder in folders:
            tracker.trial(folder)
        wait_for(lambda: said)
        wait_for(lambda: proxy.requests > 8)
        proxy.failing = False
        wait_for(lambda: len(said) == 2)
        assert finished(server, folders)
        # Once more: that much was said before.
        proxy.failing = True
        tracker.trial(end(begin(tmp_path, 210)))
        wait_for(lambda: tracker._away_since is not None)
        proxy.failing = False
        tracker.finish()
    assert tracker.complete
    assert [line.rpartition(proxy.uri)[2] for line in said] == [
        " cannot be written; the trials go on", " is back, and what it missed is written"
    ]  # fmt: skip


@pytest.mark.slow
def test_a_slow_server_holds_up_nobody(proxy: Proxy, server: Server, tmp_path: Path) -> None:
    proxy.seconds = 0.5
    folders = [begin(tmp_path, 300 + seed) for seed in range(2)]
    said = Said()
    with Tracker(proxy.uri, sweep_of(folders, name="slow"), said) as tracker:
        took = 0.0
        for epochs in range(8):
            for folder in folders:
                train(folder, epochs)
                began = time.monotonic()
                tracker.trial(folder)
                took = max(took, time.monotonic() - began)
            time.sleep(0.1)
        for folder in folders:
            tracker.trial(end(folder))
        tracker.finish()
    assert took < 0.1
    assert tracker.complete
    assert finished(server, folders)
    assert said == []
    # News is coalesced: far fewer requests than 16 pieces of it would make.
    assert proxy.requests < 45


@pytest.mark.slow
def test_epochs_of_a_running_trial_cost_one_request(
    proxy: Proxy, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are. Where the trial was trained again, or its run was deleted, the tracker looks anew."""
    monkeypatch.setattr(tracking, "_LIVE_SECONDS", 0.0)
    monkeypatch.setattr(tracking, "_LIVE_SHARE", 1.0)
    folder = begin(tmp_path, 500, epochs=1)
    database, client = Runs(server.database), tracking.connect(f"http://127.0.0.1:{server.port}", tmp_path)
    said = Said()

    def speeds() -> list[float]:
        metrics = database.content(folder.identity)["metrics"] if folder.identity in database.all() else []
        return [value for name, _, value, _ in metrics if name == "clips_per_second"]

    def write(epochs: int, speed: float = 100.0) -> int:
        """Train to so many epochs and have them written: the requests that took."""
        before = proxy.requests
        train(folder, epochs, speed)
        tracker.epochs(folder)
        wait_for(lambda: len(speeds()) == epochs)
        return proxy.requests - before

    with Tracker(proxy.uri, sweep_of([folder], name="live"), said) as tracker:
        write(1)
        assert [write(epochs) for epochs in (2, 4, 5)] == [1, 1, 1]
        # Killed, and trained again from its fifth epoch: what was known of the run does not count any more.
        folder.begin("1.2.3")
        assert write(6, speed=900) > 1
        assert write(7, speed=900) == 1
        assert speeds() == [101, 102, 103, 104, 105, 906, 907]
        experiment = client.get_experiment_by_name("clar/live").experiment_id
        (run,) = client.search_runs([experiment], f"tags.`clar.identity` = '{folder.identity}'")
        client.delete_run(run.info.run_id)
        write(8)
        tracker.trial(end(folder))
        tracker.finish()
    assert tracker.complete
    assert said == []
    assert finished(server, [folder])
    assert database.doubled() == []


@pytest.mark.slow
def test_results_overtake_epochs_and_epochs_keep_to_their_share(
    proxy: Proxy, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a share so small that after one write none would come for hours: results and the end come at once."""
    monkeypatch.setattr(tracking, "_LIVE_SECONDS", 0.0)
    monkeypatch.setattr(tracking, "_LIVE_SHARE", 1e-5)
    folders = [begin(tmp_path, 600 + seed, epochs=2) for seed in range(6)]
    there = Runs(server.database).all
    with Tracker(proxy.uri, sweep_of(folders, name="share"), print) as tracker:
        for folder in folders[:5]:
            tracker.epochs(folder)
        wait_for(lambda: folders[0].identity in there())
        tracker.trial(end(folders[5]))
        tracker.trial(end(folders[4]))
        wait_for(lambda: finished(server, folders[4:]))
        assert not set(there()) & {folder.identity for folder in folders[1:4]}
        tracker.finish()
    assert tracker.complete
    assert {folder.identity for folder in folders} <= set(there())


@pytest.mark.parametrize(
    ("uri", "as_shown"),
    [
        ("https://ada:geheim@mlflow.example:5000/x", "https://***@mlflow.example:5000/x"),
        ("https://geheim@mlflow.example", "https://***@mlflow.example"),
        ("https://ada:ge/he@im@mlflow.example", "https://***@mlflow.example"),
        ("postgresql+psycopg2://ada:geheim@/db?host=/run", "postgresql+psycopg2://***@/db?host=/run"),
        ("postgresql://host/db?user=ada&password=geheim&x=1", "postgresql://host/db?user=ada&password=***&x=1"),
        ("sqlite:////home/ada@work/mlflow.db", "sqlite:////home/ada@work/mlflow.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("databricks", "databricks"),
    ],
)
def test_a_uri_is_shown_without_its_secrets(uri: str, as_shown: str) -> None:
    assert tracking.shown(uri) == as_shown
    assert tracking.one_line(ValueError(f"no answer at\n{uri}, twice")) == f"ValueError: no answer at {as_shown}, twice"


def test_a_password_in_the_uri_is_said_nowhere(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_PATIENCE_SECONDS", 0.0)
    folder, port = end(begin(storage, 0)), free_port()
    said, uri = Said(), f"http://ada:geheim@127.0.0.1:{port}"
    with Tracker(uri, sweep_of([folder]), said) as tracker:
        tracker.trial(folder)
        tracker.finish()
    assert len(said) == 2
    assert f"--tracking-uri http://***@127.0.0.1:{port}" in said[1]
    said.append(sync(storage, uri, code=1))
    assert "geheim" not in "".join(said)
    assert not [path for path in storage.rglob("*") if path.is_file() and b"geheim" in path.read_bytes()]


@pytest.mark.slow
def test_answers_that_get_lost_make_nothing_twice(proxy: Proxy, server: Server, tmp_path: Path) -> None:
    """A request that failed may have been heard: a run that was made unheard is found, not made again."""
    proxy.lost_share = 0.2
    folders = [end(begin(tmp_path, 400 + seed)) for seed in range(10)]
    with Tracker(proxy.uri, sweep_of(folders, name="lost"), print) as tracker:
        for folder in folders:
            tracker.trial(folder)
        tracker.finish()
    proxy.lost_share = 0.0
    sync(tmp_path, proxy.uri)
    database = Runs(server.database)
    assert finished(server, folders)
    assert not set(database.all(deleted=True)) & {folder.identity for folder in folders}
    assert database.doubled() == []


def test_the_command_line(tmp_path: Path) -> None:
    assert "sync" in command().stdout
    assert command("synk").returncode == 2
    missing = command("sync", "--storage", str(tmp_path / "no"))
    assert "no such folder" in missing.stderr
    assert missing.returncode == 2
    assert command("sync", "--storage", str(tmp_path)).stdout == f"no sweeps in {tmp_path}\n"
    assert not (tmp_path / "mlflow.db").exists()
