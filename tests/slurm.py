"""A Slurm of the test's own on loopback: two nodes on this machine, one core each."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.ssh import end_all, free_port, wait_until

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch")


@contextmanager
def slurm(root: Path) -> Iterator[dict[str, str]]:
    """Start it below a folder whose path is short; gives the environment for its commands."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [name for name in DAEMONS if not shutil.which(name, path=path)]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: apt-get install slurm-wlm munge")
    if os.geteuid():
        pytest.skip("slurmd wants to be root")
    host, ports = socket.gethostname(), [free_port() for _ in range(3)]
    for name in ("state", "munge"):
        (root / name).mkdir()
    (root / "munge" / "key").write_bytes(os.urandom(128))
    (root / "munge" / "key").chmod(0o400)
    root.chmod(0o755)
    config = root / "slurm.conf"
    config.write_text(
        f"ClusterName=test\nSlurmctldHost={host}(127.0.0.1)\nSlurmctldPort={ports[0]}\nSlurmUser=root\n"
        f"AuthType=auth/munge\nAuthInfo=socket={root}/munge/socket\nStateSaveLocation={root}/state\n"
        f"SlurmctldPidFile={root}/slurmctld.pid\nSlurmdPidFile={root}/%n.pid\nSlurmdSpoolDir={root}/%n\n"
        "ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nMpiDefault=none\nSelectType=select/cons_tres\n"
        "SelectTypeParameters=CR_Core\nJobAcctGatherType=jobacct_gather/none\nReturnToService=2\nKillWait=5\n"
        + "".join(f"NodeName=n{i} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[i]} CPUs=1\n" for i in (1, 2))
        + "PartitionName=gpu Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP\n"
    )
    # By HOME, all that runs for it can be told from others.
    environment = {**os.environ, "PATH": path, "SLURM_CONF": str(config), "HOME": str(root)}
    munge = ["munged", "--foreground", "--force", "--num-threads=2"]
    munge += [f"--{name}={root}/munge/{name.removesuffix('-file')}"
              for name in ("socket", "key-file", "log-file", "pid-file", "seed-file")]  # fmt: skip
    commands = [munge, ["slurmctld", "-D"], ["slurmd", "-D", "-N", "n1"], ["slurmd", "-D", "-N", "n2"]]
    logs, servers = [root / f"{number}.out" for number in range(len(commands))], []

    def said() -> str:
        return "\n".join(log.read_text() for log in logs if log.exists())

    def idle() -> bool:
        asked = subprocess.run(["sinfo", "-h", "-o", "%D %t"], env=environment, capture_output=True, text=True)
        return asked.stdout.split() == ["2", "idle"]

    try:
        for command, log in zip(commands, logs, strict=True):
            with open(log, "wb") as out:
                servers.append(subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT))
            if command is munge:
                wait_until((root / "munge" / "socket").exists, said)
        wait_until(idle, said)
        yield environment
    finally:
        with suppress(OSError):
            subprocess.run(["scancel", "--full", "--user=root"], env=environment, capture_output=True, timeout=60)
        for server in reversed(servers):
            server.kill()
            server.wait(30)
        end_all([root])
