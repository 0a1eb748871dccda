"""Which copy of the package workers run: the driver's, found through its own import path. No torch, no Ray.

Ray puts the driver's working directory before everything else on a worker's import path, where a file `gram.py` or a
copy of the package would be taken for it. Version numbers do not tell two copies apart; a digest of the sources does.
"""

from __future__ import annotations

import hashlib
import os
import site
import sys
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import gram

ROOT = Path(gram.__file__).absolute().parent.parent
"""The folder that this process found the package in."""


def import_path() -> list[str]:
    """This process's import path, absolute, such that the package is found in `ROOT` first."""
    path = [os.path.abspath(entry) for entry in sys.path]
    found = PathFinder.find_spec("gram", path)
    if found is None or found.origin != str(ROOT / "gram" / "__init__.py"):
        path.insert(0, str(ROOT))  # it came another way: an editable install, say
    return path


def python_path() -> str | None:
    """`ROOT` where Python has to be told of it; None where it looks there by itself."""
    return None if str(ROOT) in (*site.getsitepackages(), site.getusersitepackages()) else str(ROOT)


@cache
def digest() -> str:
    """Digest of every Python file of the package, with its name: equal for a checkout and what is built from it."""
    package, whole = ROOT / "gram", hashlib.sha256()
    found = (
        Path(folder, name)
        for folder, _, names in os.walk(package, followlinks=True)  # kernels, distributed and evals are links
        for name in names
        if name.endswith(".py")
    )
    for path in sorted(found):
        content = path.read_bytes()
        whole.update(f"{path.relative_to(package).as_posix()} {len(content)}\n".encode() + content)
    return whole.hexdigest()[:16]


def at_driver(path: list[str], working_directory: str) -> type:
    """A worker class that imports what the driver imports, then is `gram.distributed.worker.Worker`.

    Made in a function, it goes to the nodes by value, so that nothing of ours is imported before its own `__init__`
    has set the import path. Folders that a node does not have are left out there.
    """

    class Worker:
        def __init__(self, parcel: Any) -> None:
            import os
            import sys

            theirs = [entry for entry in sys.path if entry not in path and entry != working_directory]
            sys.path[:] = [entry for entry in path if os.path.exists(entry)] + theirs
            try:
                from gram.distributed import worker
            except BaseException as error:  # sys.exit too: Ray would tell of a process that has gone
                said = " ".join(str(error).split())
                raise RuntimeError(f"gram cannot be imported: {type(error).__name__}: {said}") from None
            self.worker = worker.Worker(parcel)

        def ready(self) -> tuple[Any, ...]:
            return self.worker.ready()

        def run(self, shard: tuple[int, ...]) -> tuple[bytes, str, float]:
            return self.worker.run(shard)

    return Worker
