"""Claims that are true, false and undecided by construction."""

import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.claims import EPOCHS, PAPER, Claim, Part, describe, fewer_epochs, judge, versus
from analysis.results import FIELDS, METRICS, as_text
from clar.config import AUGMENTATIONS, TrialConfig
from clar.errors import UserError

BASE = TrialConfig(epochs=8, warmup_epochs=0, loss="self_supervised")


def trials(
    rows: Iterable[tuple[dict, float | None]], valid: Callable[[float], float] = lambda test: test
) -> pd.DataFrame:
    """A frame of trials: changed fields, and test top-1, None where there is no result; valid is a function of it."""
    table = []
    for fields, value in rows:
        curve = fields.pop("curve", {})
        config = BASE.but(**fields)
        row = {name: as_text(name, getattr(config, name)) for name in FIELDS}
        row |= dict.fromkeys(METRICS, math.nan)
        row |= {"identity": config.identity(), "state": "missing" if value is None else "done", "curve": curve}
        if value is not None:
            row |= {"test_top1": value, "valid_top1": valid(value)}
        table.append(row)
    return pd.DataFrame(table)


def inputs(*differences: float, spectrogram: float = 0.6) -> pd.DataFrame:
    """Spectrogram above raw by so much, a seed each; the seeds themselves are far apart."""
    luck = [0.1 * (seed % 3) for seed in range(len(differences))]
    return trials(
        ({"input": name, "seed": seed}, spectrogram + luck[seed] - (difference if name == "raw" else 0))
        for name in ("raw", "spectrogram")
        for seed, difference in enumerate(differences)
    )


def verdict_of(found: pd.DataFrame, claim: Claim = PAPER[1]):
    (judged,) = judge([claim], found)
    return judged


