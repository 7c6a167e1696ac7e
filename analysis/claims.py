"""The paper's claims as statements that a sweep's trials confirm, refute or leave undecided.

A claim is a sentence and a function that finds, among the trials, what it compares: parts, each with one difference a
seed. Claims of one's own go into a file, and `python -m analysis.report NAME --claims FILE` checks them too:

    from analysis.claims import Claim, versus

    CLAIMS = [Claim("Low temperature beats high", lambda t: versus(t, {"temperature": 0.1}, {"temperature": 0.5}))]

`versus` pairs trials that are equal in every other field, so a claim finds its trials in whatever study they stand.

How it is judged: a part is confirmed where its differences are above the claim's margin, refuted where they are below
it, by a paired test over the seeds with p < 0.05, corrected by Holm over the parts of the claim; the intervals beside
it are not corrected. A claim is confirmed when all its parts are, refuted when one of them is. The test accuracy is
looked at by every claim; to choose by it is left to none: what has to be chosen, such as the best pair, is chosen on
valid, and by other seeds than it is judged by.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import pandas as pd

from analysis.results import FIELDS
from analysis.statistics import LEVEL, holm, paired, runs_needed
from clar.errors import UserError, near

POINTS, EPOCHS = "points", "epochs"
"""Units of a difference: percentage points (it is a share), epochs."""

NOT_CONVERGED = 0.7
"""Share of ln C, the cross-entropy of a guess among C classes, above which supervised training has not converged: who
beats it has beaten a handicap."""

_NOT_CONVERGED = "not converged"
_FEWEST_SEEDS = 3
_OTHER = " of the other"


class Part(NamedTuple):
    """One comparison of a claim.

    Attributes:
        label: what is compared where: `10 % of labels, digits`.
        differences: by seed, above 0 where they speak for the claim; shares, or epochs.
        lacking: how many seeds of the sweep have no difference, by why: `failed`, `cut`, `missing`, `running`, ...
        share: of the seeds, that which gives differences; the others choose what is compared.
    """

    label: str
    differences: Mapping[int, float]
    lacking: Mapping[str, int] = MappingProxyType({})
    share: float = 1.0


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
        """The part on which the claim hangs: the surest of the refuted, else the one least sure to be confirmed."""
        return min(self.parts, key=_hangs_on)

    @property
    def evidence(self) -> str:
        """The numbers of the decisive part, where it stands if there are others, and what would decide it."""
        worst = self.decisive
        where = f" ({worst.label})" if len(self.parts) > 1 else ""
        needs = f"; {worst.needs}" if worst.needs else ""
        return f"{describe(worst, self.claim.unit)}{where}{needs}"

    def __str__(self) -> str:
        return f"{self.claim.statement}: {self.verdict}; {self.evidence}"


def _hangs_on(part: JudgedPart) -> tuple[int, float, float]:
    p, effect = (math.inf if math.isnan(part.p) else part.p), (0.0 if math.isnan(part.effect) else part.effect)
    return ("refuted", "undecided", "confirmed").index(part.verdict), p if part.verdict == "refuted" else -p, effect


def describe(part: JudgedPart, unit: str) -> str:
    """`+2.1 points (0.4 to 3.8), p = 0.021, n = 5`."""
    p = [] if math.isnan(part.p) else [f"p {p_text(part.p)}"]
    return ", ".join([*([effect_text(part, unit)] if part.n else []), *p, f"n = {part.n}"])


def effect_text(part: JudgedPart, unit: str) -> str:
    """`+2.1 points (0.4 to 3.8)`; a dash where there is none."""
    if not part.n:
        return "-"
    scale, name = (100, "points") if unit == POINTS else (1, unit)
    # Adding 0 makes 0 of -0.
    low, effect, high = (round(scale * value, 1) + 0 for value in (part.low, part.effect, part.high))
    return f"{effect:+.1f} {name}" + ("" if math.isnan(low) else f" ({low:.1f} to {high:.1f})")


def p_text(p: float) -> str:
    """`= 0.021`, `< 0.001`."""
    return "< 0.001" if p < 0.001 else f"= {p:.2g}" if p < 0.1 else f"= {p:.2f}"


def judge(claims: Iterable[Claim], trials: pd.DataFrame) -> list[Judgement]:
    """The claims that these trials have something to say about, judged."""
    return [judgement for claim in claims if (judgement := _judge(claim, trials)) is not None]


def _judge(claim: Claim, trials: pd.DataFrame) -> Judgement | None:
    try:
        parts = list(claim.parts(trials))
    except Exception as error:
        what = f"no field {error}{near(str(error.args[0]), trials.columns)}" if isinstance(error, KeyError) else error
        raise UserError(f"the claim {claim.statement!r} cannot be checked: {what}") from error
    if not parts:
        return None
    counts = claim.unit != POINTS
    tests = [paired(part.differences.values(), claim.margin, counts) for part in parts]
    adjusted = holm([test.p for test in tests])
    judged = []
    for part, test, p in zip(parts, tests, adjusted, strict=True):
        verdict = "undecided"
        if p < LEVEL:
            verdict = "confirmed" if test.effect > claim.margin else "refuted"
        if verdict == "confirmed" and part.lacking.get(_NOT_CONVERGED):
            verdict = "undecided"
        needs = "" if verdict != "undecided" else _needs(part, test.n, claim.margin, LEVEL / len(parts), counts)
        judged.append(JudgedPart(part.label, verdict, test.effect, test.low, test.high, p, test.n, needs))
    verdicts = {part.verdict for part in judged}
    verdict = "refuted" if "refuted" in verdicts else "undecided" if "undecided" in verdicts else "confirmed"
    return Judgement(claim, verdict, judged)


def _needs(part: Part, n: int, margin: float, level: float, counts: bool) -> str:
    """What more runs would decide a part, were its effect as large as it looks."""
    lacking = sum(part.lacking.values())
    if lacking:
        why = ", ".join(f"{count} {state}" for state, count in sorted(part.lacking.items()))
        return f"{lacking} of {round(n / part.share) + lacking} seeds not compared ({why})"
    fewest = math.ceil(_FEWEST_SEEDS / part.share)
    if n < 2:
        return f"--seeds {fewest} or more would tell how much it scatters"
    runs = runs_needed(part.differences.values(), margin, level, counts)
    if runs is None:
        return "too small a difference for any number of seeds that could be run"
    if n < _FEWEST_SEEDS:
        runs = max(runs, _FEWEST_SEEDS)
    return f"--seeds {math.ceil(max(runs, n + 1) / part.share)} would decide it, were it as large as it looks"


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
        ValueError: the two sides do not say values of the same fields.
    """
    if set(better) != set(worse):
        raise ValueError(f"versus compares values of the same fields, not {set(better)} with {set(worse)}")
    one, other = _having(trials, better), _having(trials, worse)
    # Where the two sides are told apart by a field, it is no part of what they have in common.
    keys = [name for name in FIELDS if name not in better]
    both = one.merge(other, on=keys, suffixes=("", _OTHER))
    # A field that does not matter for a trial makes no second one of it: it would be compared with itself.
    both = both[both["identity"] != both[f"identity{_OTHER}"]].drop_duplicates(["identity", f"identity{_OTHER}"])
    if both.empty:
        return
    groups = [name for name in keys if name != "seed"]
    named = [name for name in groups if name == "dataset" or both[name].nunique(dropna=False) > 1]
    # An opponent that is still near a guess's loss is a handicap of our own making.
    handicapped = both[f"loss_left{_OTHER}"] > NOT_CONVERGED
    both[f"state{_OTHER}"] = both[f"state{_OTHER}"].mask(handicapped, _NOT_CONVERGED)
    both = both.assign(difference=(both[metric] - both[f"{metric}{_OTHER}"]).mask(handicapped))
    for values, part in both.groupby(named, sort=False, dropna=False):
        label = ", ".join(_said(name, value) for name, value in zip(named, values, strict=True))
        known = part.dropna(subset=["difference"])
        states = part[part["difference"].isna()][["state", f"state{_OTHER}"]].itertuples(index=False, name=None)
        lacking = Counter(next((state for state in pair if state != "done"), "without it") for pair in states)
        yield Part(label, dict(zip(known["seed"], known["difference"], strict=True)), lacking)


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
    """The best pair against the best augmentation alone: chosen on valid by half of the seeds, judged by the others.

    The best of 42 pairs is partly the luckiest: judged by the seeds that it was chosen by, it would look better than it
    is, and more so than the best of 7. (Choosing for each seed by all others leaves no bias, but differences that share
    their choice: with all cells equal, one test in six was significant at 0.05.)
    """
    of_loss = trials[trials["loss"] == "self_supervised"].drop_duplicates("identity")
    for label, group in _alike(of_loss, ["augmentations"]):
        counts = group["augmentations"].map(lambda names: len(names.split(" > ")) if names else 0)
        kinds = [group[counts == 2], group[counts == 1]]
        if any(kind["augmentations"].nunique() < 2 for kind in kinds):
            continue
        # A seed with a trial that has no result would choose, or be judged, among the others only.
        unfinished = _unfinished(group[counts.isin((1, 2))])
        whole = sorted(set(group["seed"]) - set(unfinished))
        choosing, judging = whole[: len(whole) // 2], whole[len(whole) // 2 :]
        differences = {}
        if choosing:
            pair, single = (_best_on_valid(kind[kind["seed"].isin(choosing)]) for kind in kinds)
            tests = group.set_index(["augmentations", "seed"])["test_top1"]
            differences = {seed: float(tests.loc[(pair, seed)] - tests.loc[(single, seed)]) for seed in judging}
            label = f"{pair} against {single}, {label}"
        yield Part(label, differences, Counter(unfinished.values()), share=0.5)


def _best_on_valid(trials: pd.DataFrame) -> str:
    means = trials.groupby("augmentations", sort=False)["valid_top1"].mean()
    return str(means.round(12).idxmax())


def _beats_supervised(trials: pd.DataFrame) -> Iterator[Part]:
    """CLAR against supervised at each label fraction, and its gain with the fewest labels against that with all."""
    parts = list(versus(trials, {"loss": "clar"}, {"loss": "supervised"}))
    yield from parts
    for label, group in _alike(trials[trials["loss"].isin(["clar", "supervised"])], ["loss", "label_fraction"]):
        fractions = sorted(group["label_fraction"].unique())
        if len(fractions) < 2 or group["loss"].nunique() < 2:
            continue
        values = group.pivot_table(
            index="seed", columns=["loss", "label_fraction"], values="test_top1", dropna=False, aggfunc="first"
        )
        needed = [(loss, fraction) for loss in ("clar", "supervised") for fraction in (fractions[0], fractions[-1])]
        values = values.reindex(columns=pd.MultiIndex.from_tuples(needed))
        few, many = (
            values["clar", fraction] - values["supervised", fraction] for fraction in (fractions[0], fractions[-1])
        )
        needed_ones = group[group["label_fraction"].isin((fractions[0], fractions[-1]))]
        open_ones = needed_ones[(needed_ones["loss"] == "supervised") & (needed_ones["loss_left"] > NOT_CONVERGED)]
        handicapped = set(open_ones["seed"])
        more = (few - many).dropna().drop(handicapped, errors="ignore")
        few_said, many_said = _said("label_fraction", fractions[0]), _said("label_fraction", fractions[-1])
        yield Part(
            f"more with {few_said} than with {many_said}, {label}",
            dict(zip(more.index, more, strict=True)),
            _lacking(needed_ones[~needed_ones["seed"].isin(handicapped)], more.index)
            + Counter({_NOT_CONVERGED: len(handicapped)}),
        )


def fewer_epochs(target: float | None = None) -> Callable[[pd.DataFrame], Iterator[Part]]:
    """CLAR against self-supervised: how many epochs fewer it takes until the probe's accuracy on valid is there.

    Args:
        target: the accuracy, a share; None: for each data set the highest that all of its runs reach.
    """

    def parts(trials: pd.DataFrame) -> Iterator[Part]:
        whole = trials[(trials["label_fraction"] == 1) & trials["loss"].isin(["clar", "self_supervised"])]
        # With all labels seen, both protocols of the probe are one trial.
        whole = whole.drop_duplicates("identity")
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
            # Where neither gets there, nothing is known of which would be first.
            decided = {
                seed: both for seed, both in curves.items() if any(max(c.values()) >= goal for c in both.values())
            }
            differences = {
                seed: float(_epochs_to(goal, both["self_supervised"]) - _epochs_to(goal, both["clar"]))
                for seed, both in decided.items()
            }
            lacking = _lacking(group, curves)
            if len(decided) < len(curves):
                lacking["never there"] = len(curves) - len(decided)
            where = f"to {100 * goal:.1f} % on valid, {label}" if reached or target is not None else label
            yield Part(where, differences, lacking)

    return parts


def _lacking(trials: pd.DataFrame, known: Iterable[int]) -> Counter[str]:
    """Seeds of these trials that are not known, by why not."""
    unfinished = _unfinished(trials)
    return Counter(unfinished.get(seed, "without it") for seed in sorted(set(trials["seed"]) - set(known)))


def _unfinished(trials: pd.DataFrame) -> dict[int, str]:
    """Seeds that have a trial which is not done, and its state."""
    open_ones = trials[trials["state"] != "done"].sort_values("state")
    return dict(zip(open_ones["seed"], open_ones["state"], strict=True))


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
