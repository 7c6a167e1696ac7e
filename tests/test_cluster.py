"""What clusters do, done to real sweeps on three and more nodes: each ends with the tables of an undisturbed run."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from clar import cluster, sweep, trial
from clar import pool as pools
from clar.config import Runtime
from clar.errors import UserError
from clar.packing import Share
from clar.sweep import Slots
from tests.nodes import Node, Nodes, running
from tests.running import TEMPERATURES, TINY, Command, newest_checkpoint, outputs, wait_for

LONG = [*(argument.replace("epochs=2", "epochs=80") for argument in TINY), "--no-report", "--max-lost", "2"]
FEW = TEMPERATURES.replace(", 0.7, 1.0", "").replace("Six", "Four")
SWEEPS = {"temperatures": TEMPERATURES, "few": FEW}
SECONDS = 240.0


class Sweep:
    """A sweep in a folder and a storage of its own, on a cluster, or without one on this machine."""

    def __init__(self, name: str, folder: Path, cache: Path, nodes: Nodes | None = None) -> None:
        folder.mkdir(exist_ok=True)
        self.name, self.command = name, Command(folder, cache)
        (folder / f"{name}.py").write_text(SWEEPS[name])
        self.where = ["--storage", str(self.command.storage)]
        if nodes:
            self.command.environment |= {**nodes.environment, "CLAR_CACHE": str(cache)}
            self.where += ["--address", nodes.address]

    def start(self, *more: str) -> subprocess.Popen[str]:
        return self.command.start("clar.sweep", f"{self.name}.py", *LONG, *self.where, *more)

    def moved(self, process: subprocess.Popen[str]) -> None:
        """Wait for one more checkpoint."""
        before = newest_checkpoint(self.command)
        wait_for(lambda: newest_checkpoint(self.command) > before, process, SECONDS)

    def logs(self) -> list[str]:
        return [path.read_text() for path in self.command.storage.glob("trials/*/log.txt")]

    def outputs(self) -> dict[str, bytes]:
        return outputs(self.command, self.name)


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """Wait for a sweep's end; what it said."""
    output, _ = process.communicate(timeout=900)
    assert process.returncode == code, output
    assert "Traceback" not in output
    return output


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, small_cache: Path) -> dict[str, dict[str, bytes]]:
    """What the sweeps leave in peace, by name."""
    folder = tmp_path_factory.mktemp("undisturbed")
    found = {}
    for name in SWEEPS:  # the few are among the others, and are done then
        one = Sweep(name, folder, small_cache)
        finish(one.start())
        found[name] = one.outputs()
    return found


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with running() as cluster:
        yield cluster


def workers(node: Node) -> list[int]:
    """The workers of sweeps on a node."""
    found = []
    for pid in node.processes():
        try:
            if b"ray::Worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
        except OSError:
            continue
    return found


def resumed(logs: list[str], after: str) -> bool:
    """Whether a trial that said this has gone on later, with the epoch that was due."""
    for log in logs:
        head, said, tail = log.partition(after)
        if said and (epochs := re.findall(r"epoch (\d+)/", tail)):
            return int(epochs[0]) == int(([0, *re.findall(r"epoch (\d+)/", head)])[-1]) + 1
    return False


@pytest.mark.slow
def test_nodes_that_leave_die_and_join(
    tmp_path: Path, small_cache: Path, nodes: Nodes, undisturbed: dict[str, dict[str, bytes]]
) -> None:
    """SIGTERM to a worker, a notice to a node, a node's sudden death: none counts, not even where no retry is left."""
    nodes.start(0)
    first, second = nodes.start(1), nodes.start(1)
    one = Sweep("temperatures", tmp_path / "one", small_cache, nodes)
    process = one.start("--retries", "0")
    wait_for(lambda: newest_checkpoint(one.command) > 0 and len(workers(first)) == 1, process, SECONDS)
    (worker,) = workers(first)
    os.kill(worker, signal.SIGTERM)
    wait_for(lambda: any(" stopped\n" in log for log in one.logs()), process, SECONDS)
    wait_for(lambda: resumed(one.logs(), " stopped\n"), process, SECONDS)
    wait_for(lambda: not Path(f"/proc/{worker}").exists(), process, SECONDS)

    late = nodes.start(1)
    wait_for(lambda: len(workers(late)) == 1, process, SECONDS)

    stopped = sum(log.count(" stopped\n") for log in one.logs())
    wait_for(lambda: len(workers(first)) == 1, process, SECONDS)
    one.moved(process)
    nodes.drain(first)
    wait_for(lambda: sum(log.count(" stopped\n") for log in one.logs()) > stopped, process, SECONDS)
    # Empty, it ends by itself.
    wait_for(lambda: not first.up(), process, SECONDS)

    wait_for(lambda: len(workers(second)) == 1, process, SECONDS)
    one.moved(process)
    second.kill()
    nodes.start(1)
    output = finish(process)
    assert "was told to end; its trial goes on from its checkpoint" in output
    assert re.search(r"node \S+ \(\w+\) will be taken away; its 1 trials checkpoint and go on elsewhere", output)
    assert re.search(r"node \S+ \(\w+\) is lost; its 1 trials go on from their checkpoints", output)
    assert one.outputs() == undisturbed["temperatures"]


