"""What kernel C's Triton kernels take of a device, read from ahead-of-time compilation; see `resources.py`.

Run as a module, it reads one request as JSON from standard input and prints one answer.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from gram.kernels import gemm_pack, resources
from gram.kernels.reference import LEARNED, Injection, Spec
from gram.kernels.resources import TARGETS, Resources

TYPES = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int64: "*i64", torch.int8: "*i8"}


def compile_step(
    spec: Spec, shapes: Mapping[str, list[int]], target: str, injection: Injection = LEARNED
) -> list[Resources]:
    """Compiles each different kernel of a supervision step in bf16, active flags included.

    Raises `ValueError` for an unknown target, a spec that kernel C cannot take or a process that interprets kernels.
    """
    if target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {target!r}")
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise ValueError("kernels must be compiled in a process without TRITON_INTERPRET, got TRITON_INTERPRET=1")
    from gram.kernels.gemm_plan import Launch, lay_out

    device = torch.device("meta")
    weights = {name: torch.empty(shape, device=device) for name, shape in shapes.items()}
    matrices = gemm_pack.pack(weights, spec, torch.bfloat16)
    plan = lay_out(matrices, spec, 8, injection, has_active=True, device=device)
    different = {name_of(launch): launch for launch in plan.operations if isinstance(launch, Launch)}
    return [_compiled(name, launch, target) for name, launch in different.items()]


def name_of(launch: Any) -> str:
    """What a launch is called in tables of resources: its kernel and what tells it from its other variants."""
    name: str = launch.kernel.__name__.removesuffix("_kernel").replace("_", " ")
    constants = launch.constants
    if name == "gate":
        return f"gate of {constants['N']}"
    if "PLACE" in constants:
        name += (" x", " h", " l")[constants["PLACE"]]
    return name + ("", ", then h + l", ", then h + e_x + l")[constants.get("SUMS", 0)]


def _type(launch: Any, name: str) -> str:
    """A parameter's type as the compiler names it."""
    if name in launch.constants:
        return "constexpr"
    value = launch.arguments[name]
    if name == "tiles":
        rows, columns = value.block_shape
        return f"tensordesc<bf16[{rows},{columns}]>"
    return TYPES[value.dtype] if isinstance(value, Tensor) else "i32"


def _compiled(name: str, launch: Any, target: str) -> Resources:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = launch.kernel.arg_names
    # Every buffer is an allocation of its own or its head, and those start at multiples of 16 bytes.
    aligned = {(index,): [["tt.divisibility", 16]] for index, each in enumerate(names) if each.endswith("_ptr")}
    compiled = triton.compile(
        ASTSource(launch.kernel, {each: _type(launch, each) for each in names}, launch.constants, aligned),
        target=GPUTarget(*TARGETS[target]),
        options={"num_warps": launch.warps},
    )
    return resources.of_compiled(name, launch.kernel.__name__, compiled, target)


def main() -> None:
    """Answers the request on standard input."""
    asked = json.load(sys.stdin)
    made = compile_step(Spec(**asked["spec"]), asked["shapes"], asked["target"], Injection(**asked["injection"]))
    print(json.dumps([asdict(each) for each in made]))


if __name__ == "__main__":
    main()
