"""A default selector is chosen by a fixed rule: significantly ahead of vote, or vote."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from gram import checkpoint
from gram.api import Sampler
from gram.evals.model_card import selection_words
from gram.evals.paired import paired_difference
from gram.sampler.selectors import RECORDED, Scores
from gram.tasks.protocol import PuzzleSet
from gram.tasks.registry import get_task
from scripts import choose_selector
from scripts.choose_selector import ORDER, chosen, compare_selectors
from tests.models import tiny_model


def row(selector, accuracy, low, p=0.01):
    return {"selector": selector, "accuracy": accuracy, "less_low": low, "p_holm": p}


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ([], "vote"),
        ([row("lprm", 0.52, 0.01)], "lprm"),
        ([row("lprm", 0.52, -0.01)], "vote"),
        ([row("lprm", 0.52, 0.01, p=0.2)], "vote"),
        ([row("lprm", 0.52, 0.01), row("halt", 0.53, 0.01), row("first", 0.9, -0.2)], "halt"),
        ([row("lprm", 0.52, 0.01), row("halt", 0.52, 0.01)], "lprm"),
        ([row("margin", 0.52, 0.01), row("halt", 0.52, 0.01), row("lprm", 0.52, 0.01)], "lprm"),
        ([row("margin", 0.52, 0.01), row("halt", 0.52, 0.01)], "halt"),
    ],
)
def test_the_rule(others, expected):
    assert chosen([row("vote", 0.5, -0.02, p=1.0), *others]) == expected


def test_every_selector_is_held_against_vote_on_the_same_trajectories():
    task = get_task("nqueens4")
    sampler = Sampler(tiny_model(), task, name="tiny")
    all_puzzles = task.split("test", limit=6)
    puzzles = PuzzleSet(puzzles=all_puzzles.puzzles, groups=np.arange(len(all_puzzles)))
    result = sampler.sample(puzzles, width=6, launch=8)
    rows = compare_selectors(task, puzzles, result, RECORDED)
    assert [each["selector"] for each in rows] == list(ORDER)
    for each in rows:
        picked = sampler.sample(puzzles, width=6, launch=8, selector=each["selector"])
        right = task.verify(puzzles.puzzles, picked.answers).astype(float)
        assert each["accuracy"] == right.mean()
        assert each["less_vote"] == pytest.approx(right.mean() - rows[0]["accuracy"])
        assert each["low"] <= each["accuracy"] <= each["high"]
    assert (rows[0]["less_vote"], rows[0]["p_holm"]) == (0, 1)


def picking(**wanted):
    """A made-up result of 40 puzzles and 3 candidates of which each selector picks `wanted`: trajectories `[40]`."""
    count = 40

    def peak(name):
        return (np.arange(3) == np.broadcast_to(wanted[name], count)[:, None]).astype(np.float32)

    halted = peak("first_halt")
    votes, steps = 1 + peak("vote").astype(np.int64), np.ones((count, 3), np.int64)
    heads = {name: peak(name) for name in ("halt", "lprm", "margin")}
    scores = Scores(votes=votes, residual=-peak("residual"), steps=steps, is_halted=halted > 0, **heads)
    candidates = np.tile(np.arange(3, dtype=np.uint8)[:, None], (count, 1, 1))
    return SimpleNamespace(candidates=candidates, votes=votes, scores=lambda _: scores)


def test_selectors_that_pick_alike_are_one_comparison():
    """Of seven selectors two pick as vote does and three as LPRM does: two comparisons are left."""
    most = np.where(np.arange(40) < 30, 1, 0)
    task = SimpleNamespace(verify=lambda puzzles, answers: answers[:, 0] == 1)
    puzzles = PuzzleSet(puzzles=np.zeros((40, 1), np.uint8))
    result = picking(vote=0, lprm=most, halt=most, margin=most, first_halt=np.roll(most, 9), residual=0)
    rows = {each["selector"]: each for each in compare_selectors(task, puzzles, result, RECORDED)}
    assert list(rows) == list(ORDER)
    assert {name: each["alike"] for name, each in rows.items()} == {
        "vote": ["residual", "first"],
        "lprm": ["halt", "margin"],
        "halt": ["lprm", "margin"],
        "residual": ["vote", "first"],
        "margin": ["lprm", "halt"],
        "first": ["vote", "residual"],
        "first-halt": [],
    }
    alone = paired_difference((most == 1).astype(float), np.zeros(40)).p_value
    assert {rows[name]["p_holm"] for name in ("lprm", "halt", "margin", "first-halt")} == {2 * alone}
    assert {rows[name]["p_holm"] for name in rows["vote"]["alike"]} == {1.0}
    assert chosen(list(rows.values())) == "lprm"


def test_rows_of_a_file_decide(tmp_path, monkeypatch, capsys):
    checkpoint.save(tiny_model(), tmp_path / "tiny", card={"task": "nqueens4"})
    task, file = get_task("nqueens4"), tmp_path / "some.txt"
    file.write_text("\n".join(task.format(puzzle) for puzzle in task.split("train", limit=6).puzzles))

    def run(*options):
        common = ["--width", "3", "--depth", "2"]
        monkeypatch.setattr("sys.argv", ["choose_selector.py", str(tmp_path / "tiny"), *options, *common])
        choose_selector.main()
        return json.loads((tmp_path / "tiny" / "card.json").read_text())["selection"]

    found = run("--puzzles", str(file), "--rows", "2-5")
    assert (found["puzzles"], found["split"]) == (4, "rows 2-5 of some.txt")
    assert run("--puzzles", str(file))["puzzles"] == 6
    assert run("--puzzles", str(file), "--rows", "2-5", "--limit", "3")["puzzles"] == 3
    capsys.readouterr()
    for options, line in (
        (("--puzzles", str(file), "--rows", "2-7"), "rows must be A-B within 1 and 6, got '2-7'"),
        (("--rows", "2-5"), "rows must come with --puzzles FILE, got no file"),
    ):
        with pytest.raises(SystemExit) as stop:
            run(*options)
        assert stop.value.code == 2
        assert line in capsys.readouterr().err


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ("lprm", "`lprm`, 30.0 % right, +4.0 points (+1.0 to +7.0) against `vote`"),
        ("vote", "`vote`, 26.0 % right: none is significantly ahead of it after Holm's correction (`lprm` 30.0 %)"),
    ],
)
def test_a_card_tells_the_choice(own, expected):
    compared = [
        {"selector": "vote", "accuracy": 0.26, "less_vote": 0.0, "less_low": -0.01, "less_high": 0.01},
        {"selector": "lprm", "accuracy": 0.3, "less_vote": 0.04, "less_low": 0.01, "less_high": 0.07},
    ]
    found = {"selector": own, "puzzles": 150, "split": "validation", "width": 16, "depth": 32, "compared": compared}
    words = selection_words(found)
    assert words == f"150 puzzles (validation), 16 trajectories of 32 steps | {expected}"
