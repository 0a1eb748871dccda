"""The task recolour: rules, what is held out, the verifier, text and drawing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gram.tasks.protocol import PuzzleError
from gram.tasks.recolour import CELLS, SIZES, Recolour, decode, encode
from gram.tasks.recolour_rules import COLOURS, FAMILIES, HELD_OUT, HiddenRule, enclosed, explaining, largest, rules
from gram.tasks.registry import get_task

TASK = Recolour()
GRIDS = st.tuples(st.integers(1, 8), st.integers(1, 8), st.integers(0, 2**32), st.integers(1, COLOURS)).map(
    lambda drawn: np.random.default_rng(drawn[2]).integers(0, drawn[3], drawn[:2]).astype(np.uint8)
)


def reached(grid: np.ndarray, start: tuple[int, int]) -> set[tuple[int, int]]:
    """Cells of `start`'s colour that a path of that colour reaches."""
    found, left = set(), [start]
    while left:
        row, column = left.pop()
        is_inside = 0 <= row < grid.shape[0] and 0 <= column < grid.shape[1]
        if not is_inside or (row, column) in found or grid[row, column] != grid[start]:
            continue
        found.add((row, column))
        left += [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
    return found


@given(grid=GRIDS)
def test_enclosed_cells_have_no_way_out(grid):
    found = enclosed(grid.tobytes(), *grid.shape)
    for cell in np.ndindex(grid.shape):
        way = reached(grid, cell)
        is_open = any(row in (0, grid.shape[0] - 1) or column in (0, grid.shape[1] - 1) for row, column in way)
        assert found[cell] == (grid[cell] == 0 and not is_open)


@given(grid=GRIDS)
def test_the_largest_object_is_kept(grid):
    found = largest(grid.tobytes(), *grid.shape)
    sizes = {cell: len(reached(grid, cell)) for cell in np.ndindex(grid.shape) if grid[cell]}
    for cell in np.ndindex(grid.shape):
        assert found[cell] == bool(grid[cell] and sizes[cell] == max(sizes.values()))


@pytest.mark.parametrize(
    ("family", "parameters", "given", "made"),
    [
        ("permute", (2, 1, 3, 4, 5, 6, 7), "12/30", "21/30"),
        ("turn", (1, 1, 2), "12/30", None),
        ("shift", (0, 1, 7), "12/30", "71/73"),
        ("shift", (-1, 0, 0), "12/30", "30/00"),
        ("fill", (5, 1, 3), "111/101/112", "333/353/332"),
        ("largest", (4, 6), "220/201/000", "226/264/666"),
        ("outline", (1, 5), "000/012/000", "050/512/050"),
        ("ray", (1, 5, 3), "010/200", "015/200"),
        ("ray", (1, 5, 0), "00/01/00", "05/01/00"),
        ("line", (1, 5, 0), "010/020", "515/020"),
        ("complete", (1, 1, 3), "10/02", "33/22"),
        ("corners", (1, 5), "000/010/000", "505/010/505"),
    ],
)
def test_a_rule_does_what_its_family_says(family, parameters, given, made):
    grid = (
        decode(TASK.parse_answer(given))
        if "0" not in given[0]
        else np.array([list(map(int, r)) for r in given.split("/")])
    )
    out = HiddenRule(family, parameters).apply(grid.astype(np.uint8))
    if made is None:  # a symmetry other than none, and the colours 1 and 2 exchanged
        assert sorted(out.ravel().tolist()) == sorted([2, 1, 3, 0])
        assert not np.array_equal(out, [[2, 1], [3, 0]])
    else:
        assert "/".join("".join(map(str, row)) for row in out.tolist()) == made


def test_no_parameters_stand_in_two_parts_and_two_families_in_none_of_training():
    train, validation, test, families = (rules(part) for part in ("train", "validation", "test", "families"))
    assert set(families) == set(HELD_OUT)
    assert len(train) == 8
    for name in train:
        parts = [set(part[name]) for part in (train, validation, test)]
        assert all(parts)
        assert not parts[0] & parts[1]
        assert not parts[0] & parts[2]
        assert not parts[1] & parts[2]
        assert set.union(*parts) == set(FAMILIES[name].parameters())


@given(seed=st.integers(0, 2**32), part=st.sampled_from(["train", "test", "test-families"]))
def test_the_drawn_rule_explains_its_demonstrations_and_gives_the_answer(seed, part):
    rule, puzzle, answer = TASK._draw(np.random.default_rng(seed), part.removeprefix("test-"), 2)
    task = Recolour(2)
    pairs, test = task.grids(puzzle)
    assert rule in explaining(pairs)
    assert np.array_equal(encode(rule.apply(test)), answer)
    assert task.verify(puzzle[None], answer[None])[0]
    assert task.is_input(puzzle[None]).all()
    wrong = answer.copy()
    wrong[np.flatnonzero(wrong > 1)[0]] ^= 1
    assert task.conflicts(puzzle[None], wrong[None])[0] <= 1


def test_the_verifier_refuses_every_other_answer_to_a_puzzle_with_one():
    puzzles = TASK.split("test", limit=12)
    alone = [row for row in range(12) if len(TASK.solutions(puzzles.puzzles[row])) == 1]
    assert len(alone) > 8
    for row in alone:
        wrong = puzzles.answers[row].copy()
        wrong[27] = 2 + (wrong[27] - 1) % COLOURS
        assert not TASK.verify(puzzles.puzzles[[row]], wrong[None])[0]


def test_all_sizes_have_the_same_puzzles_with_more_or_fewer_demonstrations():
    few, many = Recolour(2).split("test", limit=5), Recolour(16).split("test", limit=5)
    assert np.array_equal(few.answers, many.answers)
    assert np.array_equal(few.puzzles[:, : 4 * CELLS], many.puzzles[:, : 4 * CELLS])
    assert np.array_equal(few.puzzles[:, -CELLS:], many.puzzles[:, -CELLS:])
    assert {get_task(f"recolour{size}").tokens for size in SIZES} == {(2 * size + 1) * CELLS for size in SIZES}


def test_a_limited_split_begins_as_the_whole_one_does():
    assert np.array_equal(TASK.split("validation", limit=3).puzzles, TASK.split("validation", limit=9).puzzles[:3])
    assert len(TASK.families("validation")) == TASK.split_size("validation") == 400


@given(seed=st.integers(0, 2**32))
def test_text_is_read_as_it_is_written(seed):
    _, puzzle, answer = TASK._draw(np.random.default_rng(seed), "train", 4)
    assert np.array_equal(TASK._parsed(TASK.format(puzzle)), puzzle)
    assert np.array_equal(TASK.parse_answer(TASK.format(puzzle, answer)), answer)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "must be 4 demonstrations"),
        ("1>2 1>2 1>2 1", "must be 4 demonstrations"),
        ("1>2 1>2 1>2 1>2 1>2", "must be 4 demonstrations"),
        ("1>2 1>2 1>2 1>8 1", "digits 0 to 7"),
        ("1>2 1>2 1>2 1> 1", "digits 0 to 7"),
        ("1>2 1>2 1>2 11/1>2 1", "equally long"),
        ("1>2 1>2 1>2 1>2 111111111", "1 to 8 rows and columns, got 1 x 9"),
        ("1>2 1>3 1>4 1>5 1", "must follow a rule"),
    ],
)
def test_what_is_no_puzzle_is_refused_in_one_line(text, expected):
    with pytest.raises(PuzzleError, match=expected) as caught:
        TASK.parse(text)
    assert "\n" not in str(caught.value)


def test_a_size_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="got 'recolour17'"):
        get_task("recolour17")
    with pytest.raises(ValueError, match="1 to 16 demonstrations, got 0"):
        Recolour(0)


def test_the_board_shows_every_demonstration_and_the_test_input():
    puzzle = Recolour(6).split("test", limit=1).puzzles[0]
    drawn = Recolour(6).board(puzzle)
    cells = sum(cell.kind in ("given", "filled", "blank") for row in drawn for cell in row)
    assert cells == int((puzzle > 1).sum())
    assert Recolour().board(puzzle, np.ones(CELLS, np.uint8))[0][0].text == "no grid"
