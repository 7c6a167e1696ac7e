"""Machines to log in to: an sshd of the test's own on each of some loopback addresses, each with its own home."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Machines:
    """Where they are, and how to get in.

    Attributes:
        homes: the home directory on each, by address.
        key: of the user who runs the test.
        bin: a folder for PATH with the `ssh` that leads to them.
    """

    homes: dict[str, Path]
    key: Path
    bin: Path


@contextmanager
def machines(root: Path, count: int) -> Iterator[Machines]:
    """Start them below a folder whose path is short; whatever was started on them ends with them."""
    sshd = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/sbin")
    missing = [name for name, path in (("sshd", sshd), ("ssh", shutil.which("ssh")), ("rsync", shutil.which("rsync")))
               if path is None]  # fmt: skip
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}: apt-get install openssh-server rsync")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd of root wants to be locked into
    for name in ("key", "host"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(root / name)], check=True)
    (root / "authorized").write_text((root / "key.pub").read_text())
    port = free_port()
    homes = {f"127.0.0.{number}": root / str(number) for number in range(1, count + 1)}
    # Ray knows no port but 22, and ssh takes ~ of a key for the home in the system's list of users.
    tools = root / "bin"
    tools.mkdir()
    script(
        tools / "ssh",
        'for word; do [ "$before" = -i ] && word="${word/#\\~/$HOME}"; words+=("$word"); before=$word; done\n'
        f'exec {shutil.which("ssh")} -p {port} "${{words[@]}}"',
    )
    servers = []
    try:
        for address, home in homes.items():
            home.mkdir()
            config = home / "sshd_config"
            config.write_text(
                f"ListenAddress {address}:{port}\nHostKey {root}/host\nPidFile none\nStrictModes no\nUsePAM no\n"
                f"AuthorizedKeysFile {root}/authorized\nPasswordAuthentication no\nPermitRootLogin yes\n"
                f"MaxStartups 100\nMaxSessions 100\n"
                # Nodes are to believe sooner than after a minute that their head is gone.
                f"SetEnv HOME={home} RAY_TMPDIR={home} RAY_gcs_rpc_server_reconnect_timeout_s=10\n"
            )
            with (home / "sshd.log").open("wb") as log:
                servers.append(subprocess.Popen([str(sshd), "-D", "-e", "-f", str(config)], stderr=log))
        for address, home in homes.items():
            wait_until(
                lambda address=address: listening(address, port), lambda home=home: (home / "sshd.log").read_text()
            )
        yield Machines(homes, root / "key", tools)
    finally:
        for server in servers:
            server.terminate()
            server.wait(30)
        end_all(homes.values())


def script(path: Path, text: str) -> None:
    """Write a Bash script."""
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def end_all(homes: Iterable[Path]) -> None:
    """End the processes whose home one of these is: nobody else's."""
    for _ in range(100):
        pids = [pid for home in homes for pid in living(home)]
        if not pids:
            return
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def living(home: Path) -> list[int]:
    """The processes that were started on the machine with this home."""
    found = []
    for path in Path("/proc").iterdir():
        try:
            if path.name.isdigit() and f"HOME={home}".encode() in (path / "environ").read_bytes().split(b"\0"):
                found.append(int(path.name))
        except OSError:
            continue
    return found


def free_port() -> int:
    """A port that nobody listens on, on any loopback address."""
    with socket.socket() as one:
        one.bind(("", 0))
        return one.getsockname()[1]


def listening(address: str, port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as one:
        return one.connect_ex((address, port)) == 0


def wait_until(condition: Callable[[], bool], says: Callable[[], str], seconds: float = 600) -> None:
    """Wait until it is so; fails with what there is to say if that takes too long."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, says()
        time.sleep(0.05)
