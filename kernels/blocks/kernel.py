"""Bodies of the per-block kernels: one launch per mixer, channel SwiGLU, prior and readout, for `D <= 128`.

The same mathematics as `fused/kernel.py`, from the same parts and packed weights; `path.py` launches them. One
program takes one trajectory through one block. Functions without annotations are bodies of GPU kernels.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gram.kernels.fused.attention import attended, product
from gram.kernels.fused.kernel import (
    FIXED_SCALE_HIGH,
    FIXED_SCALE_LOW,
    PATH,
    guided,
    head_values,
    hidden_tile,
    named_normals,
    normed,
    perturbed,
    token_mixed,
)


@triton.jit
def is_on(active_ptr, row_b, HAS_ACTIVE: tl.constexpr):
    """1 for a row to advance, else 0."""
    flag = row_b * 0 + 1
    if HAS_ACTIVE:
        flag = (tl.load(active_ptr + row_b) != 0).to(tl.int32)
    return flag


@triton.jit(do_not_specialize=["k0", "k1", "rows", "sigma"])
def begin_kernel(
    h_ptr, l_ptr, state_ptr, hash_ptr, trajectory_ptr, step_ptr, active_ptr,
    h_stride_b, h_stride_l, l_stride_b, l_stride_l, k0, k1, rows, sigma,
    L: tl.constexpr, LP: tl.constexpr, D: tl.constexpr,
    PERTURBS_H: tl.constexpr, PERTURBS_L: tl.constexpr, HAS_ACTIVE: tl.constexpr,
):  # fmt: skip
    """Copies both states into `state_ptr [2, B, L, D]`, with PTRM's noise where it is asked for."""
    row_b = tl.program_id(0)
    wide_b = row_b.to(tl.int64)
    token = tl.arange(0, LP)[:, None]
    channel = tl.arange(0, D)[None, :]
    is_token = token < L
    is_active = is_on(active_ptr, row_b, HAS_ACTIVE) != 0
    puzzle_hash = tl.load(hash_ptr + row_b)
    trajectory = tl.load(trajectory_ptr + row_b)
    step = tl.load(step_ptr + row_b)
    h_out = state_ptr + wide_b * (L * D) + token * D + channel
    h = tl.load(h_ptr + wide_b * h_stride_b + token * h_stride_l + channel, mask=is_token, other=0.0)
    if PERTURBS_H:
        moved = perturbed(h, token, sigma, k0, k1, step, FIXED_SCALE_HIGH, trajectory, puzzle_hash, LP, D)
        h = tl.where(is_active, moved, h)
    tl.store(h_out, h, mask=is_token)
    l = tl.load(l_ptr + wide_b * l_stride_b + token * l_stride_l + channel, mask=is_token, other=0.0)
    if PERTURBS_L:
        moved = perturbed(l, token, sigma, k0, k1, step, FIXED_SCALE_LOW, trajectory, puzzle_hash, LP, D)
        l = tl.where(is_active, moved, l)
    tl.store(h_out + rows.to(tl.int64) * (L * D), l, mask=is_token)


