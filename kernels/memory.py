"""The memory of demonstrations: a matrix that is written once a task and read in every core call (Titans, 2501.00663).

    M <- (1 - alpha) M + S,   S <- eta S - sum_t theta_t grad ||M k_t - v_t||^2 / d      (eqs. 9 to 14, linear memory)

Tokens are written in chunks. The gradient of all tokens of a chunk is taken at the memory of the chunk's start; `alpha`
(forgetting) and `eta` (momentum) are a chunk's, `theta` (step size) a token's. The error is the mean over the `d`
channels of a value, so the gradient is `2 / d (M k - v) k^T`: the convention of `titans-pytorch`, with which this
agrees (`scripts/compare_titans.py`).

The other kinds of memory are ablations: without momentum, without forgetting, without both (`delta`, plain gradient
descent), without surprise (`sum`: the plain sum of outer products `theta v k^T`), and the mean of the demonstrations'
embeddings (`mean`), which is read without a query.

Shapes: `B` rows, `C` tokens of a chunk, `N` chunks, `K` channels of a key, `d` of a value, `L` tokens of a state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize, pad

from gram.kernels.spec import Spec

HAS_MOMENTUM = ("titans", "no-forgetting")
HAS_FORGETTING = ("titans", "no-momentum")


def write_chunk(
    memory: Tensor,
    momentum: Tensor,
    keys: Tensor,
    values: Tensor,
    forgetting: Tensor,
    keep: Tensor,
    steps: Tensor,
    *,
    is_sum: bool = False,
) -> tuple[Tensor, Tensor]:
    """Memory and momentum `[B, d, K]` after one chunk of keys `[B, C, K]` and values `[B, C, d]`.

    `forgetting` is `alpha` and `keep` is `eta` `[B]`, `steps` is `theta` `[B, C]` (0: the token is not written);
    `is_sum` leaves out what the memory already says of the keys.
    """
    error = -values if is_sum else keys @ memory.mT - values
    gradient = (steps[..., None] * error).mT @ keys * (2 / values.shape[-1])
    momentum = keep[:, None, None] * momentum - gradient
    return (1 - forgetting)[:, None, None] * memory + momentum, momentum


def write(
    start: Tensor,
    keys: Tensor,
    values: Tensor,
    forgetting: Tensor,
    keep: Tensor,
    steps: Tensor,
    *,
    kind: str = "titans",
    every: int = 1,
) -> Tensor:
    """The memory after each `every` chunks, `[B, N / every, d, K]`: `start [d, K]`, keys `[B, N, C, K]`, values
    `[B, N, C, d]`, `forgetting` and `keep` `[B, N]`, `steps [B, N, C]`."""
    memory = start.expand(len(keys), -1, -1)
    momentum = torch.zeros_like(memory)
    forgetting = forgetting if kind in HAS_FORGETTING else torch.zeros_like(forgetting)
    keep = keep if kind in HAS_MOMENTUM else torch.zeros_like(keep)
    found = []
    # Unbound once: a slice's gradient would be as large as the whole, for every chunk.
    chunks = zip(*(part.unbind(1) for part in (keys, values, forgetting, keep, steps)), strict=True)
    for number, chunk in enumerate(chunks, 1):
        memory, momentum = write_chunk(memory, momentum, *chunk, is_sum=kind == "sum")
        if number % every == 0:
            found.append(memory)
    return torch.stack(found, 1)


class Remembered(NamedTuple):
    """What a trajectory reads in every core call."""

    memory: Tensor
    """`[B, d, K]`, or `[B, 1, D]` of the kind `mean`."""
    keys: Tensor
    """Key of each cell of the test input, `[B, L, K]`; of `mean` `[B, L, 0]`."""


def fold(remembered: Remembered, spec: Spec) -> Tensor:
    """Keys and memory as channels that stand behind those of each token of `e_x`, `[B, L, memory_channels]`."""
    flat, keys = remembered.memory.flatten(1), remembered.keys
    missing = spec.length * (spec.memory_channels - keys.shape[-1]) - flat.shape[1]
    parts = pad(flat, (0, missing)).unflatten(1, (spec.length, -1))
    return torch.cat([keys, parts.to(keys.dtype)], -1)


def split_memory(e_x: Tensor, spec: Spec) -> tuple[Tensor, Remembered]:
    """The embedding `[B, L, D]` and what stands behind it (`fold`)."""
    own = 0 if spec.memory == "mean" else spec.memory_keys
    keys, parts = e_x[..., spec.dim : spec.dim + own], e_x[..., spec.dim + own :]
    shape = (1, spec.dim) if spec.memory == "mean" else (spec.memory_values, spec.memory_keys)
    return e_x[..., : spec.dim], Remembered(parts.flatten(1)[:, : spec.memory_size].unflatten(1, shape), keys)


def read(weights: Mapping[str, Tensor], spec: Spec, x: Tensor, remembered: Remembered) -> Tensor:
    """`x [B, L, D]` with what the memory says of each token, behind a gate: `y = M q`. A query is the token's own key,
    moved by what its state asks."""
    if spec.memory == "mean":
        said = remembered.memory.expand(-1, x.shape[1], -1)
    else:
        query = normalize(remembered.keys + linear(x, weights["memory.query"]), dim=-1)
        said = query @ remembered.memory.mT
    return x + torch.sigmoid(linear(x, weights["memory.gate"])) * linear(said, weights["memory.out"])
