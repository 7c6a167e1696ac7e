"""What a sweep of 200 running trials costs a shared MLflow server: `python -m benchmarks tracking`.

The server is the real one, as `clusters/mlflow/serve.py` starts it: accounts, PostgreSQL, artifacts on S3 (moto's). The
trials are folders to which a process adds an epoch a second; the tracker writes them as a sweep lets it. Then all of
them finish at once. Beside it, for a shorter time, what one would write first, and what Ray's MLflow callback does: a
request a metric, here with Ray's own code, one trial after the other.
"""

import argparse
import json
import math
import multiprocessing
import os
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.data import describe_machine
from clar.config import TrialConfig
from clar.presets import preset
from clar.result import EpochRecord, SweepFolder, TrialFolder, TrialResult
from clar.tracking import Tracker

SERVE = Path(__file__).parent.parent / "clusters" / "mlflow" / "serve.py"
SAMPLE_SECONDS = 2.0
TARGET_CORES = 0.5
ENCODER_BYTES = 100_000


def main(argv: list[str]) -> int:
    """Measure and print a table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks tracking", description=__doc__)
    parser.add_argument("--trials", type=int, default=200, help="that run at a time [%(default)s]")
    parser.add_argument(
        "--seconds", type=float, default=60, help="of measuring, once MLflow has each trial [%(default)g]"
    )
    parser.add_argument("--peer-seconds", type=float, default=20, help="the same for the peer [%(default)g]")
    parser.add_argument("--repeats", type=int, default=3, help="[%(default)s]")
    options = parser.parse_args(argv)
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    # Ended by a signal too, it takes its servers with it.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    console = Console(highlight=False)
    runs: list[dict[str, float]] = []
    with Servers() as servers, environment(servers.client):
        for number in range(options.repeats):
            console.print(f"measuring: {options.trials} trials, run {number + 1} of {options.repeats}")
            with tempfile.TemporaryDirectory(prefix="clar-benchmark-") as folder:
                measured = sweep(Path(folder), servers, options.trials, options.seconds)
                runs.append(measured | peer(servers, options.trials, options.peer_seconds))
        database = servers.value("show server_version")
    versions = ", ".join(f"{name} {version(name)}" for name in ("mlflow", "ray", "moto"))
    console.print(f"{describe_machine()}, {versions}, PostgreSQL {database}")
    table = Table("measurement", "median", "min", "max", "target", title=f"{options.trials} trials, an epoch a second")
    for what in runs[0]:
        values = [run[what] for run in runs]
        target = ""
        if what == SERVER:
            target = f"{TARGET_CORES:g}" + ("" if statistics.median(values) <= TARGET_CORES else ", missed")
        table.add_row(what, *(f"{f(values):.3g}" for f in (statistics.median, min, max)), target)
    console.print(table)
    return 0


SERVER = "mlflow server, cores"


def sweep(folder: Path, servers: "Servers", count: int, seconds: float) -> dict[str, float]:
    """The tracker at work: while the trials run, and until they are all written once they have finished."""
    from requests import Session

    requests = 0
    send = Session.send

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal requests
        requests += 1
        return send(*arguments, **named)

    folders, about = make_trials(folder, count, f"benchmark-{secrets.token_hex(4)}")
    ages: list[float] = []
    longest = 0.0
    trials = multiprocessing.get_context("spawn").Process(
        target=grow, args=(folder, [trial.identity for trial in folders], began := time.time() + 3)
    )
    trials.start()
    Session.send = counted  # type: ignore[method-assign]
    try:
        with about.driver(), Tracker(servers.uri, about, print) as tracker:
            first = marks = usage(servers, requests)
            told, warm, sampled, end = [0] * count, math.inf, 0.0, math.inf
            while (now := time.time()) < end:
                for number, trial in enumerate(folders):
                    if told[number] < (epochs := finished(number, count, began, now)):
                        told[number] = epochs
                        called = time.perf_counter()
                        tracker.epochs(trial)
                        longest = max(longest, time.perf_counter() - called)
                if now > sampled + SAMPLE_SECONDS:
                    sampled, there = now, newest(servers, about.name)
                    if end < math.inf:
                        ages += [now - ended(n, count, began, there[trial.identity]) for n, trial in enumerate(folders)]
                    elif len(there) == count:
                        marks, warm, end = usage(servers, requests), now - began, now + seconds
                time.sleep(0.02)
            start = {name: marks[name] - value for name, value in first.items()}
            spent = {name: value - marks[name] for name, value in usage(servers, requests).items()}
            trials.terminate()
            trials.join()
            for trial in folders:
                finish(trial)
            marks = usage(servers, requests)
            for trial in folders:
                tracker.trial(trial)
            while servers.value(_DONE, f"clar/{about.name}") < count:
                time.sleep(0.1)
            after = {name: value - marks[name] for name, value in usage(servers, requests).items()}
            tracker.finish()
        assert tracker.complete
    finally:
        Session.send = send  # type: ignore[method-assign]
        trials.kill()
    wall = spent["wall"]
    return {
        f"{count} trials begin at once: seconds until each has a run": warm,
        "while they do: mlflow server, cores": start["server"] / start["wall"],
        SERVER: spent["server"] / wall,
        "PostgreSQL, cores": spent["postgres"] / wall,
        "driver with its tracker, cores": spent["driver"] / wall,
        "requests a second": spent["requests"] / wall,
        "newest metric of a trial, seconds old, mean": statistics.mean(ages),
        "the same, 95 of 100 trials": statistics.quantiles(ages, n=20)[-1],
        "longest that a call held up the sweep, ms": 1000 * longest,
        f"{count} results at once: seconds until written": after["wall"],
        "while they are: mlflow server, cores": after["server"] / after["wall"],
        "while they are: requests a trial": after["requests"] / count,
    }


def peer(servers: "Servers", count: int, seconds: float) -> dict[str, float]:
    """A request a metric, by Ray's own code: of so many epochs a second, how many it writes."""
    from mlflow.tracking import MlflowClient
    from ray.air._internal.mlflow import _MLflowLoggerUtil

    client = MlflowClient(servers.uri)
    experiment = client.create_experiment(f"peer-{secrets.token_hex(4)}")
    runs = [client.create_run(experiment).info.run_id for _ in range(count)]
    util = _MLflowLoggerUtil()
    util.setup_mlflow(tracking_uri=servers.uri, experiment_id=experiment)
    before, written = usage(servers, 0), 0
    deadline = time.time() + seconds
    while time.time() < deadline:
        epoch, number = divmod(written, count)
        record = {"train_loss": 1 / (1 + epoch), "valid_top1": 0.5, "clips_per_second": 1000.0}
        util.log_metrics(epoch, record, run_id=runs[number])
        written += 1
    spent = {name: value - before[name] for name, value in usage(servers, 0).items()}
    return {
        f"a request a metric: epochs a second, of {count}": written / spent["wall"],
        "a request a metric: mlflow server, cores": spent["server"] / spent["wall"],
        "a request a metric: ms an epoch, which the sweep waits": 1000 * spent["wall"] / written,
    }


