"""Keeps compiled pieces between processes: a folder of packages, one for each piece, shape, type and machine.

The folder is `GRAM_CACHE`, or `gram/compiled` in the user's cache directory. A package is named by a digest of all it
depends on: the caller's key, the sources of the mathematics, PyTorch's version, processor and number of threads.
Packages are native code, so nobody else may write to the folder. A damaged one (full disk, power cut) is made again.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

FOLDER_VARIABLE = "GRAM_CACHE"
SOURCES = ("compiled/path.py", "compiled/cache.py", "reference.py", "relations.py", "patterns.py", "philox.py")
COMPILERS = ("c++", "g++", "clang++")


def folder() -> Path:
    """Where packages are kept. Raises `ValueError` where no variable names a folder."""
    if named := os.environ.get(FOLDER_VARIABLE):
        return Path(named)
    if cache_home := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache_home) / "gram" / "compiled"
    try:
        return Path.home() / ".cache" / "gram" / "compiled"
    except RuntimeError:
        raise ValueError(f"{FOLDER_VARIABLE} or HOME must name a folder for compiled pieces, got neither") from None


def obstacle() -> str | None:
    """Why nothing can be kept in the folder, or None."""
    try:
        wanted = folder()
    except ValueError as error:
        return str(error)
    there = next((path for path in (wanted, *wanted.absolute().parents) if _exists(path)), wanted)
    if there.is_dir() and os.access(there, os.R_OK | os.W_OK | os.X_OK):
        return None
    return f"{FOLDER_VARIABLE} must name a folder that can be written, got {wanted}"


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False  # in a folder that cannot be entered


def compiler() -> str | None:
    """The C++ compiler that would be used, or None."""
    named = os.environ.get("CXX")
    return next((path for name in ((named,) if named else COMPILERS) if (path := shutil.which(name))), None)


@cache
def _surroundings() -> str:
    """What every package depends on, except its piece."""
    sources = hashlib.sha256(
        b"\0".join((Path(__file__).parent.parent / name).read_bytes() for name in SOURCES)
    ).hexdigest()
    return f"{sources} {torch.__version__} {platform.machine()} {processor()}"


def processor() -> str:
    """The processor's features, as the system tells them."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def path_of(key: object) -> Path:
    """The package's file for a key (its `repr` counts) on this machine, with this many threads."""
    named = hashlib.sha256(f"{key!r} {_surroundings()} {torch.get_num_threads()}".encode()).hexdigest()
    return folder() / f"{named[:32]}.pt2"


def is_whole(path: Path) -> bool:
    """Whether a package is there and holds what was written: an archive whose parts have their checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            return bool(archive.namelist()) and archive.testzip() is None
    except (OSError, ValueError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return False  # what zipfile raises for damaged bytes; the piece is compiled again, and doctor counts it


def has(key: object) -> bool:
    """Whether the cache holds the package for a key, whole."""
    try:
        return is_whole(path_of(key))
    except ValueError:
        return False  # there is no cache


def compiled(module: nn.Module, arguments: tuple[Tensor, ...], key: object) -> Callable[..., Tensor]:
    """`module` compiled for tensors like `arguments`: from the cache where that has it whole, else made and kept.

    Raises `RuntimeError` without a C++ compiler or where compiling fails.
    """
    from torch._inductor import aoti_compile_and_package

    if has(key):
        try:
            return _loaded(path_of(key))
        except RuntimeError:
            pass  # whole, but not what this PyTorch can load
    if compiler() is None:
        raise RuntimeError(f"kernel compiled needs a C++ compiler ({', '.join(COMPILERS)}), got none")
    path = path_of(key) if obstacle() is None else None
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        tempfile.TemporaryDirectory(dir=path and path.parent) as made,
        warnings.catch_warnings(),
    ):
        # PyTorch's export warns of its own use of a deprecated check.
        warnings.simplefilter("ignore", FutureWarning)
        # The arguments may have been made under inference mode, which export does not take.
        fresh = tuple(torch.zeros(x.shape, dtype=x.dtype) for x in arguments)
        program = torch.export.export(module, fresh, strict=False)
        package = Path(aoti_compile_and_package(program, package_path=str(Path(made) / "piece.pt2")))
        if path is not None:
            keep(package, path)
        return _loaded(path or package)


def _loaded(package: Path) -> Callable[..., Tensor]:
    from torch._inductor import aoti_load_package

    run: Callable[..., Tensor] = aoti_load_package(str(package))
    return run


def keep(written: Path, path: Path) -> None:
    """Moves a file into place once all of it is on the disk; replaces what is there, even a folder."""
    with written.open("rb") as file:
        os.fsync(file.fileno())
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    os.replace(written, path)
