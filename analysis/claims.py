"""The paper's claims as statements that a sweep's trials confirm, refute or leave undecided.

A claim is a sentence and a function that finds, among the trials, what it compares: parts, each with one difference a
seed. Claims of one's own go into a file, and `python -m analysis.report NAME --claims FILE` checks them too:

    from analysis.claims import Claim, versus

    CLAIMS = [Claim("Low temperature beats high", lambda t: versus(t, {"temperature": 0.1}, {"temperature": 0.5}))]

`versus` pairs trials that are equal in every other field, so a claim finds its trials in whatever study they stand.

How it is judged: a part is confirmed where its differences are above the claim's margin, refuted where they are below
it, by a paired test over the seeds with p < 0.05, corrected by Holm over the parts of the claim. A claim is confirmed
when all its parts are, refuted when one of them is. The test accuracy is looked at by every claim; to choose by it is
left to none: what has to be chosen, such as the best pair, is chosen on valid, on other seeds than it is judged on.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pandas as pd

from analysis.results import FIELDS
from analysis.statistics import LEVEL, holm, paired, runs_needed

POINTS, EPOCHS = "points", "epochs"
"""Units of a difference: percentage points (it is a share), epochs."""

_FEWEST_SEEDS = 3


class Part(NamedTuple):
    """One comparison of a claim.

    Attributes:
        label: what is compared where: `10 % of labels, digits`.
        differences: by seed, above 0 where they speak for the claim; shares, or epochs.
        planned: seeds that the sweep has trials for, done or not.
    """

    label: str
    differences: Mapping[int, float]
    planned: int


@dataclass(frozen=True)
class Claim:
    """A statement that trials can confirm or refute.

    Attributes:
        statement: a sentence.
        parts: finds what it compares in the frame of `analysis.results.frame`; nothing where the sweep has no such
            trials.
        margin: the difference that it takes at least, in the parts' unit; 0: any.
        unit: of the differences, `points` or `epochs`.
    """

    statement: str
    parts: Callable[[pd.DataFrame], Iterable[Part]]
    margin: float = 0.0
    unit: str = POINTS


@dataclass(frozen=True)
class JudgedPart:
    """A part with its verdict; the numbers are those of `analysis.statistics.Paired`, p corrected by Holm.

    `needs` says what more runs would decide it; empty where it is decided.
    """

    label: str
    verdict: str
    effect: float
    low: float
    high: float
    p: float
    n: int
    needs: str = ""


@dataclass(frozen=True)
class Judgement:
    """What has become of a claim: `confirmed`, `refuted` or `undecided`, and its parts."""

    claim: Claim
    verdict: str
    parts: list[JudgedPart] = field(default_factory=list)

    @property
    def decisive(self) -> JudgedPart:
        """The part on which the claim hangs: a refuted one, else the one that is surest not to be confirmed."""
        return min(self.parts, key=_hangs_on)

    def __str__(self) -> str:
        worst = self.decisive
        where = f" ({worst.label})" if len(self.parts) > 1 else ""
        needs = f"; {worst.needs}" if worst.needs else ""
        return f"{self.claim.statement}: {self.verdict}; {describe(worst, self.claim.unit)}{where}{needs}"


def _hangs_on(part: JudgedPart) -> tuple[int, float, float]:
    p, effect = (math.inf if math.isnan(part.p) else part.p), (0.0 if math.isnan(part.effect) else part.effect)
    return ("refuted", "undecided", "confirmed").index(part.verdict), -p, effect


def describe(part: JudgedPart, unit: str) -> str:
    """`+2.1 points (0.4 to 3.8), p = 0.021, n = 5`."""
    if not part.n:
        return "n = 0"
    scale, name = (100, "points") if unit == POINTS else (1, unit)
    interval = "" if math.isnan(part.low) else f" ({scale * part.low:.1f} to {scale * part.high:.1f})"
    p = "" if math.isnan(part.p) else f", p {p_text(part.p)}"
    # Adding 0 makes 0 of -0.
    return f"{round(scale * part.effect, 1) + 0:+.1f} {name}{interval}{p}, n = {part.n}"


def p_text(p: float) -> str:
    """`= 0.021`, `< 0.001`."""
    return "< 0.001" if p < 0.001 else f"= {p:.2g}" if p < 0.1 else f"= {p:.2f}"


def judge(claims: Iterable[Claim], trials: pd.DataFrame) -> list[Judgement]:
    """The claims that these trials have something to say about, judged."""
    return [judgement for claim in claims if (judgement := _judge(claim, trials)) is not None]


def _judge(claim: Claim, trials: pd.DataFrame) -> Judgement | None:
    parts = list(claim.parts(trials))
    if not parts:
        return None
    tests = [paired(part.differences.values(), claim.margin) for part in parts]
    adjusted = holm([test.p for test in tests])
    judged = []
    for part, test, p in zip(parts, tests, adjusted, strict=True):
        verdict = "undecided"
        if p < LEVEL:
            verdict = "confirmed" if test.effect > claim.margin else "refuted"
        needs = "" if verdict != "undecided" else _needs(part, test.n, claim.margin, LEVEL / len(parts))
        judged.append(JudgedPart(part.label, verdict, test.effect, test.low, test.high, p, test.n, needs))
    verdicts = {part.verdict for part in judged}
    verdict = "refuted" if "refuted" in verdicts else "undecided" if "undecided" in verdicts else "confirmed"
    return Judgement(claim, verdict, judged)


def _needs(part: Part, n: int, margin: float, level: float) -> str:
    """What more runs would decide a part, were its effect as large as it looks."""
    if n < part.planned:
        return f"no result yet of {part.planned - n} of its {part.planned} seeds"
    if n < _FEWEST_SEEDS:
        return f"--seeds {_FEWEST_SEEDS} or more would tell how much it scatters"
    runs = runs_needed(part.differences.values(), margin, level)
    if runs is None:
        return "too small a difference for any number of seeds that could be run"
    return f"--seeds {max(runs, n + 1)} would decide it, were it as large as it looks"


def versus(
    trials: pd.DataFrame,
    better: Mapping[str, Any],
    worse: Mapping[str, Any],
    metric: str = "test_top1",
) -> Iterator[Part]:
    """Compare trials that differ in the given fields and are equal in all others, seed by seed: one part each.

    Args:
        trials: the frame of `analysis.results.frame`.
        better: fields and values of the one that is claimed to be better.
        worse: of the other one; the same fields.
        metric: one of the frame's numbers, of which more is better.

    Raises:
        KeyError: the frame has no such field or metric.
    """
    one, other = _having(trials, better), _having(trials, worse)
    # Where the two sides are told apart by a field, it is no part of what they have in common.
    keys = [name for name in FIELDS if name not in {*better, *worse}]
    both = one.merge(other, on=keys, suffixes=("", " of the other"))
    if both.empty:
        return
    groups = [name for name in keys if name != "seed"]
    named = [name for name in groups if name == "dataset" or both[name].nunique(dropna=False) > 1]
    both["difference"] = both[metric] - both[f"{metric} of the other"]
    for values, part in both.groupby(named, sort=False, dropna=False):
        label = ", ".join(_said(name, value) for name, value in zip(named, values, strict=True))
        known = part.dropna(subset=["difference"])
        yield Part(label, dict(zip(known["seed"], known["difference"], strict=True)), len(part))


def _having(trials: pd.DataFrame, fields: Mapping[str, Any]) -> pd.DataFrame:
    chosen = trials
    for name, value in fields.items():
        chosen = chosen[chosen[name] == value]
    return chosen


def _said(name: str, value: Any) -> str:
    """A field in words."""
    if name == "dataset":
        return str(value)
    if name == "label_fraction":
        return f"{100 * value:g} % of labels"
    return f"{name} {value}"


def _alike(trials: pd.DataFrame, apart: Iterable[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Groups of trials that are equal in all fields but these and the seed, each with what tells it from the others."""
    keys = [name for name in FIELDS if name not in {"seed", *apart}]
    named = [name for name in keys if name == "dataset" or trials[name].nunique(dropna=False) > 1]
    for values, group in trials.groupby(named, sort=False, dropna=False):
        yield ", ".join(_said(name, value) for name, value in zip(named, values, strict=True)), group


