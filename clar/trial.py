"""A trial as a Ray worker runs it, and the pool of workers on which a sweep's trials run.

Plain Ray actors: Ray starts them where there is room, and tells when one dies. Ray Tune's own loop is not used: it has
no rounds (its workers end where nothing is ready for a moment), cannot end a trial that hangs, and its books, which
nothing here needs, cost 0.2 s a trial. Everything that matters is in the storage.

A worker runs trial after trial, so torch is imported once a worker. A trial that fails reports its failure instead of
raising it: the worker survives, and the sweep goes on at once.
"""

import contextlib
import dataclasses
import errno
import logging
import math
import os
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

# Workers keep the memory of one step for the next. glibc gives blocks of megabytes back to the system as they are freed
# and pays a page fault for every 4 KiB of the next ones: 3,000 to 4,500 faults and a tenth of the time of a demo step.
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**32))
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**33))
# Ray's ports run code for whoever reaches them, and some listen on all interfaces: only holders of the token may.
os.environ.setdefault("RAY_AUTH_MODE", "token")

import ray

from clar import local
from clar.config import Runtime, TrialConfig
from clar.errors import UserError
from clar.packing import Share, is_out_of_memory
from clar.result import EpochRecord, TrialFolder

_BUSY_ELSEWHERE_SECONDS = 2.0
_STOP_SECONDS = 120.0
_NEWS_SECONDS = 0.5
_RESOURCES_SECONDS = 5.0
_PLACE_SECONDS = 15.0
_TELL_SECONDS = 60.0

State = Literal["begun", "started", "epoch", "done", "paused", "elsewhere", "stopped", "failed"]
"""`begun`: a worker has it; `started`: it is this worker's to run, after any wait; `paused`: the epoch asked for is
reached; `elsewhere`: another process is at it; `stopped`: at the driver's word, checkpoint written."""


@dataclass(frozen=True)
class Job:
    """What a worker is to do: one trial, up to an epoch or to its end.

    Attributes:
        identity: of the trial.
        config: its fields.
        until: the epoch to reach; None: the result.
        runtime: what it runs with.
        share: what it gets of the machine.
        after: identity of the trial that must have ended before, where that is one of the same round.
        pretraining_version: results version of the trial that it starts from, where that is an older one.
    """

    identity: str
    config: dict[str, Any]
    until: int | None
    runtime: Runtime
    share: Share
    after: str | None = None
    pretraining_version: int | None = None


@dataclass(frozen=True)
class Report:
    """What a worker tells the driver.

    Attributes:
        identity: of the trial.
        state: see `State`.
        started: when this run of the trial started, seconds since 1970.
        busy_seconds: spent on the trial itself since, not on waiting or reporting.
        epoch: the last finished one.
        valid_top1: the probe's accuracy there, None where none was due.
        metrics: the final numbers of a trial that is done.
        reason: of a failure, one line.
        cause: `user`: the same again would fail the same; `memory`: there was too little; `disk`: the storage is full.
        worker: Ray node and process id.
        note: where its clips come from.
    """

    identity: str
    state: State
    started: float = 0.0
    busy_seconds: float = 0.0
    epoch: int = 0
    valid_top1: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    cause: Literal["", "user", "memory", "disk"] = ""
    worker: tuple[str, int] = ("", 0)
    note: str = ""


