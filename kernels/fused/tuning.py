"""How the fused kernel is cut for a device: warps, stages, tiles, and how many trajectories one program takes.

A measured choice stands in a file (`gram bench tuning` writes it, `GRAM_TUNING` names it), one entry for each device,
model shape and type. Without an entry the choice is by count and by compiled resources (`evals/results/kernels.md`).
The file's digest is part of a result's identity on a GPU, since another cut rounds differently.

Triton is not imported here: it is slow to load.
"""

from __future__ import annotations

import torch

from gram.kernels.fused.pack import ALONE, Packed, Tuning, group_obstacle, pack
from gram.kernels.reference import Weights
from gram.kernels.spec import Spec


def target_of(device: torch.device) -> str:
    """The architecture of a device, as `resources.TARGETS` names them; `interpreter` for a CPU."""
    if device.type != "cuda":
        return "interpreter"
    if torch.version.hip:
        return str(torch.cuda.get_device_properties(device).gcnArchName).split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def precision(target: str, dtype: torch.dtype) -> str:
    """How fp32 factors are multiplied: NVIDIA's matrix units take them in three parts of TF32, nearly exact; they do
    not take them as they are."""
    return "tf32x3" if target.startswith("sm_") and dtype is torch.float32 else "ieee"


def default(target: str, dtype: torch.dtype, spec: Spec, weights: Weights) -> Tuning:
    """By count and by compiled resources, for want of a measurement."""
    return ALONE
