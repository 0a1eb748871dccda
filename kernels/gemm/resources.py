"""Kernel C's Triton kernels as `resources.py` compiles them ahead of time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from gram.kernels.gemm import pack as gemm_pack
from gram.kernels.gemm.plan import Launch, lay_out
from gram.kernels.reference import Injection, Spec
from gram.kernels.resources import Source

TYPES = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int64: "*i64", torch.int8: "*i8"}


def sources(spec: Spec, shapes: Mapping[str, list[int]], injection: Injection) -> Iterator[Source]:
    """Each different kernel of a supervision step in bf16, active flags included.

    Raises `ValueError` for a spec that kernel C cannot take.
    """
    device = torch.device("meta")
    weights = {name: torch.empty(shape, device=device) for name, shape in shapes.items()}
    matrices = gemm_pack.pack(weights, spec, torch.bfloat16)
    plan = lay_out(matrices, spec, 8, injection, has_active=True, device=device)
    different = {name_of(launch): launch for launch in plan.operations if isinstance(launch, Launch)}
    for name, launch in different.items():
        signature = {each: _type(launch, each) for each in launch.kernel.arg_names}
        yield Source(name, launch.kernel, launch.constants, signature, {"num_warps": launch.warps})


def name_of(launch: Launch) -> str:
    """What a launch is called in tables of resources: its kernel and what tells it from its other variants."""
    name: str = launch.kernel.__name__.removesuffix("_kernel").replace("_", " ")
    constants = launch.constants
    if name == "gate":
        return f"gate of {constants['N']}"
    if "PLACE" in constants:
        name += (" x", " h", " l")[constants["PLACE"]]
    return name + ("", ", then h + l", ", then h + e_x + l")[constants.get("SUMS", 0)]


def _type(launch: Launch, name: str) -> str:
    """A parameter's type as the compiler names it."""
    if name in launch.constants:
        return "constexpr"
    value = launch.arguments[name]
    if name == "tiles":
        rows, columns = value.block_shape
        return f"tensordesc<bf16[{rows},{columns}]>"
    return TYPES[value.dtype] if isinstance(value, Tensor) else "i32"
