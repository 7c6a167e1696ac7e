"""How a sweep goes from round to round: halving, more seeds where they matter. A search's rounds are in `clar.search`.

A round is a list of goals that are reached side by side, in any order; what the next round asks for is decided from
what the storage then holds, and from nothing else. So a driver that starts over after any interruption runs through the
same rounds, finds their goals reached, and goes on where the last one stopped: no state of its own can be lost.
"""

import math
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import asdict, dataclass, field
from statistics import mean
from typing import Any

from clar.baselines import Labels
from clar.config import TrialConfig
from clar.errors import UserError
from clar.result import TrialFolder


@dataclass(frozen=True)
class Goal:
    """A trial, and the epoch up to which it is to be trained; None: to its result."""

    folder: TrialFolder
    epoch: int | None = None

    def reached(self) -> bool:
        """Whether the storage says so."""
        if self.folder.result() is not None:
            return True
        return self.epoch is not None and len(self.folder.epochs()) >= self.epoch


Rounds = Iterator[list[Goal]]


@dataclass
class Halving:
    """Successive halving, synchronous by rung: all candidates up to a rung's epoch, the best share of them goes on.

    A candidate is a configuration with all its seeds and folds: cut one by one, only the lucky seeds, and the easy
    folds, would be left. Compared are candidates of one data set and one label fraction, by the mean of the linear
    probe's accuracy on valid; ties go to the lower identity. Trials that start from another's encoder are not compared:
    they go on if the one that they start from does.

    Attributes:
        rungs: epochs at which to compare.
        keep: the share that goes on, rounded up.
        decisions: what was decided up to now.
    """

    rungs: tuple[int, ...]
    keep: float
    decisions: list["Decision"] = field(default_factory=list)

    @classmethod
    def of(cls, config: TrialConfig, rungs: tuple[int, ...], keep: float) -> "Halving":
        """Rungs for trials like this one: those given, else a quarter and half of its epochs.

        Raises:
            UserError: there is no epoch for a rung, or no probe at one.
        """
        step, last = config.probe_every, config.epochs
        if not 0 < keep < 1:
            raise UserError(f"--keep {keep:g}: the share of trials that goes on at a rung, between 0 and 1")
        if not rungs:
            rungs = tuple(sorted({round(last / part / step) * step for part in (4, 2)} - {0, last}))
            if not rungs:
                raise UserError(
                    f"--halving: epochs = {last} with probe_every = {step} leaves no epoch for a rung; "
                    f"raise epochs, or --set probe_every=1"
                )
        for rung in rungs:
            if not 0 < rung < last:
                raise UserError(f"--rungs {rung}: a rung lies between epoch 1 and {last - 1} of {last}")
            if rung % step:
                raise UserError(f"--rungs {rung}: no probe there, with probe_every = {step}; --set probe_every=1")
        if list(rungs) != sorted(set(rungs)):
            raise UserError(f"--rungs {','.join(map(str, rungs))}: must rise")
        return cls(rungs, keep)

    def run(self, folders: Sequence[TrialFolder]) -> Rounds:
        """The rounds of these trials; `decisions` grows with them."""
        # What an earlier call decided stays so, should a search propose it again.
        settled = {one for decision in self.decisions for one in (*decision.kept, *decision.cut, *decision.failed)}
        compared = [
            folder for folder in folders if folder.config.pretraining() is None and folder.identity not in settled
        ]
        for rung in self.rungs:
            running = [folder for folder in compared if folder.config.epochs > rung]
            if not running:
                break
            yield [Goal(folder, rung) for folder in running]
            decided = [Decision.at(rung, group, self.keep) for group in _groups(running)]
            self.decisions.extend(decided)
            out = {identity for decision in decided for identity in (*decision.cut, *decision.failed)}
            compared = [folder for folder in compared if folder.identity not in out]
        out = {identity for decision in self.decisions for identity in decision.failed} | self.cut(folders)
        yield [Goal(folder) for folder in folders if folder.identity not in out]

    def cut(self, folders: Sequence[TrialFolder]) -> set[str]:
        """Identities of the trials, of these, that were cut up to now."""
        cut = {identity for decision in self.decisions for identity in decision.cut}
        for folder in folders:
            parent = folder.pretraining()
            if parent is not None and parent.identity in cut:
                cut.add(folder.identity)
        return cut

    def record(self) -> dict[str, Any]:
        """What was decided, as JSON values."""
        return {"rungs": self.rungs, "keep": self.keep, "decisions": [asdict(decision) for decision in self.decisions]}


