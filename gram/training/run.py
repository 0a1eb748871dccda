"""A training run from recipe to card: `gram.train("nqueens8", out="runs/nqueens8")`. The command line is its client."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Unpack

import torch

from gram import checkpoint
from gram.api import choose_device, choose_dtype
from gram.atomic_files import naming
from gram.training.arc_puzzles import open_training_puzzles, with_identities
from gram.training.config import TrainOverrides
from gram.training.data_parallel import Ranks
from gram.training.demonstration_trainer import DemonstrationTrainer
from gram.training.device_trainer import DeviceTrainer, unsupported_reason
from gram.training.diagnosis import Signs, diagnose
from gram.training.lattice_trainer import LatticeTrainer
from gram.training.progress import TrainProgress, tensorboard
from gram.training.recipe import Recipe, RecipeError, load_recipe
from gram.training.run_folder import open_run, truncate_log
from gram.training.segment import check_memory
from gram.training.trainer import LOG_EVERY_STEPS, Trainer

log = logging.getLogger(__name__)

ProgressObserver = Callable[[TrainProgress], None]
Course = Generator[None, None, dict[str, Any]]
"""A run: each `next` takes an optimiser step, the last one saves and returns the card."""


def train(
    recipe: Recipe | str | Path,
    out: Path | str,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    start: Path | str | None = None,
    puzzles: Path | str | None = None,
    task_module: Path | str | None = None,
    is_compiled: bool = True,
    is_tensorboard: bool = False,
    on_progress: ProgressObserver | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    command: str = "",
    ranks: Ranks | None = None,
    **overrides: Unpack[TrainOverrides],
) -> dict[str, Any]:
    """Trains a recipe into the folder `out` and returns the run's card. A folder with part of this run is continued.

    `recipe`: the name of a published one, a TOML file or a `Recipe`; `overrides` are fields of `TrainConfig` that
    replace the recipe's (`steps=`, `seed=` ...). `start`: a checkpoint (shipped name or directory) whose weights a new
    run begins with; its depth may differ. `puzzles`: a file of pairs to train on in place of the task's own, also
    `hf://owner/dataset/path/file`. `is_tensorboard` writes scalars into `out/tensorboard`.

    The run ends when the recipe's steps or minutes are spent. It also ends, with everything saved, soon after
    `should_stop()` is true. A recipe whose length is in steps gives the same weights bit for bit, interrupted or not,
    on one type of CPU with one number of threads and ranks.

    With several `ranks` each of them calls this; the first one calls `on_progress`. Raises `RecipeError` where the
    folder holds another run or is in use, the checkpoint is one of another model or the recipe's puzzles are missing,
    `PuzzleError` for a file that cannot be trained on, `ValueError` for a batch that the ranks cannot share.
    """
    with opened_run(
        load_recipe(recipe, task_module=task_module, **overrides),
        Path(out),
        device=device,
        dtype=dtype,
        start=start,
        puzzles=puzzles,
        is_compiled=is_compiled,
        is_tensorboard=is_tensorboard,
        on_progress=on_progress,
        should_stop=should_stop,
        command=command,
        ranks=ranks,
    ) as course:
        while True:
            try:
                next(course)
            except StopIteration as end:
                card: dict[str, Any] = end.value
                return card


@contextmanager
def opened_run(
    recipe: Recipe,
    out: Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    start: Path | str | None = None,
    puzzles: Path | str | None = None,
    is_compiled: bool = True,
    is_tensorboard: bool = False,
    on_progress: ProgressObserver | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    command: str = "",
    ranks: Ranks | None = None,
) -> Iterator[Course]:
    """A run that its user takes step by step, with the arguments of `train`; its folder is locked as long."""
    if is_tensorboard:
        import_module("torch.utils.tensorboard")  # where it is missing, nothing is written
    ranks = ranks or Ranks()
    start = None if start is None else checkpoint.find(start)
    where = device if isinstance(device, torch.device) else choose_device(device)
    kind = dtype if isinstance(dtype, torch.dtype) else choose_dtype(dtype, where, is_training=True)
    if recipe.needs_puzzles and puzzles is None:
        raise RecipeError(f"recipe {recipe.name} must be given --puzzles FILE ({recipe.needs_puzzles}), got none")
    if recipe.others and puzzles is not None:
        raise RecipeError(
            f"puzzles must be none for recipe {recipe.name}, which trains on several tasks, got {puzzles}"
        )
    ranks.share(recipe.training.batch, "batch")
    check_memory(recipe.model, recipe.training, device=where, dtype=kind, ranks=ranks.size)
    recipe = with_identities(recipe, puzzles)
    source = open_training_puzzles(recipe, puzzles)
    with ExitStack() as opened:
        if ranks.is_first:
            opened.enter_context(open_run(recipe, out, start, source.digest()))
        ranks.barrier()
        trainer = kind_of_trainer(recipe, ranks, where)(
            recipe,
            out,
            device=where,
            dtype=kind,
            is_compiled=is_compiled,
            start=start,
            puzzles=source,
            ranks=ranks,
        )
        trainer.load_state()
        if trainer.fraction >= 1:
            yield _ended(checkpoint.read_card(out))
            return
        ranks.barrier()
        if not ranks.is_first:
            yield _run(trainer, command, None, [], should_stop)
            return
        observers = [] if on_progress is None else [on_progress]
        if is_tensorboard:
            observers.append(opened.enter_context(tensorboard(out / "tensorboard", trainer.step)))
        truncate_log(out / "log.jsonl", trainer.step)
        lines = opened.enter_context((out / "log.jsonl").open("a"))
        yield _run(trainer, command, lines, observers, should_stop)


def _ended(card: dict[str, Any]) -> Course:
    """A run of which nothing is left to do."""
    yield from ()
    return card


def kind_of_trainer(recipe: Recipe, ranks: Ranks, device: torch.device) -> type[Trainer]:
    """What trains a recipe. On a GPU a warning says why one is not trained without waiting for the device."""
    if recipe.model.latent == "lattice":
        return LatticeTrainer
    if recipe.model.demonstrations:
        return DemonstrationTrainer
    if device.type != "cuda":
        return Trainer
    if reason := unsupported_reason(recipe, ranks):
        log.warning("training waits for the GPU at every step: %s", reason)
        return Trainer
    return DeviceTrainer


def _run(
    trainer: Trainer,
    command: str,
    lines: IO[str] | None,
    observers: list[ProgressObserver],
    should_stop: Callable[[], bool],
) -> Course:
    """The loop itself. All ranks make every decision in it alike."""
    training, ranks = trainer.training, trainer.ranks
    began = time.monotonic() - trainer.elapsed_s

    def is_over(is_stopping: bool = False) -> bool:
        elapsed_s = time.monotonic() - began
        trainer.elapsed_s, is_stopped = ranks.all_reduce(elapsed_s, is_stopping, trainer.device)
        return is_stopped

    logged_s, logged_step = trainer.elapsed_s, trainer.step
    kls: list[float] = []
    while trainer.fraction < 1 and not is_over(should_stop()):
        values = trainer.advance()
        if lines is not None:
            kls.append(values.get("kl_first", math.nan))
        is_over()
        evaluation: dict[str, float] = {}
        if trainer.fraction >= 1 or trainer.step % training.evaluate_every_steps == 0:
            if ranks.is_first:
                evaluation = trainer.figures = trainer.evaluate()
            is_over()
        if lines is not None and (evaluation or trainer.step % LOG_EVERY_STEPS == 0):
            elapsed_s, fraction = max(trainer.elapsed_s, 1e-9), trainer.fraction
            if not values:
                values = trainer.read()
                kls.append(values["kl_first"])
            kls = [kl for kl in kls if math.isfinite(kl)]
            values["kl_first"] = sum(kls) / len(kls) if kls else math.nan
            signs = {name: values[name] for name in ("kl_first", "rollout_right", "exact")}
            progress = TrainProgress(
                step=trainer.step,
                elapsed_s=elapsed_s,
                fraction=fraction,
                steps_per_s=(trainer.step - logged_step) / max(elapsed_s - logged_s, 1e-9),
                eta_s=elapsed_s * (1 - fraction) / max(fraction, 1e-9),
                diagnosis=diagnose(Signs(**signs, fraction=fraction)),
                evaluation=evaluation,
                **values,
            )
            logged_s, logged_step, kls = elapsed_s, trainer.step, []
            with naming(trainer.out / "log.jsonl"):
                lines.write(json.dumps(progress.to_json()) + "\n")
                lines.flush()
            for observe in observers:
                observe(progress)
        if trainer.step % training.checkpoint_every_steps == 0:
            trainer.save(command)
        yield
    return trainer.save(command)
