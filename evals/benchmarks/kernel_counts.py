"""A supervision step by count, for each preset and kernel path: no GPU is needed. Counts, not measurements.

FLOPs are those of the matrix products, bytes those of device memory and of the second-level cache, special functions
those of the reference (`kernels/cost.py`); the floor is the longest of the four times at given rates. Resources are
those of the compiled kernels (`kernels/resources.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import cache
from typing import Any, NamedTuple

import torch

from gram.evals.benchmarks.timing import Measurement
from gram.kernels import cost, resources
from gram.kernels.cost import Count
from gram.kernels.dispatch import step_flops
from gram.kernels.fused import pack
from gram.kernels.gemm import pack as gemm_pack
from gram.kernels.spec import Spec
from gram.model import Model
from gram.presets import PRESETS, model_config

TRAJECTORIES = 1280
"""Of a launch: 64 puzzles of 20."""


SPECIAL_A_CLOCK = 16
"""Special functions of each multiprocessor (CUDA C++ Programming Guide, throughput of native arithmetic
instructions)."""


class Rates(NamedTuple):
    """What a GPU can do, per second. `gpu_rates.py` has those of the GPU at hand."""

    teraflops: float = 790.0
    """Of bf16 matrix products, measured on an H100."""
    terabytes: float = 3.0
    """To and from device memory, measured on an H100."""
    l2_terabytes: float = 5.5
    """Out of the second-level cache, about, of an H100."""
    special_tera: float = 3.7
    """Special functions, 10^12: `SPECIAL_A_CLOCK` of 132 multiprocessors at 1.755 GHz."""


H100 = Rates()
BYTES_FLOOR = 50.0
COUNTS: dict[str, tuple[Callable[..., Count], Callable[[Spec], str | None]]] = {
    "eager": (cost.eager_step, lambda _: None),
    "blocks": (cost.blocks_step, pack.unsupported_reason),
    "fused": (cost.fused_step, pack.unsupported_reason),
    "gemm": (cost.gemm_step, gemm_pack.unsupported_reason),
}
"""Paths whose bytes are counted: the counter, and why a model cannot take the path."""


@cache
def _model(preset: str) -> Model:
    return Model(model_config(preset)).requires_grad_(False)


def paths_of(preset: str) -> dict[str, Callable[..., Count]]:
    """The paths that can take a preset's model, with their counters."""
    spec = _model(preset).spec
    return {name: count for name, (count, unsupported_reason) in COUNTS.items() if unsupported_reason(spec) is None}


def floors_s(flops: float, counted: Count, rates: Rates) -> dict[str, float]:
    """The least seconds that a step takes, by what binds it."""
    return {
        "FLOPs": flops / (rates.teraflops * 1e12),
        "bytes": counted.bytes / (rates.terabytes * 1e12),
        "L2 bytes": counted.l2_bytes / (rates.l2_terabytes * 1e12),
        "special functions": counted.special_functions / (rates.special_tera * 1e12),
    }


def roofline(
    presets: Iterable[str] = PRESETS, *, trajectories: int = TRAJECTORIES, rates: Rates = H100
) -> Iterator[dict[str, Any]]:
    """Counts and floor of a step in bf16, one entry for each preset and path that can take it."""
    for preset in presets:
        model = _model(preset)
        weights, spec = model.weights(), model.spec
        flops = trajectories * step_flops(weights, spec)
        for path, count in paths_of(preset).items():
            counted = count(weights, spec, trajectories, torch.bfloat16)
            floors = floors_s(flops, counted, rates)
            bound = max(floors, key=lambda name: floors[name])
            yield {
                "preset": preset,
                "path": path,
                "trajectories": trajectories,
                "flops": flops,
                "bytes": counted.bytes,
                "l2_bytes": counted.l2_bytes,
                "special_functions": counted.special_functions,
                "launches": counted.launches,
                "floor_ms": 1e3 * floors[bound],
                "bound": bound,
            }


def rows(entries: Iterable[dict[str, Any]]) -> Iterator[Measurement]:
    """Bytes of eager over those of the fused kernel, and its launches, against their floors."""
    found = {(entry["preset"], entry["path"]): entry for entry in entries}
    for (preset, path), entry in found.items():
        if path != "fused":
            continue
        ratio, launches = found[preset, "eager"]["bytes"] / entry["bytes"], float(entry["launches"])
        facts = {"preset": preset, "trajectories": entry["trajectories"]}
        yield Measurement.of(f"{preset}: counted bytes, eager / fused", [ratio], BYTES_FLOOR, facts=facts)
        name = f"{preset}: launches of the fused step"
        yield Measurement.of(name, [launches], 1.0, is_ceiling=True, facts=facts)


def compiled(
    presets: Iterable[str] = PRESETS,
    targets: Iterable[str] = tuple(resources.TARGETS),
    tell: Callable[[str], None] = lambda _: None,
) -> Iterator[dict[str, Any]]:
    """Resources of each preset's kernels on each target, one entry for each kernel; kept between runs.

    `tell` hears what is compiled next. What does not compile is an entry with its `error`.
    """
    for preset in presets:
        model = _model(preset)
        for path in resources.PATHS:
            if path not in paths_of(preset):
                continue
            for target in targets:
                tell(f"resources of {path} for {preset} on {target}")
                try:
                    made = resources.kept_or_compiled(
                        model.spec, resources.shapes_of(model.weights()), target, path=path
                    )
                except RuntimeError as error:
                    yield {"preset": preset, "path": path, "target": target, "error": str(error)}
                    continue
                yield from ({"preset": preset, "path": path} | asdict(each) for each in made)


def worst(entries: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """For each preset, path and target what its kernels take at most, and their least occupancy."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for entry in entries:
        groups.setdefault((entry["preset"], entry["path"], entry["target"]), []).append(entry)
    for (preset, path, target), members in groups.items():
        merged: dict[str, Any] = {"preset": preset, "path": path, "target": target, "kernels": len(members)}
        if error := next((member["error"] for member in members if "error" in member), None):
            yield merged | {"error": error}
            continue
        for name in ("registers", "stack_bytes", "spills", "inner_spills", "shared_bytes"):
            merged[name] = max(member[name] for member in members)
        for name in ("programs", "occupancy"):
            merged[name] = min(member[name] for member in members)
        yield merged | {"products": next((m["products"] for m in members if m["products"] != "none"), "none")}
