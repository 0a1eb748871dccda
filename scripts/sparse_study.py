"""What few weights cost, and whether they make circuits small: `python scripts/sparse_study.py`.

    python scripts/sparse_study.py --runs runs/sparse

Weight-sparse training (2511.13653): small deterministic models of 4x4 Sudoku and 8x8 N-Queens are trained for equal
steps, dense and with a share of the weights of every matrix, with several seeds. Then the circuits of the shipped
behaviours are found, dense and sparse at one loss: the target of `gram circuit`, or a little more than the loss of the
worst whole model where that is above it. A run or circuit that is there is kept, and an unfinished run continued.
Controls with shuffled labels are pruned for the first seed. Prints Markdown.

Accuracy is of one trajectory on held-out puzzles. Its intervals are of 95 % over training seeds, by Student's t with
the deviation pooled over the shares of a task. Edges are compared by the mean logarithm of their ratio, paired by seed,
with an interval of Student's t.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gram
from gram import checkpoint
from gram.checkpoint import write_json
from gram.config import ModelConfig, SamplerConfig
from gram.evals.circuits.behaviour import read_behaviour
from gram.evals.circuits.pruning import STEPS, BehaviourJudge
from gram.evals.circuits.study import TARGET, open_model, study
from gram.evals.statistics import student_quantile
from gram.formatting import markdown, plain
from gram.sampler.run import sample
from gram.sizes import shape_of
from gram.tasks.registry import get_task
from gram.training.config import TrainConfig
from gram.training.recipe import Recipe

SHARES = (1.0, 1 / 4, 1 / 16, 1 / 64)
CIRCUIT_SHARES = (1.0, 1 / 16)
DIM, DEPTH, HELD_OUT = 64, 4, 300
STEPS_OF = {"sudoku4": 500, "nqueens8": 500}
BATCH_OF = {"sudoku4": 64, "nqueens8": 32}
BEHAVIOURS_OF = {"sudoku4": ("sudoku4-row", "sudoku4-box", "sudoku4-hidden"), "nqueens8": ("nqueens8-diagonal",)}
ABOVE_OWN = 1.1
"""Target over the loss of the worst whole model, where that is above the study's target."""


def recipe_of(task_name: str, share: float, seed: int, steps: int | None) -> Recipe:
    """The training of one run."""
    task, length = get_task(task_name), steps or STEPS_OF[task_name]
    model = ModelConfig(
        task=task.name,
        **shape_of(task),
        mixer="relations",
        relations=task.relations,
        mixer_hidden=16 * len(task.relations),
        positions="none",
        guidance="none",
        noise_free_steps=0,
        dim=DIM,
        hidden=2 * DIM,
        depth=DEPTH,
    )
    training = TrainConfig(
        steps=length,
        batch=BATCH_OF[task_name],
        target="set" if task.is_multi_solution else "drawn",
        learning_rate=3e-3,
        warmup_steps=min(50, length),
        ema=0.98,
        rollout_slots=1,
        evaluate_every_steps=length,
        evaluate_puzzles=8,
        evaluate_width=1,
        weight_share=share,
        weight_least=1,
        seed=seed,
    )
    return Recipe(f"sparse-{task_name}-{share:g}", "Sparse study", task, model, training)


def folder_of(runs: Path, task: str, share: float, seed: int) -> Path:
    """A run's folder."""
    return runs / f"{task}-share{share:g}-seed{seed}"


def read_run(folder: Path, task_name: str) -> dict[str, float]:
    """Figures of a finished run: kept in its folder."""
    kept = folder / "sparse.json"
    if kept.is_file():
        read: dict[str, float] = json.loads(kept.read_text())
        return read
    task, model = get_task(task_name), checkpoint.load(folder, dtype=torch.float32)
    puzzles = task.split("test", limit=HELD_OUT).puzzles
    result = sample(model, task, puzzles, SamplerConfig(width=1, halting="fixed", kernel="eager"))
    matrices = [weight for weight in model.parameters() if weight.ndim == 2]
    found = {
        "accuracy": float(task.verify(puzzles, result.candidates[:, 0]).mean()),
        "nonzero": sum(int(weight.count_nonzero()) for weight in matrices),
        "bytes": sum(file.stat().st_size for file in checkpoint.weight_files(folder)),
    }
    write_json(kept, found)
    return found


