"""`gram eval`: accuracy, coverage and speed of a checkpoint on a set of puzzles."""

from __future__ import annotations

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from gram.cli.errors import keeping
from gram.cli.options import (
    Json,
    PuzzleFile,
    Quiet,
    Rows,
    Sampling,
    TaskName,
    at_least_one,
    whole,
    with_sampling_options,
)


@with_sampling_options(is_spread=True)
def evaluate_task(
    task: TaskName,
    puzzles: PuzzleFile = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="Split of the task, where no FILE is given.")] = "test",
    rows: Rows = None,
    limit: Annotated[
        int | None,
        typer.Option(parser=whole, metavar="P", help="First P puzzles of the set's fixed permutation. [default: all]"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write results.json and predictions.jsonl there; a killed run continues."),
    ] = None,
    as_json: Json = False,
    is_quiet: Quiet = False,
    *,
    sampling: Sampling,
) -> None:
    """Evaluate a checkpoint on a split of the task or on your own puzzles."""
    from gram.cli import terminal
    from gram.evals.api import evaluate_chosen
    from gram.evals.puzzle_choice import PuzzleChoice

    at_least_one("limit", limit)
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder, got the file {out}")
    family = sampling.task(task)
    choice = PuzzleChoice(puzzles=puzzles, split=split, rows=rows, limit=limit)
    chosen = choice.of(family)
    sampler = sampling.sampler(family)
    choice.warn(sampler)
    settings = sampler.settings(sampling.config, puzzles=len(chosen))
    with keeping(out), sampling.backend(sampler, is_quiet=is_quiet) as backend:
        progress = partial(terminal.progress, is_quiet=is_quiet, cluster=backend)
        found = evaluate_chosen(sampler, choice, chosen, settings, out=out, backend=backend, progress=progress)
    more: dict[str, Any] = backend.account() if backend is not None else {}
    more["command"] = shlex.join(["gram", *sys.argv[1:]])
    if out is not None:
        found.save(out, **more)
    if as_json:
        terminal.print_json(found.to_json() | more)
    else:
        _show(found.to_json())


def _show(summary: dict[str, Any]) -> None:
    from rich.text import Text

    from gram.cli import terminal
    from gram.evals.evaluate import figure_rows

    console = terminal.output()
    head = f"  checkpoint {summary['checkpoint']}, {terminal.plural(summary['puzzles'], 'puzzle')}"
    console.print(Text.assemble((summary["task"], "bold"), head))
    how = (
        f"{terminal.plural(summary['width'], 'trajectory', 'trajectories')} a puzzle, at most {summary['depth']} steps"
    )
    how += f", injector {summary['injector']}, "
    how += f"views {summary['views']}, " if summary["views"] != "off" else ""
    how += f"selector {summary['selector']}, seed {summary['seed']}"
    console.print(Text(how, "dim"))
    console.print()
    made = terminal.table("", "value", "95 % interval", "uniform", left=1)
    for row in figure_rows(summary):
        made.add_row(*row)
    console.print(made)
    console.print()
    speed = f"{terminal.number(summary['trajectories_per_s'], 0)} trajectories/s"
    elapsed = f"{terminal.number(summary['elapsed_s'], 1)} s"
    where = f"  {summary['device']}, {summary['dtype']}, kernel {summary['kernel']}"
    console.print(Text.assemble((elapsed, "bold"), f", {speed}", (where, "dim")))
