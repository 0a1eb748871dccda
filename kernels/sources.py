"""The Triton kernels of each path as a compiler takes them: bodies, constants and types of parameters.

Each kernel of a supervision step is named once, active flags included. `resources.py` compiles them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gram.kernels.blocks import path as blocks
from gram.kernels.fused import path as fused
from gram.kernels.fused.kernel import supervision_step_kernel
from gram.kernels.fused.pack import ALONE, Layout, Tuning, layout_of
from gram.kernels.fused.tuning import default, precision
from gram.kernels.gemm import pack as gemm_pack
from gram.kernels.gemm.plan import KernelLaunch, StepPlan
from gram.kernels.spec import Injection, Spec

META = torch.device("meta")
TYPES = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int64: "*i64", torch.int8: "*i8"}
STATES = ("h_ptr", "l_ptr", "e_ptr", "state_ptr", "x_ptr", "out_ptr")
POINTERS = {
    **dict.fromkeys(("score_ptr", "vector_ptr", "cos_ptr", "sin_ptr"), "*fp32"),
    **dict.fromkeys(("hash_ptr", "trajectory_ptr", "step_ptr"), "*i64"),
    "active_ptr": "*i8",
}
"""Types of the fused and the per-block kernels' parameters; `STATES` have the type multiplied in, and other parameters
are int32 or fp32 numbers."""


class Source(NamedTuple):
    """One kernel of a path's supervision step, to be compiled."""

    name: str
    kernel: Any
    constants: Mapping[str, Any]
    signature: Mapping[str, str]
    """Types by parameter, as the compiler names them."""
    options: Mapping[str, int]
    layout: Layout | None = None
    """Of the fused kernel."""


def sources(
    path: str, spec: Spec, shapes: Mapping[str, list[int]], injection: Injection, target: str, dtype: torch.dtype,
    tuning: Tuning | None = None,
) -> Iterator[Source]:  # fmt: skip
    """The kernels of a path for a target; `fused` is cut by `tuning`, by default as `tuning.default` says.

    Raises `ValueError` for a spec that the path cannot take.
    """
    weights = {name: torch.empty(shape, device=META) for name, shape in shapes.items()}
    if path == "gemm":
        plan = StepPlan(gemm_pack.pack(weights, spec, dtype), spec, 8, injection, has_active=True, device=META)
        launches = [each for each in plan.operations if isinstance(each, KernelLaunch)]
        for name, launch in {gemm_name(launch): launch for launch in launches}.items():
            signature = {each: _gemm_type(launch, each) for each in launch.kernel.arg_names}
            yield Source(name, launch.kernel, launch.constants, signature, {"num_warps": launch.warps})
        return
    if path == "blocks":
        tuning = ALONE
    elif tuning is None:
        tuning = default(target, dtype, spec, weights)
    layout = layout_of(weights, spec, tuning)
    fixed = fused.constants(spec, layout, injection, has_active=True, precision=precision(target, dtype))
    number = TYPES[dtype].removeprefix("*")
    types = POINTERS | dict.fromkeys(STATES, TYPES[dtype]) | {"temperature": "fp32", "sigma": "fp32"}
    for name, (rows, dim) in fused.block_shapes(spec, layout).items():
        types[name] = f"tensordesc<{number}[{rows},{dim}]>"
    if path == "fused":
        launched = [("supervision step", supervision_step_kernel, fixed)]
    else:
        steps = blocks.launches(spec, fixed)
        launched = [(blocks.name_of(each), each.kernel, blocks.constants(spec, fixed, each)) for each in steps]
    seen: list[tuple[str, dict[str, Any]]] = []
    for name, kernel, constants in launched:
        if (kernel.__name__, constants) not in seen:
            seen.append((kernel.__name__, constants))
            known = types | dict.fromkeys(constants, "constexpr")
            signature = {each: known.get(each, "i32") for each in kernel.arg_names}
            options = {"num_warps": tuning.warps, "num_stages": 1}
            yield Source(name, kernel, constants, signature, options, layout if path == "fused" else None)


def gemm_name(launch: KernelLaunch) -> str:
    """The name of a launch of kernel C in tables: its kernel and its variant."""
    name: str = launch.kernel.__name__.removesuffix("_kernel").replace("_", " ")
    constants = launch.constants
    if name == "gate":
        return f"gate of {constants['N']}"
    if "PLACE" in constants:
        name += (" x", " h", " l")[constants["PLACE"]]
    return name + ("", ", then h + l", ", then h + e_x + l")[constants.get("SUMS", 0)]


def _gemm_type(launch: KernelLaunch, name: str) -> str:
    """A parameter's type as the compiler names it."""
    if name in launch.constants:
        return "constexpr"
    value = launch.arguments[name]
    if name == "tiles":
        rows, dim = value.block_shape
        return f"tensordesc<{TYPES[value.base.dtype].removeprefix('*')}[{rows},{dim}]>"
    return TYPES[value.dtype] if isinstance(value, Tensor) else "i32"
