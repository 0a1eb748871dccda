"""Canonical forms of Sudoku puzzles: equal exactly for twins, held against brute force on 4x4."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gram.tasks.canonical_sudoku import canonical, invariants
from gram.tasks.registry import get_task

SYMMETRIC = "123456789456789123789123456231564897564897231897231564312645978645978312978312645"
"""A grid that 648 symmetries turn into itself with its digits renamed, the most that any has."""


def digits(text):
    return np.array([int(symbol) for symbol in text], dtype=np.uint8)


def grid_of(task, seed):
    return np.array(task.full_grid(np.random.default_rng(seed)), dtype=np.uint8)


def turned(task, rng, boards):
    """The same boards under random symmetries."""
    return task.augment(rng, boards + np.uint8(1), boards + np.uint8(1))[0] - np.uint8(1)


BOARDS = st.tuples(st.sampled_from([4, 6, 9]), st.integers(0, 2**32 - 1), st.floats(0, 1), st.integers(0, 2**32 - 1))


@given(BOARDS)
def test_twins_have_one_form_that_is_theirs(drawn):
    """Boards of any number of givens, none and all included."""
    n, grid, share, seed = drawn
    task, rng = get_task(f"sudoku{n}"), np.random.default_rng(seed)
    board = grid_of(task, grid) * (rng.random(n * n) < share)
    # A full grid may be its own twin many times over: each is a state of the search.
    boards = turned(task, rng, np.repeat(board[None], 3 if share < 0.9 else 1, axis=0))
    forms = canonical(np.concatenate([board[None], boards]), n)
    assert (forms == forms[0]).all()
    assert len(np.unique(invariants(np.concatenate([board[None], boards]), n))) == 1
    assert np.array_equal(canonical(forms[:1], n), forms[:1]), "the form is of the class"
    assert sorted(np.unique(forms[0], return_counts=True)[1]) == sorted(np.unique(board, return_counts=True)[1])


def least_twin(board):
    """The least of a 4x4 board's twins, over all of them."""
    pairs = itertools.product([(0, 1), (1, 0)], repeat=2)
    lines = [order for a, b in pairs for order in ([*a, b[0] + 2, b[1] + 2], [a[0] + 2, a[1] + 2, *b])]
    found = []
    for way in (board.reshape(4, 4), board.reshape(4, 4).T):
        for rows, columns in itertools.product(lines, lines):
            names = {0: 0}
            found.append(bytes(names.setdefault(digit, len(names)) for row in rows for digit in way[row, columns]))
    return min(found)


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.integers(0, 9))
def test_forms_tell_boards_apart_as_brute_force_does(seed, givens):
    """Boards with as many givens each: few enough classes that many are twins."""
    rng = np.random.default_rng(seed)
    task = get_task("sudoku4")
    boards = np.stack([grid_of(task, each) for each in rng.integers(0, 2**32, 30)])
    for board in boards:
        board[rng.permutation(16)[givens:]] = 0
    made = canonical(boards, 4)
    forms = [form.tobytes() for form in made]
    twins = [least_twin(board) for board in boards]
    assert [least_twin(form) for form in made] == twins, "a form is of its puzzle's class"
    assert len(set(zip(forms, twins, strict=True))) == len(set(forms)) == len(set(twins))


@pytest.mark.slow
@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1), st.sampled_from([6, 9]))
def test_the_form_of_a_grid_is_a_grid(seed, n):
    task = get_task(f"sudoku{n}")
    forms = task.forms(grid_of(task, seed)[None] + np.uint8(1))
    assert task.verify(np.ones_like(forms), forms).all()
    assert np.array_equal(task.forms(forms), forms)


def test_as_many_forms_as_there_are_grids():
    """The 288 grids of 4x4 are of two classes."""
    task = get_task("sudoku4")
    every = task.solutions(task.blank_puzzle()) - np.uint8(1)
    assert len(every) == 288
    assert len(np.unique(canonical(every, 4), axis=0)) == 2


@pytest.mark.parametrize(
    ("n", "first", "second"),
    [
        (4, "0102304020100000", "1002001030040030"),
        (4, "1020231040303240", "1020231431420000"),
        (
            9,
            "0" * 6 + "1002" + "0" * 17 + "1" + "0" * 11 + "2" + "0" * 41,
            "1" + "0" * 27 + "102" + "0" * 27 + "2" + "0" * 22,
        ),
    ],
)
def test_classes_are_exact_where_the_invariant_is_not(n, first, second):
    boards = np.stack([digits(first), digits(second)])
    assert len(np.unique(invariants(boards, n))) == 1
    assert len(np.unique(canonical(boards, n), axis=0)) == 2
    both = np.concatenate([boards, turned(get_task(f"sudoku{n}"), np.random.default_rng(0), boards)]) + np.uint8(1)
    assert get_task(f"sudoku{n}").classes(both).tolist() in ([0, 1, 0, 1], [1, 0, 1, 0])


DIAGONAL = np.diag(np.arange(1, 10)).reshape(-1)
LATIN = [[(3 * (row % 3) + row // 3 + column) % 9 + 1 for column in range(9)] for row in range(9)]


@pytest.mark.parametrize(
    "board",
    [
        np.zeros(81, np.uint8),
        np.where(np.arange(81) == 40, 3, 0),
        np.where(np.arange(81) < 9, np.arange(81) + 1, 0),
        DIAGONAL,
        np.where(np.array(LATIN).reshape(-1) < 4, np.array(LATIN).reshape(-1), 0),
        pytest.param(digits(SYMMETRIC), marks=pytest.mark.slow),
    ],
    ids=["blank", "one given", "one row", "diagonal", "three digits", "648 symmetries"],
)
def test_boards_with_many_symmetries_have_one_form_too(board):
    task, rng = get_task("sudoku9"), np.random.default_rng(0)
    board = board.astype(np.uint8)
    forms = canonical(np.concatenate([board[None], turned(task, rng, board[None])]), 9)
    assert np.array_equal(forms[0], forms[1])


def test_none_is_none():
    assert canonical(np.zeros((0, 81), np.uint8), 9).shape == (0, 81)
    assert invariants(np.zeros((0, 81), np.uint8), 9).shape == (0,)
