"""Equal puzzles of a file, and twins under the symmetries of the task, are one cluster; canonical takes both shapes."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gram import checkpoint
from gram.api import Sampler
from gram.cli.main import main
from gram.evals.evaluate import evaluate_result
from gram.model import Model
from gram.tasks.arc import Arc
from gram.tasks.arc_grids import encode
from gram.tasks.protocol import Task
from gram.tasks.registry import get_task
from tests.models import tiny_config

NAMES = ["nqueens8", "nqueens10", "sudoku4", "sudoku6", "sudoku9", "colouring8", "maze8"]
ALL = [*NAMES, "arc"]


def file_of(task, path, puzzles):
    path.write_text("question\n" + "".join(f'"{task.format(puzzle)}"\n' for puzzle in puzzles))
    return path


def turned(task, rng, puzzles):
    """The same puzzles under random symmetries of the task."""
    if task.name.startswith("nqueens"):
        boards = puzzles.reshape(-1, task.n, task.n)
        return np.stack(
            [np.rot90(board.T if rng.random() < 0.5 else board, rng.integers(4)) for board in boards]
        ).reshape(len(puzzles), -1)
    if task.name.startswith("colouring"):
        names, renamed = rng.permutation(task.n), puzzles.copy()
        place = {tuple(pair): index for index, pair in enumerate(task.pairs.tolist())}
        for (a, b), index in place.items():
            renamed[:, place[tuple(sorted((int(names[a]), int(names[b]))))]] = puzzles[:, index]
        return renamed
    return task.augment(rng, puzzles, np.zeros((len(puzzles), task.output_tokens), np.uint8))[0]


@pytest.mark.parametrize("name", NAMES)
def test_equal_puzzles_and_twins_of_a_file_are_one_cluster(name, tmp_path):
    task, rng = get_task(name), np.random.default_rng(3)
    few = task.split("train", limit=60).puzzles
    different = few[np.unique(task.classes(few), return_index=True)[1]][:4]
    twins = turned(task, rng, different)
    assert (twins != different).any()
    rows = np.concatenate([different, np.repeat(different[:1], 3, axis=0), twins])
    groups = task.load(file_of(task, tmp_path / "mine.csv", rows)).groups.tolist()
    assert groups[:4] == groups[7:]
    assert len(set(groups[:4])) == 4
    assert set(groups[4:7]) == {groups[0]}


@settings(max_examples=25)
@given(st.sampled_from(NAMES), st.integers(0, 2**32 - 1))
def test_any_symmetry_keeps_the_class(name, seed):
    task, rng = get_task(name), np.random.default_rng(seed)
    puzzles = task.split("train", limit=10).puzzles
    classes = task.classes(np.concatenate([puzzles, turned(task, rng, puzzles)]))
    assert np.array_equal(classes[:10], classes[10:])


@pytest.mark.parametrize("name", ["sudoku6", "sudoku9"])
def test_puzzles_of_other_grids_or_givens_are_no_twins(name):
    task = get_task(name)
    puzzles = task.split("train", limit=40 if task.n == 9 else 300).puzzles
    without = puzzles.copy()
    for row in without:
        row[np.flatnonzero(row > 1)[0]] = 1
    assert len(np.unique(task.classes(np.concatenate([puzzles, without])))) == 2 * len(puzzles)


def test_a_task_that_cannot_tell_twins_joins_equal_puzzles():
    class Plain(Task):
        conflicts = solutions = None

    puzzles = np.array([[1, 2], [2, 1], [1, 2]], dtype=np.uint8)
    assert Plain().classes(puzzles).tolist() == [0, 1, 0]


@pytest.mark.parametrize("copies", [2, 7, 60])
def test_copies_of_a_puzzle_give_no_narrow_interval(copies, tmp_path):
    task = get_task("nqueens5")
    model = tiny_config(task=task.name, vocabulary=3, tokens=25, output_tokens=25)
    puzzle = task.split("test", limit=1).puzzles
    loaded = task.load(file_of(task, tmp_path / "mine.csv", np.repeat(puzzle, copies, axis=0)))
    result = Sampler(Model(model), task, name="tiny").sample(loaded, width=2, depth=2)
    found = evaluate_result(task, loaded, result, checkpoint="tiny", versions={})
    assert np.isnan(found.accuracy_low) or found.accuracy_high - found.accuracy_low > 0.9


@pytest.mark.parametrize("name", ALL)
def test_canonical_takes_both_shapes(name):
    task = get_task(name)
    rng = np.random.default_rng(0)
    answers = rng.integers(0, task.vocabulary, (3, 4, task.output_tokens), dtype=np.uint8)
    whole = task.canonical(answers)
    assert whole.shape == answers.shape
    assert np.array_equal(whole.reshape(12, -1), task.canonical(answers.reshape(12, -1)))
    assert task.canonical(np.zeros((1, 2, task.output_tokens), np.uint8)).shape == (1, 2, task.output_tokens)
    assert task.canonical(answers[:0]).shape == (0, 4, task.output_tokens)


def arc_file(path):
    tests = [{"input": [[1, colour]], "output": [[colour]]} for colour in (2, 3)]
    path.write_text(json.dumps({"a": {"train": [], "test": tests[:1]}, "b": {"train": [], "test": tests[1:]}}))
    return path


@pytest.mark.parametrize("name", ALL)
def test_every_task_is_sampled_and_evaluated_at_width_two(name, tmp_path, capsys):
    task = get_task(name)
    config = tiny_config(
        task=name, vocabulary=task.vocabulary, tokens=task.tokens, output_start=task.output_start,
        output_tokens=task.output_tokens, depth=2,
    )  # fmt: skip
    checkpoint.save(Model(config), tmp_path / "tiny")
    if name == "arc":
        file = arc_file(tmp_path / "arc.json")
    else:
        file = file_of(task, tmp_path / "mine.csv", task.split("validation", limit=2).puzzles)
    asked = ("eval", name, "--checkpoint", str(tmp_path / "tiny"), "--width", "2", "--puzzles", str(file), "--json")
    assert main((*asked, "--quiet")) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["puzzles"], told["width"]) == (2, 2)


def test_arc_answers_of_several_trajectories_are_plain_grids():
    arc = Arc()
    grid = encode(np.array([[1, 2]], dtype=np.uint8))
    noisy = grid.copy()
    noisy[500] = 4
    assert np.array_equal(arc.canonical(np.stack([[grid, noisy], [noisy, grid]])), np.stack([[grid, grid]] * 2))
