"""`gram frontier`: width against depth at matched, measured latency; traces once, times every cell, writes a report."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from gram.cli.errors import keeping
from gram.cli.options import (
    ADAPTIVE,
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

OWN = ("width", "depth", "selector", "halting", "seed", "checkpoint")
"""Settings that this command offers as lists, or not at all."""


@with_sampling_options(without=(*OWN, "is_padded", *ADAPTIVE), is_spread=True)
def frontier(
    task: TaskName,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(metavar="C", help="Shipped checkpoint or folder; several give one page. [default: named TASK]"),
    ] = None,
    puzzles: PuzzleFile = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="Split of the task, where no FILE is given.")] = "test",
    rows: Rows = None,
    limit: Annotated[
        int | None,
        typer.Option(parser=whole, metavar="P", help="First P puzzles of the set's fixed permutation. [default: all]"),
    ] = None,
    widths: Annotated[str, typer.Option(metavar="N,N,...", help="Widths; 1 joins them.")] = "1,2,4,8,16,32",
    depths: Annotated[
        str | None,
        typer.Option(
            metavar="M,M,...", help="Depths; the trained one joins them. [default: powers of 2 up to four times it]"
        ),
    ] = None,
    selectors: Annotated[
        str | None,
        typer.Option(
            metavar="S,S,...",
            help="Selectors; the verdict speaks of the first. [default: the checkpoint's own, then all it has]",
        ),
    ] = None,
    haltings: Annotated[
        str, typer.Option(metavar="H,H,...", help="Halting rules; the verdict speaks of the first.")
    ] = "head,fixed",
    budgets: Annotated[
        str, typer.Option(metavar="auto|MS,MS,...", help="Latency budgets; auto doubles from one trajectory's.")
    ] = "auto",
    modes: Annotated[str, typer.Option(metavar="MODE,...", help="Latency modes.")] = "interactive,throughput",
    rounds: Annotated[int, typer.Option(parser=whole, metavar="R", help="Rounds of timing.")] = 20,
    seeds: Annotated[int, typer.Option(parser=whole, metavar="S", help="Sampling seeds, from 0.")] = 3,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Results; a killed run goes on there. [default: runs/frontier/CHECKPOINT]"),
    ] = None,
    is_dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the estimate of arithmetic, time and memory, and stop.")
    ] = False,
    stops_at_traces: Annotated[
        bool,
        typer.Option("--traces-only", help="Sample the traces and stop; the same command without it goes on."),
    ] = False,
    as_json: Json = False,
    is_quiet: Quiet = False,
    *,
    sampling: Sampling,
) -> None:
    """Find whether width or depth is the better use of a time budget.

    Traces may be sampled on a busy machine; timings want an idle one. Repeat `--checkpoint` to study several: each
    has its folder in DIR, and DIR a page that compares them.
    """
    from gram.cli import terminal
    from gram.evals.api import FRONTIERS, save_frontier
    from gram.evals.frontier.files import REPORT_FILE, members, write_multi_checkpoint
    from gram.evals.frontier.study import FrontierStudy, make_grid
    from gram.evals.frontier.verdict import short_depths
    from gram.evals.puzzle_choice import PuzzleChoice

    for name, value in (("limit", limit), ("rounds", rounds), ("seeds", seeds)):
        at_least_one(name, value)
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder, got the file {out}")
    family = sampling.task(task)
    choice = PuzzleChoice(puzzles=puzzles, split=split, rows=rows, limit=limit)
    chosen = choice.of(family)
    wanted_budgets = None if budgets == "auto" else numbers("budgets", budgets, float)
    # Everything is opened and checked before the first run: a wrong second name must not come up hours later.
    named = {label: replace(sampling, checkpoint=name).sampler(family) for label, name in labelled(checkpoint).items()}
    root, is_joint = out or FRONTIERS, len(named) > 1
    studies = {}
    for label, sampler in named.items():
        grid = make_grid(
            sampler,
            sampling.config,
            widths=numbers("widths", widths, int),
            depths=numbers("depths", depths, int) if depths else None,
            selectors=selectors.split(",") if selectors is not None else None,
            haltings=haltings.split(","),
        )
        own = label or Path(sampler.name).name
        studies[own] = FrontierStudy(
            sampler,
            chosen,
            grid,
            folder=root / own if is_joint or out is None else out,
            config=sampling.config,
            modes=modes.split(","),
            seeds=seeds,
            rounds=rounds,
        )
    for sampler in named.values():
        choice.warn(sampler)
    for label, study in studies.items():
        if depths is not None and (short := short_depths(study.grid)) is not None:
            terminal.log(f"{label}: {short}")
    if is_dry_run or not (as_json or is_quiet):
        estimates = {label: study.estimate() for label, study in studies.items()}
        for label, estimate in estimates.items() if not as_json else ():
            show_estimate(label, estimate)
    if is_dry_run:
        if as_json:
            terminal.print_json({"frontiers": estimates} if is_joint else next(iter(estimates.values())))
        return
    command, found = shlex.join(["gram", *sys.argv[1:]]), {}
    for label, study in studies.items():
        with keeping(study.folder):
            with sampling.backend(study.sampler, is_quiet=is_quiet) as backend:
                study.trace(backend=backend, progress=partial(terminal.progress, is_quiet=is_quiet, cluster=backend))
            if stops_at_traces:
                continue
            if (told := study.earlier_timings) is not None:
                terminal.log(told)
            timings = study.time(progress=partial(terminal.progress, is_quiet=is_quiet))
            made = study.analyse(timings, choice.facts(study.sampler.card), wanted_budgets, command)
            made |= backend.account() if backend is not None else {}
        save_frontier(study.folder, made, study.outcomes)
        found[label] = made
        if not as_json:
            show(label, made)
            terminal.output().print(str(study.folder / REPORT_FILE), soft_wrap=True)
    if stops_at_traces:
        folders = [str(folder) for study in studies.values() for folder in study.trace_folders]
        if as_json:
            terminal.print_json({"traces": folders})
            return
        for folder in folders:
            terminal.output().print(folder, soft_wrap=True)
        return
    if not is_joint:
        if as_json:
            terminal.print_json(made)
        return
    joint = write_multi_checkpoint(root, members(root))
    if as_json:
        terminal.print_json({"frontiers": found, "pairs": joint["pairs"]})
        return
    for pair in joint["pairs"]:
        sentence = pair["sentences"].get("latency interactive", pair["why"])
        told = f"\n{pair['a']} against {pair['b']}, {pair['measure']}: {sentence}"
        terminal.output().print(told, soft_wrap=True)
    terminal.output().print(str(root / REPORT_FILE), soft_wrap=True)


def labelled(checkpoints: Sequence[str] | None) -> dict[str, str | None]:
    """Checkpoints by the names of their folders: the last parts of their paths, as many as tell them apart; "" for the
    task's own. Raises `ValueError` for one named twice."""
    if not checkpoints:
        return {"": None}
    for name in checkpoints:
        if not name or checkpoints.count(name) > 1:
            told = "an empty one" if not name else f"{name!r} twice"
            raise ValueError(f"checkpoints must be different names or folders, got {told}")
    parts = [Path(os.path.abspath(name)).parts if Path(name).is_dir() else (name,) for name in checkpoints]
    for length in range(1, max(map(len, parts)) + 1):
        labels = ["-".join(part.strip(os.sep) or "root" for part in each[-length:]) for each in parts]
        if len(set(labels)) == len(labels):
            return dict(zip(labels, checkpoints, strict=True))
    raise ValueError(f"checkpoints must be different names or folders, got {', '.join(checkpoints)}")


