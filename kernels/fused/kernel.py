"""The body of the fused kernel: one program takes one trajectory through a whole supervision step.

It computes `reference.supervision_step`; `pack.py` lays out its weights, `path.py` launches it. Functions without
annotations are bodies of GPU kernels. Both states stay in global memory (in the second-level cache), since they would
spill if registers carried them through the products. Registers carry only the output of a core call to the next sum, so
only the last `l` of a transition is stored. A barrier separates a store from the loads of other threads. Only loops
over tiles of weights load ahead (`STAGES`): they hold no store, and nothing writes weights. The loops around them are
kept from moving out what does not vary (`disable_licm`): hundreds of addresses would fill the registers meanwhile.

A program takes `GROUP` trajectories. Two stand one under the other, `LP` rows each. Three of 33 to 40 tokens stand in
the rows of two: the first 32 tokens of each, then the other ones, 8 rows for each. So wherever a trajectory stands, a
sum over tokens takes its terms in whole steps of 16, the last in half a step, in one order, with zeros between. Whether
matrix units sum both halves of a step alike is for the GPU tests to say.

Shapes: `LP` token rows of a trajectory (padded), `ROWS` of a program, `D` channels, `W` channels of a head.
"""

from __future__ import annotations

import triton
import triton.language as tl

import gram.kernels.older_triton  # noqa: F401 - `tl.range` below takes `disable_licm`
from gram.kernels.fused.attention import attended, owner_of, product, token_of
from gram.kernels.philox_triton import normals_at

PRIOR = tl.constexpr(0)
FIXED_SCALE_LOW = tl.constexpr(3)
FIXED_SCALE_HIGH = tl.constexpr(4)
PATH = tl.constexpr(5)


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
    if PRECISION == "tanh":
        half = 0.5 * gate
        bent = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [half], tl.float32, True, 1)
        act = (half * bent + half) * up
    else:
        act = gated(gate, up)
    return act.to(x.dtype)


@triton.jit
def placed(nought, L: tl.constexpr, LP: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr):
    """Trajectory of the program and token of each row, `[ROWS, 1]`; `nought` is 0."""
    row = tl.arange(0, ROWS)[:, None] + nought
    if GROUP == 1:
        owner = row * 0
        token = row
    else:
        owner = owner_of(row, GROUP, LP)
        token = token_of(row, GROUP, LP)
    return owner, token


@triton.jit
def within(owner, token, L: tl.constexpr, LP: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr):
    """Where each number of a program's states `[GROUP, L, D]` stands, `[ROWS, D]`. Numbered through, so that a thread's
    addresses differ by constants, which take no registers."""
    flat = tl.reshape(tl.arange(0, ROWS * D), (ROWS, D))
    if GROUP > 1 and L < LP:
        flat += (owner * L + token - tl.arange(0, ROWS)[:, None]) * D
    return flat


@triton.jit
def nought_of(step_ptr):
    """0, from memory: what is computed from it is computed where it stands, and takes no registers before."""
    return tl.minimum(tl.load(step_ptr), 0).to(tl.int32)


@triton.jit
def of_trajectory(at_ptr, nought, left, owner, GROUP: tl.constexpr):
    """The int32 that stands at `at_ptr` for each row's trajectory: a scalar where `GROUP` is 1, else `[ROWS, 1]`. Those
    after the last of `left` trajectories take its own. `nought` is 0."""
    at_ptr += nought
    value = tl.load(at_ptr).to(tl.int32)
    if GROUP > 1:
        second = tl.load(at_ptr + tl.minimum(1, left - 1)).to(tl.int32)
        value = tl.where(owner == 0, value, second)
    if GROUP > 2:
        third = tl.load(at_ptr + tl.minimum(2, left - 1)).to(tl.int32)
        value = tl.where(owner == 2, third, value)
    return value


@triton.jit
def advances(active_ptr, nought, left, owner, HAS_ACTIVE: tl.constexpr, GROUP: tl.constexpr):
    """Whether a row's trajectory is one that advances. Inactive ones go along with the others of their program, and
    nothing of it is stored; a program of one, inactive, does nothing."""
    is_on = owner < left
    if HAS_ACTIVE and GROUP > 1:
        is_on = is_on & (of_trajectory(active_ptr, nought, left, owner, GROUP) != 0)
    return is_on


