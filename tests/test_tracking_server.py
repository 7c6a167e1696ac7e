"""A shared MLflow as `clusters/mlflow` sets it up: the real `mlflow server` with accounts, PostgreSQL, artifacts on S3.

The servers are started by the project's own script, once for this file; only the bucket is moto's. What MLflow holds is
asked of PostgreSQL and of the bucket, not of MLflow.
"""

import base64
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from benchmarks.tracking import SERVE, Servers, processes
from tests.running import TINY, Command, wait_for
from tests.test_tracking import begin, end, sweep_of

CLUSTER = SERVE.parent
LONG = [argument.replace("epochs=2", "epochs=10") for argument in TINY]


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    if not shutil.which("initdb") and not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        pytest.skip("no PostgreSQL here; on Debian: apt-get install postgresql")
    with Servers() as servers:
        yield servers


@pytest.fixture
def account(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process, and what it starts, knows the administrator's password."""
    for name, value in servers.client.items():
        monkeypatch.setenv(name, value)


def request(servers: Servers, path: str, content: dict | None = None, user: str = "", password: str = "") -> int:
    """Ask the server, by the HTTP of the standard library; the status that it answers."""
    body = None if content is None else json.dumps(content).encode()
    asked = urllib.request.Request(f"{servers.uri}{path}", data=body, headers={"Content-Type": "application/json"})
    if user:
        asked.add_header("Authorization", f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}")
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def statuses(servers: Servers, name: str) -> dict[str, list[str]]:
    """Identity of each trial of an experiment -> the statuses of its runs."""
    found: dict[str, list[str]] = {}
    query = """
        select t.value, r.status from experiments e join runs r on r.experiment_id = e.experiment_id
        join tags t on t.run_uuid = r.run_uuid and t.key = 'clar.identity'
        where e.name = %s and r.lifecycle_stage = 'active'
    """
    for identity, status in servers.rows(query, f"clar/{name}"):
        found.setdefault(identity, []).append(status)
    return found


def doubled(servers: Servers) -> list[tuple]:
    """Metrics that a run has twice at one step."""
    return servers.rows("select run_uuid, key, step from metrics group by run_uuid, key, step having count(*) > 1")


def holding(folder: Path, secret: str) -> list[Path]:
    """The files below a folder that hold a secret."""
    return [path for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


@pytest.mark.slow
@pytest.mark.usefixtures("account")
def test_a_sweep_on_a_shared_server(servers: Servers, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it is there; and without the password nobody reads or writes, which the sweep says in one line."""
    output = command.sweep("study.py", *TINY, "--tracking-uri", servers.uri)
    results = command.results()
    assert statuses(servers, "study") == {identity: ["FINISHED"] for identity in results}
    metrics = """
        select t.value, m.key, m.step, m.value from metrics m join tags t on t.run_uuid = m.run_uuid
        and t.key = 'clar.identity' where m.key in ('train_loss', 'test_top1')
    """
    written = {(identity, key, step): value for identity, key, step, value in servers.rows(metrics)}
    for identity, result in results.items():
        assert [written[identity, "train_loss", epoch.epoch] for epoch in result.epochs] == [
            epoch.train_loss for epoch in result.epochs
        ]
        assert written[identity, "test_top1", 2] == result.test_top1
    # The encoders in the bucket are those of the storage, to the byte.
    s3 = servers.s3_client()
    keys = [found["Key"] for found in s3.list_objects_v2(Bucket=servers.bucket, Prefix="mlflow/")["Contents"]]
    encoders = {s3.get_object(Bucket=servers.bucket, Key=key)["Body"].read() for key in keys if "encoder" in key}
    assert encoders == {path.read_bytes() for path in command.storage.glob("trials/*/encoder.safetensors")}
    assert any(key.endswith("sweep.json") for key in keys)
    # Again, from a lost note of what has been written: nothing is missing, nothing twice.
    sync = ["sync", "--storage", str(command.storage), "--tracking-uri", servers.uri]
    assert "0 runs written, 3 up to date" in command.run("clar.tracking", *sync)
    assert doubled(servers) == []

    assert request(servers, "/api/2.0/mlflow/experiments/get?experiment_id=0") == 401
    assert request(servers, "/api/2.0/mlflow/experiments/create", {"name": "intruder"}) == 401
    artifact = f"/api/2.0/mlflow-artifacts/artifacts/{keys[0].removeprefix('mlflow/')}"
    assert request(servers, artifact) == 401
    assert request(servers, artifact, user="admin", password=servers.password) == 200
    before = servers.rows("select * from runs order by run_uuid")
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    command.environment = dict(os.environ, CLAR_CACHE=command.environment["CLAR_CACHE"])
    for path in command.storage.glob("sweeps/*/tracked.json"):
        path.unlink()
    refused = command.sweep("study.py", *TINY, "--tracking-uri", servers.uri)
    (line,) = [line for line in refused.splitlines() if "refuses this account" in line]
    assert line.startswith(f"MLflow at {servers.uri} cannot be written (it refuses this account")
    # Not even twenty seconds are spent on waiting for a server that is there.
    assert "lacks some of this sweep" in refused
    wrong = f"http://admin:not-the-password@{servers.uri.removeprefix('http://')}"
    told = command.run("clar.tracking", *sync[:-1], wrong, code=1)
    assert "cannot be written" in told
    assert servers.rows("select * from runs order by run_uuid") == before
    assert servers.rows("select * from experiments where name = 'intruder'") == []
    for secret in (servers.password, "not-the-password"):
        assert secret not in output + refused + told
        assert holding(command.folder, secret) == []


@pytest.mark.slow
@pytest.mark.usefixtures("account")
def test_a_server_killed_in_the_middle_of_a_sweep(servers: Servers, command: Command) -> None:
    """The trials go on without it; in the end all is there, and nothing twice."""
    (command.folder / "killed.py").write_text((command.folder / "study.py").read_text())
    line = ["killed.py", *LONG, "--seeds", "3", "--no-report", "--tracking-uri", servers.uri,
            "--storage", str(command.storage)]  # fmt: skip
    sweep = command.start("clar.sweep", *line)

    def done() -> int:
        return len(list(command.storage.glob("trials/*/result.json")))

    try:
        wait_for(lambda: ["FINISHED"] in statuses(servers, "killed").values(), sweep, 300)
        servers.kill()
        before = done()
        wait_for(lambda: done() > before or sweep.poll() is not None, sweep, 300)
        servers.start()
        output, _ = sweep.communicate(timeout=900)
    finally:
        sweep.kill()
        sweep.wait()
    assert sweep.returncode == 0, output
    # A machine that is slow enough starts the server after the sweep's patience: then the same command goes on.
    if "lacks some of this sweep" in output:
        command.run("clar.sweep", *line)
    assert len(command.results()) == 6
    assert statuses(servers, "killed") == {identity: ["FINISHED"] for identity in command.results()}
    assert doubled(servers) == []
    (parent,) = servers.rows(
        "select r.status from runs r join tags t on t.run_uuid = r.run_uuid and t.key = 'clar.parent' "
        "join experiments e on e.experiment_id = r.experiment_id where e.name = 'clar/killed'"
    )
    assert parent == ("FINISHED",)


@pytest.mark.slow
@pytest.mark.usefixtures("account")
def test_a_second_account_writes_to_the_same_experiment(servers: Servers, command: Command, tmp_path: Path) -> None:
    """As docs/tracking.md has it made: it adds its own runs, and deletes nobody else's experiment."""
    sync = ["sync", "--tracking-uri", servers.uri, "--storage"]
    for place in ("one", "two"):
        sweep_of([end(begin(tmp_path / place, 0))], name="together")
    command.run("clar.tracking", *sync, str(tmp_path / "one"))
    created = {"username": "ada", "password": "a-long-password"}
    path = "/api/2.0/mlflow/users/create"
    assert request(servers, path, created, "admin", servers.password) == 200
    assert request(servers, path, {**created, "username": "eve"}, "ada", "a-long-password") == 403
    own = f"http://ada:a-long-password@{servers.uri.removeprefix('http://')}"
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        del command.environment[name]
    output = command.run("clar.tracking", "sync", "--tracking-uri", own, "--storage", str(tmp_path / "two"))
    assert "2 runs written" in output
    assert sorted(map(len, statuses(servers, "together").values())) == [2]
    experiment = servers.value("select experiment_id from experiments where name = 'clar/together'")
    delete = {"experiment_id": str(experiment)}
    assert request(servers, "/api/2.0/mlflow/experiments/delete", delete, "ada", "a-long-password") == 403
    assert "a-long-password" not in output
    assert holding(tmp_path, "a-long-password") == []


@pytest.mark.slow
def test_the_servers_are_closed(servers: Servers) -> None:
    """They listen on loopback alone, PostgreSQL not at all; no secret is in a file others can read or in `ps`."""
    assert servers.process is not None
    own = {pid for pid, _, session, _ in processes() if session in (servers.process.pid, servers.postgres())}
    assert listening(own) == {f"127.0.0.1:{servers.port}"}
    for name in ("auth.ini", "session.key"):
        assert (servers.data / name).stat().st_mode & 0o777 == 0o600
    for name in ("postgres", "postgres/.s.PGSQL.5432"):
        assert (servers.data / name).stat().st_mode & 0o777 == 0o700
    key = (servers.data / "session.key").read_text()
    shown = b"".join((Path("/proc") / str(pid) / "cmdline").read_bytes() for pid in own)
    said = (servers.folder / "log.txt").read_text()
    for secret in (servers.password, key):
        assert secret.encode() not in shown
        assert secret not in said
    assert holding(servers.data, servers.password) == []


def listening(pids: set[int]) -> set[str]:
    """Where these processes take TCP connections, as Linux has it."""
    opened = {str(link.readlink()) for pid in pids for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in opened:
                address, port = local.split(":")
                place = socket.inet_ntoa(bytes.fromhex(address)[::-1]) if table == "tcp" else address
                found.add(f"{place}:{int(port, 16)}")
    return found


def test_what_the_script_says_of_a_wrong_command(tmp_path: Path) -> None:
    def told(password: str, *arguments: str) -> str:
        line = [sys.executable, str(SERVE), "--artifacts", "s3://clar/mlflow", *arguments]
        known = {**os.environ, "MLFLOW_AUTH_ADMIN_PASSWORD": password}
        done = subprocess.run(line, env=known, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        (line_said,) = done.stderr.splitlines()
        return line_said

    assert told("") == "error: set MLFLOW_AUTH_ADMIN_PASSWORD to 12 characters or more"
    assert "12 characters" in told("short")
    long = tmp_path / ("x" * 100)
    assert "too long for a socket" in told("long-enough-password", "--data", str(long))
    assert not (tmp_path / "clar-mlflow").exists()


@pytest.mark.slow
def test_the_script_ends_what_it_started(servers: Servers, tmp_path: Path) -> None:
    """By the signal that systemd and `docker stop` send; with a database of others it starts none of its own."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    uri = f"postgresql://mlflow@/postgres?host={servers.data / 'postgres'}"
    line = [sys.executable, str(SERVE), "--artifacts", "s3://clar/mlflow", "--data", str(tmp_path), "--database", uri]
    known = {**os.environ, **servers.aws(), "MLFLOW_PORT": str(port), "MLFLOW_AUTH_ADMIN_PASSWORD": servers.password}
    script = subprocess.Popen(line, env=known, start_new_session=True, stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL, text=True)  # fmt: skip

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return True
        except OSError:
            return False

    try:
        wait_for(answers, script)
        assert not (tmp_path / "postgres").exists()
        script.send_signal(signal.SIGTERM)
        assert script.wait(60) == 128 + signal.SIGTERM
        assert [pid for pid, _, session, _ in processes() if session == script.pid] == []
        assert servers.value("select 1") == 1
    finally:
        if script.poll() is None:
            os.killpg(script.pid, signal.SIGKILL)
            script.wait()


# ---------------------------------------------------------------------------------------------------------------------
# The compose file
# ---------------------------------------------------------------------------------------------------------------------


def test_the_compose_file_is_one(tmp_path: Path) -> None:
    """By Docker's own client, which needs no engine for that, or by a parser of the specification."""
    client = ["docker", "compose"]
    if (
        shutil.which("docker")
        and subprocess.run([*client, "version"], capture_output=True, check=False).returncode == 0
    ):
        place = shutil.copytree(CLUSTER, tmp_path / "mlflow")
        settings = (place / ".env.example").read_text().replace("PASSWORD=\n", "PASSWORD=a-long-password\n")
        (place / ".env").write_text(settings)
        line = [*client, "--project-directory", str(place), "config", "--quiet"]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    elif importlib.util.find_spec("compose_spec"):
        from compose_spec import PyCompose

        PyCompose.from_yaml((CLUSTER / "compose.yaml").read_text().replace("${PORT:-5000}", "5000")).validate()
    else:
        pytest.skip("neither `docker compose` nor the package compose-spec is here")


def test_what_the_compose_file_promises() -> None:
    """Loopback only, no secret in it, every variable in the example, the versions of the lock."""
    text = (CLUSTER / "compose.yaml").read_text()
    services = yaml.safe_load(text)["services"]
    assert [port for service in services.values() for port in service.get("ports", [])] == [
        "127.0.0.1:${PORT:-5000}:5000"
    ]
    for service in services.values():
        for name, value in service["environment"].items():
            if "PASSWORD" in name or "SECRET" in name:
                assert value is None or re.fullmatch(r"\$\{\w+:\?set it in \.env\}", value), name
    example = (CLUSTER / ".env.example").read_text()
    passed = {name for name, value in services["mlflow"]["environment"].items() if value is None}
    assert set(re.findall(r"^(?:# )?(\w+)=", example, re.M)) == set(re.findall(r"\$\{(\w+)", text)) | passed
    assert re.findall(r"PASSWORD=(.*)", example) == ["", ""]
    lock = (CLUSTER.parent.parent / "requirements.lock").read_text()
    pinned = dict(re.findall(r'"([\w-]+)(?:\[\w+\])?==([\d.]+)"', services["mlflow"]["build"]["dockerfile_inline"]))
    assert set(pinned) == {"mlflow", "psycopg2-binary", "boto3"}
    for package, version in pinned.items():
        assert f"\n{package}=={version} " in lock
    assert (CLUSTER / ".gitignore").read_text().split() == [".env"]
