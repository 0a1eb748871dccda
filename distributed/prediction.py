"""What a run on many nodes would take: time, what it holds and moves, and what would limit it. No Ray, no cluster.

The time comes from the simulation of the real queue, the sizes from the plan's shards. `A` answer tokens, `L` puzzle
tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gram.distributed.pull_queue import DEPTH
from gram.distributed.simulation import DRIVER_S, simulate
from gram.sampler.scheduler import Shard

SIMULATED_SHARDS = 100_000
"""A longer run is taken to go on at the pace of so many shards (or twenty a worker)."""
TRAJECTORY_BYTES = 8 + 4 * 4 + 1 + 8
"""Of a trajectory's result, without its answer: steps, four scores, halted, lineage."""
BUSY_DRIVER = 0.9
"""Share of the driver's time from which on it is the limit."""
NETWORK_GBIT = 10.0
"""Gigabits a second into a driver's machine, where nothing else is said."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """A run that has not been made."""

    workers: int
    drivers: int
    """Each with a part of the workers and of the puzzles."""
    shards: int
    trajectories: int
    shard_s: float
    """Seconds of a worker for the mean shard."""
    elapsed_s: float
    """From the first ready worker to the last result; starting the cluster and loading models is not in it."""
    trajectories_per_s: float
    busy: float
    """Share of the workers' time spent on results that count, within 0 and 1."""
    driver_busy: float
    """Share of the drivers' time, within 0 and 1; waiting for a full network is in it."""
    driver_s: float
    """A driver's seconds for one shard that were assumed."""
    shards_in_flight: int
    """Held by workers at once, at most."""
    result_bytes: int
    """Of the mean shard."""
    network_bytes_per_s: float
    """Into each driver."""
    start_bytes: int
    """Over the network before the first shard: the weights, once to each node."""
    object_store_bytes: int
    """On a node, at most: one copy of the weights and, where they do not come inline, the results under way."""
    driver_memory_bytes: int
    """Of each driver, at most: results that have come inline and wait for it."""
    saturating_workers: int
    """As many as the drivers can keep busy; more wait."""
    largest_useful_workers: int
    """More workers than this wait for a driver, or for shards."""
    limit: str
    """What keeps more workers from being useful."""


def predict(
    shards: Sequence[Shard],
    *,
    workers: int,
    nodes: int,
    trajectories_per_s: float,
    answer_tokens: int,
    puzzle_tokens: int,
    weights_bytes: int,
    driver_s: float = DRIVER_S,
    drivers: int = 1,
    network_gbit: float = NETWORK_GBIT,
) -> Prediction:
    """A run of `shards` on `workers` workers on `nodes` nodes, of `trajectories_per_s` trajectories a second each.

    `network_gbit` gigabits a second reach each of `drivers` drivers. Raises `ValueError` for values out of range.
    """
    for name, value in (("workers", workers), ("nodes", nodes), ("shards", len(shards))):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    for name, rate in (
        ("trajectories per second", trajectories_per_s),
        ("driver seconds", driver_s),
        ("network gbit", network_gbit),
    ):
        if not (rate > 0 and math.isfinite(rate)):
            raise ValueError(f"{name} must be more than 0, got {rate:g}")
    trajectories = sum(shard.puzzles * shard.trajectories for shard in shards)
    shard_s = trajectories / len(shards) / trajectories_per_s
    answers = trajectories * (answer_tokens + TRAJECTORY_BYTES)
    result_bytes = math.ceil((answers + sum(shard.puzzles for shard in shards) * (puzzle_tokens + 8)) / len(shards))
    received_s = 8 * result_bytes / (1e9 * network_gbit)
    # Results come in while others are worked on: of the two the slower one sets the pace.
    pace_s = max(driver_s, received_s)
    simulated = min(len(shards), max(SIMULATED_SHARDS, 20 * workers))
    run = simulate(workers=workers, shards=simulated, shard_s=shard_s, driver_s=pace_s, drivers=drivers)
    elapsed_s = run.elapsed_s * len(shards) / simulated
    in_flight = min(DEPTH * workers, len(shards))
    saturating = max(1, int(drivers * shard_s / pace_s))
    if run.driver_busy >= BUSY_DRIVER:
        enough = math.ceil(drivers * workers / saturating)
        what = "the driver" if pace_s == driver_s else f"the network, {network_gbit:g} Gbit/s into a driver"
        limit = f"{what}: longer shards, or {enough} drivers with a part of the puzzles each"
    elif len(shards) < 10 * workers:
        limit = f"the end of the run: {len(shards) / workers:.2g} shards a worker, the last ones run alone"
    else:
        limit = "none yet: workers are busy and the driver keeps up"
    return Prediction(
        workers=workers,
        drivers=drivers,
        shards=len(shards),
        trajectories=trajectories,
        shard_s=shard_s,
        elapsed_s=elapsed_s,
        trajectories_per_s=trajectories / elapsed_s,
        busy=run.busy,
        driver_busy=run.driver_busy,
        driver_s=driver_s,
        shards_in_flight=in_flight,
        result_bytes=result_bytes,
        network_bytes_per_s=len(shards) * result_bytes / elapsed_s / drivers,
        start_bytes=nodes * weights_bytes,
        object_store_bytes=weights_bytes + math.ceil(in_flight / nodes) * result_bytes,
        driver_memory_bytes=math.ceil(in_flight / drivers) * result_bytes,
        saturating_workers=saturating,
        largest_useful_workers=min(saturating, len(shards)),
        limit=limit,
    )
