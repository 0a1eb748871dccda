"""Training of a lattice: which states stay and which leave, what the loss is, and that a run goes on as it was."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gram import checkpoint
from gram.kernels.reference import core, read_head
from gram.model import Model, embed_sets, read_values
from gram.sampler.lattice import Round
from gram.sizes import lattice_shape, shape_of
from gram.tasks.registry import get_task
from gram.training import lattice_trainer
from gram.training.config import TrainConfig
from gram.training.cost import cost_of
from gram.training.data_parallel import Ranks
from gram.training.lattice_loss import DROP_WEIGHT, KEEP_WEIGHT, loop
from gram.training.lattice_pool import LatticePool, States
from gram.training.lattice_trainer import LatticeTrainer
from gram.training.puzzles import TrainingPuzzles
from gram.training.recipe import Recipe, RecipeError
from gram.training.run_folder import starting_weights
from tests.models import tiny_model
from tests.unit.test_lattice import lattice_model

CPU = torch.device("cpu")
MODEL = lattice_model().config
RNG = np.random.default_rng(1)


def recipe(**training) -> Recipe:
    settings = {"steps": 8, "batch": 8, "rows_at_once": 4, "evaluate_puzzles": 4, "warmup_steps": 1, **training}
    return Recipe("tiny", "", get_task(MODEL.task), MODEL, TrainConfig(**settings))


def trainer(out: Path, **training) -> LatticeTrainer:
    return LatticeTrainer(recipe(**training), out, device=CPU, dtype=torch.float32, is_compiled=False)


def pool(**training) -> LatticePool:
    own = recipe(**training)
    made = LatticePool(TrainingPuzzles(own.task, MODEL, own.training), MODEL, own.training, CPU)
    made.refill(np.random.default_rng(0))
    return made


def played(sets: np.ndarray, *, conflict: bool = False, solved: bool = False) -> Round:
    count = len(sets)
    made = torch.from_numpy(sets)
    flags = (torch.full((count,), value) for value in (conflict, solved))
    return Round(made, *flags, made, torch.full((count,), -1))


def answers_of(states: LatticePool) -> np.ndarray:
    return states.answers[:, :, None] == np.arange(MODEL.vocabulary)


def lost_sets(states: LatticePool) -> np.ndarray:
    """One cell that the puzzle leaves open without the right value, the others as they were."""
    sets = states.sets.copy()
    for row, (own, answer) in enumerate(zip(sets, states.answers, strict=True)):
        cell = int(np.argmax(own.sum(1) > 1))
        own[cell, answer[cell]] = False
        assert own[cell].any(), row
    return sets


def test_a_solved_state_leaves_and_a_wrongly_solved_one_stays_to_be_judged():
    states = pool(reveal_share=0.0)
    assert states.carry(played(answers_of(states), solved=True), RNG) == (8, 0)
    assert states.is_free.all()
    states = pool(reveal_share=0.0)
    assert states.carry(played(lost_sets(states), solved=True), RNG) == (0, 8)
    assert not states.is_free[states.age < states.training.longest_life].any()


def test_a_right_conflict_leaves_and_a_mistaken_one_stays_as_it_was():
    states = pool(reveal_share=0.0)
    states.carry(played(lost_sets(states), conflict=True), RNG)
    assert states.is_free.all()
    states = pool(reveal_share=0.0)
    before = states.sets.copy()
    states.carry(played(answers_of(states), conflict=True), RNG)
    np.testing.assert_array_equal(states.sets, before)
    assert not states.is_free[states.age < states.training.longest_life].any()


def test_old_states_and_those_without_a_value_leave():
    states = pool(reveal_share=0.0, longest_life=1)
    states.carry(played(states.sets), RNG)
    assert states.is_free.all()
    states = pool(reveal_share=0.0)
    states.age[:] = 0
    states.carry(played(np.zeros_like(states.sets)), RNG)
    assert states.is_free.all()


def test_the_first_states_start_at_ages_of_their_own_and_later_ones_at_none():
    states = pool(batch=64, longest_life=50)
    assert len(set(states.age.tolist())) > 10
    states.is_free[:32] = True
    states.refill(np.random.default_rng(1))
    assert (states.age[:32] == 0).all()
    assert len(set(zip(states.hashes.tolist(), states.trajectory.tolist(), strict=True))) == 64


def test_revealed_states_hold_their_solution_and_know_more_than_the_puzzle():
    states = pool(batch=64, reveal_share=1.0)
    assert (states.sets & answers_of(states)).any(2).all()
    assert states.sets.sum() < states.first.sum()
    np.testing.assert_array_equal(pool(reveal_share=0.0).sets, pool(reveal_share=0.0).first)


def test_the_loss_is_what_its_definition_says():
    """State by state in plain numbers."""
    states = pool(reveal_share=0.5)
    states.sets[:3] = lost_sets(states)[:3]
    seen, model = states.view(), lattice_model()
    weights = model.weights()
    assert seen.is_lost.tolist()[:3] == [True] * 3
    shown = embed_sets(weights, MODEL, seen.puzzles, seen.sets)
    start = model.initial_state(8)[0]
    h, losses = loop(weights, MODEL, start, shown, seen)
    torch.testing.assert_close(h, core(weights, "low", start + shown, MODEL.spec))
    keep, value = read_values(weights, MODEL, h)
    sound = read_head(weights, "halt", h, MODEL.spec)
    kept = valued = judged = 0.0
    for row in range(8):
        judged += math.log1p(math.exp(float(sound[row]) * (1 if seen.is_lost[row] else -1)))
        for cell in range(MODEL.output_tokens):
            own = seen.sets[row, cell]
            for number in range(len(MODEL.values)):
                if own[number] and own.sum() > 1:
                    is_right = bool(seen.survivors[row, cell, number])
                    sign = -1 if is_right else 1
                    error = math.log1p(math.exp(sign * float(keep[row, cell, number])))
                    kept += error * (KEEP_WEIGHT if is_right else DROP_WEIGHT)
            if not seen.given[row, cell] and not seen.is_lost[row]:
                chance = value[row, cell].softmax(-1)
                valued -= math.log(float(chance[seen.survivors[row, cell]].sum()))
    assert float(losses.keep) == pytest.approx(kept / (MODEL.output_tokens * len(MODEL.values)), rel=1e-4)
    assert float(losses.value) == pytest.approx(valued / MODEL.output_tokens, rel=1e-4)
    assert float(losses.sound) == pytest.approx(judged, rel=1e-4)


def test_by_share_the_value_is_learnt_by_how_many_solutions_take_it():
    states = pool(reveal_share=0.5)
    states.sets[:3] = lost_sets(states)[:3]
    seen, model = states.view(), lattice_model()
    shares = torch.rand(seen.shares.shape, generator=torch.Generator().manual_seed(0)) * ~seen.is_lost[:, None, None]
    weights = model.weights()
    shown = embed_sets(weights, MODEL, seen.puzzles, seen.sets)
    start = model.initial_state(8)[0]
    h, losses = loop(weights, MODEL, start, shown, seen._replace(shares=shares), by_share=True)
    _, value = read_values(weights, MODEL, h)
    valued = 0.0
    for row in range(3, 8):
        for cell in range(MODEL.output_tokens):
            if not seen.given[row, cell]:
                valued -= float((shares[row, cell] * value[row, cell].softmax(-1).log()).sum())
    assert float(losses.value) == pytest.approx(valued / MODEL.output_tokens, rel=1e-4)
    # Where a puzzle has one solution, its share is all: both targets are one.
    either = [loop(weights, MODEL, start, shown, seen, by_share=by_share)[1] for by_share in (False, True)]
    torch.testing.assert_close(*either)


def test_shares_are_counted_where_the_recipe_asks_and_learnt():
    """N-Queens has several solutions."""
    task = get_task("nqueens5")
    config = replace(
        MODEL, **shape_of(task), **lattice_shape("lattice", task), task=task.name, relations=task.relations
    )
    for value_target, asked in (("any", task.survivors), ("share", task.solution_shares)):
        own = Recipe("tiny", "", task, config, TrainConfig(steps=8, batch=8, value_target=value_target))
        states = LatticePool(TrainingPuzzles(task, config, own.training), config, own.training, CPU)
        states.refill(np.random.default_rng(0))
        seen = states.view()
        wanted = asked(states.puzzles, states.answers, states.sets)[..., list(config.values)]
        np.testing.assert_array_equal(seen.shares.numpy(), wanted.astype(np.float32))
        np.testing.assert_array_equal(seen.survivors.numpy(), wanted > 0)
        assert ((seen.shares > 0) & (seen.shares < 1)).any() == (value_target == "share")


@pytest.mark.parametrize("value_target", ["any", "share"])
def test_the_trainer_takes_the_recipes_target_of_values(tmp_path, monkeypatch, value_target):
    asked = []

    def noted(*arguments, by_share):
        asked.append(by_share)
        return loop(*arguments, by_share=by_share)

    monkeypatch.setattr(lattice_trainer, "loop", noted)
    trainer(tmp_path, value_target=value_target).advance()
    assert set(asked) == {value_target == "share"}


def test_parts_of_a_batch_give_the_gradient_of_the_whole(tmp_path):
    norms = [trainer(tmp_path, rows_at_once=rows).advance()["gradient_norm"] for rows in (1, 4, 8)]
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-4)


def test_a_resumed_run_ends_as_one_that_never_stopped(tmp_path):
    whole = trainer(tmp_path / "whole", play_averaged=True)
    for _ in range(6):
        whole.advance()
    first = trainer(tmp_path / "parts", play_averaged=True)
    (tmp_path / "parts").mkdir()
    for _ in range(3):
        first.advance()
    first.save_state()
    second = trainer(tmp_path / "parts", play_averaged=True)
    assert second.load_state()
    for _ in range(3):
        second.advance()
    assert torch.equal(whole.flat.master, second.flat.master)
    assert torch.equal(whole.flat.average, second.flat.average)
    np.testing.assert_array_equal(whole.pool.sets, second.pool.sets)


@pytest.mark.parametrize("averaged", [False, True])
def test_rounds_are_played_by_the_weights_that_were_asked_for(tmp_path, averaged):
    """A judge whose bias calls every state lost, in one of the two sets of weights: its states are all in conflict."""
    made = trainer(tmp_path, play_averaged=averaged, reveal_share=0.0)
    other = made.flat.master if averaged else made.flat.average
    own = made.flat.average if averaged else made.flat.master
    with torch.no_grad():
        made.flat.views(own)["halt.bias"].fill_(-1e4)
        made.flat.views(other)["halt.bias"].fill_(1e4)
    made.pool.refill(np.random.default_rng([0, 0]))
    made.pool.age[:] = 0
    before = made.pool.sets.copy()
    made.advance()
    # Every conflict is mistaken, so every state stays as it was.
    np.testing.assert_array_equal(made.pool.sets, before)


def test_a_few_steps_bring_the_loss_down(tmp_path):
    made = trainer(tmp_path, steps=60, batch=16, rows_at_once=16, learning_rate=1e-2, ema=0.9)
    errors = [made.advance()["keep"] for _ in range(60)]
    assert np.mean(errors[-10:]) < 0.8 * np.mean(errors[:10])


def test_bad_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="batch must be a multiple of rows_at_once 3, got 8"):
        trainer(tmp_path, rows_at_once=3)


def test_a_lattice_is_trained_by_one_process(tmp_path):
    with pytest.raises(ValueError, match="a lattice must be trained by one process, got 2"):
        LatticeTrainer(
            recipe(), tmp_path, device=CPU, dtype=torch.float32, is_compiled=False, ranks=Ranks(rank=0, size=2)
        )


def test_several_sizes_are_learnt_by_turns(tmp_path):
    """Each size has a pool of its own, one optimiser step advances one of them, and a resumed run goes on with both."""
    own = recipe()
    several = Recipe("tiny", "", own.task, MODEL, own.training, "", (get_task("sudoku6"),))

    def made() -> LatticeTrainer:
        return LatticeTrainer(several, tmp_path, device=CPU, dtype=torch.float32, is_compiled=False)

    first = made()
    small, large = (lane.pool for lane in first.lattice_lanes)
    first.advance()
    assert (small.started, large.started) == (8, 0)
    first.advance()
    assert large.started == 8
    assert large.sets.shape == (8, 36, get_task("sudoku6").vocabulary)
    first.save_state()
    second = made()
    assert second.load_state()
    first.advance()
    second.advance()
    assert torch.equal(first.flat.master, second.flat.master)
    assert set(first.evaluate()) == {
        "single_accuracy", "wrongly_solved", "sudoku4/single_accuracy", "sudoku4/wrongly_solved",
        "sudoku6/single_accuracy", "sudoku6/wrongly_solved",
    }  # fmt: skip


def test_a_backward_pass_takes_part_of_the_loops_by_turns(tmp_path):
    """Of 2 loops with a gradient through 1: the first pass learns from the first, the next from the second, whose start
    is the first's end; states are played by the last."""
    made = trainer(tmp_path, batch=4, rows_at_once=2, gradient_loops=1, reveal_share=0.0)
    seen = []
    whole = made._loss_of

    def noted(config, states, before):
        h, losses = whole(config, states, before)
        seen.append((before, h, losses))
        return h, losses

    made._loss_of = noted
    made.advance()
    made.advance()
    assert [before for before, _, _ in seen] == [0, 1, 1, 0]
    states = made_states(seed=0)
    model = Model(MODEL, seed=0).requires_grad_(False)
    weights = model.weights()
    shown = embed_sets(weights, MODEL, states.puzzles, states.sets)
    first, _ = loop(weights, MODEL, model.initial_state(4)[0], shown, states)
    late = States(*(each[2:] for each in states))
    second, errors = loop(weights, MODEL, first[2:], shown[2:], late)
    torch.testing.assert_close(seen[0][1], first[:2])
    torch.testing.assert_close(seen[1][1], second)
    torch.testing.assert_close(seen[1][2], torch.stack(errors))


