"""Intervals over training seeds: by brute force, by simulation of made-up runs, at the ends of the range."""

import numpy as np
import pytest

from gram.evals.training_variance import mean_of_runs

RNG = np.random.default_rng(0)
ONE = RNG.random((3, 40))
GROUPS = np.repeat(np.arange(10), 4)
WEIGHTS = RNG.integers(1, 9, 40).astype(float)


def made_up(rng, runs: int, puzzles: int, level: float, spread: float) -> np.ndarray:
    """Share of right trajectories: each seed is better or worse as a whole, each puzzle harder or easier."""
    seeds = rng.normal(0, spread, (runs, 1))
    hardness = rng.normal(0, 0.1, puzzles)
    return np.clip(level + seeds + hardness, 0, 1)


@pytest.mark.parametrize("groups", [None, GROUPS])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_the_bootstrap_is_what_it_says(groups, weights):
    """Written out: seeds, widened about their mean by Student's t too, then groups, each drawn with replacement."""
    found = mean_of_runs(ONE, groups, weights=weights, resamples=4000)
    weight = np.ones(40) if weights is None else weights
    labels = np.arange(40) if groups is None else groups
    rng = np.random.default_rng(1)
    wide = ONE.mean(0) + (4.3027 / 1.96) * np.sqrt(3 / 2) * (ONE - ONE.mean(0))
    means = []
    for _ in range(4000):
        values = wide[rng.integers(0, 3, 3)].mean(0)
        drawn = rng.choice(np.unique(labels), len(set(labels)))
        rows = np.concatenate([np.flatnonzero(labels == group) for group in drawn])
        means.append(np.average(values[rows], weights=weight[rows]))
    assert found.estimate == pytest.approx(np.average(ONE.mean(0), weights=weight))
    low, high = np.quantile(means, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.015)
    assert found.high == pytest.approx(high, abs=0.015)


def test_seeds_that_differ_widen_the_interval():
    alike = np.tile(ONE[:1], (3, 1))
    apart = np.clip(alike + np.array([[-0.2], [0.0], [0.2]]), 0, 1)
    narrow, wide = mean_of_runs(alike, GROUPS), mean_of_runs(apart, GROUPS)
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)
    one = mean_of_runs(ONE[:1], GROUPS)
    assert (narrow.low, narrow.high) == pytest.approx((one.low, one.high), abs=0.01)


def test_a_difference_draws_the_same_puzzles_and_other_seeds():
    """Two methods that differ by a constant on every puzzle: no chance among puzzles is left, that of training is."""
    seeds = np.array([[0.0], [0.02], [0.04]])
    base = 0.3 + 0.2 * RNG.random((1, 40))
    same = mean_of_runs(base + 0.1, GROUPS, minus=base)
    assert (same.low, same.estimate, same.high) == pytest.approx((0.1, 0.1, 0.1))
    trained = mean_of_runs(base + 0.1 + seeds, GROUPS, minus=base + seeds)
    assert trained.estimate == pytest.approx(0.1)
    assert trained.low < 0.08
    assert trained.high > 0.12
    mirrored = mean_of_runs(base + seeds, GROUPS, minus=base + 0.1 + seeds)
    assert (mirrored.low, mirrored.high) == pytest.approx((-trained.high, -trained.low), abs=0.004)


@pytest.mark.parametrize("spread", [0.0, 0.03, 0.06])
def test_the_interval_of_three_seeds_holds_the_truth(spread):
    """Made-up trainings with a known mean. Where training has a spread, the bootstrap over puzzles alone fails."""
    rng, held, alone = np.random.default_rng(7), 0, 0
    for number in range(200):
        runs = made_up(rng, 3, 60, 0.6, spread)
        found = mean_of_runs(runs, resamples=1000, seed=number)
        held += found.low <= 0.6 <= found.high
        puzzles = mean_of_runs(runs.mean(0, keepdims=True), resamples=1000, seed=number)
        alone += puzzles.low <= 0.6 <= puzzles.high
    assert held >= 0.92 * 200
    assert held >= alone
    if spread == 0.06:
        assert alone < 0.6 * 200


def test_equal_methods_are_seldom_told_apart():
    """Two methods of three seeds each, equal but for the chance of training."""
    rng = np.random.default_rng(3)
    told = 0
    for number in range(200):
        hardness = rng.normal(0, 0.1, 60)
        first, second = (np.clip(0.6 + rng.normal(0, 0.04, (3, 1)) + hardness, 0, 1) for _ in range(2))
        found = mean_of_runs(first, minus=second, resamples=1000, seed=number)
        told += found.low > 0 or found.high < 0
    assert told <= 0.08 * 200


def test_ends_stay_in_range_and_order_does_not_matter():
    assert mean_of_runs(np.ones((3, 5))) == (1.0, 1.0, 1.0)
    wild = np.array([[0.0] * 6, [1.0] * 6, [1.0] * 6])
    found = mean_of_runs(wild)
    assert (found.low, found.high) == (0.0, 1.0)
    turned = RNG.permutation(40)
    first, second = mean_of_runs(ONE, GROUPS), mean_of_runs(ONE[:, turned], GROUPS[turned])
    assert first == pytest.approx(second, abs=0.01)


@pytest.mark.parametrize(
    ("runs", "groups", "weights", "words"),
    [
        (np.ones(4), None, None, "values of seeds and puzzles"),
        (np.ones((0, 4)), None, None, "values of seeds and puzzles"),
        (np.full((2, 4), 1.5), None, None, "within 0 and 1, got 1.5"),
        (np.full((2, 4), np.nan), None, None, "within 0 and 1"),
        (np.ones((2, 4)), [0, 1, 2], None, "of 4 puzzles, got 3"),
        (np.ones((2, 4)), None, [1.0], "of 4 puzzles, got 4 and 1"),
    ],
)
def test_bad_input_is_one_line(runs, groups, weights, words):
    with pytest.raises(ValueError, match=words):
        mean_of_runs(runs, groups, weights=weights)


def test_methods_of_other_puzzles_are_refused():
    with pytest.raises(ValueError, match="of the same puzzles, got 4 and 5"):
        mean_of_runs(np.ones((2, 4)), minus=np.ones((2, 5)))
