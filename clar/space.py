"""A sweep's file, read and checked, and the trials that it plans.

A sweep is one study or, like the paper's, a union of several. A study is a grid of trials with its tables, or a search.
"""

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import search_spaces
from clar.baselines import Labels, baselines
from clar.config import TrialConfig
from clar.errors import UserError, near
from clar.result import TrialResult

Axis = tuple[str, tuple[str, ...] | None]
"""What an axis of the table is called, and its values in order; None: as the trials bring them."""

METRICS = tuple(
    name for name in TrialResult.__dataclass_fields__
    if name.endswith(("_top1", "_top5")) and not name.startswith("chance")
)  # fmt: skip
"""What a table can show."""

_WITHIN = ("table", "column", "row", "nothing")
_GRID, _SEARCH = ("trials", "cell", "ROWS", "COLUMNS"), ("suggest",)


@dataclass(frozen=True)
class Search:
    """The part of a study that is a search: what Optuna may choose, and how much of it.

    Attributes:
        suggest: from an Optuna trial and the base, one configuration.
        trials: configurations in all, unless the command says otherwise.
        generation: of which this many are chosen at a time.
        around: fields that it varies around the base's value, which the user may therefore set.
    """

    suggest: Callable[[Any, TrialConfig], TrialConfig]
    trials: int
    generation: int
    around: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """One study: which trials, and where each stands in its tables. See `search_spaces` for the parts of its file."""

    name: str
    summary: str
    settings: dict[str, Any]
    trials: Callable[[TrialConfig], Iterable[TrialConfig]]
    cell: Callable[[TrialConfig], tuple[str, str]]
    rows: Axis
    columns: Axis
    table: Callable[[TrialConfig], str]
    curve: Callable[[TrialConfig], str | None] | None
    metrics: tuple[str, ...]
    search: Search | None = None
    within: str = "table"
    references: Callable[[TrialConfig], Mapping[str, TrialConfig]] | None = None
    """More trials that stand below the tables, beside the baselines, by name."""
    around: tuple[str, ...] = ()
    """Fields that its trials vary around the base's value, which the user may therefore set."""

    def plan(self, base: TrialConfig, seeds: int, chosen: Iterable[str] = ()) -> list[TrialConfig]:
        """The study's trials, seed by seed within each cell; a trial that is asked for twice is planned once.

        Args:
            base: what the trials have in common.
            seeds: repeats of each, from the base's seed on.
            chosen: fields that the user set, which the study must not silently set otherwise.

        Raises:
            UserError: the study varies a field that the user set, or one that a study cannot vary, or has a trial that
                its table has no cell for.
        """
        configs = self.call("trials", lambda base: list(self.trials(base)), base)
        self.check(configs, base, chosen)
        if not configs and not self.search:
            raise UserError(f"study {self.name}: trials(base) gives none")
        for config in configs:
            row, column = self.call("cell", lambda config: _pair(self.cell(config)), config)
            # These are asked for when all is trained: a mistake in them is to be known before.
            self.call("table", self.table, config)
            if self.curve:
                self.call("curve", self.curve, config)
            if (self.rows[1] and row not in self.rows[1]) or (self.columns[1] and column not in self.columns[1]):
                raise UserError(
                    f"study {self.name}: {config.title(base)} has the cell ({row}, {column}), "
                    f"which is not in ROWS x COLUMNS"
                )
        planned = [config.but(seed=base.seed + repeat) for config in configs for repeat in range(seeds)]
        return list(dict.fromkeys(planned))

    def beside(self, base: TrialConfig, planned: Iterable[TrialConfig]) -> dict[TrialConfig, str]:
        """Give what stands below the tables, by name: baselines that see what the trials see of the labels, and the
        study's own references.

        Args:
            base: what the trials have in common.
            planned: the trials; of a search the base.

        Raises:
            UserError: a reference changes what is not the study's to change.
        """
        found: dict[TrialConfig, str] = {}
        for labels in dict.fromkeys(map(Labels.of, planned)):
            for name, config in baselines(base, labels).items():
                found.setdefault(config, name)
        if self.references:
            own = self.call("references", lambda base: dict(self.references(base)), base)  # type: ignore[misc]
            self.check(list(own.values()), base)
            for name, config in own.items():
                found.setdefault(config, name)
        return found

    def call(self, part: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a part of the study's file; what it raises is said in one line.

        Raises:
            UserError: it raised something.
        """
        try:
            return function(*arguments)
        except UserError as error:
            raise UserError(f"study {self.name}: {part}: {error}") from error
        except Exception as error:
            raise UserError(f"study {self.name}: {part} fails with {type(error).__name__}: {error}") from error

    def check(self, configs: list[TrialConfig], base: TrialConfig, chosen: Iterable[str] = ()) -> None:
        """See to it that the study changes no field that is not its to change.

        Raises:
            UserError: it does.
        """
        for config in configs:
            if not isinstance(config, TrialConfig):
                raise UserError(f"study {self.name}: gives {config!r}, which is no TrialConfig; write base.but(...)")
        for field in chosen:
            if field not in self.around and any(getattr(config, field) != getattr(base, field) for config in configs):
                raise UserError(
                    f"--set {field}={getattr(base, field)}: the study {self.name} varies {field} itself; "
                    f"leave it out, or copy the study's file and change it"
                )
        for config in configs:
            for field, way in (("seed", "use --seeds"), ("dataset", "name data sets with --dataset")):
                if getattr(config, field) != getattr(base, field):
                    raise UserError(f"study {self.name}: its trials must not set {field} themselves; {way}")
            # A base on a data set with folds names one, unless each trial is to be tested on all of them.
            if config.fold is not None and base.fold is None:
                raise UserError(
                    f"study {self.name}: its trials must not set fold themselves with --folds, nor on {base.dataset} "
                    f"if that has none"
                )


@dataclass(frozen=True)
class Space:
    """A sweep: its studies, which share what they have in common."""

    name: str
    summary: str
    studies: tuple[Study, ...]
    path: Path | None = None
    """The user's own file, None for a sweep that comes with the project."""
    first_only: tuple[str, ...] = ()
    """Names of the studies that run on the first of several data sets alone."""


def available() -> dict[str, str]:
    """The sweeps that come with the project: name and first line of the docstring."""
    folder = Path(search_spaces.__path__[0])
    return {path.stem: load(path.stem).summary for path in sorted(folder.glob("[!_]*.py"))}


def load(name: str, within: tuple[Path, ...] = ()) -> Space:
    """The sweep `search_spaces/NAME.py`, or that of the Python file NAME. The file is the user's own code and is run.

    Args:
        name: of the sweep, or path of its file.
        within: files of the unions that this one is part of.

    Raises:
        UserError: there is none, it does not load, or it lacks a part.
    """
    folder = Path(search_spaces.__path__[0])
    path = _file(name)
    if not path.is_file():
        if name.endswith(".py"):
            raise UserError(f"no sweep file {name}; give the path of a Python file, or a name from --list")
        names = sorted(path.stem for path in folder.glob("[!_]*.py"))
        raise UserError(f"no sweep {name!r}{near(name, names)} `python -m clar.sweep --list` shows all")
    module = run_file(path)
    summary = (module.__doc__ or "").strip().partition("\n")[0]
    own = None if path.resolve().parent == folder.resolve() else path.resolve()
    if not hasattr(module, "STUDIES"):
        return Space(path.stem, summary, (_study(path, module, summary),), own)
    within = (*within, path.resolve())
    studies: list[Study] = []
    of_parts: list[str] = []
    for part in _names(path, module.STUDIES, "STUDIES", least=1):
        if _file(part).resolve() in within:
            raise UserError(f"{path}: STUDIES has {part!r}, which is itself; name others")
        found = load(part, within)
        studies += found.studies
        of_parts += found.first_only
    names = [study.name for study in studies]
    first_only = (*_names(path, getattr(module, "FIRST_ONLY", ()), "FIRST_ONLY"), *of_parts)
    for name in first_only:
        if name not in names:
            raise UserError(f"{path}: FIRST_ONLY has {name!r}, which is none of its studies{near(name, names)}")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path}: STUDIES brings {name!r} twice; each study has a name of its own")
    return Space(path.stem, summary, tuple(studies), own, first_only)