class Worker:
    """One process of the pool; a Ray actor."""

    def __init__(self) -> None:
        self.stopping = threading.Event()
        # One thread for all trials: OpenMP keeps its threads by the thread that calls it.
        self.thread = ThreadPoolExecutor(1)

    def stop(self) -> None:
        """Have the running trial write its checkpoint and end."""
        self.stopping.set()

    def run(self, job: Job) -> Iterator[Report]:
        """Run a trial; its reports come as they are made."""
        reports: queue.SimpleQueue[Report | None] = queue.SimpleQueue()
        self.thread.submit(self._run, job, reports)
        while (report := reports.get()) is not None:
            yield report

    def measure(self, request: dict[str, Any]) -> dict[str, Any]:
        """`clar.packing.answer` in this process: what a step of some trials takes."""
        from clar import packing

        return packing.answer(request)

    def _run(self, job: Job, reports: "queue.SimpleQueue[Report | None]") -> None:
        try:
            reports.put(Report(job.identity, "begun", worker=(ray.get_runtime_context().get_node_id(), os.getpid())))
            reports.put(_attempt(job, reports.put, self.stopping.is_set))
        except BaseException as error:
            reports.put(Report(job.identity, "failed", reason=_one_line(error)))
        finally:
            reports.put(None)


def _attempt(job: Job, tell: Callable[[Report], None], stop: Callable[[], bool]) -> Report:
    """Run the trial as far as it goes; the last report."""
    # Imported in the worker and never in the driver, which knows no tensor.
    import torch

    from clar import train
    from clar.trainer import Stopped

    runtime = job.runtime
    torch.set_num_threads(runtime.threads)
    began = Report(job.identity, "started", started=time.time())

    def report(state: State, **what: Any) -> Report:
        return dataclasses.replace(began, state=state, busy_seconds=time.time() - began.started, **what)

    def start() -> None:
        nonlocal began
        began = Report(job.identity, "started", started=time.time())
        tell(began)

    def after_epoch(record: EpochRecord) -> None:
        tell(report("epoch", epoch=record.epoch, valid_top1=record.valid_top1))

    def placed(where: str) -> None:
        cached = f", from {store.path}" if runtime.data_cache else ""
        tell(report("started", note=where + cached))

    try:
        store = local.copy(runtime.store, runtime.data_cache)
        folder = TrialFolder(Path(runtime.storage), TrialConfig(**job.config), store.fingerprint)
        folder.pretraining_version = job.pretraining_version or folder.version
        if folder.identity != job.identity:
            raise UserError(f"{store.path} has changed since the sweep was planned; run the command again")
        result = train.run(
            folder, store, runtime.device, runtime.code_version, after_epoch, start,
            until=job.until, stop=stop, wait=False, gpu_share=runtime.gpu_share, say=placed,
        )  # fmt: skip
    except train.Elsewhere:
        return report("elsewhere")
    except Stopped:
        return report("stopped")
    except Exception as error:
        return report("failed", reason=_one_line(error), cause=_cause(error))
    finally:
        if runtime.device == "cuda":
            # What this trial does not use any more, its neighbours on the GPU may.
            torch.cuda.empty_cache()
    if result is None:
        return report("paused")
    return report("done", metrics=result.metrics())


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _cause(error: Exception) -> Literal["", "user", "memory", "disk"]:
    if isinstance(error, UserError):
        return "user"
    if isinstance(error, MemoryError) or is_out_of_memory(error):
        return "memory"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk"
    return ""


@contextmanager
def cluster(address: str | None, cpus: int, gpus: int) -> Iterator[dict[str, float]]:
    """Ray on this machine, or the cluster at `address`; gives its resources, `CPU` and `GPU` among them."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    # Ray prints a paragraph about each worker that dies, whatever its log settings; the pool says it in a line.
    ray._private.worker.print_to_stdstream = lambda *lines, **options: None
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        try:
            ray.init(address=address, **quiet)
        except Exception as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"--address {address}: no Ray cluster answers there ({reason})") from error
    else:
        with _on_loopback() as here:
            ray.init(
                address="local", num_cpus=cpus, num_gpus=gpus, include_dashboard=False, _node_ip_address=here, **quiet
            )
    try:
        yield ray.cluster_resources()
    finally:
        ray.shutdown()


@contextmanager
def _on_loopback() -> Iterator[str]:
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


def measure(request: dict[str, Any], gpu: bool) -> dict[str, Any]:
    """`clar.packing.answer` by a worker of the cluster that this process is connected to."""
    worker: Any = ray.remote(Worker).options(num_cpus=1, num_gpus=1 if gpu else 0).remote()
    try:
        return ray.get(worker.measure.remote(request))
    finally:
        ray.kill(worker)


class StorageFull(Exception):
    """The storage's disk is full; says which path could not be written."""