def train_all(
    runs: Path, tasks: Sequence[str], shares: Sequence[float], seeds: int, steps: int | None
) -> dict[tuple[str, float], list[dict[str, float]]]:
    """Trains what is missing, and reads every run: figures of each task and share, one entry a seed."""
    made: dict[tuple[str, float], list[dict[str, float]]] = {}
    todo = [(seed, task, share) for seed in range(seeds) for task in tasks for share in shares]
    for number, (seed, task, share) in enumerate(todo, 1):
        folder, started = folder_of(runs, task, share, seed), time.monotonic()
        gram.train(recipe_of(task, share, seed, steps), folder, is_compiled=False, dtype="float32", device="cpu")
        found = read_run(folder, task)
        elapsed_s = time.monotonic() - started
        told(f"{number}/{len(todo)} {folder.name}: accuracy {found['accuracy']:.1%}, {elapsed_s:.0f} s")
        made.setdefault((task, share), []).append(found)
    return made


def circuits_of(
    runs: Path, name: str, task: str, shares: Sequence[float], seed: int, mask_steps: int
) -> dict[str, dict[str, Any]]:
    """Figures of one behaviour's circuit in the model of every share, at one loss: each kept in a file."""
    behaviour = read_behaviour(name)
    models = [open_model(checkpoint.load(folder_of(runs, task, share, seed)), behaviour) for share in shares]
    with torch.no_grad():
        own = max(float(BehaviourJudge(model, behaviour.halves()[0]).loss(None)) for model in models)
    target, found = max(TARGET, ABOVE_OWN * own), dict[str, dict[str, Any]]()
    if target >= math.log(2):
        told(f"{name}, seed {seed}: no circuits, since a whole model has a loss of {own:.2f}")
        return {f"{share:g}": {"is_reached": False} for share in shares}
    for share, model in zip(shares, models, strict=True):
        kept = runs / f"circuit-{name}-share{share:g}-seed{seed}.json"
        made: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {}
        if (made.get("target"), made.get("steps")) != (target, mask_steps):
            started = time.monotonic()
            made, _ = study(model, behaviour, target=target, steps=mask_steps, has_control=seed == 0, seed=seed)
            write_json(kept, plain(made))
            size = f"{made['nodes']} nodes, {made['edges']} edges"
            told(f"{name}, seed {seed}, share {share:g}: {size}, {time.monotonic() - started:.0f} s")
        found[f"{share:g}"] = made
    return found


def told(line: str) -> None:
    """Progress, on stderr."""
    print(line, file=sys.stderr, flush=True)


def print_trainings(
    made: dict[tuple[str, float], list[dict[str, float]]], tasks: Sequence[str], shares: Sequence[float], seeds: int
) -> None:
    """Accuracy and price of every share."""
    for task in tasks:
        accuracy_SR = np.array([[run["accuracy"] for run in made[task, share]] for share in shares])
        deviation = math.sqrt(accuracy_SR.var(1, ddof=1).mean())
        student = student_quantile(len(shares) * (seeds - 1))
        rows = []
        for share, accuracies in zip(shares, accuracy_SR, strict=True):
            runs = made[task, share]
            half, gap = student * deviation / math.sqrt(seeds), student * deviation * math.sqrt(2 / seeds)
            less = 100 * (accuracies.mean() - accuracy_SR[0].mean())
            rows.append(
                [
                    f"{share:g}",
                    f"{np.mean([run['nonzero'] for run in runs]):,.0f}",
                    f"{np.mean([run['bytes'] for run in runs]):,.0f}",
                    f"{accuracies.mean():.1%} (± {100 * half:.1f})",
                    "" if share == shares[0] else f"{less:+.1f} (± {100 * gap:.1f})",
                ]
            )
        print(f"\n### {task}\n")
        heads = ["share kept", "nonzero weights", "bytes stored", "accuracy (95 %)", "minus first, points (95 %)"]
        print(markdown(heads, rows))


