"""What a traced run keeps of every supervision step, and its reader. Not the engine, which fills the floats.

Few of the answers along a trajectory are distinct, so each puzzle has a table of its distinct canonical answers and a
step keeps an index into it. Beside what every shard of `p` puzzles times `n` trajectories has (`puzzles` uint8
`[p, L]`, `steps` int64 `[p, n]`), a traced one has

    trace_answer      [p, n, M]  uint16 (uint32 where a table needs it): row in the puzzle's table
    trace_table       [K, A]     uint8: canonical answers, the puzzles' tables one behind the other
    trace_table_size  [p]        int64: rows of each, so K is their sum
    trace_right       [K]        bool: the verifier's verdict on the answer as it was first written
    trace_halt, trace_lprm, trace_residual, trace_margin   [p, n, M]  float32, from the engine
    trace_h_top_share and the other names of `SPARSITY`    [p, n, M]  float32, only where the run measures sparsity

Rows stand in the order of their first appearance by (trajectory, step). Tables hold canonical forms, so that tables of
several shards can be merged without the task. Steps behind `steps` repeat the last answer. A trajectory of 0 steps has
no answer: the largest value of the type on disk, -1 in memory.

A lattice that the halt head ends is solved and would stay as it is, so its trace is that of a run to the full depth;
the reader gives the steps behind `steps` the residual of a state at rest, 0.

Shapes: `P` puzzles of a block, `N` width, `M` depth, `L` puzzle tokens, `A` answer tokens, `K` rows of all tables,
`R` rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gram.sampler.store import Store, StoreError
from gram.tasks.protocol import Tokens

Index = NDArray[np.int64]
FLOATS = ("halt", "lprm", "residual", "margin")
SPARSITY = ("h_top_share", "h_hoyer", "h_participation", "l_top_share", "l_hoyer", "l_participation")
"""What `gram/sampler/sparsity.py` measures of the states, in its order."""
SIGNAL = SPARSITY.index("h_hoyer")
"""The one that selector and width policy read."""
NO_ANSWER = -1
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def row_words(rows: Tokens) -> NDArray[np.uint64]:
    """Rows `[R, A]` as words of eight tokens each, `[R, W]`."""
    tokens = rows.shape[1]
    if tokens % 8 == 0:
        return np.ascontiguousarray(rows).view(np.uint64)
    padded = np.zeros((len(rows), -(-tokens // 8) * 8), dtype=np.uint8)
    padded[:, :tokens] = rows
    return padded.view(np.uint64)


def row_hashes(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A 64-bit hash of every row of words `[R, W]`; two rows may share one by accident."""
    hashes: NDArray[np.uint64] = words @ _powers(words.shape[1])
    return hashes


@cache
def _powers(count: int) -> NDArray[np.uint64]:
    """The first powers of the multiplier."""
    return np.full(count, _MULTIPLIER).cumprod(dtype=np.uint64)


