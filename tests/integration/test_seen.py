"""What is held out from the training of a checkpoint, rows of a set, look-up baselines: in Python and as commands."""

import json
from pathlib import Path

import numpy as np
import pytest

from gram import checkpoint
from gram.cli.main import main
from gram.evals.puzzle_choice import PuzzleChoice, is_unseen, trained_split
from gram.model import Model
from gram.tasks.protocol import Lookup, PuzzleSet, training_split
from gram.tasks.registry import get_task
from tests.models import tiny_config

TRAINED = {"recipe": {"training": {"split": "train"}}}


@pytest.mark.parametrize(
    ("name", "training"),
    [("test", "train"), ("validation", "train"), ("test-fold2", "train-fold2"), ("labelled-test", "labelled-train")],
)
def test_every_held_out_split_has_its_training(name, training):
    assert training_split(name) == training


@pytest.mark.parametrize("name", ["train", "train-fold1", "input-train", ""])
def test_what_is_not_held_out_has_none(name):
    with pytest.raises(ValueError, match="must be one that is held out"):
        training_split(name)


@pytest.mark.parametrize(
    ("card", "split", "wanted"),
    [
        (TRAINED, "test", True),
        (TRAINED, "validation", True),
        (TRAINED, "train", False),
        (TRAINED, "test-fold1", False),
        (TRAINED | {"split": "input-train"}, "test", False),
        (TRAINED | {"split": "input-train"}, "input-test", True),
        (TRAINED | {"split": "train-fold1"}, "test-fold1", True),
        (TRAINED | {"split": "train", "also_trained_on": ["validation"]}, "validation", False),
        (TRAINED | {"split": "train", "also_trained_on": ["validation"]}, "test", True),
        ({}, "test", None),
        ({"recipe": "trm"}, "test", None),
    ],
)
def test_a_split_is_unseen_where_the_card_says_so(card, split, wanted):
    assert is_unseen(card, split) is wanted
    assert PuzzleChoice(puzzles=Path("mine.csv")).facts(card)["is_unseen"] is None


@pytest.mark.parametrize("name", checkpoint.shipped_names())
def test_shipped_cards_name_a_split_of_their_task(name):
    card, task = (
        checkpoint.read_card(checkpoint.find(name)),
        get_task(checkpoint.read_config(checkpoint.find(name)).task),
    )
    assert trained_split(card) in task.splits
    if card.get("split_note"):
        assert trained_split(card) in ("input-train", "labelled-train")
        assert all("--split" in command for command in card["figures"]["commands"])


@pytest.fixture
def tiny(tmp_path):
    """An untrained checkpoint of nqueens5 whose card names the older split."""
    config = tiny_config(task="nqueens5", vocabulary=3, tokens=25, output_tokens=25)
    checkpoint.save(Model(config), tmp_path / "tiny", card={"split": "input-train"})
    return str(tmp_path / "tiny")


def evaluated(capsys, checkpoint, *options):
    asked = ("eval", "nqueens5", "--checkpoint", checkpoint, "--width", "2", "--depth", "2", "--json", "--quiet")
    assert main((*asked, *options)) == 0
    told = capsys.readouterr()
    return json.loads(told.out), told.err


@pytest.mark.parametrize(("split", "is_warned"), [("test", True), ("validation", True), ("input-test", False)])
def test_an_old_split_is_told_in_one_line_and_in_the_json(tiny, capsys, split, is_warned):
    told, line = evaluated(capsys, tiny, "--split", split, "--limit", "3")
    assert (told["trained_split"], told["is_unseen"]) == ("input-train", not is_warned)
    assert ("input-train" in line and "not unseen" in line) == is_warned
    assert line.count("\n") == is_warned


def test_rows_of_a_file_are_taken_in_its_own_order(tiny, tmp_path, capsys):
    task = get_task("nqueens5")
    puzzles = task.split("train", limit=20).puzzles
    file = tmp_path / "mine.csv"
    file.write_text("question\n" + "".join(task.format(puzzle) + "\n" for puzzle in puzzles))
    part = PuzzleChoice(puzzles=file, rows="11-20").of(task)
    assert np.array_equal(part.puzzles, puzzles[10:])
    assert np.array_equal(PuzzleChoice(split="train", rows="3-5").of(task).puzzles, puzzles[2:5])
    few = PuzzleChoice(puzzles=file, limit=4, rows="11-20").of(task).puzzles
    assert {bytes(puzzle) for puzzle in few} <= {bytes(puzzle) for puzzle in puzzles[10:]}
    told, _ = evaluated(capsys, tiny, "--puzzles", str(file), "--rows", "11-20")
    assert (told["puzzles"], told["rows"], told["is_unseen"]) == (10, "11-20", None)
    halves = [
        {bytes(puzzle) for puzzle in PuzzleChoice(puzzles=file, rows=rows).of(task).puzzles}
        for rows in ("1-10", "11-20")
    ]
    assert not halves[0] & halves[1]


