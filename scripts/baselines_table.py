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

import numpy as np
import torch

import gram
from gram.checkpoint import CheckpointError, read_card, write_atomically
from gram.evals import baselines, metrics
from gram.evals.evaluate import count_solutions
from gram.evals.pages.pictures import svg
from gram.evals.pages.run_figures import training_curves
from gram.sampler.result import SampleResult
from gram.tasks.protocol import PuzzleSet, Task
from gram.tasks.registry import get_task
from gram.training.diagnosis import explain, recent_signs

NOTE = """95 % intervals hold the chance of training and that among puzzles: training seeds are resampled, of each
method on its own, then groups of equal puzzles and their twins. Three seeds know the spread of training on two degrees
of freedom, so the intervals are widened as Student's t is; they tell apart methods that differ by more than their seeds
do, and cannot hold a failure that no seed met. A method of one run has only the chance among puzzles. Differences are
paired by puzzle. Every trajectory takes the full depth of its checkpoint. A model without noise takes one trajectory,
which is then its vote and its coverage too."""
SIGMAS = (0.1, 0.2, 0.3, 0.5, 1.0)
"""Scales of PTRM's noise."""
VALIDATION_PUZZLES = 100


def draw(run: Path, puzzles: PuzzleSet, name: str, width: int, seed: int, **settings: Any) -> SampleResult:
    """One sampling of a run at its full depth, kept in its folder under `name`."""
    print(f"{run}: {name}, {len(puzzles)} puzzles x {width} trajectories, seed {seed}", file=sys.stderr, flush=True)
    out = run / "samples" / f"{name}-{len(puzzles)}x{width}-seed{seed}"
    return gram.load(run).sample(puzzles, out=out, width=width, seed=seed, halting="fixed", **settings)


def judge(run: Path, task: Task, puzzles: PuzzleSet, split: str, width: int, seeds: int) -> baselines.JudgedRun:
    """One run's values, sampled where that has not been done."""
    sampler = gram.load(run)
    own_width = width if sampler.model.config.is_stochastic else 1
    results = [draw(run, puzzles, split, own_width, seed) for seed in range(seeds if own_width > 1 else 1)]
    return baselines.judge_run(task, puzzles, results, sampler.card)


def validation_scores(runs: list[Path], task: Task, width: int) -> list[float]:
    """Pooled coverage (vote, with one solution) of each scale of PTRM's noise on validation puzzles, the mean over
    training seeds."""
    puzzles = task.split("validation", limit=VALIDATION_PUZZLES)
    scores = []
    for sigma in SIGMAS:
        split = f"validation-sigma{sigma}"
        judged = [
            baselines.judge_run(task, puzzles, [draw(run, puzzles, split, width, 0, **noise(sigma))], read_card(run))
            for run in runs
        ]
        values = [run.accuracy if run.coverage is None else run.coverage for run in judged]
        every = np.array(count_solutions(task, puzzles.puzzles), dtype=float)
        scores.append(float(np.mean([metrics.pooled(value, every) for value in values])))
    return scores


def noise(sigma: float) -> dict[str, Any]:
    """Settings of PTRM's sampling."""
    return {"injector": "gaussian", "sigma": sigma}


