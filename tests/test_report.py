"""The report of sweeps that are written by hand: no training, real files, a real MLflow database."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import costs, load, outcome, page, pivot, reference, report, results, tables
from analysis.statistics import mean_interval
from clar import space, tracking
from clar.cli import command
from clar.clips import ClipStore
from clar.config import TrialConfig
from clar.errors import UserError
from clar.plan import DataSet, Plan, RecordedData, restore
from clar.result import EpochRecord, TrialFolder
from clar.rounds import Budget, Halving, Precision
from clar.search import Searching
from tests.handmade import finish, records

NAMES = ("fade", "time_mask", "time_shift")
GRID = '''"""Pairs of three augmentations."""

NAMES = ("fade", "time_mask", "time_shift")
SETTINGS = {"loss": "self_supervised"}
ROWS, COLUMNS = ("first", NAMES), ("second", NAMES)


def trials(base):
    return [base.but(augmentations=(a,) if a == b else (a, b)) for a in NAMES for b in NAMES]


def cell(trial):
    return trial.augmentations[0], trial.augmentations[-1]
'''
BASE = TrialConfig(
    epochs=4, warmup_epochs=0, batch_size=16, loss="self_supervised", dataset="digits:120", encoder_width=2
)


class Sweeps:
    """A storage in which sweeps are planned and trials get their results by hand."""

    def __init__(self, folder: Path, store: ClipStore) -> None:
        self.folder, self.storage, self.clips = folder, folder / "runs", store
        # Most tests can do without the pictures, which take longer than all the rest: their clips are elsewhere.
        self.store: DataSet = RecordedData(folder / "elsewhere", store.fingerprint, len(store.split("train")))
        self.storage.mkdir()
        (folder / "grid.py").write_text(GRID)

    def plan(self, name: str = "", base: TrialConfig = BASE, **more: object) -> Plan:
        chosen = space.load(name or str(self.folder / "grid.py"))
        bases = {study.name: [base.but(**study.settings)] for study in chosen.studies}
        return Plan(chosen, bases, self.storage, {base.dataset: self.store}, **more)

    def fill(self, plan: Plan, value: Callable[[TrialConfig], float | None], state: str = "done") -> Plan:
        """Go through the rounds; a trial without a value is left out."""
        for goals in plan.rounds():
            for goal in goals:
                test = value(goal.folder.config)
                if test is not None and goal.epoch is None:
                    finish(goal.folder, test, curve_to(test, goal.folder.config.epochs), seconds=10.0)
                elif test is not None:
                    goal.folder.begin("0+r2")
                    goal.folder.write_epochs(records(curve_to(test, goal.folder.config.epochs)[: goal.epoch]))
            if not all(goal.reached() for goal in goals):
                break
        plan.record(state, "0+r2", wall_seconds=100.0)
        return plan


def curve_to(test: float, epochs: int) -> list[float]:
    return [test * epoch / epochs for epoch in range(1, epochs + 1)]


def additive(config: TrialConfig) -> float:
    """Fades are worth 10 points in either place, masks 4; seeds differ by much, and a little by cell."""
    worth = {"fade": 0.10, "time_mask": 0.04, "time_shift": 0.0}
    first, second = config.augmentations[0], config.augmentations[-1]
    noise = np.random.default_rng([NAMES.index(first), NAMES.index(second), config.seed]).normal(0, 0.002)
    return 0.4 + worth[first] + (worth[second] if first != second else -0.02) + 0.05 * (config.seed % 3) + noise


@pytest.fixture
def sweeps(tmp_path: Path, tone_store: ClipStore) -> Sweeps:
    return Sweeps(tmp_path, tone_store)


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    """The command's exit code, output and errors."""
    monkeypatch.setattr(sys, "argv", ["analysis.report", *map(str, arguments)])
    code = command(report.app)
    return code, *capsys.readouterr()


# ---------------------------------------------------------------------------------------------------------------------
# Found again
# ---------------------------------------------------------------------------------------------------------------------


def test_a_sweep_is_planned_again_from_its_recipe(sweeps: Sweeps) -> None:
    plan = sweeps.fill(sweeps.plan(seeds=2), additive)
    found = load.from_storage("grid", sweeps.storage)
    assert list(found.plan.folders) == list(plan.folders)
    assert found.plan.output.path == plan.output.path
    assert (found.live, found.others, found.about["state"]) == (False, [], "done")
    first = outcome.write(plan).files[0].read_bytes()
    assert outcome.write(found.plan).files[0].read_bytes() == first


