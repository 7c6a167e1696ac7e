"""A trial as a Ray worker runs it, and what it tells the driver.

A worker runs trial after trial, so torch is imported once a worker. A trial that fails reports its failure instead of
raising it: the worker survives, and the sweep goes on at once.
"""

import dataclasses
import errno
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

# Workers keep the memory of one step for the next. glibc gives blocks of megabytes back to the system as they are freed
# and pays a page fault for every 4 KiB of the next ones: 3,000 to 4,500 faults and a tenth of the time of a demo step.
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**32))
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**33))
# As in clar.cluster: Ray reads it when it is loaded, whichever of the two loads it.
os.environ.setdefault("RAY_AUTH_MODE", "token")
import ray

from clar import files, local
from clar.config import Runtime, TrialConfig
from clar.errors import UserError
from clar.packing import Share, is_out_of_memory
from clar.result import EpochRecord, TrialFolder

State = Literal["begun", "started", "epoch", "done", "paused", "elsewhere", "stopped", "failed"]
"""`begun`: a worker has it; `started`: it is this worker's to run, after any wait; `paused`: the epoch asked for is
reached; `elsewhere`: another process is at it; `stopped`: at the driver's word or by SIGTERM, checkpoint written."""

Cause = Literal["", "user", "memory", "disk", "storage"]


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
        cause: `user`: the same again would fail the same; `memory`: there was too little; `disk`: the storage is full;
            `storage`: it answers errors.
        worker: Ray node and process id, of a worker that has begun or died.
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
    cause: Cause = ""
    worker: tuple[str, int] = ("", 0)
    note: str = ""


class Worker:
    """One process of the pool; a Ray actor."""

    def __init__(self) -> None:
        self.stopping = threading.Event()
        # One thread for all trials: OpenMP keeps its threads by the thread that calls it.
        self.thread = ThreadPoolExecutor(1)
        # Ray makes actors in the main thread, which then only waits; its own handler would end the process at once.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda number, frame: self.stopping.set())

    def stop(self) -> None:
        """Have the running trial write its checkpoint and end, as SIGTERM does. No other runs here after that."""
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
            reports.put(Report(job.identity, "failed", reason=one_line(error)))
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
        folder = TrialFolder(runtime.storage, TrialConfig(**job.config), store.fingerprint)
        folder.pretraining_version = job.pretraining_version or folder.version
        if folder.identity != job.identity:
            raise UserError(f"{store.path} has changed since the sweep was planned; run the command again")
        result = train.run(
            folder, store, runtime.device, runtime.code_version, after_epoch, start,
            until=job.until, stop=stop, wait=False, gpu_share=runtime.gpu_share, max_lost=runtime.max_lost, say=placed,
        )  # fmt: skip
    except train.Elsewhere:
        return report("elsewhere")
    except Stopped:
        return report("stopped")
    except Exception as error:
        return report("failed", reason=one_line(error), cause=_cause(error))
    finally:
        if runtime.device == "cuda":
            # What this trial does not use any more, its neighbours on the GPU may.
            torch.cuda.empty_cache()
    if result is None:
        return report("paused")
    return report("done", metrics=result.metrics())


def one_line(error: BaseException) -> str:
    """The kind of an error and its words."""
    return " ".join(f"{type(error).__name__}: {error}".split())


_CLIENTS = ("botocore", "aiobotocore", "s3fs", "aiohttp")


def _cause(error: Exception) -> Cause:
    if isinstance(error, UserError):
        return "user"
    if isinstance(error, MemoryError) or is_out_of_memory(error):
        return "memory"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk"
    by_number = isinstance(error, OSError) and error.errno in files.AWAY
    return "storage" if by_number or type(error).__module__.partition(".")[0] in _CLIENTS else ""
