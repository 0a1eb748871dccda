"""Every cell of a width by depth grid, computed from traces: what each puzzle's outcome is in it. No figure, no test.

A trace holds `n` trajectories of every puzzle to the largest depth, none halted. Since noise is keyed by puzzle,
trajectory and transition, a direct run of width `N` and depth `M` has exactly the first `N` of them, each up to where
its halting rule or `M` ends it. A cell's selected accuracy is the mean over all disjoint groups of `N` trajectories,
never one lucky draw; pass@N and the number of distinct solutions are exact expectations over subsets of `N` of the `n`.

Shapes: `P` puzzles, `n` trajectories of the trace, `H` halting rules, `M` depths, `N` widths, `S` selectors; `G`
groups. Halting, votes and selection are the sampler's own (`gram/sampler/halting.py`, `selectors.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gram.config import HALTINGS
from gram.evals.metrics import pass_at_k
from gram.sampler.halting import RULES, Readings, count_unchanged, stops
from gram.sampler.selectors import RECORDED, Scores, count_votes, rank
from gram.sampler.trace import TraceBlock, Traces

Floats = NDArray[np.float32]
_TRAJECTORIES = 1 << 16
"""Trajectories worked on at once: bounds memory, not results."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """Which cells are looked at, and how trajectories halt in them."""

    widths: tuple[int, ...]
    """`N`, rising."""
    depths: tuple[int, ...]
    """`M`, rising."""
    selectors: tuple[str, ...] = ("vote", "lprm", "halt")
    haltings: tuple[str, ...] = ("head", "fixed")
    """Halting rules; the first is the one that the verdict speaks of."""
    trained_depth: int = 8
    """Depth that the checkpoint was trained for; the depth of width-only cells."""
    first_halt: int = 1
    """First supervision step after which a trajectory may halt."""
    thresholds: tuple[float | None, ...] = ()
    """Threshold of each halting rule; left out, or None: the sampler's default."""

    def __post_init__(self) -> None:
        for name in ("widths", "depths"):
            values = getattr(self, name)
            if not values or list(values) != sorted(set(values)) or values[0] < 1:
                raise ValueError(f"{name} must be rising whole numbers of at least 1, got {list(values)}")
        for name, known in (("selectors", RECORDED), ("haltings", HALTINGS)):
            for value in getattr(self, name):
                if value not in known:
                    raise ValueError(f"{name} must be some of {', '.join(known)}, got {value!r}")
            if len(set(getattr(self, name))) != len(getattr(self, name)) or not getattr(self, name):
                raise ValueError(f"{name} must be different and at least one, got {list(getattr(self, name))}")
        if self.trained_depth not in self.depths:
            raise ValueError(f"depths must hold the trained depth {self.trained_depth}, got {list(self.depths)}")
        if self.widths[0] != 1:
            raise ValueError(f"widths must begin with 1, got {list(self.widths)}")

    def threshold(self, halting: str) -> float:
        """The threshold of a halting rule."""
        given = dict(zip(self.haltings, self.thresholds, strict=False)).get(halting)
        default = RULES[halting].threshold
        return given if given is not None else math.nan if default is None else default


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Outcomes by puzzle, means over groups and seeds."""

    accuracy: Floats
    """Share of groups whose selected answer is right, `[P, H, M, N, S]`."""
    is_right_directly: NDArray[np.bool_]
    """Verdict on the selected answer of a direct run (first seed, trajectories 0 to N-1), `[P, H, M, N, S]`."""
    passes: Floats
    """Probability that `N` trajectories hold a right one, `[P, H, M, N]`."""
    distinct: Floats
    """Expected number of distinct valid solutions among `N` trajectories, `[P, H, M, N]`."""
    steps: Floats
    """Supervision steps that a trajectory takes, `[P, H, M]`."""
    conflicts: NDArray[np.float64]
    """Violated constraints of the selected answer, mean over puzzles and groups, `[H, M, N, S]`; NaN unless counted."""
    is_real: NDArray[np.bool_]
    """Puzzles that are not padding alone, `[P]`; the others have zeros and never count."""
    puzzles: NDArray[np.uint8]
    """`[P, L]`."""


def stop_steps(block: TraceBlock, halting: str, threshold: float, first_halt: int, rows: slice) -> NDArray[np.int32]:
    """Step at which a rule ends each trajectory, `[p, n]`; one more than the trace's depth where it never does."""
    halt = block.halt[rows]
    steps = halt.shape[2]
    unchanged = np.zeros(halt.shape, np.int32)
    if RULES[halting].needs_answers:
        answer = block.answer[rows]
        for step in range(1, steps):
            is_same = answer[..., step] == answer[..., step - 1]
            unchanged[..., step] = count_unchanged(is_same, unchanged[..., step - 1])
    now = Readings(step=np.arange(1, steps + 1), halt=halt, residual=block.residual[rows], unchanged=unchanged)
    stopping = np.broadcast_to(stops(halting, threshold, first_halt, now), halt.shape)
    step_of: NDArray[np.int32] = np.where(stopping.any(-1), stopping.argmax(-1) + 1, steps + 1).astype(np.int32)
    return step_of


