"""`gram eval`: accuracy, coverage and speed of a checkpoint on a set of puzzles."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable
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
    check_judgeable,
    load_puzzles,
    whole,
    with_sampling_options,
)
from gram.cli.seen import seen_facts, warn_if_seen

if TYPE_CHECKING:
    from gram.tasks.protocol import PuzzleSet, Task

PERMUTATION_SEED = 0
"""Of the order in which `--limit` takes the rows of a user's file."""
RESULTS_FILE = "results.json"
PREDICTIONS_FILE = "predictions.jsonl"


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
        typer.Option(
            metavar="DIR", help=f"Write {RESULTS_FILE} and {PREDICTIONS_FILE} there; a killed run goes on from there."
        ),
    ] = None,
    as_json: Json = False,
    is_quiet: Quiet = False,
    *,
    sampling: Sampling,
) -> None:
    """Evaluate a checkpoint on a split of the task or on your own puzzles."""
    from gram.cli import terminal

    at_least_one("limit", limit)
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder, got the file {out}")
    family = sampling.task(task)
    chosen = choose_puzzles(family, puzzles, split, limit, rows)
    check_judgeable(family, chosen.puzzles, puzzles)
    sampler = sampling.sampler(family)
    warn_if_seen(sampler, None if puzzles else split)
    settings = sampler.settings(sampling.config, puzzles=len(chosen))
    total = len(chosen) * settings.width
    with (
        keeping(out),
        sampling.backend(sampler, is_quiet=is_quiet) as backend,
        terminal.progress(total, "trajectories", is_quiet=is_quiet, cluster=backend) as advance,
    ):
        result = sampler.sample(chosen, settings, out=out, on_ended=advance, backend=backend)

    from gram.cli.versions import versions
    from gram.evals.evaluate import evaluate, predictions, to_json

    summary = to_json(evaluate(family, chosen, result, checkpoint=sampler.name, versions=versions()))
    summary |= source_of(puzzles, split, rows) | seen_facts(sampler.card, None if puzzles else split)
    summary |= backend.account() if backend is not None else {}
    summary["command"] = shlex.join(["gram", *sys.argv[1:]])
    if out is not None:
        write_results(out, summary, predictions(family, chosen, result))
    if as_json:
        terminal.print_json(summary)
    else:
        _show(summary)


def choose_puzzles(task: Task, file: Path | None, split: str, limit: int | None, rows: str | None = None) -> PuzzleSet:
    """A split in its own fixed order, or the rows of a file in a fixed seeded one where only some are wanted.

    `rows` is a part of either, `A-B` in its own order; `limit` then counts within it. Raises `ValueError`.
    """
    import numpy as np

    if file is None:
        if rows is None:
            return task.split(split, limit=limit)
        return task.split(split).part(rows).take(slice(limit))
    chosen = load_puzzles(task, file).part(rows)
    if limit is None:
        return chosen
    return chosen.take(np.random.default_rng(PERMUTATION_SEED).permutation(len(chosen))[:limit])


def source_of(file: Path | None, split: str, rows: str | None) -> dict[str, Any]:
    """Where puzzles came from, for a JSON."""
    found: dict[str, Any] = {"split": split} if file is None else {"puzzle_file": str(file)}
    return found if rows is None else found | {"rows": rows}


def write_results(folder: Path, summary: dict[str, Any], lines: Iterable[dict[str, Any]]) -> None:
    """Both files, each moved into place once complete."""
    from gram.checkpoint import write_atomically, write_json

    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    write_atomically(folder / PREDICTIONS_FILE, text.encode())
    write_json(folder / RESULTS_FILE, summary)


def _show(summary: dict[str, Any]) -> None:
    from rich.text import Text

    from gram.cli import terminal

    console = terminal.output()
    width = summary["width"]
    head = f"  checkpoint {summary['checkpoint']}, {terminal.plural(summary['puzzles'], 'puzzle')}"
    console.print(Text.assemble((summary["task"], "bold"), head))
    how = f"{terminal.plural(width, 'trajectory', 'trajectories')} a puzzle, at most {summary['depth']} steps"
    how += f", injector {summary['injector']}, selector {summary['selector']}, seed {summary['seed']}"
    console.print(Text(how, "dim"))
    console.print()
    made = terminal.table("", "value", "95 % interval", "uniform", left=1)
    for label, key in (
        (f"accuracy of the answer ({summary['selector']})", "accuracy"),
        ("accuracy of one trajectory", "single_accuracy"),
        (f"pass@{width}", "pass_at_width"),
        (f"coverage@{width}, mean", "coverage"),
        (f"coverage@{width}, pooled", "coverage_pooled"),
        (f"coverage@{width}, several solutions", "coverage_multi"),
    ):
        if summary[key] is None:
            continue
        low, high, ceiling = (summary.get(f"{key}_{part}") for part in ("low", "high", "ceiling"))
        interval = "" if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f}"
        made.add_row(label, terminal.percent(summary[key]), interval, terminal.percent(ceiling) if ceiling else "")
    for label, key in (
        ("conflicts of the answer, mean", "conflicts"),
        ("steps of a trajectory, mean", "mean_steps"),
        ("trajectories of a puzzle, mean", "mean_width"),
        ("AUROC of the LPRM", "lprm_auroc"),
        ("AUROC of the halt head", "halt_auroc"),
    ):
        made.add_row(label, terminal.number(summary[key]))
    console.print(made)
    console.print()
    speed = f"{terminal.number(summary['trajectories_per_s'], 0)} trajectories/s"
    elapsed = f"{terminal.number(summary['elapsed_s'], 1)} s"
    where = f"  {summary['device']}, {summary['dtype']}, kernel {summary['kernel']}"
    console.print(Text.assemble((elapsed, "bold"), f", {speed}", (where, "dim")))
