"""What a lattice is trained to keep: the values of all solutions within its sets, and nothing else."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gram.tasks.maze import OPEN, PATH
from gram.tasks.registry import get_task


def by_enumeration(task, puzzles, sets):
    found = np.zeros_like(sets)
    places = np.arange(task.output_tokens)
    for row, puzzle in enumerate(puzzles):
        for solution in task.solutions(puzzle):
            if sets[row, places, solution].all():
                found[row, places, solution] = True
    return found


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), name=st.sampled_from(["maze5", "maze7", "nqueens6", "sudoku4"]))
def test_survivors_are_those_of_the_listed_solutions(seed, name):
    rng, task = np.random.default_rng(seed), get_task(name)
    puzzles, answers = task.training_batch(rng, 3)
    sets = task.candidates(puzzles)
    # Some values go, among them some of solutions; never those of tokens that the puzzle decides.
    is_open = sets.sum(2, keepdims=True) > 1
    sets &= ~(is_open & (rng.random(sets.shape) < rng.choice([0.02, 0.1, 0.3])))
    np.testing.assert_array_equal(task.survivors(puzzles, answers, sets), by_enumeration(task, puzzles, sets))


@pytest.mark.parametrize("name", ["maze6", "nqueens6", "sudoku6", "arc"])
def test_every_solution_is_among_the_candidates(name):
    task = get_task(name)
    if name == "arc":
        puzzles = np.ones((1, task.tokens), np.uint8)
        assert task.candidates(puzzles)[:, :, list(task.answer_values)].all()
        return
    puzzles, answers = task.training_batch(np.random.default_rng(0), 20)
    possible = task.candidates(puzzles)
    assert possible[np.arange(20)[:, None], np.arange(task.output_tokens), answers].all()


def test_a_maze_needs_no_list_of_its_paths():
    task = get_task("maze30")
    puzzles, answers = task.training_batch(np.random.default_rng(1), 2)
    kept = task.survivors(puzzles, answers, task.candidates(puzzles))
    assert kept[np.arange(2)[:, None], np.arange(900), answers].all()
    walled = task.candidates(puzzles)
    walled[:, :, PATH] &= puzzles != OPEN
    assert not task.survivors(puzzles, answers, walled).any()
