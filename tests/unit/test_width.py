"""When a puzzle has enough trajectories: the rules, their error rates, and independence from slots and order."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gram.sampler.width import Decided, SequentialTest, Staged, Trusted, Verified, ahead_probability, error_rate


def looks_at(answers, trust=0.0):
    test = SequentialTest()
    for answer in answers:
        test.add(bytes([answer]), trust, False)
    return test


def test_the_probability_of_the_lead_is_the_beta_posterior():
    """Against numerical integration of the posterior `Beta(a + 1, b + 1)` over shares above a half."""
    shares = (np.arange(200_000) + 0.5) / 200_000
    for first, second in ((1, 0), (4, 0), (5, 2), (9, 9), (12, 3)):
        density = shares**first * (1 - shares) ** second
        above = density[shares > 0.5].sum() / density.sum()
        assert ahead_probability(first, second) == pytest.approx(above, abs=1e-4)


def test_unanimous_votes_decide_as_soon_as_the_probability_allows():
    rule = Decided(0.95)
    assert rule.next_look(SequentialTest()) == 4
    assert [rule.decides(looks_at([1] * n)) for n in (3, 4)] == [False, True]
    assert not rule.decides(looks_at([1, 1, 1, 1, 2, 2, 2]))


@settings(max_examples=60)
@given(st.lists(st.integers(0, 3), max_size=14), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_no_decision_is_possible_before_the_next_look(answers, probability):
    """However the next votes fall, fewer trajectories than `next_look` names cannot decide."""
    rule, test = Decided(probability), looks_at(answers)
    if rule.decides(test) if answers else False:
        return
    stop = rule.next_look(test)
    for answer in range(5):
        ahead = looks_at(answers)
        for _ in range(stop - len(answers) - 1):
            ahead.add(bytes([answer]), 0.0, False)
            assert not rule.decides(ahead)
    best = looks_at([*answers, *[int(test.leader[0]) if answers else 0] * (stop - len(answers))])
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
    assert [rule.next_look(looks_at([1] * n)) for n in (0, 1, 3, 4, 15, 16)] == [1, 4, 4, 16, 16, 64]
    test = looks_at([1, 1], trust=0.2)
    test.add(bytes([2]), 0.99, False)
    assert not rule.decides(test)  # the trusted answer does not lead
    test.add(bytes([1]), 0.95, False)
    assert rule.decides(test)


def test_the_verifier_decides_at_its_first_valid_answer():
    test = SequentialTest()
    test.add(b"x", 0.0, False)
    assert not Verified().decides(test)
    assert Verified().next_look(test) == 2
    test.add(b"y", 0.0, True)
    assert Verified().decides(test)


def test_trusted_looks_when_staged_does_and_needs_no_votes():
    rule, test = Trusted(0.5), SequentialTest()
    for width in range(1, 17):
        assert rule.next_look(test) == Staged(0.5).next_look(test)
        test.add(str(width).encode(), 0.6 if width == 3 else 0.0, False)
        assert rule.decides(test) == (width >= 3)
        assert not Staged(0.5).decides(test)
