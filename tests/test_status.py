"""`--status`: how sweeps stand, by what lies in a storage, and beside a sweep that runs."""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from clar import sweep
from clar.cli import command as run_command
from clar.config import TrialConfig
from clar.result import SweepFolder, TrialFolder
from clar.status import duration
from tests.handmade import finish, records
from tests.running import TINY, Command, wait_for

DATA = "f" * 64
Status = Callable[..., tuple[int, str]]


@pytest.fixture
def trials(tmp_path: Path) -> list[TrialFolder]:
    """Ten trials of four epochs: four done, two under way, one failed, one stopped early, two that wait."""
    folders = [TrialFolder(tmp_path, TrialConfig(epochs=4, warmup_epochs=0, seed=seed), DATA) for seed in range(10)]
    for seed, valid in enumerate((0.4, 0.9, 0.5, 0.6)):
        finish(folders[seed], valid, seconds=1800)
    for folder in folders[4:8]:
        folder.begin("0.1")
        folder.write_epochs(records([0.25, 0.5]))
    folders[6].write_failure("NonFiniteLoss: loss is nan")
    return folders


@pytest.fixture
def record(tmp_path: Path, trials: list[TrialFolder]) -> Callable[..., SweepFolder]:
    """Writes the trials' sweep down, with what is given."""

    def write(state: str = "running", key: str = "0" * 16, **more: object) -> SweepFolder:
        folder = SweepFolder(tmp_path, "study", key)
        about = {
            "dataset": "digits:120", "trials": [one.identity for one in trials], "cut": [trials[7].identity],
            "titles": {one.identity: f"seed {one.config.seed}" for one in trials}, "recipe": {}, "state": state,
        }  # fmt: skip
        folder.write(about | more)
        return folder

    return write