def curve(run: Path) -> list[tuple[float, float]]:
    """Minutes of training and accuracy of one trajectory on held-out puzzles, of each evaluation in the run's log."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [
        (line["elapsed_s"] / 60, line["evaluation"]["single_accuracy"])
        for line in lines
        if "single_accuracy" in line["evaluation"]
    ]


def is_fold(card: dict[str, Any]) -> bool:
    """Whether a run was trained on another fold than the first."""
    return str(card["recipe"]["training"]["split"]) != "train"


def section(name: str, runs: list[tuple[Path, dict[str, Any]]], limit: int | None, width: int, seeds: int) -> str:
    """The table of one task and what its methods are."""
    task = get_task(name)
    puzzles = task.split("test", limit=limit)
    main_runs = [(folder, card) for folder, card in runs if not is_fold(card)]
    judged = [judge(folder, task, puzzles, "test", width, seeds) for folder, _ in main_runs]
    about: dict[str, list[str]] = {}
    for (folder, card), run in zip(main_runs, judged, strict=True):
        signs, guidance = recent_signs(folder / "log.jsonl"), card["recipe"]["model"]["guidance"]
        told = explain(signs, guidance=guidance, is_multi_solution=task.is_multi_solution)
        about.setdefault(run.method, [run.card["description"]]).append(told)
    baseline_runs = [
        folder for (folder, _), run in zip(main_runs, judged, strict=True) if run.method == baselines.BASELINE
    ]
    if baseline_runs:
        # Every scale is shown, since the validation puzzles may not tell them apart: the best of them flatters PTRM.
        for sigma, score in zip(SIGMAS, validation_scores(baseline_runs, task, width), strict=True):
            method = f"{baselines.PTRM}-{sigma}"
            for folder in baseline_runs:
                results = [
                    draw(folder, puzzles, f"test-sigma{sigma}", width, seed, **noise(sigma)) for seed in range(seeds)
                ]
                judged.append(baselines.judge_run(task, puzzles, results, read_card(folder), method=method))
            told = f"`{baselines.BASELINE}` sampled with Gaussian noise of scale {sigma} before every supervision step "
            about[method] = [told + f"(PTRM, 2605.19943); {score:.1%} on {VALIDATION_PUZZLES} validation puzzles"]
    table = baselines.markdown(task, baselines.rows(task, puzzles, judged), width=width)
    # What the noise came to is a fact of each run, so every training seed tells its own.
    listed = "\n".join(
        f"- `{method}`: {'. '.join(dict.fromkeys(filter(None, texts)))}." for method, texts in about.items()
    )
    head = f"## {name}\n\n{len(puzzles):,} held-out puzzles, {seeds} sampling seed{'s' if seeds > 1 else ''}."
    if task.is_multi_solution:
        mean, pooled = baselines.one_answer(task, puzzles)
        head += f" One answer of each puzzle covers at most {mean:.1%} on average and {pooled:.1%} pooled."
    return f"{head}\n\n{table}\n{listed}\n{folds(task, runs, judged, limit, width, seeds)}"


def folds(
    task: Task,
    runs: list[tuple[Path, dict[str, Any]]],
    judged: list[baselines.JudgedRun],
    limit: int | None,
    width: int,
    seeds: int,
) -> str:
    """The main method over all folds, so that every class of solutions is tested once; empty without runs of others."""
    own = [run for run in judged if run.method == baselines.MAIN]
    parts = [(task.split("test", limit=limit), own)]
    by_split: dict[str, list[Path]] = {}
    for folder, card in runs:
        if is_fold(card):
            method = baselines.method_of(task.name, card["recipe"]["name"])
            if not method.startswith(f"{baselines.MAIN}-"):
                raise ValueError(f"runs of other folds must be of {baselines.MAIN}, got {method} in {folder}")
            by_split.setdefault(card["recipe"]["training"]["split"], []).append(folder)
    if not by_split:
        return ""
    for split, folders in sorted(by_split.items()):
        test = split.replace("train", "test", 1)
        puzzles = task.split(test, limit=limit)
        parts.append((puzzles, [judge(folder, task, puzzles, test, width, seeds) for folder in folders]))
    # A fold may have fewer training seeds than the others: the first ones of each.
    least = min(len(found) for _, found in parts)
    parts = [(puzzles, found[:least]) for puzzles, found in parts]
    whole, joined = baselines.joined(parts)
    table = baselines.markdown(task, baselines.rows(task, whole, joined), width=width)
    named = dict(zip(["test", *(split.replace("train", "test", 1) for split in sorted(by_split))], parts, strict=True))
    return (
        f"\n### All {len(parts)} folds of `{task.name}-{baselines.MAIN}` together\n\n{len(whole):,} held-out puzzles, "
        f"each fold judged by the runs that were trained without it. The first table's intervals hold the chance among "
        f"puzzles, the spread over folds that of training and of the puzzles' classes too.\n\n{table}\n"
        f"{baselines.fold_markdown(task, named, width=width)}"
    )


def main() -> None:
    """Judges all runs and writes the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="folders of gram train")
    parser.add_argument("--out", type=Path, help="Markdown file (default: print it)")
    parser.add_argument("--curves", type=Path, help="picture of held-out accuracy against minutes of training (SVG)")
    parser.add_argument("--limit", type=int, help="first so many held-out puzzles (default: all)")
    parser.add_argument("--width", type=int, default=20, help="trajectories of a puzzle (default: 20)")
    parser.add_argument("--seeds", type=int, default=1, help="sampling seeds (default: 1)")
    parser.add_argument("--title", default="Training methods side by side", help="the page's heading")
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
    how = arguments.limit, arguments.width, arguments.seeds
    try:
        sections = [section(name, runs, *how) for name, runs in tasks.items()]
    except (CheckpointError, ValueError) as error:
        parser.error(str(error))
    used = f"`{shlex.join(['python', *sys.argv])}` (gram {gram.__version__}, torch {torch.__version__})\n"
    note = [f"{arguments.note}\n"] if arguments.note else []
    page = "\n".join([f"# {arguments.title}\n", f"{NOTE}\n", *note, *sections, used])
    if arguments.out is None:
        print(page)
    else:
        write_atomically(arguments.out, page.encode())
    if arguments.curves is not None:
        curves = {
            task: [(baselines.method_of(task, card["recipe"]["name"]), curve(run)) for run, card in runs]
            for task, runs in tasks.items()
        }
        write_atomically(arguments.curves, svg(training_curves(curves)).encode())


if __name__ == "__main__":
    main()