def test_searches_halving_and_added_seeds_are_replayed(sweeps: Sweeps) -> None:
    """What depends on results is decided again from the storage, as a driver that starts over does."""
    base = BASE.but(epochs=8)

    def score(config: TrialConfig) -> float:
        return 0.5 + 0.1 * config.learning_rate / (1 + config.learning_rate) - config.weight_decay

    chosen = space.load("hyperparameters")
    search = [Searching(chosen.studies[0], base.but(**chosen.studies[0].settings), ("valid_top1",), 8, 4)]
    plan = sweeps.fill(sweeps.plan("hyperparameters", base, searches=search, halving=halving_of(base)), score)
    found = load.from_storage("hyperparameters", sweeps.storage).plan
    assert list(found.folders) == list(plan.folders)
    assert found.cut() == plan.cut() != set()
    assert [one.chosen for one in found.searches[0].ranked()] == [one.chosen for one in plan.searches[0].ranked()]
    # More seeds: two of nine cells are close, and get two more each.
    close = {("fade", "time_mask"): 0.600, ("time_mask", "fade"): 0.599}

    def near(config: TrialConfig) -> float:
        return close.get(config.augmentations, 0.2) + (0.01 if config.seed % 2 else -0.01)

    precision = Precision(0.01, Budget(trials=22), mean_interval)
    plan = sweeps.fill(sweeps.plan(seeds=2, precision=precision), near)
    found = load.from_storage("grid", sweeps.storage).plan
    assert list(found.folders) == list(plan.folders)
    assert len(plan.folders) == 22
    assert found.precision is not None
    assert found.precision.reasons == precision.reasons


def test_a_trial_that_failed_does_not_end_the_sweep(sweeps: Sweeps) -> None:
    """The driver goes on without it, and so must whoever plans the sweep again: here in the first of three rounds."""
    base = BASE.but(epochs=8)
    plan = sweeps.plan(base=base, halving=halving_of(base))
    for goals in plan.rounds():
        for goal in goals:
            if goal.folder.config.augmentations == ("time_shift",):
                goal.folder.begin("0+r2")
                goal.folder.write_failure("OutOfMemoryError: too big")
            elif goal.epoch is None:
                finish(goal.folder, additive(goal.folder.config), curve_to(additive(goal.folder.config), 8))
            else:
                goal.folder.begin("0+r2")
                goal.folder.write_epochs(records(curve_to(additive(goal.folder.config), 8)[: goal.epoch]))
    plan.record("failed", "0+r2")
    assert len(plan.cut()) == 5
    found = load.from_storage("grid", sweeps.storage)
    assert found.plan.cut() == plan.cut()
    assert results.frame(found.plan, False)["state"].value_counts().to_dict() == {"cut": 5, "done": 3, "failed": 1}
    # For the command, which tries it again, the round is open.
    assert sweeps.plan(base=base, halving=halving_of(base)).replay() == 1


def test_what_is_cut_here_has_no_number_here(sweeps: Sweeps) -> None:
    """A trial that this sweep has cut may have run through in another one."""
    base = BASE.but(epochs=8)
    sweeps.fill(sweeps.plan(base=base), additive)
    plan = sweeps.fill(sweeps.plan(base=base, halving=halving_of(base)), additive)
    frame = results.frame(plan)
    assert (frame["state"] == "cut").sum() == 6
    assert frame[frame["state"] == "cut"]["test_top1"].isna().all()
    assert frame[frame["state"] == "done"]["test_top1"].notna().all()


def test_results_of_another_version_are_not_taken_for_missing(sweeps: Sweeps) -> None:
    plan = sweeps.fill(sweeps.plan(), additive)
    about = plan.output.read()
    about["recipe"]["results_version"] = 1
    plan.output.write(about)
    with pytest.raises(UserError, match="results version 1, this is 3"):
        load.from_storage("grid", sweeps.storage)


def test_a_report_changes_nothing_that_a_driver_writes(sweeps: Sweeps) -> None:
    """Neither which sweep was driven last, nor what a driver that is at work keeps."""
    first = sweeps.fill(sweeps.plan(), additive)
    second = sweeps.fill(sweeps.plan(base=BASE.but(temperature=0.1)), additive)
    before = (first.output.path / "sweep.json").read_bytes()
    found = load.from_storage(first.output.path.name, sweeps.storage)
    out = outcome.write(found.plan, found.live)
    report._log(found, out, report.Report(out.folder, []), tracking.default_uri(sweeps.storage))
    assert (first.output.path / "sweep.json").read_bytes() == before
    assert first.output.report()["files"] == [path.name for path in out.files]
    assert load.from_storage("grid", sweeps.storage).plan.output.key == second.output.key


def halving_of(base: TrialConfig) -> dict[str, Halving]:
    return {base.dataset: Halving.of(base, (2, 4), 0.5)}


