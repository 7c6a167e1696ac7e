"""What a sweep plans and finds done, over storages that are written by hand: no training."""

from pathlib import Path

import pytest

from analysis import outcome
from analysis.statistics import mean_interval
from clar import space
from clar.clips import ClipStore
from clar.config import RESULTS_VERSION, TrialConfig
from clar.errors import UserError
from clar.plan import Plan
from clar.result import TrialFolder
from clar.rounds import Precision
from clar.space import Space, Study
from tests.handmade import finish

BASE = TrialConfig(epochs=2, warmup_epochs=0, batch_size=16)


def study(trials, name: str = "study", **changes) -> Study:
    parts = {
        "name": name,
        "summary": "A study.",
        "settings": {},
        "trials": trials,
        "cell": lambda trial: (trial.loss, "all"),
        "rows": ("loss", None),
        "columns": ("all", ("all",)),
        "table": lambda trial: trial.dataset,
        "curve": None,
        "metrics": ("test_top1",),
        **changes,
    }
    return Study(**parts)


def plan(storage: Path, store: ClipStore, *studies: Study, datasets: tuple[str, ...] = ("digits",), **changes) -> Plan:
    bases = {one.name: [BASE.but(dataset=name) for name in datasets] for one in studies}
    return Plan(Space("sweep", "A sweep.", studies), bases, storage, dict.fromkeys(datasets, store), **changes)


def test_the_paper_trains_what_its_studies_share_once(tmp_path: Path, tone_store: ClipStore) -> None:
    paper = space.load("paper")
    bases = {one.name: [BASE.but(**one.settings)] for one in paper.studies}
    planned = Plan(paper, bases, tmp_path, {"digits": tone_store})
    assert sum(len(one.plan(bases[one.name][0], 1)) for one in paper.studies) == 49 + 6 + 32
    assert len(planned.folders) == 76
    assert not planned.support
    # What others start from comes first.
    (goals,) = planned.rounds()
    needed = {parent.identity for goal in goals if (parent := planned.parent(goal.folder))}
    assert {goal.folder.identity for goal in goals[: len(needed)]} == needed
    assert len(needed) == 1 + 3 * 3


def test_a_pretraining_that_is_in_no_table_is_planned_too(tmp_path: Path, tone_store: ClipStore) -> None:
    tuned = study(lambda base: [base.but(loss="finetune", label_fraction=f) for f in (1.0, 0.5, 0.1)])
    planned = plan(tmp_path, tone_store, tuned)
    assert "3 trials and 1 pre-trainings" in planned.summary()
    (goals,) = planned.rounds()
    assert [goal.folder.config.loss for goal in goals] == ["self_supervised", "finetune", "finetune", "finetune"]


def test_one_trial_is_no_second_seed_of_itself(tmp_path: Path, tone_store: ClipStore) -> None:
    """A supervised trial has no temperature: three of them are one."""
    same = study(lambda base: [base.but(loss="supervised", temperature=t) for t in (0.1, 0.2, 0.3)])
    planned = plan(tmp_path, tone_store, same)
    assert len(planned.folders) == 1
    for folder in planned.folders.values():
        finish(folder, 0.5)
    outcome.write(planned)
    assert (planned.output.path / "table.csv").read_text().splitlines()[1].endswith(",1,done,,True,False")


def test_seeds_are_compared_within_a_data_set(tmp_path: Path, tone_store: ClipStore) -> None:
    """What is easy on one data set says nothing about the other."""
    across = study(
        lambda base: [base.but(input=name) for name in ("raw", "spectrogram")],
        cell=lambda trial: (trial.input, trial.dataset), columns=("data set", None), table=lambda trial: "all",
    )  # fmt: skip
    precision = Precision(0.1, None, mean_interval)
    planned = plan(tmp_path, tone_store, across, datasets=("digits", "digits:200"), seeds=2, precision=precision)
    found = {("digits", "raw"): 0.9, ("digits", "spectrogram"): 0.95, ("digits:200", "raw"): 0.4}
    added = 0
    for number, goals in enumerate(planned.rounds()):
        added += len(goals) if number else 0
        for goal in goals:
            config = goal.folder.config
            finish(goal.folder, found.get((config.dataset, config.input), 0.43) + 0.02 * (config.seed % 2))
    assert len(precision.reasons) == 2
    assert all("separated from all others" in reason for reason in precision.reasons.values())
    assert added > 0


