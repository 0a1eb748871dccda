"""The one door to the mathematics: chooses how a supervision step is computed, and says why.

`eager` is the PyTorch reference, on any device. `fused` is one Triton launch for a whole supervision step
(`transition.py`), on a GPU; before its first use with a model it is compared with the reference on the same device and
input, and refused where they differ. `blocks` is the same in one launch per block (`blocks.py`), with the same check.
Nothing falls back in silence: what cannot run raises, `auto` says what it chose, and why.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from gram.kernels import pack, reference
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

KERNELS = ("eager", "fused", "blocks")
"""Names of the kernel paths; part of a result's identity."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""Largest relative difference of the states (root of mean squares) that the first-use check allows, by type."""


Kernel = Literal["eager", "fused", "blocks"]


class Path(NamedTuple):
    """A chosen kernel path and the reason, for `gram doctor` and results."""

    kernel: Kernel
    reason: str


def choose(
    device: torch.device, spec: Spec | None = None, dtype: torch.dtype = torch.float32, wanted: str = "auto"
) -> Path:
    """The kernel path for a device, a model's spec (None: not known yet) and type.

    `wanted` forces a path; `auto` is the reference until the fused kernel has been proven on a GPU. Raises
    `ValueError` where `wanted` is unknown or cannot run.
    """
    if wanted not in ("auto", *KERNELS):
        raise ValueError(f"kernel must be one of auto, {', '.join(KERNELS)}, got {wanted!r}")
    if wanted == "eager":
        return Path("eager", "asked for")
    obstacle = _obstacle(device, spec, dtype)
    if wanted == "auto":
        why = obstacle or "the fused kernel has not been proven on a GPU yet, so it must be asked for"
        return Path("eager", f"the PyTorch reference runs on {device.type}: {why}")
    if obstacle is not None:
        raise ValueError(f"kernel {wanted} cannot run: {obstacle}")
    return Path("fused" if wanted == "fused" else "blocks", "asked for")


def _obstacle(device: torch.device, spec: Spec | None, dtype: torch.dtype) -> str | None:
    """Why the fused kernel cannot run, or None."""
    if device.type != "cuda":
        return f"the fused kernel needs a GPU, got {device.type}"
    if dtype not in TOLERANCE:
        return f"the fused kernel takes float32 or bfloat16, got {dtype}"
    return "no model is given yet" if spec is None else pack.misfit(spec)


class _Ready(NamedTuple):
    """Packed weights, and what they were packed from."""

    sources: dict[str, Tensor]
    versions: tuple[tuple[int, int], ...]
    packed: pack.Packed


_READY: dict[tuple[Spec, torch.dtype], _Ready] = {}
"""The last model of each spec and type; keeping its tensors keeps their identities from being given to others."""

_CHECKED: set[tuple[str, Spec, torch.dtype]] = set()
"""Kernels that agreed with the reference on the weights last packed."""


def _packed(weights: Weights, spec: Spec, dtype: torch.dtype) -> tuple[pack.Packed, bool]:
    """Packed weights, and whether they are new; packed anew when a tensor was replaced or changed in place."""
    if any(tensor.is_inference() for tensor in weights.values()):
        return pack.pack(weights, spec, dtype), True  # these do not count their changes
    versions = tuple((id(tensor), tensor._version) for tensor in weights.values())
    known = _READY.get((spec, dtype))
    if known is not None and known.versions == versions:
        return known.packed, False
    _READY[spec, dtype] = _Ready(dict(weights), versions, pack.pack(weights, spec, dtype))
    return _READY[spec, dtype].packed, True


def _disagreement(actual: Step, expected: Step) -> float:
    """Largest relative difference of two steps' states; infinite where one is not finite."""
    worst = 0.0
    for one, other in ((actual.h, expected.h), (actual.l, expected.l)):
        gap, size = ((x.float().square().mean().sqrt()).item() for x in (one.float() - other.float(), other))
        ratio = gap / max(size, 1e-12)
        worst = max(worst, ratio) if ratio == ratio else float("inf")
    return worst


def _triton_step(kernel: str, weights: Weights, spec: Spec, h: Tensor, l: Tensor, e_x: Tensor, **rows: Any) -> Step:
    """A step by `fused` or `blocks`. Raises `RuntimeError` where a model's first one disagrees with the reference."""
    choose(h.device, spec, h.dtype, kernel)
    packed, is_new = _packed(weights, spec, h.dtype)
    use = (kernel, spec, h.dtype)
    module = import_module(
        "gram.kernels." + {"fused": "transition", "blocks": "blocks"}[kernel]
    )  # triton is slow to load
    made: Step = module.supervision_step(packed, spec, h, l, e_x, **rows)
    if is_new:
        _CHECKED.difference_update({(name, spec, h.dtype) for name in KERNELS})
    if use not in _CHECKED:
        gap = _disagreement(made, reference.supervision_step(weights, spec, h, l, e_x, **rows))
        if not gap <= TOLERANCE[h.dtype]:
            _READY.pop((spec, h.dtype), None)
            raise RuntimeError(
                f"kernel {kernel} must agree with the reference within {TOLERANCE[h.dtype]:g} on its first use, "
                f"got {gap:.3g}; take --kernel eager"
            )
        _CHECKED.add(use)
    return made


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
    kernel: str = "eager",
) -> Step:
    """See `reference.supervision_step`; `kernel` is the path that `choose` named."""
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
    run = reference.supervision_step if kernel == "eager" else partial(_triton_step, kernel)
    return run(
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
