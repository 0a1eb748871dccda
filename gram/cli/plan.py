"""`gram plan`: what a run on many nodes would take, before anybody pays for them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gram.cli.options import Json, TaskName, at_least_one, real, whole

if TYPE_CHECKING:
    from gram.distributed.prediction import Prediction


def plan(
    task: TaskName,
    nodes: Annotated[int, typer.Option(parser=whole, metavar="N", help="Nodes.")] = 1,
    gpus: Annotated[int, typer.Option(parser=whole, metavar="G", help="GPUs of each node; 0 counts CPUs.")] = 0,
    cpus: Annotated[int, typer.Option(parser=whole, metavar="C", help="CPUs of each node.")] = 8,
    gpus_per_worker: Annotated[float, typer.Option(parser=real, metavar="G", help="GPUs of each worker.")] = 1.0,
    puzzles: Annotated[int, typer.Option(parser=whole, metavar="P", help="Puzzles.")] = 1000,
    width: Annotated[int, typer.Option(parser=whole, metavar="N", help="Trajectories per puzzle.")] = 20,
    rate: Annotated[
        float | None, typer.Option(parser=real, metavar="R", help="Trajectories per second of one worker.")
    ] = None,
    measured: Annotated[
        Path | None, typer.Option("--run", metavar="DIR", help="Take the rate from this run of one worker.")
    ] = None,
    driver_ms: Annotated[
        float | None, typer.Option(parser=real, metavar="MS", help="Driver's time for a shard. [default: as measured]")
    ] = None,
    drivers: Annotated[
        int, typer.Option(parser=whole, metavar="K", help="Drivers with a part of puzzles and workers each.")
    ] = 1,
    network_gbit: Annotated[
        float, typer.Option(parser=real, metavar="B", help="Gigabits a second into a driver.")
    ] = 10.0,
    checkpoint: Annotated[
        str | None, typer.Option(metavar="C", help="Checkpoint, for its size. [default: the one named TASK]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Predict time, memory, network and the limit of a run on many nodes."""
    from gram import checkpoint as checkpoints
    from gram.cli import terminal
    from gram.config import SamplerConfig
    from gram.distributed.prediction import predict
    from gram.distributed.simulation import DRIVER_S
    from gram.sampler.run import shards_of
    from gram.tasks.registry import get_task

    family = get_task(task)
    for name, count in (("nodes", nodes), ("cpus", cpus), ("puzzles", puzzles), ("drivers", drivers)):
        at_least_one(name, count)
    if gpus < 0 or not 0 < gpus_per_worker <= max(1, gpus):
        raise ValueError(f"gpus per worker must be more than 0 and at most {max(1, gpus)}, got {gpus_per_worker:g}")
    if (rate is None) == (measured is None):
        raise ValueError(f"rate must come from --rate or --run, got {'neither' if rate is None else 'both'}")
    weights = checkpoints.weight_files(checkpoints.find(checkpoint or task))
    made = predict(
        shards_of(puzzles, SamplerConfig(width=width)),
        workers=nodes * (int(gpus / gpus_per_worker) if gpus else cpus),
        nodes=nodes,
        trajectories_per_s=measured_rate(measured) if measured is not None else rate or 0.0,
        answer_tokens=family.output_tokens,
        puzzle_tokens=family.tokens,
        weights_bytes=sum(file.stat().st_size for file in weights),
        driver_s=DRIVER_S if driver_ms is None else driver_ms / 1000,
        drivers=drivers,
        network_gbit=network_gbit,
    )
    if as_json:
        terminal.print_json({"task": task, "nodes": nodes, "puzzles": puzzles, "width": width, **asdict(made)})
    else:
        _show(made, nodes)


def measured_rate(folder: Path) -> float:
    """Trajectories per second of a kept run. Raises `ValueError` for one without a finished shard."""
    from gram.sampler.store import Store

    with Store.read_only(folder) as store:
        count = sum(int(store.read(index)["widths"].sum()) for index in store.done())
        if not count or store.elapsed_s <= 0:
            raise ValueError(f"run {folder} must have a finished shard, got none")
        return count / store.elapsed_s


def _show(made: Prediction, nodes: int) -> None:
    from gram.cli import terminal

    rows = terminal.table("", "predicted")
    for label, value in (
        ("workers", f"{made.workers:,} on {terminal.plural(nodes, 'node')}"),
        ("shards", f"{made.shards:,} of {terminal.number(made.shard_s)} s"),
        ("time", f"{terminal.number(made.elapsed_s, 1)} s"),
        ("trajectories/s", terminal.rate(made.trajectories_per_s)),
        ("workers busy", terminal.percent(made.busy)),
        ("driver busy" if made.drivers == 1 else f"{made.drivers} drivers busy", terminal.percent(made.driver_busy)),
        ("shards in flight", f"{made.shards_in_flight:,}"),
        ("into a driver", f"{terminal.number(made.network_bytes_per_s / 1e6)} MB/s"),
        ("at the start", f"{terminal.number(made.start_bytes / 1e6)} MB"),
        ("memory of a driver", f"{terminal.number(made.driver_memory_bytes / 1e6)} MB"),
        ("object store of a node", f"{terminal.number(made.object_store_bytes / 1e6)} MB"),
        ("workers that saturate it", f"{made.saturating_workers:,}"),
        ("workers that are useful", f"{made.largest_useful_workers:,}"),
    ):
        rows.add_row(label, value)
    console = terminal.output()
    console.print(rows)
    console.print(f"limit: {made.limit}")