@pytest.mark.slow
def test_two_sweeps_share_a_cluster_and_outlive_their_workers_and_drivers(
    tmp_path: Path, small_cache: Path, nodes: Nodes, undisturbed: dict[str, dict[str, bytes]]
) -> None:
    """The first has all until the second comes; then one of its workers is killed, and then its driver."""
    nodes.start(0)
    places = [nodes.start(1), nodes.start(1)]
    one, two = (Sweep("few", tmp_path / name, small_cache, nodes) for name in ("one", "two"))
    process = one.start()
    wait_for(lambda: newest_checkpoint(one.command) > 0 and all(map(workers, places)), process, SECONDS)
    os.kill(workers(places[0])[0], signal.SIGKILL)
    one.moved(process)

    other = two.start()
    wait_for(lambda: newest_checkpoint(two.command) > 0, other, 2 * SECONDS)
    assert process.poll() is None, "the second had to wait for the end of the first"
    one.moved(process)

    process.kill()
    process.communicate()
    # Its workers end with it; the other's stay.
    wait_for(lambda: sum(len(workers(place)) for place in places) <= 2, other, SECONDS)
    finish(one.start())
    finish(other)
    assert one.outputs() == two.outputs() == undisturbed["few"]


@pytest.mark.slow
def test_from_no_node_at_all_to_the_end_of_the_cluster(
    tmp_path: Path, small_cache: Path, nodes: Nodes, undisturbed: dict[str, dict[str, bytes]]
) -> None:
    """A cluster that an autoscaler has yet to fill; then its head is lost, and this machine goes on alone."""
    head = nodes.start(0)
    one = Sweep("few", tmp_path / "one", small_cache, nodes)
    output = finish(one.start(), code=2)
    assert output.splitlines()[-1].startswith("error: the cluster has no node for trials yet; say what each is to get")
    process = one.start("--cpus-per-trial", "1", "--gpus-per-trial", "0")
    wait_for(lambda: "{'CPU': 1.0}: 2+ pending tasks/actors" in nodes.ray("status"), process, SECONDS)
    node = nodes.start(1)
    wait_for(lambda: len(workers(node)) == 1, process, SECONDS)
    one.moved(process)
    for pid in head.processes():
        if b"gcs_server" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]:
            os.kill(pid, signal.SIGKILL)
    output = finish(process, code=1)
    assert re.search(
        r"^error: the Ray cluster has not answered for \d+ s \(.*\); the same command goes on", output, re.M
    )
    for each in nodes.nodes:
        each.kill()
    finish(Sweep("few", tmp_path / "one", small_cache).start())
    assert one.outputs() == undisturbed["few"]


# The pool's own decisions, without a cluster.


def job(name: str, share: Share | None = None, after: str | None = None) -> trial.Job:
    here = Path("/nowhere")
    runtime = Runtime(device="cpu", threads=1, storage=here, store=here, code_version="")
    return trial.Job(name, {}, None, runtime, share or Share(1, 0.0), after)


class Remote:
    """A method of an actor that nobody calls in earnest."""

    def options(self, **options: Any) -> "Remote":
        return self

    def remote(self, *arguments: Any) -> object:
        return object()


