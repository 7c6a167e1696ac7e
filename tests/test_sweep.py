"""Sweeps as a user runs them: the real command, real Ray, real MLflow on SQLite."""

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from clar import space
from clar.config import AUGMENTATIONS, TrialConfig
from clar.errors import UserError
from clar.result import TrialFolder, TrialResult
from clar.sweep import Slots

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


class Command:
    """Runs a module of the project in a folder of its own, with the tests' cache."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.storage = folder, folder / "runs"
        self.environment = {**os.environ, "CLAR_CACHE": str(cache), "COLUMNS": "120"}
        (folder / "study.py").write_text(STUDY)

    def start(self, module: str, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=self.folder, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, module: str, *arguments: str, code: int = 0) -> str:
        process = self.start(module, *arguments)
        output, _ = process.communicate(timeout=400)
        assert process.returncode == code, output
        return output

    def sweep(self, *arguments: str, code: int = 0) -> str:
        return self.run("clar.sweep", *arguments, "--storage", str(self.storage), code=code)

    def results(self) -> dict[str, TrialResult]:
        found = {}
        for path in (self.storage / "trials").iterdir():
            about = json.loads((path / "config.json").read_text())
            folder = TrialFolder(self.storage, TrialConfig(**about["config"]), about["dataset_fingerprint"])
            assert folder.path == path
            if result := folder.result():
                found[folder.identity] = result
        return found


@pytest.fixture
def command(tmp_path: Path, small_cache: Path) -> Command:
    return Command(tmp_path, small_cache)


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


@pytest.mark.slow
def test_a_sweep_from_plan_to_table_again_and_with_more_seeds(command: Command) -> None:
    command.run("clar.datasets", "prepare", "digits:120")
    planned = command.sweep("study.py", *TINY, "--dry-run")
    assert not command.storage.exists()
    assert "2 trials on digits:120, 0 of them done" in planned
    assert planned.count("to do") == 2

    output = command.sweep("study.py", *TINY)
    assert "[1/2]" in output
    assert "[2/2]" in output
    assert re.search(r"│ fade +│ +\d+\.\d │", output)
    share = re.search(r"Ray, MLflow and driver took (\d+\.\d) % of it", output)
    assert share
    assert 0 < float(share[1]) < 100
    first = command.results()
    assert len(first) == 2

    (parent,), children = runs(command.storage, "study")
    client = MlflowClient(f"sqlite:///{command.storage / 'mlflow.db'}")
    assert parent.info.status == "FINISHED"
    assert "| fade |" in parent.data.tags["mlflow.note.content"]
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == {
        "table.md", "table.csv", "table.tex", "heat_map.png", "heat_map.svg"
    }  # fmt: skip
    assert {run.info.run_name for run in children} == {"fade, seed 0", "time_shift, seed 0"}
    for run in children:
        result = first[run.data.tags["clar.identity"]]
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["clar.sweep"] == "study"
        assert len(run.data.tags["clar.dataset_fingerprint"]) == 64
        assert run.data.tags["clar.code_version"]
        assert run.data.params["augmentations"] in ("fade", "time_shift")
        assert set(run.data.params) == set(TrialConfig.model_fields)
        for name, value in result.metrics().items():
            assert run.data.metrics[name] == value
        for name in ("train_loss", "valid_top1", "clips_per_second"):
            history = client.get_metric_history(run.info.run_id, name)
            assert [(m.step, m.value) for m in history] == [(r.epoch, getattr(r, name)) for r in result.epochs]
        files = {file.path for file in client.list_artifacts(run.info.run_id)}
        assert files == {"config.json", "encoder.safetensors", "log.txt"}

    again = command.sweep("study.py", *TINY)
    assert "2 trials on digits:120, 2 of them done" in again
    assert "[1/2]" not in again
    assert re.findall(r"│.*│", again) == re.findall(r"│.*│", output)
    assert command.results() == first

    # More seeds train only what is new, and a lost database is written anew from the trials' folders.
    (command.storage / "mlflow.db").unlink()
    command.sweep("study.py", *TINY, "--seeds", "2")
    more = command.results()
    assert len(more) == 4
    assert {identity: more[identity] for identity in first} == first
    parents, children = runs(command.storage, "study")
    assert [run.info.status for run in (*parents, *children)] == ["FINISHED"] * 5
    assert all("test_top1" in run.data.metrics for run in children)


@pytest.mark.slow
def test_a_failed_trial_is_reported_and_the_others_complete(command: Command) -> None:
    broken = STUDY.replace("(name,))", '(name,), learning_rate=1e30 if name == "fade" else 1e-3)')
    (command.folder / "broken.py").write_text(broken)
    output = command.sweep("broken.py", *TINY, code=1)
    assert "fade, learning_rate 1e+30, seed 0 failed: NonFiniteLoss" in output
    log = re.search(r"log: (\S+)", output)
    assert log
    assert "Traceback" in Path(log[1]).read_text()
    assert re.search(r"│ fade +│ +- │", output)
    assert re.search(r"│ time_shift +│ +\d", output)
    (parent,), children = runs(command.storage, "broken")
    assert parent.info.status == "FAILED"
    assert {run.info.run_name: run.info.status for run in children} == {
        "fade, learning_rate 1e+30, seed 0": "FAILED", "time_shift, learning_rate 0.001, seed 0": "FINISHED"
    }  # fmt: skip


def _wait_for(condition, process: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        assert time.monotonic() < end, "what was waited for did not happen"
        time.sleep(0.05)


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on_and_ends_as_if_undisturbed(
    command: Command, tmp_path_factory: pytest.TempPathFactory, small_cache: Path
) -> None:
    """Ctrl-C once, SIGKILL of the driver once, then to the end."""
    longer = [argument.replace("epochs=2", "epochs=150") for argument in TINY]
    for how in (signal.SIGINT, signal.SIGKILL):
        before = {path: path.stat().st_mtime_ns for path in command.storage.glob("trials/*/checkpoint.pt")}
        process = command.start("clar.sweep", "study.py", *longer, "--storage", str(command.storage))

        def moved(before: dict[Path, int] = before) -> bool:
            now = {path: path.stat().st_mtime_ns for path in command.storage.glob("trials/*/checkpoint.pt")}
            return any(before.get(path) != stamp for path, stamp in now.items())

        _wait_for(moved, process)
        process.send_signal(how)
        output, _ = process.communicate(timeout=60)
        if how == signal.SIGINT:
            assert process.returncode == 130
            assert "interrupted; the same command goes on from here" in output
            assert "Traceback" not in output
        assert len(command.results()) < 2, "the sweep was done before it was interrupted"
    command.sweep("study.py", *longer)

    undisturbed = Command(tmp_path_factory.mktemp("undisturbed"), small_cache)
    undisturbed.sweep("study.py", *longer)
    ended, expected = command.results(), undisturbed.results()
    assert set(ended) == set(expected)
    assert len(ended) == 2
    assert all(result.same_as(expected[identity]) for identity, result in ended.items())
    tables = [next(c.storage.glob("sweeps/*/table.csv")).read_bytes() for c in (command, undisturbed)]
    assert tables[0] == tables[1]
    parents, children = runs(command.storage, "study")
    assert [run.info.status for run in (*parents, *children)] == ["FINISHED"] * 3


@pytest.mark.slow
def test_the_demo_in_miniature_over_an_exported_speech_commands_folder(command: Command) -> None:
    """The whole 7 x 7 grid through the commands of the README, on real files."""
    folder = command.folder / "speech_commands"
    command.run("clar.datasets", "export", "digits", str(folder), "--clips", "120")
    tiny = [argument for argument in TINY if argument not in ("--dataset", "digits:120")]
    tiny[tiny.index("epochs=2")] = "epochs=1"
    arguments = ["augmentations", *tiny, "--dataset", "speech_commands_10", "--data-root", str(folder)]
    output = command.sweep(*arguments)
    assert "[49/49]" in output
    assert len(re.findall(r"│ \w+ +(?:│ +\d+\.\d ){7}│", output)) == 7
    parents, children = runs(command.storage, "augmentations")
    assert len(parents) == 1
    assert len(children) == 49
    pairs = {run.data.params["augmentations"] for run in children}
    assert pairs == {a if a == b else f"{a} > {b}" for a in AUGMENTATIONS for b in AUGMENTATIONS}
    # Prepared once, the folder need not be named again.
    assert "49 of them done" in command.sweep(*arguments[:-2], "--dry-run")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["augmentation"], "no sweep 'augmentation'; did you mean augmentations?"),
        (["no/such.py"], "no sweep file no/such.py"),
        ([], "name a sweep"),
        (["augmentations", "--set", "epoks=3"], "no field 'epoks'; did you mean epochs"),
        (["augmentations", "--set", "epochs"], "write field=value"),
        (["augmentations", "--set", "epochs=three"], "epochs = three: must be a valid integer"),
        (["augmentations", "--set", "temperature=-1"], "temperature = -1: must be greater than 0"),
        (["augmentations", "--set", "augmentations=fade"], "varies augmentations itself"),
        (["augmentations", "--dataset", "digit"], "no data set 'digit'; did you mean digits?"),
        (["augmentations", "--dataset", "speech_commands_10"], "python -m clar.datasets prepare speech_commands_10"),
        (["augmentations", "--preset", "papr"], "no preset 'papr'; did you mean paper?"),
        (["augmentations", "--seeds", "0"], "--seeds"),
        (["augmentations", "--sets", "a=b"], "--sets"),
        (["augmentations", "--cpus-per-trial", "4096"], "--cpus-per-trial 4096: there are"),
        (["augmentations", "--gpus-per-trial", "64"], "--gpus-per-trial 64: there are"),
        (["augmentations", "--storage", "/proc/nowhere"], "--storage /proc/nowhere: cannot make the folder"),
        (["augmentations", "--storage", "s3://bucket/runs"], "only folders can be a storage"),
        (["augmentations", "--gpus-per-trial", "nan"], "--gpus-per-trial"),
        (
            ["augmentations", "--dataset", "digits:120", "--set", "batch_size=85"],
            "85 is more than the 80 training clips",
        ),
        (["augmentations", "--set", "window_ms=1e9"], "window_ms = 1e9: must be less than or equal to 1000"),
        (["seeds.py"], "its trials must not set seed themselves"),
        (["cells.py"], "which is not in ROWS x COLUMNS"),
        (["bad.py"], "bad.py does not load: ZeroDivisionError"),
        (["empty.py"], "empty.py lacks trials, cell, ROWS, COLUMNS"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_gets_one_line_and_exit_code_2(
    tmp_path: Path, small_cache: Path, arguments: list[str], said: str
) -> None:
    # A cache of their own: in the other one Speech Commands may have been prepared.
    command = Command(tmp_path, small_cache / "of-errors")
    (tmp_path / "bad.py").write_text("1 / 0\n")
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "seeds.py").write_text(STUDY.replace("(name,))", "(name,), seed=7)"))
    (tmp_path / "cells.py").write_text(STUDY.replace('"time_shift"), "all"', "").replace('"all"\n', '"none"\n'))
    output = command.run("clar.sweep", *arguments, code=2)
    assert said in output
    assert output.startswith("error: ")
    assert len(output.strip().splitlines()) == 1


def test_list_names_every_sweep_in_one_line(command: Command) -> None:
    lines = command.run("clar.sweep", "--list").splitlines()
    assert [line.split()[0] for line in lines] == sorted(space.available())
    assert all(len(line.split()) > 3 for line in lines)


def test_the_augmentation_sweep_is_all_ordered_pairs() -> None:
    base = TrialConfig(loss="self_supervised", epochs=5, warmup_epochs=0)
    plan = space.load("augmentations").plan(base, seeds=2)
    assert len(plan) == len(set(plan)) == 98
    pairs = [config.augmentations for config in plan]
    assert pairs.count(("fade",)) == 2
    assert ("fade", "time_mask") in pairs
    assert ("time_mask", "fade") in pairs
    assert {config.but(augmentations=(), seed=0) for config in plan} == {base.but(augmentations=())}


@pytest.mark.parametrize(
    ("resources", "asked", "expected"),
    [
        ({"CPU": 2.0}, (None, None), (2, 1, 0)),
        ({"CPU": 2.0}, (2, None), (1, 2, 0)),
        ({"CPU": 16.0, "GPU": 1.0}, (None, None), (1, 4, 1)),
        ({"CPU": 16.0, "GPU": 1.0}, (None, 0.25), (4, 4, 0.25)),
        ({"CPU": 16.0, "GPU": 8.0}, (None, 2), (4, 4, 2)),
        ({"CPU": 16.0, "GPU": 1.0}, (None, 0), (16, 1, 0)),
        ({"CPU": 2.0, "GPU": 1.0}, (None, 0.125), (2, 1, 0.125)),
    ],
)
def test_as_many_slots_as_the_machine_has_room_for(
    resources: dict[str, float], asked: tuple[int | None, float | None], expected: tuple[int, int, float]
) -> None:
    slots = Slots.of(resources, *asked)
    assert (slots.count, slots.cpus, slots.gpus) == expected


def test_a_share_of_several_gpus_is_refused() -> None:
    with pytest.raises(UserError, match=r"--gpus-per-trial 1\.5"):
        Slots.of({"CPU": 8.0, "GPU": 4.0}, None, 1.5)


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory, small_cache: Path) -> Command:
    """A storage in which `clar.train` has trained one of the study's two trials."""
    command = Command(tmp_path_factory.mktemp("by-hand"), small_cache)
    output = command.run("clar.train", *TINY, *ALONE, "--storage", str(command.storage))
    assert "epoch 2/2" in output
    assert "test_top1" in output
    return command


