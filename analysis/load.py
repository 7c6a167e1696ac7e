"""A sweep found again, in a storage or in MLflow, and planned as its driver has planned it.

A sweep read from MLflow is written into a storage of its own first, a folder that the caller gives, and then read as
any other: there is one way from trials to tables.
"""

import contextlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.statistics import mean_interval
from clar import space, tracking
from clar.config import RESULTS_VERSION, TrialConfig
from clar.errors import UserError, near
from clar.plan import Plan, restore
from clar.result import EpochRecord, SweepFolder, TrialFolder, TrialResult

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

Advance = Callable[[str, int, int], object]
"""Told what is under way, how much of it is done, and how much there is."""

_CONNECTIONS = 8
_LOSSES = ("clar", "self_supervised")
"""What the claim about epochs compares."""


@dataclass
class Loaded:
    """A sweep to report on.

    Attributes:
        plan: replayed as far as it has gone.
        about: what its `sweep.json` holds.
        live: whether somebody drives it at this moment.
        source: where it was read from, for a reader.
        others: keys of sweeps of the same name that were passed over.
        parent: its parent run in MLflow, where it was read from there.
        fetch: sees to it that a trial's encoder is in its folder.
    """

    plan: Plan
    about: dict[str, Any]
    live: bool
    source: str
    others: list[str]
    parent: str | None = None
    fetch: Callable[[TrialFolder], object] = lambda folder: None


def from_storage(name: str, storage: Path) -> Loaded:
    """The sweep of this name that was driven last.

    Args:
        name: of the sweep, `NAME-KEY` as its folder is called, or its Python file.
        storage: an absolute path.

    Raises:
        UserError: there is none, or it was written by an older version.
    """
    if not storage.is_dir():
        raise UserError(f"--storage {storage}: no such folder; name the one that the sweep was run with")
    stem = Path(name).stem if name.endswith(".py") else name
    every = [sweep for sweep in SweepFolder.all(storage) if sweep.name != "train"]
    found = [sweep for sweep in every if stem in (sweep.name, sweep.path.name)]
    if not found:
        names = dict.fromkeys(sweep.name for sweep in every)
        hint = near(name, names) if names else "; it holds no sweep yet"
        raise UserError(f"no sweep {name!r} in {storage}{hint}")
    # Of two files of one name, the one that is named.
    own = str(Path(name).resolve()) if name.endswith(".py") else ""
    found.sort(key=lambda sweep: (_space(sweep) == own, (sweep.path / "sweep.json").stat().st_mtime))
    sweep = found.pop()
    about = sweep.read() or {}
    plan = _plan(name, storage, about)
    return Loaded(plan, about, sweep.drivers_alive(), str(storage), [other.path.name for other in found])


def from_mlflow(name: str, uri: str, folder: Path, advance: Advance = lambda *_: None) -> Loaded:
    """The sweep of this name that was begun last, from any MLflow tracking server.

    Args:
        name: of the sweep, `NAME-KEY`, or its Python file.
        uri: MLflow tracking URI.
        folder: an empty one, for what is read.
        advance: told how far it is.

    Raises:
        UserError: the server is away, has no such sweep, or one that an older version wrote.
    """
    stem = Path(name).stem if name.endswith(".py") else name
    try:
        database = Path(uri.removeprefix("sqlite:///"))
        if uri.startswith("sqlite:///") and not database.exists():
            raise UserError(f"--tracking-uri {uri}: there is no {database}; name the database of a sweep")
        client = tracking.connect(uri, folder)
        parents = _parents(client, stem)
        if not parents:
            known = [experiment.name.removeprefix("clar/") for experiment in client.search_experiments()
                     if experiment.name.startswith("clar/")]  # fmt: skip
            hint = near(stem, known) if known else "; it holds no sweep yet"
            raise UserError(f"no sweep {name!r} in MLflow at {tracking.shown(uri)}{hint}")
        parent = parents.pop()
        about = _about(client, parent, folder)
        runs = _children(client, parent, advance)
        for done, run in enumerate(runs, 1):
            _write(run, folder)
            if done % 100 == 0 or done == len(runs):
                advance("reading trials", done, len(runs))
        plan = _plan(name, folder, about, lambda plan: _fetch_epochs(client, plan, runs, advance))
    except UserError:
        raise
    except Exception as error:
        reason = tracking.one_line(error)[:150]
        raise UserError(
            f"--tracking-uri {tracking.shown(uri)}: cannot be read; is it right, and does the server run? ({reason})"
        ) from error
    by_identity = {run.data.tags.get("clar.identity", ""): run.info.run_id for run in runs}

    def fetch(trial: TrialFolder) -> None:
        if not (trial.path / "encoder.safetensors").exists():
            client.download_artifacts(by_identity[trial.identity], "encoder.safetensors", str(trial.path))

    others = [f"{run.data.tags['clar.sweep']}-{run.data.tags['clar.parent']}" for run in parents]
    live = parent.info.status == "RUNNING"
    return Loaded(plan, about, live, tracking.shown(uri), others, parent.info.run_id, fetch)


def _plan(
    name: str, storage: Path, about: dict[str, Any], before_replay: Callable[[Plan], object] = lambda plan: None
) -> Plan:
    if "recipe" not in about:
        raise UserError(
            f"the sweep {name} was written by an older version of clar, which did not keep its plan; run "
            f"`python -m clar.sweep {name}` with its options once more: what is done stays done"
        )
    # A user's own study is read from where the user says it is, else from where it was.
    where = name if name.endswith(".py") else str(about["recipe"]["space"])
    if where != name and where.endswith(".py") and not _is_own(Path(where)):
        raise UserError(
            f"the sweep {name} is of the study {where}, whose code is not yours; to run it, name the file: "
            f"`python -m analysis.report {where}`"
        )
    plan = restore(storage, about["recipe"], space.load(where), mean_interval)
    before_replay(plan)
    plan.replay(failed_again=False)
    plan.frozen = True
    return plan


