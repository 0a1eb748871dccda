"""One node of a Ray cluster, started and left: `python ray_node.py JSON` with `is_head` and Ray's own parameters.

As `ray.cluster_utils` does it, since the command `ray start` cannot start a second node on the loopback address, nor
keep Ray's client server off. Imports nothing of ours.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def start(is_head: bool, **parameters: Any) -> None:
    """Starts the node's processes, which stay when this one ends. Raises what Ray raises."""
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    Node(RayParams(**parameters), head=is_head, shutdown_at_exit=False, spawn_reaper=False, connect_only=False)


if __name__ == "__main__":
    start(**json.loads(sys.argv[1]))
