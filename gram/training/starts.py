"""How a slot of training begins a puzzle, where it begins otherwise than sampling does.

Late: after a number of supervision steps without gradient, so that training meets states of great depths (after
Sotaku's late-state training). Revealed: the puzzle shows some of its answer's tokens as givens, early in training.

All is drawn from streams of its own (`stream`), so that puzzles, targets and rollouts are those of a run without.

Shapes: `B` new slots, `L` tokens of a puzzle, which is its own answer grid where a part is revealed.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
from numpy.typing import NDArray

from gram.tasks.protocol import BLANK, Task, Tokens
from gram.training.config import TrainConfig

MOST_REVEALED = 0.6
"""Largest part of a solution that a new state reveals."""


def stream(seed: int, step: int, name: str) -> np.random.Generator:
    """The numbers that `name` draws at an optimiser step; no other draws of training depend on them."""
    # The name stands fourth: a rank's own stream has three numbers (`Trainer.advance`).
    return np.random.default_rng([seed, step, 0, zlib.crc32(name.encode())])


def reveal(rng: np.random.Generator, puzzles: Tokens, answers: Tokens, *, share: float, most: float) -> Tokens:
    """Puzzles `[B, L]` of which a `share`, drawn at random, show a part of their answers `[B, L]`. Each draws its part
    of all cells, within 0 and `most`; cells that are no blank stay."""
    is_telling = rng.random((len(puzzles), 1)) < share
    part = rng.random((len(puzzles), 1)) * most
    is_told = is_telling & (rng.random(puzzles.shape) < part) & (puzzles == BLANK)
    return np.where(is_told, answers, puzzles)


def most_revealed(training: TrainConfig, fraction: float) -> float:
    """Largest part that a new slot reveals at a fraction of training: falls on a line to 0 at `reveal_until`."""
    return MOST_REVEALED * max(0.0, 1 - fraction / training.reveal_until) if training.reveal_until else 0.0


def check_reveal(task: Task, *, is_conditional: bool) -> None:
    """Raises `ValueError` where parts of an answer cannot stand as givens of its puzzle."""
    if not is_conditional:
        raise ValueError("reveal_until must be 0 without a condition, which shows no puzzle")
    if not task.has_givens:
        raise ValueError(f"reveal_until must be 0 for task {task.name}, whose answers cannot stand as givens")


def late_lengths(rng: np.random.Generator, count: int, training: TrainConfig) -> NDArray[np.int64]:
    """Supervision steps that each of `count` new slots runs before it is trained, 0 in all but a share of them."""
    least, most = training.late_steps
    is_late = rng.random(count) < training.late_share
    drawn = np.exp(rng.uniform(math.log(least), math.log(most + 1), count)).astype(np.int64)
    return np.where(is_late, drawn.clip(least, most), 0)


def mean_late_steps(training: TrainConfig) -> float:
    """Mean of `late_lengths` over all slots."""
    least, most = training.late_steps
    steps = np.arange(least, most + 1)
    chance = np.log1p(1 / steps) / math.log((most + 1) / least)
    return training.late_share * float((steps * chance).sum())
