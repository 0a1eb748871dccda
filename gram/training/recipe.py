"""Recipes: TOML files that say how a checkpoint is trained; the published ones stand in `gram/recipes/`.

task = "nqueens8"
tasks = ["nqueens10"]     # only where one model learns several sizes by turns: the others
description = "one line"
puzzles = "which file"    # only where it trains on a file (`--puzzles FILE`): what that file is
[model]
preset = "small"          # any field of ModelConfig beside it
[training]                # fields of TrainConfig

With `base = "nqueens8"` (a published recipe, or a TOML file beside this one) a recipe says only what it changes; a
length of its own, `steps` or `minutes`, replaces the base's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from gram.config import ModelConfig, config_from_json, config_to_json, read_toml
from gram.presets import model_config
from gram.sampler.views import check_views
from gram.sizes import lattice_shape, resized, shape_of
from gram.tasks.protocol import Task
from gram.tasks.registry import get_task
from gram.training.config import SPARSE, TrainConfig, TrainOverrides
from gram.training.starts import check_reveal

FOLDER = Path(__file__).parent.parent / "recipes"
TABLES = ("model", "training")
KEYS = ("base", "task", "tasks", "description", "puzzles", *TABLES)
LENGTHS = {"steps", "minutes"}


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
    needs_puzzles: str = ""
    """What the file is that it trains on; empty where the task makes the puzzles."""
    others: tuple[Task, ...] = ()
    """Tasks beside `task` that the model learns by turns (`gram/training/lanes.py`)."""

    def to_json(self) -> dict[str, Any]:
        """What decides the run's outcome; a resumed run must have the same."""
        others = {"tasks": [task.name for task in self.others]} if self.others else {}
        training = config_to_json(self.training)
        if self.training.weight_share == 1:
            training = {name: value for name, value in training.items() if name not in SPARSE}
        if not self.model.experts:
            del training["expert_balance"]
        return {
            "name": self.name,
            "task": self.task.name,
            **others,
            "model": config_to_json(self.model),
            "training": training,
        }


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_recipe(
    recipe: Recipe | str | Path, *, task_module: Path | str | None = None, **overrides: Unpack[TrainOverrides]
) -> Recipe:
    """A recipe by the name of a published one or by a TOML file, or itself; `overrides` that are not None replace its
    training settings.

    A budget given here stands alone: `minutes` drops the recipe's `steps` and the other way round. Raises `RecipeError`
    in one line.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    dropped = LENGTHS if LENGTHS & given.keys() else set()
    if isinstance(recipe, Recipe):
        if not given:
            return recipe
        kept = {name: value for name, value in config_to_json(recipe.training).items() if name not in dropped}
        try:
            training = config_from_json(TrainConfig, kept | given, where=f"recipe {recipe.name}")
            _check_together(recipe.task, recipe.model, training)
        except (ValueError, TypeError) as error:
            raise RecipeError(str(error)) from None
        return replace(recipe, training=training)
    path = _find(recipe)
    values = _read(path)
    if not isinstance(values.get("task"), str):
        raise RecipeError(f"{path}: task must name a task, got {values.get('task')!r}")
    try:
        task = get_task(values["task"], task_module)
        shape = shape_of(task)
        model_values = dict(values.get("model", {}))
        if model_values.get("mixer") == "relations":
            model_values.setdefault("relations", list(task.relations))
        shape |= lattice_shape(model_values.get("latent", ""), task, has_notes=bool(model_values.get("notes", False)))
        model = model_config(model_values.pop("preset", "small"), task=task.name, **shape, **model_values)
        kept = {name: value for name, value in values.get("training", {}).items() if name not in dropped}
        training = config_from_json(TrainConfig, kept | given, where="[training]")
        _check_together(task, model, training)
        others = _others(values.get("tasks", []), model)
        if model.views == "random":
            check_views(task, is_unconditional=not model.is_conditional)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{path}: {error}") from None
    return Recipe(path.stem, str(values["description"]), task, model, training, str(values["puzzles"]), others)


def _others(names: list[Any], model: ModelConfig) -> tuple[Task, ...]:
    """The other tasks that a recipe names. Raises `ValueError` where its model cannot learn them all."""
    if len({model.task, *names}) != len(names) + 1:
        raise ValueError(f"tasks must be different ones beside {model.task}, got {names}")
    others = tuple(get_task(name) for name in names)
    for other in others:
        resized(model, other)
    return others


def _find(name_or_file: str | Path, beside: Path | None = None) -> Path:
    """The file of a published recipe's name, or a file (a base: beside the recipe that names it)."""
    path = FOLDER / f"{name_or_file}.toml"
    if not path.is_file():
        path = Path(name_or_file) if beside is None else beside.parent / name_or_file
    if not path.is_file():
        what = "recipe" if beside is None else f"{beside}: base"
        if path.suffix == ".toml":
            raise RecipeError(f"{what} must be a file that is there, got {str(name_or_file)!r}")
        raise RecipeError(
            f"{what} must be a TOML file or one of {', '.join(recipe_names())}, got {str(name_or_file)!r}"
        )
    return path


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A recipe's values, its base's filled in. Raises `RecipeError`."""
    values = read_toml(path, RecipeError)
    for key, value in values.items():
        if key not in KEYS:
            raise RecipeError(f"{path}: {key!r} is not a key of a recipe; known: {', '.join(KEYS)}")
        if key == "tasks":
            if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
                raise RecipeError(f"{path}: tasks must be a list of names, got {value!r}")
        elif isinstance(value, dict) != (key in TABLES):
            raise RecipeError(f"{path}: {key} must be {'a table' if key in TABLES else 'text'}, got {value!r}")
    base = values.pop("base", None)
    if base is None:
        return {"description": "", "puzzles": "", **values}
    below = _find(str(base), path)
    if below in (*seen, path):
        raise RecipeError(f"{path}: base must not lead back to itself, got {base!r}")
    made = _read(below, (*seen, path))
    if LENGTHS & set(values.get("training", {})):
        made["training"] = {key: value for key, value in made.get("training", {}).items() if key not in LENGTHS}
    for table in TABLES:
        values[table] = {**made.get(table, {}), **values.get(table, {})}
    return {**made, **values}


def _check_together(task: Task, model: ModelConfig, training: TrainConfig) -> None:
    """Raises `ValueError` where task, model and training contradict each other."""
    is_plain = model.latent == "continuous" and not model.demonstrations
    for name, off in (("gradient_steps", 1), ("late_share", 0), ("reveal_until", 0)):
        if not is_plain and getattr(training, name) != off:
            kind = "lattice" if model.latent == "lattice" else "memory of demonstrations"
            raise ValueError(f"{name} must be {off} with a {kind}, got {getattr(training, name):g}")
    if is_plain:
        training.segments(model.depth)
    if training.reveal_until:
        check_reveal(task, is_conditional=model.is_conditional)
    if model.experts and training.weight_share < 1:
        raise ValueError(f"weight_share must be 1 with experts, got {training.weight_share:g}")
    if bool(training.empty_probability) != model.has_empty_condition and model.is_conditional:
        raise ValueError(
            "has_empty_condition and empty_probability must go together, got "
            f"{str(model.has_empty_condition).lower()} and {training.empty_probability:g}"
        )
    for token, _ in training.token_weights:
        if not 0 <= token < model.vocabulary:
            raise ValueError(f"token_weights must name tokens below {model.vocabulary}, got {token}")
    if model.injector == "path" and model.guidance != "none":
        raise ValueError(f"guidance must be none with path noise or a random initial state, got {model.guidance!r}")
    if training.target == "set" and model.guidance != "none":
        raise ValueError(f"guidance must be none with target set, got {model.guidance!r}, which takes one target")
    if training.target == "set" and not model.is_conditional:
        raise ValueError("target must be drawn without a condition, where there are too many solutions, got 'set'")
    if training.best_of > 1 and model.guidance == "none":
        raise ValueError(f"best_of must be 1 without learned noise, got {training.best_of}")
