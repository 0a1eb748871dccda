"""Paired comparisons: test and interval are one, hold what they say, and agree with what is known by hand."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gram.evals.paired import Difference, paired_difference, paired_differences
from scripts.simulate_statistics import ENOUGH, mean_cell, paired_cell

SHARES = st.sampled_from([0.0, 0.25, 0.5, 1.0, 1e-6, 1 / 3])


def agree(found):
    """Whether the p-value is below .05 exactly where the interval leaves out zero; the estimate lies within."""
    told_apart = (np.asarray(found.low) > 0) | (np.asarray(found.high) < 0)
    within = (found.low <= np.asarray(found.estimate) + 1e-12) & (np.asarray(found.estimate) - 1e-12 <= found.high)
    return bool(np.all((np.asarray(found.p_value) < 0.05) == told_apart) and np.all(within))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(SHARES, SHARES, st.integers(0, 9), st.sampled_from([1.0, 2.0, 7.0])), min_size=1, max_size=60),
    st.booleans(),
    st.booleans(),
)
@example([(1.0, 0.0, n, 1.0) for n in range(12)], False, False)  # all right against all wrong
@example([(1.0, 1.0, n, 1.0) for n in range(12)], True, False)  # all ties
@example([(1.0, 0.0, 0, 1.0)] * 30, True, False)  # one base
@example([(1.0, 0.0, 0, 1.0)], False, False)
@example([(0.5, 0.25, n, 7.0) for n in range(9)], True, True)  # the same difference everywhere
@example([(1.0, 0.0, n // 2, 1.0) if n % 2 else (0.0, 1.0, n // 2, 1.0) for n in range(40)], True, False)  # cancel
def test_the_p_value_and_the_interval_never_contradict(rows, has_groups, has_weights):
    a, b, groups, weights = (np.array(column) for column in zip(*rows, strict=True))
    found = paired_difference(a, b, groups if has_groups else None, weights=weights if has_weights else None)
    assert agree(found)
    assert -1 <= found.low <= found.high <= 1
    assert 0 <= found.p_value <= 1
    other = paired_difference(b, a, groups if has_groups else None, weights=weights if has_weights else None)
    assert (other.low, other.high, other.p_value) == pytest.approx((-found.high, -found.low, found.p_value), abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 12))
def test_nor_where_draws_choose_the_cells(seed, puzzles, bases):
    rng = np.random.default_rng(seed)
    a, b = rng.random((2, puzzles, 5)) < rng.random((2, 1, 5))
    groups, wanted = rng.integers(0, bases, puzzles), [0, 1, 2]
    drawn = [rng.integers(0, 5, 20), np.full(20, 1), np.zeros(0, np.int64)]
    plain = paired_differences(a, b, groups)
    found = paired_differences(a, b, groups, wanted=wanted, drawn=drawn)
    assert agree(found)
    assert (found.low[:1] <= plain.low[:1]).all()
    assert (found.high[:1] >= plain.high[:1]).all()
    for values, others in zip(found, plain, strict=True):
        assert np.array_equal(values[1:], others[wanted[1:]]), "draws that choose the same change nothing"


@pytest.mark.parametrize(
    ("only_a", "only_b", "is_apart"),
    [
        (4, 0, False),
        (5, 0, True),
        (6, 1, False),
        (7, 1, True),
        (8, 2, False),
        (9, 2, True),
        (0, 5, True),
        (2, 8, False),
    ],
)
def test_few_discordant_verdicts_are_told_apart_as_by_the_mid_p_test(only_a, only_b, is_apart):
    a, b = np.ones(300), np.ones(300)
    b[:only_a], a[only_a : only_a + only_b] = 0, 0
    found = paired_difference(a, b)
    assert (found.low > 0 or found.high < 0) == is_apart
    assert found.estimate == pytest.approx((only_a - only_b) / 300)


def test_systems_that_never_differ_have_an_interval_with_width():
    for right in (np.ones(300), np.zeros(300), np.full(300, 0.4)):
        same = paired_difference(right, right)
        assert (same.estimate, same.p_value) == (0, 1)
        assert same.low == -same.high
        assert 0.01 < same.high < 0.02  # three of 300 would hardly be missed
    few = paired_difference(np.ones(300), np.ones(300), np.arange(300) // 100)
    assert few.high > 0.5  # of three bases not much is known


def test_copies_of_a_puzzle_tell_nothing_new():
    a, b = np.array([1.0] * 6 + [0.0] * 6), np.zeros(12)
    once = paired_difference(a, b)
    copies = paired_difference(np.repeat(a, 50), np.repeat(b, 50), np.repeat(np.arange(12), 50))
    assert tuple(copies) == pytest.approx(tuple(once), abs=1e-9)
    assert paired_difference(np.repeat(a, 50), np.repeat(b, 50)).low > once.low


def test_a_weight_is_as_many_copies_in_one_group():
    rng = np.random.default_rng(4)
    values = rng.integers(0, 5, 60) / 4
    copies = np.concatenate([np.repeat(np.arange(20), 3), np.arange(20, 60)])
    less = paired_difference(values, values[::-1], weights=np.where(np.arange(60) < 20, 3.0, 1.0))
    assert tuple(less) == pytest.approx(
        tuple(paired_difference(values[copies], values[::-1][copies], copies)), abs=1e-9
    )


def test_the_order_of_puzzles_and_puzzles_without_a_value_have_no_influence():
    rng = np.random.default_rng(1)
    a, b, groups = rng.random(90), rng.random(90), rng.integers(0, 30, 90)
    order = rng.permutation(90)
    first = paired_difference(a, b, groups)
    assert paired_difference(a[order], b[order], groups[order]) == first
    assert paired_difference(np.append(a, np.nan), np.append(b, 1), np.append(groups, 99)) == first


def test_columns_are_what_single_pairs_are():
    rng = np.random.default_rng(3)
    a, b = rng.random((2, 200, 70)).astype(np.float32)
    a[:, 5] = b[:, 5]
    groups = rng.integers(0, 80, 200)
    for chosen in (groups, None):
        found = paired_differences(a, b, chosen)
        for column in (0, 5, 64, 69):
            one = paired_difference(a[:, column], b[:, column], chosen)
            assert [values[column] for values in found] == pytest.approx(tuple(one), abs=1e-6)


def test_a_large_sample_has_the_normal_interval():
    rng = np.random.default_rng(5)
    a, b = rng.random((2, 4_000)) < np.array([[0.8], [0.6]])
    found, d = paired_difference(a, b), a.astype(float) - b
    half = 1.96 * d.std() / math.sqrt(4_000)
    assert (found.low, found.high) == pytest.approx((d.mean() - half, d.mean() + half), abs=2e-4)
    assert found.p_value < 1e-9


def test_nothing_has_no_difference_and_what_is_amiss_is_one_line():
    assert all(map(math.isnan, paired_difference([], [])))
    empty = paired_differences(np.zeros((0, 2)), np.zeros((0, 2)))
    assert isinstance(empty, Difference)
    assert all(np.isnan(values).all() for values in empty)
    with pytest.raises(ValueError, match="one shape"):
        paired_differences(np.zeros((2, 2)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="a and b must have one shape"):
        paired_difference([1.0], [1.0, 0.0])
    with pytest.raises(ValueError, match="b must be within 0 and 1"):
        paired_difference([1.0], [2.0])
    with pytest.raises(ValueError, match="weights must be positive"):
        paired_difference([1.0], [0.0], weights=[0.0])
    with pytest.raises(ValueError, match="clusters must be one per puzzle"):
        paired_difference([1.0], [0.0], [0, 1])


@pytest.mark.parametrize("size", ["1", "4", "1 to 7"])
@pytest.mark.parametrize(
    ("accuracy", "difference"), [(0.3, 0.02), (0.7, 0.0), (0.97, 0.02), (0.999, 0.1), (0.999, 0.0)]
)
def test_intervals_of_differences_hold_the_truth(accuracy, difference, size):
    """Six hundred studies of each; `scripts/simulate_statistics.py` has them all, of 2,000."""
    for bases, shared in ((12, 0.6), (30, 0.0), (100, 0.9)):
        cell = paired_cell(bases, size, accuracy, difference, shared, studies=600)
        assert cell.contradictions == 0
        assert cell.held >= 0.93 - 2 * math.sqrt(0.05 * 0.95 / 600)
        if cell.fewer >= ENOUGH:
            assert cell.held <= 0.97 + 2 * math.sqrt(0.05 * 0.95 / 600)


@pytest.mark.parametrize("is_share", [False, True])
@pytest.mark.parametrize("size", ["1", "4", "1 to 7"])
@pytest.mark.parametrize("accuracy", [0.3, 0.9, 0.97, 0.999])
def test_intervals_of_means_hold_the_truth(accuracy, size, is_share):
    for bases in (12, 30, 100):
        cell = mean_cell(bases, size, accuracy, is_share=is_share, studies=600)
        assert cell.held >= 0.93 - 2 * math.sqrt(0.05 * 0.95 / 600)
