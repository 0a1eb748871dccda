"""`gram doctor`: what is installed, which device and kernel path a run would take, and why."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import typer

from gram.cli.errors import BROKEN
from gram.cli.options import Json
from gram.versions import installed

NEEDED = ("torch", "numpy", "scipy", "safetensors", "typer", "rich")
"""Distributions without which the main job does not run."""
OPTIONAL = {
    "transformers": "load checkpoints by AutoModel",
    "ray": "sample on several machines",
    "triton": "GPU kernels and compiled training on a GPU",
    "pyyaml": "import checkpoints of other projects",
}
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
COMPILERS = ("c++", "g++", "clang++")
DATA_VARIABLE = "GRAM_DATA"

PATHS = {
    "eager": "PyTorch, operation by operation; any device",
    "compiled": "the same compiled ahead of time; long runs on a CPU take it",
    "fused": "a supervision step in one Triton launch; where asked for",
    "blocks": "the same in one launch per block, to find a fault in fused; where asked for",
    "gemm": "matrix products with fused kernels between them, one graph a step, for a large dim; where asked for",
}
"""What each kernel path is."""

State = Literal["ok", "note", "broken"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at."""

    name: str
    state: State
    finding: str


def doctor(as_json: Json = False) -> None:
    """Show what is installed, which device and kernel path are used, and why; exit 1 if something needed is broken."""
    compiler = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    checks = [_found(name, installed(name), "not installed, and needed", "broken") for name in NEEDED]
    checks += [_found(name, installed(name), f"not installed; needed to {use}") for name, use in OPTIONAL.items()]
    checks += _run_checks()
    missing = f"none of {', '.join(COMPILERS)} found; training and compiled noise need one"
    checks += [_found("compiler", compiler, missing), _data()]
    broken = [check.name for check in checks if check.state == "broken"]
    verdict = f"broken: {', '.join(broken)}" if broken else "ready"
    if as_json:
        from gram.cli.terminal import print_json

        findings = {check.name: {"state": check.state, "finding": check.finding} for check in checks}
        print_json({"is_ready": not broken, "verdict": verdict, "checks": findings})
    else:
        _show(checks, verdict)
    if broken:
        raise typer.Exit(BROKEN)


def _found(name: str, finding: str | None, missing: str, state: State = "note") -> Check:
    """What was found, else `missing`."""
    return Check(name, "ok", finding) if finding else Check(name, state, missing)


def _run_checks() -> list[Check]:
    """Device, type, kernel path, a step on it, CPU and checkpoints: what PyTorch is needed to see."""
    try:
        import torch

        from gram.api import choose_device, choose_dtype, halves_bfloat16, multiplies_bfloat16
        from gram.kernels import dispatch
    except (ImportError, OSError) as error:
        return [Check("import", "broken", str(error).splitlines()[0])]

    device = choose_device()
    if device.type == "cuda":
        why = f"{torch.cuda.get_device_name(device)}, found by PyTorch {torch.__version__}"
    elif torch.version.cuda is None:
        why = f"PyTorch {torch.__version__} is built for the CPU alone"
    else:
        why = f"PyTorch {torch.__version__} finds no GPU"
    path, dtype = dispatch.choose(device), choose_dtype(device=device)
    has = "has" if multiplies_bfloat16(device) else "has no"
    slow = ", half as fast as float32" if has == "has" and halves_bfloat16(device) else ""
    dtype_finding = f"{str(dtype).removeprefix('torch.')}: {device.type} {has} instructions for bfloat16{slow}"
    return [
        Check("python", "ok", platform.python_version()),
        Check("device", "ok", f"{device.type}: {why}"),
        Check("dtype", "ok", dtype_finding),
        Check("kernel", "ok", f"{path.kernel}: {path.reason}"),
        *_kernels(device, dtype),
        _step(device, dtype),
        _processor(),
        _sequential_tests(),
        Check("threads", "ok", f"{torch.get_num_threads()} of {os.cpu_count()} cores"),
        *_checkpoints(),
    ]


def _kernels(device: Any, dtype: Any) -> list[Check]:
    """Every kernel path: what it is and whether a model of the usual shape can take it here, else what is missing."""
    from gram.config import ModelConfig
    from gram.kernels import dispatch
    from gram.model import Model

    model = Model(ModelConfig())
    checks = []
    for kernel in dispatch.KERNELS:
        what = f"{PATHS[kernel]}; " if kernel in PATHS else ""
        try:
            dispatch.choose(device, model.spec, dtype, kernel)
        except ValueError as error:
            missing = str(error).removeprefix(f"kernel {kernel} cannot run: ")
            checks.append(Check(f"kernel {kernel}", "note", f"{what}not here: {missing}"))
        else:
            more = _compiled_cache(dtype) if kernel == "compiled" else ""
            checks.append(Check(f"kernel {kernel}", "ok", f"{what}can run here{more}"))
    return checks


