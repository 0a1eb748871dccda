"""`gram data`: files of published puzzles without twins between them, what is left out, what is refused."""

import csv
import gzip
import json
import os
import signal
import sys
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gram
from gram.cli import data as command
from gram.cli import terminal
from gram.cli.errors import Interrupted
from gram.cli.main import main
from gram.tasks import puzzle_streams
from gram.tasks.registry import get_task
from gram.training import published
from gram.training.puzzles import TrainingPuzzles
from gram.training.recipe import load_recipe
from tests.hub_server import empty_hub, resolved

__all__ = ["empty_hub"]

SETS = ("sudoku-extreme", "maze-hard")
TASKS = {name: get_task(task) for name, (task, _) in published.PUBLISHED.items()}
PAIRS = {name: TASKS[name].split("train", limit=30) for name in SETS}


def texts(name, rows, rng=None):
    """Question and answer of some pairs, with `rng` of a twin of each; mazes as the published ones, with spaces."""
    puzzles, answers = PAIRS[name].puzzles[rows], PAIRS[name].answers[rows]
    task = TASKS[name]
    if rng is not None:
        puzzles, answers = task.augment(rng, puzzles, answers)
    found = [
        (task.format(puzzle), task.format(puzzle, answer)) for puzzle, answer in zip(puzzles, answers, strict=True)
    ]
    return found if name == "sudoku-extreme" else [(q.replace(".", " "), a.replace(".", " ")) for q, a in found]


