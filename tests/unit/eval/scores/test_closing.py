"""The gap closed against an oracle of plain loops, and on ugly inputs."""

import math
import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student

from debias_eval.scores.closing import COINCIDE, gap_closed

TRIALS = int(os.environ.get("COVERAGE_TRIALS", "250"))


def seeded(values, first=0):
    return {str(seed): float(value) for seed, value in enumerate(values, start=first)}


def mean(values):
    return sum(values) / len(values)


def product(one, two):
    """Covariance of two means of the same seeds."""
    total = 0.0
    for x, y in zip(one, two, strict=True):
        total += (x - mean(one)) * (y - mean(two))
    return total / (len(one) - 1) / len(one)


def tells_apart(ratio, floor, ceiling, method):
    """Student's paired t of (method - floor) - ratio (ceiling - floor), the definition of Fieller's set."""
    left = [(m - f) - ratio * (c - f) for f, c, m in zip(floor, ceiling, method, strict=True)]
    return abs(mean(left)) > student.ppf(0.975, len(left) - 1) * math.sqrt(product(left, left))


def crossing(inside, outside, *sides):
    """Where the t test begins to tell, by bisection."""
    for _ in range(80):
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if tells_apart(middle, *sides) else (middle, outside)
    return inside


def three(seed=0, seeds=5, spread=0.02, levels=(0.5, 0.66, 0.58), luck=0.5):
    rng = np.random.default_rng(seed)
    shared = rng.normal(0, spread * math.sqrt(luck), seeds)
    return [level + shared + rng.normal(0, spread * math.sqrt(1 - luck), seeds) for level in levels]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("seeds", [2, 5, 9])
def test_paired_is_what_the_t_test_cannot_tell_from_the_truth(seed, seeds):
    sides = three(seed, seeds, spread=0.002)
    found = gap_closed(*map(seeded, sides))
    floor, ceiling, method = (list(map(float, side)) for side in sides)
    ratio = (mean(method) - mean(floor)) / (mean(ceiling) - mean(floor))
    assert found.closed == pytest.approx(ratio)
    apart = [c - f for c, f in zip(ceiling, floor, strict=True)]
    half = student.ppf(0.975, seeds - 1) * math.sqrt(product(apart, apart))
    assert found.gap_interval == pytest.approx((mean(apart) - half, mean(apart) + half))
    ends = [crossing(ratio, ratio + step, floor, ceiling, method) for step in (-20.0, 20.0)]
    assert found.interval == pytest.approx(ends, rel=1e-6)
    assert found.bootstrap[0] <= found.closed <= found.bootstrap[1]


def test_unpaired_seeds_add_their_variances():
    floor, ceiling, method = (list(map(float, side)) for side in three(seeds=6, luck=0))
    method = method[:4]
    found = gap_closed(seeded(floor), seeded(ceiling, 10), seeded(method, 20))
    assert found.pairing == "seeds not paired"
    parts = [(product(side, side), len(side) - 1) for side in (floor, ceiling)]
    variance = sum(part for part, _ in parts)
    df = variance**2 / sum(part**2 / df for part, df in parts)
    ratio, spread_df = found.closed, []
    for weight, side in ((ratio - 1, floor), (ratio, ceiling), (1, method)):
        spread_df.append((weight**2 * product(side, side), len(side) - 1))
    of_ratio = sum(part for part, _ in spread_df) ** 2 / sum(part**2 / one for part, one in spread_df)
    half = student.ppf(0.975, min(max(df, 5), max(of_ratio, 3))) * math.sqrt(variance)
    assert found.gap_interval == pytest.approx((found.gap - half, found.gap + half))


def test_the_same_luck_of_a_seed_cancels():
    sides = three(luck=0.995)
    paired = gap_closed(*map(seeded, sides))
    loose = gap_closed(seeded(sides[0]), seeded(sides[1], 10), seeded(sides[2], 20))
    assert paired.closed == pytest.approx(loose.closed)
    assert loose.interval[1] - loose.interval[0] > 2 * (paired.interval[1] - paired.interval[0])
    half = gap_closed(seeded(sides[0]), seeded(sides[1]), seeded(sides[2], 20))
    assert half.pairing == "only floor and ceiling have the same seeds"
    assert half.gap_interval[1] - half.gap_interval[0] < loose.gap_interval[1] - loose.gap_interval[0]


def test_only_shared_seeds_count_where_five_are_shared():
    floor, ceiling, method = three(seeds=8)
    found = gap_closed(seeded(floor), seeded(ceiling[:6]), seeded(method[:5]))
    alone = gap_closed(*(seeded(side[:5]) for side in (floor, ceiling, method)))
    assert replace(found, pairing=alone.pairing) == alone
    assert found.pairing == "5 paired seeds, 4 runs without a pair left out"
    assert gap_closed(seeded(floor), seeded(ceiling), seeded(method[:4])).seeds == (4, 4, 4)
    assert gap_closed(seeded(floor), seeded(ceiling), seeded(method[:6], 5)).seeds == (8, 8, 6)  # three are shared


@pytest.mark.parametrize(
    ("sides", "why"),
    [
        (([0.5, 0.6, 0.7],) * 3, "no gap to close"),  # ceiling is floor
        (([0.5], [0.5], [0.7]), "no gap to close"),
        (([0.5, 0.7, 0.6], [0.6, 0.6, 0.7], [0.6, 0.6, 0.6]), "no gap to close: the interval of ceiling - floor holds"),
        (([0.7, 0.71, 0.7], [0.5, 0.5, 0.51], [0.6, 0.6, 0.6]), "no gap to close: the ceiling is below the floor"),
        (([0.7], [0.5], [0.6]), "no gap to close: the ceiling is below the floor"),
    ],
)
def test_no_gap_is_no_number(sides, why):
    found = gap_closed(*map(seeded, sides))
    assert found.why.startswith(why)
    assert (found.closed, found.interval, found.bootstrap) == (None, None, None)


