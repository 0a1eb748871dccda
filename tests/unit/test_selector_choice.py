"""A default selector is chosen by a fixed rule: ahead of vote and told apart, or vote."""

import numpy as np
import pytest

from gram.api import Sampler
from gram.config import SELECTORS
from gram.evals.model_card import selection_words
from gram.evals.selector_choice import chosen, compare_selectors
from gram.tasks.protocol import PuzzleSet
from gram.tasks.registry import get_task
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
    rows = compare_selectors(task, puzzles, result, SELECTORS)
    assert [each["selector"] for each in rows] == ["vote", *(each for each in SELECTORS if each != "vote")]
    for each in rows:
        picked = sampler.sample(puzzles, width=6, launch=8, selector=each["selector"])
        right = task.verify(puzzles.puzzles, picked.answers).astype(float)
        assert each["accuracy"] == right.mean()
        assert each["less_vote"] == pytest.approx(right.mean() - rows[0]["accuracy"])
        assert each["low"] <= each["accuracy"] <= each["high"]
    assert (rows[0]["less_vote"], rows[0]["p_holm"]) == (0, 1)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ("lprm", "`lprm`, 30.0 % right, +4.0 points (+1.0 to +7.0) against `vote`"),
        ("vote", "`vote`, 26.0 % right: none is ahead of it and told apart after Holm's correction (`lprm` 30.0 %)"),
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