def table(path, pairs):
    """A table like the published ones."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["source", "question", "answer", "rating"])
        writer.writerows(["here", *pair, number] for number, pair in enumerate(pairs))
    return str(path)


def rows_of(path):
    with gzip.open(path, "rt", newline="") as file:
        return list(csv.DictReader(file))


def made(name, folder, **options):
    return published.data(name, folder, **options)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("suffix", ["csv", "csv.gz"])
def test_every_row_is_in_one_file_as_it_was(tmp_path, name, suffix):
    pairs = texts(name, slice(0, 20))
    source = table(tmp_path / f"train.{suffix}", pairs)
    report = made(name, tmp_path / "out", source=source, validation=5)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "data.json", "train.csv.gz", "validation.csv.gz",
    ]  # fmt: skip
    train, held_out = (rows_of(tmp_path / "out" / f"{split}.csv.gz") for split in ("train", "validation"))
    assert (len(train), len(held_out)) == (15, 5)
    assert [report.splits[split].rows for split in ("train", "validation")] == [15, 5]
    numbers = [[int(row["rating"]) for row in rows] for rows in (train, held_out)]
    assert numbers == [sorted(found) for found in numbers], "in the order of the source"
    assert sorted(numbers[0] + numbers[1]) == list(range(20))
    for row in train + held_out:
        assert (row["source"], row["question"], row["answer"]) == ("here", *pairs[int(row["rating"])])


@pytest.mark.parametrize("name", SETS)
def test_planted_twins_are_left_out_and_nothing_else_is(tmp_path, name, capsys):
    source = table(tmp_path / "train.csv", texts(name, slice(0, 12)))
    rng = np.random.default_rng(1)
    (tmp_path / "some.txt").write_text(texts(name, slice(3, 4), rng)[0][0] + "\n")
    others = table(tmp_path / "others.csv.gz", texts(name, [7, 20, 21], rng))
    line = ["data", name, "--out", str(tmp_path / "out"), "--source", source, "--validation", "3"]
    assert main([*line, "--exclude", str(tmp_path / "some.txt"), "--exclude", others]) == 0
    told = capsys.readouterr().out
    assert "left out: 2 twins of excluded puzzles" in told
    assert "twins of excluded puzzles: 0\n" in told
    written = [row for split in ("train", "validation") for row in rows_of(tmp_path / "out" / f"{split}.csv.gz")]
    assert sorted(int(row["rating"]) for row in written) == [0, 1, 2, 4, 5, 6, 8, 9, 10, 11]
    saved = json.loads((tmp_path / "out" / "data.json").read_text())
    assert [file["rows"] for file in saved["excluded"]] == [1, 3]
    assert (saved["excluded_rows"], saved["excluded_twins_written"]) == (2, 0)


@settings(max_examples=12)
@given(st.sampled_from(SETS), st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_no_class_is_in_two_splits(tmp_path_factory, name, seed, wanted):
    """Every puzzle stands twice more as a twin; the files are judged by the task's own classes."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(seed)
    pairs = [pair for turn in (None, rng, rng) for pair in texts(name, slice(0, 8), turn)]
    rng.shuffle(pairs)
    report = made(name, folder / "out", source=table(folder / "a.csv", pairs), validation=wanted, seed=seed)
    sets = [TASKS[name].load(folder / "out" / f"{split}.csv.gz").puzzles for split in ("train", "validation")]
    classes = TASKS[name].classes(np.concatenate(sets))
    train, held_out = set(classes[: len(sets[0])].tolist()), set(classes[len(sets[0]) :].tolist())
    assert not train & held_out
    assert (len(train), len(held_out)) == tuple(report.splits[split].classes for split in ("train", "validation"))
    assert len(sets[1]) == -(-wanted // 3) * 3, "whole classes"
    assert report.classes_in_two_splits == 0


def test_the_seed_decides_and_nothing_else(tmp_path, monkeypatch):
    source = table(tmp_path / "a.csv", texts("sudoku-extreme", slice(0, 30)))

    def held_out(folder, **options):
        made("sudoku-extreme", tmp_path / folder, source=source, **options)
        return (tmp_path / folder / "validation.csv.gz").read_bytes()

    first = held_out("a", validation=6)
    assert held_out("b", validation=0.2) == first
    monkeypatch.setattr(puzzle_streams, "BLOCK", 7)
    monkeypatch.setattr(published, "BLOCK", 7)
    assert held_out("c", validation=6) == first
    assert held_out("d", validation=6, seed=1) != first
    assert len(rows_of(tmp_path / "d" / "validation.csv.gz")) == 6
    held_out("e")
    assert len(rows_of(tmp_path / "e" / "validation.csv.gz")) == 3, "a tenth at most"


def test_twins_of_test_puzzles_do_not_train(tmp_path, capsys):
    name, rng = "sudoku-extreme", np.random.default_rng(2)
    source = table(tmp_path / "train.csv", texts(name, slice(0, 20)))
    test = table(tmp_path / "test.csv", texts(name, [4, 5, 25, 26], rng))
    excluded = table(tmp_path / "mine.csv", texts(name, [5, 26], rng))
    line = ["data", name, "--out", str(tmp_path / "out"), "--source", source, "--test", test, "--json"]
    assert main([*line, "--exclude", excluded, "--quiet"]) == 0
    found = capsys.readouterr()
    assert found.err == ""
    report = json.loads(found.out)
    assert report == json.loads((tmp_path / "out" / "data.json").read_text())
    assert [int(row["rating"]) for row in rows_of(tmp_path / "out" / "test.csv.gz")] == [0, 2]
    numbers = (report[key] for key in ("excluded_rows", "excluded_test_rows", "test_twins", "classes_in_two_splits"))
    assert tuple(numbers) == (1, 2, 1, 0)
    assert {split: file["rows"] for split, file in report["splits"].items()} == {
        "train": 17, "validation": 1, "test": 2,
    }  # fmt: skip


def test_a_limit_takes_the_first_rows(tmp_path):
    source = table(tmp_path / "a.csv", texts("sudoku-extreme", slice(0, 30)))
    report = made("sudoku-extreme", tmp_path / "out", source=source, limit=10)
    written = [row for split in ("train", "validation") for row in rows_of(tmp_path / "out" / f"{split}.csv.gz")]
    assert sorted(int(row["rating"]) for row in written) == list(range(10))
    assert report.source.rows == 10


def test_other_dresses_are_read_and_kept(tmp_path):
    """Other symbols of a blank, spaces inside, tabs between columns and another order of them."""
    pairs = texts("sudoku-extreme", slice(0, 10))
    lines = [
        f"{answer}\t{question.replace('.', mark)} "
        for mark, (question, answer) in zip("0_._.00_._", pairs, strict=True)
    ]
    (tmp_path / "a.tsv").write_text("# by hand\n\nAnswer\tQuestion\n" + "\n".join(lines) + "\n")
    made("sudoku-extreme", tmp_path / "out", source=str(tmp_path / "a.tsv"))
    task = TASKS["sudoku-extreme"]
    read = [task.load(tmp_path / "out" / f"{split}.csv.gz") for split in ("train", "validation")]
    found = {task.format(puzzle) for part in read for puzzle in part.puzzles}
    assert found == {question for question, _ in pairs}


@pytest.mark.parametrize("name", SETS)
def test_training_takes_the_files(tmp_path, name):
    made(name, tmp_path / "out", source=table(tmp_path / "a.csv", texts(name, slice(0, 12))))
    recipe = load_recipe({"sudoku-extreme": "paper-sudoku-extreme", "maze-hard": "paper-maze-hard"}[name])
    training = replace(recipe.training, evaluate_puzzles=1)
    puzzles = TrainingPuzzles(recipe.task, recipe.model, training, tmp_path / "out" / "train.csv.gz")
    drawn, targets = puzzles.draw(np.random.default_rng(0), 8)
    assert recipe.task.verify(drawn, targets).all()


QUESTION, ANSWER = texts("sudoku-extreme", slice(0, 1))[0]
GIVEN = QUESTION.replace(".", "")[0]
FINE = "\n".join(",".join(pair) for pair in texts("sudoku-extreme", slice(0, 5)))
TWICE = GIVEN * 2 + QUESTION[2:]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (f"question,guesses\n{QUESTION},3\n", "a.csv:2: row must have an answer, got the columns question, guesses"),
        (f"puzzle,answer\n{QUESTION},{ANSWER}\n", "a.csv:1: header must have a column 'question'"),
        (f"question,answer\n{FINE}\n{QUESTION},\n", "a.csv:7: row must have an answer, got none"),
        (f"question,answer\n{FINE}\n{QUESTION[1:]},{ANSWER}\n", "a.csv:7: sudoku9 puzzle must have 81 symbols, got 80"),
        (f"question,answer\n{FINE}\n{QUESTION},{ANSWER[1:]}\n", "a.csv:7: sudoku9 answer must have 81 symbols, got 80"),
        (f"question,answer\n{FINE}\n{QUESTION},{ANSWER[:-1]}x\n", "a.csv:7: sudoku9 answer must be of"),
        (f"question,answer\n{FINE}\n{TWICE},{ANSWER}\n", "a.csv:7: sudoku9 puzzle must not contradict itself"),
        (f"question,answer\n{FINE}\n{QUESTION},{ANSWER[::-1]}\n", "a.csv:7: answer must solve its question"),
        (f"question,answer\n{FINE}\n{QUESTION},{QUESTION}\n", "a.csv:7: answer must solve its question"),
        (f"question,answer\n{FINE}\na,b,c\n", "a.csv:7: row must have the 2 fields of its header, got 3"),
        (f"question,answer,rating\n{QUESTION},{ANSWER},hard\n", "a.csv:2: rating must be a number, got 'hard'"),
        ("question,answer\n", "a.csv: must hold at least one puzzle, got none"),
        ("", "a.csv:1: header must have a column 'question', got ''"),
        (b"\x1f\x8bno", "a.csv: not a gzip file"),
        (b"question,answer\n\xff\n", "a.csv: must be UTF-8 text"),
        (f"question,answer\n{QUESTION},{ANSWER}\n", "must hold more puzzles than the 1 of validation, got 1"),
    ],
)
@pytest.mark.parametrize("option", ["--source", "--test"])
def test_a_faulty_table_is_one_line_and_nothing_is_written(tmp_path, capsys, content, words, option):
    path = tmp_path / "a.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    line = ["data", "sudoku-extreme", "--out", str(tmp_path / "out"), option, str(path), "--quiet"]
    if option == "--test":
        line += ["--source", table(tmp_path / "b.csv", texts("sudoku-extreme", slice(10, 20)))]
        if "of validation" in words:
            return
    before = sorted(tmp_path.iterdir())
    assert main(line) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_faulty_maze_is_named(tmp_path, capsys):
    (question, answer), *others = texts("maze-hard", slice(0, 6))
    levels, _ = TASKS["maze-hard"]._levels(PAIRS["maze-hard"].puzzles[0])
    aside = next(place for place, symbol in enumerate(question) if symbol == " " and levels[place] < 0)
    marked = [text[:aside] + "o" + text[aside + 1 :] for text in (question, answer)]
    for wrong, words in [
        ((question.replace("S", "#"), answer), "a.csv:7: maze30 puzzle must have one S, got 0"),
        ((question, answer.replace("o", " ", 1)), "a.csv:7: answer must solve its question"),
        ((answer, answer), "a.csv:7: maze30 puzzle must be of"),
        (marked, "a.csv:7: maze30 puzzle must be of"),
        ((question, answer[1:]), "a.csv:7: maze30 answer must have 900 symbols, got 899"),
    ]:
        source = table(tmp_path / "a.csv", [*others, wrong])
        assert main(["data", "maze-hard", "--out", str(tmp_path / "out"), "--source", source, "--quiet"]) == 2
        assert words in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--validation", "0"], "validation must be a number of puzzles or a share below 1, got 0"),
        (["--validation", "1.5"], "got 1.5"),
        (["--validation", "nan"], "got nan"),
        (["--validation", "9"], "must hold more puzzles than the 9 of validation, got 9 to choose from"),
        (["--validation", "some"], "--validation must be a number"),
        (["--limit", "0"], "limit must be at least 1, got 0"),
        (["--seed", "-1"], "seed must be 0 to 2^64 - 1, got -1"),
        (["--exclude", "nowhere.csv"], "nowhere.csv: no such file"),
        (["--source", "nowhere.csv"], "nowhere.csv: no such file"),
        (["--source", "."], "must be a file that can be read twice"),
        (["--source", "hf://us/a.csv"], "must be hf://owner/dataset/path/file"),
    ],
)
def test_faulty_options_are_one_line(tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.chdir(tmp_path)
    source = table(tmp_path / "a.csv", texts("sudoku-extreme", slice(0, 9)))
    given = ["data", "sudoku-extreme", "--out", "out", "--quiet", "--source", source]
    assert main([*given, *options]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1
    assert os.listdir(tmp_path) == ["a.csv"]


def test_pipes_full_folders_and_other_sets_are_refused(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    source = table(tmp_path / "a.csv", texts("sudoku-extreme", slice(0, 9)))
    for name, out, origin, words in [
        ("sudoku-extreme", "out", str(tmp_path / "pipe"), "must be a file that can be read twice"),
        ("sudoku-extreme", "full", source, "out must be a new or empty folder"),
        ("sudoku-extreme", "a.csv", source, "out must be a new or empty folder"),
        ("sudoku", "out", source, "data must be one of sudoku-extreme, maze-hard, got 'sudoku'"),
    ]:
        assert main(["data", name, "--out", str(tmp_path / out), "--source", origin]) == 2
        assert words in capsys.readouterr().err
    assert os.listdir(tmp_path / "full") == ["mine"]


@pytest.mark.parametrize("phase", ["source rows read", "rows written", "train rows read"])
def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch, capsys, phase):
    source = table(tmp_path / "a.csv", texts("sudoku-extreme", slice(0, 9)))
    shown = []

    @contextmanager
    def interrupted(total, unit, *, is_quiet):
        def advance(count):
            if unit == phase:
                raise Interrupted(signal.SIGINT)

        shown.append((total, unit))
        yield advance

    monkeypatch.setattr(terminal, "progress", interrupted)
    assert main(["data", "sudoku-extreme", "--out", str(tmp_path / "out"), "--source", source]) == 130
    assert "nothing was left half-written" in capsys.readouterr().err
    assert (8 if phase == "train rows read" else 9, phase) in shown
    assert os.listdir(tmp_path) == ["a.csv"]


def test_files_that_change_meanwhile_are_noticed(tmp_path):
    """The last check is of what was written: between the two readings an excluded puzzle enters the source."""
    name, source = "sudoku-extreme", tmp_path / "a.csv"
    table(source, texts(name, slice(0, 9)))
    excluded = table(tmp_path / "b.csv", texts(name, slice(9, 10), np.random.default_rng(0)))

    @contextmanager
    def meddling(total, unit):
        if unit == "rows written":
            table(source, texts(name, slice(1, 10)))
        yield lambda count: None

    with pytest.raises(ValueError, match="1 twins of excluded puzzles and 0 classes"):
        made(name, tmp_path / "out", source=str(source), exclude=[excluded], show=meddling)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", SETS)
def test_the_hub_is_the_default_source(empty_hub, tmp_path, name):
    dataset = published.PUBLISHED[name][1].removeprefix("hf://")
    for file, rows in (("train.csv", slice(0, 20)), ("test.csv", slice(18, 24))):
        table(tmp_path / "here.csv", texts(name, rows))
        empty_hub.files[resolved(dataset, file)] = (tmp_path / "here.csv").read_bytes()
    report = gram.data(name, tmp_path / "out", validation=4)
    assert {split: file.rows for split, file in report.splits.items()} == {"train": 14, "validation": 4, "test": 6}
    assert report.test_twins == 2
    assert report.source.file == f"hf://{dataset}/train.csv"
    made(name, tmp_path / "train-alone", validation=4, test="none")
    assert not (tmp_path / "train-alone" / "test.csv.gz").exists()


def test_without_a_network_the_hub_is_one_line(empty_hub, tmp_path, capsys):
    empty_hub.shutdown()
    empty_hub.server_close()
    assert main(["data", "maze-hard", "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert "hf://sapientinc/maze-30x30-hard-1k/train.csv: the hub cannot be reached" in told
    assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_without_the_extra_the_command_names_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["data", "maze-hard", "--out", str(tmp_path / "out")]) == 2
    assert "pip install 'gram-sampler[hub]'" in capsys.readouterr().err


def test_the_help_names_every_set(capsys):
    assert (*published.PUBLISHED, "arc") == command.SETS
    assert main(["data", "--help"]) == 0
    told = capsys.readouterr().out
    for option in ("--out", "--source", "--test", "--exclude", "--validation", "--limit", "--seed", "--json"):
        assert f"  {option} " in told


def test_published_rows_hold_no_twins_of_the_hard_lists(tmp_path, gram_data):
    lists = ("forum11plus_a", "top1465", "forum1106")
    report = made(
        "sudoku-extreme", tmp_path / "out", source=str(gram_data / "sudoku_extreme_1k" / "public_800.csv.gz"),
        exclude=[str(gram_data / "sudoku_tdoku_hard" / f"public_{name}.csv.gz") for name in lists],
    )  # fmt: skip
    assert [file.classes for file in report.excluded] == [file.rows for file in report.excluded] == [22000, 1164, 300]
    assert (report.source.classes, report.excluded_rows, report.excluded_twins_written) == (800, 0, 0)


def test_published_mazes_are_no_twins_of_the_test(tmp_path, gram_data):
    mazes = gram_data / "maze_hard_30x30"
    report = made(
        "maze-hard", tmp_path / "out", source=str(mazes / "public_train1000.csv.gz"),
        exclude=[str(mazes / "public_dev500_from_test.csv.gz")],
    )  # fmt: skip
    assert {split: file.rows for split, file in report.splits.items()} == {"train": 900, "validation": 100}
    assert (report.source.classes, report.excluded_rows) == (1000, 0)
