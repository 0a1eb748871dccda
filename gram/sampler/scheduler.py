"""The scheduler of continuous batching: which trajectory takes the next free slot, and how far each shard has come.

All puzzles' first trajectories are served first, then all second ones, shard after shard. Bookkeeping is in arrays: a
trajectory of an open shard is a row of a table (`Trajectories`), and whoever names it names its row.

Shapes: `R` rows, `k` some of them, `p` puzzles and `n` trajectories of a shard, `P` puzzles of the run, `M` depth, `L`
puzzle tokens, `A` answer tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gram.sampler import trace
from gram.sampler.selectors import Scores
from gram.tasks.protocol import Task, Tokens, puzzle_hashes

if TYPE_CHECKING:
    from gram.sampler.sequential_tests import SequentialTests

Rows = NDArray[np.int64]
Floats = NDArray[np.float32]


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
    sparsity: Floats | None = None
    """Hoyer's measure of `h` after the last step, `[p, n]`; None where the run did not measure it."""
    trace: dict[str, NDArray[Any]] = field(default_factory=dict)
    """Arrays of a traced run, named `trace_...` (`gram/sampler/trace.py`)."""

    @classmethod
    def blank(cls, puzzles: Tokens, width: int, answer_tokens: int, *, measures_sparsity: bool = False) -> ShardResult:
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
            sparsity=np.zeros(shape, np.float32) if measures_sparsity else None,
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything by name, for a store."""
        own = {item.name: getattr(self, item.name) for item in fields(ShardResult) if item.name != "trace"}
        return {name: values for name, values in own.items() if values is not None} | self.trace

    def by_trajectory(self) -> dict[str, NDArray[Any]]:
        """The arrays whose first axes are `[p, n]`, by name."""
        names = BY_TRAJECTORY if self.sparsity is None else (*BY_TRAJECTORY, "sparsity")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> ShardResult:
        """The inverse of `arrays`."""
        left_out = {"trace"} if "sparsity" in arrays else {"trace", "sparsity"}
        own = {item.name: arrays[item.name] for item in fields(ShardResult) if item.name not in left_out}
        return ShardResult(**own, trace={name: value for name, value in arrays.items() if name.startswith("trace_")})

    def scores(self, votes: NDArray[np.int64]) -> Scores:
        """What selectors read."""
        return Scores(
            votes, self.halt, self.lprm, self.residual, self.margin, self.steps, self.is_halted, self.sparsity
        )


class Final(NamedTuple):
    """What some trajectories leave when they end, `[k]` each."""

    answers: Tokens
    """Decoded answers `[k, A]`."""
    steps: Rows
    halt: Floats
    lprm: Floats
    residual: Floats
    margin: Floats
    is_halted: NDArray[np.bool_]
    sparsity: Floats | None = None
    """Hoyer's measure of `h`, where measured."""


class OpenShard(NamedTuple):
    """A shard that is open, and its block of rows."""

    shard: Shard
    start: int
    """Its first row."""

    @property
    def size(self) -> int:
        """Rows of the block."""
        return self.shard.puzzles * self.shard.trajectories

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + self.size)

    @property
    def firsts(self) -> Rows:
        """The row of each puzzle's first trajectory, `[p]`."""
        return np.arange(self.start, self.start + self.size, self.shard.trajectories)


class RowArrays:
    """Arrays that have one row for each trajectory of the open shards, and grow together."""

    def __init__(self, **kinds: tuple[Any, ...]) -> None:
        """`kinds` are name, type and shape of a row."""
        self._names = tuple(kinds)
        for name, (kind, *shape) in kinds.items():
            setattr(self, name, np.zeros((0, *shape), kind))

    def grow(self, rows: int) -> None:
        """Makes room for `rows` rows and keeps what is there."""
        for name in self._names:
            old = getattr(self, name)
            if rows > len(old):
                new = np.zeros((rows, *old.shape[1:]), old.dtype)
                new[: len(old)] = old
                setattr(self, name, new)


def _as_records(array: NDArray[Any]) -> NDArray[Any]:
    """Values along the last axis as one record each, `[all other axes]`: numpy copies a record at once."""
    return array.reshape(-1, array.shape[-1]).view(f"V{array.itemsize * array.shape[-1]}")[:, 0]


