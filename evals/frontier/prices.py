"""What a cell costs: expected milliseconds of a puzzle, from measured step times and the steps that trajectories take.

A timing says how long the engine takes for a supervision step of some rows, for ending trajectories, and for a run
beside its steps (`latency.py`). A trace says at which step every trajectory stops. Interactive: a step costs the
measured time at the number of rows still running, and a puzzle ends when its last trajectory has. Throughput: launches
are full, so a trajectory costs its share of them. Prices are means over all puzzles and all disjoint groups of `N`
trajectories. Rounds of timing are resampled as a whole, since a slow minute of the machine hits all rows alike.

Shapes: `P` puzzles (times seeds), `n` trajectories of the trace, `H` halting rules, `M` depths, `N` widths, `K` numbers
of rows that were timed, `Q` rounds, `R` draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gram.evals.frontier.grid import Grid, stop_steps
from gram.sampler.trace import Traces

Floats = NDArray[np.float64]
DRAWS = 500
"""Resamples of the timed rounds."""
READING = ("residual", "unchanged")
"""Halting rules that read answers at every step."""


@dataclass(frozen=True, slots=True)
class Prices:
    """What every cell costs, NaN where unknown."""

    mean: Floats
    """Expected cost of a puzzle, `[H, M, N]`."""
    p95: Floats
    """95th percentile over puzzles and groups, `[H, M, N]`."""
    draws: Floats | None = None
    """`mean` from resampled rounds of timing, `[R, H, M, N]`; None where a price has no noise, as MACs."""


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Milliseconds by number of rows, one line a round."""

    rows: NDArray[np.int64]
    """Numbers of rows, rising, `[K]`."""
    step: Floats
    """One supervision step of so many rows, `[Q, K]`."""
    ending: Floats
    """Ending so many trajectories at once: decoding and retiring, `[Q, K]`."""
    overhead: Floats
    """The rest of a run of so many trajectories: tokens in, votes and selection, `[Q, K]`."""
    watts: Floats | None = None
    """Mean power, `[K]`; None where no energy was counted."""

    @classmethod
    def of(cls, timed: Mapping[str, Any]) -> StepTimes:
        """From an entry of a timing's `clock`."""
        names = ("step_ms", "ending_ms", "overhead_ms")
        step, ending, overhead = (np.array(timed[name], np.float64) for name in names)
        watts = timed.get("watts")
        rows = np.array(timed["rows"], np.int64)
        return cls(rows, step, ending, overhead, None if watts is None else np.array(watts, np.float64))

    @property
    def energy(self) -> StepTimes:
        """The same in joules."""
        assert self.watts is not None
        return StepTimes(self.rows, *(part * self.watts / 1e3 for part in (self.step, self.ending, self.overhead)))

    def weighted(self, weights: Floats) -> tuple[Floats, Floats, Floats]:
        """Step, ending and overhead `[R, K]` at weighted means of the rounds, `weights [R, Q]`; none falls with
        rows."""
        return rising(weights @ self.step), rising(weights @ self.ending), rising(weights @ self.overhead)

    def at(self, part: Floats, rows: NDArray[np.int64]) -> Floats:
        """`part [R, K]` between the timed rows, `[R, rows]`; beyond the last it goes on in proportion."""
        last = self.rows[-1]
        inside = np.stack([np.interp(rows, self.rows, line) for line in part])
        found: Floats = np.where(rows > last, part[:, -1:] * rows / last, inside)
        return found


def prices_of_clock(traces: Sequence[Traces], grid: Grid, timings: Mapping[str, Any]) -> dict[str, Prices]:
    """Prices of `latency interactive`, `latency throughput` (ms) and `energy` (J of interactive runs) from traces, one
    per seed, and what `latency.measure` returned (or an empty mapping: all NaN)."""
    stops = stop_table(traces, grid)
    found: dict[str, Prices] = {}
    for mode in ("interactive", "throughput"):
        times = [entry for entry in timings.get("clock", ()) if entry["mode"] == mode]
        by_halting = {
            halting: StepTimes.of(entry)
            for halting in grid.haltings
            for entry in times
            if entry["reads_every_step"] == (halting in READING)
        }
        found[f"latency {mode}"] = expected_prices(stops, grid, by_halting, is_full=mode == "throughput")
        if mode == "interactive":
            powered = {each: timed.energy for each, timed in by_halting.items() if timed.watts is not None}
            found["energy"] = expected_prices(stops, grid, powered)
    return found


def stop_table(traces: Sequence[Traces], grid: Grid) -> NDArray[np.int32]:
    """Step at which each halting rule ends each traced trajectory, `[H, P, n]`, seeds one behind the other; more than
    the deepest depth where it never does. Puzzles of padding alone are left out."""
    parts = []
    for trace in traces:
        for block in trace.blocks():
            rows = slice(0, len(block.puzzle))
            real = block.puzzles.any(axis=1)
            halted = [stop_steps(block, each, grid.threshold(each), grid.first_halt, rows) for each in grid.haltings]
            parts.append(np.stack(halted)[:, real])
    return np.concatenate(parts, axis=1)


