"""Times the offline analysis of a generated trace: `python scripts/bench_frontier.py [PUZZLES WIDTH DEPTH]`.

The default is the floor's: 10,000 puzzles x 64 trajectories x 32 steps, under 60 s and 2 GB. Making the numbers is
timed apart. Prints one JSON object.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from gram.config import ModelConfig
from gram.evals.frontier.analysis import analyse
from gram.evals.frontier.grid import Grid
from gram.tasks.protocol import PuzzleSet

TOGETHER = 250


class Generated:
    """A trace made block by block: trajectories that settle on one of a few answers."""

    def __init__(self, puzzles: int, width: int, depth: int) -> None:
        self.puzzle_count, self.width, self.depth = puzzles, width, depth
        self.metadata: dict[str, Any] = {}
        self.made_s = 0.0
        index = np.arange(puzzles, dtype=np.uint32)
        self.puzzles = (index[:, None] >> np.arange(0, 32, 4, dtype=np.uint32) & 15).astype(np.uint8) + 1

    def blocks(self) -> Iterator[SimpleNamespace]:
        """Blocks of `TOGETHER` puzzles."""
        for start in range(0, self.puzzle_count, TOGETHER):
            started = time.perf_counter()
            rng = np.random.default_rng(start)
            puzzle = np.arange(start, min(start + TOGETHER, self.puzzle_count))
            shape = len(puzzle), self.width, self.depth
            settled = rng.geometric(0.25, (*shape[:2], 1)) <= np.arange(1, self.depth + 1)
            final = rng.integers(0, 8, (*shape[:2], 1))
            answer = np.where(settled, final, rng.integers(8, 60, shape)).astype(np.int32)
            right = settled & (final < 4)
            noise = rng.standard_normal((4, *shape), dtype=np.float32)
            block = SimpleNamespace(
                puzzle=puzzle,
                puzzles=self.puzzles[puzzle],
                answer=answer,
                is_right=right,
                halt=6 * right - 3 + noise[0],
                lprm=noise[1] * np.float32(0.2) + right,
                residual=np.abs(noise[2]) * np.where(settled, np.float32(0.02), np.float32(1)),
                margin=noise[3] + right,
                steps=np.full(shape[:2], self.depth),
                tables=[np.zeros((60, 64), np.uint8)] * len(puzzle),
            )
            self.made_s += time.perf_counter() - started
            yield block


def main() -> None:
    puzzles, width, depth = (int(text) for text in sys.argv[1:4]) if len(sys.argv) > 3 else (10_000, 64, 32)
    traces = Generated(puzzles, width, depth)
    task: Any = SimpleNamespace(
        is_multi_solution=True,
        conflicts=lambda puzzles, answers: answers[:, 0].astype(np.int64),
        count_solutions=lambda puzzle: 4,
    )
    grid = Grid(
        widths=tuple(2**n for n in range(width.bit_length())),
        depths=tuple(2**m for m in range(depth.bit_length())),
        selectors=("vote", "lprm", "halt", "residual", "margin", "first", "first-halt"),
    )
    rng, rows = np.random.default_rng(0), np.arange(1, width + 1)
    clock = [
        {"mode": mode, "reads_every_step": False, "rows": counts.tolist()}
        | {"step_ms": rng.normal(counts**0.5, 0.1, (20, len(counts))).tolist()}
        | {name: np.full((20, len(counts)), 0.1).tolist() for name in ("ending_ms", "overhead_ms")}
        for mode, counts in (("interactive", rows), ("throughput", rows[-1:]))
    ]
    started = time.perf_counter()
    timings = {"clock": clock}
    made = analyse(task, PuzzleSet(puzzles=traces.puzzles), [traces], grid, ModelConfig(), timings=timings, about={})
    elapsed = time.perf_counter() - started
    figures = {
        "puzzles": puzzles,
        "width": width,
        "depth": depth,
        "cells": len(made["cells"]),
        "analysis_s": round(elapsed - traces.made_s, 1),
        "generation_s": round(traces.made_s, 1),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