def _composition(trials: pd.DataFrame) -> Iterator[Part]:
    """For each seed the best pair against the best augmentation alone, both chosen by the other seeds' valid accuracy.

    The best of 42 pairs is partly the luckiest: judged by the numbers that it was chosen by, it would look better than
    it is, and more so than the best of 7.
    """
    of_loss = trials[trials["loss"] == "self_supervised"]
    for label, group in _alike(of_loss, ["augmentations", "augmentation_probability", "augmentation_strength"]):
        counts = group["augmentations"].map(lambda names: len(names.split(" > ")) if names else 0)
        single, pairs = group[counts == 1], group[counts == 2]
        if single["augmentations"].nunique() < 2 or pairs["augmentations"].nunique() < 2:
            continue
        differences = {}
        for seed in sorted(group["seed"].unique()):
            chosen = [_chosen_without(seed, part) for part in (pairs, single)]
            if not any(math.isnan(value) for value in chosen):
                differences[int(seed)] = chosen[0] - chosen[1]
        yield Part(label, differences, group["seed"].nunique())


def _chosen_without(seed: int, trials: pd.DataFrame) -> float:
    """Test accuracy, on this seed, of the augmentations with the best mean on valid on the other seeds."""
    others = trials[(trials["seed"] != seed) & trials["valid_top1"].notna()]
    if others.empty:
        return math.nan
    best = others.groupby("augmentations", sort=False)["valid_top1"].mean().round(12).idxmax()
    found = trials[(trials["seed"] == seed) & (trials["augmentations"] == best)]["test_top1"]
    return float(found.iloc[0]) if len(found) else math.nan


