"""Times one run of some rows: what a supervision step takes, what ending takes, and what the run takes beside.

All rows run for the whole depth, so every step but the last is one of so many rows: the engine's own step with its
bookkeeping and heads. The last one also decodes and retires them; what stands before the first step (tokens in) and
after the last one (votes, selection) is the run's overhead. The first step may lack noise, so it is not counted among
the steps: its difference lies in the overhead.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, NamedTuple

from gram.api import Sampler
from gram.config import SamplerConfig
from gram.sampler.engine import Engine
from gram.tasks.protocol import Tokens

TIMED_STEPS = 6
"""Supervision steps of a timed run."""


class Course(NamedTuple):
    """What one run times."""

    mode: str
    reads_every_step: bool
    """Whether answers are decoded at every step, as some halting rules need."""
    rows: int


class Laps(NamedTuple):
    """Milliseconds of one run."""

    step_ms: float
    """A supervision step of all rows, mean over all but the first and the last."""
    ending_ms: float
    """Decoding and retiring all rows at once."""
    overhead_ms: float
    """Tokens in and selected answers out."""


def timed(config: SamplerConfig, course: Course, puzzles: int) -> SamplerConfig:
    """Settings of a timed run of a few steps over so many puzzles, in which nobody halts; `config` is resolved. One
    puzzle at a time launches the rows that run: padding would make width free up to a launch."""
    assert config.launch is not None
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


def alone(config: SamplerConfig, width: int, depth: int) -> SamplerConfig:
    """Settings of a real run of one puzzle at a time, as it is timed; `config` is resolved."""
    assert config.launch is not None
    return replace(config, width=width, depth=depth, is_padded=False, slots=max(width, config.launch))


def time_laps(sampler: Sampler, puzzles: Tokens, config: SamplerConfig) -> Laps:
    """Laps of a run over `puzzles [P, L]` that never halts. Raises `ValueError` where a slot would be filled twice, or
    where there are less than 3 supervision steps."""
    trajectories = len(puzzles) * config.width
    if config.slots is not None and config.slots < trajectories:
        raise ValueError(f"slots must hold all {trajectories} trajectories of a timed run, got {config.slots}")
    if config.depth is None or config.depth < 3:
        raise ValueError(f"depth must be at least 3 in a timed run, got {config.depth}")
    ends: list[float] = []

    def advanced(engine: Engine) -> None:
        ends.append(time.perf_counter())

    started = time.perf_counter()
    sampler.sample(puzzles, config, on_advanced=advanced)
    finished = time.perf_counter()
    step = (ends[-2] - ends[0]) / (len(ends) - 2)
    ending = ends[-1] - ends[-2] - step
    overhead = finished - started - len(ends) * step - ending
    return Laps(1e3 * step, 1e3 * ending, 1e3 * overhead)
