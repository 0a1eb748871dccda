"""What it is worth to wait for the first solved trajectory alone: other ways to run a lattice, one puzzle at a time,
from the traces and timings of its frontier. Nothing is sampled or timed here.

A frontier's cell ends when all its trajectories have. A lattice's trajectory is either solved, and then hardly ever
wrong, or worth nothing, so that its selector (`first-halt`) needs no more than the first that is solved. Ways to run
`N` trajectories of at most `M` rounds:

- `at once, all to their end`: what a run of fixed width does, and what a frontier's cell costs;
- `at once, until one is solved`: the same without the wait, the width policy `first-halt`;
- `one by one, until one is solved`: each in a run of its own, the same policy with a stage of 1;
- `one, then the others at once`: the width policy `trusted` up to 4 trajectories, each stage in a run of its own.

Each answers with a trajectory that is solved; where none is, with the first one's answer as it stands, as `first-halt`
does.

Shapes: `P` puzzles, `n` trajectories of the trace, `D` its depth, `G` groups of `N` trajectories.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gram.evals import statistics
from gram.evals.frontier.choice import TOLERANCE
from gram.evals.frontier.grid import Grid, stop_steps
from gram.evals.frontier.prices import StepTimes, round_weights, running, unit_prices
from gram.evals.paired import paired_difference
from gram.sampler.trace import Traces

Floats = NDArray[np.float64]
Steps = NDArray[np.int32]
ONE = "one trajectory"


class Halts(NamedTuple):
    """Where trajectories halt, seeds one behind the other."""

    stop: Steps
    """Round at which each is solved, `[P, n]`; more than the depth where it never is."""
    is_right: NDArray[np.bool_]
    """Verdict on its answer after each round, `[P, n, D]`."""


class Spent(NamedTuple):
    """What a way takes, `[G]` each."""

    ms: Floats
    is_right: NDArray[np.bool_]


def halts_of(traces: Sequence[Traces], grid: Grid) -> Halts:
    """Of all puzzles that are not padding alone, from traces, one per seed."""
    stops, rights = [], []
    for trace in traces:
        by_block = []
        for block in trace.blocks():
            real = block.puzzles.any(axis=1)
            stop = stop_steps(block, "head", grid.threshold("head"), grid.first_halt, slice(None))
            by_block.append((stop[real], block.is_right[real]))
        stops.append(np.concatenate([stop for stop, _ in by_block]))
        rights.append(np.concatenate([right for _, right in by_block]))
    return Halts(np.concatenate(stops, axis=1), np.concatenate(rights, axis=1))


class RunPrices:
    """What runs cost, ms, whose trajectories take known steps."""

    def __init__(self, times: StepTimes) -> None:
        self.times, self.prices = times, {0: np.zeros(0)}

    def run(self, taken: Steps, rounds: Steps | None = None) -> Floats:
        """Of runs of `taken [G, N]` steps each, `[G]`; of the first `rounds [G]` steps alone, all rows running, where
        given."""
        width = taken.shape[1]
        if width not in self.prices:
            weights = round_weights(len(self.times.step), 0, 0)
            self.prices[width] = unit_prices(self.times, weights, [width], is_full=False)[0][0]
        price = self.prices[width]
        if rounds is None:
            return np.asarray(running(taken) @ price[:-1] + price[-1])
        return np.asarray(rounds * price[width - 1] + price[-2] + price[-1])


def first_solved(stop: Steps, is_right: NDArray[np.bool_], depth: int, *, by_id: bool = False) -> NDArray[np.bool_]:
    """Whether the answer is right, `[G]`: of the trajectory solved in the fewest rounds, or of the first one solved by
    its id; of trajectory 0 where none is. `is_right [G, N]`: of each one's last answer within the depth."""
    is_solved = stop <= depth
    order = np.where(is_solved, np.arange(stop.shape[1]) if by_id else stop, np.iinfo(np.int32).max)
    picked = order.argmin(axis=1)
    line = np.arange(len(stop))
    return np.asarray(is_right[line, picked])


def to_their_end(prices: RunPrices, stop: Steps, is_right: NDArray[np.bool_], depth: int) -> Spent:
    return Spent(prices.run(np.minimum(stop, depth)), first_solved(stop, is_right, depth))


