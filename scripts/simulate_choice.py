"""How often noise makes a winner of two equal arms: `python scripts/simulate_choice.py [STUDIES]`, 500 by default.

Each study has 300 puzzles that all cells of a frontier solve equally well, and times its steps in 20 rounds as noisy as
a machine may be before it is called so. The widest cell costs what the headline's budget just pays for, so that noise
decides whether it is looked at. Cells are then priced, chosen and compared as `gram frontier` does. Prints the share of
studies whose interval of width minus depth, and of width minus restarts, leaves out zero, and how often draws of the
timings change the choice. A minute on one core.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

from gram.evals.frontier.budgets import Question, budgets_of, matched_together
from gram.evals.frontier.choice import Judge, Price, Slice
from gram.evals.frontier.grid import Grid
from gram.evals.frontier.latency import NOISY
from gram.evals.frontier.prices import StepTimes, expected_prices
from gram.evals.frontier.verdict import headline

PUZZLES, ROUNDS, TRAJECTORIES = 300, 20, 16
GRID = Grid(
    widths=(1, 2, 4, 8, 16), depths=(1, 2, 4, 8, 16, 32), selectors=("vote",), haltings=("head",), trained_depth=8
)
ROWS = np.array([1, 2, 4, 8, 16])
SPREAD = NOISY / (2 * 1.645)
"""Deviation of the logarithm of a timing, of which (p95 - p5) / p50 is `NOISY`."""


SLOPE = 0.205
"""Milliseconds that a row adds to a step of one: 16 trajectories of the trained depth then cost 4.2 times one, the most
that the headline's budget pays for."""


def step_times(slope: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Noiseless step, ending and overhead of each number of rows, `[3, K]`."""
    return np.stack([1 + slope * ROWS, 0.1 + 0.02 * ROWS, 0.5 + 0.05 * ROWS])


def study(seed: int, spread: float = SPREAD, wide_less_deep: float = 0.0) -> dict[str, dict[str, Any]]:
    """Contrasts at the headline's budget of one study. `wide_less_deep`: true difference of all wide and all deep
    cells."""
    rng = np.random.default_rng([11, seed])
    # Half of the deviation is the round's, which hits all rows alike; half is each timing's own.
    noise = rng.normal(0, spread / 2**0.5, (ROUNDS, 1)) + rng.normal(0, spread / 2**0.5, (3, ROUNDS, len(ROWS)))
    stops = np.minimum(rng.geometric(0.2, (1, PUZZLES, TRAJECTORIES)), GRID.depths[-1] + 1).astype(np.int32)
    times = StepTimes(ROWS, *(step_times(SLOPE)[:, None] * np.exp(noise)))
    prices = expected_prices(stops, GRID, {"head": times}, seed=seed)
    assert prices.draws is not None
    # Cells of a puzzle agree as those of one model do: most of a verdict is the puzzle's, some is the cell's.
    shape = PUZZLES, len(GRID.depths), len(GRID.widths), 1
    draw = np.where(rng.random(shape) < 0.7, rng.random((PUZZLES, 1, 1, 1)), rng.random(shape))
    truth = np.full(shape[1:], 0.6)
    truth[:, 1:] += wide_less_deep
    right = draw < truth
    judge = Judge(GRID, Slice(right.astype(np.float32), None, np.arange(PUZZLES), ("vote",), "head"), seed=seed)
    price = Price(prices.mean[0], prices.draws[:, 0], has_restarts=True)
    row = headline(matched_together([Question(judge, price, budgets_of(GRID, price.mean))])[0])
    found: dict[str, dict[str, Any]] = row["contrasts"]
    return found


def main() -> None:
    studies = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    found = [study(seed) for seed in range(studies)]
    told: dict[str, Any] = {"studies": studies}
    for name in ("width-depth", "width-restarts"):
        some = [each[name] for each in found if "low" in each[name]]
        apart = [each["low"] > 0 or each["high"] < 0 for each in some]
        told[name] = {
            "compared": len(some),
            "called_a_winner": round(float(np.mean(apart)), 4),
            "choice_changes": round(float(np.mean([each["choice_changes"] for each in some])), 3),
        }
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
