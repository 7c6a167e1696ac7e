"""What a sweep is to train: its studies over its data sets, their trials in the storage, and how they go in rounds."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sized
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from clar.baselines import Labels
from clar.config import RESULTS_VERSION, TrialConfig
from clar.errors import UserError
from clar.files import at_once
from clar.result import SweepFolder, TrialFolder, TrialResult
from clar.rounds import Budget, Goal, Halving, Interval, Precision, Rounds, group_of
from clar.search import Searching
from clar.space import Space, Study

_KEPT = ("clock", "wall_seconds", "tracking_uri")


class DataSet(Protocol):
    """What a plan asks of a data set; a `ClipStore` is one."""

    @property
    def path(self) -> Path: ...  # noqa: D102

    @property
    def fingerprint(self) -> str: ...  # noqa: D102

    @property
    def fold_count(self) -> int: ...  # noqa: D102

    def split(self, name: str, fold: int | None = None, /) -> Sized: ...  # noqa: D102


class RecordedData(NamedTuple):
    """A data set as a sweep has recorded it: to look at results, the clips themselves need not be there.

    `training_clips` are those of its own split, `of_folds` those of the folds in turn, where it has some.
    """

    path: Path
    fingerprint: str
    training_clips: int
    of_folds: tuple[int, ...] = ()

    @property
    def fold_count(self) -> int:
        """How many folds it has; 0: none."""
        return len(self.of_folds)

    def split(self, name: str, fold: int | None = None, /) -> Sized:
        """As many indices as the training split has; no other was recorded.

        Raises:
            UserError: there is no such fold.
        """
        if fold is not None and not 1 <= fold <= self.fold_count:
            raise UserError(f"fold = {fold}: there are {self.fold_count} folds")
        return range({"train": self.training_clips if fold is None else self.of_folds[fold - 1]}[name])


class Member(NamedTuple):
    """A trial as one study sees it: in the study's own words, and in the storage."""

    study: Study
    base: TrialConfig
    config: TrialConfig
    folder: TrialFolder


class Beside(NamedTuple):
    """A trial that stands below the tables of a study, and how it is called there."""

    study: Study
    name: str
    config: TrialConfig
    folder: TrialFolder


