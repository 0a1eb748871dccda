"""A run as a fixed list of shards: the one unit of work of local runs, Ray, resume and traces. Not their execution.

A shard is some puzzles times some trajectories of each. Which shards a run has follows from its settings and the number
of puzzles alone, never from slots, workers or what has been done before; the plan's key hashes everything that decides
its results, so that a stored result belongs to exactly one plan.

Shapes: `P` puzzles of the run, `N` width, `L` puzzle tokens.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch

from gram.config import SamplerConfig, config_to_json
from gram.model import Model
from gram.tasks.protocol import Task, Tokens

TRAJECTORIES_PER_SHARD = 1024
"""About how many trajectories a shard has: seconds to minutes of work."""
TRAJECTORY_BLOCK = 4
"""Trajectories of one puzzle in a shard where they do not depend on each other: a run then serves all puzzles' first
trajectories first, and a killed one keeps whole widths."""
NO_IDENTITY = ("slots", "selector", "is_padded")
"""Settings that change no trajectory: where they run, and which of them is picked afterwards; and padding, which every
run that is kept has."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One unit of work: `trajectories` of each of `puzzles`, counted from the firsts."""

    index: int
    """Place in the plan."""
    first_puzzle: int
    puzzles: int
    first_trajectory: int
    trajectories: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A run's shards and its key."""

    key: str
    """Hex digest of settings, weights, task, puzzles, kernel path, device and type."""
    shards: tuple[Shard, ...]


def shards_of(puzzles: int, config: SamplerConfig) -> tuple[Shard, ...]:
    """The shards of a run over `puzzles`, in the order in which they are to run.

    Adaptive width and resampling look at all trajectories of a puzzle, so these stay in one shard.
    """
    is_independent = config.width_policy == "fixed" and config.resampler == "none"
    block = min(config.width, TRAJECTORY_BLOCK) if is_independent else config.width
    together = max(1, TRAJECTORIES_PER_SHARD // block)
    shards: list[Shard] = []
    for first_trajectory in range(0, config.width, block):
        for first in range(0, puzzles, together):
            shards.append(
                Shard(
                    index=len(shards),
                    first_puzzle=first,
                    puzzles=min(together, puzzles - first),
                    first_trajectory=first_trajectory,
                    trajectories=min(block, config.width - first_trajectory),
                )
            )
    return tuple(shards)


def shape_of(model: Model) -> dict[str, Any]:
    """What of a model's configuration decides its trajectories, as JSON: all but which of them is picked."""
    return {name: value for name, value in config_to_json(model.config).items() if name != "selector"}


def make_plan(
    model: Model,
    task: Task,
    puzzles: Tokens,
    config: SamplerConfig,
    *,
    kernel: str,
    is_unconditional: bool,
    is_traced: bool,
    device: torch.device | None = None,
) -> Plan:
    """The plan of a run over puzzles `[P, L]`; `config` has depth and launch filled in.

    `device` is where it runs, if not where the model is.
    """
    settings = {name: value for name, value in config_to_json(config).items() if name not in NO_IDENTITY}
    digest = hashlib.sha256()
    for part in (
        json.dumps(settings, sort_keys=True),
        json.dumps(shape_of(model), sort_keys=True),
        model.digest(),
        task.name,
        hashlib.sha256(puzzles.tobytes()).hexdigest(),
        f"{(device or model.device).type} {model.dtype} {kernel} {is_unconditional} {is_traced} {puzzles.shape}",
    ):
        digest.update(part.encode() + b"\0")
    return Plan(digest.hexdigest(), shards_of(len(puzzles), config))
