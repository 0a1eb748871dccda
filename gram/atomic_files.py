"""Files and folders that appear whole or not at all, with the mode that the umask leaves, and the lock on a folder that
one process alone may write. No torch: the store uses it.

Python's and safetensors' own temporary files are for their owner alone, which a move would keep.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, *, mode: int = 0o666) -> Iterator[Path]:
    """A new, empty file beside `path` to be written; at the end it takes its place, where the block raises it goes.

    `mode` less the umask becomes its mode, whatever has written it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        wanted = stat.S_IMODE(os.fstat(handle).st_mode)
        os.close(handle)
        yield temporary
        if stat.S_IMODE(temporary.stat().st_mode) != wanted:
            temporary.chmod(wanted)
        sync(temporary)
        os.replace(temporary, path)
    except OSError as error:
        if error.filename in (None, str(temporary)):
            error.filename, error.filename2 = str(path), None  # a full disk names no file
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Lets a failed write of `path` name it: where the disk is full, the system names no file."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def making(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` to be filled; at the end it takes its place, where the block raises it goes.

    `folder` must not be there, or be empty.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f".{folder.name}.{secrets.token_hex(4)}"
    temporary.mkdir()
    try:
        yield temporary
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def sync(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def lock(handle: int, path: Path, error: type[Exception], is_held: str) -> None:
    """Locks the open file `path` until the handle is closed, by this process or by its end. Raises `error`: saying
    `is_held` where another process has it, or why it cannot be locked."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise error(is_held) from None
    except OSError as found:
        raise error(f"{path} cannot be locked: {found.strerror}") from None
