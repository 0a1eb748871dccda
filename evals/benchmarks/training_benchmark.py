"""What an optimiser step of training costs: seconds, counted arithmetic a second, and the share of what matrix products
alone reach here. Another commit's trainer is timed in the same run, by turns, as a process of its own.
"""

from __future__ import annotations

import csv
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import linear

from gram.api import choose_device, choose_dtype
from gram.evals.benchmarks import training_probe
from gram.evals.benchmarks.asked_process import AskedProcess, check_folder
from gram.evals.benchmarks.timing import ROOT, Measurement
from gram.model import Model
from gram.training.cost import cost_of
from gram.training.recipe import Recipe, load_recipe

WARM_STEPS = 3
"""Steps before any is timed: the first ones compile."""
COMPARED_STEPS = 20
"""Steps from the start whose losses are compared."""
MADE_PUZZLES = 64
"""Puzzles of the file that a recipe trains on here where none is given: enough to draw from, and soon made."""

MOST_ROWS = 65_536
"""Rows of a product that is timed alone: no processor needs more to be busy, and a large recipe's would fill memory."""


class Probe(AskedProcess):
    """A process that trains with the package of a folder, in one of `training_probe.VERSIONS` or its own choice. Asked
    for some optimiser steps it answers `seconds`, `cpu_seconds` and `losses` of each (of the last one alone where a
    device keeps them), and `peak_bytes`."""

    def __init__(self, folder: Path, recipe: str, puzzles: str, *version: str) -> None:
        must = f"the trainer in {folder} must run the recipe"
        super().__init__(folder, training_probe.__file__, recipe, puzzles, *version, must=must)
        self.folder = folder


def rows(
    recipe: str,
    *,
    against: Path | None = None,
    puzzles: Path | None = None,
    rounds: int = 5,
    steps: int = 4,
    tell: Callable[[str], None] = lambda line: None,
) -> Iterator[Measurement]:
    """Rows of one recipe (a name or a TOML file): a median over rounds of `steps` optimiser steps each, with the least
    and the greatest. The versions take turns in random order, and products alone are timed in every round.

    Raises `ValueError` where `against` holds no package, or a trainer cannot run the recipe; `RecipeError` as
    `load_recipe`.
    """
    loaded = load_recipe(recipe)
    if puzzles is not None and not puzzles.exists():
        raise ValueError(f"puzzles must be a file that is there, got {puzzles}")
    folders = {"here": ROOT} | ({} if against is None else {"other": check_folder(against)})
    found = str(Path(recipe).absolute()) if Path(recipe).suffix == ".toml" else recipe
    seconds: dict[str, list[float]] = {name: [] for name in (*folders, "products")}
    processor: dict[str, list[float]] = {name: [] for name in folders}
    losses: dict[str, list[float]] = {name: [] for name in folders}
    device = choose_device()
    with ExitStack() as opened:
        file = str(puzzles.absolute()) if puzzles else opened.enter_context(made_puzzles(loaded))
        products, products_flops = products_of(loaded, device, choose_dtype("auto", device))
        probes = {name: Probe(folder, found, file) for name, folder in folders.items()}
        for probe in probes.values():
            opened.callback(probe.close)
        for name, probe in probes.items():
            tell(f"compiling and warming up: {probe.folder}")
            losses[name] += probe.ask(WARM_STEPS)["losses"]
        products()
        rng = random.Random(0)
        for round_ in range(rounds):
            order = [*folders, "products"]
            rng.shuffle(order)
            for name in order:
                if name == "products":
                    began = time.perf_counter()
                    products()
                    seconds[name].append(time.perf_counter() - began)
                    continue
                made = probes[name].ask(steps)
                seconds[name].append(sum(made["seconds"]) / steps)
                processor[name].append(sum(made["cpu_seconds"]) / steps)
                losses[name] += made["losses"]
            tell(f"round {round_ + 1} of {rounds}: " + ", ".join(f"{n} {s[-1]:.3f} s" for n, s in seconds.items()))
        missing = COMPARED_STEPS - len(losses["here"])
        if against is not None and missing > 0:
            for name, probe in probes.items():
                losses[name] += probe.ask(missing)["losses"]
    cost = cost_of(loaded)
    rates = [cost.step_flops / each / 1e9 for each in seconds["here"]]
    reached = [products_flops / each / 1e9 for each in seconds["products"]]
    facts = {"seconds": seconds, "cpu_seconds": processor, "step_flops": cost.step_flops, "steps_a_round": steps}
    yield Measurement.of(f"{recipe}: seconds an optimiser step", seconds["here"], facts=facts)
    yield Measurement.of(f"{recipe}: counted GFLOP/s", rates)
    yield Measurement.of(f"{recipe}: GFLOP/s of its core's matrix products alone", reached)
    share = [a / b for a, b in zip(rates, reached, strict=True)]
    yield Measurement.of(f"{recipe}: share of what products alone reach", share)
    if against is None:
        return
    name = f"{recipe}: seconds of a step in {against.name} over those here"
    yield Measurement.of_ratios(name, seconds["other"], seconds["here"], None, facts={"against": str(against)})
    # Other work on the machine stretches the clock's time of both, and the processor's time of both much less.
    name = f"{recipe}: the same in processor time"
    yield Measurement.of_ratios(name, processor["other"], processor["here"])
    compared = {name: each[:COMPARED_STEPS] for name, each in losses.items()}
    if min(map(len, compared.values())) < COMPARED_STEPS:
        return  # a device keeps its losses
    apart = [abs(a - b) for a, b in zip(compared["here"], compared["other"], strict=True)]
    worst = max(apart)
    label = f"{recipe}: largest difference of the loss in the first {COMPARED_STEPS} steps"
    yield Measurement(name=label, ratio=worst, low=min(apart), high=worst, facts={"losses": compared})


