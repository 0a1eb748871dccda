"""`gram ablate`: a grid over any setting of sampling and the checkpoint. Cells are cached by content and resumed."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from gram.cli.errors import keeping
from gram.cli.frontier_files import REPORT_FILE
from gram.cli.options import (
    Device,
    Dtype,
    GpusPerWorker,
    Json,
    PuzzleFile,
    Quiet,
    Ray,
    Rows,
    Sampling,
    Workers,
    at_least_one,
    whole,
)
from gram.cli.report import ABLATION_FILE
from gram.cli.seen import seen_facts, warn_if_seen
from gram.config import SamplerConfig

if TYPE_CHECKING:
    import torch

    from gram.api import Sampler
    from gram.distributed.pool import Pool
    from gram.evals.ablation import Cell, Study
    from gram.sampler.run import Backend
    from gram.tasks.protocol import PuzzleSet


class Choice(NamedTuple):
    """Which puzzles the cells share: the study's split, or a file; all, or some."""

    file: Path | None
    rows: str | None
    limit: int | None


def ablate(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="A TOML file, or the name of a shipped study.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Results and cached cells; a killed run goes on there.")],
    puzzles: PuzzleFile = None,
    rows: Rows = None,
    limit: Annotated[
        int | None, typer.Option(parser=whole, metavar="P", help="First P puzzles. [default: the study's]")
    ] = None,
    jobs: Annotated[int, typer.Option(parser=whole, metavar="J", help="Cells run side by side.")] = 1,
    device: Device = "auto",
    dtype: Dtype = "auto",
    ray: Ray = "off",
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = None,
    is_dry_run: Annotated[bool, typer.Option("--dry-run", help="List the cells and stop.")] = False,
    as_json: Json = False,
    is_quiet: Quiet = False,
) -> None:
    """Run a study's cells, compare each with the first, and write a page with a sortable table."""
    from gram.cli import terminal
    from gram.evals import ablation, comparison

    at_least_one("limit", limit)
    at_least_one("jobs", jobs)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder, got the file {out}")
    path = ablation.find(study)
    plan = ablation.read(path)
    choice = Choice(puzzles, rows, limit or plan.limit)
    if is_dry_run:
        for number, cell in enumerate(plan.cells, start=1):
            terminal.output().print(f"{number}  {cell.checkpoint}: {cell.label}", soft_wrap=True)
        return
    sampling = Sampling(
        checkpoint=None,
        task_module=None,
        device=device,
        dtype=dtype,
        config=SamplerConfig(),
        ray=ray,
        workers=workers,
        gpus_per_worker=gpus_per_worker,
    )
    if ray != "off" and jobs != 1:
        raise ValueError(f"--jobs must be 1 with --ray, which spreads each cell, got {jobs}")
    opened: dict[str, Any] = {}
    with keeping(out):
        sampler, _ = _open(plan, plan.cells[0], choice, sampling, opened)
        with sampling.backend(sampler, is_quiet=is_quiet) as backend:
            folders = run_cells(plan, path, out, choice, jobs, sampling, is_quiet, opened=opened, backend=backend)
        account = backend.account() if backend is not None else {}
    judged = [comparison.read(folder) for folder in folders]
    from gram.cli.compare import known_groups
    from gram.cli.versions import versions
    from gram.json_values import plain

    first = judged[0].results
    about = {
        name: first.get(name)
        for name in ("task", "split", "puzzle_file", "rows", "puzzles", "device", "dtype", "kernel")
    }
    about |= {"study": path.name, "versions": versions(), "command": shlex.join(["gram", *sys.argv[1:]])}
    made = plain(ablation.summarise(plan, judged, known_groups(judged[0]), about=about)) | account
    _write(out, made)
    if as_json:
        terminal.print_json(made)
    else:
        _show(made, out)


def run_cells(
    plan: Study,
    path: Path,
    out: Path,
    choice: Choice,
    jobs: int,
    sampling: Sampling,
    is_quiet: bool,
    *,
    opened: dict[str, Any],
    backend: Pool | None,
) -> list[Path]:
    """Runs the cells that have no results yet; the folder of each cell."""
    from gram.cli import terminal

    numbers = range(len(plan.cells))
    where = out, choice, sampling
    with terminal.progress(len(plan.cells), "cells", is_quiet=is_quiet, cluster=backend) as advance:
        done: dict[int, Path] = {}
        if jobs == 1:
            for number in numbers:
                done[number] = run_cell(path, number, *where, opened=opened, tell=lambda _: advance(0), backend=backend)
                advance(1)
            return [done[number] for number in numbers]
        from concurrent.futures import ProcessPoolExecutor, as_completed
        from multiprocessing import get_context

        # Cells that share trajectories share their folder, which one process at a time writes.
        shares: dict[Any, list[int]] = {}
        for number, cell in enumerate(plan.cells):
            shares.setdefault((cell.checkpoint, replace(cell.config, selector="first", slots=None)), []).append(number)
        with ProcessPoolExecutor(jobs, get_context("spawn"), _one_share, (jobs,)) as pool:
            waiting = [pool.submit(run_share, path, share, *where) for share in shares.values()]
            for future in as_completed(waiting):
                done |= future.result()
                advance(len(future.result()))
        return [done[number] for number in numbers]


