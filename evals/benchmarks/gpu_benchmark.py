"""A supervision step on a GPU, paired in one run: the Triton kernels against eager, compiled and captured PyTorch.

Correctness comes first: every version takes the same step of the same state, and no ratio is given where one differs
from the reference by more than its type allows. `torch.compile + CUDA graph` replays one captured graph whose inputs
stay in place: nothing is copied, so it is the strongest of the baselines.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module

import torch
from torch import Tensor

from gram.config import PRESETS, model_config
from gram.evals.benchmarks import kernel_counts
from gram.evals.benchmarks.cpu_benchmark import arguments, step_error
from gram.evals.benchmarks.timing import Measurement, paired
from gram.kernels import reference
from gram.kernels.dispatch import LAUNCHED, step_flops
from gram.kernels.philox import NoiseKey
from gram.kernels.reference import Step
from gram.model import Model

REPEATS = 10
"""Steps timed together."""
FLOOR = 2.0
"""Of the fused kernel against the graph-captured compiled step."""
GRAPH = "torch.compile + CUDA graph"

Version = Callable[[], Step]


def rows(*, rounds: int, teraflops: float, terabytes: float) -> Iterator[Measurement]:
    """Rows of every preset. Raises `AssertionError` where a version is wrong."""
    for preset in PRESETS:
        model = Model(model_config(preset)).to("cuda", torch.bfloat16).requires_grad_(False)
        yield from step_rows(
            preset, model, kernel_counts.TRAJECTORIES, rounds, teraflops=teraflops, terabytes=terabytes
        )


def versions(model: Model, states: tuple[Tensor, Tensor, Tensor], key: NoiseKey) -> dict[str, Version]:
    """What is timed, by name."""
    weights, spec = model.weights(), model.spec

    def eager() -> Step:
        return reference.supervision_step(weights, spec, *states, key)

    eager()  # makes the rotary tables, which the reference keeps and must not take from a trace
    compiled = torch.compile(eager)
    made: dict[str, Version] = {"eager": eager, "torch.compile": compiled, GRAPH: captured(compiled)}
    for name, path in LAUNCHED.items():
        if path.unsupported_reason(spec) is None:
            step = import_module(f"gram.kernels.{path.module}").supervision_step
            made[name] = partial(step, path.packer(weights, spec, model.dtype), spec, *states, key)
    return made


def captured(run: Version) -> Version:
    """`run` as one CUDA graph, replayed; its result is overwritten by each replay."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = run()

    def replay() -> Step:
        graph.replay()
        return made

    return replay


@torch.inference_mode()
def step_rows(
    name: str,
    model: Model,
    count: int,
    rounds: int,
    *,
    teraflops: float,
    terabytes: float,
    make: Callable[..., dict[str, Version]] = versions,
) -> Iterator[Measurement]:
    """The other versions over the fused kernel, or over kernel C where the model is too wide for it; and the floor of
    that one's own count over it."""
    device = next(iter(model.weights().values())).device
    states, key = arguments(model, count)
    states = tuple(state.to(device) for state in states)  # type: ignore[assignment]
    key = NoiseKey(key.seed, *(rows.to(device) for rows in key[1:]))
    timed = make(model, states, key)
    errors = {each: step_error(run(), model, states, key, each) for each, run in timed.items()}
    seconds = paired({each: partial(_repeat, run, device) for each, run in timed.items()}, rounds)
    seconds = {each: [value / REPEATS for value in values] for each, values in seconds.items()}
    flops = count * step_flops(model.weights(), model.spec)
    ours = "fused" if "fused" in timed else "gemm"
    moved = kernel_counts.COUNTS[ours][0](model.weights(), model.spec, count, model.dtype).bytes
    floor_s = max(flops / (teraflops * 1e12), moved / (terabytes * 1e12))
    facts = {
        "preset": name,
        "seconds": seconds,
        "errors": errors,
        "flops": flops,
        "bytes": moved,
        "floor_ms": 1e3 * floor_s,
        "teraflops": {each: flops / statistics.median(values) / 1e12 for each, values in seconds.items()},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    label = f"GPU step {name} D={model.spec.dim} L={model.spec.length}, {count} trajectories, {facts['dtype']}"
    # The floor's row comes first and bears the facts.
    for other in sorted((each for each in timed if each != ours), key=lambda each: each != GRAPH):
        is_first = other == GRAPH
        yield Measurement.of_ratios(
            f"{label}: {other} / {ours}",
            seconds[other],
            seconds[ours],
            FLOOR if is_first and ours == "fused" else None,
            facts=facts if is_first else {},
        )
    yield Measurement.of_ratios(f"{label}: fraction of the floor", [floor_s] * rounds, seconds[ours])


def _repeat(run: Version, device: torch.device) -> None:
    for _ in range(REPEATS):
        run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