def test_of_several_sweeps_the_last_is_taken_and_the_others_are_named(sweeps: Sweeps) -> None:
    first = sweeps.fill(sweeps.plan(), additive)
    second = sweeps.fill(sweeps.plan(base=BASE.but(temperature=0.1)), additive)
    found = load.from_storage("grid", sweeps.storage)
    assert found.plan.output.key == second.output.key
    assert found.others == [first.output.path.name]
    assert load.from_storage(first.output.path.name, sweeps.storage).plan.output.key == first.output.key
    assert load.from_storage(str(sweeps.folder / "grid.py"), sweeps.storage).plan.output.key == second.output.key


def test_what_cannot_be_found_is_said(sweeps: Sweeps) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load.from_storage("grid", sweeps.folder / "nowhere")
    with pytest.raises(UserError, match="it holds no sweep yet"):
        load.from_storage("grid", sweeps.storage)
    plan = sweeps.fill(sweeps.plan(), additive)
    with pytest.raises(UserError, match=r"no sweep 'gird'.*did you mean grid"):
        load.from_storage("gird", sweeps.storage)
    about = plan.output.read()
    assert about is not None
    plan.output.write({name: value for name, value in about.items() if name != "recipe"})
    with pytest.raises(UserError, match=r"older version.*python -m clar.sweep grid"):
        load.from_storage("grid", sweeps.storage)
    with pytest.raises(UserError, match=r"cannot be planned again.*KeyError"):
        restore(sweeps.storage, {"bases": {}}, plan.space, mean_interval)


def test_whoever_writes_to_a_storage_does_not_choose_what_is_run_here(sweeps: Sweeps) -> None:
    sweeps.fill(sweeps.plan(), additive)
    study = sweeps.folder / "grid.py"
    study.chmod(0o666)
    with pytest.raises(UserError, match=r"whose code is not yours; to run it, name the file: .*grid\.py"):
        load.from_storage("grid", sweeps.storage)
    assert load.from_storage(str(study), sweeps.storage).plan.folders
    study.chmod(0o644)
    if os.geteuid() == 0:
        os.chown(study, 1, 1)
        with pytest.raises(UserError, match="whose code is not yours"):
            load.from_storage("grid", sweeps.storage)


def test_a_study_that_has_changed_since_is_named(sweeps: Sweeps) -> None:
    plan = sweeps.fill(sweeps.plan(), additive)
    (sweeps.folder / "grid.py").write_text('"""A union."""\nSTUDIES = ("inputs",)\n')
    with pytest.raises(UserError, match="its studies were grid, and are inputs now"):
        load.from_storage("grid", sweeps.storage)
    (sweeps.folder / "grid.py").unlink()
    with pytest.raises(UserError, match=re.escape(str(plan.space.path))):
        load.from_storage("grid", sweeps.storage)


def test_from_mlflow_come_the_same_tables(sweeps: Sweeps, tmp_path: Path) -> None:
    """A grid with a failed, a running and a missing trial, and a halved one with its cuts."""

    def some(config: TrialConfig) -> float | None:
        return None if config.augmentations in (("fade",), ("time_mask",), ("time_shift",)) else additive(config)

    plan = sweeps.plan(seeds=2)
    sweeps.fill(plan, some, state="running")
    by_name = {folder.config.augmentations: folder for folder in plan.folders.values() if folder.config.seed == 0}
    by_name["fade",].begin("0+r2")
    by_name["fade",].write_failure("OutOfMemoryError: too big")
    by_name["time_mask",].begin("0+r2")
    halved = sweeps.fill(sweeps.plan(base=BASE.but(seed=7), halving=halving_of(BASE.but(epochs=5))), additive)
    uri = tracking.default_uri(sweeps.storage)
    for one in (plan, halved):
        tracking._Writer(tracking.connect(uri, sweeps.storage), uri, one.output).everything(False)
    for number, one in enumerate((plan, halved)):
        (place := tmp_path / f"read-{number}").mkdir()
        remote = load.from_mlflow(one.output.path.name, uri, place)
        local = load.from_storage(one.output.path.name, sweeps.storage)
        written = [
            outcome.write(found.plan, found.live, tmp_path / f"{number}-{i}") for i, found in enumerate((remote, local))
        ]
        for path, other in zip(*(out.files for out in written), strict=True):
            assert path.read_bytes() == other.read_bytes(), path.name
        first, second = (
            results.frame(found.plan, found.live).drop(columns=["curve", "code_version"]) for found in (remote, local)
        )
        pd.testing.assert_frame_equal(first, second)
    assert halved.cut()
    with pytest.raises(UserError, match=r"no sweep 'gird' in MLflow.*did you mean grid"):
        load.from_mlflow("gird", uri, tmp_path)


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no"):
        load.from_mlflow("grid", f"sqlite:///{tmp_path}/typo.db", tmp_path)
    assert not (tmp_path / "typo.db").exists()


def test_a_server_that_is_away_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--tracking-uri http://127.0.0.1:9: cannot be read; is it right") as caught:
        load.from_mlflow("grid", "http://127.0.0.1:9", tmp_path)
    assert "\n" not in str(caught.value)