def tabulate(
    traces: Sequence[Traces],
    grid: Grid,
    *,
    conflicts: Callable[[NDArray[np.uint8], NDArray[np.uint8]], NDArray[np.int64]] | None = None,
    on_block: Callable[[TraceBlock], None] | None = None,
) -> Outcomes:
    """Outcomes of every cell from traces of the same puzzles, one per seed.

    `conflicts(puzzles [k, L], answers [k, A])` counts violated constraints. `on_block` sees every
    block after its puzzles are done. Raises `ValueError` where a trace is too small for the grid, or of other puzzles.
    """
    for trace in traces:
        if trace.width < grid.widths[-1] or trace.depth < grid.depths[-1]:
            raise ValueError(
                f"traces must hold {grid.widths[-1]} trajectories of {grid.depths[-1]} steps, "
                f"got {trace.width} of {trace.depth}"
            )
        if trace.puzzle_count != traces[0].puzzle_count:
            raise ValueError(f"traces must be of {traces[0].puzzle_count} puzzles each, got {trace.puzzle_count}")
    tally = _Tally(traces[0].puzzle_count, grid)
    for seed, trace in enumerate(traces):
        seen = np.zeros(trace.puzzle_count, dtype=bool)
        for block in trace.blocks():
            count, width = block.answer.shape[:2]
            together = max(1, _TRAJECTORIES // width)
            tally.note_puzzles(seed, block)
            seen[block.puzzle] = True
            for start in range(0, count, together):
                tally.add(seed, block, slice(start, min(start + together, count)), conflicts)
            if on_block is not None:
                on_block(block)
        if not seen.all():
            raise ValueError(f"trace must hold all {seen.size} puzzles, got {int(seen.sum())}")
    return tally.outcomes(len(traces))


class _Tally:
    """Sums over seeds, filled chunk by chunk."""

    def __init__(self, puzzles: int, grid: Grid) -> None:
        self.grid = grid
        shape = len(grid.haltings), len(grid.depths), len(grid.widths)
        every = (*shape, len(grid.selectors))
        self.accuracy = np.zeros((puzzles, *every), np.float32)
        self.direct = np.zeros((puzzles, *every), bool)
        self.passes, self.distinct = np.zeros((2, puzzles, *shape), np.float32)
        self.steps = np.zeros((puzzles, *shape[:2]), np.float32)
        self.conflicts = np.full(every, np.nan)
        self.is_real = np.zeros(puzzles, bool)
        self.puzzles: NDArray[np.uint8] | None = None

    def note_puzzles(self, seed: int, block: TraceBlock) -> None:
        """Keeps the puzzles, and refuses a trace of others."""
        if self.puzzles is None:
            self.puzzles = np.zeros((len(self.is_real), block.puzzles.shape[1]), np.uint8)
        if seed == 0:
            self.puzzles[block.puzzle] = block.puzzles
            self.is_real[block.puzzle] = block.puzzles.any(axis=1)
        elif not np.array_equal(self.puzzles[block.puzzle], block.puzzles):
            raise ValueError("traces must be of the same puzzles in the same order, got others")

    def add(self, seed: int, block: TraceBlock, rows: slice, conflicts: Callable[..., Any] | None) -> None:
        """Adds some of a block's puzzles."""
        grid, index = self.grid, block.puzzle[rows]
        real = self.is_real[index]
        violated = _violations(block, rows, real, conflicts)
        for h, halting in enumerate(grid.haltings):
            stop = stop_steps(block, halting, grid.threshold(halting), grid.first_halt, rows)
            for m, depth in enumerate(grid.depths):
                taken = np.minimum(stop, depth)
                at = (taken - 1)[..., None]
                last = {
                    name: np.take_along_axis(getattr(block, name)[rows], at, axis=2)[..., 0]
                    for name in ("answer", "is_right", "halt", "lprm", "residual", "margin")
                }
                last["is_right"] = last["is_right"] & real[:, None]
                self.steps[index, h, m] += taken.mean(axis=1) * real
                self._expectations(index, h, m, last)
                scores = Scores(
                    last["answer"], last["halt"], last["lprm"], last["residual"], last["margin"], taken, stop <= depth
                )
                ranks = {each: rank(each, scores) for each in grid.selectors if each != "vote"}
                for w, width in enumerate(grid.widths):
                    self._selections(seed, index, (h, m, w), width, last, ranks, violated)

    def _expectations(self, index: NDArray[np.int64], h: int, m: int, last: dict[str, NDArray[Any]]) -> None:
        """pass@N and distinct solutions: by tables over how many of the `n` are right, or gave one solution."""
        right, samples = last["is_right"], last["is_right"].shape[1]
        puzzle, trajectory = np.nonzero(right)
        span = int(last["answer"].max(initial=0)) + 1
        times = np.bincount(puzzle * span + last["answer"][puzzle, trajectory], minlength=len(right) * span)
        found = np.flatnonzero(times)
        every = np.arange(samples + 1)
        for w, width in enumerate(self.grid.widths):
            table = pass_at_k(samples, every, width)
            self.passes[index, h, m, w] += table[right.sum(axis=1)]
            self.distinct[index, h, m, w] += np.bincount(
                found // span, weights=table[times[found]], minlength=len(right)
            )

    def _selections(
        self,
        seed: int,
        index: NDArray[np.int64],
        place: tuple[int, int, int],
        width: int,
        last: dict[str, NDArray[Any]],
        ranks: dict[str, NDArray[Any]],
        violated: Callable[[NDArray[np.int64]], float] | None,
    ) -> None:
        """Verdicts on what each selector picks in all disjoint groups of `width`."""
        count = len(index)
        groups = last["is_right"].shape[1] // width
        used = groups * width
        right = last["is_right"][:, :used].reshape(count * groups, width)
        line = np.arange(count * groups)
        for s, selector in enumerate(self.grid.selectors):
            if width == 1:
                picked = np.zeros(count * groups, dtype=np.int64)
            elif selector == "vote":
                picked = count_votes(last["answer"][:, :used].reshape(-1, width)).argmax(axis=1)
            else:
                picked = ranks[selector][:, :used].reshape(-1, width).argmax(axis=1)
            verdict = right[line, picked].reshape(count, groups)
            self.accuracy[(index, *place, s)] += verdict.mean(axis=1, dtype=np.float32)
            if seed == 0:
                self.direct[(index, *place, s)] = verdict[:, 0]
            if violated is not None:
                answer = last["answer"][:, :used].reshape(-1, width)[line, picked].reshape(count, groups)
                total = self.conflicts[(*place, s)]
                self.conflicts[(*place, s)] = violated(answer) + (0.0 if math.isnan(total) else total)

    def outcomes(self, seeds: int) -> Outcomes:
        """Means over seeds."""
        for sums in (self.accuracy, self.passes, self.distinct, self.steps):
            sums /= seeds
        real = max(int(self.is_real.sum()), 1)
        puzzles = np.zeros((0, 0), np.uint8) if self.puzzles is None else self.puzzles
        return Outcomes(
            self.accuracy,
            self.direct,
            self.passes,
            self.distinct,
            self.steps,
            self.conflicts / (real * seeds),
            self.is_real,
            puzzles,
        )


def _violations(
    block: TraceBlock, rows: slice, real: NDArray[np.bool_], conflicts: Callable[..., Any] | None
) -> Callable[[NDArray[np.int64]], float] | None:
    """A function that sums the conflicts of answers `[p, G]`, mean over groups; None where they are not counted."""
    if conflicts is None:
        return None
    tables = block.tables[rows]
    sizes = np.array([len(table) for table in tables])
    owner = np.repeat(np.arange(len(tables)), sizes)
    counted = np.asarray(conflicts(block.puzzles[rows][owner], np.concatenate(tables)), dtype=np.float64)
    first = np.cumsum(sizes) - sizes

    def total(answer: NDArray[np.int64]) -> float:
        return float(counted[answer + first[:, None]].mean(axis=1)[real].sum())

    return total
