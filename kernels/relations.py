"""Relations of the tokens of a square grid: along which lines the mixer `relations` lets tokens exchange sums.

A relation is a matrix `[L, L]` over tokens. The dense product with it is the definition; no parameter depends on `L`,
so weights trained on one board fit another. Mixing over the lines of a grid follows 1711.08028 (recurrent relational
networks) and, as a pattern of attention, 2504.17768.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor


def tables(names: tuple[str, ...], tokens: int, device: torch.device) -> Tensor:
    """The relations' matrices, fp32 `[R, L, L]`.

    A line relates a token to the line's other tokens with weight `1 / sqrt(side)`; `all` relates it to every token,
    itself included, with weight `1 / L`.
    """
    return (_tables if torch.compiler.is_compiling() else _kept_tables)(names, tokens, device)


def _tables(names: tuple[str, ...], tokens: int, device: torch.device) -> Tensor:
    side = math.isqrt(tokens)
    # Kept for later calls, which may need gradients: the first one often comes from sampling.
    with torch.inference_mode(False):
        place = torch.arange(tokens, device=device)
        row, column = place // side, place % side
        numbers = {"row": row, "column": column, "diagonal": row - column, "antidiagonal": row + column}
        itself = torch.eye(tokens, device=device)
        made = [
            torch.full((tokens, tokens), 1 / tokens, device=device)
            if name == "all"
            else ((numbers[name][:, None] == numbers[name]).float() - itself) / math.sqrt(side)
            for name in names
        ]
        return torch.stack(made)


_kept_tables = lru_cache(maxsize=16)(_tables)
"""Not for the compiler: it looks through a cache, and warns that it does."""