def _is_own(file: Path) -> bool:
    """Whether a file is the user's own, so that nobody who can write to a storage can choose what is run here."""
    try:
        status = file.stat()
    except OSError:
        return True  # not there: said where it is read
    return status.st_uid == os.geteuid() and not status.st_mode & stat.S_IWOTH


def _space(sweep: SweepFolder) -> str:
    return str((sweep.read() or {}).get("recipe", {}).get("space", ""))


def _parents(client: "MlflowClient", stem: str) -> "list[Run]":
    """Parent runs of the sweep, in order of their start."""
    name, _, key = stem.rpartition("-")
    for experiment, which in ((f"clar/{stem}", "LIKE '%'"), (f"clar/{name}", f"= '{key}'")):
        found = client.get_experiment_by_name(experiment) if "'" not in key else None
        if found is not None:
            runs = client.search_runs([found.experiment_id], f"tags.`clar.parent` {which}", max_results=1000)
            return sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))
    return []


def _about(client: "MlflowClient", parent: "Run", folder: Path) -> dict[str, Any]:
    tags = parent.data.tags
    target = SweepFolder(folder, tags["clar.sweep"], tags["clar.parent"]).path
    target.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(Exception):
        client.download_artifacts(parent.info.run_id, "sweep.json", str(target))
    path = target / "sweep.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _children(client: "MlflowClient", parent: "Run", advance: Advance) -> "list[Run]":
    query = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    runs: list[Run] = []
    token = None
    while True:
        page = client.search_runs([parent.info.experiment_id], query, max_results=1000, page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs
        advance("finding trials", len(runs), len(runs) + 1000)


def _write(run: "Run", folder: Path) -> None:
    """A trial's folder, as its own files would be; without its epochs."""
    tags = run.data.tags
    identity, version = tags.get("clar.identity", ""), tags.get("clar.code_version", "")
    results_version = re.search(r"\+r(\d+)", version)
    if not re.fullmatch("[0-9a-f]{16}", identity):
        return
    path = folder / "trials" / identity
    path.mkdir(parents=True, exist_ok=True)
    config = {
        "identity": identity,
        "dataset_fingerprint": tags.get("clar.dataset_fingerprint", ""),
        "code_version": version,
        "results_version": int(results_version[1]) if results_version else RESULTS_VERSION,
        "run": tags.get("clar.run", ""),
        "config": _config(run.data.params).model_dump(mode="json"),
    }
    # Not flushed to the disk one by one as a trial's own files are: these are copies.
    (path / "config.json").write_text(json.dumps(config))
    if run.info.status == "FINISHED":
        (path / "result.json").write_text(json.dumps(_result(run)))
    elif tags.get("clar.state") == "failed":
        (path / "failure.json").write_text(json.dumps({"reason": tags.get("clar.failure", ""), "attempts": 1}))


def _config(params: dict[str, str]) -> TrialConfig:
    """The trial that a run's parameters say, see `clar.tracking`."""
    fields: dict[str, Any] = {}
    for name, text in params.items():
        if name not in TrialConfig.model_fields:
            continue
        default = TrialConfig.model_fields[name].default
        if isinstance(default, tuple):
            fields[name] = tuple(part for part in re.split(r" > |,", text) if part)
        else:
            fields[name] = None if text == "None" and default is None else text
    return TrialConfig(**fields)


def _result(run: "Run", epochs: Iterable[EpochRecord] = ()) -> dict[str, Any]:
    numbers = {name: run.data.metrics.get(name) for name in TrialResult.__dataclass_fields__}
    return numbers | {"epochs": [vars(record) for record in epochs]}


def _fetch_epochs(client: "MlflowClient", plan: Plan, runs: "Sequence[Run]", advance: Advance) -> None:
    """The probes by epoch of those trials of which something asks for them.

    Curves and the claim about epochs do, early stopping does of all, and so do the costs of trials without a result.
    """
    compared = {member.config.loss for member in plan.members} >= set(_LOSSES)
    wanted = {
        member.folder.identity for member in plan.members
        if (member.study.curve and member.study.curve(member.config) is not None)
        or (compared and member.config.loss in _LOSSES and member.config.label_fraction == 1)
    }  # fmt: skip
    chosen = [
        run for run in runs
        if plan.halving or run.info.status != "FINISHED" or run.data.tags.get("clar.identity") in wanted
    ]  # fmt: skip

    def history(run: "Run") -> list[EpochRecord]:
        probes = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "valid_top1")}
        speeds = {one.step: one.value for one in client.get_metric_history(run.info.run_id, "clips_per_second")}
        losses = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "train_loss")}
        # MLflow has no learning rate by epoch, and no table or figure asks for it.
        return [EpochRecord(epoch, loss, probes.get(epoch), 0.0, speeds.get(epoch, 0.0))
                for epoch, loss in sorted(losses.items())]  # fmt: skip

    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        for done, (run, epochs) in enumerate(zip(chosen, pool.map(history, chosen), strict=True), 1):
            path = plan.storage / "trials" / run.data.tags["clar.identity"]
            (path / "epochs.json").write_text(json.dumps([vars(record) for record in epochs]))
            if (path / "result.json").exists():
                (path / "result.json").write_text(json.dumps(_result(run, epochs)))
            advance("reading epochs", done, len(chosen))