def test_begun_is_running_while_somebody_drives_and_stopped_otherwise(sweeps: Sweeps) -> None:
    plan = sweeps.fill(sweeps.plan(), lambda config: None if config.augmentations == ("fade",) else 0.5)
    next(folder for folder in plan.folders.values() if folder.config.augmentations == ("fade",)).begin("0+r2")
    with plan.output.driver():
        live = load.from_storage("grid", sweeps.storage)
        assert live.live
        assert results.frame(live.plan, live.live)["state"].value_counts().to_dict() == {"done": 8, "running": 1}
        assert report.progress(live) == "8 of 9 done, 1 running"
        # A trial that ends while the report is made is not half in it.
        late = next(one for one in live.plan.folders.values() if one.config.augmentations == ("fade",))
        assert live.plan.result(late) is None
        late.write_result(next(one for one in live.plan.folders.values() if one is not late).result())
        assert live.plan.result(late) is None
        (late.path / "result.json").unlink()
    rest = load.from_storage("grid", sweeps.storage)
    written = outcome.write(rest.plan, rest.live)
    assert "| fade | stopped |" in written.markdown()
    assert "1 trial stopped half-way" in written.markdown()


# ---------------------------------------------------------------------------------------------------------------------
# Published values, a table of one's own, costs
# ---------------------------------------------------------------------------------------------------------------------


def published(sweeps: Sweeps, text: str) -> dict:
    found = outcome.write(sweeps.fill(sweeps.plan(), additive))
    path = sweeps.folder / "published.csv"
    path.write_text(text)
    places = {name: list(zip(cells["row"], cells["column"], strict=True)) for name, (*_, cells) in found.grids.items()}
    return reference.read(path, {name: grid for name, (_, grid, _) in found.grids.items()}, places)


