"""What stands below every table: chance, log-mel statistics, an untrained encoder, a supervised one."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier

from analysis import outcome
from analysis.statistics import mean_interval
from clar import space, trainer
from clar.clips import ClipStore
from clar.plan import Plan, restore
from clar.rounds import Halving
from tests.handmade import finish
from tests.running import TINY, Command, runs
from tests.test_plan import BASE, plan, study

NAMES = ["log-mel statistics", "untrained encoder", "supervised"]


def test_chance_is_the_commonest_class_of_train() -> None:
    train_N, test_N = np.array([0, 1, 1, 2, 1, 0]), np.array([1, 1, 0, 2, 0])
    dummy = DummyClassifier(strategy="most_frequent").fit(train_N[:, None], train_N)
    assert trainer.chance(train_N, test_N) == dummy.score(test_N[:, None], test_N)
    assert trainer.chance(train_N, test_N, top=2) == pytest.approx(4 / 5)
    assert trainer.chance(train_N, test_N, top=5) == 1
    # Of several that are as common: what one of them gives on the average.
    assert trainer.chance(np.array([0, 1, 2, 3]), np.array([0, 1, 2, 4]), top=2) == pytest.approx(3 / 8)
    assert trainer.chance(np.array([0, 1, 0, 1, 2]), test_N) == pytest.approx(2 / 5)


def test_every_study_is_held_against_its_baselines(tmp_path: Path, tone_store: ClipStore) -> None:
    for name in space.available():
        one = space.load(name)
        bases = {part.name: [BASE.but(**part.settings)] for part in one.studies}
        planned = Plan(one, bases, tmp_path, {"digits": tone_store}, baselines=True)
        for part in one.studies:
            beside = [entry for entry in planned.beside if entry.study.name == part.name]
            assert {entry.name for entry in beside} >= set(NAMES), part.name


def test_baselines_see_what_the_cells_see_of_the_labels(tmp_path: Path, tone_store: ClipStore) -> None:
    some = study(
        lambda base: [base.but(label_fraction=f, probe_labels=p) for f in (1, 0.1) for p in ("seen", "all")],
        cell=lambda trial: (trial.probe_labels, f"{100 * trial.label_fraction:g} %"), columns=("labels", None),
    )  # fmt: skip
    planned = plan(tmp_path, tone_store, some, seeds=2, baselines=True)
    seen = {(one.name, one.config.label_fraction, one.config.probe_labels) for one in planned.beside}
    labels = [(1, "seen"), (0.1, "seen"), (0.1, "all")]
    assert seen == {(name, *one) for name in NAMES for one in labels}
    # Statistics of all labels know no seed, the others have one trial a seed.
    assert sum(one.name == NAMES[0] and one.config.label_fraction == 1 for one in planned.beside) == 1
    assert sum(one.name == NAMES[2] and one.config.label_fraction == 1 for one in planned.beside) == 2
    assert planned.summary().startswith("6 trials and ")
    (goals,) = planned.rounds()
    place = {goal.folder.identity: turn for turn, goal in enumerate(goals)}
    for goal in goals:
        parent = planned.parent(goal.folder)
        assert parent is None or place[parent.identity] < place[goal.folder.identity]


def test_a_baseline_that_stands_in_the_table_too_is_one_trial(tmp_path: Path, tone_store: ClipStore) -> None:
    both = study(lambda base: [base.but(loss=loss) for loss in ("supervised", "clar")])
    planned = plan(tmp_path, tone_store, both, baselines=True)
    assert len(planned.folders) == 2 + 2
    assert len(planned.apart) == 2
    titles = planned.titles().values()
    assert len(set(titles)) == len(titles)
    assert "log-mel statistics, seed 0" in titles
    assert "fade > time_mask, loss supervised, seed 0" in titles


def test_early_stopping_does_not_compare_baselines(tmp_path: Path, tone_store: ClipStore) -> None:
    losses = study(lambda base: [base.but(loss=loss) for loss in ("self_supervised", "clar")])
    planned = plan(tmp_path, tone_store, losses, baselines=True, halving={"digits": Halving((1,), 0.5)})
    first = next(planned.rounds())
    assert {goal.folder.config.loss for goal in first} == {"self_supervised", "clar"}
    assert all(goal.folder.config.epochs == BASE.epochs for goal in first)


def test_the_table_below_has_a_column_for_each_share_of_the_labels(tmp_path: Path, tone_store: ClipStore) -> None:
    some = study(
        lambda base: [base.but(loss=loss, label_fraction=f) for loss in ("clar", "supervised") for f in (1, 0.1)],
        cell=lambda trial: (trial.loss, f"{100 * trial.label_fraction:g} %"), columns=("labels", ("100 %", "10 %")),
    )  # fmt: skip
    planned = plan(tmp_path, tone_store, some, baselines=True)
    for one in planned.beside:
        finish(one.folder, 0.7 if one.config.input == "statistics" else 0.4 + 0.1 * one.config.label_fraction)
    planned.forget()
    made = outcome.write(planned)
    assert "| baseline | 100 % | 10 % |" in made.markdown()
    assert "| log-mel statistics | 70.0 | 70.0 |" in made.markdown()
    assert "| supervised | 50.0 | 41.0 |" in made.markdown()
    assert "probe fitted on the labels that training sees" in made.markdown()
    assert (planned.output.path / "table-baselines.csv").is_file()
    titles = planned.titles()
    assert len(set(titles.values())) == len(titles)
    assert "untrained encoder, 10 % of labels, seed 0" in titles.values()
    # Planned again from what was recorded, it is the same.
    planned.record("done", "0")
    recipe = json.loads((planned.output.path / "sweep.json").read_text())["recipe"]
    found = restore(tmp_path, recipe, planned.space, mean_interval)
    assert list(found.folders) == list(planned.folders)
    assert outcome.write(found).markdown() == made.markdown()


@pytest.mark.slow
def test_a_sweep_prints_its_baselines_and_tracks_them(command: Command) -> None:
    output = command.sweep("study.py", *TINY, baselines=True)
    assert "2 trials and 3 to hold them against" in output
    for name in ("chance", *NAMES):
        assert f"│ {name}" in output
    children = runs(command.storage, "study")[1]
    assert len(children) == 5
    assert {run.data.tags["mlflow.runName"] for run in children} >= {f"{name}, seed 0" for name in NAMES}
    again = command.sweep("study.py", *TINY, baselines=True)
    assert "5 of them done" in again
    assert "[1/" not in again
