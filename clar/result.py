"""What a trial found, and the folder in which it is kept. No tensors: the driver and the tables read it too.

A storage is a folder, or a place in a bucket that holds the same. Each trial has its own folder below `trials/`, named
by its identity:

    config.json          what the trial is: fields, identity, fingerprint of the data, version of the code
    checkpoint.pt        where it stands; gone once it is done
    epochs.json          the record of every finished epoch
    log.txt              a line an epoch, and the traceback of a failure
    failure.json         why it stopped last time; gone once it goes on
    encoder.safetensors  the trained encoder
    answers.csv          what the probe answered to each test clip, and the clip's speaker, instrument or recording
    result.json          written last: a trial that has one is done

Each sweep has one below `sweeps/`, with its tables, `sweep.json`, which says what it is, and `report.json`, which says
what it has found. Locks lie below `locks/`, and trials that were trained anew below `replaced/`.

These files are the truth. Tables and MLflow are written from them.
"""

import json
import os
import secrets
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from filelock import Timeout

from clar import files
from clar.config import RESULTS_VERSION, TrialConfig
from clar.errors import UserError
from clar.files import read_json, write_json


@dataclass(frozen=True)
class EpochRecord:
    """What one finished epoch leaves.

    `epoch` counts from 1; `valid_top1` is the linear probe's accuracy on valid, None where none was due;
    `clips_per_second` counts training alone.
    """

    epoch: int
    train_loss: float
    valid_top1: float | None
    learning_rate: float
    clips_per_second: float


@dataclass(frozen=True)
class TrialResult:
    """What a finished trial found. Accuracies are shares, 0 to 1; seconds count over all restarts.

    `valid_top1` chose the probe's penalty; test was looked at once, after that. `head_test_top1` is the trained head's
    own accuracy, None for a self-supervised trial, whose head knows no classes. Epochs and costs are the trial's own,
    without those of its pre-training, which is another trial.

    `train_seconds` run from the start to the saved encoder: training, its probes, checkpoints, and not the probe's
    scores on test, nor what a killed process had done since its last checkpoint. The other costs count the same.
    `cpu_seconds` are the process's, all threads together. `energy_joules` are what `clar.meter` counts, None where the
    trial's device reported none, if only for a part of the time. Results from before these two were counted have
    neither.

    `chance_top1` and `chance_top5` are what naming the commonest classes of the probe's training clips gives on test.
    `labelled_clips` are
    the training clips whose labels training saw. `loss_left` is the last epoch's cross-entropy as a share of ln C, that
    of a guess among C classes; None where the loss is more than that. `finetune_rate` is the rate that was best on
    valid, None where there was one alone. Results version 3 brought these.
    """

    test_top1: float
    test_top5: float
    valid_top1: float
    probe_l2: float
    knn_test_top1: float
    head_test_top1: float | None
    train_seconds: float
    gpu_seconds: float
    epochs: tuple[EpochRecord, ...]
    cpu_seconds: float | None = None
    energy_joules: float | None = None
    chance_top1: float | None = None
    chance_top5: float | None = None
    labelled_clips: int | None = None
    loss_left: float | None = None
    finetune_rate: float | None = None

    def metrics(self) -> dict[str, float]:
        """The final numbers by name, those that there are."""
        return {name: value for name, value in asdict(self).items() if name != "epochs" and value is not None}

    def same_as(self, other: "TrialResult") -> bool:
        """Whether both runs found the same, to the last bit; what they cost does not count."""
        return self._found() == other._found()

    def _found(self) -> dict[str, Any]:
        content = asdict(self)
        for cost in ("train_seconds", "gpu_seconds", "cpu_seconds", "energy_joules"):
            del content[cost]
        for record in content["epochs"]:
            del record["clips_per_second"]
        return content


