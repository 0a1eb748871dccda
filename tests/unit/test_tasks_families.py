"""Each family's own numbers and rules."""

import csv
import gzip
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gram.tasks.colouring import EDGE, Colouring
from gram.tasks.nqueens import QUEEN, all_solutions
from gram.tasks.protocol import PuzzleError
from gram.tasks.registry import get_task
from gram.tasks.sudoku_solver import solver


@pytest.mark.parametrize(("n", "count"), [(4, 2), (5, 10), (6, 4), (8, 92), (10, 724)])
def test_queens_solutions_of_the_empty_board(n, count):
    assert len(all_solutions(n)) == count


def test_queens_eight_has_the_published_inputs():
    task = get_task("nqueens8")
    assert (task.split_size("input-train"), task.split_size("input-test")) == (4376, 772)
    given = (task.split("input-test").puzzles == QUEEN).sum(1)
    assert set(given.tolist()) == {1, 2, 3}


@pytest.mark.slow
def test_queens_ten_has_the_published_numbers():
    task = get_task("nqueens10")
    puzzles = np.concatenate([task.split(name).puzzles for name in ("input-train", "input-test")])
    assert len(np.unique(puzzles, axis=0)) == len(puzzles) == 43420
    counts = np.array([task.count_solutions(puzzle) for puzzle in puzzles])
    assert counts.mean() == pytest.approx(2.9, abs=0.05)
    assert counts.max() == 93


@pytest.mark.parametrize("n", [4, 5, 6, 7, 9])
def test_queens_of_every_size_have_their_inputs_once(n):
    """Against plain sets, so that the coding of inputs as numbers is held to what it stands for."""
    task = get_task(f"nqueens{n}")
    puzzles = np.concatenate([task.split(name).puzzles for name in ("input-train", "input-test")])
    found = {tuple(np.flatnonzero(row == QUEEN).tolist()) for row in puzzles}
    assert len(found) == len(puzzles)
    if n < 9:
        cells = all_solutions(n) + n * np.arange(n)
        wanted = {kept for row in cells.tolist() for left in (1, 2, 3) for kept in itertools.combinations(row, left)}
        assert found == wanted
    some = task.split("test", limit=50)
    assert task.verify(some.puzzles, some.answers).all()
    assert all(np.array_equal(task.solutions(p)[0], a) for p, a in zip(some.puzzles, some.answers, strict=True))


def test_queens_targets_are_uniform_over_completions():
    task = get_task("nqueens5")
    puzzles, targets = task.training_batch(np.random.default_rng(0), 20000)
    counts = {}
    for puzzle, target in zip(puzzles, targets, strict=True):
        counts.setdefault(bytes(puzzle), {}).setdefault(bytes(target), 0)
        counts[bytes(puzzle)][bytes(target)] += 1
    for puzzle, found in counts.items():
        solutions = task.count_solutions(np.frombuffer(puzzle, np.uint8))
        assert len(found) == solutions
        expected = sum(found.values()) / solutions
        assert all(abs(count - expected) < 5 * expected**0.5 + 1 for count in found.values())


@given(st.permutations(range(6)))
def test_queens_conflicts_count_attacking_pairs(columns):
    task = get_task("nqueens6")
    answer = np.ones((6, 6), np.uint8)
    answer[np.arange(6), list(columns)] = QUEEN
    diagonal = sum(abs(a - b) == abs(columns[a] - columns[b]) for a, b in itertools.combinations(range(6), 2))
    blank = np.ones((1, 36), np.uint8)
    assert task.conflicts(blank, answer.reshape(1, -1))[0] == diagonal


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Q" + "." * 62, "must have 64 symbols, got 63"),
        ("X" + "." * 63, "got 'X' at symbol 1"),
        ("QQ" + "." * 62, "row 1 column 1 attacking row 1 column 2"),
        ("Q" + "." * 8 + "Q" + "." * 54, "row 1 column 1 attacking row 2 column 2"),
    ],
)
def test_queens_bad_puzzles(text, words):
    with pytest.raises(PuzzleError) as error:
        get_task("nqueens8").parse(text)
    assert words in str(error.value)


def test_queens_without_a_completion():
    with pytest.raises(PuzzleError, match="must have a solution"):
        get_task("nqueens4").parse("Q" + "." * 15)


