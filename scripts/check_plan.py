"""`gram plan` against measured runs: `python scripts/check_plan.py [--driver-ms MS] [--shard-s S] [--nodes 1,2,3]`.

Starts Ray nodes on this machine, one after the other; their workers sleep instead of computing, so two cores suffice.
Prints a table in Markdown. A minute or two with the defaults; leave the machine otherwise idle.
"""

from __future__ import annotations

import argparse
import os

import gram
from gram import checkpoint
from gram.distributed import cluster
from gram.distributed.simulation import DRIVER_S

TASK = "nqueens8"
HEAD = (
    "| nodes | workers | shards | predicted, s | measured, s | error | predicted busy | in flight, predicted / seen "
    "| bytes of a shard, predicted / stored | driver, ms a shard |"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--driver-ms", type=float, default=1e3 * DRIVER_S, help="the driver's time for a shard")
    parser.add_argument("--shard-s", type=float, default=0.25, help="seconds that a worker sleeps for a shard")
    parser.add_argument("--workers-per-node", type=int, default=2)
    parser.add_argument("--shards-per-worker", type=int, default=40)
    parser.add_argument("--nodes", default="1,2,3", help="numbers of nodes, ascending")
    given = parser.parse_args()
    cluster.prepare_new()
    # Ray reads its variables when it is first imported: not before they are set.
    from gram.distributed.plan_check import check

    print(HEAD, "|" + "---:|" * (HEAD.count("|") - 1), sep="\n", flush=True)
    rows = check(
        gram.load(TASK),
        nodes=[int(part) for part in given.nodes.split(",")],
        workers_per_node=given.workers_per_node,
        shards_per_worker=given.shards_per_worker,
        shard_s=given.shard_s,
        driver_s=given.driver_ms / 1e3,
        weights_bytes=os.path.getsize(checkpoint.find(TASK) / checkpoint.WEIGHTS_FILE),
    )
    for row in rows:
        made = row.predicted
        cells = [
            f"{row.nodes}",
            f"{made.workers}",
            f"{made.shards}",
            f"{made.elapsed_s:.2f}",
            f"{row.elapsed_s:.2f}",
            f"{100 * row.error:+.1f} %",
            f"{100 * made.busy:.1f} %",
            f"{made.shards_in_flight} / {row.most_in_flight}",
            f"{made.result_bytes:,} / {row.result_bytes:,}",
            f"{1e3 * row.driver_s:.2f}",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
