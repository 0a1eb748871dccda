"""Intervals hold the truth as often as they say, checked by simulation; tests against scipy and by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from gram.evals.statistics import FEW, clustered_interval, holm
from scripts.simulate_statistics import ENOUGH, mean_cell


def of_verdicts(successes, n):
    """Interval of the mean of verdicts on separate puzzles."""
    return clustered_interval(np.repeat([1.0, 0.0], [successes, n - successes]))


def proportion_interval(successes, n):
    """Scipy's of independent trials: exact near the ends, Wilson's between."""
    method = "exact" if min(successes, n - successes) < FEW else "wilson"
    return stats.binomtest(int(successes), n).proportion_ci(method=method)


@pytest.mark.parametrize(
    ("successes", "n"), [(0, 10), (3, 10), (10, 10), (199, 200), (1, 1), (91, 100), (90, 100), (10, 100), (9, 100)]
)
def test_verdicts_of_separate_puzzles_get_a_proportions_interval(successes, n):
    """The exact one near the ends, Wilson's between."""
    assert FEW == 10
    assert of_verdicts(successes, n) == pytest.approx(tuple(proportion_interval(successes, n)), abs=1e-12)


def test_verdicts_at_the_ends():
    assert of_verdicts(10, 10).high == 1.0
    assert of_verdicts(0, 10).low == 0.0
    assert of_verdicts(0, 10).high == pytest.approx(1 - 0.025**0.1)  # P(none of 10) is 2.5 % there
    assert all(map(math.isnan, of_verdicts(0, 0)))


@pytest.mark.parametrize("n", [20, 100, 300])
def test_intervals_of_verdicts_hold_the_truth_everywhere(n):
    """Summed over all outcomes, not simulated. Wilson's alone falls to .84 near the ends."""
    intervals = np.array([of_verdicts(successes, n) for successes in range(n + 1)])
    for truth in 1 - np.geomspace(0.05 / n, 0.5, 100):
        is_held = (intervals[:, 0] <= truth) & (truth <= intervals[:, 1])
        assert stats.binom.pmf(np.arange(n + 1), n, truth)[is_held].sum() >= 0.925


def test_labels_of_separate_puzzles_change_nothing():
    values = np.repeat([1.0, 0.0], [70, 30])
    assert clustered_interval(values, np.arange(100) * 7) == clustered_interval(values)


def test_groups_widen_the_interval_only_where_their_puzzles_agree():
    rng = np.random.default_rng(0)
    base = (rng.random(100) < 0.7).astype(float)
    groups = np.repeat(np.arange(100), 5)
    alike, separate = clustered_interval(np.repeat(base, 5), groups), proportion_interval(base.sum() * 5, 500)
    assert alike == pytest.approx(tuple(proportion_interval(base.sum(), 100)), abs=0.012)
    assert alike.high - alike.low > 2 * (separate.high - separate.low)
    apart = (rng.random(500) < 0.7).astype(float)
    assert clustered_interval(apart, groups) == pytest.approx(tuple(proportion_interval(apart.sum(), 500)), abs=0.015)


@pytest.mark.parametrize("errors", [4, 10, 20])
def test_few_groups_with_errors_widen_the_interval(errors):
    """Each error in a group of its own: as if puzzles were independent, which so few groups cannot show."""
    values = np.ones((100, 4))
    values[:errors, 0] = 0
    found = clustered_interval(values.ravel(), np.repeat(np.arange(100), 4))
    separate = proportion_interval(400 - errors, 400)
    ratio = (found.high - found.low) / (separate.high - separate.low)
    assert 1 + 0.25 / errors < ratio < 1.2 + 1 / errors


def test_groups_whose_sums_are_flat_need_no_student_quantile():
    """Six bases all right and six all wrong are twelve verdicts."""
    values, groups = np.repeat([1.0, 0.0], 24), np.repeat(np.arange(12), 4)
    found, twelve = clustered_interval(values, groups), proportion_interval(6, 12)
    assert found.high - found.low == pytest.approx(twelve.high - twelve.low, abs=0.05)


@pytest.mark.parametrize(("bases", "accuracy"), [(100, 0.97), (300, 0.99)])
@pytest.mark.parametrize("is_share", [False, True])
def test_interval_of_few_errors_in_unequal_groups_holds_the_truth(bases, accuracy, is_share):
    """Ten errors or so: 92.5 % of studies (93.6 of shares) where their design effect is taken as it is met."""
    studies = 1_500
    cell = mean_cell(bases, "1 to 7", accuracy, is_share=is_share, studies=studies)
    assert cell.fewer >= ENOUGH
    three_errors = 3 * math.sqrt(0.05 * 0.95 / studies)
    assert 0.95 - three_errors < cell.held < 0.95 + three_errors


def test_interval_ignores_order_and_missing_values_and_repeats_itself():
    rng = np.random.default_rng(1)
    values, groups = rng.binomial(20, 0.8, 200) / 20, rng.integers(0, 60, 200)
    order = rng.permutation(200)
    first = clustered_interval(values, groups)
    assert clustered_interval(values[order], groups[order]) == first
    assert clustered_interval(np.append(values, np.nan), np.append(groups, 999)) == first


def test_interval_of_plain_means_is_the_normal_one_where_that_holds():
    values = np.random.default_rng(2).random(2_000)  # all distinct: the group-by-group path
    half = 1.96 * values.std() / math.sqrt(2_000)
    assert clustered_interval(values) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.001)