@triton.jit(do_not_specialize=["rows", "row", "token_row"])
def mixer_kernel(
    x_ptr, state_ptr, e_ptr, active_ptr, matrix, heads, tokens, cos_ptr, sin_ptr, e_stride_b, rows, row, token_row,
    L: tl.constexpr, LP: tl.constexpr, D: tl.constexpr, W: tl.constexpr, HM: tl.constexpr, TT: tl.constexpr,
    IS_TOKEN: tl.constexpr, IS_ROTARY: tl.constexpr, EPS: tl.constexpr,
    SUMS: tl.constexpr, HAS_ACTIVE: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`x = norm(x + mixer(x))`; `SUMS` 0 reads `x`, 1 takes `h + l` (`f_H`), 2 `h + e_x + l` (`f_L`)."""
    row_b = tl.program_id(0)
    wide_b = row_b.to(tl.int64)
    if is_on(active_ptr, row_b, HAS_ACTIVE) == 0:
        return
    token = tl.arange(0, LP)[:, None]
    inside = token * D + tl.arange(0, D)[None, :]
    is_token = token < L
    place = x_ptr + wide_b * (L * D) + inside
    if SUMS == 0:
        x = tl.load(place, mask=is_token, other=0.0)
    else:
        at = state_ptr + wide_b * (L * D) + inside
        summed = tl.load(at, mask=is_token, other=0.0).to(tl.float32)
        if SUMS == 2:
            summed += tl.load(e_ptr + wide_b * e_stride_b + inside, mask=is_token, other=0.0).to(tl.float32)
        low = tl.load(at + rows.to(tl.int64) * (L * D), mask=is_token, other=0.0)
        x = (low.to(tl.float32) + summed).to(low.dtype)
    if IS_TOKEN:
        acc = token_mixed(x, tokens, token_row, HM, TT, LP, 1, LP, D, STAGES, PRECISION)
    else:
        acc = attended(x, heads, row, cos_ptr, sin_ptr, L, LP, 1, LP, D, W, IS_ROTARY, 0, STAGES, PRECISION)
    tl.debug_barrier()
    tl.store(place, normed(acc, EPS, D).to(x.dtype), mask=is_token)


@triton.jit(do_not_specialize=["k0", "k1", "row", "call", "sigma"])
def channel_kernel(
    x_ptr, out_ptr, hash_ptr, trajectory_ptr, step_ptr, active_ptr, matrix, k0, k1, row, call, sigma,
    L: tl.constexpr, LP: tl.constexpr, D: tl.constexpr, F: tl.constexpr, TILE: tl.constexpr, EPS: tl.constexpr,
    CALLS: tl.constexpr, KEEP: tl.constexpr, HAS_PATH: tl.constexpr, HAS_ACTIVE: tl.constexpr,
    STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`out = norm(x + swiglu(x))`; the last block's keeps a share of `out` and adds path noise (EqR)."""
    row_b = tl.program_id(0)
    wide_b = row_b.to(tl.int64)
    if is_on(active_ptr, row_b, HAS_ACTIVE) == 0:
        return
    token = tl.arange(0, LP)[:, None]
    inside = token * D + tl.arange(0, D)[None, :]
    is_token = token < L
    x = tl.load(x_ptr + wide_b * (L * D) + inside, mask=is_token, other=0.0)
    acc = x.to(tl.float32)
    for tile in tl.range(0, F // TILE, num_stages=STAGES):
        first = row + tile * 3 * TILE
        act = hidden_tile(x, matrix, first, LP, TILE, PRECISION)
        acc = product(act, matrix.load([first + 2 * TILE, 0]), acc, PRECISION)
    made = normed(acc, EPS, D)
    place = out_ptr + wide_b * (L * D) + inside
    if KEEP > 0 or HAS_PATH:
        made = made.to(x.dtype).to(tl.float32)
        if KEEP > 0:
            made = KEEP * tl.load(place, mask=is_token, other=0.0).to(tl.float32) + (1.0 - KEEP) * made
        if HAS_PATH:
            trajectory = tl.load(trajectory_ptr + row_b)
            at = tl.load(step_ptr + row_b) * CALLS + call
            made = made + sigma * named_normals(
                token, 0, k0, k1, at, PATH, trajectory, tl.load(hash_ptr + row_b), LP, D, D
            )
    tl.debug_barrier()
    tl.store(place, made.to(x.dtype), mask=is_token)


@triton.jit(do_not_specialize=["k0", "k1", "index", "temperature"])
def prior_kernel(
    state_ptr, hash_ptr, trajectory_ptr, step_ptr, active_ptr, matrix, k0, k1, index, temperature,
    L: tl.constexpr, LP: tl.constexpr, D: tl.constexpr, T: tl.constexpr, PRIOR_ROW: tl.constexpr, G: tl.constexpr,
    GUIDANCE: tl.constexpr, NOISE_FREE: tl.constexpr, IS_WARM: tl.constexpr, CENTER: tl.constexpr, RANGE: tl.constexpr,
    TILE: tl.constexpr, HAS_ACTIVE: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`h + mu + temperature sigma n`, in place, in rows past the noise-free steps."""
    row_b = tl.program_id(0)
    step = tl.load(step_ptr + row_b)
    if is_on(active_ptr, row_b, HAS_ACTIVE) == 0:
        return
    token = tl.arange(0, LP)[:, None]
    place = state_ptr + row_b.to(tl.int64) * (L * D) + token * D + tl.arange(0, D)[None, :]
    u = tl.load(place, mask=token < L, other=0.0)
    trajectory, puzzle_hash = tl.load(trajectory_ptr + row_b), tl.load(hash_ptr + row_b)
    noised = guided(
        u, token, matrix, k0, k1, step * T + index, trajectory, puzzle_hash, temperature,
        PRIOR_ROW, G, GUIDANCE, IS_WARM, CENTER, RANGE, LP, D, TILE, STAGES, PRECISION,
    )  # fmt: skip
    tl.debug_barrier()
    tl.store(place, noised.to(u.dtype), mask=token < tl.where(step >= NOISE_FREE, L, 0))


@triton.jit(do_not_specialize=["rows"])
def readout_kernel(
    state_ptr, score_ptr, active_ptr, matrix, vector_ptr, rows,
    L: tl.constexpr, LP: tl.constexpr, D: tl.constexpr, HEAD_ROW: tl.constexpr, HH: tl.constexpr,
    TILE: tl.constexpr, READS_REGISTER: tl.constexpr, HAS_ACTIVE: tl.constexpr,
    STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Halt logit and LPRM into `score_ptr [2, B]`; NaN for an inactive row."""
    row_b = tl.program_id(0)
    is_active = is_on(active_ptr, row_b, HAS_ACTIVE) != 0
    token = tl.arange(0, LP)[:, None]
    at = state_ptr + row_b.to(tl.int64) * (L * D) + token * D + tl.arange(0, D)[None, :]
    h = tl.load(at, mask=token < L, other=0.0)
    READ_ROWS: tl.constexpr = 1 if READS_REGISTER else L
    read_weight = tl.reshape(tl.where(token < READ_ROWS, 1.0 / READ_ROWS, 0.0), (LP,))
    halt = head_values(h, matrix, vector_ptr, read_weight, 0, HEAD_ROW, HH, LP, 1, LP, D, TILE, STAGES, PRECISION)
    lprm = head_values(h, matrix, vector_ptr, read_weight, 1, HEAD_ROW, HH, LP, 1, LP, D, TILE, STAGES, PRECISION)
    place = score_ptr + row_b + tl.arange(0, 1)
    tl.store(place, tl.where(is_active, halt, float("nan")))
    tl.store(place + rows, tl.where(is_active, lprm, float("nan")))
