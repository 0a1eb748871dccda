"""An imported TRM against the official model's own loop on this device: same random weights, no halting."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from gram.api import Sampler, choose_dtype
from gram.evals.benchmarks.peers import imported, official_steps, sudoku_mlp
from gram.evals.benchmarks.timing import Measurement, paired
from gram.tasks.registry import get_task

TRAJECTORIES = 64
EMULATED_TRAJECTORIES = 1
"""Of the official model in bfloat16 where the CPU has no instructions for it: more would take tens of minutes."""


def rows(repo: Path, *, rounds: int) -> Iterator[Measurement]:
    """Time of a supervision step of TRM Sudoku-MLP (D=512, L=97): official code over ours, per trajectory.

    Ours runs in the device's default type; the official code in bfloat16, as it is run, and in float32. Raises
    `ValueError` where `repo` is no checkout of TRM.
    """
    task = get_task("sudoku9")
    puzzles = task.split("test", limit=TRAJECTORIES)
    dtype = choose_dtype("auto", torch.device("cpu"))
    ours = imported("trm", *sudoku_mlp(repo)).to(dtype)
    sampler = Sampler(ours, task, name="TRM Sudoku-MLP, random weights")
    settings = sampler.settings(width=1, depth=1, halting="fixed", slots=TRAJECTORIES)
    tokens = torch.from_numpy(puzzles.puzzles.astype(np.int32))
    for name in ("bfloat16", "float32"):
        is_emulated = name == "bfloat16" and dtype is torch.float32
        count = EMULATED_TRAJECTORIES if is_emulated else TRAJECTORIES
        peer, _ = sudoku_mlp(repo, forward_dtype=name, batch_size=count)
        seconds = paired(
            {
                "official": partial(official_steps, peer, tokens[:count], 1),
                "ours": partial(sampler.sample, puzzles, settings),
            },
            rounds,
        )
        per_trajectory = [value / count for value in seconds["official"]]
        facts = {
            "official": f"{name}, {count} trajectories at once",
            "ours": f"{str(dtype).removeprefix('torch.')}, {TRAJECTORIES} trajectories, launch {settings.launch}",
            "is_bfloat16_emulated": is_emulated,
            "seconds": seconds,
        }
        label = f"imported TRM Sudoku-MLP, official loop in {name}, time per trajectory and step"
        ours_each = [value / TRAJECTORIES for value in seconds["ours"]]
        floor = 2.0 if name == "bfloat16" else None
        yield Measurement.of_ratios(label, per_trajectory, ours_each, floor, facts=facts)
