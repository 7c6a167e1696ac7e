"""Intervals, rank correlation and Pareto fronts, against other routes to the same numbers."""

import math
import subprocess
import sys
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.anova import anova_lm

from analysis.statistics import (
    Agreement,
    best_and_ties,
    holm,
    kendall_tau,
    mean_interval,
    paired,
    pareto_front,
    runs_needed,
    two_way,
)

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


@given(st.lists(st.floats(-1, 1, allow_subnormal=False), min_size=2, max_size=20), st.floats(-0.5, 0.5))
def test_the_paired_test_is_that_of_scipy(differences: list[float], margin: float) -> None:
    found = paired(differences, margin)
    if np.ptp(differences) > 1e-6:
        assert found.p == pytest.approx(stats.ttest_1samp(differences, margin).pvalue, rel=1e-6, abs=1e-12)
        assert found[:3] == pytest.approx(mean_interval(differences))
    assert found.n == len(differences)


def test_the_paired_test_of_a_textbook_sample() -> None:
    # Differences 1, 2, 3: mean 2, s = 1, t = 2 / (1 / sqrt(3)) = 3.4641, 2 degrees of freedom: p = 0.0742.
    found = paired([0.01, 0.02, 0.03])
    assert (found.effect, found.n) == (pytest.approx(0.02), 3)
    assert found.p == pytest.approx(0.0742, abs=5e-5)


def test_differences_that_are_all_equal_go_by_their_signs() -> None:
    """Student's t of three equal differences is infinite, which three runs cannot be worth."""
    assert paired([2.0, 2.0, 2.0]).p == pytest.approx(0.25)
    # Whole numbers: five differences of one sign are worth 2 * 0.5^5, whether they scatter a little or not at all.
    assert paired([5, 5, 5, 5, 6], counts=True).p == paired([5, 5, 5, 5, 5], counts=True).p == pytest.approx(2 / 32)
    # 1, 2 and -4 add up to -1, the least of the eight sums that their signs can give: all are as far from 0.
    assert paired([1, 2, -4], counts=True).p == pytest.approx(1.0)
    assert paired([0.7 - 0.6, 0.8 - 0.7, 0.9 - 0.8, 0.1, 0.1, 0.1]).p == pytest.approx(2 * 0.5**6)
    assert paired([0.0, 0.0]).p == 1
    assert math.isnan(paired([0.1]).p)
    assert paired([]).n == 0
    assert paired([0.1, math.nan]).n == 1


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.03, 0.04: 3 x 0.01, 2 x 0.03, and the last not below the one before it.
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.01, math.nan, 0.04]) == pytest.approx([0.02, math.nan, 0.04], nan_ok=True)
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_values_that_do_not_scatter_are_no_significance() -> None:
    """Collapsed runs, all of one accuracy; and effects that add up exactly: what is left is rounding."""
    names = list("abcd")
    assert two_way(factorial([(a, b, s, 0.1) for a in names for b in names for s in range(3)])) is None
    rows = [
        (a, b, s, 0.1 * i + 0.01 * j + 0.001 * s)
        for i, a in enumerate(names)
        for j, b in enumerate(names)
        for s in range(3)
    ]
    found = two_way(factorial(rows))
    assert [source.share >= 0 for source in found.sources] == [True] * 5
    assert all(math.isnan(source.p) for source in found.sources)
    assert all(math.isnan(one.p) for one in [*found.levels, *found.pairs])
    assert found.levels[0].effect == pytest.approx(-0.15)


def test_runs_needed_are_those_of_the_tables() -> None:
    """Cohen's: a paired test finds d = 0.5 with a power of 0.8 from 34 pairs on, d = 0.8 from 15, d = 0.2 from 199."""
    for d, pairs in ((0.5, 34), (0.8, 15), (0.2, 199)):
        # Two values with this ratio of mean to standard deviation.
        half = 1 / math.sqrt(2)
        assert runs_needed([d - half, d + half]) == pairs
    assert runs_needed([1.0, 1.0]) == 6
    assert runs_needed([0.3]) is None
    assert runs_needed([0.1, -0.1]) is None
    assert runs_needed([0.0001, -0.00009]) is not None
    assert runs_needed([1.0, -0.999]) is None


