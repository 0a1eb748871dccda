"""Small ARC tasks, data sets of many views of them, and a model that knows the views by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gram import checkpoint
from gram.config import ModelConfig
from gram.model import Model
from gram.tasks.arc_folder import NAMES_FILE, open_arc_folder
from gram.training.arc_builder import build


def tasks(count: int, *, seed: int = 0, largest: int = 6) -> dict[str, Any]:
    """`count` tasks of random grids, two demonstrations and one or two tests each."""
    rng = np.random.default_rng(seed)

    def grid() -> list[list[int]]:
        rows: list[list[int]] = rng.integers(0, 10, rng.integers(1, largest + 1, 2)).tolist()
        return rows

    def pairs(number: int) -> list[dict[str, Any]]:
        return [{"input": grid(), "output": grid()} for _ in range(number)]

    return {f"task{index}": {"train": pairs(2), "test": pairs(1 + index % 2)} for index in range(count)}


def arc_json(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(json.dumps(values))
    return path


def arc_folder(folder: Path, *, count: int = 3, views: int = 4, **changes: Any) -> Path:
    """A data set of `count` tasks; `changes` replace tasks."""
    file = arc_json(folder / "tasks.json", tasks(count) | changes)
    build([file], folder / "data", views=views)
    return folder / "data"


def arc_model(folder: Path, data: Path | None = None, **overrides: Any) -> Path:
    """A small random checkpoint of `arc`; with `data` it has a row for each of its identities."""
    shape: dict[str, Any] = {
        "task": "arc", "tokens": 900, "output_tokens": 900, "vocabulary": 12, "mixer": "attention", "heads": 2,
        "dim": 8, "hidden": 8, "blocks": 1, "guidance": "none", "noise_free_steps": 0, "depth": 2, "registers": 2,
    }  # fmt: skip
    if data is not None:
        shape |= {"identities": len(open_arc_folder(data).names), "identity_dim": 12}
    model = Model(ModelConfig(**(shape | overrides)))
    torch.nn.init.normal_(model.halt.weight, generator=torch.Generator().manual_seed(0))
    if model.identities is not None and data is not None:
        model.identities.rows.normal_(generator=torch.Generator().manual_seed(1))
        model.identities.names = data / NAMES_FILE
    checkpoint.save(model, folder)
    return folder
