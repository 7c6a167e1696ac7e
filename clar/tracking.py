"""What goes to MLflow: an experiment a sweep, a parent run, a child run a trial, all written from the storage.

    python -m clar.tracking sync

A sweep writes while it trains, in one thread of its driver: trials never wait for the tracking server, and importing
MLflow (seconds) and making its database (seconds more) happen meanwhile. Nothing here raises into the sweep. The
storage is the truth: what could not be written is written when the server is back, by the next run of the same command,
or by `sync`, and writing it twice adds nothing:

- A run is found by its tags and made only where there is none, under a lock of the storage.
- A metric's time is the run's start and its step, so that whoever writes it again writes the same, which MLflow drops.
- A run becomes FINISHED with its last write.

A result or a failure is written at once. The epochs of running trials come after, several in one request, and take at
most a quarter of the thread's time: however many trials run, one server bears them.

A trial's run is FINISHED once it has its result, RUNNING while a driver is at work, FAILED, or else KILLED; the tag
`clar.state` says more: done, running, failed, cut (by early stopping), stopped.
"""

import hashlib
import json
import os
import re
import secrets
import socket
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import typer
from filelock import Timeout
from tenacity import retry, retry_if_not_exception_type, stop_after_attempt, wait_exponential

from clar import progress
from clar.cli import Storage, TrackingURI, command, storage_path
from clar.errors import UserError
from clar.files import Lock, cache_dir, is_folder, lock, read_bytes, write_atomically
from clar.result import EpochRecord, SweepFolder, TrialFolder, TrialResult

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

DATABASE = "mlflow.db"

_RETRY_SECONDS = 10.0
"""Between two tries while the server is away."""
_PATIENCE_SECONDS = 20.0
"""How long the end of a sweep waits for a server that is away; `mlflow server` starts in 10 to 25."""
_HASTE_SECONDS = 2.0
"""Between two tries while the end of a sweep waits."""
_INTERRUPT_SECONDS = 10.0
"""How long an interrupted sweep may take to end its runs."""
_STUCK_SECONDS = 90.0
"""More than any one write can take, with all its tries and their timeouts."""
_LOCK_SECONDS = 60.0
_LIVE_SECONDS = 15.0
"""Between two writes of a running trial's epochs, and before the first."""
_LIVE_SHARE = 0.25
"""Of the thread's time, what epochs of running trials may take. It bounds what they cost the server, which is asked one
thing at a time: a quarter of a core."""
_TELL_SECONDS = 20.0
"""How long the end of a sweep waits for a server that is there, without a word."""

_REFUSALS = ("UNAUTHENTICATED", "PERMISSION_DENIED")
_REFUSED = "it refuses this account: check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"

_STATUS = {"done": "FINISHED", "running": "RUNNING", "failed": "FAILED", "cut": "KILLED", "stopped": "KILLED"}
_SWEEP_FILE = "sweep.json"
_RUN_NOTE, _EXPERIMENT_NOTE = 7_500, 18_000
"""Characters; MLflow's tags take 8,000 and 20,000."""
_MOST_AXES = 12
_METRICS_SHOWN = ("test_top1", "test_top5", "valid_top1", "train_seconds")
_VIEWS = {
    # Only parents have the tag, and MLflow puts runs without it last.
    "sweep": ("the sweep first", "tags.`clar.parent`", True),
    "best": ("the best trial first", "metrics.`test_top1`", False),
}
"""Views of an experiment's runs: key, title, what they are sorted by, and whether upwards."""
_TRIAL_FILES = ("config.json", "encoder.safetensors", "log.txt")

# A tracking server may be away for a moment; SQLite may be locked by the MLflow UI. What is in the wrong in the storage
# stays so.
_patiently = retry(
    stop=stop_after_attempt(3),
    wait=wait_exponential(0.2, max=2),
    retry=retry_if_not_exception_type((UserError, Timeout)),
    reraise=True,
)


def default_uri(storage: Path) -> str:
    """An SQLite file in the storage; for a storage in a bucket, in this machine's cache folder."""
    if is_folder(storage):
        return f"sqlite:///{storage / DATABASE}"
    return f"sqlite:///{cache_dir() / 'mlflow' / hashlib.sha256(str(storage).encode()).hexdigest()[:16]}.db"


