"""Synthetic traces for tests: the interface of `gram/sampler/trace.py`, random contents."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class FakeBlock:
    puzzle: Any
    puzzles: Any
    answer: Any
    is_right: Any
    halt: Any
    lprm: Any
    residual: Any
    margin: Any
    steps: Any
    tables: Any


@dataclass
class FakeTraces:
    """Traces in memory, cut into blocks of `together` puzzles."""

    puzzles: Any
    arrays: dict[str, Any]
    tables: list[Any]
    together: int = 7
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def puzzle_count(self):
        return len(self.puzzles)

    @property
    def width(self):
        return self.arrays["answer"].shape[1]

    @property
    def depth(self):
        return self.arrays["answer"].shape[2]

    def blocks(self):
        for start in range(0, len(self.puzzles), self.together):
            rows = slice(start, min(start + self.together, len(self.puzzles)))
            yield FakeBlock(
                puzzle=np.arange(rows.start, rows.stop),
                puzzles=self.puzzles[rows],
                steps=np.full(self.arrays["answer"].shape[:2], self.depth)[rows],
                tables=self.tables[rows],
                **{name: array[rows] for name, array in self.arrays.items()},
            )


def random_traces(
    seed: int = 0, *, puzzles: int = 20, width: int = 8, depth: int = 6, answers: int = 5, skill: float = 0.4
) -> FakeTraces:
    """Traces whose first answers of each table are right, whose trajectories improve with depth, and whose heads know
    something of it; scores have ties."""
    rng = np.random.default_rng([7, seed])
    fixed = np.random.default_rng(3)
    tokens = fixed.integers(1, 4, (puzzles, 6)).astype(np.uint8)
    hardness = fixed.random(puzzles)[:, None, None]
    solutions = fixed.integers(1, 3, puzzles)
    step = np.arange(1, depth + 1)
    is_right = rng.random((puzzles, width, 1)) * 0.7 + rng.random((puzzles, width, depth)) * 0.3 < np.clip(
        (1 - hardness) * (skill + 0.5 * step / depth), 0, 1
    )
    draw = rng.random((puzzles, width, depth))
    right_answer = (draw * solutions[:, None, None]).astype(np.int32)
    wrong_answer = (solutions[:, None, None] + draw * (answers - solutions[:, None, None])).astype(np.int32)
    noise = rng.normal(size=(4, puzzles, width, depth))
    halt = np.round(4 * is_right - 1 + 2 * noise[0], 1).astype(np.float32)
    lprm = np.round(0.6 * is_right + 0.2 * noise[1], 1).astype(np.float32)
    residual = np.round(np.exp(noise[2] - 3 - is_right), 2).astype(np.float32)
    margin = np.round(is_right + noise[3], 1).astype(np.float32)
    arrays = {
        "answer": np.where(is_right, right_answer, wrong_answer).astype(np.int32),
        "is_right": is_right,
        "halt": halt,
        "lprm": lprm,
        "residual": residual,
        "margin": margin,
    }
    tables = [np.arange(answers * 4, dtype=np.uint8).reshape(answers, 4) for _ in range(puzzles)]
    return FakeTraces(tokens, arrays, tables)
