"""The commands as a user runs them, for tests: real processes in a folder of their own."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from mlflow.tracking import MlflowClient

from clar.result import TrialFolder, TrialResult

TINY = [
    "--dataset", "digits:120", "--preset", "demo", "--set", "epochs=2", "--set", "batch_size=16", "--set",
    "encoder_width=2", "--set", "bins=16", "--set", "projection_hidden=16", "--set", "probe_every=1",
]  # fmt: skip

STUDY = '''"""Two augmentations, one at a time."""

SETTINGS = {"loss": "self_supervised"}
ROWS, COLUMNS = ("augmentation", ("fade", "time_shift")), ("seeds", ("all",))


def trials(base):
    """The base with one augmentation."""
    return [base.but(augmentations=(name,)) for name in ROWS[1]]


def cell(trial):
    """One row an augmentation."""
    return trial.augmentations[0], "all"
'''

TEMPERATURES = '''"""Six temperatures."""

TEMPERATURES = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
SETTINGS = {"loss": "self_supervised"}
ROWS, COLUMNS = ("temperature", tuple(map(str, TEMPERATURES))), ("all", ("all",))


def trials(base):
    """The base with each."""
    return [base.but(temperature=temperature) for temperature in TEMPERATURES]


def cell(trial):
    """One row a temperature."""
    return str(trial.temperature), "all"
'''


class Command:
    """Runs a module of the project in a folder of its own, with the tests' cache."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.storage = folder, folder / "runs"
        self.environment = {**os.environ, "CLAR_CACHE": str(cache), "COLUMNS": "120"}
        (folder / "study.py").write_text(STUDY)

    def start(self, module: str, *arguments: str) -> subprocess.Popen[str]:
        """A process of the module; of a sweep without baselines, which most tests are not about, unless it has them."""
        if module == "clar.sweep" and "--baselines" not in arguments:
            arguments = (*arguments, "--no-baselines")
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=self.folder, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, module: str, *arguments: str, code: int = 0) -> str:
        process = self.start(module, *arguments)
        output, _ = process.communicate(timeout=900)
        assert process.returncode == code, output
        return output

    def sweep(self, *arguments: str, code: int = 0, report: bool = False, baselines: bool = False) -> str:
        """A sweep in the test's storage; without its report, which takes as long as a small sweep does."""
        more = () if report else ("--no-report",)
        more += ("--baselines",) if baselines else ()
        return self.run("clar.sweep", *arguments, *more, "--storage", str(self.storage), code=code)

    def results(self) -> dict[str, TrialResult]:
        found = {}
        for path in (self.storage / "trials").iterdir():
            about = json.loads((path / "config.json").read_text())
            folder = TrialFolder.open(self.storage, path.name)
            assert (folder.path, folder.data_fingerprint) == (path, about["dataset_fingerprint"])
            if result := folder.result():
                found[folder.identity] = result
        return found


def outputs(command: Command, name: str) -> dict[str, bytes]:
    """The tables and decisions that a sweep has left; not its clock."""
    (folder,) = command.storage.glob(f"sweeps/{name}-*")
    return {
        path.name: path.read_bytes() for path in folder.iterdir()
        if path.suffix in (".md", ".csv", ".tex", ".svg") or path.name == "rungs.json"
    }  # fmt: skip


def newest_checkpoint(command: Command) -> float:
    """When a checkpoint was last written."""
    stamps = []
    for path in command.storage.glob("trials/*/checkpoint.pt"):
        # Gone since it was listed: its trial is done.
        if (stat := path.stat() if path.exists() else None) is not None:
            stamps.append(stat.st_mtime)
    return max(stamps, default=0.0)


def runs(storage: Path, sweep: str) -> tuple[list, list]:
    """The parent runs and the child runs of a sweep's experiment."""
    # A copy: MLflow keeps one connection a path, and would go on reading a database that has been deleted.
    copy = storage / f"{secrets.token_hex(4)}.db"
    shutil.copy(storage / "mlflow.db", copy)
    client = MlflowClient(f"sqlite:///{copy}")
    experiment = client.get_experiment_by_name(f"clar/{sweep}")
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    parents = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    return parents, [run for run in found if run not in parents]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 400) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        assert time.monotonic() < end, "what was waited for did not happen"
        time.sleep(0.05)