@dataclass
class _Attempt:
    """A job that waits for a worker, for the first time or again."""

    job: Job
    failures: int = 0
    not_before: float = 0.0
    alone: bool = False


@dataclass
class _Slot:
    """A worker, and what it is doing."""

    actor: Any
    share: Share
    attempt: _Attempt | None = None
    reports: Any = None
    heard: float = math.inf
    process: tuple[str, int] = ("", 0)
    last: Report | None = None
    since: float = field(default_factory=time.monotonic)

    def placed(self) -> bool:
        """Whether Ray has found room for it."""
        return bool(self.process[1])


def _of_gpu(share: Share) -> float:
    """What a share takes of the GPUs: of 0.6, only one fits on each."""
    return share.gpus if share.gpus >= 1 or not share.gpus else 1 / int(1 / share.gpus)


class Pool:
    """Workers on a Ray cluster. A context manager; leaving it ends the workers.

    Args:
        on_report: called with every report, and for a failure with `failed` only when the trial is given up.
        say: prints one line for the user.
        retries: how often a failed trial is tried again, from its checkpoint.
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
        self.slots: list[_Slot] = []
        self.given_up: set[str] = set()
        self.full: str = ""
        self._totals: tuple[float, dict[str, float]] = (-math.inf, {})
        self._interrupts = 0
        self._told = False

    def __enter__(self) -> "Pool":
        # In the main thread only; elsewhere there are no signals to take.
        self._former = {
            number: signal.signal(number, self._interrupt)
            for number in (signal.SIGINT, signal.SIGTERM)
            if threading.current_thread() is threading.main_thread()
        }
        return self

    def __exit__(self, *error: object) -> None:
        for slot in list(self.slots):
            self._end(slot)
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def run(self, jobs: list[Job]) -> None:
        """Run every job to its end, as many at a time as there is room for.

        Raises:
            KeyboardInterrupt: after Ctrl-C or SIGTERM, when the running trials have written their checkpoints.
            StorageFull: a trial could not write; the other running ones have ended.
        """
        waiting = deque(_Attempt(job) for job in jobs)
        unfinished = {job.identity for job in jobs}
        stop_by = 0.0
        while waiting or self._busy():
            if self._interrupts and not stop_by:
                stop_by = time.monotonic() + _STOP_SECONDS
                self._stop(len(self._busy()))
            if stop_by and (not self._busy() or time.monotonic() > stop_by):
                raise KeyboardInterrupt
            if self.full and not self._busy():
                raise StorageFull(self.full)
            if not stop_by and not self.full:
                self._start(waiting, unfinished)
            for slot in self._ready():
                self._listen(slot, waiting, unfinished)
            self._end_hung(waiting, unfinished)
            self._make_room()
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

    def _stop(self, running: int) -> None:
        if running:
            self.say(f"stopping: {running} trials write their checkpoints; Ctrl-C again stops at once")
        for slot in self._busy():
            if slot.placed():
                slot.actor.stop.remote()
            else:
                # It has begun nothing, and may never be heard of.
                self._end(slot)

    def _busy(self) -> list[_Slot]:
        return [slot for slot in self.slots if slot.attempt is not None]

    def _start(self, waiting: "deque[_Attempt]", unfinished: set[str]) -> None:
        """Give work to workers, and make workers while there is room for them."""
        now = time.monotonic()
        postponed: list[_Attempt] = []
        while waiting:
            attempt = waiting.popleft()
            if attempt.not_before > now or attempt.job.after in unfinished:
                postponed.append(attempt)
                continue
            if attempt.job.after in self.given_up:
                unfinished.discard(attempt.job.identity)
                self.given_up.add(attempt.job.identity)
                reason = f"its pre-training {attempt.job.after} failed"
                self.on_report(Report(attempt.job.identity, "failed", reason=reason))
                continue
            slot = self._slot_for(attempt)
            if slot is None:
                waiting.appendleft(attempt)
                break
            slot.attempt, slot.heard, slot.last = attempt, math.inf, None
            slot.reports = slot.actor.run.options(num_returns="streaming").remote(attempt.job)
        waiting.extendleft(reversed(postponed))

    def _unplaced(self) -> float:
        """Seconds for which a worker has been waiting for Ray to find room for it."""
        now = time.monotonic()
        return max((now - slot.since for slot in self.slots if not slot.placed()), default=0.0)

    def _make_room(self) -> None:
        """Let idle workers give way to one that waits: what there is in sum may be in pieces that are too small."""
        if self._unplaced() > _PLACE_SECONDS:
            self.release()
        if self._unplaced() > _TELL_SECONDS and not self._told and not any(slot.placed() for slot in self._busy()):
            self._told = True
            share = next(slot.share for slot in self.slots if not slot.placed())
            self.say(f"no node has room for a trial of {share} yet; waiting for one")

    def _slot_for(self, attempt: _Attempt) -> _Slot | None:
        """An idle worker with the right share, or a new one, in the place of idle ones with others if need be."""
        share = self._whole() if attempt.alone else attempt.job.share
        idle = [slot for slot in self.slots if slot.attempt is None]
        for slot in idle:
            if slot.share == share:
                return slot
        if self._unplaced() > _PLACE_SECONDS:
            return None
        while not self._room(share):
            if not idle:
                # More than there is at all: Ray decides, when nothing else is in its way.
                if self.slots:
                    return None
                break
            self._end(idle.pop())
        slot = _Slot(self.make_worker(share), share)
        self.slots.append(slot)
        return slot

    def make_worker(self, share: Share) -> Any:
        """Ask Ray for a worker with a share of a node; the actor, which need not be running yet."""
        options = {"num_cpus": share.cpus, "num_gpus": share.gpus, "max_restarts": 0, "max_concurrency": 4}
        return ray.remote(Worker).options(**options).remote()

    def _room(self, share: Share) -> bool:
        total = self._resources()
        cpus = sum(slot.share.cpus for slot in self.slots) + share.cpus
        gpus = sum(_of_gpu(slot.share) for slot in self.slots) + _of_gpu(share)
        return cpus <= total.get("CPU", 0) + 1e-6 and gpus <= total.get("GPU", 0) + 1e-6

    def _resources(self) -> dict[str, float]:
        """What there is, asked anew now and then: nodes come and go."""
        asked, known = self._totals
        if time.monotonic() - asked > _RESOURCES_SECONDS:
            known = ray.cluster_resources()
            self._totals = (time.monotonic(), known)
        return known

    def _whole(self) -> Share:
        """So much that nothing else runs on the same GPU, or, without GPUs, on the same node."""
        if self._resources().get("GPU", 0):
            return Share(1, 1.0)
        return Share(int(max(node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"])), 0.0)

    def _ready(self) -> list[_Slot]:
        """The workers that have said something, after a moment's wait."""
        busy = self._busy()
        if not busy:
            time.sleep(_NEWS_SECONDS)
            return []
        streams = {slot.reports: slot for slot in busy}
        ready, _ = ray.wait(list(streams), num_returns=1, timeout=_NEWS_SECONDS)
        if ready and len(busy) > 1:
            ready, _ = ray.wait(list(streams), num_returns=len(busy), timeout=0)
        return [streams[stream] for stream in ready]

    def _listen(self, slot: _Slot, waiting: "deque[_Attempt]", unfinished: set[str]) -> None:
        """Take one report, or the news that there will be none."""
        try:
            report: Report = ray.get(next(slot.reports))
        except StopIteration:
            self._ended(slot, waiting, unfinished)
            return
        except ray.exceptions.RayError as error:
            if not (slot.last and slot.last.state == "failed"):
                job = slot.attempt.job if slot.attempt else None
                reason = f"the worker process died ({_one_line(error)[:200]})"
                # Ray's memory monitor ends a worker before the system would end the node.
                short = isinstance(error, ray.exceptions.OutOfMemoryError) or "running low on memory" in str(error)
                identity = job.identity if job else ""
                slot.last = Report(identity, "failed", reason=reason, cause="memory" if short else "")
            self._end(slot)
            self._ended(slot, waiting, unfinished)
            return
        slot.heard, slot.last = time.monotonic(), report
        if report.state == "begun":
            slot.process = report.worker
        elif report.state in ("started", "epoch"):
            self.on_report(report)

    def _ended(self, slot: _Slot, waiting: "deque[_Attempt]", unfinished: set[str]) -> None:
        """Draw the conclusion from a worker's last report."""
        attempt, report = slot.attempt, slot.last
        slot.attempt = slot.reports = None
        assert attempt is not None
        if report is None or report.state not in ("done", "paused", "elsewhere", "stopped", "failed"):
            report = Report(attempt.job.identity, "failed", reason="the worker ended without a word")
        if report.state == "failed" and self._interrupts and attempt.failures < self.retries:
            # It would have been tried again.
            report = dataclasses.replace(report, state="stopped")
        if report.state == "failed" and slot in self.slots and slot.share.gpus and report.cause not in ("user", "disk"):
            # After some errors CUDA gives nothing but errors in the same process.
            self._end(slot)
        if report.state == "elsewhere":
            attempt.not_before = time.monotonic() + _BUSY_ELSEWHERE_SECONDS
            waiting.append(attempt)
            return
        if report.state == "failed" and self._again(attempt, report, waiting):
            return
        unfinished.discard(attempt.job.identity)
        if report.state == "failed":
            self.given_up.add(attempt.job.identity)
        self.on_report(report)

    def _again(self, attempt: _Attempt, report: Report, waiting: "deque[_Attempt]") -> bool:
        """Whether a failed trial gets another try: from its checkpoint, after an out-of-memory alone."""
        if report.cause == "disk":
            self.full = self.full or report.reason
            return False
        attempt.failures += 1
        if report.cause == "user" or attempt.failures > self.retries or self._interrupts:
            return False
        if report.cause == "memory":
            attempt.alone = True
            # And the GPU's energy is all its own.
            runtime = dataclasses.replace(attempt.job.runtime, gpu_share=1.0)
            attempt.job = dataclasses.replace(attempt.job, runtime=runtime)
            # After all others, when there is room for it to be alone.
            waiting.append(attempt)
        else:
            waiting.appendleft(attempt)
        return True

    def _end_hung(self, waiting: "deque[_Attempt]", unfinished: set[str]) -> None:
        """End the workers that have not finished an epoch for too long."""
        if self.timeout is None:
            return
        for slot in self._busy():
            if time.monotonic() - slot.heard > self.timeout and slot.attempt is not None:
                reason = f"no finished epoch in {self.timeout:g} s (--trial-timeout)"
                slot.last = Report(slot.attempt.job.identity, "failed", reason=reason)
                node, process = slot.process
                # Ray asks a process to end itself; one that hangs may not hear it.
                if process and node == ray.get_runtime_context().get_node_id():
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(process, signal.SIGKILL)
                self._end(slot)
                self._ended(slot, waiting, unfinished)

    def _end(self, slot: _Slot) -> None:
        """End a worker's process."""
        self.slots.remove(slot)
        with contextlib.suppress(Exception):
            ray.kill(slot.actor)
