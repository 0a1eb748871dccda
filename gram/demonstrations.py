"""Demonstrations of a task, read into a memory that all trajectories share.

An encoder of a few blocks turns every grid (the demonstrations' inputs and the test input) into features of its cells.
A cell of a demonstration gives a key from its features, a value from its output's symbol at the same place, and a step
size from both. Which key belongs to which value is what the memory learns while it is written
(`gram/kernels/memory.py`), task by task. The test input's features are the trajectory's embedding, and its queries go
to the memory in every core call.

Shapes: `P` puzzles, `E` demonstrations of each, `A` cells of a grid, `D` channels, `K` and `d` of keys and values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear, normalize, softplus

from gram.kernels import memory, reference
from gram.kernels.memory import Remembered
from gram.kernels.reference import Weights

if TYPE_CHECKING:
    from gram.config import ModelConfig

OUTSIDE = 1
"""Symbol of a cell outside its grid: it is not written."""
FORGETTING, KEEP, STEP = -4.0, 1.0, 0.5
"""Where alpha (before its sigmoid), eta (the same) and theta (before its softplus) start."""


class Memory(nn.Module):
    """What writes and reads the memory: `heard [V, H]`, `key [K, D + H]`, `query [K, D]`, `value [V, d]`,
    `rates [3, D + d]`, `start [d, K]`, `gate [D, D]`, `out [D, d]`; of the kind `mean` `slot [D, D + H + d]` in place
    of what concerns keys. `H` is `memory_heard`."""

    def __init__(self, config: ModelConfig, draw: Callable[..., nn.Parameter]) -> None:
        """`draw` makes a random parameter (`gram.model.init_parameter`)."""
        super().__init__()
        dim, keys, values, heard = config.dim, config.memory_keys, config.memory_values, config.memory_heard
        if heard:
            self.heard = draw((config.vocabulary, heard), fan_in=1)
        self.value = draw((config.vocabulary, values), fan_in=1)
        self.gate = draw((dim, dim), scale=0.1)
        if config.memory == "mean":
            self.slot = draw((dim, dim + heard + values))
            self.out = draw((dim, dim))
            return
        self.key = draw((keys, dim + heard))
        self.query = draw((keys, dim), scale=0.01)
        self.rates = draw((3, dim + values), scale=0.1)
        self.rates_bias = nn.Parameter(torch.tensor([FORGETTING, KEEP, STEP]))
        self.start = nn.Parameter(torch.zeros(values, keys))
        self.out = draw((dim, values))


def order(cells: int) -> Tensor:
    """Cells in the order in which they are written, `[A]`: by the parity of row and column, so that each of a
    demonstration's four chunks sees the whole grid."""
    side = round(cells**0.5)
    return torch.arange(cells).view(side // 2, 2, side // 2, 2).permute(1, 3, 0, 2).reshape(-1)


def embed_demonstrations(weights: Weights, config: ModelConfig, puzzles_PL: Tensor) -> Tensor:
    """`e_x` of puzzles `[P, L]`: the test input's features, and the memory behind (`memory.fold`)."""
    canvases = puzzles_PL.unflatten(1, (-1, config.output_tokens))
    if config.memory == "none":
        return encode(weights, config, canvases[:, -1])
    features, marks = describe(weights, config, canvases[:, 0::2])
    shown = Shown(features[:, :-1], marks[:, :-1], canvases[:, 0:-1:2], canvases[:, 1::2])
    remembered = Remembered(read_demonstrations(weights, config, shown)[:, -1], marks[:, -1])
    return torch.cat([features[:, -1], memory.fold(remembered, config.spec)], -1)


def describe(weights: Weights, config: ModelConfig, canvases: Tensor) -> tuple[Tensor, Tensor]:
    """Features `[P, E, A, D]` of grids `[P, E, A]`, and marks by which the memory knows their cells: keys
    `[P, E, A, K]` of length 1 (of `mean` none, `[P, E, A, 0]`)."""
    features = encode(weights, config, canvases)
    if config.memory == "mean":
        return features, features[..., :0]
    seen = torch.cat([features, *heard(weights, config, canvases)], -1)
    return features, normalize(linear(seen, weights["memory.key"]), dim=-1)


def heard(weights: Weights, config: ModelConfig, canvases: Tensor) -> list[Tensor]:
    """Which symbols each cell hears along each relation, `[P, E, A, H]`: in a list, which is empty without them."""
    if "memory.heard" not in weights:
        return []
    sums = reference.hear(embedding(canvases.flatten(0, -2), weights["memory.heard"]), config.spec)
    return [sums.view(*canvases.shape, -1)]


def encode(weights: Weights, config: ModelConfig, canvases: Tensor) -> Tensor:
    """Features `[..., A, D]` of the cells of grids `[..., A]`."""
    x = embedding(canvases.flatten(0, -2), weights["embedding.weight"])
    if "positions" in weights:
        x = x + weights["positions"]
    made = reference.core(weights, "encoder", x * config.dim**0.5, replace(config.spec, blocks=config.encoder_blocks))
    return made.view(*canvases.shape, config.dim)


class Written(NamedTuple):
    """What is written into a memory, in its order; fp32."""

    keys: Tensor
    """`[P, N, C, K]`."""
    values: Tensor
    """`[P, N, C, d]`."""
    forgetting: Tensor
    """`alpha`, `[P, N]`."""
    keep: Tensor
    """`eta`, `[P, N]`."""
    steps: Tensor
    """`theta`, `[P, N, C]`."""


class Shown(NamedTuple):
    """Demonstrations as they are read."""

    features: Tensor
    """Of the inputs' cells, `[P, E, A, D]`."""
    keys: Tensor
    """Of the inputs' cells, `[P, E, A, K]`."""
    inputs: Tensor
    """Symbols `[P, E, A]`."""
    outputs: Tensor
    """Symbols `[P, E, A]`."""

    @property
    def inside(self) -> Tensor:
        """1 for cells of the input or the output (a rule that turns a grid moves cells beyond the input's), fp32."""
        return ((self.inputs != OUTSIDE) | (self.outputs != OUTSIDE)).to(torch.float32)


def read_demonstrations(weights: Weights, config: ModelConfig, shown: Shown) -> Tensor:
    """The memory after each demonstration, fp32 `[P, E, d, K]`, of `mean` `[P, E, 1, D]`."""
    if config.memory == "mean":
        return mean_slots(weights, config, shown)
    every = config.output_tokens // config.memory_chunk
    start = weights["memory.start"].to(torch.float32)
    return memory.write(start, *to_write(weights, config, shown), kind=config.memory, every=every)


def mean_slots(weights: Weights, config: ModelConfig, shown: Shown) -> Tensor:
    """Mean of the embeddings of all cells of the first demonstrations, `[P, E, 1, D]`."""
    around = [shown.features, *heard(weights, config, shown.inputs)]
    pairs = torch.cat([*around, embedding(shown.outputs, weights["memory.value"])], -1)
    inside = shown.inside
    sums = (linear(pairs, weights["memory.slot"]).to(torch.float32) * inside[..., None]).sum(2).cumsum(1)
    return (sums / inside.sum(2).cumsum(1)[..., None])[:, :, None]


def to_write(weights: Weights, config: ModelConfig, shown: Shown) -> Written:
    """Keys, values and rates of demonstrations, as `memory.write` takes them."""
    values = embedding(shown.outputs, weights["memory.value"])
    places = order(config.output_tokens).to(values.device)

    def chunks(x: Tensor) -> Tensor:
        ordered = x[:, :, places].to(torch.float32)
        parted: Tensor = ordered.unflatten(2, (-1, config.memory_chunk)).flatten(1, 2)
        return parted

    rates = linear(torch.cat([shown.features, values], -1), weights["memory.rates"])
    by_chunk = chunks(rates) + weights["memory.rates_bias"].to(torch.float32)
    inside = chunks(shown.inside)
    share = inside / inside.sum(-1, keepdim=True).clamp(min=1)
    alpha, eta = ((by_chunk[..., place] * share).sum(-1).sigmoid() for place in (0, 1))
    return Written(chunks(shown.keys), chunks(values), alpha, eta, softplus(by_chunk[..., 2]) * inside)
