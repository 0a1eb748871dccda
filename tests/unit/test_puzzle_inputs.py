"""What the Python interface takes as puzzles and paths, and what it refuses in one line."""

import json
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gram import checkpoint
from gram.api import Sampler, load
from gram.importers import import_checkpoint
from gram.sampler.engine import Progress
from gram.sampler.store import Store
from gram.sampler.trace import Traces
from gram.tasks.protocol import PuzzleError, PuzzleSet, input_tokens
from gram.tasks.registry import get_task
from gram.training.recipe import load_recipe
from gram.training.run import train
from tests.models import tiny_model

TASK = get_task("nqueens4")
PUZZLES = TASK.split("test").puzzles
SAMPLER = Sampler(tiny_model(), TASK, name="tiny")
NAMES = ("nqueens5", "sudoku4", "sudoku9", "colouring4", "colouring8", "maze6", "arc")
INPUT_TOKENS = {
    "nqueens5": {1, 2},
    "sudoku4": {*range(1, 6)},
    "sudoku9": {*range(1, 11)},
    "colouring4": {1, 2},
    "colouring8": {1, 2},
    "maze6": {1, 2, 3, 4},
    "arc": {*range(12)},
}


def some_puzzles(name):
    task = get_task(name)
    return task, task.parse("12/34")[None] if name == "arc" else task.split("test", limit=3).puzzles


@pytest.mark.parametrize("name", NAMES)
def test_own_puzzles_are_input_tokens_and_no_other_number_is(name):
    task, puzzles = some_puzzles(name)
    for kind in (np.uint8, np.int64, np.float32, np.uint64):
        assert np.array_equal(input_tokens(task, puzzles.astype(kind)), puzzles)
        assert input_tokens(task, puzzles.astype(kind)).dtype == np.uint8
    for number in (*range(-3, 40), 200, 255, 256, 257, 258, 513, 2**40, -255):
        other = puzzles.astype(np.int64)
        other[0, 0] = number
        if number in INPUT_TOKENS[name]:
            assert input_tokens(task, other)[0, 0] == number
        else:
            with pytest.raises(PuzzleError, match=f"must be of {name}'s input tokens, got {number} at place 0 of"):
                input_tokens(task, other)


@given(st.sampled_from(NAMES), st.integers(-(2**62), 2**62), st.data())
def test_any_whole_number_is_taken_where_it_is_an_input_token_alone(name, number, data):
    task, puzzles = some_puzzles(name)
    place = data.draw(st.integers(0, task.tokens - 1))
    other = puzzles.astype(np.int64)
    other[0, place] = number
    is_output = name.startswith("colouring") and place >= task.output_start
    if number in ({0} if is_output else INPUT_TOKENS[name]):
        assert input_tokens(task, other)[0, place] == number
    else:
        with pytest.raises(PuzzleError, match=f"got {number} at place {place} of puzzle 0"):
            input_tokens(task, other)


@pytest.mark.parametrize("name", ["nqueens5", "sudoku9", "colouring8", "maze6"])
@pytest.mark.parametrize("shift", [-1, 1.5, 256, 257, 200, 1000, -257, 0.25])
def test_shifted_tokens_are_refused(name, shift):
    task, puzzles = some_puzzles(name)
    with pytest.raises(PuzzleError, match="tokens") as error:
        input_tokens(task, puzzles.astype(np.float64 if shift % 1 else np.int64) + shift)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "puzzles",
    [
        np.array([TASK.format(PUZZLES[0])]),
        np.array([TASK.format(PUZZLES[0])], dtype=object),
        np.array([TASK.format(PUZZLES[0]).encode()]),
        [],
        (),
        [[1, 2], [1]],
        [[1] * 16, [1] * 15],
        [[]],
        None,
        [None],
        [TASK.format(PUZZLES[0]), None],
        [TASK.format(PUZZLES[0]), 3],
        TASK.format(PUZZLES[0]).encode(),
        "",
        3,
        3.5,
        {},
        {"question": "...."},
        {1, 2},
        iter([TASK.format(PUZZLES[0])]),
        PUZZLES == 2,
        PUZZLES.astype(complex),
        PUZZLES.astype(object),
        PUZZLES[0],
        PUZZLES[None],
        PUZZLES[:, :9],
        np.where(PUZZLES == 2, np.nan, PUZZLES),
        np.where(PUZZLES == 2, np.inf, PUZZLES),
        PUZZLES.astype("datetime64[s]"),
        torch.zeros(1, 16, device="meta"),
        PuzzleSet(puzzles=PUZZLES[:, :9]),
        PuzzleSet(puzzles=PUZZLES - 1),
        ["Q..."],
    ],
    ids=lambda value: f"{type(value).__name__}-{str(value)[:12]}",
)
def test_whatever_is_no_puzzle_is_one_line_before_anything_runs(puzzles):
    with pytest.raises(PuzzleError) as error:
        SAMPLER.sample(puzzles, width=2, launch=8, observer=Progress(lambda count: pytest.fail("sampled")))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 250


