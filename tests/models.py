"""Tiny models for tests: random weights, milliseconds to run."""

from __future__ import annotations

from typing import Any

import torch

from gram.config import ModelConfig
from gram.model import Model


def tiny_config(**overrides: Any) -> ModelConfig:
    """A model of 4x4 N-Queens small enough to run in milliseconds."""
    values: dict[str, Any] = {
        "task": "nqueens4",
        "vocabulary": 3,
        "tokens": 16,
        "output_tokens": 16,
        "dim": 16,
        "heads": 2,
        "hidden": 16,
        "mixer_hidden": 8,
        "guidance_hidden": 8,
        "depth": 3,
    }
    return ModelConfig(**{**values, **overrides})


def tiny_model(seed: int = 0, **overrides: Any) -> Model:
    """A model of `tiny_config` with heads that differ and are not all zero."""
    model = Model(tiny_config(**overrides), seed=seed).requires_grad_(False)
    for number, head in enumerate((model.halt, model.lprm), start=1):
        head.weight.normal_(generator=torch.Generator().manual_seed(seed + number))
    return model
