"""Named shapes of models."""

from __future__ import annotations

from typing import Any

from gram.config import ModelConfig, config_from_json

PAPER: dict[str, Any] = {
    "dim": 512,
    "heads": 8,
    "hidden": 512,
    "mixer": "attention",
    "positions": "rotary",
    "registers": 16,
    "is_core_shared": False,
    "low_level_updates": 4,
    "transitions": 3,
    "depth": 16,
    "guidance_hidden": 512,
    "noise_order": "after",
    "noise_free_steps": 0,
    "head_readout": "register",
}
PRESETS: dict[str, dict[str, Any]] = {
    "small": {},
    "small-attention": {"mixer": "attention", "positions": "both"},
    "paper": PAPER,
    "paper-sudoku": PAPER | {"mixer": "token", "mixer_hidden": 512, "positions": "none", "low_level_updates": 6},
}
"""Named model shapes: `small` trains on a CPU in minutes, `paper` is 2605.19376's (D=512, ~10M)."""


def model_config(preset: str, **overrides: Any) -> ModelConfig:
    """A preset with some fields replaced. Raises `ValueError` for an unknown preset or field."""
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    return config_from_json(ModelConfig, {**PRESETS[preset], **overrides}, where=f"model preset {preset}")