class Trajectories(RowArrays):
    """The trajectories of all open shards: what each is, and what it has found.

    A shard's rows are one block: puzzle after puzzle, and the trajectories of each in the order of their ids. The rows
    of a closed shard serve others again.
    """

    shard: Rows
    """Index of its shard in the plan, `[R]`."""
    puzzle: Rows
    """Place of its puzzle in the run, `[R]`."""
    id: Rows
    """Its id, which keys its noise, `[R]`."""
    first: Rows
    """Row of its puzzle's first trajectory, `[R]`. What belongs to a puzzle is kept in that row."""
    lineage: Rows
    """Id of the trajectory that its state descends from, `[R]`."""
    has_ended: NDArray[np.bool_]
    answers: Tokens
    steps: Rows
    halt: Floats
    lprm: Floats
    residual: Floats
    margin: Floats
    is_halted: NDArray[np.bool_]
    sparsity: Floats
    """Only of a run that measures it."""
    trace_answers: Tokens
    """Answer after every supervision step of a traced run, `[R, M, A]`."""
    trace_floats: Floats
    """What the trace keeps beside, `[R, M, 4]`, in the order of `trace.FLOATS`; with `trace.SPARSITY` behind them
    where it is measured."""

    def __init__(
        self, task: Task, puzzles: Tokens, *, answer_tokens: int, depth: int, measures_sparsity: bool = False
    ) -> None:
        """`depth` is that of a traced run, 0 of another."""
        self.scores = ("sparsity",) if measures_sparsity else ()
        """Columns of a result that not every run has."""
        names = dict.fromkeys(("shard", "puzzle", "id", "first", "lineage", "steps"), (np.int64,))
        scores = dict.fromkeys(("halt", "lprm", "residual", "margin", *self.scores), (np.float32,))
        super().__init__(
            **names,
            **scores,
            has_ended=(bool,),
            is_halted=(bool,),
            answers=(np.uint8, answer_tokens),
            trace_answers=(np.uint8, depth, answer_tokens),
            trace_floats=(np.float32, depth, len(trace.FLOATS) + measures_sparsity * len(trace.SPARSITY)),
        )
        self.task, self.puzzles, self.depth = task, puzzles, depth
        self.room = 0
        """Rows that the first shard makes room for, at least."""
        self.hashes = np.full(len(puzzles), -1, np.int64)
        """Of the puzzles that a shard has had so far, `[P]`."""
        self.free: dict[int, list[int]] = {}
        """Where blocks of each size were."""
        self.used = 0

    def open(self, shard: Shard) -> OpenShard:
        """Gives a shard its block."""
        size = shard.puzzles * shard.trajectories
        if free := self.free.get(size):
            start = free.pop()
        else:
            start, self.used = self.used, self.used + size
            if self.used > len(self.id):
                self.grow(max(self.used, 2 * len(self.id), self.room))
        opened = OpenShard(shard, start)
        rows, shape = opened.rows, (shard.puzzles, shard.trajectories)
        puzzles = np.arange(shard.first_puzzle, shard.first_puzzle + shard.puzzles)
        new = puzzles[self.hashes[puzzles] < 0]
        if len(new):
            self.hashes[new] = puzzle_hashes(self.task.name, self.puzzles[new])
        self.shard[rows] = shard.index
        self.puzzle[rows].reshape(shape)[:] = puzzles[:, None]
        self.id[rows].reshape(shape)[:] = np.arange(shard.first_trajectory, shard.first_trajectory + shape[1])
        self.first[rows].reshape(shape)[:] = opened.firsts[:, None]
        self.lineage[rows] = self.id[rows]
        self.has_ended[rows] = False
        return opened

    def record_step(self, rows: Rows, steps: Rows, answers: Tokens, floats: tuple[Floats, ...]) -> None:
        """Keeps a supervision step, counted from 1, of a traced run; `floats` in the order of `trace_floats`."""
        places = rows * self.depth + steps - 1
        for kept, values in ((self.trace_answers, answers), (self.trace_floats, np.stack(floats, axis=1))):
            _as_records(kept)[places] = _as_records(np.ascontiguousarray(values))

    def end(self, rows: Rows, final: Final) -> None:
        """Keeps what trajectories leave."""
        self.has_ended[rows] = True
        _as_records(self.answers)[rows] = _as_records(np.ascontiguousarray(final.answers))
        self.steps[rows], self.is_halted[rows] = final.steps, final.is_halted
        self.halt[rows], self.lprm[rows] = final.halt, final.lprm
        self.residual[rows], self.margin[rows] = final.residual, final.margin
        if final.sparsity is not None:
            self.sparsity[rows] = final.sparsity

    def close(self, opened: OpenShard, widths: Rows) -> ShardResult:
        """The result of a shard whose puzzles `[p]` are decided at `widths`; its rows are free from now on.

        Trajectories beyond a puzzle's width are blank, whether they ran or not.
        """
        shard, rows = opened.shard, opened.rows
        self.free.setdefault(opened.size, []).append(opened.start)
        shape = (shard.puzzles, shard.trajectories)
        beyond = (np.arange(shard.trajectories) >= widths[:, None]).ravel().nonzero()[0]

        def block(array: NDArray[Any]) -> NDArray[Any]:
            kept = array[rows].copy()
            if len(beyond):
                kept[beyond] = 0
            return kept.reshape(*shape, *array.shape[1:])

        puzzles = self.puzzles[shard.first_puzzle : shard.first_puzzle + shard.puzzles]
        found: dict[str, Any] = {name: block(getattr(self, name)) for name in (*BY_TRAJECTORY[1:], *self.scores)}
        result = ShardResult(puzzles=puzzles, candidates=block(self.answers), widths=widths, **found)
        if self.depth:
            answers = self.trace_answers[rows].reshape(*shape, self.depth, -1)
            result.trace.update(
                trace.encode(answers, self.task.canonical, self.task.verify, puzzles, result.steps),
                **trace.encode_floats(block(self.trace_floats), result.steps),
            )
        return result


