"""A process that trains a recipe step by step as it is asked to, and tells each step's seconds and loss.

python FILE RECIPE PUZZLES (a file, or `-`: the task's own)   with PYTHONPATH naming the package to time

Each line of its input is a number of optimiser steps; each line of its output is JSON. It is run as a file, and finds
the trainer where earlier versions had it, since the package that it times may be another commit's.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def opened(name: str, puzzles: str, out: Path) -> Any:
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
    return kind(recipe, out, device=device, dtype=choose_dtype("auto", device), puzzles=source)


def main(name: str, puzzles: str) -> None:
    """Answers until its input ends."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = opened(name, puzzles, Path(folder))
        for line in sys.stdin:
            seconds, cpu_seconds, losses = [], [], []
            for _ in range(int(line)):
                began, began_cpu = time.perf_counter(), time.process_time()
                figures = trainer.advance()
                seconds.append(time.perf_counter() - began)
                cpu_seconds.append(time.process_time() - began_cpu)
                losses.append(figures["cross_entropy"])
            print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "losses": losses}), flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2])
    except (ValueError, ImportError, OSError) as error:
        print(json.dumps({"error": (str(error).strip().splitlines() or [type(error).__name__])[0]}), flush=True)
