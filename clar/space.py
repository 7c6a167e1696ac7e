"""A sweep's file, read and checked, and the trials that it plans."""

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import search_spaces
from clar.config import TrialConfig
from clar.errors import UserError, near

Axis = tuple[str, tuple[str, ...]]
"""What an axis of the table is called, and its values in order."""


@dataclass(frozen=True)
class Space:
    """One sweep: which trials, and where each stands in the table. See `search_spaces` for the parts of its file."""

    name: str
    summary: str
    settings: dict[str, Any]
    trials: Callable[[TrialConfig], Iterable[TrialConfig]]
    cell: Callable[[TrialConfig], tuple[str, str]]
    rows: Axis
    columns: Axis

    def plan(self, base: TrialConfig, seeds: int, chosen: Iterable[str] = ()) -> list[TrialConfig]:
        """The sweep's trials, seed by seed within each cell; a trial that is asked for twice is planned once.

        Args:
            base: what the trials have in common.
            seeds: repeats of each, from the base's seed on.
            chosen: fields that the user set, which the sweep must not silently set otherwise.

        Raises:
            UserError: the sweep varies a field that the user set, or one that a sweep cannot vary, or has a trial that
                its table has no cell for.
        """
        configs = list(self.trials(base))
        for field in chosen:
            if any(getattr(config, field) != getattr(base, field) for config in configs):
                raise UserError(
                    f"--set {field}={getattr(base, field)}: the sweep {self.name} varies {field} itself; "
                    f"leave it out, or copy the sweep's file and change it"
                )
        for config in configs:
            for field, way in (("seed", "use --seeds"), ("dataset", "sweep over one data set at a time")):
                if getattr(config, field) != getattr(base, field):
                    raise UserError(f"sweep {self.name}: its trials must not set {field} themselves; {way}")
            row, column = self.cell(config)
            if row not in self.rows[1] or column not in self.columns[1]:
                raise UserError(
                    f"sweep {self.name}: {config.title(base)} has the cell ({row}, {column}), "
                    f"which is not in ROWS x COLUMNS"
                )
        planned = [config.but(seed=base.seed + repeat) for config in configs for repeat in range(seeds)]
        return list(dict.fromkeys(planned))


def available() -> dict[str, str]:
    """The sweeps that come with the project: name and first line of the docstring."""
    folder = Path(search_spaces.__path__[0])
    return {path.stem: load(path.stem).summary for path in sorted(folder.glob("[!_]*.py"))}


def load(name: str) -> Space:
    """The sweep `search_spaces/NAME.py`, or that of the Python file NAME. The file is the user's own code and is run.

    Raises:
        UserError: there is none, it does not load, or it lacks a part.
    """
    folder = Path(search_spaces.__path__[0])
    path = Path(name) if name.endswith(".py") else folder / f"{name}.py"
    if not path.is_file():
        if name.endswith(".py"):
            raise UserError(f"no sweep file {name}; give the path of a Python file, or a name from --list")
        names = sorted(path.stem for path in folder.glob("[!_]*.py"))
        raise UserError(f"no sweep {name!r}{near(name, names)} `python -m clar.sweep --list` shows all")
    module = _module(path)
    missing = [part for part in ("trials", "cell", "ROWS", "COLUMNS") if not hasattr(module, part)]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; search_spaces/augmentations.py has an example of each")
    return Space(
        name=path.stem,
        summary=(module.__doc__ or "").strip().partition("\n")[0],
        settings=dict(getattr(module, "SETTINGS", {})),
        trials=module.trials,
        cell=module.cell,
        rows=module.ROWS,
        columns=module.COLUMNS,
    )


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"search_spaces.{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{path} does not load: {type(error).__name__}: {error}") from error
    return module
