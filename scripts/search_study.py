"""What backtracking brings a lattice, and what its width: single trajectories, paired by puzzle.

    python scripts/search_study.py runs/narrow sudoku-lattice --puzzles FILE --rows 1-60 --depths 128,512 --cold-start

Each checkpoint, of one task, searches in three ways: it starts anew after a conflict and commits the tokens it is sure
of (`restart`); it takes commitments back but still commits those (`backtrack, sure`); it takes commitments back and
commits those it is unsure of (`backtrack`). Printed, as Markdown: puzzles that one trajectory solves, within the last
depth and the shorter ones, rounds taken, counted arithmetic, and each way's difference from the first, paired.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

import gram
from gram.api import Sampler
from gram.checkpoint import write_atomically
from gram.evals.cost import step_macs
from gram.evals.paired import paired_difference
from gram.evals.puzzle_choice import PuzzleChoice

WAYS = {
    "restart": {"search": "restart", "commitment_focus": 8.0},
    "backtrack, sure": {"search": "backtrack", "commitment_focus": 8.0},
    "backtrack": {"search": "backtrack", "commitment_focus": -4.0},
}
"""Name and settings of a model that no weight depends on."""


def solved(sampler: Sampler, choice: PuzzleChoice, depth: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Whether each trajectory is right, and its rounds, `[P, N]` each."""
    puzzles = choice.of(sampler.task)
    found = sampler.sample(puzzles, width=width, depth=depth, width_policy="fixed", seed=seed)
    right = sampler.task.verify(
        np.repeat(puzzles.puzzles, width, 0), found.candidates.reshape(-1, sampler.task.output_tokens)
    )
    return right.reshape(-1, width) & found.is_halted, found.steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", help="lattices of one task")
    parser.add_argument("--puzzles", type=Path, help="file [default: the task's split test]")
    parser.add_argument("--rows", help="A-B of it")
    parser.add_argument(
        "--depths", default="128", help="rounds, ascending; only the last is run [default: %(default)s]"
    )
    parser.add_argument("--width", type=int, default=2, help="trajectories, averaged [default: %(default)s]")
    parser.add_argument("--transitions", type=int, help="loops of a round [default: the checkpoint's]")
    parser.add_argument("--cold-start", action="store_true", help="every round starts from z0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the table there, too")
    given = parser.parse_args()
    try:
        depths = sorted({int(depth) for depth in given.depths.split(",")})
        samplers = [gram.load(name) for name in given.checkpoints]
        choice = PuzzleChoice(puzzles=given.puzzles, rows=given.rows)
        choice.of(samplers[0].task)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if strange := [each.name for each in samplers if each.model.config.latent != "lattice"]:
        parser.error(f"checkpoints must be lattices, got {', '.join(strange)}")
    transitions = 1 if given.transitions is None else given.transitions
    if len({each.task.name for each in samplers}) > 1 or min(*depths, given.width, transitions) < 1:
        parser.error("checkpoints must be of one task, and depths, width and transitions at least 1")
    heads = [f"solved in {depth}, %" for depth in depths]
    lines = [f"| checkpoint | search | {' | '.join(heads)} | difference in {depths[-1]} | rounds | TFLOP |"]
    lines.append("|" + "---|" * (len(depths) + 5))
    first = None
    for name, sampler in zip(given.checkpoints, samplers, strict=True):
        own = sampler.model.config
        asked = {"is_warm_started": own.is_warm_started and not given.cold_start}
        asked["transitions"] = own.transitions if given.transitions is None else given.transitions
        for way, settings in WAYS.items():
            sampler.model.config = replace(own, **settings, **asked)
            print(f"{name}: {way}", file=sys.stderr, flush=True)
            right, rounds = solved(sampler, choice, depths[-1], given.width, given.seed)
            shares = [100 * (right & (rounds <= depth)).mean() for depth in depths]
            mine = right.mean(1)
            first = mine if first is None else first
            gap = paired_difference(mine, first)
            flops = 2e-12 * step_macs(sampler.model.config)["total"] * rounds.mean()
            cells = [f"{share:.1f}" for share in shares]
            cells.append(
                "-" if mine is first else f"{100 * gap.estimate:+.1f} ({100 * gap.low:+.1f} to {100 * gap.high:+.1f})"
            )
            label = Path(name).name
            lines.append(f"| `{label}` | {way} | {' | '.join(cells)} | {rounds.mean():.0f} | {flops:.2f} |")
        sampler.model.config = own
    text = "\n".join(lines) + "\n"
    if given.out is not None:
        write_atomically(given.out, text.encode())
    print(text)


if __name__ == "__main__":
    main()
