"""The one door to the mathematics: chooses how a supervision step is computed, and says why.

One path for now: the eager reference. `gram/model.py` calls this module and nothing else of `kernels`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gram.kernels import reference
from gram.kernels.reference import LEARNED, Injection, Spec, Step, Weights

__all__ = [
    "LEARNED",
    "Injection",
    "Spec",
    "Step",
    "Weights",
    "choose",
    "decode",
    "initial_noise",
    "launch_size",
    "slot_count",
    "supervision_step",
]

KERNELS = ("eager",)
"""Names of the kernel paths; part of a result's identity."""


class Path(NamedTuple):
    """A chosen kernel path and the reason, for `gram doctor` and results."""

    kernel: str
    reason: str


def choose(device: torch.device) -> Path:
    """The kernel path for a device."""
    return Path("eager", f"the PyTorch reference runs on {device.type}; it is the only path so far")


def launch_size(spec: Spec) -> int:
    """Trajectories of one launch where the user names none: enough to fill two cores, less for wide models."""
    return 64 if spec.tokens * spec.dim <= 128 * 128 else 16


def slot_count(device: torch.device, launch: int) -> int:
    """Slots where the user names none: one launch on a CPU, many on a GPU, which is idle with few."""
    return launch if device.type == "cpu" else 32 * launch


def supervision_step(
    weights: Weights,
    spec: Spec,
    h: Tensor,
    l: Tensor,
    e_x: Tensor,
    *,
    seed: int,
    puzzle_hash_B: Tensor,
    trajectory_B: Tensor,
    step_B: Tensor,
    injection: Injection = LEARNED,
) -> Step:
    """See `reference.supervision_step`."""
    return reference.supervision_step(
        weights,
        spec,
        h,
        l,
        e_x,
        seed=seed,
        puzzle_hash_B=puzzle_hash_B,
        trajectory_B=trajectory_B,
        step_B=step_B,
        injection=injection,
    )


def decode(weights: Weights, spec: Spec, h: Tensor) -> Tensor:
    """See `reference.decode`."""
    return reference.decode(weights, spec, h)


def initial_noise(
    spec: Spec, *, seed: int, puzzle_hash_B: Tensor, trajectory_B: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """See `reference.initial_noise`."""
    return reference.initial_noise(spec, seed=seed, puzzle_hash_B=puzzle_hash_B, trajectory_B=trajectory_B, scale=scale)
