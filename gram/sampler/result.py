"""What sampling returns: every candidate, what the heads said of it, and the selected answers. Plain numpy.

Shapes: `P` puzzles, `N` width, `A` answer tokens, `L` puzzle tokens.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gram.config import SamplerConfig
from gram.tasks.protocol import Tokens


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
    selected: NDArray[np.int64]
    """Index of the selected trajectory, `[P]`."""
    votes: NDArray[np.int64]
    """Trajectories that gave the same answer as each candidate, itself included, `[P, N]`."""
    config: SamplerConfig
    """The sampling run's settings; `depth` and `launch` filled in."""
    elapsed_s: float
    """Seconds of sampling, from tokens in to answers out."""
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
    def trajectories_sha256(self) -> str:
        """Digest over puzzle, trajectory, steps and answer of every trajectory: equal exactly when they are."""
        digest = hashlib.sha256()
        for puzzle, steps, candidates in zip(self.puzzles, self.steps, self.candidates, strict=True):
            digest.update(np.ascontiguousarray(puzzle, dtype=np.uint8).tobytes())
            for trajectory, (taken, answer) in enumerate(zip(steps, candidates, strict=True)):
                digest.update(int(trajectory).to_bytes(4, "little") + int(taken).to_bytes(4, "little"))
                digest.update(np.ascontiguousarray(answer, dtype=np.uint8).tobytes())
        return digest.hexdigest()
