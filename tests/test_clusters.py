"""The files that make clusters: each against its tool's own schema, and the ways up, in and down for real."""

import copy
import http.server
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import nodes, ssh
from tests.running import STUDY, TINY
from tests.slurm import slurm

ROOT = Path(__file__).parent.parent
FILES = ["ray_cluster.yaml", "clusters/local.yaml"]
RAY = str(Path(sys.executable).with_name("ray"))
COMMANDS = (
    "setup_commands", "head_setup_commands", "worker_setup_commands", "head_start_ray_commands",
    "worker_start_ray_commands",
)  # fmt: skip


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text())


def documents() -> dict[str, dict[str, Any]]:
    found = yaml.safe_load_all((ROOT / "clusters" / "kubernetes.yaml").read_text())
    return {document["kind"]: document for document in found}


def shell_accepts(text: str) -> bool:
    return subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False).returncode == 0


def check_ray(config: dict[str, Any]) -> dict[str, Any]:
    """What `ray up` checks before it does anything."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    for kind in COMMANDS:
        for text in prepared[kind]:
            if not shell_accepts(text):
                raise ValueError(f"{kind}: {text}")
    for source in prepared["file_mounts"].values():
        if not source.startswith("~") and not (ROOT / source).exists():
            raise ValueError(f"file_mounts: {source}")
    return prepared


@pytest.mark.parametrize("name", FILES)
def test_ray_accepts_the_file(name: str) -> None:
    check_ray(read(name))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda config: config.update(max_worker=3),
        lambda config: config["auth"].update(ssh_users="x"),
        lambda config: config.pop("provider"),
        lambda config: config["setup_commands"].append("for x in 1; do"),
        lambda config: config["worker_start_ray_commands"].append("echo 'a"),
        lambda config: config["file_mounts"].update({"~/clar/x": "x"}),
    ],
)
def test_a_spoilt_file_is_not_accepted(name: str, spoil: Callable[[dict[str, Any]], Any]) -> None:
    from jsonschema import ValidationError

    config = read(name)
    spoil(config)
    with pytest.raises((ValueError, KeyError, ValidationError)):
        check_ray(config)


@pytest.mark.parametrize("name", FILES)
def test_what_every_cluster_keeps_to(name: str) -> None:
    config = read(name)
    head, worker = (" ".join(config[f"{kind}_start_ray_commands"]) for kind in ("head", "worker"))
    assert "--num-cpus=0 --num-gpus=0" in head
    assert "--dashboard-host=127.0.0.1" in head
    for start in (head, worker):
        assert "--object-store-memory=" in start
        assert "ulimit -n 65536" in start
    assert "~/.ray/auth_token" in config["file_mounts"]
    assert "RAY_AUTH_MODE=token" in (ROOT / "clusters" / "node.sh").read_text()
    assert {".venv", "clar_runs", ".git", "__pycache__"} <= set(config["rsync_exclude"])
    # The same sources in both, and the values to change before all others.
    assert config["file_mounts"] == read(FILES[0])["file_mounts"]
    text = (ROOT / name).read_text()
    assert text.index("What you must change") < text.index("cluster_name:") < text.index("What you may change")


def test_what_a_machine_gets_can_be_installed_there(tmp_path: Path) -> None:
    """`make setup` needs the lock and builds the project: from the files that `ray up` brings, and no others."""
    for target, source in read(FILES[0])["file_mounts"].items():
        if target.startswith("~/clar/"):
            path = tmp_path / target.removeprefix("~/clar/")
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, path, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, path)
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel"], cwd=tmp_path, check=True, capture_output=True
    )
    plan = ["make", "-n", "setup", f"PYTHON={sys.executable}"]
    done = subprocess.run(plan, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "--require-hashes -r requirements.lock" in done.stdout
    image = (ROOT / "clusters" / "Dockerfile").read_text()
    copied = {word for line in re.findall(r"COPY (.*) \S+", image) for word in line.split()}
    mounted = set(read(FILES[0])["file_mounts"].values()) - {"~/.ray/auth_token", "clusters"}
    assert copied == mounted


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An AWS account in this process, with what docs/cluster.md says must be there; gives its EC2."""
    moto = pytest.importorskip("moto")
    import boto3

    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with moto.mock_aws():
        iam = boto3.client("iam", region_name="us-east-1")
        for name in ("clar-head", "clar-worker"):
            iam.create_instance_profile(InstanceProfileName=name)
        yield boto3.client("ec2", region_name="us-east-1")


