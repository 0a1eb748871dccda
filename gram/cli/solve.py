"""`gram solve`: samples a few puzzles and shows what was found for each."""

from __future__ import annotations

from os.path import isfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gram.cli.options import (
    Json,
    PuzzleFile,
    Rows,
    Sampling,
    TaskName,
    at_least_one,
    real,
    whole,
    with_sampling_options,
)

if TYPE_CHECKING:
    from gram.api import Sampler
    from gram.config import ResolvedConfig
    from gram.sampler.result import SampleResult
    from gram.tasks.protocol import Task, Tokens

SHOWN_PUZZLES = 3
"""Held-out puzzles solved where the user names none."""


@with_sampling_options()
def solve(
    task: TaskName,
    puzzle: Annotated[
        str | None, typer.Argument(metavar="PUZZLE", help="One puzzle as text. [default: held-out puzzles]")
    ] = None,
    puzzles: PuzzleFile = None,
    rows: Rows = None,
    limit: Annotated[
        int | None,
        typer.Option(
            parser=whole, metavar="P", help=f"First P puzzles. [default: all of FILE or A-B, else {SHOWN_PUZZLES}]"
        ),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show the trajectories' boards step by step.")] = False,
    pause: Annotated[float, typer.Option(parser=real, metavar="S", help="Seconds between steps under --watch.")] = 0.25,
    as_json: Json = False,
    *,
    sampling: Sampling,
) -> None:
    """Solve puzzles and show the answers.

    Without PUZZLE or FILE it takes the first held-out puzzles of the task.
    """
    if puzzle is not None and puzzles is not None:
        raise ValueError("puzzles must come from PUZZLE or --puzzles, got both")
    if rows is not None and puzzle is not None:
        raise ValueError("rows must be of FILE or of the held-out puzzles, got PUZZLE")
    if watch and as_json:
        raise ValueError("output must be --watch or --json, got both")
    if not 0 <= pause <= 60:
        raise ValueError(f"pause must be within 0 and 60 seconds, got {pause}")
    from gram.tasks.protocol import check_judgeable

    at_least_one("limit", limit)
    family = sampling.task(task)
    tokens = _tokens(family, puzzle, puzzles, rows, limit)
    check_judgeable(family, tokens, puzzles)
    sampler = sampling.sampler(family)
    settings = sampler.settings(sampling.config)
    if watch:
        _watch(sampler, tokens, settings, pause)
        return
    from gram.cli.terminal import progress
    from gram.sampler.engine import Progress

    with progress(len(tokens) * settings.width, "trajectories") as advance:
        result = sampler.sample(tokens, settings, observer=Progress(advance))
    if as_json:
        _print_json(sampler, result)
    else:
        _show(sampler, result)


def _tokens(task: Task, puzzle: str | None, file: Path | None, rows: str | None, limit: int | None) -> Tokens:
    """The puzzles to solve, `[P, L]`."""
    from gram.hub_files import load_puzzles
    from gram.tasks.protocol import PuzzleError

    if puzzle is not None:
        try:
            tokens: Tokens = task.parse(puzzle)[None]
        except PuzzleError as error:
            if isfile(puzzle):
                raise ValueError(f"puzzle must be text, or a file after --puzzles, got file {puzzle}") from error
            raise
        return tokens
    if file is None and rows is None:
        return task.split("test", limit=limit or SHOWN_PUZZLES).puzzles
    chosen = task.split("test") if file is None else load_puzzles(task, file)
    return chosen.part(rows).puzzles[:limit]


def _print_json(sampler: Sampler, result: SampleResult) -> None:
    from gram.cli.terminal import print_json
    from gram.config import config_to_json
    from gram.versions import versions

    print_json(
        {
            "task": sampler.task.name,
            "checkpoint": sampler.name,
            **config_to_json(result.config),
            "puzzles": [found.to_json() for found in result],
            **result.timings,
            "trajectories_sha256": result.trajectories_sha256,
            "device": result.device,
            "dtype": result.dtype,
            "kernel": result.kernel,
            "versions": versions(),
        }
    )


def _show(sampler: Sampler, result: SampleResult) -> None:
    from gram.cli import terminal
    from gram.cli.outcome_view import show_puzzle, show_run, show_timings

    console = terminal.output()
    show_run(console, sampler, result.config)
    for index, found in enumerate(result):
        show_puzzle(console, found, f"puzzle {index + 1} of {len(result)}")
    show_timings(console, sampler, result)


def _watch(sampler: Sampler, tokens: Tokens, settings: ResolvedConfig, pause: float) -> None:
    """One puzzle after another: the trajectories of a puzzle do not depend on which others are in its batch."""
    from gram.cli import terminal
    from gram.cli.outcome_view import show_puzzle, show_run
    from gram.cli.watch import watching

    console = terminal.output()
    show_run(console, sampler, settings)
    for index, puzzle in enumerate(tokens):
        title = f"puzzle {index + 1} of {len(tokens)}"
        with watching(console, sampler.task, puzzle, settings, title=title, pause_s=pause) as observer:
            result = sampler.sample(puzzle[None], settings, observer=observer)
        show_puzzle(console, result[0], title)
