"""The pool of workers on which a sweep's trials run.

Plain Ray actors: Ray starts them where there is room, and tells when one dies. Ray Tune's own loop is not used: it has
no rounds (its workers end where nothing is ready for a moment), cannot end a trial that hangs, and its books, which
nothing here needs, cost 0.2 s a trial. Everything that matters is in the storage: nodes may come and go, and a trial
goes on from its checkpoint wherever there is room.
"""

import contextlib
import dataclasses
import functools
import heapq
import itertools
import math
import os
import signal
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray

from clar.cluster import LOOK_SECONDS, ClusterLost, Lookout, View, knock
from clar.packing import Share
from clar.trial import Cause, Job, Report, Worker, one_line

_BUSY_ELSEWHERE_SECONDS = 2.0
_STOP_SECONDS = 120.0
_NEWS_SECONDS = 0.5
_IDLE_SECONDS = 15.0
_TELL_SECONDS = 60.0
_LOST_SECONDS = 30.0
"""Without an answer of the cluster. After 60, Ray ends this process itself, without a word about the sweep."""
_NODE_NEWS_SECONDS = 75.0
"""Until a node that died is known to have: Ray asks each five times, every 3 s, and waits up to 10 s for an answer."""
_MOST_NODES = 10
"""Nodes that may die under a trial before it is taken for the reason."""
_STILLBORN = 3
_STORAGE_SECONDS, _STORAGE_MOST_SECONDS, _STORAGE_TRIES = 10.0, 300.0, 25


class StorageFull(Exception):
    """The storage's disk is full; says which path could not be written."""


def measure(request: dict[str, Any], gpu: bool) -> dict[str, Any]:
    """`clar.packing.answer` by a worker of the cluster that this process is connected to."""
    worker: Any = ray.remote(Worker).options(num_cpus=1, num_gpus=1 if gpu else 0).remote()
    try:
        return ray.get(worker.measure.remote(request))
    finally:
        ray.kill(worker)


@dataclass
class _Attempt:
    """A job that waits for a worker, for the first time or again.

    Attributes:
        job: the job.
        failures: that count.
        died_on: the nodes on which a worker died under it; counts too, but for those that are gone themselves.
        away: how often the storage failed it.
        alone: whether it gets more than its share.
        verdict: the failure for which it will be given up, if the node does not turn out to be gone.
    """

    job: Job
    failures: int = 0
    died_on: list[str] = field(default_factory=list)
    away: int = 0
    alone: bool = False
    verdict: Report | None = None


class _Waiting:
    """The attempts that wait: for a worker, by share; for a moment to come; for a trial that must have ended before."""

    def __init__(self) -> None:
        self.ready: dict[Share, deque[_Attempt]] = {}
        self.later: list[tuple[float, int, Share, _Attempt]] = []
        self.after: dict[str, list[_Attempt]] = defaultdict(list)
        self.numbers = itertools.count()

    def __bool__(self) -> bool:
        return bool(self.ready or self.later or self.after)

    def add(self, attempt: _Attempt, share: Share, seconds: float = 0.0, first: bool = False) -> None:
        """One that may start in so many seconds, or at once: then after all others, or before them."""
        if seconds:
            heapq.heappush(self.later, (time.monotonic() + seconds, next(self.numbers), share, attempt))
            return
        line = self.ready.setdefault(share, deque())
        if first:
            line.appendleft(attempt)
        else:
            line.append(attempt)

    def take(self, share: Share) -> _Attempt:
        """The next one of a share."""
        attempt = self.ready[share].popleft()
        if not self.ready[share]:
            del self.ready[share]
        return attempt

    def due(self) -> Iterator[tuple[Share, _Attempt]]:
        """Those whose moment has come."""
        while self.later and self.later[0][0] <= time.monotonic():
            _, _, share, attempt = heapq.heappop(self.later)
            yield share, attempt

    def review(self, nodes: frozenset[str]) -> None:
        """The moment of those that wait for the news of these nodes is now."""
        self.later = [
            (0.0 if one[3].verdict and one[3].died_on[-1] in nodes else one[0], *one[1:]) for one in self.later
        ]
        heapq.heapify(self.later)

    def count(self, share: Share) -> int:
        """How many of a share may start at once."""
        return len(self.ready.get(share, ()))


