"""The Ray cluster that a command uses: a new one on this machine, or one that runs already. Nothing of sampling here.

A new one listens on the loopback address alone, has no dashboard, and asks for a token that only this process and its
children know. A cluster elsewhere must ask for a token too: whoever reaches a Ray cluster without one can run any code
on it. Ray reads its variables when it is first imported: this module imports it late, so that one can set them first.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from gram.distributed import processes, socket_folder

NEW, OFF, AUTO = "new", "off", "auto"
LOOPBACK = "127.0.0.1"
STARTS = 3
"""Tries to start a cluster: on a starved machine it can exceed Ray's own limit."""
OBJECT_STORE_BYTES = 256 << 20
HEAD_RESOURCE = "node:__internal_head__"
"""That the head alone has."""
RAYLET = "raylet"
"""Name of the process that every node has one of."""
CONNECT_TIMEOUT_S = 10.0
TOKEN, TOKEN_PATH, MODE = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"
ADDRESS = "RAY_ADDRESS"
"""Ray sets it for a job."""
DEFAULT_TOKEN_PATH = Path(".ray") / "auth_token"
"""From the home folder; where Ray looks by itself."""
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


@contextmanager
def connected(where: str, *, cpus: int | None = None) -> Iterator[None]:
    """Connects this process to a cluster for a while: `new`, `auto` (`running`), or the address of one, as `host:port`.

    `cpus` are those that a new one may use at least. Raises `ValueError` for an address that is none, that nobody
    answers, or that comes without a token, and where this machine has no node to connect through.
    """
    if where == AUTO:
        where = running()
    with ExitStack() as stack:
        if where == NEW:
            prepare_new()
            arguments: dict[str, Any] = {
                "address": "local",
                "num_cpus": max(cpus or 1, os.cpu_count() or 1),
                "object_store_memory": OBJECT_STORE_BYTES,
                "include_dashboard": False,
                "_node_ip_address": LOOPBACK,
                "_temp_dir": stack.enter_context(socket_folder.for_new_cluster()),
            }
        else:
            host, port = split_address(where)
            take_local_token(where)
            check_token(where, host)
            check_reachable(where, host, port)
            check_node_here(where)
            os.environ.update(QUIET)
            arguments = {"address": where}
        import ray

        if ray.is_initialized():
            raise ValueError("ray must not be connected yet, got a process that is")
        _start(arguments, tries=STARTS if where == NEW else 1)
        stack.callback(ray.shutdown)
        yield


def running() -> str:
    """Address of the cluster that a job runs on (`ADDRESS`), else of the one that `gram cluster up` started here.

    Raises `ValueError` where there is neither.
    """
    from gram.distributed.local_cluster import current

    if where := os.environ.get(ADDRESS):
        return where
    if (cluster := current()) is None:
        raise ValueError(f"ray auto must find a cluster, got none: gram cluster up starts one, or set {ADDRESS}")
    return cluster.address


def take_local_token(where: str) -> None:
    """Names the token's file to Ray where the address is that of the cluster that `gram cluster up` started here."""
    from gram.distributed.local_cluster import current, has_state_folder

    if not os.environ.get(TOKEN) and not os.environ.get(TOKEN_PATH) and has_state_folder():
        cluster = current()
        if cluster is not None and where in (cluster.address, cluster.dashboard):
            os.environ[TOKEN_PATH] = cluster.token_file


def nodes_at(where: str) -> list[dict[str, Any]]:
    """Nodes of the cluster at an address, the head first, those that are gone last. Raises `ValueError`."""
    with connected(where):
        import ray

        rows = [
            {
                "node": node["NodeID"],
                "address": node["NodeManagerAddress"],
                "is_alive": bool(node["Alive"]),
                "is_head": HEAD_RESOURCE in node["Resources"],
                "cpus": node["Resources"].get("CPU", 0.0),
                "gpus": node["Resources"].get("GPU", 0.0),
            }
            for node in ray.nodes()  # type: ignore[no-untyped-call]
        ]
    return sorted(rows, key=lambda row: (not row["is_alive"], not row["is_head"], row["node"]))


def prepare_new() -> None:
    """Environment of a new cluster: quiet, and closed to whoever lacks the token that is made here."""
    os.environ.update(QUIET)
    os.environ.setdefault(TOKEN, secrets.token_hex(32))
    _ask_for_token()


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
    _ask_for_token()


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


def _ask_for_token() -> None:
    """Switches tokens on for this process and its children."""
    os.environ[MODE] = "token"
    if "ray" in sys.modules:
        raylet: Any = sys.modules["ray._raylet"]
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()


def _start(arguments: dict[str, Any], *, tries: int) -> None:
    """Connects, with the last of `tries` at the latest, and leaves the handling of signals as it was."""
    import ray

    # Ray prints its news of dead workers on stdout, where only figures stand; the pool tells them in a line of its own.
    if hasattr(talker := sys.modules["ray._private.worker"], "print_to_stdstream"):
        talker.print_to_stdstream = lambda *_, **__: None  # type: ignore[attr-defined]
    for attempt in range(1, tries + 1):
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            ray.init(**arguments, configure_logging=True, logging_level=logging.ERROR, log_to_driver=False)
            return
        except Exception as error:
            ray.shutdown()
            if attempt == tries or isinstance(error, ValueError):
                reason = " ".join(str(error).split())[:300]
                raise ValueError(f"ray must start or answer, got {reason}") from error
            time.sleep(attempt)
        finally:
            for number, handler in handlers.items():
                _restore(number, handler)


def _restore(number: int, handler: Any) -> None:
    try:
        signal.signal(number, handler)
    except ValueError:
        return  # not in the main thread, where Ray cannot have changed them either
