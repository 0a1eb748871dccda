"""The puzzle that asks for nothing: what unconditional samples are verified against."""

from __future__ import annotations

import numpy as np

from gram.tasks.protocol import Task, Tokens

BLANK = 1
"""Token of an empty cell in every task that draws on its puzzle's own grid."""


def blank_puzzle(task: Task) -> Tokens:
    """Every cell empty, `[L]`. Raises `ValueError` where answers have another grid than puzzles."""
    if task.output_start != 0 or task.output_tokens != task.tokens:
        raise ValueError(f"task must write its answers on the puzzle's own grid to generate, got {task.name!r}")
    return np.full(task.tokens, BLANK, dtype=np.uint8)
