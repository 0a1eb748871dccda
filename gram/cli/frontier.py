"""`gram frontier`: width against depth at matched, measured latency; traces once, times every cell, writes a report."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gram.cli.errors import keeping
from gram.cli.eval import choose_puzzles, source_of
from gram.cli.frontier_files import REPORT_FILE, members, write, write_joint
from gram.cli.options import (
    ADAPTIVE,
    Json,
    PuzzleFile,
    Quiet,
    Rows,
    Sampling,
    TaskName,
    at_least_one,
    check_judgeable,
    whole,
    with_sampling_options,
)
from gram.cli.seen import seen_facts, warn_if_seen

if TYPE_CHECKING:
    from gram.api import Sampler
    from gram.config import SamplerConfig
    from gram.evals.frontier.cells import Grid
    from gram.tasks.protocol import Task

RUNS = Path("runs") / "frontier"
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
    widths: Annotated[str, typer.Option(metavar="N,N,...", help="Widths, from 1.")] = "1,2,4,8,16,32",
    depths: Annotated[
        str | None,
        typer.Option(metavar="M,M,...", help="Depths. [default: powers of 2 up to four times the trained depth]"),
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
    as_json: Json = False,
    is_quiet: Quiet = False,
    *,
    sampling: Sampling,
) -> None:
    """Find whether width or depth is the better use of a time budget.

    Repeat `--checkpoint` to study several: each has its folder in DIR, and DIR a page that compares them.
    """
    from gram.cli import terminal
    from gram.cli.frontier_study import Study, show_estimate
    from gram.cli.frontier_view import show
    from gram.evals.frontier.verdict import short_depths

    for name, value in (("limit", limit), ("rounds", rounds), ("seeds", seeds)):
        at_least_one(name, value)
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder, got the file {out}")
    family = sampling.task(task)
    chosen = choose_puzzles(family, puzzles, split, limit, rows)
    check_judgeable(family, chosen.puzzles, puzzles)
    wanted_budgets = None if budgets == "auto" else numbers("budgets", budgets, float)
    # Everything is opened and checked before the first run: a wrong second name would else be told hours later.
    named = {label: sampler_of(sampling, family, name) for label, name in labelled(checkpoint).items()}
    root, is_joint = out or RUNS, len(named) > 1
    studies = {}
    for label, sampler in named.items():
        grid = make_grid(sampler, sampling.config, widths, depths, selectors, haltings)
        own = label or Path(sampler.name).name
        folder = root / own if is_joint or out is None else out
        studies[own] = Study(sampler, chosen, grid, sampling, modes.split(","), seeds, rounds, folder, is_quiet)
    for sampler in named.values():
        warn_if_seen(sampler, None if puzzles else split)
    for label, study in studies.items():
        if depths is not None and (short := short_depths(study.grid)) is not None:
            terminal.tell(f"{label}: {short}")
    if is_dry_run or not (as_json or is_quiet):
        estimates = {label: study.estimate() for label, study in studies.items()}
        for label, estimate in estimates.items() if not as_json else ():
            show_estimate(label, estimate)
    if is_dry_run:
        if as_json:
            terminal.print_json({"frontiers": estimates} if is_joint else next(iter(estimates.values())))
        return
    source = source_of(puzzles, split, rows)
    found: dict[str, Any] = {}
    for label, study in studies.items():
        with keeping(study.folder):
            seen = seen_facts(study.sampler.card, None if puzzles else split)
            made = study.run(source | seen, wanted_budgets)
        write(study.folder, made, study.outcomes)
        found[label] = made
        if not as_json:
            show(label, made)
            terminal.output().print(str(study.folder / REPORT_FILE), soft_wrap=True)
    if not is_joint:
        if as_json:
            terminal.print_json(made)
        return
    joint = write_joint(root, members(root))
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


def sampler_of(sampling: Sampling, family: Task, checkpoint: str | None) -> Sampler:
    """The sampler of a checkpoint of this task. Raises as `Sampling.sampler` does."""
    return replace(sampling, checkpoint=checkpoint).sampler(family)


def make_grid(
    sampler: Sampler, config: SamplerConfig, widths: str, depths: str | None, selectors: str | None, haltings: str
) -> Grid:
    """The grid of the options; depths left out reach what the headline's budget pays for. Raises `ValueError`."""
    from gram.evals.frontier.cells import Grid
    from gram.sampler.settings import first_halt

    trained = sampler.model.config.trained_depth or sampler.model.config.depth
    powers = [2**power for power in range((4 * trained).bit_length())]
    wanted = numbers("depths", depths, int) if depths else [*powers, 2 * trained, 4 * trained]
    rules = tuple(haltings.split(","))
    thresholds = []
    for place, rule in enumerate(rules):
        setting: Any = {"halting": rule, "halt_threshold": None if place else config.halt_threshold}
        thresholds.append(sampler.settings(replace(config, **setting)).halt_threshold)
    return Grid(
        widths=tuple(sorted({1, *numbers("widths", widths, int)})),
        depths=tuple(sorted({trained, *wanted})),
        selectors=supported_selectors(sampler, config) if selectors is None else tuple(selectors.split(",")),
        haltings=rules,
        trained_depth=trained,
        first_halt=first_halt(sampler.settings(config), sampler.model),
        thresholds=tuple(thresholds),
    )


def supported_selectors(sampler: Sampler, config: SamplerConfig) -> tuple[str, ...]:
    """The checkpoint's own selector, then every other that the model has a head for."""
    from gram.sampler import settings

    own = sampler.settings(config).selector
    assert own is not None
    return own, *(each for each in settings.supported_selectors(sampler.model) if each != own)


def numbers(name: str, text: str, kind: type[Any]) -> list[Any]:
    """Numbers between commas. Raises `ValueError`."""
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{name} must be numbers with commas between, got {text!r}") from None
    if not all(0 < value < math.inf for value in values):
        raise ValueError(f"{name} must be finite and above 0, got {text!r}")
    return values
