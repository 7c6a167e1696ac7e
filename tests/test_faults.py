"""What goes wrong on machines that train for days, done to real sweeps: nothing is lost, nothing is done twice.

Each test ends with the tables of an undisturbed run, byte for byte, or with what is missing said.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.running import TEMPERATURES, TINY, Command, newest_checkpoint, outputs, runs, wait_for

LONG = [argument.replace("epochs=2", "epochs=80") for argument in TINY]


def trainings(command: Command) -> dict[str, int]:
    """How often each trial was begun or gone on with."""
    logs = command.storage.glob("trials/*/log.txt")
    return {path.parent.name: len(re.findall(r" on cpu, \d+ threads", path.read_text())) for path in logs}


def children(process: subprocess.Popen[str]) -> list[int]:
    """The workers of a driver on this machine, by the environment that Ray gives them: ends nobody else's."""
    found = []
    for path in Path("/proc").iterdir():
        if not path.name.isdigit():
            continue
        try:
            title = (path / "cmdline").read_bytes()
            if b"ray::Worker" in title and _descends(int(path.name), process.pid):
                found.append(int(path.name))
        except OSError:
            continue
    return found


def _descends(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return False


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, small_cache: Path) -> Command:
    """The sweeps of this module, run to their ends in peace."""
    command = Command(tmp_path_factory.mktemp("undisturbed"), small_cache)
    (command.folder / "temperatures.py").write_text(TEMPERATURES)
    command.sweep("study.py", *LONG)
    command.sweep("temperatures.py", *HALVING)
    command.sweep("hyperparameters", *SEARCH)
    return command


SEARCH = [
    *(argument.replace("epochs=2", "epochs=16") for argument in TINY), "--halving", "--rungs", "4", "--trials", "8",
    "--generation", "4",
]  # fmt: skip
HALVING = [*(argument.replace("epochs=2", "epochs=24") for argument in TINY), "--halving", "--rungs", "6,12"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("study", "arguments"), [("study", LONG), ("temperatures", HALVING), ("hyperparameters", SEARCH)]
)
def test_a_killed_driver_is_no_loss(command: Command, undisturbed: Command, study: str, arguments: list[str]) -> None:
    """SIGKILL at seeded random moments; then to the end."""
    (command.folder / "temperatures.py").write_text(TEMPERATURES)
    moments = random.Random(f"{study} 0")
    name = study if study == "hyperparameters" else f"{study}.py"
    for _ in range(2):
        before = newest_checkpoint(command)
        process = command.start("clar.sweep", name, *arguments, "--no-report", "--storage", str(command.storage))

        def moved(before: float = before) -> bool:
            return newest_checkpoint(command) > before

        wait_for(moved, process)
        time.sleep(moments.uniform(0, 2))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=900)
    command.sweep(name, *arguments)
    assert outputs(command, study) == outputs(undisturbed, study)
    assert any(count > 1 for count in trainings(command).values()), "nothing was under way when it was killed"
    parents, found = runs(command.storage, study)
    assert all(run.info.status != "RUNNING" for run in (*parents, *found))
    assert len(parents) == 1
    assert len({run.data.tags["clar.identity"] for run in found}) == len(found)


