"""The body of the fused kernel: one program takes one trajectory through a whole supervision step.

It computes `reference.supervision_step`; `pack.py` lays out its weights, `path.py` launches it. Functions without
annotations are bodies of GPU kernels. Both states stay in global memory (in the second-level cache), since they would
spill if registers carried them through the products. Registers carry only the output of a core call to the next sum, so
only the last `l` of a transition is stored. A barrier separates a store from the loads of other threads. Only loops
over tiles of weights load ahead (`STAGES`): they hold no store, and nothing writes weights.

Shapes: `LP` token rows (padded), `D` channels, `W` channels of a head.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gram.kernels.philox_triton import normals

PRIOR = tl.constexpr(0)
FIXED_SCALE_LOW = tl.constexpr(3)
FIXED_SCALE_HIGH = tl.constexpr(4)
PATH = tl.constexpr(5)


@triton.jit
def product(a, b, acc, PRECISION: tl.constexpr):
    """`acc + a b`, fp32; fp32 factors are multiplied as `PRECISION` says."""
    return tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=tl.float32)


@triton.jit
def normed(x, EPS: tl.constexpr, D: tl.constexpr):
    return x * tl.rsqrt(tl.sum(x * x, 1) / D + EPS)[:, None]


@triton.jit
def gated(gate, up):
    return gate * tl.sigmoid(gate) * up


@triton.jit
def hidden_tile(x, matrix, row, ROWS: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr):
    """`silu(gate) * up` of one tile of hidden units, whose rows begin at `row`."""
    blank = tl.zeros((ROWS, TILE), tl.float32)
    gate = product(x, tl.trans(matrix.load([row, 0])), blank, PRECISION)
    up = product(x, tl.trans(matrix.load([row + TILE, 0])), blank, PRECISION)
    return gated(gate, up).to(x.dtype)


@triton.jit
def rotated(x, cos, sin, ROWS: tl.constexpr, W: tl.constexpr):
    """Rotary positions on adjacent pairs."""
    first, second = tl.split(tl.reshape(x, (ROWS, W // 2, 2)))
    return tl.reshape(tl.join(first * cos - second * sin, second * cos + first * sin), (ROWS, W))


@triton.jit
def attended(
    x, heads, row, cos_ptr, sin_ptr,
    L: tl.constexpr, LP: tl.constexpr, D: tl.constexpr, W: tl.constexpr, IS_ROTARY: tl.constexpr,
    STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`x` plus attention over it, fp32."""
    acc = x.to(tl.float32)
    tokens = tl.arange(0, LP)
    blank = tl.zeros((LP, W), tl.float32)
    for head in tl.range(0, D // W, num_stages=STAGES):
        first = row + head * 4 * W
        query = product(x, tl.trans(heads.load([first, 0])), blank, PRECISION)
        key = product(x, tl.trans(heads.load([first + W, 0])), blank, PRECISION)
        if IS_ROTARY:
            at = tokens[:, None] * (W // 2) + tl.arange(0, W // 2)[None, :]
            is_token = tokens[:, None] < L
            cos = tl.load(cos_ptr + at, mask=is_token, other=0.0)
            sin = tl.load(sin_ptr + at, mask=is_token, other=0.0)
            query = rotated(query, cos, sin, LP, W)
            key = rotated(key, cos, sin, LP, W)
        query = (query * (W**-0.5)).to(x.dtype)
        scores = product(query, tl.trans(key.to(x.dtype)), tl.zeros((LP, LP), tl.float32), PRECISION)
        scores = tl.where((tokens < L)[None, :], scores, float("-inf"))
        attention = tl.exp(scores - tl.max(scores, 1)[:, None])
        attention = (attention / tl.sum(attention, 1)[:, None]).to(x.dtype)
        value = product(x, tl.trans(heads.load([first + 2 * W, 0])), blank, PRECISION).to(x.dtype)
        mixed = product(attention, value, blank, PRECISION).to(x.dtype)
        acc = product(mixed, heads.load([first + 3 * W, 0]), acc, PRECISION)
    return tl.where((tokens < L)[:, None], acc, 0.0)


@triton.jit
def token_mixed(
    x, tokens, row, HM: tl.constexpr, TT: tl.constexpr, LP: tl.constexpr, D: tl.constexpr,
    STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`x` plus the SwiGLU over its tokens, fp32. Transposed: `D` rows fill eight warps where `L` would not."""
    turned = tl.trans(x)
    acc = tl.zeros((D, LP), tl.float32)
    for tile in tl.range(0, HM // TT, num_stages=STAGES):
        first = row + tile * 3 * TT
        act = hidden_tile(turned, tokens, first, D, TT, PRECISION)
        acc = product(act, tokens.load([first + 2 * TT, 0]), acc, PRECISION)
    return x.to(tl.float32) + tl.trans(acc)


@triton.jit
def guided(
    u, matrix, k0, k1, transition, trajectory, puzzle_hash, temperature,
    PRIOR_ROW: tl.constexpr, G: tl.constexpr, GUIDANCE: tl.constexpr, IS_WARM: tl.constexpr,
    CENTER: tl.constexpr, RANGE: tl.constexpr, LP: tl.constexpr, D: tl.constexpr, TILE: tl.constexpr,
    STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`u + mu + temperature sigma n`, fp32, with mu and sigma of the prior given `u`."""
    HAS_MEAN: tl.constexpr = GUIDANCE != "noise"
    HAS_NORMAL: tl.constexpr = IS_WARM and GUIDANCE != "mean"
    mean = u.to(tl.float32)
    raw = tl.zeros((LP, D), tl.float32)
    for tile in tl.range(0, G // TILE, num_stages=STAGES):
        first = PRIOR_ROW + tile * 4 * TILE
        act = hidden_tile(u, matrix, first, LP, TILE, PRECISION)
        if HAS_MEAN:
            mean = product(act, matrix.load([first + 2 * TILE, 0]), mean, PRECISION)
        if HAS_NORMAL:
            raw = product(act, matrix.load([first + 3 * TILE, 0]), raw, PRECISION)
    if HAS_NORMAL:
        bounded = RANGE * (2.0 * tl.sigmoid(raw * (2.0 / RANGE)) - 1.0)
        scale = temperature * tl.exp(CENTER + bounded)
        mean = mean + scale * normals(k0, k1, transition, PRIOR, trajectory, puzzle_hash, LP, D)
    return mean


@triton.jit
def head_value(
    h, matrix, vector_ptr, read_weight, INDEX: tl.constexpr, HEAD_ROW: tl.constexpr, HH: tl.constexpr,
    LP: tl.constexpr, D: tl.constexpr, TILE: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Halt logit (`INDEX` 0) or LPRM (1); `read_weight [LP, 1]` is each token's weight in the readout."""
    WIDTH: tl.constexpr = HH if HH > 0 else D
    base = vector_ptr + INDEX * (WIDTH + 1)
    value = tl.load(base + WIDTH)
    if HH > 0:
        for tile in tl.range(0, HH // TILE, num_stages=STAGES):
            act = hidden_tile(h, matrix, HEAD_ROW + INDEX * 2 * HH + tile * 2 * TILE, LP, TILE, PRECISION)
            readout = tl.sum(act.to(tl.float32) * read_weight, 0)
            value += tl.sum(readout * tl.load(base + tile * TILE + tl.arange(0, TILE)), 0)
    else:
        readout = tl.sum(h.to(tl.float32) * read_weight, 0)
        value += tl.sum(readout * tl.load(base + tl.arange(0, D)), 0)
    return value


@triton.jit
def perturbed(
    state, sigma, k0, k1, step, SITE: tl.constexpr, trajectory, puzzle_hash, LP: tl.constexpr, D: tl.constexpr
):
    """`state + sigma rms(state) n` (PTRM)."""
    wide = state.to(tl.float32)
    rms = tl.sqrt(tl.sum(wide * wide, 1) / D)[:, None]
    return (wide + sigma * rms * normals(k0, k1, step, SITE, trajectory, puzzle_hash, LP, D)).to(state.dtype)


@triton.jit(do_not_specialize=["k0", "k1", "rows", "temperature", "sigma"])
def supervision_step_kernel(
    h_ptr, l_ptr, e_ptr, state_ptr, score_ptr, hash_ptr, trajectory_ptr, step_ptr, active_ptr,
    matrix, heads, tokens, vector_ptr, cos_ptr, sin_ptr,
    h_stride_b, h_stride_l, l_stride_b, l_stride_l, e_stride_b,
    k0, k1, rows, temperature, sigma,
    L: tl.constexpr, LP: tl.constexpr, D: tl.constexpr, W: tl.constexpr,
    BLOCKS: tl.constexpr, T: tl.constexpr, K: tl.constexpr,
    F: tl.constexpr, HM: tl.constexpr, G: tl.constexpr, HH: tl.constexpr,
    TILE: tl.constexpr, TT: tl.constexpr,
    CORE_ROWS: tl.constexpr, HIGH_ROW: tl.constexpr, HIGH_TOKEN_ROW: tl.constexpr,
    PRIOR_ROW: tl.constexpr, HEAD_ROW: tl.constexpr,
    IS_TOKEN: tl.constexpr, IS_ROTARY: tl.constexpr, EPS: tl.constexpr,
    GUIDANCE: tl.constexpr, IS_BEFORE: tl.constexpr, NOISE_FREE: tl.constexpr,
    IS_WARM: tl.constexpr, CENTER: tl.constexpr, RANGE: tl.constexpr,
    PERTURBS_H: tl.constexpr, PERTURBS_L: tl.constexpr, KEEP: tl.constexpr, HAS_PATH: tl.constexpr,
    READS_REGISTER: tl.constexpr, HAS_ACTIVE: tl.constexpr,
    STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program `b` takes trajectory `b`: state into `state_ptr [2, B, L, D]` (h, l), heads into `score_ptr [2, B]`."""
    row_b = tl.program_id(0)
    wide_b = row_b.to(tl.int64)
    token = tl.arange(0, LP)[:, None]
    channel = tl.arange(0, D)[None, :]
    is_token = token < L
    puzzle_hash = tl.load(hash_ptr + row_b)
    trajectory = tl.load(trajectory_ptr + row_b)
    step = tl.load(step_ptr + row_b)
    is_active = step == step
    if HAS_ACTIVE:
        is_active = tl.load(active_ptr + row_b) != 0
    noisy_rows = tl.where(step >= NOISE_FREE, L, 0)

    inside = token * D + channel
    h_out = state_ptr + wide_b * (L * D) + inside
    l_offset = rows.to(tl.int64) * (L * D)
    h = tl.load(h_ptr + wide_b * h_stride_b + token * h_stride_l + channel, mask=is_token, other=0.0)
    if PERTURBS_H:
        moved = perturbed(h, sigma, k0, k1, step, FIXED_SCALE_HIGH, trajectory, puzzle_hash, LP, D)
        h = tl.where(is_active, moved, h)
    tl.store(h_out, h, mask=is_token)
    l = tl.load(l_ptr + wide_b * l_stride_b + token * l_stride_l + channel, mask=is_token, other=0.0)
    if PERTURBS_L:
        moved = perturbed(l, sigma, k0, k1, step, FIXED_SCALE_LOW, trajectory, puzzle_hash, LP, D)
        l = tl.where(is_active, moved, l)
    tl.store(h_out + l_offset, l, mask=is_token)
    tl.debug_barrier()

    for index in tl.range(0, tl.where(is_active, T, 0), num_stages=1):
        transition = step * T + index
        if IS_BEFORE and GUIDANCE != "none":
            u = tl.load(h_out, mask=is_token, other=0.0)
            noisy = guided(
                u, matrix, k0, k1, transition, trajectory, puzzle_hash, temperature,
                PRIOR_ROW, G, GUIDANCE, IS_WARM, CENTER, RANGE, LP, D, TILE,
                STAGES, PRECISION,
            )  # fmt: skip
            tl.store(h_out, noisy.to(u.dtype), mask=token < noisy_rows)
            tl.debug_barrier()
        low = tl.load(h_out + l_offset, mask=is_token, other=0.0)
        for call in tl.range(0, K + 1, num_stages=1):
            is_low = call < K
            e_x = tl.load(
                e_ptr + wide_b * e_stride_b + inside,
                mask=token < tl.where(is_low, L, 0),
                other=0.0,
            )
            summed = tl.load(h_out, mask=is_token, other=0.0).to(tl.float32) + e_x.to(tl.float32)
            x = (low.to(tl.float32) + summed).to(low.dtype)
            row = tl.where(is_low, 0, HIGH_ROW)
            token_row = tl.where(is_low, 0, HIGH_TOKEN_ROW)
            for _ in tl.range(0, BLOCKS, num_stages=1):
                channel_row = row
                if IS_TOKEN:
                    acc = token_mixed(x, tokens, token_row, HM, TT, LP, D, STAGES, PRECISION)
                else:
                    acc = attended(x, heads, row, cos_ptr, sin_ptr, L, LP, D, W, IS_ROTARY, STAGES, PRECISION)
                    channel_row = row + 4 * D
                x = normed(acc, EPS, D).to(low.dtype)
                acc = x.to(tl.float32)
                for tile in tl.range(0, F // TILE, num_stages=STAGES):
                    first = channel_row + tile * 3 * TILE
                    act = hidden_tile(x, matrix, first, LP, TILE, PRECISION)
                    acc = product(act, matrix.load([first + 2 * TILE, 0]), acc, PRECISION)
                x = normed(acc, EPS, D).to(low.dtype)
                row += CORE_ROWS
                token_row += 3 * HM
            place = h_out + tl.where(is_low, l_offset, 0)
            if KEEP > 0 or HAS_PATH:
                new = x.to(tl.float32)
                if KEEP > 0:
                    new = KEEP * tl.load(place, mask=is_token, other=0.0).to(tl.float32) + (1.0 - KEEP) * new
                if HAS_PATH:
                    made = transition * (K + 1) + call
                    new = new + sigma * normals(k0, k1, made, PATH, trajectory, puzzle_hash, LP, D)
                x = new.to(low.dtype)
            low = x
            # Of the low-level calls' states only the last is loaded again, unless a share of each is kept.
            is_loaded_again = call >= 0 if KEEP > 0 else call >= K - 1
            tl.debug_barrier()
            tl.store(place, x, mask=token < tl.where(is_loaded_again, L, 0))
            tl.debug_barrier()
        if not IS_BEFORE and GUIDANCE != "none":
            u = tl.load(h_out, mask=is_token, other=0.0)
            noisy = guided(
                u, matrix, k0, k1, transition, trajectory, puzzle_hash, temperature,
                PRIOR_ROW, G, GUIDANCE, IS_WARM, CENTER, RANGE, LP, D, TILE,
                STAGES, PRECISION,
            )  # fmt: skip
            tl.store(h_out, noisy.to(u.dtype), mask=token < noisy_rows)
            tl.debug_barrier()

    h = tl.load(h_out, mask=is_token, other=0.0)
    READ_ROWS: tl.constexpr = 1 if READS_REGISTER else L
    read_weight = tl.where(token < READ_ROWS, 1.0 / READ_ROWS, 0.0)
    halt = head_value(h, matrix, vector_ptr, read_weight, 0, HEAD_ROW, HH, LP, D, TILE, STAGES, PRECISION)
    lprm = head_value(h, matrix, vector_ptr, read_weight, 1, HEAD_ROW, HH, LP, D, TILE, STAGES, PRECISION)
    tl.store(score_ptr + row_b, tl.where(is_active, halt, float("nan")))
    tl.store(score_ptr + rows + row_b, tl.where(is_active, lprm, float("nan")))
