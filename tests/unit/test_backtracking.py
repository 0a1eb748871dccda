"""Backtracking of a lattice: the trail is a stack of states, the engine follows it, and training goes the same way."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gram.config import SamplerConfig
from gram.kernels.philox import NoiseKey
from gram.sampler.backtracking import begin, follow
from gram.sampler.lattice import Opinion, Round, Rules, play_round, rules_of
from gram.sampler.run import sample
from gram.tasks.registry import get_task
from gram.training.backtracking_pool import BacktrackingPool
from gram.training.config import TrainConfig
from gram.training.lattice_trainer import LatticeTrainer
from gram.training.puzzles import TrainingPuzzles
from gram.training.recipe import Recipe
from tests.unit.test_lattice import lattice_config, lattice_model

TOKENS, VALUES = 5, 3
CPU = torch.device("cpu")
KIND = {"drop_below": 0.3, "conflict_above": 1.0}
"""At these a random model both commits and meets conflicts."""
MODEL = lattice_model(search="backtrack", **KIND)


class Stack:
    """What backtracking means, state by state."""

    def __init__(self, first: np.ndarray) -> None:
        self.first, self.sets, self.saved, self.lives = first, first.copy(), [], 0

    def follow(self, kept: np.ndarray, choice: int, is_conflict: bool) -> None:
        if is_conflict:
            if not self.saved:
                self.sets = self.first.copy()
                self.lives += 1
                return
            before, (token, value) = self.saved.pop()
            before[token, value] = False
            self.sets = before
            return
        self.sets = kept.copy()
        if choice >= 0:
            token, value = divmod(choice, VALUES)
            self.saved.append((kept.copy(), (token, value)))
            self.sets[token] = False
            self.sets[token, value] = True


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), rounds=st.integers(1, 25))
def test_a_trail_is_a_stack_of_states(seed, rounds):
    rng = np.random.default_rng(seed)
    first = rng.random((4, TOKENS, VALUES)) < 0.8
    first[:, :, 0] = True
    stacks = [Stack(own.copy()) for own in first]
    trail = begin(torch.from_numpy(first))
    for _ in range(rounds):
        sets = trail.sets.numpy()
        kept = sets & (rng.random(sets.shape) < 0.9)
        is_conflict = (rng.random(4) < 0.4) | (kept.sum(2) == 0).any(1)
        choice, after = np.full(4, -1), kept.copy()
        for row in range(4):
            is_open = np.flatnonzero(kept[row].sum(1) > 1)
            if len(is_open) and not is_conflict[row] and rng.random() < 0.9:
                token = rng.choice(is_open)
                value = rng.choice(np.flatnonzero(kept[row, token]))
                choice[row] = token * VALUES + value
                after[row, token] = np.arange(VALUES) == value
            stacks[row].follow(kept[row], choice[row], is_conflict[row])
        arrays = (after, is_conflict, np.zeros(4, bool), kept, choice)
        trail = follow(trail, torch.from_numpy(first), Round(*map(torch.from_numpy, arrays)))
        np.testing.assert_array_equal(trail.sets.numpy(), [stack.sets for stack in stacks])
        assert trail.level.tolist() == [len(stack.saved) for stack in stacks]
        assert trail.belief.tolist() == [0.5**stack.lives for stack in stacks]


def test_only_tokens_of_the_fewest_values_are_committed():
    sets = torch.ones(200, TOKENS, VALUES, dtype=torch.bool)
    sets[:, :2, 0] = False
    sets[:, 0, 1] = False  # decided: one value is no choice
    said = Opinion(torch.full(sets.shape, 5.0), torch.randn(sets.shape), torch.full((200,), 5.0))
    names = NoiseKey(0, *(torch.arange(200) * factor for factor in (1, 1, 0)))
    given_ = torch.zeros(200, TOKENS, dtype=torch.bool)
    fewest = play_round(sets, given_, said, Rules(0.1, 0.5, 1.0, takes_fewest=True), names)
    assert set((fewest.choice // VALUES).tolist()) == {1}
    any_ = play_round(sets, given_, said, Rules(0.1, 0.5, 1.0), names)
    assert set((any_.choice // VALUES).tolist()) == {1, 2, 3, 4}
    assert torch.equal(fewest.kept, sets)


def test_a_trajectory_that_started_anew_believes_the_model_less():
    """At belief 1/4 a value is ruled out, and a state in conflict, where the model is four times as sure."""
    sets = torch.ones(4, TOKENS, VALUES, dtype=torch.bool)
    chances = torch.tensor([0.02, 0.03, 0.02, 0.03])  # of the first value of the first token, and of a solution
    said = Opinion(torch.full(sets.shape, 5.0), torch.zeros(sets.shape), torch.logit(chances * 2))
    said.keep[:, 0, 0] = torch.logit(chances)
    rows = torch.arange(4)
    names = NoiseKey(0, rows, rows, rows)
    none_given = torch.zeros(4, TOKENS, dtype=torch.bool)
    rules = Rules(0.1, 0.8, 1.0)
    belief = torch.tensor([1.0, 1.0, 0.25, 0.25])
    played = play_round(sets, none_given, said, rules, names, belief)
    assert played.kept[:, 0, 0].tolist() == [False, False, False, True]
    assert played.is_conflict.tolist() == [True, True, True, False]
    plain = play_round(sets, none_given, said, rules, names)
    assert plain.is_conflict.all()
    assert not plain.kept[:, 0, 0].any()


@pytest.mark.parametrize("wrong", [0.45, 0.55, 0.73, 0.95])
def test_a_complete_state_is_solved_or_in_conflict_in_every_life(wrong):
    """Nothing is left to commit there: a state that is neither would stay as it is to the last round."""
    sets = torch.nn.functional.one_hot(torch.zeros(3, TOKENS, dtype=torch.int64), VALUES).bool()
    said = Opinion(torch.full(sets.shape, 5.0), torch.zeros(sets.shape), -torch.logit(torch.full((3,), wrong)))
    rows = torch.arange(3)
    rules = rules_of(lattice_config(search="backtrack", conflict_above=0.8, halt_threshold=0.5))
    played = play_round(
        sets, sets.any(-1) & False, said, rules, NoiseKey(0, rows, rows, rows), torch.tensor([1.0, 0.5, 0.25])
    )
    assert (played.is_solved == (wrong < 0.5)).all()
    assert (played.is_conflict == (wrong >= 0.5)).all()


def test_trajectories_do_not_depend_on_slots_launches_or_company():
    task = get_task("sudoku4")
    puzzles = task.split("test", limit=6).puzzles
    made = [
        sample(MODEL, task, puzzles[some], SamplerConfig(width=4, depth=20, slots=slots, launch=launch))
        for some, slots, launch in ((slice(6), 3, 1), (slice(6), 24, 4), (slice(2, 5), 5, 2))
    ]
    assert made[0].trajectories_sha256 == made[1].trajectories_sha256
    np.testing.assert_array_equal(made[0].candidates[2:5], made[2].candidates)
    np.testing.assert_array_equal(made[0].steps[2:5], made[2].steps)
    restarted = sample(lattice_model(**KIND), task, puzzles, SamplerConfig(width=4, depth=20))
    assert restarted.trajectories_sha256 != made[0].trajectories_sha256


def test_a_judge_that_knows_leads_every_trajectory_to_the_answer(monkeypatch):
    """With conflicts judged rightly and nothing ruled out wrongly a trajectory needs at most one conflict a value."""
    task = get_task("sudoku4")
    shown = task.split("test", limit=4)
    puzzles, answers = shown.puzzles, shown.answers
    first = torch.from_numpy(task.candidates(puzzles))
    right = torch.from_numpy(answers[:, :, None] == np.arange(MODEL.config.vocabulary))
    trail, solved = begin(first), torch.zeros(len(puzzles), dtype=torch.bool)
    rules = Rules(0.0, 0.5, 1.0, takes_fewest=True)
    for step in range(200):
        sets = trail.sets
        is_lost = (right & ~sets).any((1, 2))
        sound = torch.where(is_lost, -9.0, 9.0)
        rows = torch.arange(len(puzzles))
        names = NoiseKey(0, rows, rows, torch.full_like(rows, step))
        said = Opinion(torch.full(sets.shape, 5.0), torch.zeros(sets.shape), sound)
        played = play_round(sets, first.sum(-1) == 1, said, rules, names)
        solved |= played.is_solved & ~is_lost
        trail = follow(trail, first, played)
    assert solved.all()


def test_the_rate_counts_trajectories_that_ran():
    task = get_task("sudoku4")
    config = SamplerConfig(width=8, depth=30, width_policy="trusted", halt_threshold=0.01)
    found = sample(lattice_model(drop_below=0.0, conflict_above=1.0), task, task.split("test", limit=3).puzzles, config)
    assert found.widths.sum() < 24
    assert found.timings["trajectories_per_s"] * found.elapsed_s == pytest.approx(found.widths.sum())


def recipe(**training) -> Recipe:
    given_ = {"steps": 8, "batch": 8, "rows_at_once": 4, "evaluate_puzzles": 4, "warmup_steps": 1, **training}
    return Recipe("tiny", "", get_task("sudoku4"), MODEL.config, TrainConfig(**given_))


def pool() -> BacktrackingPool:
    own = recipe(reveal_share=0.0, longest_life=1000)
    made = BacktrackingPool(TrainingPuzzles(own.task, MODEL.config, own.training), MODEL.config, own.training, CPU)
    made.refill(np.random.default_rng(0))
    return made


def committed(states: BacktrackingPool, *, right: bool) -> Round:
    """A commitment of one open cell of every state, right or wrong."""
    kept = states.sets.copy()
    after, choice = kept.copy(), np.full(len(kept), -1)
    for row, answer in enumerate(states.answers):
        cell = int(np.argmax(kept[row].sum(1) > 1))
        wrong = np.flatnonzero(kept[row, cell] & (np.arange(kept.shape[2]) != answer[cell]))[0]
        value = answer[cell] if right else wrong
        after[row, cell] = np.arange(kept.shape[2]) == value
        choice[row] = cell * kept.shape[2] + value
    no = np.zeros(len(kept), bool)
    return Round(*map(torch.from_numpy, (after, no, no, kept, choice)))


def conflict(states: BacktrackingPool) -> Round:
    sets = torch.from_numpy(states.sets.copy())
    yes = torch.ones(len(sets), dtype=torch.bool)
    return Round(sets, yes, ~yes, sets, torch.full((len(sets),), -1))


def test_a_right_conflict_rules_the_commitment_out_and_the_state_stays():
    states = pool()
    before = states.sets.copy()
    states.carry(committed(states, right=False), np.random.default_rng(0))
    assert (states.trail.level == 1).all()
    states.carry(conflict(states), np.random.default_rng(0))
    assert not states.is_free.any()
    assert (states.trail.level == 0).all()
    assert ((before & ~states.sets).sum((1, 2)) == 1).all()
    assert not states._is_lost(states.sets).any()


def test_a_mistaken_conflict_changes_nothing_and_one_at_the_puzzle_ends_a_lost_state():
    states = pool()
    states.carry(committed(states, right=True), np.random.default_rng(0))
    before = states.sets.copy()
    states.carry(conflict(states), np.random.default_rng(0))
    np.testing.assert_array_equal(states.sets, before)
    assert not states.is_free.any()
    states = pool()
    states.trail.gone_at.copy_(torch.where(torch.from_numpy(answers_of(states)), 0, states.trail.gone_at))
    states.sets = states.trail.sets.numpy()
    states.carry(conflict(states), np.random.default_rng(0))
    assert states.is_free.all()


def answers_of(states: BacktrackingPool) -> np.ndarray:
    return states.answers[:, :, None] == np.arange(MODEL.config.vocabulary)


def test_a_share_of_conflicts_goes_back_to_a_state_with_a_solution():
    """After a wrong commitment and more, some conflicts take one commitment back and some all of the lost ones."""
    states = pool()
    states.carry(committed(states, right=False), np.random.default_rng(0))
    states.carry(committed(states, right=True), np.random.default_rng(0))
    assert (states.trail.level == 2).all()
    levels = set()
    for seed in range(3):
        other = pool()
        other.load_state(states.state())
        other.carry(conflict(other), np.random.default_rng(seed))
        is_lost = other._is_lost(other.sets)
        levels |= set(zip(other.trail.level.tolist(), is_lost.tolist(), strict=True))
    assert levels == {(1, True), (0, False)}


def test_a_resumed_run_ends_as_one_that_never_stopped(tmp_path: Path):
    def trainer(out: Path) -> LatticeTrainer:
        return LatticeTrainer(recipe(), out, device=CPU, dtype=torch.float32, is_compiled=False)

    whole, first = trainer(tmp_path / "whole"), trainer(tmp_path / "parts")
    (tmp_path / "parts").mkdir()
    for _ in range(6):
        whole.advance()
    for _ in range(3):
        first.advance()
    first.save_state()
    second = trainer(tmp_path / "parts")
    assert second.load_state()
    for _ in range(3):
        second.advance()
    assert torch.equal(whole.flat.master, second.flat.master)
    np.testing.assert_array_equal(whole.pool.sets, second.pool.sets)
    assert isinstance(second.pool, BacktrackingPool)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": "forward"}, "search must be one of restart, backtrack, repair, got 'forward'"),
        ({"commitment_focus": -101.0}, "commitment_focus must be within -100 and 100, got -101.0"),
    ],
)
def test_searches_that_are_none_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        lattice_config(**changes)