@pytest.mark.parametrize("values", [[1.0] * 40, [0.0] * 40, [0.5] * 40, [1.0] * 39 + [0.95]])
@pytest.mark.parametrize("groups", [None, np.arange(40) // 10, np.zeros(40, int)])
def test_interval_has_width_where_a_bootstrap_has_none(values, groups):
    low, high = clustered_interval(values, groups)
    assert 0 <= low <= np.mean(values) <= high <= 1
    assert high - low > 0.04


def test_a_weighted_mean_is_that_of_as_many_puzzles():
    """Weight 3 once and weight 1 three times in one group are the same sums; equal weights are none."""
    rng = np.random.default_rng(4)
    values = rng.integers(0, 5, 60) / 4
    heavy = clustered_interval(values, weights=np.where(np.arange(60) < 20, 3.0, 1.0))
    copies = np.concatenate([np.repeat(np.arange(20), 3), np.arange(20, 60)])
    assert heavy == pytest.approx(clustered_interval(values[copies], copies), abs=1e-9)
    assert clustered_interval(values, weights=np.full(60, 7.0)) == pytest.approx(clustered_interval(values), abs=1e-9)


def test_a_weighted_interval_holds_the_truth():
    """Heavier puzzles are the harder ones, so the plain mean would miss."""
    held = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        exist = rng.integers(1, 9, 150).astype(float)
        found = rng.binomial(exist.astype(int), 1 / np.sqrt(exist))
        low, high = clustered_interval(found / exist, weights=exist)
        held += low <= TRUTH <= high
    assert held >= 0.9 * 200


TRUTH = sum(size / math.sqrt(size) for size in range(1, 9)) / sum(range(1, 9))
"""Solutions found over all, where a puzzle of `size` solutions (1 to 8, alike often) has each found by 1/sqrt(size)."""


def test_interval_of_nothing_is_undefined():
    assert all(map(math.isnan, clustered_interval([])))
    assert all(map(math.isnan, clustered_interval([np.nan])))


def test_intervals_refuse():
    with pytest.raises(ValueError, match="values must be within 0 and 1"):
        clustered_interval([0.5, 1.5])
    with pytest.raises(ValueError, match="clusters must be one per puzzle"):
        clustered_interval([0.5, 1.0], [1])
    with pytest.raises(ValueError, match="one per puzzle"):
        clustered_interval([[0.5, 1.0]])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    adjusted = holm([0.01, np.nan, 0.04])
    assert np.isnan(adjusted[1])
    assert adjusted[[0, 2]] == pytest.approx([0.02, 0.04])
    assert holm([]).size == 0


def held(studies, truth, interval):
    """Share of simulated studies whose interval holds the truth."""
    return np.mean([low - 1e-12 <= truth <= high + 1e-12 for low, high in map(interval, range(studies))])


def shares(rng, *, puzzles, mean, width=20, sameness=2.0):
    """Per-puzzle shares of right trajectories; smaller `sameness` pushes puzzles to all right or all wrong."""
    return rng.binomial(width, rng.beta(mean * sameness, (1 - mean) * sameness, puzzles)) / width


def study_of_means(seed, *, puzzles, mean, sameness, groups=None):
    values = shares(np.random.default_rng(seed), puzzles=puzzles, mean=mean, sameness=sameness)
    return clustered_interval(values, groups)


@pytest.mark.parametrize("mean", [0.3, 0.8, 0.95, 0.99, 0.997])
def test_interval_of_single_accuracy_holds_the_truth_also_near_one(mean):
    share = held(300, mean, lambda seed: study_of_means(seed, puzzles=150, mean=mean, sameness=2.0))
    assert share >= 0.91  # 95 % less three standard errors of 300 studies


@pytest.mark.slow
@pytest.mark.parametrize("accuracy", [0.3, 0.5, 0.7, 0.9, 0.95])
def test_accuracy_holds_the_truth_in_93_to_97_of_100(accuracy):
    def study(seed):
        return clustered_interval(np.random.default_rng(seed).random(300) < accuracy)

    assert 0.93 <= held(2_000, accuracy, study) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("mean", [0.98, 0.99, 0.995, 0.999])
@pytest.mark.parametrize("sameness", [0.3, 2.0, 10.0])
def test_intervals_near_one_hold_the_truth(mean, sameness):
    """A plain percentile bootstrap holds it in 70 to 95 of 100 here."""
    options = {"puzzles": 300, "mean": mean, "sameness": sameness}
    assert held(1_000, mean, lambda seed: study_of_means(seed, **options)) >= 0.92


@pytest.mark.slow
@pytest.mark.parametrize(("groups", "per_group"), [(12, 64), (92, 8)])
@pytest.mark.parametrize("mean", [0.7, 0.95, 0.995])
def test_intervals_of_grouped_puzzles_hold_the_truth(groups, per_group, mean):
    """N-Queens 8x8 has 12 bases, 10x10 has 92: few groups, some harder than others."""

    def study(seed):
        rng = np.random.default_rng(seed)
        base = np.clip(rng.beta(mean * 100, (1 - mean) * 100, groups), 1e-9, 1 - 1e-9)[:, None]
        values = rng.binomial(20, rng.beta(base * 2, (1 - base) * 2, (groups, per_group))) / 20
        return clustered_interval(values.ravel(), np.repeat(np.arange(groups), per_group))

    assert held(1_000, mean, study) >= 0.92
