"""What the Triton kernels take of a device, read from ahead-of-time compilation: no GPU is needed. Not their speed.

Registers, stack and spills come from the compiled binary (`cuobjdump`, `nvdisasm` of the triton wheel), shared memory
from the compiler. Run as a module, it reads one request as JSON from standard input and prints one answer. It needs its
own process where the caller's interprets kernels. Answers are kept beside the CPU's compiled pieces.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gram.kernels.compiled import cache as compile_cache
from gram.kernels.fused import tuning as cuts
from gram.kernels.fused import work
from gram.kernels.fused.pack import Tuning
from gram.kernels.reference import Weights
from gram.kernels.spec import LEARNED, Injection, Spec

if TYPE_CHECKING:
    import torch

    from gram.kernels.sources import Source

ROOT = Path(__file__).absolute().parents[2]
"""The folder that holds the package: `-m` looks in the working directory first, which may hold another one."""
TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
"""Devices the kernels are compiled for: backend, architecture, threads of a warp."""
PATHS = ("fused", "blocks", "gemm")
"""Kernel paths that are compiled for them (`dispatch.KERNELS`)."""


class Processor(NamedTuple):
    """What the programs of one streaming multiprocessor (AMD: compute unit) share."""

    warps: int
    registers: int
    """Of a lane, all warps together."""
    register_step: int
    """A thread's registers are given out in steps of so many."""
    shared_bytes: int
    reserved_bytes: int
    """Shared memory that each program loses to the system; from sm_90 on the binary counts it itself."""


PROCESSORS = {
    "sm_80": Processor(64, 2048, 8, 164 * 1024, 1024),
    "sm_90": Processor(64, 2048, 8, 228 * 1024, 0),
    "sm_100": Processor(64, 2048, 8, 228 * 1024, 0),
    "gfx942": Processor(32, 2048, 8, 64 * 1024, 0),
}
"""CUDA C++ Programming Guide, technical specifications per compute capability; AMD CDNA 3 ISA: four units of 512
registers a lane and 8 waves each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """One compiled kernel."""

    target: str
    kernel: str
    """Which launch of its path it is."""
    registers: int
    """Of a thread."""
    stack_bytes: int
    """Of a thread; it holds spilled registers."""
    spills: int
    """Instructions that load from or store to the stack."""
    inner_spills: int
    """Those of them in innermost loops, where the products are."""
    shared_bytes: int
    """Of a program."""
    warps: int
    """Of a program."""
    programs: int
    """That one multiprocessor holds at once; 0 where one does not fit."""
    occupancy: float
    """Share of the multiprocessor's warps that these are."""
    products: str
    """Matrix instruction found: `wgmma`, `tcgen05`, `mma.sync`, `mfma` or `none`."""
    product_count: int
    barriers: float | None = None
    """Barriers for each tile of weights, of the loop over tiles that has most; None where no unit loads tiles."""
    executed: float | None = None
    """Multiply-accumulates executed over those needed (`fused/work.py`); None of other paths than `fused`, and of
    devices whose layouts are not read."""


class DoesNotFit(RuntimeError):
    """A kernel that compiles and cannot run on its target, in one line."""


def shapes_of(weights: Weights) -> dict[str, list[int]]:
    """Shapes of a model's tensors by name: all that compiling needs of it."""
    return {name: list(tensor.shape) for name, tensor in weights.items()}


