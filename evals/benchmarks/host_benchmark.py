"""What the engine's bookkeeping costs the host: CPU time for each supervision step of a trajectory.

What a device does with states is left out: puzzles are not embedded, the model's step gives made-up heads, states are
of one token, so that moving them costs the calls alone, and are not read but answers made up. What is left is the
engine: seats, queue, launches, moves, results, width policy, resampling. Rows `full` embed and read as the engine does,
with a model of few channels. Votes and selection come after the run and are outside the clock.

Rows `loop` are of the loop that a GPU takes, which halts and refills by itself: what the host does before and
behind each stretch of steps, in microseconds for each of them. The stretches and their launches are outside the clock.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gram.config import ModelConfig, ResolvedConfig, SamplerConfig
from gram.evals.benchmarks.timing import Measurement
from gram.kernels.reference import Step
from gram.model import Model
from gram.sampler.device_loop import DeviceLoop
from gram.sampler.engine import Engine, SlotStates
from gram.sampler.exchange import Readout, Rows, StepReading
from gram.sampler.run import resolve, shards_of
from gram.tasks.protocol import Task, Tokens
from gram.tasks.registry import get_task

TASK = "nqueens8"
MODEL = {"dim": 4, "hidden": 4, "mixer_hidden": 4, "guidance_hidden": 4, "depth": 8}
HALTS = 0.4
"""Share of trajectories that halt after a step: they take 3.4 of 8 on average."""
ANSWERS = (0.6, 0.2, 0.1, 0.1)
"""Shares of the made-up answers."""
CALLS = 97
"""Made-up launches before they repeat."""


@dataclass(frozen=True, slots=True)
class Load:
    """What runs."""

    puzzles: int
    width: int
    slots: int

    @property
    def name(self) -> str:
        return f"{self.puzzles:,} x {self.width} at {self.slots:,} slots"


LOADS = (Load(64, 20, 1280), Load(1000, 64, 2048))
POLICIES: dict[str, tuple[dict[str, Any], float]] = {
    "decided": ({"width_policy": "decided"}, 0.5),
    "verified": ({"width_policy": "verified"}, 3.0),
    "resampling": ({"resampler": "lprm"}, 3.0),
}
"""Settings, and microseconds asked for."""
LOOPS: dict[str, tuple[dict[str, Any], float]] = {
    "": ({}, 0.25),
    ", traced": ({"is_traced": True}, 1.0),
    ", decided": POLICIES["decided"],
    ", verified": POLICIES["verified"],
}
"""The same of rows `loop`."""


class Stub(Model):
    """A model whose step leaves the state as it is and says what was drawn before."""

    def __init__(self, task: Task, launch: int) -> None:
        own = {"task": task.name, "tokens": task.tokens, "output_tokens": task.output_tokens}
        super().__init__(ModelConfig(**own, **MODEL))  # type: ignore[arg-type]
        self.lprm.weight.data.fill_(1.0)
        generator = torch.Generator().manual_seed(0)
        chances = torch.rand(2, CALLS, launch, generator=generator)
        said = list(zip(torch.where(chances[0] < HALTS, 9.0, -9.0), chances[1], strict=True))
        self.said = said[1:] + said[:1]
        self.begin()

    def begin(self) -> None:
        """Starts over."""
        self.next = itertools.cycle(self.said)

    def step(self, h: torch.Tensor, l: torch.Tensor, *_: Any, **__: Any) -> Step:
        """The next launch's heads."""
        return Step(h, l, *next(self.next))


