"""What the fused kernel's matrix products execute, over what the mathematics needs: counted from shapes and layouts.

A product is executed for padded rows and columns, for pairs of tokens of different trajectories, and once more for each
group of warps that the compiler gives the same elements (`repeats`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from gram.kernels.fused.pack import Layout
from gram.kernels.spec import Spec


class MatrixWork(NamedTuple):
    """A product `[rows, depth] x [depth, columns]`, done `times` times by one program in one supervision step."""

    rows: int
    columns: int
    depth: int
    times: int


def repeats(listing: str) -> dict[tuple[int, int], float]:
    """How many times a product's elements are computed, by rows and columns, from a kernel's TTGIR.

    Warps of Hopper's `warpsPerCTA [a, b]` with `instrShape [m, n]` compute `a m` rows by `b n` columns, or more where
    the product has fewer. One thread gives Blackwell's products to the tensor cores, so that nothing is repeated.
    """
    layouts = {
        found[1]: [int(each) for each in found.groups()[1:]]
        for found in re.finditer(
            r"^#(\w+) = #ttg\.nvidia_mma<\{versionMajor = \d+, versionMinor = \d+, warpsPerCTA = \[(\d+), (\d+)\], "
            r"instrShape = \[(\d+), (\d+)",
            listing,
            re.MULTILINE,
        )
    }
    made: dict[tuple[int, int], float] = {}
    for rows, columns, name in re.findall(r"_dot\b.*-> tensor<(\d+)x(\d+)xf32, #(\w+)>", listing):
        down, across, m, n = layouts[name]
        size = int(rows), int(columns)
        times = max(1, down * m / size[0]) * max(1, across * n / size[1])
        made[size] = max(made.get(size, 1), times)
    for rows, columns in re.findall(r"tc_gen5_mma.*memdesc<(\d+)x(\d+)xf32", listing):
        made.setdefault((int(rows), int(columns)), 1.0)
    return made


def products(spec: Spec, layout: Layout, part: int) -> Iterator[MatrixWork]:
    """The products of one program in one supervision step; `part` channels of a group's prior are done at once."""
    cut, dim, length = layout.tuning, spec.dim, layout.token_rows
    rows = 2 * length if cut.group == 3 else cut.group * length
    calls = spec.transitions * (spec.low_level_updates + 1) * spec.blocks
    tiles = calls * layout.hidden // cut.tile
    yield MatrixWork(rows, cut.tile, dim, 2 * tiles)
    yield MatrixWork(rows, dim, cut.tile, tiles)
    if spec.mixer == "token":
        columns, times = (dim, 3) if cut.group == 3 else (cut.group * dim, 1)
        tiles = calls * times * layout.mixer_hidden // cut.token_tile
        yield MatrixWork(columns, cut.token_tile, length, 2 * tiles)
        yield MatrixWork(columns, length, cut.token_tile, tiles)
    else:
        width, heads = dim // spec.heads, calls * spec.heads
        yield MatrixWork(rows, width, dim, 3 * heads)
        yield MatrixWork(rows, rows, width, heads)
        yield MatrixWork(rows, width, rows, heads)
        yield MatrixWork(rows, dim, width, heads + cut.output_lag * calls)  # the first head adds zeros
    if layout.guidance_hidden:
        tiles = spec.transitions * layout.guidance_hidden // layout.prior_tile
        channels = part if cut.group > 1 else dim
        sums = 2 if spec.guidance == "full" else 1
        yield MatrixWork(rows, layout.prior_tile, dim, 2 * tiles)
        yield MatrixWork(rows, channels, layout.prior_tile, sums * tiles * dim // channels)
    if layout.head_hidden:
        yield MatrixWork(rows, cut.tile, dim, 2 * 2 * layout.head_hidden // cut.tile)


def useful(spec: Spec, shapes: Mapping[str, list[int]]) -> float:
    """Multiply-accumulates that one trajectory's supervision step needs, hidden heads included."""
    dim, length = spec.dim, spec.length
    calls = spec.transitions * (spec.low_level_updates + 1) * spec.blocks
    total = calls * 3 * dim * shapes["low.0.channel.down"][1] * length
    if spec.mixer == "token":
        total += calls * 3 * length * shapes["low.0.mixer.down"][1] * dim
    else:
        total += calls * (4 * dim * dim * length + 2 * length * length * dim)
    if spec.guidance != "none":
        sums = 4 if spec.guidance == "full" else 3
        total += spec.transitions * sums * dim * shapes["prior.down"][1] * length
    if "halt.gate_up" in shapes:
        total += 2 * shapes["halt.gate_up"][0] * dim * length
    return float(total)


def ratio(
    spec: Spec, layout: Layout, part: int, shapes: Mapping[str, list[int]], times: Mapping[tuple[int, int], float]
) -> float:
    """Executed over useful multiply-accumulates; `times` is what `repeats` read of the compiled kernel.

    Raises `KeyError` for a product that the compiled kernel has not.
    """
    executed = sum(
        each.rows * each.columns * each.depth * each.times * times[each.rows, each.columns]
        for each in products(spec, layout, part)
    )
    return executed / (layout.tuning.group * useful(spec, shapes))
