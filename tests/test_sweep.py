"""Sweeps as a user runs them: the real command, real Ray, real MLflow on SQLite."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from clar import space, sweep
from clar.config import AUGMENTATIONS, RESULTS_VERSION, TrialConfig
from clar.errors import UserError
from clar.result import TrialFolder
from clar.sweep import Slots
from tests.running import STUDY, TINY, Command, runs


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (None, ["digits"]),
        (["digits,"], ["digits"]),
        (["digits, scenes:100", "notes"], ["digits", "scenes:100", "notes"]),
        (["digits,note"], ["digits", "note"]),  # which is then refused by its name
        (["folder:/a,b/c#seed=1,digits,hear:/d"], ["folder:/a,b/c#seed=1", "digits", "hear:/d"]),
    ],
)
def test_names_of_data_sets(given: list[str] | None, names: list[str]) -> None:
    assert sweep._names(given) == names


@pytest.mark.slow
def test_a_sweep_from_plan_to_table_again_and_with_more_seeds(command: Command) -> None:
    command.run("clar.datasets", "prepare", "digits:120")
    planned = command.sweep("study.py", *TINY, "--dry-run")
    assert not command.storage.exists()
    assert "2 trials on digits:120, 0 of them done" in planned
    assert planned.count("to do") == 2

    output = command.sweep("study.py", *TINY, report=True)
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
        "table.md", "table.csv", "table.tex", "heat_map.png", "heat_map.svg", "report.html", "report", "sweep.json",
    }  # fmt: skip
    page = Path(re.search(r"report +(\S+/report.html)", output)[1])
    assert "Embeddings of the best run" in page.read_text()
    assert (page.parent / "report" / "embedding_map.csv").read_text().count("\n") > 10
    assert {"report/embedding_map.svg", "report/example-fade.png", "report/trials.csv"} <= {
        file.path for file in client.list_artifacts(parent.info.run_id, "report")
    }
    assert {run.info.run_name for run in children} == {"fade, seed 0", "time_shift, seed 0"}
    for run in children:
        result = first[run.data.tags["clar.identity"]]
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["clar.sweep"] == "study"
        assert len(run.data.tags["clar.dataset_fingerprint"]) == 64
        assert run.data.tags["clar.code_version"]
        assert run.data.params["augmentations"] in ("fade", "time_shift")
        # All fields, and what the rows of its table are called; its only column tells nothing apart.
        assert set(run.data.params) == {*TrialConfig.model_fields, "augmentation"}
        assert run.data.params["augmentation"] == run.data.params["augmentations"]
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
        (["augmentations", "--storage", "gs://bucket/runs"], "a storage is a folder or s3://BUCKET/PREFIX"),
        (["augmentations", "--gpus-per-trial", "nan"], "--gpus-per-trial"),
        (
            ["augmentations", "--dataset", "digits:120", "--set", "batch_size=85"],
            "85 is more than the 80 training clips",
        ),
        (["augmentations", "--set", "window_ms=1e9"], "window_ms = 1e9: must be less than or equal to 1000"),
        (["augmentations", "--keep", "0.3"], "--keep 0.3: says how to do --halving"),
        (["augmentations", "--rungs", "1"], "--rungs 1: says how to do --halving"),
        (["augmentations", "--halving", "--set", "probe_every=2"], "leaves no epoch for a rung"),
        (["augmentations", "--halving", "--rungs", "a"], "--rungs a: epochs with commas"),
        (["augmentations", "--precision", "1"], "--seeds 2 or more"),
        (["augmentations", "--precision", "1", "--seeds", "2", "--budget", "x"], "--budget x: a number of trials"),
        (["augmentations", "--precision", "1", "--seeds", "2", "--halving"], "--precision and --halving"),
        (["augmentations", "--folds"], "--folds: no folds in digits"),
        (["augmentations", "--grid-everywhere"], "augmentations runs everything on all data sets anyway"),
        (["losses", "--set", "probe_labels=some"], "probe_labels = some: not one of its values; did you mean seen?"),
        (["augmentations", "--set", "cross_entropy_weight=-1"], "cross_entropy_weight = -1: must be greater than or"),
        (["augmentations", "--set", "channels=mel,phases"], "no channel 'phases'; did you mean phase?"),
        (["augmentations", "--set", "optimizer=larss"], "optimizer = larss: not one of its values; did you mean lars"),
        (["augmentations", "--set", "scaling=both"], "scaling = both: not one of its values; known: none, fixed"),
        (["losses", "--set", "input=statistics"], "input = statistics has no encoder to train"),
        (["references.py", "--baselines"], "study references: its trials must not set seed themselves; use --seeds"),
        (["augmentations", "--set", "fold=1"], "fold = 1: digits has no folds; leave it out"),
        (["augmentations", "--dataset", "scenes:100", "--set", "fold=6"], "fold = 6: scenes:100 has folds 1 to 5"),
        (["augmentations", "--dataset", "scenes:100", "--folds", "--set", "fold=2"], "--folds and --set fold=2"),
        (
            ["augmentations", "--dataset", "scenes:100", "--folds", "--precision", "1", "--seeds", "2"],
            "--precision and --folds: seeds are added one trial at a time, not fold by fold; use --seeds",
        ),
        (["folds.py", "--dataset", "scenes:100", "--folds"], "its trials must not set fold themselves with --folds"),
        (["folds.py"], "nor on digits if that has none"),
        (["augmentations", "--objectives", "valid_top1"], "augmentations is no search"),
        (["hyperparameters", "--objectives", "knn_test_top1"], "choosing by test"),
        (["hyperparameters", "--dataset", "digits:120", "--set", "temperature=0.3"], "varies temperature itself"),
        (["hyperparameters", "--dataset", "digits:120", "--set", "batch_size=85"], "85 is more than the 80"),
        (["augmentations", "--fresh", "--dry-run"], "--fresh and --dry-run"),
        (["augmentations", "--gpus-per-trial", "auto", "--cpus-per-trial", "1"], "auto chooses the CPUs too"),
        (["augmentations", "--data-root", "."], "take no folder"),
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
    own = 'def references(base):\n    return {"another seed": base.but(seed=4)}\n'
    (tmp_path / "references.py").write_text(f"{STUDY}\n\n{own}")
    (tmp_path / "folds.py").write_text(STUDY.replace("(name,))", "(name,), fold=1)"))
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
    (study,) = space.load("augmentations").studies
    plan = study.plan(base, seeds=2)
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
        ({"CPU": 16.0, "GPU": 1.0}, (None, "0.25"), (4, 4, 0.25)),
        ({"CPU": 16.0, "GPU": 8.0}, (None, "2"), (4, 4, 2)),
        ({"CPU": 16.0, "GPU": 1.0}, (None, "0"), (16, 1, 0)),
        ({"CPU": 2.0, "GPU": 1.0}, (None, "0.125"), (2, 1, 0.125)),
    ],
)
def test_as_many_slots_as_the_machine_has_room_for(
    resources: dict[str, float], asked: tuple[int | None, str | None], expected: tuple[int, int, float]
) -> None:
    slots = Slots.of(resources, *asked)
    assert (slots.count, slots.cpus, slots.gpus) == expected


def test_a_share_of_several_gpus_is_refused() -> None:
    with pytest.raises(UserError, match=r"--gpus-per-trial 1\.5"):
        Slots.of({"CPU": 8.0, "GPU": 4.0}, None, "1.5")


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


@pytest.mark.slow
def test_label_fractions_share_one_pretraining_and_studies_share_trials(command: Command) -> None:
    output = command.sweep("losses", *TINY)
    assert "[25/25]" in output
    assert len(re.findall(r"│ \w+ +(?:│ +\d+\.\d ){4}│", output)) == 2 * 4
    # The columns say how many clips are seen, the titles what the probe is fitted on.
    assert re.search(r"100 % \(\d+\) +┃ +20 % \(\d+\)", output)
    assert "probe fitted on all labels." in " ".join(output.split())
    folders = {path.parent: TrialConfig(**json.loads(path.read_text())["config"]) for path in _configs(command)}
    trained = {
        (config.loss, config.label_fraction, config.probe_labels): len(
            re.findall(r"epoch \d+/", (path / "log.txt").read_text())
        )
        for path, config in folders.items()
    }
    fractions = (1.0, 0.2, 0.1, 0.01)
    others = ("supervised", "finetune", "clar")
    seen = {(loss, fraction, "seen") for loss in (*others, "self_supervised") for fraction in fractions}
    assert set(trained) == seen | {(loss, fraction, "all") for loss in others for fraction in fractions[1:]}
    # One pre-training for all label fractions, and for all that fine-tune it, and one encoder for both probes.
    assert [trained["self_supervised", fraction, "seen"] for fraction in fractions] == [2, 0, 0, 0]
    assert all(trained[loss, f, "seen"] == (3 * 2 if loss == "finetune" else 2) for loss in others for f in fractions)
    assert all(trained[loss, f, "all"] == 0 for loss in others for f in fractions[1:])
    (folder,) = command.storage.glob("sweeps/losses-*")
    curves = (folder / "curves.csv").read_text().splitlines()
    assert curves[0] == "line,seed,epoch,valid_top1"
    assert {line.split(",")[0] for line in curves[1:]} == {"supervised", "self_supervised", "clar"}
    assert (folder / "curves.png").stat().st_size > 10_000
    # 49 augmentations, 6 inputs and 25 losses, which share some.
    planned = command.sweep("paper", *TINY, "--dry-run")
    assert "76 trials on digits:120, 25 of them done" in planned


def _configs(command: Command) -> list[Path]:
    return sorted(command.storage.glob("trials/*/config.json"))


@pytest.mark.slow
def test_a_search_goes_on_where_it_was_and_says_what_matters(command: Command) -> None:
    arguments = ["hyperparameters", *TINY, "--generation", "3", "--halving", "--rungs", "1"]
    command.sweep(*arguments, "--trials", "3")
    first = command.results()
    output = command.sweep(*arguments, "--trials", "9")
    assert first.keys() < command.results().keys()
    assert "9 candidates: 6 done, 3 cut." in output
    assert "Kendall's tau between the probe's accuracy on valid at a rung and the final test top-1" in output
    assert "Importance (fANOVA)" in output
    again = command.sweep(*arguments, "--trials", "9")
    assert "to the end" not in again
    assert re.findall(r"│.*│", again) == re.findall(r"│.*│", output)
    front = command.sweep("hyperparameters", *TINY, "--trials", "4", "--objectives", "valid_top1,gpu_seconds")
    assert "Front 1" in front
    (folder,) = [path.parent for path in command.storage.glob("sweeps/hyperparameters-*/search-pareto.png")]
    assert len((folder / "search.csv").read_text().splitlines()) == 5


@pytest.mark.slow
def test_seeds_are_added_until_the_budget_is_spent(command: Command) -> None:
    output = command.sweep("study.py", *TINY, "--seeds", "2", "--precision", "0.01", "--budget", "6")
    assert "no more seeds, since" in output
    if "the budget of 6 trials is spent" in output:
        assert len(command.results()) == 6
    else:
        assert "separated from all others" in output
    assert "±" in output


@pytest.mark.slow
def test_raw_and_spectrogram_over_two_data_sets_stand_in_one_table(command: Command) -> None:
    tiny = [argument for argument in TINY if argument not in ("--dataset", "digits:120")]
    tiny[tiny.index("epochs=2")] = "epochs=1"
    output = command.sweep("inputs", *tiny, "--dataset", "digits:120,digits:150", "--gpus-per-trial", "auto")
    assert "[12/12]" in output
    assert "Test top-5 of the linear probe, %, all data sets." in output
    assert len(re.findall(r"┃ input, loss \\ data set +┃ digits:120 ┃ digits:150 ┃", output)) == 2
    # What was measured is kept, and shown by a dry run.
    assert (command.storage / "packing.json").exists()
    (folder,) = command.storage.glob("sweeps/inputs-*")
    assert {"inputs-all_data_sets-test_top1.csv", "inputs-all_data_sets-test_top5.csv"} < {
        path.name for path in folder.iterdir()
    }


@pytest.mark.slow
def test_results_of_an_older_version_count_where_that_is_asked_for(command: Command) -> None:
    command.run("clar.datasets", "prepare", "digits:120")
    planned = command.sweep("study.py", *TINY, "--dry-run")
    assert "0 of them done" in planned
    command.sweep("study.py", *TINY)
    done = command.results()
    about = [json.loads(path.read_text()) for path in _configs(command)]
    (fade,) = [one for one in about if one["config"]["augmentations"] == ["fade"]]
    # As if the results of one trial were of an older version of the code.
    config = TrialConfig(**fade["config"])
    older = TrialFolder(command.storage, config, fade["dataset_fingerprint"], version=RESULTS_VERSION - 1)
    (command.storage / "trials" / fade["identity"]).rename(older.path)
    fade |= {"identity": older.identity, "results_version": older.version, "code_version": f"0.0.9+r{older.version}"}
    (older.path / "config.json").write_text(json.dumps(fade))
    assert "1 of them done" in command.sweep("study.py", *TINY, "--dry-run")
    output = command.sweep("study.py", *TINY, "--accept-version", str(RESULTS_VERSION - 1))
    assert "2 of them done" in output
    assert f"mixes results versions r{RESULTS_VERSION - 1} (1 trial) and r{RESULTS_VERSION} (1 trial)" in output
    assert len(command.results()) == len(done) == 2