def test_one_text_is_one_puzzle():
    text = TASK.format(PUZZLES[0])
    one, listed = SAMPLER.sample(text, width=2, launch=8), SAMPLER.sample([text], width=2, launch=8)
    assert len(one) == 1
    assert one.trajectories_sha256 == listed.trajectories_sha256
    with pytest.raises(PuzzleError):
        SAMPLER.sample("Q...", width=2, launch=8)


@pytest.mark.parametrize("name", ["width", "depth", "seed", "slots", "launch", "transitions"])
def test_settings_of_any_number_type_sample_alike(name, tmp_path):
    value = {"launch": 8}.get(name, 2)
    plain = SAMPLER.sample(PUZZLES[:2], **{"width": 3, "launch": 8, "temperature": 1.0, name: value})
    numbers = {"width": np.int64(3), "launch": np.uint16(8), "temperature": np.float32(1), name: np.int32(value)}
    result = SAMPLER.sample(PUZZLES[:2], out=tmp_path, **numbers)
    assert result.trajectories_sha256 == plain.trajectories_sha256
    json.loads((tmp_path / "plan.json").read_text())
    for wrong in (float(value), str(value), True):
        with pytest.raises(ValueError, match=f"{name} must be a whole number.*, got"):
            SAMPLER.sample(PUZZLES[:2], **{name: wrong})


def test_lists_and_tensors_of_tokens_sample_as_arrays_do():
    wanted = SAMPLER.sample(PUZZLES[:2], width=2, launch=8).trajectories_sha256
    for puzzles in (
        PUZZLES[:2].tolist(),
        torch.from_numpy(PUZZLES[:2]),
        PuzzleSet(puzzles=PUZZLES[:2]),
        PUZZLES[:2] * 1.0,
    ):
        assert SAMPLER.sample(puzzles, width=2, launch=8).trajectories_sha256 == wanted


class Own(os.PathLike):
    """A path of somebody's own type."""

    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return str(self.path)


@pytest.mark.parametrize("kind", [str, Own, lambda path: path])
def test_paths_are_texts_or_paths_everywhere(tmp_path, kind):
    run, folder, module = tmp_path / "run", tmp_path / "model", tmp_path / "mine.py"
    SAMPLER.sample(PUZZLES[:2], width=2, launch=8, out=kind(run), is_traced=True)
    with Store.read_only(kind(run)) as store:
        assert store.done()
    Traces.open(kind(run))
    checkpoint.save(SAMPLER.model, kind(folder), card={"steps": 1})
    assert checkpoint.read_card(kind(folder)) == {"steps": 1}
    module.write_text("from gram.tasks.nqueens import NQueens\n\ntask = NQueens(4)\n")
    sampler = load(kind(folder), task_module=kind(module), dtype="float32")
    assert sampler.model.digest() == SAMPLER.model.digest()
    (tmp_path / "a.csv").write_text(f"question\n{TASK.format(PUZZLES[0])}\n")
    assert np.array_equal(sampler.task.load(kind(tmp_path / "a.csv")).puzzles, PUZZLES[:1])
    for name, suffix, text in (
        ("colouring4", "g.col", "p edge 4 1\ne 1 2\n"),
        ("maze4", "m.txt", "S..............G\n"),
        ("sudoku4", "s.txt", "." * 16 + "\n"),
        ("arc", "arc.json", '{"test": [{"input": [[1]]}]}'),
    ):
        (tmp_path / suffix).write_text(text)
        assert len(get_task(name).load(kind(tmp_path / suffix))) == 1
    (tmp_path / "mine.toml").write_text('task = "nqueens4"\n[training]\nsteps = 1\n')
    assert load_recipe(kind(tmp_path / "mine.toml")).name == "mine"
    with pytest.raises(FileNotFoundError):
        import_checkpoint("trm", kind(tmp_path / "none"), settings=kind(tmp_path / "none"))


def test_train_takes_texts(tmp_path):
    (tmp_path / "mine.toml").write_text(
        'task = "nqueens4"\n[model]\ndim = 16\nhidden = 16\nmixer_hidden = 8\nguidance_hidden = 8\ndepth = 2\n'
        "[training]\nsteps = 1\nbatch = 4\nrollout_slots = 2\nevaluate_puzzles = 2\nevaluate_width = 2\n"
    )
    recipe = load_recipe(str(tmp_path / "mine.toml"))
    solved = TASK.split("train")
    lines = [f"{TASK.format(p)},{TASK.format(p, a)}" for p, a in zip(solved.puzzles, solved.answers, strict=True)]
    (tmp_path / "a.csv").write_text("\n".join(["question,answer", *lines]) + "\n")
    train(recipe, str(tmp_path / "run"), is_compiled=False, puzzles=str(tmp_path / "a.csv"))
    train(recipe, str(tmp_path / "next"), is_compiled=False, start=str(tmp_path / "run"))
    assert load(str(tmp_path / "next")).task is TASK