def made_states(seed: int) -> States:
    """The four states with which a run of `seed` begins."""
    own = recipe(batch=4, reveal_share=0.0, rows_at_once=2)
    made = LatticePool(TrainingPuzzles(own.task, MODEL, own.training), MODEL, own.training, CPU)
    made.refill(np.random.default_rng([seed, 0]))
    return made.view()


def test_loops_that_do_not_divide_are_refused(tmp_path):
    with pytest.raises(ValueError, match="gradient_loops must divide the 2 transitions, got 3"):
        trainer(tmp_path, gradient_loops=3)


@pytest.mark.parametrize("settings", [{}, {"play_averaged": True}, {"gradient_loops": 1}])
def test_the_counted_cost_is_that_of_the_products(tmp_path, settings):
    made = trainer(tmp_path, **settings)
    made.advance()
    steps = 2  # the passes of two optimiser steps take every part of the loops as often
    with FlopCounterMode(display=False) as counter:
        for _ in range(steps):
            made.advance()
    counted = cost_of(made.recipe).step_flops
    assert counter.get_total_flops() / steps == pytest.approx(counted, rel=0.03)


def test_a_run_may_start_from_other_thresholds_and_not_from_another_kind_of_model(tmp_path):
    checkpoint.save(lattice_model(drop_below=0.2, search="backtrack", depth=3), tmp_path / "start")
    assert starting_weights(recipe(), tmp_path / "start").keys() == lattice_model().weights().keys()
    checkpoint.save(tiny_model(), tmp_path / "other")
    with pytest.raises(RecipeError, match=r"got latent 'continuous' in .*other, expected 'lattice'"):
        starting_weights(recipe(), tmp_path / "other")


def test_a_sole_answer_survives_as_the_solver_says():
    states = pool(batch=32)
    states.sets[:8] = lost_sets(states)[:8]
    expected = states.source.task.survivors(states.puzzles, states.answers, states.sets)
    np.testing.assert_array_equal(states.view().survivors.numpy(), expected[..., states.values])
    assert states.view().is_lost.tolist() == [True] * 8 + [False] * 24
