"""What a sweep has cost, and what dedupe, sharing and early stopping have saved."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from analysis.results import state_of
from analysis.tables import Listing
from clar.plan import Plan
from clar.result import TrialFolder

_KWH = 3.6e6


def table(plan: Plan, about: Mapping[str, Any], live: bool) -> Listing:
    """Trials, wall time, CPU- and GPU-hours, energy, and the savings, as `what`, `how much` and how it is counted.

    Args:
        plan: the sweep, replayed.
        about: what its `sweep.json` holds.
        live: whether somebody drives it.
    """
    cut = plan.cut()
    folders = list(plan.folders.values())
    states = Counter(state_of(plan, folder, cut, live) for folder in folders)
    results = [result for folder in folders if (result := plan.result(folder)) is not None]
    said = ", ".join(f"{states[name]} {name}" for name in sorted(states, key=lambda name: (name != "done", name)))
    unfinished = sum(_seconds_so_far(plan, folder) for folder in folders if plan.result(folder) is None)
    rows = [
        ("trials", str(len(folders)), said),
        (
            "wall time",
            hours(about.get("wall_seconds")),
            "of all runs of the command, from its start to its end, without preparing data",
        ),
        (
            "training time",
            hours(sum(result.train_seconds for result in results) + unfinished),
            f"of all trials, one after the other, whoever trained them; {hours(unfinished)} of it in trials without a "
            f"result, by their epochs without probes",
        ),
        (
            "CPU-hours",
            *_measured([one.cpu_seconds for one in results], hours, "of all threads of the trials' processes"),
        ),
        (
            "GPU-hours",
            *_measured([one.gpu_seconds for one in results], hours, "a share of a GPU counting as a whole one"),
        ),
        ("energy", *_measured([one.energy_joules for one in results], energy, "as the devices report it")),
    ]
    for what, count, seconds, how in _savings(plan, about, cut):
        rows.append((f"saved: {what}", hours(seconds), f"{count} {how}"))
    return Listing(
        "What it has cost, and what it has saved.", ("what", "how much", "how it is counted"), rows, left=frozenset({2})
    )


def hours(seconds: float | None) -> str:
    """`45 s`, `4.2 min`, `3.40 h`; a dash where it is not known."""
    if seconds is None:
        return "-"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:,.2f} h"


def energy(joules: float) -> str:
    """`12.3 Wh`, `4.56 kWh`."""
    return f"{joules / 3600:,.1f} Wh" if joules < _KWH else f"{joules / _KWH:,.2f} kWh"


def _measured(values: Sequence[float | None], show: Callable[[float], str], how: str) -> tuple[str, str]:
    """A sum over the trials with a result that have the number, and how many those are."""
    known = [value for value in values if value is not None]
    if not known:
        return "-", f"{how}; none of the {len(values)} trials with a result has it"
    of = "the" if len(known) == len(values) else f"{len(known)} of the"
    return show(sum(known)), f"{how}; of {of} {len(values)} trials with a result"


def _savings(plan: Plan, about: Mapping[str, Any], cut: set[str]) -> Iterable[tuple[str, int, float, str]]:
    """What was saved: by what, how many trials, seconds of training, in words."""

    def seconds(folder: TrialFolder) -> float:
        result = plan.result(folder)
        return result.train_seconds if result else _seconds_so_far(plan, folder)

    asked = Counter(member.folder.identity for member in plan.members)
    twice = {identity: count - 1 for identity, count in asked.items() if count > 1}
    yield (
        "asked for twice", sum(twice.values()), sum(n * seconds(plan.folders[one]) for one, n in twice.items()),
        "trials that several studies, or several fields without influence, ask for were trained once",
    )  # fmt: skip
    reused = [
        plan.folders[identity] for identity, token in about.get("reused", {}).items()
        if identity in plan.folders and plan.folders[identity].run_token() == token
    ]  # fmt: skip
    yield (
        "done before", len(reused), sum(map(seconds, reused)),
        "trials had been trained by other sweeps on this storage",
    )  # fmt: skip
    starts = Counter(parent.identity for folder in plan.folders.values() if (parent := plan.parent(folder)) is not None)
    # One of those that start from it would have had to train it, unless it is wanted for itself.
    shared = {identity: count - (identity in plan.support) for identity, count in starts.items()}
    yield (
        "shared pre-training", sum(shared.values()), sum(n * seconds(plan.folders[one]) for one, n in shared.items()),
        "trials start from a pre-training that another has, too",
    )  # fmt: skip
    stopped = [plan.folders[identity] for identity in cut if plan.result(plan.folders[identity]) is None]
    left = sum(
        _seconds_so_far(plan, folder) / len(epochs) * (folder.config.epochs - len(epochs))
        for folder in stopped if (epochs := folder.epochs())
    )  # fmt: skip
    yield "early stopping", len(stopped), left, "trials were cut; by the time that their epochs took"


def _seconds_so_far(plan: Plan, folder: TrialFolder) -> float:
    """How long a trial without a result has trained, by its epochs; its probes are not in it."""
    clips = plan.training_clips(folder.config)
    return sum(clips / record.clips_per_second for record in folder.epochs() if record.clips_per_second > 0)
