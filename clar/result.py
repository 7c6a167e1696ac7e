"""What a trial found, and the folder in which it is kept. No tensors: the driver and the tables read it too.

A storage is a folder; each trial has its own below `trials/`, named by its identity:

    config.json          what the trial is: fields, identity, fingerprint of the data, version of the code
    checkpoint.pt        where it stands; gone once it is done
    epochs.json          the record of every finished epoch
    log.txt              a line an epoch, and the traceback of a failure
    encoder.safetensors  the trained encoder
    result.json          written last: a trial that has one is done

These files are the truth. Tables and MLflow are written from them.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clar.config import TrialConfig
from clar.errors import UserError
from clar.files import write_json


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
    own accuracy, None for a self-supervised trial, whose head knows no classes.
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

    def metrics(self) -> dict[str, float]:
        """The final numbers by name, those that there are."""
        return {name: value for name, value in asdict(self).items() if name != "epochs" and value is not None}

    def same_as(self, other: "TrialResult") -> bool:
        """Whether both runs found the same, to the last bit; how long they took does not count."""
        return self._found() == other._found()

    def _found(self) -> dict[str, Any]:
        content = asdict(self)
        del content["train_seconds"], content["gpu_seconds"]
        for record in content["epochs"]:
            del record["clips_per_second"]
        return content


class TrialFolder:
    """One trial's folder in a storage.

    Args:
        storage: the storage's folder.
        config: the trial.
        data_fingerprint: of the data that it trains on.
    """

    def __init__(self, storage: Path, config: TrialConfig, data_fingerprint: str) -> None:
        self.config, self.data_fingerprint = config, data_fingerprint
        self.identity = config.identity(data_fingerprint)
        self.path = storage / "trials" / self.identity
        self.log, self.lock = self.path / "log.txt", self.path / ".lock"

    def begin(self, code_version: str) -> None:
        """Write down what the trial is, before it starts."""
        content = {
            "identity": self.identity,
            "dataset_fingerprint": self.data_fingerprint,
            "code_version": code_version,
            "config": self.config.model_dump(mode="json"),
        }
        write_json(self.path / "config.json", content)

    def code_version(self) -> str:
        """Version of the code that began the trial; empty where it has not begun."""
        path = self.path / "config.json"
        return json.loads(path.read_text())["code_version"] if path.exists() else ""

    def write_epochs(self, epochs: Sequence[EpochRecord]) -> None:
        """Keep the records of all finished epochs."""
        write_json(self.path / "epochs.json", [asdict(record) for record in epochs])

    def epochs(self) -> list[EpochRecord]:
        """The finished epochs so far."""
        path = self.path / "epochs.json"
        return [EpochRecord(**record) for record in json.loads(path.read_text())] if path.exists() else []

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
            content = json.loads(path.read_text())
            epochs = tuple(EpochRecord(**record) for record in content.pop("epochs"))
            return TrialResult(**content, epochs=epochs)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error}); delete it to train this trial again") from error

    def last_log_lines(self, count: int = 3) -> str:
        """The end of the log, for an error message."""
        lines = self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        return "\n".join(lines[-count:])