# ---------------------------------------------------------------------------------------------------------------------
# Trials that only look as if
# ---------------------------------------------------------------------------------------------------------------------


def make_trials(storage: Path, count: int, name: str) -> tuple[list[TrialFolder], SweepFolder]:
    """So many trials that have begun, and the sweep that they are of."""
    base = TrialConfig(**preset("demo"))
    folders = [TrialFolder(storage, base.but(seed=seed, epochs=1000), "synthetic") for seed in range(count)]
    for folder in folders:
        folder.begin("benchmark")
        folder.log.write_text("epoch 1\n")
    about = SweepFolder(storage, name, "key")
    about.write({
        "name": name, "key": "key", "dataset": "digits", "base": base.model_dump(mode="json"), "state": "running",
        "code_version": "benchmark", "trials": [folder.identity for folder in folders],
        "titles": {folder.identity: f"seed {folder.config.seed}" for folder in folders},
    })  # fmt: skip
    return folders, about


def finished(number: int, count: int, began: float, now: float) -> int:
    """Epochs that a trial has finished; the trials do not all finish theirs at the same moment."""
    return max(0, int(now - began - number / count))


def ended(number: int, count: int, began: float, epoch: int) -> float:
    """When a trial finished an epoch."""
    return began + number / count + epoch


def grow(storage: Path, identities: list[str], began: float) -> None:
    """A process: add an epoch a second to each trial, without a disk's fsync, which is another machine's in earnest."""
    parts: list[list[str]] = [[] for _ in identities]
    while True:
        for number, identity in enumerate(identities):
            epochs = finished(number, len(identities), began, time.time())
            if epochs > len(parts[number]):
                parts[number] += [json.dumps(vars(record(e))) for e in range(len(parts[number]) + 1, epochs + 1)]
                path = storage / "trials" / identity / "epochs.json"
                partial = path.with_name(".epochs.json.partial")
                partial.write_text(f"[{','.join(parts[number])}]")
                partial.replace(path)
        time.sleep(0.02)


def record(epoch: int) -> EpochRecord:
    """What an epoch leaves."""
    return EpochRecord(epoch, 1 / epoch, 1 - 1 / epoch, 0.01, 1000.0 + epoch % 10)


def finish(folder: TrialFolder) -> None:
    """Give a trial its result and its encoder."""
    (folder.path / "encoder.safetensors").write_bytes(os.urandom(ENCODER_BYTES))
    folder.write_result(TrialResult(0.5, 0.9, 0.5, 0.1, 0.4, None, 60.0, 0.0, tuple(folder.epochs())))


def newest(servers: "Servers", name: str) -> dict[str, int]:
    """The newest epoch that MLflow has of each trial, by identity."""
    return dict(servers.rows(_NEWEST, f"clar/{name}"))


_NEWEST = """
    select t.value, max(m.step) from experiments e join runs r on r.experiment_id = e.experiment_id
    join tags t on t.run_uuid = r.run_uuid and t.key = 'clar.identity'
    join latest_metrics m on m.run_uuid = r.run_uuid where e.name = %s group by t.value
"""
_DONE = """
    select count(*) from experiments e join runs r on r.experiment_id = e.experiment_id
    join tags t on t.run_uuid = r.run_uuid and t.key = 'clar.identity' where e.name = %s and r.status = 'FINISHED'
"""