def programs_of(target: str, *, registers: int, shared_bytes: int, warps: int) -> int:
    """Programs that one multiprocessor of a target holds at once."""
    unit = PROCESSORS[target]
    given = -(-max(registers, 1) // unit.register_step) * unit.register_step
    by_registers = unit.registers // given // warps
    by_shared = unit.shared_bytes // max(shared_bytes + unit.reserved_bytes, 1)
    return min(unit.warps // warps, by_registers, by_shared)


def highest_clock_hz(device: torch.device) -> float:
    """Of a GPU's multiprocessors."""
    from triton.runtime import driver  # slow to load

    return 1e3 * float(driver.active.utils.get_device_properties(device.index or 0)["sm_clock_rate"])


def spills_of(listing: str, access: str) -> tuple[int, ...]:
    """Instructions of an assembly listing that match `access`, and how many of them are in innermost loops."""
    inner = [line for loop in innermost_loops(listing) for line in loop]
    return tuple(sum(bool(re.search(access, line)) for line in lines) for lines in (listing.splitlines(), inner))


def innermost_loops(listing: str) -> list[list[str]]:
    """The lines of each innermost loop of an assembly listing; a loop runs from a label to a branch back to it."""
    lines = listing.splitlines()
    labels: dict[str, int] = {}
    ends: dict[int, int] = {}
    for index, line in enumerate(lines):
        if label := re.match(r"\s*(\.L\w+):", line):
            labels[label[1]] = index
        elif (branch := re.search(r"\b(?:BRA\S*|s_c?branch\w*)\s.*?(\.L\w+)", line)) and branch[1] in labels:
            ends[labels[branch[1]]] = index
    loops = list(ends.items())
    return [
        lines[one[0] : one[1] + 1]
        for one in loops
        if not any(one != two and one[0] <= two[0] and two[1] <= one[1] for two in loops)
    ]


def barriers_of(listing: str) -> float | None:
    """Barriers for each tile of weights, of the loop over tiles that has most; None where no loop loads tiles.

    Loops over tiles are innermost and store nothing: the one that adds the prior's noise is none. Tiles are counted as
    loads in the loop's compiled code: where the compiler leaves fewer there than the source has, one of a head's four
    with three stages and few heads (`small-attention` on sm_100), the figure is as many times too high.
    """
    found = []
    for loop in innermost_loops(listing):
        tiles = sum("UTMALDG" in line for line in loop)
        if tiles and not any("STG" in line for line in loop):
            found.append(sum("BAR.SYNC" in line for line in loop) / tiles)
    return max(found, default=None)


def compile_path(
    spec: Spec,
    shapes: Mapping[str, list[int]],
    target: str,
    injection: Injection = LEARNED,
    path: str = "fused",
    dtype: str = "bfloat16",
    tuning: Tuning | None = None,
) -> list[Resources]:
    """Compiles every launch of a path's supervision step, active flags included, for a target; `fused` is cut by
    `tuning`, by default as `fused.tuning.default` says.

    Raises `ValueError` for an unknown target or path, a spec the kernels cannot take or a process that interprets them,
    and `DoesNotFit` for a kernel that needs more tensor memory than there is.
    """
    _check(target, path)
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise ValueError("kernels must be compiled in a process without TRITON_INTERPRET, got TRITON_INTERPRET=1")
    import torch

    from gram.kernels.sources import sources  # triton is slow to load

    made = sources(path, spec, shapes, injection, target, getattr(torch, dtype), tuning)
    return [_compiled(source, target, spec, shapes) for source in made]


def _check(target: str, path: str) -> None:
    if target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {target!r}")
    if path not in PATHS:
        raise ValueError(f"compiled path must be one of {', '.join(PATHS)}, got {path!r}")


def _compiled(source: Source, target: str, spec: Spec, shapes: Mapping[str, list[int]]) -> Resources:
    """Resources of one kernel. Its buffers and strides are multiples of 16 bytes: allocations, or their heads."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, each in enumerate(source.kernel.arg_names)
        if each.endswith("_ptr") or "_stride_" in each
    }
    compiled = triton.compile(
        ASTSource(source.kernel, dict(source.signature), dict(source.constants), aligned),
        target=GPUTarget(*TARGETS[target]),
        options=dict(source.options),
    )
    if excess := cuts.column_excess(compiled.metadata):
        raise DoesNotFit(f"{source.name} {excess}")
    shared, warps = int(compiled.metadata.shared), int(compiled.metadata.num_warps)
    if target.startswith("gfx"):
        found = _of_assembly(compiled.asm["amdgcn"], shared)
    else:
        found = _of_binary(source.kernel.__name__, compiled.asm["cubin"], compiled.asm["ptx"], shared)
    executed = None
    if source.layout is not None and target in ("sm_90", "sm_100"):
        part = source.constants["PART"]
        executed = work.ratio(spec, source.layout, part, shapes, work.repeats(compiled.asm["ttgir"]))
    programs = programs_of(target, registers=found["registers"], shared_bytes=found["shared_bytes"], warps=warps)
    return Resources(
        target=target,
        kernel=source.name,
        warps=warps,
        programs=programs,
        occupancy=programs * warps / PROCESSORS[target].warps,
        executed=executed,
        **found,
    )


def _of_binary(name: str, binary: bytes, listing: str, shared: int) -> dict[str, Any]:
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

    def said(tool: str, *options: str) -> str:
        done = subprocess.run([tools / tool, *options, file.name], check=True, capture_output=True, text=True)
        return done.stdout

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        usage_text = said("cuobjdump", "--dump-resource-usage")
        usage = dict(re.findall(r"(REG|STACK|SHARED):(\d+)", usage_text[usage_text.index(f"Function {name}") :]))
        code = said("nvdisasm", "--print-code")
    counts = {each: listing.count(each) for each in ("wgmma.mma_async", "tcgen05.mma", "mma.sync")}
    best = next((each for each, count in counts.items() if count), "none")
    spills, inner_spills = spills_of(code, r"\b(LDL|STL)\b")
    return {
        "registers": int(usage["REG"]),
        "stack_bytes": int(usage["STACK"]),
        "spills": spills,
        "inner_spills": inner_spills,
        "shared_bytes": shared + int(usage["SHARED"]),
        "products": best,
        "product_count": counts.get(best, 0),
        "barriers": barriers_of(code),
    }


def _of_assembly(listing: str, shared: int) -> dict[str, Any]:
    def field(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", listing)
        return int(found[1]) if found else -1

    count = listing.count("v_mfma")
    spills, inner_spills = spills_of(listing, r"\bscratch_(load|store)\w*\s")
    return {
        "registers": field("vgpr_count"),
        "stack_bytes": field("private_segment_fixed_size"),
        "spills": spills,
        "inner_spills": inner_spills,
        "shared_bytes": shared,
        "products": "mfma" if count else "none",
        "product_count": count,
    }


def compile_apart(
    spec: Spec,
    shapes: Mapping[str, list[int]],
    target: str,
    injection: Injection = LEARNED,
    path: str = "fused",
    tuning: Tuning | None = None,
) -> list[Resources]:
    """`compile_path` in a process of its own. Raises `RuntimeError` with its last lines where that fails."""
    request = _request(spec, shapes, target, injection, path, tuning)
    return [Resources(**made) for made in answer_apart(request)]


def answer_apart(request: Mapping[str, Any]) -> Any:
    """`main`'s answer to a request, both JSON, from a process that does not interpret kernels.

    Raises `RuntimeError` with its last lines where that fails.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "gram.kernels.resources"],
        input=json.dumps(request), capture_output=True, text=True, env=environment, cwd=ROOT,
    )  # fmt: skip
    if done.returncode:
        said = "\n".join(done.stderr.splitlines()[-5:])
        raise RuntimeError(f"compiling {request['path']} for {request['target']} failed: {said}")
    return json.loads(done.stdout.splitlines()[-1])


