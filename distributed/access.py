"""Who may reach a Ray cluster, and how: addresses, tokens, and the variables that both need. Nothing here starts Ray.

A cluster of ours listens on the loopback address alone and asks for a token. One elsewhere must ask for a token too:
whoever reaches a Ray cluster without one can run any code on it.
"""

from __future__ import annotations

import os
import socket
import stat
import sys
from pathlib import Path
from typing import Any

from gram.distributed import processes

LOOPBACK = "127.0.0.1"
RAYLET = "raylet"
"""Name of the process that every node has one of."""
CONNECT_TIMEOUT_S = 10.0
TOKEN, TOKEN_PATH, MODE = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"
DEFAULT_TOKEN_PATH = Path(".ray") / "auth_token"
"""From the home folder; where Ray looks by itself."""
STARTS = 3
"""Tries to start a cluster: on a starved machine it can exceed Ray's own limit."""
OBJECT_STORE_BYTES = 256 << 20
INLINE_BYTES = 1 << 20
"""Results up to this size come back within their answer and not through the object store of the worker's node, which
costs the driver as much again. Ray's own limit, 100 kB, is just below a usual shard's result."""
QUIET = {
    "RAY_max_direct_call_object_size": str(INLINE_BYTES),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}
"""Small results inline, no statistics sent, no rewriting of the loopback address, no warnings about it."""


def split_address(where: str) -> tuple[str, int]:
    """Host and port. Raises `ValueError`."""
    host, colon, port = where.rpartition(":")
    if not (colon and host and port.isdigit() and 0 < int(port) < 65536) or "/" in host:
        raise ValueError(f"ray must be off, new, auto or an address as host:port, got {where!r}")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its name alone."""
    return host == "localhost" or host.startswith("127.") or host in ("::1", "[::1]")


def check_token(where: str, host: str) -> None:
    """Sees that a token is there for a cluster elsewhere, and that its file is for its owner alone. Raises
    `ValueError`."""
    if is_loopback(host) and not os.environ.get(TOKEN) and token_file() is None:
        return
    given_token(where, host)
    ask_for_token()


def token_file() -> Path | None:
    """The file that holds the token; None where there is none."""
    try:
        file = Path(os.environ.get(TOKEN_PATH) or Path.home() / DEFAULT_TOKEN_PATH)
    except RuntimeError:
        return None  # no home folder
    return file if file.is_file() else None


def given_token(where: str, host: str) -> str:
    """The token for a cluster: the variable's, else the file's. Raises `ValueError` for none, or one open to others."""
    if token := os.environ.get(TOKEN):
        return token
    if (file := token_file()) is None:
        raise ValueError(
            f"ray address {where} must come with a token, in {TOKEN_PATH} or {TOKEN}, got none:"
            " without one anybody who reaches the cluster can run code there"
        )
    if (mode := stat.S_IMODE(file.stat().st_mode)) & 0o077:
        raise ValueError(f"token file {file} must be for its owner alone (chmod 600), got mode {mode:o}")
    return file.read_text().strip()


def ask_for_token() -> None:
    """Switches tokens on for this process and its children."""
    os.environ[MODE] = "token"
    raylet: Any = sys.modules.get("ray._raylet")
    if raylet is not None:
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()


def check_reachable(where: str, host: str, port: int) -> None:
    """Sees that somebody listens there, in seconds rather than Ray's minute. Raises `ValueError`."""
    try:
        socket.create_connection((host.strip("[]"), port), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ValueError(f"ray address {where} must be a running cluster, got {error.strerror or error}") from None


def check_node_here(where: str) -> None:
    """Sees that a node runs on this machine, which Ray connects through, in no time rather than Ray's minute. Linux
    alone: elsewhere Ray finds out. Raises `ValueError`."""
    if processes.PROC.is_dir() and not processes.named(RAYLET):
        raise ValueError(
            f"ray address {where} must be that of a cluster with a node on this machine, got no node here"
            f" (gram cluster up --join {where} starts one)"
        )