@triton.jit
def quartered(x, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """The four quarters `[ROWS / 4, WIDTH]` of rows `x`."""
    apart = tl.permute(tl.reshape(x, (2, 2, ROWS // 4, WIDTH)), (2, 3, 1, 0))
    even, odd = tl.split(tl.permute(apart, (0, 1, 3, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def stacked(first, second, third, fourth, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Four tensors `[ROWS / 4, WIDTH]` as rows of one."""
    joined = tl.join(tl.join(first, third), tl.join(second, fourth))
    return tl.reshape(tl.permute(joined, (2, 3, 0, 1)), (ROWS, WIDTH))


@triton.jit
def token_mixed_columns(
    turned, tokens, row, COLUMNS: tl.constexpr, HM: tl.constexpr, TT: tl.constexpr,
    STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`turned [COLUMNS, LP]` plus the SwiGLU over the tokens of each of its rows, fp32."""
    acc = turned.to(tl.float32)
    for tile in tl.range(0, HM // TT, num_stages=STAGES):
        first = row + tile * 3 * TT
        act = hidden_tile(turned, tokens, first, COLUMNS, TT, PRECISION)
        acc = product(act, tokens.load([first + 2 * TT, 0]), acc, PRECISION)
    return acc


@triton.jit
def token_mixed_rest(
    main, rest, tokens, row, HM: tl.constexpr, TT: tl.constexpr, LP: tl.constexpr, D: tl.constexpr,
    STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The same of one trajectory of three: `main [LP / 2, D]` and `rest [LP / 8, D]` of its rows."""
    blank = tl.zeros((LP // 8, D), main.dtype)
    whole = tl.join(main, stacked(rest, blank, blank, blank, LP // 2, D))
    turned = tl.reshape(tl.permute(whole, (1, 2, 0)), (D, LP))
    acc = token_mixed_columns(turned, tokens, row, D, HM, TT, STAGES, PRECISION)
    main, rest = tl.split(tl.permute(tl.reshape(acc, (D, 2, LP // 2)), (2, 0, 1)))
    rest, _, _, _ = quartered(rest, LP // 2, D)
    return main, rest


@triton.jit
def token_mixed(
    x, tokens, row, HM: tl.constexpr, TT: tl.constexpr, LP: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
    D: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`x` plus the SwiGLU over each trajectory's tokens, fp32. Transposed: `D` rows fill eight warps where `L` would
    not."""
    if GROUP == 3:
        main0, main1, main2, rest = quartered(x, ROWS, D)
        rest0, rest1, rest2, blank = quartered(rest, LP // 2, D)
        main0, rest0 = token_mixed_rest(main0, rest0, tokens, row, HM, TT, LP, D, STAGES, PRECISION)
        main1, rest1 = token_mixed_rest(main1, rest1, tokens, row, HM, TT, LP, D, STAGES, PRECISION)
        main2, rest2 = token_mixed_rest(main2, rest2, tokens, row, HM, TT, LP, D, STAGES, PRECISION)
        rest = stacked(rest0, rest1, rest2, blank.to(tl.float32), LP // 2, D)
        mixed = stacked(main0, main1, main2, rest, ROWS, D)
    else:
        turned = tl.reshape(tl.permute(tl.reshape(x, (GROUP, LP, D)), (0, 2, 1)), (GROUP * D, LP))
        acc = token_mixed_columns(turned, tokens, row, GROUP * D, HM, TT, STAGES, PRECISION)
        mixed = tl.reshape(tl.permute(tl.reshape(acc, (GROUP, D, LP)), (0, 2, 1)), (ROWS, D))
    return mixed


@triton.jit
def named_normals(
    token, first, k0, k1, transition, SITE: tl.constexpr, trajectory, puzzle_hash,
    ROWS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Standard normals `[ROWS, WIDTH]`, fp32, of channels from `first` on of tokens `[ROWS, 1]`; the other names are
    scalars or columns as `token`."""
    c0 = token * (D // 4) + first // 4 + tl.arange(0, WIDTH // 4)[None, :]
    return normals_at(c0, k0, k1, transition, SITE, trajectory, puzzle_hash, ROWS, WIDTH)


@triton.jit
def noisy(
    mean, raw, token, first, k0, k1, transition, trajectory, puzzle_hash, temperature,
    CENTER: tl.constexpr, RANGE: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """`mean + temperature sigma n` of channels from `first` on; `raw` is sigma before its bounds."""
    bounded = RANGE * (2.0 * tl.sigmoid(raw * (2.0 / RANGE)) - 1.0)
    scale = temperature * tl.exp(CENTER + bounded)
    made = named_normals(token, first, k0, k1, transition, PRIOR, trajectory, puzzle_hash, ROWS, D, WIDTH)
    return mean + scale * made


@triton.jit
def guided(
    u, token, matrix, k0, k1, transition, trajectory, puzzle_hash, temperature,
    PRIOR_ROW: tl.constexpr, G: tl.constexpr, GUIDANCE: tl.constexpr, IS_WARM: tl.constexpr,
    CENTER: tl.constexpr, RANGE: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, TILE: tl.constexpr,
    STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`u + mu + temperature sigma n`, fp32, with mu and sigma of the prior given `u`."""
    HAS_MEAN: tl.constexpr = GUIDANCE != "noise"
    HAS_NORMAL: tl.constexpr = IS_WARM and GUIDANCE != "mean"
    mean = u.to(tl.float32)
    raw = tl.zeros((ROWS, D), tl.float32)
    for tile in tl.range(0, G // TILE, num_stages=STAGES):
        first = PRIOR_ROW + tile * 4 * TILE
        act = hidden_tile(u, matrix, first, ROWS, TILE, PRECISION)
        if HAS_MEAN:
            mean = product(act, matrix.load([first + 2 * TILE, 0]), mean, PRECISION)
        if HAS_NORMAL:
            raw = product(act, matrix.load([first + 3 * TILE, 0]), raw, PRECISION)
    if HAS_NORMAL:
        mean = noisy(
            mean, raw, token, 0, k0, k1, transition, trajectory, puzzle_hash, temperature, CENTER, RANGE, ROWS, D, D
        )
    return mean


@triton.jit
def guide_part(
    state_ptr, step_ptr, trajectory_ptr, hash_ptr, active_ptr, left, index, act, column, parts, k0, k1,
    temperature,
    PRIOR_ROW: tl.constexpr, G: tl.constexpr, GUIDANCE: tl.constexpr, NOISE_FREE: tl.constexpr, IS_WARM: tl.constexpr,
    CENTER: tl.constexpr, RANGE: tl.constexpr, L: tl.constexpr, LP: tl.constexpr, GROUP: tl.constexpr,
    ROWS: tl.constexpr, D: tl.constexpr, T: tl.constexpr, PART: tl.constexpr, HAS_ACTIVE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """`guide` of `PART` channels from `column` on, given the hidden units `act`."""
    nought = nought_of(step_ptr)
    owner, token = placed(0, L, LP, GROUP, ROWS)
    at = state_ptr + ((owner * L + token) * D + column + tl.arange(0, PART)[None, :])
    mean = tl.load(at, mask=(token < L) & (owner < left), other=0.0).to(tl.float32)
    if GUIDANCE != "noise":
        mean = product(act, parts.load([PRIOR_ROW + 2 * G, column]), mean, PRECISION)
    if IS_WARM and GUIDANCE != "mean":
        blank = tl.zeros((ROWS, PART), tl.float32)
        raw = product(act, parts.load([PRIOR_ROW + 3 * G, column]), blank, PRECISION)
        # Loaded here, so that no noise is worked on before, which would take registers.
        trajectory = of_trajectory(trajectory_ptr, nought, left, owner, GROUP)
        puzzle_hash = of_trajectory(hash_ptr, nought, left, owner, GROUP)
        transition = of_trajectory(step_ptr, nought, left, owner, GROUP) * T + index
        mean = noisy(
            mean, raw, token, column, k0, k1, transition, trajectory, puzzle_hash, temperature,
            CENTER, RANGE, ROWS, D, PART,
        )  # fmt: skip
    tl.debug_barrier()
    step = of_trajectory(step_ptr, nought, left, owner, GROUP)
    is_on = advances(active_ptr, nought, left, owner, HAS_ACTIVE, GROUP)
    is_noisy = token < tl.where(step >= NOISE_FREE, L, 0)
    tl.store(at, mean.to(state_ptr.dtype.element_ty), mask=is_noisy & is_on)


@triton.jit
def guide(
    state_ptr, step_ptr, trajectory_ptr, hash_ptr, active_ptr, left, index, matrix, prior, parts, k0, k1, temperature,
    PRIOR_ROW: tl.constexpr, G: tl.constexpr, GUIDANCE: tl.constexpr, NOISE_FREE: tl.constexpr, IS_WARM: tl.constexpr,
    CENTER: tl.constexpr, RANGE: tl.constexpr, L: tl.constexpr, LP: tl.constexpr, GROUP: tl.constexpr,
    ROWS: tl.constexpr, D: tl.constexpr, T: tl.constexpr, TILE: tl.constexpr, PART: tl.constexpr, STAGES: tl.constexpr,
    HAS_ACTIVE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The prior's step of the states `h` at `state_ptr`, in place."""
    owner, token = placed(0, L, LP, GROUP, ROWS)
    at = state_ptr + within(owner, token, L, LP, GROUP, ROWS, D)
    u = tl.load(at, mask=(token < L) & (owner < left), other=0.0)
    if GROUP == 1:
        step = of_trajectory(step_ptr, 0, left, owner, GROUP)
        puzzle_hash = of_trajectory(hash_ptr, 0, left, owner, GROUP)
        trajectory = of_trajectory(trajectory_ptr, 0, left, owner, GROUP)
        noised = guided(
            u, token, matrix, k0, k1, step * T + index, trajectory, puzzle_hash, temperature,
            PRIOR_ROW, G, GUIDANCE, IS_WARM, CENTER, RANGE, ROWS, D, TILE, STAGES, PRECISION,
        )  # fmt: skip
        tl.store(at, noised.to(u.dtype), mask=(token < tl.where(step >= NOISE_FREE, L, 0)) & (owner < left))
    else:
        # Registers hold neither sums nor noise of all channels, so `PART` channels are done after the other.
        act = hidden_tile(u, prior, PRIOR_ROW, ROWS, G, PRECISION)
        for part in tl.range(0, D // PART, num_stages=1):
            guide_part(
                state_ptr, step_ptr, trajectory_ptr, hash_ptr, active_ptr, left, index, act, part * PART, parts, k0, k1,
                temperature,
                PRIOR_ROW, G, GUIDANCE, NOISE_FREE, IS_WARM, CENTER, RANGE, L, LP, GROUP, ROWS, D, T, PART,
                HAS_ACTIVE, PRECISION,
            )  # fmt: skip


@triton.jit
def state_of(
    at_ptr, step_ptr, left, L: tl.constexpr, LP: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
    D: tl.constexpr,
):  # fmt: skip
    """States `[ROWS, D]` of a program's trajectories."""
    owner, token = placed(0, L, LP, GROUP, ROWS)
    return tl.load(at_ptr + within(owner, token, L, LP, GROUP, ROWS, D), mask=(token < L) & (owner < left), other=0.0)


@triton.jit
def summed(
    low, state_ptr, e_ptr, e_stride_b, step_ptr, left, is_low, L: tl.constexpr, LP: tl.constexpr,
    GROUP: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """`low + h`, and `e_x` where `is_low`: what a core call takes."""
    owner, token = placed(0, L, LP, GROUP, ROWS)
    e_at = e_ptr + owner * (e_stride_b - L * D) + within(owner, token, L, LP, GROUP, ROWS, D)
    e_x = tl.load(e_at, mask=(token < L) & (owner < tl.where(is_low, left, 0)), other=0.0)
    h = tl.load(state_ptr + within(owner, token, L, LP, GROUP, ROWS, D), mask=(token < L) & (owner < left), other=0.0)
    return (low.to(tl.float32) + (h.to(tl.float32) + e_x.to(tl.float32))).to(low.dtype)


@triton.jit
def put(
    x, at_ptr, step_ptr, trajectory_ptr, hash_ptr, active_ptr, left, is_loaded_again, index, call, k0, k1, sigma,
    L: tl.constexpr, LP: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, T: tl.constexpr,
    K: tl.constexpr, KEEP: tl.constexpr, HAS_PATH: tl.constexpr, HAS_ACTIVE: tl.constexpr,
):  # fmt: skip
    """What a core call made, with the share kept and the noise of path guidance; stored where it is loaded again."""
    nought = 0
    if HAS_PATH or (HAS_ACTIVE and GROUP > 1):
        nought = nought_of(step_ptr)
    owner, token = placed(0, L, LP, GROUP, ROWS)
    at = at_ptr + within(owner, token, L, LP, GROUP, ROWS, D)
    made = x
    if KEEP > 0 or HAS_PATH:
        new = x.to(tl.float32)
        if KEEP > 0:
            new = KEEP * tl.load(at, mask=(token < L) & (owner < left), other=0.0).to(tl.float32) + (1.0 - KEEP) * new
        if HAS_PATH:
            name = (of_trajectory(step_ptr, nought, left, owner, GROUP) * T + index) * (K + 1) + call
            puzzle_hash = of_trajectory(hash_ptr, nought, left, owner, GROUP)
            trajectory = of_trajectory(trajectory_ptr, nought, left, owner, GROUP)
            new = new + sigma * named_normals(token, 0, k0, k1, name, PATH, trajectory, puzzle_hash, ROWS, D, D)
        made = new.to(x.dtype)
    tl.debug_barrier()
    is_on = advances(active_ptr, nought, left, owner, HAS_ACTIVE, GROUP)
    tl.store(at, made, mask=(token < tl.where(is_loaded_again, L, 0)) & is_on)
    return made


@triton.jit
def summed_by_trajectory(x, LP: tl.constexpr, GROUP: tl.constexpr):
    """Sums of `x [ROWS]` by trajectory, `[1]`, `[2]` or `[4]`: in one order, whatever a trajectory's place."""
    if GROUP == 3:
        parts = tl.sum(tl.reshape(x, (16, LP // 8)), 1)[:, None]
        _, _, _, rest = quartered(parts, 16, 1)
        total = tl.sum(tl.reshape(parts, (4, 4)), 1) + tl.reshape(rest, (4,))
    else:
        total = tl.sum(tl.reshape(x, (GROUP, LP)), 1)
    return total


@triton.jit
def head_values(
    h, matrix, vector_ptr, read_weight, INDEX: tl.constexpr, HEAD_ROW: tl.constexpr, HH: tl.constexpr,
    LP: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, TILE: tl.constexpr,
    STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Halt logits (`INDEX` 0) or LPRMs (1) of a program's trajectories; `read_weight [ROWS]` is each token's weight in
    the readout."""
    WIDTH: tl.constexpr = HH if HH > 0 else D
    base = vector_ptr + INDEX * (WIDTH + 1)
    if HH > 0:
        token_value = tl.zeros((ROWS,), tl.float32)
        for tile in tl.range(0, HH // TILE, num_stages=STAGES):
            act = hidden_tile(h, matrix, HEAD_ROW + INDEX * 2 * HH + tile * 2 * TILE, ROWS, TILE, PRECISION)
            last = tl.load(base + tile * TILE + tl.arange(0, TILE))
            token_value += tl.sum(act.to(tl.float32) * last[None, :], 1)
    else:
        token_value = tl.sum(h.to(tl.float32) * tl.load(base + tl.arange(0, D))[None, :], 1)
    return summed_by_trajectory(token_value * read_weight, LP, GROUP) + tl.load(base + WIDTH)


@triton.jit
def perturbed(
    state, token, sigma, k0, k1, step, SITE: tl.constexpr, trajectory, puzzle_hash, ROWS: tl.constexpr,
    D: tl.constexpr,
):  # fmt: skip
    """`state + sigma rms(state) n` (PTRM)."""
    wide = state.to(tl.float32)
    rms = tl.sqrt(tl.sum(wide * wide, 1) / D)[:, None]
    made = named_normals(token, 0, k0, k1, step, SITE, trajectory, puzzle_hash, ROWS, D, D)
    return (wide + sigma * rms * made).to(state.dtype)


@triton.jit(do_not_specialize=["k0", "k1", "rows", "temperature", "sigma"])
def supervision_step_kernel(
    h_ptr, l_ptr, e_ptr, state_ptr, score_ptr, hash_ptr, trajectory_ptr, step_ptr, active_ptr,
    matrix, prior, parts, heads, tokens, vector_ptr, cos_ptr, sin_ptr,
    h_stride_b, h_stride_l, l_stride_b, l_stride_l, e_stride_b,
    k0, k1, rows, temperature, sigma,
    L: tl.constexpr, LP: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, W: tl.constexpr,
    BLOCKS: tl.constexpr, T: tl.constexpr, K: tl.constexpr,
    F: tl.constexpr, HM: tl.constexpr, G: tl.constexpr, HH: tl.constexpr,
    TILE: tl.constexpr, TT: tl.constexpr, PART: tl.constexpr,
    CORE_ROWS: tl.constexpr, HIGH_ROW: tl.constexpr, HIGH_TOKEN_ROW: tl.constexpr,
    PRIOR_ROW: tl.constexpr, HEAD_ROW: tl.constexpr,
    IS_TOKEN: tl.constexpr, IS_ROTARY: tl.constexpr, EPS: tl.constexpr,
    GUIDANCE: tl.constexpr, IS_BEFORE: tl.constexpr, NOISE_FREE: tl.constexpr,
    IS_WARM: tl.constexpr, CENTER: tl.constexpr, RANGE: tl.constexpr,
    PERTURBS_H: tl.constexpr, PERTURBS_L: tl.constexpr, KEEP: tl.constexpr, HAS_PATH: tl.constexpr,
    READS_REGISTER: tl.constexpr, HAS_ACTIVE: tl.constexpr,
    OUTPUT_LAG: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program `i` takes trajectories `GROUP i` and on: states into `state_ptr [2, B, L, D]` (h, l), heads into
    `score_ptr [2, B]`. What differs by trajectory is a scalar where `GROUP` is 1, else a column over token rows."""
    ROWS: tl.constexpr = 2 * LP if GROUP == 3 else GROUP * LP
    channel = tl.arange(0, D)[None, :]
    first_b = tl.program_id(0) * GROUP
    wide_b = first_b.to(tl.int64)
    l_offset = rows.to(tl.int64) * (L * D)
    state_ptr += wide_b * (L * D)
    h_ptr += wide_b * h_stride_b
    l_ptr += wide_b * l_stride_b
    e_ptr += wide_b * e_stride_b
    hash_ptr += first_b
    trajectory_ptr += first_b
    step_ptr += first_b
    left = rows - first_b

    owner, token = placed(0, L, LP, GROUP, ROWS)
    is_token = (token < L) & (owner < left)
    puzzle_hash = of_trajectory(hash_ptr, 0, left, owner, GROUP)
    trajectory = of_trajectory(trajectory_ptr, 0, left, owner, GROUP)
    step = of_trajectory(step_ptr, 0, left, owner, GROUP)
    is_active = step == step
    transitions = T
    if HAS_ACTIVE:
        active_ptr += first_b
        is_active = of_trajectory(active_ptr, 0, left, owner, GROUP) != 0
        transitions = tl.where(tl.max(is_active.to(tl.int32)) > 0, T, 0) if GROUP > 1 else tl.where(is_active, T, 0)
    h_out = state_ptr + within(owner, token, L, LP, GROUP, ROWS, D)
    h = tl.load(h_ptr + (owner * h_stride_b + token * h_stride_l + channel), mask=is_token, other=0.0)
    if PERTURBS_H:
        moved = perturbed(h, token, sigma, k0, k1, step, FIXED_SCALE_HIGH, trajectory, puzzle_hash, ROWS, D)
        h = tl.where(is_active, moved, h)
    tl.store(h_out, h, mask=is_token)
    l = tl.load(l_ptr + (owner * l_stride_b + token * l_stride_l + channel), mask=is_token, other=0.0)
    if PERTURBS_L:
        moved = perturbed(l, token, sigma, k0, k1, step, FIXED_SCALE_LOW, trajectory, puzzle_hash, ROWS, D)
        l = tl.where(is_active, moved, l)
    tl.store(h_out + l_offset, l, mask=is_token)
    tl.debug_barrier()

    for index in tl.range(0, transitions, num_stages=1, disable_licm=True):
        if IS_BEFORE and GUIDANCE != "none":
            guide(
                state_ptr, step_ptr, trajectory_ptr, hash_ptr, active_ptr, left, index, matrix, prior, parts, k0, k1,
                temperature,
                PRIOR_ROW, G, GUIDANCE, NOISE_FREE, IS_WARM, CENTER, RANGE, L, LP, GROUP, ROWS, D, T, TILE, PART,
                STAGES, HAS_ACTIVE, PRECISION,
            )  # fmt: skip
            tl.debug_barrier()
        low = state_of(state_ptr + l_offset, step_ptr, left, L, LP, GROUP, ROWS, D)
        for call in tl.range(0, K + 1, num_stages=1, disable_licm=True):
            is_low = call < K
            x = summed(low, state_ptr, e_ptr, e_stride_b, step_ptr, left, is_low, L, LP, GROUP, ROWS, D)
            row = tl.where(is_low, 0, HIGH_ROW)
            token_row = tl.where(is_low, 0, HIGH_TOKEN_ROW)
            for _ in tl.range(0, BLOCKS, num_stages=1, disable_licm=True):
                channel_row = row
                if IS_TOKEN:
                    acc = token_mixed(x, tokens, token_row, HM, TT, LP, GROUP, ROWS, D, STAGES, PRECISION)
                else:
                    acc = attended(
                        x, heads, row, cos_ptr, sin_ptr, L, LP, GROUP, ROWS, D, W, IS_ROTARY, OUTPUT_LAG, STAGES,
                        PRECISION,
                    )  # fmt: skip
                    channel_row = row + 4 * D
                x = normed(acc, EPS, D).to(low.dtype)
                acc = x.to(tl.float32)
                for tile in tl.range(0, F // TILE, num_stages=STAGES):
                    first = channel_row + tile * 3 * TILE
                    act = hidden_tile(x, matrix, first, ROWS, TILE, PRECISION)
                    acc = product(act, matrix.load([first + 2 * TILE, 0]), acc, PRECISION)
                x = normed(acc, EPS, D).to(low.dtype)
                row += CORE_ROWS
                token_row += 3 * HM
            # Of the low-level calls' states only the last is loaded again, unless a share of each is kept.
            is_loaded_again = call >= 0 if KEEP > 0 else call >= K - 1
            low = put(
                x, state_ptr + tl.where(is_low, l_offset, 0), step_ptr, trajectory_ptr, hash_ptr, active_ptr, left,
                is_loaded_again, index, call, k0, k1, sigma,
                L, LP, GROUP, ROWS, D, T, K, KEEP, HAS_PATH, HAS_ACTIVE,
            )  # fmt: skip
            tl.debug_barrier()
        if not IS_BEFORE and GUIDANCE != "none":
            guide(
                state_ptr, step_ptr, trajectory_ptr, hash_ptr, active_ptr, left, index, matrix, prior, parts, k0, k1,
                temperature,
                PRIOR_ROW, G, GUIDANCE, NOISE_FREE, IS_WARM, CENTER, RANGE, L, LP, GROUP, ROWS, D, T, TILE, PART,
                STAGES, HAS_ACTIVE, PRECISION,
            )  # fmt: skip
            tl.debug_barrier()

    owner, token = placed(0, L, LP, GROUP, ROWS)
    is_token = (token < L) & (owner < left)
    h_out = state_ptr + within(owner, token, L, LP, GROUP, ROWS, D)
    h = tl.load(h_out, mask=is_token, other=0.0)
    READ_ROWS: tl.constexpr = 1 if READS_REGISTER else L
    read_weight = tl.reshape(tl.where(token < READ_ROWS, 1.0 / READ_ROWS, 0.0), (ROWS,))
    halt = head_values(h, matrix, vector_ptr, read_weight, 0, HEAD_ROW, HH, LP, GROUP, ROWS, D, TILE, STAGES, PRECISION)
    lprm = head_values(h, matrix, vector_ptr, read_weight, 1, HEAD_ROW, HH, LP, GROUP, ROWS, D, TILE, STAGES, PRECISION)
    SLOTS: tl.constexpr = 4 if GROUP == 3 else GROUP
    slot = tl.arange(0, SLOTS)
    slot_b = tl.program_id(0) * GROUP + slot
    is_slot = slot_b < tl.minimum(rows, (tl.program_id(0) + 1) * GROUP)
    if HAS_ACTIVE:
        is_on = tl.load(active_ptr + slot, mask=is_slot, other=0) != 0
        halt, lprm = tl.where(is_on, halt, float("nan")), tl.where(is_on, lprm, float("nan"))
    tl.store(score_ptr + slot_b, halt, mask=is_slot)
    tl.store(score_ptr + rows + slot_b, lprm, mask=is_slot)
