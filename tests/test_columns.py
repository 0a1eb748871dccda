"""Many cells at once give what one by one gives, up to the draws."""

import math

import numpy as np
import pytest

from gram.evals import columns, statistics
from gram.evals.columns import clustered_intervals, paired_differences, sign_flip_p_values


def table(seed, puzzles=300):
    rng = np.random.default_rng(seed)
    shares = [rng.binomial(8, rng.beta(mean * 2, (1 - mean) * 2, puzzles)) / 8 for mean in (0.2, 0.5, 0.9, 0.97)]
    return np.stack([*shares, rng.random(puzzles) < 0.6, np.ones(puzzles), np.zeros(puzzles)], axis=1)


@pytest.mark.parametrize("has_groups", [False, True])
def test_intervals_are_those_of_single_columns(has_groups):
    values = table(0)
    groups = np.random.default_rng(1).integers(0, 90, 300) if has_groups else None
    found = clustered_intervals(values, groups, resamples=10_000)
    for column in range(values.shape[1]):
        assert found[column] == pytest.approx(statistics.clustered_interval(values[:, column], groups), abs=0.006)


def test_a_column_with_a_hole_has_no_interval():
    values = table(2)
    values[3, 1] = np.nan
    found = clustered_intervals(values)
    assert np.isnan(found[1]).all()
    assert not np.isnan(found[[0, 2]]).any()
    assert np.isnan(clustered_intervals(np.zeros((0, 2)))).all()


@pytest.mark.parametrize("has_groups", [False, True])
def test_differences_are_those_of_single_pairs(has_groups):
    a, b = table(3), table(4)
    a[:, 5:] = b[:, 5:]
    groups = np.random.default_rng(5).integers(0, 80, 300) if has_groups else None
    found = paired_differences(a, b, groups)
    for column in range(a.shape[1]):
        one = statistics.paired_difference(a[:, column], b[:, column], groups)
        got = found.estimate[column], found.low[column], found.high[column]
        assert got == pytest.approx(tuple(one), abs=0.006)
    assert found.p_value[5] == 1.0


def test_chunks_change_nothing_but_the_draws(monkeypatch):
    a, b = table(6), table(7)
    whole = paired_differences(a, b)
    monkeypatch.setattr(columns, "_CHUNK", 1_000)
    parts = paired_differences(a, b)
    assert parts.low == pytest.approx(whole.low, abs=0.006)
    assert parts.p_value == pytest.approx(whole.p_value, abs=0.02)


def test_few_groups_are_flipped_exactly():
    sums = np.array([[1.0], [2.0], [3.0]])
    assert sign_flip_p_values(sums) == pytest.approx([2 / 8])
    assert sign_flip_p_values(np.array([[1.0], [-1.0]])) == pytest.approx([1.0])
    assert sign_flip_p_values(np.zeros((5, 1))) == pytest.approx([1.0])


def test_many_groups_agree_with_the_exact_test_of_signs():
    rng = np.random.default_rng(8)
    signs = np.where(rng.random(60) < 0.65, 1.0, -1.0)
    exact = statistics.mcnemar(signs > 0, signs < 0).p_value
    assert sign_flip_p_values(signs[:, None])[0] == pytest.approx(exact, abs=0.01)


def test_p_values_are_uniform_without_a_difference():
    rng = np.random.default_rng(9)
    sums = rng.normal(size=(100, 400))
    p_values = sign_flip_p_values(sums, flips=2_000)
    assert (p_values < 0.05).mean() == pytest.approx(0.05, abs=0.03)
    assert p_values.mean() == pytest.approx(0.5, abs=0.05)


def test_nothing_has_no_difference():
    found = paired_differences(np.zeros((0, 2)), np.zeros((0, 2)))
    assert all(math.isnan(value) for value in found.estimate)
    with pytest.raises(ValueError, match="one shape"):
        paired_differences(np.zeros((2, 2)), np.zeros((2, 3)))
