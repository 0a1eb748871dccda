"""`gram eval`: accuracy, coverage and speed of a checkpoint on a set of puzzles."""

from __future__ import annotations

import shlex
import sys
from functools import partial
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
    from gram.tasks.protocol import Task


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
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Of arc: a folder of many views (gram data arc): vote over them, write submission.json."
        ),
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
    """Evaluate a checkpoint on a split of the task or on your own puzzles; of arc with --data, on many views."""
    from gram.cli import terminal
    from gram.evals.api import evaluate_chosen
    from gram.evals.puzzle_choice import PuzzleChoice

    at_least_one("limit", limit)
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder, got the file {out}")
    family = sampling.task(task)
    if data is not None:
        for flag, value in (("--puzzles", puzzles), ("--rows", rows), ("--split", None if split == "test" else split)):
            if value is not None:
                raise ValueError(f"{flag} must be left out with --data, got {value}")
        evaluate_views(family, data, limit, out, as_json, is_quiet, sampling)
        return
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


def evaluate_views(
    family: Task, data: Path, limit: int | None, out: Path | None, as_json: bool, is_quiet: bool, sampling: Sampling
) -> None:
    """`gram eval arc --data DIR`: ARC's own evaluation; `limit` counts tasks."""
    from gram.cli import terminal
    from gram.evals.arc import evaluate_arc
    from gram.tasks.arc_folder import open_arc_folder

    if family.name != "arc":
        raise ValueError(f"--data must come with task arc, got {family.name}")
    folder = open_arc_folder(data)
    sampler = sampling.sampler(family)
    settings = sampler.settings(sampling.config)
    with keeping(out), sampling.backend(sampler, is_quiet=is_quiet) as backend:
        progress = partial(terminal.progress, is_quiet=is_quiet, cluster=backend)
        report = evaluate_arc(sampler, folder, settings, limit=limit, out=out, backend=backend, progress=progress)
    more: dict[str, Any] = backend.account() if backend is not None else {}
    more["command"] = shlex.join(["gram", *sys.argv[1:]])
    if out is not None:
        report.save(out, **more)
    if as_json:
        terminal.print_json(report.summary | more)
    else:
        _show_views(report.summary, out)


def _show_views(summary: dict[str, Any], out: Path | None) -> None:
    from rich.text import Text

    from gram.cli import terminal
    from gram.formatting import percent, span

    console = terminal.output()
    tasks, tests = terminal.plural(summary["tasks"], "task"), terminal.plural(summary["tests"], "test")
    head = f"  checkpoint {summary['checkpoint']}, {tasks}, {tests}, {summary['examples']:,} views of them"
    console.print(Text.assemble((summary["task"], "bold"), head))
    width = terminal.plural(summary["width"], "trajectory", "trajectories")
    how = f"{width} a view, at most {summary['depth']} steps, injector {summary['injector']}, seed {summary['seed']}"
    console.print(Text(how, "dim"))
    console.print()
    made = terminal.table("", "value", "95 % interval", left=1)
    for name in [key for key in summary if key.startswith("pass@") and key.count("_") == 0]:
        if summary[name] is None:
            made.add_row(name, "no label", "")
        else:
            made.add_row(name, percent(summary[name]), span(summary[f"{name}_low"], summary[f"{name}_high"]))
    made.add_row("steps of a trajectory, mean", terminal.number(summary["mean_steps"]), "")
    console.print(made)
    if summary["tests_without_label"]:
        console.print(f"no label of {summary['tests_without_label']:,} of {tests}: they count in no figure")
    console.print()
    if out is not None:
        console.print(f"submission: {out / 'submission.json'}", soft_wrap=True)
    speed = f"{terminal.rate(summary['trajectories_per_s'])} trajectories/s"
    console.print(Text.assemble((f"{terminal.number(summary['elapsed_s'], 1)} s", "bold"), f", {speed}"))


def _show(summary: dict[str, Any]) -> None:
    from rich.text import Text

    from gram.cli import terminal
    from gram.evals.evaluate import figure_table

    console = terminal.output()
    head = f"  checkpoint {summary['checkpoint']}, {terminal.plural(summary['puzzles'], 'puzzle')}"
    console.print(Text.assemble((summary["task"], "bold"), head))
    how = terminal.trajectories(summary["width"], summary["width_policy"], " a puzzle")
    how += f", at most {terminal.plural(summary['depth'], 'step')}"
    how += f", injector {summary['injector']}, "
    how += f"views {summary['views']}, " if summary["views"] != "off" else ""
    how += f"selector {summary['selector']}, seed {summary['seed']}"
    console.print(Text(how, "dim"))
    console.print()
    heads, *rows = figure_table(summary)
    made = terminal.table(*heads, left=1)
    for row in rows:
        made.add_row(*row)
    console.print(made)
    console.print()
    speed = f"{terminal.rate(summary['trajectories_per_s'])} trajectories/s"
    elapsed = f"{terminal.number(summary['elapsed_s'], 1)} s"
    where = f"  {summary['device']}, {summary['dtype']}, kernel {summary['kernel']}"
    console.print(Text.assemble((elapsed, "bold"), f", {speed}", (where, "dim")))