def _file(name: str) -> Path:
    return Path(name) if name.endswith(".py") else Path(search_spaces.__path__[0]) / f"{name}.py"


def _names(path: Path, studies: Any, what: str, least: int = 0) -> tuple[str, ...]:
    listed = isinstance(studies, tuple | list) and len(studies) >= least
    if not listed or not all(isinstance(name, str) for name in studies):
        raise UserError(f'{path}: {what} must be names of studies, such as ("inputs", "losses"), not {studies!r}')
    return tuple(studies)


def _pair(cell: Any) -> tuple[str, str]:
    if not (isinstance(cell, tuple) and len(cell) == 2 and all(isinstance(part, str) for part in cell)):
        raise ValueError(f"must give two texts, the row and the column, not {cell!r}")
    return cell


def _study(path: Path, module: ModuleType, summary: str) -> Study:
    search = hasattr(module, "suggest")
    missing = [part for part in (_SEARCH if search else _GRID) if not hasattr(module, part)]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; search_spaces/augmentations.py has an example of each")
    settings = getattr(module, "SETTINGS", {})
    if not isinstance(settings, dict):
        raise UserError(f'{path}: SETTINGS must be fields and values, such as {{"loss": "clar"}}, not {settings!r}')
    for field in settings:
        if field not in TrialConfig.model_fields or field in ("dataset", "seed"):
            way = "" if field not in ("dataset", "seed") else "; name it on the command line"
            raise UserError(f"{path}: SETTINGS cannot have {field!r}{near(str(field), TrialConfig.model_fields)}{way}")
    metrics = tuple(getattr(module, "METRICS", ("test_top1",)))
    for metric in metrics:
        if metric not in METRICS:
            raise UserError(f"{path}: METRICS has {metric!r}, no number of a result{near(metric, METRICS)}")
    if search:
        return Study(
            path.stem, summary, settings,
            trials=lambda base: (), cell=lambda trial: ("", ""), rows=("", ()), columns=("", ()),
            table=lambda trial: trial.dataset, curve=None, metrics=metrics,
            search=Search(
                module.suggest, getattr(module, "TRIALS", 40), getattr(module, "GENERATION", 8),
                tuple(getattr(module, "AROUND", ())),
            ),
        )  # fmt: skip
    within = getattr(module, "WITHIN", "table")
    if within not in _WITHIN:
        raise UserError(f"{path}: WITHIN = {within!r}{near(within, _WITHIN)}")
    for name in ("ROWS", "COLUMNS"):
        axis = getattr(module, name)
        if not (isinstance(axis, tuple) and len(axis) == 2 and isinstance(axis[0], str)):
            raise UserError(f'{path}: {name} must be ("what it is called", ("its", "values")), not {axis!r}')
    return Study(
        name=path.stem,
        summary=summary,
        settings=settings,
        trials=module.trials,
        cell=module.cell,
        rows=module.ROWS,
        columns=module.COLUMNS,
        table=getattr(module, "table", lambda trial: trial.dataset),
        curve=getattr(module, "curve", None),
        metrics=metrics,
        within=within,
        references=getattr(module, "references", None),
        around=tuple(getattr(module, "AROUND", ())),
    )


def run_file(path: Path) -> ModuleType:
    """Run a Python file of the user's, and give what it defines.

    Raises:
        UserError: it is no Python file, or it does not load.
    """
    spec = importlib.util.spec_from_file_location(f"search_spaces.{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{path} does not load: {type(error).__name__}: {error}") from error
    return module
