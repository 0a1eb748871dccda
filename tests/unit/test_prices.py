"""Prices of cells against a step by step account of small groups."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gram.evals.frontier.grid import Grid
from gram.evals.frontier.prices import StepTimes, expected_prices, rising

GRID = Grid(widths=(1, 2, 4), depths=(1, 3, 6), trained_depth=3, haltings=("head", "fixed"))
ROWS = np.arange(1, 5)


def timed(step, ending=(0.0,) * 4, overhead=(0.0,) * 4, rounds=1):
    return StepTimes(ROWS, *(np.tile(np.array(part, float), (rounds, 1)) for part in (step, ending, overhead)))


def by_hand(stops, depth, width, step, ending, overhead):
    costs = []
    for puzzle in stops:
        for first in range(0, len(puzzle) // width * width, width):
            left = [min(stop, depth) for stop in puzzle[first : first + width]]
            cost = overhead[width - 1]
            while left:
                cost += step[len(left) - 1]
                left = [each - 1 for each in left]
                ended = left.count(0)
                if ended:
                    cost += ending[ended - 1]
                left = [each for each in left if each]
            costs.append(cost)
    return np.mean(costs), np.percentile(costs, 95)


@given(st.lists(st.lists(st.integers(1, 7), min_size=5, max_size=5), min_size=1, max_size=4))
def test_a_price_is_the_mean_over_puzzles_and_groups_of_what_the_engine_does(stops):
    step, ending, overhead = [2.0, 3.0, 3.5, 5.0], [0.4, 0.5, 0.6, 0.7], [1.0, 1.5, 1.75, 2.0]
    table = np.array([stops, np.full(np.shape(stops), 7)], np.int32)
    times = timed(step, ending, overhead)
    found = expected_prices(table, GRID, {"head": times, "fixed": times})
    for h, m, n in np.ndindex(2, 3, 3):
        mean, p95 = by_hand(table[h].tolist(), GRID.depths[m], GRID.widths[n], step, ending, overhead)
        assert found.mean[h, m, n] == pytest.approx(mean)
        assert found.p95[h, m, n] == pytest.approx(p95)


def test_full_launches_share_their_time():
    stops = np.array([[[2, 7, 4, 4]], [[7, 7, 7, 7]]], np.int32)
    times = timed([9.0, 9.0, 9.0, 8.0], ending=[1.0] * 4, overhead=[3.0] * 4)
    times = StepTimes(times.rows[-1:], times.step[:, -1:], times.ending[:, -1:], times.overhead[:, -1:])
    found = expected_prices(stops, GRID, {"head": times}, is_full=True)
    assert found.mean[0, 2, 2] == pytest.approx((2 + 6 + 4 + 4) * 8 / 4 + 4 * (1 + 3) / 4)
    assert np.isnan(found.mean[1]).all()


def test_draws_spread_as_means_of_rounds_do():
    rng = np.random.default_rng(0)
    rounds = rng.normal(10.0, 2.0, size=(25, 1))
    times = StepTimes(ROWS, rounds * ROWS, np.zeros((25, 4)), np.zeros((25, 4)))
    found = expected_prices(np.full((2, 3, 4), 7, np.int32), GRID, {"head": times}, resamples=2000)
    spread = found.draws[:, 0].std(axis=0) / found.mean[0]
    assert spread == pytest.approx(np.full((3, 3), rounds.std() / 5 / rounds.mean()), rel=0.1)
    assert found.draws[:, 0].mean(axis=0) == pytest.approx(found.mean[0], rel=0.01)


def test_rows_that_were_not_timed_lie_between_and_beyond():
    times = StepTimes(np.array([1, 2, 4]), np.array([[1.0, 2.0, 6.0]]), np.zeros((1, 3)), np.zeros((1, 3)))
    assert times.at(times.step, np.array([1, 3, 4, 8])).tolist() == [[1.0, 4.0, 6.0, 12.0]]


@given(st.lists(st.floats(0, 100), min_size=1, max_size=8))
def test_rising_values_are_the_nearest_that_never_fall(values):
    found = rising(np.array([values]))[0]
    assert (np.diff(found) >= -1e-9).all()
    assert found.sum() == pytest.approx(sum(values))
    # Optimality of a projection on a convex cone: orthogonal residual.
    assert (np.array(values) - found) @ found == pytest.approx(0, abs=1e-6 * (1 + sum(values) ** 2))
    if values == sorted(values):
        assert found.tolist() == pytest.approx(values)
