"""Folders of ARC tasks under many views: names of views, what is built, what is read, and faults."""

from __future__ import annotations

import json
import shutil
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gram.tasks.arc import Arc
from gram.tasks.arc_files import read_tasks
from gram.tasks.arc_folder import NAMES_FILE, TESTS_FILE, open_arc_folder
from gram.tasks.arc_grids import View, decode, encode, parse_name
from gram.tasks.protocol import PuzzleError
from gram.training import arc_builder
from gram.training.arc_builder import build
from tests.arc_tasks import arc_folder, arc_json, tasks

NAMES = st.text(string.ascii_letters + string.digits + " .-", min_size=1, max_size=12)
VIEWS = st.builds(lambda turned, rest: View(turned, (0, *rest)), st.integers(0, 7), st.permutations(range(1, 10)))


@given(NAMES, VIEWS)
def test_a_name_carries_its_view(task: str, view: View) -> None:
    assert parse_name(view.name(task)) == (task, view)
    assert parse_name(f"{task}_t{view.symmetry}_{''.join(map(str, view.colours))}") == (task, view)
    assert View().name(task) == task


def test_names_of_the_published_builders() -> None:
    assert parse_name("007bbfb7|||t3|||0213456789") == ("007bbfb7", View(3, (0, 2, 1, 3, 4, 5, 6, 7, 8, 9)))
    assert parse_name("Above_Below1_t7_0198765432")[0] == "Above_Below1"
    assert parse_name("a_t1") == ("a_t1", View())


@pytest.mark.parametrize(
    "name",
    [
        "a|||", "a|||t3", "a|||t8|||0123456789", "a|||t3|||1023456789", "a|||t3|||0113456789", "|||t3|||0123456789",
        "a|||t3|||012345678", "a|||t3|||0123456789|||", "a_t8_0123456789", "a_t1_0013456789",
    ],
)  # fmt: skip
def test_a_name_that_does_not_parse_is_one_line(name: str) -> None:
    with pytest.raises(PuzzleError, match="name of a view must be TASK") as error:
        parse_name(name)
    assert "\n" not in str(error.value)


def test_what_is_built_is_every_example_under_every_view(tmp_path: Path) -> None:
    data = arc_folder(tmp_path)
    source = {task.name: task for task in read_tasks(tmp_path / "tasks.json")}
    folder = open_arc_folder(data)
    assert folder.names[0] == "<blank>"
    assert len(set(folder.names)) == len(folder.names) == 1 + 3 * 5
    assert list(folder.tests) == list(source)
    for name in ("train", "test"):
        split = folder.split(name)
        assert len(split.groups) == 4
        for puzzle, identity in enumerate(split.identities.tolist()):
            task, view = folder.view(identity)
            pairs = source[task].train if name == "train" else source[task].test
            rows = range(split.examples[puzzle], split.examples[puzzle + 1])
            assert len(rows) == len(pairs)
            at_corner = 0
            for row, pair in zip(rows, pairs, strict=True):
                corners = []
                for shown, grid in ((split.inputs[row], pair.input), (split.labels[row], pair.output)):
                    assert grid is not None
                    where = np.argwhere(shown.reshape(30, 30) > 1)
                    (top, left), (bottom, right) = where.min(0), where.max(0)
                    turned = view.apply(grid)
                    assert np.array_equal(shown.reshape(30, 30)[top : bottom + 1, left : right + 1], turned + 2)
                    assert np.array_equal(shown, encode(turned, row=top, column=left))
                    corners.append((top, left))
                assert corners[0] == corners[1]
                at_corner += corners[0] == (0, 0)
            assert at_corner >= (len(rows) if name == "test" else 1)


