"""`ray start` for a head and for nodes, each a command of its own; their processes outlive it. Knows no state, no token.

Ray picks every port but the head's and the dashboard's, so that several nodes fit on one machine.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gram.distributed.cluster import LOOPBACK, OBJECT_STORE_BYTES, STARTS, TOKEN

TIMEOUT_S = 120.0
AT_ONCE = 4
"""Nodes that start side by side."""
FOREIGN = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", TOKEN)
"""Variables that may speak of another cluster."""
SHARED = ("--dashboard-agent-listen-port=0", "--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats")


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
    options = ["--head", f"--port={port}", f"--node-ip-address={host}", "--num-cpus=0", "--num-gpus=0", "--no-monitor"]
    options += [f"--include-dashboard={str(dashboard_port is not None).lower()}", f"--dashboard-host={host}"]
    options += [f"--ray-client-server-port={client_port or 0}", f"--object-store-memory={OBJECT_STORE_BYTES}"]
    if dashboard_port is not None:
        options.append(f"--dashboard-port={dashboard_port}")
    _run([*options, f"--temp-dir={temp_dir}"], environment, Path(temp_dir) / "head.out")


def nodes(
    environment: Mapping[str, str],
    *,
    temp_dir: str,
    address: str,
    host: str | None,
    count: int,
    cpus: int,
    gpus: int,
) -> None:
    """Nodes that join the cluster at `address`, listening on `host` (None: where they reach it from).

    Each is tried again some times. Raises `StartError`.
    """
    options = [f"--address={address}", f"--num-cpus={cpus}", f"--num-gpus={gpus}", f"--temp-dir={temp_dir}"]
    if host is not None:
        options.append(f"--node-ip-address={host}")
    if host == LOOPBACK:
        options.append(f"--object-store-memory={OBJECT_STORE_BYTES}")

    def start(number: int) -> None:
        for attempt in range(1, STARTS + 1):
            try:
                return _run(options, environment, Path(temp_dir) / f"node-{number}.out")
            except StartError:
                if attempt == STARTS:
                    raise

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(start, range(1, count + 1)))


def free_port(name: str, host: str, port: int) -> int:
    """`port` where nobody listens there, for 0 any free one. Raises `ValueError`."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((host, port))
        except OSError as error:
            raise ValueError(f"{name} must be a free one of {host}, got {port}: {error.strerror}") from None
        return int(one.getsockname()[1])


def _run(options: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
    """One `ray start`. Its processes keep the log open, so what it says is read from there. Raises `StartError`."""
    given = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *options, *SHARED]
    try:
        with log.open("w") as file:
            done = subprocess.run(
                command,
                env=given | dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                timeout=TIMEOUT_S,
                check=False,
            )
    except subprocess.TimeoutExpired:
        raise StartError(f"ray must start within {TIMEOUT_S:.0f} s, got nothing from it") from None
    if done.returncode:
        said = " ".join(log.read_text(errors="replace").split()[-40:])
        raise StartError(f"ray must start, got {said or f'exit code {done.returncode}'}")
