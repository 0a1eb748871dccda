"""What a circuit is of: contrasting pairs of puzzles, alike but for what decides the value of one answer token.

A behaviour is a JSON file (shipped ones: `gram/behaviours/`, made by `scripts/make_behaviours.py`):

    {"task": "sudoku4", "description": "one line",
     "pairs": [{"puzzles": ["1.23...", "1.43..."], "position": 1, "values": ["4", "2"]}, ...]}

In the first puzzle the token at `position` (of the answer, from 0) has the first value and not the second. In the other
puzzle it has the second and not the first. So nothing that is the same in both can tell them apart.

Shapes: `C` pairs, `P = 2 C` puzzles, `L` tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import gram
from gram.config import read_json, shown
from gram.tasks.protocol import PuzzleError, Task, Tokens
from gram.tasks.registry import get_task

SHIPPED = Path(gram.__file__).parent / "behaviours"
KEYS = {"task", "description", "pairs"}


class BehaviourError(ValueError):
    """A behaviour that cannot be used; the message is one line."""


@dataclass(frozen=True)
class Behaviour:
    """Contrasting pairs as arrays; puzzles `2 c` and `2 c + 1` are one pair."""

    name: str
    description: str
    task: Task
    puzzles: Tokens
    """`[P, L]`."""
    positions: NDArray[np.int64]
    """Answer token asked for, `[P]`."""
    right: NDArray[np.int64]
    """Its token, `[P]`."""
    wrong: NDArray[np.int64]
    """The token that would be right in the pair's other puzzle, `[P]`."""

    @property
    def pairs(self) -> NDArray[np.int64]:
        """Number of each puzzle's pair, `[P]`."""
        return np.arange(len(self.puzzles)) // 2

    def take(self, pairs: NDArray[np.int64]) -> Behaviour:
        """These pairs alone."""
        rows = (2 * pairs[:, None] + np.arange(2)).reshape(-1)
        parts = (self.puzzles[rows], self.positions[rows], self.right[rows], self.wrong[rows])
        return replace(self, **dict(zip(("puzzles", "positions", "right", "wrong"), parts, strict=True)))

    def halves(self) -> tuple[Behaviour, Behaviour]:
        """Pairs to find a circuit on, and pairs to judge it by: every other one."""
        pairs = np.arange(len(self.puzzles) // 2)
        return self.take(pairs[::2]), self.take(pairs[1::2])

    def shuffled(self, seed: int) -> Behaviour:
        """The control: in half of the puzzles, drawn at random, right and wrong change places. No rule of the task
        says which, so no part of a model that learned the task can."""
        is_turned = np.random.default_rng(seed).permutation(len(self.puzzles)) % 2 == 0
        right, wrong = np.where(is_turned, self.wrong, self.right), np.where(is_turned, self.right, self.wrong)
        return replace(self, right=right, wrong=wrong)


def shipped_behaviours() -> list[str]:
    """Names of the behaviours that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.json"))


def read_behaviour(name_or_file: str | Path) -> Behaviour:
    """A behaviour by the name of a shipped one or by a file. Raises `BehaviourError` in one line."""
    path = SHIPPED / f"{name_or_file}.json"
    if not path.is_file():
        path = Path(name_or_file)
    if not path.is_file():
        raise BehaviourError(
            f"behaviour must be a JSON file or one of {', '.join(shipped_behaviours())}, got {str(name_or_file)!r}"
        )
    values = read_json(path, BehaviourError)
    if unknown := sorted(values.keys() - KEYS):
        raise BehaviourError(f"{path}: {unknown[0]!r} is not a key of a behaviour; known: {', '.join(sorted(KEYS))}")
    pairs = values.get("pairs")
    if not isinstance(pairs, list) or len(pairs) < 2:
        raise BehaviourError(f"{path}: pairs must be at least 2 contrasting pairs of puzzles, got {_counted(pairs)}")
    try:
        task = get_task(str(values.get("task")))
    except ValueError as error:
        raise BehaviourError(f"{path}: {error}") from None
    rows = []
    for number, pair in enumerate(pairs, start=1):
        try:
            rows.append(_pair(task, pair))
        except (PuzzleError, BehaviourError) as error:
            raise BehaviourError(f"{path}: pair {number}: {error}") from None
    puzzles = np.array([row[0] for row in rows], dtype=np.uint8).reshape(-1, task.tokens)
    values_C2 = np.array([row[2] for row in rows], dtype=np.int64)
    return Behaviour(
        path.stem,
        str(values.get("description", "")),
        task,
        puzzles,
        np.repeat(np.array([row[1] for row in rows], dtype=np.int64), 2),
        values_C2.reshape(-1),
        values_C2[:, ::-1].reshape(-1),
    )


def _counted(pairs: Any) -> str:
    return f"{len(pairs)}" if isinstance(pairs, list) else "none" if pairs is None else shown(pairs)


def _pair(task: Task, pair: Any) -> tuple[list[Tokens], int, list[int]]:
    """One pair's puzzles, position and tokens. Raises `BehaviourError` where it is no contrast, and `PuzzleError`."""
    if not isinstance(pair, dict) or set(pair) != {"puzzles", "position", "values"}:
        raise BehaviourError(f"must have puzzles, position and values, got {shown(pair)}")
    texts, position, symbols = pair["puzzles"], pair["position"], pair["values"]
    for name, values in (("puzzles", texts), ("values", symbols)):
        if not isinstance(values, list) or len(values) != 2 or not all(isinstance(value, str) for value in values):
            raise BehaviourError(f"{name} must be two texts, got {shown(values)}")
        if values[0] == values[1]:
            raise BehaviourError(f"{name} must differ, or nothing contrasts, got {shown(values[0])} twice")
    if not isinstance(position, int) or isinstance(position, bool) or not 0 <= position < task.output_tokens:
        raise BehaviourError(f"position must be within 0 and {task.output_tokens - 1}, got {shown(position)}")
    tokens = [task.symbols.find(symbol) if len(symbol) == 1 else -1 for symbol in symbols]
    if strange := [symbol for symbol, token in zip(symbols, tokens, strict=True) if token not in task.answer_values]:
        raise BehaviourError(f"values must be symbols of an answer of {task.name}, got {shown(strange[0])}")
    return [task.parse(text) for text in texts], position, tokens
