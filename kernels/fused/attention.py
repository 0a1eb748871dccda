"""Attention inside of the fused kernel, and what the kernel's other parts share with it.

At every barrier of the loop over heads all warps wait, so programs of several trajectories have few of them. Tiles
loaded one after the other arrive at one barrier. Where two trajectories stand in a program, the scores of a row's own
tokens are half of the columns, which one thread of sm_100 holds: their maximum and sum need no other thread, and the
weights go to tensor memory as they lie. Where three do, a row's tokens are in both halves. The compiler then gives a
row to one warp, from which tensor memory takes no weights without eight rounds of exchange, so they go through shared
memory. That takes a barrier more, which `OUTPUT_LAG` takes away elsewhere: the compiler loads a head's output tile
later than its others, since its product comes later, and so at other barriers, unless that product is done with the
next head's first ones.

Functions without annotations are bodies of GPU kernels. Shapes as in `kernel.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def product(a, b, acc, PRECISION: tl.constexpr):
    """`acc + a b`, fp32; fp32 factors are multiplied as `PRECISION` says."""
    FACTORS: tl.constexpr = "ieee" if PRECISION == "tanh" else PRECISION
    return tl.dot(a, b, acc, input_precision=FACTORS, out_dtype=tl.float32)


@triton.jit
def rotated(x, cos, sin, ROWS: tl.constexpr, W: tl.constexpr):
    """Rotary positions on adjacent pairs."""
    first, second = tl.split(tl.reshape(x, (ROWS, W // 2, 2)))
    return tl.reshape(tl.join(first * cos - second * sin, second * cos + first * sin), (ROWS, W))


@triton.jit
def turns(cos_ptr, sin_ptr, tokens, L: tl.constexpr, W: tl.constexpr):
    """Cosines and sines `[ROWS, W / 2]` of the rows' tokens."""
    at = tokens[:, None] * (W // 2) + tl.arange(0, W // 2)[None, :]
    is_token = tokens[:, None] < L
    return tl.load(cos_ptr + at, mask=is_token, other=0.0), tl.load(sin_ptr + at, mask=is_token, other=0.0)


@triton.jit
def owner_of(row, GROUP: tl.constexpr, LP: tl.constexpr):
    """Which of its program's trajectories a token row is of."""
    if GROUP == 3:
        rest = tl.minimum((row - 3 * (LP // 2)) // (LP // 8), 2)
        return tl.where(row < 3 * (LP // 2), row // (LP // 2), rest)
    return row // LP


@triton.jit
def token_of(row, GROUP: tl.constexpr, LP: tl.constexpr):
    """The token of its trajectory that a row holds; `L` or more where it holds none."""
    if GROUP == 3:
        rest = row - 3 * (LP // 2)
        rest = LP // 2 + rest - tl.minimum(rest // (LP // 8), 2) * (LP // 8)
        return tl.where(row < 3 * (LP // 2), row % (LP // 2), rest)
    return row % LP


@triton.jit
def weighed(scores, rows, tokens, like, L: tl.constexpr, LP: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr):
    """Weights of a row's own tokens from scores `[ROWS, ROWS]`, in the type of `like`; 0 of all other columns."""
    if GROUP == 2:
        halves = tl.reshape(tl.where((tokens < L)[None, :], scores, float("-inf")), (ROWS, 2, LP))
        halves = tl.exp(halves - tl.max(halves, 2)[:, :, None])
        halves *= (1.0 / tl.sum(halves, 2))[:, :, None]
        is_own = (rows // LP)[:, None] == tl.arange(0, 2)[None, :]
        weights = tl.reshape(tl.where(is_own[:, :, None], halves, 0.0), (ROWS, ROWS)).to(like.dtype)
    else:
        is_seen = (tokens < L)[None, :]
        if GROUP > 1:
            owners = owner_of(rows, GROUP, LP)
            is_seen = is_seen & (owners[:, None] == owners[None, :])
        scores = tl.where(is_seen, scores, float("-inf"))
        weights = tl.exp(scores - tl.max(scores, 1)[:, None])
        if GROUP > 1:
            # Rounded while turned, they go through shared memory; else the compiler moves them to tensor memory.
            weights = tl.trans(tl.trans(weights * (1.0 / tl.sum(weights, 1))[:, None]).to(like.dtype))
        else:
            weights = (weights / tl.sum(weights, 1)[:, None]).to(like.dtype)
    return weights


@triton.jit
def attended(
    x, heads, row, cos_ptr, sin_ptr,
    L: tl.constexpr, LP: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, W: tl.constexpr,
    IS_ROTARY: tl.constexpr, OUTPUT_LAG: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`x` plus attention over each trajectory's own tokens, fp32. With `OUTPUT_LAG` a head's output product is done
    with the next head's first ones; the first head's turn takes the last one's tile, keeps it and adds zeros."""
    acc = x.to(tl.float32)
    rows = tl.arange(0, ROWS)
    tokens = token_of(rows, GROUP, LP)
    blank = tl.zeros((ROWS, W), tl.float32)
    if IS_ROTARY and GROUP > 1:
        cos, sin = turns(cos_ptr, sin_ptr, tokens, L, W)
    if OUTPUT_LAG:
        mixed = tl.zeros((ROWS, W), x.dtype)
        last_tile = tl.zeros((W, D), x.dtype)
    for head in tl.range(0, D // W, num_stages=STAGES):
        first = row + head * 4 * W
        if GROUP > 1:
            query_tile = heads.load([first, 0])
            key_tile = heads.load([first + W, 0])
            value_tile = heads.load([first + 2 * W, 0])
            if OUTPUT_LAG:
                # Last of the four: a use of it between them would part their barriers.
                out_tile = heads.load([tl.where(head == 0, row + 4 * D, first) - W, 0])
                acc = product(mixed, out_tile, acc, PRECISION)
            else:
                out_tile = heads.load([first + 3 * W, 0])
            query = product(x, tl.trans(query_tile), blank, PRECISION)
            key = product(x, tl.trans(key_tile), blank, PRECISION)
            value = product(x, tl.trans(value_tile), blank, PRECISION)
            if OUTPUT_LAG:
                last_tile = tl.where(head == 0, out_tile, last_tile)
        else:
            # Each where it is used, or registers of other devices would hold them meanwhile.
            query = product(x, tl.trans(heads.load([first, 0])), blank, PRECISION)
            key = product(x, tl.trans(heads.load([first + W, 0])), blank, PRECISION)
            if IS_ROTARY:
                cos, sin = turns(cos_ptr, sin_ptr, tokens, L, W)
        if IS_ROTARY:
            query = rotated(query, cos, sin, ROWS, W)
            key = rotated(key, cos, sin, ROWS, W)
        query = (query * (W**-0.5)).to(x.dtype)
        scores = product(query, tl.trans(key.to(x.dtype)), tl.zeros((ROWS, ROWS), tl.float32), PRECISION)
        weights = weighed(scores, rows, tokens, x, L, LP, GROUP, ROWS)
        if GROUP > 1:
            # A weight of 0 times what is not finite would reach the other trajectories.
            value = tl.where(tl.abs(value) < float("inf"), value, 0.0)
        else:
            value = product(x, tl.trans(heads.load([first + 2 * W, 0])), blank, PRECISION)
        mixed = product(weights, value.to(x.dtype), blank, PRECISION).to(x.dtype)
        if GROUP == 1:
            out_tile = heads.load([first + 3 * W, 0])
        if not OUTPUT_LAG:
            acc = product(mixed, out_tile, acc, PRECISION)
    if OUTPUT_LAG:
        acc = product(mixed, last_tile, acc, PRECISION)
    return tl.where((tokens < L)[:, None], acc, 0.0)
