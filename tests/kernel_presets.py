"""Shipped models by name: their specs and the shapes of their tensors."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import gram
from gram.config import ModelConfig
from gram.kernels.fused import pack
from gram.kernels.gemm import pack as gemm_pack
from gram.kernels.resources import shapes_of
from gram.kernels.spec import Spec
from gram.model import Model
from gram.presets import model_config

WEIGHTS = Path(gram.__file__).parent / "weights"
SHIPPED = sorted(path.parent.name for path in WEIGHTS.glob("*/config.json"))


def shipped_config(name: str) -> ModelConfig:
    """The shape of a shipped model."""
    known = {field.name for field in fields(ModelConfig)}
    stored = json.loads((WEIGHTS / name / "config.json").read_text())
    return ModelConfig(**{key: value for key, value in stored.items() if key in known})


def small_config() -> ModelConfig:
    """64 tokens of 128 columns, all heads and noise: what the kernels were made for first."""
    return model_config("small", head_hidden=64, has_empty_condition=True)


def spec_and_shapes(config: ModelConfig) -> tuple[Spec, dict[str, list[int]]]:
    """What compiling needs of a model."""
    model = Model(config)
    return model.spec, shapes_of(model.weights())


FUSED = [name for name in SHIPPED if pack.unsupported_reason(shipped_config(name).spec) is None]
"""Those that kernels A and B take."""
GEMM = [
    name for name in SHIPPED if name not in FUSED and gemm_pack.unsupported_reason(shipped_config(name).spec) is None
]
"""Those that kernel C takes instead."""
NONE = [name for name in SHIPPED if shipped_config(name).mixer == "relations"]
"""Those that no Triton kernel takes yet."""