def _distinct(owner: Index, rows: Tokens) -> tuple[Index, Index]:
    """First place of every distinct pair of an owner `[R]` (ascending) and a row `[R, A]`, and each row's pair.

    Pairs are numbered by first appearance. Rows are sorted by a 64-bit hash; every row is then compared with the first
    of its hash, and sorted in full should two ever share one.
    """
    words, owners = row_words(rows), owner.astype(np.uint64)
    hashes = (row_hashes(words) + owners) * _MULTIPLIER
    _, first, pair = np.unique(hashes, return_index=True, return_inverse=True)
    stands_for = first[pair]
    if not (np.array_equal(owner[stands_for], owner) and np.array_equal(words[stands_for], words)):
        whole = np.concatenate([owners[:, None], words], axis=1)
        _, first, pair = np.unique(whole, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return first[order], rank[pair.reshape(-1)]


def _offsets(sizes: Index) -> Index:
    return np.cumsum(sizes) - sizes


def encode(
    answers: Tokens,
    canonical: Callable[[Tokens], Tokens],
    verify: Callable[[Tokens, Tokens], NDArray[np.bool_]],
    puzzles: Tokens,
    steps: Index,
) -> dict[str, NDArray[Any]]:
    """The arrays of a shard's answers `[p, n, M, A]` to puzzles `[p, L]`; `steps` `[p, n]` in [0, M] were taken.

    What `answers` holds behind `steps` does not matter. The verifier is called once, on distinct answers.
    """
    count, width, depth, tokens = answers.shape
    if steps.shape != (count, width) or (steps.size and not (steps.min() >= 0 and steps.max() <= depth)):
        found = f"{list(steps.shape)} in [{steps.min(initial=0)}, {steps.max(initial=0)}]"
        raise ValueError(f"steps must be [{count}, {width}] in [0, {depth}], got {found}")
    is_taken = np.arange(depth) < steps[:, :, None]
    owner = np.nonzero(is_taken)[0].astype(np.int64)
    rows = answers[is_taken]
    first_written, written = _distinct(owner, rows)
    distinct = rows[first_written]
    forms = canonical(distinct) if len(rows) else distinct
    if forms is distinct:  # every answer is its own canonical form
        first_form = form = np.arange(len(forms))
    else:
        first_form, form = _distinct(owner[first_written], forms)
    first = first_written[first_form]
    right = verify(puzzles[owner[first]], rows[first]) if len(rows) else np.zeros(0, dtype=np.bool_)
    sizes = np.bincount(owner[first], minlength=count).astype(np.int64)
    kind: type[np.unsignedinteger[Any]] = np.uint16 if sizes.max(initial=0) < np.iinfo(np.uint16).max else np.uint32
    answer = np.full((count, width, depth), np.iinfo(kind).max, dtype=kind)
    answer[is_taken] = form[written] - _offsets(sizes)[owner]
    return {
        "trace_answer": answer.reshape(-1)[_repeating(steps, depth)] if depth else answer,
        "trace_table": np.ascontiguousarray(forms[first_form]).reshape(-1, tokens),
        "trace_table_size": sizes,
        "trace_right": np.asarray(right, dtype=np.bool_),
    }


def encode_floats(values: NDArray[np.float32], steps: Index) -> dict[str, NDArray[np.float32]]:
    """The arrays of a shard's floats `[p, n, M, 4]`, in the order of `FLOATS`, or `[p, n, M, 10]` with those of
    `SPARSITY` behind; `steps` `[p, n]` were taken, and those behind repeat the last."""
    last = _repeating(steps, values.shape[2])
    names = (*FLOATS, *SPARSITY)[: values.shape[3]]
    return {f"trace_{name}": values[..., place].reshape(-1)[last] for place, name in enumerate(names)}


def _repeating(steps: Index, depth: int) -> Index:
    """Where each step's value of a flat array stands, `[p, n, M]`: steps that were not taken repeat the last one."""
    last = np.minimum(np.arange(depth), np.maximum(steps, 1)[:, :, None] - 1)
    return np.asarray(np.arange(steps.size).reshape(*steps.shape, 1) * depth + last)


@dataclass(frozen=True, slots=True)
class TraceBlock:
    """All trajectories of some puzzles that follow each other in the run's set."""

    puzzle: Index
    """Place in the run's set, `[P]`."""
    puzzles: Tokens
    """`[P, L]`."""
    answer: NDArray[np.int32]
    """Row in the puzzle's table after each step, `[P, N, M]`; -1 for a trajectory of 0 steps."""
    is_right: NDArray[np.bool_]
    """The verifier's verdict on that answer, `[P, N, M]`; False where there is none."""
    halt: NDArray[np.float32]
    """Halt logit, `[P, N, M]`."""
    lprm: NDArray[np.float32]
    """Value the process reward head gives, `[P, N, M]`."""
    residual: NDArray[np.float32]
    """Relative movement of the high-level state, `[P, N, M]`."""
    margin: NDArray[np.float32]
    """Margin of the decoded tokens, `[P, N, M]`."""
    steps: Index
    """Supervision steps taken, `[P, N]`."""
    tables: list[Tokens]
    """Distinct canonical answers of each puzzle, `[k, A]`, by first appearance in (trajectory, step)."""
    sparsity: NDArray[np.float32] | None = None
    """How sparse the states are, `[P, N, M, 6]` in the order of `SPARSITY`; None where it was not measured."""


class Traces:
    """Reader of the traces of a finished run; holds one block in memory."""

    def __init__(self, store: Store) -> None:
        """For `open` alone."""
        self._store = store
        try:
            self.metadata = store.metadata
            """What the run wrote about itself."""
            self.width, self.depth = int(self.metadata["config"]["width"]), int(self.metadata["config"]["depth"])
            """`N` and `M`."""
            self.measures_sparsity = bool(self.metadata["config"].get("measures_sparsity", False))
            """Whether the run measured the sparsity of states."""
            names = (self.metadata["config"].get(name) for name in ("injector", "halting"))
            is_cut = self.metadata["config"].get("width_policy") == "first-halt"
            self.comes_to_rest = tuple(names) == ("commitment", "head") and not is_cut
            """Whether states behind `steps` are solved lattices, which do not move."""
            self.puzzle_count = int(self.metadata["puzzles"])
            shards = [tuple(map(int, shard)) for shard in self.metadata["shards"]]
            self._groups: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
            for index, first, puzzles, first_trajectory, trajectories in shards:
                self._groups.setdefault((first, puzzles), []).append((first_trajectory, trajectories, index))
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"about must hold config, puzzles and shards of a run, got {error!r}") from None
        if missing := store.missing():
            raise StoreError(f"the run is not finished: {len(missing)} of {store.shard_count} shards are missing")
        self._check_cover()

    @classmethod
    def open(cls, folder: Path | str) -> Traces:
        """The traces in a run's folder. Raises `StoreError` where shards are missing or there are no traces."""
        store = Store.read_only(folder)
        try:
            return cls(store)
        except BaseException:
            store.close()
            raise

    def _check_cover(self) -> None:
        """That the shards have every trajectory of every puzzle once."""
        puzzle = 0
        for (first, puzzles), parts in sorted(self._groups.items()):
            parts.sort()
            trajectory = 0
            for first_trajectory, trajectories, _ in parts:
                if first_trajectory == trajectory:
                    trajectory += trajectories
            if first != puzzle or trajectory != self.width or sum(part[1] for part in parts) != self.width:
                raise StoreError(f"shards must cover puzzle {puzzle} and width {self.width} once, got {first}, {parts}")
            puzzle += puzzles
        if puzzle != self.puzzle_count:
            raise StoreError(f"shards must cover {self.puzzle_count} puzzles, got {puzzle}")

    def blocks(self) -> Iterator[TraceBlock]:
        """The run's puzzles in order, as many at a time as its shards have. Raises `StoreError` for a damaged shard."""
        for (first, puzzles), parts in sorted(self._groups.items()):
            yield self._merge(first, puzzles, [self._read(index) for _, _, index in parts])

    def _read(self, index: int) -> dict[str, NDArray[Any]]:
        arrays = self._store.read(index)
        names = ("puzzles", "steps", "trace_answer", "trace_table", "trace_table_size", "trace_right")
        floats = (*FLOATS, *SPARSITY) if self.measures_sparsity else FLOATS
        for name in (*names, *(f"trace_{name}" for name in floats)):
            if name not in arrays:
                raise StoreError(f"shard {index} must hold {name} of a traced run, got {', '.join(sorted(arrays))}")
        return arrays

    def _merge(self, first: int, puzzles: int, shards: list[dict[str, NDArray[Any]]]) -> TraceBlock:
        owners = [np.repeat(np.arange(puzzles), shard["trace_table_size"]) for shard in shards]
        by_puzzle = np.argsort(np.concatenate(owners), kind="stable")
        owner = np.concatenate(owners)[by_puzzle]
        rows = np.concatenate([shard["trace_table"] for shard in shards])[by_puzzle]
        firsts, row = _distinct(owner, rows)
        right = np.concatenate([shard["trace_right"] for shard in shards])[by_puzzle][firsts]
        sizes = np.bincount(owner[firsts], minlength=puzzles).astype(np.int64)
        starts = _offsets(sizes)
        merged = np.empty_like(row)
        merged[by_puzzle] = row
        answers, verdicts, seen = [], [], 0
        for shard, shard_owner in zip(shards, owners, strict=True):
            has_answer = shard["trace_answer"] != np.iinfo(shard["trace_answer"].dtype).max
            of_shard = _offsets(shard["trace_table_size"])[:, None, None] + seen
            place = np.where(has_answer, shard["trace_answer"] + of_shard, 0)
            everywhere = merged[place] if len(merged) else np.zeros_like(place)
            answers.append(np.where(has_answer, everywhere - starts[:, None, None], NO_ANSWER).astype(np.int32))
            verdicts.append(has_answer & (right[everywhere] if len(right) else False))
            seen += len(shard_owner)

        def joined(name: str) -> NDArray[Any]:
            return np.concatenate([shard[name] for shard in shards], axis=1)

        steps, residual = joined("steps"), joined("trace_residual")
        if self.comes_to_rest:
            residual = np.where(np.arange(self.depth) < steps[..., None], residual, np.float32(0))
        return TraceBlock(
            puzzle=np.arange(first, first + puzzles, dtype=np.int64),
            puzzles=shards[0]["puzzles"],
            answer=np.concatenate(answers, axis=1),
            is_right=np.concatenate(verdicts, axis=1),
            halt=joined("trace_halt"),
            lprm=joined("trace_lprm"),
            residual=residual,
            margin=joined("trace_margin"),
            steps=steps,
            tables=np.split(rows[firsts], starts[1:]),
            sparsity=np.stack([joined(f"trace_{name}") for name in SPARSITY], -1) if self.measures_sparsity else None,
        )

    def close(self) -> None:
        """Frees the file."""
        self._store.close()

    def __enter__(self) -> Traces:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
