"""How sparse parameters are best shared out between experts and a lookup memory: `python scripts/allocation_study.py`.

    python scripts/allocation_study.py --runs runs/allocation

Engram's allocation law (2601.07372, section 3): of the parameters that no token uses at once, a share rho goes to
routed experts and 1 - rho to tables of n-grams. Parameters and arithmetic a token are equal: every token keeps
`KEPT` experts of the same size whatever rho is, and with rho = 0 there are no more than these. Does an inner share
beat both ends? Models of one size are trained for equal steps with several seeds (a run that is there is continued, a
finished one kept), and read on held-out puzzles: cross-entropy of an answer token after the last step, in nats, and
accuracy of one trajectory. Prints Markdown; with `--out` a picture too.

Deviations are pooled over the shares of a task. An inner share beats both ends where its one-sided t-test against each
has a p-value below .05; the larger one counts, and Holm's method corrects the inner shares of a task. Intervals are of
95 %, by the pooled deviation, without that correction.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

import gram
from gram import checkpoint
from gram.atomic_files import replacing
from gram.checkpoint import write_atomically
from gram.config import ModelConfig
from gram.evals.cost import lookup_share, step_macs
from gram.evals.pages.charts import Chart, linear_ticks
from gram.evals.pages.pictures import svg
from gram.evals.statistics import holm, student_quantile, student_tail
from gram.kernels import experts, lookup
from gram.kernels.philox import NoiseKey
from gram.model import Model
from gram.sizes import shape_of
from gram.tasks.registry import get_task
from gram.training.config import TrainConfig
from gram.training.recipe import Recipe

SHARES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
KEPT, INACTIVE = 2, 20
"""Experts that a token takes, and as many others as the sparse parameters would make."""
DIM, HIDDEN, EXPERT_HIDDEN, BLOCKS, DEPTH, CHANNELS, HEADS = 64, 64, 32, 2, 8, 8, 2
LEAST_ROWS = 2
HELD_OUT = 100


@dataclass(frozen=True, slots=True)
class Setting:
    """What differs from task to task."""

    lines: tuple[str, ...]
    """Along which n-grams are looked up; two, so that tables are of one number."""
    relations: tuple[str, ...]
    steps: int
    """Optimiser steps of a run."""
    batch: int
    is_drawn: bool = False
    """Whether training draws among a puzzle's solutions: cross-entropy is then the mean over all of them."""


SETTINGS = {
    "maze15": Setting(("row", "column"), ("up", "down", "left", "right", "row", "column", "all"), 260, 16),
    "sudoku9": Setting(("row", "box"), ("row", "column", "box", "all"), 450, 24),
    "nqueens8": Setting(
        ("diagonal", "antidiagonal"), ("row", "column", "diagonal", "antidiagonal", "all"), 480, 32, True
    ),
}


def budget() -> int:
    """Sparse parameters of a model: those of `INACTIVE` experts in every block, their rows of the router included."""
    return BLOCKS * INACTIVE * (3 * DIM * EXPERT_HIDDEN + DIM)


def model_of(task_name: str, share: float) -> ModelConfig:
    """The model of a task that has this share of its sparse parameters in experts. Raises `ValueError` for a share
    that is none, or that makes no whole number of experts, or a memory without rows."""
    if not 0 <= share <= 1:
        raise ValueError(f"share must be within 0 and 1, got {share:g}")
    more = share * INACTIVE
    if abs(more - round(more)) > 1e-9:
        raise ValueError(f"share must be a multiple of 1/{INACTIVE}, got {share:g}")
    task, setting = get_task(task_name), SETTINGS[task_name]
    found: dict[str, Any] = {}
    if share < 1:
        tables = len(setting.lines) * 2 * HEADS
        projections = 2 * tables * CHANNELS * DIM + DIM * (1 + lookup.TAPS)
        rows = ((1 - share) * budget() - projections) / (tables * CHANNELS)
        if rows < LEAST_ROWS:
            raise ValueError(f"share must leave tables at least {LEAST_ROWS} rows, got {share:g}")
        found = {"lookup": setting.lines, "lookup_heads": HEADS, "lookup_channels": CHANNELS, "lookup_rows": int(rows)}
    return ModelConfig(
        task=task.name,
        **shape_of(task),
        mixer="relations",
        relations=setting.relations,
        mixer_hidden=8 * len(setting.relations),
        positions="none",
        guidance="none",
        dim=DIM,
        hidden=HIDDEN,
        blocks=BLOCKS,
        low_level_updates=1,
        depth=DEPTH,
        experts=KEPT + round(more),
        experts_kept=KEPT,
        expert_hidden=EXPERT_HIDDEN,
        **found,
    )


def recipe_of(task_name: str, share: float, seed: int, steps: int | None) -> Recipe:
    """The training of one run."""
    setting = SETTINGS[task_name]
    length = steps or setting.steps
    training = TrainConfig(
        steps=length,
        batch=setting.batch,
        learning_rate=2e-3,
        warmup_steps=min(50, length),
        ema=0.98,
        rollout_slots=1,
        evaluate_every_steps=length,
        evaluate_puzzles=8,
        evaluate_width=1,
        checkpoint_every_steps=100,
        seed=seed,
    )
    name = f"allocation-{task_name}-{share:g}"
    return Recipe(name, "Allocation study", get_task(task_name), model_of(task_name, share), training)


