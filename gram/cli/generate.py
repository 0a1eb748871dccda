"""`gram generate`: samples boards from the empty condition and counts how many obey the task's rules."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gram.cli.options import ADAPTIVE, Json, Sampling, TaskName, at_least_one, whole, with_sampling_options
from gram.config import SamplerConfig

if TYPE_CHECKING:
    from gram.api import Sampler
    from gram.sampler.result import PuzzleResult, SampleResult

SHOWN_BOARDS = 4


@with_sampling_options(without=("width", "selector", "halting", "halt_threshold", *ADAPTIVE))
def generate(
    task: TaskName,
    count: Annotated[int, typer.Option(parser=whole, metavar="K", help="Boards to sample.")] = SamplerConfig().width,
    as_json: Json = False,
    *,
    sampling: Sampling,
) -> None:
    """Sample boards from nothing; needs a checkpoint trained with the empty condition."""
    at_least_one("count", count)
    family = sampling.task(task)
    family.blank_puzzle()
    sampler = sampling.sampler(family, is_conditional=False)
    # The heads never saw the empty condition: they have no say in when to stop.
    config = replace(sampling.config, halting="fixed")
    if not hasattr(sampler.model, "empty"):
        raise ValueError(
            f"checkpoint {sampler.name!r} must be trained with the empty condition to generate, got one without"
        )
    from gram.cli.terminal import print_json, progress
    from gram.sampler.engine import Progress

    with progress(count, "boards") as advance:
        result = sampler.generate(count, config, observer=Progress(advance))
    summary = _to_json(sampler, result)
    if as_json:
        print_json(summary)
    else:
        _show(sampler, result, summary)


def _to_json(sampler: Sampler, result: SampleResult) -> dict[str, Any]:
    from gram.versions import versions

    found, count = result[0], result.config.width
    return {
        "task": sampler.task.name,
        "checkpoint": sampler.name,
        "count": count,
        "valid": found.valid_trajectories,
        "distinct": len(found.answers),
        "distinct_valid": len(found.solutions),
        "never_shown": _never_shown(found),
        "depth": result.config.depth,
        "halting": result.config.halting,
        "temperature": result.config.temperature,
        "launch": result.config.launch,
        "seed": result.config.seed,
        "elapsed_s": result.elapsed_s,
        "trajectories_per_s": count / result.elapsed_s,
        "trajectories_sha256": result.trajectories_sha256,
        "device": result.device,
        "dtype": result.dtype,
        "kernel": result.kernel,
        "versions": versions(),
        "boards": [
            {
                "board": sampler.task.format(found.puzzle, board),
                "is_valid": found.answer_of(index).is_valid,
                "steps": int(result.steps[0, index]),
            }
            for index, board in enumerate(result.candidates[0])
        ],
    }


def _never_shown(found: PuzzleResult) -> int | None:
    """Valid boards of grids that training holds out; None where the task does not say which these are."""
    import numpy as np

    boards = np.array([each.tokens for each in found.solutions], np.uint8).reshape(-1, found.task.output_tokens)
    unseen = found.task.is_test_grid(boards)
    return None if unseen is None else int(unseen @ np.array([each.votes for each in found.solutions], np.int64))


def _show(sampler: Sampler, result: SampleResult, summary: dict[str, Any]) -> None:
    from rich.text import Text

    from gram.cli import terminal

    console, count, found = terminal.output(), summary["count"], result[0]
    marks = terminal.is_plain(console)
    panels = []
    for index, board in enumerate(result.candidates[0, :SHOWN_BOARDS]):
        title, style = ("valid", "green") if found.answer_of(index).is_valid else ("not valid", "red")
        panels.append(terminal.framed(sampler.task.board(found.puzzle, board), title, marks=marks, style=style))
    across = max((console.width + 1) // ((panels[0].width or 0) + 1), 1)
    console.print(terminal.side_by_side(panels, across=across))
    if count > SHOWN_BOARDS:
        console.print(Text(f"and {count - SHOWN_BOARDS} more", style="dim"))
    speed = f"{terminal.rate(summary['trajectories_per_s'])} boards/s"
    line = Text.assemble(
        (f"{summary['valid']} of {terminal.plural(count, 'board')} valid", "bold"),
        f", {summary['distinct']} distinct, {summary['distinct_valid']} distinct and valid",
    )
    console.print(line)
    if summary["never_shown"] is not None:
        console.print(f"{summary['never_shown']} of the valid ones are of grids that training never shows")
    console.print(Text(f"{speed}, checkpoint {sampler.name}, seed {result.config.seed}", "dim"))
