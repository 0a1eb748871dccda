"""What waiting for the first solved trajectory alone is worth: `python scripts/first_solved.py FOLDER [--depths M,M]`.

FOLDER is one of `gram frontier` of a lattice, with its traces and timings. Every way to run several trajectories
(`evals/frontier/first_solved.py`) is a row for each width and depth, beside one trajectory of the deepest grid depth
that costs no more, paired by puzzle. Prints a table in Markdown, or with `--json` a list of objects.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from gram.config import read_json
from gram.evals.frontier import outcomes, timing_file
from gram.evals.frontier.files import FRONTIER_FILE
from gram.evals.frontier.first_solved import halts_of, rows_of, times_of
from gram.evals.frontier.grid import Grid
from gram.evals.frontier.latency import clock_of, courses_of
from gram.formatting import markdown, percent, plain, signed, span
from gram.sampler.trace import Traces

HEADS = ("way", "cell", "latency, s (95th percentile)", "right, % (95 % interval)", "beside one trajectory", "points")


def rows(folder: Path) -> list[dict[str, Any]]:
    """Rows of a frontier's folder. Raises `ValueError`, `OSError`."""
    made = read_json(folder / FRONTIER_FILE)
    about, grid = made["about"], made["grid"]
    if about["sampling"]["injector"] != "commitment":
        raise ValueError(f"{folder}: must be of a lattice, got injector {about['sampling']['injector']}")
    lists: dict[str, Any] = {name: tuple(grid[name]) for name in ("widths", "depths", "haltings", "thresholds")}
    cells = Grid(**lists, selectors=tuple(grid["selectors"]), trained_depth=grid["trained_depth"])
    identity, rounds = made["latency"]["identity"], made["latency"]["rounds"]
    courses = courses_of(("interactive",), (False,), cells.widths[-1], 0)
    kept = timing_file.read(folder / timing_file.name_of(identity), identity)
    found = outcomes.read(folder / outcomes.OUTCOMES_FILE, grid)
    if not kept or found is None:
        raise ValueError(f"{folder}: must hold timings of one puzzle at a time and {outcomes.OUTCOMES_FILE}, got none")
    times = times_of(clock_of(courses, kept, rounds))
    traces = [Traces.open(folder / "traces" / f"seed-{seed}") for seed in range(about["seeds"])]
    return rows_of(halts_of(traces, cells), times, cells, found["groups"])


def line(row: dict[str, Any]) -> list[str]:
    """A row as text."""
    beside, points = "-", "-"
    if (gap := row.get("minus_one")) is not None:
        beside = f"1 x {gap['depth']}, {gap['ms'] / 1e3:.2f} s"
        points = f"{signed(gap['estimate'])} ({span(gap['low'], gap['high'], is_signed=True)})"
    return [
        row["way"],
        f"{row['width']} x {row['depth']}",
        f"{row['ms'] / 1e3:.2f} ({row['p95_ms'] / 1e3:.2f})",
        f"{percent(row['accuracy'])} ({span(row['low'], row['high'])})",
        beside,
        points,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--depths", help="show these alone, M,M,...")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    try:
        shown = None if given.depths is None else {int(depth) for depth in given.depths.split(",")}
        made = rows(given.folder)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    made = [row for row in made if shown is None or row["depth"] in shown]
    print(json.dumps(plain(made)) if given.json else markdown(HEADS, map(line, made)))


if __name__ == "__main__":
    main()