@dataclass(eq=False)
class _Slot:
    """A worker, and what it is doing.

    Attributes:
        asked: ready once Ray has placed it; None from then on.
        leaving: whether it has been told to stop, because its node goes away.
        since: when it was asked for, or its last trial ended.
    """

    actor: Any
    share: Share
    asked: Any = None
    attempt: _Attempt | None = None
    reports: Any = None
    heard: float = math.inf
    process: tuple[str, int] = ("", 0)
    last: Report | None = None
    leaving: bool = False
    since: float = field(default_factory=time.monotonic)


def _of_gpu(share: Share) -> float:
    """What a share takes of the GPUs: of 0.6, only one fits on each."""
    return share.gpus if share.gpus >= 1 or not share.gpus else 1 / int(1 / share.gpus)


@functools.cache
def _actor() -> Any:
    return ray.remote(Worker)


class Pool:
    """Workers on a Ray cluster, as many as it has room for, now and after it has grown. A context manager; leaving it
    ends the workers.

    Some more workers than there is room for are asked for: that is what an autoscaler goes by, and what is there at
    once when a node joins. Those without work for a while are ended: an autoscaler ends nodes that nobody uses.

    Args:
        on_report: called with every report, and for a failure with `failed` only when the trial is given up.
        say: prints one line for the user.
        retries: how often a failed trial is tried again, from its checkpoint. What nodes do that die or are taken away,
            or a storage that does not answer, does not count.
        timeout: seconds without a finished epoch after which a trial counts as hung and is ended; None: never.
    """

    def __init__(
        self,
        on_report: Callable[[Report], None],
        say: Callable[[str], None],
        retries: int = 2,
        timeout: float | None = None,
    ) -> None:
        self.on_report, self.say = on_report, say
        self.retries, self.timeout = retries, timeout
        self.slots: set[_Slot] = set()
        self.asked: dict[Any, _Slot] = {}
        self.busy: dict[Any, _Slot] = {}
        self.idle: dict[Share, list[_Slot]] = defaultdict(list)
        self.taken = [0, 0.0]
        self.waiting, self.unfinished = _Waiting(), set[str]()
        self.given_up: set[str] = set()
        self.full: str = ""
        self.lookout, self.view, self.dead = Lookout(), View(), set[str]()
        self._losses: dict[str, set[str]] = defaultdict(set)
        self._told: set[str] = set()
        self._looked, self._silence = 0.0, 0.0
        self._stillborn = 0
        self._interrupts = 0

    def __enter__(self) -> "Pool":
        # In the main thread only; elsewhere there are no signals to take.
        self._former = {
            number: signal.signal(number, self._interrupt)
            for number in (signal.SIGINT, signal.SIGTERM)
            if threading.current_thread() is threading.main_thread()
        }
        self.lookout.view = self.view = View.now()
        self.lookout.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.lookout.end()
        for slot in list(self.slots):
            self._end(slot)
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def run(self, jobs: list[Job]) -> None:
        """Run every job to its end, as many at a time as there is room for.

        Raises:
            KeyboardInterrupt: after Ctrl-C or SIGTERM, when the running trials have written their checkpoints.
            StorageFull: a trial could not write; the other running ones have ended.
            ClusterLost: the cluster does not answer.
        """
        self.waiting, self.unfinished = _Waiting(), {job.identity for job in jobs}
        for job in jobs:
            self._line_up(_Attempt(job))
        stop_by = 0.0
        self._looked = time.monotonic()
        while self.waiting or self.busy:
            if self._interrupts and not stop_by:
                stop_by = time.monotonic() + _STOP_SECONDS
                self._stop()
            if stop_by and (not self.busy or time.monotonic() > stop_by):
                raise KeyboardInterrupt
            if self.full and not self.busy:
                raise StorageFull(self.full)
            self._look()
            if not stop_by and not self.full:
                self._start()
            for slot in self._news():
                self._listen(slot)
            self._end_hung()
        self.lookout.held, self.lookout.waits = 0.0, False
        if self._interrupts:
            raise KeyboardInterrupt
        if self.full:
            raise StorageFull(self.full)

    def release(self) -> None:
        """End the workers that have nothing to do: something else needs their place."""
        for slot in [slot for slot in self.slots if slot.attempt is None]:
            self._end(slot)

    def _interrupt(self, number: int, frame: object) -> None:
        self._interrupts += 1
        if self._interrupts > 1:
            raise KeyboardInterrupt

    def _stop(self) -> None:
        if self.busy:
            self.say(f"stopping: {len(self.busy)} trials write their checkpoints; Ctrl-C again stops at once")
        for slot in self.busy.values():
            slot.actor.stop.remote()
        for slot in list(self.asked.values()):
            self._end(slot)

    # Waiting trials, and workers for them.

    def _line_up(self, attempt: _Attempt) -> None:
        """Have a trial wait for its worker, or for the trial that must have ended before."""
        job = attempt.job
        if job.after in self.unfinished:
            self.waiting.after[job.after].append(attempt)
        elif job.after in self.given_up:
            self._give_up(attempt, Report(job.identity, "failed", reason=f"its pre-training {job.after} failed"))
        else:
            self.waiting.add(attempt, job.share)

    def _start(self) -> None:
        """Give work to workers, and see to it that there are as many as there is work for."""
        for share, attempt in self.waiting.due():
            verdict, attempt.verdict = attempt.verdict, None
            if verdict and self._failures(attempt) > self.retries:
                self._give_up(attempt, verdict)
            else:
                self.waiting.add(attempt, share, first=True)
        for share in list(self.waiting.ready):
            idle = self.idle[share]
            while idle and self.waiting.count(share):
                self._give(idle.pop(), self.waiting.take(share))
        self._ask()

    def _give(self, slot: _Slot, attempt: _Attempt) -> None:
        slot.attempt, slot.heard, slot.last = attempt, math.inf, None
        slot.reports = slot.actor.run.options(num_returns="streaming").remote(attempt.job)
        self.busy[slot.reports] = slot

    def _ask(self) -> None:
        """Ask Ray for workers, and take back what was asked for and is not needed any more."""
        asked: dict[Share, list[_Slot]] = defaultdict(list)
        for slot in self.asked.values():
            asked[slot.share].append(slot)
        for share in {**asked, **self.waiting.ready}:
            wanted, ahead = self.waiting.count(share), asked[share]
            # One that waits for its place may wait for long; an idle one has taken its work.
            while len(ahead) > wanted or (ahead and self.view.part < 1 and self._held() > self.view.part + 1e-6):
                self._end(ahead.pop())
            while len(ahead) < wanted and (self._room(share) or len(ahead) < self._beyond()):
                ahead.append(self._worker(share))

    def _worker(self, share: Share) -> _Slot:
        actor = self.make_worker(share)
        slot = _Slot(actor, share, actor.__ray_ready__.remote())
        self.slots.add(slot)
        self.asked[slot.asked] = slot
        self.taken[0] += share.cpus
        self.taken[1] += _of_gpu(share)
        return slot

    def make_worker(self, share: Share) -> Any:
        """Ask Ray for a worker with a share of a node; the actor, which need not be running yet."""
        options = {"num_cpus": share.cpus, "num_gpus": share.gpus, "max_restarts": 0, "max_concurrency": 4}
        return _actor().options(**options).remote()

    def _room(self, share: Share) -> bool:
        """Whether the cluster has room for one more, once idle workers with other shares have made some."""
        idle = [slot for slots in self.idle.values() for slot in slots if slot.share != share]
        while not self._fits(share):
            if not idle:
                return False
            self._end(idle.pop())
        return True

    def _fits(self, share: Share) -> bool:
        cpus, gpus = self.taken[0] + share.cpus, self.taken[1] + _of_gpu(share)
        if self.view.part < 1:
            return not self.slots or self.view.held(cpus, gpus) <= self.view.part + 1e-6
        most = self.view.most
        return cpus <= most.get("CPU", 0) + 1e-6 and gpus <= most.get("GPU", 0) + 1e-6

    def _beyond(self) -> int:
        """How many workers of a share to ask for, room or not: as fast as Ray's autoscaler lets a cluster grow."""
        return max(2, (len(self.slots) - len(self.asked)) // 2) if self.view.part == 1 else 0

    def _held(self, without: Share | None = None) -> float:
        cpus, gpus = self.taken
        if without:
            cpus, gpus = cpus - without.cpus, gpus - _of_gpu(without)
        return self.view.held(cpus, gpus)

    def _whole(self, share: Share) -> Share:
        """So much that nothing else runs on the same GPU, or, without GPUs, on the same node."""
        return Share(1, 1.0) if share.gpus else Share(max(share.cpus, self.view.largest), 0.0)

    # The cluster.

    def _look(self) -> None:
        """Take in what the lookout has seen: nodes that are gone or will be, others that wait, an autoscaler's limit.

        Raises:
            ClusterLost: it has seen nothing for long.
        """
        now = time.monotonic()
        # A process that was stopped meanwhile, or a machine that slept, has missed no answers.
        self._silence += min(now - self._looked, LOOK_SECONDS)
        self._looked = now
        if self._silence > _LOST_SECONDS:
            try:
                self._knock()
            except OSError as error:
                raise ClusterLost(f"the Ray cluster has not answered for {self._silence:.0f} s ({error})") from error
            self._silence = 0.0  # slow, but there
        if self.lookout.view is self.view:
            return
        former, self.view, self._silence = self.view, self.lookout.view, 0.0
        placed = [slot.share for slot in self.slots if not slot.asked]
        self.lookout.held = self.view.held(sum(share.cpus for share in placed), sum(map(_of_gpu, placed)))
        # For nodes of a kind that are not there, nobody can make room.
        self.lookout.waits = any(self.view.held(share.cpus, _of_gpu(share)) <= 1 for share in self.waiting.ready)
        if gone := self.view.dead - former.dead:
            self._lose(gone)
        if self.view.leaving:
            self._leave(self.view.leaving)
        for slot in [slot for idle in self.idle.values() for slot in idle if now - slot.since > _IDLE_SECONDS]:
            self._end(slot)
        oldest = min(self.asked.values(), key=lambda slot: slot.since, default=None)
        if oldest and now - oldest.since > _TELL_SECONDS and len(self.asked) == len(self.slots):
            self._say_once(f"no node has room for a trial of {oldest.share} yet; waiting for one")

    def _lose(self, nodes: frozenset[str]) -> None:
        """Nodes are gone, and the workers there with them, whether they have been heard to die or not."""
        self.dead |= nodes
        for slot in [slot for slot in self.slots if slot.process[0] in nodes]:
            self._died(slot, "its node is gone")
        for node in nodes:
            if trials := self._losses.pop(node, set()) & self.unfinished:
                self.say(f"node {self.view.names[node]} is lost; its {len(trials)} trials go on from their checkpoints")
        self.waiting.review(nodes)

    def _leave(self, nodes: frozenset[str]) -> None:
        """Nodes will be taken away: have their trials write their checkpoints now."""
        there = [slot for slot in self.slots if slot.process[0] in nodes and not slot.leaving]
        for node in {slot.process[0] for slot in there if slot.attempt}:
            count = sum(slot.process[0] == node and slot.attempt is not None for slot in there)
            self.say(
                f"node {self.view.names[node]} will be taken away; its {count} trials checkpoint and go on elsewhere"
            )
        for slot in there:
            if slot.attempt:
                slot.leaving = True
                slot.actor.stop.remote()
            else:
                self._end(slot)

    def _knock(self) -> None:
        knock(ray.get_runtime_context().gcs_address)

    def _say_once(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            self.say(line)

    # What workers say.

    def _news(self) -> list[_Slot]:
        """The workers that have something to say, after a moment's wait."""
        sources = {**self.asked, **self.busy}
        if not sources:
            time.sleep(_NEWS_SECONDS)
            return []
        ready, _ = ray.wait(list(sources), num_returns=1, timeout=_NEWS_SECONDS)
        if ready and len(sources) > 1:
            # To look at all costs about the same whatever has come: 0.1 ms a source, so wait for some more.
            time.sleep(1e-4 * len(sources))
            ready, _ = ray.wait(list(sources), num_returns=len(sources), timeout=0)
        return [sources[source] for source in ready]

    def _listen(self, slot: _Slot) -> None:
        """Take one report, or the news that there will be none."""
        if slot not in self.slots:
            return
        try:
            if slot.asked:
                ray.get(slot.asked)
                self._placed(slot)
                return
            report: Report = ray.get(next(slot.reports))
        except StopIteration:
            self._ended(slot)
        except ray.exceptions.RayError as error:
            # Ray's memory monitor ends a worker before the system would end the node.
            short = isinstance(error, ray.exceptions.OutOfMemoryError) or "running low on memory" in str(error)
            reason = f"the worker process died ({one_line(error)[:200]})"
            self._died(slot, reason, "memory" if short else "")
        else:
            slot.heard, slot.last = time.monotonic(), report
            if report.state == "begun":
                slot.process = report.worker
            elif report.state in ("started", "epoch"):
                self.on_report(report)

    def _placed(self, slot: _Slot) -> None:
        """Ray has found room for it, and it is up."""
        del self.asked[slot.asked]
        slot.asked, slot.since = None, time.monotonic()
        self.idle[slot.share].append(slot)
        self._stillborn = 0

    def _died(self, slot: _Slot, reason: str, cause: Cause = "") -> None:
        """A worker is gone without a last word, or before its first."""
        born = slot.asked is None
        self._end(slot)
        if slot.attempt:
            if not (slot.last and slot.last.state == "failed"):
                slot.last = Report(slot.attempt.job.identity, "failed", reason=reason, cause=cause, worker=slot.process)
            self._ended(slot)
        elif not born:
            # Once may be chance. If none comes up, the trials that wait would wait for ever.
            self._stillborn += 1
            if self._stillborn > _STILLBORN and self.waiting.count(slot.share):
                slot.attempt = self.waiting.take(slot.share)
                slot.last = Report(slot.attempt.job.identity, "failed", reason=reason, cause=cause)
                self._ended(slot)

    def _ended(self, slot: _Slot) -> None:
        """Draw the conclusion from a worker's last report."""
        attempt, report = slot.attempt, slot.last
        assert attempt is not None
        self.busy.pop(slot.reports, None)
        slot.attempt = slot.reports = None
        if report is None or report.state not in ("done", "paused", "elsewhere", "stopped", "failed"):
            report = Report(attempt.job.identity, "failed", reason="the worker ended without a word")
        if slot in self.slots:
            self._keep(slot, report)
        if report.state == "failed" and self._interrupts and self._failures(attempt) < self.retries:
            # It would have been tried again.
            report = dataclasses.replace(report, state="stopped")
        if slot.leaving and report.state == "failed" and report.worker[0]:
            # Its node was faster than its checkpoint.
            report = dataclasses.replace(report, state="stopped")
        if report.state == "stopped" and not self._interrupts:
            if not slot.leaving:
                self.say(f"a worker on {self._name(slot)} was told to end; its trial goes on from its checkpoint")
            self.waiting.add(attempt, slot.share, first=True)
        elif report.state == "elsewhere":
            self.waiting.add(attempt, slot.share, _BUSY_ELSEWHERE_SECONDS)
        elif report.state != "failed":
            self._finish(attempt, report)
        elif not self._again(attempt, report):
            self._give_up(attempt, report)

    def _keep(self, slot: _Slot, report: Report) -> None:
        """Keep a worker for the next trial, or end it."""
        # After some errors CUDA gives nothing but errors in the same process.
        spoiled = report.state == "failed" and slot.share.gpus and report.cause not in ("user", "disk", "storage")
        stopped = report.state == "stopped" or slot.leaving
        # Others wait for their part of the cluster, and this pool would still have its own without this one.
        yielded = self.view.part < 1 and self._held(without=slot.share) >= self.view.part - 1e-6 and len(self.slots) > 1
        if spoiled or stopped or yielded:
            self._end(slot)
        else:
            slot.since = time.monotonic()
            self.idle[slot.share].append(slot)

    def _again(self, attempt: _Attempt, report: Report) -> bool:
        """Whether a failed trial gets another try: from its checkpoint, after an out-of-memory alone."""
        share = self._whole(attempt.job.share) if attempt.alone else attempt.job.share
        if report.cause == "disk":
            self.full = self.full or report.reason
            return False
        if report.cause == "storage" and attempt.away < _STORAGE_TRIES and not self._interrupts:
            self._say_once(f"the storage does not answer ({report.reason}); what cannot go on is tried again later")
            pause = min(_STORAGE_SECONDS * 2**attempt.away, _STORAGE_MOST_SECONDS)
            attempt.away += 1
            self.waiting.add(attempt, share, pause)
            return True
        node = report.worker[0]
        if node and not report.cause:
            attempt.died_on.append(node)
            self._losses[node].add(attempt.job.identity)
        else:
            attempt.failures += 1
        if report.cause == "user" or self._interrupts or self._gone(attempt) >= _MOST_NODES:
            return False
        if self._failures(attempt) > self.retries:
            # The only node is this process's own, and well.
            if attempt.died_on[-1:] != [node] or len(self.view.names) == 1:
                return False
            attempt.verdict = report
            self.waiting.add(attempt, share, _NODE_NEWS_SECONDS)
        elif report.cause == "memory":
            attempt.alone = True
            # And the GPU's energy is all its own.
            runtime = dataclasses.replace(attempt.job.runtime, gpu_share=1.0)
            attempt.job = dataclasses.replace(attempt.job, runtime=runtime)
            # After all others, when there is room for it to be alone.
            self.waiting.add(attempt, self._whole(attempt.job.share))
        else:
            self.waiting.add(attempt, share, first=True)
        return True

    def _failures(self, attempt: _Attempt) -> int:
        """How often a trial has failed, as far as it may be its own fault."""
        return attempt.failures + len(attempt.died_on) - self._gone(attempt)

    def _gone(self, attempt: _Attempt) -> int:
        return sum(node in self.dead for node in attempt.died_on)

    def _give_up(self, attempt: _Attempt, report: Report) -> None:
        if self._gone(attempt) >= _MOST_NODES:
            report = dataclasses.replace(report, reason=f"{_MOST_NODES} nodes died under it; {report.reason}")
        self.given_up.add(attempt.job.identity)
        self._finish(attempt, report)

    def _finish(self, attempt: _Attempt, report: Report) -> None:
        """A job has come to its end."""
        self.unfinished.discard(attempt.job.identity)
        self.on_report(report)
        for follower in self.waiting.after.pop(attempt.job.identity, ()):
            self._line_up(follower)

    def _name(self, slot: _Slot) -> str:
        return self.view.names.get(slot.process[0], "a node")

    def _end_hung(self) -> None:
        """End the workers that have not finished an epoch for too long."""
        if self.timeout is None:
            return
        for slot in list(self.busy.values()):
            if time.monotonic() - slot.heard > self.timeout and slot.attempt is not None:
                reason = f"no finished epoch in {self.timeout:g} s (--trial-timeout)"
                slot.last = Report(slot.attempt.job.identity, "failed", reason=reason)
                node, process = slot.process
                # Ray asks a process to end itself; one that hangs may not hear it.
                if process and node == ray.get_runtime_context().get_node_id():
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(process, signal.SIGKILL)
                self._end(slot)
                self._ended(slot)

    def _end(self, slot: _Slot) -> None:
        """End a worker's process."""
        self.slots.remove(slot)
        if slot.asked:
            del self.asked[slot.asked]
        elif slot.attempt is None and slot in self.idle[slot.share]:
            self.idle[slot.share].remove(slot)
        self.taken[0] -= slot.share.cpus
        self.taken[1] -= _of_gpu(slot.share)
        with contextlib.suppress(Exception):
            ray.kill(slot.actor)
