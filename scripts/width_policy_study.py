"""What width policies cost and bring where one puzzle is asked at a time: answers, latency and arithmetic, paired.

    python scripts/width_policy_study.py sudoku-lattice trusted first-halt:2 --puzzles FILE --rows 401-500 --out FILE

A way is a width policy, of `first-halt` with its stage (`first-halt:2`), and, behind commas, other settings of sampling
in JSON (`first-halt:4,transitions=6`); the others stand beside the first. Each puzzle is answered in all ways, in
random order. The file of `--out` keeps a line for each answer, and the same command goes on where it stopped. Prints
Markdown: right answers, latency, rounds one after another, trajectories, their steps and counted arithmetic;
differences and ratios to the first way are paired by puzzle (95 %, of latency by bootstrap). Latency is processor time,
which other jobs of the machine hardly lengthen; `--threads 1` makes it that of one core.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import gram
from gram.api import Sampler
from gram.evals import statistics
from gram.evals.cost import step_macs
from gram.evals.paired import paired_difference
from gram.evals.puzzle_choice import PuzzleChoice
from gram.formatting import markdown, percent, signed, span
from gram.sampler.engine import Engine, Observer
from gram.tasks.protocol import Tokens

RESAMPLES = 10_000
HEADS = (
    *("way", "right, % (95 %)", "points beside the first", "latency, s (95th percentile)", "ratio of latency"),
    *("rounds", "trajectories", "steps", "TFLOP"),
)


OTHERS = ("depth", "transitions", "is_warm_started", "halt_threshold", "temperature", "views")
"""Settings that a way may name beside its policy."""


class Rounds(Observer):
    """Counts supervision steps one after another."""

    needs_every_step = True
    count = 0

    def on_advanced(self, engine: Engine) -> None:
        self.count += 1


def settings_of(way: str) -> dict[str, Any]:
    """Of `policy` or `policy:stage`, with `,setting=value` behind. Raises `ValueError` where it is none."""
    named, *others = way.split(",")
    policy, _, stage = named.partition(":")
    found: dict[str, Any] = {"width_policy": policy} | ({"width_stage": int(stage)} if stage else {})
    for each in others:
        name, _, value = each.partition("=")
        if name not in OTHERS:
            raise ValueError(f"a way's setting must be one of {', '.join(OTHERS)}, got {name!r}")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"{name} must be a value in JSON, got {value!r}") from error
    return found


def answer(sampler: Sampler, puzzle: Tokens, way: str, given: argparse.Namespace) -> dict[str, Any]:
    """One puzzle `[1, L]`, answered in one way."""
    rounds = Rounds()
    wall, processor = time.perf_counter(), time.process_time()
    found = sampler.sample(
        puzzle,
        width=given.width,
        seed=given.seed,
        kernel=given.kernel,
        is_padded=not given.unpadded,
        observer=rounds,
        **settings_of(way),
    )
    return {
        "wall_s": time.perf_counter() - wall,
        "processor_s": time.process_time() - processor,
        "is_right": bool(sampler.task.verify(puzzle, found.answers)[0]),
        "is_halted": bool(found.is_halted[0, found.selected[0]]),
        "rounds": rounds.count,
        "trajectories": int(found.widths[0]),
        "steps": int(found.steps.sum()),
    }


def ratio(times: NDArray[np.float64], first: NDArray[np.float64]) -> str:
    """Mean over the first way's mean, with the interval over puzzles."""
    drawn = np.random.default_rng(0).integers(0, len(times), (RESAMPLES, len(times)))
    low, high = np.percentile(times[drawn].mean(1) / first[drawn].mean(1), (2.5, 97.5))
    return f"{times.mean() / first.mean():.2f} ({low:.2f} to {high:.2f})"


def table(lines: dict[str, list[dict[str, Any]]], flops: dict[str, float], clock: str) -> str:
    """Markdown of the answers of each way; `flops` of one supervision step of it."""
    columns = {
        way: {name: np.array([line[name] for line in of], np.float64) for name in of[0]} for way, of in lines.items()
    }
    first, rows = next(iter(columns.values())), []
    for way, own in columns.items():
        low, high = statistics.clustered_interval(own["is_right"])
        gap = paired_difference(own["is_right"], first["is_right"])
        points = f"{signed(gap.estimate)} ({span(gap.low, gap.high, is_signed=True)})"
        times = own[clock]
        rows.append(
            [
                f"`{way}`",
                f"{percent(own['is_right'].mean())} ({span(low, high)})",
                "-" if own is first else points,
                f"{times.mean():.2f} ({np.percentile(times, 95):.2f})",
                "-" if own is first else ratio(times, first[clock]),
                *(f"{own[name].mean():.{digits}f}" for name, digits in (("rounds", 0), ("trajectories", 2))),
                f"{own['steps'].mean():.0f}",
                f"{1e-12 * flops[way] * own['steps'].mean():.2f}",
            ]
        )
    return markdown(HEADS, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("ways", nargs="+", metavar="POLICY[:STAGE][,SETTING=VALUE]")
    parser.add_argument("--task", help="of another size [default: the checkpoint's]")
    parser.add_argument("--puzzles", type=Path, help="file [default: the task's split test]")
    parser.add_argument("--rows", help="A-B of it")
    parser.add_argument("--width", type=int, default=20, help="[default: %(default)s]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kernel", default="auto", help="[default: %(default)s]")
    parser.add_argument("--unpadded", action="store_true", help="launches of the rows that run [default: of full size]")
    parser.add_argument("--threads", type=int, help="[default: PyTorch's]")
    parser.add_argument("--wall", action="store_true", help="latency by the clock on the wall, for an idle machine")
    parser.add_argument("--out", type=Path, help="keep a line for each answer there")
    given = parser.parse_args()
    try:
        sampler = gram.load(given.checkpoint, task=given.task)
        puzzles = PuzzleChoice(puzzles=given.puzzles, rows=given.rows).of(sampler.task).puzzles
        flops = {}
        for way in given.ways:
            config = sampler.settings(width=given.width, kernel=given.kernel, **settings_of(way))
            flops[way] = 2.0 * step_macs(replace(sampler.model.config, transitions=config.transitions))["total"]
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    asked: list[Any] = [given.checkpoint, str(sampler.task.name), given.width, given.seed]
    asked += [given.kernel, given.unpadded]
    done: dict[tuple[str, str], dict[str, Any]] = {}
    if given.out is not None and given.out.exists():
        for line in map(json.loads, given.out.read_text().splitlines()):
            if line["asked"] == asked:
                done[line["way"], line["puzzle"]] = line
    order, lines = random.Random(0), {way: list[dict[str, Any]]() for way in given.ways}
    texts = [sampler.task.format(puzzle) for puzzle in puzzles]
    if any((way, text) not in done for way in given.ways for text in texts):
        answer(sampler, puzzles[:1], given.ways[0], given)
    for place in range(len(puzzles)):
        for way in order.sample(given.ways, len(given.ways)):
            made = done.get((way, texts[place]))
            if made is None:
                made = answer(sampler, puzzles[place : place + 1], way, given)
                if given.out is not None:
                    with given.out.open("a") as file:
                        file.write(json.dumps({"asked": asked, "way": way, "puzzle": texts[place], **made}) + "\n")
            lines[way].append({name: value for name, value in made.items() if name not in ("asked", "way", "puzzle")})
        print(f"{place + 1} of {len(puzzles)}", end="\r", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print(table(lines, flops, "wall_s" if given.wall else "processor_s"))


if __name__ == "__main__":
    main()
