"""The one way to the mathematics: chooses the kernel path of a supervision step and gives the reason.

    eager     the PyTorch reference (`reference.py`), on any device
    compiled  the reference compiled ahead of time for a CPU (`compiled/`)
    fused     a whole supervision step in one Triton launch, up to 128 channels (`fused/`)
    blocks    the same in one launch per block (`blocks/`)
    gemm      the GPU library's matrix products with fused kernels between them, captured as one graph, for wider models
              (`gemm/`)

The last three need a GPU. Before its first use with a model and an injector, each is compared with the reference on the
same device (`first_use.py`), and refused where they differ. A path that cannot run raises an error; none is replaced
silently.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from gram.kernels import experts, first_use, lookup, reference
from gram.kernels.compiled import cache as compile_cache
from gram.kernels.compiled import path as compiled
from gram.kernels.fused import pack, tuning
from gram.kernels.gemm import pack as gemm_pack
from gram.kernels.philox import NoiseKey
from gram.kernels.reference import Step, Weights
from gram.kernels.spec import LEARNED, MANY_TOKENS, Injection, Spec

KERNELS = ("eager", "compiled", "fused", "blocks", "gemm")
"""Names of the kernel paths; part of a result's identity."""
TYPES = (torch.float32, torch.bfloat16)
"""Types that every path computes in."""
COMPILE_FROM_FLOPS = 2e13
"""Floating-point operations of a run from which compiling it pays: about three minutes of two cores, where the compiler
takes one and a half and saves a third of the rest. The choice depends on the run and never on the cache, so that the
same run always takes the same path."""


Kernel = Literal["eager", "compiled", "fused", "blocks", "gemm"]


MEMORY_OBSTACLE = "eager alone reads a memory of demonstrations"
SPARSE_OBSTACLE = "eager and compiled alone have a lookup memory, experts or an active_share below 1"


class KernelChoice(NamedTuple):
    """A chosen kernel path and the reason, for `gram doctor` and results."""

    kernel: Kernel
    reason: str


def choose(
    device: torch.device,
    spec: Spec | None = None,
    dtype: torch.dtype = torch.float32,
    wanted: str = "auto",
    flops: float = 0.0,
) -> KernelChoice:
    """The kernel path for a device, a model's spec (None: not known yet), type and amount of work in `flops`.

    `wanted` forces a path. `auto` compiles long runs on a CPU and is the reference elsewhere, until a kernel has been
    proven on a GPU. Raises `ValueError` where `wanted` is unknown or cannot run.
    """
    if wanted not in ("auto", *KERNELS):
        raise ValueError(f"kernel must be one of auto, {', '.join(KERNELS)}, got {wanted!r}")
    if wanted == "eager":
        return KernelChoice("eager", "asked for")
    if wanted == "compiled":
        if reason := _compile_obstacle(device, dtype, spec):
            raise ValueError(f"kernel compiled cannot run: {reason}")
        return KernelChoice("compiled", f"asked for{_unkept()}")
    if wanted == "auto" and device.type == "cpu":
        return _choose_on_cpu(device, dtype, flops, spec)
    if wanted == "auto":
        fitting = "fused" if spec is None or pack.unsupported_reason(spec) is None else "gemm"
        why = _obstacle(device, spec, dtype, fitting)
        why = why or f"kernel {fitting} has not been proven on a GPU yet, so it must be asked for"
        return KernelChoice("eager", f"the PyTorch reference runs on {device.type}: {why}")
    obstacle = _obstacle(device, spec, dtype, wanted)
    if obstacle is not None:
        raise ValueError(f"kernel {wanted} cannot run: {obstacle}")
    return KernelChoice(cast(Kernel, wanted), "asked for")


def _choose_on_cpu(device: torch.device, dtype: torch.dtype, flops: float, spec: Spec | None) -> KernelChoice:
    """`compiled` for long runs where it can be had, else `eager`."""
    if flops < COMPILE_FROM_FLOPS:
        why = f"compiling pays from {COMPILE_FROM_FLOPS:g} floating-point operations on" + (
            f", got {flops:.2g}" if flops else ""
        )
        return KernelChoice("eager", f"the PyTorch reference runs on cpu: {why}; the fused kernel needs a GPU")
    if reason := _compile_obstacle(device, dtype, spec):
        return KernelChoice("eager", f"the PyTorch reference runs on cpu: {reason}; the fused kernel needs a GPU")
    why = f"{flops:.2g} floating-point operations at most, and compiling pays from {COMPILE_FROM_FLOPS:g} on"
    return KernelChoice("compiled", f"{why}{_unkept()}")


