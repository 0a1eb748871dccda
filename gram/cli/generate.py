"""`gram generate`: samples boards from the empty condition and counts how many obey the task's rules."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gram.cli.options import ADAPTIVE, Json, Sampling, TaskName, at_least_one, whole, with_sampling_options
from gram.config import SamplerConfig

if TYPE_CHECKING:
    from gram.api import Sampler
    from gram.sampler.result import SampleResult
    from gram.tasks.protocol import Task, Tokens

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
    blank = family.blank_puzzle()
    sampler = sampling.sampler(family, is_conditional=False)
    # The heads never saw the empty condition: they have no say in when to stop.
    config = replace(sampling.config, halting="fixed")
    if not hasattr(sampler.model, "empty"):
        raise ValueError(
            f"checkpoint {sampler.name!r} must be trained with the empty condition to generate, got one without"
        )
    from gram.cli.terminal import print_json, progress

    with progress(count, "boards") as advance:
        result = sampler.generate(count, config, on_ended=advance)
    if as_json:
        print_json(_to_json(sampler, blank, result))
    else:
        _show(sampler, blank, result)


def _to_json(sampler: Sampler, blank: Tokens, result: SampleResult) -> dict[str, Any]:
    from gram.versions import versions

    boards = result.candidates[0]
    is_valid = _verdicts(sampler.task, blank, boards)
    return {
        "task": sampler.task.name,
        "checkpoint": sampler.name,
        "count": len(boards),
        "valid": int(is_valid.sum()),
        "distinct": _distinct(sampler.task, boards),
        "distinct_valid": _distinct(sampler.task, boards[is_valid]),
        "never_shown": _never_shown(sampler.task, boards[is_valid]),
        "depth": result.config.depth,
        "halting": result.config.halting,
        "temperature": result.config.temperature,
        "launch": result.config.launch,
        "seed": result.config.seed,
        "elapsed_s": result.elapsed_s,
        "trajectories_per_s": len(boards) / result.elapsed_s,
        "trajectories_sha256": result.trajectories_sha256,
        "device": result.device,
        "dtype": result.dtype,
        "kernel": result.kernel,
        "versions": versions(),
        "boards": [
            {"board": sampler.task.format(blank, board), "is_valid": bool(valid), "steps": int(steps)}
            for board, valid, steps in zip(boards, is_valid, result.steps[0], strict=True)
        ],
    }


def _verdicts(task: Task, blank: Tokens, boards: Tokens) -> Any:
    """The verifier's verdict on every board, `[K]`."""
    import numpy as np

    return task.verify(np.repeat(blank[None], len(boards), axis=0), boards)


def _distinct(task: Task, boards: Tokens) -> int:
    """Different boards, up to the task's symmetry."""
    import numpy as np

    return len(np.unique(task.canonical(boards), axis=0)) if len(boards) else 0


def _never_shown(task: Task, boards: Tokens) -> int | None:
    """Boards `[K, A]` of grids that training holds out; None where the task tells nothing of them."""
    unseen = task.is_test_grid(boards)
    return None if unseen is None else int(unseen.sum())


def _show(sampler: Sampler, blank: Tokens, result: SampleResult) -> None:
    from rich.text import Text

    from gram.cli import terminal

    console, count = terminal.output(), result.candidates.shape[1]
    summary = _to_json(sampler, blank, result)
    boards, is_valid = result.candidates[0], [board["is_valid"] for board in summary["boards"]]
    marks = terminal.is_plain(console)
    panels = []
    for index, board in enumerate(boards[:SHOWN_BOARDS]):
        title, style = ("valid", "green") if is_valid[index] else ("not valid", "red")
        panels.append(terminal.framed(sampler.task.board(blank, board), title, marks=marks, style=style))
    across = max((console.width + 1) // ((panels[0].width or 0) + 1), 1)
    console.print(terminal.side_by_side(panels, across=across))
    if count > SHOWN_BOARDS:
        console.print(Text(f"and {count - SHOWN_BOARDS} more", style="dim"))
    speed = f"{terminal.number(summary['trajectories_per_s'], 0)} boards/s"
    line = Text.assemble(
        (f"{summary['valid']} of {terminal.plural(count, 'board')} valid", "bold"),
        f", {summary['distinct']} distinct, {summary['distinct_valid']} distinct and valid",
    )
    console.print(line)
    if summary["never_shown"] is not None:
        console.print(f"{summary['never_shown']} of the valid ones are of grids that training never shows")
    console.print(Text(f"{speed}, checkpoint {sampler.name}, seed {result.config.seed}", "dim"))