class TrialFolder:
    """One trial's folder in a storage.

    Args:
        storage: the storage's folder.
        config: the trial.
        data_fingerprint: of the data that it trains on.
        version: of the results; an older one finds what an older version of the code left.
    """

    def __init__(
        self, storage: Path, config: TrialConfig, data_fingerprint: str, version: int = RESULTS_VERSION
    ) -> None:
        self.storage, self.config, self.data_fingerprint, self.version = storage, config, data_fingerprint, version
        self.pretraining_version = version
        """Results version of the trial that this one starts from; a sweep may take an older one."""
        self._place(config.identity(data_fingerprint, version))

    def _place(self, identity: str) -> None:
        self.identity = identity
        self.path = self.storage / "trials" / identity
        self.log = self.path / "log.txt"
        # Outside the folder, which `archive` moves away: whoever waits for the lock waits for the one that counts.
        self.lock = self.storage / "locks" / f"{identity}.lock"

    @classmethod
    def open(cls, storage: Path, identity: str) -> Self:
        """The folder of a trial that has begun, from what it says about itself.

        Raises:
            UserError: there is none, or its `config.json` is damaged.
        """
        path = storage / "trials" / identity / "config.json"
        try:
            content = json.loads(files.read_bytes(path))
            config, version = TrialConfig(**content["config"]), content.get("results_version", 1)
            folder = cls(storage, config, content["dataset_fingerprint"], version)
        except FileNotFoundError:
            raise UserError(f"{storage} holds no trial {identity}") from None
        except (ValueError, TypeError, KeyError, AttributeError, UserError) as error:
            raise UserError(f"{path} is damaged ({error}); delete its folder to train this trial again") from error
        if folder.identity != identity:
            if version == RESULTS_VERSION:
                raise UserError(f"{path} is of trial {folder.identity}, not of {identity}: edited by hand, or moved")
            folder._place(identity)  # an older version hashed otherwise
        return folder

    def pretraining(self) -> "TrialFolder | None":
        """The folder of the trial whose encoder this one starts from, None where it starts from random weights."""
        config = self.config.pretraining()
        return TrialFolder(self.storage, config, self.data_fingerprint, self.pretraining_version) if config else None

    def begin(self, code_version: str) -> None:
        """Write down what the trial is, before it starts or goes on. An earlier failure is forgotten, but counted."""
        failed = self._attempts()
        content = {
            "identity": self.identity,
            "dataset_fingerprint": self.data_fingerprint,
            "code_version": code_version,
            "results_version": self.version,
            "run": self.run_token() or secrets.token_hex(8),
            "failed_attempts": failed,
            "config": self.config.model_dump(mode="json"),
        }
        write_json(self.path / "config.json", content)
        files.remove(self.path / "failure.json")

    def code_version(self) -> str:
        """Version of the code that began the trial; empty where it has not begun."""
        return str(self._read("config.json").get("code_version", ""))

    def run_token(self) -> str:
        """16 hex digits of this very training, kept when it goes on, new after `archive`; empty where it has not begun.

        Two storages may both train a trial; its identity is the same in both, this is not.
        """
        return str(self._read("config.json").get("run", ""))

    def write_failure(self, reason: str) -> None:
        """Keep why the trial stopped, until it begins again."""
        write_json(self.path / "failure.json", {"reason": reason, "attempts": self._attempts() + 1})

    def failure(self) -> str | None:
        """Why the trial stopped last time, None where it did not fail or has gone on since."""
        reason = self._read("failure.json").get("reason")
        return None if reason is None or (self.path / "result.json").exists() else str(reason)

    def _attempts(self) -> int:
        """How often the trial has failed up to now."""
        failure = self._read("failure.json")
        return int(
            failure["attempts"] if "attempts" in failure else self._read("config.json").get("failed_attempts", 0)
        )

    def _read(self, name: str) -> dict[str, Any]:
        """A file's content; empty where there is none, or none that can be read."""
        return read_json(self.path / name)

    def archive(self) -> None:
        """Move the folder to `replaced/<identity>-<n>` of the storage: the trial begins anew, and nothing is lost.

        Raises:
            UserError: a process is training the trial at this moment.
        """
        try:
            with files.lock(self.lock, timeout=0):
                if not self.path.exists():
                    return
                count = 1
                while (place := self.storage / "replaced" / f"{self.identity}-{count}").exists():
                    count += 1
                # Which training it is, is what an interrupted move can be gone on with by.
                files.move(self.path, place, last="config.json")
        except Timeout:
            raise UserError(f"trial {self.identity} is being trained by another process; wait for it") from None

    def write_epochs(self, epochs: Sequence[EpochRecord]) -> None:
        """Keep the records of all finished epochs."""
        write_json(self.path / "epochs.json", [asdict(record) for record in epochs])

    def epochs(self) -> list[EpochRecord]:
        """The finished epochs so far.

        Raises:
            UserError: the file is damaged.
        """
        path = self.path / "epochs.json"
        try:
            return [EpochRecord(**record) for record in json.loads(files.read_bytes(path))]
        except FileNotFoundError:
            return []
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{path} is damaged ({error}); delete it, and the trial goes on from its checkpoint"
            ) from error

    def write_result(self, result: TrialResult) -> None:
        """The last write of a trial: from here on it is done."""
        write_json(self.path / "result.json", asdict(result))

    def result(self) -> TrialResult | None:
        """The result, None where the trial is not done.

        Raises:
            UserError: the file is there but not a result: damaged, or edited by hand.
        """
        path = self.path / "result.json"
        try:
            content = json.loads(files.read_bytes(path))
            epochs = tuple(EpochRecord(**record) for record in content.pop("epochs"))
            return TrialResult(**content, epochs=epochs)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error}); delete it to train this trial again") from error

    def last_log_lines(self, count: int = 3) -> str:
        """The end of the log, for an error message."""
        try:
            lines = files.read_bytes(self.log).decode(errors="replace").strip().splitlines()
        except FileNotFoundError:
            return ""
        return "\n".join(lines[-count:])