@pytest.fixture
def status(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Status:
    """The command in this process: its exit code, and what it says."""

    def run_here(*arguments: str, storage: Path = tmp_path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["clar.sweep", *arguments, "--status", "--storage", str(storage)])
        before = tree(tmp_path)
        capsys.readouterr()
        code = run_command(sweep.app)
        said = capsys.readouterr()
        assert tree(tmp_path) == before, "the storage was changed"
        return code, said.out + said.err

    return run_here


def tree(folder: Path) -> dict[str, int]:
    """Every path below a folder, and when it was changed."""
    return {str(path): path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def test_a_running_sweep(status: Status, record: Callable[..., SweepFolder], trials: list[TrialFolder]) -> None:
    os.utime(trials[4].path / "epochs.json", (0, 0))
    with record().driver():
        code, said = status("study")
    assert code == 0
    assert f"study-{'0' * 16} on digits:120: running, driven by {os.uname().nodename}\n" in said
    assert "4 done, 2 running, 2 waiting, 1 failed, 1 cut, of 10; last news 0 s ago" in said
    # Two wait and two are half done: three trials of half an hour, two at a time.
    assert "about 45 min left; 30 min a trial, 4 trials an hour, 200 clips/s" in said
    assert "best     on valid 0.900: seed 1\n" in said
    assert re.search(r"running  seed [45]: epoch 2 of 4, \d s ago\n", said)
    assert "failed   seed 6: NonFiniteLoss: loss is nan\n" in said


def test_the_longest_silent_are_shown_first_and_not_all(
    status: Status, record: Callable[..., SweepFolder], tmp_path: Path
) -> None:
    more = [TrialFolder(tmp_path, TrialConfig(epochs=4, warmup_epochs=0, seed=seed), DATA) for seed in range(100, 112)]
    for folder in more:
        folder.begin("0.1")
        folder.write_epochs(records([0.25]))
    for name in ("config.json", "epochs.json"):
        os.utime(more[7].path / name, (time.time() - 7000,) * 2)
    titles = {folder.identity: f"seed {folder.config.seed}" for folder in more}
    with record(trials=list(titles), titles=titles, cut=[]).driver():
        code, said = status("study")
    assert code == 0
    lines = [line for line in said.splitlines() if line.startswith("running")]
    assert lines[0] == "running  seed 107: epoch 1 of 4, 117 min ago"
    assert len(lines) == 11
    assert lines[-1] == "running  and 2 more"
    assert "none is done here to estimate the time left from" in said


@pytest.mark.parametrize(
    ("state", "code", "said"),
    [
        ("done", 0, "digits:120: done\n"),
        ("failed", 1, "ended, not all trials are done; the same command goes on with it"),
        ("interrupted", 1, "interrupted; the same command goes on with it"),
        ("running", 1, "stopped: no driver is at work on it; the same command goes on with it"),
    ],
)
def test_without_a_driver(status: Status, record: Callable[..., SweepFolder], state: str, code: int, said: str) -> None:
    # What a driver leaves that was killed.
    (record(state).path / ".driver-a-b-12-ab12.lock").touch()
    found, text = status("study")
    assert found == code
    assert said in text
    assert "4 done, 4 waiting, 1 failed, 1 cut, of 10" in text
    assert "left" not in text


def test_a_trial_at_a_rung_waits_until_it_goes_on(
    status: Status, record: Callable[..., SweepFolder], trials: list[TrialFolder]
) -> None:
    folder = record(recipe={"halving": {"digits:120": [[2], 0.5]}})
    with folder.driver():
        _, said = status("study")
        assert "4 done, 4 waiting, 1 failed" in said
        os.utime(trials[4].path / "epochs.json", (0, 0))  # begun again since
        _, said = status("study")
        assert "4 done, 1 running, 3 waiting, 1 failed" in said
        assert "what is next depends on the results; 30 min a trial" in said


def test_what_is_half_seen_is_no_error(
    status: Status, record: Callable[..., SweepFolder], trials: list[TrialFolder], tmp_path: Path
) -> None:
    for name in ("config.json", "epochs.json"):
        (trials[4].path / name).unlink()
    (trials[5].path / "epochs.json").write_text("[")
    (trials[6].path / "failure.json").write_text("")
    (trials[0].path / ".result.json.12345678.partial").write_text("{")
    (trials[1].path / "result.json").write_text("{")
    with record().driver():
        code, said = status("study")
    assert code == 0
    assert "3 done, 4 waiting, 2 failed, 1 cut, of 10" in said
    assert f"seed 1: {trials[1].path}/result.json is damaged" in said
    assert "Traceback" not in said


def test_all_sweeps_of_a_storage_in_a_line_each(status: Status, record: Callable[..., SweepFolder]) -> None:
    record("done", key="1" * 16)
    with record().driver():
        code, said = status()
    lines = said.splitlines()
    assert code == 0
    assert len(lines) == 2
    assert re.fullmatch(rf"study-{'1' * 16}  4 of 10 trials done, 1 failed; done; \d s ago", lines[0])
    assert re.fullmatch(rf"study-{'0' * 16}  4 of 10 trials done, 1 failed; running, driven by .*; \d s ago", lines[1])
    # Both have the name; one of them may be asked for.
    assert status("study")[1].count(" on digits:120: ") == 2
    assert status("study.py")[1].count(" on digits:120: ") == 2
    assert status(f"study-{'1' * 16}")[1].count(" on digits:120: ") == 1


@pytest.mark.parametrize(
    ("name", "storage", "said"),
    [
        ("studi", ".", "no sweep 'studi' in .*; did you mean study"),
        ("study", "none", "--storage .*none: no such folder"),
        ("", "none", "--storage .*none: no such folder"),
        ("study", "trials", "no sweep 'study' in .*; it holds no sweep yet"),
    ],
)
def test_what_is_not_there_is_said(
    status: Status, record: Callable[..., SweepFolder], tmp_path: Path, name: str, storage: str, said: str
) -> None:
    record()
    code, text = status(*([name] if name else []), storage=tmp_path / storage)
    assert code == 2
    assert re.search(said, text)
    assert text.count("\n") == 1


def test_durations() -> None:
    assert [duration(seconds) for seconds in (45, 260, 2580, 12240)] == ["45 s", "4 min 20 s", "43 min", "3.4 h"]


@pytest.mark.slow
def test_beside_a_sweep_that_runs_and_after_its_driver_was_killed(command: Command) -> None:
    long = [argument.replace("epochs=2", "epochs=400") for argument in TINY]
    process = command.start("clar.sweep", "study.py", *long, "--no-report", "--storage", str(command.storage))
    try:
        wait_for(lambda: len(list(command.storage.glob("trials/*/epochs.json"))) > 0, process)
        said = command.run("clar.sweep", "study", "--status", "--storage", str(command.storage))
        assert f"running, driven by {os.uname().nodename}" in said
        assert re.search(r"running  (fade|time_shift), seed 0: epoch \d+ of 400, \d+ s ago", said)
        assert process.poll() is None, "the sweep was done before it was looked at"
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=900)
    said = command.run("clar.sweep", "study", "--status", "--storage", str(command.storage), code=1)
    assert "stopped: no driver is at work on it" in said
    assert "0 running" not in said
    short = [argument.replace("epochs=400", "epochs=2") for argument in long]
    command.sweep("study.py", *short)
    said = command.run("clar.sweep", "--status", "--storage", str(command.storage))
    (about,) = [json.loads(path.read_text()) for path in command.storage.glob("sweeps/*/sweep.json")
                if json.loads(path.read_text())["state"] == "done"]  # fmt: skip
    assert f"study-{about['key']}  2 of 2 trials done; done;" in said
