"""Mazes: verifier against brute force, exact counts, the published data set's tokens and rows."""

import csv
import gzip
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gram.tasks.maze import GOAL, OPEN, PATH, START, WALL, Maze
from gram.tasks.maze_paths import distances
from gram.tasks.protocol import PuzzleError
from gram.tasks.registry import get_task

SMALL = Maze(4)
OPEN_GRID = "S..............G"


def brute_force(puzzle: np.ndarray, n: int) -> set[bytes]:
    """All right answers by walking every simple path."""
    found: list[list[int]] = []
    start, goal = (int(np.flatnonzero(puzzle == token)[0]) for token in (START, GOAL))

    def walk(path: list[int]) -> None:
        if path[-1] == goal:
            found.append(path)
            return
        y, x = divmod(path[-1], n)
        for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            near = (y + dy) * n + x + dx
            if 0 <= y + dy < n and 0 <= x + dx < n and puzzle[near] != WALL and near not in path:
                walk([*path, near])

    walk([start])
    least = min(map(len, found), default=0)
    answers = set()
    for path in found:
        if len(path) == least:
            answer = puzzle.copy()
            answer[path[1:-1]] = PATH
            answers.add(answer.tobytes())
    return answers


@st.composite
def mazes(draw):
    grid = np.array(draw(st.lists(st.sampled_from([WALL, OPEN, OPEN]), min_size=16, max_size=16)), dtype=np.uint8)
    start, goal = draw(st.lists(st.integers(0, 15), min_size=2, max_size=2, unique=True))
    grid[start], grid[goal] = START, GOAL
    return grid


@settings(max_examples=150)
@given(mazes(), st.lists(st.lists(st.integers(0, 5), min_size=16, max_size=16), max_size=3), st.data())
def test_verifier_and_counts_equal_brute_force(puzzle, wild, data):
    right = brute_force(puzzle, 4)
    assert SMALL.count_solutions(puzzle) == len(right)
    solutions = SMALL.solutions(puzzle)
    assert {answer.tobytes() for answer in solutions} == right
    tried = [np.frombuffer(answer, dtype=np.uint8) for answer in sorted(right)]
    for answer in list(tried):
        spoilt = answer.copy()
        spoilt[data.draw(st.integers(0, 15))] = data.draw(st.integers(0, 5))
        tried.append(spoilt)
    # Any set of marked open cells: the nearest miss of a path.
    marks = np.array(data.draw(st.lists(st.booleans(), min_size=16, max_size=16)))
    tried += [np.where(marks & (puzzle == OPEN), PATH, puzzle).astype(np.uint8)]
    tried += [np.array(answer, dtype=np.uint8) for answer in wild]
    answers = np.stack(tried)
    repeated = np.repeat(puzzle[None], len(answers), axis=0)
    verdicts = SMALL.verify(repeated, answers)
    assert verdicts.tolist() == [answer.tobytes() in right for answer in answers]
    assert np.array_equal(verdicts, SMALL.conflicts(repeated, answers) == 0)


def test_known_counts():
    assert SMALL.count_solutions(SMALL.parse(OPEN_GRID)) == 20  # 6 over 3
    assert Maze(5).count_solutions(Maze(5).parse("S" + "." * 23 + "G")) == 70
    assert SMALL.count_solutions(SMALL.parse("SG" + "#" * 14)) == 1
    everything = "S" + "." * 898 + "G"
    assert Maze(30).count_solutions(Maze(30).parse(everything)) == 30067266499541040
    with pytest.raises(PuzzleError, match="at most 20,000 shortest paths, got 30,067"):
        Maze(30).solutions(Maze(30).parse(everything))


def test_a_longer_path_and_a_broken_one_are_wrong():
    puzzle = SMALL.parse("S...####........G"[:4] + "...G" + "." * 8)
    assert SMALL.verify(puzzle[None], SMALL.solutions(puzzle)[:1]).all()
    longer = puzzle.copy()
    longer[[4, 8, 9, 10, 11]] = PATH
    broken = puzzle.copy()
    broken[[1, 6]] = PATH
    assert not SMALL.verify(np.stack([puzzle] * 2), np.stack([longer, broken])).any()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("S.G", "maze4 puzzle must have 16 symbols, got 3"),
        ("S" * 16, "maze4 puzzle must have one S, got 16"),
        ("S" + "." * 15, "maze4 puzzle must have one G, got 0"),
        ("So" + "." * 13 + "G", "maze4 puzzle must be of # . S G, got 'o' at symbol 2"),
        ("S#" + "#" * 13 + "G", "maze4 puzzle must have a path from S to G"),
    ],
)
def test_bad_mazes_are_one_line(text, words):
    with pytest.raises(PuzzleError, match=words):
        SMALL.parse(text)


