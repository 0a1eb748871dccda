"""What sampling found for one puzzle: its distinct answers, judged by the verifier. For `solve`, on screen and as JSON.

Shapes: `N` width, `A` answer tokens, `L` puzzle tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gram.sampler.result import SampleResult
from gram.tasks.protocol import PuzzleError, Task, Tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One distinct answer (equal ones up to the task's symmetry count as one)."""

    tokens: Tokens
    """As the first trajectory that gave it wrote it, `[A]`."""
    votes: int
    """Trajectories that gave it."""
    is_selected: bool
    conflicts: int
    """Violated constraints; 0 exactly where the verifier accepts it."""
    lprm: float
    """Predicted accuracy, mean over its trajectories."""
    halt_probability: float
    """Of the halt head at the last step, mean over its trajectories, in [0, 1]."""
    steps: float
    """Supervision steps taken, mean over its trajectories."""

    @property
    def is_valid(self) -> bool:
        return self.conflicts == 0

    @property
    def verdict(self) -> str:
        if self.is_valid:
            return "valid"
        return "1 conflict" if self.conflicts == 1 else f"{self.conflicts} conflicts"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One puzzle and everything that was found for it."""

    puzzle: Tokens
    """`[L]`."""
    answers: list[Answer]
    """Distinct ones, the selected one first, then by votes."""
    solutions: int | None
    """Valid solutions that exist; None where the task does not count that many."""

    @property
    def selected(self) -> Answer:
        return self.answers[0]

    @property
    def distinct_valid(self) -> int:
        """Different valid solutions found."""
        return sum(answer.is_valid for answer in self.answers)

    @property
    def valid_trajectories(self) -> int:
        return sum(answer.votes for answer in self.answers if answer.is_valid)

    def to_json(self, task: Task) -> dict[str, Any]:
        return {
            "puzzle": task.format(self.puzzle),
            "answer": task.format(self.puzzle, self.selected.tokens),
            "is_valid": self.selected.is_valid,
            "conflicts": self.selected.conflicts,
            "votes": self.selected.votes,
            "distinct": len(self.answers),
            "distinct_valid": self.distinct_valid,
            "solutions": self.solutions,
            "valid_trajectories": self.valid_trajectories,
            "answers": [
                {
                    "answer": task.format(self.puzzle, answer.tokens),
                    "votes": answer.votes,
                    "is_valid": answer.is_valid,
                    "conflicts": answer.conflicts,
                    "lprm": answer.lprm,
                    "halt_probability": answer.halt_probability,
                    "steps": answer.steps,
                }
                for answer in self.answers
            ],
        }


def outcome(task: Task, result: SampleResult, index: int) -> Outcome:
    """What `result` found for its puzzle number `index`."""
    width = int(result.widths[index])
    puzzle, candidates = result.puzzles[index], result.candidates[index, :width]
    _, first, group = np.unique(task.canonical(candidates), axis=0, return_index=True, return_inverse=True)
    group = group.reshape(-1)
    conflicts = task.conflicts(np.repeat(puzzle[None], len(first), axis=0), candidates[first])
    halt = 1 / (1 + np.exp(-result.halt[index, :width].astype(np.float64)))
    chosen = group[result.selected[index]]
    answers = []
    for label in sorted(range(len(first)), key=lambda label: (label != chosen, -(group == label).sum(), first[label])):
        members = group == label
        answers.append(
            Answer(
                tokens=candidates[first[label]],
                votes=int(members.sum()),
                is_selected=bool(label == chosen),
                conflicts=int(conflicts[label]),
                lprm=float(result.lprm[index, :width][members].mean()),
                halt_probability=float(halt[members].mean()),
                steps=float(result.steps[index, :width][members].mean()),
            )
        )
    return Outcome(puzzle=puzzle, answers=answers, solutions=_count(task, puzzle))


def _count(task: Task, puzzle: Tokens) -> int | None:
    try:
        return task.count_solutions(puzzle)
    except PuzzleError:
        return None
