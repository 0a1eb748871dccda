"""Figures of a frontier whose trajectories may take hundreds of steps stay readable and lose nothing."""

import re

import numpy as np
import pytest

from gram.evals.pages import figures, tables


def frontier(steps: int) -> dict:
    """The heads' part, with a halt at some steps."""
    rng = np.random.default_rng(steps)
    heads = {"accuracy": 0.5, "ece": 0.1, "brier": 0.1, "halt_auroc": 0.9, "bins": []}
    heads |= {"halt_auroc_within": 0.8, "lprm_auroc_within": None}
    stops = {"right": rng.integers(0, 9, steps + 1).tolist(), "wrong": rng.integers(0, 3, steps + 1).tolist()}
    return {
        "grid": {"depths": [2, steps // 2, steps]},
        "heads": {
            "steps": [{"step": step, **heads} for step in range(1, steps + 1)],
            "stops": {"step": [*range(1, steps + 1), None], **stops},
        },
    }


def counts(page: str) -> np.ndarray:
    """Right and wrong trajectories that the bars' words tell, `[bars, 2]`, each bar once."""
    told = dict.fromkeys(
        re.findall(r"(halts after step [\d ]+(?:to \d+)?|never halts).*?(\d+) right, (\d+) wrong", page, re.DOTALL)
    )
    return np.array([[int(right), int(wrong)] for _, right, wrong in told])


@pytest.mark.parametrize("steps", [8, figures.MANY, figures.MANY + 1, 512])
def test_every_trajectory_is_in_one_bar(steps):
    made = frontier(steps)
    chart = figures.stop_histogram(made)
    assert chart is not None
    told = counts(str(chart))
    stops = made["heads"]["stops"]
    assert len(told) <= min(steps, figures.MANY) + 1
    assert told.sum(axis=0).tolist() == [sum(stops["right"]), sum(stops["wrong"])]
    assert ("to " in "".join(re.findall(r"halts after step [\d to]+", str(chart)))) == (steps > figures.MANY)


@pytest.mark.parametrize(("steps", "rows"), [(8, 8), (figures.MANY, figures.MANY), (512, 3)])
def test_the_heads_are_shown_at_the_grids_depths_where_steps_are_many(steps, rows):
    made = frontier(steps)
    assert tables.calibration_table(made).count("<tr>") == rows + 1
    assert len(figures.shown_steps(made)) == rows
    assert str(figures.calibration_by_step(made)).count('class="dot') == 2 * rows