def test_views_differ_and_follow_seed_and_task_alone(tmp_path: Path) -> None:
    file = arc_json(tmp_path / "a.json", tasks(3))
    for name, sources, seed in (("x", [file], 1), ("y", [file], 1), ("z", [file], 2)):
        build(sources, tmp_path / name, views=5, seed=seed)
    alone = arc_json(tmp_path / "b.json", {"task1": tasks(3)["task1"]})
    build([alone], tmp_path / "alone", views=5, seed=1)
    files = sorted(path.relative_to(tmp_path / "x") for path in (tmp_path / "x").rglob("*") if path.is_file())
    assert [(tmp_path / "x" / path).read_bytes() for path in files] == [
        (tmp_path / "y" / path).read_bytes() for path in files
    ]
    names = {name: open_arc_folder(tmp_path / name).names for name in ("x", "z", "alone")}
    assert names["x"] != names["z"]
    assert set(names["alone"]) <= set(names["x"])
    whole, one = open_arc_folder(tmp_path / "x").split("train"), open_arc_folder(tmp_path / "alone").split("train")
    assert np.array_equal(whole.inputs[12:24], one.inputs)
    # One black cell looks the same under every view.
    flat = {"flat": {"train": [{"input": [[0]], "output": [[0]]}], "test": [{"input": [[0]], "output": [[0]]}]}}
    report = build([arc_json(tmp_path / "flat.json", flat)], tmp_path / "flat", views=5)
    assert (report.identities, report.tasks_with_fewer_views) == (2, 1)


def test_tests_of_other_files_train(tmp_path: Path) -> None:
    first, second = tasks(4), tasks(2, seed=1)
    files = [
        arc_json(tmp_path / "a.json", first),
        arc_json(tmp_path / "b.json", {f"b{k}": v for k, v in second.items()}),
    ]
    report = build(files[:1], tmp_path / "data", tests=files[1], views=1)
    assert report.examples == {"train": 2 * (4 * 2 + 6 + 2 * 2), "test": 2 * 3}
    folder = open_arc_folder(tmp_path / "data")
    assert list(folder.tests) == ["btask0", "btask1"]
    assert {folder.view(identity)[0] for identity in folder.split("test").identities} == {"btask0", "btask1"}


def test_a_test_without_output_says_so(tmp_path: Path) -> None:
    data = arc_folder(
        tmp_path, count=1, secret={"train": [], "test": [{"input": [[1, 2]]}, {"input": [[3]], "output": [[4]]}]}
    )
    folder = open_arc_folder(data)
    assert [test.output is None for test in folder.tests["secret"]] == [True, False]
    assert json.loads((data / TESTS_FILE).read_text())["secret"]["test"][0]["output"] == [[0]]
    split = folder.split("test")
    is_secret = np.array([folder.view(identity)[0] == "secret" for identity in split.identities])
    rows = split.examples[:-1][is_secret]
    assert not split.labels[rows].any()
    assert split.labels[rows + 1].any()
    assert len(folder.split("train").groups) == 2


def test_a_build_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = arc_json(tmp_path / "a.json", tasks(5))
    build([file], tmp_path / "whole", views=3)
    monkeypatch.setattr(arc_builder, "KEPT_EVERY", 2)
    fill, filled = arc_builder._fill, list[str]()

    def until_killed(each: Any, *rest: Any) -> None:
        filled.append(each.task.name)
        if len(filled) == 7:
            raise KeyboardInterrupt
        fill(each, *rest)

    monkeypatch.setattr(arc_builder, "_fill", until_killed)
    with pytest.raises(KeyboardInterrupt):
        build([file], tmp_path / "killed", views=3)
    assert not (tmp_path / "killed").exists()
    assert filled[-1] == "task3"
    filled.clear()
    monkeypatch.setattr(arc_builder, "_fill", lambda each, *rest: (filled.append(each.task.name), fill(each, *rest)))
    build([file], tmp_path / "killed", views=3)
    assert set(filled) == {"task2", "task3", "task4"}
    for path in (path for path in (tmp_path / "whole").rglob("*") if path.is_file()):
        assert path.read_bytes() == (tmp_path / "killed" / path.relative_to(tmp_path / "whole")).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "killed", "whole"]


def test_what_another_build_left_is_not_taken_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = arc_json(tmp_path / "a.json", tasks(3))
    monkeypatch.setattr(arc_builder, "KEPT_EVERY", 1)
    with monkeypatch.context() as patched:
        patched.delattr(arc_builder, "_write_rest")
        with pytest.raises(NameError):
            build([file], tmp_path / "data", views=3, seed=1)
    build([file], tmp_path / "data", views=2, seed=2)
    build([file], tmp_path / "other", views=2, seed=2)
    same = (tmp_path / folder / "train" / "all__inputs.npy" for folder in ("data", "other"))
    assert next(same).read_bytes() == next(same).read_bytes()


