"""Builds the library of one shape from its C++ source with the machine's compiler, and keeps it between processes.

It is kept beside the compiled pieces (`kernels/compiled/cache.py`), named by a digest of its source, shape, compiler
and processor.
"""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from gram.kernels.compiled import cache as compile_cache

FOLDER = Path(__file__).parent
_CODE = b"".join(path.read_bytes() for path in sorted(FOLDER.glob("*.[ch]*")))
VERSION = int.from_bytes(hashlib.sha256(_CODE).digest()[:7], "big")
"""Names the code. Operations are told it: a graph that PyTorch has kept on disk from other code, whose buffers had
other sizes, must not be taken for this one's."""
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-std=c++17", "-shared", "-fPIC", "-w")


@cache
def library(source: Path, defined: tuple[str, ...]) -> ctypes.CDLL:
    """The library of a file with macros `defined` (`NAME=value`), from the cache or the compiler.

    Raises `RuntimeError` without a C++ compiler or where compiling fails.
    """
    compiler = compile_cache.compiler()
    if compiler is None:
        raise RuntimeError(f"the native core needs a C++ compiler ({', '.join(compile_cache.COMPILERS)}), got none")
    flags = [*FLAGS, *(f"-D{each}" for each in defined)]
    if compile_cache.obstacle() is not None:
        with tempfile.TemporaryDirectory() as folder:
            return ctypes.CDLL(str(_compiled(compiler, flags, source, Path(folder) / "made.so")))
    kept = compile_cache.folder() / f"native-{_digest(compiler, flags, source)}.so"
    mark = kept.with_suffix(".sha256")
    # A damaged library (full disk, power cut) would end the process when it is opened: it is made again.
    if not (kept.is_file() and mark.is_file() and mark.read_text() == _sha256(kept)):
        kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            made = _compiled(compiler, flags, source, Path(folder) / "made.so")
            told = Path(folder) / "made.sha256"
            told.write_text(_sha256(made))
            compile_cache.keep(made, kept)
            compile_cache.keep(told, mark)
    try:
        return ctypes.CDLL(str(kept))
    except OSError as error:
        raise RuntimeError(f"the native core must load, got: {error}") from None


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _compiled(compiler: str, flags: list[str], source: Path, out: Path) -> Path:
    done = subprocess.run([compiler, *flags, str(source), "-o", str(out)], capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or [""]
        raise RuntimeError(f"the native core must compile, got: {lines[0]}")
    return out


def _digest(compiler: str, flags: list[str], source: Path) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    texts = [path.read_text() for path in (source, *sorted(source.parent.glob("*.h")))]
    parts = [*texts, *flags, shutil.which(compiler) or "", version, compile_cache.processor()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
