"""`gram sample`: trajectories into a folder, for whoever analyses them later; `gram eval` judges what it samples."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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

if TYPE_CHECKING:
    from gram.api import Sampler
    from gram.sampler.result import SampleResult


@with_sampling_options(is_spread=True)
def sample(
    task: TaskName,
    puzzles: PuzzleFile = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="Split of the task, where no FILE is given.")] = "test",
    rows: Rows = None,
    limit: Annotated[
        int | None,
        typer.Option(parser=whole, metavar="P", help="First P puzzles of the set's fixed permutation. [default: all]"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the trajectories there; a killed run goes on from there.")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep every supervision step there: answer, verdict, scores."),
    ] = None,
    as_json: Json = False,
    is_quiet: Quiet = False,
    *,
    sampling: Sampling,
) -> None:
    """Sample trajectories of a split or of your own puzzles into a folder."""
    from gram.cli import terminal
    from gram.evals.puzzle_choice import PuzzleChoice
    from gram.sampler.engine import Progress

    at_least_one("limit", limit)
    if (out is None) == (trace is None):
        raise ValueError(f"folder must be named by --out or --trace, got {'neither' if out is None else 'both'}")
    folder = out or trace
    assert folder is not None
    family = sampling.task(task)
    choice = PuzzleChoice(puzzles=puzzles, split=split, rows=rows, limit=limit)
    chosen = choice.of(family, is_judged=trace is not None or sampling.config.width_policy == "verified")
    sampler = sampling.sampler(family)
    choice.warn(sampler)
    settings = sampler.settings(sampling.config, puzzles=len(chosen))
    total = len(chosen) * settings.width
    with (
        keeping(folder),
        sampling.backend(sampler, is_quiet=is_quiet) as backend,
        terminal.progress(total, "trajectories", is_quiet=is_quiet, cluster=backend) as advance,
    ):
        result = sampler.sample(
            chosen, settings, out=folder, is_traced=trace is not None, observer=Progress(advance), backend=backend
        )
    summary = _summary(sampler, result, folder) | choice.facts(sampler.card)
    summary |= backend.account() if backend is not None else {}
    if as_json:
        terminal.print_json(summary)
    else:
        _show(summary)


def _summary(sampler: Sampler, result: SampleResult, folder: Path) -> dict[str, Any]:
    from gram.config import config_to_json
    from gram.versions import versions

    return {
        "task": sampler.task.name,
        "checkpoint": sampler.name,
        "folder": str(folder),
        "puzzles": len(result.puzzles),
        "trajectories": result.trajectories,
        "supervision_steps": int(result.steps.sum()),
        "steps_run": result.steps_run,
        "elapsed_s": result.elapsed_s,
        "trajectories_per_s": result.trajectories / result.elapsed_s if result.elapsed_s > 0 else None,
        "trajectories_sha256": result.trajectories_sha256,
        **config_to_json(result.config),
        "device": result.device,
        "dtype": result.dtype,
        "kernel": result.kernel,
        "versions": versions(),
        "command": shlex.join(["gram", *sys.argv[1:]]),
    }


def _show(summary: dict[str, Any]) -> None:
    from rich.text import Text

    from gram.cli import terminal

    console = terminal.output()
    console.print(Text.assemble((summary["task"], "bold"), f"  checkpoint {summary['checkpoint']}"))
    counts = f"{summary['trajectories']:,} trajectories of {terminal.plural(summary['puzzles'], 'puzzle')}"
    console.print(f"{counts}, {summary['supervision_steps']:,} supervision steps -> {summary['folder']}")
    speed = f"{terminal.rate(summary['trajectories_per_s'])} trajectories/s"
    where = f"  {summary['device']}, {summary['dtype']}, kernel {summary['kernel']}"
    elapsed = f"{terminal.number(summary['elapsed_s'], 1)} s"
    console.print(Text.assemble((elapsed, "bold"), f", {speed}", (where, "dim")))
