"""Workers that die, fail, dawdle or lie, for tests of what the driver makes of it.

They answer with recorded results, so that starting one does not import torch; classes and faults are made in functions,
so that Ray sends them by value and no worker imports the tests.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

Fault = Callable[[int], bytes | str | None]
"""What goes wrong with a shard: another result, an error, or nothing that is told."""


def recorded(folder: Path, metadata: tuple[str, ...], fault: Fault) -> type:
    """A worker that reads its results from `folder`, after `fault`."""

    class Recorded:
        def __init__(self, parcel: Any) -> None:
            assert parcel

        def ready(self) -> tuple[Any, ...]:
            import ray

            return (*metadata, ray.get_runtime_context().get_node_id(), os.getpid())

        def run(self, shard: tuple[int, ...]) -> tuple[bytes, str, float]:
            told = fault(shard[0])
            if isinstance(told, str):
                return b"", told, 0.0
            return told or (folder / str(shard[0])).read_bytes(), "", 0.0

    return Recorded


def dies_once(folder: Path, shards: Collection[int]) -> Fault:
    """Killed by each of these shards, the first time."""

    def fault(shard: int) -> None:
        mark = folder / f"died{shard}"
        if shard in shards and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    return fault


def cannot(*, raises: Collection[int], dies: Collection[int]) -> Fault:
    """Raises an error on some shards and is killed by others, always."""

    def fault(shard: int) -> str | None:
        if shard in dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return f"ValueError: shard {shard} is ill" if shard in raises else None

    return fault


def dawdles(seconds: float, claim: Path | None = None, slow_seconds: float = 0.0) -> Fault:
    """Takes so long for a shard; with `claim`, the first worker to make that folder takes `slow_seconds`."""

    def fault(shard: int) -> None:
        is_slow = False
        if claim is not None:
            mine = claim / str(os.getpid())
            try:
                claim.mkdir()
                mine.touch()
            except FileExistsError:
                pass
            is_slow = mine.exists()
        time.sleep(slow_seconds if is_slow else seconds)

    return fault


def lies(folder: Path, other: bytes) -> Fault:
    """Gives another result for shard 0 when it runs it the second time."""

    def fault(shard: int) -> bytes | None:
        mark = folder / f"told{shard}"
        if shard == 0 and mark.exists():
            return other
        mark.touch()
        return None

    return fault


def stuck(folder: Path, shard: int, refused: int, most_s: float = 90.0) -> Fault:
    """The first worker to run `shard` goes on until it is cancelled; only that one can run `refused`, and only then.
    The files `stuck` and `cancelled` in `folder` tell."""

    def fault(current: int) -> str | None:
        import ray

        mine, cancelled = folder / "stuck", folder / "cancelled"
        if current == shard and not mine.exists():
            mine.write_text(str(os.getpid()))
            until = time.monotonic() + most_s
            while not ray.get_runtime_context().is_canceled() and time.monotonic() < until:
                time.sleep(0.02)
            if ray.get_runtime_context().is_canceled():
                cancelled.touch()
            return "ended without a result"
        if current == refused and not (cancelled.exists() and mine.read_text() == str(os.getpid())):
            return f"ValueError: shard {refused} is for the slow one"
        return None

    return fault


def waits(folder: Path, last_of: int, most_s: float = 90.0) -> Fault:
    """Waits for the file `first` in `folder`, and from shard `last_of` on for the file `last`."""

    def fault(shard: int) -> None:
        mark = folder / ("first" if shard < last_of else "last")
        until = time.monotonic() + most_s
        while not mark.exists() and time.monotonic() < until:
            time.sleep(0.1)

    return fault