def launch(config: dict[str, Any]) -> dict[str, Any]:
    """One machine of each type as Ray launches it; the EC2 instances by type."""
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler.tags import TAG_RAY_LAUNCH_CONFIG, TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

    config = AWSNodeProvider.fillout_available_node_types_resources(check_ray(config))
    config = AWSNodeProvider.bootstrap_config(config)
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    found = {}
    for name, kind in config["available_node_types"].items():
        tags = {TAG_RAY_NODE_KIND: "worker", TAG_RAY_USER_NODE_TYPE: name, TAG_RAY_LAUNCH_CONFIG: "x"}
        (found[name],) = provider.create_node(dict(kind["node_config"]), tags, 1).values()
    return found


def test_aws_launches_each_type(aws: Any) -> None:
    machines = launch(read("ray_cluster.yaml"))
    assert {name: machine.instance_lifecycle for name, machine in machines.items()} == {
        "head": None, "gpu_spot": "spot", "gpu_on_demand": None
    }  # fmt: skip
    for name, machine in machines.items():
        profile = machine.iam_instance_profile["Arn"].rpartition("/")[2]
        assert profile == ("clar-head" if name == "head" else "clar-worker")
        assert machine.metadata_options["HttpTokens"] == "required"
    # From outside ssh and nothing else; from one machine of the group to another, all.
    groups = {group["GroupId"] for machine in machines.values() for group in machine.security_groups}
    (group,) = aws.describe_security_groups(GroupIds=list(groups))["SecurityGroups"]
    outside = [rule for rule in group["IpPermissions"] if not rule["UserIdGroupPairs"]]
    assert [(rule["FromPort"], rule["ToPort"], rule["IpProtocol"]) for rule in outside] == [(22, 22, "tcp")]
    assert [pair["GroupId"] for rule in group["IpPermissions"] for pair in rule["UserIdGroupPairs"]] == list(groups)


@pytest.mark.parametrize(
    "spoil",
    [
        {"InstanceTyp": "g6.2xlarge"},
        {"InstanceMarketOptions": {"MarketType": "spot", "SpotOption": {}}},
        {"BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": "big"}}]},
        {"IamInstanceProfile": "clar-worker"},
        {"MetadataOptions": {"HttpToken": "required"}},
    ],
)
def test_aws_does_not_launch_a_spoilt_type(aws: Any, spoil: dict[str, Any]) -> None:
    from botocore.exceptions import ParamValidationError

    config = read("ray_cluster.yaml")
    config["available_node_types"]["gpu_spot"]["node_config"].update(spoil)
    with pytest.raises(ParamValidationError):
        launch(config)


def test_the_autoscaler_takes_spot_machines_from_zero_and_never_the_head(aws: Any) -> None:
    """By Ray's own scheduler: what it launches for so many trials of one GPU each."""
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer, get_nodes_for

    config = AWSNodeProvider.fillout_available_node_types_resources(check_ray(read("ray_cluster.yaml")))
    kinds = config["available_node_types"]
    assert kinds["head"]["resources"] == {"CPU": 0, "GPU": 0}
    assert kinds["gpu_spot"]["resources"]["GPU"] == 1

    def scorer(*arguments: Any) -> Any:
        return _default_utilization_scorer(*arguments, node_availability_summary=None)

    trials = [{"CPU": 4, "GPU": 1}] * 20
    launched, _ = get_nodes_for(kinds, {}, "head", config["max_workers"], trials, utilization_scorer=scorer)
    assert dict(launched) == {"gpu_spot": 8}
    assert all(kind["min_workers"] == 0 for kind in kinds.values())


