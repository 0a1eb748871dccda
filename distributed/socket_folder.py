"""A folder whose path is short enough for Ray's sockets: the system limits a Unix socket's path. No Ray.

Ray works in `RAY_TMPDIR`, else `TMPDIR`, else `/tmp`. Batch systems set long ones.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LONGEST_SOCKET_BYTES = 107 if sys.platform.startswith("linux") else 103
BELOW_BYTES = len("/session_2026-01-31_23-59-59_123456_4194304/sockets/plasma_store_99")
"""What Ray adds to its folder, at most."""
OWN_NAME = "gram-ray-"
"""Of a folder made here, before eight characters of chance."""
SHORT = ("/tmp", "/var/tmp", "/dev/shm")
VARIABLES = ("RAY_TMPDIR", "TMPDIR")


@contextmanager
def for_new_cluster() -> Iterator[str | None]:
    """None where Ray's sockets fit where it puts them, else a fresh folder for this user alone, removed at the end.

    Raises `ValueError` where there is none.
    """
    name = next((name for name in VARIABLES if name in os.environ), None)
    if name is None or (os.path.isabs(os.environ[name]) and _has_room(Path(os.environ[name]), "/ray")):
        yield None
        return
    folder = make()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make() -> str:
    """A fresh folder for this user alone, where temporary files go if that is short, else where it is short.

    Raises `ValueError` where there is none.
    """
    for parent in (tempfile.gettempdir(), *SHORT):
        if _has_room(Path(parent), f"/{OWN_NAME}12345678"):
            return tempfile.mkdtemp(prefix=OWN_NAME, dir=parent)
    most = LONGEST_SOCKET_BYTES - BELOW_BYTES - len(f"/{OWN_NAME}12345678")
    raise ValueError(
        f"TMPDIR must be a folder to write in with a path of at most {most} bytes, for Ray's sockets,"
        f" got {tempfile.gettempdir()} (and none of {', '.join(SHORT)} can be written)"
    )


def _has_room(parent: Path, name: str) -> bool:
    """Whether a folder of that name can be made there, and sockets within it. Ray makes a folder that is missing."""
    if len(os.fsencode(parent) + os.fsencode(name)) + BELOW_BYTES > LONGEST_SOCKET_BYTES:
        return False
    there = next(folder for folder in (parent, *parent.parents) if folder.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)
