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
) -> dict[str, Resources]:
    """Compiles every kernel of a supervision step in bf16, active flags included; by name, variants numbered.

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
    made: dict[str, Resources] = {}
    seen: set[str] = set()
    for launch in plan.operations:
        if not isinstance(launch, Launch):
            continue
        signature = {name: _type(launch, name) for name in launch.kernel.arg_names}
        name = launch.kernel.__name__.removesuffix("_kernel")
        variant = f"{name} {signature} {launch.constants}"
        if variant not in seen:
            seen.add(variant)
            number = sum(known.split("-")[0] == name for known in made) + 1
            made[f"{name}-{number}"] = _compile(launch, signature, target)
    return made


def _type(launch: Any, name: str) -> str:
    """A parameter's type as the compiler names it."""
    if name in launch.constants:
        return "constexpr"
    value = launch.arguments[name]
    if name == "tiles":
        rows, columns = value.block_shape
        return f"tensordesc<bf16[{rows},{columns}]>"
    return TYPES[value.dtype] if isinstance(value, Tensor) else "i32"


def _compile(launch: Any, signature: dict[str, str], target: str) -> Resources:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    # Every buffer is an allocation of its own or its head, and those start at multiples of 16 bytes.
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(launch.kernel.arg_names)
        if signature[name][0] == "*"
    }
    compiled = triton.compile(
        ASTSource(launch.kernel, signature, launch.constants, aligned),
        target=GPUTarget(*TARGETS[target]),
        options={"num_warps": launch.warps},
    )
    shared = int(compiled.metadata.shared)
    if target.startswith("gfx"):
        return resources._of_assembly(target, compiled.asm["amdgcn"], shared)
    return resources._of_binary(target, compiled.asm["cubin"], compiled.asm["ptx"], shared)


def compile_apart(
    spec: Spec, shapes: Mapping[str, list[int]], target: str, injection: Injection = LEARNED
) -> dict[str, Resources]:
    """`compile_step` in a process of its own. Raises `RuntimeError` with its last lines where that fails."""
    request = {"spec": asdict(spec), "shapes": shapes, "target": target, "injection": asdict(injection)}
    answer = resources.answer_apart("gram.kernels.gemm_resources", request)
    return {name: Resources(**values) for name, values in answer.items()}


def main() -> None:
    """Answers the request on standard input."""
    asked = json.load(sys.stdin)
    made = compile_step(Spec(**asked["spec"]), asked["shapes"], asked["target"], Injection(**asked["injection"]))
    print(json.dumps({name: asdict(values) for name, values in made.items()}))


if __name__ == "__main__":
    main()
