"""What goes to MLflow: an experiment a sweep, a parent run, a child run a trial, all written from the trials' files.

One thread of the driver writes, so trials never wait for the tracking server, runs are created once, and importing
MLflow (seconds) and making its database (seconds more) happen while the first trials train. Nothing here raises into
the sweep: what could not be written is said once and stays in the storage, and the next run of the same command writes
it.
"""

import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from tenacity import retry, stop_after_attempt, wait_exponential

from clar.config import TrialConfig
from clar.result import TrialFolder

if TYPE_CHECKING:
    from mlflow.entities import Run

DATABASE = "mlflow.db"

# A tracking server may be away for a moment; SQLite may be locked by the MLflow UI.
_patiently = retry(stop=stop_after_attempt(3), wait=wait_exponential(0.2, max=2), reraise=True)
_AWAY_SECONDS = 60.0


def default_uri(storage: Path) -> str:
    """The SQLite file in the storage."""
    return f"sqlite:///{storage / DATABASE}"


class Tracker:
    """Writes one sweep's runs. A context manager: leaving it waits until all is written.

    Args:
        uri: MLflow tracking URI.
        sweep: its name; the experiment is `clar/<sweep>`.
        storage: the sweep's storage; with an SQLite URI the artifacts lie there too.
        base: what the sweep's trials have in common, as the parent run's parameters.
        key: identifies the parent run within the experiment: the same key goes on in the same run.
        code_version: for the tags.
        say: prints one line for the user.
    """

    def __init__(
        self,
        uri: str,
        sweep: str,
        storage: Path,
        base: TrialConfig,
        key: str,
        code_version: str,
        say: Callable[[str], object],
    ) -> None:
        self.uri, self.sweep, self.storage, self.say = uri, sweep, storage, say
        self.base, self.key, self.code_version = base, key, code_version
        self.complete = False
        """Whether `finish` has written everything."""
        self._last_failure = ""
        self._queue: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)

    def trial(self, folder: TrialFolder) -> None:
        """Write what the trial's folder holds and MLflow does not yet: parameters, epochs, result, artifacts."""
        self._queue.put(_Task(lambda writer: writer.trial(folder)))

    def failed(self, folder: TrialFolder, reason: str) -> None:
        """Mark a trial's run as failed, with the reason and the log."""
        self._queue.put(_Task(lambda writer: writer.trial(folder, reason)))

    def finish(
        self,
        done: list[TrialFolder],
        files: list[Path],
        note: str,
        metrics: Callable[[], dict[str, float]],
        whole: bool,
    ) -> None:
        """Write what is still missing, then tables and figures to the parent run, and end it.

        Args:
            done: the sweep's finished trials.
            files: artifacts of the parent run.
            note: Markdown that the MLflow UI shows as the run's description.
            metrics: gives numbers of the sweep as a whole, asked for when all else is written.
            whole: whether all trials are done; else the run ends as failed.
        """
        self._queue.put(_Task(lambda writer: writer.finish(done, files, note, metrics, whole), last=True))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._queue.put(_Task(lambda writer: writer.interrupted()))
        self._queue.put(None)
        self._thread.join()
        if kind is None and not self.complete:
            self.say(
                f"MLflow at {self.uri} lacks some of this sweep ({self._last_failure}). All results are in "
                f"{self.storage}; the same command writes what is missing."
            )

    def _work(self) -> None:
        writer: _Writer | None = None
        away_until = 0.0
        while (task := self._queue.get()) is not None:
            # A server that is away costs a wait each time it is asked, and `finish` writes all that was missed.
            if time.monotonic() < away_until and not task.last:
                continue
            try:
                writer = writer or _Writer(self)
                task.write(writer)
                self.complete = task.last
            except Exception as error:
                if not self._last_failure:
                    self.say(f"MLflow at {self.uri} cannot be written; the trials go on")
                self._last_failure = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                away_until = time.monotonic() + _AWAY_SECONDS


@dataclass(frozen=True)
class _Task:
    """Something to write; the last one is tried even where the store was away a moment ago."""

    write: "Callable[[_Writer], None]"
    last: bool = False


