"""Metrics against brute force over all subsets, and where they are undefined."""

import math
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gram.evals.metrics import (
    coverage_at_k,
    mean_defined,
    pass_at_k,
    pooled,
    uniform_ceiling,
    within_puzzle_auroc,
)

verdicts = st.lists(st.booleans(), min_size=1, max_size=9)
# What each sample found: 0 is a wrong answer, 1 to 4 are distinct valid solutions.
samples = st.lists(st.integers(0, 4), min_size=1, max_size=8)


@settings(max_examples=40)
@given(verdicts, st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(right, data):
    k = data.draw(st.integers(1, len(right)))
    subsets = list(combinations(right, k))
    expected = sum(any(subset) for subset in subsets) / len(subsets)
    assert float(pass_at_k(len(right), sum(right), k)) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_known_values_and_ends():
    assert float(pass_at_k(10, 3, 1)) == pytest.approx(0.3)
    assert float(pass_at_k(5, 2, 3)) == pytest.approx(1 - 1 / 10)
    assert pass_at_k([4, 4, 4], [0, 1, 4], 4).tolist() == [0, 1, 1]
    assert pass_at_k(20, 0, [1, 7, 20]).tolist() == [0, 0, 0]


def test_pass_at_k_broadcasts():
    table = pass_at_k(8, np.array([0, 3, 8])[:, None], np.array([1, 2, 8, 9])[None])
    assert table.shape == (3, 4)
    assert table[1, 1] == pytest.approx(1 - (5 * 4) / (8 * 7))
    assert np.isnan(table[:, 3]).all()


def test_pass_at_k_stays_exact_for_many_samples():
    exact = 1 - math.comb(9_900, 50) / math.comb(10_000, 50)
    assert float(pass_at_k(10_000, 100, 50)) == pytest.approx(exact, rel=1e-9)


def test_pass_at_k_undefined_is_nan():
    assert np.isnan(pass_at_k([0, 3], [0, 1], 4)).all()
    assert pass_at_k([], [], 1).shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, 5, 1), "c must be within 0 and n=4, got 5"),
        ((4, -1, 1), "c must be within 0 and n=4, got -1"),
        ((4, 1, 0), "k must be at least 1, got 0"),
    ],
)
def test_pass_at_k_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        pass_at_k(*arguments)


@settings(max_examples=40)
@given(samples, st.integers(0, 3), st.data())
def test_coverage_at_k_is_its_mean_over_subsets(found, unseen, data):
    k = data.draw(st.integers(1, len(found)))
    valid = sorted(set(found) - {0})
    exist = len(valid) + unseen
    counts = [found.count(solution) for solution in valid]
    coverage = float(coverage_at_k(counts, len(found), exist, k))
    if exist == 0:
        assert math.isnan(coverage)
        return
    shares = [len(set(subset) - {0}) / exist for subset in combinations(found, k)]
    assert coverage == pytest.approx(sum(shares) / len(shares), abs=1e-12)


def test_coverage_at_full_width_is_found_over_all_and_padding_adds_nothing():
    counts = [[3, 1, 0, 0], [4, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]
    assert coverage_at_k(counts, 4, [2, 2, 5, 8], 4).tolist() == [1.0, 0.5, 0.0, 0.5]
    padded = np.pad(counts, ((0, 0), (0, 3)))
    for k in (1, 2, 3):
        assert np.array_equal(coverage_at_k(padded, 4, [2, 2, 5, 8], k), coverage_at_k(counts, 4, [2, 2, 5, 8], k))


def test_coverage_of_duplicates_counts_a_solution_once():
    assert float(coverage_at_k([20], 20, 4, 20)) == 0.25
    assert float(coverage_at_k([20], 20, 4, 1)) == 0.25


def test_coverage_undefined_is_nan():
    assert np.isnan(coverage_at_k([[1], [0], [0]], [2, 0, 2], [3, 3, 0], [3, 1, 1])).all()
    assert float(coverage_at_k([], 3, 2, 2)) == 0.0


def test_coverage_refuses_more_found_than_exist():
    with pytest.raises(ValueError, match=r"at most all solutions \(2\), got 3"):
        coverage_at_k([1, 1, 1], 3, 2, 3)


@settings(max_examples=40)
@given(st.integers(1, 4), st.integers(1, 5))
def test_uniform_ceiling_is_the_mean_over_all_draws(solutions, k):
    draws = [len(set(draw)) / solutions for draw in product(range(solutions), repeat=k)]
    assert float(uniform_ceiling(solutions, k)) == pytest.approx(sum(draws) / len(draws))


def test_uniform_ceiling_ends():
    assert np.isnan(uniform_ceiling(0, 20))
    assert float(uniform_ceiling(6.67e21, 20)) == pytest.approx(20 / 6.67e21)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        uniform_ceiling(3, 0)


def test_pooled_weighs_puzzles_by_their_solutions_and_leaves_out_the_undefined():
    assert pooled([1.0, 0.5], [1, 9]) == pytest.approx(5.5 / 10)
    assert pooled([1.0, np.nan, 0.5], [1, 100, 9]) == pytest.approx(5.5 / 10)
    assert math.isnan(pooled([], []))
    assert math.isnan(pooled([np.nan], [0]))


def test_mean_defined():
    assert mean_defined([1, np.nan, 0]) == 0.5
    assert math.isnan(mean_defined([]))
    assert math.isnan(mean_defined([np.nan]))


@settings(max_examples=40)
@given(st.lists(st.lists(st.tuples(st.integers(-2, 2), st.booleans()), min_size=5, max_size=5), max_size=4))
def test_auroc_is_the_share_of_pairs_in_order(puzzles):
    table = np.array(puzzles, dtype=float).reshape(-1, 5, 2)
    each = []
    for rows in puzzles:
        pairs = [(a > b) + (a == b) / 2 for a, good in rows for b, bad in rows if good and not bad]
        if pairs:
            each.append(pairs)
    auroc = within_puzzle_auroc(table[..., 0], table[..., 1].astype(bool))
    assert auroc.puzzles == len(each)
    if each:
        flat = [pair for pairs in each for pair in pairs]
        assert auroc.pooled == pytest.approx(sum(flat) / len(flat))
    else:
        assert math.isnan(auroc.pooled)


def test_auroc_does_not_reward_easy_puzzles_for_scoring_high():
    """Across puzzles the score is perfect, within each it is reversed."""
    auroc = within_puzzle_auroc([[9.0, 10.0], [1.0, 2.0]], [[True, False], [True, False]])
    assert auroc == (0.0, 2)


def test_auroc_pools_over_pairs_and_leaves_out_missing_scores():
    scores = [[3.0, 1.0, 2.0, np.nan], [1.0, 2.0, np.nan, np.nan], [5.0, np.nan, np.nan, np.nan]]
    right = [[True, False, False, True], [True, False, True, False], [True, False, False, False]]
    assert within_puzzle_auroc(scores, right) == (pytest.approx(2 / 3), 2)


def test_auroc_undefined_and_refused():
    assert math.isnan(within_puzzle_auroc(np.zeros((0, 4)), np.zeros((0, 4), bool)).pooled)
    assert within_puzzle_auroc(np.zeros((2, 3)), np.ones((2, 3), bool)).puzzles == 0
    with pytest.raises(ValueError, match="must have the shape"):
        within_puzzle_auroc(np.zeros((2, 3)), np.ones((2, 4), bool))
