"""Symmetries of every task: solutions of turned puzzles are solutions turned, and every answer comes back as it was."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gram.tasks.arc import Arc
from gram.tasks.arc_files import Pair
from gram.tasks.arc_grids import decode, encode
from gram.tasks.registry import get_task
from gram.tasks.views import INVERSE, SYMMETRIES, TRANSPOSING, Views, same_values, square_cells, turn

NAMES = ("sudoku4", "sudoku6", "sudoku9", "nqueens5", "nqueens8", "maze6", "colouring3", "colouring8")
SIZES = st.tuples(st.integers(1, 30), st.integers(1, 30))


def words_of(task, count, seed=0):
    """Random words `[count, W]`."""
    return np.random.default_rng(seed).integers(0, 2**32, (count, task.symmetry_words), dtype=np.uint32)


def some(name, limit=8):
    task = get_task(name)
    return task, task.split("train", limit=limit)


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 2**32 - 1))
def test_answers_solve_a_puzzle_exactly_where_they_solve_the_turned_one(name, seed):
    """Right, nearly right and random answers: the verifier agrees, and so does the number of conflicts."""
    task, chosen = some(name)
    rng = np.random.default_rng(seed)
    views = task.symmetry(chosen.puzzles, words_of(task, len(chosen), seed))
    assert views.is_consistent(task.output_tokens)
    turned = views.apply(chosen.puzzles)
    assert task.is_input(turned).all()
    mended = chosen.answers.copy()
    mended[np.arange(len(chosen)), rng.integers(0, task.output_tokens, len(chosen))] = rng.integers(0, task.vocabulary)
    noise = rng.integers(0, task.vocabulary, mended.shape, dtype=np.uint8)
    swapped = np.take_along_axis(
        chosen.answers, rng.permuted(np.tile(np.arange(mended.shape[1]), (len(mended), 1)), axis=1), 1
    )
    for answers in (chosen.answers, mended, noise, swapped):
        there = views.apply_to_answers(answers)
        assert np.array_equal(task.conflicts(turned, there), task.conflicts(chosen.puzzles, answers))
        assert np.array_equal(task.verify(turned, there), task.verify(chosen.puzzles, answers))
        assert np.array_equal(views.undo(there), answers)
        assert np.array_equal(views.apply_to_answers(views.undo(answers)), answers)
    assert task.verify(turned, views.apply_to_answers(chosen.answers)).all()
    assert not task.verify(turned, noise).all()
    assert np.array_equal(
        task.classes(np.concatenate([chosen.puzzles, turned]))[len(chosen) :], task.classes(chosen.puzzles)
    )


@pytest.mark.parametrize("name", ["sudoku4", "sudoku6", "nqueens6", "maze5", "colouring6"])
def test_all_solutions_of_a_turned_puzzle_are_those_of_the_puzzle_turned(name):
    task, chosen = some(name, 6)
    views = task.symmetry(chosen.puzzles, words_of(task, len(chosen)))
    for row, turned in enumerate(views.apply(chosen.puzzles)):
        there = task.solutions(turned)
        back = task.canonical(views.at(np.full(len(there), row)).undo(there))
        found = {solution.tobytes() for solution in back}
        assert found == {solution.tobytes() for solution in task.solutions(chosen.puzzles[row])}
        assert len(found) == len(there)


@pytest.mark.parametrize("name", [*NAMES, "arc"])
def test_words_of_0_name_the_puzzle_as_it_is(name):
    task = get_task(name)
    puzzles = encode(np.arange(6, dtype=np.uint8).reshape(2, 3))[None] if name == "arc" else some(name)[1].puzzles
    views = task.symmetry(puzzles, np.zeros((len(puzzles), task.symmetry_words), np.uint32))
    assert (views.positions == np.arange(task.tokens)).all()
    assert (views.values == np.arange(task.vocabulary)).all()
    answers = np.random.default_rng(0).integers(0, task.vocabulary, (len(puzzles), task.output_tokens), dtype=np.uint8)
    assert np.array_equal(views.undo(answers), answers)


def as_tables(views):
    return Counter((*map(bytes, views.positions.astype(np.uint16)), *map(bytes, views.values)) for views in each(views))


def each(views):
    return (views.at(np.array([row])) for row in range(len(views.positions)))


@pytest.mark.parametrize(("name", "elements"), [("nqueens4", 8), ("maze4", 8), ("colouring4", 24), ("colouring3", 6)])
def test_all_symmetries_are_reached_about_equally(name, elements):
    task = get_task(name)
    count = 400 * elements
    found = as_tables(task.symmetry(np.zeros((count, task.tokens), np.uint8), words_of(task, count)))
    assert len(found) == elements
    assert max(abs(times - 400) for times in found.values()) < 5 * 400**0.5


def test_the_whole_group_of_a_sudoku_is_reached():
    """4x4: 2 orders of bands, 2 x 2 of rows, as many of columns, 24 of digits, transposed or not. 6x6: 3! x 2!^3 orders
    of rows, 2! x 3!^2 of columns, and never transposed."""
    task = get_task("sudoku4")
    assert len(as_tables(task.symmetry(np.zeros((40_000, 16), np.uint8), words_of(task, 40_000)))) == 8 * 8 * 24 * 2
    task = get_task("sudoku6")
    views = task.symmetry(np.zeros((50_000, 36), np.uint8), words_of(task, 50_000))
    assert len({bytes(cells) for cells in views.positions.astype(np.uint16)}) == (6 * 8) * (2 * 36)
    assert [get_task(f"sudoku{n}").symmetry_words for n in (4, 6, 9)] == [17, 23, 34]


def test_every_digit_takes_every_name_and_a_blank_stays_one():
    task = get_task("sudoku9")
    values = task.symmetry(np.zeros((2000, 81), np.uint8), words_of(task, 2000)).values
    assert (values[:, :2] == [0, 1]).all()
    for digit in range(2, 11):
        times = np.bincount(values[:, digit], minlength=11)[2:]
        assert times.sum() == 2000
        assert abs(times - 2000 / 9).max() < 75


def test_the_symmetries_of_the_square_are_eight_and_undo_each_other():
    grid = np.arange(6).reshape(2, 3)
    assert len({(turn(grid, s).shape, turn(grid, s).tobytes()) for s in range(SYMMETRIES)}) == SYMMETRIES
    for symmetry in range(SYMMETRIES):
        assert np.array_equal(turn(turn(grid, symmetry), INVERSE[symmetry]), grid)
        assert (turn(grid, symmetry).shape == (3, 2)) == (symmetry in TRANSPOSING)
    assert len(np.unique(square_cells(3), axis=0)) == SYMMETRIES


def test_colours_of_a_turned_graph_count_as_the_same_answer():
    task, chosen = some("colouring8", 20)
    views = task.symmetry(chosen.puzzles, words_of(task, 20))
    there = task.canonical(views.apply_to_answers(chosen.answers))
    assert not np.array_equal(views.undo(there), chosen.answers)
    assert np.array_equal(task.canonical(views.undo(there)), chosen.answers)


@st.composite
def arc_pairs(draw):
    """A puzzle, its output and an answer of the output's size, and one of any size."""
    grids = [draw(arrays(np.uint8, draw(SIZES), elements=st.integers(0, 9))) for _ in range(2)]
    same = draw(arrays(np.uint8, grids[1].shape, elements=st.integers(0, 9)))
    return *grids, same, draw(arrays(np.uint8, draw(SIZES), elements=st.integers(0, 9)))