# ---------------------------------------------------------------------------------------------------------------------
# The servers
# ---------------------------------------------------------------------------------------------------------------------


class Servers:
    """PostgreSQL, an S3 and `mlflow server` with accounts, on free ports of loopback; a context manager.

    They run as `clusters/mlflow/serve.py` runs them, but for the bucket, which moto serves.
    """

    bucket = "clar"

    def __init__(self) -> None:
        # Not below a folder that PostgreSQL's user could not enter.
        self.folder = Path(tempfile.mkdtemp(prefix="clar-servers-"))
        self.folder.chmod(0o711)
        self.data = self.folder / "data"
        self.port, self.s3_port = free_port(), free_port()
        self.uri, self.s3_uri = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{self.s3_port}"
        self.password = secrets.token_urlsafe(16)
        self.client = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": self.password}
        self.process: subprocess.Popen[bytes] | None = None
        self.s3: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Servers":
        try:
            line = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.s3_port)]
            self.s3 = self._run(line, {})
            wait_for(self.s3_uri, self.s3)
            self.s3_client().create_bucket(Bucket=self.bucket)
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(60)
        pid = self.postgres()
        if pid:  # of a server that was killed
            os.kill(pid, signal.SIGINT)
            while self.postgres():
                time.sleep(0.1)
        if self.s3 is not None:
            self.s3.kill()
            self.s3.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """Start PostgreSQL, where it does not run, and MLflow; returns when they answer."""
        line = [sys.executable, str(SERVE), "--artifacts", f"s3://{self.bucket}/mlflow", "--data", str(self.data)]
        known = {"MLFLOW_PORT": str(self.port), "MLFLOW_AUTH_ADMIN_PASSWORD": self.password, **self.aws()}
        self.process = self._run(line, known)
        wait_for(f"{self.uri}/health", self.process)

    def kill(self) -> None:
        """End MLflow as a machine that fails does; PostgreSQL goes on."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process = None

    def _run(self, line: list[str], known: Mapping[str, str]) -> subprocess.Popen[bytes]:
        # A session of its own, by which its processes are found; `kill` ends them all.
        with open(self.folder / "log.txt", "ab") as log:
            return subprocess.Popen(line, env={**os.environ, **known}, start_new_session=True, stdout=log, stderr=log)

    def aws(self) -> dict[str, str]:
        """What a program must know to reach the bucket."""
        return {
            "AWS_ENDPOINT_URL": self.s3_uri, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }  # fmt: skip

    def s3_client(self) -> Any:
        """boto3's."""
        import boto3

        return boto3.client(
            "s3", endpoint_url=self.s3_uri, aws_access_key_id="test", aws_secret_access_key="test",
            region_name="us-east-1",
        )  # fmt: skip

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Ask PostgreSQL itself."""
        from psycopg2 import connect  # type: ignore[import-untyped]

        connection = connect(host=str(self.data / "postgres"), user="mlflow", dbname="postgres")
        try:
            with connection.cursor() as cursor:
                cursor.execute(query, values)
                return cursor.fetchall()
        finally:
            connection.close()

    def value(self, query: str, *values: object) -> Any:
        """The one value that a query gives."""
        ((value,),) = self.rows(query, *values)
        return value

    def postgres(self) -> int:
        """PostgreSQL's process, 0 where it does not run."""
        with suppress(FileNotFoundError, ValueError):
            return int((self.data / "postgres" / "postmaster.pid").read_text().splitlines()[0])
        return 0

    def server_seconds(self) -> float:
        """Processor time of MLflow's processes together."""
        assert self.process is not None
        return sum(spent for _, _, session, spent in processes() if session == self.process.pid)

    def postgres_seconds(self) -> float:
        """Processor time of PostgreSQL's processes together, also of those that have ended."""
        own = self.postgres()
        return sum(spent for _, parent, session, spent in processes() if own in (parent, session))


def processes() -> Iterator[tuple[int, int, int, float]]:
    """Number, parent, session and processor time, with that of children that ended, of each process here."""
    tick = os.sysconf("SC_CLK_TCK")
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            fields = path.read_text().rpartition(")")[2].split()
            yield int(path.parent.name), int(fields[1]), int(fields[3]), sum(map(int, fields[11:15])) / tick


def usage(servers: Servers, requests: int) -> dict[str, float]:
    """Where the clocks stand."""
    return {
        "wall": time.time(), "server": servers.server_seconds(), "postgres": servers.postgres_seconds(),
        "driver": time.process_time(), "requests": float(requests),
    }  # fmt: skip


def free_port() -> int:
    """One of loopback."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    """Until a server answers."""
    deadline = time.monotonic() + 120
    while True:
        with suppress(OSError), urllib.request.urlopen(address, timeout=5):
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{process.args!r} does not answer at {address}")
        time.sleep(0.1)


@contextmanager
def environment(more: Mapping[str, str]) -> Iterator[None]:
    """This process's variables, with more of them."""
    before = dict(os.environ)
    os.environ.update(more)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
