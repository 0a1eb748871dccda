"""Splits: what is held out is held out under every symmetry, and nothing before the last evaluation reads the test."""

import itertools

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gram.tasks.colouring import EDGE, Colouring
from gram.tasks.colouring_splits import GraphSplits
from gram.tasks.maze import Maze
from gram.tasks.nqueens import ORBITS, QUEEN, NQueens, all_solutions
from gram.tasks.nqueens_splits import canonical_keys
from gram.tasks.puzzle_sets import PARTS, PuzzlePool
from gram.tasks.registry import get_task
from gram.tasks.sudoku import MOST_OF_SEVERAL, SEVERAL, Sudoku
from gram.training.config import TrainConfig
from gram.training.puzzles import validation_split
from gram.training.recipe import Recipe
from gram.training.run import train
from scripts import ship_checkpoint
from tests.models import tiny_config


def views(board):
    """The eight turned and mirrored boards of one board `[n, n]`."""
    return [np.rot90(side, turns) for side in (board, board.T) for turns in range(4)]


def orbit(queens):
    return min(view.tobytes() for view in views(queens))


def solutions_of(task, puzzle):
    side = (task.n, task.n)
    return {orbit((solution == QUEEN).reshape(side)) for solution in task.solutions(puzzle)}


def folds(task):
    return ["", *(f"-fold{fold}" for fold in (1, 2, 3))] if "test-fold1" in task.splits else [""]


@pytest.mark.parametrize("n", range(4, 11))
def test_the_orbits_of_queens_are_those_of_turned_boards(n):
    columns = all_solutions(n)
    boards = np.eye(n, dtype=bool)[columns]
    wanted = [orbit(board) for board in boards]
    keys = canonical_keys(boards.reshape(len(boards), -1), n).tolist()
    assert len(set(wanted)) == len(set(keys)) == len(set(zip(wanted, keys, strict=True))) == ORBITS[n]


@pytest.mark.parametrize("name", ["nqueens8", "nqueens9"])
def test_queens_are_split_by_orbit_of_their_solutions(name):
    task = get_task(name)
    tested = []
    for fold in folds(task):
        found = {}
        for part in ("train", "validation", "test"):
            members = task.split(part + fold, limit=None if task.n == 8 else 300)
            found[part] = set().union(*(solutions_of(task, puzzle) for puzzle in members.puzzles))
            if task.n == 8:
                assert len(found[part]) == task.split_orbits(part + fold)
        for one, other in itertools.combinations(found.values(), 2):
            assert one
            assert other
            assert not one & other
        tested.append(found["test"])
    assert len(tested) == 4
    assert not any(one & other for one, other in itertools.combinations(tested, 2))
    if task.n == 8:
        assert [len(orbits) for orbits in tested] == [3, 3, 3, 3]
        assert len(set().union(*tested)) == 12


def test_only_puzzles_of_several_parts_are_dropped():
    task = get_task("nqueens8")
    everything = np.concatenate([task.split(name).puzzles for name in ("input-train", "input-test")])
    for fold in folds(task):
        parts = [task.split(name + fold).puzzles for name in ("train", "validation", "test")]
        orbits = [set().union(*(solutions_of(task, puzzle) for puzzle in part)) for part in parts]
        kept = {bytes(puzzle) for part in parts for puzzle in part}
        dropped = [puzzle for puzzle in everything if bytes(puzzle) not in kept]
        assert dropped
        assert all(sum(bool(solutions_of(task, puzzle) & own) for own in orbits) > 1 for puzzle in dropped)


@pytest.mark.parametrize("n", [4, 5, 6, 7])
def test_small_boards_are_split_by_canonical_input(n):
    task = get_task(f"nqueens{n}")
    assert task.splits[:3] == ("train", "validation", "test")
    parts = {name: {orbit(puzzle.reshape(n, n)) for puzzle in task.split(name).puzzles} for name in task.splits[:3]}
    assert all(parts.values())
    assert not any(one & other for one, other in itertools.combinations(parts.values(), 2))
    assert sum(task.split_size(name) for name in parts) == sum(task.split_size(f"input-{n}") for n in ("train", "test"))


