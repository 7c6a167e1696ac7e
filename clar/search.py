"""A search over hyperparameters: Optuna chooses, a generation at a time; the storage remembers.

Optuna's study lives in memory and is made anew by every run of the command: asked for fixed generations, told their
results in order of identity, with a seeded sampler, it chooses the same trials again, whatever finished first, and
finds them done.
"""

import logging
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from clar.config import TrialConfig
from clar.errors import UserError, near
from clar.result import TrialFolder, TrialResult
from clar.rounds import Goal, Halving, Rounds, mean_at
from clar.space import METRICS, Study

COSTS = ("gpu_seconds", "train_seconds")
"""What an objective can be besides the accuracies, to be made small."""


@dataclass
class Candidate:
    """One configuration that was tried: what Optuna chose, its trials (one a seed and fold), and what it is worth.

    `values` are those of the objectives, None where a trial failed or was cut; `state` is done, cut or failed.
    """

    number: int
    chosen: dict[str, Any]
    folders: list[TrialFolder]
    values: list[float] | None = None
    state: str = "missing"


@dataclass
class Searching:
    """One search on one data set.

    Attributes:
        study: whose `search` says what may be chosen.
        base: what the trials have in common; its seed is the sampler's, too.
        objectives: names of one or two numbers of a result: accuracies are made large, seconds small.
        trials: candidates in all.
        generation: candidates that are chosen at a time.
        chosen: fields that the user set.
        candidates: those up to now, in order of choice.
    """

    study: Study
    base: TrialConfig
    objectives: tuple[str, ...]
    trials: int
    generation: int
    chosen: tuple[str, ...] = ()
    candidates: list[Candidate] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in self.objectives:
            if name not in METRICS + COSTS:
                raise UserError(f"--objectives {name}: no number of a result{near(name, METRICS + COSTS)}")
            if "test_" in name:
                raise UserError(
                    f"--objectives {name}: choosing by test would leave nothing to test with; use valid_top1"
                )
        if not 1 <= len(self.objectives) <= 2 or len(set(self.objectives)) != len(self.objectives):
            raise UserError(f"--objectives {','.join(self.objectives)}: one, or two different ones")

    def run(
        self, add: Callable[[TrialConfig], TrialFolder], seeds: int, halving: Halving | None, folds: int = 0
    ) -> Rounds:
        """The rounds: one a generation, or with halving one a rung and generation.

        Args:
            add: plans one more trial, and gives its folder.
            seeds: trials of each candidate.
            halving: stops the weaker candidates of each generation early.
            folds: that each seed is tested on in turn; 0: on the base's own alone.
        """
        optuna = _optuna()
        self.optuna = optuna.create_study(
            sampler=optuna.samplers.TPESampler(
                seed=self.base.seed % 2**32, multivariate=True, group=True, n_startup_trials=self.generation
            ),
            directions=["minimize" if name in COSTS else "maximize" for name in self.objectives],
        )
        while len(self.candidates) < self.trials:
            numbers = range(len(self.candidates), min(len(self.candidates) + self.generation, self.trials))
            trials = [self.optuna.ask() for _ in numbers]
            asked = [
                (trial, self._candidate(trial, number, add, seeds, folds))
                for trial, number in zip(trials, numbers, strict=True)
            ]
            self.candidates += [candidate for _, candidate in asked]
            folders = list({folder.identity: folder for _, one in asked for folder in one.folders}.values())
            if halving and any(folder.config.pretraining() for folder in folders):
                raise UserError(
                    f"--halving: {self.study.name} searches trials that start from another's encoder; leave it out"
                )
            if halving:
                yield from halving.run(folders)
            else:
                yield [Goal(folder) for folder in folders]
            asked.sort(key=lambda pair: (pair[1].folders[0].identity, pair[1].number))
            for trial, candidate in asked:
                self._judge(candidate, halving.cut(candidate.folders) if halving else set())
                self._tell(trial, candidate, halving)

    def rehearse(self) -> TrialConfig:
        """One configuration drawn at random: what is wrong with the study's file shows before anything runs."""
        optuna = _optuna()
        trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
        return self._suggest(trial)

    def _suggest(self, trial: Any) -> TrialConfig:
        assert self.study.search is not None
        config = self.study.call("suggest", self.study.search.suggest, trial, self.base)
        self.study.check([config], self.base, set(self.chosen) - set(self.study.search.around))
        return config

    def _candidate(
        self, trial: Any, number: int, add: Callable[[TrialConfig], TrialFolder], seeds: int, folds: int
    ) -> Candidate:
        config = self._suggest(trial)
        repeats = [config.but(seed=self.base.seed + repeat) for repeat in range(seeds)]
        folders = [add(one) for repeat in repeats for one in repeat.on_folds(folds)]
        return Candidate(number, dict(trial.params), folders)

    def _judge(self, candidate: Candidate, cut: set[str]) -> None:
        """Say what has become of a candidate."""
        results = [folder.result() for folder in candidate.folders]
        if any(folder.identity in cut for folder in candidate.folders):
            candidate.state = "cut"
        elif any(result is None for result in results):
            candidate.state = "failed"
        else:
            candidate.state = "done"
            candidate.values = [
                mean(objective(name, result) for result in results if result) for name in self.objectives
            ]

    def _tell(self, trial: Any, candidate: Candidate, halving: Halving | None) -> None:
        state = _optuna().trial.TrialState
        if candidate.values is not None and all(map(math.isfinite, candidate.values)):
            self.optuna.tell(trial, candidate.values)
        elif candidate.state == "cut" and halving and len(self.objectives) == 1:
            # Told as pruned, with the score of the last rung: as complete, its low score would look like a bad result.
            folds = {folder.config.fold for folder in candidate.folders}
            for rung in halving.rungs:
                if (score := mean_at(rung, candidate.folders, folds)) is not None:
                    trial.report(score, rung)
            self.optuna.tell(trial, state=state.PRUNED)
        else:
            # Optuna knows no pruning with two objectives, and a trial without an end would stay "running" for ever.
            self.optuna.tell(trial, state=state.FAIL)

    def importance(self) -> dict[str, float]:
        """How much of the first objective's variance each choice explains, by fANOVA; shares of those shown.

        Only of choices that every candidate has; empty where fewer than four candidates ran through or all are equal.
        """
        optuna = _optuna()
        complete = [candidate for candidate in self.candidates if candidate.values is not None]
        if len(complete) < 4 or len({candidate.values[0] for candidate in complete if candidate.values}) < 2:
            return {}
        target = None if len(self.objectives) == 1 else _first_value
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=self.base.seed % 2**32)
        return dict(optuna.importance.get_param_importances(self.optuna, evaluator=evaluator, target=target))

    def ranked(self) -> list[Candidate]:
        """The candidates, best by the first objective first; then those without a value, in order of choice."""
        sign = 1 if self.objectives[0] in COSTS else -1
        return sorted(
            self.candidates,
            key=lambda one: (one.values is None, sign * one.values[0] if one.values else 0.0, one.folders[0].identity),
        )


def objective(name: str, result: TrialResult) -> float:
    """A number of a result. On a CPU, which has no GPU-seconds, the cost is seconds."""
    value = getattr(result, name)
    if name == "gpu_seconds" and not value:
        return result.train_seconds
    return math.nan if value is None else value


def _first_value(trial: Any) -> float:
    return trial.values[0]


def best_of(candidates: Sequence[Candidate]) -> Candidate | None:
    """The first that ran through."""
    return next((candidate for candidate in candidates if candidate.values is not None), None)


def _optuna() -> Any:
    """Optuna, imported when it is needed and quiet: it prints each trial, and warns of options as experimental."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("optuna").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna
