"""Which weights a sparse training keeps: of every matrix the largest share of |w|, after each optimiser step
(Gao et al., 2511.13653, section 2.1).

A weight that is not kept is zero in the fp32 master, and so in all copies made of it. It still gets a gradient, and
comes back where it grows past the smallest that is kept. Vectors (biases, the empty condition) are kept whole.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gram.training.config import TrainConfig

READ_BY_COLUMN = (".down", ".out")
"""Matrices whose columns belong to hidden neurons or attention channels; in all others rows do."""


def weight_share(training: TrainConfig, fraction: float) -> float:
    """Share of every matrix that is kept at a fraction of training: from 1 down to the target on a line."""
    done = min(1.0, fraction / training.weight_share_end) if training.weight_share_end else 1.0
    return 1 + done * (training.weight_share - 1)


def kept_count(shape: torch.Size, neurons: int, share: float, least: int) -> int:
    """Weights kept of a matrix: its share, rounded, and never fewer than `least` of each of its neurons."""
    return max(round(share * shape.numel()), neurons * min(least, shape.numel() // neurons))


def kept(name: str, matrix: Tensor, share: float, least: int) -> Tensor:
    """Mask of the weights kept of `matrix [rows, columns]`: the `least` largest of each neuron, then the largest of the
    rest until there are `kept_count`."""
    axis = 0 if name.endswith(READ_BY_COLUMN) else 1
    size = matrix.abs()
    neurons, per_neuron = matrix.shape[1 - axis], min(least, matrix.shape[axis])
    order = size.clone()
    if per_neuron:
        order.scatter_(axis, size.topk(per_neuron, dim=axis).indices, torch.inf)
    count = kept_count(matrix.shape, neurons, share, least)
    mask = torch.zeros(matrix.numel(), dtype=torch.bool, device=matrix.device)
    mask[order.flatten().topk(count, sorted=False).indices] = True
    return mask.view_as(matrix)
