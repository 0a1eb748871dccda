"""A process that trains a recipe step by step as it is asked to, and tells each step's seconds and loss.

python FILE RECIPE PUZZLES [VERSION]   with PYTHONPATH naming the package to time

PUZZLES is a file, or `-`: the task's own. VERSION is one of `VERSIONS`; without one the package's own choice is taken.
Each line of its input is a number of optimiser steps; each line of its output is JSON. A trainer that leaves its
figures on the device is asked for them behind the last step alone, whose loss is told, and each step has the mean of
the seconds. It is run as a file, and finds the trainer where earlier versions had it, since the package that it times
may be another commit's.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

VERSIONS = ("captured", "launched", "host", "eager")
"""The device's trainer as CUDA graphs, and without them; the plain trainer, which waits for the device at every step,
compiled and not."""


def opened(name: str, puzzles: str, out: Path, version: str = "") -> Any:
    """The trainer of a recipe, as the package at hand has it."""
    from gram.api import choose_device, choose_dtype

    try:
        from gram.training.puzzles import TrainingPuzzles
        from gram.training.recipe import load_recipe
        from gram.training.trainer import Trainer
    except ModuleNotFoundError:
        from gram.recipe import load_recipe  # type: ignore[import-not-found, no-redef]
        from gram.train import Trainer  # type: ignore[import-not-found, no-redef]
        from gram.training_puzzles import TrainingPuzzles  # type: ignore[import-not-found, no-redef]
    recipe = load_recipe(name)
    kind = Trainer
    if getattr(recipe.model, "latent", "continuous") == "lattice":
        from gram.training.lattice_trainer import LatticeTrainer

        kind = LatticeTrainer
    if getattr(recipe.model, "demonstrations", 0):
        from gram.training.demonstration_trainer import DemonstrationTrainer

        kind = DemonstrationTrainer
    file = None if puzzles == "-" else Path(puzzles)
    source = TrainingPuzzles(recipe.task, recipe.model, recipe.training, file)
    device = choose_device()
    if version == "captured":
        os.environ["GRAM_GRAPHS"] = "on"  # this row is of graphs, or an error
    if version in ("captured", "launched") or (not version and device.type == "cuda"):
        kind = on_device(recipe, kind, is_captured=version != "launched")
    dtype, is_compiled = choose_dtype("auto", device), version != "eager"
    return kind(recipe, out, device=device, dtype=dtype, puzzles=source, is_compiled=is_compiled)


def on_device(recipe: Any, kind: Any, *, is_captured: bool) -> Any:
    """The device's trainer, where the package has one and it takes the recipe that `kind` trains."""
    try:
        from gram.training.data_parallel import Ranks
        from gram.training.device_trainer import DeviceTrainer, unsupported_reason
        from gram.training.trainer import Trainer
    except ModuleNotFoundError:
        return kind
    if kind is not Trainer or unsupported_reason(recipe, Ranks()):
        return kind
    return type("Timed", (DeviceTrainer,), {"is_captured": is_captured})


def timed(trainer: Any, steps: int) -> dict[str, Any]:
    """What a number of optimiser steps took, and their losses."""
    seconds, cpu_seconds, losses = [], [], []
    for _ in range(steps):
        began, began_cpu = time.perf_counter(), time.process_time()
        figures = trainer.advance()
        seconds.append(time.perf_counter() - began)
        cpu_seconds.append(time.process_time() - began_cpu)
        if figures:
            losses.append(figures["cross_entropy"])
    if len(losses) < steps:
        began, began_cpu = time.perf_counter(), time.process_time()
        losses = [trainer.read()["cross_entropy"]]
        seconds = [(sum(seconds) + time.perf_counter() - began) / steps] * steps
        cpu_seconds = [(sum(cpu_seconds) + time.process_time() - began_cpu) / steps] * steps
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "losses": losses, "peak_bytes": peak_bytes(trainer.device)}


def peak_bytes(device: Any) -> int | None:
    """Most memory of a GPU that the process has had; None off one."""
    if device.type != "cuda":
        return None
    import torch

    return int(torch.cuda.max_memory_allocated(device))


def main(name: str, puzzles: str, version: str = "") -> None:
    """Answers until its input ends."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = opened(name, puzzles, Path(folder), version)
        for line in sys.stdin:
            print(json.dumps(timed(trainer, int(line))), flush=True)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (ValueError, ImportError, OSError, RuntimeError) as error:
        print(json.dumps({"error": (str(error).strip().splitlines() or [type(error).__name__])[0]}), flush=True)
