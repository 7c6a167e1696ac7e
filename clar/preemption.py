"""The command `python -m clar.preemption`: what a node does when it is about to be taken away.

`now` tells the Ray cluster that the node which it runs on is leaving, and waits until nothing runs there any more: the
sweep has its trials checkpoint at once and go on elsewhere. `watch` waits for the word, AWS's spot notice or a signal,
and does the same. Ray's own AWS provider does not look for the notice.

Draining is Ray's name for it: a node that drains is given nothing new, and its raylet ends by itself once it is idle.
What was running there when the time is up does not count as failed.
"""

import os
import signal
import socket
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import requests
import typer

# As in clar.cluster: a cluster has one token, and both ends must agree that there is one.
os.environ.setdefault("RAY_AUTH_MODE", "token")

from ray._private.services import canonicalize_bootstrap_address_or_die
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION  # type: ignore[attr-defined]

from clar.cli import command
from clar.errors import UserError

_METADATA = "http://169.254.169.254"
_POLL_SECONDS = 5.0
_ASK_SECONDS = 2.0
_HEAR_SECONDS = 10.0
_LOOK_SECONDS = 0.5

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

Address = Annotated[str, typer.Option(help="The Ray cluster; auto: RAY_ADDRESS, or the one that runs here.")]
Node = Annotated[
    str | None,
    typer.Option(help="Id or address of the node, where several run on this machine; default: this machine's.",
                 show_default=False),
]  # fmt: skip
Grace = Annotated[float, typer.Option(min=1, metavar="SECONDS", help="From the word to the end of the machine.")]


@dataclass(frozen=True)
class Notice:
    """That this machine will be taken away, and when: seconds since 1970."""

    reason: str
    deadline: float


class Metadata:
    """AWS's instance metadata service, version 2.

    Args:
        url: where it answers; another one in tests.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.session = requests.Session()
        # The address means this machine and nothing behind a proxy.
        self.session.trust_env = False

    def notice(self) -> Notice | None:
        """The spot notice, None while there is none. AWS gives it two minutes before it takes the machine.

        Raises:
            requests.RequestException: the service does not answer, or not as it should.
        """
        token = self._ask("PUT", "api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"})
        token.raise_for_status()
        answer = self._ask("GET", "meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token.text})
        if answer.status_code == requests.codes.not_found:
            return None
        answer.raise_for_status()
        try:
            content = answer.json()
            when = datetime.strptime(content["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
            return Notice(f"spot notice: {content['action']}", when.timestamp())
        except (ValueError, KeyError, TypeError) as error:
            raise requests.RequestException(f"a notice that cannot be read: {answer.text[:100]!r}") from error

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> requests.Response:
        return self.session.request(method, f"{self.url}/latest/{path}", headers=headers, timeout=_ASK_SECONDS)


class Leaving:
    """The way out of the cluster for the node that this process runs on.

    Args:
        address: of the cluster.
        node: id or address of the node, where that is not clear.
    """

    def __init__(self, address: str, node: str | None) -> None:
        self.address, self.node = address, node

    def leave(self, notice: Notice) -> bool:
        """Drain the node, and wait until nothing runs there or the time is up; whether it left in time.

        Raises:
            UserError: there is no such cluster or node, or it is the head.
        """
        gcs = self._gcs()
        node = self._find(gcs)
        seconds = max(0.0, notice.deadline - time.time())
        began = time.monotonic()
        deadline = int(1000 * notice.deadline)
        try:
            accepted, objection = gcs.drain_node(
                node, DRAIN_NODE_REASON_PREEMPTION, notice.reason, deadline, timeout=_HEAR_SECONDS
            )
        except Exception as error:
            raise UserError(f"the cluster does not hear that node {node[:8]} leaves ({_one_line(error)})") from error
        if not accepted:
            raise UserError(f"the cluster does not let node {node[:8]} leave: {objection}")
        _say(f"{notice.reason}: node {node[:8]} leaves the cluster, {seconds:.0f} s are left")
        while node in self._alive(gcs):
            if time.monotonic() - began > seconds:
                _say(f"the time is up, and node {node[:8]} still has work: it goes on from its last checkpoints")
                return False
            time.sleep(_LOOK_SECONDS)
        _say(f"node {node[:8]} was empty after {time.monotonic() - began:.1f} s")
        return True

    def _gcs(self) -> Any:
        try:
            return GcsClient(address=canonicalize_bootstrap_address_or_die(self.address))
        except Exception as error:
            raise UserError(f"--address {self.address}: no Ray cluster answers there ({_one_line(error)})") from error

    def _alive(self, gcs: Any) -> dict[str, Any]:
        try:
            nodes = gcs.get_all_node_info(timeout=_HEAR_SECONDS)
        except Exception as error:
            raise UserError(f"--address {self.address}: the cluster is gone ({_one_line(error)})") from error
        return {key.hex(): node for key, node in nodes.items() if node.state == node.ALIVE}

    def _find(self, gcs: Any) -> str:
        """The id of the node.

        Raises:
            UserError: it cannot be told which one it is.
        """
        nodes = self._alive(gcs)
        if self.node:
            found = [key for key, node in nodes.items() if self.node in (key, node.node_manager_address)]
            what = f"--node {self.node}: "
        else:
            name = socket.gethostname()
            found = [key for key, node in nodes.items() if node.node_manager_hostname == name]
            what = f"{name}: "
        if not found:
            raise UserError(f"{what}no node of the cluster at {self.address} runs here")
        if len(found) > 1:
            raise UserError(f"{what}several nodes of the cluster run here; name one: --node {' or '.join(found)}")
        if nodes[found[0]].is_head_node:
            raise UserError(f"{what}this is the cluster's head, which cannot leave it; `ray down` ends a cluster")
        return found[0]


@app.command()
def now(address: Address = "auto", node: Node = None, grace: Grace = 120.0) -> int:
    """Have this node leave its cluster within the grace period; exit code 1 if it had work left at the end."""
    in_time = Leaving(address, node).leave(Notice("told to leave", time.time() + grace))
    return 0 if in_time else 1


@app.command()
def watch(
    address: Address = "auto",
    node: Node = None,
    grace: Grace = 120.0,
    metadata: Annotated[str, typer.Option(envvar="CLAR_METADATA", help="AWS's instance metadata service.")] = _METADATA,
    poll: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="Between two looks for a notice.")] = (
        _POLL_SECONDS
    ),
) -> int:
    """Wait for the spot notice, or for SIGTERM or SIGINT, and have this node leave its cluster."""
    leaving, service = Leaving(address, node), Metadata(metadata)
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    _say(f"watching {service.url} for a spot notice")
    told = ""
    while True:
        if received := signal.sigtimedwait(signals, poll):
            name = signal.Signals(received.si_signo).name
            return 0 if leaving.leave(Notice(f"received {name}", time.time() + grace)) else 1
        try:
            if notice := service.notice():
                leaving.leave(notice)
            trouble = ""
        except requests.RequestException as error:
            # Elsewhere than on AWS there is none, and signals still count.
            reason = type(error).__name__ if isinstance(error, requests.ConnectionError) else _one_line(error)
            trouble = f"{service.url} gives no answer ({reason}); asking on"
        except UserError as error:
            # Not the end: the autoscaler starts Ray anew on a machine that has lost it, as long as that is there.
            trouble = str(error)
        if trouble and trouble != told:
            _say(trouble)
        told = trouble


def _one_line(error: Exception) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[-1].split())[:200]


def _say(text: str) -> None:
    print(f"{datetime.now():%H:%M:%S} {text}", flush=True)


if __name__ == "__main__":
    sys.exit(command(app))
