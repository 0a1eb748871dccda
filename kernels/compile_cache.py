"""Compiled pieces kept between processes: a folder of packages, one for each piece, shape, type and machine.

The folder is `GRAM_CACHE`, or `gram/compiled` in the user's cache directory. A package is named by a digest of all that
it depends on: what the caller names, the sources of the mathematics, PyTorch's version, the processor and the number of
threads. It is native code that the user's own compiler made, so the folder must be the user's alone.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

FOLDER_VARIABLE = "GRAM_CACHE"
SOURCES = ("compiled.py", "compile_cache.py", "reference.py", "philox.py")
COMPILERS = ("c++", "g++", "clang++")


def folder() -> Path:
    """Where packages are kept."""
    if named := os.environ.get(FOLDER_VARIABLE):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gram" / "compiled"


def compiler() -> str | None:
    """The C++ compiler that would be used, or None."""
    named = os.environ.get("CXX")
    return next((path for name in ((named,) if named else COMPILERS) if (path := shutil.which(name))), None)


@cache
def _surroundings() -> str:
    """What every package depends on beside the piece itself."""
    sources = hashlib.sha256(b"\0".join((Path(__file__).parent / name).read_bytes() for name in SOURCES)).hexdigest()
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    processor = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{sources} {torch.__version__} {platform.machine()} {processor}"


def path_of(key: object) -> Path:
    """The package's file for a key (its `repr` counts) on this machine, with this many threads."""
    named = hashlib.sha256(f"{key!r} {_surroundings()} {torch.get_num_threads()}".encode()).hexdigest()
    return folder() / f"{named[:32]}.pt2"


def compiled(module: nn.Module, arguments: tuple[Tensor, ...], key: object) -> Callable[..., Tensor]:
    """`module` compiled for tensors like `arguments`, from the cache where it has it.

    Raises `RuntimeError` without a C++ compiler or where compiling fails.
    """
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    path = path_of(key)
    if not path.is_file():
        if compiler() is None:
            raise RuntimeError(f"kernel compiled needs a C++ compiler ({', '.join(COMPILERS)}), got none")
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            tempfile.TemporaryDirectory(dir=path.parent) as made,
            warnings.catch_warnings(),
        ):
            # PyTorch's export warns of its own use of a deprecated check.
            warnings.simplefilter("ignore", FutureWarning)
            # The arguments may have been made under inference mode, which export does not take.
            fresh = tuple(torch.zeros(x.shape, dtype=x.dtype) for x in arguments)
            program = torch.export.export(module, fresh, strict=False)
            package = aoti_compile_and_package(program, package_path=str(Path(made) / "piece.pt2"))
            os.replace(package, path)
    run: Callable[..., Tensor] = aoti_load_package(str(path))
    return run