def _unkept() -> str:
    """A clause about the cache, where compiled pieces cannot be kept in it."""
    reason = compile_cache.obstacle()
    return f"; what is compiled is not kept: {reason}" if reason else ""


def _compile_obstacle(device: torch.device, dtype: torch.dtype, spec: Spec | None) -> str | None:
    """Why the compiled path cannot run, or None."""
    if spec is not None and spec.memory_channels:
        return MEMORY_OBSTACLE
    if device.type != "cpu":
        return f"the compiled path is for a CPU, got {device.type}"
    if dtype not in TYPES:
        return f"the compiled path takes float32 or bfloat16, got {dtype}"
    if compile_cache.compiler() is None:
        return f"the compiled path needs a C++ compiler ({', '.join(compile_cache.COMPILERS)}), got none"
    return None


def step_flops(weights: Weights, spec: Spec) -> float:
    """Floating-point operations of the matrix products of one trajectory's supervision step, heads left out."""
    calls = {"low": spec.low_level_updates + spec.is_core_shared, "high": 1 - spec.is_core_shared}
    reads = (spec.low_level_updates + 1) * (spec.memory != "none")
    total = 0.0
    for name, tensor in weights.items():
        first = name.split(".")[0]
        if ".experts." in name:
            continue
        if first in calls:
            is_token = spec.mixer == "token" and ".mixer." in name
            total += calls[first] * 2 * tensor.numel() * (spec.dim if is_token else spec.length)
        elif name in ("memory.query", "memory.gate", "memory.out"):
            total += reads * 2 * tensor.numel() * spec.length
        elif first == "prior" and spec.guidance != "none":
            total += 2 * tensor.numel() * spec.length
    if spec.memory_size and spec.memory != "mean":
        total += reads * 2 * spec.memory_size * spec.length
    if spec.experts:
        total += (spec.low_level_updates + 1) * spec.blocks * 2 * experts.block_macs(spec)
    if spec.lookup:
        total += (spec.low_level_updates + 1) * 2 * lookup.call_macs(spec)
    if spec.mixer == "attention":
        total += (spec.low_level_updates + 1) * spec.blocks * 2 * spec.pairs * spec.dim
    elif spec.mixer == "relations":
        share = weights["low.0.mixer.down"].shape[1] // len(spec.relations)
        sums = share * spec.additions
        total += (spec.low_level_updates + 1) * spec.blocks * 2 * sums
    return spec.transitions * total


class _Launched(NamedTuple):
    """A path of Triton kernels: its module, how it packs weights, and the reason why it does not support a spec."""

    module: str
    packer: Callable[[Weights, Spec, torch.dtype], Any]
    unsupported_reason: Callable[[Spec], str | None]


LAUNCHED = {
    "fused": _Launched("fused.path", tuning.packed, pack.unsupported_reason),
    "blocks": _Launched("blocks.path", pack.pack, pack.unsupported_reason),
    "gemm": _Launched("gemm.path", gemm_pack.pack, gemm_pack.unsupported_reason),
}
"""Paths that need a GPU."""


def _obstacle(device: torch.device, spec: Spec | None, dtype: torch.dtype, kernel: str) -> str | None:
    """Why a path of Triton kernels cannot run, or None."""
    what = "the fused kernel" if kernel in ("fused", "blocks") else f"kernel {kernel}"
    if device.type != "cuda":
        return f"{what} needs a GPU, got {device.type}"
    if dtype not in TYPES:
        return f"{what} takes float32 or bfloat16, got {dtype}"
    if spec is None:
        return "no model is given yet"
    if spec.memory_channels:
        return MEMORY_OBSTACLE
    if spec.lookup or spec.experts or spec.active_share < 1:
        return SPARSE_OBSTACLE
    reason = LAUNCHED[kernel].unsupported_reason(spec)
    if reason is None and kernel != "gemm":
        reason = tuning.column_obstacle(device, dtype, spec)
    if reason is not None and kernel != "gemm" and gemm_pack.unsupported_reason(spec) is None:
        reason += "; kernel gemm takes this model"
    return reason


class _Ready(NamedTuple):
    """Packed weights, and what they were packed from."""

    sources: dict[str, Tensor]
    versions: tuple[tuple[int, int], ...]
    packed: Any


_READY: dict[tuple[Any, Spec, torch.dtype], _Ready] = {}
"""The last model of each packer, spec and type; keeping its tensors keeps their identities from being given to
others."""

_CHECKED: set[tuple[str, Spec, torch.dtype, tuple[Any, ...]]] = set()
"""Kernels and kinds of injection that agreed with the reference on the weights last packed."""


