"""A sweep over the cuts of the fused kernel on a GPU: each is held to the reference, then timed; the fastest is kept.

A cut that does not compile, does not fit or is wrong is a row with its error, and is not chosen. The file is written
again after every cut, with the fastest so far, and a sweep that was ended goes on after the last cut in it. Compiling
takes longer than all else, so a model's cuts are compiled first, side by side on most of the CPU's cores.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from gram.checkpoint import write_json
from gram.config import read_json
from gram.evals.benchmarks.kernel_counts import TRAJECTORIES
from gram.evals.benchmarks.timing import Measurement
from gram.formatting import plural
from gram.kernels import first_use
from gram.kernels.fused import ahead, pack, tuning
from gram.kernels.resources import shapes_of
from gram.model import Model

REPEATS = 10
"""Steps timed together."""
SPARE_CORES = 2
"""Of the CPU, that compile nothing."""

Compiler = Callable[[Model, Sequence[pack.Tuning]], object]
"""Compiles some cuts of a model ahead of their timing, or as many as it can."""
Timer = Callable[[Model, pack.Tuning, int], Sequence[float]]
"""Seconds of a step of a model cut in one way, once for each round. Raises what stops it."""


@dataclass
class Choices:
    """The file of a sweep: the fastest cut of each model so far, which `GRAM_TUNING` takes, and every cut tried."""

    path: Path | None = None
    """Kept here after every cut; nowhere without it."""
    entries: list[dict[str, Any]] = field(default_factory=list)
    timed: list[dict[str, Any]] = field(default_factory=list)
    """Each cut tried, with its `milliseconds` by round or its `error`; `is_default` where the sweep may replace it."""

    @classmethod
    def of(cls, path: Path) -> Choices:
        """Goes on with a file, or begins a new one. Raises `ValueError` where it is another kind of file."""
        if not path.exists():
            return cls(path)
        tuning.entries(path)
        held = read_json(path)
        return cls(path, held["choices"], held.get("timed", []))

    def found(self, place: Mapping[str, Any]) -> dict[str, Any] | None:
        """What was tried where all of `place` holds, or None."""
        return next((each for each in self.timed if place.items() <= each.items()), None)

    def add(self, where: dict[str, Any], tried: dict[str, Any]) -> None:
        """Takes what trying one cut of a model gave; `where` is what decides how fast it is."""
        self.timed.append(tried)
        medians = [
            (statistics.median(each["milliseconds"]), each)
            for each in self.timed
            if "milliseconds" in each and where.items() <= each.items()
        ]
        if medians:
            median, best = min(medians, key=lambda each: each[0])
            others = [each for each in self.entries if not where.items() <= each.items()]
            self.entries = [
                *others,
                where | {"milliseconds": median, "tuning": best["tuning"]} | self._gain(where, best),
            ]
        if self.path is not None:
            write_json(self.path, {"choices": self.entries, "timed": self.timed})

    def _gain(self, where: dict[str, Any], best: dict[str, Any]) -> dict[str, Any]:
        """The default cut's `default_milliseconds` (None where it was not timed) and whether the best `is_faster`: in
        its slowest round than the default in its fastest."""
        default = self.found(where | {"is_default": True}) or {}
        times = default.get("milliseconds")
        is_faster = (
            default != best and "is_default" in default and (not times or max(best["milliseconds"]) < min(times))
        )
        return {"default_milliseconds": statistics.median(times) if times else None, "is_faster": is_faster}


def compiled_ahead(model: Model, cuts: Sequence[pack.Tuning], *, tell: Callable[[str], None]) -> None:
    """Compiles cuts on all cores but `SPARE_CORES`. What fails here is left to the timing, which says why."""
    processes = min(len(os.sched_getaffinity(0)) - SPARE_CORES, len(cuts))
    if processes < 2:
        return
    began, shapes = time.perf_counter(), shapes_of(model.weights())
    try:
        asked = [ahead.request(model.device, model.spec, shapes, model.dtype, cut, TRAJECTORIES) for cut in cuts]
        errors = [error for error in ahead.compile_all(asked, processes) if error is not None]
    except Exception as error:
        errors = [f"{type(error).__name__}: {error}"] * len(cuts)
    said = f"compiled {len(cuts) - len(errors)} of {plural(len(cuts), 'cut')} in {processes} processes"
    tell(f"{said}, {time.perf_counter() - began:.0f} s" + (f"; the first that failed: {errors[0]}" if errors else ""))


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
    models: Mapping[str, Model],
    choices: Choices,
    *,
    rounds: int,
    timer: Timer = seconds,
    compiler: Compiler = lambda model, cuts: None,
) -> Iterator[Measurement]:
    """Milliseconds of each cut of each model, the default first; those that `choices` has are not timed again."""
    for name, model in models.items():
        spec, weights = model.spec, model.weights()
        where = tuning.device_of(model.device) | {
            "dtype": str(model.dtype),
            "shape": tuning.shape_of(weights, spec),
            "model": name,
        }
        default = tuning.default(tuning.target_of(model.device), model.dtype, spec, weights)
        cuts = list(dict.fromkeys([default, *tuning.candidates(spec, weights)]))
        if left := [cut for cut in cuts if choices.found(where | {"tuning": asdict(cut)}) is None]:
            compiler(model, left)
        for cut in cuts:
            label, facts = f"{name}: {words(cut)}, ms", {"model": name, "tuning": asdict(cut)}
            tried = choices.found(where | {"tuning": asdict(cut)})
            if tried is None:
                tried = where | {"tuning": asdict(cut)} | ({"is_default": True} if cut == default else {})
                try:
                    tried["milliseconds"] = [1e3 * each for each in timer(model, cut, rounds)]
                except Exception as error:
                    tried["error"] = Measurement.failed(label, error).error
                choices.add(where, tried)
            if "error" in tried:
                nan = float("nan")
                yield Measurement(name=label, ratio=nan, low=nan, high=nan, facts=facts, error=tried["error"])
            else:
                yield Measurement.of(label, tried["milliseconds"], facts=facts)


def words(cut: pack.Tuning) -> str:
    """A cut in words."""
    lag = ", output product a head later" if cut.output_lag else ""
    return f"{cut.warps} warps, {plural(cut.stages, 'stage')}, tile {cut.tile}, {cut.group} a program{lag}"


def takes_fused(models: Mapping[str, Model]) -> dict[str, Model]:
    """Those of the models that the fused kernel takes."""
    return {name: model for name, model in models.items() if pack.unsupported_reason(model.spec) is None}


def refuse(device: torch.device, models: Iterable[Model]) -> None:
    """Raises `ValueError` without a GPU: what was not timed is not ranked."""
    if device.type != "cuda":
        cuts = sum(len(list(tuning.candidates(model.spec, model.weights()))) for model in models)
        raise ValueError(f"tuning must be timed on a GPU, got {device.type}: {cuts} cuts are not timed, none is chosen")
