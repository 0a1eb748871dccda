"""Recipes: TOML files that say how a checkpoint is trained; the published ones stand in `gram/recipes/`.

task = "nqueens8"
description = "one line"
[model]
preset = "small"          # any field of ModelConfig beside it
[training]                # fields of TrainConfig
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gram.config import ModelConfig, TrainConfig, config_from_json, config_to_json
from gram.presets import model_config
from gram.tasks.protocol import Task
from gram.tasks.registry import get_task

FOLDER = Path(__file__).parent / "recipes"


class RecipeError(ValueError):
    """A recipe that cannot be used; the message is one line."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One training run, fully resolved."""

    name: str
    description: str
    task: Task
    model: ModelConfig
    training: TrainConfig

    def to_json(self) -> dict[str, Any]:
        """What decides the run's outcome; a resumed run must have the same."""
        return {
            "name": self.name,
            "task": self.task.name,
            "model": config_to_json(self.model),
            "training": config_to_json(self.training),
        }


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_recipe(
    name_or_file: str,
    *,
    task_module: Path | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    seed: int | None = None,
) -> Recipe:
    """A recipe by the name of a published one or by a TOML file; `minutes`, `steps` and `seed` replace the recipe's.

    A budget given here stands alone: `minutes` drops the recipe's `steps` and the other way round. Raises `RecipeError`
    in one line.
    """
    path = FOLDER / f"{name_or_file}.toml"
    if not path.is_file():
        path = Path(name_or_file)
    if not path.is_file():
        raise RecipeError(f"recipe must be a TOML file or one of {', '.join(recipe_names())}, got {name_or_file!r}")
    try:
        values = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not TOML ({error})") from None
    for key in values:
        if key not in ("task", "description", "model", "training"):
            raise RecipeError(f"{path}: {key!r} is not a key of a recipe; known: task, description, model, training")
    if not isinstance(values.get("task"), str):
        raise RecipeError(f"{path}: task must name a task, got {values.get('task')!r}")
    try:
        task = get_task(values["task"], task_module)
        shape = {
            "task": task.name,
            "vocabulary": task.vocabulary,
            "tokens": task.tokens,
            "output_start": task.output_start,
            "output_tokens": task.output_tokens,
        }
        model_values = dict(values.get("model", {}))
        model = model_config(model_values.pop("preset", "small"), **shape, **model_values)
        training_values = dict(values.get("training", {}))
        if minutes is not None or steps is not None:
            training_values |= {"minutes": minutes, "steps": steps}
        if seed is not None:
            training_values["seed"] = seed
        training = config_from_json(TrainConfig, training_values, where="[training]")
        _check_together(model, training)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{path}: {error}") from None
    return Recipe(path.stem, str(values.get("description", "")), task, model, training)


def _check_together(model: ModelConfig, training: TrainConfig) -> None:
    """Raises `ValueError` where model and training contradict each other."""
    if bool(training.empty_probability) != model.has_empty_condition and model.is_conditional:
        raise ValueError(
            "has_empty_condition and empty_probability must go together, got "
            f"{str(model.has_empty_condition).lower()} and {training.empty_probability:g}"
        )
    for token, _ in training.token_weights:
        if not 0 <= token < model.vocabulary:
            raise ValueError(f"token_weights must name tokens below {model.vocabulary}, got {token}")
