"""What the engine and its slots tell each other, in arrays over slots.

Shapes: `k` some slots, `L` puzzle tokens, `A` answer tokens; `B` trajectories.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gram.tasks.protocol import Tokens

Rows = NDArray[np.int64]
Floats = NDArray[np.float32]


class Readout(NamedTuple):
    """What states say, `[k]` each."""

    answers: Tokens
    """Decoded answers `[k, A]`."""
    margin: Floats
    residual: Floats
    sparsity: Floats | None = None
    """Measures `[k, 6]` in the order of `trace.SPARSITY`, where asked for."""

    def at(self, rows: Rows | slice) -> Readout:
        """What some of them say."""
        sparsity = None if self.sparsity is None else self.sparsity[rows]
        answers = self.answers[rows] if isinstance(rows, slice) else self.answers.take(rows, 0)
        return Readout(answers, self.margin[rows], self.residual[rows], sparsity)


class StepReading(NamedTuple):
    """What a supervision step shows of the first `k` slots."""

    halt: Floats
    """Halt logits `[k]`."""
    lprm: Floats
    """Predicted final accuracies `[k]`."""
    readout: Readout | None
    """Of all of them, where asked for."""


class Places(NamedTuple):
    """What new trajectories bring into their slots, `[k]` each."""

    puzzles: Tokens
    """`[k, L]`."""
    hashes: Rows
    """Of the puzzles."""
    trajectories: Rows
    """Ids, which key the noise and, before any resampling, the views."""
    identities: Rows | None
    """Rows of the model's table of task embeddings, where it has one."""


class Moved(NamedTuple):
    """Slots whose states go to others, `[k]` each."""

    source: Rows
    target: Rows
    trajectories: Rows
    """Ids under which they go on."""


def read_together(tensors: Sequence[Tensor]) -> list[NDArray[Any]]:
    """Tensors of a device as arrays, in one copy; the widest type first."""
    whole = torch.cat([tensor.contiguous().view(-1).view(torch.uint8) for tensor in tensors]).cpu()
    parts = whole.split([tensor.nbytes for tensor in tensors])
    return [part.view(tensor.dtype).view(tensor.shape).numpy() for part, tensor in zip(parts, tensors, strict=True)]


def relative_movement(h: Tensor, before: Tensor) -> Tensor:
    """Length of `h - before` over that of `h`, each over a trajectory's whole state: `[B]`, fp32."""
    wide = h.to(torch.float32)
    moved = (wide - before.to(torch.float32)).square().sum((1, 2))
    return (moved / wide.square().sum((1, 2))).sqrt()
