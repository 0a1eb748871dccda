"""gram: samples many latent trajectories of a small recurrent reasoning model at once.

import gram
puzzle = "......../......../......../.....Q../..Q...../......../......../........"
result = gram.load("nqueens8").sample(puzzle, width=20)
print(result[0].text, result[0].votes, result[0].is_valid)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gram.api import Sampler, load
    from gram.config import ModelConfig, SamplerConfig
    from gram.evals.api import ablate, evaluate, frontier
    from gram.sampler.result import SampleResult
    from gram.training.config import TrainConfig
    from gram.training.published import data
    from gram.training.run import train

_HOMES = {
    "load": "gram.api",
    "Sampler": "gram.api",
    "ModelConfig": "gram.config",
    "SamplerConfig": "gram.config",
    "TrainConfig": "gram.training.config",
    "data": "gram.training.published",
    "train": "gram.training.run",
    "SampleResult": "gram.sampler.result",
    "evaluate": "gram.evals.api",
    "frontier": "gram.evals.api",
    "ablate": "gram.evals.api",
}

__all__ = [
    "ModelConfig",
    "SampleResult",
    "Sampler",
    "SamplerConfig",
    "TrainConfig",
    "__version__",
    "ablate",
    "data",
    "evaluate",
    "frontier",
    "load",
    "train",
]


def __getattr__(name: str) -> Any:
    """Public names are imported when first used: `import gram` alone stays fast."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'gram' has no attribute {name!r}")
