"""Training methods side by side: `python scripts/baselines_table.py runs/baselines/* --out evals/results/baselines.md`.

Takes folders of `gram train`, of one or several tasks and with several training seeds of a recipe where there are. Each
checkpoint samples the held-out puzzles at its full depth; what is finished is kept in its folder (`samples/`), so the
same command goes on after a kill. A model without noise takes one trajectory, since all would be alike.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

import gram
from gram.checkpoint import CheckpointError, read_card, write_atomically
from gram.diagnosis import explain, recent_signs
from gram.evals import baselines, plots
from gram.tasks.protocol import PuzzleSet, Task
from gram.tasks.registry import get_task

NOTE = """95 % intervals are of chance among puzzles (those of one base resampled together), not of training: how far
training seeds differ is in the tables of ranges. Differences are paired by puzzle. Every trajectory takes the full
depth of its checkpoint. A model without noise takes one trajectory, which is then its vote and its coverage too."""


def judge(run: Path, task: Task, puzzles: PuzzleSet, width: int, seeds: int) -> baselines.Judged:
    """One run's values, sampled where that has not been done."""
    sampler = gram.load(run)
    results = []
    own_width = width if sampler.model.config.is_stochastic else 1
    for seed in range(seeds if own_width > 1 else 1):
        out = run / "samples" / f"{len(puzzles)}x{own_width}-seed{seed}"
        print(f"{run}: {len(puzzles)} puzzles x {own_width} trajectories, seed {seed}", file=sys.stderr, flush=True)
        results.append(sampler.sample(puzzles, out=out, width=own_width, seed=seed, halting="fixed"))
    return baselines.judge_run(task, puzzles, results, sampler.card)


def curve(run: Path) -> list[tuple[float, float]]:
    """Minutes of training and accuracy of one trajectory on held-out puzzles, of each evaluation in the run's log."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [
        (line["elapsed_s"] / 60, line["evaluation"]["single_accuracy"])
        for line in lines
        if "single_accuracy" in line["evaluation"]
    ]


def section(name: str, runs: list[tuple[Path, dict[str, Any]]], limit: int | None, width: int, seeds: int) -> str:
    """The table of one task and what its methods are."""
    task = get_task(name)
    puzzles = task.split("test", limit=limit)
    judged = [judge(run, task, puzzles, width, seeds) for run, _ in runs]
    table = baselines.markdown(task, baselines.rows(task, puzzles, judged), width=width)
    about: dict[str, list[str]] = {}
    for (folder, card), run in zip(runs, judged, strict=True):
        signs, guidance = recent_signs(folder / "log.jsonl"), card["recipe"]["model"]["guidance"]
        told = explain(signs, guidance=guidance, is_multi_solution=task.is_multi_solution)
        about.setdefault(run.method, [run.card["description"]]).append(told)
    # What the noise came to is a fact of each run, so every training seed tells its own.
    listed = "\n".join(
        f"- `{method}`: {'. '.join(dict.fromkeys(filter(None, texts)))}." for method, texts in about.items()
    )
    head = f"## {name}\n\n{len(puzzles):,} held-out puzzles, {seeds} sampling seed{'s' if seeds > 1 else ''}."
    return f"{head}\n\n{table}\n{listed}\n"


def main() -> None:
    """Judges all runs and writes the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="folders of gram train")
    parser.add_argument("--out", type=Path, help="Markdown file (default: print it)")
    parser.add_argument(
        "--curves", type=Path, help="picture of held-out accuracy against minutes of training (PNG or SVG)"
    )
    parser.add_argument("--limit", type=int, help="first so many held-out puzzles (default: all)")
    parser.add_argument("--width", type=int, default=20, help="trajectories of a puzzle (default: 20)")
    parser.add_argument("--seeds", type=int, default=1, help="sampling seeds (default: 1)")
    parser.add_argument("--note", help="a sentence for the page: on what machine the runs were trained, say")
    arguments = parser.parse_args()
    for name in ("limit", "width", "seeds"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            parser.error(f"{name} must be at least 1, got {getattr(arguments, name)}")
    tasks: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for run in arguments.runs:
        card = read_card(run)
        if "recipe" not in card:
            parser.error(f"run must be a folder of gram train with its card, got {run}")
        tasks.setdefault(card["task"], []).append((run, card))
    for name, runs in tasks.items():
        runs.sort(key=lambda entry: baselines.method_of(name, entry[1]["recipe"]["name"]) != baselines.MAIN)
    try:
        sections = [
            section(name, runs, arguments.limit, arguments.width, arguments.seeds) for name, runs in tasks.items()
        ]
    except (CheckpointError, ValueError) as error:
        parser.error(str(error))
    used = f"gram {gram.__version__}, torch {torch.__version__}"
    command = shlex.join(["python", *sys.argv])
    note = [f"{arguments.note}\n"] if arguments.note else []
    page = "\n".join(["# Training methods side by side\n", f"{NOTE}\n", *note, *sections, f"`{command}` ({used})\n"])
    if arguments.out is None:
        print(page)
    else:
        write_atomically(arguments.out, page.encode())
    if arguments.curves is not None:
        curves = {
            task: [(baselines.method_of(task, card["recipe"]["name"]), curve(run)) for run, card in runs]
            for task, runs in tasks.items()
        }
        plots.training_curves(curves, arguments.curves)


if __name__ == "__main__":
    main()
