"""What spreading over Ray costs: the driver's time for a shard, and a new cluster's for a small evaluation.

The latter are whole commands, with and without, in turn.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping

from gram.evals.benchmarks.timing import ROOT, Measurement, paired

COMMAND = ("eval", "nqueens8", "--limit", "4", "--width", "4", "--quiet", "--json")
MOST_S = 12.0
MOST_DRIVER_MS = 2.0


def driver_row(name: str, measure: Callable[[], Mapping[str, float]], rounds: int) -> Measurement:
    """Milliseconds of the driver for a shard: median of the rounds, after one to warm up.

    `measure` runs a plan and returns what it cost, `driver_ms` among it; each figure's median is told beside.
    """
    costs = [dict(measure()) for _ in range(rounds + 1)][1:]
    milliseconds = [cost["driver_ms"] for cost in costs]
    facts = {figure: statistics.median(cost[figure] for cost in costs) for figure in costs[0]}
    return Measurement.of(name, milliseconds, MOST_DRIVER_MS, is_ceiling=True, facts=facts)


def start_row(rounds: int) -> Measurement:
    """Extra seconds of `--ray new` over `--ray off`, from the start of the command to its end; median of the rounds.

    Raises `ValueError` where a command fails or the two give different trajectories.
    """
    digests: dict[str, str] = {}

    def run(where: str) -> None:
        digests[where] = digest("--ray", where)

    seconds = paired({where: lambda where=where: run(where) for where in ("off", "new")}, rounds)  # type: ignore[misc]
    if digests["off"] != digests["new"]:
        raise ValueError(f"--ray new must give the trajectories of --ray off, got others: {digests}")
    extra = [new - off for new, off in zip(seconds["new"], seconds["off"], strict=True)]
    facts = {"seconds": seconds, "same_trajectories": True}
    return Measurement.of("nqueens8: extra seconds of --ray new", extra, MOST_S, is_ceiling=True, facts=facts)


def digest(*options: str) -> str:
    """Runs the evaluation in a process of its own; the digest of its trajectories. Raises `ValueError`."""
    done = subprocess.run(
        [sys.executable, "-m", "gram", *COMMAND, *options], check=False, capture_output=True, text=True, cwd=ROOT
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise ValueError(f"gram {' '.join((*COMMAND, *options))} must succeed, got {said[-1]}")
    return str(json.loads(done.stdout)["trajectories_sha256"])
