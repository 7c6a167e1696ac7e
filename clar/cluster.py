"""The Ray cluster on which a sweep runs, this machine or many: the way in, and what is known of it.

A lookout watches the nodes: those that are gone, those that will be taken away, and whether another sweep waits for its
part of the cluster.
"""

import contextlib
import itertools
import json
import logging
import math
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

# Ray's ports run code for whoever reaches them, and some listen on all interfaces: only holders of the token may.
os.environ.setdefault("RAY_AUTH_MODE", "token")

import ray
from ray._private import auto_init_hook
from ray.experimental import internal_kv

from clar.errors import UserError

# Else Ray starts a cluster, open to other machines, when a worker is to be ended and the cluster is gone already.
auto_init_hook.enable_auto_connect = False

LOOK_SECONDS = 3.0
_CONNECT_SECONDS = 10.0
_POOLS = "clar-pools"
_SILENT_SECONDS = 30.0


class ClusterLost(Exception):
    """The cluster does not answer any more; says so."""


@contextmanager
def connect(address: str | None, cpus: int, gpus: int) -> Iterator[dict[str, float]]:
    """Ray on this machine, or the cluster at `address`; gives the resources that it has, or can have, for trials.

    Raises:
        UserError: no cluster answers there.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    # Ray prints a paragraph about each worker that dies, whatever its log settings; the pool says it in a line.
    ray._private.worker.print_to_stdstream = lambda *lines, **options: None
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        try:
            knock(address)
        except Exception as error:
            raise UserError(f"--address {address}: no Ray cluster answers there ({_last_line(error)})") from error
        try:
            ray.init(address=address, **quiet)
        except Exception as error:
            raise UserError(
                f"--address {address}: not let in ({_last_line(error)}); what `ray get-auth-token` says on its head "
                "must stand in RAY_AUTH_TOKEN or ~/.ray/auth_token here, and Ray's version must be the same"
            ) from error
    else:
        with on_loopback() as here:
            ray.init(
                address="local", num_cpus=cpus, num_gpus=gpus, include_dashboard=False, _node_ip_address=here, **quiet
            )
    try:
        yield dict(View.now().most)
    finally:
        ray.shutdown()


def _last_line(error: Exception) -> str:
    """What Ray ends with, without its advice."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].partition(". ")[0]


def knock(address: str) -> None:
    """See whether anybody is there: Ray asks an address without an answer for minutes.

    Raises:
        ValueError, OSError: nobody is.
    """
    if "://" in address:
        raise ValueError("trials need the cluster itself: HOST:PORT of its head, or auto on one of its nodes")
    place = ray._private.services.canonicalize_bootstrap_address_or_die(address)
    host, _, port = place.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()


@contextmanager
def on_loopback() -> Iterator[str]:
    """The address for a Ray of this machine's own: all that it starts meanwhile listens there and nowhere else.

    Ray puts the machine's own address in the place of 127.0.0.1, so that others can join, and then listens on all
    interfaces. Nobody is to join here.
    """
    services = ray._private.services
    resolve = services.resolve_ip_for_localhost
    services.resolve_ip_for_localhost = lambda host: host
    try:
        yield "127.0.0.1"
    finally:
        services.resolve_ip_for_localhost = resolve


