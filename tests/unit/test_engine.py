"""The sampler: the same trajectory in any batch, halting, selection."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gram.config import SamplerConfig
from gram.sampler.engine import Engine, Observer, Progress
from gram.sampler.run import resolve, sample, shards_of
from gram.sampler.selectors import RECORDED, Scores, answer_labels, count_votes, select
from gram.sampler.width import ahead_probability
from gram.tasks.registry import get_task
from tests.models import tiny_model

TASK = get_task("nqueens4")
PUZZLES = np.concatenate([TASK.split(name).puzzles for name in ("train", "validation", "test")])


class Views(Observer):
    """Keeps what it is shown."""

    def __init__(self, views):
        self.views = views

    def on_step(self, view):
        self.views.append(view)


class Steps(Observer):
    """Counts the supervision steps of the slots."""

    count = 0

    def on_advanced(self, engine):
        self.count += 1


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
        observer=Views(seen),
    )
    assert len(seen) == 3
    for depth in (1, 2, 3):
        assert np.array_equal(run(puzzles=PUZZLES[:1], width=8, depth=depth).candidates[0], seen[depth - 1].answers)


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
    for policy in ("fixed", "decided", "staged", "trusted", "first-halt"):
        ended = []
        config = SamplerConfig(width=7, launch=8, width_policy=policy)
        sample(tiny_model(), TASK, PUZZLES[:5], config, observer=Progress(ended.append))
        assert sum(ended) == 35


def test_watching_does_not_change_what_is_seen():
    config = SamplerConfig(width=6, launch=8)
    views = []
    watched = sample(tiny_model(), TASK, PUZZLES[:2], config, observer=Views(views))
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
    votes = count_votes(answer_labels(np.array(answers, np.uint8).reshape(1, -1, 1)))[0]
    assert votes.tolist() == [answers.count(answer) for answer in answers]
    nothing = np.zeros((1, len(answers)), np.float32)
    best = select("vote", Scores(votes[None], *[nothing] * 4, votes[None], nothing > 0))[0]
    assert answers.count(answers[best]) == max(map(answers.count, answers))
    assert answers.index(answers[best]) == best


def test_selectors_pick_what_they_say():
    scores = Scores(
        votes=np.array([[1, 2, 2, 1, 0]]),
        halt=np.array([[0.3, 0.1, 0.2, 0.0, 9.0]], np.float32),
        lprm=np.array([[0.1, 0.2, 0.9, 0.0, 9.0]], np.float32),
        residual=np.array([[0.3, 0.2, 0.2, 0.1, 0.0]], np.float32),
        margin=np.array([[0.3, 0.2, 0.1, 0.5, 9.0]], np.float32),
        steps=np.array([[8, 3, 2, 2, 0]]),
        is_halted=np.array([[False, True, True, True, True]]),
    )
    picks = {name: int(select(name, scores)[0]) for name in RECORDED}
    expected = {"vote": 1, "lprm": 2, "halt": 0, "residual": 3, "margin": 3, "first": 0, "first-halt": 2}
    assert picks == expected  # the last trajectory does not count, whatever its scores
    never = scores._replace(is_halted=np.zeros((1, 5), bool))
    assert select("first-halt", never)[0] == 0
    with pytest.raises(ValueError, match="selector"):
        select("best", scores)


@pytest.mark.parametrize("name", ["lprm", "halt", "residual", "margin"])
def test_an_undefined_score_is_never_picked_before_a_defined_one(name):
    sign = -1 if name == "residual" else 1
    values = sign * np.array([[np.nan, -3, -2, np.nan], [np.nan] * 4, [np.nan, -np.inf, np.nan, np.nan]], np.float32)
    nothing, votes = np.zeros((3, 4), np.float32), np.ones((3, 4), np.int64)
    scores = Scores(votes, nothing, nothing, nothing, nothing, votes, nothing > 0)._replace(**{name: values})
    assert select(name, scores).tolist() == [2, 0, 1]
    scores.votes[0, 2] = 0
    assert select(name, scores)[0] == 1


def test_the_checkpoints_own_selector_is_the_default():
    model = tiny_model()
    assert resolve(SamplerConfig(), model).selector == "vote"
    model.config = replace(model.config, selector="halt")
    assert resolve(SamplerConfig(), model).selector == "halt"
    assert resolve(SamplerConfig(selector="first"), model).selector == "first"
    with pytest.raises(ValueError, match="selector must be one of"):
        replace(model.config, selector="best")


def test_the_selector_of_a_head_that_was_never_trained_is_refused():
    model = tiny_model()
    model.lprm.weight.zero_()
    model.config = replace(model.config, selector="lprm")
    for config in (SamplerConfig(), SamplerConfig(selector="lprm"), SamplerConfig(selector="lprm", width=1)):
        with pytest.raises(ValueError, match="selector must be of a head that was trained, got lprm"):
            resolve(config, model)
    assert resolve(SamplerConfig(selector="halt"), model).selector == "halt"


POLICIES = [
    {},
    {"halting": "fixed"},
    {"halting": "unchanged", "halt_threshold": 1, "depth": 6},
    {"halting": "residual", "halt_threshold": 0.2, "depth": 6},
    {"width_policy": "decided", "width_threshold": 0.8, "width": 9},
    {"width_policy": "staged", "width_threshold": 0.5, "width": 9},
    {"width_policy": "trusted", "width_threshold": 0.5, "width": 9},
    {"width_policy": "verified", "width": 9},
    {"injector": "gaussian", "sigma": 0.5, "noise_site": "both"},
    {"injector": "path", "sigma": 0.1},
    {"transitions": 2, "low_level_updates": 1},
]


def stochastic_halting_model():
    model = tiny_model()
    model.halt.weight.mul_(20)
    model.lprm.bias.fill_(0.4)
    return model


@settings(max_examples=40)
@given(
    slots=st.integers(1, 512), policy=st.sampled_from(POLICIES), seed=st.integers(0, 3), order=st.permutations(range(4))
)
def test_slots_and_order_change_no_trajectory(slots, policy, seed, order):
    model, chosen = stochastic_halting_model(), PUZZLES[:4]
    settings_ = {"width": 6, "launch": 8, "seed": seed, **policy}
    one = sample(model, TASK, chosen, SamplerConfig(**settings_, slots=slots))
    other = sample(model, TASK, chosen[list(order)], SamplerConfig(**settings_, slots=64))
    inverse = np.argsort(order)
    assert np.array_equal(one.widths, other.widths[inverse])
    for name in ("candidates", "steps", "halt", "lprm", "residual", "margin", "votes"):
        assert np.array_equal(getattr(one, name), getattr(other, name)[inverse]), name


def test_an_adaptive_run_is_a_prefix_of_a_fixed_one():
    """What counts is what a fixed width would have given, and the width is the smallest that decides."""
    model = stochastic_halting_model()
    some = {"width": 9, "launch": 8, "temperature": 0.1}
    fixed = sample(model, TASK, PUZZLES, SamplerConfig(**some))
    adaptive = sample(model, TASK, PUZZLES, SamplerConfig(**some, width_policy="decided"))
    assert adaptive.widths.min() < 9
    assert adaptive.steps_run < fixed.steps_run
    for index, width in enumerate(adaptive.widths):
        assert np.array_equal(adaptive.candidates[index, :width], fixed.candidates[index, :width])
        votes, first = Counter(), None
        for count, answer in enumerate(fixed.candidates[index], start=1):
            votes[answer.tobytes()] += 1
            lead, second = [*sorted(votes.values(), reverse=True), 0][:2]
            if first is None and ahead_probability(lead, second) >= 0.95:
                first = count
        assert width == (first or 9)


@pytest.mark.parametrize("policy", ["decided", "staged", "verified"])
def test_what_fits_one_launch_runs_at_once_whatever_the_width_policy(policy):
    """Rows that would be padding run trajectories that may come to be needed, so no look waits for another."""
    model, steps = stochastic_halting_model(), Steps()
    config = SamplerConfig(width=9, depth=5, slots=128, launch=128, halting="fixed", width_policy=policy)
    engine = Engine(model, TASK, PUZZLES[:12], resolve(config, model), observer=steps)
    found = dict(engine.run(shards_of(12, engine.config)))
    assert steps.count == 5
    small = Engine(model, TASK, PUZZLES[:12], resolve(replace(config, slots=8, launch=8), model))
    for shard, result in small.run(shards_of(12, small.config)):
        assert np.array_equal(result.widths, found[shard].widths)


def test_every_way_of_halting_stops_where_it_says():
    model, seen = stochastic_halting_model(), []
    config = SamplerConfig(width=6, depth=8, launch=8, halting="unchanged", halt_threshold=2)
    result = sample(model, TASK, PUZZLES[:6], config, observer=Views(seen))
    history = {}
    for view in seen:
        for row in range(len(view.puzzle)):
            history.setdefault((view.puzzle[row], view.trajectory[row]), []).append(view.answers[row].tobytes())
    for (puzzle, trajectory), answers in history.items():
        steps = int(result.steps[puzzle, trajectory])
        assert steps == len(answers)
        ages = [0]
        for before, answer in pairwise(answers):
            ages.append(ages[-1] + 1 if answer == before else 0)
        assert all(age < 2 for age in ages[1:-1])
        assert bool(result.is_halted[puzzle, trajectory]) == (ages[-1] >= 2 and steps >= 2)
    resting = sample(
        model, TASK, PUZZLES[:6], SamplerConfig(width=6, depth=8, launch=8, halting="residual", halt_threshold=0.5)
    )
    assert 0 < resting.is_halted.mean() < 1
    assert (resting.residual[resting.is_halted] < 0.5).all()
    assert (resting.residual[~resting.is_halted] >= 0.5).all()
    assert len(np.unique(resting.steps)) > 1


def test_the_rectangular_sampler_gives_the_same_and_runs_more():
    model = stochastic_halting_model()
    config = resolve(SamplerConfig(width=8, depth=6, launch=8, slots=8, halt_threshold=0.5), model)
    results, steps = {}, {}
    for is_static in (False, True):
        engine = Engine(model, TASK, PUZZLES[:8], config, is_static=is_static)
        results[is_static] = dict(engine.run(shards_of(8, config)))
        steps[is_static] = engine.steps_run
    for shard, result in results[False].items():
        assert np.array_equal(result.candidates, results[True][shard].candidates)
        assert np.array_equal(result.steps, results[True][shard].steps)
    counted = sum(int(result.steps.sum()) for result in results[False].values())
    assert steps[False] == counted < steps[True]


def test_no_noise_is_the_deterministic_model_bit_for_bit():
    """Every point of the product with scale 0 and one trajectory: 2605.19943 and 2605.21488 without their noise."""
    model = tiny_model(guidance="none")
    plain = sample(model, TASK, PUZZLES, SamplerConfig(width=1, launch=8))
    for settings_ in (
        {"injector": "none"},
        {"injector": "gaussian", "sigma": 0.0, "noise_site": "both"},
        {"injector": "gaussian", "sigma": 0.0},
    ):
        other = sample(model, TASK, PUZZLES, SamplerConfig(width=1, launch=8, **settings_))
        assert other.trajectories_sha256 == plain.trajectories_sha256
        assert np.array_equal(other.halt, plain.halt)
    quiet = sample(tiny_model(), TASK, PUZZLES, SamplerConfig(width=3, launch=8, temperature=0.0))
    assert (quiet.candidates == quiet.candidates[:, :1]).all()


def test_random_initial_states_differ_between_trajectories_only():
    model = tiny_model(guidance="none", initial_std=1.0, path_keep=0.05, path_noise=0.0)
    result = sample(model, TASK, PUZZLES[:3], SamplerConfig(width=5, depth=1, launch=8, halting="fixed"))
    assert len(set(result.halt[0].tolist())) == 5
    again = sample(model, TASK, PUZZLES[:3], SamplerConfig(width=5, depth=1, launch=16, slots=3, halting="fixed"))
    assert np.allclose(result.halt, again.halt, atol=1e-5)


def test_settings_that_contradict_the_model_are_refused():
    twin = tiny_model(guidance="none")
    with pytest.raises(ValueError, match="without a prior"):
        resolve(SamplerConfig(injector="prior"), twin)
    with pytest.raises(ValueError, match="sigma must be given"):
        resolve(SamplerConfig(injector="path"), twin)
    assert resolve(SamplerConfig(injector="gaussian"), twin).sigma == 0.3
    trained = tiny_model(guidance="none", path_noise=0.01, initial_std=1.0)
    assert resolve(SamplerConfig(), trained).injector == "path"
    assert resolve(SamplerConfig(), trained).sigma == 0.01
    assert resolve(resolve(SamplerConfig(), trained), trained) == resolve(SamplerConfig(), trained)
