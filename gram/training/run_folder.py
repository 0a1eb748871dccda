"""The folder of a training run: which run it holds, its log after a kill, the weights that the run begins with.

Not the loop (`gram/training/run.py`). Every refusal is a `RecipeError` in one line.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gram import checkpoint
from gram.atomic_files import lock
from gram.sizes import misfit, resized
from gram.tasks.arc_folder import read_names
from gram.training.config import LATER
from gram.training.recipe import Recipe, RecipeError

RUN_FILE = "run.json"
LOCK_FILE = "training.lock"


def truncate_log(path: Path, step: int) -> None:
    """Drops the lines that a killed run wrote after its last saved state, and an incomplete last line."""
    kept = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            continue
        if values["step"] <= step:
            kept.append(line + "\n")
    checkpoint.write_atomically(path, "".join(kept).encode())


WEIGHTLESS = ["depth", "trained_depth", "transitions", "drop_below", "conflict_above"]
WEIGHTLESS += ["commitment_temperature", "commitment_focus", "search", "is_warm_started"]
WEIGHTLESS += ["halt_threshold", "selector", "views", "width_policy", "width_stage"]
"""Settings of a model that no weight depends on: a run may start from a checkpoint of others."""


def starting_weights(recipe: Recipe, start: Path) -> dict[str, Tensor]:
    """The weights of checkpoint `start`, fp32, which may be of another size of the task where the model knows no size.
    Raises `RecipeError` where its model is not the recipe's."""
    own = checkpoint.read_config(start)
    theirs = asdict(own if misfit(own, recipe.task) else resized(own, recipe.task))
    differing = [name for name, value in asdict(recipe.model).items() if value != theirs[name]]
    if named := [name for name in differing if name not in WEIGHTLESS]:
        name = "latent" if "latent" in named else named[0]
        raise RecipeError(
            f"start must be a checkpoint of the recipe's model, got {name} {theirs[name]!r} in {start}, "
            f"expected {asdict(recipe.model)[name]!r}"
        )
    return checkpoint.load(start, dtype=torch.float32).weights()


def starting_rows(start: Path, names: Path | None) -> Tensor:
    """The table of identities of checkpoint `start`, fp32 in memory. Raises `RecipeError` where its names are not those
    of the run's data set."""
    table = checkpoint.load(start).identities
    assert table is not None
    if table.names is None or names is None or read_names(table.names) != read_names(names):
        raise RecipeError(f"start must be a checkpoint of the data set's identities, got other names in {start}")
    return table.rows.to(torch.float32).clone()


@contextmanager
def open_run(recipe: Recipe, out: Path, start: Path | None, puzzles: str | None) -> Iterator[None]:
    """Marks the folder as this recipe's run and locks it against other processes.

    `start`: checkpoint whose weights the run begins with; `puzzles`: digest of the file that it trains on. The length
    of a run may change. Raises `RecipeError` for a folder that holds another run or is locked.
    """
    mine = _identity(recipe, out, start, puzzles)
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = os.open(out / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise RecipeError(f"folder {out} cannot be written: {error.strerror}") from None
    try:
        lock(handle, out / LOCK_FILE, RecipeError, f"folder {out} is being trained into by another process")
        # Another process may have made it its own before this one got the lock.
        _identity(recipe, out, start, puzzles)
        if not (out / RUN_FILE).is_file():
            checkpoint.write_json(out / RUN_FILE, mine)
        yield
    finally:
        os.close(handle)


def _identity(recipe: Recipe, out: Path, start: Path | None, puzzles: str | None) -> dict[str, Any]:
    """The content of `run.json` for this run. Raises `RecipeError` where the folder holds another run or other
    files."""
    path = out / RUN_FILE
    mine: dict[str, Any] = json.loads(json.dumps(recipe.to_json()))
    if start is not None:
        digest = hashlib.sha256()
        for file in checkpoint.weight_files(start):
            digest.update(file.read_bytes())
        mine["start"] = digest.hexdigest()
    if puzzles is not None:
        mine["puzzles"] = puzzles
    if path.is_file():
        theirs = json.loads(path.read_text())
        for run in (mine, theirs):
            for budget in ("steps", "minutes"):
                run["training"].pop(budget, None)
            run["training"] = LATER | run["training"]
        if theirs != mine:
            differing = [key for key in (*mine, *theirs) if mine.get(key) != theirs.get(key)]
            raise RecipeError(
                f"folder {out} must be empty or hold a run of recipe {recipe.name}, got another {differing[0]}"
            )
        return mine
    if (out / checkpoint.CONFIG_FILE).exists():
        raise RecipeError(f"folder {out} must be empty or hold a run of recipe {recipe.name}, got a checkpoint")
    if recipe.training.prior_share and not recipe.model.is_conditional:
        try:  # slots on-policy must have something to aim at
            recipe.task.nearest_boards(np.zeros((0, recipe.task.output_tokens), dtype=np.uint8))
        except ValueError as error:
            raise RecipeError(str(error)) from None
    if out.exists() and not out.is_dir():
        raise RecipeError(f"folder must be a directory, got the file {out}")
    return mine
