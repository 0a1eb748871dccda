"""When a puzzle has enough trajectories: the rules, their error rates, and independence from slots and order."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gram.sampler import sequential_tests
from gram.sampler.scheduler import Final, Shard, Trajectories
from gram.sampler.sequential_tests import SequentialTests
from gram.sampler.width import NOTHING, Decided, Staged, Standing, Trusted, Verified, ahead_probability, error_rate
from gram.tasks.registry import get_task


class Undecided(Staged):
    """A policy that looks at once and never decides."""

    def __init__(self):
        super().__init__(math.inf)

    def looks(self, width):
        return width > 0

    def next_look(self, now):
        return now.width + 1


def looks_at(answers, trust=0.0, is_native=False):
    """How a test stands after these answers (numbers), whose trajectories are so trusted (a number, or one each)."""
    task, count = get_task("nqueens4"), len(answers)
    if not count:
        return NOTHING
    table = Trajectories(task, np.zeros((1, task.tokens), np.uint8), answer_tokens=16, depth=0)
    tests = SequentialTests(Undecided(), answer_tokens=16, trusts_halt_head=False, is_native=is_native)
    opened = table.open(Shard(0, 0, 1, 0, count + 1))
    tests.open(opened, table)
    nothing = np.zeros(count, np.float32)
    lprm = np.broadcast_to(np.float32(trust), count)
    tokens = np.repeat(np.array(answers, np.uint8)[:, None], 16, axis=1)
    final = Final(tokens, np.ones(count, np.int64), nothing, lprm, nothing, nothing, nothing > 0)
    rows = np.arange(count)
    table.end(rows, final)
    tests.end(rows, final, table)
    now = tests.standing(np.zeros(1, np.int64), np.array([count]), table)
    return Standing(*(np.broadcast_to(each, (1, count))[:, -1] for each in now))


def test_the_probability_of_the_lead_is_the_beta_posterior():
    """Against numerical integration of the posterior `Beta(a + 1, b + 1)` over shares above a half."""
    shares = (np.arange(200_000) + 0.5) / 200_000
    for first, second in ((1, 0), (4, 0), (5, 2), (9, 9), (12, 3)):
        density = shares**first * (1 - shares) ** second
        above = density[shares > 0.5].sum() / density.sum()
        assert ahead_probability(first, second) == pytest.approx(above, abs=1e-4)


def test_unanimous_votes_decide_as_soon_as_the_probability_allows():
    rule = Decided(0.95)
    assert rule.next_look(looks_at([])) == 4
    assert [rule.decides(looks_at([1] * n)) for n in (3, 4)] == [False, True]
    assert not rule.decides(looks_at([1, 1, 1, 1, 2, 2, 2]))


@settings(max_examples=60)
@given(st.lists(st.integers(0, 3), max_size=14), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_no_decision_is_possible_before_the_next_look(answers, probability):
    """However the next votes fall, fewer trajectories than `next_look` names cannot decide."""
    rule, test = Decided(probability), looks_at(answers)
    if rule.decides(test) if answers else False:
        return
    stop = int(rule.next_look(test)[0])
    for answer in range(5):
        for more in range(1, stop - len(answers)):
            assert not rule.decides(looks_at([*answers, *[answer] * more]))
    leader = max(answers, key=answers.count) if answers else 0
    best = looks_at([*answers, *[leader] * (stop - len(answers))])
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
    assert not rule.decides(looks_at([1, 1, 2], trust=[0.2, 0.2, 0.99]))  # the trusted answer does not lead
    assert rule.decides(looks_at([1, 1, 2, 1], trust=[0.2, 0.2, 0.99, 0.95]))


def test_the_verifier_decides_at_its_first_valid_answer():
    test = looks_at([1])
    assert not Verified().decides(test)
    assert Verified().next_look(test) == 2
    assert Verified().decides(test._replace(is_any_valid=np.array([True])))


def test_trusted_looks_when_staged_does_and_needs_no_votes():
    rule, trust = Trusted(0.5), [0.6 if width == 3 else 0.0 for width in range(1, 17)]
    for width in range(16):
        test = looks_at(list(range(width)), trust[:width])
        assert rule.next_look(test) == Staged(0.5).next_look(test)
        if width:
            assert rule.decides(test) == (width >= 3)
            assert not Staged(0.5).decides(test)


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.25, 0.5, 0.75])), min_size=1, max_size=14))
def test_a_test_stands_as_its_votes_do(seen):
    """Votes of the two leading answers, and the trust in the leader, which is the first to appear of equals."""
    answers, trust = [each for each, _ in seen], [each for _, each in seen]
    now = looks_at(answers, trust)
    assert [each.tolist() for each in looks_at(answers, trust, is_native=True)] == [each.tolist() for each in now]
    counts = sorted((answers.count(each) for each in set(answers)), reverse=True)
    assert [int(now.width[0]), int(now.first[0]), int(now.second[0])] == [len(seen), *[*counts, 0][:2]]
    leader = max(answers, key=answers.count)
    assert now.leader_trust[0] == max(value for each, value in seen if each == leader)
    assert now.most_trust[0] == max(trust)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=14))
def test_votes_are_those_of_the_answers_where_all_share_a_hash(answers):
    expected = looks_at(answers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequential_tests, "row_hashes", lambda words: np.zeros(len(words), np.uint64))
        assert [each.tolist() for each in looks_at(answers)] == [each.tolist() for each in expected]


@pytest.mark.parametrize("is_native", [False, True])
def test_an_adaptive_width_is_decided_where_a_plain_loop_decides(is_native):
    """Trajectories end in random order, some at a time; a loop over those of a puzzle finds the same width."""
    task, rng, puzzles, width = get_task("nqueens4"), np.random.default_rng(0), 9, 12
    for rule in (Decided(0.8), Staged(0.7), Trusted(0.9), Verified()):
        table = Trajectories(task, np.zeros((puzzles, task.tokens), np.uint8), answer_tokens=16, depth=0)
        tests = SequentialTests(rule, answer_tokens=16, trusts_halt_head=False, is_native=is_native)
        opened = table.open(Shard(0, 0, puzzles, 0, width))
        tests.open(opened, table)
        answers = rng.integers(0, 3, (puzzles * width, 1)).repeat(16, axis=1).astype(np.uint8)
        answers[rng.random(len(answers)) < 0.05] = task.solutions(np.ones(16, np.uint8))[0]
        trust = rng.random(len(answers)).astype(np.float32)
        order, found = rng.permutation(len(answers)), np.zeros(puzzles, int)
        while len(order):
            count = int(rng.integers(1, 20))
            rows, order = order[:count], order[count:]
            rows = rows[found[rows // width] == 0]
            order = order[found[order // width] == 0]
            nothing = np.zeros(len(rows), np.float32)
            final = Final(answers[rows], np.ones(len(rows), np.int64), nothing, trust[rows], nothing, nothing, rows < 0)
            table.end(rows, final)
            decided, _ = tests.end(rows, final, table)
            found[decided // width] = tests.decided[decided]
        for puzzle in range(puzzles):
            mine = slice(puzzle * width, (puzzle + 1) * width)
            assert found[puzzle] == plainly(rule, task, answers[mine], trust[mine], width)


def plainly(rule, task, answers, trust, width):
    """The width at which a rule decides, trajectory by trajectory."""
    is_right = task.verify(np.ones((width, 16), np.uint8), answers)
    for seen in range(1, width):
        votes = [answer.tobytes() for answer in answers[:seen]]
        leader = max(votes, key=votes.count)
        others = [votes.count(each) for each in votes if each != leader]
        leader_trust = max(value for value, each in zip(trust, votes, strict=False) if each == leader)
        if isinstance(rule, Decided) and ahead_probability(votes.count(leader), max(others, default=0)) >= 0.8:
            return seen
        if seen in (1, 4) and type(rule) is Staged and leader_trust >= 0.7:
            return seen
        if seen in (1, 4) and type(rule) is Trusted and max(trust[:seen]) >= 0.9:
            return seen
        if isinstance(rule, Verified) and is_right[:seen].any():
            return seen
    return width
