"""Relations of the tokens of a square grid, or of a graph's nodes: along which lines the mixer `relations` lets tokens
exchange sums.

A relation is a matrix `[L, L]` over tokens. The dense product with it is the definition; no parameter depends on `L`,
so weights trained on one board fit another. Large grids take the same sums by line (`sums`), in arithmetic that grows
with `L` and not with its square. Mixing over the lines of a grid follows 1711.08028 (recurrent relational
networks) and, as a pattern of attention, 2504.17768.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from gram.kernels.spec import Spec, box_shape

NEIGHBOURS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
"""Row and column of the token that each token hears, beside its own."""
RAYS = {"above": (0, False), "below": (0, True), "before": (1, False), "after": (1, True)}
"""Axis of the grid (rows, columns) and direction of the tokens that each token hears, up to the edge."""
TURNS: dict[str, Callable[[Tensor], Tensor]] = {
    "mirror": lambda grid: grid.flip(1),
    "flip": lambda grid: grid.flip(0),
    "half-turn": lambda grid: grid.flip(0, 1),
    "transpose": lambda grid: grid.transpose(0, 1),
    "antitranspose": lambda grid: grid.flip(0, 1).transpose(0, 1),
    "quarter-turn": lambda grid: grid.transpose(0, 1).flip(0),
    "three-quarter-turn": lambda grid: grid.transpose(0, 1).flip(1),
}
"""The square's symmetries, of a grid whose first two axes are rows and columns: each token hears the one that comes to
its place."""
RANDOM = {name: f"random-{name}" for name in ("row", "column", *NEIGHBOURS)}
"""Relations by those whose links they have, among tokens in a random order. A control: what geometry is worth, at equal
numbers and weights of links."""
BASES = {name: base for base, name in RANDOM.items()}
EDGE = 2
"""Token of a puzzle that joins two nodes: the first `n (n - 1) / 2` are the pairs of `n` nodes, row by row."""
GRAPH_WEIGHT = 0.5
"""What a node hears of a neighbour."""


def graphs(puzzles: Tensor, nodes: int) -> Tensor:
    """The relation `graph` of puzzles `[P, L]`: fp32 `[P, nodes, nodes]`, weight 1/2 where two are joined."""
    first, second = torch.triu_indices(nodes, nodes, 1, device=puzzles.device)
    half = torch.zeros(len(puzzles), nodes, nodes, device=puzzles.device)
    half[:, first, second] = GRAPH_WEIGHT * (puzzles[:, : len(first)] == EDGE).float()
    return half + half.mT


def split_graph(e_x: Tensor, spec: Spec) -> tuple[Tensor, Tensor | None]:
    """The embedding `[..., D]` and the graphs' matrices `[..., n]` that stand behind it, where each puzzle has one."""
    return (e_x[..., : spec.dim], e_x[..., spec.dim :]) if spec.has_graph else (e_x, None)


def fixed(names: tuple[str, ...]) -> tuple[str, ...]:
    """Relations of places that all puzzles share: those with a table."""
    return tuple(name for name in names if name not in ("graph", "value"))


def _order(name: str, tokens: int, device: torch.device) -> Tensor:
    """The token that stands in each place of a random relation, `[L]`: by the rank of a hash, of name and number of
    tokens alone (its place in `BASES`, which may only grow at its end). Arithmetic that a compiler can follow, as a
    generator is not."""
    mixed = torch.arange(tokens, device=device) + (1 + list(BASES).index(name)) * 0x3C6EF372
    for _ in range(3):
        mixed = ((mixed ^ (mixed >> 15)) * 0x45D9F3B) & 0x7FFFFFFF
    return mixed.argsort(stable=True)


def tables(names: tuple[str, ...], tokens: int, device: torch.device) -> Tensor:
    """The relations' matrices, fp32 `[R, L, L]`.

    A line (row, column, diagonal, antidiagonal, box) relates a token to the line's other tokens with weight
    `1 / sqrt(side)`; `up`, `down`, `left` and `right` relate it to one neighbour with weight 1, and a symmetry of the
    square (`TURNS`) to the token that comes to its place; `above`, `below`, `before` and `after` relate it to all
    tokens on that side of it in its column or row, with weight `1 / sqrt(side)`; `all` relates it to every token,
    itself included, with weight `1 / L`; `random-` and one of these has its links among tokens in a random order.
    """
    return (_tables if torch.compiler.is_compiling() else _kept_tables)(names, tokens, device)


def _tables(names: tuple[str, ...], tokens: int, device: torch.device) -> Tensor:
    side = math.isqrt(tokens)
    # Kept for later calls, which may need gradients: the first one often comes from sampling.
    if not names:
        return torch.empty(0, tokens, tokens, device=device)
    with torch.inference_mode(False):
        place = torch.arange(tokens, device=device)
        row, column = place // side, place % side
        itself = torch.eye(tokens, device=device)

        def table(name: str) -> Tensor:
            if name in BASES:
                at = _order(name, tokens, device).argsort()
                return table(BASES[name])[at][:, at]
            if name == "all":
                return torch.full((tokens, tokens), 1 / tokens, device=device)
            if name in NEIGHBOURS:
                down, right = NEIGHBOURS[name]
                is_next = (row[:, None] + down == row) & (column[:, None] + right == column)
                return is_next.float()
            if name in TURNS:
                return itself[TURNS[name](place.view(side, side)).flatten()]
            if name in RAYS:
                axis, is_behind = RAYS[name]
                line, along = (column, row) if axis == 0 else (row, column)
                is_heard = (along[None] > along[:, None]) if is_behind else (along[None] < along[:, None])
                return (is_heard & (line[None] == line[:, None])).float() / math.sqrt(side)
            number = _line_numbers(name, row, column, side)
            return ((number[:, None] == number).float() - itself) / math.sqrt(side)

        return torch.stack([table(name) for name in names])


