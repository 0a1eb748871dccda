"""Writes a checkpoint twice as wide that says the same (Net2Net, 1511.05641): a start for training on.

    python scripts/widen_checkpoint.py sudoku-lattice runs/wide-start

Every channel, and every hidden unit of a relation or a SwiGLU, becomes two alike, and what read one reads a share of
both. The shares are drawn (`--seed`), so that the two learn differently from then on. Of models whose mixer is
`relations`, whose latent is a lattice, without learned positions, and whose heads have hidden units, which they keep.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from gram import checkpoint
from gram.config import ModelConfig
from gram.model import Model

LEAST_SHARE, MOST_SHARE = 0.25, 0.75
"""Of what one of two alike channels is worth to its readers."""


def widened(model: Model, seed: int) -> Model:
    """A model of twice the width with the same opinions, up to rounding. Raises `ValueError` for another kind."""
    old = model.config
    if old.latent != "lattice" or old.mixer != "relations":
        raise ValueError(f"checkpoint must be a lattice with relations, got {old.latent} with {old.mixer}")
    new = replace(old, dim=2 * old.dim, mixer_hidden=2 * old.mixer_hidden, hidden=2 * old.hidden)
    if old.positions != "none" or not old.head_hidden:
        raise ValueError(
            "checkpoint must have positions none and heads with hidden units, "
            f"got {old.positions} and {old.head_hidden}"
        )
    generator = torch.Generator().manual_seed(seed)
    made = {name: _wide(name, weight, old, generator) for name, weight in model.weights().items()}
    wide = Model(new)
    wide.load_state_dict(made)
    return wide


def _wide(name: str, weight: Tensor, old: ModelConfig, generator: torch.Generator) -> Tensor:
    part = name.rsplit(".", 1)[-1]
    if name.startswith("low."):
        groups = len(old.relations) if ".mixer." in name else 1
        if part == "gate_up":  # rows: gates, then what they gate, both in groups
            return _read_twice(_said_twice(weight, 2 * groups), 1, generator)
        return _said_twice(_read_twice(weight, groups, generator), 1)
    if name in ("embedding.weight", "possible.weight", "values.weight"):
        return torch.cat([weight, weight], -1) / 2**0.5  # the model multiplies them by the root of the width
    if part.startswith("z0"):
        return torch.cat([weight, weight])
    if name == "decoder.weight" or part == "gate_up":
        return _read_twice(weight, 1, generator)
    return weight


def _said_twice(weight: Tensor, groups: int) -> Tensor:
    """Rows of each group, and again."""
    return torch.cat([torch.cat([rows, rows]) for rows in weight.chunk(groups)])


def _read_twice(weight: Tensor, groups: int, generator: torch.Generator) -> Tensor:
    """Columns of each group in two shares."""
    made = []
    for columns in weight.chunk(groups, -1):
        share = torch.rand(columns.shape[-1], generator=generator) * (MOST_SHARE - LEAST_SHARE) + LEAST_SHARE
        made += [columns * share, columns * (1 - share)]
    return torch.cat(made, -1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("start", help="a shipped checkpoint's name, or a folder")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    try:
        start = checkpoint.load(checkpoint.find(given.start), dtype=torch.float32)
        card = {"description": f"{given.start}, twice as wide, not trained since", "task": start.config.task}
        checkpoint.save_new(widened(start, given.seed), given.out, card=card)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"{given.start}, twice as wide -> {given.out}")