class StubSlots(SlotStates):
    """Slots whose states are of one token, and neither computed nor read: answers, margins and residuals are made
    up."""

    def __init__(self, model: Model, config: ResolvedConfig, **more: Any) -> None:
        super().__init__(model, config, **more)
        self.h, self.h_before, self.l, self.e_x = (
            each[:, :1].clone() for each in (self.h, self.h_before, self.l, self.e_x)
        )
        rng = np.random.default_rng(0)
        some = rng.integers(1, 3, (len(ANSWERS), model.config.output_tokens)).astype(np.uint8)
        count = self.rows + CALLS * 20
        self.made = Readout(some[rng.choice(len(ANSWERS), count, p=ANSWERS)], *rng.random((2, count), np.float32))
        self.reads = 0

    def _start(self, *_: Any) -> None:
        """Leaves the states as they are."""

    def _made(self, count: int) -> Readout:
        self.reads += 1
        first = self.reads % CALLS * 20
        return self.made.at(slice(first, first + count))

    def read(self, rows: Rows) -> Readout:
        """Something for each slot."""
        return self._made(len(rows))

    def show(self, occupied: int, *, is_read: bool) -> StepReading:
        """The heads, and something for each slot."""
        shown = super().show(occupied, is_read=False)
        return shown._replace(readout=self._made(occupied)) if is_read else shown


class LoopSlots(StubSlots):
    """The same for a loop on the device, on a CPU."""

    def initial(self, tokens: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Leaves the states as they are."""
        return self.h[: len(tokens)], self.l[: len(tokens)], self.e_x[: len(tokens)]

    def read_states(self, index: torch.Tensor | slice) -> list[torch.Tensor]:
        """Something for each slot."""
        assert isinstance(index, slice)
        made = self._made(index.stop)
        return [torch.from_numpy(each) for each in (made.margin, made.residual, made.answers)]


class UntimedLoop(DeviceLoop):
    """Leaves what a device does out of the clock."""

    aside_s = 0.0

    def launch(self) -> None:
        """Takes note of the time."""
        began = time.process_time()
        super().launch()
        self.aside_s += time.process_time() - began


class LoopEngine(Engine):
    """Runs the loop of a device."""

    kind_of_loop = UntimedLoop

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.is_on_device = True


def microseconds(
    load: Load,
    launch: int,
    *,
    rounds: int,
    is_full: bool = False,
    is_traced: bool = False,
    is_loop: bool = False,
    **settings: Any,
) -> tuple[list[float], dict[str, Any]]:
    """CPU time for each supervision step of a trajectory, a value for each round, and what ran."""
    slots: type[SlotStates] = LoopSlots if is_loop else SlotStates if is_full else StubSlots
    task = get_task(TASK)
    model = Stub(task, launch).requires_grad_(False)
    asked = SamplerConfig(width=load.width, slots=load.slots, launch=launch, kernel="eager", **settings)
    config = resolve(asked, model)
    puzzles: Tokens = np.resize(task.split("train", limit=load.puzzles).puzzles, (load.puzzles, task.tokens))
    found, engine = [], None
    for round_ in range(rounds + 1):
        model.begin()
        kind = LoopEngine if is_loop else Engine
        engine = kind(model, task, puzzles, config, is_traced=is_traced, kind_of_slots=slots)
        shards = shards_of(load.puzzles, config)
        began = time.process_time()
        for _ in engine.run(shards):
            pass
        taken = time.process_time() - began - getattr(engine.loop, "aside_s", 0.0)
        if round_:  # the first warms up
            found.append(1e6 * taken / engine.steps_run)
    assert engine is not None
    return found, {"launch": launch, "steps_run": engine.steps_run, "us": found}


def rows(rounds: int, loads: tuple[Load, ...] = LOADS) -> Iterator[Measurement]:
    """Rows `host ...`: microseconds for each supervision step of a trajectory."""

    def row(load: Load, launch: int, what: str, floor: float | None, **more: Any) -> Measurement:
        found, facts = microseconds(load, launch, rounds=rounds, **more)
        name = f"host {load.name}, launch {launch:,}{what}: us a trajectory-step"
        return Measurement.of(name, found, floor, is_ceiling=True, facts=facts)

    for load in loads:
        for launch in (64, load.slots):
            yield row(load, launch, "", 0.25)
            yield row(load, launch, ", full", None, is_full=True)
            yield row(load, launch, ", traced", 1.0, is_traced=True)
            for what, (settings, floor) in POLICIES.items():
                yield row(load, launch, f", {what}", floor, **settings)
        for what, (more, floor) in LOOPS.items():
            yield row(load, load.slots, f"{what}, loop", floor, is_loop=True, **more)
