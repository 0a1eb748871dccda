"""A larger sparse model against a smaller dense one at equal arithmetic: `python scripts/sparse_dense_study.py`.

    python scripts/sparse_dense_study.py --runs runs/sparse-dense

The Sparse Frontier's claim (2504.17768) on mazes: at equal counted arithmetic a larger sparse model beats a smaller
dense one. Every model is as wide as the MACs of the dense one allow, counted by `step_macs`:

- dense: attention over all cells;
- sparse: gated sums over a cell's four neighbours, its row, its column and all cells (`mixer = "relations"`);
- random: the sparse model with the links of neighbours and lines among cells in a random order, equal in number and
  weight: what geometry is worth;
- axial: attention to a cell's row and column alone;
- half: the sparse model at half of the MACs: what its size is worth.

All have learned positions, so that the random one can know where a cell is; attention has rotary ones too. Trainings
are of equal steps and batches with several seeds; one that is there is kept, an unfinished one continued. On 11 x 11
cells a dense model spends less on pairs, so sparsity should matter less.

The primary figure was chosen before any training: average precision, by puzzle, of the open cells that lie on any
shortest path, ranked by the probability of a path (chance is their share, .27 and .30). It is graded where short
trainings answer almost no maze whole. Beside it: whole answers right (any shortest path), and cross-entropy of the
stored answer in nats a cell. One trajectory on held-out mazes; intervals of 95 % of differences are paired by puzzle,
training seeds drawn anew (`gram/evals/training_variance.py`). Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

import gram
from gram import checkpoint
from gram.atomic_files import replacing
from gram.config import ModelConfig
from gram.evals.cost import step_macs
from gram.evals.training_variance import mean_of_runs
from gram.formatting import markdown
from gram.kernels.philox import NoiseKey
from gram.kernels.relations import RANDOM
from gram.model import Model
from gram.sizes import shape_of
from gram.tasks.maze import GOAL, OPEN, PATH, START, WALL
from gram.tasks.maze_paths import levels_of
from gram.tasks.registry import get_task
from gram.training.config import TrainConfig
from gram.training.recipe import Recipe

ARMS = ("dense", "sparse", "random", "axial", "half")
PAIRS = (
    *(("sparse", "dense"), ("sparse", "random"), ("random", "dense")),
    *(("axial", "dense"), ("sparse", "axial"), ("sparse", "half")),
)
DENSE_DIM, HEADS, BLOCKS, LOW_LEVEL_UPDATES, DEPTH = 32, 2, 2, 2, 6
LEARNING_RATE = 3e-3
HELD_OUT, AT_ONCE = 200, 50
FIGURES = ("precision", "accuracy", "cross_entropy")


@dataclass(frozen=True, slots=True)
class Setting:
    """What differs from size to size."""

    steps: int
    """Optimiser steps of a run."""
    batch: int


SETTINGS = {"maze21": Setting(300, 8), "maze11": Setting(800, 16)}


def model_of(task_name: str, arm: str, dim: int, hidden: int) -> ModelConfig:
    """An arm's model of so many channels, and so many hidden units of a channel SwiGLU."""
    task = get_task(task_name)
    mixer: dict[str, Any] = {"mixer": "attention", "heads": HEADS, "positions": "both"}
    if arm == "axial":
        mixer["pattern"] = "axial"
    elif arm != "dense":
        names = tuple(RANDOM.get(name, name) for name in task.relations) if arm == "random" else task.relations
        mixer = {"mixer": "relations", "relations": names, "mixer_hidden": dim // 4 * len(names)}
        mixer["positions"] = "learned"
    return ModelConfig(
        task=task.name,
        **shape_of(task),
        **mixer,
        guidance="none",
        dim=dim,
        hidden=hidden,
        blocks=BLOCKS,
        low_level_updates=LOW_LEVEL_UPDATES,
        depth=DEPTH,
    )


def matched(task_name: str, arm: str) -> ModelConfig:
    """An arm's model: the widest whose step takes no more MACs than the dense one's (`half`: than half of them), with
    hidden units twice its channels, and as many more as still fit."""
    dense = model_of(task_name, "dense", DENSE_DIM, 2 * DENSE_DIM)
    if arm == "dense":
        return dense
    most = step_macs(dense)["total"] * (0.5 if arm == "half" else 1)

    def fits(dim: int, hidden: int) -> bool:
        return step_macs(model_of(task_name, arm, dim, hidden))["total"] <= most

    dim = max(dim for dim in range(4, 8 * DENSE_DIM, 4) if fits(dim, 2 * dim))
    return model_of(task_name, arm, dim, max(hidden for hidden in range(2 * dim, 8 * dim, 4) if fits(dim, hidden)))


def recipe_of(task_name: str, arm: str, seed: int, steps: int | None, rate: float) -> Recipe:
    """The training of one run, at a peak learning rate."""
    setting = SETTINGS[task_name]
    length = steps or setting.steps
    training = TrainConfig(
        steps=length,
        batch=setting.batch,
        learning_rate=rate,
        warmup_steps=min(30, length),
        ema=0.95,
        rollout_slots=1,
        evaluate_every_steps=length,
        evaluate_puzzles=8,
        evaluate_width=1,
        checkpoint_every_steps=100,
        seed=seed,
    )
    model = matched(task_name, arm)
    return Recipe(f"sparse-dense-{task_name}-{arm}", "Sparse against dense", get_task(task_name), model, training)


def average_precision(scores: NDArray[np.float64], is_right: NDArray[np.bool_]) -> float:
    """Mean, over the right ones, of the share of right ones among those ranked as high or higher."""
    ranked = is_right[np.argsort(-scores, kind="stable")]
    return float((np.cumsum(ranked) / np.arange(1, len(ranked) + 1))[ranked].mean())


@torch.no_grad()
def read_run(folder: Path, task_name: str) -> dict[str, list[float]]:
    """Figures of a finished run, one for each held-out puzzle: kept in its folder."""
    kept = folder / "sparse-dense.json"
    if kept.is_file():
        read: dict[str, list[float]] = json.loads(kept.read_text())
        return read
    task, model = get_task(task_name), checkpoint.load(folder, dtype=torch.float32)
    held_out = task.split("test", limit=HELD_OUT)
    assert held_out.answers is not None
    side = int(task.tokens**0.5)
    levels, _ = levels_of(held_out.puzzles, side, WALL, START, GOAL)
    weights = model.weights()
    found: dict[str, list[float]] = {name: [] for name in FIGURES}
    for first in range(0, len(held_out), AT_ONCE):
        some = held_out.take(np.arange(first, min(first + AT_ONCE, len(held_out))))
        assert some.answers is not None
        puzzles, numbers = torch.from_numpy(some.puzzles).long(), torch.arange(len(some))
        h, l = model.initial_state(len(some))
        e_x = model.embed(puzzles)
        for step in range(model.config.depth):
            key = NoiseKey(0, numbers, numbers, torch.full_like(numbers, step))
            h, l, *_ = model.step(h, l, e_x, key, weights=weights)
        logits = model.decode(h)
        targets = torch.from_numpy(some.answers).long()
        entropy = cross_entropy(logits.transpose(1, 2), targets, reduction="none").mean(1)
        is_right = task.verify(some.puzzles, logits.argmax(-1).numpy().astype(np.uint8))
        path = (logits[..., PATH] - logits[..., OPEN]).double().numpy()
        found["cross_entropy"] += entropy.tolist()
        found["accuracy"] += is_right.astype(float).tolist()
        for puzzle, level, score in zip(some.puzzles, levels[first:], path, strict=False):
            is_open = puzzle == OPEN
            found["precision"].append(average_precision(score[is_open], level[is_open] >= 0))
    with replacing(kept) as written:
        written.write_text(json.dumps(found))
    return found


def study(
    runs: Path, tasks: Sequence[str], arms: Sequence[str], seeds: int, steps: int | None, rate: float = LEARNING_RATE
) -> dict[str, dict[str, Any]]:
    """Trains what is missing, and reads every run: of each task, arm and figure `[R, P]`."""
    made: dict[str, Any] = {task: {arm: [] for arm in arms} for task in tasks}
    todo = [(seed, task, arm) for seed in range(seeds) for task in tasks for arm in arms]
    for number, (seed, task, arm) in enumerate(todo, 1):
        folder, started = runs / f"{task}-{arm}-seed{seed}", time.monotonic()
        recipe = recipe_of(task, arm, seed, steps, rate)
        gram.train(recipe, folder, is_compiled=False, dtype="bfloat16", device="cpu")
        found = read_run(folder, task)
        told = ", ".join(f"{name} {np.mean(found[name]):.4f}" for name in FIGURES)
        print(
            f"{number}/{len(todo)} {folder.name}: {told}, {time.monotonic() - started:.0f} s",
            file=sys.stderr,
            flush=True,
        )
        made[task][arm].append(found)
    return {
        task: {arm: {name: np.array([run[name] for run in each]) for name in FIGURES} for arm, each in of.items()}
        for task, of in made.items()
    }


def print_study(found: dict[str, dict[str, Any]]) -> None:
    """Of each task the models and their figures, and the differences."""
    for task, of in found.items():
        dense, rows = step_macs(matched(task, "dense"))["total"], []
        for arm in of:
            config = matched(task, arm)
            parameters = sum(parameter.numel() for parameter in Model(config).parameters())
            ratio = step_macs(config)["total"] / dense
            precision = mean_of_runs(of[arm]["precision"])
            each = ", ".join(f"{100 * value:.1f}" for value in of[arm]["precision"].mean(1))
            rows.append(
                [
                    arm,
                    f"{config.dim}, {config.hidden}",
                    f"{parameters:,}",
                    f"{ratio:.3f}",
                    f"{precision.estimate:.1%} ({precision.low:.1%} to {precision.high:.1%})",
                    each,
                    f"{of[arm]['accuracy'].mean():.1%}",
                    f"{of[arm]['cross_entropy'].mean():.4f}",
                ]
            )
        heads = ["model", "channels, hidden", "parameters", "MACs / dense", "average precision (95 %)", "by seed, %"]
        print(f"\n### {task}\n")
        print(markdown([*heads, "answers right", "cross-entropy, nats"], rows))
        rows = []
        for one, other in (pair for pair in PAIRS if {*pair} <= {*of}):
            rows.append([f"{one} minus {other}"])
            for name in ("precision", "accuracy"):
                if not (of[one][name].any() or of[other][name].any()):
                    rows[-1].append("neither answers one")
                    continue
                gap = mean_of_runs(of[one][name], minus=of[other][name])
                rows[-1].append(f"{100 * gap.estimate:+.1f} ({100 * gap.low:+.1f} to {100 * gap.high:+.1f})")
        print()
        print(markdown(["difference", "average precision, points (95 %)", "answers right, points (95 %)"], rows))


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the trained runs")
    parser.add_argument("--tasks", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="optimiser steps of each run [default: the task's own]")
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE, help="peak [default: %(default)g]")
    given = parser.parse_args()
    try:
        if given.seeds < 2:
            raise ValueError(f"seeds must be at least 2, got {given.seeds}")
        if given.steps is not None and given.steps < 1:
            raise ValueError(f"steps must be at least 1, got {given.steps}")
        if not 0 < given.learning_rate <= 1:
            raise ValueError(f"learning-rate must be above 0 and at most 1, got {given.learning_rate:g}")
        if given.runs.exists() and not given.runs.is_dir():
            raise ValueError(f"runs must be a folder, got the file {given.runs}")
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    torch.set_num_threads(1)
    print_study(study(given.runs, given.tasks, given.arms, given.seeds, given.steps, given.learning_rate))


if __name__ == "__main__":
    main()
