"""The one door to the mathematics: chooses how a supervision step is computed, and says why.

`eager` is the PyTorch reference, on any device. `fused` is one Triton launch for a whole supervision step
(`transition.py`), on a GPU; before its first use with a model it is compared with the reference on the same device and
input, and refused where they differ. `blocks` is the same in one launch per block (`blocks.py`), with the same check.
`compiled` (`compiled.py`) is the reference compiled ahead of time for a CPU.
Nothing falls back in silence: what cannot run raises, `auto` says what it chose, and why.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from gram.kernels import compile_cache, pack, reference
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
    "step_flops",
    "supervision_step",
]

KERNELS = ("eager", "compiled", "fused", "blocks")
"""Names of the kernel paths; part of a result's identity."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""Largest relative difference of the states (root of mean squares) that the first-use check allows, by type."""
COMPILE_FROM_FLOPS = 2e13
"""Floating-point operations of a run from which compiling it pays: about three minutes of two cores, where the compiler
takes one and a half and saves a third of the rest. A matter of the run alone, not of what happens to be in the cache,
so that the same run always takes the same path."""


Kernel = Literal["eager", "compiled", "fused", "blocks"]


class Path(NamedTuple):
    """A chosen kernel path and the reason, for `gram doctor` and results."""

    kernel: Kernel
    reason: str


def choose(
    device: torch.device,
    spec: Spec | None = None,
    dtype: torch.dtype = torch.float32,
    wanted: str = "auto",
    flops: float = 0.0,
) -> Path:
    """The kernel path for a device, a model's spec (None: not known yet), type and amount of work in `flops`.

    `wanted` forces a path. `auto` compiles long runs on a CPU and is the reference elsewhere, until the fused kernel
    has been proven on a GPU. Raises `ValueError` where `wanted` is unknown or cannot run.
    """
    if wanted not in ("auto", *KERNELS):
        raise ValueError(f"kernel must be one of auto, {', '.join(KERNELS)}, got {wanted!r}")
    if wanted == "eager":
        return Path("eager", "asked for")
    if wanted == "compiled":
        if reason := _compile_obstacle(device, dtype):
            raise ValueError(f"kernel compiled cannot run: {reason}")
        return Path("compiled", "asked for")
    if wanted == "auto" and device.type == "cpu":
        return _choose_on_cpu(device, dtype, flops)
    obstacle = _obstacle(device, spec, dtype)
    if wanted == "auto":
        why = obstacle or "the fused kernel has not been proven on a GPU yet, so it must be asked for"
        return Path("eager", f"the PyTorch reference runs on {device.type}: {why}")
    if obstacle is not None:
        raise ValueError(f"kernel {wanted} cannot run: {obstacle}")
    return Path("fused" if wanted == "fused" else "blocks", "asked for")


def _choose_on_cpu(device: torch.device, dtype: torch.dtype, flops: float) -> Path:
    """`compiled` for long runs where it can be had, else `eager`."""
    if reason := _compile_obstacle(device, dtype):
        return Path("eager", f"the PyTorch reference runs on cpu: {reason}; the fused kernel needs a GPU")
    if flops < COMPILE_FROM_FLOPS:
        why = f"compiling pays from {COMPILE_FROM_FLOPS:g} floating-point operations on" + (
            f", got {flops:.2g}" if flops else ""
        )
        return Path("eager", f"the PyTorch reference runs on cpu: {why}; the fused kernel needs a GPU")
    return Path(
        "compiled", f"{flops:.2g} floating-point operations at most, and compiling pays from {COMPILE_FROM_FLOPS:g} on"
    )


def _compile_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the compiled path cannot run, or None."""
    if device.type != "cpu":
        return f"the compiled path is for a CPU, got {device.type}"
    if dtype not in TOLERANCE:
        return f"the compiled path takes float32 or bfloat16, got {dtype}"
    if compile_cache.compiler() is None:
        return f"the compiled path needs a C++ compiler ({', '.join(compile_cache.COMPILERS)}), got none"
    return None


def step_flops(weights: Weights, spec: Spec) -> float:
    """Floating-point operations of the matrix products of one trajectory's supervision step, heads left out."""
    calls = {"low": spec.low_level_updates + spec.is_core_shared, "high": 1 - spec.is_core_shared}
    total = 0.0
    for name, tensor in weights.items():
        first = name.split(".")[0]
        if first in calls:
            is_token = spec.mixer == "token" and ".mixer." in name
            total += calls[first] * 2 * tensor.numel() * (spec.dim if is_token else spec.tokens)
        elif first == "prior" and spec.guidance != "none":
            total += 2 * tensor.numel() * spec.tokens
    if spec.mixer == "attention":
        total += (spec.low_level_updates + 1) * spec.blocks * 4 * spec.tokens**2 * spec.dim
    return spec.transitions * total


def _compiled_step(weights: Weights, spec: Spec, h: Tensor, l: Tensor, e_x: Tensor, **rows: Any) -> Step:
    """The compiled path, whose compiler is slow to import."""
    from gram.kernels import compiled

    choose(h.device, spec, h.dtype, "compiled")
    return compiled.supervision_step(weights, spec, h, l, e_x, **rows)


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
    runs: dict[str, Callable[..., Step]] = {
        "eager": reference.supervision_step,
        "compiled": _compiled_step,
        "fused": partial(_triton_step, "fused"),
        "blocks": partial(_triton_step, "blocks"),
    }
    return runs[kernel](
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