def test_published_values_beside_ours(sweeps: Sweeps) -> None:
    values = published(sweeps, "row,column,published\nfade,time_mask,71.2\n time_mask , fade ,60 %\n")
    assert values == {"table": {("fade", "time_mask"): pytest.approx(0.712), ("time_mask", "fade"): 0.6}}
    found = outcome.write(sweeps.fill(sweeps.plan(seeds=3), additive))
    _, grid, cells = found.grids["table"]
    listing = tables.against(grid, cells, values["table"], "Beside")
    ours = cells.set_index(["row", "column"]).loc[("fade", "time_mask")]
    assert listing.header == ("first", "second", "ours", "published", "difference")
    assert listing.rows[0][3] == "71.2"
    assert listing.rows[0][2] == f"{100 * ours['mean']:.1f} ± {100 * (ours['high'] - ours['mean']):.1f}"
    low, middle, high = (f"{100 * (ours[name] - 0.712):+.1f}" for name in ("low", "mean", "high"))
    assert listing.rows[0][4] == f"{middle} ({low} to {high})"
    # The file of a spreadsheet, with a mark at its beginning and a table's name.
    assert published(sweeps, "\ufefftable,row,column,published\ntable,fade,fade,50\n") == {
        "table": {("fade", "fade"): 0.5}
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("row,column\nfade,fade\n", "lacks the column published"),
        ("", "lacks the column row"),
        ("row,column,published\nfaed,fade,50\n", "line 2: table table has no row 'faed'; did you mean fade"),
        ("row,column,published\nfade,fade,50\nfade,shift,50\n", "line 3: table table has no column 'shift'"),
        ("row,column,published\nfade,fade,fifty\n", "line 2: published = 'fifty' is no percentage from 0 to 100"),
        ("row,column,published\nfade,fade,101\n", "is no percentage"),
        ("row,column,published\nfade,fade\n", "published = None is no percentage"),
        ("row,column,published\nfade,fade,nan\n", "is no percentage"),
        ("row,column,published\nfade,fade,50\nfade,fade,51\n", "line 3: fade / fade is given twice"),
        ("row,column,published\nfade,fade,0.5\nfade,time_mask,0.6\n", "write per cent"),
        ("table,row,column,published\nlosses,fade,fade,50\n", "line 2: no table 'losses'"),
    ],
)
def test_a_wrong_reference_is_said_in_one_line(sweeps: Sweeps, text: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        published(sweeps, text)
    assert "\n" not in str(caught.value)


def test_a_reference_that_cannot_be_read(sweeps: Sweeps) -> None:
    for path in (sweeps.folder / "nowhere.csv", sweeps.folder):
        with pytest.raises(UserError, match="cannot be read"):
            reference.read(path, {}, {})
    (sweeps.folder / "binary.csv").write_bytes(b"\xff\xfe\x00row")
    with pytest.raises(UserError, match="cannot be read"):
        reference.read(sweeps.folder / "binary.csv", {}, {})


def test_a_table_of_any_two_fields(sweeps: Sweeps) -> None:
    plan = sweeps.fill(
        sweeps.plan("losses", seeds=2),
        lambda config: 0.5 + 0.1 * config.label_fraction + 0.02 * config.seed + 0.01 * (config.loss == "clar"),
    )
    trials = results.frame(plan)
    trials = trials[trials["probe_labels"] == "seen"]
    grid, notes = pivot.grid(trials, "loss", "label_fraction")
    cells = tables.cells(grid).set_index(["row", "column"])
    assert grid.columns == ("label_fraction", ("0.01", "0.1", "0.2", "1.0"))
    assert cells.loc[("clar", "1.0")]["mean"] == pytest.approx(0.62)
    assert (cells["n"] == 2).all()
    assert notes == []
    # Over losses, seed by seed: four trials a seed, two seeds.
    grid, notes = pivot.grid(trials, "label_fraction", "seed")
    cells = tables.cells(grid).set_index(["row", "column"])
    assert cells.loc[("1.0", "0")]["mean"] == pytest.approx(0.6025)
    assert notes == ["each number is a mean over loss; --where field=value chooses one of them"]
    grid, notes = pivot.grid(trials, "label_fraction", "dataset", "train_seconds", ["loss=clar"])
    assert (grid.share, grid.maximise, notes) == (False, False, [])
    assert tables.texts(grid, tables.cells(grid)).loc["1.0"].tolist() == ["10 ± 0"]
    with pytest.raises(UserError, match=r"--rows losss: no such field.*did you mean loss"):
        pivot.grid(trials, "losss", "seed")
    with pytest.raises(UserError, match="--metric test_top: no such field"):
        pivot.grid(trials, "loss", "seed", "test_top")
    with pytest.raises(UserError, match="--where loss=clr: no trial has it; did you mean clar"):
        pivot.grid(trials, "loss", "seed", "test_top1", ["loss=clr"])
    with pytest.raises(UserError, match="two different fields"):
        pivot.grid(trials, "loss", "loss")


def test_cells_of_different_trials_are_told_to_be(sweeps: Sweeps) -> None:
    plan = sweeps.fill(sweeps.plan("losses"), lambda config: 0.5)
    some = results.frame(plan)
    some = some[~((some["loss"] == "clar") & (some["label_fraction"] == 0.01))]
    _, notes = pivot.grid(some, "loss", "dataset")
    assert notes[1] == "cells do not hold the same trials: they differ in more than their row and column"
    partly = results.frame(plan).assign(state=lambda frame: ["failed", *frame["state"][1:]])
    grid, _ = pivot.grid(partly, "loss", "dataset")
    assert tables.cells(grid)["state"].tolist() == ["failed", "done", "done", "done"]


def test_seeds_that_lack_some_of_a_cell_are_left_out(sweeps: Sweeps) -> None:
    """Added seeds are of the good cells only: a mean over them would be of other trials."""
    plan = sweeps.fill(sweeps.plan("losses", seeds=3), lambda config: 0.5 + 0.1 * (config.loss == "clar"))
    trials = results.frame(plan)
    some = trials[(trials["seed"] < 2) | (trials["loss"] == "clar")]
    grid, notes = pivot.grid(some, "label_fraction", "dataset")
    cells = tables.cells(grid)
    assert cells["n"].tolist() == [2] * 4
    assert cells["mean"].tolist() == pytest.approx([0.525] * 4)
    assert notes[1] == "seeds that lack some of a cell's trials are left out: 4"
    # Fields that are None have a row, too.
    grid, _ = pivot.grid(trials, "window_ms", "loss")
    assert grid.rows == ("window_ms", ("None",))
    # Accuracies with other labels are not compared, and a penalty has no best.
    assert pivot.grid(trials, "label_fraction", "loss")[0].within == "row"
    assert pivot.grid(trials, "loss", "input", "probe_l2")[0].within == "nothing"
    assert not tables.cells(pivot.grid(trials, "loss", "input", "probe_l2")[0])["best"].any()


def test_tables_of_several_tasks_have_a_best_in_each_column(sweeps: Sweeps) -> None:
    """Accuracies with other shares of the labels, or on other data, are not compared."""
    noise = np.random.default_rng(0)
    worth = {"clar": 0.1, "supervised": 0.0, "self_supervised": 0.0, "finetune": 0.05}
    plan = sweeps.fill(
        sweeps.plan("losses", seeds=4),
        lambda config: 0.3 + 0.4 * config.label_fraction + worth[config.loss] + noise.normal(0, 0.004),
    )
    out = outcome.write(plan)
    cells = next(iter(out.grids.values()))[2]
    best = cells[cells["best"]]
    assert best["column"].tolist() == ["100 %", "20 %", "10 %", "1 %"]
    assert set(best["row"]) == {"clar"}
    assert (cells[~cells["best"]]["p"] < 0.05).all()
    assert "bold: the best mean of each column" in out.markdown()


def test_a_cell_of_several_trials_a_seed_counts_its_seeds(sweeps: Sweeps) -> None:
    entries = [tables.Entry("r", column, "done", value, seed)
               for column in "ab" for seed in range(3) for value in (0.4 + 0.1 * seed, 0.6 + 0.1 * seed)]  # fmt: skip
    source = tables.Grid("T", ("r", None), ("c", None), entries)
    cells = tables.cells(source)
    assert cells["n"].tolist() == [3, 3]
    assert (cells["mean"][0], cells["low"][0]) == pytest.approx(mean_interval([0.5, 0.6, 0.7])[:2])
    assert "over 3 seeds" in " ".join(tables.notes(source, cells))


def test_the_time_of_an_unfinished_trial_is_that_of_its_epochs(sweeps: Sweeps) -> None:
    plan = sweeps.plan()
    folder = next(iter(plan.folders.values()))
    folder.begin("0+r2")
    folder.write_epochs([EpochRecord(1, 1.0, None, 0.1, 10.0), EpochRecord(2, 1.0, None, 0.1, 1000.0)])
    clips = len(sweeps.store.split("train"))
    assert costs._seconds_so_far(plan, folder) == pytest.approx(clips / 10 + clips / 1000)


def test_costs_by_hand(sweeps: Sweeps) -> None:
    """Paper on one data set: 76 trials, some of which stand in several tables."""
    plan = sweeps.fill(sweeps.plan("paper"), lambda config: 0.5)
    found = {row[0]: row[1:] for row in costs.table(plan, plan.output.read() or {}, False).rows}
    assert found["trials"] == ("76", "76 done")
    assert found["wall time"][0] == "1.7 min"
    assert found["training time"][0] == "12.7 min"
    assert found["CPU-hours"][0] == "-"
    assert found["CPU-hours"][1].endswith("none of the 76 trials with a result has it")
    # 49 + 6 + 32 members: of inputs the three with a spectrogram are others' cells, of losses self-supervised with all
    # labels is one of the grid's, and of its second protocol the four with all labels and all three self-supervised
    # ones with fewer are cells of the first.
    assert found["saved: asked for twice"][0] == "1.8 min"
    assert found["saved: asked for twice"][1].startswith("11 trials ")
    # Three fractions of self-supervised, four fine-tunings and nine second probes start from one that is wanted anyway.
    assert found["saved: shared pre-training"] == (
        "2.7 min",
        "16 trials start from a pre-training that another has, too",
    )
    assert found["saved: done before"][1].startswith("76 trials")  # written before the sweep was first recorded


def test_costs_of_early_stopping_and_of_what_was_found_done(sweeps: Sweeps) -> None:
    plan = sweeps.plan(halving=halving_of(BASE.but(epochs=5)))
    plan.record("running", "0+r2")
    sweeps.fill(plan, additive)
    found = {row[0]: row[1:] for row in costs.table(plan, plan.output.read() or {}, False).rows}
    assert found["saved: done before"][1].startswith("0 trials")
    # Nine trials, four cut after two of four epochs, two after... none: the second rung is the last epoch.
    clips = len(sweeps.store.split("train"))
    cut = {identity: len(plan.folders[identity].epochs()) for identity in plan.cut()}
    left = sum((4 - epochs) * clips / 100 for epochs in cut.values())
    assert cut
    assert found["saved: early stopping"] == (
        costs.hours(left),
        f"{len(cut)} trials were cut; by the time that their epochs took",
    )
    # Another sweep that asks for the same trials finds those that are done.
    again = sweeps.plan(seeds=1)
    again.record("running", "0+r2")
    found = {row[0]: row[1:] for row in costs.table(again, again.output.read() or {}, False).rows}
    assert found["saved: done before"][1].startswith(f"{9 - len(cut)} trials")


def test_energy_and_cpu_time_say_how_many_trials_have_them() -> None:
    assert costs._measured([3600.0, None, 7200.0], costs.hours, "threads") == (
        "3.00 h",
        "threads; of 2 of the 3 trials with a result",
    )
    assert costs._measured([1.8e6, 3.6e6], costs.energy, "devices") == (
        "1.50 kWh",
        "devices; of the 2 trials with a result",
    )
    assert costs.energy(3600) == "1.0 Wh"


# ---------------------------------------------------------------------------------------------------------------------
# The whole report
# ---------------------------------------------------------------------------------------------------------------------


def test_the_command_makes_everything(
    sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweeps.store = sweeps.clips
    plan = sweeps.fill(sweeps.plan(seeds=4), additive)
    (sweeps.folder / "published.csv").write_text("row,column,published\nfade,time_mask,50\n")
    (sweeps.folder / "own.py").write_text(
        "from analysis.claims import Claim, versus\n"
        "CLAIMS = [Claim('Fade first beats shift first', lambda t: versus(t, {'augmentations': 'fade > time_mask'},"
        " {'augmentations': 'time_shift > time_mask'})),\n"
        "          Claim('Nothing', lambda t: versus(t, {'loss': 'klar'}, {'loss': 'clar'}))]\n"
    )
    code, said, errors = run(
        monkeypatch, capsys, "grid", "--storage", sweeps.storage, "--reference", sweeps.folder / "published.csv",
        "--claims", sweeps.folder / "own.py", "--rows", "augmentations", "--columns", "dataset", "--metric",
        "test_top5",
    )  # fmt: skip
    assert (code, errors) == (0, "")
    assert "The best composition of two augmentations beats the best single one: confirmed" in said
    assert "Fade first beats shift first: confirmed" in said
    assert "Nothing: this sweep has no such trials" in said
    assert "36 of 36 done" in said
    folder = plan.output.path
    html = (folder / "report.html").read_text()
    for expected in (
        "Every comparison of the claims",
        "beside ours",
        "as second",
        "Two-way analysis",
        "example",
        "Costs",
    ):
        assert expected in html
    assert html.count("<audio") == 6
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    stems = ("claims", "costs", "table-effects", "table-variance", "table-interactions", "table-published")
    assert {f"report/{stem}{suffix}" for stem in stems for suffix in (".csv", ".tex")} <= files
    assert {
        f"report/{stem}.{kind}" for stem in ("claims", "table-effects", "example-fade") for kind in ("png", "svg")
    } <= files
    # Fade adds ten points as first and as second, mask four.
    effects = pd.read_csv(folder / "report/table-effects.csv").set_index(["name", "place"])["effect"]
    gaps = [effects["fade", place] - effects["time_shift", place] for place in ("first", "second")]
    assert gaps == pytest.approx([0.1, 0.1], abs=0.005)
    # In MLflow, the page is an artifact of the parent run, and the note holds claims and table.
    client = tracking.connect(tracking.default_uri(sweeps.storage), sweeps.storage)
    experiment = client.get_experiment_by_name("clar/grid")
    (parent,) = client.search_runs([experiment.experiment_id], "tags.`clar.parent` LIKE '%'")
    assert {"report.html", "table.md", "sweep.json", "report"} <= {
        item.path for item in client.list_artifacts(parent.info.run_id)
    }
    note = parent.data.tags["mlflow.note.content"]
    assert "- The best composition of two augmentations beats the best single one: confirmed" in note
    assert "| first \\\\ second |" in note
    assert note in experiment.tags["mlflow.note.content"]


def test_wrong_options_are_said_in_one_line(
    sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweeps.fill(sweeps.plan(), additive)
    (sweeps.folder / "broken.py").write_text("CLAIMS = [1]\n")
    (sweeps.folder / "raises.py").write_text("import nowhere_at_all\n")
    (sweeps.folder / "typo.py").write_text(
        "from analysis.claims import Claim, versus\n"
        "CLAIMS = [Claim('Warm', lambda t: versus(t, {'temprature': 1}, {'temprature': 2}))]\n"
    )
    cases = {
        ("gird",): "no sweep 'gird'",
        ("grid", "--rows", "loss"): "a table needs both",
        ("grid", "--where", "loss=clar"): "name them",
        ("grid", "--target", "0"): "an accuracy in per cent",
        ("grid", "--metric", "test_top5"): "name them",
        ("grid", "--out", sweeps.folder / "grid.py"): "name another folder with --out",
        ("grid", "--claims", sweeps.folder / "typo.py"): "cannot be checked: no field 'temprature'",
        ("grid", "--claims", sweeps.folder / "nowhere.py"): "no such file; name a Python file with CLAIMS",
        ("grid", "--claims", sweeps.folder / "broken.py"): "must be a list of analysis.claims.Claim, not [1]",
        ("grid", "--claims", sweeps.folder / "raises.py"): "does not load: ModuleNotFoundError",
        ("grid", "--reference", sweeps.folder / "nowhere.csv"): "cannot be read",
        ("grid", "--rows", "loss", "--columns", "sed"): "did you mean seed",
        ("grid", "--nonsense"): "No such option",
        (): "Missing argument",
    }
    for arguments, expected in cases.items():
        code, _, errors = run(monkeypatch, capsys, *arguments, "--storage", sweeps.storage, "--no-log")
        assert code == 2, arguments
        assert errors.startswith("error: ")
        assert expected in errors
        assert errors.count("\n") == 1


def test_a_single_seed_and_nothing_yet(sweeps: Sweeps) -> None:
    empty = sweeps.plan()
    empty.record("running", "0+r2")
    found = load.from_storage("grid", sweeps.storage)
    out = outcome.write(found.plan, found.live)
    made = report.extend(found, out)
    assert made.verdicts[0].endswith("undecided; n = 0; 1 of 1 seeds not compared (1 missing)")
    assert out.markdown().count("| missing |") > 0
    assert "0 of 9 done, 9 missing" in made.path.read_text()
    sweeps.fill(empty, additive)
    found = load.from_storage("grid", sweeps.storage)
    out = outcome.write(found.plan, found.live)
    made = report.extend(found, out)
    assert "with one seed nothing can be told from it, use --seeds 3 or more" in out.markdown()
    # All is there, and waiting would not help.
    assert made.verdicts[0].endswith("undecided; n = 0; --seeds 6 or more would tell how much it scatters")
    assert "±" not in (out.folder / "table.md").read_text()
    assert "since one seed alone has no scatter of its own" in made.path.read_text()


def test_the_same_results_give_the_same_page_and_are_not_reported_twice(sweeps: Sweeps, tmp_path: Path) -> None:
    sweeps.store = sweeps.clips
    plan = sweeps.fill(sweeps.plan(seeds=2), additive)
    pages = []
    for name in ("one", "two"):
        found = load.from_storage("grid", sweeps.storage)
        out = outcome.write(found.plan, found.live, tmp_path / name)
        assert report.current(found, out) is None
        pages.append(report.extend(found, out).path.read_bytes())
    assert pages[0] == pages[1]
    again = outcome.write(found.plan, found.live, tmp_path / "two")
    known = report.current(found, again)
    assert known is not None
    assert known.path.read_bytes() == pages[1]
    assert [path.name for path in again.files] == [path.name for path in out.files]
    # A trial more, and it is not the same any more.
    other = next(iter(plan.folders.values()))
    (other.path / "result.json").unlink()
    found = load.from_storage("grid", sweeps.storage)
    assert report.current(found, outcome.write(found.plan, found.live, tmp_path / "two")) is None


def test_clips_that_are_elsewhere_leave_the_rest_of_the_report(sweeps: Sweeps) -> None:
    sweeps.fill(sweeps.plan(), additive)
    found = load.from_storage("grid", sweeps.storage)
    made = report.extend(found, outcome.write(found.plan, found.live))
    assert "Not made: the clips of digits:120 are not on this machine." in made.path.read_text()


def test_names_of_users_are_text_in_the_page(sweeps: Sweeps) -> None:
    evil = GRID.replace("Pairs of three", "<script>alert(1)</script> & pairs").replace('("first"', '("<b>first</b>"')
    (sweeps.folder / "grid.py").write_text(evil)
    sweeps.fill(sweeps.plan(), additive)
    found = load.from_storage("grid", sweeps.storage)
    html = report.extend(found, outcome.write(found.plan, found.live)).path.read_text()
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; pairs" in html
    assert "<b>first" not in html


@pytest.mark.slow
def test_the_latex_compiles(sweeps: Sweeps) -> None:
    """Every .tex of a report, in one document with booktabs."""
    if shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex here; Debian's texlive-latex-recommended has it")
    (sweeps.folder / "grid.py").write_text(GRID.replace('("first"', '(r"fi_r$t {50 %} & #1 ^~\\\\ [x] <|>\\"*"'))
    plan = sweeps.fill(sweeps.plan(seeds=3), additive)
    other = sweeps.fill(sweeps.plan("losses", seeds=2), lambda config: 0.5 + 0.01 * config.seed)
    parts = []
    for name in ("grid", "losses"):
        found = load.from_storage(name, sweeps.storage)
        report.extend(found, outcome.write(found.plan, found.live))
    for one in (plan, other):
        parts += [path.read_text() for path in sorted(one.output.path.rglob("*.tex"))]
    assert len(parts) > 8
    document = (
        "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\\tiny\n"
        + "\n\n".join(parts)
        + "\\end{document}\n"
    )
    (sweeps.folder / "all.tex").write_text(document)
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"],
        cwd=sweeps.folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert (sweeps.folder / "all.pdf").stat().st_size > 1000


def test_the_page_is_whole_for_any_part() -> None:
    """What the report hands to the page is what the page knows."""
    section = outcome.Section("A section", ["a sentence", tables.Listing("T", ("a", "b"), [("x", "1")])])
    out = outcome.Outcome(Path("nowhere"), {"a": section})
    html = page.render(page.Page("T", "S", (("a", "b"),), (report._section(out, "a"),)))
    assert "a sentence" in html
    assert json.dumps("x") not in html


def test_a_folder_is_found_for_every_trial_in_the_frame(sweeps: Sweeps) -> None:
    plan = sweeps.fill(sweeps.plan(seeds=2), additive)
    frame = results.frame(plan)
    assert len(frame) == 18
    for identity, config in zip(frame["identity"], frame["augmentations"], strict=True):
        assert TrialFolder.open(sweeps.storage, identity).config.augmentations == tuple(config.split(" > "))