def test_one_seed_has_no_interval():
    for sides in (([0.5], [0.9], [0.6]), ([0.5] * 5, [0.9] * 5, [0.6])):
        found = gap_closed(*map(seeded, sides))
        assert found.closed == pytest.approx(0.25)
        assert (found.interval, found.bootstrap, found.gap_interval) == (None, None, None)
        assert found.why.startswith("one seed: no interval")


@pytest.mark.parametrize("bad", [[], [math.nan], [0.5, math.inf]])
@pytest.mark.parametrize("role", ["floor", "ceiling", "method"])
def test_what_is_no_number_is_refused(bad, role):
    sides = {"floor": seeded([0.5]), "ceiling": seeded([0.9]), "method": seeded([0.6]), role: seeded(bad)}
    with pytest.raises(ValueError, match=rf"{role} has the values .*; expected one finite number for each seed"):
        gap_closed(**sides)


shares = st.lists(st.integers(0, 50).map(lambda n: n / 50), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(shares, shares, shares, st.sampled_from([0, 3]))
def test_ugly_inputs_give_a_number_inside_its_interval_or_none(floor, ceiling, method, shift):
    found = gap_closed(seeded(floor), seeded(ceiling, shift), seeded(method, 2 * shift))
    assert (found.closed is None) == found.why.startswith("no gap to close")
    for interval, value in (
        (found.gap_interval, found.gap),
        (found.interval, found.closed),
        (found.bootstrap, found.closed),
    ):
        if interval is not None:
            assert np.isfinite(interval).all()
            assert interval[0] <= value <= interval[1]
    if found.closed is not None and found.gap_interval is not None:
        assert found.gap_interval[0] > 0


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 99), st.floats(-2, 2), st.floats(0.01, 50))
def test_it_does_not_depend_on_the_scale_or_its_zero(seed, shift, scale):
    sides = three(seed, spread=0.01)
    plain = gap_closed(*map(seeded, sides))
    moved = gap_closed(*(seeded(shift + scale * side) for side in sides))
    assert moved.closed == pytest.approx(plain.closed, rel=1e-6)
    assert moved.interval == pytest.approx(plain.interval, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "paired"), [("normal", True), ("normal", False), ("skewed", True)])
def test_five_seeds_cover_what_they_claim(shape, paired):
    """The truth is one half; 250 trials: known to 1.4 points."""
    rng, held, held_boot, told = np.random.default_rng(4), 0, 0, 0
    for _ in range(TRIALS):
        noise = rng.normal(0, 0.03, (3, 5)) if shape == "normal" else rng.exponential(0.03, (3, 5)) - 0.03
        sides = np.array([[0.5], [0.66], [0.58]]) + noise
        found = gap_closed(*(seeded(side, 0 if paired else 10 * i) for i, side in enumerate(sides)))
        if found.closed is not None:
            told += 1
            held += found.interval[0] <= 0.5 <= found.interval[1]
            held_boot += found.bootstrap is not None and found.bootstrap[0] <= 0.5 <= found.bootstrap[1]
    print(f"{shape}, paired {paired}: {held / told:.1%}, bootstrap {held_boot / told:.1%} of {told}")
    assert told > 0.95 * TRIALS
    assert 0.92 <= held / told <= 0.985


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("method", [[0.4, 0.4], [0.4, 0.3]])
def test_seeds_that_coincide_have_no_interval(method, paired):
    """Two seeds of ten examples coincide in a fifth of all trials; of zero width, 73 % of the intervals held."""
    sides = ([0.2, 0.2], [0.6, 0.6], method)
    found = gap_closed(*(seeded(side, 0 if paired else 10 * i) for i, side in enumerate(sides)))
    assert found.closed is not None
    assert (found.gap_interval, found.interval, found.bootstrap, found.why) == (None, None, None, COINCIDE)


def test_a_ratio_that_is_the_same_for_all_seeds_has_no_interval_though_the_gap_has_one():
    found = gap_closed(*(seeded(side) for side in ([0.2, 0.25], [0.6, 0.65], [0.4, 0.45])))
    assert (found.gap_interval, found.interval, found.why) == (None, None, COINCIDE)
    found = gap_closed(*(seeded(side) for side in ([0.2, 0.21, 0.2], [0.6, 0.61, 0.62], [0.4, 0.41, 0.41])))
    assert found.gap_interval is not None
    assert (found.closed, found.interval, found.why) == (pytest.approx(0.5, abs=0.02), None, COINCIDE)


def test_a_difference_of_seeds_that_coincide_holds_no_interval():
    """As testbeds ask for it: the method is the ceiling as well."""
    found = gap_closed(seeded([0.7, 0.71, 0.7]), seeded([0.8, 0.81, 0.8]), seeded([0.8, 0.81, 0.8]))
    assert (found.gap_interval, found.why) == (None, COINCIDE)
    found = gap_closed(seeded([0.7, 0.7, 0.7]), seeded([0.8, 0.81, 0.8], 9), seeded([0.8, 0.81, 0.8], 9))
    assert found.gap_interval is not None  # one side varies