@pytest.mark.parametrize(("name", "split"), [("nqueens5", "test"), ("nqueens8", "test-fold2"), ("nqueens8", "train")])
def test_groups_of_queens_are_canonical_inputs(name, split):
    task = get_task(name)
    made = task.split(split, limit=200)
    wanted = [orbit(puzzle.reshape(task.n, task.n)) for puzzle in made.puzzles]
    groups = made.groups.tolist()
    assert len(set(wanted)) == len(set(groups)) == len(set(zip(wanted, groups, strict=True)))


@pytest.mark.parametrize("name", ["sudoku4", "sudoku6", "sudoku9"])
def test_no_grid_of_sudoku_is_of_two_splits(name):
    task = get_task(name)
    limit = 20 if task.n == 9 else 60
    for split in task.splits:
        assert set(task.split_of(task.split(split, limit=limit).answers)) == {split.removesuffix(SEVERAL)}
    if task.n < 9:
        assert set(task.split_of(task.training_batch(np.random.default_rng(0), 200)[1])) == {"train"}


@settings(max_examples=25, deadline=None)
@given(part=st.sampled_from(PARTS), index=st.integers(0, 2**31 - 1))
def test_a_board_with_several_solutions_is_of_the_split_of_its_first(part, index):
    """So of one alone, whichever of its solutions it was made from."""
    task = get_task("sudoku9")
    puzzle, answer, rating = task._make_several(part + SEVERAL, index)
    solutions = task.solutions(puzzle)
    assert 2 <= len(solutions) <= MOST_OF_SEVERAL
    np.testing.assert_array_equal(answer, solutions[0])
    assert task.split_of(solutions[:1])[0] == part
    assert rating >= 1
    assert task.is_input(puzzle[None]).all()


def test_boards_with_several_solutions_are_in_no_other_split():
    task = get_task("sudoku9")
    found = {name: task.split(name, limit=15 if SEVERAL in name else 60).puzzles for name in task.splits}
    trained, answers = task.training_batch(np.random.default_rng(0), 60, split="train" + SEVERAL)
    assert task.verify(trained, answers).all()
    found["trained"] = trained
    forms = {name: {form.tobytes() for form in task.forms(puzzles)} for name, puzzles in found.items()}
    assert [len(forms[part + SEVERAL]) for part in PARTS] == [15] * 3
    del found["train" + SEVERAL]  # the same boards, before their symmetries
    for one, other in itertools.combinations(found, 2):
        assert not forms[one] & forms[other], (one, other)
    counts = [task.count_solutions(puzzle) for puzzle in trained]
    assert min(counts) >= 2
    assert max(counts) <= MOST_OF_SEVERAL
    assert len(set(counts)) > 10


def test_small_boards_have_no_split_of_several_solutions():
    with pytest.raises(ValueError, match="training split must be one of train, got 'train-several'"):
        get_task("sudoku6").training_batch(np.random.default_rng(0), 2, split="train" + SEVERAL)


def graphs_of(task, puzzles):
    return [
        nx.Graph([*zip(range(task.n), range(task.n), strict=True), *map(tuple, task.pairs[edges].tolist())])
        for edges in puzzles[:, : task.output_start] == EDGE
    ]


@pytest.mark.parametrize("n", [3, 4, 5, 6, 8, 10])
def test_no_held_out_graph_is_isomorphic_to_one_of_another_split(n):
    task = get_task(f"colouring{n}")
    stream = [task.training_batch(np.random.default_rng(seed), 500)[0] for seed in range(4)]
    parts = [task.split("test").puzzles, task.split("validation").puzzles, np.concatenate(stream)]
    classes = task.classes(np.concatenate(parts))
    ends = np.cumsum([len(part) for part in parts])
    found = [set(part.tolist()) for part in np.split(classes, ends[:-1])]
    assert all(found)
    assert not any(one & other for one, other in itertools.combinations(found, 2))
    if n == 6:
        # By another's isomorphism test, so that the classes themselves are checked.
        tests, trained = (graphs_of(task, np.unique(part, axis=0)[:60]) for part in (parts[0], parts[2]))
        assert not any(nx.is_isomorphic(one, other) for one in tests for other in trained)


