"""Two evaluations of the same puzzles, paired: how much one is ahead, how sure that is, and who won which puzzles.

An evaluation is a folder that `gram eval --out` or `gram ablate` wrote: `results.json` and `predictions.jsonl`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gram.config import parse_json, read_json, shown
from gram.evals.evaluate import PREDICTIONS_FILE, RESULTS_FILE
from gram.evals.paired import Difference, paired_differences
from gram.sampler.width import first_look
from gram.tasks.protocol import PuzzleError
from gram.tasks.registry import get_task

KEYS = ("task", "puzzles", "accuracy")
"""What the results of every evaluation have."""


@dataclass(frozen=True, slots=True)
class StoredEvaluation:
    """What one evaluation says of each puzzle."""

    name: str
    results: dict[str, Any]
    puzzles: list[str]
    """Puzzles as text `[P]`."""
    index: NDArray[np.int64]
    """Place of each in its set, `[P]`."""
    is_right: NDArray[np.bool_]
    """Verdict on the selected answer, `[P]`."""
    single: NDArray[np.float64]
    """Share of right trajectories, `[P]`; under an adaptive width of those that run whatever is found."""
    distinct: NDArray[np.float64]
    """Distinct valid solutions found, `[P]`."""
    copies: int = 0
    """Trajectories that resampling made of others."""


def read(folder: Path) -> StoredEvaluation:
    """The evaluation in a folder. Raises `FileNotFoundError`, and `ValueError` for a file that is no evaluation."""
    results = read_json(folder / RESULTS_FILE)
    if missing := [name for name in KEYS if name not in results]:
        raise ValueError(
            f"{folder / RESULTS_FILE}: must hold an evaluation (gram eval --out), got none of its {', '.join(missing)}"
        )
    lines = list(_lines(folder / PREDICTIONS_FILE))
    if len(lines) != results["puzzles"]:
        raise ValueError(
            f"{folder}: must hold an evaluation (gram eval --out), got {shown(results['puzzles'])} puzzles and "
            f"{len(lines)} lines of {PREDICTIONS_FILE}"
        )
    try:
        policy, sure = results.get("width_policy", "fixed"), None
        if policy != "fixed":
            sure = first_look(policy, results.get("width_threshold"), results["width"], results.get("width_stage"))
        return StoredEvaluation(
            name=str(folder),
            results=results,
            puzzles=[line["puzzle"] for line in lines],
            index=np.array([line["index"] for line in lines], dtype=np.int64),
            is_right=np.array([line["is_right"] for line in lines], dtype=bool),
            single=np.array([_share_right(line["candidates"][:sure]) for line in lines], dtype=float),
            distinct=np.array([line["distinct_valid"] for line in lines], dtype=float),
            copies=sum(
                one.get("lineage", one.get("trajectory")) != one.get("trajectory")
                for line in lines
                for one in line["candidates"]
            ),
        )
    except (KeyError, TypeError):
        raise ValueError(
            f"{folder}: must hold an evaluation (gram eval --out), got another {PREDICTIONS_FILE}"
        ) from None


def _share_right(candidates: Sequence[Mapping[str, Any]]) -> float:
    """NaN of none."""
    return float(np.mean([one["is_right"] for one in candidates])) if candidates else float("nan")


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines. Raises `ValueError` naming the file and the line that is none."""
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            values = parse_json(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: line {number} is not JSON ({' '.join(str(error).split())[:100]})") from None
        if not isinstance(values, dict):
            raise ValueError(f"{path}: line {number} must be a JSON object, got {shown(values)}")
        yield values


def compare(a: StoredEvaluation, b: StoredEvaluation, clusters: NDArray[np.int64] | None = None) -> dict[str, Any]:
    """`a` minus `b` on the puzzles of both, as JSON values. `clusters`: of each puzzle of `a`; None: equal puzzles.

    Raises `ValueError` where they are not of the same puzzles.
    """
    if a.puzzles != b.puzzles:
        raise ValueError(
            f"runs must be of the same puzzles in the same order, got {len(a.puzzles)} of {a.name} "
            f"and {len(b.puzzles)} others of {b.name}"
        )
    if clusters is None:
        known: dict[str, int] = {}
        clusters = np.array([known.setdefault(puzzle, len(known)) for puzzle in a.puzzles], dtype=np.int64)
    is_known = np.array([True, not np.isnan([a.single, b.single]).any()])
    first, second = (np.stack([each.is_right, each.single], axis=1)[:, is_known] for each in (a, b))
    told = paired_differences(first, second, clusters)
    found = Difference(*(np.full(2, np.nan) for _ in told))
    for whole, part in zip(found, told, strict=True):
        whole[is_known] = part
    names = ("accuracy", "single_accuracy")
    means = {
        name: (float(side_a.mean()), float(side_b.mean())) if len(a.puzzles) else (float("nan"), float("nan"))
        for name, side_a, side_b in ((names[0], a.is_right, b.is_right), (names[1], a.single, b.single))
    }
    return {
        "a": a.name,
        "b": b.name,
        "puzzles": len(a.puzzles),
        "bases": len(np.unique(clusters)),
        "differences": [
            {
                "measure": name,
                "a": means[name][0],
                "b": means[name][1],
                "difference": float(found.estimate[place]),
                "low": float(found.low[place]),
                "high": float(found.high[place]),
                "p_value": float(found.p_value[place]),
                "is_told_apart": bool(found.low[place] > 0 or found.high[place] < 0),
            }
            for place, name in enumerate(names)
        ],
        "only_a": int((a.is_right & ~b.is_right).sum()),
        "only_b": int((b.is_right & ~a.is_right).sum()),
        "both_right": int((a.is_right & b.is_right).sum()),
        "both_wrong": int((~a.is_right & ~b.is_right).sum()),
        "distinct_valid": [float(a.distinct.sum()), float(b.distinct.sum())],
    }


def known_clusters(stored: StoredEvaluation) -> NDArray[np.int64] | None:
    """Cluster of each puzzle where the run was of a built-in task; else None."""
    name, split = stored.results.get("task"), stored.results.get("split")
    if not isinstance(name, str) or not len(stored.index):
        return None
    try:
        task = get_task(name)
    except ValueError:
        return None
    if not isinstance(split, str):
        try:
            return task.classes(np.stack([task.parse(puzzle) for puzzle in stored.puzzles]))
        except PuzzleError:
            return None
    clusters = task.split(split, limit=int(stored.index.max()) + 1).groups
    return None if clusters is None else clusters[stored.index]