@pytest.mark.parametrize("size", [4, 6, 9])
def test_sudoku_solver_agrees_with_a_plain_one(size):
    """Against backtracking without any cleverness, on boards with few blanks."""
    task, rng = get_task(f"sudoku{size}"), np.random.default_rng(0)
    for puzzle, answer in zip(*task.training_batch(rng, 4), strict=True):
        board = [max(0, int(token) - 1) for token in answer]
        for cell in rng.permutation(size * size)[: size * 2]:
            board[cell] = 0
        plain = []
        _plain_search(board, size, plain)
        assert sorted(plain) == sorted(map(tuple, solver(size).solutions(board, 10**6)))
        assert len(puzzle) == size * size


def _plain_search(board, size, found):
    units = solver(size).units
    if 0 not in board:
        found.append(tuple(board))
        return
    cell = board.index(0)
    for digit in range(1, size + 1):
        if all(digit not in [board[other] for other in unit] for unit in units if cell in unit):
            board[cell] = digit
            _plain_search(board, size, found)
            board[cell] = 0


def test_sudoku_four_has_288_grids():
    assert len(solver(4).solutions([0] * 16, 10**6)) == 288


def test_sudoku_contradictions_have_no_solution():
    assert not solver(4).solutions([1, 1, *[0] * 14], 10)
    with pytest.raises(PuzzleError, match="two 1s in row 1"):
        get_task("sudoku4").parse("11" + "." * 14)
    with pytest.raises(PuzzleError, match="must have a solution"):
        get_task("sudoku4").parse("123." + "...4" + "." * 8)


def test_sudoku_too_many_solutions_to_count():
    with pytest.raises(PuzzleError, match="at most 20,000 solutions"):
        get_task("sudoku9").count_solutions(np.ones(81, np.uint8))


@pytest.mark.parametrize(("size", "low", "high"), [(4, 4, 8), (6, 12, 18), (9, 24, 38)])
def test_sudoku_puzzles_are_unique_and_have_the_stated_givens(size, low, high):
    task = get_task(f"sudoku{size}")
    rows = task.split("test", limit=30)
    givens = (rows.puzzles > 1).sum(1)
    assert givens.min() >= low
    assert givens.max() <= high
    assert len(np.unique(givens)) > 2
    assert all(task.count_solutions(puzzle) == 1 for puzzle in rows.puzzles)


@pytest.mark.parametrize("size", [4, 6])
def test_sudoku_no_training_grid_is_a_test_grid(size):
    task = get_task(f"sudoku{size}")
    _, targets = task.training_batch(np.random.default_rng(0), 600)
    assert not task.is_test_grid(targets).any()
    assert task.is_test_grid(task.split("test", limit=30).answers).all()


@settings(max_examples=20)
@given(st.sampled_from([4, 6, 9]), st.integers(0, 2**32 - 1))
def test_sudoku_symmetries_keep_puzzles_valid_and_unique(size, seed):
    task = get_task(f"sudoku{size}")
    rows = task.split("test", limit=3)
    puzzles, answers = task.augment(np.random.default_rng(seed), rows.puzzles, rows.answers)
    assert task.verify(puzzles, answers).all()
    assert np.array_equal((puzzles > 1).sum(1), (rows.puzzles > 1).sum(1))
    assert all(task.count_solutions(puzzle) == 1 for puzzle in puzzles)


@given(st.sampled_from(["nqueens8", "sudoku6", "sudoku9"]), st.integers(0, 4), st.data())
def test_any_other_token_spoils_a_stored_answer(name, index, data):
    task = get_task(name)
    rows = task.split("test", limit=5)
    place = data.draw(st.integers(0, task.output_tokens - 1))
    token = data.draw(st.integers(0, 255).filter(lambda token: token != rows.answers[index, place]))
    spoilt = rows.answers[index : index + 1].copy()
    spoilt[0, place] = token
    assert not task.verify(rows.puzzles[index : index + 1], spoilt)[0]
    assert task.conflicts(rows.puzzles[index : index + 1], spoilt)[0] > 0


