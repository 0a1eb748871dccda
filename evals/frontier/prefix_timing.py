"""Times one run of some rows: what a supervision step takes, what ending takes, and what the run takes beside.

All rows run for the whole depth, so every step but the last is one of so many rows: the engine's own step with its
bookkeeping and heads. The last one also decodes and retires them; what stands before the first step (tokens in) and
after the last one (votes, selection) is the run's overhead. The first step may lack noise, so it is not counted among
the steps: its difference lies in the overhead.

On a GPU the host drives these steps one by one, while a run of many trajectories may halt and refill on the device.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, NamedTuple

from gram.api import Sampler
from gram.config import ResolvedConfig
from gram.sampler.engine import Engine, Observer
from gram.tasks.protocol import Tokens

TIMED_STEPS = 6
"""Supervision steps of a timed run."""


class Course(NamedTuple):
    """What one run times."""

    mode: str
    reads_every_step: bool
    """Whether answers are decoded at every step, as some halting rules need."""
    rows: int


class PrefixTiming(NamedTuple):
    """Milliseconds of one run."""

    step_ms: float
    """A supervision step of all rows, mean over all but the first and the last."""
    ending_ms: float
    """Decoding and retiring all rows at once."""
    overhead_ms: float
    """Tokens in and selected answers out."""


def timed(config: ResolvedConfig, course: Course, puzzles: int) -> ResolvedConfig:
    """Settings of a timed run of a few steps over so many puzzles, in which nobody halts. One
    puzzle at a time launches the rows that run: padding would make width free up to a launch."""
    rule: dict[str, Any] = {"halting": "fixed", "halt_threshold": None}
    if course.reads_every_step:
        rule = {"halting": "unchanged", "halt_threshold": TIMED_STEPS}
    return replace(
        config,
        width=course.rows // puzzles,
        depth=TIMED_STEPS,
        is_padded=course.mode != "interactive",
        slots=max(course.rows, config.launch),
        **rule,
    )


def alone(config: ResolvedConfig, width: int, depth: int) -> ResolvedConfig:
    """Settings of a real run of one puzzle at a time, as it is timed."""
    return replace(config, width=width, depth=depth, is_padded=False, slots=max(width, config.launch))


class _Clock(Observer):
    """Notes when each supervision step ended."""

    needs_every_step = True

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_advanced(self, engine: Engine) -> None:
        self.ends.append(time.perf_counter())


def time_prefix(sampler: Sampler, puzzles: Tokens, config: ResolvedConfig) -> PrefixTiming:
    """Times a run over `puzzles [P, L]` that never halts. Raises `ValueError` where a slot would be filled twice, or
    where there are fewer than 3 supervision steps."""
    trajectories = len(puzzles) * config.width
    if config.slots < trajectories:
        raise ValueError(f"slots must hold all {trajectories} trajectories of a timed run, got {config.slots}")
    if config.depth < 3:
        raise ValueError(f"depth must be at least 3 in a timed run, got {config.depth}")
    clock = _Clock()
    started = time.perf_counter()
    sampler.sample(puzzles, config, observer=clock)
    finished, ends = time.perf_counter(), clock.ends
    step = (ends[-2] - ends[0]) / (len(ends) - 2)
    ending = ends[-1] - ends[-2] - step
    overhead = finished - started - len(ends) * step - ending
    return PrefixTiming(1e3 * step, 1e3 * ending, 1e3 * overhead)
