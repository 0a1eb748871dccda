"""The scheduler of continuous batching: which trajectory takes the next free slot, and how far each shard has come.

All puzzles' first trajectories are served first, then all second ones, shard after shard. A shard's state also says
which of its puzzles are decided and collects what its trajectories found.

Shapes: `p` puzzles and `n` trajectories of a shard, `M` depth, `L` puzzle tokens, `A` answer tokens.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gram.config import ResolvedConfig
from gram.sampler import trace
from gram.sampler.selectors import Scores
from gram.sampler.width import SequentialTest, WidthPolicy
from gram.tasks.protocol import Task, Tokens, puzzle_hash

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Shard:
    """One unit of work: `trajectories` of each of `puzzles`, counted from the firsts."""

    index: int
    """Place in the plan."""
    first_puzzle: int
    puzzles: int
    first_trajectory: int
    trajectories: int


BY_TRAJECTORY = ("candidates", "steps", "halt", "lprm", "residual", "margin", "is_halted", "lineage")
"""Arrays of a result whose first axes are puzzles and trajectories."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardResult:
    """The trajectories of one shard, as the store keeps them. Same shard, same arrays, whatever ran it."""

    puzzles: Tokens
    """`[p, L]`."""
    candidates: Tokens
    """Decoded answer of each trajectory, `[p, n, A]`; zeros where a trajectory does not count."""
    steps: NDArray[np.int64]
    """Supervision steps taken, `[p, n]`; 0 where a trajectory does not count."""
    halt: NDArray[np.float32]
    """Halt logit at the last step, `[p, n]`."""
    lprm: NDArray[np.float32]
    """Predicted final accuracy at the last step, `[p, n]`."""
    residual: NDArray[np.float32]
    """Movement of `h` in the last step, relative to its length, `[p, n]`."""
    margin: NDArray[np.float32]
    """Probability of the likeliest token less that of the next, mean over answer tokens, `[p, n]`."""
    is_halted: NDArray[np.bool_]
    """Whether a halting rule ended it, rather than its depth, `[p, n]`."""
    lineage: NDArray[np.int64]
    """Trajectory that its state descends from, `[p, n]`: itself unless resampling copied another over it."""
    widths: NDArray[np.int64]
    """Trajectories that count, `[p]`: the first so many of `n`; of the others nothing is known (adaptive width)."""
    trace: dict[str, NDArray[Any]] = field(default_factory=dict)
    """Arrays of a traced run, named `trace_...` (`gram/sampler/trace.py`)."""

    @classmethod
    def blank(cls, puzzles: Tokens, width: int, answer_tokens: int) -> ShardResult:
        """The result of puzzles `[p, L]` whose trajectories have not run yet: zeros, to be filled."""
        shape = len(puzzles), width
        return cls(
            puzzles=puzzles,
            candidates=np.zeros((*shape, answer_tokens), np.uint8),
            steps=np.zeros(shape, np.int64),
            halt=np.zeros(shape, np.float32),
            lprm=np.zeros(shape, np.float32),
            residual=np.zeros(shape, np.float32),
            margin=np.zeros(shape, np.float32),
            is_halted=np.zeros(shape, bool),
            lineage=np.zeros(shape, np.int64),
            widths=np.zeros(len(puzzles), np.int64),
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything by name, for a store."""
        own = {item.name: getattr(self, item.name) for item in fields(ShardResult) if item.name != "trace"}
        return own | self.trace

    def by_trajectory(self) -> dict[str, NDArray[Any]]:
        """The arrays whose first axes are `[p, n]`, by name."""
        return {name: getattr(self, name) for name in BY_TRAJECTORY}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> ShardResult:
        """The inverse of `arrays`."""
        own = {item.name: arrays[item.name] for item in fields(ShardResult) if item.name != "trace"}
        return ShardResult(**own, trace={name: value for name, value in arrays.items() if name.startswith("trace_")})

    def scores(self, votes: NDArray[np.int64]) -> Scores:
        """What selectors read."""
        return Scores(votes, self.halt, self.lprm, self.residual, self.margin, self.steps, self.is_halted)


class Final(NamedTuple):
    """What a trajectory leaves when it ends."""

    answer: Tokens
    steps: int
    halt: float
    lprm: float
    residual: float
    margin: float
    is_halted: bool
    lineage: int


class ShardState:
    """A shard while it runs. A trajectory is named by (puzzle, column): its place in the shard, not its id."""

    def __init__(
        self,
        task: Task,
        puzzles: Tokens,
        shard: Shard,
        config: ResolvedConfig,
        policy: WidthPolicy | None,
        *,
        identities: NDArray[np.int64] | None = None,
        answer_tokens: int,
        trusts_halt_head: bool,
        is_traced: bool,
    ) -> None:
        self.task, self.shard, self.policy = task, shard, policy
        self.puzzles = puzzles[shard.first_puzzle : shard.first_puzzle + shard.puzzles]
        self.identities = None if identities is None else identities[shard.first_puzzle :][: shard.puzzles]
        self.hashes = np.array([puzzle_hash(task.name, puzzle) for puzzle in self.puzzles], dtype=np.int64)
        self.trusts_halt_head = trusts_halt_head
        shape = count, width = shard.puzzles, shard.trajectories
        self.found = ShardResult.blank(self.puzzles, width, answer_tokens)
        """Filled as trajectories end; `widths` is 0 while a puzzle is undecided."""
        self.has_ended = np.zeros(shape, bool)
        self.undecided = count
        self.next = np.zeros(count, np.int64)
        """First column that has no slot yet."""
        self.limit = np.full(count, width, np.int64)
        """Columns needed so far."""
        self.is_waiting = np.zeros(count, bool)
        """Whether the puzzle waits for a slot."""
        self.tests: list[SequentialTest] = []
        if policy is not None:
            self.tests = [SequentialTest() for _ in range(count)]
            self.limit[:] = [min(policy.next_look(test), width) for test in self.tests]
        self.is_traced = is_traced
        depth = config.depth if is_traced else 0
        self.trace_answers = np.zeros((*shape, depth, answer_tokens), np.uint8)
        self.trace_values = {name: np.zeros((*shape, depth), np.float32) for name in trace.FLOATS}

    def needs_more(self, puzzle: int) -> bool:
        """Whether the puzzle certainly needs its next trajectory."""
        return bool(self.found.widths[puzzle] == 0 and self.next[puzzle] < self.limit[puzzle])

    def may_need_more(self) -> Iterator[int]:
        """Puzzles that may come to need their next trajectory, those with the fewest first."""
        open_ = np.flatnonzero((self.found.widths == 0) & (self.next < self.shard.trajectories))
        yield from open_[np.argsort(self.next[open_], kind="stable")].tolist()

    def end(self, puzzle: int, column: int, final: Final) -> bool:
        """Records a trajectory's end. Returns whether the puzzle is now decided."""
        found, place = self.found, (puzzle, column)
        found.candidates[place], found.steps[place], found.halt[place] = final.answer, final.steps, final.halt
        found.lprm[place], found.residual[place], found.margin[place] = final.lprm, final.residual, final.margin
        found.is_halted[place], found.lineage[place] = final.is_halted, final.lineage
        self.has_ended[place] = True
        if self.policy is None:
            width = self.shard.trajectories if self.has_ended[puzzle].all() else 0
        else:
            width = self._decided_width(puzzle, self.policy)
        if width:
            found.widths[puzzle] = width
            self.undecided -= 1
        return width > 0

    def _decided_width(self, puzzle: int, policy: WidthPolicy) -> int:
        """The smallest width at which the first trajectories decide, as far as they have ended; 0 where none does."""
        test, width, found = self.tests[puzzle], self.shard.trajectories, self.found
        while (column := test.width) < width and self.has_ended[puzzle, column]:
            answer = found.candidates[puzzle, column][None]
            is_valid = policy.needs_verifier and bool(self.task.verify(self.puzzles[puzzle][None], answer)[0])
            trust = 1 / (1 + np.exp(-float(found.halt[puzzle, column])))
            if not self.trusts_halt_head:
                trust = float(found.lprm[puzzle, column])
            test.add(self.task.canonical(answer)[0].tobytes(), trust, is_valid)
            if test.width == width or (test.width == self.limit[puzzle] and policy.decides(test)):
                return test.width
            if test.width == self.limit[puzzle]:
                self.limit[puzzle] = min(policy.next_look(test), width)
        return 0

    def record_step(self, puzzle: int, column: int, step: int, answer: Tokens, values: dict[str, float]) -> None:
        """Keeps a supervision step, counted from 1, of a traced run. Later steps repeat it until they are recorded."""
        self.trace_answers[puzzle, column, step - 1 :] = answer
        for name, value in values.items():
            self.trace_values[name][puzzle, column, step - 1 :] = value

    def result(self) -> ShardResult:
        """The finished shard. Trajectories beyond a puzzle's width are blank, whether they ran or not."""
        found = self.found
        beyond = np.arange(self.shard.trajectories) >= found.widths[:, None]
        for array in found.by_trajectory().values():
            array[beyond] = 0
        if self.is_traced:
            self.trace_answers[beyond] = 0
            for name, values in self.trace_values.items():
                values[beyond] = 0
                found.trace[f"trace_{name}"] = values
            found.trace.update(
                trace.encode(self.trace_answers, self.task.canonical, self.task.verify, self.puzzles, found.steps)
            )
        return found


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One trajectory that waits for a slot or occupies one."""

    shard: ShardState
    puzzle: int
    """Place in the shard."""
    column: int
    """Place in the shard."""
    lineage: int
    """Id of the trajectory that its state descends from."""
    step: int = 0
    """Supervision steps taken."""
    state: Tensor | None = None
    """State to resume from, `[2, L, D]`; None starts anew."""
    memory: tuple[Tokens, int] | None = None
    """Of one that resumes: its last answer, and for how many steps it has stayed the same."""

    @property
    def id(self) -> int:
        """Its id, which keys its noise."""
        return self.shard.shard.first_trajectory + self.column


class Scheduler:
    """Chooses the trajectories for free slots. Opens a shard only when the open ones need nothing more."""

    def __init__(self, open_shard: Callable[[Shard], ShardState], *, is_by_puzzle: bool) -> None:
        """`is_by_puzzle` serves one puzzle after another: a particle filter's trajectories wait for each other."""
        self.open_shard, self.is_by_puzzle = open_shard, is_by_puzzle
        self.unopened: Iterator[Shard] = iter(())
        self.heap: list[tuple[int, int, int]] = []
        """(shard, column, puzzle) of every puzzle that needs a trajectory, each once; the puzzle comes first under
        `is_by_puzzle`."""
        self.open: dict[int, ShardState] = {}
        self.resuming: deque[Trajectory] = deque()

    def add(self, shards: Iterable[Shard]) -> None:
        """Adds the shards to run, in order."""
        self.unopened = iter(shards)

    def resume(self, trajectories: Iterable[Trajectory]) -> None:
        """Takes back trajectories that waited at a barrier. They are served before new ones."""
        self.resuming.extend(trajectories)

    def next_needed(self, count: int) -> list[Trajectory]:
        """Up to `count` trajectories that are certainly needed."""
        taken: list[Trajectory] = []
        while len(taken) < count:
            if self.resuming:
                taken.append(self.resuming.popleft())
            elif self.heap:
                taken += self._pop()
            elif (shard := next(self.unopened, None)) is not None:
                state = self.open[shard.index] = self.open_shard(shard)
                for puzzle in range(shard.puzzles):
                    self._push(state, puzzle)
            else:
                break
        return taken

    def next_speculative(self, count: int) -> list[Trajectory]:
        """Up to `count` trajectories that may come to be needed."""
        taken: list[Trajectory] = []
        for state in self.open.values():
            for puzzle in state.may_need_more() if len(taken) < count else ():
                taken.append(self._next_of(state, puzzle))
                if len(taken) >= count:
                    break
        return taken

    def close(self, state: ShardState) -> None:
        """Forgets a finished shard."""
        del self.open[state.shard.index]
        self.heap = [entry for entry in self.heap if entry[0] != state.shard.index]
        heapq.heapify(self.heap)

    def requeue(self, state: ShardState, puzzle: int) -> None:
        """Lets a puzzle wait again where it has come to need more trajectories."""
        if state.needs_more(puzzle):
            self._push(state, puzzle)

    def _push(self, state: ShardState, puzzle: int) -> None:
        if state.is_waiting[puzzle]:
            return
        state.is_waiting[puzzle] = True
        rank = (puzzle, int(state.next[puzzle])) if self.is_by_puzzle else (int(state.next[puzzle]), puzzle)
        heapq.heappush(self.heap, (state.shard.index, *rank))

    def _pop(self) -> list[Trajectory]:
        index, *rank = heapq.heappop(self.heap)
        state, puzzle = self.open[index], rank[0] if self.is_by_puzzle else rank[1]
        state.is_waiting[puzzle] = False
        if not state.needs_more(puzzle):
            return []  # decided since, or served speculatively
        trajectory = self._next_of(state, puzzle)
        self.requeue(state, puzzle)
        return [trajectory]

    def _next_of(self, state: ShardState, puzzle: int) -> Trajectory:
        column = int(state.next[puzzle])
        state.next[puzzle] += 1
        return Trajectory(state, puzzle, column, lineage=state.shard.first_trajectory + column)
