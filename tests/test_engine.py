"""The sampler: the same trajectory in any batch, halting, selection."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gram.config import SamplerConfig
from gram.sampler.engine import sample
from gram.sampler.selectors import count_votes, select
from gram.tasks.registry import get_task
from tests.models import tiny_model

TASK = get_task("nqueens4")
PUZZLES = np.concatenate([TASK.split("train").puzzles, TASK.split("test").puzzles])


def run(model=None, puzzles=PUZZLES[:5], **settings):
    model = model or tiny_model()
    return sample(model, TASK, puzzles, SamplerConfig(**{"width": 6, "halting": "fixed", "launch": 8, **settings}))


def test_shapes_and_ranges():
    result = run()
    assert result.candidates.shape == (5, 6, 16)
    assert result.candidates.max() < 3
    assert (result.steps == 3).all()
    assert result.votes.min() >= 1
    assert result.answers.shape == (5, 16)


def test_same_seed_same_trajectories_other_seed_others():
    assert run().trajectories_sha256 == run().trajectories_sha256
    assert run(seed=1).trajectories_sha256 != run().trajectories_sha256


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mixer", ["token", "attention"])
def test_a_trajectory_is_the_same_in_any_batch(dtype, mixer):
    """Bit for bit, heads included: alone, among others, in another order, at another width."""
    model = tiny_model(mixer=mixer).to(dtype)
    all_of_them = run(model, width=6)
    order = np.array([3, 0, 4, 2, 1])
    shuffled = run(model, PUZZLES[:5][order], width=6)
    assert np.array_equal(shuffled.candidates, all_of_them.candidates[order])
    assert np.array_equal(shuffled.halt, all_of_them.halt[order])
    alone = run(model, PUZZLES[2:3], width=3)
    assert np.array_equal(alone.candidates[0], all_of_them.candidates[2, :3])
    assert np.array_equal(alone.lprm[0], all_of_them.lprm[2, :3])


def test_a_puzzle_is_known_by_its_tokens_not_its_place():
    twice = run(puzzles=np.stack([PUZZLES[1], PUZZLES[1]]))
    assert np.array_equal(twice.candidates[0], twice.candidates[1])


def test_depth_one_is_a_prefix_of_depth_three():
    seen = []
    sample(
        tiny_model(),
        TASK,
        PUZZLES[:1],
        SamplerConfig(width=8, depth=3, launch=8, halting="fixed"),
        on_step=lambda view: seen.append(view.answers.copy()),
    )
    assert len(seen) == 3
    for depth in (1, 2, 3):
        assert np.array_equal(run(puzzles=PUZZLES[:1], width=8, depth=depth).candidates[0], seen[depth - 1])


def halting_model(bias: float, **overrides):
    model = tiny_model(**overrides)
    model.halt.bias.fill_(bias)
    return model


def test_halting_stops_each_trajectory_by_its_own_head():
    never, always = run(halting_model(-50.0), halting="head"), run(halting_model(50.0), halting="head")
    assert (never.steps == 3).all()
    assert (always.steps == 2).all()
    model = tiny_model()
    model.halt.weight.mul_(20)
    model.halt.bias.fill_(-float(np.median(run(model, depth=2, puzzles=PUZZLES).halt)))
    some = run(model, halting="head", halt_threshold=0.5, puzzles=PUZZLES)
    assert len(np.unique(some.steps)) > 1
    fixed = {depth: run(model, depth=depth, puzzles=PUZZLES) for depth in (2, 3)}
    for depth in (2, 3):
        stopped = some.steps == depth
        assert np.array_equal(some.candidates[stopped], fixed[depth].candidates[stopped])
        assert np.array_equal(some.halt[stopped], fixed[depth].halt[stopped])
        if depth < 3:
            assert (some.halt[stopped] > 0).all()


def test_no_trajectory_halts_before_it_has_met_noise():
    """Until then all trajectories of a puzzle are one, and width would be worth nothing."""
    for overrides, first in (({"noise_free_steps": 2}, 3), ({"noise_free_steps": 0}, 1), ({"guidance": "none"}, 1)):
        assert (run(halting_model(50.0, **overrides), halting="head").steps == first).all()


def test_threshold_is_a_probability():
    model = halting_model(0.0)
    model.halt.weight.zero_()
    model.halt.bias.fill_(1.0)  # probability 0.731
    assert (run(model, halting="head", halt_threshold=0.7).steps == 2).all()
    assert (run(model, halting="head", halt_threshold=0.75).steps == 3).all()


def test_progress_counts_every_trajectory_once():
    ended = []
    sample(tiny_model(), TASK, PUZZLES[:5], SamplerConfig(width=7, launch=8), on_launch=ended.append)
    assert sum(ended) == 35
    assert max(ended) == 8


def test_watching_does_not_change_what_is_seen():
    config = SamplerConfig(width=6, launch=8)
    views = []
    watched = sample(tiny_model(), TASK, PUZZLES[:2], config, on_step=views.append)
    assert watched.trajectories_sha256 == sample(tiny_model(), TASK, PUZZLES[:2], config).trajectories_sha256
    last = {}
    for view in views:
        for row in range(len(view.puzzle)):
            last[int(view.puzzle[row]), int(view.trajectory[row])] = view.answers[row]
    for (puzzle, trajectory), answer in last.items():
        assert np.array_equal(answer, watched.candidates[puzzle, trajectory])
    assert len(last) == 12


def test_unconditional_samples_need_training_for_it():
    config = SamplerConfig(width=4, launch=8)
    blank = np.zeros((1, 16), np.uint8)
    with pytest.raises(ValueError, match="empty condition"):
        sample(tiny_model(), TASK, blank, config, is_unconditional=True)
    assert sample(tiny_model(has_empty_condition=True), TASK, blank, config, is_unconditional=True).votes.shape == (
        1,
        4,
    )


def test_puzzles_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"puzzles must be \[P, 16\] tokens, got \[2, 9\]"):
        run(puzzles=np.ones((2, 9), np.uint8))


def test_no_puzzles_give_an_empty_result():
    assert run(puzzles=PUZZLES[:0]).answers.shape == (0, 16)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=9))
def test_votes_count_equal_answers(answers):
    canonical = np.array(answers, np.uint8).reshape(1, -1, 1)
    votes = count_votes(canonical)[0]
    assert votes.tolist() == [answers.count(answer) for answer in answers]
    best = select("vote", votes=votes[None], halt=votes[None] * 0.0, lprm=votes[None] * 0.0)[0]
    assert answers.count(answers[best]) == max(map(answers.count, answers))
    assert answers.index(answers[best]) == best


def test_selectors_pick_what_they_say():
    votes = np.array([[1, 2, 2]])
    halt = np.array([[0.3, 0.1, 0.2]], np.float32)
    lprm = np.array([[0.1, 0.2, 0.9]], np.float32)
    picks = {
        name: int(select(name, votes=votes, halt=halt, lprm=lprm)[0]) for name in ("vote", "lprm", "halt", "first")
    }
    assert picks == {"vote": 1, "lprm": 2, "halt": 0, "first": 0}
    with pytest.raises(ValueError, match="selector"):
        select("best", votes=votes, halt=halt, lprm=lprm)
