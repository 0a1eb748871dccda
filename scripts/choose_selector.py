"""A checkpoint's default selector, chosen on puzzles it is never tested on: `python scripts/choose_selector.py NAME`.

Samples the task's `validation` puzzles (or the first rows of a file) once, picks with every selector that the model
has a trained head for, and compares each with `vote` by puzzle. The rule is fixed: the most accurate selector, if its
difference from `vote` is told apart after Holm's correction over the selectors; else `vote`, which needs no head. On
puzzles with one solution easy ones tie, so the hard ones are what decides. The choice goes into `config.json`, the
evidence into `card.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import gram
from gram.checkpoint import write_atomically
from gram.evals.selector_choice import chosen, compare_selectors
from gram.sampler.settings import supported_selectors

WEIGHTS = Path(__file__).resolve().parent.parent / "gram" / "weights"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", help="shipped checkpoint")
    parser.add_argument("--puzzles", type=Path, help="file whose first rows decide [default: the validation split]")
    parser.add_argument("--limit", type=int, default=200, help="first puzzles taken [default: %(default)s]")
    parser.add_argument("--width", type=int, help="trajectories of a puzzle [default: 16]", default=16)
    parser.add_argument("--depth", type=int, help="supervision steps at most [default: the checkpoint's]")
    arguments = parser.parse_args()
    sampler = gram.load(arguments.name)
    task = sampler.task
    if arguments.puzzles is None:
        puzzles = task.split("validation", limit=arguments.limit)
    else:
        rows = task.load(arguments.puzzles)
        puzzles = rows.take(range(min(arguments.limit, len(rows))))
    result = sampler.sample(puzzles, width=arguments.width, depth=arguments.depth)
    rows_found = compare_selectors(task, puzzles, result, supported_selectors(sampler.model))
    told = [f"{arguments.puzzles.name}" if word == str(arguments.puzzles) else word for word in sys.argv[1:]]
    evidence: dict[str, Any] = {
        "selector": chosen(rows_found),
        "command": " ".join(["python scripts/choose_selector.py", *told]),
        "split": "validation" if arguments.puzzles is None else f"first rows of {arguments.puzzles.name}",
        "puzzles": len(puzzles),
        "width": result.config.width,
        "depth": result.config.depth,
        "compared": rows_found,
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
