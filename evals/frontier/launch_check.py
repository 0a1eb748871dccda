"""Answers at the launches that are timed against those at the launches that were traced.

Rounding may change with a launch's rows, and a trajectory that thinks long may amplify it. Trajectories have the same
noise in both, so whatever differs is rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gram.evals.frontier.grid import Grid, stop_steps
from gram.sampler.trace import Traces
from gram.tasks.protocol import Task, Tokens

PUZZLES, WIDTH = 16, 4
"""Puzzles and trajectories of each that are compared."""


def compare_launches(
    task: Task,
    trace: Traces,
    grid: Grid,
    run: Callable[[Tokens, int, int], Tokens],
    *,
    puzzles: int = PUZZLES,
    width: int = WIDTH,
    seed: int = 0,
) -> dict[str, Any]:
    """Share of trajectories whose answer differs, under the grid's first halting rule at the trained depth.

    `run(puzzle [1, L], width, depth)` gives the candidates `[width, A]` at the timed launch, with the trace's seed.
    """
    width, depth = min(width, grid.widths[-1]), grid.trained_depth
    wanted = np.random.default_rng(seed).permutation(trace.puzzle_count)[:puzzles]
    different: list[NDArray[np.bool_]] = []
    right: list[tuple[int, int]] = []
    for block in trace.blocks():
        for row in np.flatnonzero(np.isin(block.puzzle, wanted) & block.puzzles.any(axis=1)):
            place = slice(int(row), int(row) + 1)
            halting = grid.haltings[0]
            stop = stop_steps(block, halting, grid.threshold(halting), grid.first_halt, place)[0, :width]
            last = np.minimum(stop, depth) - 1
            traced = block.tables[int(row)][block.answer[row, np.arange(width), last]]
            timed = run(block.puzzles[place], width, depth)
            different.append((task.canonical(timed) != traced).any(axis=1))
            verdicts = task.verify(np.repeat(block.puzzles[place], width, axis=0), timed)
            right.append((int(block.is_right[row, np.arange(width), last].sum()), int(verdicts.sum())))
    count = sum(map(len, different))
    traced_right, timed_right = np.sum(right, axis=0).tolist() if right else (0, 0)
    return {
        "puzzles": len(different),
        "trajectories": count,
        "different": float(np.concatenate(different).mean()) if count else None,
        "right_traced": traced_right / count if count else None,
        "right_timed": timed_right / count if count else None,
    }


def launch_words(found: Mapping[str, Any] | None) -> str | None:
    """The comparison in a sentence; None where there is none."""
    if not found or found.get("different") is None:
        return None
    share = f"{100 * found['different']:.1f} % of {found['trajectories']} answers"
    rights = f"{100 * found['right_timed']:.1f} against {100 * found['right_traced']:.1f} % right"
    if not found["different"]:
        return f"Launches: {found['trajectories']} answers at the timed launches are those of the traced ones."
    return f"Launches: {share} at the timed launches differ from the traced ones by rounding ({rights})."