def numbers(name: str, text: str, kind: type[Any]) -> list[Any]:
    """Numbers between commas. Raises `ValueError`."""
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{name} must be numbers with commas between, got {text!r}") from None
    if not all(0 < value < math.inf for value in values):
        raise ValueError(f"{name} must be finite and above 0, got {text!r}")
    return values


def show(label: str, made: Mapping[str, Any]) -> None:
    """Prints the verdicts of what `frontier.json` holds."""
    from gram.cli import terminal
    from gram.evals.frontier.beside import beside_sentences, coverage_line, selector_heads, selector_lines
    from gram.evals.frontier.launch_check import launch_words

    verdict, covered = made["verdict"], made["coverage"]
    console = terminal.output()
    lines = [f"\n{label}: {verdict['sentence']}", *beside_sentences(made)]
    lines += [launch_words(made["latency"].get("launch_check")) or ""]
    for line in filter(None, [*lines, *(f"Warning: {warning}" for warning in verdict["warnings"])]):
        console.print(line, soft_wrap=True)
    rows = selector_lines(made)
    if not rows:
        return
    table = terminal.table(*selector_heads(made))
    for row in rows:
        table.add_row(*row)
    if covered is not None:
        table.add_row(*coverage_line(made))
    console.print(table)
    console.print("points, at the headline's budget; *: significant", style="dim")


def show_estimate(label: str, estimate: dict[str, Any]) -> None:
    """The pre-flight, on stderr."""
    from gram.cli import terminal

    minutes = (estimate["trace_s"] + estimate["latency_s"]) / 60
    needed = ", ".join(
        f"{each['puzzles']:,.0f} for {100 * each['difference']:g} points" for each in estimate["puzzles_needed"]
    )
    work = f"{estimate['cells']:,} cells from {estimate['steps_of_trace']:,} supervision steps"
    saving = f"{estimate['saving']:.1f} times fewer than cell by cell"
    terminal.log(f"{label}: {work} ({saving}), {estimate['macs'] / 1e12:.2f} TMACs")
    parts = f"{estimate['trace_s'] / 60:.1f} traces, {estimate['latency_s'] / 60:.1f} latency"
    if (pilot := estimate["steps_of_trajectory"]) is not None:
        count = terminal.plural(pilot["trajectories"], "trajectory", "trajectories")
        low, high = (estimate["trace_s"] / 60 * pilot[end] / pilot["mean"] for end in ("low", "high"))
        terminal.log(
            f"traces stop at halting: {count} of a pilot took {pilot['mean']:.0f} steps in the mean (95 % interval "
            f"{pilot['low']:.0f} to {pilot['high']:.0f}, so that traces take {low:.1f} to {high:.1f} minutes)"
        )
    disk, memory = (f"{estimate[name] / 2**20:,.0f} MiB" for name in ("disk_bytes", "memory_bytes"))
    terminal.log(f"about {minutes:.1f} minutes ({parts}), {disk} on disk, up to {memory} of memory")
    here = terminal.plural(estimate["puzzles"], "puzzle")
    if estimate["bases"] < estimate["puzzles"]:
        here += f" of {terminal.plural(estimate['bases'], 'cluster')}, which count"
    terminal.log(f"independent puzzles that make a difference significant, power 80 %: {needed} (here {here})")
