"""What the fused kernel takes of a device, read from ahead-of-time compilation: no GPU is needed. Not its speed.

Registers and stack come from the compiled binary (`cuobjdump` of the triton wheel), shared memory from the compiler.
Run as a module, it reads one request as JSON from standard input and prints one answer: a process of its own, since a
process that interprets kernels cannot compile them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from gram.kernels.pack import Layout, layout_of
from gram.kernels.reference import LEARNED, Injection, Spec, Weights

TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
"""Devices the kernel is compiled for: backend, architecture, threads of a warp."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """One compiled kernel."""

    target: str
    registers: int
    """Of a thread."""
    stack_bytes: int
    """Of a thread; spilled registers stand there."""
    shared_bytes: int
    """Of a program."""
    products: str
    """Matrix instruction found: `wgmma`, `tcgen05`, `mma.sync`, `mfma` or `none`."""
    product_count: int


def shapes_of(weights: Weights) -> dict[str, list[int]]:
    """Shapes of a model's tensors by name: all that compiling needs of it."""
    return {name: list(tensor.shape) for name, tensor in weights.items()}


def _signature(spec: Spec, layout: Layout, constants: Mapping[str, Any], names: list[str]) -> dict[str, str]:
    from gram.kernels.transition import block_shapes

    tiles = block_shapes(spec, layout)
    kinds = {
        "bf16": ("h_ptr", "l_ptr", "e_ptr", "state_ptr"),
        "fp32": ("score_ptr", "vector_ptr", "cos_ptr", "sin_ptr"),
        "i64": ("hash_ptr", "trajectory_ptr", "step_ptr"),
        "i8": ("active_ptr",),
    }
    types = {name: f"*{kind}" for kind, members in kinds.items() for name in members}
    types |= {name: f"tensordesc<bf16[{rows},{columns}]>" for name, (rows, columns) in tiles.items()}
    types |= {"temperature": "fp32", "sigma": "fp32"} | dict.fromkeys(constants, "constexpr")
    return {name: types.get(name, "i32") for name in names}


def compile_step(spec: Spec, shapes: Mapping[str, list[int]], target: str, injection: Injection = LEARNED) -> Resources:
    """Compiles a whole supervision step in bf16, active flags included, for a target.

    Raises `ValueError` for an unknown target, a spec the kernel cannot take or a process that interprets kernels.
    """
    if target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {target!r}")
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise ValueError("kernels must be compiled in a process without TRITON_INTERPRET, got TRITON_INTERPRET=1")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from gram.kernels.transition import WARPS, constants
    from gram.kernels.transition_triton import supervision_step_kernel as kernel

    layout = layout_of({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, spec)
    fixed = constants(spec, layout, injection, has_active=True)
    names = list(kernel.arg_names)
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(names)
        if name.endswith("_ptr") or "_stride_" in name
    }
    compiled = triton.compile(
        ASTSource(kernel, _signature(spec, layout, fixed, names), fixed, aligned),
        target=GPUTarget(*TARGETS[target]),
        options={"num_warps": WARPS, "num_stages": 1},
    )
    shared = int(compiled.metadata.shared)
    if target.startswith("gfx"):
        return _of_assembly(target, compiled.asm["amdgcn"], shared)
    return _of_binary(target, compiled.asm["cubin"], compiled.asm["ptx"], shared)


def _of_binary(target: str, binary: bytes, listing: str, shared: int) -> Resources:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        said = subprocess.run(
            [tool, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    usage = dict(re.findall(r"(REG|STACK|SHARED):(\d+)", said[said.index("Function ") :]))
    counts = {name: listing.count(name) for name in ("wgmma.mma_async", "tcgen05.mma", "mma.sync")}
    best = next((name for name, count in counts.items() if count), "none")
    return Resources(
        target=target,
        registers=int(usage["REG"]),
        stack_bytes=int(usage["STACK"]),
        shared_bytes=shared + int(usage["SHARED"]),
        products=best,
        product_count=counts.get(best, 0),
    )


def _of_assembly(target: str, listing: str, shared: int) -> Resources:
    def field(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", listing)
        return int(found[1]) if found else -1

    count = listing.count("v_mfma")
    return Resources(
        target=target,
        registers=field("vgpr_count"),
        stack_bytes=field("private_segment_fixed_size"),
        shared_bytes=shared,
        products="mfma" if count else "none",
        product_count=count,
    )


def compile_apart(
    spec: Spec, shapes: Mapping[str, list[int]], target: str, injection: Injection = LEARNED
) -> Resources:
    """`compile_step` in a process of its own. Raises `RuntimeError` with its last lines where that fails."""
    request = {"spec": asdict(spec), "shapes": shapes, "target": target, "injection": asdict(injection)}
    return Resources(**answer_apart("gram.kernels.resources", request))


def answer_apart(module: str, request: Mapping[str, Any]) -> Any:
    """What a module says to a request, JSON both, in a process that does not interpret kernels.

    Raises `RuntimeError` with its last lines where that fails.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", module], input=json.dumps(request), capture_output=True, text=True, env=environment
    )
    if done.returncode:
        raise RuntimeError(f"compiling for {request['target']} failed: " + "\n".join(done.stderr.splitlines()[-5:]))
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Answers the request on standard input."""
    asked = json.load(sys.stdin)
    made = compile_step(Spec(**asked["spec"]), asked["shapes"], asked["target"], Injection(**asked["injection"]))
    print(json.dumps(asdict(made)))


if __name__ == "__main__":
    main()
