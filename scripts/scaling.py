"""Makes the tables and the picture of `docs/scaling.md` again: `python scripts/scaling.py [--driver-ms MS]`.

Every figure is a simulation with the real queue (`distributed/simulation.py`), so the same on every machine; the
driver's time for a shard is the one thing that is measured (`gram bench ray`).
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gram.checkpoint import write_atomically
from gram.config import SamplerConfig
from gram.distributed.prediction import Prediction, predict
from gram.distributed.simulation import DRIVER_S, Simulated, simulate
from gram.evals.pages.pictures import svg
from gram.evals.pages.run_figures import BusyLine, busy_workers
from gram.formatting import markdown, percent
from gram.sampler.run import shards_of

FOLDER = Path(__file__).parent.parent / "docs"
PAGE, PICTURE = "scaling.md", "figures/scaling.svg"
WORKERS = 10, 30, 100, 300, 600, 1_000, 1_500, 2_000, 3_000, 5_000, 10_000
SHARDS_PER_WORKER = 20
SHARD_S = 1.0
DRIVER_MS = 0.5, 1.0, 2.0
"""Beside the measured one."""
MEASURED = "(measured)"
MANY = 16
"""Drivers of the last line."""
GPUS = (8, 64), (125, 1_000), (1_250, 10_000)
"""Nodes and workers: eight GPUs a node, one worker each."""
GPU_SHARDS_S = 1.0, 10.0
TOKENS, WEIGHTS_BYTES = 64, 2 << 20
"""Of `nqueens8`; the largest checkpoint that is shipped."""
TABLE = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """Runs of more and more workers with the same drivers."""

    label: str
    drivers: int
    saturating_workers: int
    runs: tuple[Simulated, ...]


def curve(label: str, driver_ms: float, drivers: int = 1) -> Curve:
    """A run at each of `WORKERS`, and where the drivers saturate."""
    saturating = int(drivers * SHARD_S / driver_ms * 1e3)
    runs = [
        simulate(
            workers=count,
            shards=SHARDS_PER_WORKER * count,
            shard_s=SHARD_S,
            driver_s=driver_ms / 1e3,
            drivers=min(drivers, count),
        )
        for count in sorted({*WORKERS, min(saturating, WORKERS[-1])})
    ]
    return Curve(label=label, drivers=drivers, saturating_workers=saturating, runs=tuple(runs))


def curves(driver_ms: float) -> list[Curve]:
    """One driver with several times for a shard, the measured one among them; then many."""
    made = [
        curve(f"{value:g} ms {MEASURED}" if value == driver_ms else f"{value:g} ms", value)
        for value in sorted({*DRIVER_MS, driver_ms})
    ]
    return [*made, curve(f"{driver_ms:g} ms, {MANY} drivers", driver_ms, MANY)]


def busy_table(made: list[Curve]) -> str:
    """Busy shares: a row for each number of workers, a column for each curve."""
    rows = [
        [f"{count:,}", *(percent(run.busy) for each in made for run in each.runs if run.workers == count)]
        for count in WORKERS
    ]
    rows.append(["saturated from", *(f"{each.saturating_workers:,}" for each in made)])
    return markdown(["workers", *(each.label for each in made)], rows, rule="---:")


def predictions(driver_ms: float) -> Iterator[tuple[float, Prediction]]:
    """`gram plan` for GPUs by the thousand, with one driver and, where that saturates, with as many as keep up."""
    for shard_s in GPU_SHARDS_S:
        for nodes, workers in GPUS:
            shards = shards_of(256 * SHARDS_PER_WORKER * workers, SamplerConfig(width=4))
            drivers = 1
            while True:
                made = predict(
                    shards,
                    workers=workers,
                    nodes=nodes,
                    trajectories_per_s=1024 / shard_s,
                    answer_tokens=TOKENS,
                    puzzle_tokens=TOKENS,
                    weights_bytes=WEIGHTS_BYTES,
                    driver_s=driver_ms / 1e3,
                    drivers=drivers,
                )
                yield shard_s, made
                if made.driver_busy < 0.9:
                    break
                # A third in reserve: at the very edge every hiccup makes a line that nothing works off.
                drivers = max(drivers + 1, round(4 / 3 * drivers * workers / made.saturating_workers))


def prediction_table(rows: Iterator[tuple[float, Prediction]]) -> str:
    heads = ["GPUs", "a shard", "drivers", "saturated from", "time", "GPUs busy", "drivers busy", "shards in flight"]
    made = [
        [
            f"{plan.workers:,}",
            f"{shard_s:g} s",
            f"{plan.drivers}",
            f"{plan.saturating_workers:,} GPUs",
            f"{plan.elapsed_s:,.0f} s",
            f"{100 * plan.busy:.1f} %",
            f"{100 * plan.driver_busy:.0f} %",
            f"{plan.shards_in_flight:,}",
            f"{plan.network_bytes_per_s / 1e6:.1f} MB/s",
            f"{plan.object_store_bytes / 1e6:.1f} MB",
        ]
        for shard_s, plan in rows
    ]
    return markdown([*heads, "into a driver", "object store of a node"], made, rule="---:")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--driver-ms", type=float, default=1e3 * DRIVER_S, help="the measured time for a shard")
    parser.add_argument("--out", type=Path, default=FOLDER, help=f"folder of {PAGE}, where {PICTURE} goes too")
    given = parser.parse_args()
    made = curves(given.driver_ms)
    chart = busy_workers(
        [
            BusyLine(
                label=each.label,
                workers=[run.workers for run in each.runs],
                busy=[run.busy for run in each.runs],
                saturating_workers=each.saturating_workers,
                is_dashed=each.drivers > 1,
                is_thick=each.label.endswith(MEASURED),
            )
            for each in made
        ],
        f"Workers busy: shards of {SHARD_S:g} s, {SHARDS_PER_WORKER} a worker",
    )
    write_atomically(given.out / PICTURE, svg([chart]).encode())
    tables = {"busy": busy_table(made), "plans": prediction_table(predictions(given.driver_ms))}
    page = given.out / PAGE
    text = TABLE.sub(lambda found: f"{found[1]}{tables[found[2]]}\n{found[3]}", page.read_text())
    write_atomically(page, text.encode())


if __name__ == "__main__":
    main()