@torch.no_grad()
def read_run(folder: Path, task_name: str) -> dict[str, float]:
    """Held-out figures of a finished run: kept in its folder."""
    kept = folder / "allocation.json"
    if kept.is_file():
        read: dict[str, float] = json.loads(kept.read_text())
        return read
    task, model = get_task(task_name), checkpoint.load(folder, dtype=torch.float32)
    held_out = task.split("validation", limit=HELD_OUT)
    assert held_out.answers is not None
    puzzles = torch.from_numpy(held_out.puzzles).long()
    h, l = model.initial_state(len(puzzles))
    e_x, numbers, weights = model.embed(puzzles), torch.arange(len(puzzles)), model.weights()
    for step in range(model.config.depth):
        key = NoiseKey(0, numbers, numbers, torch.full_like(numbers, step))
        h, l, *_ = model.step(h, l, e_x, key, weights=weights)
    logits = model.decode(h)
    every = [task.solutions(puzzle) for puzzle in held_out.puzzles] if SETTINGS[task_name].is_drawn else None
    targets = held_out.answers[:, None] if every is None else every
    entropies = [
        cross_entropy(row.expand(len(answers), -1, -1).flatten(0, 1), torch.from_numpy(answers).long().flatten())
        for row, answers in zip(logits, targets, strict=True)
    ]
    is_right = task.verify(held_out.puzzles, logits.argmax(-1).numpy().astype(np.uint8))
    found = {
        "cross_entropy": float(torch.stack(entropies).mean()),
        "accuracy": float(is_right.mean()),
        "dropped": float(json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["experts_dropped"]),
    }
    with replacing(kept) as written:
        written.write_text(json.dumps(found))
    return found


@dataclass(frozen=True, slots=True)
class Verdict:
    """One share of one task against both ends."""

    mean: float
    half: float
    """Half of the 95 % interval of the mean."""
    gain: float
    """Cross-entropy of the better end, minus its own."""
    gain_half: float
    p: float
    """Of no gain over both ends, corrected; NaN at an end."""


def verdicts(entropy_SR: NDArray[np.float64]) -> list[Verdict]:
    """Shares in rising order, the first and the last the ends, `R` seeds each: cross-entropies `[S, R]`."""
    shares, seeds = entropy_SR.shape
    means, degrees = entropy_SR.mean(1), shares * (seeds - 1)
    deviation = math.sqrt(entropy_SR.var(1, ddof=1).mean())
    student = student_quantile(degrees)
    of_mean, of_gap = deviation / math.sqrt(seeds), deviation * math.sqrt(2 / seeds)
    better = min(means[0], means[-1])
    inner = [student_tail((better - mean) / of_gap if of_gap else math.nan, degrees) for mean in means[1:-1]]
    corrected = [math.nan, *holm(inner).tolist(), math.nan]
    return [
        Verdict(float(mean), student * of_mean, float(better - mean), student * of_gap, p)
        for mean, p in zip(means, corrected, strict=True)
    ]


def reached(config: ModelConfig) -> float:
    """Share of the tables' rows that 500 training puzzles reach."""
    puzzles, _ = get_task(config.task).training_batch(np.random.default_rng(0), 500)
    at = lookup.addresses(config, config.vocabulary, torch.device("cpu"))
    rows = lookup.rows_of(torch.from_numpy(puzzles).long(), at)
    return len(rows.unique()) / sum(lookup.table_sizes(config))


def described(config: ModelConfig) -> dict[str, float]:
    """What is held equal, and what the share decides. The arithmetic of a token is that of the experts that it is
    routed to: what experts compute beyond that, to fill their capacity, is left out."""
    parameters = sum(parameter.numel() for parameter in Model(config).parameters())
    macs = step_macs(config)
    places = config.experts * experts.capacity(config)
    asked = config.experts_kept * config.length
    calls = config.transitions * (config.low_level_updates + 1) * config.blocks
    spare = calls * 3 * config.dim * config.expert_hidden * (places - asked)
    return {
        "experts": config.experts,
        "rows": sum(lookup.table_sizes(config)) if config.lookup else 0,
        "reached": reached(config) if config.lookup else math.nan,
        "parameters": parameters,
        "macs_a_token": (macs["total"] - spare) / config.length,
        "lookup_share": lookup_share(config, 20) if config.lookup else 0.0,
    }


def shown(value: float, form: str) -> str:
    """A figure, or nothing where there is none."""
    return "" if math.isnan(value) else format(value, form)


