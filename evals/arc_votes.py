"""ARC's vote: predictions of a test under many views, turned back, counted, and the first two as its attempts.

It is that of TRM's evaluator (and HRM's notebook): a grid's votes decide, then its mean halt probability, then which
came first. pass@k is the share of a task's tests whose output is among the first k grids, as the mean over tasks.

Shapes: `k` predictions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gram.evals import statistics
from gram.tasks.arc_files import Grid
from gram.tasks.arc_folder import ArcFolder, ArcTest
from gram.tasks.arc_grids import decode
from gram.tasks.protocol import PuzzleError, Tokens

PASS_AT = (1, 2, 5, 10, 100, 1000)
ATTEMPTS = 2
"""Answers that a test allows."""
Key = tuple[tuple[int, ...], bytes]
"""What tells a grid from others."""


@dataclass(slots=True)
class Candidate:
    """A grid that was predicted for a test."""

    grid: Grid
    votes: int = 0
    halt: float = 0.0
    """Sum of the halt probabilities of its predictions."""

    @property
    def mean_halt(self) -> float:
        """The tie-break."""
        return self.halt / self.votes


@dataclass(frozen=True, kw_only=True, slots=True)
class Voted:
    """What the vote says of one test."""

    task: str
    index: int
    """Place among the task's tests."""
    test: ArcTest
    ranked: list[Candidate]
    """First the one with most votes."""

    @property
    def rank(self) -> int | None:
        """Place of the right output, from 1; None where it was not predicted or is not known."""
        label = None if self.test.output is None else _key(self.test.output)
        return next((rank for rank, each in enumerate(self.ranked, start=1) if _key(each.grid) == label), None)

    def attempts(self) -> list[Grid]:
        """The first two grids; the first twice where there is one."""
        found = [each.grid for each in self.ranked[:ATTEMPTS]]
        return found + found[:1] * (ATTEMPTS - len(found))

    def to_json(self) -> dict[str, Any]:
        """A line of `tasks.jsonl`."""
        first = self.ranked[:ATTEMPTS]
        return {
            "task": self.task,
            "test": self.index,
            "is_labelled": self.test.output is not None,
            "is_right": None if self.test.output is None else (self.rank or ATTEMPTS + 1) <= ATTEMPTS,
            "rank": self.rank,
            "predictions": sum(each.votes for each in self.ranked),
            "candidates": len(self.ranked),
            "attempts": [grid.tolist() for grid in self.attempts()],
            "votes": [each.votes for each in first],
            "mean_halt": [each.mean_halt for each in first],
        }


@dataclass(slots=True)
class ArcVotes:
    """Predictions of some tasks so far."""

    folder: ArcFolder
    found: dict[str, dict[Key, dict[Key, Candidate]]] = field(default_factory=dict)
    """Candidates by task, by the test's input as it is, and by what they are."""

    def add(self, identities: NDArray[np.int64], inputs: Tokens, answers: Tokens, halts: NDArray[np.float32]) -> None:
        """Takes predictions: answers `[k, 900]` to inputs `[k, 900]` of views, and their halt logits `[k]`.

        Raises `PuzzleError` where the name of a view does not parse.
        """
        trusted = torch.from_numpy(halts).to(torch.float64).sigmoid().tolist()
        for identity, shown, answer, trust in zip(identities.tolist(), inputs, answers, trusted, strict=True):
            task, view = self.folder.view(identity)
            grid = view.undo(decode(answer))
            of_test = self.found.setdefault(task, {}).setdefault(_key(view.undo(decode(shown))), {})
            candidate = of_test.setdefault(_key(grid), Candidate(grid))
            candidate.votes += 1
            candidate.halt += trust

    def close(self, task: str) -> list[Voted]:
        """What is decided on a task's tests, whose predictions are then forgotten. Raises `PuzzleError` for a test that
        no view shows."""
        found, voted = self.found.pop(task, {}), []
        for index, test in enumerate(self.folder.tests[task]):
            candidates = found.get(_key(test.input))
            if not candidates:
                raise PuzzleError(
                    f"{self.folder.path}: test {index} of task {task[:40]!r} must be shown by a view, got none"
                )
            ranked = sorted(candidates.values(), key=lambda each: (each.votes, each.mean_halt), reverse=True)
            voted.append(Voted(task=task, index=index, test=test, ranked=ranked))
        return voted


def pass_at_k(rows: Iterable[dict[str, Any]]) -> dict[str, float | None]:
    """pass@k of lines of `tasks.jsonl`, each with the ends of its 95 % interval over tasks; None where no test has a
    label."""
    ranks: dict[str, list[float]] = {}
    for row in rows:
        if row["is_labelled"]:
            ranks.setdefault(row["task"], []).append(row["rank"] or np.inf)
    figures: dict[str, float | None] = {}
    for k in PASS_AT:
        shares = np.array([np.mean([rank <= k for rank in of_task]) for of_task in ranks.values()])
        low, high = statistics.clustered_interval(shares) if len(shares) else (None, None)
        mean = float(sum(shares) / len(shares)) if len(shares) else None
        figures |= {f"pass@{k}": mean, f"pass@{k}_low": low, f"pass@{k}_high": high}
    return figures


def submission(rows: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The answers of lines of `tasks.jsonl` in the form that Kaggle takes."""
    made: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        attempts = {f"attempt_{number}": grid for number, grid in enumerate(row["attempts"], start=1)}
        made.setdefault(row["task"], []).append(attempts)
    return made


def _key(grid: Grid) -> Key:
    return grid.shape, np.ascontiguousarray(grid).tobytes()