ALONE = ["--set", "loss=self_supervised", "--set", "augmentations=fade", "--cpus-per-trial", "1"]


@pytest.mark.slow
def test_a_trial_by_hand_is_found_done(by_hand: Command) -> None:
    assert "done before" in by_hand.run("clar.train", *TINY, *ALONE, "--storage", str(by_hand.storage))
    assert "2 trials on digits:120, 1 of them done" in by_hand.sweep("study.py", *TINY, "--dry-run")


@pytest.mark.slow
def test_embeddings_of_files(by_hand: Command) -> None:
    folder = by_hand.folder / "speech_commands"
    by_hand.run("clar.datasets", "export", "digits", str(folder), "--clips", "120")
    files = sorted(map(str, folder.glob("zero/*.wav")))[:3]
    trial = next(path.parent for path in by_hand.storage.glob("trials/*/encoder.safetensors"))
    lines = by_hand.run("clar.embed", str(trial), *files).splitlines()
    assert [line.split(",")[0] for line in lines] == ["file", *files]
    assert len(lines[1].split(",")) == 1 + 8 * 2
    (by_hand.folder / "text.wav").write_text("not audio")
    assert "text.wav: unreadable" in by_hand.run("clar.embed", str(trial), "text.wav", code=2)
    assert "no encoder at" in by_hand.run("clar.embed", "nowhere", *files, code=2)


@pytest.mark.slow
def test_a_dead_tracking_server_costs_seconds_and_loses_nothing(by_hand: Command) -> None:
    """Nothing listens at the URI: the sweep says so once, ends in order, and the next one with a store writes all."""
    output = by_hand.sweep("study.py", *TINY, "--tracking-uri", "http://127.0.0.1:9")
    assert output.count("cannot be written; the trials go on") == 1
    assert "lacks some of this sweep" in output
    assert len(by_hand.results()) == 2
    by_hand.sweep("study.py", *TINY)
    (parent,), children = runs(by_hand.storage, "study")
    assert len(children) == 2
    assert [run.info.status for run in (parent, *children)] == ["FINISHED"] * 3


def test_a_reader_that_stops_reading_is_no_failure(command: Command) -> None:
    line = f"{sys.executable} -m clar.sweep augmentations --dry-run | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=command.folder, env=command.environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_titles_tell_the_trials_of_a_study_apart() -> None:
    base = TrialConfig(augmentations=("fade",))
    assert base.but(temperature=0.1, seed=3).title(base) == "fade, temperature 0.1, seed 3"
    assert base.but(augmentations=("fade", "time_mask")).title(base) == "fade > time_mask, seed 0"
