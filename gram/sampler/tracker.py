"""Bookkeeping of one shard: which trajectories are wanted next, what has come back, and which puzzles are decided.

Shapes: `p` puzzles and `n` trajectories of the shard, `M` depth, `A` answer tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gram.config import SamplerConfig
from gram.sampler import trace
from gram.sampler.plan import Shard
from gram.sampler.result import ShardResult
from gram.sampler.width import Prefix, WidthPolicy
from gram.tasks.protocol import Task, Tokens
from gram.tasks.puzzle_sets import puzzle_hash


class Ended(NamedTuple):
    """What a trajectory leaves."""

    answer: Tokens
    steps: int
    halt: float
    lprm: float
    residual: float
    margin: float
    is_halted: bool
    lineage: int


class Tracker:
    """One shard while it runs. Trajectories are named by (puzzle, column): places in the shard, not ids."""

    def __init__(
        self,
        task: Task,
        puzzles: Tokens,
        shard: Shard,
        config: SamplerConfig,
        policy: WidthPolicy | None,
        *,
        answer_tokens: int,
        is_trust_halt: bool,
        is_traced: bool,
    ) -> None:
        assert config.depth is not None
        self.task, self.shard, self.policy = task, shard, policy
        self.puzzles = puzzles[shard.first_puzzle : shard.first_puzzle + shard.puzzles]
        self.hashes = np.array([puzzle_hash(task.name, puzzle) for puzzle in self.puzzles], dtype=np.int64)
        self.is_trust_halt = is_trust_halt
        count, width = shard.puzzles, shard.trajectories
        shape = (count, width)
        self.candidates = np.zeros((*shape, answer_tokens), dtype=np.uint8)
        self.steps, self.lineage = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self.halt, self.lprm, self.residual, self.margin = (np.zeros(shape, np.float32) for _ in range(4))
        self.is_halted, self.has_ended = np.zeros(shape, bool), np.zeros(shape, bool)
        self.widths = np.zeros(count, np.int64)
        """Trajectories that count; 0 while a puzzle is undecided."""
        self.undecided = count
        self.next = np.zeros(count, np.int64)
        """First column that has not been handed out."""
        self.limit = np.full(count, width, np.int64)
        """Columns wanted so far."""
        self.is_queued = np.zeros(count, bool)
        """Whether the puzzle stands in the queue."""
        self.prefixes: list[Prefix] = []
        if policy is not None:
            self.prefixes = [Prefix() for _ in range(count)]
            self.limit[:] = [min(policy.next_stop(prefix), width) for prefix in self.prefixes]
        self.trace_answers = np.zeros((*shape, config.depth if is_traced else 0, answer_tokens), np.uint8)
        self.trace_values = {
            name: np.zeros((*shape, config.depth if is_traced else 0), np.float32)
            for name in ("halt", "lprm", "residual", "margin")
        }
        self.is_traced = is_traced

    def wanted(self, puzzle: int) -> bool:
        """Whether the puzzle's next trajectory is needed now."""
        return bool(self.widths[puzzle] == 0 and self.next[puzzle] < self.limit[puzzle])

    def spare(self) -> Iterator[int]:
        """Puzzles that may come to need their next trajectory, those with the fewest first."""
        open_ = np.flatnonzero((self.widths == 0) & (self.next < self.shard.trajectories))
        yield from open_[np.argsort(self.next[open_], kind="stable")].tolist()

    def end(self, puzzle: int, column: int, ended: Ended) -> bool:
        """Takes a trajectory's end; whether the puzzle is now decided."""
        place = puzzle, column
        self.candidates[place], self.steps[place], self.halt[place] = ended.answer, ended.steps, ended.halt
        self.lprm[place], self.residual[place], self.margin[place] = ended.lprm, ended.residual, ended.margin
        self.is_halted[place], self.lineage[place] = ended.is_halted, ended.lineage
        self.has_ended[place] = True
        width = self.shard.trajectories
        if self.policy is None:
            decided = width if self.has_ended[puzzle].all() else 0
        else:
            decided = self._decide(puzzle, self.policy)
        if decided:
            self.widths[puzzle] = decided
            self.undecided -= 1
        return decided > 0

    def _decide(self, puzzle: int, policy: WidthPolicy) -> int:
        """The smallest width at which the first trajectories decide, as far as they have come; 0 where none does."""
        prefix, width = self.prefixes[puzzle], self.shard.trajectories
        while (column := prefix.width) < width and self.has_ended[puzzle, column]:
            answer = self.candidates[puzzle, column][None]
            is_valid = policy.needs_verifier and bool(self.task.verify(self.puzzles[puzzle][None], answer)[0])
            trust = 1 / (1 + np.exp(-float(self.halt[puzzle, column])))
            if not self.is_trust_halt:
                trust = float(self.lprm[puzzle, column])
            prefix.add(self.task.canonical(answer)[0].tobytes(), trust, is_valid)
            if prefix.width == width or (prefix.width == self.limit[puzzle] and policy.decides(prefix)):
                return prefix.width
            if prefix.width == self.limit[puzzle]:
                self.limit[puzzle] = min(policy.next_stop(prefix), width)
        return 0

    def note(self, puzzle: int, column: int, step: int, answer: Tokens, values: dict[str, float]) -> None:
        """Keeps one supervision step (counted from 1) of a traced run; later steps repeat it until they are noted."""
        self.trace_answers[puzzle, column, step - 1 :] = answer
        for name, value in values.items():
            self.trace_values[name][puzzle, column, step - 1 :] = value

    def result(self) -> ShardResult:
        """The finished shard; trajectories beyond a puzzle's width are blank, whether they were run or not."""
        beyond = np.arange(self.shard.trajectories) >= self.widths[:, None]
        for array in (self.candidates, self.steps, self.halt, self.lprm, self.residual, self.margin, self.is_halted):
            array[beyond] = 0
        self.lineage[beyond] = 0
        traced: dict[str, NDArray[np.generic]] = {}
        if self.is_traced:
            self.trace_answers[beyond] = 0
            for name, values in self.trace_values.items():
                values[beyond] = 0
                traced[f"trace_{name}"] = values
            traced |= trace.encode(self.trace_answers, self.task.canonical, self.task.verify, self.puzzles, self.steps)
        return ShardResult(
            puzzles=self.puzzles,
            candidates=self.candidates,
            steps=self.steps,
            halt=self.halt,
            lprm=self.lprm,
            residual=self.residual,
            margin=self.margin,
            is_halted=self.is_halted,
            lineage=self.lineage,
            widths=self.widths,
            trace=dict(traced),
        )
