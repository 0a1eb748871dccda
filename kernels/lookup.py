"""Lookup memory: tables of hashed n-grams, looked up once a puzzle and gated by the state in every core call (Engram,
2601.07372, section 2).

    row  = (t_0 m_0 xor t_1 m_1 [xor t_2 m_2]) mod prime      t_k: the token k places before on a line
    e    = the rows of all tables, side by side
    s    = <rms(W_k e), rms(x)> / sqrt(D)                     x: what a core call reads, state and injection summed
    v    = sigmoid(sign(s) sqrt|s|) W_v e
    x   <- x + v + silu(conv(rms(v)))

An n-gram is a token and the one or two before it on a line of the board; text order is one line. Every line and every
`n` has `H` tables, whose sizes are different primes. The convolution is depthwise and runs over tokens in row-major
order, with the taps and the dilation of the official demo (`scripts/compare_engram.py` runs it beside this file). Keys
and values are made once a puzzle and stand behind its embedding, so a trajectory's step pays for the gate and the
convolution alone. The demo's norms have weights: the key's and the state's are one product, `lookup.scale`, and the
convolution's is in its taps.

Shapes: `P` puzzles, `B` rows, `L` tokens of a state, `D` channels, `H` tables of a line and an `n`, `E` channels of all
rows together, `G` lines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear, pad, rms_norm, silu

from gram.kernels.philox import philox4x32
from gram.kernels.spec import NGRAMS, Spec, box_shape

TAPS, DILATION = 4, max(NGRAMS)
"""Of the convolution, as in the demo."""
LEAST_SCORE = 1e-6
"""Of `|s|`: its root has no gradient at 0."""
STEPS = {"row": (0, -1), "column": (-1, 0), "diagonal": (-1, -1), "antidiagonal": (-1, 1)}
"""Row and column of the token before, beside a token's own."""


class LookedUp(NamedTuple):
    """What a puzzle's n-grams gave."""

    key: Tensor
    """`rms(W_k e)` times the gate's scale and `1 / sqrt(D)`, `[B, L, D]`."""
    value: Tensor
    """`W_v e`, `[B, L, D]`."""


class Addresses(NamedTuple):
    """Where n-grams stand on the board and in the tables; int64 all."""

    places: Tensor
    """`[G, L, 3]`: a token and the two before it on each line; `L` where there is none."""
    multipliers: Tensor
    """`[G, 3]`, odd."""
    primes: Tensor
    """Rows of each table, `[G, 2, H]`."""
    offsets: Tensor
    """First row of each table in the one weight that holds them all, `[G, 2, H]`."""


def primes_from(least: int, count: int) -> list[int]:
    """The first `count` primes that are not below `least`."""
    found: list[int] = []
    number = max(least, 2)
    while len(found) < count:
        if all(number % divisor for divisor in range(2, math.isqrt(number) + 1)):
            found.append(number)
        number += 1
    return found


def table_sizes(spec: Spec) -> list[int]:
    """Rows of each table: by line, then by `n`, then by head."""
    return primes_from(spec.lookup_rows, len(spec.lookup) * len(NGRAMS) * spec.lookup_heads)


