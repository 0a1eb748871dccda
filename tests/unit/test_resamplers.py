"""Resampling of particles: what is drawn, who survives, and that lineages keep votes honest."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gram.config import SamplerConfig
from gram.sampler.particle_filter import Resampler, in_place, systematic
from gram.sampler.run import sample
from gram.sampler.selectors import answer_labels, count_votes
from gram.tasks.registry import get_task
from tests.models import tiny_model

weights = st.lists(st.floats(0.001, 1.0), min_size=1, max_size=20).map(lambda each: np.array(each) / sum(each))
uniforms = st.floats(1e-6, 1 - 1e-6)


def drawn_of(share, uniform):
    return systematic(share[None], np.array([uniform]))[0]


def ancestors_of(rule, scores, uniform=0.5):
    """What one puzzle's particles continue; None where it is not resampled."""
    ancestors, is_resampled = rule.ancestors(scores[None], scores[None], np.array([uniform]))
    return ancestors[0] if is_resampled[0] else None


@given(st.lists(st.tuples(weights, uniforms), min_size=1, max_size=5))
def test_puzzles_are_drawn_for_as_if_alone(puzzles):
    count = min(len(share) for share, _ in puzzles)
    shares = np.array([share[:count] / share[:count].sum() for share, _ in puzzles])
    chances = np.array([uniform for _, uniform in puzzles])
    together = systematic(shares, chances)
    for share, uniform, drawn, arranged in zip(shares, chances, together, in_place(together), strict=True):
        points = (uniform + np.arange(count)) / count
        alone = np.minimum(np.searchsorted(np.cumsum(share), points, side="right"), count - 1)
        assert drawn.tolist() == alone.tolist()
        assert arranged.tolist() == in_place(alone[None])[0].tolist()


@given(weights, uniforms)
def test_every_particle_is_drawn_its_share_rounded_down_or_up(share, uniform):
    drawn = np.bincount(drawn_of(share, uniform), minlength=len(share))
    assert drawn.sum() == len(share)
    assert (drawn >= np.floor(share * len(share) - 1e-9)).all()
    assert (drawn <= np.ceil(share * len(share) + 1e-9)).all()


def test_the_mean_over_draws_is_the_weight():
    share = np.array([0.5, 0.3, 0.15, 0.05])
    drawn = np.mean([np.bincount(drawn_of(share, (u + 0.5) / 400), minlength=4) for u in range(400)], axis=0)
    assert drawn / 4 == pytest.approx(share, abs=0.01)


@given(weights, uniforms)
def test_survivors_continue_themselves(share, uniform):
    ancestors = drawn_of(share, uniform)
    arranged = in_place(ancestors[None])[0]
    assert sorted(arranged) == sorted(ancestors)
    for particle in set(ancestors.tolist()):
        assert arranged[particle] == particle


def test_equal_scores_are_left_alone_and_unequal_ones_are_not():
    rule = Resampler("lprm", is_increment=False, threshold=0.5)
    scores = rule.log_scores(np.zeros(4, np.float32), np.array([0.9, 0.9, 0.9, 0.9], np.float32))
    assert ancestors_of(rule, scores) is None
    scores = rule.log_scores(np.zeros(4, np.float32), np.array([0.9, 0.01, 0.01, 0.01], np.float32))
    assert set(ancestors_of(rule, scores).tolist()) == {0}
    # Increments count from the last resampling: a score that has not grown weighs nothing.
    growing = Resampler("lprm", is_increment=True, threshold=0.5)
    assert ancestors_of(growing, scores) is None


def test_scores_are_finite_at_the_ends():
    for score in ("lprm", "halt"):
        rule = Resampler(score, is_increment=False, threshold=0.5)
        logs = rule.log_scores(np.array([-1e4, 1e4], np.float32), np.array([-3.0, 7.0], np.float32))
        assert np.isfinite(logs).all()
        assert logs[1] > logs[0]


def resampled(slots, **settings_):
    task, model = get_task("nqueens4"), tiny_model()
    model.lprm.weight.mul_(20)
    model.lprm.bias.fill_(0.3)
    model.halt.weight.mul_(5)
    puzzles = np.concatenate([task.split("train").puzzles, task.split("test").puzzles])[:5]
    config = SamplerConfig(**{"width": 6, "depth": 4, "launch": 8, "halting": "fixed", **settings_}, slots=slots)
    return sample(model, task, puzzles, config)


@settings(max_examples=20)
@given(
    slots=st.integers(1, 40),
    resampler=st.sampled_from(["lprm", "halt", "lprm-increment", "halt-increment"]),
    halting=st.sampled_from(["fixed", "head"]),
    threshold=st.sampled_from([0.5, 0.8, 0.95, 1.0]),
)
def test_the_outcome_does_not_depend_on_the_number_of_slots(slots, resampler, halting, threshold):
    """Below a threshold of 1 some puzzles are resampled and others are not, so states move and names do not."""
    one = resampled(slots, resampler=resampler, resample_threshold=threshold, halting=halting)
    other = resampled(64, resampler=resampler, resample_threshold=threshold, halting=halting)
    assert one.trajectories_sha256 == other.trajectories_sha256
    assert np.array_equal(one.lineage, other.lineage)
    assert np.array_equal(one.lprm, other.lprm)


def test_copies_share_a_lineage_and_a_vote():
    # Weak noise: a copy mostly answers what its original answers.
    result = resampled(16, resampler="lprm", resample_threshold=1.0, temperature=0.3)
    lines = [len(set(line)) for line in result.lineage.tolist()]
    assert min(lines) < 6  # something was copied
    canonical = get_task("nqueens4").canonical(result.candidates.reshape(-1, 16)).reshape(result.candidates.shape)
    plain = count_votes(answer_labels(canonical))
    assert (result.votes <= plain).all()
    assert (result.votes < plain).any()
    assert result.votes.max(axis=1).tolist() <= lines


def test_without_resampling_every_trajectory_is_its_own_lineage():
    assert (resampled(16).lineage == np.arange(6)).all()
