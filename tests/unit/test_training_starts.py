"""Slots that begin late or with a part of the solution: the engine's states, what is revealed, streams, refusals."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gram.config import SamplerConfig
from gram.sampler.engine import Observer
from gram.sampler.run import sample
from gram.tasks.protocol import BLANK
from gram.tasks.registry import get_task
from gram.training import starts
from gram.training.config import LATER, TrainConfig
from gram.training.cost import cost_of
from gram.training.recipe import RecipeError, load_recipe
from tests.unit.test_training import recipe, trainer

SUDOKU = {"task": "sudoku4", "vocabulary": 6}


class Captured(Observer):
    """The states of one trajectory after a number of steps."""

    def __init__(self, trajectory: int, step: int) -> None:
        self.trajectory, self.step, self.found = trajectory, step, None

    def on_advanced(self, engine):
        ids = np.where(engine.occupants < 0, -1, engine.table.id[engine.occupants])
        (rows,) = np.nonzero((ids == self.trajectory) & (engine.slots.step[: len(ids)] == self.step))
        if len(rows):
            self.found = engine.slots.h[rows[0]].clone(), engine.slots.l[rows[0]].clone()


@pytest.mark.parametrize(
    "model",
    [{}, {"transitions": 2, "noise_order": "after"}, {"guidance": "none", "initial_std": 1.0, "path_noise": 0.1}],
    ids=["learned noise", "several transitions", "path noise"],
)
def test_late_starts_are_the_engines_states_after_as_many_steps(tmp_path, model):
    made = trainer(tmp_path, model=model, late_share=0.6, late_steps=(2, 9))
    weights = made.flat.views(made.flat.compute.detach())
    slots = made.slots
    slots.refill(weights, np.random.default_rng(0), 0, 0.0)
    late = slots.late.copy()
    assert 0 < (late > 0).sum() < 8
    assert len(set(late[late > 0])) > 1
    began = slots.h.clone()
    slots.run_late(made._late, weights, made.rollouts.injection)
    assert np.array_equal(slots.taken, late)
    assert not slots.late.any()
    assert slots.ran_late[0] == late.sum()
    sampler = made.averaged()
    for slot, steps in enumerate(late.tolist()):
        if not steps:
            assert torch.equal(slots.h[slot], began[slot])
            continue
        seen = Captured(slot, steps)
        config = SamplerConfig(width=8, depth=steps + 1, launch=8, halting="fixed", seed=made.training.seed)
        sample(sampler, made.task, slots.puzzles[slot][None].astype(np.uint8), config, observer=seen)
        assert seen.found is not None
        for found, own in zip(seen.found, (slots.h[slot], slots.l[slot]), strict=True):
            assert torch.allclose(found, own, atol=1e-5)


def test_a_late_start_goes_on_at_its_step_and_ends_after_the_depth(tmp_path):
    made = trainer(tmp_path, late_share=1.0, late_steps=(4, 4), model={"depth": 2})
    for _ in range(4):
        made.advance()
        assert set(made.slots.taken.tolist()) <= {5, 6}
    assert (made.slots.taken == 6).any()


def test_counted_operations_are_those_of_the_late_starts(tmp_path):
    """As many as were drawn in progress, as many as are expected in the cost."""
    made = trainer(tmp_path, late_share=0.5, late_steps=(1, 6), steps=500, batch=64)
    plain = cost_of(recipe(steps=500, batch=64))
    cost = cost_of(made.recipe)
    assert cost.step_flops - cost.late_flops == plain.step_flops
    assert "of them late starts" in cost.sentence()
    assert "late" not in plain.sentence()
    for _ in range(60):
        figures = made.advance()
    ran = int(made.slots.ran_late[0])
    assert figures["flops"] == 60 * plain.step_flops + ran * cost.row_flops
    assert figures["flops"] == pytest.approx(60 * cost.step_flops, rel=0.1)
    again = trainer(tmp_path, steps=500, batch=64)
    assert again.advance()["flops"] == plain.step_flops


@given(least=st.integers(1, 40), more=st.integers(0, 60), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_late_lengths_lie_within_their_range(least, more, share, seed):
    training = TrainConfig(steps=1, late_share=share, late_steps=(least, least + more))
    drawn = starts.late_lengths(np.random.default_rng(seed), 50, training)
    assert ((drawn == 0) | ((drawn >= least) & (drawn <= least + more))).all()
    if share == 1:
        assert drawn.all()


def test_late_lengths_are_uniform_in_their_logarithm_and_have_the_mean_that_is_counted():
    training = TrainConfig(steps=1, late_share=0.5, late_steps=(32, 512))
    drawn = starts.late_lengths(np.random.default_rng(0), 40_000, training)
    late = drawn[drawn > 0]
    assert len(late) / len(drawn) == pytest.approx(0.5, abs=0.02)
    assert (late < 128).mean() == pytest.approx(0.5, abs=0.02)
    assert drawn.mean() == pytest.approx(starts.mean_late_steps(training), rel=0.03)


@given(
    puzzles=arrays(np.uint8, (5, 16), elements=st.integers(1, 5)),
    share=st.floats(0, 1),
    most=st.floats(0, 0.6),
    seed=st.integers(0, 999),
)
def test_what_is_revealed_agrees_with_the_answer_and_no_given_changes(puzzles, share, most, seed):
    answers = np.where(puzzles == BLANK, np.uint8(3), puzzles)
    shown = starts.reveal(np.random.default_rng(seed), puzzles, answers, share=share, most=most)
    assert shown.dtype == puzzles.dtype
    changed = shown != puzzles
    assert np.array_equal(shown[changed], answers[changed])
    assert (puzzles[changed] == BLANK).all()
    if not share or not most:
        assert not changed.any()


@given(fraction=st.floats(0, 1), until=st.floats(0.01, 1))
def test_the_part_falls_on_a_line_and_is_nothing_after_its_end(fraction, until):
    most = starts.most_revealed(TrainConfig(steps=1, reveal_until=until), fraction)
    assert most == pytest.approx(max(0, 0.6 * (1 - fraction / until)))
    assert (most == 0) == (fraction >= until)
    assert starts.most_revealed(TrainConfig(steps=1), fraction) == 0


@pytest.mark.parametrize(("task", "vocabulary", "least"), [("sudoku4", 6, 0.2), ("nqueens4", 3, 0.05)])
def test_slots_see_a_part_of_their_target_until_then(tmp_path, task, vocabulary, least):
    """The same puzzles without: what is more is of the target, the solutions listed are those of what is shown. On a
    board of queens only queens are givens, so fewer puzzles show more."""
    model = {"task": task, "vocabulary": vocabulary}
    settings = {"batch": 128, "prior_share": 0.5, "model": model}
    made, plain = (trainer(tmp_path, reveal_until=until, reveal_share=0.5, **settings) for until in (0.5, 0))
    for one in (made, plain):
        one.slots.refill(one.model.weights(), np.random.default_rng(0), 3, 0.1)
    told = made.slots.puzzles != plain.slots.puzzles
    assert np.array_equal(made.slots.targets, plain.slots.targets)
    assert np.array_equal(made.slots.puzzles[told], made.slots.targets[told])
    assert (plain.slots.puzzles[told] == BLANK).all()
    assert least < told.any(1).mean() < 0.6
    for slot in np.flatnonzero(made.slots.is_prior & told.any(1)):
        listed = made.slots.solutions[slot]
        given = made.slots.puzzles[slot] > BLANK
        for solution in listed[listed[:, 0] > 0]:
            assert np.array_equal(solution[given], made.slots.puzzles[slot][given])
    made.slots.left[:] = 0
    plain.slots.left[:] = 0
    for one in (made, plain):
        one.slots.refill(one.model.weights(), np.random.default_rng(1), 4, 0.5)
    assert np.array_equal(made.slots.puzzles, plain.slots.puzzles)


def test_a_run_with_either_draws_the_puzzles_of_one_without(tmp_path):
    """Streams of their own: targets, prior-led slots and rollouts stay as they were."""
    plain = trainer(tmp_path, model=SUDOKU, prior_share=0.5)
    other = trainer(tmp_path, model=SUDOKU, prior_share=0.5, late_share=0.5, late_steps=(1, 3), reveal_until=1.0)
    for _ in range(5):
        plain.advance()
        other.advance()
        assert np.array_equal(plain.slots.targets, other.slots.targets)
        assert np.array_equal(plain.slots.is_prior, other.slots.is_prior)
        assert np.array_equal(plain.rollouts.puzzles, other.rollouts.puzzles)
        assert np.array_equal(plain.rollouts.last, other.rollouts.last)


def test_a_stream_is_its_names_own():
    def first(*place):
        return starts.stream(*place).random(4).tolist()

    drawn = [first(0, 5, "reveal"), first(0, 5, "late starts"), first(0, 6, "reveal"), first(1, 5, "reveal")]
    drawn += [np.random.default_rng(key).random(4).tolist() for key in ([0, 5], [0, 5, 1])]
    assert len({tuple(each) for each in drawn}) == 6
    assert first(2**63 - 1, 5, "reveal") == first(2**63 - 1, 5, "reveal")


def test_runs_from_before_lack_the_settings_and_go_on():
    """At these values all is as it was."""
    training = recipe().training
    for name in ("gradient_steps", "late_share", "reveal_until"):
        assert getattr(training, name) == LATER[name]
    assert list(training.late_steps) == LATER["late_steps"]


@pytest.mark.parametrize("name", ["sudoku6", "nqueens8", "sudoku9"])
def test_answers_of_these_can_stand_as_givens(name):
    starts.check_reveal(get_task(name), is_conditional=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base = 'sudoku6'\n[training]\nlate_share = 1.5", "late_share must be within 0 and 1, got 1.5"),
        ("base = 'sudoku6'\n[training]\nlate_steps = [0, 3]", "late_steps must be two numbers that rise within 1 and"),
        ("base = 'sudoku6'\n[training]\nlate_steps = [9, 3]", "rise within 1 and 65,536, got [9, 3]"),
        ("base = 'sudoku6'\n[training]\nlate_steps = [9]", "late_steps must be two numbers"),
        ("base = 'sudoku6'\n[training]\nlate_steps = [1, 99999999]", "within 1 and 65,536"),
        ("base = 'sudoku6'\n[training]\nlate_steps = ['a', 'b']", "late_steps must be a whole number"),
        ("base = 'sudoku6'\n[training]\nreveal_until = -0.1", "reveal_until must be within 0 and 1, got -0.1"),
        (
            "base = 'sudoku6-unconditional'\n[training]\nreveal_until = 0.5",
            "reveal_until must be 0 without a condition",
        ),
        (
            "base = 'colouring8'\n[training]\nreveal_until = 0.5",
            "task colouring8, whose answers cannot stand as givens",
        ),
        ("base = 'paper-maze-hard'\n[training]\nreveal_until = 0.5", "maze30, whose answers cannot stand as givens"),
        ("base = 'paper-arc1'\n[training]\nreveal_until = 0.5", "whose answers cannot stand as givens"),
        ("base = 'queens'\n[training]\nreveal_until = 0.5", "reveal_until must be 0 with a lattice, got 0.5"),
        ("base = 'queens'\n[training]\nlate_share = 0.5", "late_share must be 0 with a lattice, got 0.5"),
        ("base = 'recolour'\n[training]\nlate_share = 0.5", "late_share must be 0 with a memory of demonstrations"),
    ],
)
def test_bad_starts_are_one_line(tmp_path, text, words):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(RecipeError) as error:
        load_recipe(str(path))
    assert words in str(error.value)
    assert "\n" not in str(error.value)
