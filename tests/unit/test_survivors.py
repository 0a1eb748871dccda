"""What a lattice is trained to keep: the values of all solutions within its sets, and nothing else."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gram.tasks import sudoku
from gram.tasks.maze import OPEN, PATH
from gram.tasks.registry import get_task


def by_enumeration(task, puzzles, sets):
    return shares_by_enumeration(task, puzzles, sets) > 0


def shares_by_enumeration(task, puzzles, sets):
    found = np.zeros(sets.shape)
    places = np.arange(task.output_tokens)
    for row, puzzle in enumerate(puzzles):
        within = [solution for solution in task.solutions(puzzle) if sets[row, places, solution].all()]
        for solution in within:
            found[row, places, solution] += 1 / len(within)
    return found


def states_of(name, seed):
    """Three puzzles of training, where a sudoku has several solutions, and sets from which some values went."""
    rng, task = np.random.default_rng(seed), get_task(name.removesuffix("-several"))
    split = {"split": "train-several"} if name.endswith("-several") else {}
    puzzles, answers = task.training_batch(rng, 3, **split)
    sets = task.candidates(puzzles)
    # Some go, among them some of solutions; never those of tokens that the puzzle decides.
    is_open = sets.sum(2, keepdims=True) > 1
    return task, puzzles, answers, sets & ~(is_open & (rng.random(sets.shape) < rng.choice([0.002, 0.02, 0.1, 0.3])))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), name=st.sampled_from(["maze5", "maze7", "nqueens6", "sudoku4", "sudoku9-several"])
)
def test_survivors_are_those_of_the_listed_solutions(seed, name):
    task, puzzles, answers, sets = states_of(name, seed)
    np.testing.assert_array_equal(task.survivors(puzzles, answers, sets), by_enumeration(task, puzzles, sets))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), name=st.sampled_from(["maze5", "nqueens6", "sudoku4", "sudoku9-several"]))
def test_shares_are_those_of_the_listed_solutions(seed, name):
    task, puzzles, answers, sets = states_of(name, seed)
    shares = task.solution_shares(puzzles, answers, sets)
    np.testing.assert_allclose(shares, shares_by_enumeration(task, puzzles, sets), atol=1e-5)


def test_sudoku_keeps_the_solutions_of_the_puzzles_asked_for_last(monkeypatch):
    monkeypatch.setattr(sudoku, "KNOWN", 2)
    task = sudoku.Sudoku(4)
    puzzles, answers = task.training_batch(np.random.default_rng(0), 3)
    for puzzle, answer in zip(puzzles, answers, strict=True):
        np.testing.assert_array_equal(task.known_solutions(puzzle, answer), answer[None])
    assert [*task._known] == [puzzle.tobytes() for puzzle in puzzles[1:]]
    # A wrong answer beside the puzzle is not believed.
    np.testing.assert_array_equal(task.known_solutions(puzzles[0], answers[1]), answers[:1])


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