def test_the_best_and_what_cannot_be_told_from_it() -> None:
    luck = [0.0, 0.1, 0.2, 0.05]
    cells = {
        "best": {seed: 0.60 + x for seed, x in enumerate(luck)},
        "near": {seed: 0.599 + x + (0.004 if seed % 2 else -0.004) for seed, x in enumerate(luck)},
        "far": {seed: 0.55 + x + (0.002 if seed % 2 else -0.002) for seed, x in enumerate(luck)},
        "alone": {0: 0.3},
        "none": {},
    }
    best, found = best_and_ties(cells)
    assert (best, set(found)) == ("best", {"near", "far", "alone"})
    raw = [stats.ttest_rel(list(cells["best"].values()), list(cells[name].values())).pvalue for name in ("near", "far")]
    assert found["near"] == pytest.approx(min(1, max(raw[0], 2 * raw[1])))
    assert found["far"] == pytest.approx(2 * raw[1])
    assert math.isnan(found["alone"])
    # One seed alone is not the smallest either: it may be a lucky one.
    assert best_and_ties(cells, maximise=False)[0] == "far"
    assert best_and_ties({**cells, "lucky": {0: 0.99}})[0] == "best"
    assert best_and_ties({"one": {0: 0.1}, "two": {0: 0.2}, "three": {0: 0.1, 1: 0.1}})[0] == "two"
    best, found = best_and_ties({"one": {0: 0.1}, "other": {0: 0.2}})
    assert (best, found) == ("other", pytest.approx({"one": math.nan}, nan_ok=True))
    assert best_and_ties({}) == (None, {})


# Life of a battery in hours, three plate materials at three temperatures, four of each: Montgomery's textbook example.
BATTERY = [
    (material, temperature, seed, float(hours))
    for material, line in {
        "1": ((130, 155, 74, 180), (34, 40, 80, 75), (20, 70, 82, 58)),
        "2": ((150, 188, 159, 126), (136, 122, 106, 115), (25, 70, 58, 45)),
        "3": ((138, 110, 168, 160), (174, 120, 150, 139), (96, 104, 82, 60)),
    }.items()
    for temperature, values in zip(("15", "70", "125"), line, strict=True)
    for seed, hours in enumerate(values)
]


