"""Where selectors and resampling help, and where they do not: one page of tables, measured on shipped checkpoints.

    python scripts/study_selection.py [--limit P] [--out FILE.md]

Per checkpoint, at full supervision steps (no halting): how well LPRM and halt logit rank a puzzle's trajectories after
each step (the gate: under 0.7 resampling cannot help); what each selector picks; and resampling against none at equal
supervision steps, with the number of distinct solutions that are left. A resampler that copied no trajectory is no
result: its row says `never fired`.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import gram
from gram.checkpoint import write_atomically
from gram.config import RESAMPLERS
from gram.evals.evaluate import evaluate_result, judge
from gram.evals.metrics import within_puzzle_auroc
from gram.evals.paired import paired_difference
from gram.evals.statistics import clustered_interval
from gram.sampler.engine import Observer, StepView
from gram.sampler.selectors import RECORDED, select

WIDTH = 20
CASES: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("nqueens8", 3, {}),
    ("sudoku6", 3, {}),
    ("colouring8", 4, {}),
    ("nqueens8-deterministic", 8, {"injector": "gaussian", "sigma": 0.3}),
)
"""Checkpoint, depth (few enough that trajectories still fail) and settings."""


def study(name: str, depth: int, settings: dict[str, Any], limit: int, threshold: float) -> str:
    """The tables of one checkpoint, as markdown."""
    sampler = gram.load(name)
    task, puzzles = sampler.task, sampler.task.split("test", limit=limit)
    common = {"width": WIDTH, "depth": depth, "halting": "fixed", **settings}
    by_step: dict[int, list[tuple[int, int, Any, float, float]]] = defaultdict(list)

    class Notes(Observer):
        def on_step(self, view: StepView) -> None:
            for row, step in enumerate(view.step.tolist()):
                place = int(view.puzzle[row]), int(view.trajectory[row])
                by_step[step].append((*place, view.answers[row], float(view.halt[row]), float(view.lprm[row])))

    plain = sampler.sample(puzzles, observer=Notes(), **common)
    lines = [
        f"## {name}\n",
        f"{len(puzzles)} held-out puzzles x {WIDTH} trajectories, {depth} supervision steps, no halting"
        + (f", {', '.join(f'{key} {value}' for key, value in settings.items())}" if settings else "")
        + ".\n",
        "| step | single accuracy | AUROC of LPRM | AUROC of halt logit | puzzles with both |",
        "|---|---|---|---|---|",
    ]
    for step, seen in sorted(by_step.items()):
        answers = np.zeros_like(plain.candidates)
        halt, lprm = np.zeros(plain.halt.shape), np.zeros(plain.halt.shape)
        for puzzle, trajectory, answer, halt_logit, predicted in seen:
            answers[puzzle, trajectory], halt[puzzle, trajectory] = answer, halt_logit
            lprm[puzzle, trajectory] = predicted
        right = judge(task, puzzles.puzzles, answers)
        rank = within_puzzle_auroc(lprm, right)
        lines.append(
            f"| {step} | {100 * right.mean():.1f} % | {rank.pooled:.3f} | "
            f"{within_puzzle_auroc(halt, right).pooled:.3f} | {rank.puzzles} |"
        )
    lines += ["", "| selector | accuracy | 95 % interval | against vote, points |", "|---|---|---|---|"]
    verdicts = {}
    for selector in RECORDED:
        picked = replace(plain, selected=select(selector, plain.scores(plain.votes)))
        verdicts[selector] = task.verify(puzzles.puzzles, picked.answers).astype(float)
    for selector, right in verdicts.items():
        low, high = clustered_interval(right, puzzles.groups)
        gap = paired_difference(right, verdicts["vote"], puzzles.groups)
        lines.append(
            f"| {selector} | {100 * right.mean():.1f} % | {100 * low:.1f} to {100 * high:.1f} | "
            f"{100 * gap.estimate:+.1f} ({100 * gap.low:+.1f} to {100 * gap.high:+.1f}) |"
        )
    passed = float(judge(task, puzzles.puzzles, plain.candidates).any(axis=1).mean())
    lines += [f"| pass@{WIDTH} (the verifier's choice) | {100 * passed:.1f} % | | |", ""]
    lines += [
        "| resampler | steps | accuracy (vote) | against none, points | single | distinct solutions | lineages |",
        "|---|---|---|---|---|---|---|",
    ]
    for resampler in RESAMPLERS:
        result = (
            sampler.sample(puzzles, resampler=resampler, resample_threshold=threshold, **common)
            if resampler != "none"
            else plain
        )
        figures = evaluate_result(task, puzzles, result, checkpoint=name, versions={})
        mine = task.verify(puzzles.puzzles, result.answers).astype(float)
        gap = paired_difference(mine, verdicts["vote"], puzzles.groups)
        difference = f"{100 * gap.estimate:+.1f} ({100 * gap.low:+.1f} to {100 * gap.high:+.1f})"
        if resampler != "none" and (result.lineage == np.arange(WIDTH)).all():
            difference = "never fired"
        lineages = np.mean([len(set(line)) for line in result.lineage.tolist()])
        lines.append(
            f"| {resampler} | {figures.supervision_steps:,} | {100 * figures.accuracy:.1f} % | {difference} | "
            f"{100 * figures.single_accuracy:.1f} % | {figures.unique_solutions:.2f} | {lineages:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures every case and writes the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--limit", type=int, default=200, help="puzzles of each checkpoint")
    parser.add_argument("--resample-threshold", type=float, default=0.5, help="effective share that calls for it")
    parser.add_argument("--out", type=Path, help="write the page there (default: print it)")
    arguments = parser.parse_args()
    pages = [
        study(name, depth, settings, arguments.limit, arguments.resample_threshold) for name, depth, settings in CASES
    ]
    command = f"python scripts/study_selection.py --limit {arguments.limit}"
    command += f" --resample-threshold {arguments.resample_threshold:g}"
    head = f"# Selectors and resamplers\n\nMade by `{command}`; intervals are 95 %, paired by puzzle.\n\n"
    text = head + "\n".join(pages)
    if arguments.out is None:
        print(text)
    else:
        write_atomically(arguments.out, text.encode())


if __name__ == "__main__":
    main()
