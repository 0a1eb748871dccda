"""ARC's vote: views undone, counts before halt probabilities before order, attempts, pass@k, submissions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gram.evals.arc_votes import PASS_AT, ArcVotes, pass_at_k, submission
from gram.tasks.arc_folder import ArcFolder, ArcTest
from gram.tasks.arc_grids import View, encode
from gram.tasks.protocol import PuzzleError

INPUT, RIGHT, WRONG, OTHER = (np.array([[colour, 2]], dtype=np.uint8) for colour in (1, 5, 6, 7))
TURNED = View(1, (0, 3, 1, 2, 4, 5, 6, 7, 8, 9))
NAMES = ["<blank>", "a", TURNED.name("a"), "b"]


def votes(*tests: ArcTest, task: str = "a") -> ArcVotes:
    return ArcVotes(ArcFolder(path=Path("data"), names=NAMES, tests={task: list(tests)}))


def add(made: ArcVotes, *predictions: tuple[int, np.ndarray, float]) -> None:
    """Predictions to the one input: identity, grid as it is, halt logit."""
    for identity, grid, halt in predictions:
        view = made.folder.view(identity)[1]
        shown, answer = (encode(view.apply(each))[None] for each in (INPUT, grid))
        made.add(np.array([identity]), shown, answer, np.array([halt], np.float32))


def test_votes_count_first_then_the_mean_halt_then_the_order() -> None:
    made = votes(ArcTest(INPUT, RIGHT))
    add(made, (1, WRONG, 3.0), (2, RIGHT, -1.0), (1, OTHER, 3.0), (1, RIGHT, -1.0), (2, WRONG, 0.0))
    (voted,) = made.close("a")
    # Two votes each of right and wrong, of which wrong is trusted more.
    assert [each.grid.tolist() for each in voted.ranked] == [WRONG.tolist(), RIGHT.tolist(), OTHER.tolist()]
    assert voted.rank == 2
    row = voted.to_json()
    assert (row["is_right"], row["votes"], row["predictions"], row["candidates"]) == (True, [2, 2], 5, 3)
    assert submission([row]) == {"a": [{"attempt_1": WRONG.tolist(), "attempt_2": RIGHT.tolist()}]}
    figures = pass_at_k([row])
    assert [figures[f"pass@{k}"] for k in PASS_AT] == [0, 1, 1, 1, 1, 1]
    assert made.found == {}


def test_one_grid_is_both_attempts_and_an_empty_one_counts() -> None:
    made = votes(ArcTest(INPUT, RIGHT))
    add(made, (1, np.zeros((0, 0), np.uint8), 1.0))
    row = made.close("a")[0].to_json()
    assert row["attempts"] == [[], []]
    assert (row["rank"], row["is_right"]) == (None, False)


def test_tests_without_label_count_in_no_figure_and_are_submitted() -> None:
    made = votes(ArcTest(INPUT, None))
    add(made, (1, RIGHT, 1.0))
    row = made.close("a")[0].to_json()
    assert (row["is_labelled"], row["is_right"], row["rank"]) == (False, None, None)
    assert submission([row])["a"][0]["attempt_1"] == RIGHT.tolist()
    assert set(pass_at_k([row]).values()) == {None}
    labelled = {**row, "task": "b", "is_labelled": True, "rank": 3}
    assert pass_at_k([row, labelled])["pass@5"] == 1
    assert pass_at_k([row, labelled])["pass@2"] == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(1, 1200), max_size=3)), max_size=8))
def test_pass_at_k_is_the_mean_over_tasks_of_shares_of_tests(tasks: list[tuple[int, list[int]]]) -> None:
    rows = [
        {"task": str(name), "is_labelled": True, "rank": rank}
        for name, (missed, ranks) in enumerate(tasks)
        for rank in [*ranks, *[None] * missed]
    ]
    figures = pass_at_k(rows)
    own = [(missed, ranks) for missed, ranks in tasks if missed + len(ranks)]
    for k in PASS_AT:
        shares = [sum(rank <= k for rank in ranks) / (missed + len(ranks)) for missed, ranks in own]
        assert figures[f"pass@{k}"] == (pytest.approx(sum(shares) / len(shares)) if shares else None)


def test_a_test_that_no_view_shows_and_a_name_that_is_none_are_one_line() -> None:
    made = votes(ArcTest(OTHER, RIGHT))
    add(made, (1, RIGHT, 1.0))
    with pytest.raises(PuzzleError, match="test 0 of task 'a' must be shown by a view, got none"):
        made.close("a")
    strange = ArcVotes(ArcFolder(path=Path("data"), names=["a|||t9|||0123456789"], tests={}))
    with pytest.raises(PuzzleError, match=r"identifiers\.json: name of a view must be TASK"):
        add(strange, (0, RIGHT, 1.0))
