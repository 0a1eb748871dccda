"""Traces: every supervision step of every trajectory, compact, and read block by block.

A traced run keeps beside each shard (`p` puzzles, `n` trajectories, `M` steps):

    trace_answer      u16 or u32 [p, n, M]  decoded answer, an index into its puzzle's table
    trace_table       u8 [sum of k, A]      the puzzles' tables one after another: canonical answers, distinct
    trace_table_size  i64 [p]               k of each puzzle
    trace_right       bool [sum of k]       the verifier's verdict on each
    trace_halt, trace_lprm, trace_residual, trace_margin   f32 [p, n, M]

Steps after a trajectory's end repeat its last one. `residual` is the relative movement of `h` in that step.

Shapes: `P` puzzles of a block, `N` width, `M` depth, `A` answer tokens, `L` puzzle tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gram.sampler.plan import Shard
from gram.sampler.store import Store, StoreError
from gram.tasks.protocol import Tokens

SCORES = ("halt", "lprm", "residual", "margin")


def encode(
    answers: Tokens,
    canonical: Callable[[Tokens], Tokens],
    verify: Callable[[Tokens, Tokens], NDArray[np.bool_]],
    *,
    puzzles: Tokens,
) -> dict[str, NDArray[Any]]:
    """What to keep of decoded answers `[p, n, M, A]` of `puzzles [p, L]`; the verifier sees each distinct one once."""
    count, width, depth, tokens = answers.shape
    index = np.zeros((count, width, depth), np.int64)
    tables, sizes = [], np.zeros(count, np.int64)
    for place in range(count):
        distinct, inverse = _distinct(canonical(answers[place].reshape(-1, tokens)))
        tables.append(distinct)
        sizes[place] = len(distinct)
        index[place] = inverse.reshape(width, depth)
    table = np.concatenate(tables) if tables else np.zeros((0, tokens), np.uint8)
    right = verify(np.repeat(puzzles, sizes, axis=0), table) if len(table) else np.zeros(0, bool)
    small = np.uint16 if sizes.max(initial=0) <= np.iinfo(np.uint16).max else np.uint32
    return {
        "trace_answer": index.astype(small),
        "trace_table": table.astype(np.uint8),
        "trace_table_size": sizes,
        "trace_right": np.asarray(right, dtype=bool),
    }


def _distinct(rows: Tokens) -> tuple[Tokens, NDArray[np.int64]]:
    """Distinct rows in the order of their first appearance, and each row's place among them."""
    rows = np.ascontiguousarray(rows)
    keys = rows.view(np.dtype((np.void, rows.shape[1] * rows.itemsize))).reshape(-1)
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rows[first[order]], rank[inverse.reshape(-1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceBlock:
    """All trajectories of a run of puzzles."""

    puzzle: NDArray[np.int64]
    """Place of each puzzle in the run's set, `[P]`."""
    puzzles: Tokens
    """`[P, L]`."""
    answer: NDArray[np.int32]
    """Answer after each supervision step, an index into the puzzle's table, `[P, N, M]`."""
    is_right: NDArray[np.bool_]
    """The verifier's verdict on it, `[P, N, M]`."""
    halt: NDArray[np.float32]
    lprm: NDArray[np.float32]
    residual: NDArray[np.float32]
    margin: NDArray[np.float32]
    steps: NDArray[np.int64]
    """Supervision steps taken, `[P, N]`; later ones repeat the last."""
    tables: list[Tokens]
    """Distinct canonical answers of each puzzle, `[k, A]`, in the order of their first appearance by shard."""


class Traces:
    """A traced run on disk."""

    def __init__(self, store: Store) -> None:
        self.store, self.about = store, store.about
        if not self.about.get("is_traced"):
            raise StoreError(f"{store.folder}: must be a traced run (--trace), got one without steps")
        if missing := store.missing():
            raise StoreError(f"{store.folder}: {len(missing)} of {store.shard_count} shards are missing, expected none")
        self.shards = [Shard(*numbers) for numbers in self.about["shards"]]
        self.width, self.depth = int(self.about["config"]["width"]), int(self.about["config"]["depth"])
        self.puzzle_count = int(self.about["puzzles"])

    @classmethod
    def open(cls, folder: Path) -> Traces:
        """The traces in a folder. Raises `StoreError` where they are not complete."""
        return cls(Store.read_only(folder))

    def blocks(self) -> Iterator[TraceBlock]:
        """Blocks of puzzles in order, each with all of its trajectories; one is in memory at a time."""
        for first in sorted({shard.first_puzzle for shard in self.shards}):
            yield self._block([shard for shard in self.shards if shard.first_puzzle == first])

    def _block(self, shards: list[Shard]) -> TraceBlock:
        count = shards[0].puzzles
        shape = (count, self.width, self.depth)
        answer, is_right = np.zeros(shape, np.int32), np.zeros(shape, bool)
        scores = {name: np.zeros(shape, np.float32) for name in SCORES}
        steps = np.zeros(shape[:2], np.int64)
        tables: list[list[Tokens]] = [[] for _ in range(count)]
        puzzles = np.zeros((count, 0), np.uint8)
        for shard in sorted(shards, key=lambda one: one.first_trajectory):
            arrays = self.store.read(shard.index)
            puzzles = arrays["puzzles"]
            columns = slice(shard.first_trajectory, shard.first_trajectory + shard.trajectories)
            steps[:, columns] = arrays["steps"]
            for name, values in scores.items():
                values[:, columns] = arrays[f"trace_{name}"]
            sizes = arrays["trace_table_size"]
            starts = np.cumsum(sizes) - sizes
            flat = arrays["trace_answer"].astype(np.int64)
            is_right[:, columns] = arrays["trace_right"][flat + starts[:, None, None]]
            before = np.array([sum(map(len, table)) for table in tables])
            answer[:, columns] = flat + before[:, None, None]
            for table, start, size in zip(tables, starts.tolist(), sizes.tolist(), strict=True):
                table.append(arrays["trace_table"][start : start + size])
        merged = []
        for place, parts in enumerate(tables):
            distinct, rank = _distinct(np.concatenate(parts))
            merged.append(distinct)
            answer[place] = rank[answer[place]]
        return TraceBlock(
            puzzle=np.arange(shards[0].first_puzzle, shards[0].first_puzzle + count),
            puzzles=puzzles,
            answer=answer,
            is_right=is_right,
            steps=steps,
            tables=merged,
            **scores,
        )