def _beats_supervised(trials: pd.DataFrame) -> Iterator[Part]:
    """CLAR against supervised at each label fraction, and its gain with the fewest labels against that with all."""
    parts = list(versus(trials, {"loss": "clar"}, {"loss": "supervised"}))
    yield from parts
    for label, group in _alike(trials[trials["loss"].isin(["clar", "supervised"])], ["loss", "label_fraction"]):
        fractions = sorted(group["label_fraction"].unique())
        if len(fractions) < 2:
            continue
        values = group.pivot_table(
            index="seed", columns=["loss", "label_fraction"], values="test_top1", dropna=False, aggfunc="first"
        )
        needed = [(loss, fraction) for loss in ("clar", "supervised") for fraction in (fractions[0], fractions[-1])]
        values = values.reindex(columns=pd.MultiIndex.from_tuples(needed))
        few, many = (
            values["clar", fraction] - values["supervised", fraction] for fraction in (fractions[0], fractions[-1])
        )
        more = (few - many).dropna()
        few_said, many_said = _said("label_fraction", fractions[0]), _said("label_fraction", fractions[-1])
        yield Part(
            f"more with {few_said} than with {many_said}, {label}",
            dict(zip(more.index, more, strict=True)),
            group["seed"].nunique(),
        )


def fewer_epochs(target: float | None = None) -> Callable[[pd.DataFrame], Iterator[Part]]:
    """CLAR against self-supervised: how many epochs fewer it takes until the probe's accuracy on valid is there.

    Args:
        target: the accuracy, a share; None: for each data set the highest that all of its runs reach.
    """

    def parts(trials: pd.DataFrame) -> Iterator[Part]:
        whole = trials[(trials["label_fraction"] == 1) & trials["loss"].isin(["clar", "self_supervised"])]
        for label, group in _alike(whole, ["loss"]):
            if group["loss"].nunique() < 2:
                continue
            done = group[(group["state"] == "done") & (group["curve"].map(len) > 0)]
            curves: dict[Any, dict[str, dict[int, float]]] = {
                seed: dict(zip(one["loss"], one["curve"], strict=True)) for seed, one in done.groupby("seed")
            }
            curves = {seed: both for seed, both in curves.items() if len(both) == 2}
            reached = [max(curve.values()) for both in curves.values() for curve in both.values()]
            goal = target if target is not None else min(reached, default=math.nan)
            differences = {
                seed: float(_epochs_to(goal, both["self_supervised"]) - _epochs_to(goal, both["clar"]))
                for seed, both in curves.items()
            }
            where = f"to {100 * goal:.1f} % on valid, {label}" if reached or target is not None else label
            yield Part(where, differences, group["seed"].nunique())

    return parts


def _epochs_to(target: float, curve: Mapping[int, float]) -> int:
    """The first epoch with this accuracy; one after the last where it was never reached, which is at least so many."""
    return next((epoch for epoch, value in sorted(curve.items()) if value >= target), max(curve) + 1)


PAPER = (
    Claim("The best composition of two augmentations beats the best single one", _composition),
    Claim(
        "Spectrogram input beats the raw waveform",
        lambda trials: versus(trials, {"input": "spectrogram"}, {"input": "raw"}),
    ),
    Claim(
        "CLAR beats self-supervised, then fine-tuned, at every label fraction",
        lambda trials: versus(trials, {"loss": "clar"}, {"loss": "finetune"}),
    ),
    Claim("CLAR beats supervised, most with few labels", _beats_supervised),
    Claim("CLAR reaches a given accuracy in fewer epochs than self-supervised", fewer_epochs(), unit=EPOCHS),
)
"""What the paper claims."""