@dataclass(frozen=True)
class Decision:
    """What one rung decided about one group of candidates.

    `scores` has a candidate's mean by the identities of its trials, best first, None where there is none, see
    `mean_at`: then what it has trained is cut. `kept`, `cut` and `failed` are identities of trials; failed are those
    without a score.
    """

    rung: int
    group: str
    scores: list[tuple[list[str], float | None]]
    kept: list[str]
    cut: list[str]
    failed: list[str]

    def __str__(self) -> str:
        return f"rung at epoch {self.rung} ({self.group}): {len(self.kept)} trials go on, {len(self.cut)} are cut" + (
            f", {len(self.failed)} failed" if self.failed else ""
        )

    @classmethod
    def at(cls, rung: int, group: "tuple[str, list[TrialFolder]]", keep: float) -> "Decision":
        """Compare what the storage holds."""
        name, folders = group
        candidates: dict[TrialConfig, list[TrialFolder]] = {}
        for folder in folders:
            candidates.setdefault(folder.config.but(seed=0, fold=None), []).append(folder)
        folds = {folder.config.fold for folder in folders}
        scores = [
            (sorted(folder.identity for folder in members), mean_at(rung, members, folds))
            for members in candidates.values()
        ]
        scores.sort(key=lambda entry: (entry[1] is None, -(entry[1] or 0.0), entry[0]))
        going_on = max(1, math.ceil(round(keep * len(scores), 9)))
        failed = [folder.identity for folder in folders if score_at(rung, folder) is None]
        going_on = min(going_on, sum(score is not None for _, score in scores))
        kept, cut = (
            [identity for members, _ in part for identity in members if identity not in failed]
            for part in (scores[:going_on], scores[going_on:])
        )
        return cls(rung, name, scores, kept, cut, failed)


def group_of(config: TrialConfig) -> str:
    """What a trial can be compared within: accuracies on other data, or with other labels, say something else."""
    return f"{config.dataset}, {Labels.of(config)}"


def _groups(folders: Sequence[TrialFolder]) -> list[tuple[str, list[TrialFolder]]]:
    groups: dict[str, list[TrialFolder]] = {}
    for folder in folders:
        groups.setdefault(group_of(folder.config), []).append(folder)
    return list(groups.items())


def score_at(rung: int, folder: TrialFolder) -> float | None:
    """The probe's accuracy on valid at an epoch; None where the trial did not get there."""
    epochs = folder.epochs()
    return epochs[rung - 1].valid_top1 if len(epochs) >= rung else None


def mean_at(rung: int, folders: Sequence[TrialFolder], folds: Set[int | None]) -> float | None:
    """A candidate's accuracy on valid at an epoch: the mean over the seeds that got there on each of these folds.

    A seed that lacks a fold would be judged by the easier ones, or by the harder. None where there is no other.
    """
    seeds: dict[int, dict[int | None, float]] = {}
    for folder in folders:
        if (score := score_at(rung, folder)) is not None:
            seeds.setdefault(folder.config.seed, {})[folder.config.fold] = score
    whole = [mean(of_fold.values()) for of_fold in seeds.values() if of_fold.keys() >= folds]
    return mean(whole) if whole else None