class FakePool(pools.Pool):
    """A pool whose workers are none, on a cluster that is told what it is."""

    def __init__(self, cpus: float, retries: int = 0) -> None:
        self.reports: list[trial.Report] = []
        self.said: list[str] = []
        super().__init__(self.reports.append, self.said.append, retries)
        self.see(resources={"CPU": cpus}, most={"CPU": cpus})
        self._looked = time.monotonic()

    def make_worker(self, share: Share) -> Any:
        return SimpleNamespace(run=Remote(), stop=Remote(), __ray_ready__=Remote())

    def see(self, **what: Any) -> None:
        """A new view of the cluster, as the lookout would bring it."""
        self.lookout.view = cluster.View(**{**vars(self.view), "names": {"a": "a", "b": "b"}, **what})
        self._looked = time.monotonic()
        self._look()

    def wait(self, *jobs: trial.Job) -> None:
        self.unfinished |= {one.identity for one in jobs}
        for one in jobs:
            self._line_up(pools._Attempt(one))
        self._start()

    def place(self, count: int, node: str = "a") -> list[pools._Slot]:
        """Ray finds room for some of those that were asked for; they begin."""
        placed = list(self.asked.values())[:count]
        for slot in placed:
            self._placed(slot)
            slot.process = (node, 1)
        self._start()
        return placed

    def end(self, slot: pools._Slot, state: trial.State, **what: Any) -> None:
        assert slot.attempt
        slot.last = trial.Report(slot.attempt.job.identity, state, **what)
        self._ended(slot)
        self._start()

    def states(self) -> list[tuple[str, str]]:
        return [(report.identity, report.state) for report in self.reports]


def test_the_death_of_a_node_is_no_failure_also_where_it_is_heard_of_late() -> None:
    pool = FakePool(cpus=2)
    pool.wait(job("1"), job("2"))
    first, second = pool.place(2)
    pool._died(first, "gone")
    pool._died(second, "gone")
    assert not pool.reports  # it may be the node
    assert not pool.waiting.ready
    pool.see(dead=frozenset("a"))
    pool._start()
    assert pool.said == ["node a is lost; its 2 trials go on from their checkpoints"]
    assert pool.waiting.count(Share(1, 0.0)) == 2
    (third, _) = pool.place(2, node="b")
    pool._died(third, "gone")
    assert not pool.reports
    # What becomes of another node says nothing about this one.
    pool.see(dead=frozenset("ac"), names={"a": "a", "b": "b", "c": "c"})
    pool._start()
    assert not pool.reports
    # The node is well: it was the trial.
    pool.waiting.review(frozenset("b"))
    pool._start()
    assert [state for _, state in pool.states()] == ["failed"]


def test_a_trial_under_which_nodes_keep_dying_is_given_up() -> None:
    pool = FakePool(cpus=1)
    pool.wait(job("1"))
    for count in range(pools._MOST_NODES):
        assert not pool.reports
        (slot,) = pool.place(1, node=f"n{count}")
        pool.see(dead=frozenset({f"n{count}"}), names={f"n{count}": "n"})
        pool._start()
        assert slot not in pool.slots
    assert pool.states() == [("1", "failed")]
    assert "10 nodes died under it" in pool.reports[0].reason


def test_a_node_that_will_be_taken_away_is_emptied() -> None:
    pool = FakePool(cpus=4)
    pool.wait(job("1"), job("2"))
    leaving, staying = pool.place(2)
    staying.process = ("b", 1)
    pool.see(leaving=frozenset("a"))
    assert pool.said == ["node a will be taken away; its 1 trials checkpoint and go on elsewhere"]
    assert (leaving.leaving, staying.leaving) == (True, False)
    pool.end(leaving, "stopped")
    assert leaving not in pool.slots
    assert staying in pool.slots
    assert len(pool.asked) == 1
    assert not pool.reports


def test_what_is_asked_for_grows_with_what_is_placed_and_is_taken_back() -> None:
    pool = FakePool(cpus=0)
    pool.wait(*(job(str(number)) for number in range(40)))
    assert len(pool.asked) == 2  # from nothing
    pool.place(2)
    assert len(pool.asked) == 2
    pool.see(resources={"CPU": 16.0}, most={"CPU": 16.0})
    pool._start()
    assert len(pool.slots) == 16  # a node with 16
    busy = pool.place(14)
    assert len(pool.asked) == 8  # half as many again
    for slot in busy:
        pool.end(slot, "done")
    assert len(pool.asked) == 8
    while pool.waiting:
        pool.end(next(iter(pool.busy.values())), "done")
    assert not pool.asked
    assert pool.taken[0] == len(pool.slots) == 16


def test_an_autoscaler_that_says_its_limit_is_asked_for_all_of_it() -> None:
    pool = FakePool(cpus=0)
    pool.see(most={"CPU": 24.0})
    pool.wait(*(job(str(number)) for number in range(40)))
    assert len(pool.asked) == 24


def test_idle_workers_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = FakePool(cpus=4)
    pool.wait(job("1"), job("2"))
    first, second = pool.place(2)
    pool.end(first, "done")
    pool.see()
    assert first in pool.slots  # there may be more for it at once
    monkeypatch.setattr(pools, "_IDLE_SECONDS", -1.0)
    pool.see()
    assert pool.slots == {second}


def test_idle_workers_make_room_for_others() -> None:
    pool = FakePool(cpus=4)
    pool.wait(*(job(str(number)) for number in range(4)))
    for slot in pool.place(4)[:3]:
        pool.end(slot, "done")
    pool.wait(job("large", Share(3, 0.0)))
    assert [slot.share.cpus for slot in pool.slots if slot.asked] == [3]
    assert len(pool.slots) == 2


def test_a_pool_with_more_than_its_part_gives_up_workers_at_the_end_of_their_trials() -> None:
    pool = FakePool(cpus=4)
    pool.wait(*(job(str(number)) for number in range(20)))
    slots = pool.place(4)
    pool.see(part=0.5)
    pool._start()
    assert not pool.asked  # what was asked for beyond the room would take what others wait for
    for slot in slots:
        pool.end(slot, "done")
    assert len(pool.slots) == len(pool.busy) == 2
    pool.see(part=1.0)
    pool._start()
    assert len(pool.slots) == 4


def test_parts_are_equal_and_nobody_waits_for_one_that_is_content() -> None:
    holds_all, waits, content = (
        {"held": 1.0, "waits": True}, {"held": 0.0, "waits": True}, {"held": 0.1, "waits": False}
    )  # fmt: skip
    assert cluster.part_of([]) == 1
    assert cluster.part_of([content]) == 1
    assert cluster.part_of([waits]) == 0.5
    assert cluster.part_of([waits, content]) == pytest.approx(1 / 3)
    assert cluster.part_of([holds_all]) == 1  # for the one that waits itself
    assert cluster.part_of([{"held": 0.0, "waits": False}, waits]) == 0.5  # one without trials is none


def test_a_storage_that_does_not_answer_is_no_failure() -> None:
    pool = FakePool(cpus=1)
    pool.wait(job("1"))
    for count in range(3):
        (slot,) = pool.place(1) if not count else list(pool.busy.values())
        before = time.monotonic()
        pool.end(slot, "failed", cause="storage", reason="OSError: no answer")
        ((due, *_),) = pool.waiting.later
        assert due - before >= pools._STORAGE_SECONDS * 2**count
        pool.waiting.later = [(0.0, *pool.waiting.later[0][1:])]
        pool._start()
    assert not pool.reports
    assert pool.said == ["the storage does not answer (OSError: no answer); what cannot go on is tried again later"]
    pool.end(next(iter(pool.busy.values())), "done")
    assert pool.states() == [("1", "done")]


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (OSError(5, "Input/output error", "/nfs/x"), "storage"),
        (ConnectionResetError(104, "reset"), "storage"),
        (TimeoutError(110, "timed out"), "storage"),
        (OSError(28, "No space left on device"), "disk"),
        (FileNotFoundError(2, "no such file"), ""),
        (ValueError("x"), ""),
        (MemoryError(), "memory"),
        (UserError("x"), "user"),
    ],
)
def test_causes_of_failures(error: Exception, cause: str) -> None:
    assert trial._cause(error) == cause


def test_an_error_of_the_storages_client_is_the_storages() -> None:
    from botocore.exceptions import EndpointConnectionError

    assert trial._cause(EndpointConnectionError(endpoint_url="http://x")) == "storage"


