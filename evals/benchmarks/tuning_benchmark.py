"""A sweep over the cuts of the fused kernel on a GPU: each is held to the reference, then timed; the fastest is kept.

A cut that does not compile, does not fit or is wrong is a row with its error, and is not chosen.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from gram.checkpoint import write_json
from gram.evals.benchmarks.kernel_counts import TRAJECTORIES
from gram.evals.benchmarks.timing import Measurement
from gram.kernels import first_use
from gram.kernels.fused import pack, tuning
from gram.model import Model

REPEATS = 10
"""Steps timed together."""

Timer = Callable[[Model, pack.Tuning, int], Sequence[float]]
"""Seconds of a step of a model cut in one way, once for each round. Raises what stops it."""


@dataclass
class Choices:
    """The fastest cut of each model, as the file of `gram bench tuning` has them."""

    entries: list[dict[str, Any]] = field(default_factory=list)

    def keep(self, path: Path) -> None:
        """Writes the file that `GRAM_TUNING` takes."""
        write_json(path, {"choices": self.entries})


def seconds(model: Model, cut: pack.Tuning, rounds: int) -> list[float]:
    """Seconds of a step of `TRAJECTORIES` on a GPU. Raises `AssertionError` where it is not the reference's."""
    from gram.kernels.fused import path  # triton is slow to load

    spec, weights = model.spec, model.weights()
    packed = pack.pack(weights, spec, model.dtype, cut)
    inputs = first_use.made_up(spec, model.dtype, model.device, TRAJECTORIES)
    truth = first_use.truth(weights, spec, model.dtype, inputs)
    made = path.supervision_step(packed, spec, *inputs[0], inputs[1])
    if wrong := first_use.excess(first_use.errors(made, truth.expected), truth.eager):
        raise AssertionError(f"must agree with eager before it is timed, got {'; '.join(wrong)}")
    found = []
    for _ in range(rounds):
        torch.cuda.synchronize(model.device)
        began = time.perf_counter()
        for _ in range(REPEATS):
            path.supervision_step(packed, spec, *inputs[0], inputs[1])
        torch.cuda.synchronize(model.device)
        found.append((time.perf_counter() - began) / REPEATS)
    return found


def rows(
    models: Mapping[str, Model], choices: Choices, *, rounds: int, timer: Timer = seconds
) -> Iterator[Measurement]:
    """Milliseconds of each cut of each model; `choices` gets the fastest of each model once all were tried."""
    for name, model in models.items():
        spec, weights = model.spec, model.weights()
        medians: dict[pack.Tuning, float] = {}
        for cut in tuning.candidates(spec, weights):
            label, facts = f"{name}: {words(cut)}, ms", {"model": name, "tuning": asdict(cut)}
            try:
                timed = [1e3 * each for each in timer(model, cut, rounds)]
            except Exception as error:
                yield Measurement.failed(label, error, **facts)
                continue
            medians[cut] = statistics.median(timed)
            yield Measurement.of(label, timed, facts=facts)
        if medians:
            best = min(medians, key=lambda cut: medians[cut])
            where = tuning.device_of(model.device) | {
                "dtype": str(model.dtype),
                "shape": tuning.shape_of(weights, spec),
            }
            choices.entries.append(where | {"model": name, "milliseconds": medians[best], "tuning": asdict(best)})


def words(cut: pack.Tuning) -> str:
    """A cut in words."""
    return f"{cut.warps} warps, {cut.stages} stages, tile {cut.tile}, {cut.group} a program"


def takes_fused(models: Mapping[str, Model]) -> dict[str, Model]:
    """Those of the models that the fused kernel takes."""
    return {name: model for name, model in models.items() if pack.unsupported_reason(model.spec) is None}


def refuse(device: torch.device, models: Iterable[Model]) -> None:
    """Raises `ValueError` without a GPU: what was not timed is not ranked."""
    if device.type != "cuda":
        cuts = sum(len(list(tuning.candidates(model.spec, model.weights()))) for model in models)
        raise ValueError(f"tuning must be timed on a GPU, got {device.type}: {cuts} cuts are not timed, none is chosen")