def _packed(weights: Weights, spec: Spec, dtype: torch.dtype, kernel: str = "fused") -> tuple[Any, bool]:
    """Packed weights, and whether they are new; packed anew when a tensor was replaced or changed in place.

    Raises `ValueError` where `gemm` gets inference tensors: its graph keeps addresses, and these tensors do not count
    their changes.
    """
    packer = LAUNCHED[kernel].packer
    if any(tensor.is_inference() for tensor in weights.values()):
        if kernel == "gemm":
            raise ValueError("kernel gemm needs weights made outside torch.inference_mode, got inference tensors")
        return packer(weights, spec, dtype), True  # inference tensors do not count their changes
    versions = tuple((id(tensor), tensor._version) for tensor in weights.values())
    use = (packer, spec, dtype)
    known = _READY.get(use)
    if known is not None and known.versions == versions:
        return known.packed, False
    _READY[use] = _Ready(dict(weights), versions, packer(weights, spec, dtype))
    return _READY[use].packed, True


def packed(weights: Weights, spec: Spec, dtype: torch.dtype, kernel: str) -> Any:
    """Packed weights as a step of a path in `LAUNCHED` reads them: what a CUDA graph of steps must keep."""
    return _packed(weights, spec, dtype, kernel)[0]


def _triton_step(
    weights: Weights, spec: Spec, h: Tensor, l: Tensor, e_x: Tensor, key: NoiseKey, injection: Injection, kernel: str
) -> Step:
    """A step by a path of Triton kernels. Raises `RuntimeError` where a model's first one disagrees with the
    reference."""
    dtype = h.dtype
    packed, is_new = _packed(weights, spec, dtype, kernel)
    module = import_module("gram.kernels." + LAUNCHED[kernel].module)  # triton is slow to load

    def run(asked: Spec, states: tuple[Tensor, Tensor, Tensor], key: NoiseKey) -> Step:
        made: Step = module.supervision_step(packed, asked, *states, key, injection=injection)
        return made

    if is_new:
        _CHECKED.difference_update([each for each in _CHECKED if each[1:3] == (spec, dtype)])
    use = (kernel, spec, dtype, first_use.kind_of(injection))
    if use not in _CHECKED:
        # The graph that is checked is the one that will run; rows of the other paths do not depend on their number.
        count = max(1, h.shape[0]) if kernel == "gemm" else first_use.ROWS
        if found := first_use.faults(run, weights, spec, dtype, h.device, injection, count):
            _READY.pop((LAUNCHED[kernel].packer, spec, dtype), None)
            raise RuntimeError(
                f"kernel {kernel} must agree with the reference on its first use, got another {'; '.join(found)}; "
                "take --kernel eager"
            )
        _CHECKED.add(use)
    return run(spec, (h, l, e_x), key)


GPU_SLOTS = 2048
"""Slots on a GPU where the user names none: enough rows for every multiprocessor, many times over."""


def launch_size(spec: Spec, device: torch.device, kernel: str) -> int:
    """Trajectories of one launch where the user names none.

    On a CPU enough to fill two cores, less for wide models, and few of many tokens: a launch is padded, and a puzzle
    alone has few. On a GPU a launch costs the host as much as thousands of rows cost the device: `fused` and `blocks`,
    whose rows do not depend on each other, take every slot at once, `eager` and `gemm` as many as their buffers allow.
    """
    is_wide = spec.length * spec.dim > 128 * 128
    if device.type == "cpu":
        return 4 if spec.length > MANY_TOKENS else 16 if is_wide else 64
    if kernel in ("fused", "blocks"):
        return GPU_SLOTS
    return 256 if is_wide else 1024


def slot_count(device: torch.device, launch: int) -> int:
    """Slots where the user names none: one launch on a CPU, many rows on a GPU, which is idle with few."""
    return launch if device.type == "cpu" else max(launch, min(32 * launch, GPU_SLOTS))


def supervision_step(
    weights: Weights,
    spec: Spec,
    h: Tensor,
    l: Tensor,
    e_x: Tensor,
    key: NoiseKey,
    *,
    injection: Injection = LEARNED,
    kernel: str = "eager",
) -> Step:
    """See `reference.supervision_step`; `kernel` is the path that `choose` named."""
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
    choose(h.device, spec, h.dtype, kernel)
    if kernel == "eager":
        return reference.supervision_step(weights, spec, h, l, e_x, key, injection=injection)
    if kernel == "compiled":
        return compiled.supervision_step(weights, spec, h, l, e_x, key, injection=injection)
    return _triton_step(weights, spec, h, l, e_x, key, injection, kernel)


decode = reference.decode
initial_noise = reference.initial_noise
