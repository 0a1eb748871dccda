"""Makes the tables and the picture of `distributed/SCALING.md` again: `python scripts/scaling.py [--driver-ms MS]`.

Every figure is a simulation with the real queue (`distributed/simulation.py`), so the same on every machine; the
driver's time for a shard is the one thing that is measured (`gram bench ray`).
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from gram.config import SamplerConfig
from gram.distributed.prediction import Prediction, predict
from gram.distributed.simulation import DRIVER_S, Simulated, simulate
from gram.evals.plots import BusyLine, draw_busy
from gram.sampler.plan import shards_of

FOLDER = Path(__file__).parent.parent / "distributed"
PAGE, PICTURE = "SCALING.md", "scaling.png"
WORKERS = 10, 30, 100, 300, 600, 1_000, 2_000, 3_000, 10_000
SHARDS_PER_WORKER = 20
SHARD_S = 1.0
DRIVER_MS = 0.5, 1.0, 2.0
"""Beside the measured one."""
MANY = 16
"""Drivers of the last line."""
GPUS = (8, 64), (125, 1_000), (1_250, 10_000)
"""Nodes and workers: eight GPUs a node, one worker each."""
GPU_SHARDS_S = 1.0, 10.0
TOKENS, WEIGHTS_BYTES = 64, 2 << 20
"""Of `nqueens8`; the largest checkpoint that is shipped."""
TABLE = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def lines(driver_ms: float) -> dict[str, list[Simulated]]:
    """The curves, by their label."""
    made = {f"{value:g} ms": (value, 1) for value in sorted({*DRIVER_MS, driver_ms})}
    made[f"{driver_ms:g} ms"] = driver_ms, 1
    made[f"{driver_ms:g} ms, {MANY} drivers"] = driver_ms, MANY
    return {
        label: [
            simulate(
                workers=count,
                shards=SHARDS_PER_WORKER * count,
                shard_s=SHARD_S,
                driver_s=value / 1e3,
                drivers=min(drivers, count),
            )
            for count in WORKERS
        ]
        for label, (value, drivers) in made.items()
    }


def busy_table(curves: dict[str, list[Simulated]]) -> str:
    """Busy shares: a row for each number of workers, a column for each line."""
    rows = ["| workers | " + " | ".join(curves) + " |", "|---:|" + "---:|" * len(curves)]
    for number, count in enumerate(WORKERS):
        shares = [f"{100 * runs[number].busy:.1f} %" for runs in curves.values()]
        rows.append(f"| {count:,} | " + " | ".join(shares) + " |")
    return "\n".join(rows)


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
    head = (
        "| GPUs | a shard | drivers | saturated from | time | GPUs busy | drivers busy | shards in flight "
        "| into a driver | object store of a node |"
    )
    made = [head, "|" + "---:|" * (head.count("|") - 1)]
    for shard_s, plan in rows:
        cells = [
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
        made.append(f"| {' | '.join(cells)} |")
    return "\n".join(made)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--driver-ms", type=float, default=1e3 * DRIVER_S, help="the measured time for a shard")
    parser.add_argument("--out", type=Path, default=FOLDER, help=f"folder of {PAGE}, where {PICTURE} goes too")
    given = parser.parse_args()
    curves = lines(given.driver_ms)
    draw_busy(
        [
            BusyLine(
                label=label,
                workers=WORKERS,
                busy=[run.busy for run in runs],
                saturating_workers=runs[-1].drivers * SHARD_S / (float(label.split()[0]) / 1e3),
                is_dashed=runs[-1].drivers > 1,
            )
            for label, runs in curves.items()
        ],
        f"shards of {SHARD_S:g} s, {SHARDS_PER_WORKER} a worker; diamonds: where drivers saturate; dotted: 95 %",
        given.out / PICTURE,
    )
    tables = {"busy": busy_table(curves), "plans": prediction_table(predictions(given.driver_ms))}
    page = given.out / PAGE
    page.write_text(TABLE.sub(lambda found: f"{found[1]}{tables[found[2]]}\n{found[3]}", page.read_text()))


if __name__ == "__main__":
    main()