def test_a_claim_that_is_true() -> None:
    # Seeds differ by 0.2, the two inputs of a seed by 0.05: only a paired test sees it.
    differences = (0.050, 0.052, 0.048, 0.051)
    judged = verdict_of(inputs(*differences))
    assert judged.verdict == "confirmed"
    (part,) = judged.parts
    expected = stats.ttest_1samp(differences, 0)
    interval = expected.confidence_interval()
    assert (part.effect, part.n) == (pytest.approx(np.mean(differences)), 4)
    assert (part.low, part.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert part.p == pytest.approx(expected.pvalue)
    unpaired = stats.ttest_ind([0.6, 0.7, 0.8, 0.6], [0.55, 0.648, 0.752, 0.549])
    assert unpaired.pvalue > 0.4
    assert part.needs == ""
    assert str(judged).startswith("Spectrogram input beats the raw waveform: confirmed; +5.0 points (4.8 to 5.3), p <")


def test_a_claim_that_is_false() -> None:
    judged = verdict_of(inputs(-0.050, -0.052, -0.048, -0.051))
    assert judged.verdict == "refuted"
    assert judged.parts[0].effect == pytest.approx(-0.05025)


def test_a_claim_that_is_undecided_and_what_would_decide_it() -> None:
    differences = (0.04, -0.02, 0.03, 0.01)
    judged = verdict_of(inputs(*differences))
    assert judged.verdict == "undecided"
    # Cohen's d is 0.015 / 0.02646 = 0.567: 27 pairs for a power of 0.8, from the non-central t distribution.
    d = np.mean(differences) / np.std(differences, ddof=1)

    def power(n: int) -> float:
        critical = stats.t.ppf(0.975, n - 1)
        tails = stats.nct(n - 1, d * math.sqrt(n))
        return tails.sf(critical) + tails.cdf(-critical)

    needed = next(n for n in range(2, 100) if power(n) >= 0.8)
    assert judged.parts[0].needs == f"--seeds {needed} would decide it, were it as large as it looks"


def test_a_margin_is_what_it_takes_at_least() -> None:
    found = inputs(0.050, 0.052, 0.048, 0.051)
    strict = Claim("by ten points", PAPER[1].parts, margin=0.1)
    assert verdict_of(found, strict).verdict == "refuted"
    assert verdict_of(found, Claim("by four points", PAPER[1].parts, margin=0.04)).verdict == "confirmed"


def test_too_few_runs_decide_nothing_and_say_so() -> None:
    (one,) = verdict_of(inputs(0.3)).parts
    assert (one.verdict, one.n, math.isnan(one.p), one.needs) == (
        "undecided", 1, True, "--seeds 3 or more would tell how much it scatters",
    )  # fmt: skip
    assert describe(one, "points") == "+30.0 points, n = 1"
    planned = trials(
        ({"input": name, "seed": seed}, None if seed else 0.5) for name in ("raw", "spectrogram") for seed in range(4)
    )
    (part,) = verdict_of(planned).parts
    assert (part.n, part.needs) == (1, "3 of 4 seeds not compared (3 missing)")
    nothing = trials(({"input": name}, None) for name in ("raw", "spectrogram"))
    assert describe(verdict_of(nothing).parts[0], "points") == "n = 0"


def test_no_difference_at_all_is_no_matter_of_runs() -> None:
    (part,) = verdict_of(inputs(0.0, 0.0, 0.0)).parts
    assert (part.verdict, part.p) == ("undecided", 1.0)
    assert part.needs == "too small a difference for any number of seeds that could be run"


def test_a_sweep_without_its_trials_has_nothing_to_say_about_a_claim() -> None:
    only_raw = trials(({"input": "raw", "seed": seed}, 0.5) for seed in range(3))
    assert judge(PAPER, only_raw) == []


def test_trials_are_paired_only_where_all_else_is_equal() -> None:
    rows = [({"input": name, "seed": seed, "temperature": t}, 0.5 + (name != "raw") * t + 0.001 * seed)
            for name in ("raw", "spectrogram") for seed in range(3) for t in (0.1, 0.2)]  # fmt: skip
    rows.append(({"input": "raw", "seed": 7, "temperature": 0.4}, 0.9))
    parts = list(versus(trials(rows), {"input": "spectrogram"}, {"input": "raw"}))
    assert [part.label for part in parts] == ["digits, temperature 0.1", "digits, temperature 0.2"]
    assert parts[0].differences == {seed: pytest.approx(0.1) for seed in range(3)}
    assert parts[1].differences == {seed: pytest.approx(0.2) for seed in range(3)}


def losses(gain: Callable[[str, float], float], seeds: int = 4, curves: dict | None = None) -> pd.DataFrame:
    noise = np.random.default_rng(0)
    rows = []
    for fraction in (1.0, 0.2, 0.1, 0.01):
        for loss in ("supervised", "self_supervised", "finetune", "clar"):
            for seed in range(seeds):
                value = 0.4 + gain(loss, fraction) + 0.02 * seed + noise.normal(0, 0.002)
                fields = {"loss": loss, "label_fraction": fraction, "seed": seed}
                if curves and loss in curves and fraction == 1.0:
                    fields["curve"] = curves[loss][seed]
                rows.append((fields, value))
    return trials(rows)


def test_at_every_label_fraction_means_at_every_one() -> None:
    claim = PAPER[2]
    better = verdict_of(losses(lambda loss, fraction: 0.1 * (loss == "clar")), claim)
    assert better.verdict == "confirmed"
    assert [part.label for part in better.parts] == [
        f"digits, {percent} % of labels" for percent in ("100", "20", "10", "1")
    ]
    once = verdict_of(losses(lambda loss, fraction: (0.1 if fraction < 1 else -0.1) * (loss == "clar")), claim)
    assert once.verdict == "refuted"
    assert once.decisive.label == "digits, 100 % of labels"
    level = verdict_of(losses(lambda loss, fraction: (0.1 if fraction < 1 else 0) * (loss == "clar")), claim)
    assert level.verdict == "undecided"
    assert level.decisive.label == "digits, 100 % of labels"


@pytest.mark.parametrize(("opponent", "claim"), [("finetune", PAPER[2]), ("supervised", PAPER[3])])
def test_who_beats_an_opponent_that_has_not_converged_has_confirmed_nothing(opponent: str, claim: Claim) -> None:
    found = losses(lambda loss, fraction: (0.2 - 0.1 * fraction) * (loss == "clar"))
    assert verdict_of(found, claim).verdict == "confirmed"
    theirs = found["loss"] == opponent
    assert verdict_of(found.assign(loss_left=0.2 * theirs), claim).verdict == "confirmed"
    # Near ln C at one share of the labels: that comparison counts for nothing, the others stand.
    still = found.assign(loss_left=(0.98 * (theirs & (found["label_fraction"] == 0.1))))
    judged = verdict_of(still, claim)
    assert judged.verdict == "undecided"
    open_part = next(part for part in judged.parts if part.label == "digits, 10 % of labels")
    assert (open_part.n, open_part.needs) == (0, "4 of 4 seeds not compared (4 not converged)")
    assert {part.verdict for part in judged.parts if part is not open_part} == {"confirmed"}
    # One seed of four: what is left looks sure, and still confirms nothing.
    one = still.assign(loss_left=still["loss_left"] * (still["seed"] == 0))
    part = next(part for part in verdict_of(one, claim).parts if part.label == "digits, 10 % of labels")
    assert (part.verdict, part.n) == ("undecided", 3)


def test_both_protocols_of_the_probe_are_judged_and_one_trial_once() -> None:
    seen = losses(lambda loss, fraction: 0.1 * (loss == "clar"))
    every = seen.assign(probe_labels="all")
    # As a sweep has them: with all labels seen it is the same trial.
    every["identity"] = every["identity"].where(every["label_fraction"] == 1, "all of " + every["identity"])
    both = verdict_of(pd.concat([seen, every], ignore_index=True), PAPER[2])
    assert len(both.parts) == 4 + 3
    assert sum("probe_labels all" in part.label for part in both.parts) == 3
    reached = curves({"clar": [2, 3, 2, 2], "self_supervised": [6, 6, 7, 8]})
    frame = losses(lambda loss, fraction: 0, curves=reached)
    again = pd.concat([frame, frame.assign(probe_labels="all")], ignore_index=True)
    assert verdict_of(again, PAPER[4]).parts == verdict_of(frame, PAPER[4]).parts


def test_parts_are_corrected_for_their_number() -> None:
    better = verdict_of(losses(lambda loss, fraction: 0.1 * (loss == "clar")), PAPER[2])
    raw = [
        stats.ttest_1samp(list(part.differences.values()), 0).pvalue
        for part in PAPER[2].parts(losses(lambda loss, fraction: 0.1 * (loss == "clar")))
    ]
    ordered = sorted(range(4), key=lambda i: raw[i])
    expected, largest = {}, 0.0
    for rank, i in enumerate(ordered):
        largest = max(largest, min(1.0, (4 - rank) * raw[i]))
        expected[i] = largest
    assert [part.p for part in better.parts] == [pytest.approx(expected[i]) for i in range(4)]


def test_most_with_few_labels_is_a_part_of_its_own() -> None:
    few = verdict_of(losses(lambda loss, fraction: (0.2 - 0.1 * fraction) * (loss == "clar")), PAPER[3])
    assert few.verdict == "confirmed"
    assert few.parts[-1].label == "more with 1 % of labels than with 100 % of labels, digits"
    assert few.parts[-1].effect == pytest.approx(0.099, abs=0.004)
    many = verdict_of(losses(lambda loss, fraction: (0.1 + 0.1 * fraction) * (loss == "clar")), PAPER[3])
    assert many.verdict == "refuted"
    assert many.decisive is many.parts[-1]


def curves(first_above: dict[str, list[int]], last: int = 8) -> dict[str, list[dict[int, float]]]:
    """Curves that reach 0.5 at these epochs, one a seed; 99 is never."""
    return {
        loss: [{epoch: 0.5 if epoch >= at else 0.3 for epoch in range(1, last + 1)} for at in epochs]
        for loss, epochs in first_above.items()
    }


def test_fewer_epochs_to_a_given_accuracy() -> None:
    reached = curves({"clar": [2, 3, 2, 2, 4, 1], "self_supervised": [6, 6, 7, 8, 8, 7]})
    judged = verdict_of(losses(lambda loss, fraction: 0, seeds=6, curves=reached), PAPER[4])
    assert judged.verdict == "confirmed"
    assert (judged.parts[0].effect, judged.parts[0].p) == (pytest.approx(28 / 6), pytest.approx(2 / 64))
    assert judged.parts[0].label == "to 50.0 % on valid, digits"
    assert "+4.7 epochs (" in str(judged)
    # What a run does not reach in its eight epochs takes it nine at least.
    never = curves({"clar": [2, 3, 2, 2], "self_supervised": [6, 99, 7, 8]})
    (part,) = fewer_epochs(0.5)(losses(lambda loss, fraction: 0, curves=never))
    assert part.differences == {0: 4, 1: 6, 2: 5, 3: 6}
    # Where neither gets there, nothing is known; where none ever does, no seed has a difference.
    neither = curves({"clar": [2, 99, 2, 2], "self_supervised": [6, 99, 7, 8]})
    (part,) = fewer_epochs(0.5)(losses(lambda loss, fraction: 0, curves=neither))
    assert (sorted(part.differences), part.lacking) == ([0, 2, 3], {"never there": 1})
    (none,) = fewer_epochs(0.99)(losses(lambda loss, fraction: 0, curves=neither))
    assert (none.differences, none.lacking) == ({}, {"never there": 4})


def test_equal_epochs_in_every_seed_are_judged_by_their_signs() -> None:
    reached = curves({"clar": [2, 2, 2, 2], "self_supervised": [6, 6, 6, 6]})
    (part,) = verdict_of(losses(lambda loss, fraction: 0, curves=reached), PAPER[4]).parts
    assert (part.effect, part.p, part.verdict) == (4.0, 0.125, "undecided")
    # Two to the power of minus five: six seeds.
    assert part.needs == "--seeds 6 would decide it, were it as large as it looks"
    six = curves({"clar": [2] * 6, "self_supervised": [6] * 6})
    assert verdict_of(losses(lambda loss, fraction: 0, seeds=6, curves=six), PAPER[4]).verdict == "confirmed"


def grid(value: Callable[[tuple[str, ...], int], float], seeds: int) -> pd.DataFrame:
    names = [(a,) if a == b else (a, b) for a in AUGMENTATIONS for b in AUGMENTATIONS]
    return trials(({"augmentations": name, "seed": seed}, value(name, seed)) for name in names for seed in range(seeds))


def test_the_best_pair_is_not_taken_for_better_because_there_are_more_of_them() -> None:
    """All 49 are equal but for chance: no bias, and no more tests that are significant than one in twenty."""
    effects, naive, wrong = [], [], 0
    for run in range(60):
        noise = np.random.default_rng(run)
        found = grid(lambda name, seed, noise=noise: 0.5 + noise.normal(0, 0.02), seeds=6)
        judged = verdict_of(found, PAPER[0])
        effects.append(judged.parts[0].effect)
        wrong += judged.verdict != "undecided"
        means = found.groupby("augmentations")["test_top1"].mean()
        pair = means.index.str.contains(">")
        naive.append(means[pair].max() - means[~pair].max())
    assert np.mean(naive) > 0.005
    assert abs(np.mean(effects)) < 3 * np.std(effects) / math.sqrt(len(effects))
    # Of 60 at 5 %, more than 8 have a probability of 0.4 %.
    assert wrong <= 8


def test_a_pair_that_is_better_is_found() -> None:
    noise = np.random.default_rng(0)
    found = grid(
        lambda name, seed: 0.5 + 0.1 * (name == ("fade", "time_mask")) + 0.03 * seed + noise.normal(0, 0.003), seeds=6
    )
    judged = verdict_of(found, PAPER[0])
    assert judged.verdict == "confirmed"
    assert (judged.parts[0].effect, judged.parts[0].n) == (pytest.approx(0.1, abs=0.01), 3)
    assert judged.parts[0].label.startswith("fade > time_mask against ")


def test_half_of_the_seeds_choose_so_twice_as_many_are_needed() -> None:
    (one,) = verdict_of(grid(lambda name, seed: 0.5, seeds=1), PAPER[0]).parts
    assert (one.n, one.needs) == (0, "--seeds 6 or more would tell how much it scatters")
    noise = np.random.default_rng(1)
    (part,) = verdict_of(grid(lambda name, seed: 0.5 + noise.normal(0, 0.02), seeds=6), PAPER[0]).parts
    runs = int(re.search(r"--seeds (\d+) would decide it", part.needs)[1])
    assert runs % 2 == 0
    assert runs > 6


def test_a_seed_with_a_failed_trial_is_named_and_not_waited_for() -> None:
    found = inputs(0.050, 0.052, -0.020)
    found.loc[found["seed"] == 1, ["state", "test_top1"]] = "failed", math.nan
    (part,) = verdict_of(found).parts
    assert (part.n, part.needs) == (2, "1 of 3 seeds not compared (1 failed)")


def test_a_trial_is_not_compared_with_itself() -> None:
    """A supervised trial has no temperature: with another one it is the same trial."""
    noise = np.random.default_rng(0)
    found = trials(({"loss": loss, "temperature": t, "seed": seed}, 0.6 - 0.2 * t + noise.normal(0, 0.001))
                   for loss in ("clar", "supervised") for t in (0.1, 0.5) for seed in range(3))  # fmt: skip
    parts = list(versus(found, {"temperature": 0.1}, {"temperature": 0.5}))
    assert [(part.label, len(part.differences)) for part in parts] == [("digits", 3)]


def test_claims_that_cannot_be_checked_are_said_in_one_line() -> None:
    found = inputs(0.1, 0.2)
    with pytest.raises(UserError, match="'Warm' cannot be checked: no field 'temprature'; did you mean temperature"):
        verdict_of(found, Claim("Warm", lambda t: versus(t, {"temprature": 1}, {"temprature": 2})))
    with pytest.raises(UserError, match="values of the same fields"):
        verdict_of(found, Claim("Odd", lambda t: versus(t, {"input": "raw"}, {"loss": "clar"})))


def test_of_several_refuted_parts_the_surest_is_shown() -> None:
    parts = [
        Part("sure", {s: -0.1 - 0.001 * s for s in range(5)}),
        Part("less", {s: -0.02 - 0.01 * s for s in range(5)}),
    ]
    judged = verdict_of(inputs(0.1), Claim("Two parts", lambda _: parts))
    assert [part.verdict for part in judged.parts] == ["refuted", "refuted"]
    assert judged.decisive.label == "sure"


def test_a_claim_of_ones_own_takes_a_few_lines(tmp_path: Path) -> None:
    own = Claim("Low temperature beats high", lambda t: versus(t, {"temperature": 0.1}, {"temperature": 0.5}))
    noise = np.random.default_rng(0)
    found = trials(({"temperature": t, "seed": seed}, 0.6 - 0.2 * t + noise.normal(0, 0.001))
                   for t in (0.1, 0.5) for seed in range(3))  # fmt: skip
    assert verdict_of(found, own).verdict == "confirmed"
    by_hand = Claim("Epochs", lambda _: [Part("here", {0: 2.0, 1: 3.0})], unit=EPOCHS)
    assert verdict_of(found, by_hand).parts[0].effect == 2.5
