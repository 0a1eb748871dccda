"""Kernel C's launches as a compiler takes them: for `resources.py`, which reads what they take of a device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from gram.kernels import gemm_pack
from gram.kernels.gemm_plan import Launch, lay_out
from gram.kernels.reference import Injection, Spec

TYPES = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int64: "*i64", torch.int8: "*i8"}


def launches(
    spec: Spec, shapes: Mapping[str, list[int]], injection: Injection
) -> Iterator[tuple[str, Any, dict[str, Any], dict[str, str], int]]:
    """Each different launch of a supervision step in bf16 once, active flags included: its name, its kernel, what it
    compiles in, the types of its parameters and its warps. Raises `ValueError` where kernel C cannot take the spec."""
    device = torch.device("meta")
    weights = {name: torch.empty(shape, device=device) for name, shape in shapes.items()}
    matrices = gemm_pack.pack(weights, spec, torch.bfloat16)
    seen: set[str] = set()
    for launch in lay_out(matrices, spec, 8, injection, has_active=True, device=device).operations:
        if isinstance(launch, Launch) and (name := name_of(launch)) not in seen:
            seen.add(name)
            signature = {each: _type(launch, each) for each in launch.kernel.arg_names}
            yield name, launch.kernel, launch.constants, signature, launch.warps


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
