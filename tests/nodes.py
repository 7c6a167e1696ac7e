"""A Ray cluster of several nodes on this machine, for tests: each node a process group of its own."""

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

RAY = str(Path(sys.executable).with_name("ray"))

_START_SECONDS = 180


@dataclass
class Node:
    """One node: `ray start --block` and all that it has started."""

    process: subprocess.Popen[bytes]
    log: Path

    def processes(self) -> list[int]:
        """All that run on it. Ray's workers have process groups of their own; the session they share."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # has ended
                state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
                if int(session) == self.process.pid and state != "Z":
                    found.append(int(path.parent.name))
        return sorted(found)

    def up(self) -> bool:
        """Whether it is part of the cluster. `ray start` itself may stay."""
        return any("/raylet/raylet " in _command(pid) for pid in self.processes())

    def kill(self) -> None:
        """SIGKILL to all of its processes, as when a machine loses its power."""
        while found := self.processes():
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        self.process.wait(timeout=60)


@dataclass
class Nodes:
    """The cluster.

    Attributes:
        folder: of Ray's files; short, since the names of sockets are limited.
        environment: for everyone who is to reach the cluster.
    """

    folder: Path
    environment: dict[str, str]
    address: str = ""
    nodes: list[Node] = field(default_factory=list)

    def start(self, cpus: int, *options: str) -> Node:
        """Start the head, and with it the cluster, or one more node; waits until it is up."""
        head = not self.nodes
        where = ["--head", f"--port={self._port()}"] if head else [f"--address={self.address}"]
        if head:
            where += ["--include-dashboard=false", f"--temp-dir={self.folder}"]
        log = self.folder / f"start-{len(self.nodes)}.log"
        with open(log, "wb") as out:
            process = subprocess.Popen(
                [RAY, "start", "--block", "--disable-usage-stats", f"--num-cpus={cpus}", "--num-gpus=0", *where,
                 "--object-store-memory=80000000", *options],
                env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        node = Node(process, log)
        self.nodes.append(node)
        end = time.monotonic() + _START_SECONDS
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        return node

    def ray(self, *arguments: str) -> str:
        """Ray's own command line, on this cluster; what it prints."""
        done = subprocess.run(
            [RAY, *arguments, f"--address={self.address}"],
            env=self.environment, capture_output=True, text=True, check=False, timeout=_START_SECONDS,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def drain(self, node: Node) -> None:
        """What a watcher on the node does at the spot notice."""
        commands = "\n".join(map(_command, node.processes()))
        (identity,) = set(re.findall(r"--node_id=(\w+)", commands))
        self.ray(
            "drain-node", f"--node-id={identity}", "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot",
            "--deadline-remaining-seconds=120",
        )  # fmt: skip

    def _port(self) -> int:
        with socket.create_server(("", 0)) as server:
            port = server.getsockname()[1]
        self.address = f"{socket.gethostbyname(socket.gethostname())}:{port}"
        return port


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


@contextlib.contextmanager
def running() -> Iterator[Nodes]:
    """A cluster without nodes; all that were started are ended at last."""
    folder = Path(tempfile.mkdtemp(prefix="clar-", dir="/tmp"))
    environment = {
        **os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_ADDRESS": "",
        "RAY_raylet_start_wait_time_s": str(_START_SECONDS),
    }  # fmt: skip
    nodes = Nodes(folder, environment)
    try:
        yield nodes
    finally:
        for node in nodes.nodes:
            node.kill()
        shutil.rmtree(folder, ignore_errors=True)
