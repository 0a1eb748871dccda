"""Lanes of training: what a run keeps of each task that its one model learns, by turns.

Most runs have one lane. A model that knows no size (`gram/sizes.py`) may learn several sizes of a family: every
optimiser step takes the next lane, whose slots and rollouts have a task, a number of tokens and a state of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from gram.config import ModelConfig
from gram.sizes import resized
from gram.tasks.protocol import Task
from gram.training.backtracking_pool import BacktrackingPool
from gram.training.data_parallel import Ranks
from gram.training.lattice_pool import LatticePool
from gram.training.notes_pool import NotesPool
from gram.training.puzzles import TrainingPuzzles
from gram.training.recipe import Recipe
from gram.training.rollouts import Rollouts
from gram.training.slots import TrainingSlots


@dataclass(frozen=True, slots=True)
class Lane:
    """One task of a run."""

    task: Task
    config: ModelConfig
    """The model's for this task."""
    puzzles: TrainingPuzzles
    slots: TrainingSlots
    rollouts: Rollouts


@dataclass(frozen=True, slots=True)
class LatticeLane:
    """One task of a lattice's run."""

    task: Task
    config: ModelConfig
    """The model's for this task."""
    puzzles: TrainingPuzzles
    pool: LatticePool


def open_lattice_lanes(recipe: Recipe, puzzles: TrainingPuzzles, device: torch.device) -> list[LatticeLane]:
    """As `open_lanes`, of a lattice."""
    kinds: dict[str, type[LatticePool]] = {"backtrack": BacktrackingPool, "repair": NotesPool}
    kind = kinds.get(recipe.model.search, LatticePool)
    return [
        LatticeLane(task, config, source, kind(source, config, recipe.training, device))
        for task, config, source in _sources(recipe, puzzles)
    ]


def open_lanes(
    recipe: Recipe, puzzles: TrainingPuzzles, dtype: torch.dtype, device: torch.device, ranks: Ranks
) -> list[Lane]:
    """The lanes of a recipe, its own task first; `puzzles` are that task's."""
    lanes = []
    for task, config, source in _sources(recipe, puzzles):
        places: tuple[Any, ...] = (source, config, recipe.training, dtype, device, ranks)
        lanes.append(Lane(task, config, source, TrainingSlots(*places), Rollouts(*places)))
    return lanes


def _sources(recipe: Recipe, puzzles: TrainingPuzzles) -> Iterator[tuple[Task, ModelConfig, TrainingPuzzles]]:
    for task in (recipe.task, *recipe.others):
        config = resized(recipe.model, task)
        yield task, config, puzzles if task is recipe.task else TrainingPuzzles(task, config, recipe.training)
