"""Several runs of one recipe that differ in their seeds, in one process: `gram train RECIPE --seeds 0,1,2`.

Each run has a folder, a state and, on a GPU, a queue of work of its own, and ends with the weights that it has alone
(on a GPU as far as any two runs there end alike: docs/reproducibility.md).
As many as a GPU's memory holds go side by side, a step of each by turns, so that a GPU which one run does not fill has
work of the others; the rest follow. On a CPU they go one after another: nothing would be gained.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch._dynamo import config as compiler

from gram.api import choose_device, choose_dtype
from gram.model import Model
from gram.sampler.run import check_bytes
from gram.training.progress import TrainProgress
from gram.training.recipe import Recipe, RecipeError
from gram.training.rollouts import CAPACITY
from gram.training.run import Course, opened_run
from gram.training.segment import saved_bytes

COMPILED_EACH = 8
"""Versions of a function that the compiler makes for one run at most; each run has its own."""


def train_seeds(
    recipe: Recipe,
    out: Path,
    seeds: list[int],
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    at_once: int | None = None,
    on_progress: Callable[[int, TrainProgress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    **more: Any,
) -> dict[int, dict[str, Any]]:
    """Trains a recipe once with each seed, into `out/seed0` .., and returns the cards. `at_once` is how many go side by
    side (None: what the device's memory holds); `on_progress` is told the seed; `more` are arguments of `opened_run`.

    After `should_stop()` each run that has begun is saved, and no other is begun. Where one raises, the others at its
    side are saved before the error goes on. Raises `RecipeError` for seeds that are none or not different and for a
    length in minutes, `ValueError` where not even the states of one run fit in memory, and what `train` raises.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise RecipeError(f"seeds must be different ones, at least one, got {', '.join(map(str, seeds)) or 'none'}")
    if recipe.training.minutes is not None:
        raise RecipeError("seeds must be of a recipe whose length is in steps: minutes would count all runs' time")
    runs = {seed: replace(recipe, training=replace(recipe.training, seed=seed)) for seed in seeds}
    where = device if isinstance(device, torch.device) else choose_device(device)
    kind = dtype if isinstance(dtype, torch.dtype) else choose_dtype(dtype, where, is_training=True)
    count = at_once or fitting(recipe, where, kind)
    cards: dict[int, dict[str, Any]] = {}
    stop = _Stop(should_stop)
    with compiler.patch(recompile_limit=max(compiler.recompile_limit, COMPILED_EACH * min(count, len(seeds)))):
        for first in range(0, len(seeds), count):
            if first and stop():
                break
            with ExitStack() as opened:
                courses: dict[int, Course] = {}
                for seed in seeds[first : first + count]:
                    observe = None if on_progress is None else _told(on_progress, seed)
                    course = opened_run(
                        runs[seed],
                        out / f"seed{seed}",
                        device=where,
                        dtype=kind,
                        on_progress=observe,
                        should_stop=stop,
                        **more,
                    )
                    courses[seed] = opened.enter_context(course)
                cards |= _by_turns(courses, stop)
    return cards


class _Stop:
    """Whether runs are to be saved and ended: as they were asked to, or since another has failed."""

    def __init__(self, asked: Callable[[], bool]) -> None:
        self.asked, self.has_failed = asked, False

    def __call__(self) -> bool:
        return self.has_failed or self.asked()


def _told(on_progress: Callable[[int, TrainProgress], None], seed: int) -> Callable[[TrainProgress], None]:
    return lambda progress: on_progress(seed, progress)


def _by_turns(courses: dict[int, Course], stop: _Stop) -> dict[int, dict[str, Any]]:
    """Takes a step of each run by turns until all have ended. Where one fails, the others are ended first."""
    left, cards = dict(courses), {}
    failed: Exception | None = None
    while left:
        for seed, course in list(left.items()):
            try:
                next(course)
            except StopIteration as end:
                cards[seed] = end.value
                del left[seed]
            except Exception as error:
                failed, stop.has_failed = failed or error, True
                del left[seed]
    if failed is not None:
        raise failed
    return cards


def fitting(recipe: Recipe, device: torch.device, dtype: torch.dtype) -> int:
    """How many runs of a recipe go side by side: what the free memory of a GPU holds, at least one; one on a CPU, and
    of a lattice or a memory of demonstrations, which wait for the device. Raises `ValueError` where not even the states
    of one fit."""
    if device.type != "cuda" or recipe.model.latent == "lattice" or recipe.model.demonstrations:
        return 1
    free, _ = torch.cuda.mem_get_info(device)
    return fitting_in(free, recipe, device, dtype)


def fitting_in(free: int, recipe: Recipe, device: torch.device, dtype: torch.dtype) -> int:
    """`fitting` in so many free bytes."""
    held, kept = run_bytes(recipe, dtype)
    check_bytes(held, free, device, f"the states of one run of recipe {recipe.name}")
    return max(1, free // (held + 2 * kept))


def run_bytes(recipe: Recipe, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes of a run on its device, counted from shapes: what it holds all the time (weights, what AdamW keeps of them,
    states of slots and rollouts), and what a backward pass reads, as eager execution keeps it. A captured step has
    memory of its own beside that of the steps before it, so a run takes the latter twice at most; compiled code keeps
    less. Puzzles and work space are left out."""
    config, training = recipe.model, recipe.training
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in Model(config).parameters())
    # In fp32 master, average, gradient and two moments; in `dtype` the copy that computes, and its gradient.
    weights = parameters * (5 * torch.float32.itemsize + 2 * dtype.itemsize)
    states = 2 * training.rows + training.rollout_slots * (2 + config.depth) + CAPACITY
    held = weights + states * config.length * config.dim * dtype.itemsize
    if training.gradient_steps > 1:
        rows = min(training.rows_at_once, training.batch)
        return held, training.gradient_steps * rows * saved_bytes(config, training, dtype)
    return held, training.batch * saved_bytes(replace(config, transitions=1), training, dtype)
