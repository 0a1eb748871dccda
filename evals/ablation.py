"""Ablations: a grid over any setting of sampling and the checkpoint, as a TOML file; its cells and their comparison.

    name = "width"               # of the page
    task = "nqueens8"
    limit = 200                  # puzzles; left out: all
    [base]                       # settings of every cell: `checkpoint` and fields of SamplerConfig
    checkpoint = "nqueens8"
    [[grid]]                     # all combinations; several grids are put one after another
    width = [1, 4, 16]
    depth = [2, 8]

The first cell is the baseline that the others are compared with. Nothing is sampled here.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from gram.checkpoint import write_atomically, write_json
from gram.config import SamplerConfig, config_from_json, read_toml
from gram.evals import statistics
from gram.evals.comparison import StoredEvaluation, compare
from gram.evals.pages.ablation_page import render

VERSION = 1
ABLATION_FILE, REPORT_FILE = "ablation.json", "report.html"
SETTINGS = {"checkpoint", *(field.name for field in fields(SamplerConfig))}
FIGURES = ("accuracy", "single_accuracy", "pass_at_width", "coverage", "conflicts", "mean_steps", "mean_width")
WITH_INTERVALS = ("accuracy", "single_accuracy", "coverage")
STUDIES = Path(__file__).parent / "studies"


@dataclass(frozen=True, kw_only=True, slots=True)
class AblationCell:
    """One cell of a study."""

    checkpoint: str
    config: SamplerConfig
    varied: dict[str, Any]
    """What its grid sets, in the file's order."""

    @property
    def label(self) -> str:
        """Its settings in one line."""
        return ", ".join(f"{name} {value}" for name, value in self.varied.items()) or "baseline"


@dataclass(frozen=True, kw_only=True, slots=True)
class AblationStudy:
    """A study file."""

    name: str
    task: str
    split: str
    limit: int | None
    cells: tuple[AblationCell, ...]


def find(name: str) -> Path:
    """A study file by its path, or a shipped one by its name. Raises `ValueError`."""
    if Path(name).is_file():
        return Path(name)
    shipped = {path.stem: path for path in sorted(STUDIES.glob("*.toml"))}
    if name in shipped:
        return shipped[name]
    raise ValueError(f"study must be a TOML file or one of {', '.join(shipped) or 'none shipped'}, got {name!r}")


def read(path: Path) -> AblationStudy:
    """A study from its file. Raises `ValueError` naming the file and what is wrong."""
    values = read_toml(path)
    if unknown := set(values) - {"name", "task", "split", "limit", "base", "grid"}:
        keys = "name, task, split, limit, base, grid"
        raise ValueError(f"{path}: {min(unknown)!r} is no key of a study; known: {keys}")
    task, base = values.get("task"), values.get("base", {})
    if not isinstance(task, str):
        raise ValueError(f"{path}: task must be named, got {task!r}")
    limit = values.get("limit")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise ValueError(f"{path}: limit must be at least 1, got {limit!r}")
    grids = values.get("grid", [{}])
    if not isinstance(grids, list) or not all(isinstance(grid, dict) for grid in grids):
        raise ValueError(f"{path}: grid must be tables [[grid]], got {grids!r}")
    cells: dict[str, AblationCell] = {}
    for number, grid in enumerate(grids, start=1):
        where = f"{path}: grid {number}"
        for varied in _combinations(grid, where):
            settings = {"checkpoint": task, **base, **varied}
            key, checkpoint = json.dumps(settings, sort_keys=True), settings.pop("checkpoint")
            if not isinstance(checkpoint, str):
                raise ValueError(f"{where}: checkpoint must be a name or folder, got {checkpoint!r}")
            config = config_from_json(SamplerConfig, settings, where=where)
            cells.setdefault(key, AblationCell(checkpoint=checkpoint, config=config, varied=varied))
    return AblationStudy(
        name=str(values.get("name", path.stem)),
        task=task,
        split=str(values.get("split", "test")),
        limit=limit,
        cells=tuple(cells.values()),
    )


def _combinations(grid: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """All combinations of a grid's values; a value that is no list stays the same."""
    for name, values in grid.items():
        if name not in SETTINGS:
            raise ValueError(f"{where}: {name!r} is not a setting; known: {', '.join(sorted(SETTINGS))}")
        if isinstance(values, list) and not values:
            raise ValueError(f"{where}: {name} must have at least one value, got none")
    lists = [values if isinstance(values, list) else [values] for values in grid.values()]
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*lists)]


def content_key(parts: Mapping[str, Any]) -> str:
    """Short digest of everything that decides a cell's results."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def summarise(
    study: AblationStudy, stored: Sequence[StoredEvaluation], clusters: Any, *, about: Mapping[str, Any]
) -> dict[str, Any]:
    """The study's JSON: a row per cell with its figures and its difference from the first one.

    P-values of the differences are corrected over the cells by Holm's method.
    """
    rows: list[dict[str, Any]] = []
    for cell, one in zip(study.cells, stored, strict=True):
        row: dict[str, Any] = {"label": cell.label, "varied": cell.varied, "checkpoint": cell.checkpoint}
        ends = (f"{name}_{end}" for name in WITH_INTERVALS for end in ("low", "high"))
        row |= {name: one.results.get(name) for name in (*FIGURES, *ends, "elapsed_s")}
        row["never_fired"] = cell.config.resampler != "none" and one.copies == 0
        row |= {"trajectories_sha256": one.results.get("trajectories_sha256"), "folder": Path(one.name).name}
        rows.append(row)
    compared = [compare(one, stored[0], clusters) for one in stored[1:]]
    corrected = statistics.holm([each["differences"][0]["p_value"] for each in compared])
    for row, each, p_value in zip(rows[1:], compared, corrected, strict=True):
        found = each["differences"][0]
        row["less_baseline"] = {name: found[name] for name in ("difference", "low", "high")} | {
            "p_holm": float(p_value),
            "is_told_apart": bool(found["is_told_apart"] and p_value < 0.05),
            "only_a": each["only_a"],
            "only_b": each["only_b"],
        }
    return {"version": VERSION, "name": study.name, "about": dict(about), "cells": rows}


def write(folder: Path, made: dict[str, Any]) -> None:
    """`ablation.json` and its page, each moved into place once complete."""
    page = render(made).encode()
    write_json(folder / ABLATION_FILE, made)
    write_atomically(folder / REPORT_FILE, page)