@dataclass
class Plan:
    """A sweep's trials; searches and more seeds add to them as it goes.

    Attributes:
        space: the sweep.
        bases: what the trials of each study have in common, one a data set.
        storage: the storage's folder.
        stores: the data sets by name.
        seeds: repeats of each trial, to begin with.
        chosen: fields that the user set.
        accepted: older results versions whose results count as done.
        halving: how to stop trials early, by data set.
        searches: the searches, one a study and data set.
        precision: how to add seeds; None: not at all.
        folds: whether each trial is tested on all folds of its data set in turn, where that has some.
        baselines: whether there are trials to hold the tables against: baselines, and the studies' own references.
    """

    space: Space
    bases: dict[str, list[TrialConfig]]
    storage: Path
    stores: Mapping[str, DataSet]
    seeds: int = 1
    chosen: tuple[str, ...] = ()
    accepted: tuple[int, ...] = ()
    halving: dict[str, Halving] = field(default_factory=dict)
    searches: list[Searching] = field(default_factory=list)
    precision: Precision | None = None
    folds: bool = False
    baselines: bool = False
    members: list[Member] = field(default_factory=list)
    folders: dict[str, TrialFolder] = field(default_factory=dict)
    support: set[str] = field(default_factory=set)
    beside: list[Beside] = field(default_factory=list)
    apart: set[str] = field(default_factory=set)
    """Identities of the trials that are there for `beside` alone."""
    frozen: bool = False
    """Whether a trial that had no result when it was asked for has none for good: what is made of the plan agrees with
    itself while trials go on."""
    _results: dict[str, TrialResult | None] = field(default_factory=dict)
    _titles: dict[str, str] = field(default_factory=dict)
    _training_clips: dict[tuple[str, int | None], int] = field(default_factory=dict)
    _index: dict[tuple[str, TrialConfig], list[Member]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for study in self.space.studies:
            for base in self.bases[study.name]:
                planned = study.plan(base, self.seeds, self.chosen)
                for config in planned:
                    for one in config.on_folds(self.folds_of(base.dataset)):
                        self.add(study, base, one)
                if self.baselines:
                    self._add_beside(study, base, planned or [base])
        for search in self.searches:
            for one in search.rehearse().on_folds(self.folds_of(search.base.dataset)):
                one.check_batch(self.training_clips(one))

    def _add_beside(self, study: Study, base: TrialConfig, planned: list[TrialConfig]) -> None:
        """Plan what stands below the tables of a study on one data set."""
        known: set[tuple[Labels, str]] = set()
        for config, name in study.beside(base, planned).items():
            for seed in range(base.seed, base.seed + self.seeds):
                for one in config.but(seed=seed).on_folds(self.folds_of(base.dataset)):
                    folder = self._folder(one)
                    key = Labels.of(one), folder.identity
                    if key not in known:  # statistics of all labels know no seed
                        known.add(key)
                        self._need_parents(one, self.apart)
                        self._need(folder, self.apart)
                        self.beside.append(Beside(study, name, one, folder))

    def folds_of(self, dataset: str) -> int:
        """How many folds each trial on a data set is tested on in turn; 0: on its own alone."""
        return self.stores[dataset].fold_count if self.folds else 0

    def training_clips(self, config: TrialConfig) -> int:
        """How many clips a trial trains on, labelled or not; with folds that depends on its own.

        Raises:
            UserError: its data set has no such fold.
        """
        key = config.dataset, config.fold
        if key not in self._training_clips:
            self._training_clips[key] = len(self.stores[config.dataset].split("train", config.fold))
        return self._training_clips[key]

    def add(self, study: Study, base: TrialConfig, config: TrialConfig) -> TrialFolder:
        """Plan one trial, and the pre-training that it starts from; gives its folder.

        Raises:
            UserError: its batch is larger than the training set, or its data set has no such fold.
        """
        config.check_batch(self.training_clips(config))
        folder = self._folder(config)
        self._need_parents(config, self.support)
        self.folders.setdefault(folder.identity, folder)
        self.support.discard(folder.identity)
        self.apart.discard(folder.identity)
        if not any(member.folder.identity == folder.identity for member in self._of(study, config)):
            self._of(study, config).append(member := Member(study, base, config, folder))
            self.members.append(member)
        return folder

    def _of(self, study: Study, config: TrialConfig) -> list[Member]:
        """The members of a study with this seedless configuration: few, so that adding thousands stays quick."""
        return self._index.setdefault((study.name, config.but(seed=0)), [])

    def _need_parents(self, config: TrialConfig, among: set[str]) -> None:
        """Plan what a trial starts from, and what that starts from, first things first."""
        parent = config.pretraining()
        if parent is not None:
            self._need_parents(parent, among)
            self._need(self._folder(parent), among)

    def _need(self, folder: TrialFolder, among: set[str]) -> None:
        """Plan a trial that stands in no table, as one of `support` or of `apart`."""
        if folder.identity not in self.folders:
            self.folders[folder.identity] = folder
            among.add(folder.identity)
        elif folder.identity in self.apart and among is self.support:
            self.apart.remove(folder.identity)
            among.add(folder.identity)

    def _folder(self, config: TrialConfig) -> TrialFolder:
        fingerprint = self.stores[config.dataset].fingerprint
        folder = TrialFolder(self.storage, config, fingerprint)
        if self.accepted and folder.result() is None:
            for version in sorted(self.accepted, reverse=True):
                older = TrialFolder(self.storage, config, fingerprint, version=version)
                if older.result() is not None:
                    return older
        return folder

    @property
    def datasets(self) -> str:
        """Names of the data sets."""
        return ", ".join(self.stores)

    @property
    def output(self) -> SweepFolder:
        """Where its tables and figures go. More seeds of the same sweep have the same place."""
        content = [
            [[study, [[base.differences(), self.stores[base.dataset].fingerprint] for base in bases]]
             for study, bases in self.bases.items()],
            [[name, halving.rungs, halving.keep] for name, halving in self.halving.items()],
            [[search.objectives, search.generation] for search in self.searches],
            # A plain run shows fewer seeds than one that has added some: neither table takes the other's place.
            self.precision is not None,
            # Two files of a user's may have one name.
            str(self.space.path) if self.space.path else "",
            # Only where it is so: sweeps of before there were folds keep their places.
            *(["folds"] if self.folds else []),
        ]  # fmt: skip
        key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
        return SweepFolder(self.storage, self.space.name, key)

    def rounds(self) -> Rounds:
        """What is to be reached, round by round; each round is asked for when the one before has ended."""
        if self.halving:
            for dataset, halving in self.halving.items():
                folders = [
                    folder for folder in self._in_order()
                    if folder.config.dataset == dataset and folder.identity not in self.apart
                ]  # fmt: skip
                if folders:
                    yield from halving.run(folders)
            if self.apart:
                yield [Goal(folder) for folder in self._in_order() if folder.identity in self.apart]
        elif self.folders:
            yield [Goal(folder) for folder in self._in_order()]
        for search in self.searches:
            study, base = search.study, search.base

            def add(config: TrialConfig, study: Study = study, base: TrialConfig = base) -> TrialFolder:
                return self.add(study, base, config)

            folds = self.folds_of(base.dataset)
            for goals in search.run(add, self.seeds, self.halving.get(base.dataset), folds):
                yield self._with_pretraining(goals)
        if self.precision:
            for study in self.space.studies:
                yield from self._more_seeds(study, self.precision)

    def replay(self, failed_again: bool = True) -> int | None:
        """Go through the rounds as far as the storage answers them; the number of the first that is open, if any.

        Searches, early stopping and added seeds are then where their driver has brought them.

        Args:
            failed_again: a trial that failed is open, as the next run of the command tries it again; else it is
                answered, as it was for the driver, which went on without it.
        """
        for number, goals in enumerate(self.rounds(), 1):
            for goal, reached in zip(goals, at_once(Goal.reached, goals, self.storage), strict=True):
                if not reached and (failed_again or not goal.folder.failure()):
                    return number
        return None

    def _more_seeds(self, study: Study, precision: Precision) -> Iterator[list[Goal]]:
        tables: dict[str, dict[str, list[TrialFolder]]] = {}
        base_of: dict[str, TrialConfig] = {}
        for member in self.members:
            if member.study is study:
                group, table = group_of(member.config), study.table(member.config)
                name = f"{study.name}, {group}" if table == member.config.dataset else f"{study.name}, {table}, {group}"
                cell = " / ".join(
                    part
                    for part, (_, values) in zip(study.cell(member.config), (study.rows, study.columns), strict=True)
                    if values is None or len(values) > 1
                )
                trials = tables.setdefault(name, {}).setdefault(cell, [])
                if all(folder.identity != member.folder.identity for folder in trials):
                    trials.append(member.folder)
                base_of[member.config.dataset] = member.base

        def add(config: TrialConfig) -> TrialFolder:
            return self.add(study, base_of[config.dataset], config)

        for goals in precision.run(tables, add, lambda: list(self.folders.values()), study.metrics[0]):
            yield self._with_pretraining(goals)

    def _with_pretraining(self, goals: list[Goal]) -> list[Goal]:
        """The goals, after those of the trials that they start from."""
        known = {goal.folder.identity for goal in goals}
        needed: dict[str, Goal] = {}
        for goal in goals:
            chain, parent = [], self.parent(goal.folder)
            while parent is not None:
                chain.append(parent)
                parent = self.parent(parent)
            needed |= {one.identity: Goal(one) for one in reversed(chain) if one.identity not in known}
        return [*needed.values(), *goals]

    def parent(self, folder: TrialFolder) -> TrialFolder | None:
        """The trial from whose encoder this one starts."""
        config = folder.config.pretraining()
        return None if config is None else self._folder(config)

    def _in_order(self) -> list[TrialFolder]:
        """All planned trials; those that others start from come first."""
        parents = {identity: self.parent(folder) for identity, folder in self.folders.items()}
        needed = {parent.identity for parent in parents.values() if parent is not None}

        def turn(folder: TrialFolder) -> int:
            # One that is needed may itself need another: a fine-tuned encoder that is probed once more.
            return 2 if folder.identity not in needed else parents[folder.identity] is not None

        return sorted(self.folders.values(), key=turn)

    def result(self, folder: TrialFolder) -> TrialResult | None:
        """A trial's result, read once: a trial that is done stays done."""
        if folder.identity not in self._results:
            result = folder.result()
            if result is None and not self.frozen:
                return None
            self._results[folder.identity] = result
        return self._results[folder.identity]

    def results(self) -> list[tuple[TrialFolder, TrialResult]]:
        """The results that have been read, with their trials."""
        found = ((folder, self._results.get(identity)) for identity, folder in self.folders.items())
        return [(folder, result) for folder, result in found if result is not None]

    def refresh(self) -> None:
        """Read the results that have come since: one look at what there is, and each of them once."""
        done = {path.parent.name for path in self.storage.glob("trials/*/result.json")}
        new = [
            folder for identity, folder in self.folders.items()
            if identity in done and self._results.get(identity) is None
        ]  # fmt: skip
        at_once(self.result, new, self.storage)
        if self.frozen:
            for identity in self.folders:
                self._results.setdefault(identity, None)

    def forget(self) -> None:
        """Read the results anew: some were put aside."""
        self._results.clear()

    def open(self) -> list[TrialFolder]:
        """The trials that are neither done nor cut."""
        self.refresh()
        cut = self.cut()
        return [
            folder for identity, folder in self.folders.items()
            if identity not in cut and self._results.get(identity) is None
        ]  # fmt: skip

    def cut(self) -> set[str]:
        """Identities of the trials that were stopped early."""
        folders = list(self.folders.values())
        return {identity for halving in self.halving.values() for identity in halving.cut(folders)}

    def title(self, folder: TrialFolder) -> str:
        """A trial in a few words: what it does not share with the others, its data set where there are several."""
        if folder.identity not in self._titles:
            where = f"{folder.config.dataset}: " if len(self.stores) > 1 else ""
            names = (one.name for one in self.beside if one.folder.identity == folder.identity)
            if name := next(names, "") if folder.identity in self.apart else "":
                labels, fold = Labels.of(folder.config), folder.config.fold
                more = [str(labels)] if labels.fraction < 1 else []
                more += [f"fold {fold}"] if self.folds_of(folder.config.dataset) else []
                self._titles[folder.identity] = where + ", ".join([name, *more, f"seed {folder.config.seed}"])
            else:
                self._titles[folder.identity] = where + folder.config.title(self._base(folder.config))
        return self._titles[folder.identity]

    def titles(self) -> dict[str, str]:
        """The trials in a few words, by identity."""
        return {identity: self.title(folder) for identity, folder in self.folders.items()}

    def _base(self, config: TrialConfig) -> TrialConfig:
        return next(base for bases in self.bases.values() for base in bases if base.dataset == config.dataset)

    def summary(self) -> str:
        """How many there are and how many of them are done."""
        self.refresh()
        done = len(self.results())
        count = len(self.folders) - len(self.support) - len(self.apart)
        more = [f"{len(self.support)} pre-trainings"] if self.support else []
        more += [f"{len(self.apart)} to hold them against"] if self.apart else []
        searched = sum(search.trials * (self.folds_of(search.base.dataset) or 1) for search in self.searches)
        if searched:
            return f"a search of {searched * self.seeds} trials on {self.datasets}"
        return f"{' and '.join([f'{count} trials', *more])} on {self.datasets}, {done} of them done"

    def record(self, state: str, code_version: str, **more: Any) -> None:
        """Keep what the sweep is and how it stands, for the tracking and for a look from elsewhere.

        Args:
            state: `running`, `done`, `failed` or `interrupted`.
            code_version: of this driver.
            more: `clock`, `wall_seconds` and `tracking_uri`; what is not given stays as an earlier driver left it.
        """
        first = next(iter(self.bases.values()))[0]
        known = self.output.read() or {}
        # Found done when first asked for, a trial was saved; found done by a later run of the command, it is its own.
        before, reused = set(known.get("trials", ())), dict(known.get("reused", {}))
        self.refresh()
        for identity, folder in self.folders.items():
            if identity not in before and self._results.get(identity) is not None:
                reused[identity] = folder.run_token()
        self.output.write(
            {
                **{name: known[name] for name in _KEPT if name in known},
                "name": self.space.name,
                "summary": self.space.summary,
                "key": self.output.key,
                "dataset": self.datasets,
                "base": first.model_dump(mode="json"),
                "code_version": code_version,
                "trials": list(self.folders),
                "titles": self.titles(),
                "axes": self.axes(),
                "cut": sorted(self.cut()),
                "reused": reused,
                "recipe": self.recipe(),
                "state": state,
                **more,
            }
        )

    def axes(self) -> dict[str, dict[str, str]]:
        """What tells the trials apart, by identity: row and column of their tables, or what a search has chosen."""
        found: dict[str, dict[str, str]] = {identity: {} for identity in self.folders}
        for member in self.members:
            if not member.study.search:
                names = (member.study.rows[0], member.study.columns[0])
                cell = dict(zip(names, member.study.cell(member.config), strict=True))
                found[member.folder.identity] = cell | found[member.folder.identity]  # the first of several cells
        for search in self.searches:
            for candidate in search.candidates:
                for folder in candidate.folders:
                    found[folder.identity].update({name: str(value) for name, value in candidate.chosen.items()})
        values: dict[str, set[str]] = {}
        for of_one in found.values():
            for name, value in of_one.items():
                values.setdefault(name, set()).add(value)
        # An axis of one value, such as that of a table with one column, tells nothing apart.
        return {
            identity: {name: value for name, value in of_one.items() if len(values[name]) > 1}
            for identity, of_one in found.items()
        }

    def recipe(self) -> dict[str, Any]:
        """All that the plan is made of, as JSON values; `restore` makes it again."""
        return {
            "space": str(self.space.path or self.space.name),
            "results_version": RESULTS_VERSION,
            "bases": {name: [base.differences() for base in bases] for name, bases in self.bases.items()},
            "data": {name: _record_data(store) for name, store in self.stores.items()},
            "seeds": self.seeds,
            "folds": self.folds,
            "baselines": self.baselines,
            "chosen": self.chosen,
            "accepted": self.accepted,
            "halving": {name: [halving.rungs, halving.keep] for name, halving in self.halving.items()},
            "searches": [
                [search.study.name, search.base.differences(), search.objectives, search.trials, search.generation]
                for search in self.searches
            ],
            "precision": self.precision
            and [self.precision.points, self.precision.budget and asdict(self.precision.budget)],
        }


def _record_data(store: DataSet) -> list[Any]:
    """A data set as JSON values: the fields of `RecordedData`, without folds where there are none."""
    by_fold = [len(store.split("train", fold)) for fold in range(1, store.fold_count + 1)]
    return [str(store.path), store.fingerprint, len(store.split("train")), *([by_fold] if by_fold else [])]


def restore(storage: Path, recipe: Mapping[str, Any], space: Space, interval: Interval) -> Plan:
    """The plan of a sweep from its recipe, to look at; searches and the like are to be replayed.

    Args:
        storage: where the trials lie.
        recipe: see `Plan.recipe`.
        space: what it names.
        interval: of `Precision`.

    Raises:
        UserError: the recipe is of another version of the code, or the study's file has changed since.
    """
    try:
        bases = {name: [TrialConfig(**fields) for fields in group] for name, group in recipe["bases"].items()}
        stores = {
            name: RecordedData(Path(path), fingerprint, clips, *map(tuple, by_fold))
            for name, (path, fingerprint, clips, *by_fold) in recipe["data"].items()
        }
        if recipe["results_version"] != RESULTS_VERSION:
            raise UserError(f"results version {recipe['results_version']}, this is {RESULTS_VERSION}")
        studies = {study.name: study for study in space.studies}
        if set(studies) != set(bases):
            raise UserError(f"its studies were {', '.join(bases)}, and are {', '.join(studies)} now")
        chosen = tuple(recipe["chosen"])
        return Plan(
            space, bases, storage, stores, recipe["seeds"], chosen, tuple(recipe["accepted"]),
            halving={name: Halving(tuple(rungs), keep) for name, (rungs, keep) in recipe["halving"].items()},
            searches=[
                Searching(studies[name], TrialConfig(**fields), tuple(objectives), trials, generation, chosen)
                for name, fields, objectives, trials, generation in recipe["searches"]
            ],
            precision=_precision(recipe["precision"], interval),
            folds=recipe.get("folds", False),
            baselines=recipe.get("baselines", False),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, UserError) as error:
        reason = error if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        raise UserError(
            f"the sweep {space.name} cannot be planned again as it was ({reason}); "
            f"run `python -m clar.sweep {space.path or space.name}` with its options once more: what is done stays done"
        ) from error


def _precision(content: Any, interval: Interval) -> Precision | None:
    if content is None:
        return None
    points, budget = content
    return Precision(points, Budget(**budget) if budget else None, interval)


def check_ways(space: Space, seeds: int, options: dict[str, Any]) -> None:
    """See to it that the ways of going on can be had together.

    Args:
        space: the sweep.
        seeds: asked for.
        options: `halving`, `rungs`, `keep`, `precision`, `budget`, `trials`, `generation`, `objectives`, `fresh`,
            `accept_version`, `dry_run`, `folds`, as given; None or False where not given.

    Raises:
        UserError: they cannot.
    """
    needed = {"budget": "precision", "rungs": "halving", "keep": "halving"}
    for option, other in needed.items():
        if options[option] is not None and not options[other]:
            raise UserError(f"--{option} {options[option]}: says how to do --{other}; name both")
    search = any(study.search for study in space.studies)
    for option in ("trials", "generation", "objectives"):
        if options[option] is not None and not search:
            raise UserError(f"--{option} {options[option]}: {space.name} is no search")
    if options["fresh"] and options["accept_version"]:
        raise UserError("--fresh and --accept-version: one trains all again, the other takes what is old; use one")
    if options["fresh"] and options["dry_run"]:
        raise UserError("--fresh and --dry-run: the dry run shows what is done, --fresh would train all of it again")
    for study in space.studies:
        if options["folds"] and "fold" in study.settings:
            raise UserError(f"--folds: the study {study.name} has a fold of its own in SETTINGS; leave one of them out")
    precision = options["precision"]
    if precision is None:
        return
    if options["folds"]:
        raise UserError("--precision and --folds: seeds are added one trial at a time, not fold by fold; use --seeds")
    if options["halving"]:
        raise UserError("--precision and --halving: seeds are added to finished cells, not to stopped ones; use one")
    if search:
        raise UserError(f"--precision: {space.name} is a search, which has no cells; use --seeds")
    if not 0 < precision < 100:
        raise UserError(f"--precision {precision:g}: percentage points, above 0")
    if seeds < 2:
        raise UserError("--precision needs an interval to begin with: --seeds 2 or more")