@pytest.mark.parametrize("rows", ["0-3", "4-3", "1-21", "5", "-", "1-", "a-b", "1-2-3", " 1-2", "1-99999999999"])
def test_rows_out_of_range_are_one_line(rows):
    with pytest.raises(ValueError, match="rows must be A-B within 1 and 20, got") as error:
        PuzzleSet(puzzles=np.zeros((20, 4), np.uint8)).part(rows)
    assert "\n" not in str(error.value)


def test_rows_reach_every_command_that_samples_a_set(tiny, tmp_path, capsys):
    common = ("--checkpoint", tiny, "--split", "input-test", "--rows", "2-4", "--json", "--quiet")
    assert main(("sample", "nqueens5", *common, "--width", "2", "--out", str(tmp_path / "a"))) == 0
    assert json.loads(capsys.readouterr().out)["puzzles"] == 3
    study = tmp_path / "study.toml"
    study.write_text(f'task = "nqueens5"\nsplit = "input-test"\n[base]\nwidth = 2\ndepth = 2\ncheckpoint = "{tiny}"\n')
    assert main(("ablate", str(study), "--out", str(tmp_path / "b"), "--rows", "2-4", "--json", "--quiet")) == 0
    about = json.loads(capsys.readouterr().out)["about"]
    assert (about["puzzles"], about["rows"]) == (3, "2-4")
    file = tmp_path / "mine.csv"
    task = get_task("nqueens5")
    file.write_text(
        "question\n" + "".join(task.format(puzzle) + "\n" for puzzle in task.split("train", limit=6).puzzles)
    )
    where = ("--puzzles", str(file), "--rows", "3-6", "--out", str(tmp_path / "c"))
    assert main(("ablate", str(study), *where, "--json", "--quiet")) == 0
    about = json.loads(capsys.readouterr().out)["about"]
    assert (about["puzzles"], about["puzzle_file"], about["split"]) == (4, str(file), None)
    assert main(("eval", "nqueens5", "--checkpoint", tiny, "--rows", "2-400")) == 2
    assert "rows must be A-B within 1 and" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "split", "least", "most"),
    [
        ("nqueens8", "input-test", 1, 1),
        ("nqueens8", "test", 0, 0),
        ("nqueens8", "test-fold3", 0, 0),
        ("nqueens8", "validation", 0, 0),
        ("colouring5", "labelled-test", 0.9, 1),
        ("colouring5", "test", 0, 0),
        ("colouring6", "validation", 0, 0),
    ],
)
def test_a_table_of_training_knows_the_older_test_sets_alone(name, split, least, most):
    found = get_task(name).lookup(split)
    assert isinstance(found, Lookup)
    assert least <= found.accuracy <= most
    assert least <= found.twins <= most
    assert found.training > 0
    with pytest.raises(ValueError, match="split must be one"):
        get_task(name).lookup("holdout-test")


def test_the_table_of_queens_is_all_boards_that_training_shows():
    """Against sets of whole boards and turned inputs."""
    task = get_task("nqueens6")
    for split in ("test", "input-test"):
        trained, asked = task.split(training_split(split)).puzzles, task.split(split).puzzles
        boards = {bytes(board) for puzzle in trained for board in task.solutions(puzzle)}
        known = [any(bytes(board) in boards for board in task.solutions(puzzle)) for puzzle in asked]
        turned = {np.rot90(side, k).tobytes() for p in trained.reshape(-1, 6, 6) for side in (p, p.T) for k in range(4)}
        found = task.lookup(split)
        assert found.accuracy == pytest.approx(np.mean(known))
        assert found.twins == pytest.approx(np.mean([bytes(puzzle) in turned for puzzle in asked]))
        assert found.training == len(trained)