@dataclass(frozen=True)
class View:
    """What is known of the cluster.

    Attributes:
        names: of all nodes that there are or were, for the user, by id.
        resources: `CPU` and `GPU` of the nodes that take work.
        most: what they may grow to, where the cluster's autoscaler says so.
        largest: CPUs of the node that has most.
        dead: nodes that are gone.
        leaving: nodes that will be taken away.
        part: of the cluster, that this pool may hold while others wait for theirs; 1: nobody waits.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, float] = field(default_factory=dict)
    most: Mapping[str, float] = field(default_factory=dict)
    largest: int = 0
    dead: frozenset[str] = frozenset()
    leaving: frozenset[str] = frozenset()
    part: float = 1.0

    @classmethod
    def now(cls, part: float = 1.0) -> "View":
        """Ask the cluster; waits for as long as it does not answer."""
        nodes = {node["NodeID"]: node for node in ray.nodes()}
        leaving = frozenset(ray._private.state.state.get_draining_nodes())
        limits = ray._private.state.state.get_max_resources_from_cluster_config() or {}
        limits = {what: count for what, count in limits.items() if count < sys.maxsize}  # that is: no limit
        at_work = [node["Resources"] for key, node in nodes.items() if node["Alive"] and key not in leaving]
        resources = {what: sum(node.get(what, 0.0) for node in at_work) for what in ("CPU", "GPU")}
        return cls(
            names={key: f"{node['NodeManagerAddress']} ({key[:8]})" for key, node in nodes.items()},
            resources=resources,
            most={what: max(count, float(limits.get(what, 0))) for what, count in resources.items()},
            largest=int(max((node.get("CPU", 0.0) for node in at_work), default=0)),
            dead=frozenset(key for key, node in nodes.items() if not node["Alive"]),
            leaving=leaving,
            part=part,
        )

    def held(self, cpus: float, gpus: float) -> float:
        """The part of the cluster that so much is, by what it takes most of."""
        parts = [
            taken / self.resources[what] if self.resources.get(what) else math.inf
            for what, taken in (("CPU", cpus), ("GPU", gpus)) if taken > 1e-6
        ]  # fmt: skip
        return max(parts, default=0.0)


class Lookout(threading.Thread):
    """Looks at the cluster every few seconds, in a thread: its answers may take minutes, or never come.

    Pools on one cluster know of each other through Ray's key-value store: each writes what it holds and whether it
    waits for more.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.key = secrets.token_hex(8)
        self.view = View()
        self.held, self.waits = 0.0, False
        self.beats = itertools.count()
        self.heard: dict[str, tuple[bytes, float]] = {}
        self.wake, self.over = threading.Event(), False

    def run(self) -> None:
        """Look, until `end` is called."""
        while not self.over:
            # Whatever the reason, no answer is no answer; the pool judges how long it has been.
            with contextlib.suppress(Exception):
                self.view = View.now(self._part())
            self.wake.wait(LOOK_SECONDS)
            self.wake.clear()

    def end(self) -> None:
        """Look no more; the other pools need not count on this one any longer."""
        self.over = True
        self.wake.set()
        self.join(LOOK_SECONDS)
        if not self.is_alive():
            with contextlib.suppress(Exception):
                internal_kv._internal_kv_del(self.key, namespace=_POOLS)

    def _part(self) -> float:
        own = json.dumps({"held": self.held, "waits": self.waits, "beat": next(self.beats)})
        internal_kv._internal_kv_put(self.key, own, namespace=_POOLS)
        said = {}
        for key in map(bytes.decode, internal_kv._internal_kv_list("", namespace=_POOLS)):
            if key != self.key and (value := internal_kv._internal_kv_get(key, namespace=_POOLS)):
                said[key] = value
        now = time.monotonic()
        self.heard = {
            key: last if (last := self.heard.get(key)) and last[0] == value else (value, now)
            for key, value in said.items()
        }
        # One that says the same for long is dead: it counts its words.
        for key in [key for key, (_, since) in self.heard.items() if now - since > _SILENT_SECONDS]:
            internal_kv._internal_kv_del(key, namespace=_POOLS)
            del self.heard[key]
        return part_of([json.loads(value) for value, _ in self.heard.values()])


def part_of(others: list[dict[str, Any]]) -> float:
    """The part of the cluster that a pool may hold: its equal one while another waits for its own, else all."""
    active = [other for other in others if other["held"] or other["waits"]]
    equal = 1 / (1 + len(active))
    return equal if any(other["waits"] and other["held"] < equal - 1e-6 for other in active) else 1.0
