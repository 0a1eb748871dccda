"""What sampling returns: every candidate, what the heads said of it, and the selected answers. No torch.

`result[0]` is what was found for one puzzle: its selected answer as text, and the distinct answers with votes and the
verifier's verdicts.

Shapes: `P` puzzles, `N` width, `A` answer tokens, `L` puzzle tokens; `p`, `n` those of a shard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from gram.config import ResolvedConfig
from gram.sampler.board_html import board_html, verdict_html
from gram.sampler.scheduler import ShardResult
from gram.tasks.protocol import PuzzleError, Task, Tokens

SHOWN_PUZZLES, SHOWN_OTHERS = 6, 2
"""Puzzles of a run, and solutions of a puzzle beside the selected answer, that a notebook shows."""


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class SampleResult(ShardResult):
    """A whole run, which is one shard of `P` puzzles and `N` trajectories, with the selected answers.

    Puzzles stand in the order in which they were given; trajectory ids are the second axis.
    """

    selected: NDArray[np.int64]
    """Index of the selected trajectory, `[P]`."""
    votes: NDArray[np.int64]
    """Lineages that gave the same answer as each candidate, itself included, `[P, N]`; 0 where it does not count."""
    config: ResolvedConfig
    """The run's settings."""
    elapsed_s: float
    """Seconds of sampling, from tokens in to answers out."""
    steps_run: int
    """Supervision steps of trajectories that ran, discarded ones included, padding not; those of an earlier part of a
    resumed run are taken to be the ones that count."""
    device: str
    dtype: str
    task: Task
    is_unconditional: bool = False
    """Whether the model saw the empty condition in place of the puzzles."""

    @property
    def kernel(self) -> str:
        """Kernel path."""
        return self.config.kernel

    @property
    def answers(self) -> Tokens:
        """The selected answers, `[P, A]`."""
        chosen: Tokens = self.candidates[np.arange(len(self.selected)), self.selected]
        return chosen

    @property
    def is_counted(self) -> NDArray[np.bool_]:
        """Which trajectories count, `[P, N]`."""
        counted: NDArray[np.bool_] = np.arange(self.candidates.shape[1]) < self.widths[:, None]
        return counted

    @property
    def trajectories(self) -> int:
        """How many trajectories count."""
        return int(self.widths.sum())

    @property
    def trajectories_sha256(self) -> str:
        """Digest over puzzle, trajectory, steps and answer of every trajectory that counts: equal exactly when they
        are."""
        digest = hashlib.sha256()
        for puzzle, width, steps, candidates in zip(
            self.puzzles, self.widths, self.steps, self.candidates, strict=True
        ):
            digest.update(np.ascontiguousarray(puzzle, dtype=np.uint8).tobytes())
            for trajectory, (taken, answer) in enumerate(zip(steps[:width], candidates[:width], strict=True)):
                digest.update(int(trajectory).to_bytes(4, "little") + int(taken).to_bytes(4, "little"))
                digest.update(np.ascontiguousarray(answer, dtype=np.uint8).tobytes())
        return digest.hexdigest()

    @property
    def timings(self) -> dict[str, float]:
        """Seconds, milliseconds per puzzle and trajectories that count per second, by JSON key."""
        return {
            "elapsed_s": self.elapsed_s,
            "ms_per_puzzle": 1000 * self.elapsed_s / len(self),
            "trajectories_per_s": self.trajectories / self.elapsed_s,
        }

    def __len__(self) -> int:
        return len(self.puzzles)

    @overload
    def __getitem__(self, index: int) -> PuzzleResult: ...
    @overload
    def __getitem__(self, index: slice) -> list[PuzzleResult]: ...
    def __getitem__(self, index: int | slice) -> PuzzleResult | list[PuzzleResult]:
        """What was found for one puzzle, or for some."""
        places = range(len(self))[index]
        return PuzzleResult(self, places) if isinstance(places, int) else [PuzzleResult(self, each) for each in places]

    def __iter__(self) -> Iterator[PuzzleResult]:
        return iter(self[:])

    def __repr__(self) -> str:
        config, count = self.config, len(self)
        return (
            f"<SampleResult of {self.task.name}: {count} puzzle{'s' * (count != 1)}, width {config.width}, "
            f"depth {config.depth}, selector {config.selector}, {self.elapsed_s:.2f} s>"
        )

    def _repr_html_(self) -> str:
        """The first puzzles, for a notebook."""
        head = f"<div>{escape(repr(self)[1:-1])}</div>"
        shown = [f'<div style="margin:.6em 0">{found._repr_html_()}</div>' for found in self[:SHOWN_PUZZLES]]
        more = [f"<div>and {len(self) - SHOWN_PUZZLES} more</div>"] if len(self) > SHOWN_PUZZLES else []
        return "".join([head, *shown, *more])


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One distinct answer of a puzzle. Answers that are equal up to the task's symmetry count as one."""

    text: str
    """As the task writes it."""
    tokens: Tokens = field(repr=False)
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
        """Whether the verifier accepts it."""
        return self.conflicts == 0


