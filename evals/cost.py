"""What a run costs before it is run: multiply-accumulates counted from the model's shape, time, memory, puzzles needed.

MACs are those of matrix products; normalisation, activations and noise are left out, but of a lookup memory, which is
little else, all sums of products count. Shapes: `L` tokens with registers,
`D` channels, `A` answer tokens, `V` vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gram.config import ModelConfig
from gram.evals import statistics
from gram.evals.frontier.grid import Grid
from gram.kernels import experts, lookup
from gram.model import OPINIONS

TRACE_BYTES = 21
"""Of one supervision step in a trace: answer, verdict and four scores."""
ANALYSIS_BYTES = 256 << 20
"""Of blocks of a trace and random draws, whatever the number of puzzles."""
POWER_DIFFERENCES = (0.01, 0.02, 0.05, 0.1)
"""Differences for which the pre-flight says how many puzzles make them significant, with 80 % power."""
DISCORDANCE = 2.0
"""Share of puzzles that only one of two cells has right, as a multiple of the difference: as in cells of one model."""


def step_macs(config: ModelConfig) -> dict[str, int]:
    """MACs of one trajectory's supervision step by part, and their `total`."""
    length, dim, turns = config.length, config.dim, config.transitions
    if config.mixer == "token":
        mixer = 3 * config.mixer_hidden * length * dim
    elif config.mixer == "relations":
        share = config.mixer_hidden // len(config.relations)
        summed = config.additions
        mixer = 3 * dim * config.mixer_hidden * length + share * summed
    else:
        mixer = 4 * length * dim * dim + config.pairs * dim
    block = mixer + 3 * config.hidden * length * dim
    parts = {
        "core": turns * (config.low_level_updates + 1) * config.blocks * block,
        "prior": 0 if config.guidance == "none" else turns * 4 * config.guidance_hidden * dim * length,
        "heads": 2 * (2 * config.head_hidden * dim * length + config.head_hidden if config.head_hidden else dim),
    }
    if config.latent == "lattice":
        parts["decoder"] = OPINIONS * dim * length  # every round reads it
    if config.memory_size:
        calls = turns * (config.low_level_updates + 1)
        is_mean = config.memory == "mean"
        read = dim if is_mean else config.memory_values  # behind the gate
        asked = 0 if is_mean else config.memory_keys * (dim + config.memory_values)
        parts["memory"] = calls * length * (dim * dim + read * dim + asked)
    if config.experts:
        parts["experts"] = turns * (config.low_level_updates + 1) * config.blocks * experts.block_macs(config)
    if config.lookup:
        parts["lookup"] = turns * (config.low_level_updates + 1) * lookup.call_macs(config)
    return {**parts, "total": sum(parts.values())}


def lookup_share(config: ModelConfig, width: int) -> float:
    """Share of a step's MACs, one trajectory's of `width`, that a lookup memory costs: its gate and convolution, and
    what is done once a puzzle shared out over trajectories and the steps of the model's depth."""
    counted = step_macs(config)
    once = lookup.puzzle_macs(config) / (width * config.depth)
    return (counted["lookup"] + once) / (counted["total"] + once)


def decode_macs(config: ModelConfig) -> int:
    """MACs of decoding one answer."""
    if config.latent == "lattice":
        return OPINIONS * config.dim * config.length
    return config.output_tokens * config.vocabulary * config.dim


def preflight(
    config: ModelConfig,
    grid: Grid,
    *,
    puzzles: int,
    bases: int | None = None,
    seeds: int,
    timed_rows: int,
    timed_steps: int,
    steps_per_s: float | None = None,
    traced_per_s: float | None = None,
    steps_taken: NDArray[np.int64] | None = None,
    checked_steps: int = 0,
    resident_bytes: int = 0,
) -> dict[str, Any]:
    """The estimate shown before anything runs.

    `steps_per_s`: supervision steps of trajectories per second, measured; None leaves times out; `traced_per_s`: the
    same of traces (None: as fast). `steps_taken`: steps of some trajectories whose traces stop at halting (None: all
    run to the largest depth). `timed_rows`: rows of all timed runs together, `timed_steps` steps each, to which come
    the `checked_steps` of the comparison of launches; `bases`: how many puzzles are independent (None: all);
    `resident_bytes`: memory of the process once the model has sampled, to which the analysis adds its own.
    """
    width, depth, halted = grid.widths[-1], grid.depths[-1], len(grid.haltings)
    trajectories = puzzles * seeds * width
    pilot = None if steps_taken is None else _pilot(steps_taken, depth)
    traced = trajectories * depth if pilot is None else round(trajectories * pilot["mean"])
    halted_at = np.full(1, depth) if steps_taken is None else steps_taken
    by_depth = sum(float(np.minimum(halted_at, each).mean()) for each in grid.depths)
    each = round(puzzles * seeds * sum(grid.widths) * by_depth)
    traced_per_s = traced_per_s or steps_per_s
    timed = timed_rows * timed_steps + checked_steps
    per_step = step_macs(config)["total"]
    outcomes = puzzles * halted * len(grid.depths) * len(grid.widths) * (5 * len(grid.selectors) + 8)
    return {
        "cells": halted * len(grid.depths) * len(grid.widths) * len(grid.selectors),
        "puzzles": puzzles,
        "bases": puzzles if bases is None else bases,
        "seeds": seeds,
        "macs_per_step": per_step,
        "macs": (traced + timed) * per_step,
        "steps_of_trace": traced,
        "steps_of_latency": timed,
        "steps_cell_by_cell": each,
        "saving": each / traced,
        "steps_of_trajectory": pilot,
        "trace_s": None if not traced_per_s else traced / traced_per_s,
        "latency_s": None if not steps_per_s else timed / steps_per_s,
        "disk_bytes": trajectories * depth * TRACE_BYTES,
        "memory_bytes": resident_bytes + outcomes + ANALYSIS_BYTES,
        "puzzles_needed": [
            {"difference": each, "puzzles": statistics.puzzles_for_power(each, min(1.0, DISCORDANCE * each))}
            for each in POWER_DIFFERENCES
        ],
    }


def _pilot(steps: NDArray[np.int64], depth: int) -> dict[str, Any]:
    """Mean steps of some trajectories, of at most `depth`, with its 95 % interval."""
    low, high = statistics.clustered_interval(steps / depth)
    ends = {"mean": steps.mean(), "low": depth * low, "high": depth * high}
    return {"trajectories": len(steps), **{name: float(value) for name, value in ends.items()}}
