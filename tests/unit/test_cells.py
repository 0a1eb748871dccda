"""Cells from traces against a recount in plain Python loops that follows the sampler's own rules."""

import itertools
import math

import numpy as np
import pytest

from gram.evals.frontier.calibration import CalibrationTally
from gram.evals.frontier.grid import Grid, stop_steps, tabulate
from gram.sampler.selectors import RECORDED, count_votes
from tests.traces import random_traces


def stopped(traces, puzzle, trajectory, halting, depth, first_halt, threshold):
    """Step at which one trajectory ends in a cell, and whether its rule ended it."""
    arrays, unchanged = traces.arrays, 0
    for step in range(1, depth + 1):
        answer = arrays["answer"][puzzle, trajectory]
        unchanged = unchanged + 1 if step > 1 and answer[step - 1] == answer[step - 2] else 0
        is_ended = {
            "fixed": False,
            "head": arrays["halt"][puzzle, trajectory, step - 1] > math.log(0.95 / 0.05),
            "residual": arrays["residual"][puzzle, trajectory, step - 1] < np.float32(0.01),
            "unchanged": unchanged >= 2,
        }[halting]
        if is_ended and step >= first_halt:
            return step, True
    return depth, False


def pick(selector, members):
    """Which of a group's members `(answer, values, steps, is_halted)` a selector takes."""
    scores = {
        "vote": [sum(other[0] == one[0] for other in members) for one in members],
        "first": [0] * len(members),
        "first-halt": [-one[2] if one[3] else -math.inf for one in members],
        "residual": [-one[1]["residual"] for one in members],
    }.get(selector) or [one[1][selector] for one in members]
    return scores.index(max(scores))


def recount(traces, grid, puzzle, halting, depth, width, selector):
    """Verdicts of all groups, exact pass@N and distinct solutions over all subsets, steps."""
    arrays, members = traces.arrays, []
    for trajectory in range(traces.width):
        step, is_halted = stopped(traces, puzzle, trajectory, halting, depth, grid.first_halt, None)
        at = puzzle, trajectory, step - 1
        values = {name: arrays[name][at] for name in ("halt", "lprm", "residual", "margin")}
        members.append((int(arrays["answer"][at]), values, step, is_halted, bool(arrays["is_right"][at])))
    verdicts = []
    for group in range(traces.width // width):
        some = members[group * width : (group + 1) * width]
        verdicts.append(some[pick(selector, some)][4])
    subsets = list(itertools.combinations(members, width))
    passes = np.mean([any(one[4] for one in subset) for subset in subsets])
    distinct = np.mean([len({one[0] for one in subset if one[4]}) for subset in subsets])
    return verdicts, passes, distinct, np.mean([one[2] for one in members])


@pytest.mark.parametrize("first_halt", [1, 2])
def test_cells_are_those_of_a_recount(first_halt):
    traces = [random_traces(seed, puzzles=9, width=6, depth=5) for seed in (0, 1)]
    grid = Grid(
        widths=(1, 2, 4),
        depths=(1, 2, 5),
        selectors=RECORDED,
        haltings=("head", "fixed", "residual", "unchanged"),
        trained_depth=2,
        first_halt=first_halt,
    )
    found = tabulate(traces, grid)
    for puzzle in range(9):
        for (h, halting), (m, depth), (w, width) in itertools.product(
            enumerate(grid.haltings), enumerate(grid.depths), enumerate(grid.widths)
        ):
            for s, selector in enumerate(RECORDED):
                both = [recount(each, grid, puzzle, halting, depth, width, selector) for each in traces]
                where = (puzzle, h, m, w)
                assert found.accuracy[(*where, s)] == pytest.approx(np.mean([np.mean(each[0]) for each in both]))
                assert found.is_right_directly[(*where, s)] == both[0][0][0]
            assert found.passes[where] == pytest.approx(np.mean([each[1] for each in both]), abs=1e-6)
            assert found.distinct[where] == pytest.approx(np.mean([each[2] for each in both]), abs=1e-6)
            assert found.steps[where[:3]] == pytest.approx(np.mean([each[3] for each in both]))


def test_blocks_and_chunks_change_nothing(monkeypatch):
    grid = Grid(widths=(1, 2, 8), depths=(2, 6), trained_depth=2)
    traces = random_traces(4)
    whole = tabulate([traces], grid)
    traces.together = 3
    monkeypatch.setattr("gram.evals.frontier.grid._TRAJECTORIES", 16)
    parts = tabulate([traces], grid)
    for name in ("accuracy", "passes", "distinct", "steps", "is_right_directly", "puzzles"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


def test_conflicts_of_the_selected_answer():
    traces = random_traces(1, puzzles=6, width=4, depth=3)
    grid = Grid(widths=(1, 4), depths=(3,), selectors=("first", "lprm"), haltings=("fixed",), trained_depth=3)
    found = tabulate([traces], grid, conflicts=lambda puzzles, answers: answers[:, 0].astype(np.int64))
    answer = traces.arrays["answer"][:, :, 2]
    assert found.conflicts[0, 0, 0] == pytest.approx([4 * answer.mean()] * 2)
    best = traces.arrays["lprm"][:, :, 2].argmax(1)
    assert found.conflicts[0, 0, 1] == pytest.approx([4 * answer[:, 0].mean(), 4 * answer[np.arange(6), best].mean()])
    assert np.isnan(tabulate([traces], grid).conflicts).all()


def test_padding_is_no_puzzle():
    traces = random_traces(0, puzzles=5, width=4, depth=3)
    traces.puzzles[3] = 0
    grid = Grid(widths=(1, 2), depths=(3,), trained_depth=3)
    found = tabulate([traces], grid, conflicts=lambda puzzles, answers: np.ones(len(answers), np.int64))
    assert found.is_real.tolist() == [True, True, True, False, True]
    assert not found.accuracy[3].any()
    assert not found.passes[3].any()
    assert found.conflicts == pytest.approx(1)
    tally = CalibrationTally(3, grid)
    for block in traces.blocks():
        tally.add(block)
    assert tally.halt[0].sum() == 4 * 4


def test_votes_of_a_group():
    answer = np.array([[0, 1, 1, 0, 2, 2, 2, 3]], dtype=np.int32)
    assert count_votes(answer.reshape(-1, 4)).tolist() == [[2, 2, 2, 2], [3, 3, 3, 1]]
    assert count_votes(answer.reshape(-1, 1)).tolist() == [[1]] * 8
    assert count_votes(answer).max() == 3
    assert np.array_equal(count_votes(10_000 * answer), count_votes(answer))


def test_a_rule_that_never_stops_says_so():
    block = next(iter(random_traces(0, puzzles=3, width=2, depth=4).blocks()))
    block.halt[:] = -9
    assert (stop_steps(block, "head", 0.95, 1, slice(None)) == 5).all()
    block.halt[:, :, 0] = 9
    assert (stop_steps(block, "head", 0.95, 1, slice(None)) == 1).all()
    assert (stop_steps(block, "head", 0.95, 2, slice(None)) == 5).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": (2, 4)}, "widths must begin with 1"),
        ({"widths": (1, 4, 2)}, "widths must be rising"),
        ({"depths": (0, 8)}, "depths must be rising"),
        ({"depths": (1, 2)}, "depths must hold the trained depth 8, got \\[1, 2\\]"),
        ({"selectors": ("best",)}, "selectors must be some of vote"),
        ({"haltings": ("head", "head")}, "haltings must be different"),
    ],
)
def test_grid_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        Grid(**{"widths": (1, 2), "depths": (1, 8), **settings})