def _compiled_cache(dtype: Any) -> str:
    """Where the compiled path keeps its pieces, how many there are and which shipped checkpoints need no compiling."""
    from gram import checkpoint
    from gram.kernels.compiled import cache as compile_cache
    from gram.kernels.compiled import path as compiled

    if reason := compile_cache.obstacle():
        return f"; no cache, so every run compiles (minutes): {reason}"
    folder = compile_cache.folder()
    pieces = list(folder.glob("*.pt2")) if folder.is_dir() else []
    broken = sum(not compile_cache.is_whole(path) for path in pieces)
    size = sum(path.stat().st_size for path in pieces if path.is_file()) / 2**20
    finding = f"; cache {folder}: {len(pieces)} pieces, {size:.0f} MiB" if pieces else f"; cache {folder}: empty"
    finding += f"; {broken} of them not whole, to be compiled again" if broken else ""
    warm: list[str] = []
    cold: list[str] = []
    for name in checkpoint.shipped_names():
        try:
            model = checkpoint.load(checkpoint.find(name)).to(dtype)
        except checkpoint.CheckpointError:
            continue  # told among the checkpoints
        (warm if compiled.is_kept(model.weights(), model.spec, dtype) else cold).append(name)
    finding += f"; warm for {', '.join(warm)}" if warm else ""
    return finding + (f"; the first use compiles (minutes) for {', '.join(cold)}" if cold else "")


def _step(device: Any, dtype: Any) -> Check:
    """Takes one supervision step of a tiny model: whether the path chosen computes here."""
    import numpy as np
    import torch

    from gram.config import ModelConfig
    from gram.kernels.philox import NoiseKey
    from gram.model import Model

    tiny = ModelConfig(tokens=8, output_tokens=8, dim=16, hidden=16, mixer_hidden=16, guidance_hidden=16)
    try:
        with torch.inference_mode():
            model = Model(tiny).to(device=device, dtype=dtype)
            state = model.initial_state(8)
            e_x = model.embed(torch.ones((8, tiny.tokens), dtype=torch.int64, device=device))
            ids = torch.arange(8, device=device)
            after = model.step(*state, e_x, NoiseKey(0, ids, ids, ids))
            is_finite = bool(np.isfinite(after.h.float().cpu().numpy()).all())
    except (RuntimeError, ValueError) as error:
        return Check("one step", "broken", str(error).splitlines()[0])
    return Check("one step", "ok", "computes") if is_finite else Check("one step", "broken", "result is not finite")


def _sequential_tests() -> Check:
    """Whether the tests of an adaptive width are native code here."""
    from gram.sampler import native_tests

    reason = native_tests.obstacle()
    return Check("sequential tests", "ok", f"numpy: {reason}" if reason else "native code")


def _processor() -> Check:
    """What of the CPU's instruction sets matters here."""
    import torch

    information = Path("/proc/cpuinfo")
    words = set(information.read_text().split()) if information.is_file() else set()
    present = [flag for flag in CPU_FLAGS if flag in words]
    finding = f"{platform.machine()}, PyTorch uses {torch.backends.cpu.get_cpu_capability()}"
    if words:
        finding += f"; {', '.join(present) or 'no AVX'}"
    return Check("processor", "ok", finding)


def _checkpoints() -> list[Check]:
    """Whether every shipped checkpoint can be read."""
    from gram import checkpoint

    names = checkpoint.shipped_names()
    if not names:
        return [Check("checkpoints", "note", "none shipped; --checkpoint DIR is needed")]
    checks = []
    for name in names:
        try:
            model = checkpoint.load(checkpoint.find(name))
        except checkpoint.CheckpointError as error:
            checks.append(Check(f"checkpoint {name}", "broken", str(error)))
        else:
            count = sum(tensor.numel() for tensor in model.weights().values())
            checks.append(Check(f"checkpoint {name}", "ok", f"{count / 1e6:.2f}M parameters, task {model.config.task}"))
    return checks


def _data() -> Check:
    folder = os.environ.get(DATA_VARIABLE)
    if folder and not Path(folder).is_dir():
        return Check(DATA_VARIABLE, "broken", f"must be a folder, got {folder}")
    return _found(DATA_VARIABLE, folder, "not set; tests on published puzzles are skipped")


def _show(checks: list[Check], verdict: str) -> None:
    from rich.text import Text

    from gram.cli import terminal

    console = terminal.output()
    styles = {"ok": "green", "note": "yellow", "broken": "bold red"}
    shown = terminal.table("", "what", "finding", left=3, wraps=2)
    shown.show_header = False
    for check in checks:
        shown.add_row(Text(check.state, styles[check.state]), check.name, check.finding)
    console.print(shown)
    console.print(Text(verdict, style="bold green" if verdict == "ready" else "bold red"))