class PuzzleResult:
    """What a run found for one puzzle. Made by `result[index]`; answers are judged when they are first asked for."""

    def __init__(self, result: SampleResult, index: int) -> None:
        self.task, self.index, self.width = result.task, index, int(result.widths[index])
        self.puzzle: Tokens = result.task.blank_puzzle() if result.is_unconditional else result.puzzles[index]
        """`[L]`; every cell empty where the model saw the empty condition."""
        self.tokens: Tokens = result.answers[index]
        """The selected answer, `[A]`."""
        self.votes = int(result.votes[index, result.selected[index]])
        """Votes of the selected answer: lineages that gave it."""
        self._result = result

    @property
    def text(self) -> str:
        """The selected answer, as the task writes it."""
        return self.task.format(self.puzzle, self.tokens)

    @property
    def is_valid(self) -> bool:
        """Whether the verifier accepts the selected answer. Raises `PuzzleError` where the task cannot judge it."""
        return self.answers[0].is_valid

    @property
    def solutions(self) -> list[Answer]:
        """The distinct valid answers. Raises `PuzzleError` where the task cannot judge them."""
        return [answer for answer in self.answers if answer.is_valid]

    @cached_property
    def solution_count(self) -> int | None:
        """Valid solutions that exist; None where the task does not count that many."""
        try:
            return self.task.count_solutions(self.puzzle)
        except PuzzleError:
            return None

    @property
    def answers(self) -> list[Answer]:
        """The distinct answers, the selected one first, then by votes. Raises `PuzzleError` as `solutions` does."""
        return self._judged[0]

    @property
    def stopped_trajectories(self) -> int:
        """Trajectories that were stopped because another one had halted (width policy `first-halt`)."""
        config = self._result.config
        if config.width_policy != "first-halt":
            return 0
        before = (self.width - 1) // config.stage * config.stage  # of earlier stages nobody halted
        is_halted = self._result.is_halted[self.index, before : self.width]
        return int((~is_halted).sum()) if is_halted.any() else 0

    @property
    def valid_trajectories(self) -> int:
        """Trajectories whose answer is valid."""
        return sum(answer.votes for answer in self.solutions)

    def answer_of(self, trajectory: int) -> Answer:
        """The distinct answer that a trajectory gave."""
        answers, given = self._judged
        return answers[int(given[trajectory])]

    @cached_property
    def _judged(self) -> tuple[list[Answer], NDArray[np.int64]]:
        """The distinct answers, and the place of each trajectory's among them, `[n]`."""
        result, index, width = self._result, self.index, self.width
        candidates = result.candidates[index, :width]
        _, first, group = np.unique(self.task.canonical(candidates), axis=0, return_index=True, return_inverse=True)
        group = group.reshape(-1)
        conflicts = self.task.conflicts(np.repeat(self.puzzle[None], len(first), axis=0), candidates[first])
        halt = 1 / (1 + np.exp(-result.halt[index, :width].astype(np.float64)))
        chosen = group[result.selected[index]]
        order = sorted(range(len(first)), key=lambda each: (each != chosen, -(group == each).sum(), first[each]))
        answers = []
        for label in order:
            members, tokens = group == label, candidates[first[label]]
            answers.append(
                Answer(
                    text=self.task.format(self.puzzle, tokens),
                    tokens=tokens,
                    votes=int(members.sum()),
                    is_selected=bool(label == chosen),
                    conflicts=int(conflicts[label]),
                    lprm=float(result.lprm[index, :width][members].mean()),
                    halt_probability=float(halt[members].mean()),
                    steps=float(result.steps[index, :width][members].mean()),
                )
            )
        return answers, np.argsort(order)[group]

    def to_json(self) -> dict[str, Any]:
        """As `gram solve --json` prints it."""
        selected = self.answers[0]
        names = ("votes", "is_valid", "conflicts", "lprm", "halt_probability", "steps")
        return {
            "puzzle": self.task.format(self.puzzle),
            "answer": selected.text,
            "is_valid": selected.is_valid,
            "conflicts": selected.conflicts,
            "votes": selected.votes,
            "distinct": len(self.answers),
            "distinct_valid": len(self.solutions),
            "solutions": self.solution_count,
            "valid_trajectories": self.valid_trajectories,
            "answers": [
                {"answer": each.text, **{name: getattr(each, name) for name in names}} for each in self.answers
            ],
        }

    def __repr__(self) -> str:
        try:
            verdict = ", valid" if self.is_valid else ", not valid"
        except PuzzleError:  # the task cannot judge
            verdict = ""
        return f"<PuzzleResult {self.text!r}: {self.votes} of {self.width} votes{verdict}>"

    def _repr_html_(self) -> str:
        """Board, selected answer and other solutions, for a notebook; without verdicts where the task cannot judge."""
        board = self.task.board
        boards = [board_html(board(self.puzzle), "puzzle")]
        boards.append(board_html(board(self.puzzle, self.tokens), f"answer, votes {self.votes}"))
        figures = f"{self.votes} of {self.width} votes"
        try:
            answers, solutions = self.answers, self.solutions
        except PuzzleError:
            return f"<div>{''.join(boards)}</div><div>{figures}</div>"
        others = [each for each in solutions if not each.is_selected][:SHOWN_OTHERS]
        boards += [board_html(board(self.puzzle, each.tokens), f"also, votes {each.votes}") for each in others]
        every = "" if self.solution_count is None else f" of {self.solution_count}"
        figures += f", distinct answers: {len(answers)}, solutions found: {len(solutions)}{every}"
        return f"<div>{''.join(boards)}</div><div>{verdict_html(answers[0].conflicts)} {figures}</div>"