def expected_prices(
    stops: NDArray[np.int32],
    grid: Grid,
    times: Mapping[str, StepTimes],
    *,
    is_full: bool = False,
    resamples: int = DRAWS,
    seed: int = 0,
) -> Prices:
    """Prices of every cell. `stops [H, P, n]`: `stop_table`; `times` by halting rule, one left out has NaN; `is_full`:
    launches are full (throughput) and have as many rows as the last of `times`."""
    shape = len(grid.haltings), len(grid.depths), len(grid.widths)
    mean, p95 = np.full((2, *shape), np.nan)
    draws = np.full((resamples, *shape), np.nan)
    for h, halting in enumerate(grid.haltings):
        if halting not in times or not stops.shape[1]:
            continue
        timed = times[halting]
        weights = round_weights(len(timed.step), resamples, seed)
        by_width = unit_prices(timed, weights, grid.widths, is_full)
        for m, n in np.ndindex(shape[1:]):
            width, price = grid.widths[n], by_width[n]
            groups = stops.shape[2] // width
            taken = np.minimum(stops[h, :, : groups * width], grid.depths[m]).reshape(-1, width)
            # Full launches: only the sum of the steps counts.
            work = taken.sum(axis=1, keepdims=True).astype(np.float64) if is_full else running(taken)
            costs = work @ price[0, :-1] + price[0, -1]
            mean[h, m, n] = costs.mean()
            p95[h, m, n] = np.percentile(costs, 95)
            draws[:, h, m, n] = price[1:, :-1] @ work.mean(axis=0) + price[1:, -1]
    return Prices(mean, p95, draws)


def round_weights(rounds: int, resamples: int, seed: int) -> Floats:
    """Weights of the rounds `[1 + R, Q]`: all alike first, then bootstrap draws of whole rounds."""
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(rounds, np.full(rounds, 1 / rounds), size=resamples) / rounds
    return np.concatenate([np.full((1, rounds), 1 / rounds), drawn])


def rising(values: Floats) -> Floats:
    """The nearest values `[R, K]` (least squares) that never fall along the last axis: isotonic regression by its
    max-min formula (Robertson, Wright and Dykstra 1988, theorem 1.4.4)."""
    count = values.shape[-1]
    sums = np.concatenate([np.zeros((*values.shape[:-1], 1)), np.cumsum(values, axis=-1)], axis=-1)
    found = np.full(values.shape, -np.inf)
    for first in range(count):
        means = (sums[..., first + 1 :] - sums[..., first : first + 1]) / np.arange(1, count - first + 1)
        least = np.minimum.accumulate(means[..., ::-1], axis=-1)[..., ::-1]
        found[..., first:] = np.maximum(found[..., first:], least)
    return found


def running(taken: NDArray[np.int32]) -> Floats:
    """What groups `[G, N]` of trajectories that take so many steps ask for, `[G, N + 1]`: steps with 1, 2, ... N rows
    running, and how often trajectories end."""
    ordered = np.sort(taken, axis=1)[:, ::-1].astype(np.float64)
    beyond = np.concatenate([ordered[:, 1:], np.zeros((len(ordered), 1))], axis=1)
    with_rows = ordered - beyond
    return np.concatenate([with_rows, (with_rows > 0).sum(axis=1, keepdims=True)], axis=1)


def unit_prices(timed: StepTimes, weights: Floats, widths: Sequence[int], is_full: bool) -> list[Floats]:
    """For each width the milliseconds of each unit of work, and last what every run costs beside, `[1 + R, .]`."""
    step, ending, overhead = timed.weighted(weights)
    if is_full:
        launch = int(timed.rows[-1])
        beside = ending[:, -1] + overhead[:, -1]
        return [np.stack([step[:, -1] / launch, beside * width / launch], axis=1) for width in widths]
    each, once = _line(timed.rows, ending)
    steps = timed.at(step, np.arange(1, max(widths) + 1))
    found = []
    for width in widths:
        fixed = timed.at(overhead, np.array([width]))[:, 0] + each * width
        found.append(np.concatenate([steps[:, :width], once[:, None], fixed[:, None]], axis=1))
    return found


def _line(rows: NDArray[np.int64], ending: Floats) -> tuple[Floats, Floats]:
    """What an ending costs for each trajectory and for the occasion, from a line through `[R, K]`; none below 0."""
    if len(rows) == 1:
        return np.zeros(len(ending)), np.maximum(ending[:, 0], 0)
    centred = rows - rows.mean()
    each = np.maximum(ending @ centred / (centred @ centred), 0)
    return each, np.maximum(ending.mean(axis=1) - each * rows.mean(), 0)
