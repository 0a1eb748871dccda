"""`gram train RECIPE --out DIR`: trains a checkpoint; the same command continues after a kill."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gram.cli.errors import Interrupted, keeping, stopped_by
from gram.cli.options import Json, Quiet, TaskModule, at_least_one

if TYPE_CHECKING:
    from gram.training.config import TrainOverrides
    from gram.training.progress import TrainProgress

PLAIN_EVERY_S = 15.0
SAME_SIGNAL_S = 1.0
"""A second SIGTERM within so long is the first once more: `timeout` sends it to its child and then to its group."""


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a published recipe, or a TOML file.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder of the run; an unfinished one is continued.")
    ],
    minutes: Annotated[
        float | None, typer.Option(metavar="X", help="Wall-clock minutes in total, in place of the recipe's.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(metavar="K", help="Optimiser steps in total, in place of the recipe's.")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="S", help="Seed in place of the recipe's.")] = None,
    seeds: Annotated[
        str | None,
        typer.Option(metavar="S,S..", help="A run with each of these seeds, in DIR/seedS; on a GPU side by side."),
    ] = None,
    at_once: Annotated[
        int | None,
        typer.Option(metavar="K", help="Of --seeds: runs side by side. [default: what a GPU holds, 1 on a CPU]"),
    ] = None,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where to run.")] = "auto",
    dtype: Annotated[str, typer.Option(metavar="auto|bfloat16|float32", help="Type to compute in.")] = "auto",
    start: Annotated[
        str | None,
        typer.Option(metavar="C", help="Begin with the weights of this checkpoint (shipped name or directory)."),
    ] = None,
    puzzles: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Train on the pairs of this file (question, answer), or folder of gram data arc, not the task's own.",
        ),
    ] = None,
    task_module: TaskModule = None,
    is_tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write scalars for TensorBoard into DIR/tensorboard.")
    ] = False,
    is_dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what the run would cost, and stop.")] = False,
    as_json: Json = False,
    is_quiet: Quiet = False,
) -> None:
    """Train a checkpoint from a recipe; repeat the command to continue. Several GPUs: `torchrun -m gram train ...`."""
    from gram.api import choose_device
    from gram.training.arc_puzzles import with_identities
    from gram.training.cost import cost_of
    from gram.training.data_parallel import joined, local_device
    from gram.training.recipe import load_recipe
    from gram.training.run import train as run

    overrides: TrainOverrides = {"minutes": minutes, "steps": steps}
    if seed is not None:
        overrides["seed"] = seed
    loaded = load_recipe(recipe, task_module=task_module, **overrides)
    if loaded.model.identity_dim and puzzles is not None:
        loaded = with_identities(loaded, puzzles)
    chosen = _seeds(seeds, seed, at_once)
    if is_dry_run:
        cost = cost_of(loaded)
        _print_result({**asdict(cost), "flops": cost.flops, "gpu_hours": cost.gpu_hours}, cost.sentence(), as_json)
        return
    where = local_device(choose_device(device))
    stop = _StopSignal()
    with keeping(out), joined(where) as ranks, stop:
        is_silent = is_quiet or not ranks.is_first
        if not is_silent:
            print(cost_of(loaded).sentence(), file=sys.stderr)
        if chosen:
            if ranks.size > 1:
                raise ValueError(f"seeds must be trained by one process, got {ranks.size}")
            from gram.training.side_by_side import train_seeds

            cards = train_seeds(
                loaded,
                out,
                chosen,
                device=where,
                dtype=dtype,
                at_once=at_once,
                on_progress=None if is_silent else _seed_printer(),
                should_stop=stop.is_set,
                command=_command_line(),
                start=start,
                puzzles=puzzles,
                is_tensorboard=is_tensorboard,
            )
            if stop.signum is not None:
                raise Interrupted(stop.signum)
            told = [_ended(f"{loaded.name}, seed {seed}", card, out / f"seed{seed}") for seed, card in cards.items()]
            _print_result({"runs": {str(seed): card for seed, card in cards.items()}}, "\n".join(told), as_json)
            return
        with _showing(is_silent) as show:
            summary = run(
                loaded,
                out,
                device=where,
                dtype=dtype,
                command=_command_line(),
                start=start,
                on_progress=show,
                should_stop=stop.is_set,
                puzzles=puzzles,
                ranks=ranks,
                is_tensorboard=is_tensorboard,
            )
        if stop.signum is not None:
            raise Interrupted(stop.signum)
    if ranks.is_first:
        _print_result(summary, _ended(loaded.name, summary, out), as_json)
    ranks.exit()


def _ended(name: str, summary: dict[str, Any], out: Path) -> str:
    """What is said of a run that has ended."""
    minutes_run = f"{summary['optimiser_steps']} optimiser steps in {summary['minutes']:.1f} minutes"
    diagnosis = f"\n{summary['leak_diagnosis']}" if summary["leak_diagnosis"] else ""
    return f"{name}: {minutes_run} -> {out}{diagnosis}"


def _seeds(text: str | None, seed: int | None, at_once: int | None) -> list[int]:
    """The seeds of `--seeds`, none without it. Raises `ValueError`."""
    if text is None:
        if at_once is not None:
            raise ValueError(f"at-once must come with --seeds, got {at_once} alone")
        return []
    if seed is not None:
        raise ValueError(f"seed must not come with --seeds, got {seed}")
    if at_once is not None:
        at_least_one("at-once", at_once)
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"seeds must be whole numbers with commas between, got {text!r}") from None


def _print_result(summary: dict[str, Any], text: str, as_json: bool) -> None:
    """The command's result on stdout."""
    if as_json:
        from gram.cli.terminal import print_json

        print_json(summary)
    else:
        print(text)