class Tracker:
    """Writes one sweep's runs while it is driven. A context manager: leaving it waits until all is written.

    Where the server is away the wait is bounded; left by an exception, it ends this sweep's runs within seconds, unless
    another process drives the sweep too. Without any call between it does nothing, and MLflow is not loaded.

    Args:
        uri: MLflow tracking URI.
        sweep: what is written, all of it read from its `sweep.json` and the folders of its trials.
        say: prints one line for the user.
    """

    def __init__(self, uri: str, sweep: SweepFolder, say: Callable[[str], object]) -> None:
        self.uri, self.sweep, self.say = uri, sweep, say
        self.complete = False
        """Whether `finish` has written everything."""
        self._news = threading.Condition()
        self._pending: dict[str, TrialFolder] = {}
        self._live: dict[str, TrialFolder] = {}
        self._live_at = 0.0
        self._told: dict[str, float] = {}
        self._missed: set[str] = set()
        self._begun = self._asked = self._finishing = self._leaving = self._interrupted = self._given_up = False
        self._said_away = self._said_back = False
        self._away_since: float | None = None
        self._retry_at = 0.0
        self._progress = 0.0
        self._reason = ""
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)

    def begin(self) -> None:
        """The sweep is about to train: load MLflow meanwhile, and show the sweep as running. Returns at once."""
        with self._news:
            self._begun = True
            self._news.notify()

    def trial(self, folder: TrialFolder) -> None:
        """There is news of a trial that is to be written soon: a result, a failure, a pause. Returns at once."""
        self._told.pop(folder.identity, None)
        with self._news:
            self._begun = True
            self._live.pop(folder.identity, None)
            self._pending[folder.identity] = folder
            self._news.notify()

    def epochs(self, folder: TrialFolder) -> None:
        """A running trial has finished an epoch; it is written when it is the trial's turn. Returns at once."""
        identity, now = folder.identity, time.monotonic()
        # A thousand short trials are not worth a write each before their result.
        if now - self._told.setdefault(identity, now) < _LIVE_SECONDS:
            return
        self._told[identity] = now
        with self._news:
            self._begun = True
            if identity not in self._pending and identity not in self._live:
                self._live[identity] = folder
                self._news.notify()

    def finish(self) -> None:
        """Write what is missing of all trials in `sweep.json`, its note, files and clock, and end it as its state says.

        Returns at once; leaving the context waits for it.
        """
        with self._news:
            self._asked, self._finishing, self.complete = True, True, False
            self._news.notify()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave(kind is not None)
        try:
            self._join(kind is not None)
        except KeyboardInterrupt:
            self._leave(True)
            raise
        if kind is None and not self.complete and (self._asked or self._pending or self._live):
            self.say(
                f"MLflow at {shown(self.uri)} lacks some of this sweep ({self._reason}). All results are in "
                f"{self.sweep.storage}; `{self._sync()}` writes what is missing"
            )

    def _sync(self) -> str:
        """The command that writes what is missing."""
        uri = "" if self.uri == default_uri(self.sweep.storage) else f" --tracking-uri {shown(self.uri)}"
        return f"python -m clar.tracking sync --storage {self.sweep.storage}{uri}"

    def _leave(self, interrupted: bool) -> None:
        with self._news:
            self._leaving, self._interrupted, self._retry_at = True, interrupted, 0.0
            self._news.notify()

    def _join(self, interrupted: bool) -> None:
        """Wait for the thread, which is a daemon: one that hangs in a request is left behind."""
        began, told = time.monotonic(), False
        while self._thread.is_alive():
            self._thread.join(0.5)
            waited = time.monotonic() - began
            if interrupted and waited > _INTERRUPT_SECONDS:
                return
            if not interrupted and not told and waited > _TELL_SECONDS and self._away_since is None:
                self.say(f"waiting for MLflow at {shown(self.uri)}; Ctrl-C leaves the rest to `{self._sync()}`")
                told = True
            if time.monotonic() - max(began, self._progress) > _STUCK_SECONDS:
                self._reason = self._reason or "no answer"
                return

    def _work(self) -> None:
        writer: _Writer | None = None
        while self._wait(writer is None):
            try:
                if writer is None:
                    writer = _Writer(connect(self.uri, self.sweep.storage), self.uri, self.sweep, self._wrote)
                    if self._begun:
                        writer.resume()
                else:
                    self._write(writer)
            except Exception as error:
                # A new one looks for the sweep's runs anew: the server may come back with another database.
                writer = None
                self._failed(error)
            else:
                self._wrote()
        if writer is not None and not self.complete:
            with suppress(Exception):
                writer.settle([*self._pending.values(), *self._live.values()], time.monotonic() + _INTERRUPT_SECONDS)

    def _wait(self, first: bool) -> bool:
        """Until there is something to write and the server may be asked; False where there is nothing more to do."""
        with self._news:
            while not self._interrupted and not self._given_up:
                wait = None
                urgent = self._pending or self._finishing or (first and self._begun and not self._leaving)
                if urgent or self._live:
                    at = self._retry_at if self._away_since is not None else 0.0
                    if not urgent and not self._leaving:
                        at = max(at, self._live_at)
                    wait = at - time.monotonic()
                    if wait <= 0:
                        return True
                elif self._leaving:
                    return False
                self._news.wait(wait)
            return False

    def _write(self, writer: "_Writer") -> None:
        with self._news:
            finishing = self._finishing and not self._pending
            queue = self._pending or self._live
            folder = None if finishing else queue.pop(next(iter(queue)))
            if finishing:
                self._live.clear()
                self._missed.clear()
        if folder is None:
            writer.everything(_others_drive(self.sweep))
            self._finishing, self.complete = False, not writer.faults
            self._reason = "; ".join(f"trial {identity}: {reason}" for identity, reason in writer.faults.items())[:300]
            return
        began = time.monotonic()
        try:
            writer.trial(folder, live=True, epochs_only=queue is self._live)
        except Exception:
            with self._news:
                queue.setdefault(folder.identity, folder)
            raise
        with self._news:
            self._missed.discard(folder.identity)
            if queue is self._live:
                now = time.monotonic()
                self._live_at = now + (now - began) * (1 / _LIVE_SHARE - 1)

    def _wrote(self) -> None:
        """Something has been written: the server is there."""
        with self._news:
            self._progress, self._away_since = time.monotonic(), None
            caught_up = self._said_away and not self._said_back and not self._pending and not self._missed
            self._said_back = self._said_back or caught_up
        if caught_up:
            self.say(f"MLflow at {shown(self.uri)} is back, and what it missed is written")

    def _failed(self, error: Exception) -> None:
        now = time.monotonic()
        with self._news:
            if self._away_since is None:
                self._away_since = now
            self._reason = one_line(error)
            self._missed |= self._live.keys()
            self._retry_at = now + (_HASTE_SECONDS if self._leaving else _RETRY_SECONDS)
            refused = getattr(error, "error_code", "") in _REFUSALS
            self._given_up = self._leaving and (refused or now - self._away_since > _PATIENCE_SECONDS)
            first, self._said_away = not self._said_away, True
        if first:
            why = f" ({_REFUSED})" if refused else ""
            self.say(f"MLflow at {shown(self.uri)} cannot be written{why}; the trials go on")