def _request(
    spec: Spec,
    shapes: Mapping[str, list[int]],
    target: str,
    injection: Injection,
    path: str,
    tuning: Tuning | None,
) -> dict[str, Any]:
    _check(target, path)
    return {
        "spec": asdict(spec),
        "shapes": shapes,
        "target": target,
        "injection": asdict(injection),
        "path": path,
        "tuning": None if tuning is None else asdict(tuning),
    }


def kept_or_compiled(
    spec: Spec,
    shapes: Mapping[str, list[int]],
    target: str,
    injection: Injection = LEARNED,
    path: str = "fused",
    tuning: Tuning | None = None,
) -> list[Resources]:
    """`compile_apart`, once for each request, version of triton and state of the sources; kept as a file.

    Raises `RuntimeError` where compiling fails.
    """
    digest = hashlib.sha256(json.dumps(_request(spec, shapes, target, injection, path, tuning)).encode())
    digest.update(version("triton").encode())
    for source in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(source.read_bytes())
    if compile_cache.obstacle():
        return compile_apart(spec, shapes, target, injection, path, tuning)
    kept = compile_cache.folder() / f"resources-{digest.hexdigest()[:32]}.json"
    try:
        return [Resources(**made) for made in json.loads(kept.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        pass  # not there, or cut off
    made = compile_apart(spec, shapes, target, injection, path, tuning)
    kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        written = Path(folder) / kept.name
        written.write_text(json.dumps([asdict(each) for each in made]), encoding="utf-8")
        compile_cache.keep(written, kept)
    return made


def main() -> None:
    """Answers the request on standard input."""
    asked = json.load(sys.stdin)
    try:
        made = compile_path(
            Spec(**asked["spec"]),
            asked["shapes"],
            asked["target"],
            Injection(**asked["injection"]),
            asked["path"],
            tuning=Tuning(**asked["tuning"]) if asked["tuning"] else None,
        )
    except DoesNotFit as error:
        sys.exit(str(error))
    print(json.dumps([asdict(each) for each in made]))


if __name__ == "__main__":
    main()
