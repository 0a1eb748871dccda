"""The noise contract of `philox.py` inside a kernel: the same integers bit for bit, normals within 1e-5.

Functions without annotations are bodies of GPU kernels.
"""

from __future__ import annotations

import triton
import triton.language as tl

M0 = tl.constexpr(0xD2511F53)
M1 = tl.constexpr(0xCD9E8D57)
W0 = tl.constexpr(0x9E3779B9)
W1 = tl.constexpr(0xBB67AE85)


@triton.jit
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Ten rounds on uint32 values; 64-bit products, so that both halves are exact everywhere."""
    for _ in tl.static_range(10):
        product0 = c0.to(tl.uint64) * M0
        product1 = c2.to(tl.uint64) * M1
        c0 = (product1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (product0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = product1.to(tl.uint32)
        c3 = product0.to(tl.uint32)
        k0 = k0 + tl.full([], W0, tl.uint32)
        k1 = k1 + tl.full([], W1, tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def box_muller(first, second):
    """Two normals from two words. A polynomial replaces cosine and sine, since `tl.cos` has a slow path that spills."""
    bits0 = (first >> 9).to(tl.int32)
    bits1 = (second >> 9).to(tl.int32)
    radius = tl.sqrt(-2.0 * tl.log((bits0.to(tl.float32) + 0.5) * 1.1920928955078125e-07))
    quarter = (bits1 + 1048576) >> 21
    x = ((bits1 - (quarter << 21)).to(tl.float32) + 0.5) * 7.490140565847157e-07  # 2 pi / 2^23: within pi / 4
    square = x * x
    sine = square * (8.3333333e-3 + square * (-1.9841270e-4 + square * 2.7557e-6)) - 1.6666667e-1
    sine = x * (1.0 + square * sine)
    cosine = square * (4.1666667e-2 + square * (-1.3888889e-3 + square * 2.4801587e-5)) - 0.5
    cosine = 1.0 + square * cosine
    is_odd = (quarter & 1) == 1
    cosine, sine = tl.where(is_odd, sine, cosine), tl.where(is_odd, cosine, sine)
    cosine = tl.where(((quarter + 1) & 2) == 2, -cosine, cosine)
    sine = tl.where((quarter & 2) == 2, -sine, sine)
    return radius * cosine, radius * sine


@triton.jit
def normals_at(
    c0, k0, k1, transition, SITE: tl.constexpr, trajectory, puzzle_hash, ROWS: tl.constexpr, DIM: tl.constexpr
):
    """Standard normals `[ROWS, DIM]`, fp32, of element blocks `c0 [ROWS, DIM / 4]`; the other words are scalars or
    columns `[ROWS, 1]`."""
    c0 = c0.to(tl.uint32)
    zero = c0 ^ c0
    c1 = zero + ((transition & 0xFFFFFF) | (SITE << 24)).to(tl.uint32)
    w0, w1, w2, w3 = philox4x32(
        c0, c1, zero + trajectory.to(tl.uint32), zero + puzzle_hash.to(tl.uint32), k0.to(tl.uint32), k1.to(tl.uint32)
    )
    n0, n1 = box_muller(w0, w1)
    n2, n3 = box_muller(w2, w3)
    return tl.reshape(tl.join(tl.join(n0, n2), tl.join(n1, n3)), (ROWS, DIM))


@triton.jit
def normals(k0, k1, transition, SITE: tl.constexpr, trajectory, puzzle_hash, ROWS: tl.constexpr, DIM: tl.constexpr):
    """Standard normals `[ROWS, DIM]`, fp32, of one trajectory at one site."""
    row = tl.arange(0, ROWS)[:, None]
    block = tl.arange(0, DIM // 4)[None, :]
    c0 = row * (DIM // 4) + block
    return normals_at(c0, k0, k1, transition, SITE, trajectory, puzzle_hash, ROWS, DIM)