def test_older_splits_of_colouring_differ_as_labelled_graphs_alone():
    task = get_task("colouring8")
    test, train = task.split("labelled-test").puzzles, task.split("labelled-train", limit=3000).puzzles
    assert not {bytes(row) for row in test} & {bytes(row) for row in train}
    classes = task.classes(np.concatenate([test, train]))
    assert np.isin(classes[: len(test)], classes[len(test) :]).mean() > 0.4
    puzzles, targets = task.training_batch(np.random.default_rng(0), 50, split="labelled-train")
    assert task.verify(puzzles, targets).all()
    for split in ("test", "validation", "labelled-test"):
        with pytest.raises(ValueError, match="training split must be one of train, labelled-train"):
            task.training_batch(np.random.default_rng(0), 2, split=split)


@pytest.mark.parametrize("name", ["colouring5", "colouring8"])
def test_groups_of_colouring_are_canonical_graphs(name):
    task = get_task(name)
    made = task.split("test", limit=60)
    graphs = graphs_of(task, made.puzzles)
    for (one, group), (other, second) in itertools.combinations(zip(graphs, made.groups, strict=True), 2):
        if one.number_of_edges() == other.number_of_edges():
            assert nx.is_isomorphic(one, other) == (group == second)


def test_a_fold_is_judged_by_its_own_validation():
    task = get_task("nqueens8")
    assert validation_split(task, "train") == "validation"
    assert validation_split(task, "train-fold2") == "validation-fold2"
    for split in ("input-train", "test", "validation", "train-fold9"):
        with pytest.raises(ValueError, match="must have a split") as error:
            validation_split(task, split)
        assert "\n" not in str(error.value)


NAMES = ["nqueens5", "nqueens8", "sudoku4", "sudoku6", "colouring5", "colouring8", "maze6"]


LOWER = [(NQueens, "_members"), (GraphSplits, "held_out")]
"""What gives the puzzles of a split, below `split`; the split's name comes first. Others have a `PuzzlePool`."""


@pytest.fixture
def reads(monkeypatch):
    """Every split that is asked for from here on; one that tests is an error."""
    found = []

    def guarded(original):
        def call(self, split="test", *arguments, **named):
            found.append(split)
            assert "test" not in split, f"read {split}"
            return original(self, split, *arguments, **named)

        return call

    for kind, method in [*LOWER, *((kind, "split") for kind in (NQueens, Colouring, Sudoku, Maze))]:
        monkeypatch.setattr(kind, method, guarded(getattr(kind, method)))
    taken = PuzzlePool.take

    def take(pool, indices):
        (split,) = pool._make.args
        return guarded(lambda _, __: taken(pool, indices))(pool, split)

    monkeypatch.setattr(PuzzlePool, "take", take)
    return found


def trained(task, out):
    model = tiny_config(
        task=task.name, vocabulary=task.vocabulary, tokens=task.tokens, output_start=task.output_start,
        output_tokens=task.output_tokens,
    )  # fmt: skip
    training = TrainConfig(steps=2, batch=4, rollout_slots=2, evaluate_puzzles=4, evaluate_width=2)
    made = Recipe(task.name, "", task, model, training)
    return train(made, out, is_compiled=False, dtype=torch.float32)


@pytest.mark.parametrize("name", NAMES)
def test_training_reads_no_test_split(name, tmp_path, reads):
    card = trained(get_task(name), tmp_path / "run")
    assert card["held_out_while_training"]
    assert "validation" in reads


class LastStep(Exception):
    """The evaluation that makes the card."""


@pytest.mark.parametrize("name", ["nqueens5", "sudoku4", "colouring5"])
def test_shipping_reads_no_test_split_before_its_last_step(name, tmp_path, reads, monkeypatch):
    trained(get_task(name), tmp_path / "run")
    asked = []

    def evaluate(*arguments, verb="eval"):
        asked.append(arguments)
        raise LastStep

    monkeypatch.setattr(ship_checkpoint, "evaluate", evaluate)
    monkeypatch.setattr(ship_checkpoint, "typical_speed", lambda log: 1.0)
    monkeypatch.setattr(ship_checkpoint, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["ship_checkpoint.py", str(tmp_path / "run"), "tiny", "--depth", "3"])
    with pytest.raises(LastStep):
        ship_checkpoint.main()
    assert len(asked) == 1
    assert "validation" in reads


def test_the_guard_of_these_tests_sees_a_read(reads):
    for task in (get_task("nqueens5"), get_task("colouring5"), get_task("sudoku4"), get_task("maze6")):
        with pytest.raises(AssertionError, match="read test"):
            task.split("test", limit=1)
    with pytest.raises(AssertionError, match="read test"):
        get_task("nqueens5").lookup("test")
