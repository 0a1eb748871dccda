"""Times several depths in one run: on its way to depth 8 a trajectory is, after 4 steps, what a run of depth 4 gives.

The clock is read after each depth that is asked for. Trajectories that halted before have been read and retired by
then, as in a run of that depth; those still running would be read there, so that reading is timed too, and taken off
the clock for the depths beyond. What follows the last step (votes and selection) is added to every depth.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from gram.api import Sampler
from gram.config import SamplerConfig
from gram.sampler.engine import Engine
from gram.tasks.protocol import Tokens


def time_depths(sampler: Sampler, puzzles: Tokens, config: SamplerConfig, depths: Sequence[int]) -> list[float]:
    """Milliseconds from `puzzles [P, L]` in to selected answers out at each of `depths`, ascending, from one run.

    All trajectories must fit the slots (no slot is filled twice), or a depth's time would hold others' steps.
    """
    trajectories = len(puzzles) * config.width
    if config.slots is not None and config.slots < trajectories:
        raise ValueError(f"slots must hold all {trajectories} trajectories of a timed run, got {config.slots}")
    reached: dict[int, float] = {}
    apart = ended = 0.0
    steps = 0

    def advanced(engine: Engine) -> None:
        nonlocal apart, ended, steps
        steps += 1
        ended = time.perf_counter()
        if steps in wanted:
            running = engine.running()
            if len(running) and not engine.reads_every_step:
                engine.slots.read(running)
            read = time.perf_counter() - ended
            reached[steps] = ended - started - apart + read
            apart += read

    wanted = set(depths[:-1])
    started = time.perf_counter()
    sampler.sample(puzzles, replace(config, depth=depths[-1]), on_advanced=advanced)
    finished = time.perf_counter()
    whole = finished - started - apart
    tail = finished - max(ended, started)
    return [1e3 * (reached[depth] + tail if depth in reached else whole) for depth in depths]
