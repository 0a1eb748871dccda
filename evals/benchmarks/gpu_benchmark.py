"""A supervision step on a GPU, paired in one run: the Triton kernels against eager, compiled and captured PyTorch.

Correctness comes first: every version takes the same step of the same state, and one that is further from the reference
in wider arithmetic than eager's own rounding explains is not timed (`kernels/first_use.py` has the limits). A version
that fails is a row with its error, and the others are still measured. `torch.compile + CUDA graph` replays one captured
graph whose inputs stay in place: nothing is copied, so it is the strongest of the baselines.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import NamedTuple

import torch

from gram.evals.benchmarks import kernel_counts
from gram.evals.benchmarks.timing import Measurement, paired
from gram.kernels import first_use, graphs, reference
from gram.kernels.dispatch import LAUNCHED, step_flops
from gram.kernels.reference import Step
from gram.kernels.spec import Spec
from gram.model import Model
from gram.presets import PRESETS, model_config

REPEATS = 10
"""Steps timed together."""
FLOOR = 2.0
"""Of the fused kernel against the graph-captured compiled step."""
GRAPH = "torch.compile + CUDA graph"

Version = Callable[[], Step]


Make = Callable[[Model, Spec, first_use.Inputs], dict[str, Callable[[], Version]]]
"""What makes the versions of a model's step of given inputs, by name."""


def rows(
    presets: Iterable[str] = PRESETS, *, rounds: int, rates: kernel_counts.Rates = kernel_counts.H100
) -> Iterator[Measurement]:
    """Rows of presets; of one that fails, a row with its error."""
    for preset in presets:
        try:
            model = Model(model_config(preset)).to("cuda", torch.bfloat16).requires_grad_(False)
            yield from step_rows(preset, model, kernel_counts.TRAJECTORIES, rounds, rates=rates)
        except Exception as error:
            yield Measurement.failed(f"GPU step {preset}", error, preset=preset)


def versions(model: Model, spec: Spec, inputs: first_use.Inputs) -> dict[str, Callable[[], Version]]:
    """What is timed, by name: what makes each version."""
    weights, (states, key) = model.weights(), inputs

    def eager() -> Step:
        return reference.supervision_step(weights, spec, *states, key)

    eager()  # makes the rotary tables, which the reference keeps and must not take from a trace
    compiled = torch.compile(eager)
    made: dict[str, Callable[[], Version]] = {
        "eager": lambda: eager,
        "torch.compile": lambda: compiled,
    }

    def launched(name: str) -> Version:
        path = LAUNCHED[name]
        step = import_module(f"gram.kernels.{path.module}").supervision_step
        return partial(step, path.packer(weights, spec, model.dtype), spec, *states, key)

    for name, path in LAUNCHED.items():
        if path.unsupported_reason(spec) is None:
            made[name] = partial(launched, name)
    made[GRAPH] = lambda: captured(compiled)  # the last one: a capture that fails may have later ones fail
    return made


def captured(run: Version) -> Version:
    """`run` as one CUDA graph, replayed; its result is overwritten by each replay."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    made: list[Step] = []
    pool = torch.cuda.graph_pool_handle()
    graph = graphs.capture(
        lambda: made.append(run()), stream=side, pool=pool, what="a step", hint="the others are timed"
    )

    def replay() -> Step:
        graph.replay()
        return made[0]

    return replay


class Checked(NamedTuple):
    """Versions of a step, by name."""

    runs: dict[str, Version]
    """Those that are right."""
    errors: dict[str, float]
    """Their largest error of a row's state."""
    failed: dict[str, Exception]
    """Why each other one is not timed."""


def checked(model: Model, count: int, make: Make) -> Checked:
    """The versions that are right, with their errors, and why each other one is not timed.

    A step that magnifies rounding hides faults, so there one transition is checked first.
    """
    spec, found = model.spec, Checked({}, {}, {})
    inputs = first_use.made_up(spec, model.dtype, model.device, count)
    whole = first_use.truth(model.weights(), spec, model.dtype, inputs)
    if whole.is_magnified and spec.transitions > 1:
        short = replace(spec, transitions=1)
        one = first_use.truth(model.weights(), short, model.dtype, inputs)
        found.failed.update(_checked(make(model, short, inputs), one).failed)
    made = {name: build for name, build in make(model, spec, inputs).items() if name not in found.failed}
    right = _checked(made, whole)
    return right._replace(failed=found.failed | right.failed)


def _checked(made: dict[str, Callable[[], Version]], truth: first_use.Truth) -> Checked:
    found = Checked({}, {}, {})
    for name, build in made.items():
        try:
            run = build()
            errors = first_use.errors(run(), truth.expected)
            if wrong := first_use.excess(errors, truth.eager):
                raise AssertionError(f"{name} must agree with eager before it is timed, got {'; '.join(wrong)}")
        except Exception as error:
            found.failed[name] = error
            continue
        found.runs[name] = run
        found.errors[name] = max(float(errors[part].max()) for part in ("h", "l"))
    return found


@torch.inference_mode()
def step_rows(
    name: str,
    model: Model,
    count: int,
    rounds: int,
    *,
    rates: kernel_counts.Rates = kernel_counts.H100,
    make: Make = versions,
) -> Iterator[Measurement]:
    """The other versions over the fused kernel, over kernel C where the model is too wide for it, or over eager where
    neither runs; and the floor of that one's own count over it. A version that fails is a row with its error."""
    device = model.device
    label = f"GPU step {name} D={model.spec.dim} L={model.spec.length}, {count} trajectories, "
    label += str(model.dtype).removeprefix("torch.")
    timed = checked(model, count, make)
    for each, error in timed.failed.items():
        yield Measurement.failed(f"{label}: {each}", error, preset=name, version=each)
    if not timed.runs:
        return
    seconds = paired({each: partial(_repeat, run, device) for each, run in timed.runs.items()}, rounds)
    seconds = {each: [value / REPEATS for value in values] for each, values in seconds.items()}
    ours = next(each for each in ("fused", "gemm", *timed.runs) if each in timed.runs)
    flops = count * step_flops(model.weights(), model.spec)
    counted = kernel_counts.COUNTS[ours if ours in LAUNCHED else "eager"][0]
    floors = kernel_counts.floors_s(flops, counted(model.weights(), model.spec, count, model.dtype), rates)
    floor_s = max(floors.values())
    facts = {
        "preset": name,
        "seconds": seconds,
        "errors": timed.errors,
        "flops": flops,
        "floor_ms": 1e3 * floor_s,
        "rates": rates._asdict(),
        "teraflops": {each: flops / statistics.median(values) / 1e12 for each, values in seconds.items()},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    fraction = f"{label}: fraction of the floor, {ours}"
    # The first row bears the facts; it is the floor's where there is one.
    others = sorted((each for each in timed.runs if each != ours), key=lambda each: each != GRAPH)
    for place, other in enumerate(others):
        yield Measurement.of_ratios(
            f"{label}: {other} / {ours}",
            seconds[other],
            seconds[ours],
            FLOOR if other == GRAPH and ours == "fused" else None,
            facts={} if place else facts,
        )
    yield Measurement.of_ratios(fraction, [floor_s] * rounds, seconds[ours], facts={} if others else facts)


def _repeat(run: Version, device: torch.device) -> None:
    for _ in range(REPEATS):
        run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
