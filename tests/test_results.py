"""The folders of a storage: what a trial and a sweep keep there, and what is found again."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clar.config import RESULTS_VERSION, TrialConfig
from clar.errors import UserError
from clar.result import EpochRecord, SweepFolder, TrialFolder, TrialResult

RECORD = EpochRecord(epoch=1, train_loss=0.5, valid_top1=0.25, learning_rate=0.1, clips_per_second=9.0)
RESULT = TrialResult(0.5, 0.75, 0.5, 0.1, 0.25, None, 1.5, 0.0, (RECORD,))
DATA = "f" * 64


@pytest.fixture
def folder(tmp_path: Path) -> TrialFolder:
    return TrialFolder(tmp_path, TrialConfig(loss="finetune", seed=3), DATA)


def test_a_trial_is_opened_from_what_its_folder_says(folder: TrialFolder) -> None:
    with pytest.raises(UserError, match=f"no trial {folder.identity}"):
        TrialFolder.open(folder.storage, folder.identity)
    folder.begin("0.1")
    found = TrialFolder.open(folder.storage, folder.identity)
    assert (found.config, found.data_fingerprint, found.path) == (folder.config, DATA, folder.path)
    assert (found.version, found.code_version()) == (RESULTS_VERSION, "0.1")
    pretraining, expected = found.pretraining(), TrialConfig(loss="self_supervised", seed=3)
    assert pretraining is not None
    assert pretraining.identity == expected.identity(DATA)


def test_a_field_that_does_not_matter_leads_to_the_same_folder(folder: TrialFolder, tmp_path: Path) -> None:
    supervised = TrialConfig(loss="supervised", temperature=0.3)
    first = TrialFolder(tmp_path, supervised, DATA)
    first.begin("")
    other = TrialFolder(tmp_path, supervised.but(temperature=0.7), DATA)
    assert other.path == first.path
    assert TrialFolder.open(tmp_path, other.identity).config.temperature == 0.3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"config": {"epochs": "many"}, "dataset_fingerprint": ""}', "is damaged .epochs = many"),
        ('{"config": {}, "dataset_fingerprint": "", "results_version": 3}', "edited by hand"),
    ],
)
def test_a_damaged_trial_is_named(folder: TrialFolder, content: str, said: str) -> None:
    folder.begin("")
    (folder.path / "config.json").write_text(content)
    with pytest.raises(UserError, match=said):
        TrialFolder.open(folder.storage, folder.identity)
    # To begin again needs nothing of what is damaged.
    folder.begin("0.2")
    assert TrialFolder.open(folder.storage, folder.identity).code_version() == "0.2"


def test_results_of_an_older_version_are_found_where_they_lie(tmp_path: Path) -> None:
    config = TrialConfig(seed=3)
    old = TrialFolder(tmp_path, config, DATA, version=1)
    now = TrialFolder(tmp_path, config, DATA)
    assert old.path != now.path
    old.begin("0.1")
    old.write_result(RESULT)
    # As version 1 wrote it: without the number of its version, and perhaps under another hash.
    path = old.path / "config.json"
    content = json.loads(path.read_text())
    del content["results_version"], content["run"]
    path.write_text(json.dumps(content))
    assert now.result() is None
    assert TrialFolder.open(tmp_path, old.identity).version == 1
    old.path.rename(old.path.with_name("0" * 16))
    elsewhere = TrialFolder.open(tmp_path, "0" * 16)
    assert (elsewhere.identity, elsewhere.version, elsewhere.run_token()) == ("0" * 16, 1, "")
    assert elsewhere.result() == RESULT


def test_result_and_epochs_are_read_anew_each_time(folder: TrialFolder) -> None:
    assert folder.result() is None
    assert folder.epochs() == []
    folder.write_epochs([RECORD])
    folder.write_result(RESULT)
    assert folder.epochs() == [RECORD]
    assert folder.result() == RESULT


def test_what_a_trial_cost_is_kept_and_is_no_difference(folder: TrialFolder) -> None:
    dear = dataclasses.replace(RESULT, cpu_seconds=3.5, energy_joules=70.25)
    folder.write_result(dear)
    assert folder.result() == dear
    assert dear.same_as(RESULT)
    assert not dear.same_as(dataclasses.replace(dear, test_top1=0.25))
    assert {name: dear.metrics()[name] for name in ("cpu_seconds", "energy_joules")} == {
        "cpu_seconds": 3.5, "energy_joules": 70.25,
    }  # fmt: skip
    assert dear.metrics().keys() - RESULT.metrics().keys() == {"cpu_seconds", "energy_joules"}


def test_a_result_from_before_costs_were_counted_has_none(folder: TrialFolder) -> None:
    folder.write_result(RESULT)
    path = folder.path / "result.json"
    content = json.loads(path.read_text())
    del content["cpu_seconds"], content["energy_joules"]
    path.write_text(json.dumps(content))
    found = folder.result()
    assert found == RESULT
    assert (found.cpu_seconds, found.energy_joules) == (None, None)


def test_a_failure_is_kept_until_the_trial_goes_on_and_counted(folder: TrialFolder) -> None:
    assert folder.failure() is None
    folder.begin("")
    for attempt in (1, 2, 3):
        folder.write_failure("it broke")
        assert folder.failure() == "it broke"
        assert json.loads((folder.path / "failure.json").read_text()) == {"reason": "it broke", "attempts": attempt}
        folder.begin("")
        assert folder.failure() is None
        assert not (folder.path / "failure.json").exists()
    folder.write_failure("a worker was lost, another finished it")
    folder.write_result(RESULT)
    assert folder.failure() is None


def test_the_token_of_a_training_stays_until_the_trial_is_trained_anew(folder: TrialFolder) -> None:
    assert folder.run_token() == ""
    folder.archive()  # nothing to move
    folder.begin("")
    token = folder.run_token()
    folder.begin("")
    assert folder.run_token() == token
    assert len(token) == 16
    folder.write_result(RESULT)
    folder.archive()
    assert folder.result() is None
    assert folder.run_token() == ""
    folder.begin("")
    assert folder.run_token() not in ("", token)
    folder.archive()
    replaced = folder.storage / "replaced"
    assert sorted(path.name for path in replaced.iterdir()) == [f"{folder.identity}-1", f"{folder.identity}-2"]
    assert (replaced / f"{folder.identity}-1" / "result.json").exists()


def test_a_sweep_is_found_with_what_it_says(tmp_path: Path) -> None:
    assert SweepFolder.all(tmp_path) == []
    sweep = SweepFolder(tmp_path, "my-study", "0123456789abcdef")
    assert sweep.read() is None
    about = {"name": "my-study", "state": "running", "trials": ["a"], "clock": {"sweep_seconds": 1.5}}
    sweep.write(about)
    SweepFolder(tmp_path, "augmentations", "ff").write({})
    (tmp_path / "sweeps" / "leftover-00").mkdir()
    found = SweepFolder.all(tmp_path)
    assert [(one.name, one.key) for one in found] == [("augmentations", "ff"), ("my-study", "0123456789abcdef")]
    assert found[1].path == sweep.path == tmp_path / "sweeps" / "my-study-0123456789abcdef"
    assert found[1].read() == about
    for broken in ("{", "[]"):
        (sweep.path / "sweep.json").write_text(broken)
        with pytest.raises(UserError, match=r"sweep\.json is damaged"):
            sweep.read()


_DRIVE = """
import sys, time
from pathlib import Path
from clar.result import SweepFolder
with SweepFolder(Path(sys.argv[1]), "study", "ff").driver():
    print("driving", flush=True)
    sys.stdin.read()
"""


def test_drivers_are_known_while_they_live(tmp_path: Path) -> None:
    sweep = SweepFolder(tmp_path, "study", "ff")
    assert not sweep.drivers_alive()
    with sweep.driver(), sweep.driver():
        assert sweep.drivers_alive()
    assert not list(sweep.path.iterdir())
    command = [sys.executable, "-c", _DRIVE, str(tmp_path)]
    for end in ("closed", "killed"):
        driver = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert driver.stdout is not None
        assert driver.stdout.readline() == "driving\n"
        assert sweep.drivers_alive()
        if end == "killed":
            os.kill(driver.pid, signal.SIGKILL)
        driver.communicate()
        assert not sweep.drivers_alive()
        assert not list(sweep.path.iterdir())
