"""The search, with real Optuna, over storages that are written by hand: no training."""

import random
from pathlib import Path
from typing import Any

import pytest

from clar import space
from clar.config import TrialConfig
from clar.errors import UserError
from clar.result import TrialFolder
from clar.rounds import Goal, Halving
from clar.search import Searching, best_of
from tests.handmade import finish, records

BASE = TrialConfig(epochs=4, warmup_epochs=0, loss="self_supervised", batch_size=32, augmentations=("fade",))


def suggest(trial: Any, base: TrialConfig) -> TrialConfig:
    """The temperature matters, the weight decay does not; the probability exists only with an augmentation."""
    augmented = trial.suggest_categorical("augmented", (True, False))
    return base.but(
        temperature=trial.suggest_float("temperature", 0.05, 1.0, log=True),
        weight_decay=trial.suggest_float("weight_decay", 1e-6, 1e-2, log=True),
        augmentations=("fade",) if augmented else (),
        augmentation_probability=trial.suggest_float("probability", 0.2, 1.0) if augmented else 0.5,
    )


def score(config: TrialConfig) -> float:
    return round(1 / (1 + 4 * abs(config.temperature - 0.3)), 9)


class Sweep:
    """Runs a search as a driver would, with trials that take no time and finish in any order."""

    def __init__(self, storage: Path, order: int = 0, **changes: Any) -> None:
        self.storage, self.order = storage, random.Random(order)
        settings = {"objectives": ("valid_top1",), "trials": 20, "generation": 5, **changes}
        study = space.Study(
            "study", "A search.", {}, lambda base: (), lambda trial: ("", ""), ("", ()), ("", ()),
            lambda trial: "", None, ("test_top1",), space.Search(suggest, 20, 5),
        )  # fmt: skip
        self.search = Searching(study, BASE, **settings)
        self.trained = 0

    def add(self, config: TrialConfig) -> TrialFolder:
        return TrialFolder(self.storage, config, "data")

    def run(self, rounds: int | None = None, halving: Halving | None = None, fail: bool = False) -> list[TrialConfig]:
        for number, goals in enumerate(self.search.run(self.add, 1, halving)):
            if number == rounds:
                break
            self.order.shuffle(goals)
            for goal in goals:
                if not goal.reached() and not (fail and goal.folder.config.weight_decay < 1e-4):
                    self.train(goal)
        return [candidate.folders[0].config for candidate in self.search.candidates]

    def train(self, goal: Goal) -> None:
        self.trained += 1
        config = goal.folder.config
        scores = [score(config) * epoch / config.epochs for epoch in range(1, config.epochs + 1)]
        if goal.epoch is None:
            finish(goal.folder, score(config), scores, seconds=10 * config.weight_decay)
        else:
            goal.folder.begin("0+r2")
            goal.folder.write_epochs(records(scores[: goal.epoch]))


def test_the_same_seed_searches_the_same_way_whatever_finishes_first(tmp_path: Path) -> None:
    first = Sweep(tmp_path / "a", order=1).run()
    assert len(first) == len(set(first)) == 20
    assert Sweep(tmp_path / "b", order=2).run() == first
    # Interrupted after two generations and run again: the same candidates, and only the missing ones are trained.
    interrupted = Sweep(tmp_path / "c", order=3)
    interrupted.run(rounds=2)
    again = Sweep(tmp_path / "c", order=4)
    assert again.run() == first
    assert (interrupted.trained, again.trained) == (10, 10)


def test_more_trials_go_on_with_the_same_search(tmp_path: Path) -> None:
    first = Sweep(tmp_path).run()
    more = Sweep(tmp_path, trials=30)
    assert more.run()[:20] == first
    assert more.trained == 10


def test_it_finds_what_matters(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, trials=60, generation=10)
    configs = sweep.run()
    best = best_of(sweep.search.ranked())
    assert best is not None
    assert abs(best.folders[0].config.temperature - 0.3) < 0.06
    # It learns: the last candidates are better than the first ones, which are drawn at random.
    assert sum(map(score, configs[-20:])) > sum(map(score, configs[:20]))
    importance = sweep.search.importance()
    assert set(importance) == {"augmented", "temperature", "weight_decay"}
    assert importance["temperature"] > 0.8


def test_cut_and_failed_candidates_are_told_as_such(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    halving = Halving((1, 2), 0.5)
    sweep.run(halving=halving, fail=True)
    states = {trial.number: trial.state.name for trial in sweep.search.optuna.trials}
    told = {"done": "COMPLETE", "cut": "PRUNED", "failed": "FAIL"}
    assert {one.state for one in sweep.search.candidates} == set(told)
    for one in sweep.search.candidates:
        assert (one.state == "failed") == (one.folders[0].config.weight_decay < 1e-4)
        assert states[one.number] == told[one.state]
    pruned = [trial for trial in sweep.search.optuna.trials if trial.state.name == "PRUNED"]
    assert all(trial.intermediate_values for trial in pruned)


def test_accuracy_against_cost(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, objectives=("valid_top1", "gpu_seconds"))
    sweep.run()
    # On a CPU the cost is the seconds of training.
    for one in sweep.search.candidates:
        assert one.values == [score(one.folders[0].config), 10 * one.folders[0].config.weight_decay]
    assert sweep.search.importance()["temperature"] > 0.5


@pytest.mark.parametrize(
    ("objectives", "said"),
    [
        (("valid_top",), "did you mean valid_top1"),
        (("test_top1",), "choosing by test"),
        (("valid_top1", "valid_top1"), "one, or two different ones"),
        (("valid_top1", "gpu_seconds", "train_seconds"), "one, or two different ones"),
    ],
)
def test_objectives_that_cannot_be_are_refused(tmp_path: Path, objectives: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Sweep(tmp_path, objectives=objectives)


def test_the_paper_search_asks_for_strengths_only_of_augmentations_in_use(tmp_path: Path) -> None:
    study = space.load("hyperparameters").studies[0]
    search = Searching(study, BASE.but(epochs=2), ("valid_top1",), 12, 6)
    for goals in search.run(lambda config: TrialFolder(tmp_path, config, "data"), 1, None):
        for goal in goals:
            finish(goal.folder, random.Random(goal.folder.identity).random())
    assert {len(one.folders[0].config.augmentations) for one in search.candidates} == {1, 2}
    for one in search.candidates:
        config = one.folders[0].config
        asked = {name.removeprefix("strength of ") for name in one.chosen if name.startswith("strength of ")}
        assert asked == set(config.augmentations)
        assert len(config.augmentation_strength) == len(config.augmentations)
