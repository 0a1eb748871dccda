"""Whether a run can fit in memory, asked before anything is sampled. A lower estimate: what it refuses cannot run.

Shapes: `P` puzzles, `N` width, `A` answer tokens.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import torch

from gram.config import SamplerConfig
from gram.kernels.dispatch import Spec
from gram.sampler.plan import TRAJECTORIES_PER_SHARD

LIMIT_FILES = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where Linux tells a container's limit, version 2 and 1."""
TRAJECTORY_BYTES = 8 + 8 + 8 + 4 * 4 + 1
"""Steps, lineage, votes, four scores and whether it halted, beside the answer and its canonical form."""
STATES = 4
"""Tensors of the size of a state that every slot has (`slots.py`)."""


def machine_bytes() -> int | None:
    """Memory of this machine, or of the container where that is less; None where the system does not tell."""
    found = []
    with contextlib.suppress(ValueError, OSError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in LIMIT_FILES:
        try:
            found.append(int(path.read_text()))
        except (OSError, ValueError):
            # No such file, or `max`.
            continue
    return min((count for count in found if count > 0), default=None)


def device_bytes(device: torch.device) -> int | None:
    """Memory of the device that slots live on."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return machine_bytes()


def result_bytes(config: SamplerConfig, puzzles: int, answer_tokens: int, *, is_traced: bool = False) -> int:
    """Bytes of a run's result, every trajectory of it, and of the one shard that a trace holds at once."""
    each = 2 * answer_tokens + TRAJECTORY_BYTES
    traced = (config.depth or 1) * (answer_tokens + 16) if is_traced else 0
    shard = min(puzzles * config.width, max(TRAJECTORIES_PER_SHARD, config.width if puzzles else 0))
    return puzzles * config.width * each + shard * traced


def slot_bytes(config: SamplerConfig, spec: Spec, item_bytes: int) -> int:
    """Bytes of the states of all slots, from resolved settings."""
    assert config.slots is not None
    assert config.launch is not None
    rows = -(-config.slots // config.launch) * config.launch
    return rows * spec.length * spec.dim * item_bytes * STATES


def check_fits(
    config: SamplerConfig,
    spec: Spec,
    puzzles: int,
    *,
    device: torch.device,
    dtype: torch.dtype,
    is_traced: bool = False,
    has_slots: bool = True,
) -> None:
    """Refuses a run of resolved settings that cannot fit; `has_slots`: whether its slots are on this machine.

    Raises `ValueError` in one line with the estimate.
    """
    results = result_bytes(config, puzzles, spec.output_tokens, is_traced=is_traced)
    slots = slot_bytes(config, spec, dtype.itemsize) if has_slots else 0
    _check(slots, device_bytes(device), device, f"{config.slots:,} slots in launches of {config.launch:,}")
    if device.type == "cpu":
        results += slots
    _check(results, machine_bytes(), torch.device("cpu"), f"{puzzles:,} puzzles at width {config.width:,}")


def _check(needed: int, there: int | None, device: torch.device, what: str) -> None:
    if there is not None and needed > there:
        raise ValueError(f"run must fit in {_size(there)} of memory of {device}, got {what}: at least {_size(needed)}")


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
