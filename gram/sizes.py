"""One model for tasks of several sizes: which tasks it can do, and its configuration for each.

A model whose mixer sums along relations, without positions or registers, has no parameter that depends on the number of
tokens. So it takes every task of its own's family with the same vocabulary and the relations that it was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gram.config import ModelConfig
from gram.tasks.notes import Notes
from gram.tasks.protocol import Task
from gram.tasks.registry import get_task

SHAPE = ("vocabulary", "tokens", "output_start", "output_tokens", "demonstrations")
"""What a task and its model's configuration both say."""


def shape_of(task: Task) -> dict[str, Any]:
    """What any model's configuration takes from its task: the fields of `SHAPE`."""
    return {name: getattr(task, name) for name in SHAPE}


def lattice_shape(latent: str, task: Task, *, has_notes: bool = False) -> dict[str, Any]:
    """What a lattice's configuration takes from its task beside `SHAPE`. Raises `ValueError` where there are no
    notes."""
    if latent != "lattice":
        return {}
    if has_notes:
        return {"values": notes_of(task).values, "value_tokens": 1, "are_values_alike": False}
    values = task.answer_values
    return {"values": values, "value_tokens": len(values), "are_values_alike": task.are_values_alike}


def notes_of(task: Task) -> Notes:
    """The notes of a task. Raises `ValueError` where it has none."""
    if task.notes is None:
        raise ValueError(f"notes must be of a task that has some, got {task.name}")
    return task.notes


def knows_no_size(config: ModelConfig) -> bool:
    """Whether no parameter of the model depends on the number of tokens."""
    return config.mixer == "relations" and config.positions not in ("learned", "both") and not config.registers


def misfit(config: ModelConfig, task: Task) -> str | None:
    """Why a model cannot do a task that is not its own, in a clause; None where it can."""
    if task.name == config.task:
        return None
    if not knows_no_size(config):
        return "the model has parameters of its own size"
    own = get_task(config.task)
    if not task.family or task.family != own.family:
        return f"the model is of family {own.family or own.name}"
    if task.vocabulary != config.vocabulary and not config.are_values_alike:
        return f"the model's vocabulary is {config.vocabulary}, the task's {task.vocabulary}"
    if config.notes and task.notes is None:
        return "the task has no notes"
    if task.are_values_alike != config.are_values_alike and config.latent == "lattice" and not config.notes:
        return "the task's values are not alike as the model's are"
    if strange := [name for name in config.relations if name not in (*task.relations, "value")]:
        return f"the task has no relation {', '.join(strange)}"
    return None


def fits(config: ModelConfig, task: str) -> bool:
    """Whether a model can do the built-in task of a name."""
    try:
        return misfit(config, get_task(task)) is None
    except ValueError:
        return False


def settings_for(card: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Settings (`depth`, `halt_threshold`, `selector` ...) that a checkpoint's card has for a task other than its
    own."""
    listed = card.get("tasks")
    found = listed.get(task, {}) if isinstance(listed, dict) else {}
    settings = found.get("settings", {}) if isinstance(found, dict) else {}
    return dict(settings) if isinstance(settings, dict) else {}


def resized(config: ModelConfig, task: Task, settings: Mapping[str, Any] | None = None) -> ModelConfig:
    """The configuration of the same weights for another task, with `settings` of its own.

    Raises `ValueError` in one line where they do not fit.
    """
    if task.name == config.task:
        return config
    if (reason := misfit(config, task)) is not None:
        raise ValueError(f"task must be one that a model of {config.task} can do, got {task.name} ({reason})")
    shape = shape_of(task) | lattice_shape(config.latent, task, has_notes=config.notes)
    return replace(config, task=task.name, **shape, **(settings or {}))