def until_one(prices: RunPrices, stop: Steps, is_right: NDArray[np.bool_], depth: int) -> Spent:
    taken = np.minimum(stop, depth)
    return Spent(prices.run(taken, taken.min(axis=1)), first_solved(stop, is_right, depth))


def one_by_one(prices: RunPrices, stop: Steps, is_right: NDArray[np.bool_], depth: int) -> Spent:
    ms, is_open = np.zeros(len(stop)), np.ones(len(stop), bool)
    for place in range(stop.shape[1]):
        column = stop[:, place : place + 1]
        ms += np.where(is_open, prices.run(np.minimum(column, depth)), 0)
        is_open &= column[:, 0] > depth
    return Spent(ms, first_solved(stop, is_right, depth, by_id=True))


def staged(prices: RunPrices, stop: Steps, is_right: NDArray[np.bool_], depth: int) -> Spent:
    first, others = stop[:, :1], stop[:, 1:]
    is_open = first[:, 0] > depth
    ms = prices.run(np.minimum(first, depth)) + np.where(is_open, prices.run(np.minimum(others, depth)), 0)
    later = first_solved(others, is_right[:, 1:], depth)
    has_later = is_open & (others <= depth).any(axis=1)
    return Spent(ms, np.where(has_later, later, is_right[:, 0]))


WAYS: dict[str, Callable[[RunPrices, Steps, NDArray[np.bool_], int], Spent]] = {
    "at once, all to their end": to_their_end,
    "at once, until one is solved": until_one,
    "one by one, until one is solved": one_by_one,
    "one, then the others at once": staged,
}


def rows_of(halts: Halts, times: StepTimes, grid: Grid, clusters: NDArray[np.int64]) -> list[dict[str, Any]]:
    """One object for each way, width and depth: mean and 95th percentile of the latency, accuracy with its interval,
    and the difference, paired, from one trajectory of the deepest grid depth that costs no more."""
    prices = RunPrices(times)

    def spent(way: str, width: int, depth: int) -> tuple[Floats, Floats]:
        """Latency of every group, and accuracy by puzzle."""
        puzzles, groups = len(halts.stop), halts.stop.shape[1] // width
        stop = halts.stop[:, : groups * width].reshape(-1, width)
        last = np.minimum(halts.stop, depth)[..., None] - 1
        answered = np.take_along_axis(halts.is_right, last, axis=2)[..., 0]
        right = answered[:, : groups * width].reshape(-1, width)
        found = WAYS[way](prices, stop, right, depth)
        return found.ms, found.is_right.reshape(puzzles, groups).mean(axis=1)

    single = {depth: spent("at once, all to their end", 1, depth) for depth in grid.depths}
    cells = [(ONE, 1, depth, *single[depth]) for depth in grid.depths]
    for way in WAYS:
        for width in grid.widths[1:]:
            cells += [(way, width, depth, *spent(way, width, depth)) for depth in grid.depths]
    found = []
    for way, width, depth, ms, accuracy in cells:
        low, high = statistics.clustered_interval(accuracy, clusters)
        row: dict[str, Any] = {"way": way, "width": width, "depth": depth, "ms": float(ms.mean())}
        row |= {"p95_ms": float(np.percentile(ms, 95)), "accuracy": float(accuracy.mean()), "low": low, "high": high}
        paid = [each for each in grid.depths if single[each][0].mean() <= TOLERANCE * ms.mean()]
        if way != ONE and paid:
            gap = paired_difference(accuracy, single[paid[-1]][1], clusters)
            row["minus_one"] = {"depth": paid[-1], "ms": float(single[paid[-1]][0].mean()), **gap._asdict()}
        found.append(row)
    return found


def times_of(clock: Sequence[Mapping[str, Any]]) -> StepTimes:
    """Step times of one puzzle at a time. Raises `ValueError` where they were not taken."""
    for entry in clock:
        if entry["mode"] == "interactive" and not entry["reads_every_step"]:
            return StepTimes.of(entry)
    raise ValueError("timings must hold mode interactive, got others")