def run_share(path: Path, numbers: list[int], out: Path, choice: Choice, sampling: Sampling) -> dict[int, Path]:
    """Cells that share their trajectories, one after another; the folder of each."""
    opened: dict[str, Any] = {}
    return {number: run_cell(path, number, out, choice, sampling, opened=opened) for number in numbers}


def run_cell(
    path: Path,
    number: int,
    out: Path,
    choice: Choice,
    sampling: Sampling,
    *,
    opened: dict[str, Any],
    tell: Callable[[int], None] | None = None,
    backend: Backend | None = None,
) -> Path:
    """One cell to its folder, unless that holds it already. Cells that differ in selector share trajectories."""
    from gram.cli.eval import PREDICTIONS_FILE, RESULTS_FILE, source_of, write_results
    from gram.cli.versions import versions
    from gram.evals import ablation
    from gram.evals.evaluate import evaluate, predictions, to_json

    plan = ablation.read(path)
    cell = plan.cells[number]
    sampler, chosen = _open(plan, cell, choice, sampling, opened)
    settings = sampler.settings(cell.config)
    own, shared = _keys(sampler, chosen, settings, (backend and backend.device) or sampler.model.device)
    folder = out / "cells" / own
    if (folder / RESULTS_FILE).is_file() and (folder / PREDICTIONS_FILE).is_file():
        return folder
    trajectories = out / "trajectories" / shared
    result = sampler.sample(chosen, settings, out=trajectories, on_ended=tell, backend=backend)
    summary = to_json(evaluate(sampler.task, chosen, result, checkpoint=sampler.name, versions=versions()))
    source = source_of(choice.file, plan.split, choice.rows)
    source |= seen_facts(sampler.card, None if choice.file else plan.split)
    write_results(folder, summary | source, predictions(sampler.task, chosen, result))
    return folder


def _open(
    plan: Study, cell: Cell, choice: Choice, sampling: Sampling, opened: dict[str, Any]
) -> tuple[Sampler, PuzzleSet]:
    """The cell's sampler and puzzles, opened once."""
    from gram.cli.eval import choose_puzzles

    if cell.checkpoint not in opened:
        opened[cell.checkpoint] = sampling.load(cell.checkpoint)
        warn_if_seen(opened[cell.checkpoint], None if choice.file else plan.split)
    sampler = opened[cell.checkpoint]
    if sampler.task.name != plan.task:
        raise ValueError(f"checkpoint {cell.checkpoint!r} must be one of task {plan.task!r}, got {sampler.task.name!r}")
    key = "puzzles of the study"
    if key not in opened:
        opened[key] = choose_puzzles(sampler.task, choice.file, plan.split, choice.limit, choice.rows)
    return sampler, opened[key]


def _keys(sampler: Sampler, chosen: PuzzleSet, settings: Any, device: torch.device) -> tuple[str, str]:
    """Digests of what decides a cell's results, and its trajectories alone."""
    import hashlib

    from gram import __version__
    from gram.config import config_to_json
    from gram.evals.ablation import content_key
    from gram.kernels import dispatch
    from gram.sampler.plan import shape_of

    values = {name: value for name, value in config_to_json(settings).items() if name != "slots"}
    model = sampler.model
    parts = {
        "model": model.digest(),
        "shape": json.dumps(shape_of(model), sort_keys=True),
        "puzzles": hashlib.sha256(chosen.puzzles.tobytes()).hexdigest(),
        "where": f"{device.type} {model.dtype} {dispatch.choose(model.device).kernel}",
        "gram": __version__,
    }
    without = {name: value for name, value in values.items() if name != "selector"}
    return content_key({**parts, "settings": values}), content_key({**parts, "settings": without})


def _one_share(jobs: int) -> None:
    """Each of several processes takes its share of the processors."""
    import os

    import torch

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))


def _write(out: Path, made: dict[str, Any]) -> None:
    from gram.checkpoint import write_atomically, write_json
    from gram.evals.pages.ablation_page import render

    write_json(out / ABLATION_FILE, made)
    write_atomically(out / REPORT_FILE, render(made).encode())


def _show(made: dict[str, Any], out: Path) -> None:
    from gram.cli import terminal

    console = terminal.output()
    console.print(made["name"], style="bold")
    table = terminal.table("cell", "accuracy", "less baseline, points", "won", "lost", "coverage", "steps", wraps=0)
    for cell in made["cells"]:
        found = cell.get("less_baseline")
        difference, won, lost = "baseline", "", ""
        if cell["never_fired"]:
            difference = "never fired"
        elif found is not None:
            difference = f"{100 * found['difference']:+.1f} ({100 * found['low']:+.1f} to {100 * found['high']:+.1f})"
            won, lost = str(found["only_a"]), str(found["only_b"])
        figures = terminal.percent(cell["coverage"]), terminal.number(cell["mean_steps"])
        table.add_row(cell["label"], terminal.percent(cell["accuracy"]), difference, won, lost, *figures)
    console.print(table)
    console.print(f"\n{out / REPORT_FILE}", soft_wrap=True)
