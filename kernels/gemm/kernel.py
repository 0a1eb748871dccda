"""Bodies of kernel C's pointwise kernels and its attention: all that lies between two matrix products.

`plan.py` determines their order and arguments. States are rows `[B*L, D]`, one a token; a program of the row
kernels holds `R` whole rows, so a norm never leaves it. Functions without annotations are bodies of GPU kernels.

The norm is deferred: `rmsnorm` has no weight, so `rmsnorm(y) W = s (y W)` with `s = 1 / rms(y)`, one number a row. The
mixer's product leaves `y`; the channel SwiGLU multiplies `y`, not its norm, and `scaled_gate_kernel` applies `s` behind
it and stores it. Its residual is `s y`: the product adds to `y` instead, which leaves `z` with `s z` meant, and
`damp_kernel` norms that. The states' sums and noise follow in the same pass.

Shapes: `DP` channels `D` padded to a power of two, `W` channels of a head.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gram.kernels.blocks.kernel import is_on
from gram.kernels.fused.attention import product, rotated
from gram.kernels.fused.kernel import FIXED_SCALE_HIGH, FIXED_SCALE_LOW, PATH, PRIOR, gated, token_mixed
from gram.kernels.philox_triton import normals_at

NO_SUM = tl.constexpr(0)
HIGH_SUM = tl.constexpr(1)
"""`h + l`: what `f_H` reads."""
LOW_SUM = tl.constexpr(2)
"""`l + h + e_x`: what `f_L` reads."""


@triton.jit
def row_noise(
    SITE: tl.constexpr, drawn, row, key_ptr, hash_ptr, trajectory_ptr,
    L: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """Standard normals `[R, DP]` of rows `row [R, 1]` at a site; `drawn [R, 1]` is their transition or core call."""
    c0 = (row % L) * (D // 4) + tl.arange(0, DP // 4)[None, :]
    trajectory = tl.load(trajectory_ptr + row // L)
    puzzle_hash = tl.load(hash_ptr + row // L)
    k0, k1 = tl.load(key_ptr), tl.load(key_ptr + 1)
    return normals_at(c0, k0, k1, drawn, SITE, trajectory, puzzle_hash, R, DP)


@triton.jit
def active_rows(active_ptr, row, L: tl.constexpr, HAS_ACTIVE: tl.constexpr):
    """Whether each row's trajectory is to be advanced."""
    is_active = row == row
    if HAS_ACTIVE:
        is_active = tl.load(active_ptr + row // L) != 0
    return is_active


@triton.jit
def rows_here(rows, D: tl.constexpr, DP: tl.constexpr, R: tl.constexpr):
    """This program's rows `[R, 1]` (0 beyond the last), which of its elements `[R, DP]` there are, and their places."""
    row = (tl.program_id(0) * R + tl.arange(0, R))[:, None]
    channel = tl.arange(0, DP)[None, :]
    is_row = row < rows
    row = tl.where(is_row, row, 0)
    return row, is_row & (channel < D), row.to(tl.int64) * D + channel


@triton.jit
def store_sum(h, l, e_ptr, x_ptr, at, is_in, SUMS: tl.constexpr):
    """Stores what the next core call reads of states `h, l` (fp32, `[R, DP]`)."""
    if SUMS == LOW_SUM:
        h += tl.load(e_ptr + at, mask=is_in, other=0.0).to(tl.float32)
    tl.store(x_ptr + at, (l + h).to(x_ptr.dtype.element_ty), mask=is_in)


@triton.jit
def perturbed_rows(state, sigma, normal, is_active, D: tl.constexpr):
    """`state + sigma rms(state) n` in active rows (PTRM)."""
    wide = state.to(tl.float32)
    rms = tl.sqrt(tl.sum(wide * wide, 1) / D)[:, None]
    return tl.where(is_active, wide + sigma * rms * normal, wide).to(state.dtype)


@triton.jit(do_not_specialize=["rows"])
def begin_kernel(
    state_ptr, e_ptr, x_ptr, hash_ptr, trajectory_ptr, step_ptr, active_ptr, key_ptr, scale_ptr, rows,
    L: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, R: tl.constexpr, SUMS: tl.constexpr,
    PERTURBS_H: tl.constexpr, PERTURBS_L: tl.constexpr, HAS_ACTIVE: tl.constexpr,
):  # fmt: skip
    """PTRM's noise on the states `[2, B*L, D]`, in place, and the first core call's sum."""
    row, is_in, at = rows_here(rows, D, DP, R)
    l_ptr = state_ptr + rows.to(tl.int64) * D
    h = tl.load(state_ptr + at, mask=is_in, other=0.0)
    l = tl.load(l_ptr + at, mask=is_in, other=0.0)
    if PERTURBS_H or PERTURBS_L:
        sigma = tl.load(scale_ptr + 1)
        step = tl.load(step_ptr + row // L)
        is_active = active_rows(active_ptr, row, L, HAS_ACTIVE)
        if PERTURBS_H:
            normal = row_noise(FIXED_SCALE_HIGH, step, row, key_ptr, hash_ptr, trajectory_ptr, L, D, DP, R)
            h = perturbed_rows(h, sigma, normal, is_active, D)
            tl.store(state_ptr + at, h, mask=is_in)
        if PERTURBS_L:
            normal = row_noise(FIXED_SCALE_LOW, step, row, key_ptr, hash_ptr, trajectory_ptr, L, D, DP, R)
            l = perturbed_rows(l, sigma, normal, is_active, D)
            tl.store(l_ptr + at, l, mask=is_in)
    if SUMS != NO_SUM:
        store_sum(h.to(tl.float32), l.to(tl.float32), e_ptr, x_ptr, at, is_in, SUMS)


@triton.jit
def attention_kernel(
    qkv_ptr, mixed_ptr, cos_ptr, sin_ptr, active_ptr,
    L: tl.constexpr, D: tl.constexpr, W: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    IS_ROTARY: tl.constexpr, HAS_ACTIVE: tl.constexpr,
):  # fmt: skip
    """Attention of one trajectory's head for `BM` queries, over tiles of `BN` keys: `qkv [B*L, 3*D]` to `[B*L, D]`."""
    row_b, head = tl.program_id(0), tl.program_id(1)
    if is_on(active_ptr, row_b, HAS_ACTIVE) == 0:
        return
    base = qkv_ptr + row_b.to(tl.int64) * (L * 3 * D) + head * W + tl.arange(0, W)[None, :]
    query_token = tl.program_id(2) * BM + tl.arange(0, BM)
    is_query = (query_token < L)[:, None]
    query = tl.load(base + query_token[:, None] * (3 * D), mask=is_query, other=0.0)
    pair = tl.arange(0, W // 2)[None, :]
    if IS_ROTARY:
        at = query_token[:, None] * (W // 2) + pair
        cos = tl.load(cos_ptr + at, mask=is_query, other=0.0)
        sin = tl.load(sin_ptr + at, mask=is_query, other=0.0)
        scaled = rotated(query.to(tl.float32), cos, sin, BM, W)
    else:
        scaled = query.to(tl.float32)
    scaled = (scaled * (W**-0.5)).to(query.dtype)
    maximum = tl.full((BM,), float("-inf"), tl.float32)
    denominator = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, W), tl.float32)
    for first in tl.range(0, L, BN):
        token = first + tl.arange(0, BN)
        is_token = (token < L)[:, None]
        place = base + token[:, None] * (3 * D)
        key = tl.load(place + D, mask=is_token, other=0.0)
        value = tl.load(place + 2 * D, mask=is_token, other=0.0)
        if IS_ROTARY:
            at = token[:, None] * (W // 2) + pair
            cos = tl.load(cos_ptr + at, mask=is_token, other=0.0)
            sin = tl.load(sin_ptr + at, mask=is_token, other=0.0)
            key = rotated(key.to(tl.float32), cos, sin, BN, W).to(query.dtype)
        scores = product(scaled, tl.trans(key), tl.zeros((BM, BN), tl.float32), "ieee")
        scores = tl.where((token < L)[None, :], scores, float("-inf"))
        larger = tl.maximum(maximum, tl.max(scores, 1))
        weights = tl.exp(scores - larger[:, None])
        rescale = tl.exp(maximum - larger)
        denominator = denominator * rescale + tl.sum(weights, 1)
        acc = product(weights.to(query.dtype), value, acc * rescale[:, None], "ieee")
        maximum = larger
    place = mixed_ptr + row_b.to(tl.int64) * (L * D) + query_token[:, None] * D + head * W + tl.arange(0, W)[None, :]
    tl.store(place, (acc / denominator[:, None]).to(query.dtype), mask=is_query)


@triton.jit
def token_mix_kernel(
    x_ptr, active_ptr, tiles,
    L: tl.constexpr, LP: tl.constexpr, D: tl.constexpr, CT: tl.constexpr, HM: tl.constexpr, TT: tl.constexpr,
    EPS: tl.constexpr, IS_SCALED: tl.constexpr, HAS_ACTIVE: tl.constexpr,
):  # fmt: skip
    """`x += token mixer(x)` on `CT` channels of one trajectory, which need no others: the hidden units, far more than
    the tokens, never leave the program. Normed over tokens here, where that is the norm."""
    row_b = tl.program_id(0)
    if is_on(active_ptr, row_b, HAS_ACTIVE) == 0:
        return
    token = tl.arange(0, LP)[:, None]
    channel = tl.program_id(1) * CT + tl.arange(0, CT)[None, :]
    is_in = (token < L) & (channel < D)
    place = x_ptr + row_b.to(tl.int64) * (L * D) + token * D + channel
    x = tl.load(place, mask=is_in, other=0.0)
    mixed = token_mixed(x, tiles, 0, HM, TT, LP, 1, LP, CT, 1, "ieee")
    if not IS_SCALED:
        mixed = mixed * tl.rsqrt(tl.sum(mixed * mixed, 0) / L + EPS)[None, :]
    tl.debug_barrier()
    tl.store(place, mixed.to(x.dtype), mask=is_in)


@triton.jit
def gate_kernel(wide_ptr, act_ptr, N: tl.constexpr, TILE: tl.constexpr):
    """`act [.., N] = silu(gate) * up` of `wide [.., 2*N]`."""
    group = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * TILE + tl.arange(0, TILE)
    is_in = at < N
    gate = tl.load(wide_ptr + group * (2 * N) + at, mask=is_in, other=0.0).to(tl.float32)
    up = tl.load(wide_ptr + group * (2 * N) + N + at, mask=is_in, other=0.0).to(tl.float32)
    tl.store(act_ptr + group * N + at, gated(gate, up).to(act_ptr.dtype.element_ty), mask=is_in)


@triton.jit(do_not_specialize=["rows"])
def scaled_gate_kernel(
    x_ptr, wide_ptr, act_ptr, norm_ptr, rows,
    D: tl.constexpr, DP: tl.constexpr, R: tl.constexpr, F: tl.constexpr, TILE: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """`s = 1 / rms(x)`, kept in `norm_ptr`, and `act = silu(s gate) * up`: the SwiGLU of `s x`, over `s`."""
    row = (tl.program_id(0) * R + tl.arange(0, R))[:, None]
    is_row = row < rows
    wide_row = row.to(tl.int64)
    channel = tl.arange(0, DP)[None, :]
    x = tl.load(x_ptr + wide_row * D + channel, mask=is_row & (channel < D), other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 1) / D + EPS)[:, None]
    tl.store(norm_ptr + row, scale, mask=is_row)
    for first in tl.range(0, F, TILE):
        unit = first + tl.arange(0, TILE)[None, :]
        is_in = is_row & (unit < F)
        gate = tl.load(wide_ptr + wide_row * (2 * F) + unit, mask=is_in, other=0.0).to(tl.float32)
        up = tl.load(wide_ptr + wide_row * (2 * F) + F + unit, mask=is_in, other=0.0).to(tl.float32)
        tl.store(act_ptr + wide_row * F + unit, gated(scale * gate, up).to(act_ptr.dtype.element_ty), mask=is_in)


@triton.jit
def token_norm_kernel(x_ptr, L: tl.constexpr, LP: tl.constexpr, D: tl.constexpr, CT: tl.constexpr, EPS: tl.constexpr):
    """Norms `CT` channels of one trajectory over their tokens, in place. This norm cannot be deferred."""
    token = tl.arange(0, LP)[:, None]
    channel = tl.program_id(1) * CT + tl.arange(0, CT)[None, :]
    is_in = (token < L) & (channel < D)
    place = x_ptr + tl.program_id(0).to(tl.int64) * (L * D) + token * D + channel
    x = tl.load(place, mask=is_in, other=0.0)
    wide = x.to(tl.float32)
    tl.store(place, (wide * tl.rsqrt(tl.sum(wide * wide, 0) / L + EPS)[None, :]).to(x.dtype), mask=is_in)


@triton.jit(do_not_specialize=["rows", "call"])
def damp_kernel(
    x_ptr, norm_ptr, state_ptr, e_ptr, hash_ptr, trajectory_ptr, step_ptr, active_ptr, key_ptr, scale_ptr, rows, call,
    L: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, R: tl.constexpr, EPS: tl.constexpr,
    IS_SCALED: tl.constexpr, PLACE: tl.constexpr, SUMS: tl.constexpr, CALLS: tl.constexpr,
    KEEP: tl.constexpr, HAS_PATH: tl.constexpr, HAS_ACTIVE: tl.constexpr,
):  # fmt: skip
    """Norms `s x`. `PLACE` 0 leaves it in `x`, for the next block; else it is the new `h` (1) or `l` (2): EqR's
    damping and path noise, the state, and the next core call's sum in `x`."""
    row, is_in, at = rows_here(rows, D, DP, R)
    made = tl.load(x_ptr + at, mask=is_in, other=0.0).to(tl.float32)
    if IS_SCALED:
        made = made * tl.load(norm_ptr + row)
    made = made * tl.rsqrt(tl.sum(made * made, 1) / D + EPS)[:, None]
    made = made.to(x_ptr.dtype.element_ty)
    if PLACE == 0:
        tl.store(x_ptr + at, made, mask=is_in)
    else:
        h_ptr = state_ptr
        l_ptr = state_ptr + rows.to(tl.int64) * D
        if PLACE == 1:
            place = h_ptr + at
            other = l_ptr + at
        else:
            place = l_ptr + at
            other = h_ptr + at
        if KEEP > 0 or HAS_PATH:
            new = made.to(tl.float32)
            if KEEP > 0:
                new = KEEP * tl.load(place, mask=is_in, other=0.0).to(tl.float32) + (1.0 - KEEP) * new
            if HAS_PATH:
                drawn = tl.load(step_ptr + row // L) * CALLS + call
                normal = row_noise(PATH, drawn, row, key_ptr, hash_ptr, trajectory_ptr, L, D, DP, R)
                new += tl.load(scale_ptr + 1) * normal
            made = new.to(made.dtype)
        tl.store(place, made, mask=is_in & active_rows(active_ptr, row, L, HAS_ACTIVE))
        if SUMS != NO_SUM:
            beside = tl.load(other, mask=is_in, other=0.0).to(tl.float32)
            if PLACE == 1:
                store_sum(made.to(tl.float32), beside, e_ptr, x_ptr, at, is_in, SUMS)
            else:
                store_sum(beside, made.to(tl.float32), e_ptr, x_ptr, at, is_in, SUMS)


@triton.jit(do_not_specialize=["rows", "index"])
def guide_kernel(
    prior_ptr, state_ptr, e_ptr, x_ptr, hash_ptr, trajectory_ptr, step_ptr, active_ptr, key_ptr, scale_ptr, rows, index,
    L: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, R: tl.constexpr, T: tl.constexpr, SUMS: tl.constexpr,
    HAS_MEAN: tl.constexpr, HAS_NORMAL: tl.constexpr, NOISE_FREE: tl.constexpr,
    CENTER: tl.constexpr, RANGE: tl.constexpr, HAS_ACTIVE: tl.constexpr,
):  # fmt: skip
    """`h + mu + temperature sigma n`, in place, past the noise-free steps, and the next core call's sum; `prior` holds
    `mu`, then raw log sigma, as far as they are asked for."""
    row, is_in, at = rows_here(rows, D, DP, R)
    WIDTH: tl.constexpr = 2 * D if HAS_MEAN and HAS_NORMAL else D
    prior = prior_ptr + row.to(tl.int64) * WIDTH + tl.arange(0, DP)[None, :]
    step = tl.load(step_ptr + row // L)
    u = tl.load(state_ptr + at, mask=is_in, other=0.0)
    noisy = u.to(tl.float32)
    if HAS_MEAN:
        noisy += tl.load(prior, mask=is_in, other=0.0).to(tl.float32)
    if HAS_NORMAL:
        raw = tl.load(prior + (WIDTH - D), mask=is_in, other=0.0).to(tl.float32)
        bounded = RANGE * (2.0 * tl.sigmoid(raw * (2.0 / RANGE)) - 1.0)
        normal = row_noise(PRIOR, step * T + index, row, key_ptr, hash_ptr, trajectory_ptr, L, D, DP, R)
        noisy += tl.load(scale_ptr) * tl.exp(CENTER + bounded) * normal
    h = tl.where(step >= NOISE_FREE, noisy.to(u.dtype), u)
    tl.store(state_ptr + at, h, mask=is_in & active_rows(active_ptr, row, L, HAS_ACTIVE))
    if SUMS != NO_SUM:
        l = tl.load(state_ptr + rows.to(tl.int64) * D + at, mask=is_in, other=0.0).to(tl.float32)
        store_sum(h.to(tl.float32), l, e_ptr, x_ptr, at, is_in, SUMS)


@triton.jit(do_not_specialize=["count", "read", "read_stride"])
def readout_kernel(
    read_ptr, vector_ptr, score_ptr, active_ptr, count, read, read_stride,
    N: tl.constexpr, NP: tl.constexpr, R: tl.constexpr,
    HAS_HIDDEN: tl.constexpr, HAS_ACTIVE: tl.constexpr,
):  # fmt: skip
    """Halt logit and LPRM of a trajectory from the mean of `read` tokens, into `score_ptr [2, B]`; NaN where inactive.

    `read_ptr` holds a trajectory's states `[read, N]` or, `HAS_HIDDEN`, its heads' gates and ups `[read, 4*N]`.
    """
    row_b = tl.program_id(0)
    channel = tl.arange(0, NP)[None, :]
    is_channel = channel < N
    WIDTH: tl.constexpr = 4 * N if HAS_HIDDEN else N
    base = read_ptr + row_b.to(tl.int64) * read_stride + channel
    is_active = is_on(active_ptr, row_b, HAS_ACTIVE) != 0
    for head in tl.static_range(2):
        total = tl.zeros((R, NP), tl.float32)
        for first in tl.range(0, read, R):
            token = first + tl.arange(0, R)[:, None]
            is_in = (token < read) & is_channel
            place = base + token * WIDTH
            if HAS_HIDDEN:
                gate = tl.load(place + head * 2 * N, mask=is_in, other=0.0).to(tl.float32)
                total += gated(gate, tl.load(place + (head * 2 + 1) * N, mask=is_in, other=0.0).to(tl.float32))
            else:
                total += tl.load(place, mask=is_in, other=0.0).to(tl.float32)
        last = vector_ptr + head * (N + 1)
        readout = tl.sum(total, 0)[None, :] / read
        value = tl.sum(readout * tl.load(last + channel, mask=is_channel, other=0.0)) + tl.load(last + N)
        tl.store(score_ptr + head * count + row_b, tl.where(is_active, value, float("nan")))