@contextmanager
def made_puzzles(recipe: Recipe) -> Iterator[str]:
    """A file of pairs of the task's own generator for a recipe that trains on a file; `-` for one that does not.

    Raises `ValueError` where the task makes no puzzles.
    """
    if not recipe.needs_puzzles or recipe.others:
        yield "-"
        return
    task = recipe.task
    if task.split_size("train") == 0:
        raise ValueError(f"recipe {recipe.name} must be given --puzzles FILE ({recipe.needs_puzzles}), got none")
    puzzles, answers = task.training_batch(np.random.default_rng(0), MADE_PUZZLES + recipe.training.evaluate_puzzles)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "puzzles.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["question", "answer"])
            writer.writerows(
                (task.format(puzzle), task.format(puzzle, answer))
                for puzzle, answer in zip(puzzles, answers, strict=True)
            )
        yield str(path)


def products_of(recipe: Recipe, device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], None], float]:
    """Every matrix product that a core call of a whole batch needs (of `MOST_ROWS` rows of it), forward and for both
    gradients, one after another and with nothing between; and their floating-point operations. Sums and attention
    between tokens are left out."""
    config = recipe.model
    batch, flops = recipe.training.rows, 0.0
    made: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    for name, weight in Model(config).weights().items():
        if not name.startswith("low.") or weight.ndim != 2:
            continue
        is_of_tokens = config.mixer == "token" and ".mixer." in name
        count = min(MOST_ROWS, batch * (config.dim if is_of_tokens else config.length))
        outputs, inputs = weight.shape
        x, g = (torch.randn(count, size, device=device).to(dtype) for size in (inputs, outputs))
        made.append((x, g, weight.detach().to(device, dtype)))
        flops += 3 * 2.0 * count * outputs * inputs

    def run() -> None:
        with torch.no_grad():
            for x, g, weight in made:
                linear(x, weight)
                torch.mm(g, weight)
                torch.mm(g.t(), x)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run, flops
