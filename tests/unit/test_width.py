"""When a puzzle has enough trajectories: the rules, their error rates, and independence from slots and order."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gram.sampler.width import Decided, Prefix, Staged, Verified, ahead_probability, error_rate


def prefix_of(answers, trust=0.0):
    prefix = Prefix()
    for answer in answers:
        prefix.add(bytes([answer]), trust, False)
    return prefix


def test_the_probability_of_the_lead_is_the_beta_posterior():
    """Against numerical integration of the posterior `Beta(a + 1, b + 1)` over shares above a half."""
    shares = (np.arange(200_000) + 0.5) / 200_000
    for first, second in ((1, 0), (4, 0), (5, 2), (9, 9), (12, 3)):
        density = shares**first * (1 - shares) ** second
        above = density[shares > 0.5].sum() / density.sum()
        assert ahead_probability(first, second) == pytest.approx(above, abs=1e-4)


def test_unanimous_votes_decide_as_soon_as_the_probability_allows():
    rule = Decided(0.95)
    assert rule.next_stop(Prefix()) == 4
    assert [rule.decides(prefix_of([1] * n)) for n in (3, 4)] == [False, True]
    assert not rule.decides(prefix_of([1, 1, 1, 1, 2, 2, 2]))


@settings(max_examples=60)
@given(st.lists(st.integers(0, 3), max_size=14), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_no_decision_is_possible_before_the_next_stop(answers, probability):
    """However the next votes fall, fewer trajectories than `next_stop` names cannot decide."""
    rule, prefix = Decided(probability), prefix_of(answers)
    if rule.decides(prefix) if answers else False:
        return
    stop = rule.next_stop(prefix)
    for answer in range(5):
        ahead = prefix_of(answers)
        for _ in range(stop - len(answers) - 1):
            ahead.add(bytes([answer]), 0.0, False)
            assert not rule.decides(ahead)
    best = prefix_of([*answers, *[int(prefix.leader[0]) if answers else 0] * (stop - len(answers))])
    assert rule.decides(best)


@pytest.mark.parametrize("share", [0.55, 0.7, 0.9])
def test_the_error_rate_is_what_simulation_finds(share):
    """4,000 puzzles of two answers; the rule is run trajectory by trajectory, as the sampler does."""
    rng, rule, width, wrong, studies = np.random.default_rng(0), Decided(0.95), 20, 0, 4_000
    for votes in rng.random((studies, width)) < share:
        counts = [0, 0]
        for vote in votes:
            counts[int(vote)] += 1
            if ahead_probability(max(counts), min(counts)) >= rule.probability:
                wrong += counts[0] > counts[1]
                break
    exact = error_rate(0.95, share, width)
    assert wrong / studies == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / studies) + 1e-9)


def test_a_stricter_rule_errs_less_and_equal_shares_are_a_coin():
    rates = [error_rate(probability, 0.7, 20) for probability in (0.8, 0.9, 0.95, 0.99)]
    assert rates == sorted(rates, reverse=True)
    assert error_rate(0.95, 0.9, 20) < 0.001
    assert error_rate(0.75, 0.5, 60) == pytest.approx(0.5, abs=0.01)


def test_stages_grow_fourfold_until_the_leader_is_trusted():
    rule = Staged(0.9)
    assert [rule.next_stop(prefix_of([1] * n)) for n in (0, 1, 3, 4, 15, 16)] == [1, 4, 4, 16, 16, 64]
    prefix = prefix_of([1, 1], trust=0.2)
    prefix.add(bytes([2]), 0.99, False)
    assert not rule.decides(prefix)  # the trusted answer does not lead
    prefix.add(bytes([1]), 0.95, False)
    assert rule.decides(prefix)


def test_the_verifier_decides_at_its_first_valid_answer():
    prefix = Prefix()
    prefix.add(b"x", 0.0, False)
    assert not Verified().decides(prefix)
    assert Verified().next_stop(prefix) == 2
    prefix.add(b"y", 0.0, True)
    assert Verified().decides(prefix)
