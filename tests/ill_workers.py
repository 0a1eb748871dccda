"""Workers that die, fail, dawdle or lie, for tests of what the driver makes of it.

The classes are made in functions, so that Ray sends them by value and no cluster needs the tests' folder.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from gram.distributed.worker import Worker


def dies_once(folder: Path, shards: Collection[int]) -> type:
    """Killed in the middle of each of these shards, the first time."""

    class DiesOnce(Worker):
        def run(self, shard: tuple[int, ...]) -> Any:
            mark = folder / str(shard[0])
            if shard[0] in shards and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().run(shard)

    return DiesOnce


def cannot(raises: Collection[int], dies: Collection[int] = ()) -> type:
    """Raises an error on some shards and is killed by others, always."""

    class Cannot(Worker):
        def run(self, shard: tuple[int, ...]) -> Any:
            if shard[0] in dies:
                os.kill(os.getpid(), signal.SIGKILL)
            if shard[0] in raises:
                return b"", f"ValueError: shard {shard[0]} is ill", 0.0
            return super().run(shard)

    return Cannot


def dawdles(seconds: float, claim: Path | None = None, slow_seconds: float = 0.0) -> type:
    """Takes so long for a shard; with `claim`, the first worker that makes that folder takes `slow_seconds`."""

    class Dawdles(Worker):
        def __init__(self, parcel: Any) -> None:
            super().__init__(parcel)
            self.seconds = seconds
            if claim is not None:
                try:
                    claim.mkdir()
                    self.seconds = slow_seconds
                except FileExistsError:
                    pass

        def run(self, shard: tuple[int, ...]) -> Any:
            time.sleep(self.seconds)
            return super().run(shard)

    return Dawdles


def lies(folder: Path) -> type:
    """Gives another result for shard 0 when it runs it the second time."""

    class Lies(Worker):
        def run(self, shard: tuple[int, ...]) -> Any:
            mark = folder / "told"
            if shard[0] == 0 and mark.exists():
                self.runner.puzzles = self.runner.puzzles[::-1].copy()
            mark.touch()
            return super().run(shard)

    return Lies