def factorial(rows: list[tuple[str, str, int, float]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["first", "second", "seed", "value"])


def test_two_way_effects_of_a_textbook() -> None:
    """Montgomery, Design and Analysis of Experiments, table 5.5: sums of squares 10,683.72, 39,118.72, 9,613.78."""
    found = two_way(factorial(BATTERY))
    assert found is not None
    lines = {source.name: source for source in found.sources}
    for name, df, squares in (
        ("first", 2, 10683.72), ("second", 2, 39118.72), ("first x second", 4, 9613.78),
    ):  # fmt: skip
        assert lines[name].df == df
        assert lines[name].share * 77646.97 == pytest.approx(squares, rel=1e-5)
    # Row and column means less the grand mean, 105.53.
    levels = {(one.name, one.place): one.effect for one in found.levels}
    assert levels["1", "first"] == pytest.approx(83.1667 - 105.5278, abs=1e-3)
    assert levels["15", "second"] == pytest.approx(144.8333 - 105.5278, abs=1e-3)
    pairs = {one.name: one.effect for one in found.pairs}
    assert pairs["1 > 70"] == pytest.approx(57.25 - 83.1667 - 107.5833 + 105.5278, abs=1e-3)


def test_two_way_analysis_is_that_of_statsmodels() -> None:
    frame = factorial(BATTERY)
    found = two_way(frame)
    fitted = smf.ols("value ~ C(first, Sum) * C(second, Sum) + C(seed, Sum)", frame).fit()
    reference = anova_lm(fitted, typ=2)
    names = {"first": "C(first, Sum)", "second": "C(second, Sum)", "first x second": "C(first, Sum):C(second, Sum)",
             "seed": "C(seed, Sum)"}  # fmt: skip
    for source in found.sources[:-1]:
        line = reference.loc[names[source.name]]
        assert (source.df, source.f, source.p) == (line["df"], pytest.approx(line["F"]), pytest.approx(line["PR(>F)"]))
    assert found.sources[-1].df == reference.loc["Residual", "df"] == 24
    # The coefficient of the first level is its effect, with its interval.
    first = found.levels[0]
    low, high = fitted.conf_int().loc["C(first, Sum)[S.1]"]
    assert (first.effect, first.low, first.high) == pytest.approx((fitted.params["C(first, Sum)[S.1]"], low, high))
    raw = fitted.pvalues["C(first, Sum)[S.1]"]
    assert raw <= first.p <= min(1, 6 * raw)


def test_cells_that_are_not_there_bias_no_effect() -> None:
    """Without the diagonal, which holds no pairs, a level's plain mean would lack the effect of its own column."""
    names = list("abcdefg")
    of_first, of_second = (np.array([0.06, 0.04, 0.02, 0.0, -0.02, -0.04, -0.06]) * factor for factor in (1, -2))
    rows = [
        (a, b, seed, 0.5 + of_first[i] + of_second[j] + 0.01 * seed)
        for i, a in enumerate(names) for j, b in enumerate(names) for seed in range(2) if a != b and (i + j + seed) % 11
    ]  # fmt: skip
    found = two_way(factorial(rows))
    effects = {(one.name, one.place): one.effect for one in found.levels}
    for i, name in enumerate(names):
        assert effects[name, "first"] == pytest.approx(of_first[i], abs=1e-9)
        assert effects[name, "second"] == pytest.approx(of_second[i], abs=1e-9)
    assert max(abs(one.effect) for one in found.pairs) < 1e-9


def test_one_pair_beyond_its_sum_is_found() -> None:
    noise, names = np.random.default_rng(0), list("abcdefg")
    rows = [
        (a, b, seed, 0.5 + 0.05 * (a + b == "cd") + noise.normal(0, 0.01))
        for a in names for b in names for seed in range(5) if a != b
    ]  # fmt: skip
    found = two_way(factorial(rows))
    # Its row and column share some of what it has more, so that its neighbours seem to have a little less.
    best = min(found.pairs, key=lambda one: one.p)
    assert (best.name, best.p < 1e-4, best.effect) == ("c > d", True, pytest.approx(0.05 * 29 / 42, abs=0.01))
    assert max(one.effect for one in found.pairs if one is not best) < best.effect / 2
    assert {source.name: source.p < 0.05 for source in found.sources[:3]}["first x second"]


def test_one_seed_judges_the_levels_by_the_pairs_and_the_pairs_by_nothing() -> None:
    frame = factorial([row for row in BATTERY if row[2] == 0])
    found = two_way(frame)
    assert found.pairs == []
    assert [source.name for source in found.sources] == ["first", "second", "rest"]
    fitted = smf.ols("value ~ C(first, Sum) + C(second, Sum)", frame).fit()
    reference = anova_lm(fitted, typ=2)
    assert found.sources[1].p == pytest.approx(reference.loc["C(second, Sum)", "PR(>F)"])
    assert found.levels[0].low == pytest.approx(fitted.conf_int().loc["C(first, Sum)[S.1]"][0])


def test_what_cannot_be_analysed_is_not() -> None:
    assert two_way(factorial([])) is None
    assert two_way(factorial([("a", "b", 0, 0.1), ("a", "c", 0, 0.2)])) is None
    # Two islands: nothing tells the effect of {a, b} against {c, d} from that of {x, y} against {z, w}.
    islands = [(a, b, s, 0.1) for a, b in ("ax", "ay", "bx", "by", "cz", "cw", "dz", "dw") for s in range(2)]
    assert two_way(factorial(islands)) is None
    # As many cells as effects: nothing is left to judge by.
    few = two_way(factorial([("a", "x", 0, 0.1), ("a", "y", 0, 0.2), ("b", "x", 0, 0.4)]))
    assert few is not None
    assert all(math.isnan(one.p) for one in few.levels)