@dataclass(frozen=True)
class Budget:
    """When adding seeds ends at the latest: trials in all, or GPU-hours (on a CPU, trial-hours) in all."""

    trials: int | None = None
    hours: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """`200`: trials. `12h`: hours.

        Raises:
            UserError: it is neither.
        """
        number = text.strip().removesuffix("h")
        try:
            value = float(number) if text.strip().endswith("h") else int(number)
        except ValueError:
            value = -1
        if not 0 < value < math.inf:
            raise UserError(f"--budget {text}: a number of trials, such as 200, or of GPU-hours, such as 12h")
        return cls(hours=value) if text.strip().endswith("h") else cls(trials=int(value))

    def __str__(self) -> str:
        return f"{self.hours:g} h" if self.trials is None else f"{self.trials} trials"

    def left(self, folders: Sequence[TrialFolder]) -> int:
        """How many more trials may be added to these; a budget of hours counts what they took."""
        if self.trials is not None:
            return max(0, self.trials - len(folders))
        seconds = 0.0
        for folder in folders:
            if (result := folder.result()) is not None:
                seconds += result.gpu_seconds or result.train_seconds
        each = seconds / len(folders) if folders else 0.0
        room = (self.hours or 0.0) * 3600 - seconds
        return max(0, int(room / each)) if each else 0


Interval = Callable[[Sequence[float]], tuple[float, float, float]]
"""Mean, lower and upper bound, from the values over the seeds."""


@dataclass
class Precision:
    """Seeds where they matter: one more for the best cell and for each whose interval still overlaps the best one's.

    The intervals are those of the table, 95 % over the seeds. They are looked at after each round, and the rounds stop
    when they look right: read closely separated cells with that in mind.

    Attributes:
        points: half-width of an interval, percentage points, below which it is narrow enough.
        budget: where to stop at the latest.
        interval: how sure a cell is.
        reasons: why it stopped, by table.
    """

    points: float
    budget: Budget | None
    interval: Interval
    reasons: dict[str, str] = field(default_factory=dict)

    def run(
        self,
        tables: dict[str, dict[str, list[TrialFolder]]],
        add: Callable[[TrialConfig], TrialFolder],
        planned: Callable[[], Sequence[TrialFolder]],
        metric: str = "test_top1",
    ) -> Rounds:
        """Rounds of more seeds.

        Args:
            tables: by name of the table, the trials of each of its cells; the first round's are done.
            add: plans one more trial, and gives its folder.
            planned: all trials planned up to now, for the budget.
            metric: what the table shows.
        """
        tables = {name: {cell: list(members) for cell, members in cells.items()} for name, cells in tables.items()}
        while True:
            wanted: list[tuple[str, str]] = []
            for name, cells in tables.items():
                if name not in self.reasons:
                    wanted += [(name, cell) for cell in self._undecided(name, cells, metric)]
            if not wanted:
                return
            left = self.budget.left(planned()) if self.budget else len(wanted)
            if left == 0:
                for name, _ in wanted:
                    self.reasons[name] = f"the budget of {self.budget} is spent"
                return
            goals = []
            for name, cell in wanted[:left]:
                members = tables[name][cell]
                first = members[0].config
                folder = add(first.but(seed=max(member.config.seed for member in members) + 1))
                members.append(folder)
                goals.append(Goal(folder))
            yield goals

    def _undecided(self, name: str, cells: dict[str, list[TrialFolder]], metric: str) -> list[str]:
        """The cells that need one more seed, the best first; where there is none, the reason is set."""
        known: dict[str, tuple[float, float, float]] = {}
        for cell, members in cells.items():
            results = [result for member in members if (result := member.result()) is not None]
            values = [value for result in results if (value := getattr(result, metric)) is not None]
            # A cell with a trial that keeps failing gets no more of them.
            if values and len(values) == len(members):
                known[cell] = self.interval(values)
        if len(known) < 2:
            self.reasons[name] = "there are not two cells to compare"
            return []
        best = max(known, key=lambda cell: known[cell][0])
        # No interval from one seed: nothing is separated from anything.
        rivals = [cell for cell in known if cell != best and not known[cell][2] < known[best][1]]
        if not rivals:
            self.reasons[name] = f"{best} is the best, separated from all others"
            return []
        close = [best, *sorted(rivals, key=lambda cell: -known[cell][0])]
        wide = [cell for cell in close if not (known[cell][2] - known[cell][1]) / 2 <= self.points / 100]
        if not wide:
            self.reasons[name] = (
                f"{best} and the {len(rivals)} that cannot be told from it are known to ± {self.points:g} points"
            )
            return []
        return wide