def knowing(puzzle, output):
    task = Arc()
    task._remember([(0, Pair(input=decode(puzzle), output=decode(output)))], "a file", "test input")
    return task


@given(pair=arc_pairs(), seed=st.integers(0, 2**32 - 1))
def test_arc_answers_of_any_size_are_turned_back_exactly(pair, seed):
    puzzle, output, *answers = (encode(grid)[None] for grid in pair)
    plain = knowing(puzzle[0], output[0])
    views = plain.symmetry(puzzle, words_of(plain, 1, seed))
    assert views.is_consistent(900)
    turned, there = views.apply(puzzle), views.apply_to_answers(output)
    grid = turn(views.values[0, 2:][decode(puzzle[0])] - 2, int(views.symmetry[0]))
    assert np.array_equal(turned[0], encode(grid)), "the turned puzzle is a grid at the top left, with its end tokens"
    other = knowing(turned[0], there[0])
    for answer in (output, *answers):
        moved = views.apply_to_answers(answer)
        assert np.array_equal(views.undo(moved), answer)
        assert other.verify(turned, moved) == plain.verify(puzzle, answer)
    assert other.verify(turned, there).all()
    same = answers[0]
    assert other.conflicts(turned, views.apply_to_answers(same)) == plain.conflicts(puzzle, same)


@given(
    canvas=arrays(np.uint8, 900, elements=st.integers(0, 11)), rows=st.integers(1, 5), seed=st.integers(0, 2**32 - 1)
)
def test_what_an_arc_model_writes_outside_its_grid_changes_nothing(canvas, rows, seed):
    """Any canvas whatever is turned back as its grid is."""
    task = Arc()
    canvas.reshape(30, 30)[:rows, :rows] = 5
    views = task.symmetry(encode(np.ones((2, 3), np.uint8))[None], words_of(task, 1, seed))
    found = views.undo(canvas[None])
    assert np.array_equal(task.canonical(found), views.undo(task.canonical(canvas[None])))
    assert np.array_equal(task.canonical(views.apply_to_answers(found)), task.canonical(canvas[None]))


def test_arc_symmetries_are_reached_equally_and_black_stays():
    task = Arc()
    puzzles = np.tile(encode(np.arange(6, dtype=np.uint8).reshape(2, 3)), (800, 1))
    views = task.symmetry(puzzles, words_of(task, 800))
    assert abs(np.bincount(views.symmetry, minlength=8) - 100).max() < 50
    assert (views.values[:, :3] == [0, 1, 2]).all()
    assert (np.bincount(views.values[:, 3], minlength=12)[3:] > 50).all()
    moved = encode(np.ones((2, 3), np.uint8), row=1, column=2)[None]
    assert np.array_equal(task.symmetry(moved, words_of(task, 1)).apply(moved), moved), "no grid at the top left"


def test_inconsistent_tables_are_found():
    """Two tokens at one place, two tokens of one name, an answer token behind the answer."""
    places, names = np.array([[1, 0, 2, 3]]), same_values(1, 5)
    assert Views(places, names, 2).is_consistent(2)
    assert not Views(np.array([[1, 1, 2, 3]]), names, 2).is_consistent(2)
    assert not Views(places, np.array([[0, 1, 2, 2, 4]], np.uint8), 2).is_consistent(2)
    assert not Views(np.array([[2, 0, 1, 3]]), names, 2).is_consistent(2)
    for order in permutations(range(4)):
        is_apart = set(order[:2]) == {0, 1}
        assert Views(np.array([order]), names, 2).is_consistent(2) == is_apart
