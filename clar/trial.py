"""A trial as Ray Tune runs it, and Tune as this project runs it.

Tune decides which trial runs where and when; everything else is the storage's: results, checkpoints, resume. Workers
are reused from trial to trial, so torch is imported once per worker. A trial that fails reports its failure instead of
raising it: the worker survives, and the sweep goes on at once.
"""

import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Read when ray.tune is imported or its first tuner made.
os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = "1"
# The new output prints its header whatever `verbose` says.
os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
# Ctrl-C ends the sweep at once, with all finished epochs kept; Tune's own handler would wait for running epochs.
os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
# Workers keep the memory of one step for the next. glibc gives blocks of megabytes back to the system as they are freed
# and pays a page fault for every 4 KiB of the next ones: 3,000 to 4,500 faults and a tenth of the time of a demo step.
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**32))
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**33))
# Ray's ports run code for whoever reaches them, and some listen on all interfaces: only holders of the token may.
os.environ.setdefault("RAY_AUTH_MODE", "token")

import ray
from ray import tune

from clar.clips import ClipStore
from clar.config import TrialConfig
from clar.errors import UserError
from clar.result import EpochRecord, TrialFolder

Report = dict[str, Any]
"""What a trial tells the driver: `identity`, `started` (seconds since 1970), `busy_seconds` (spent on the trial
itself, not on start-up, waiting or reporting), after an epoch `epoch` and `valid_top1`, at the end `final` (its
metrics) or `failure` (one line)."""


def trainable(job: dict[str, Any]) -> None:
    """One trial in a worker process.

    Args:
        job: `identity` and `config` (fields) of the trial, `storage` and `store` (folders), `device`, `threads`,
            `code_version`.
    """
    # Imported in the worker and never in the driver, which knows no tensor.
    import torch

    from clar.train import run

    torch.set_num_threads(job["threads"])
    config = TrialConfig(**job["config"])
    started = time.time()
    reporting = 0.0

    def start() -> None:
        nonlocal started
        started = time.time()

    def report(**what: Any) -> None:
        nonlocal reporting
        now = time.time()
        busy = now - started - reporting
        tune.report({"identity": job["identity"], "started": started, "busy_seconds": busy, **what})
        reporting += time.time() - now

    def after_epoch(record: EpochRecord) -> None:
        report(epoch=record.epoch, valid_top1=record.valid_top1)

    try:
        store = ClipStore.open(Path(job["store"]))
        folder = TrialFolder(Path(job["storage"]), config, store.fingerprint)
        if folder.identity != job["identity"]:
            raise UserError(f"{store.path} has changed since the sweep was planned; run the command again")
        result = run(folder, store, job["device"], job["code_version"], after_epoch, start)
    except Exception as error:
        report(failure=" ".join(f"{type(error).__name__}: {error}".split()))
    else:
        report(final=result.metrics())


@contextmanager
def cluster(address: str | None, cpus: int, gpus: int) -> Iterator[dict[str, float]]:
    """Ray on this machine, or the cluster at `address`; gives its resources, `CPU` and `GPU` among them."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        try:
            ray.init(address=address, **quiet)
        except Exception as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"--address {address}: no Ray cluster answers there ({reason})") from error
    else:
        ray.init(address="local", num_cpus=cpus, num_gpus=gpus, include_dashboard=False, **quiet)
    try:
        yield ray.cluster_resources()
    finally:
        ray.shutdown()


_interrupted = threading.Event()


def _interrupt(number: int, frame: object) -> None:
    """Ctrl-C. Noted too, since an interrupt that falls into Ray's own code may get lost there."""
    _interrupted.set()
    raise KeyboardInterrupt


class _Listener(tune.Callback):
    """Passes Tune's events on to the driver."""

    def __init__(self, on_report: Callable[[Report], None], on_lost: Callable[[dict[str, Any], str], None]) -> None:
        self.on_report, self.on_lost = on_report, on_lost

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks into its books; what these two hold, the user's terminal among it, cannot be.
        return {}

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: Report, **info: Any) -> None:
        if _interrupted.is_set():
            raise KeyboardInterrupt
        self.on_report(result)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        reason = str(trial.get_error() or "the worker died").strip().splitlines()[-1]
        self.on_lost(trial.config["job"], reason)


def run_all(
    jobs: list[dict[str, Any]],
    cpus: float,
    gpus: float,
    on_report: Callable[[Report], None],
    on_lost: Callable[[dict[str, Any], str], None],
) -> None:
    """Run every job as a Tune trial, as many at a time as the cluster has room for.

    Args:
        jobs: what `trainable` takes, one a trial, started in this order.
        cpus: CPUs of each trial.
        gpus: GPUs of each trial, or a share of one.
        on_report: called with every report of every trial.
        on_lost: called with the job and one line where a worker died without a report.
    """

    _interrupted.clear()
    signal.signal(signal.SIGINT, _interrupt)
    # Tune keeps books of its own. Nothing reads them: the storage knows more, and Tune's restore loses what is newer
    # than its last snapshot.
    with tempfile.TemporaryDirectory(prefix="clar-tune-") as books:
        tune.Tuner(
            tune.with_resources(_by_job, {"cpu": cpus, "gpu": gpus}),
            param_space={"job": tune.grid_search(jobs)},
            tune_config=tune.TuneConfig(
                reuse_actors=True,
                trial_name_creator=lambda trial: str(trial.trial_id),
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=tune.RunConfig(
                name="sweep", storage_path=books, callbacks=[_Listener(on_report, on_lost)], verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        ).fit()  # fmt: skip
    if _interrupted.is_set():
        raise KeyboardInterrupt


def _by_job(parameters: dict[str, Any]) -> None:
    trainable(parameters["job"])
