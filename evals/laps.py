"""Times one run of some rows: what a supervision step takes, what ending takes, and what the run takes beside.

All rows run for the whole depth, so every step but the last is one of so many rows: the engine's own step with its
bookkeeping and heads. The last one also decodes and retires them; what stands before the first step (tokens in) and
after the last one (votes, selection) is the run's overhead. The first step may lack noise, so it is not counted among
the steps: its difference lies in the overhead.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from gram.api import Sampler
from gram.config import SamplerConfig
from gram.sampler.engine import Engine
from gram.tasks.protocol import Tokens


class Laps(NamedTuple):
    """Milliseconds of one run."""

    step_ms: float
    """A supervision step of all rows, mean over all but the first and the last."""
    ending_ms: float
    """Decoding and retiring all rows at once."""
    overhead_ms: float
    """Tokens in and selected answers out."""


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
