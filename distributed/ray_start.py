"""Starts a head and nodes, each by a command of its own that their processes outlive (`ray_node.py`). Knows no state.

Ray picks every port but the head's and the dashboard's, so that several nodes fit on one machine.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gram.distributed import processes, ray_node
from gram.distributed.access import LOOPBACK, OBJECT_STORE_BYTES, STARTS, TOKEN, split_address

TIMEOUT_S = 120.0
FOREIGN = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", TOKEN)
"""Variables that may speak of another cluster."""
WRONG_TOKEN = "InvalidAuthToken"
"""In what Ray says then."""
SHARED = {"dashboard_agent_listen_port": 0, "min_worker_port": 0, "max_worker_port": 0, "include_log_monitor": False}


class StartError(ValueError):
    """Ray did not start, which may be for want of time; the message is one line."""


def head(
    environment: Mapping[str, str],
    *,
    temp_dir: str,
    host: str,
    port: int,
    dashboard_port: int | None,
    client_port: int | None,
) -> None:
    """A head without room for workers. Raises `StartError`."""
    parameters = {
        "node_ip_address": host,
        "gcs_server_port": port,
        "num_cpus": 0,
        "num_gpus": 0,
        "object_store_memory": OBJECT_STORE_BYTES,
        "include_dashboard": dashboard_port is not None,
        "dashboard_host": host,
        "dashboard_port": dashboard_port,
        "ray_client_server_port": client_port,
        "no_monitor": True,
    }
    _run(True, parameters | {"temp_dir": temp_dir}, environment, Path(temp_dir) / "head.out")


def nodes(
    environment: Mapping[str, str],
    *,
    temp_dir: str,
    address: str,
    host: str,
    count: int,
    cpus: int,
    gpus: int,
) -> None:
    """Nodes that join the cluster at `address`, listening on `host`, the address that the others reach them at.

    One after the other, since of two that start at once on one machine one may fail. Each is tried again some times.
    Raises `StartError`.
    """
    parameters = {
        "node_ip_address": host,
        "gcs_address": address,
        "num_cpus": cpus,
        "num_gpus": gpus,
        "object_store_memory": OBJECT_STORE_BYTES if host == LOOPBACK else None,
        "temp_dir": temp_dir,
    }
    for number in range(1, count + 1):
        for attempt in range(1, STARTS + 1):
            try:
                _run(False, parameters, environment, Path(temp_dir) / f"node-{number}.out")
                break
            except StartError:
                if attempt == STARTS:
                    raise


def own_address(where: str) -> str:
    """This machine's address as it is on the way to `where`, `host:port`. Raises `ValueError` for no way there.

    Ray's own look-up gives the loopback address where it leaves that address alone (`QUIET`).
    """
    host, port = split_address(where)
    host = host.strip("[]")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as one:
        try:
            one.connect((host, port))  # sends nothing
        except OSError as error:
            raise ValueError(f"ray address {where} must be within reach, got {error.strerror or error}") from None
        return str(one.getsockname()[0])


def free_port(name: str, host: str, port: int) -> int:
    """`port` where nobody listens there, for 0 any free one. Raises `ValueError`."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((host, port))
        except OSError as error:
            raise ValueError(f"{name} must be a free one of {host}, got {port}: {error.strerror}") from None
        return int(one.getsockname()[1])


def _run(is_head: bool, parameters: Mapping[str, Any], environment: Mapping[str, str], log: Path) -> None:
    """One node. Its processes keep the log open, so what it says is read from there. Raises `StartError`, and
    `ValueError` for a token that is not the cluster's, with which trying again is in vain."""
    given = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    request = json.dumps({"is_head": is_head, **SHARED, **parameters})
    with log.open("w") as file:
        started = subprocess.Popen(
            [sys.executable, "-P", ray_node.__file__, request],
            env=given | dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        code = started.wait(TIMEOUT_S)
    except subprocess.TimeoutExpired:
        processes.kill_session(started.pid)
        started.wait()
        raise StartError(f"ray must start within {TIMEOUT_S:.0f} s, got nothing from it") from None
    if code:
        processes.kill_session(started.pid)  # what came up too late
        said = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        if any(WRONG_TOKEN in line for line in said):
            raise ValueError("token must be that of the cluster, got another")
        raise StartError(f"ray must start, got {said[-1][:300] if said else f'exit code {code}'}")