def _command_line() -> str:
    return shlex.join(["gram", *sys.argv[1:]])


class _StopSignal:
    """Remembers the first SIGINT or SIGTERM: the run then saves and ends between two steps. Another one ends it at
    once."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._came_s = 0.0
        self._before: dict[int, Any] = {}

    def is_set(self) -> bool:
        """Whether a signal has come."""
        return self.signum is not None

    def __enter__(self) -> None:
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._before[signum] = signal.signal(signum, self._remember)

    def _remember(self, signum: int, frame: object) -> None:
        if self.signum is not None:
            if signum == self.signum == signal.SIGTERM and time.monotonic() - self._came_s < SAME_SIGNAL_S:
                return
            raise Interrupted(signum)
        self.signum, self._came_s = signum, time.monotonic()
        print("stopping after this step; the run is saved, and the same command continues it", file=sys.stderr)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        if (stop := stopped_by(error, self.signum)) is not None:
            raise stop from None


def _line(progress: TrainProgress) -> str:
    """One plain line of progress."""
    held_out = "".join(f"  held-out {name} {value:.3f}" for name, value in progress.evaluation.items())
    kl = "" if progress.diagnosis == "undefined" else f"  kl/token {progress.kl_first:.3f} ({progress.diagnosis})"
    return (
        f"step {progress.step}  {100 * progress.fraction:.0f} %  {progress.steps_per_s:.2f} steps/s  "
        f"{progress.eta_s / 60:.1f} min left  loss {progress.cross_entropy:.4f}{kl}  "
        f"rollouts right {progress.rollout_right:.2f}{held_out}"
    )


@contextmanager
def _showing(is_silent: bool) -> Iterator[Callable[[TrainProgress], None] | None]:
    """A function that shows progress on stderr: a bar on a terminal, else a plain line every few seconds."""
    if is_silent or not sys.stderr.isatty():
        yield None if is_silent else _line_printer()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    percentage, bar_column = TextColumn("{task.percentage:>3.0f} %"), BarColumn(bar_width=24)
    bar = Progress(
        percentage, bar_column, TextColumn("{task.description}"), console=Console(stderr=True, highlight=False)
    )
    shown = bar.add_task("compiling the first step", total=1.0)

    def show(progress: TrainProgress) -> None:
        bar.update(shown, completed=progress.fraction, description=_line(replace(progress, evaluation={})))
        if progress.evaluation:
            bar.console.print(_line(progress), style="dim")

    with bar:
        yield show


def _seed_printer() -> Callable[[int, TrainProgress], None]:
    """Plain lines of several runs, each with its seed in front."""
    printers: dict[int, Callable[[TrainProgress], None]] = {}

    def show(seed: int, progress: TrainProgress) -> None:
        printers.setdefault(seed, _line_printer(f"seed {seed}: "))(progress)

    return show


def _line_printer(front: str = "") -> Callable[[TrainProgress], None]:
    shown_s = 0.0

    def show(progress: TrainProgress) -> None:
        nonlocal shown_s
        if progress.evaluation or time.monotonic() - shown_s >= PLAIN_EVERY_S:
            shown_s = time.monotonic()
            print(front + _line(progress), file=sys.stderr, flush=True)

    return show
