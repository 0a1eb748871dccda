"""What sampling returns: every candidate, what the heads said of it, and the selected answers. Plain numpy.

Shapes: `P` puzzles, `N` width, `A` answer tokens, `L` puzzle tokens; `p`, `n` those of a shard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gram.config import SamplerConfig
from gram.sampler.selectors import Scores
from gram.tasks.protocol import Tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardResult:
    """The trajectories of one shard, as the store keeps them. Same shard, same arrays, whatever ran it."""

    puzzles: Tokens
    """`[p, L]`."""
    candidates: Tokens
    """Decoded answers `[p, n, A]`; zeros where a trajectory does not count."""
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
    """Trajectories that count, `[p]`: the first so many of `n`."""
    trace: dict[str, NDArray[Any]] = field(default_factory=dict)
    """Arrays of a traced run, named `trace_...` (`gram/sampler/trace.py`)."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything by name, for a store."""
        own = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "trace"}
        return own | self.trace

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> ShardResult:
        """The inverse of `arrays`."""
        own = {item.name: arrays[item.name] for item in fields(cls) if item.name != "trace"}
        return cls(**own, trace={name: value for name, value in arrays.items() if name.startswith("trace_")})


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleResult:
    """All trajectories of a run, in the puzzles' order; trajectory ids are the second axis."""

    puzzles: Tokens
    """`[P, L]`."""
    candidates: Tokens
    """Decoded answer of each trajectory, `[P, N, A]`."""
    steps: NDArray[np.int64]
    """Supervision steps each trajectory took, `[P, N]`."""
    halt: NDArray[np.float32]
    """Halt logit at the last step, `[P, N]`."""
    lprm: NDArray[np.float32]
    """Predicted final accuracy at the last step, `[P, N]`."""
    residual: NDArray[np.float32]
    """Movement of `h` in the last step, relative to its length, `[P, N]`."""
    margin: NDArray[np.float32]
    """Probability of the likeliest token less that of the next, mean over answer tokens, `[P, N]`."""
    is_halted: NDArray[np.bool_]
    """Whether a halting rule ended it, rather than its depth, `[P, N]`."""
    lineage: NDArray[np.int64]
    """Trajectory that its state descends from, `[P, N]`."""
    widths: NDArray[np.int64]
    """Trajectories that count, `[P]`: the first so many; of the others nothing is known (adaptive width)."""
    selected: NDArray[np.int64]
    """Index of the selected trajectory, `[P]`."""
    votes: NDArray[np.int64]
    """Lineages that gave the same answer as each candidate, itself included, `[P, N]`; 0 where it does not count."""
    config: SamplerConfig
    """The sampling run's settings, nothing left open."""
    elapsed_s: float
    """Seconds of sampling, from tokens in to answers out."""
    steps_run: int
    """Supervision steps of trajectories that were run, discarded ones included, padding not; those of an earlier part
    of a resumed run are taken to be the ones that count."""
    kernel: str
    """Kernel path."""
    device: str
    dtype: str

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


def scores_of(result: ShardResult | SampleResult, votes: NDArray[np.int64]) -> Scores:
    """What selectors read."""
    return Scores(
        votes=votes,
        halt=result.halt,
        lprm=result.lprm,
        residual=result.residual,
        margin=result.margin,
        steps=result.steps,
        is_halted=result.is_halted,
    )