def test_sizes_and_text():
    with pytest.raises(ValueError, match="maze side must be 4 to 30, got 31"):
        Maze(31)
    assert np.array_equal(SMALL.parse("S   \n    \n    \n   G"), SMALL.parse(OPEN_GRID))


def test_symmetries_stay_in_their_split():
    maze = Maze(8)
    puzzles, answers = maze.training_batch(np.random.default_rng(0), 40)
    assert {maze.split_of(puzzle) for puzzle in puzzles} == {"train"}
    for split in ("validation", "test"):
        assert {maze.split_of(puzzle) for puzzle in maze.split(split, limit=20).puzzles} == {split}
    assert maze.verify(puzzles, answers).all()
    assert len({cells.tobytes() for cells in maze._symmetries}) == 8


def test_mazes_start_anywhere_in_splits_of_their_own():
    maze = Maze(8)
    dead_ends = {}
    for end in ("", "-anywhere"):
        puzzles, answers = maze.training_batch(np.random.default_rng(0), 40, split=f"train{end}")
        assert {maze.split_of(puzzle) for puzzle in puzzles} == {"train"}
        assert maze.verify(puzzles, answers).all()
        held_out = maze.split(f"test{end}", limit=20)
        assert {maze.split_of(puzzle) for puzzle in held_out.puzzles} == {"test"}
        assert (held_out.ratings >= maze.least_steps / (2 if end else 1) - 0.5).all()
        starts = (puzzles == START).argmax(1)
        reached = [distances(puzzle != WALL, start, 8) for puzzle, start in zip(puzzles, starts, strict=True)]
        dead_ends[end] = np.mean([(found == 1).sum() == 1 for found in reached])
    assert dead_ends[""] > dead_ends["-anywhere"]
    assert maze.split_size("train-anywhere") is None
    assert maze.split_size("test-anywhere") == 500
    with pytest.raises(ValueError, match="test-anywhere"):
        maze.training_batch(np.random.default_rng(0), 1, split="test-anywhere")


def test_generated_mazes_are_as_long_as_the_published():
    maze = get_task("maze30")
    known = maze.split("test", limit=3)
    assert (known.ratings >= 110).all()
    assert maze.verify(known.puzzles, known.answers).all()


def test_published_rows(gram_data):
    path = gram_data / "maze_hard_30x30" / "public_dev500_from_test.csv.gz"
    maze = get_task("maze30")
    loaded = maze.load(path)
    assert len(loaded) == 500
    with gzip.open(path, "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    table = {"#": 1, " ": 2, "S": 3, "G": 4, "o": 5}  # HRM's and TRM's: the place in "# SGo", plus 1
    for row, puzzle, answer in zip(rows, loaded.puzzles, loaded.answers, strict=True):
        assert puzzle.tolist() == [table[symbol] for symbol in row["question"]]
        assert answer.tolist() == [table[symbol] for symbol in row["answer"]]
    for row, puzzle in zip(rows[:100], loaded.puzzles, strict=False):
        assert maze.count_solutions(puzzle) == int(row["n_shortest_paths"])
    started = time.perf_counter()
    assert maze.verify(np.repeat(loaded.puzzles, 20, axis=0), np.repeat(loaded.answers, 20, axis=0)).all()
    assert time.perf_counter() - started < 30  # some 2 s; the machine may be shared


def test_published_columns_of_hugging_face(tmp_path):
    path = tmp_path / "test.csv"
    path.write_text(
        "source,question,answer,rating\nx,S              G,SoooooooooooooG,7\n".replace("ooooooooooooo", "oo")
    )
    with pytest.raises(PuzzleError, match=r"test\.csv:2: maze4 answer must have 16 symbols, got 4"):
        SMALL.load(path)
    path.write_text("source,question,answer,rating\nx,S              G,Sooo   o   o   G,7\n")
    assert SMALL.load(path).ratings.tolist() == [7]