@given(st.sampled_from(["sudoku4", "sudoku6", "sudoku9"]), st.integers(0, 4), st.data())
def test_the_nearest_board_is_right_of_training_and_keeps_what_fits(name, index, data):
    task = get_task(name)
    board = task.split("train", limit=5).answers[index : index + 1]
    assert np.array_equal(task.nearest_boards(board), board)
    spoilt = board.copy()
    places = data.draw(st.lists(st.integers(0, task.tokens - 1), max_size=task.tokens // 2))
    spoilt[0, places] = data.draw(st.lists(st.integers(1, task.n + 1), min_size=len(places), max_size=len(places)))
    near = task.nearest_boards(spoilt)
    if near.any():
        assert task.verify(np.ones_like(near), near)[0]
        assert not task.is_test_grid(near)[0]
    if near.any() and len(set(places)) <= 1:
        is_open = (task._peers & (spoilt == spoilt.T)).any(1) | (spoilt[0] == 1)
        assert np.array_equal(near[0, ~is_open], spoilt[0, ~is_open])


def test_sudoku_puzzles_of_one_grid_are_one_group():
    rows = get_task("sudoku4").split("test", limit=120)
    by_grid = {}
    for group, answer in zip(rows.groups.tolist(), rows.answers, strict=True):
        by_grid.setdefault(bytes(answer), set()).add(group)
    assert all(len(groups) == 1 for groups in by_grid.values())
    assert len(by_grid) == len(np.unique(rows.groups)) < 60


def test_sudoku_rating_is_zero_where_singles_suffice():
    task = get_task("sudoku4")
    full = [max(0, int(token) - 1) for token in task.split("test", limit=1).answers[0]]
    full[0] = 0
    assert solver(4).rating(full) == 0
    assert solver(4).rating([0] * 16) > 100


def test_sudoku_extreme_is_read_as_it_is(gram_data):
    path = gram_data / "sudoku_extreme_1k" / "public_800.csv.gz"
    task = get_task("sudoku9")
    rows = task.load(path)
    assert len(rows) == 800
    assert task.verify(rows.puzzles, rows.answers).all()
    with gzip.open(path, "rt") as file:
        first = next(csv.DictReader(file))
    assert task.format(rows.puzzles[0]) == first["question"]
    assert rows.ratings[0] == float(first["guesses"])
    for puzzle, answer, rating in zip(rows.puzzles[:60], rows.answers, rows.ratings, strict=False):
        assert np.array_equal(task.solutions(puzzle), answer[None])
        # The rating counts guesses as that list does, so difficulties compare.
        assert task.solver.rating([max(0, int(token) - 1) for token in puzzle]) == rating


def test_sudoku_counts_of_boards_with_several_solutions(gram_data):
    task = get_task("sudoku9")
    with gzip.open(gram_data / "sudoku_multisolution_serg" / "public.csv.gz", "rt") as file:
        rows = list(itertools.islice(csv.DictReader(file), 12))
    for row in rows:
        assert task.count_solutions(task.parse(row["question"])) == int(row["n_solutions_capped10000"])


def test_colouring_counts_equal_the_atlas(gram_data):
    """Exact numbers of 3-colourings of all small connected graphs, colours told apart there."""
    with gzip.open(gram_data / "graph_colouring" / "public_atlas.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    checked = 0
    for row in rows:
        task = get_task(f"colouring{row['n']}") if row["n"] >= 4 else None
        if task is None:
            continue
        puzzle = task._graph(row["n"], [tuple(edge) for edge in row["edges"]])
        proper = task.solutions(puzzle)
        labelled = sum({1: 3, 2: 6, 3: 6}[len(np.unique(colours))] for colours in proper)
        assert labelled == row["n3"]
        checked += 1
    assert checked > 700


@given(st.lists(st.sampled_from([3, 4, 5]), min_size=8, max_size=8), st.permutations([3, 4, 5]))
def test_colouring_canonical_forgets_the_colours_names(colours, names):
    task = get_task("colouring8")
    answer = np.array([colours], np.uint8)
    renamed = np.array([[names[colour - 3] for colour in colours]], np.uint8)
    canonical = task.canonical(answer)
    assert np.array_equal(canonical, task.canonical(renamed))
    assert np.array_equal(canonical, task.canonical(canonical))
    alike = answer[:, :, None] == answer[:, None, :]
    assert np.array_equal(alike, canonical[:, :, None] == canonical[:, None, :])
    assert canonical[0, 0] == 3


def test_colouring_test_set_and_ceiling():
    """1,000 different graphs. The ceiling is pinned: published figures stand on this very set."""
    task = get_task("colouring8")
    rows = task.split("labelled-test")
    assert len(np.unique(rows.puzzles, axis=0)) == 1000
    edges = (rows.puzzles == EDGE).sum(1).mean() / 28
    assert 0.3 < edges < 0.5
    counts = np.array([task.count_solutions(puzzle) for puzzle in rows.puzzles])
    pooled = (counts * (1 - (1 - 1 / counts) ** 20)).sum() / counts.sum()
    assert pooled == pytest.approx(0.7023, abs=1e-4)


@pytest.mark.parametrize("n", [3, 4, 5, 6, 9])
def test_colouring_of_every_size_leaves_graphs_to_train_on(n):
    task = get_task(f"colouring{n}")
    test = task.split("test")
    assert len(np.unique(test.puzzles, axis=0)) == len(test) == task.split_size("test")
    assert task.verify(test.puzzles, test.answers).all()
    puzzles, targets = task.training_batch(np.random.default_rng(0), 64)
    assert task.verify(puzzles, targets).all()
    assert not {bytes(row) for row in test.puzzles} & {bytes(row) for row in puzzles}


def test_colouring_train_split_is_a_prefix_without_test_graphs():
    task = get_task("colouring8")
    rows = task.split("train", limit=450)
    assert np.array_equal(task.split("train", limit=7).puzzles, rows.puzzles[:7])
    assert len(task.split("train", limit=0)) == 0
    assert not {bytes(row) for row in task.split("test").puzzles} & {bytes(row) for row in rows.puzzles}


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_colouring_groups_do_not_tell_isomorphic_graphs_apart(seed):
    task, rng = get_task("colouring8"), np.random.default_rng(seed)
    puzzles = task.split("test", limit=6).puzzles
    renamed = puzzles.copy()
    names = rng.permutation(8)
    for row, puzzle in zip(renamed, puzzles, strict=True):
        edges = task.pairs[puzzle[: task.output_start] == EDGE]
        row[:] = task._graph(8, [(int(names[a]), int(names[b])) for a, b in edges])
    groups = task.classes(np.concatenate([puzzles, renamed]))
    assert np.array_equal(groups[:6], groups[6:])
    edge_counts = (puzzles == EDGE).sum(1)
    assert len(np.unique(groups)) >= len(np.unique(edge_counts))


def test_colouring_formats_agree(tmp_path):
    task = Colouring(4)
    path_graph = task.parse("4: 0-1, 1-2, 2-3")
    assert task.format(path_graph) == "100101"
    for text in ("100101", "#..#.#", '{"n": 4, "edges": [[0,1],[2,1],[2,3]]}', "p edge 4 3\ne 1 2\ne 2 3\ne 3 4\n"):
        assert np.array_equal(task.parse(text), path_graph)
    (tmp_path / "g.col").write_text("c a path\np edge 4 3\ne 1 2\ne 2 3\ne 3 4\n")
    assert np.array_equal(task.load(tmp_path / "g.col").puzzles[0], path_graph)
    (tmp_path / "g.jsonl").write_text('{"n": 4, "edges": [[0,1],[1,2],[2,3]]}\n')
    assert np.array_equal(task.load(tmp_path / "g.jsonl").puzzles[0], path_graph)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("4: 0-1, 0-2, 0-3, 1-2, 1-3, 2-3", "must be 3-colourable"),
        ("5: 0-1", "must have 4 nodes, got 5"),
        ("4: 0-9", "got edge 0-9"),
        ("4: 1-1", "got edge 1-1"),
        ("4: zero", "must read like"),
        ("10010", "must have 6 symbols 0 and 1, got 5"),
        ("10010x", "got 'x' at symbol 6"),
        ('{"n": 4}', "must be JSON with n and edges"),
        ('{"n": 1e999, "edges": []}', "must be JSON with n and edges"),
        ('{"n": ' * 100_000, "must be JSON with n and edges"),
        ("\u00b2: 0-1", "must read like"),
        ("4: 0-" + "1" * 5000, "must read like"),
        ("p edge 4 1\ne 1 5\n", "of 1 to 4, got edge 1-5"),
        ("p edge 4 1\ne 1\n", "DIMACS line 2 must be"),
    ],
)
def test_colouring_bad_graphs(text, words):
    with pytest.raises(PuzzleError) as error:
        Colouring(4).parse(text)
    assert words in str(error.value)