class Scheduler:
    """Chooses the trajectories for free slots, and decides when a puzzle has enough of them.

    Opens a shard only when the open ones need nothing more.
    """

    def __init__(self, table: Trajectories, *, is_by_puzzle: bool, tests: SequentialTests | None) -> None:
        """`is_by_puzzle` serves one puzzle after another: a particle filter's trajectories wait for each other. `tests`
        decide an adaptive width."""
        self.table, self.is_by_puzzle, self.tests = table, is_by_puzzle, tests
        self.is_side_by_side = tests is not None and tests.policy.stops_at_halt
        """Whether the trajectories of a stage start together, and stop at the first that halts."""
        self.unopened: Iterator[Shard] = iter(())
        self.open: dict[int, OpenShard] = {}
        """By index in the plan, in the order in which they were opened."""
        self.left: dict[int, int] = {}
        """Trajectories of each open shard that have not ended; puzzles that are undecided, where the width adapts."""
        self.waiting: Rows = np.zeros(0, np.int64)
        """Rows of the trajectories that are certainly needed and have no slot yet, in the order in which they are
        served."""
        self.on_open: list[Callable[[OpenShard], None]] = []

    def add(self, shards: Iterable[Shard]) -> None:
        """Adds the shards to run, in order."""
        self.unopened = iter(shards)

    def next_needed(self, count: int) -> Rows:
        """Up to `count` trajectories that are certainly needed; of those that run side by side all of a puzzle's or
        none."""
        while len(self.waiting) < count and (shard := next(self.unopened, None)) is not None:
            self._open(shard)
        if self.is_side_by_side and count < len(self.waiting):
            puzzles = self.table.first[self.waiting[: count + 1]]
            begins = np.flatnonzero(puzzles[1:] != puzzles[:-1])
            count = int(begins[-1]) + 1 if len(begins) else 0
        taken, self.waiting = self.waiting[:count], self.waiting[count:]
        return taken

    def _open(self, shard: Shard) -> None:
        opened = self.open[shard.index] = self.table.open(shard)
        if self.tests is None:
            self.left[shard.index] = opened.size
            rows = np.arange(opened.start, opened.start + opened.size)
            if not self.is_by_puzzle:
                rows = rows.reshape(shard.puzzles, shard.trajectories).T.reshape(-1)
        else:
            self.left[shard.index] = shard.puzzles
            rows = self.tests.open(opened, self.table)
        for told in self.on_open:
            told(opened)
        self.waiting = np.concatenate([self.waiting, rows])

    def stops_with(self, rows: Rows, halted: Rows) -> NDArray[np.bool_]:
        """Which of the running trajectories `rows` stop because one of `halted` has, `[k]`: those that run side by side
        with it."""
        firsts = self.table.first
        return np.isin(firsts[rows], firsts[halted])

    def next_speculative(self, count: int) -> Rows:
        """Up to `count` trajectories that may come to be needed, of the puzzles that have the fewest first."""
        if self.tests is None or self.is_side_by_side or count <= 0 or not self.open:
            return self.waiting[:0]
        return self.tests.next_speculative(count, self.table)

    def end(self, rows: Rows, final: Final) -> tuple[list[OpenShard], int]:
        """Keeps what trajectories leave. Returns the shards that this finishes, and how many trajectories need no
        slot any more."""
        table = self.table
        table.end(rows, final)
        if self.tests is None:
            return self.count(table.shard[rows]), len(rows)
        decided, more = self.tests.end(rows, final, table)
        if len(decided) and len(self.waiting):
            self.waiting = self.waiting[~self.is_decided(self.waiting)]
        if len(more):
            is_first = not len(self.waiting)
            self.waiting = more if is_first else self.tests.in_turn(np.concatenate([self.waiting, more]), table)
        return self.count(table.shard[decided]), len(decided) * self.tests.columns

    def count(self, shards: Rows) -> list[OpenShard]:
        """Takes note of something that has come to its end in each of `shards`; returns those that are finished."""
        finished: list[OpenShard] = []
        if not len(shards):
            return finished
        lowest = min(self.open)
        counts = np.bincount(shards - lowest)
        for place in np.flatnonzero(counts).tolist():
            index = lowest + place
            self.left[index] -= int(counts[place])
            if not self.left[index]:
                finished.append(self.open[index])
        return finished

    def is_decided(self, rows: Rows) -> NDArray[np.bool_]:
        """Whether the puzzles of trajectories are decided, so that they are not needed any more."""
        if self.tests is None:
            return np.zeros(len(rows), bool)
        decided: NDArray[np.bool_] = self.tests.decided[self.table.first[rows]] > 0
        return decided

    def close(self, opened: OpenShard) -> ShardResult:
        """Forgets a finished shard and returns its result."""
        shard = opened.shard
        del self.open[shard.index], self.left[shard.index]
        if self.tests is None:
            widths = np.full(shard.puzzles, shard.trajectories, np.int64)
        else:
            widths = self.tests.decided[opened.firsts]
        return self.table.close(opened, widths)
