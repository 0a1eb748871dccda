"""ARC: tokens of the published data set, files, the checker, views and voting."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gram.tasks.arc import Arc
from gram.tasks.arc_files import read_tasks
from gram.tasks.arc_grids import View, decode, encode, grid_sizes, random_view
from gram.tasks.protocol import PuzzleError, Task
from gram.tasks.registry import get_task
from gram.tasks.views import turn

GRIDS = st.tuples(st.integers(1, 30), st.integers(1, 30)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 9))
)
ONE = {"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[1, 2], [3, 4]], "output": [[5, 6, 7]]}]}


def test_tokens_by_hand():
    canvas = encode(np.array([[0, 9], [1, 2], [3, 4]], dtype=np.uint8)).reshape(30, 30)
    assert canvas[:5, :4].tolist() == [[2, 11, 1, 0], [3, 4, 1, 0], [5, 6, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert np.count_nonzero(canvas) == 11
    full = encode(np.zeros((30, 30), dtype=np.uint8))
    assert (full == 2).all()
    moved = encode(np.array([[7]], dtype=np.uint8), row=2, column=3).reshape(30, 30)
    assert moved[2, 3:5].tolist() == [9, 1]
    assert moved[3, 3] == 1


@given(GRIDS)
def test_decode_undoes_encode(grid):
    assert np.array_equal(decode(encode(grid)), grid)


@given(arrays(np.uint8, (30, 30), elements=st.sampled_from([0, 1, 2, 3, 11])), st.integers(1, 6), st.integers(1, 6))
def test_grid_is_the_first_largest_rectangle_of_colours(canvas, rows, columns):
    canvas = canvas.copy()
    canvas[:rows, :columns] = 5
    best, best_size = 0, (0, 0)
    width = 30
    for row in range(30):
        run = 0
        while run < width and canvas[row, run] >= 2:
            run += 1
        width = run
        if (row + 1) * width > best:
            best, best_size = (row + 1) * width, (row + 1, width)
    assert tuple(grid_sizes(canvas.reshape(1, -1))[0]) == best_size


def test_the_checker_knows_loaded_outputs_only(tmp_path):
    arc = Arc()
    path = tmp_path / "one.json"
    path.write_text(json.dumps(ONE))
    loaded = arc.load(path)
    assert isinstance(arc, Task)
    assert arc.format(loaded.puzzles[0]) == "12/34"
    assert arc.format(loaded.puzzles[0], loaded.answers[0]) == "567"
    assert np.array_equal(arc.parse("12/34"), loaded.puzzles[0])
    assert arc.verify(loaded.puzzles, loaded.answers).all()
    assert arc.count_solutions(loaded.puzzles[0]) == 1
    assert np.array_equal(arc.solutions(loaded.puzzles[0]), loaded.answers)
    rubbish = loaded.answers.copy()
    rubbish[0, 500] = 7  # outside the grid
    assert arc.verify(loaded.puzzles, rubbish).all()
    assert np.array_equal(arc.canonical(rubbish), loaded.answers)
    wrong = loaded.answers.copy()
    wrong[0, 1] = 2
    assert arc.conflicts(loaded.puzzles, wrong).tolist() == [1]
    assert not arc.verify(loaded.puzzles, np.zeros_like(wrong)).any()
    assert [cell.text for cell in arc.board(loaded.puzzles[0])[1]] == ["3", "4"]
    assert arc.board(loaded.puzzles[0], np.zeros(900, np.uint8))[0][0].kind == "conflict"
    with pytest.raises(PuzzleError, match="must be of the file loaded last"):
        Arc().verify(loaded.puzzles, loaded.answers)


def test_there_are_no_puzzles_of_its_own():
    arc = get_task("arc")
    assert (arc.tokens, arc.vocabulary, arc.split_size("test")) == (900, 12, 0)
    for call in (arc.split, lambda: arc.training_batch(np.random.default_rng(0), 1)):
        with pytest.raises(ValueError, match="must come from your files"):
            call()
    with pytest.raises(ValueError, match="split must be one of"):
        arc.split("evaluation")


def test_folders_and_secret_outputs(tmp_path):
    (tmp_path / "training").mkdir()
    for name, other in (("b", 9), ("a", 2), ("c", 2)):
        one = {"train": ONE["train"], "test": [{"input": [[1, other], [3, 4]], "output": [[5, 6, 7]]}]}
        (tmp_path / "training" / f"{name}.json").write_text(json.dumps(one))
    assert [task.name for task in read_tasks(tmp_path)] == ["a", "b", "c"]
    groups = Arc().load(tmp_path).groups.tolist()
    assert groups[0] == groups[2] != groups[1], "equal inputs stand and fall together"
    secret = {"x": {"train": ONE["train"], "test": [{"input": [[1]]}]}}
    (tmp_path / "secret.json.gz").write_bytes(gzip.compress(json.dumps(secret).encode()))
    assert Arc().load(tmp_path / "secret.json.gz").answers is None


def test_outputs_belong_to_the_set_loaded_last(tmp_path):
    corrected = json.loads(json.dumps(ONE))
    corrected["test"][0]["output"] = [[5, 6, 8]]
    other = {"train": [], "test": [{"input": [[9]], "output": [[1]]}]}
    paths = [tmp_path / f"{name}.json" for name in ("first", "corrected", "other")]
    for path, values in zip(paths, (ONE, corrected, other), strict=True):
        path.write_text(json.dumps(values))
    arc = get_task("arc")
    first = arc.load(paths[0])
    mended = arc.load(paths[1])
    assert np.array_equal(first.puzzles, mended.puzzles)
    assert arc.verify(mended.puzzles, mended.answers).all()
    assert not arc.verify(mended.puzzles, first.answers).any()
    assert arc.count_solutions(mended.puzzles[0]) == 1
    arc.load(paths[0])
    assert arc.verify(first.puzzles, first.answers).all()
    assert not arc.verify(first.puzzles, mended.answers).any()
    arc.load(paths[2])
    with pytest.raises(PuzzleError, match="must be of the file loaded last"):
        arc.verify(first.puzzles, first.answers)
    with pytest.raises(PuzzleError):
        arc.load(tmp_path / "bad.json" if (tmp_path / "bad.json").write_text("[]") else tmp_path)
    assert arc.count_solutions(arc.parse("9")) == 1
    # Another caller's task has outputs of its own.
    assert get_task("arc") is not arc
    with pytest.raises(PuzzleError, match="must be of the file loaded last"):
        get_task("arc").verify(first.puzzles, first.answers)


def test_hidden_files_of_a_folder_are_skipped(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(ONE))
    for name in ("._a.json", ".b.json", ".DS_Store", ".ipynb_checkpoints/a.json", "sub/._c.json", "__MACOSX/._a.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\x00\x05\x16\x07")
    assert [task.name for task in read_tasks(tmp_path)] == ["a"]
    (tmp_path / "a.json").unlink()
    with pytest.raises(PuzzleError, match="must hold JSON files of ARC tasks, got none"):
        read_tasks(tmp_path)
    # A folder that is itself hidden is read: its user named it.
    (tmp_path / ".data").mkdir()
    (tmp_path / ".data" / "a.json").write_text(json.dumps(ONE))
    assert len(read_tasks(tmp_path / ".data")) == 1


CHALLENGES = {
    "x": {"train": ONE["train"], "test": [{"input": [[1]]}, {"input": [[2]]}]},
    "y": {"train": ONE["train"], "test": [{"input": [[3]]}]},
}
SOLUTIONS = {"x": [[[4]], [[5, 5]]], "y": [[[6]]]}


@pytest.mark.parametrize("packed", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("is_folder", [False, True])
def test_solutions_beside_the_challenges_are_read(tmp_path, packed, is_folder):
    for values, what, is_packed in zip((CHALLENGES, SOLUTIONS), ("challenges", "solutions"), packed, strict=True):
        content = json.dumps(values).encode()
        path = tmp_path / f"arc-agi_training_{what}.json{'.gz' if is_packed else ''}"
        path.write_bytes(gzip.compress(content) if is_packed else content)
    arc = Arc()
    loaded = arc.load(tmp_path if is_folder else next(tmp_path.glob("*_challenges*")))
    assert [arc.format(p, a) for p, a in zip(loaded.puzzles, loaded.answers, strict=True)] == ["4", "55", "6"]
    assert loaded.groups.tolist() == [0, 0, 1]
    assert arc.verify(loaded.puzzles, loaded.answers).all()


@pytest.mark.parametrize(
    ("solutions", "words"),
    [
        ({"x": [[[4]], [[5]]]}, "task 'y' must have an output for each of 1 tests, got none"),
        ({"x": [[[4]]], "y": [[[6]]]}, "task 'x' must have an output for each of 2 tests, got 1"),
        ({"x": [[[4]], [[5]]], "y": [[[6]], [[7]]]}, "task 'y' must have an output for each of 1 tests, got 2"),
        ({"x": [[[4]], [[11]]], "y": [[[6]]]}, "task 'x' output 1 must be of colours 0 to 9"),
        ({"x": 3, "y": [[[6]]]}, "task 'x' must have an output"),
        ([], "must be a JSON object"),
    ],
)
def test_solutions_of_other_challenges_are_one_line(tmp_path, solutions, words):
    (tmp_path / "a_challenges.json").write_text(json.dumps(CHALLENGES))
    (tmp_path / "a_solutions.json").write_text(json.dumps(solutions))
    with pytest.raises(PuzzleError) as error:
        Arc().load(tmp_path / "a_challenges.json")
    assert words in str(error.value)
    assert "a_solutions.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_solutions_alone_and_outputs_that_disagree_are_refused(tmp_path):
    (tmp_path / "a_solutions.json").write_text(json.dumps(SOLUTIONS))
    for path in (tmp_path, tmp_path / "a_solutions.json"):
        with pytest.raises(PuzzleError, match=r"a_solutions\.json: must be ARC tasks, got solutions alone"):
            Arc().load(path)
    given = {**CHALLENGES, "y": {"train": [], "test": [{"input": [[3]], "output": [[7]]}]}}
    (tmp_path / "a_challenges.json").write_text(json.dumps(given))
    with pytest.raises(PuzzleError, match="task 'y' output 0 must be that of the challenges"):
        Arc().load(tmp_path)


@pytest.mark.parametrize("known", [0, 1, 2])
def test_missing_outputs_are_told_aloud(tmp_path, caplog, known):
    values = json.loads(json.dumps(CHALLENGES))
    for test in values["x"]["test"][:known]:
        test["output"] = [[1]]
    (tmp_path / "a.json").write_text(json.dumps(values))
    assert Arc().load(tmp_path / "a.json").answers is None
    assert caplog.messages == ([f"{tmp_path}/a.json: {3 - known} of 3 puzzles have no output"] if known else [])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not JSON"),
        ("[]", "must be a JSON object of ARC tasks"),
        ('{"a": 1}', "task 'a' must be an object with 'train' and 'test'"),
        ('{"a": {"test": [3]}}', "task 'a' test 0 must be an object with 'input'"),
        ('{"a": {"test": [{"input": []}]}}', "must be rows of colours"),
        ('{"a": {"test": [{"input": [[1], [1, 2]]}]}}', "must have rows of one length"),
        ('{"a": {"test": [{"input": [[10]]}]}}', "colours 0 to 9, got '10'"),
        ('{"a": {"test": [{"input": [[true]]}]}}', "colours 0 to 9, got 'True'"),
        (json.dumps({"a": {"test": [{"input": [[1] * 31]}]}}), "at most 30x30, got 1x31"),
        ('{"a": {"test": []}}', "at least one test input"),
    ],
)
def test_bad_files_are_one_line(tmp_path, content, words):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(PuzzleError) as error:
        Arc().load(path)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "x", "12/3", "1//2", "1" * 31])
def test_bad_text_is_one_line(text):
    with pytest.raises(PuzzleError, match="arc puzzle"):
        Arc().parse(text)


@given(GRIDS, st.integers(0, 7), st.permutations(range(1, 10)))
def test_a_view_is_undone(grid, symmetry, colours):
    view = View(symmetry, (0, *colours))
    assert np.array_equal(view.undo(view.apply(grid)), grid)


def test_symmetries_are_eight_and_the_published_ones():
    grid = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert len({(turned.shape, turned.tobytes()) for turned in (turn(grid, k) for k in range(8))}) == 8
    assert turn(grid, 1).tolist() == [[2, 5], [1, 4], [0, 3]]
    assert turn(grid, 4).tolist() == [[2, 1, 0], [5, 4, 3]]
    assert turn(grid, 6).tolist() == [[0, 3], [1, 4], [2, 5]]
    assert turn(grid, 7).tolist() == [[5, 2], [4, 1], [3, 0]]
    with pytest.raises(ValueError, match="symmetry must be within 0 and 7, got 8"):
        turn(grid, 8)
    with pytest.raises(ValueError, match="keeps 0"):
        View(0, (1, 0, 2, 3, 4, 5, 6, 7, 8, 9))


@pytest.mark.parametrize(
    ("name", "tasks", "clusters", "tests"),
    [("arc1_training400", 400, 399, 416), ("arc2_training_clean624", 624, 624, 681), ("conceptarc", 176, 175, 528)],
)
def test_published_tasks(gram_data, name, tasks, clusters, tests):
    """Two tasks of ARC-1, and two of ConceptARC, have an equal test input: these are one cluster."""
    path = gram_data / "arc_agi" / f"public_{name}.json.gz"
    arc = Arc()
    loaded = arc.load(path)
    assert len(read_tasks(path)) == tasks
    assert len(set(loaded.groups.tolist())) == clusters
    assert len(loaded) == tests
    assert arc.verify(loaded.puzzles, loaded.answers).all()
    view = random_view(np.random.default_rng(1))
    for task in read_tasks(path)[:50]:
        for pair in task.test:
            assert np.array_equal(view.undo(decode(encode(view.apply(pair.output)))), pair.output)
