"""Whatever a caller gives as puzzles, as input tokens of a task or refused in one line.

Shapes: `P` puzzles, `L` tokens of a puzzle.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gram.tasks.protocol import PuzzleError, PuzzleSet, Task, Tokens


def input_tokens(task: Task, puzzles: Any) -> Tokens:
    """Puzzles as tokens `[P, L]`: texts that the task parses, a `PuzzleSet`, or an array of whole numbers.

    Raises `PuzzleError` for anything else, for another length and for a number that is no input token.
    """
    if isinstance(puzzles, PuzzleSet):
        puzzles = puzzles.puzzles
    if isinstance(puzzles, list | tuple) and puzzles and all(isinstance(text, str) for text in puzzles):
        return np.stack([task.parse(text) for text in puzzles])
    tokens = _whole_numbers(task, puzzles)
    if tokens.ndim != 2 or tokens.shape[1] != task.tokens:
        raise PuzzleError(f"puzzles must be [P, {task.tokens}] tokens, got {list(tokens.shape)}")
    # What does not fit a token's type would wrap around to another one.
    fits = (tokens >= 0) & (tokens < task.vocabulary)
    made = np.where(fits, tokens, 0).astype(np.uint8)
    wrong = np.argwhere(~(fits & task.is_input(made)))
    if len(wrong):
        row, place = wrong[0].tolist()
        raise PuzzleError(
            f"puzzles must be of {task.name}'s input tokens, got {tokens[row, place]} at place {place} of puzzle {row}"
        )
    return made


def check_judgeable(task: Task, puzzles: Tokens, file: Path | None = None) -> None:
    """Refuses puzzles `[P, L]` of which the task cannot judge answers, before any is sampled. Raises `PuzzleError`."""
    try:
        task.verify(puzzles, np.zeros((len(puzzles), task.output_tokens), dtype=np.uint8))
    except PuzzleError as error:
        raise error if file is None else PuzzleError(f"{file}: {error}") from None


def _whole_numbers(task: Task, puzzles: Any) -> Any:
    """An array of whole numbers, of whichever type it came in."""
    expected = f"puzzles must be texts in a list or [P, {task.tokens}] tokens"
    if isinstance(puzzles, str | bytes):
        raise PuzzleError(f"{expected}, got one text")
    try:
        found = np.asarray(puzzles)
    except Exception as error:
        # Ragged lists, tensors of other devices: their own types of error.
        reason = " ".join(str(error).split())[:80]
        raise PuzzleError(f"{expected}, got {type(puzzles).__name__} ({reason})") from None
    if found.dtype.kind == "f":
        is_whole = np.isfinite(found) & (found == np.trunc(found))
        if not is_whole.all():
            raise PuzzleError(f"{expected}, got {found[~is_whole][0]}, which is no whole number")
    elif found.dtype.kind not in "iu":
        got = "none" if puzzles is None else f"{type(puzzles).__name__} of {found.dtype.name}"
        raise PuzzleError(f"{expected}, got {got}")
    return found