def check_kubernetes(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """By Kubernetes' schemas, and KubeRay's part by Ray's own reader of it; the types of nodes."""
    validator = pytest.importorskip("kubernetes_validate")
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    spec = found["RayCluster"]["spec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", **group["template"]}
        validator.validate(pod, "1.30", strict=True)
    for kind, document in found.items():
        if kind != "RayCluster":
            validator.validate(document, "1.30", strict=True)
    return _derive_autoscaling_config_from_ray_cr(found["RayCluster"])["available_node_types"]


def test_kubernetes_accepts_the_file() -> None:
    found = documents()
    kinds = check_kubernetes(found)
    assert kinds["headgroup"]["resources"]["CPU"] == kinds["headgroup"]["resources"]["GPU"] == 0
    assert kinds["gpu"]["resources"]["GPU"] == 1
    assert (kinds["gpu"]["min_workers"], kinds["gpu"]["max_workers"]) == (0, 8)
    spec = found["RayCluster"]["spec"]
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    pods = [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    for pod in (*pods, found["Job"]["spec"]["template"]["spec"]):
        environment = {one["name"]: one for one in pod["containers"][0]["env"]}
        assert environment["RAY_AUTH_MODE"]["value"] == "token"
        assert environment["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]["name"] == "clar-token"
    # The hook ends before the pod is ended, and is a command that there is.
    (worker,) = pods[1]["containers"]
    hook = worker["lifecycle"]["preStop"]["exec"]["command"]
    assert int(hook[-1]) < pods[1]["terminationGracePeriodSeconds"]
    assert found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == {"app": "clar"}


def test_the_sweep_of_the_job_is_one_that_can_run(tmp_path: Path) -> None:
    (container,) = documents()["Job"]["spec"]["template"]["spec"]["containers"]
    command = container["command"]
    start = command.index("clar.sweep") + 1
    arguments = [
        word for word in command[start:] if not word.startswith(("--address", "--gpus", "--cpus", "--data-cache"))
    ]
    done = subprocess.run(
        [sys.executable, "-m", "clar.sweep", *arguments, "--dry-run", f"--storage={tmp_path}"],
        capture_output=True, text=True, check=False, env={**os.environ, "CLAR_CACHE": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "spoil",
    [
        lambda found: found["Job"]["spec"].update(backOffLimit=1),
        lambda found: worker_pod(found).update(terminationGracePeriod=3),
        lambda found: worker_pod(found)["containers"][0].update(envs=[]),
        lambda found: found["RayCluster"]["spec"]["workerGroupSpecs"][0].pop("minReplicas"),
        lambda found: found["RayCluster"]["spec"]["workerGroupSpecs"][0]["rayStartParams"].update({"num-cpus": "x"}),
    ],
)
def test_kubernetes_does_not_accept_a_spoilt_file(spoil: Callable[[dict[str, Any]], Any]) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    found = documents()
    spoil(found)
    with pytest.raises((validator.ValidationError, KeyError, ValueError)):
        check_kubernetes(found)


def worker_pod(found: dict[str, Any]) -> dict[str, Any]:
    return found["RayCluster"]["spec"]["workerGroupSpecs"][0]["template"]["spec"]


@pytest.mark.parametrize("name", ["node.sh", "slurm.sbatch"])
def test_bash_accepts_the_scripts(name: str) -> None:
    text = (ROOT / "clusters" / name).read_text()
    assert shell_accepts(text)
    assert not shell_accepts(text.replace("done", "", 1))


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Sockets lie in it, whose names are limited to 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="c", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


class Cluster:
    """`clusters/local.yaml` on machines of the test: what differs is where they are, and that Python is there already.

    The commands run as at a user's terminal, in a home of its own.
    """

    def __init__(self, root: Path, machines: ssh.Machines, cache: Path) -> None:
        self.machines, self.config, self.storage = machines, root / "cluster.yaml", root / "clar_runs"
        self.dashboard = ssh.free_port()
        ports = {"8265": self.dashboard, **{name: ssh.free_port() for name in ("6379", "10001", "52365")}}
        text = (ROOT / "clusters" / "local.yaml").read_text()
        for name, port in ports.items():
            assert name in text
            text = text.replace(name, str(port))
        # Each is to have one core; the object store's gigabyte would be of one machine's memory, three times.
        text = text.replace("memory=1000000000\n    --dashboard", "memory=80000000\n    --dashboard")
        text = text.replace("    --object-store-memory=1000000000", "    --num-cpus=1 --object-store-memory=80000000")
        text = text.replace("/shared/clar_cache", str(cache)).replace("/shared/clar_runs", str(self.storage))
        config = yaml.safe_load(text)
        head, *workers = machines.homes
        config["provider"].update(head_ip=head, worker_ips=workers)
        config["auth"].update(ssh_user=os.environ.get("USER", "root"), ssh_private_key=str(machines.key))
        config["cluster_name"] = root.name
        assert "make" in config["setup_commands"][-1]
        config["setup_commands"][-1] = f"mkdir -p ~/clar/.venv && ln -sfn {machines.bin} ~/clar/.venv/bin"
        self.config.write_text(yaml.safe_dump(config))
        self.refused = root / "refused"
        ssh.script(machines.bin / "python", f'exec {sys.executable} "$@"')
        # Ray's own `ray stop` would end the Ray of everybody here: it must not be reached.
        guard = f'[ "$1" = stop ] && {{ touch {self.refused}; exit 1; }}'
        ssh.script(machines.bin / "ray", f'{guard}\nexec {RAY} "$@"')
        self.environment = {
            **os.environ, "HOME": str(root), "PATH": f"{machines.bin}:{os.environ['PATH']}", "TMPDIR": str(root),
            "RAY_TMPDIR": str(root), "RAY_AUTH_MODE": "token", "NO_COLOR": "1",
        }  # fmt: skip
        for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
            self.environment.pop(name, None)

    def ray(self, *arguments: str, code: int = 0, **environment: str) -> str:
        done = subprocess.run(
            [RAY, *arguments], cwd=ROOT, env={**self.environment, **environment}, text=True, timeout=600, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == code, done.stdout
        return done.stdout

    def cpus(self) -> float:
        """Of all workers, one each: as `ray status` on the head says."""
        found = re.search(r"/([\d.]+) CPU", self.ray("exec", str(self.config), "ray status"))
        return float(found[1]) if found else 0.0

    @contextmanager
    def forwarded(self) -> Iterator[str]:
        """`ray dashboard` in another terminal; gives the address at this end."""
        port = ssh.free_port()
        tunnel = subprocess.Popen(
            [RAY, "dashboard", str(self.config), f"--port={port}", f"--remote-port={self.dashboard}"],
            env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            ssh.wait_until(lambda: ssh.listening("127.0.0.1", port), lambda: "no way to the dashboard")
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(tunnel.pid, 15)
            tunnel.wait(60)


@pytest.mark.slow
def test_up_submit_and_down_over_ssh(short_folder: Path, small_cache: Path) -> None:
    """Three machines, by the file that users get: up, two sweeps in three ways, and nothing of it left."""
    (short_folder / "study.py").write_text(STUDY)
    study = [
        str(short_folder / "study.py"),
        *TINY,
        "--no-report",
        "--no-baselines",
        "--cpus-per-trial=1",
        "--gpus-per-trial=0",
    ]
    with ssh.machines(short_folder, 3) as machines:
        cluster = Cluster(short_folder, machines, small_cache)
        config = str(cluster.config)
        cluster.ray("get-auth-token", "--generate")
        (short_folder / ".ray" / "auth_token").chmod(0o644)
        try:
            cluster.ray("up", config, "--yes", "--no-config-cache")
            for home in machines.homes.values():
                assert home.name != "1" or oct((home / ".ray" / "auth_token").stat().st_mode)[-3:] == "600"
            # At once, as a user would: the workers come when they come.
            where = ["--address=auto", "--storage=$CLAR_STORAGE", "--data-cache=~/data"]
            output = cluster.ray("submit", config, str(ROOT / "clar" / "sweep.py"), "--", *study, *where)
            assert "[2/2]" in output
            ssh.wait_until(
                lambda: cluster.cpus() >= 2,
                lambda: cluster.ray("exec", config, "ray status; cat ~/ray/session_latest/logs/monitor.*"),
            )
            output = cluster.ray(
                "exec", config, f"cd ~/clar && python -m clar.sweep {' '.join(study + where)} --dry-run"
            )
            assert "2 of them done" in output
            # The driver of a job outlives the terminal that it came from.
            more = [*study, "--seeds=2", "--address=auto", f"--storage={cluster.storage}"]
            with cluster.forwarded() as address:
                where = [f"--address={address}"]
                stranger = cluster.ray("job", "list", *where, code=1, RAY_AUTH_TOKEN="f" * 64)
                assert "nvalid" in stranger or "orbidden" in stranger, stranger
                cluster.ray("job", "submit", *where, "--no-wait", "--submission-id=more", "--", "python", "-m",
                            "clar.sweep", *more)  # fmt: skip
            with cluster.forwarded() as address:
                ssh.wait_until(
                    lambda: "succeeded" in cluster.ray("job", "status", f"--address={address}", "more"),
                    lambda: cluster.ray("job", "logs", f"--address={address}", "more"),
                )
            assert len(list(cluster.storage.glob("trials/*/result.json"))) == 4
        finally:
            cluster.ray("down", config, "--yes")
        assert not cluster.refused.exists()
        # `ray down` ends the head's Ray; the workers' ends by itself when it misses the head.
        assert not [line for line in ray_processes(machines) if f"{machines.homes['127.0.0.1']}/ray/" in line]
        ssh.wait_until(lambda: not ray_processes(machines), lambda: "\n".join(ray_processes(machines)))


def ray_processes(machines: ssh.Machines) -> list[str]:
    """The command lines of what runs on the machines, but for sshd's sessions."""
    found = []
    for pid in (pid for home in machines.homes.values() for pid in ssh.living(home)):
        try:
            found.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return [line for line in found if "ray" in line]


@pytest.mark.slow
def test_slurm_runs_a_sweep_and_goes_on_after_its_signal(short_folder: Path, small_cache: Path) -> None:
    """A real submission on two nodes; told to go, it checkpoints, is queued again, and goes on from there."""
    script = str(ROOT / "clusters" / "slurm.sbatch")
    home = short_folder / "home"
    home.mkdir()
    (home / "study.py").write_text(STUDY)
    (home / ".venv").symlink_to(Path(sys.executable).parent.parent)
    long = [word.replace("epochs=2", "epochs=60") for word in TINY]
    with slurm(short_folder) as environment:
        environment["CLAR_CACHE"] = str(small_cache)
        environment["CLAR_DATA_CACHE"] = str(short_folder / "data")

        def run(*command: str, code: int = 0) -> str:
            done = subprocess.run(command, cwd=home, env=environment, text=True, capture_output=True, check=False)
            assert done.returncode == code, done.stderr
            return done.stdout

        job = run("sbatch", "--parsable", "--nodes=2", "--cpus-per-task=1", "--gpus-per-node=0", script, "study.py",
                  *long, "--no-report", "--no-baselines").strip()  # fmt: skip

        def log() -> str:
            logs = (home / f"clar-{job}.log", *sorted(short_folder.glob("*.out")))
            return "\n".join(path.read_text() for path in logs if path.exists())

        def state() -> str:
            return re.findall(r"JobState=(\S+)", run("scontrol", "show", "job", job))[0]

        trials = home / "clar_runs" / "trials"
        ssh.wait_until(lambda: any(trials.glob("*/checkpoint.pt")), log)
        run("scancel", "--batch", "--signal=TERM", job)
        # Slurm starts the job again after two minutes; hurried, what still ends the first run met the next at times.
        ssh.wait_until(lambda: state() == "PENDING" and run("sinfo", "-h", "-o", "%D %t").split() == ["2", "idle"], log)
        assert "interrupted; the same command goes on from here" in log()
        assert not list(trials.glob("*/result.json")), "it was done before it was told to go"
        ssh.wait_until(lambda: state() in ("COMPLETED", "FAILED"), log)
        assert state() == "COMPLETED", log()
        assert len(list(trials.glob("*/result.json"))) == 2
        # A mistake in the script's own options is refused.
        run("sbatch", "--nodes=3", script, "study.py", code=1)


HOLDER = """
import sys, time, ray
ray.init(sys.argv[1], log_to_driver=False)

@ray.remote(num_cpus=1)
class Holder:
    def node(self):
        return ray.get_runtime_context().get_node_id()

holder = Holder.remote()
node = ray.get(holder.node.remote())
print("holds", node, flush=True)
while node not in ray._private.state.state.get_draining_nodes():
    time.sleep(0.1)
print("draining", flush=True)
if sys.argv[2] == "yields":
    ray.kill(holder)
sys.stdin.read()
"""


class Metadata(http.server.BaseHTTPRequestHandler):
    """AWS's instance metadata service as far as the watcher asks: no notice until there is one, a token first."""

    notice: str | None = None

    def do_PUT(self) -> None:
        self.answer(200 if self.path == "/latest/api/token" else 404, "token")

    def do_GET(self) -> None:
        if self.headers["X-aws-ec2-metadata-token"] != "token":
            self.answer(401, "")
        elif self.path == "/latest/meta-data/spot/instance-action" and Metadata.notice:
            self.answer(200, Metadata.notice)
        else:
            self.answer(404, "")

    def answer(self, code: int, text: str) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments: object) -> None:
        """Nothing on stderr."""


class Started:
    """A process of the test, and what it says."""

    def __init__(self, log: Path, command: tuple[str, ...], environment: dict[str, str]) -> None:
        self.log = log
        with open(log, "wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, *command], env=environment, stdin=subprocess.PIPE, stdout=out, stderr=out
            )

    def output(self) -> str:
        return self.log.read_text()

    def says(self, text: str) -> str:
        """The first line with the text, when it has come."""
        ssh.wait_until(lambda: text in self.output(), self.output)
        return next(line for line in self.output().splitlines() if text in line)

    def end(self) -> int:
        if self.process.stdin:
            self.process.stdin.close()
        return self.process.wait(240)


@pytest.mark.slow
def test_a_node_leaves_at_a_spot_notice_and_when_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Metadata, "notice", None)
    with nodes.running() as cluster, http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as service:
        threading.Thread(target=service.serve_forever, args=(0.05,), daemon=True).start()
        cluster.start(0)
        started: list[Started] = []

        def start(*command: str) -> Started:
            started.append(Started(tmp_path / f"{len(started)}.log", command, cluster.environment))
            return started[-1]

        def preemption(*arguments: str) -> Started:
            return start("-m", "clar.preemption", *arguments, f"--address={cluster.address}")

        def leave(*arguments: str) -> tuple[int, str]:
            process = preemption("now", *arguments)
            return process.end(), process.output()

        try:
            # The head is not one to leave, and mistakes are said in one line.
            code, output = leave()
            assert (code, output.count("cannot leave")) == (2, 1)
            cluster.start(1)
            code, output = leave()
            assert (code, output.count("several nodes of the cluster run here; name one")) == (2, 1)
            assert "Traceback" not in output
            # A spot notice: the trial's node drains, its trial goes, and it is empty long before the time is up.
            holder = start("-c", HOLDER, cluster.address, "yields")
            node = holder.says("holds ").split()[-1]
            url = f"http://127.0.0.1:{service.server_port}"
            watcher = preemption("watch", f"--node={node}", f"--metadata={url}", "--poll=0.2")
            watcher.says(f"watching {url}")
            when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 500))
            Metadata.notice = f'{{"action": "terminate", "time": "{when}"}}'
            assert "spot notice: terminate" in watcher.says("leaves the cluster")
            holder.says("draining")
            watcher.says("was empty after")
            # It goes on watching, and is not disturbed by there being no node: Ray may be started here again.
            watcher.says("no node of the cluster")
            watcher.process.send_signal(signal.SIGTERM)
            assert watcher.end() == 2
            assert watcher.output().count("error: ") == 1
            assert "Traceback" not in watcher.output()
            # One whose work does not end in time.
            cluster.start(1)
            holder = start("-c", HOLDER, cluster.address, "stays")
            code, output = leave(f"--node={holder.says('holds ').split()[-1]}", "--grace=3")
            assert code == 1
            assert "still has work" in output
        finally:
            service.shutdown()
            for process in started:
                process.process.kill()
                process.end()
