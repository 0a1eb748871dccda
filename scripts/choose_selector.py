"""A checkpoint's default selector, chosen on puzzles it is never tested on: `python scripts/choose_selector.py NAME`.

Samples the task's `validation` puzzles (or rows of a file) once, picks with every selector that the model has a trained
head for, and compares each with `vote` by puzzle. Selectors that pick alike for every puzzle are one comparison. The
rule is fixed: the most accurate selector, if its difference from `vote` is told apart after Holm's correction over the
comparisons; else `vote`, which needs no head. Of equally accurate ones `lprm` goes first, then `halt` and the rest in
the order of the settings. On puzzles with one solution easy ones tie, so the hard ones are what decides. The choice
goes into `config.json`, the evidence into `card.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import gram
from gram.checkpoint import write_atomically
from gram.evals import statistics
from gram.evals.paired import paired_difference
from gram.sampler.result import SampleResult
from gram.sampler.run import SELECTOR, supported_selectors
from gram.sampler.selectors import RECORDED, select
from gram.tasks.protocol import PuzzleSet, Task

WEIGHTS = Path(__file__).resolve().parent.parent / "gram" / "weights"
LIMIT = 200
ORDER = (SELECTOR, *(each for each in RECORDED if each != SELECTOR))
"""Of selectors, for ties: `vote`, which needs no head, then `lprm`, which was trained to predict a right answer, then
the rest as the settings list them."""


def compare_selectors(
    task: Task, puzzles: PuzzleSet, result: SampleResult, selectors: Sequence[str]
) -> list[dict[str, Any]]:
    """For each selector its `accuracy` with `low` and `high`, `less_vote` (points of a share) with its interval, and
    the corrected p-value `p_holm`; as JSON values.

    Selectors that pick the same answer for every puzzle are one comparison, and one that picks as `vote` does is none:
    Holm's correction counts the others. `alike` names the selectors that pick as this one does. The order is that of
    `ORDER`.
    """
    scores, lines = result.scores(result.votes), np.arange(len(puzzles))
    picked = {each: result.candidates[lines, select(each, scores)] for each in ORDER if each in (SELECTOR, *selectors)}
    alike = {
        each: [other for other in picked if other != each and np.array_equal(picked[other], answers)]
        for each, answers in picked.items()
    }
    right = {each: task.verify(puzzles.puzzles, answers).astype(float) for each, answers in picked.items()}
    found = {each: paired_difference(values, right[SELECTOR], puzzles.groups) for each, values in right.items()}
    first = {each: next(other for other in picked if other == each or other in alike[each]) for each in picked}
    others = [each for each in picked if first[each] == each and each != first[SELECTOR]]
    corrected = dict(zip(others, statistics.holm([found[each].p_value for each in others]), strict=True))
    rows = []
    for each, values in right.items():
        low, high = statistics.clustered_interval(values, puzzles.groups)
        minus = found[each]
        rows.append(
            {
                "selector": each,
                "accuracy": float(values.mean()),
                "low": low,
                "high": high,
                "less_vote": minus.estimate,
                "less_low": minus.low,
                "less_high": minus.high,
                "p_holm": float(corrected.get(first[each], 1.0)),
                "alike": alike[each],
            }
        )
    return rows


def chosen(rows: Sequence[dict[str, Any]]) -> str:
    """The most accurate selector that is significantly ahead of `vote`; `vote` where there is none. Of equally
    accurate ones the first of `ORDER`."""
    ahead = [row for row in rows if row["less_low"] > 0 and row["p_holm"] < statistics.ALPHA]
    best = max(ahead, key=lambda row: (float(row["accuracy"]), -ORDER.index(row["selector"])), default=None)
    return SELECTOR if best is None else str(best["selector"])


def chosen_puzzles(task: Task, file: Path | None, rows: str | None, limit: int | None) -> PuzzleSet:
    """The puzzles that decide. Raises `ValueError`."""
    if limit is None and rows is None:
        limit = LIMIT
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    if file is not None:
        return task.load(file).part(rows).take(slice(limit))
    if rows is not None:
        raise ValueError("rows must come with --puzzles FILE, got no file")
    return task.split("validation", limit=limit)


def source(arguments: argparse.Namespace) -> str:
    """Where the puzzles came from, for the card."""
    if arguments.puzzles is None:
        return "validation"
    part = "first rows" if arguments.rows is None else f"rows {arguments.rows}"
    return f"{part} of {arguments.puzzles.name}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", help="shipped checkpoint")
    parser.add_argument("--puzzles", type=Path, help="file whose rows decide [default: the validation split]")
    parser.add_argument("--rows", metavar="A-B", help="rows A to B of the file alone, counted from 1")
    parser.add_argument("--limit", type=int, help=f"first puzzles taken [default: {LIMIT}, with --rows all of them]")
    parser.add_argument("--width", type=int, help="trajectories of a puzzle [default: 16]", default=16)
    parser.add_argument("--depth", type=int, help="supervision steps at most [default: the checkpoint's]")
    parser.add_argument("--out", type=Path, help="folder that keeps what is sampled, as that of `gram eval`")
    arguments = parser.parse_args()
    sampler = gram.load(arguments.name)
    task = sampler.task
    try:
        puzzles = chosen_puzzles(task, arguments.puzzles, arguments.rows, arguments.limit)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    result = sampler.sample(puzzles, out=arguments.out, width=arguments.width, depth=arguments.depth)
    compared = compare_selectors(task, puzzles, result, supported_selectors(sampler.model))
    told = [f"{arguments.puzzles.name}" if word == str(arguments.puzzles) else word for word in sys.argv[1:]]
    if arguments.out is not None:
        del told[(place := told.index("--out")) : place + 2]
    evidence: dict[str, Any] = {
        "selector": chosen(compared),
        "command": " ".join(["python scripts/choose_selector.py", *told]),
        "split": source(arguments),
        "puzzles": len(puzzles),
        "width": result.config.width,
        "depth": result.config.depth,
        "compared": compared,
    }
    folder = WEIGHTS / arguments.name
    for file, key, value in (
        ("config.json", "selector", evidence["selector"]),
        ("card.json", "selection", evidence),
    ):
        values = json.loads((folder / file).read_text()) | {key: value}
        write_atomically(folder / file, (json.dumps(values, indent=2) + "\n").encode())
    print(json.dumps(evidence, indent=2))


if __name__ == "__main__":
    main()