def print_circuits(found: dict[str, list[dict[str, dict[str, Any]]]], shares: Sequence[float]) -> None:
    """Size of circuits and their proof; a seed in which a target was not reached is left out, and counted."""
    rows = []
    for name, seeds in found.items():
        first = f"{shares[0]:g}"
        for share in (f"{share:g}" for share in shares):
            made = [each[share] for each in seeds if each[share]["is_reached"]]
            both = [each for each in seeds if each[share]["is_reached"] and each[first]["is_reached"]]
            if not made:
                rows.append([name, share, f"0 of {len(seeds)}", "", "none", *[""] * 6])
                continue
            controls = [each["control"]["is_reached"] for each in made if each["control"]]
            logs = np.log([each[share]["edges"] / each[first]["edges"] for each in both])
            rows.append(
                [
                    name,
                    share,
                    f"{len(made)} of {len(seeds)}",
                    ", ".join(f"{each['target']:.2f}" for each in made),
                    ", ".join(f"{each['nodes']:,}" for each in made),
                    ", ".join(f"{each['edges']:,}" for each in made),
                    "" if share == first else ratio(logs),
                    *(f"{np.mean([each[kept]['accuracy'] for each in made]):.1%}" for kept in ("circuit", "ablated")),
                    f"{np.mean([each['random']['accuracy'] for each in made]):.1%}",
                    f"{sum(controls)} of {len(controls)}",
                ]
            )
    heads = [
        "behaviour",
        "share kept",
        "seeds with a circuit",
        "target, nats",
        "nodes",
        "edges",
        "edges over the first's (95 %)",
    ]
    heads += ["circuit alone", "all but it", "random", "controls with a circuit"]
    print("\n### Circuits\n")
    print(markdown(heads, rows))


def ratio(logs: np.ndarray) -> str:
    """Geometric mean of ratios, and its interval where there are several."""
    if len(logs) < 2:
        return f"{math.exp(logs.mean()):.2f}" if len(logs) else ""
    half = student_quantile(len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs))
    return f"{math.exp(logs.mean()):.2f} ({math.exp(logs.mean() - half):.2f} to {math.exp(logs.mean() + half):.2f})"


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the trained runs")
    parser.add_argument("--tasks", nargs="+", default=list(STEPS_OF), choices=list(STEPS_OF))
    parser.add_argument("--shares", nargs="+", type=float, default=list(SHARES), help="falling, the first compared to")
    parser.add_argument("--circuit-shares", nargs="+", type=float, default=list(CIRCUIT_SHARES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="optimiser steps of each run [default: the task's own]")
    parser.add_argument("--mask-steps", type=int, default=STEPS, help="optimiser steps of a circuit's masks")
    given = parser.parse_args()
    try:
        for share in (*given.shares, *given.circuit_shares):
            TrainConfig(steps=1, weight_share=share)
        if given.seeds < 2:
            raise ValueError(f"seeds must be at least 2, got {given.seeds}")
        for name in ("steps", "mask_steps"):
            if (count := getattr(given, name)) is not None and count < 1:
                raise ValueError(f"{name.replace('_', '-')} must be at least 1, got {count}")
        if given.runs.exists() and not given.runs.is_dir():
            raise ValueError(f"runs must be a folder, got the file {given.runs}")
        if missing := set(given.circuit_shares) - set(given.shares):
            raise ValueError(f"circuit-shares must be some of shares, got {min(missing):g}")
    except ValueError as error:
        parser.error(str(error))
    torch.set_num_threads(1)
    made = train_all(given.runs, given.tasks, given.shares, given.seeds, given.steps)
    found = {
        name: [
            circuits_of(given.runs, name, task, given.circuit_shares, seed, given.mask_steps)
            for seed in range(given.seeds)
        ]
        for task in given.tasks
        for name in BEHAVIOURS_OF[task]
    }
    print_trainings(made, given.tasks, given.shares, given.seeds)
    print_circuits(found, given.circuit_shares)


if __name__ == "__main__":
    main()
