"""The statistics of the tables and figures: intervals, rank correlation, Pareto fronts.

SciPy loads where it is used: `scipy.stats` takes seconds, and most tables need none of it.
"""

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

_RESAMPLES = 1999
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