@pytest.mark.slow
def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(command: Command, undisturbed: Command) -> None:
    """Ctrl-C reaches the whole process group, as from a terminal."""
    process = subprocess.Popen(
        [os.sys.executable, "-m", "clar.sweep", "study.py", *LONG, "--no-report", "--storage", str(command.storage)],  # type: ignore[attr-defined]
        cwd=command.folder, env=command.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    wait_for(lambda: newest_checkpoint(command) > 0, process)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 130, output
    assert "trials write their checkpoints; Ctrl-C again stops at once" in output
    assert "interrupted; the same command goes on from here" in output
    assert "Traceback" not in output
    assert len(command.results()) < 2, "the sweep was done before it was interrupted"
    # Every trial that had begun wrote where it stands, in the middle of an epoch too.
    logs = [path.read_text() for path in command.storage.glob("trials/*/log.txt")]
    assert any(log.rstrip().endswith("stopped") for log in logs)
    parents, found = runs(command.storage, "study")
    assert [run.info.status for run in (*parents, *found)].count("RUNNING") == 0
    # Twice stops at once.
    before = newest_checkpoint(command)
    process = command.start("clar.sweep", "study.py", *LONG, "--no-report", "--storage", str(command.storage))
    wait_for(lambda: newest_checkpoint(command) > before, process)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    command.sweep("study.py", *LONG)
    assert outputs(command, "study") == outputs(undisturbed, "study")


@pytest.mark.slow
def test_two_drivers_at_once_train_nothing_twice(command: Command, undisturbed: Command) -> None:
    (command.folder / "temperatures.py").write_text(TEMPERATURES)
    both = [
        command.start("clar.sweep", "temperatures.py", *HALVING, "--no-report", "--storage", str(command.storage))
        for _ in range(2)
    ]
    for process in both:
        output, _ = process.communicate(timeout=900)
        assert process.returncode == 0, output
        assert "failed" not in output
    assert outputs(command, "temperatures") == outputs(undisturbed, "temperatures")
    epochs = [re.findall(r"epoch (\d+)/", log.read_text()) for log in command.storage.glob("trials/*/log.txt")]
    assert all(len(numbers) == len(set(numbers)) for numbers in epochs)
    (parent,), found = runs(command.storage, "temperatures")
    assert len(found) == len({run.data.tags["clar.identity"] for run in found}) == 6
    assert parent.info.status == "FINISHED"
    for run in found:
        assert run.info.status != "RUNNING"


@pytest.mark.slow
def test_a_worker_that_dies_and_one_that_hangs(command: Command, undisturbed: Command) -> None:
    """One worker is killed, later one is stopped for good: both trials go on from their checkpoints in new workers."""
    process = command.start(
        "clar.sweep", "study.py", *LONG, "--no-report", "--storage", str(command.storage), "--trial-timeout", "12"
    )
    wait_for(lambda: newest_checkpoint(command) > 0 and len(children(process)) > 0, process)
    os.kill(children(process)[0], signal.SIGKILL)
    seen = newest_checkpoint(command)
    wait_for(lambda: newest_checkpoint(command) > seen and len(children(process)) == 2, process)
    hung = children(process)[0]
    os.kill(hung, signal.SIGSTOP)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    assert not Path(f"/proc/{hung}").exists() or children(process) == []
    assert outputs(command, "study") == outputs(undisturbed, "study")


@pytest.mark.slow
def test_a_trial_that_keeps_failing_is_tried_again_and_reported(command: Command) -> None:
    source = (command.folder / "study.py").read_text()
    broken = source.replace("(name,))", '(name,), learning_rate=1e30 if name == "fade" else 1e-3)')
    (command.folder / "broken.py").write_text(broken)
    output = command.sweep("broken.py", *TINY, "--retries", "1", code=1)
    assert "fade, learning_rate 1e+30, seed 0 failed: NonFiniteLoss" in output
    log = re.search(r"log: (\S+)", output)
    assert log
    text = Path(log[1]).read_text()
    assert text.count("Traceback") == 2
    # The last lines of the log stand in the report.
    assert f"| {text.strip().splitlines()[-1]}" in output
    assert re.search(r"│ fade +│ +failed │", output)
    assert re.search(r"│ time_shift +│ +\d", output)
    (parent,), found = runs(command.storage, "broken")
    assert parent.info.status == "FAILED"
    assert {run.info.run_name: run.info.status for run in found} == {
        "fade, learning_rate 1e+30, seed 0": "FAILED", "time_shift, learning_rate 0.001, seed 0": "FINISHED"
    }  # fmt: skip


@pytest.mark.slow
def test_a_trial_without_enough_memory_is_tried_again_alone(command: Command) -> None:
    """An encoder that no machine has the memory for; the other trial goes on beside it."""
    source = (command.folder / "study.py").read_text()
    large = source.replace("(name,))", '(name,), encoder_width=10**6 if name == "fade" else 2)')
    (command.folder / "large.py").write_text(large)
    place = TINY.index("encoder_width=2")
    tiny = TINY[: place - 1] + TINY[place + 1 :]
    output = command.sweep("large.py", *tiny, "--retries", "1", code=1)
    assert re.search(r"fade, encoder_width 1000000, seed 0 failed: .*can't allocate memory", output)
    assert re.search(r"│ time_shift +│ +\d", output)
    (log,) = (log.read_text() for log in command.storage.glob("trials/*/log.txt") if "Traceback" in log.read_text())
    assert log.count("Traceback") == 2


@pytest.fixture
def small_disk(tmp_path: Path):
    """A disk of a few MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk needs the right to mount one: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("left", [0, 64], ids=["for nothing", "for less than a checkpoint"])
def test_a_full_disk_is_named_and_nothing_finished_is_lost(command: Command, small_disk: Path, left: int) -> None:
    command.storage = small_disk / "runs"
    command.sweep("study.py", *TINY)
    before = command.results()
    assert len(before) == 2
    filler = small_disk / "filler"
    disk = os.statvfs(small_disk)
    filler.write_bytes(bytes(disk.f_bsize * disk.f_bavail - 1024 * left))
    output = command.sweep("study.py", *TINY, "--seeds", "3", code=1)
    assert "No space left on device" in output
    assert str(small_disk) in output
    assert "Traceback" not in output.replace("| Traceback", "")
    assert command.results() == before
    filler.unlink()
    command.sweep("study.py", *TINY, "--seeds", "2")
    assert len(command.results()) == 4
    shutil.rmtree(command.storage)


@pytest.mark.slow
def test_fresh_trains_again_and_keeps_what_was(command: Command) -> None:
    command.sweep("study.py", *TINY)
    first = command.results()
    output = command.sweep("study.py", *TINY, "--fresh")
    assert "[2/2]" in output
    again = command.results()
    assert all(again[identity].same_as(result) for identity, result in first.items())
    assert all(again[identity].train_seconds != result.train_seconds for identity, result in first.items())
    assert sorted(path.name for path in (command.storage / "replaced").iterdir()) == sorted(f"{i}-1" for i in first)
    _, found = runs(command.storage, "study")
    assert len(found) == 2
    for run in found:
        assert run.data.metrics["train_seconds"] == again[run.data.tags["clar.identity"]].train_seconds
