"""Intervals, rank correlation and Pareto fronts, against other routes to the same numbers."""

import math
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analysis.statistics import Agreement, kendall_tau, mean_interval, pareto_front

SHARES = st.floats(0, 1, allow_subnormal=False)
# Few distinct numbers, so that ties are common.
COARSE = st.integers(0, 4).map(float)


@given(st.lists(SHARES, min_size=2, max_size=30), st.sampled_from((0.8, 0.95, 0.99)))
def test_the_interval_is_that_of_scipys_t_test(values: list[float], confidence: float) -> None:
    mean, low, high = mean_interval(values, confidence)
    assert mean == pytest.approx(np.mean(values))
    if np.std(values) > 1e-6:
        reference = stats.ttest_1samp(values, 0.0).confidence_interval(confidence)
        assert (low, high) == pytest.approx((reference.low, reference.high), rel=1e-6, abs=1e-9)
    assert low <= mean <= high


def test_the_interval_of_a_textbook_sample() -> None:
    # n = 3, s = 0.1, t(0.975, 2) = 4.302653 in any table: half of it is 4.302653 * 0.1 / sqrt(3).
    assert mean_interval([0.4, 0.5, 0.6]) == pytest.approx((0.5, 0.5 - 0.2484137, 0.5 + 0.2484137), abs=1e-6)


def test_the_interval_holds_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    bounds = [mean_interval(rng.normal(0.6, 0.04, 3)) for _ in range(4000)]
    assert np.mean([low < 0.6 < high for _, low, high in bounds]) == pytest.approx(0.95, abs=0.012)


def test_one_value_has_no_bounds_and_none_no_mean() -> None:
    assert mean_interval([0.913]) == pytest.approx((0.913, math.nan, math.nan), nan_ok=True)
    assert all(map(math.isnan, mean_interval([])))
    assert mean_interval([0.5, 0.5]) == (0.5, 0.5, 0.5)


@given(st.lists(SHARES, min_size=1, max_size=12), st.randoms())
def test_the_interval_does_not_depend_on_the_order(values: list[float], random: object) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert str(mean_interval(values)) == str(mean_interval(shuffled))


def tau_by_pairs(pairs: list[tuple[float, float]]) -> float:
    """Tau-b from its definition, pair by pair."""
    signs = [(np.sign(a[0] - b[0]), np.sign(a[1] - b[1])) for a, b in combinations(pairs, 2)]
    agree = sum(x * y for x, y in signs)
    return float(agree / math.sqrt(sum(x * x for x, _ in signs) * sum(y * y for _, y in signs)))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(COARSE, COARSE), min_size=0, max_size=10))
def test_tau_is_that_of_its_definition(pairs: list[tuple[float, float]]) -> None:
    found = kendall_tau([a for a, _ in pairs], [b for _, b in pairs])
    assert found.n == len(pairs)
    if len({a for a, _ in pairs}) < 2 or len({b for _, b in pairs}) < 2:
        assert all(map(math.isnan, found[:3]))
        return
    assert found.tau == pytest.approx(tau_by_pairs(pairs))
    if len(pairs) < 4:
        assert math.isnan(found.low)
        assert math.isnan(found.high)
    else:
        assert -1 <= found.low <= found.high <= 1


def test_the_bootstrap_is_that_of_resampled_things() -> None:
    rng = np.random.default_rng(3)
    first = rng.normal(size=25)
    second = first + rng.normal(size=25)
    found = kendall_tau(first.tolist(), second.tolist())
    drawn = [
        stats.kendalltau(first[chosen], second[chosen]).statistic
        for chosen in np.random.default_rng(4).integers(0, 25, (2000, 25))
    ]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, (0.025, 0.975))), abs=0.04)
    assert found.low < found.tau < found.high


def test_tau_is_seeded_and_does_not_depend_on_the_order_of_things() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 12))
    order = rng.permutation(12)
    assert kendall_tau(first, second) == kendall_tau(first[order], second[order])
    assert kendall_tau(first, second) != kendall_tau(first, second, seed=1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([], [], (math.nan,) * 3),
        ([1], [2], (math.nan,) * 3),
        ([1, 2, 3], [4, 5, 6], (1, math.nan, math.nan)),
        ([1, 1, 1, 1, 1], [1, 2, 3, 4, 5], (math.nan,) * 3),
        ([1, 2, 3, 4], [4, 3, 2, 1], (-1, -1, -1)),
        # Many resamples of these have no order at all.
        ([0, 0, 0, 1], [0, 0, 0, 1], (1, 1, 1)),
        ([1, 2, 3, math.nan, 9], [1, 2, 3, 4, math.inf], (1, math.nan, math.nan)),
    ],
)
def test_odd_scores_give_no_warning(first: list[float], second: list[float], expected: tuple[float, ...]) -> None:
    found = kendall_tau(first, second)
    assert isinstance(found, Agreement)
    assert found[:3] == pytest.approx(expected, nan_ok=True)


def test_scores_of_different_things_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        kendall_tau([1, 2], [1])


@given(st.lists(st.tuples(COARSE | st.just(math.nan), COARSE), max_size=25))
def test_the_front_is_that_of_brute_force(points: list[tuple[float, float]]) -> None:
    front = pareto_front(points)

    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a[0] >= b[0] and a[1] <= b[1] and a != b

    known = [i for i, point in enumerate(points) if not math.isnan(point[0])]
    assert set(front) == {i for i in known if not any(beats(points[j], points[i]) for j in known)}
    assert len(front) == len(set(front))
    # It draws as a line, and equal points keep their own order.
    assert front == sorted(front, key=lambda i: (points[i][1], i))


def test_importing_loads_no_scipy() -> None:
    code = "import sys, analysis.statistics, analysis.tables; print({'scipy', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_an_interval_loads_no_scipy_stats() -> None:
    code = (
        "import sys; from analysis.statistics import *; mean_interval([1, 2, 3]); print('scipy.stats' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