def odd_multipliers(lines: int, vocabulary: int) -> Tensor:
    """Random odd numbers `[G, 3]` by Philox, the same for every model: products with a token stay within int64."""
    line, place = torch.arange(lines)[:, None], torch.arange(max(NGRAMS))[None]
    zero = torch.zeros((), dtype=torch.int64)
    high, low, *_ = philox4x32(place, line, zero, zero, zero, zero)
    half = max(1, torch.iinfo(torch.int64).max // vocabulary // 2)
    return ((high << 30) ^ low) % half * 2 + 1


def places_before(line: str, tokens: int) -> Tensor:
    """A token and the two before it on a line, int64 `[L, 3]`; `tokens` where there is none."""
    place, back = torch.arange(tokens)[:, None], torch.arange(max(NGRAMS))[None]
    if line == "text":
        return torch.where(place >= back, place - back, tokens)
    side = math.isqrt(tokens)
    row, column = place // side, place % side
    if line == "box":
        height, width = box_shape(side)
        order = row % height * width + column % width - back
        there = order >= 0
        row, column = row // height * height + order // width, column // width * width + order % width
    else:
        down, right = STEPS[line]
        row, column = row + down * back, column + right * back
        there = (row >= 0) & (column >= 0) & (column < side)
    return torch.where(there, row * side + column, tokens)


@lru_cache(maxsize=16)
def _addresses(spec: Spec, vocabulary: int, device: torch.device) -> Addresses:
    # Kept for later calls, which may need gradients: the first one often comes from sampling.
    with torch.inference_mode(False):
        sizes = torch.tensor(table_sizes(spec)).view(len(spec.lookup), len(NGRAMS), spec.lookup_heads)
        offsets = (sizes.flatten().cumsum(0) - sizes.flatten()).view_as(sizes)
        places = torch.stack([places_before(line, spec.tokens) for line in spec.lookup])
        multipliers = odd_multipliers(len(spec.lookup), vocabulary)
        return Addresses(*(each.to(device) for each in (places, multipliers, sizes, offsets)))


@torch.compiler.disable
def addresses(spec: Spec, vocabulary: int, device: torch.device) -> Addresses:
    """Of a model's tables; made once."""
    return _addresses(spec, vocabulary, device)


def hashes(ngrams: Tensor, multipliers: Tensor, primes: Tensor) -> Tensor:
    """Rows of n-grams `[..., G, 3]` in their tables, `[..., G, 2, H]`; int64 all."""
    first, second, third = (ngrams * multipliers).unbind(-1)
    two = first ^ second
    mixed = torch.stack([two, two ^ third], -1)
    return mixed[..., None] % primes


def rows_of(puzzles_PL: Tensor, found: Addresses) -> Tensor:
    """Rows of the weight that holds all tables, int64 `[P, L, G * 2 * H]`; before a line's first token stands token 0,
    which is padding."""
    tokens = pad(puzzles_PL.long(), (0, 1))[:, found.places].permute(0, 2, 1, 3)
    return (hashes(tokens, found.multipliers, found.primes) + found.offsets).flatten(2)


def describe(weights: Mapping[str, Tensor], spec: Spec, rows_PLT: Tensor) -> LookedUp:
    """Keys and values of tokens from their rows in the tables."""
    e = embedding(rows_PLT, weights["lookup.table"]).flatten(2) * spec.lookup_width**0.5
    key = rms(linear(e, weights["lookup.key"])) * weights["lookup.scale"] * spec.dim**-0.5
    return LookedUp(key, linear(e, weights["lookup.value"]))


def look_up(weights: Mapping[str, Tensor], spec: Spec, vocabulary: int, puzzles_PL: Tensor) -> Tensor:
    """Keys and values of puzzles `[P, L]` as channels that stand behind those of each token of `e_x`,
    `[P, R + L, 2 D]`; registers have none."""
    rows = rows_of(puzzles_PL, addresses(spec, vocabulary, puzzles_PL.device))
    return pad(torch.cat(describe(weights, spec, rows), -1), (0, 0, spec.registers, 0))


def split_lookup(e_x: Tensor, spec: Spec) -> tuple[Tensor, LookedUp]:
    """The embedding `[..., D]` and what stands behind it (`look_up`)."""
    embedded, key, value = e_x.split(spec.dim, -1)
    return embedded, LookedUp(key, value)


def rms(x: Tensor, eps: float | None = None) -> Tensor:
    """`x / rms(x)` over channels; without `eps` the type's own, as in the demo."""
    return rms_norm(x, x.shape[-1:], eps=eps)


def gate(x: Tensor, key: Tensor) -> Tensor:
    """How far each token takes what was looked up for it, `[..., 1]`."""
    score = (rms(x) * key).sum(-1, keepdim=True, dtype=torch.float32)
    return (score.sign() * score.abs().clamp(min=LEAST_SCORE).sqrt()).sigmoid().to(x.dtype)


def convolve(x: Tensor, taps: Tensor, axis: int) -> Tensor:
    """Depthwise convolution of `x` over its tokens at `axis`; the last of the taps `[D, 4]` is of the token itself."""
    edge = torch.zeros_like(x.narrow(axis, 0, 1)).repeat_interleave((TAPS - 1) * DILATION, axis)
    wide = torch.cat([edge, x], axis)
    shifted = [wide.narrow(axis, tap * DILATION, x.shape[axis]) * taps[:, tap] for tap in range(TAPS)]
    return sum(shifted[1:], shifted[0])


def read(x: Tensor, found: LookedUp, taps: Tensor, spec: Spec, axis: int = 1) -> Tensor:
    """What a core call reads, with what was looked up: `x` `[B, L, D]`, or with the token axis elsewhere."""
    value = gate(x, found.key) * found.value
    return x + value + silu(convolve(rms(value, spec.norm_eps), taps, axis))


def call_macs(spec: Spec) -> int:
    """Multiply-accumulates of one core call of one trajectory: the score, the gate, the convolution, and a square each
    for both norms."""
    return (TAPS + 4) * spec.dim * spec.length


def puzzle_macs(spec: Spec) -> int:
    """Multiply-accumulates of what is done once a puzzle: keys and values."""
    return 2 * spec.lookup_width * spec.dim * spec.tokens
