"""Data sets with official folds: a trial tests on one, a sweep on all of them, and tables show the mean."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from analysis import claims, load, outcome, pivot, report, results, tables
from analysis.statistics import mean_interval
from analysis.tables import Entry, Grid
from clar import space, trainer
from clar.cli import configure
from clar.clips import ClipStore
from clar.config import TrialConfig
from clar.errors import UserError
from clar.plan import DataSet, Plan, RecordedData, restore
from clar.result import TrialFolder
from clar.rounds import Halving
from clar.search import Searching
from tests.handmade import finish, records
from tests.running import TINY, Command

BASE = TrialConfig(
    dataset="folded", epochs=4, warmup_epochs=0, batch_size=16, loss="self_supervised", encoder_width=2, input="raw"
)
STUDY = '''"""Two augmentations."""

SETTINGS = {"loss": "self_supervised"}
ROWS, COLUMNS = ("augmentation", ("fade", "time_shift")), ("data set", None)


def trials(base):
    return [base.but(augmentations=(name,)) for name in ROWS[1]]


def cell(trial):
    return trial.augmentations[0], trial.dataset


def table(trial):
    return "all"


def curve(trial):
    return trial.augmentations[0]
'''


class Sweeps:
    """A storage in which sweeps over three folds are planned, and trials get their results by hand."""

    def __init__(self, folder: Path, folded: ClipStore, plain: ClipStore) -> None:
        self.folder, self.storage = folder, folder / "runs"
        self.storage.mkdir()
        self.stores: dict[str, DataSet] = {"folded": folded, "plain": plain}
        (folder / "study.py").write_text(STUDY)

    def plan(
        self, name: str = "", base: TrialConfig = BASE, datasets: tuple[str, ...] = ("folded",), **more: object
    ) -> Plan:
        chosen = space.load(name or str(self.folder / "study.py"))
        bases = {study.name: [base.but(dataset=one, **study.settings) for one in datasets] for study in chosen.studies}
        stores = {one: self.stores[one] for one in datasets}
        return Plan(chosen, bases, self.storage, stores, **{"folds": True, **more})

    def fill(self, plan: Plan, value: Callable[[TrialConfig], float | None] = lambda config: worth(config)) -> Plan:
        """Go through the rounds; a trial without a value fails."""
        for goals in plan.rounds():
            for goal in goals:
                config, epochs = goal.folder.config, goal.epoch or goal.folder.config.epochs
                test = value(config)
                scores = [(test or 0.0) * epoch / config.epochs for epoch in range(1, epochs + 1)]
                if test is None:
                    goal.folder.begin("0+r2")
                    goal.folder.write_failure("too big")
                elif goal.epoch is None:
                    finish(goal.folder, test, scores)
                else:
                    goal.folder.begin("0+r2")
                    goal.folder.write_epochs(records(scores))
        plan.record("done", "0+r2")
        return plan


def worth(config: TrialConfig) -> float:
    """Fades are worth ten points; folds differ by as many, seeds by a little."""
    luck = np.random.default_rng([config.seed, config.fold or 0, len(config.augmentations[0])]).normal(0, 0.002)
    return 0.4 + 0.1 * (config.augmentations == ("fade",)) + 0.1 * (config.fold or 0) + 0.01 * config.seed + luck


@pytest.fixture
def sweeps(tmp_path: Path, folded_store: ClipStore, tone_store: ClipStore) -> Sweeps:
    return Sweeps(tmp_path, folded_store, tone_store)


# A trial's fold


def test_no_fold_and_the_last_one_are_one_trial() -> None:
    none, last = configure("scenes:100", None, [], False), configure("scenes:100", None, ["fold=5"], False)
    assert none.fold == 5
    assert none.identity("f") == last.identity("f")
    assert configure("scenes:100", None, ["fold=2"], False).identity("f") != last.identity("f")
    assert configure("digits", None, [], False).fold is None


@pytest.mark.parametrize(
    ("dataset", "fold", "said"),
    [
        ("digits", "1", "fold = 1: digits has no folds; leave it out"),
        ("scenes:100", "6", "fold = 6: scenes:100 has folds 1 to 5"),
        ("scenes:100", "0", "fold = 0: must be greater than or equal to 1"),
    ],
)
def test_a_fold_that_there_is_not_is_refused(dataset: str, fold: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        configure(dataset, None, [f"fold={fold}"], False)
    assert str(caught.value) == said


def test_a_trial_trains_chooses_and_tests_on_the_clips_of_its_fold(folded_store: ClipStore) -> None:
    assert folded_store.folds is not None
    run = trainer.Run(BASE.but(fold=2), folded_store, torch.device("cpu"), None)
    assert set(folded_store.folds[run.train_indices]) == {1}
    for name, fold in (("train", 1), ("valid", 3), ("test", 2)):
        representations_NH, labels_N = run.split(name)
        wanted = folded_store.labels[folded_store.folds == fold]
        assert np.array_equal(labels_N.numpy(), wanted)
        assert len(representations_NH) == len(wanted)


def test_the_batch_is_held_against_the_training_clips_of_the_fold(sweeps: Sweeps) -> None:
    large = BASE.but(batch_size=64)
    sweeps.plan(base=large.but(fold=2), folds=False)
    for base, folds in ((large.but(fold=1), False), (large, True)):
        with pytest.raises(UserError, match="64 is more than the 48 training clips"):
            sweeps.plan(base=base, folds=folds)
    with pytest.raises(UserError, match="fold = 4"):
        sweeps.plan(base=BASE.but(fold=4), folds=False)
    with pytest.raises(UserError, match="fold = 1: tones has no folds"):
        sweeps.plan(base=BASE.but(fold=1), folds=False, datasets=("plain",))


# A sweep over all folds


def test_every_trial_is_planned_once_on_every_fold_of_its_data_set(sweeps: Sweeps) -> None:
    plan = sweeps.plan(datasets=("folded", "plain"), seeds=2)
    asked = [
        (one.config.dataset, one.config.augmentations[0], one.config.seed, one.config.fold) for one in plan.members
    ]
    folds = {"folded": (1, 2, 3), "plain": (None,)}
    assert sorted(asked, key=str) == sorted(
        (
            (dataset, name, seed, fold)
            for dataset, numbers in folds.items() for name in ("fade", "time_shift") for seed in (0, 1)
            for fold in numbers
        ),
        key=str,
    )  # fmt: skip
    assert plan.summary() == "16 trials on folded, plain, 0 of them done"
    assert "folded: fade, fold 2, seed 1" in plan.titles().values()
    assert "plain: fade, seed 1" in plan.titles().values()


def test_each_fold_has_a_pretraining_of_its_own(sweeps: Sweeps) -> None:
    plan = sweeps.plan("losses")
    started = {(parent.config.fold, folder.config.fold) for folder in plan.folders.values()
               if (parent := plan.parent(folder)) is not None}  # fmt: skip
    assert started == {(1, 1), (2, 2), (3, 3)}
    assert len(plan.folders) == 3 * (16 + 9)


def test_with_and_without_all_folds_a_sweep_has_two_places(sweeps: Sweeps) -> None:
    plain = BASE.but(dataset="plain")
    keys = {
        sweeps.plan().output.key,
        sweeps.plan(folds=False).output.key,
        sweeps.plan(folds=False, base=BASE.but(fold=3)).output.key,
        # A data set without folds has the same trials either way.
        sweeps.plan(base=plain, datasets=("plain",)).output.key,
        sweeps.plan(base=plain, datasets=("plain",), folds=False).output.key,
    }
    assert len(keys) == 5


def test_a_sweep_is_planned_again_from_its_recipe(sweeps: Sweeps) -> None:
    plan = sweeps.fill(sweeps.plan(datasets=("folded", "plain"), seeds=2))
    found = load.from_storage("study", sweeps.storage).plan
    assert found.folds
    assert list(found.folders) == list(plan.folders)
    assert found.output.path == plan.output.path
    assert outcome.write(found).files[0].read_bytes() == outcome.write(plan).files[0].read_bytes()
    assert plan.recipe()["data"]["folded"][2:] == [48, [48, 96, 48]]
    assert len(plan.recipe()["data"]["plain"]) == 3


def test_a_sweep_of_before_there_were_folds_is_planned_again(sweeps: Sweeps) -> None:
    plan = sweeps.plan(base=BASE.but(dataset="plain"), datasets=("plain",), folds=False)
    recipe = json.loads(json.dumps(plan.recipe()))
    del recipe["folds"]
    found = restore(sweeps.storage, recipe, plan.space, mean_interval)
    assert not found.folds
    assert list(found.folders) == list(plan.folders)


def test_a_recorded_data_set_knows_the_clips_of_its_folds() -> None:
    recorded = RecordedData(Path("elsewhere"), "f", 48, (48, 96, 48))
    assert recorded.fold_count == 3
    assert [len(recorded.split("train", fold)) for fold in (None, 1, 2, 3)] == [48, 48, 96, 48]
    with pytest.raises(UserError, match="fold = 4"):
        recorded.split("train", 4)


def test_folds_of_a_candidate_go_on_or_are_cut_together(sweeps: Sweeps) -> None:
    """On its easiest fold the weaker one is better than the other on its hardest."""
    plan = sweeps.fill(sweeps.plan(seeds=2, halving={"folded": Halving((2,), 0.5)}))
    cut = {plan.folders[identity].config for identity in plan.cut()}
    assert {config.augmentations for config in cut} == {("time_shift",)}
    assert len(cut) == 6
    (decision,) = plan.halving["folded"].decisions
    scores = [worth(config) / 2 for config in (one.config for one in plan.members) if config.augmentations == ("fade",)]
    assert decision.scores[0][1] == pytest.approx(np.mean(scores))
    # Kendall's tau goes by seeds: two of the one that ran through, each with the mean over its folds.
    out = outcome.write(plan)
    said = next(piece for piece in out.sections["early stopping"].pieces if isinstance(piece, tables.Listing))
    assert "over the 2 means over 3 folds, of trials that ran through" in said.title
    assert "6 trials were cut here" in said.title


def test_a_candidate_that_lacks_a_fold_is_not_compared_by_the_others(sweeps: Sweeps) -> None:
    """Without its hardest fold the weaker one would look better."""

    def fails(config: TrialConfig) -> float | None:
        weak = config.augmentations == ("time_shift",)
        return None if weak and config.fold == 1 else worth(config) + 0.09 * weak

    plan = sweeps.fill(sweeps.plan(halving={"folded": Halving((2,), 0.5)}), fails)
    (decision,) = plan.halving["folded"].decisions
    assert [score is None for _, score in decision.scores] == [False, True]
    assert {plan.folders[one].config.augmentations for one in decision.kept} == {("fade",)}
    assert {plan.folders[one].config.fold for one in decision.cut} == {2, 3}
    assert {plan.folders[one].config.fold for one in decision.failed} == {1}


def test_a_candidate_of_a_search_is_all_its_seeds_and_folds(sweeps: Sweeps) -> None:
    chosen = space.load("hyperparameters").studies[0]
    base = BASE.but(**chosen.settings)
    search = Searching(chosen, base, ("valid_top1",), 4, 2)
    plan = sweeps.plan("hyperparameters", searches=[search], seeds=2)
    assert plan.summary() == "a search of 24 trials on folded"
    sweeps.fill(plan, lambda config: 0.1 * config.seed + 0.2 * (config.fold or 0))
    assert [len(one.folders) for one in search.candidates] == [6] * 4
    assert search.candidates[0].values == pytest.approx([0.05 + 0.4])
    title = next(piece.title for piece in outcome.write(plan).sections["hyperparameters"].pieces
                 if isinstance(piece, tables.Listing))  # fmt: skip
    assert "By valid_top1, folded, mean over 3 folds." in title
    found = load.from_storage("hyperparameters", sweeps.storage).plan
    assert list(found.folders) == list(plan.folders)


# What is shown


def test_a_cell_is_the_mean_over_seeds_of_means_over_folds(sweeps: Sweeps) -> None:
    plan = sweeps.fill(sweeps.plan(datasets=("folded", "plain"), seeds=3))
    (_, grid, cells) = next(iter(outcome.write(plan).grids.values()))
    assert grid.title.endswith("all, mean over the folds that a data set has.")
    by_place = cells.set_index(["row", "column"])
    seeds = [
        np.mean([worth(BASE.but(augmentations=("fade",), seed=seed, fold=fold)) for fold in (1, 2, 3)])
        for seed in range(3)
    ]
    found = by_place.loc[("fade", "folded")]
    assert found[["mean", "low", "high"]].tolist() == pytest.approx(mean_interval(seeds))
    # Folds are no repeats: three seeds on three folds are three values.
    assert set(cells["n"]) == {3}
    assert len(grid.entries) == 2 * 2 * 3
    # What differs by ten points in each seed is told apart, although folds differ by as much.
    assert not cells["tied"].any()
    assert set(by_place.loc["time_shift"]["p"] < 0.05) == {True}


def test_a_seed_that_lacks_a_fold_has_no_value(sweeps: Sweeps) -> None:
    def fails(config: TrialConfig) -> float | None:
        return None if (config.augmentations, config.seed, config.fold) == (("fade",), 1, 2) else worth(config)

    plan = sweeps.fill(sweeps.plan(seeds=2), fails)
    (_, grid, cells) = next(iter(outcome.write(plan).grids.values()))
    assert cells.set_index("row")["n"].to_dict() == {"fade": 1, "time_shift": 2}
    (lacking,) = (entry for entry in grid.entries if entry.value is None)
    assert (lacking.state, lacking.seed, [fold.state for fold in lacking.folds]) == (
        "failed", 1, ["done", "failed", "done"],
    )  # fmt: skip
    # Trials are counted as trials.
    assert "1 trial failed" in tables.notes(grid, cells)


def test_the_notes_say_what_a_value_is(sweeps: Sweeps) -> None:
    plan = sweeps.fill(sweeps.plan(), lambda config: 0.3 + 0.1 * (config.fold or 0))
    (_, grid, cells) = next(iter(outcome.write(plan).grids.values()))
    assert grid.title.endswith("all, mean over 3 folds.")
    notes = tables.notes(grid, cells)
    assert any(note.startswith("each value is the mean over 3 folds; folds share training clips") for note in notes)
    # 40, 50 and 60 %: the standard deviation is 10 points, said once, and nowhere as an interval.
    assert any("from fold to fold a cell scatters by 10.0 points (standard deviation)" in note for note in notes)
    assert "±" not in tables.to_markdown(grid, cells) + " ".join(notes)
    assert cells[["low", "high"]].isna().all(axis=None)


@pytest.mark.parametrize(
    ("states", "said"),
    [
        (("done", "done"), "done"),
        (("done", "running", "missing"), "running"),
        (("running", "failed", "done"), "failed"),
        (("done", "missing"), "missing"),
        (("missing", "cut", "done"), "cut"),
    ],
)
def test_of_several_states_the_worst_is_shown(states: tuple[str, ...], said: str) -> None:
    entry = Entry.mean([Entry("r", "c", state, 0.5 if state == "done" else None, 0) for state in states])
    assert entry.state == said == tables.cells(Grid("", ("r", None), ("c", None), [entry]))["state"][0]
    assert entry.value == (0.5 if said == "done" else None)


def test_a_frame_has_a_row_a_trial_and_collapses_to_a_row_a_seed(sweeps: Sweeps) -> None:
    plan = sweeps.fill(sweeps.plan(datasets=("folded", "plain"), seeds=2))
    trials = results.frame(plan)
    assert len(trials) == 2 * 2 * (3 + 1)
    assert trials["fold"].tolist()[:4] == [1, 2, 3, 1]
    written = pd.read_csv(io.StringIO(report._as_csv(trials)), dtype=str, keep_default_na=False)
    assert (written["fold"].tolist()[:4], set(written["fold"])) == (["1", "2", "3", "1"], {"1", "2", "3", ""})
    seeds = results.over_folds(trials)
    assert list(seeds.columns) == list(trials.columns)
    assert len(seeds) == 2 * 2 * 2
    assert seeds["fold"].isna().all()
    one = trials[(trials["dataset"] == "folded") & (trials["seed"] == 1) & (trials["augmentations"] == "fade")]
    mean = seeds[(seeds["dataset"] == "folded") & (seeds["seed"] == 1) & (seeds["augmentations"] == "fade")].iloc[0]
    for metric in ("test_top1", "knn_test_top1", "train_seconds"):
        assert mean[metric] == pytest.approx(one[metric].mean())
    assert np.isnan(mean["head_test_top1"])
    assert mean["curve"] == pytest.approx({epoch: one["test_top1"].mean() * epoch / 4 for epoch in (1, 2, 3, 4)})
    pd.testing.assert_frame_equal(
        seeds[seeds["dataset"] == "plain"].reset_index(drop=True),
        trials[trials["dataset"] == "plain"].reset_index(drop=True),
    )


def test_a_frame_of_a_seed_that_lacks_a_fold(sweeps: Sweeps) -> None:
    plan = sweeps.fill(sweeps.plan(), lambda config: None if config.fold == 3 else worth(config))
    seeds = results.over_folds(results.frame(plan))
    assert set(seeds["state"]) == {"failed"}
    assert seeds["test_top1"].isna().all()
    assert seeds["curve"].tolist() == [{}, {}]


def test_claims_go_by_seeds(sweeps: Sweeps) -> None:
    plan = sweeps.fill(sweeps.plan(seeds=4))
    seeds = results.over_folds(results.frame(plan))
    better = claims.Claim("Fades are better", lambda trials: claims.versus(
        trials, {"augmentations": "fade"}, {"augmentations": "time_shift"}
    ))  # fmt: skip
    (judged,) = claims.judge([better], seeds)
    assert judged.verdict == "confirmed"
    (part,) = judged.parts
    assert (part.label, part.n, part.effect) == ("folded", 4, pytest.approx(0.1, abs=0.005))


def test_curves_are_means_over_the_folds_that_have_got_there(sweeps: Sweeps) -> None:
    plan = sweeps.plan()
    for folder in plan.folders.values():
        config = folder.config
        folder.begin("0+r2")
        # The third fold is an epoch behind.
        folder.write_epochs(records([worth(config)] * (3 if config.fold == 3 else 4)))
    out = outcome.write(plan)
    points = pd.read_csv(out.folder / "curves.csv")
    assert points[points["line"] == "fade"]["epoch"].tolist() == [1, 2, 3]
    wanted = np.mean([worth(BASE.but(augmentations=("fade",), fold=fold)) for fold in (1, 2, 3)])
    assert points[points["line"] == "fade"]["valid_top1"].tolist() == pytest.approx([wanted] * 3)


def test_a_table_of_ones_own_is_of_means_or_by_fold(sweeps: Sweeps) -> None:
    trials = results.frame(sweeps.fill(sweeps.plan(seeds=2)))
    grid, notes = pivot.grid(results.over_folds(trials), "augmentations", "dataset")
    assert set(tables.cells(grid)["n"]) == {2}
    assert notes == []
    grid, notes = pivot.grid(trials, "augmentations", "fold")
    assert grid.columns[1] == ("1", "2", "3")
    assert grid.within == "column"
    assert notes == []


def test_the_report_says_what_its_values_are(sweeps: Sweeps) -> None:
    sweeps.stores["folded"] = RecordedData(
        sweeps.folder / "elsewhere", sweeps.stores["folded"].fingerprint, 48, (48, 96, 48)
    )
    plan = sweeps.fill(sweeps.plan(seeds=3))
    found = load.from_storage("study", sweeps.storage)
    out = outcome.write(found.plan, found.live)
    options = report.Options(pivot=("augmentations", "dataset", "test_top1"))
    html = report.extend(found, out, options).path.read_text()
    assert "Each value is the mean over the 3 folds of folded: a trial a fold." in html
    assert "18 of 18 done" in html
    assert html.count("each value is the mean over 3 folds; folds share training clips") == 2
    # One row a trial, and all of them in the costs.
    written = pd.read_csv(out.folder / "report/trials.csv")
    assert written["fold"].tolist() == [1, 2, 3] * 6
    assert dict(zip(*(pd.read_csv(out.folder / "report/costs.csv")[name] for name in ("what", "how much")),
                    strict=True))["trials"] == "18"  # fmt: skip
    # The best run is that of the best mean, and its map that of a fold.
    best = report._best(plan, results.over_folds(results.frame(plan)))
    assert best is not None
    assert best.config.augmentations == ("fade",)
    # By fold, where the user asks for it.
    options = report.Options(pivot=("augmentations", "fold", "test_top1"))
    out = outcome.write(found.plan, found.live)
    report.extend(found, out, options)
    assert (out.folder / "report/augmentations-by-fold-test_top1.csv").read_text().count("\n") == 1 + 2 * 3


# As a user runs it


@pytest.mark.slow
def test_the_table_of_a_sweep_over_all_folds_is_the_mean_of_their_trials(command: Command) -> None:
    tiny = [{"digits:120": "scenes:100", "epochs=2": "epochs=1"}.get(argument, argument) for argument in TINY]
    planned = command.sweep("study.py", *tiny, "--folds", "--dry-run")
    assert "2 trials, without seeds and folds" in planned or "10 trials on scenes:100, 0 of them done" in planned
    output = command.sweep("study.py", *tiny, "--folds", report=True)
    assert "[10/10]" in output
    trials: dict[str, dict[int | None, float]] = {}
    for path in (command.storage / "trials").iterdir():
        config = TrialFolder.open(command.storage, path.name).config
        test = json.loads((path / "result.json").read_text())["test_top1"]
        trials.setdefault(config.augmentations[0], {})[config.fold] = test
    assert {name: sorted(folds) for name, folds in trials.items()} == {
        name: [1, 2, 3, 4, 5] for name in ("fade", "time_shift")
    }
    (path,) = command.storage.glob("sweeps/study-*/table.csv")
    cells = pd.read_csv(path).set_index("row")
    for name, folds in trials.items():
        assert cells.loc[name, "mean"] == pytest.approx(np.mean(list(folds.values())))
        assert re.search(rf"│ {name} +│ +{100 * np.mean(list(folds.values())):.1f}", output)
    assert set(cells["n"]) == {1}
    assert "mean over 5 folds" in output
    # Without --folds the last of them is found done, and so is it by its number.
    for more in ([], ["--set", "fold=5"]):
        assert "2 trials on scenes:100, 2 of them done" in command.sweep("study.py", *tiny, *more, "--dry-run")