def test_an_older_pretraining_is_taken_where_that_is_asked_for(tmp_path: Path, tone_store: ClipStore) -> None:
    tuned = study(lambda base: [base.but(loss="finetune")])
    pretraining = BASE.but(loss="finetune").pretraining()
    assert pretraining is not None
    older = TrialFolder(tmp_path, pretraining, tone_store.fingerprint, version=RESULTS_VERSION - 1)
    finish(older, 0.5)
    planned = plan(tmp_path, tone_store, tuned, accepted=(RESULTS_VERSION - 1,))
    (folder,) = (one for one in planned.folders.values() if one.config.loss == "finetune")
    parent = planned.parent(folder)
    assert parent is not None
    assert parent.identity == older.identity
    assert planned.open() == [folder]


def test_two_files_of_one_name_keep_apart(tmp_path: Path, tone_store: ClipStore) -> None:
    text = '''"""A study."""
ROWS, COLUMNS = ("a", ("a",)), ("b", ("b",))
def trials(base): return [base]
def cell(trial): return "a", "b"
'''
    keys = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "study.py").write_text(text)
        chosen = space.load(str(tmp_path / name / "study.py"))
        keys.add(Plan(chosen, {"study": [BASE]}, tmp_path, {"digits": tone_store}).output.key)
    assert len(keys) == 2


def test_a_batch_larger_than_the_training_set_is_refused(tmp_path: Path, tone_store: ClipStore) -> None:
    with pytest.raises(UserError, match="batch_size = 4096"):
        plan(tmp_path, tone_store, study(lambda base: [base.but(batch_size=4096)]))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("STUDIES = ()", "STUDIES must be names of studies"),
        ('STUDIES = ("inputs", "inputs")', "STUDIES brings 'inputs' twice"),
        ("STUDIES = (__file__,)", "which is itself"),
        ('SETTINGS = {"dataset": "digits"}\n', "SETTINGS cannot have 'dataset'"),
        ('SETTINGS = {"tempratur": 1}\n', "did you mean temperature"),
        ("SETTINGS = [1]\n", "SETTINGS must be fields and values"),
        ('METRICS = ("top1",)\n', "METRICS has 'top1'"),
        ('ROWS = "loss"\n', "ROWS must be"),
        ("def trials(base): return [nothing]\n", "trials fails with NameError"),
        ("def trials(base): return []\n", "gives none"),
        ("def trials(base): return [1]\n", "which is no TrialConfig"),
        ('def cell(trial): return "a"\n', "must give two texts"),
        ("def table(trial): return trial.nothing\n", "table fails with AttributeError"),
        ("def curve(trial): return 1 / 0\n", "curve fails with ZeroDivisionError"),
    ],
)
def test_a_mistake_in_a_study_is_said_in_one_line_before_anything_is_trained(
    tmp_path: Path, text: str, said: str
) -> None:
    good = '''"""A study."""
ROWS, COLUMNS = ("a", ("a",)), ("b", ("b",))
def trials(base): return [base]
def cell(trial): return "a", "b"
'''
    (tmp_path / "study.py").write_text(text if "STUDIES" in text else good + text)

    def read() -> None:
        for one in space.load(str(tmp_path / "study.py")).studies:
            one.plan(BASE, 1)

    with pytest.raises(UserError, match=said) as caught:
        read()
    assert "\n" not in str(caught.value)


def test_a_trial_in_two_columns_is_known_by_the_first(tmp_path: Path, tone_store: ClipStore) -> None:
    losses = space.load("losses")
    planned = Plan(losses, {"losses": [BASE]}, tmp_path, {"digits": tone_store})
    axes = planned.axes()
    for identity, folder in planned.folders.items():
        assert axes[identity]["labels seen"] == f"{100 * folder.config.label_fraction:g} %"


def test_unions_hand_on_what_runs_on_the_first_data_set_alone(tmp_path: Path) -> None:
    (tmp_path / "all.py").write_text('"""All."""\nSTUDIES = ("paper", "channels")\n')
    assert space.load(str(tmp_path / "all.py")).first_only == ("augmentations",)
    (tmp_path / "text.py").write_text('"""All."""\nSTUDIES = ("inputs",)\nFIRST_ONLY = "inputs"\n')
    with pytest.raises(UserError, match=r"FIRST_ONLY must be names of studies"):
        space.load(str(tmp_path / "text.py"))
    (tmp_path / "near.py").write_text('"""All."""\nSTUDIES = ("inputs",)\nFIRST_ONLY = ("input",)\n')
    with pytest.raises(UserError, match="FIRST_ONLY has 'input', which is none of its studies; did you mean inputs"):
        space.load(str(tmp_path / "near.py"))