@dataclass
class _Known:
    """What a writer has seen of a running trial's run, so that further epochs cost one request.

    It holds while the trial goes on as it has `begun`: whoever trains it anew or further, here or elsewhere, first
    rewrites its `config.json`, and may repeat epochs that the run has.
    """

    run_id: str
    start: int
    begun: int
    epochs: int


class _Writer:
    """Writes what is missing of one sweep, from whatever process, while others may do the same.

    Args:
        client: of the tracking store.
        uri: its URI.
        sweep: the sweep.
        wrote: called after each trial, to tell a slow server from one that is away.

    Raises:
        Exception: whatever MLflow raises where its store cannot be written, here and in all methods.
    """

    def __init__(
        self, client: "MlflowClient", uri: str, sweep: SweepFolder, wrote: Callable[[], object] = lambda: None
    ) -> None:
        self.client, self.uri, self.sweep, self.wrote = client, uri, sweep, wrote
        self.about = sweep.read() or {}
        self.faults: dict[str, str] = {}
        """Why a trial could not be written although the server is there, by identity."""
        self.known: dict[str, _Known] = {}
        self.lock = _lock(sweep.storage)
        self._find()

    @_patiently
    def _find(self) -> None:
        with self.lock:
            self.experiment = self._experiment()
            self.parent = self._parent().info.run_id
            self.of_parent = f"tags.`mlflow.parentRunId` = '{self.parent}'"

    def _experiment(self) -> str:
        name = f"clar/{self.sweep.name}"
        found = self.client.get_experiment_by_name(name)
        if found is None:
            local = self.uri.startswith("sqlite:")
            artifacts = (self.sweep.storage / "mlartifacts").as_uri() if local else None
            try:
                return self.client.create_experiment(name, artifact_location=artifacts)
            except Exception:
                # Another storage has the same sweep and the same server.
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            self.client.restore_experiment(found.experiment_id)
        return found.experiment_id

    def _parent(self) -> "Run":
        # Two storages may have the same sweep and one server: each has its own runs.
        tags = {"clar.parent": self.sweep.key, "clar.storage": _storage_id(self.sweep.storage)}
        found = self._search(" and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items()))
        found.sort(key=_oldest)
        for other in found[1:]:
            for child in self._search(f"tags.`mlflow.parentRunId` = '{other.info.run_id}'"):
                self.client.delete_run(child.info.run_id)
            self.client.delete_run(other.info.run_id)
        if found:
            run = found[0]
        else:
            tags |= {"clar.sweep": self.sweep.name, "clar.code_version": self.about.get("code_version", "")}
            title = f"{self.sweep.name} on {self.about.get('dataset', '')}"
            run = self.client.create_run(self.experiment, tags=tags, run_name=title)
        # Its seeds are those of its trials.
        base = {name: value for name, value in self.about.get("base", {}).items() if name != "seed"}
        missing = _missing(_params(base), run.data.params)
        self._log(run.info.run_id, params=missing)
        return run

    def resume(self) -> None:
        """The sweep is being driven, whatever became of an earlier driver."""
        self._present()
        if self.client.get_run(self.parent).info.status != "RUNNING":
            self.client.update_run(self.parent, status="RUNNING")

    def _present(self) -> None:
        """What the sweep is, for readers of its plan; how the experiment is to be looked at, for people.

        The UI shows neither parameters nor metrics by default, and folds the children. It can be told otherwise in one
        way: by views that the experiment keeps, which a link opens, and its first line shows on every page.
        """
        recipe = hashlib.sha256(json.dumps(self.about.get("recipe"), sort_keys=True).encode()).hexdigest()
        if self.client.get_run(self.parent).data.tags.get("clar.recipe") != recipe:
            _upload(self.client, self.parent, self.sweep.path, [_SWEEP_FILE])
            self._log(self.parent, tags={"clar.recipe": recipe})
        axes = [
            _param(name) for name in dict.fromkeys(name for one in self.about.get("axes", {}).values() for name in one)
        ]
        several = ["dataset"] if "," in self.about.get("dataset", "") else []
        folds = ["fold"] if (self.about.get("recipe") or {}).get("folds") else []
        params = list(dict.fromkeys([*several, *axes[:_MOST_AXES], *folds, "seed"]))
        columns = [f"params.`{name}`" for name in params] + [f"metrics.`{name}`" for name in _METRICS_SHOWN]
        # MLflow cuts off a name that is wider than its column.
        widths = {column: max(100, 7 * len(column.split("`")[1]) + 30) for column in columns}
        tags = {}
        for key, (title, order, ascending) in _VIEWS.items():
            state = {
                "orderByKey": order, "orderByAsc": ascending, "selectedColumns": columns,
                "columnOrder": ["attributes.`Run Name`", *columns],
                "columnWidths": {"attributes.`Run Name`": 320, **widths},
            }  # fmt: skip
            view = {"name": title, "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)}
            tags[f"mlflow.sharedViewState.{key}"] = json.dumps(view)
        where = f"#/experiments/{self.experiment}/runs?workflowType=machine_learning&viewStateShareKey="
        links = " or ".join(f"[{title}]({where}{key})" for key, (title, *_) in _VIEWS.items())
        about = f"{self.about.get('summary', '')} On {self.about.get('dataset', '')}.".strip()
        note = shortened(_spaced(self.sweep.report()["note"]), _EXPERIMENT_NOTE)
        tags["mlflow.note.content"] = f"The runs as a table: {links}.\n\n{about}\n\n{note}"
        known = self.client.get_experiment(self.experiment).tags
        for name, value in tags.items():
            if known.get(name) != value:
                self.client.set_experiment_tag(self.experiment, name, value)

    def everything(self, live: bool, advance: Callable[[], object] = lambda: None) -> tuple[int, int]:
        """Write what is missing of the sweep; how many runs were written, and how many were up to date.

        Args:
            live: whether somebody drives the sweep, so that what is not done is not at an end.
            advance: called after each trial.
        """
        if self.uri.startswith("sqlite:///") and not Path(self.uri.removeprefix("sqlite:///")).exists():
            raise FileNotFoundError(f"{self.uri} has been deleted")
        self.about = self.sweep.read() or {}
        self.faults.clear()
        found: dict[str, list[Run]] = defaultdict(list)
        for run in self._search(self.of_parent):
            found[run.data.tags.get("clar.identity", "")].append(run)
        written = same = 0
        for identity in self.about.get("trials", []):
            advance()
            if not (self.sweep.storage / "trials" / identity / "config.json").exists():
                continue  # not begun, or about to begin anew
            try:
                folder = TrialFolder.open(self.sweep.storage, identity)
            except UserError as error:
                self.faults[identity] = one_line(error)
                continue
            runs = found[identity]
            whole = len(runs) == 1 and _is_whole(runs[0], folder.run_token())
            new = not whole and self.trial(folder, live)
            if identity not in self.faults:
                written, same = written + new, same + (not new)
                del found[identity]
        for run in (run for runs in found.values() for run in runs):
            if run.info.status == "RUNNING" and not live:
                self.client.set_terminated(run.info.run_id, "KILLED")
                written += 1
        return (written + 1, same) if self.end(live) else (written, same + 1)

    def settle(self, pending: Iterable[TrialFolder], deadline: float) -> None:
        """No run stays RUNNING when the sweep's only driver leaves off; then `pending`, while there is time."""
        if _others_drive(self.sweep):
            return
        self.about = self.sweep.read() or {}
        for run in self._search(f"{self.of_parent} and attributes.status = 'RUNNING'"):
            if time.monotonic() > deadline:
                return
            try:
                self.trial(TrialFolder.open(self.sweep.storage, run.data.tags.get("clar.identity", "")), live=False)
            except UserError:
                self.client.set_terminated(run.info.run_id, "KILLED")
        self.end(live=False)
        for folder in pending:
            if time.monotonic() > deadline:
                return
            self.trial(folder, live=False)

    def trial(self, folder: TrialFolder, live: bool, epochs_only: bool = False) -> bool:
        """Write what the trial's folder holds and MLflow does not yet; whether there was anything.

        What cannot be written of this one trial is noted in `faults`, and the others go on.

        Args:
            folder: of the trial.
            live: whether somebody drives the sweep.
            epochs_only: nothing is new but epochs.

        Raises:
            Exception: the server is away.
        """
        try:
            written = self._trial(folder, live, epochs_only)
        except Timeout:
            raise
        except Exception as error:
            # Who is at fault, server or trial? The server is where it cannot even be asked for the experiment.
            self.client.get_experiment(self.experiment)
            self.faults[folder.identity] = one_line(error)
            return False
        self.faults.pop(folder.identity, None)
        self.wrote()
        return written

    @_patiently
    def _trial(self, folder: TrialFolder, live: bool, epochs_only: bool) -> bool:
        # Nothing is known any more until a write has succeeded: what fails is tried again by looking.
        known = self.known.pop(folder.identity, None)
        try:
            begun = _milliseconds(folder.path / "config.json")
        except FileNotFoundError:
            return False  # put aside, to begin anew
        if known and known.begun != begun:
            known = None
        if known and epochs_only:
            return self._add(known, folder)
        token = folder.run_token()
        if not token:
            return False
        with self.lock:
            run = self._child(folder.identity, token)
            if run is not None and _is_whole(run, token):
                return False
            result = folder.result()
            failure = "" if result else folder.failure() or ""
            if result is None or folder.identity not in self.about.get("titles", {}):
                self.about = self.sweep.read() or {}
            if result is not None:
                state = "done"
            elif folder.identity in self.about.get("cut", ()):
                state = "cut"
            else:
                state = "failed" if failure else "running" if live else "stopped"
            if run is None:
                run = self._create(folder, token)
            epochs = known.epochs if known and known.run_id == run.info.run_id else self._epochs_written(run)
            written, epochs = self._fill(run, folder, state, result, failure, epochs)
            if state == "running":
                self.known[folder.identity] = _Known(run.info.run_id, run.info.start_time, begun, epochs)
            return written

    def _add(self, known: _Known, folder: TrialFolder) -> bool:
        """Write a running trial's new epochs, in one request and without the lock.

        Where another process writes the same at the same moment, both write equal values, of which MLflow keeps one.
        """
        epochs = folder.epochs()
        metrics = list(_metrics(epochs, known.epochs, None))
        if metrics:
            self._log(known.run_id, metrics=metrics, start=known.start)
            known.epochs = epochs[-1].epoch
        self.known[folder.identity] = known
        return bool(metrics)

    def _child(self, identity: str, token: str) -> "Run | None":
        """The run of a trial, as it is at this moment. Others of it go: an earlier training's, or one made twice.

        A request that the server answers too late is one that it may have heard, and so a run may be made twice.
        """
        runs = self._search(f"{self.of_parent} and tags.`clar.identity` = '{identity}'")
        right = sorted((run for run in runs if run.data.tags.get("clar.run") == token), key=_oldest)
        for run in runs:
            if run not in right[:1]:
                self.client.delete_run(run.info.run_id)
        return right[0] if right else None

    def _create(self, folder: TrialFolder, token: str) -> "Run":
        tags = {
            "mlflow.parentRunId": self.parent,
            "clar.identity": folder.identity,
            "clar.run": token,
            "clar.sweep": self.sweep.name,
            "clar.dataset_fingerprint": folder.data_fingerprint,
            "clar.code_version": folder.code_version(),
        }
        title = self.about.get("titles", {}).get(folder.identity) or folder.config.title()
        start = _milliseconds(folder.path / "config.json")
        return self.client.create_run(self.experiment, start_time=start, tags=tags, run_name=title)

    def _fill(
        self, run: "Run", folder: TrialFolder, state: str, result: TrialResult | None, failure: str, known: int
    ) -> tuple[bool, int]:
        """Write what a run with `known` epochs lacks; whether there was anything, and how many epochs it has now."""
        run_id, status = run.info.run_id, _STATUS[state]
        tags = {"clar.state": state, **({"clar.failure": failure[:5000]} if failure else {})}
        tags = {name: value for name, value in tags.items() if run.data.tags.get(name) != value}
        axes = {_param(name): value for name, value in self.about.get("axes", {}).get(folder.identity, {}).items()}
        params = _missing(axes | _params(folder.config.model_dump()), run.data.params)
        epochs = result.epochs if result else folder.epochs()
        metrics = list(_metrics(epochs, known, result))
        known = max(known, epochs[-1].epoch if epochs else 0)
        if not tags and not params and not metrics and run.info.status == status:
            return False, known
        self._log(run_id, params, metrics, tags, run.info.start_time)
        if "clar.failure" in run.data.tags and not failure:
            self.client.delete_tag(run_id, "clar.failure")
        if status == "RUNNING":
            if run.info.status != status:
                self.client.update_run(run_id, status=status)
        else:
            _upload(self.client, run_id, folder.path, _TRIAL_FILES)
            last = next(
                folder.path / name
                for name in ("result.json", "failure.json", "epochs.json", "config.json")
                if (folder.path / name).exists()
            )
            self.client.set_terminated(run_id, status, max(run.info.start_time, _milliseconds(last)))
        return True, known

    def _epochs_written(self, run: "Run") -> int:
        """How many epochs the run holds. An epoch's metrics are written at once or, `train_loss` last, one by one."""
        if "train_loss" not in run.data.metrics:
            return 0
        return max(metric.step for metric in self.client.get_metric_history(run.info.run_id, "train_loss"))

    @_patiently
    def end(self, live: bool) -> bool:
        """The parent run: note, files, clock and status; whether any was missing."""
        about, path = self.about, self.sweep.path
        report = self.sweep.report()
        files = [name for name in report["files"] if (path / name).is_file()]
        clock = {name: float(value) for name, value in about.get("clock", {}).items() if value is not None}
        unfinished = "RUNNING" if live else "KILLED"
        status = {"done": "FINISHED", "failed": "FAILED"}.get(about.get("state", ""), unfinished)
        note = shortened(_spaced(report["note"]), _RUN_NOTE)
        self._present()
        content = hashlib.sha256(json.dumps([note, clock, files], sort_keys=True).encode())
        for name in files:
            content.update(read_bytes(path / name))
        with self.lock:
            run = self.client.get_run(self.parent)
            # A sweep that goes on has no note yet: an earlier one stays.
            written = bool(note or files or clock) and run.data.tags.get("clar.written") != content.hexdigest()
            if written:
                _upload(self.client, self.parent, path, [*files, _SWEEP_FILE])
                at = _milliseconds(path / "sweep.json")
                self._log(self.parent, metrics=[(name, value, 0) for name, value in clock.items()], start=at)
                tags = {"mlflow.note.content": note, "clar.written": content.hexdigest()}
                self._log(self.parent, tags=tags)
            if run.info.status == status:
                return written
            if status == "RUNNING":
                self.client.update_run(self.parent, status=status)
            else:
                self.client.set_terminated(self.parent, status)
            return True

    def _search(self, query: str) -> list["Run"]:
        runs: list[Run] = []
        token = None
        while True:
            page = self.client.search_runs([self.experiment], query, max_results=500, page_token=token)
            runs.extend(page)
            token = page.token
            if not token:
                return runs

    def _log(
        self,
        run_id: str,
        params: dict[str, str] | None = None,
        metrics: Iterable[tuple[str, float, int]] = (),
        tags: dict[str, str] | None = None,
        start: int = 0,
    ) -> None:
        """One request, or more where there are more than MLflow takes in one, in this order.

        Args:
            run_id: of the run.
            params: by name.
            metrics: name, value, step.
            tags: by name.
            start: time of step 0, milliseconds.
        """
        from mlflow.entities import Metric, Param, RunTag

        self.client.log_batch(
            run_id,
            metrics=[Metric(name, value, start + step, step) for name, value, step in metrics],
            params=[Param(name, value) for name, value in (params or {}).items()],
            tags=[RunTag(name, value) for name, value in (tags or {}).items()],
        )


def _upload(client: "MlflowClient", run_id: str, folder: Path, names: Iterable[str]) -> None:
    """Those of a folder's files that there are, in one go: MLflow takes a folder, so they are linked into one."""
    there = [name for name in names if (folder / name).is_file()]
    if not there:
        return
    with tempfile.TemporaryDirectory(prefix="clar-mlflow-") as links:
        for name in there:
            link = Path(links) / name
            link.parent.mkdir(parents=True, exist_ok=True)
            if is_folder(folder):
                link.symlink_to((folder / name).absolute())
            else:
                link.write_bytes(read_bytes(folder / name))
        client.log_artifacts(run_id, links)


def write_parent(uri: str, sweep: SweepFolder) -> None:
    """Write what the parent run of a sweep lacks: its note, files, clock and state.

    Raises:
        Exception: whatever MLflow raises where its store cannot be written.
    """
    _Writer(connect(uri, sweep.storage), uri, sweep).end(sweep.drivers_alive())


def upload(uri: str, run_id: str, folder: Path, names: Iterable[str], note: str) -> None:
    """Write files below a folder to a run, under their names, and its description.

    Raises:
        Exception: whatever MLflow raises where its store cannot be written.
    """
    client = connect(uri, folder)
    _upload(client, run_id, folder, names)
    client.set_tag(run_id, "mlflow.note.content", shortened(_spaced(note), _RUN_NOTE))


def connect(uri: str, storage: Path) -> "MlflowClient":
    """A client, its database made where there is none. Loads MLflow."""
    # MLflow's retries (7, up to 2 minutes each) are meant for jobs that have nothing else to do, and a request that is
    # sent again may make a run twice: the writer looks before it tries again.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    # Two lines a run on the user's terminal, and a message a call to MLflow's makers.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import logging

    from mlflow.tracking import MlflowClient

    # What goes wrong is raised, and said in one line; these log its traceback as well.
    for name in ("mlflow", "alembic", "sqlalchemy"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if uri == default_uri(storage):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    # Two processes that make one database at the same time would fall over each other.
    with _lock(storage):
        return MlflowClient(uri)


def _lock(storage: Path) -> Lock:
    """Held while runs of a storage are looked for and made or changed."""
    return lock(storage / ".tracking.lock", timeout=_LOCK_SECONDS)


def _storage_id(storage: Path) -> str:
    """Tells storages apart wherever they are mounted; made once, by whoever holds the lock."""
    path = storage / ".tracking.id"
    if not path.exists():
        write_atomically(path, secrets.token_hex(8))
    return read_bytes(path).decode()


def _others_drive(sweep: SweepFolder) -> bool:
    """Whether another process drives the sweep."""
    if not sweep.drivers_alive():  # forgets those that died, so that the files left are of the living
        return False
    own = f".driver-{socket.gethostname()}-{os.getpid()}"
    return any(not path.name.startswith((f"{own}-", f"{own}.")) for path in sweep.path.glob(".driver-*.lock"))


def _is_whole(run: "Run", token: str) -> bool:
    """Whether nothing can be missing of this run of a trial."""
    return run.info.status == "FINISHED" and run.data.tags.get("clar.run") == token


def _oldest(run: "Run") -> tuple[bool, int, str]:
    """Sorts runs that were made twice so that whoever looks keeps the same one."""
    return run.info.status != "FINISHED", run.info.start_time, run.info.run_id


def _metrics(epochs: Iterable[EpochRecord], known: int, result: TrialResult | None) -> Iterator[tuple[str, float, int]]:
    """Name, value and step of what an MLflow run with `known` epochs lacks."""
    last: EpochRecord | None = None
    for last in epochs:
        if last.epoch <= known:
            continue
        if last.valid_top1 is not None:
            yield "valid_top1", last.valid_top1, last.epoch
        yield "clips_per_second", last.clips_per_second, last.epoch
        yield "train_loss", last.train_loss, last.epoch
    for name, value in result.metrics().items() if result else ():
        # The last epoch's probe is the final one: it has been written with the epoch.
        if name != "valid_top1" or last is None or last.valid_top1 is None:
            yield name, value, last.epoch if last else 0


def shortened(markdown: str, most: int) -> str:
    """As many whole paragraphs and tables as fit into so many characters."""
    if len(markdown) <= most:
        return markdown
    end = markdown.rfind("\n\n", 0, most - 100)
    return (
        f"{markdown[: max(end, 0)]}\n\nThere is more than fits here: see the artifact report.html of the sweep's run."
    )


def _spaced(markdown: str) -> str:
    """The same with no-break spaces between the cells of its tables, which MLflow would let touch."""
    return re.sub(r"(?m)^\|(?! ---).*", lambda row: row[0].replace(" | ", " | \u00a0\u00a0"), markdown)


def _param(name: str) -> str:
    """A name that MLflow takes for a parameter."""
    return re.sub(r"[^\w./: -]", "_", name)[:250]


def _params(fields: dict[str, Any]) -> dict[str, str]:
    """The fields as MLflow shows them: `fade > time_mask` rather than a Python tuple."""
    shown = {}
    for name, value in fields.items():
        joint = " > " if name == "augmentations" else ","
        shown[name] = joint.join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return shown


def _missing(wanted: dict[str, str], there: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in wanted.items() if name not in there}


def _milliseconds(path: Path) -> int:
    """When a file was written, since 1970."""
    return int(path.stat().st_mtime * 1000)


def one_line(error: Exception) -> str:
    """What an exception says, on one line; requests' own may name the server with its password."""
    return shown(" ".join(f"{type(error).__name__}: {error}".removeprefix("UserError: ").split()))[:300]


def shown(text: str) -> str:
    """A tracking URI, or a text with some in it, as it may be printed, logged and kept: names and passwords hidden.

    Up to the last @ of a word: a password that was not encoded may hold any other character. A path without a host, as
    of SQLite, holds none.
    """
    text = re.sub(r"://[^/\s]\S*@", "://***@", text)
    return re.sub(r"(?i)(\w*(?:password|passwd|secret|token)=)[^&\s]+", r"\1***", text)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def main(context: typer.Context) -> None:
    """What MLflow holds of a storage."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def sync(storage: Storage = Path("clar_runs"), tracking_uri: TrackingURI = None) -> int:
    """Write what MLflow lacks of a storage's sweeps. Twice adds nothing, and beside a running sweep it does no harm."""
    place = storage_path(storage, make=False)
    if not place.is_dir():
        raise UserError(f"--storage {storage}: no such folder")
    storage_path(storage)
    uri = tracking_uri or default_uri(place)
    sweeps = SweepFolder.all(place)
    if not sweeps:
        print(f"no sweeps in {place}")
        return 0
    faults = 0
    try:
        client = connect(uri, place)
        for sweep in sweeps:
            try:
                with progress.bar(sweep.path.name, len((sweep.read() or {}).get("trials", []))) as bar:
                    writer = _Writer(client, uri, sweep)
                    written, same = writer.everything(sweep.drivers_alive(), bar.advance)
            except UserError as error:
                faults += 1
                print(f"error: {error}", file=sys.stderr)
                continue
            print(f"{sweep.path.name}: {written} runs written, {same} up to date", flush=True)
            faults += len(writer.faults)
            for identity, reason in writer.faults.items():
                print(f"error: trial {identity} is not written: {reason}", file=sys.stderr)
    except Exception as error:
        print(
            f"error: MLflow at {shown(uri)} cannot be written ({one_line(error)}); the storage has all", file=sys.stderr
        )
        return 1
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(command(app))