def study(runs: Path, tasks: Sequence[str], shares: Sequence[float], seeds: int, steps: int | None) -> dict[str, Any]:
    """Trains what is missing, and reads every run."""
    made: dict[str, Any] = {}
    todo = [(task, seed, share) for seed in range(seeds) for task in tasks for share in shares]
    for number, (task, seed, share) in enumerate(todo, 1):
        folder = runs / f"{task}-rho{share:g}-seed{seed}"
        started = time.monotonic()
        gram.train(recipe_of(task, share, seed, steps), folder, is_compiled=False, dtype="float32", device="cpu")
        found = read_run(folder, task)
        print(
            f"{number}/{len(todo)} {folder.name}: cross-entropy {found['cross_entropy']:.4f}, accuracy "
            f"{found['accuracy']:.1%}, {time.monotonic() - started:.0f} s",
            file=sys.stderr,
            flush=True,
        )
        made.setdefault(task, {}).setdefault(share, []).append(found)
    return {
        task: {
            "model": [described(model_of(task, share)) for share in shares],
            "verdicts": [asdict(each) for each in verdicts(column(made[task], shares, "cross_entropy"))],
            "accuracy": column(made[task], shares, "accuracy").mean(1).tolist(),
            "dropped": column(made[task], shares, "dropped").mean(1).tolist(),
        }
        for task in tasks
    }


def column(found: dict[float, list[dict[str, float]]], shares: Sequence[float], name: str) -> NDArray[np.float64]:
    """One figure of every share and seed, `[S, R]`."""
    return np.array([[run[name] for run in found[share]] for share in shares])


def print_study(found: dict[str, Any], shares: Sequence[float]) -> None:
    """The tables."""
    for task, of in found.items():
        print(f"\n### {task}\n")
        print(
            "| rho | experts | rows (reached) | parameters | MACs a token and step | lookup's share of them | "
            "choices dropped | cross-entropy, nats (95 %) | better end minus this (95 %) | p (Holm) | accuracy |"
        )
        print("|---|---|---|---|---|---|---|---|---|---|---|")
        parts = zip(shares, of["model"], of["verdicts"], of["accuracy"], of["dropped"], strict=True)
        for share, model, verdict, accuracy, dropped in parts:
            gain = "" if math.isnan(verdict["p"]) else f"{verdict['gain']:+.4f} (± {verdict['gain_half']:.4f})"
            print(
                f"| {share:g} | {model['experts']} | {model['rows']:,} {shown(model['reached'], '.0%')} "
                f"| {model['parameters']:,} | {model['macs_a_token']:,.0f} | {model['lookup_share']:.2%} "
                f"| {dropped:.1%} | {verdict['mean']:.4f} (± {verdict['half']:.4f}) | {gain} "
                f"| {shown(verdict['p'], '.3f')} | {accuracy:.1%} |"
            )
        wins = [share for share, each in zip(shares, of["verdicts"], strict=True) if each["p"] < 0.05]
        said = (
            f"beat both ends: rho {', '.join(f'{share:g}' for share in wins)}" if wins else "no inner share beats both"
        )
        print(f"\n{task}: {said}.")


def draw(found: dict[str, Any], shares: Sequence[float], out: Path) -> None:
    """The picture: cross-entropy by rho, a chart a task, with the intervals of the means."""
    charts = []
    for place, (task, of) in enumerate(found.items()):
        means, halves = ([each[name] for each in of["verdicts"]] for name in ("mean", "half"))
        low = min(mean - half for mean, half in zip(means, halves, strict=True))
        high = max(mean + half for mean, half in zip(means, halves, strict=True))
        edge = 0.08 * (high - low) or 0.01
        chart = Chart(
            x_range=(-0.05, 1.05), y_range=(low - edge, high + edge), title=task, width=400, height=300, left=84
        )
        ticks = linear_ticks(*chart.y_range)
        chart.axes(
            shares,
            ticks,
            x_label=f"{task}: share of experts (rho)",
            y_label="cross-entropy, nats" if not place else "",
            x_format="{:g}".format,
            y_format="{:g}".format,
        )
        for share, mean, half in zip(shares, means, halves, strict=True):
            chart.whisker(share, mean - half, mean + half, "s1")
            chart.dot(share, mean, "s1", f"{mean:.4f}")
        chart.line(list(zip(shares, means, strict=True)), "s1")
        charts.append(chart)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "allocation.svg", svg(charts).encode())


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the trained runs")
    parser.add_argument("--tasks", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--shares", nargs="+", type=float, default=list(SHARES), help="of experts, rising")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="optimiser steps of each run [default: the task's own]")
    parser.add_argument("--out", type=Path, help="folder of the picture")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    try:
        if len(given.shares) < 3 or sorted(set(given.shares)) != given.shares:
            raise ValueError(f"shares must be at least three rising numbers, got {given.shares}")
        if given.seeds < 2:
            raise ValueError(f"seeds must be at least 2, got {given.seeds}")
        if given.steps is not None and given.steps < 1:
            raise ValueError(f"steps must be at least 1, got {given.steps}")
        if given.runs.exists() and not given.runs.is_dir():
            raise ValueError(f"runs must be a folder, got the file {given.runs}")
        for task in given.tasks:
            for share in given.shares:
                model_of(task, share)
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    found = study(given.runs, given.tasks, given.shares, given.seeds, given.steps)
    if given.out is not None:
        draw(found, given.shares, given.out)
    print(json.dumps(found)) if given.json else print_study(found, given.shares)


if __name__ == "__main__":
    main()