def test_trials_wait_for_their_pretraining_and_fail_with_it() -> None:
    pool = FakePool(cpus=4)
    pool.wait(job("base"), job("good"), job("tuned", after="good"), job("lost", after="base"))
    slots = {slot.attempt.job.identity: slot for slot in pool.place(2) if slot.attempt}
    assert set(slots) == {"base", "good"}
    pool.end(slots["good"], "done")
    pool.end(slots["base"], "failed", cause="user")
    assert pool.states() == [("good", "done"), ("base", "failed"), ("lost", "failed")]
    assert pool.reports[-1].reason == "its pre-training base failed"
    assert [slot.attempt.job.identity for slot in pool.busy.values() if slot.attempt] == ["tuned"]


def test_workers_that_never_come_up_fail_the_trials_at_last() -> None:
    pool = FakePool(cpus=1)
    pool.wait(job("1"))
    for _ in range(pools._STILLBORN + 1):
        assert not pool.reports
        pool._died(next(iter(pool.asked.values())), "no module named clar")
        pool._start()
    assert pool.states() == [("1", "failed")]


def test_a_cluster_that_does_not_answer_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = FakePool(cpus=1)
    pool._looked -= 3600  # asleep meanwhile
    pool._look()
    pool._silence = pools._LOST_SECONDS + 1
    monkeypatch.setattr(pool, "_knock", lambda: None)
    pool._look()  # busy, but it takes calls
    pool._silence = pools._LOST_SECONDS + 1
    monkeypatch.setattr(pool, "_knock", lambda: cluster.knock("127.0.0.1:1"))
    with pytest.raises(cluster.ClusterLost, match=r"not answered for 31 s .*refused"):
        pool._look()


def test_a_pool_waits_for_what_others_could_give() -> None:
    pool = FakePool(cpus=1)
    pool.wait(job("1", Share(1, 1.0)))
    pool.see()
    assert not pool.lookout.waits  # there are no GPUs
    pool.see(resources={"CPU": 1.0, "GPU": 1.0})
    assert pool.lookout.waits


def test_slots_of_a_cluster_without_nodes() -> None:
    nothing = {"CPU": 0.0, "GPU": 0.0}
    assert str(Slots.of(nothing, 4, "1")) == "as many as find room at a time, each 4 CPU and 1 GPU"
    for asked in ((None, None), (4, None), (None, "1"), (None, "auto")):
        with pytest.raises(UserError, match="no node for trials yet; say what each is to get"):
            Slots.of(nothing, *asked)


@pytest.mark.parametrize(
    ("given", "known", "expected"),
    [
        (None, "", None), (None, "10.0.0.1:6379", "10.0.0.1:6379"), (None, "local", None),
        (None, "http://127.0.0.1:8265", None), ("10.0.0.2:1", "10.0.0.1:6379", "10.0.0.2:1"),
        ("auto", "10.0.0.1:6379", "auto"), ("local", "10.0.0.1:6379", None),
    ],
)  # fmt: skip
def test_where_the_cluster_is(
    monkeypatch: pytest.MonkeyPatch, given: str | None, known: str, expected: str | None
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", known)
    assert sweep._address(given) == expected


def test_where_the_cluster_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(UserError, match="is for `ray job submit`"):
        sweep._address("auto")
    for address, reason in (("ray://10.0.0.1:10001", "need the cluster itself"), ("127.0.0.1:1", "refused")):
        with pytest.raises(UserError, match=f"--address {address}: no Ray cluster answers there .*{reason}"):
            cluster.connect(address, 0, 0).__enter__()


@pytest.mark.slow
def test_who_has_no_token_is_told_where_it_goes(tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": ""}
    with socket.create_server(("", 0)) as server:  # Ray asks this machine's own address
        address = f"127.0.0.1:{server.getsockname()[1]}"
        line = [sys.executable, "-m", "clar.sweep", "augmentations", "--address", address, "--storage", str(tmp_path)]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    said = done.stderr.splitlines()
    assert len(said) == 1
    assert re.match(rf"error: --address {address}: not let in \(.*token.*RAY_AUTH_TOKEN or ~/.ray/auth_token", said[0])


def test_nothing_that_is_asked_of_a_lost_cluster_starts_another() -> None:
    for ask in (cluster.View.now, lambda: ray.get_actor("a"), lambda: ray.get(ray.ObjectRef.nil())):
        with pytest.raises(Exception, match=r"not been started|has not been"):
            ask()
    assert not ray.is_initialized()
