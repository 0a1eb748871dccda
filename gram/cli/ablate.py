"""`gram ablate`: a grid over any setting of sampling and the checkpoint. Cells are cached by content and resumed."""

from __future__ import annotations

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from gram.cli.errors import keeping
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
from gram.config import SamplerConfig


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
    from gram.evals.ablation_run import AblationRun
    from gram.evals.api import save_ablation

    at_least_one("limit", limit)
    at_least_one("jobs", jobs)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder, got the file {out}")
    sampling = Sampling(
        task_module=None,
        device=device,
        dtype=dtype,
        config=SamplerConfig(),
        ray=ray,
        workers=workers,
        gpus_per_worker=gpus_per_worker,
    )
    options = {"puzzles": puzzles, "rows": rows, "limit": limit, "device": device, "dtype": sampling.worker_dtype}
    run = AblationRun.of(study, out, **options)
    if is_dry_run:
        for number, cell in enumerate(run.plan.cells, start=1):
            terminal.output().print(f"{number}  {cell.checkpoint}: {cell.label}", soft_wrap=True)
        return
    if ray != "off" and jobs != 1:
        raise ValueError(f"--jobs must be 1 with --ray, which spreads each cell, got {jobs}")
    with keeping(out), sampling.backend(run.sampler(run.plan.cells[0]), is_quiet=is_quiet) as backend:
        progress = partial(terminal.progress, is_quiet=is_quiet, cluster=backend)
        folders = run.run(jobs=jobs, backend=backend, progress=progress)
    made = run.summary(folders, command=shlex.join(["gram", *sys.argv[1:]]))
    made |= backend.account() if backend is not None else {}
    save_ablation(out, made)
    if as_json:
        terminal.print_json(made)
    else:
        _show(made, out)


def _show(made: dict[str, Any], out: Path) -> None:
    from gram.cli import terminal
    from gram.evals.ablation import REPORT_FILE
    from gram.formatting import difference as in_points

    console = terminal.output()
    console.print(made["name"], style="bold")
    table = terminal.table("cell", "accuracy", "minus baseline, points", "won", "lost", "coverage", "steps", wraps=0)
    for cell in made["cells"]:
        found = cell.get("less_baseline")
        difference, won, lost = "baseline", "", ""
        if cell["never_fired"]:
            difference = "never fired"
        elif found is not None:
            difference = in_points(found)
            won, lost = str(found["only_a"]), str(found["only_b"])
        figures = terminal.percent(cell["coverage"]), terminal.number(cell["mean_steps"])
        table.add_row(cell["label"], terminal.percent(cell["accuracy"]), difference, won, lost, *figures)
    console.print(table)
    console.print(f"\n{out / REPORT_FILE}", soft_wrap=True)
