"""Patterns of sparse attention (2504.17768): which tokens a token attends to.

The definition is full attention whose scores are minus infinity where a mask says so; `window` and `block-topk` are
computed like that. `axial` attends by line where there are no registers, in arithmetic that grows with `L sqrt(L)`;
tests hold it to its mask. Registers attend to all tokens, and all attend to them, in every pattern.

Shapes: `B` trajectories, `H` heads, `L` tokens (the first `R` registers), `W` channels of a head, `N` blocks.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from gram.kernels.spec import Spec


def attend(query_BHLW: Tensor, key_BHLW: Tensor, value_BHLW: Tensor, spec: Spec) -> Tensor:
    """What each token takes of those that its pattern shows it, `[B, H, L, W]`; queries and keys are rotated."""
    query_BHLW = query_BHLW * query_BHLW.shape[-1] ** -0.5
    if spec.pattern == "axial" and not spec.registers:
        return _attend_by_line(query_BHLW, key_BHLW, value_BHLW)
    scores = query_BHLW @ key_BHLW.transpose(-1, -2)
    mask = block_mask(query_BHLW, key_BHLW, spec) if spec.pattern == "block-topk" else place_mask(spec, scores.device)
    return _weighted(scores.masked_fill(~mask, -math.inf)) @ value_BHLW


def _weighted(scores: Tensor) -> Tensor:
    return torch.softmax(scores.to(torch.float32), dim=-1).to(scores.dtype)


def place_mask(spec: Spec, device: torch.device) -> Tensor:
    """Which tokens `[L]` each token `[L]` attends to by their places, for `window` and `axial`.

    `window`: those at most `pattern_radius` rows and columns away on a square grid, or places where there is none;
    `axial`: those of its row and of its column. A token is always among its own.
    """
    named = spec.pattern, spec.length, spec.registers, spec.pattern_radius, device
    return (_place_mask if torch.compiler.is_compiling() else _kept_place_mask)(*named)


def _place_mask(pattern: str, length: int, registers: int, radius: int, device: torch.device) -> Tensor:
    # Kept for later calls, which may need gradients: the first one often comes from sampling.
    with torch.inference_mode(False):
        tokens = length - registers
        side = math.isqrt(tokens)
        place = torch.arange(tokens, device=device)
        lines = [place // side, place % side] if side * side == tokens else [place]
        apart = torch.stack([(line[:, None] - line).abs() for line in lines])
        seen = torch.ones(length, length, dtype=torch.bool, device=device)
        near = (apart == 0).any(0) if pattern == "axial" else (apart <= radius).all(0)
        seen[registers:, registers:] = near
        return seen


_kept_place_mask = lru_cache(maxsize=16)(_place_mask)
"""Not for the compiler: it looks through a cache, and warns that it does."""


def block_mask(query_BHLW: Tensor, key_BHLW: Tensor, spec: Spec) -> Tensor:
    """Which tokens each token attends to in `block-topk`, `[B, H, L, L]`: those of the `pattern_kept` blocks whose mean
    key has the largest product with its query. Blocks are `pattern_block` tokens in order, the last one what is left;
    of blocks of equal score any may be taken. The choice has no gradient."""
    registers, size = spec.registers, spec.pattern_block
    with torch.no_grad():
        parts = key_BHLW[..., registers:, :].split(size, dim=-2)
        means = torch.stack([part.mean(-2) for part in parts], dim=-2)
        scores_BHLN = query_BHLW @ means.transpose(-1, -2)
        kept = scores_BHLN.topk(spec.pattern_kept, dim=-1).indices
        is_kept = torch.zeros_like(scores_BHLN, dtype=torch.bool).scatter(-1, kept, True)
        seen = is_kept.repeat_interleave(size, dim=-1)[..., : spec.length - registers]
        place = torch.arange(spec.length, device=seen.device)
        return torch.nn.functional.pad(seen, (registers, 0), value=True) | (place < registers)[:, None]


def _attend_by_line(query_BHLW: Tensor, key_BHLW: Tensor, value_BHLW: Tensor) -> Tensor:
    """`axial` without registers: scores within rows beside those within columns, a token's own once."""
    side = math.isqrt(query_BHLW.shape[-2])
    query, key, value = (x.unflatten(-2, (side, side)) for x in (query_BHLW, key_BHLW, value_BHLW))
    in_row = query @ key.transpose(-1, -2)  # [B, H, row, column, column of the key]
    in_column = query.transpose(2, 3) @ key.transpose(2, 3).transpose(-1, -2)  # [B, H, column, row, row of the key]
    own = torch.eye(side, dtype=torch.bool, device=query.device)
    in_column = in_column.masked_fill(own, -math.inf).transpose(2, 3)
    along, across = _weighted(torch.cat([in_row, in_column], dim=-1)).split(side, dim=-1)
    taken: Tensor = along @ value + (across.transpose(2, 3) @ value.transpose(2, 3)).transpose(2, 3)
    return taken.flatten(2, 3)