BIG = {"train": [{"input": [[1] * 31], "output": [[1]]}], "test": [{"input": [[1]]}]}
PAIR = {"input": [[1]], "output": [[1]]}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"a": BIG}, "task 'a' train 0 input must be at most 30x30, got 1x31"),
        ({"a|||t1|||0123456789": {"train": [PAIR], "test": [PAIR]}}, "must have a name that is no view's"),
        ({"a_t1_0213456789": {"train": [PAIR], "test": [PAIR]}}, "must have a name that is no view's"),
        ({"a": {"train": [], "test": []}}, "must have examples, got none"),
        ({"a": {"train": [{"input": [[1]]}], "test": [PAIR]}}, "must have an output of every demonstration"),
        ({"a": {"train": [PAIR], "test": []}}, "must hold at least one test to be solved"),
    ],
)
def test_bad_tasks_are_one_line_and_nothing_is_written(tmp_path: Path, values: dict[str, Any], words: str) -> None:
    file = arc_json(tmp_path / "a.json", values)
    with pytest.raises(PuzzleError) as error:
        build([file], tmp_path / "data", views=1)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == [file]


def test_bad_orders_are_one_line(tmp_path: Path) -> None:
    file = arc_json(tmp_path / "a.json", tasks(1))
    for words, arguments in (
        ("must be there once in all files", {"sources": [file, file]}),
        ("files of ARC tasks must be named", {"sources": []}),
        ("views must be within 0 and", {"sources": [file], "views": -1}),
        ("seed must be", {"sources": [file], "seed": -1}),
    ):
        with pytest.raises(ValueError, match=words):
            build(out=tmp_path / "data", **arguments)  # type: ignore[arg-type]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(ValueError, match="--out must be a new or empty folder"):
        build([file], tmp_path / "full")


def test_hrms_folders_have_their_tests_in_the_plain_views(tmp_path: Path) -> None:
    data = arc_folder(tmp_path)
    with_tests = open_arc_folder(data)
    (data / TESTS_FILE).unlink()
    without = open_arc_folder(data)
    assert list(without.tests) == list(with_tests.tests)
    for name, tests in with_tests.tests.items():
        for ours, theirs in zip(tests, without.tests[name], strict=True):
            assert np.array_equal(ours.input, theirs.input)
            assert ours.output is not None
            assert theirs.output is not None
            assert np.array_equal(ours.output, theirs.output)


def damaged(data: Path, kind: str) -> None:
    test = data / "test"
    if kind == "names":
        (data / NAMES_FILE).write_text("{")
    elif kind == "no names":
        (data / NAMES_FILE).write_text("[]")
    elif kind == "few names":
        (data / NAMES_FILE).write_text('["<blank>", "task0"]')
    elif kind == "tests":
        (data / TESTS_FILE).write_text('{"a": {"test": [3]}}')
    elif kind == "metadata":
        (test / "dataset.json").write_text(json.dumps({"seq_len": 81, "vocab_size": 12}))
    elif kind == "array":
        (test / "all__inputs.npy").write_bytes(b"x" * 100)
    elif kind == "labels":
        np.save(test / "all__labels.npy", np.zeros((2, 900), np.uint8))
    elif kind == "indices":
        np.save(test / "all__puzzle_indices.npy", np.array([0, 5, 3]))
    elif kind == "pickle":
        np.save(test / "all__group_indices.npy", np.array([{}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("names", "not JSON"),
        ("no names", "must be a JSON list of names"),
        ("few names", "must be below the 2 names"),
        ("tests", "test 0 must be an object with 'input'"),
        ("metadata", "seq_len must be 900, got 81"),
        ("array", "must be an array of numpy"),
        ("labels", "must be [20, 900], got [2, 900]"),
        ("indices", "must be rising numbers from 0 to"),
        ("pickle", "must be an array of numpy"),
    ],
)
def test_damaged_folders_are_one_line(tmp_path: Path, kind: str, words: str) -> None:
    data = arc_folder(tmp_path)
    damaged(data, kind)
    with pytest.raises(PuzzleError) as error:
        open_arc_folder(data).split("test")
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    shutil.rmtree(data)
    with pytest.raises(PuzzleError, match=r"data must be a folder with identifiers\.json"):
        open_arc_folder(data)


def test_a_folder_of_views_is_no_file_of_puzzles(tmp_path: Path) -> None:
    data = arc_folder(tmp_path)
    with pytest.raises(PuzzleError, match="got the data set of views"):
        Arc().load(data)
    assert decode(open_arc_folder(data).split("test").inputs[0]).size
