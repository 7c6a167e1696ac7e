"""The statistics of the tables, claims and figures.

Trials of one seed see the same data split and draw from the same generators, so cells are compared seed by seed: all
tests are paired. They are SciPy's and statsmodels'; what is here chooses among them and says when there is none.

SciPy and statsmodels load where they are used: they take seconds, and a table of one seed needs none of them.
"""

import math
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

LEVEL = 0.05
"""Below this a p-value, corrected for how many were looked at, decides."""

POWER = 0.8
"""How likely a test should find what is there."""

_ROUNDING = 1e-12
"""Share of the squares below which what is left is rounding."""

_RESAMPLES = 1999
_MOST_RUNS = 10_000
_SAME = 1e-7
"""Shares that differ by less are equal: one clip of ten million, or the same accuracy added up in another order."""

_FEWEST_PAIRS = 4


class Agreement(NamedTuple):
    """How far two rankings of the same things agree.

    Attributes:
        tau: Kendall's tau-b, -1 (reversed) to 1 (the same order); NaN where a ranking has no order.
        low, high: 95 % interval; NaN for fewer than 4 pairs.
        n: pairs.
    """

    tau: float
    low: float
    high: float
    n: int


def mean_interval(values: Iterable[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean, and the bounds of Student's t interval for it: (mean, low, high), the same for any order of the values.

    One value has no bounds (NaN), none has no mean either.
    """
    # Sorted and summed exactly: the same trials, found in another order, give the same bytes in the table.
    ordered = sorted(values)
    n = len(ordered)
    mean = math.fsum(ordered) / n if n else math.nan
    if n < 2:
        return mean, math.nan, math.nan
    # The quantile that scipy.stats.t.ppf gives, without the seconds that importing scipy.stats takes.
    from scipy.special import stdtrit

    half = float(stdtrit(n - 1, (1 + confidence) / 2)) * float(np.std(ordered, ddof=1)) / math.sqrt(n)
    return mean, mean - half, mean + half


def kendall_tau(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Agreement:
    """Kendall's tau-b of two scores of the same things, with a 95 % percentile bootstrap interval over the things.

    Pairs that lack a finite score are left out. The result does not depend on the order of the pairs.

    Args:
        first: a score of each thing.
        second: another score of each, in the same order.
        seed: of the bootstrap's resamples.

    Raises:
        ValueError: the two differ in length.
    """
    pairs = sorted(
        (float(a), float(b)) for a, b in zip(first, second, strict=True) if math.isfinite(a) and math.isfinite(b)
    )
    n = len(pairs)
    if n < 2 or any(len(set(scores)) == 1 for scores in zip(*pairs, strict=True)):
        return Agreement(math.nan, math.nan, math.nan, n)
    from scipy import stats

    def tau(a: np.ndarray, b: np.ndarray) -> float:
        return float(stats.kendalltau(a, b).statistic)

    a, b = np.array(pairs).T
    found = tau(a, b)
    if n < _FEWEST_PAIRS:
        return Agreement(found, math.nan, math.nan, n)
    with warnings.catch_warnings():
        # A resample of one thing alone has no order and no tau: SciPy warns, and the quantiles below leave it out.
        warnings.simplefilter("ignore")
        drawn = stats.bootstrap(
            (a, b), tau, paired=True, vectorized=False, n_resamples=_RESAMPLES, method="percentile",
            rng=np.random.default_rng(seed),
        )  # fmt: skip
    low, high = np.nanquantile(drawn.bootstrap_distribution, (0.025, 0.975))
    return Agreement(found, float(low), float(high), n)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other one beats: as large in the first, as small in the second, and better in one.

    In order of the second, so that they draw as a line; equal points are all kept, in their own order. A point with a
    NaN is on no front.
    """
    known = [i for i, point in enumerate(points) if not any(map(math.isnan, point))]
    front: list[int] = []
    for i in sorted(known, key=lambda i: (points[i][1], -points[i][0], i)):
        # The last one on the front has the largest first of all that cost no more.
        if not front or points[i][0] > points[front[-1]][0] or tuple(points[i]) == tuple(points[front[-1]]):
            front.append(i)
    return front


class Paired(NamedTuple):
    """How much one thing is above another, seed by seed.

    Attributes:
        effect: mean difference; NaN where no seed has both.
        low, high: 95 % interval; NaN where the seeds do not scatter, or there is one alone.
        p: of the hypothesis that the difference is `margin`, two-sided; NaN for fewer than two seeds.
        n: seeds that have both.
    """

    effect: float
    low: float
    high: float
    p: float
    n: int


def paired(differences: Iterable[float], margin: float = 0.0, counts: bool = False) -> Paired:
    """Student's paired t-test of differences, one a seed.

    Whole numbers, such as epochs, often scatter little or not at all, and t would be huge after three seeds;
    differences that are all equal have no scatter to go by. Both are tested by a permutation test, over all ways to
    flip their signs: what n seeds can say at most is 2 * 0.5^n.

    Args:
        differences: one a seed, in any order; those that are not finite are left out.
        margin: what they are tested against.
        counts: they are whole numbers.
    """
    values = np.array(sorted(value for value in differences if math.isfinite(value)))
    effect, low, high = mean_interval(values)
    n = len(values)
    if n < 2:
        return Paired(effect, low, high, math.nan, n)
    from scipy import stats

    level = np.ptp(values) < _SAME
    if level:
        low = high = math.nan
    if not counts and not level:
        return Paired(effect, low, high, float(stats.ttest_1samp(values, margin).pvalue), n)
    if abs(effect - margin) < _SAME:
        return Paired(effect, low, high, 1.0, n)
    flipped = stats.permutation_test(
        (values - margin,), np.mean, permutation_type="samples", rng=np.random.default_rng(0)
    )
    return Paired(effect, low, high, float(flipped.pvalue), n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction of p-values that belong together; a NaN is no test, stays NaN and corrects nothing."""
    adjusted = [math.nan] * len(p_values)
    known = [i for i, p in enumerate(p_values) if not math.isnan(p)]
    if known:
        from statsmodels.stats.multitest import multipletests

        for i, p in zip(known, multipletests([p_values[i] for i in known], method="holm")[1], strict=True):
            adjusted[i] = float(p)
    return adjusted


def runs_needed(
    differences: Iterable[float], margin: float = 0.0, level: float = LEVEL, counts: bool = False
) -> int | None:
    """Seeds with which a paired test would find the effect with probability 0.8, were it as large as it looks.

    None where that cannot be said, from one seed or from no difference at all, or where it is about 10,000 or more. For
    whole numbers it is that of the t-test, and as many at least as signs need.
    """
    values = [value for value in differences if math.isfinite(value)]
    if len(values) < 2 or abs(math.fsum(values) / len(values) - margin) < _SAME:
        return None
    signs = math.ceil(1 - math.log2(level) + _SAME)
    scatter = float(np.std(values, ddof=1))
    if scatter < _SAME:
        return signs
    from statsmodels.stats.power import TTestPower

    size = abs(math.fsum(values) / len(values) - margin) / scatter

    def enough(runs: int) -> bool:
        return bool(TTestPower().power(size, runs, level) >= POWER)

    few, many = 1, 2
    while not enough(many):
        few, many = many, 2 * many
        if many > _MOST_RUNS:
            return None
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if enough(middle) else (middle, many)
    return max(many, signs) if counts else many


def best_and_ties(
    cells: Mapping[Hashable, Mapping[int, float]], maximise: bool = True
) -> tuple[Hashable | None, dict[Hashable, float]]:
    """The best cell, and each other one's p-value against it, paired over common seeds and corrected by Holm.

    The best is the one of the best mean; where half of the cells or more have two seeds, it is one of them: one lucky
    seed, the first of a cell that is still running, is no best cell. The p-value is NaN where two cells have no two
    seeds in common. That the best is chosen by the same numbers makes the tests a little too keen to tell cells apart.

    Args:
        cells: of each, the value by seed.
        maximise: else the best is the smallest.
    """
    known = {cell: values for cell, values in cells.items() if values}
    if not known:
        return None, {}
    sign = 1 if maximise else -1
    repeated = [cell for cell, values in known.items() if len(values) > 1]
    best = max(
        repeated if 2 * len(repeated) >= len(known) else known,
        key=lambda cell: round(sign * math.fsum(known[cell].values()) / len(known[cell]), 12),
    )
    others = [cell for cell in known if cell != best]
    tests = [
        paired(known[best][seed] - known[cell][seed] for seed in sorted(known[best].keys() & known[cell].keys()))
        for cell in others
    ]
    return best, dict(zip(others, holm([test.p for test in tests]), strict=True))


class Effect(NamedTuple):
    """What one level of a factor, or one pair of levels, adds.

    Attributes:
        name: of the level, or `first > second` of a pair.
        place: `first`, `second`, or `pair`.
        effect: above the mean of all, the other factor alike; of a pair, above what its two levels add up to.
        low, high: 95 % interval; NaN where nothing is left to judge by.
        p: corrected by Holm over the effects of its kind (the levels of both factors; the pairs).
    """

    name: str
    place: str
    effect: float
    low: float
    high: float
    p: float


class Source(NamedTuple):
    """A line of an analysis of variance: degrees of freedom, share of the variance, F and p (NaN: none)."""

    name: str
    df: int
    share: float
    f: float
    p: float


@dataclass(frozen=True)
class TwoWay:
    """What `two_way` found: effects of the levels, of the pairs, and the analysis of variance."""

    levels: list[Effect]
    pairs: list[Effect]
    sources: list[Source]
    seeds: int


def two_way(values: pd.DataFrame) -> TwoWay | None:
    """Two-way analysis of variance, seeds as blocks: what each level adds as first and as second, their interaction.

    Cells may be missing (the augmentation grid has no pair of one augmentation with itself), and cells may lack seeds:
    effects are those of the additive model, `value ~ first + second`, fitted to the cells' means, which are adjusted
    for the seeds that they lack. Scatter is judged by what is left of `value ~ seed + cell`; with one seed nothing is,
    and the interaction takes its place: the levels can be judged then, the pairs cannot. The sums of squares of `first`
    and `second` are those after the other (type II).

    Args:
        values: a row a trial: `first`, `second`, `seed` and `value`.

    Returns:
        None where there is nothing to analyse (fewer than two levels of either, cells that do not connect, values that
        are all equal).
    """
    frame = values.dropna(subset=["value"])
    cells = frame[["first", "second"]].drop_duplicates().sort_values(["first", "second"])
    firsts, seconds = sorted(cells["first"].unique()), sorted(cells["second"].unique())
    if len(firsts) < 2 or len(seconds) < 2:
        return None
    # Codes that sum to zero: the intercept is the mean of all, a coefficient what its level adds to it.
    code_first, code_second = _sum_codes(firsts), _sum_codes(seconds)
    of_cells = np.array([[1.0, *code_first[x], *code_second[z]] for x, z in cells.itertuples(index=False)])
    if np.linalg.matrix_rank(of_cells) < of_cells.shape[1]:
        return None
    from scipy import stats
    from statsmodels.regression.linear_model import OLS

    place = {cell: i for i, cell in enumerate(cells.itertuples(index=False, name=None))}
    cell_of = [place[cell] for cell in frame[["first", "second"]].itertuples(index=False, name=None)]
    seeds = sorted(frame["seed"].unique())
    code_seed = _sum_codes(seeds)
    blocks = np.array([code_seed[seed] for seed in frame["seed"]]).reshape(len(frame), len(seeds) - 1)
    additive, separate = of_cells[cell_of], np.eye(len(cells))[cell_of]
    y, a = frame["value"].to_numpy(dtype=float), len(firsts)
    total = float(np.sum((y - y.mean()) ** 2))
    if total < len(y) * _SAME**2:
        return None

    def fit(*columns: np.ndarray) -> Any:
        return OLS(y, np.column_stack(columns)).fit(method="qr")

    sums, full = fit(additive, blocks), fit(separate, blocks)
    repeated = full.df_resid > 0
    error, base = (full, separate) if repeated else (sums, additive)
    # What is left may be nothing but rounding: then there is nothing to judge by.
    judged = error.df_resid > 0 and error.ssr > _ROUNDING * total

    def source(name: str, smaller: Any, larger: Any) -> Source:
        # statsmodels' anova_lm of several models takes F's error from the last, but its degrees of freedom from each.
        df, explained = int(smaller.df_resid - larger.df_resid), float(smaller.ssr - larger.ssr)
        f = float(explained / df / error.mse_resid) if judged else math.nan
        return Source(name, df, max(explained / total, 0.0), f, float(stats.f.sf(f, df, error.df_resid)))

    sources = [
        source("first", fit(additive[:, [0]], additive[:, a:], blocks), sums),
        source("second", fit(additive[:, :a], blocks), sums),
    ]
    interacting = repeated and len(cells) > of_cells.shape[1]
    if interacting:
        sources.append(source("first x second", sums, full))
    if len(seeds) > 1:
        sources.append(source("seed", fit(base), error))
    sources.append(Source("rest", int(error.df_resid), float(error.ssr) / total, math.nan, math.nan))

    # From the coefficients to the effects of all levels, those among them that the codes leave out.
    of_levels = np.zeros((a + len(seconds), of_cells.shape[1]))
    of_levels[:a, 1:a], of_levels[a:, a:] = list(code_first.values()), list(code_second.values())
    names = [*((str(name), "first") for name in firsts), *((str(name), "second") for name in seconds)]
    solve = np.linalg.pinv(of_cells)
    levels = _effects(error, of_levels @ solve if repeated else of_levels, names, judged)
    pairs = [(f"{x} > {z}", "pair") for x, z in place]
    beyond = np.eye(len(cells)) - of_cells @ solve
    return TwoWay(levels, _effects(full, beyond, pairs, judged) if interacting else [], sources, len(seeds))


def _sum_codes(levels: Sequence[Any]) -> dict[Any, np.ndarray]:
    """A row of numbers for each level; each column sums to zero."""
    codes = np.vstack([np.eye(len(levels) - 1), -np.ones(len(levels) - 1)])
    return dict(zip(levels, codes, strict=True))


def _effects(fitted: Any, contrasts: np.ndarray, names: Sequence[tuple[str, str]], judged: bool) -> list[Effect]:
    """Linear combinations of a fit's first coefficients; with intervals and p-values where they can be judged."""
    blocks = np.zeros((len(contrasts), len(fitted.params) - contrasts.shape[1]))
    weights = np.hstack([contrasts, blocks])
    if not judged:
        estimates = weights @ fitted.params
        return [Effect(*name, float(x), math.nan, math.nan, math.nan) for name, x in zip(names, estimates, strict=True)]
    found = fitted.t_test(weights)
    estimates = np.atleast_1d(found.effect)
    intervals, p_values = np.atleast_2d(found.conf_int(LEVEL)), holm(np.atleast_1d(found.pvalue).tolist())
    return [
        Effect(*name, float(x), float(low), float(high), p)
        for name, x, (low, high), p in zip(names, estimates, intervals, p_values, strict=True)
    ]