_kept_tables = lru_cache(maxsize=16)(_tables)
"""Not for the compiler: it looks through a cache, and warns that it does."""


def _line_numbers(name: str, row: Tensor, column: Tensor, side: int) -> Tensor:
    """Number of the line that each token belongs to, `[L]`."""
    if name == "box":
        height, width = box_shape(side)
        return row // height * side + column // width
    return {"row": row, "column": column, "diagonal": row - column + side, "antidiagonal": row + column}[name]


def sums(names: tuple[str, ...], x: Tensor, axis: int, values: int = 1) -> Tensor:
    """What each token hears: `x` with its last axis in equal shares, one a relation, each summed over the tokens that
    its table relates. `axis` is the tokens' (not counted from the end): where a lattice has `values` of each, those of
    one value after another, and relations of places relate tokens of one value. By line, without tables."""
    grid = x if values == 1 else x.unflatten(axis, (values, -1))
    heard = [
        _by_value(part, axis) if name == "value" else _by_line(name, part, axis + (values > 1))
        for name, part in zip(names, grid.chunk(len(names), -1), strict=True)
    ]
    return torch.cat(heard, -1).reshape(x.shape)


def _by_value(x: Tensor, axis: int) -> Tensor:
    """Sums over the other values of a token, at `axis`."""
    heard: Tensor = (x.sum(axis, keepdim=True, dtype=torch.float32) - x) / math.sqrt(x.shape[axis])
    return heard.to(x.dtype)


def _by_line(name: str, x: Tensor, axis: int) -> Tensor:
    """The product of one relation's table with `x` over its token axis."""
    tokens = x.shape[axis]
    side = math.isqrt(tokens)
    if name in BASES:
        order = _order(name, tokens, x.device)
        return _by_line(BASES[name], x.index_select(axis, order), axis).index_select(axis, order.argsort())
    if name == "all":
        return x.mean(axis, keepdim=True).expand_as(x)
    grid = x.unflatten(axis, (side, side))
    if name in NEIGHBOURS:
        shift, along = sum(NEIGHBOURS[name]), axis + (NEIGHBOURS[name][0] == 0)
        edge = torch.zeros_like(grid.narrow(along, 0, 1))
        kept = grid.narrow(along, max(shift, 0), side - 1)
        return torch.cat([kept, edge] if shift > 0 else [edge, kept], along).flatten(axis, axis + 1)
    if name in TURNS:
        front = grid.movedim((axis, axis + 1), (0, 1))
        return TURNS[name](front).movedim((0, 1), (axis, axis + 1)).flatten(axis, axis + 1)
    if name in RAYS:
        along, is_behind = axis + RAYS[name][0], RAYS[name][1]
        wide = grid.to(torch.float32)
        up_to = wide.flip(along).cumsum(along).flip(along) if is_behind else wide.cumsum(along)
        heard_ray: Tensor = (up_to - wide) / math.sqrt(side)
        return heard_ray.to(x.dtype).flatten(axis, axis + 1)
    if name in ("row", "column"):
        total = grid.sum(axis + (name == "row"), keepdim=True, dtype=torch.float32)
    elif name == "box":
        height, width = box_shape(side)
        grid = x.unflatten(axis, (side // height, height, side // width, width))
        total = grid.sum((axis + 1, axis + 3), keepdim=True, dtype=torch.float32)
    else:
        place = torch.arange(tokens, device=x.device)
        number = _line_numbers(name, place // side, place % side, side)
        grid, total = x, _line_totals(number, 2 * side, x.to(torch.float32), axis).index_select(axis, number)
    heard: Tensor = (total - grid) / math.sqrt(side)
    return heard.to(x.dtype).reshape(x.shape)


def _line_totals(number: Tensor, lines: int, x: Tensor, axis: int) -> Tensor:
    """Sums of `x` (fp32) over the tokens of each line, at `axis`; `number [L]` is each token's line."""
    if x.device.type != "cpu":
        return _multiplied(number, lines, x, axis)
    shape = (*x.shape[:axis], lines, *x.shape[axis + 1 :])
    return torch.zeros(shape).index_add(axis, number, x)


def _multiplied(number: Tensor, lines: int, x: Tensor, axis: int) -> Tensor:
    """`_line_totals` as a product: a GPU's `index_add` adds a line's tokens in no fixed order."""
    is_on = (torch.arange(lines, device=x.device)[:, None] == number).to(x.dtype)
    return (is_on @ x.movedim(axis, -2)).movedim(-2, axis)
