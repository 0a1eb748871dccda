"""The Ray cluster that a command uses: a new one on this machine, or one that runs already. Nothing of sampling here.

A new one listens on the loopback address alone, has no dashboard, and asks for a token that only this process and its
children know. Ray reads its variables when it is first imported, so this module imports it late, after they are set.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from gram.distributed import socket_folder
from gram.distributed.access import (
    LOOPBACK,
    OBJECT_STORE_BYTES,
    QUIET,
    STARTS,
    TOKEN,
    TOKEN_PATH,
    ask_for_token,
    check_node_here,
    check_reachable,
    check_token,
    split_address,
)
from gram.distributed.local_cluster import current, has_state_folder

NEW, OFF, AUTO = "new", "off", "auto"
HEAD_RESOURCE = "node:__internal_head__"
"""That the head alone has."""
ADDRESS = "RAY_ADDRESS"
"""Ray sets it for a job."""


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
    if where := os.environ.get(ADDRESS):
        return where
    if (cluster := current()) is None:
        raise ValueError(f"ray auto must find a cluster, got none: gram cluster up starts one, or set {ADDRESS}")
    return cluster.address


def take_local_token(where: str) -> None:
    """Names the token's file to Ray where the address is that of the cluster that `gram cluster up` started here."""
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
    ask_for_token()


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
                with suppress(ValueError):  # not in the main thread, where Ray cannot have changed them either
                    signal.signal(number, handler)