def test_traces_that_do_not_fit_are_refused():
    traces = random_traces(0, puzzles=5, width=4, depth=3)
    with pytest.raises(ValueError, match="traces must hold 8 trajectories of 3 steps, got 4 of 3"):
        tabulate([traces], Grid(widths=(1, 8), depths=(3,), trained_depth=3))
    other = random_traces(0, puzzles=5, width=4, depth=3)
    other.puzzles = other.puzzles[::-1]
    with pytest.raises(ValueError, match="same puzzles"):
        tabulate([traces, other], Grid(widths=(1, 2), depths=(3,), trained_depth=3))


def test_head_figures_by_hand():
    traces = random_traces(2, puzzles=12, width=6, depth=4)
    grid = Grid(widths=(1,), depths=(2, 4), trained_depth=2)
    tally = CalibrationTally(4, grid)
    for block in traces.blocks():
        tally.add(block)
    steps = tally.summary()["steps"]
    for step in range(4):
        score, right = traces.arrays["halt"][:, :, step].ravel(), traces.arrays["is_right"][:, :, step].ravel()
        pairs = score[right][:, None] - score[~right][None]
        assert steps[step]["halt_auroc"] == pytest.approx(((pairs > 0) + (pairs == 0) / 2).mean(), abs=0.002)
        share = 1 / (1 + np.exp(-score.astype(float)))
        assert steps[step]["brier"] == pytest.approx(((share - right) ** 2).mean(), abs=0.002)
        assert sum(part["count"] for part in steps[step]["bins"]) == right.size
    assert math.isnan(steps[0]["halt_auroc_within"])
    assert 0.5 < steps[1]["halt_auroc_within"] <= 1
    stops = tally.summary()["stops"]
    assert sum(stops["right"]) + sum(stops["wrong"]) == 72
    empty = CalibrationTally(4, grid).summary()
    assert math.isnan(empty["steps"][0]["ece"])