class _Writer:
    """The tracking thread's own state: the client, the parent run, and the run of each trial."""

    def __init__(self, tracker: Tracker) -> None:
        # MLflow's retries (7, up to 2 minutes each) are meant for jobs that have nothing else to do.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        import logging

        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self.client: MlflowClient = MlflowClient(tracker.uri)
        self.sweep, self.base, self.code_version = tracker.sweep, tracker.base, tracker.code_version
        self.experiment = self._experiment(tracker.uri, tracker.storage)
        self.parent = self._parent(tracker.base, tracker.key)
        self.written: dict[str, int] = {}
        children = self._search(f"tags.`mlflow.parentRunId` = '{self.parent}'")
        self.children: dict[str, Run] = {run.data.tags["clar.identity"]: run for run in children}

    @_patiently
    def _experiment(self, uri: str, storage: Path) -> str:
        name = f"clar/{self.sweep}"
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        artifacts = (storage / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None
        return self.client.create_experiment(name, artifact_location=artifacts)

    @_patiently
    def _parent(self, base: TrialConfig, key: str) -> str:
        found = self._search(f"tags.`clar.parent` = '{key}'")
        if found:
            self._go_on(found[0], base)
            return found[0].info.run_id
        tags = {"clar.parent": key, "clar.sweep": self.sweep, "clar.code_version": self.code_version}
        run = self.client.create_run(self.experiment, tags=tags, run_name=f"{self.sweep} on {base.dataset}")
        self._go_on(run, base)
        return run.info.run_id

    def _go_on(self, run: "Run", config: TrialConfig) -> None:
        """Whatever became of the command that made this run: it has its parameters, and it is running."""
        if not run.data.params:
            self._log(run.info.run_id, params=_params(config))
        if run.info.status != "RUNNING":
            self.client.update_run(run.info.run_id, status="RUNNING")

    def _search(self, query: str) -> list["Run"]:
        runs: list[Run] = []
        token = None
        while True:
            page = self.client.search_runs([self.experiment], query, max_results=1000, page_token=token)
            runs.extend(page)
            token = page.token
            if not token:
                return runs

    @_patiently
    def trial(self, folder: TrialFolder, failure: str = "") -> None:
        run = self.children.get(folder.identity)
        if run is not None and run.info.status == "FINISHED":
            return
        if run is None:
            run = self._child(folder)
        run_id = run.info.run_id
        self._go_on(run, folder.config)
        known = self._epochs_written(run_id)
        epochs = folder.epochs()
        self._log(
            run_id,
            metrics=[
                (name, value, record.epoch)
                for record in epochs
                if record.epoch > known
                for name, value in (
                    ("train_loss", record.train_loss),
                    ("valid_top1", record.valid_top1),
                    ("clips_per_second", record.clips_per_second),
                )
                if value is not None
            ],
        )
        self.written[run_id] = max(known, len(epochs))
        result = folder.result()
        if result is not None:
            # The last epoch's probe is the final one: `valid_top1` has been written with the epochs, if there were any.
            final = result.metrics()
            if result.epochs:
                del final["valid_top1"]
            step = len(result.epochs)
            self._log(run_id, metrics=[(name, value, step) for name, value in final.items()])
            for name in ("config.json", "encoder.safetensors", "log.txt"):
                if (folder.path / name).exists():
                    self.client.log_artifact(run_id, str(folder.path / name))
            if "clar.failure" in run.data.tags:
                self.client.delete_tag(run_id, "clar.failure")
            self.client.set_terminated(run_id, "FINISHED")
            self.children[folder.identity] = self.client.get_run(run_id)
        elif failure:
            self.client.set_tag(run_id, "clar.failure", failure[:5000])
            if folder.log.exists():
                self.client.log_artifact(run_id, str(folder.log))
            self.client.set_terminated(run_id, "FAILED")
            self.children[folder.identity] = self.client.get_run(run_id)

    def _epochs_written(self, run_id: str) -> int:
        """How many epochs the run holds: asked once, for a run that an earlier command began."""
        if run_id not in self.written:
            history = self.client.get_metric_history(run_id, "train_loss")
            self.written[run_id] = max((metric.step for metric in history), default=0)
        return self.written[run_id]

    def _child(self, folder: TrialFolder) -> "Run":
        tags = {
            "mlflow.parentRunId": self.parent,
            "clar.identity": folder.identity,
            "clar.sweep": self.sweep,
            "clar.dataset_fingerprint": folder.data_fingerprint,
            "clar.code_version": folder.code_version() or self.code_version,
        }
        began = int((folder.path / "config.json").stat().st_mtime * 1000) if folder.code_version() else None
        name = folder.config.title(self.base)
        run = self.client.create_run(self.experiment, start_time=began, tags=tags, run_name=name)
        self._go_on(run, folder.config)
        # As it is now, parameters and all: the next visit finds nothing to add.
        self.children[folder.identity] = run = self.client.get_run(run.info.run_id)
        self.written[run.info.run_id] = 0
        return run

    def finish(
        self,
        done: list[TrialFolder],
        files: list[Path],
        note: str,
        metrics: Callable[[], dict[str, float]],
        whole: bool,
    ) -> None:
        for folder in done:
            self.trial(folder)
        self._end_parent(files, note, metrics, whole)

    @_patiently
    def _end_parent(self, files: list[Path], note: str, metrics: Callable[[], dict[str, float]], whole: bool) -> None:
        self.client.set_tag(self.parent, "mlflow.note.content", note)
        for file in files:
            self.client.log_artifact(self.parent, str(file))
        self._log(self.parent, metrics=[(name, value, 0) for name, value in metrics().items()])
        self.client.set_terminated(self.parent, "FINISHED" if whole else "FAILED")

    @_patiently
    def interrupted(self) -> None:
        """No run of this sweep stays RUNNING when its driver is gone."""
        for run_id in (self.parent, *(run.info.run_id for run in self.children.values())):
            if self.client.get_run(run_id).info.status == "RUNNING":
                self.client.set_terminated(run_id, "KILLED")

    def _log(
        self, run_id: str, params: dict[str, str] | None = None, metrics: list[tuple[str, float, int]] | None = None
    ) -> None:
        """All of it in batches of MLflow's limit, 1,000 metrics."""
        from mlflow.entities import Metric, Param

        now = int(time.time() * 1000)
        written = [Metric(name, value, now, step) for name, value, step in metrics or []]
        for start in range(0, len(written), 1000) or [0]:
            self.client.log_batch(
                run_id,
                metrics=written[start : start + 1000],
                params=[Param(name, value) for name, value in (params or {}).items()],
            )


def _params(config: TrialConfig) -> dict[str, Any]:
    """The fields as MLflow shows them: `fade > time_mask` rather than a Python tuple."""
    fields = config.model_dump()
    fields["augmentations"] = " > ".join(fields["augmentations"])
    fields["encoder_blocks"] = ",".join(map(str, fields["encoder_blocks"]))
    return {name: str(value) for name, value in fields.items()}