class SweepFolder:
    """One sweep's folder in a storage: its tables, and `sweep.json`, from which all else about it can be rebuilt.

    Args:
        storage: the storage's folder.
        name: of the sweep.
        key: tells apart the same sweep with another base or on other data.
    """

    def __init__(self, storage: Path, name: str, key: str) -> None:
        self.storage, self.name, self.key = storage, name, key
        self.path = storage / "sweeps" / f"{name}-{key}"

    @classmethod
    def all(cls, storage: Path) -> "list[SweepFolder]":
        """The sweeps of a storage, by name."""
        names = sorted(path.parent.name for path in (storage / "sweeps").glob("*/sweep.json"))
        return [cls(storage, *name.rpartition("-")[::2]) for name in names]

    def write(self, about: dict[str, Any]) -> None:
        """Keep what the sweep is and how it stands: JSON values."""
        write_json(self.path / "sweep.json", about)

    def read(self) -> dict[str, Any] | None:
        """What `write` kept, None where there is nothing.

        Raises:
            UserError: the file is damaged.
        """
        path = self.path / "sweep.json"
        try:
            content = json.loads(files.read_bytes(path))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}); delete it and run the sweep again") from error
        if not isinstance(content, dict):
            raise UserError(f"{path} is damaged (no object); delete it and run the sweep again")
        return content

    def write_report(self, note: str, files: Sequence[str]) -> None:
        """Keep what the sweep has found: a note in Markdown, and the files of its tables and figures, by name.

        A file of its own: a report may be written while a driver writes `sweep.json`.
        """
        write_json(self.path / "report.json", {"note": note, "files": list(files)})

    def report(self) -> dict[str, Any]:
        """`note` and `files` of the last report, or those that an older version kept in `sweep.json`."""
        known = read_json(self.path / "report.json") or read_json(self.path / "sweep.json")
        return {"note": known.get("note", ""), "files": known.get("files", [])}

    @contextmanager
    def driver(self) -> Iterator[None]:
        """While a driver works on the sweep. Several may; the operating system ends it with the process that dies."""
        # The token: containers that share a host's name may share a process number too.
        path = self.path / f".driver-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}.lock"
        with files.lock(path):
            try:
                yield
            finally:
                files.remove(path)

    def drivers_alive(self) -> bool:
        """Whether a driver works on the sweep, the caller's own included. Forgets drivers that died."""
        alive = False
        for path in self.path.glob(".driver-*.lock"):
            try:
                with files.lock(path, timeout=0):
                    files.remove(path)
            except Timeout:
                alive = True
            except OSError:  # of another user, or just removed
                alive = alive or path.exists()
        return alive
