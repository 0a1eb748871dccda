"""Through how many modules a run goes before it computes: `python scripts/count_walk.py`.

A module of ours is on the walk where one of its functions runs between the start and the first matrix product of a
supervision step. What runs only while a module is imported does not count. One walk starts at the command
`gram solve TASK PUZZLE`, the other at `gram.load(...).sample(puzzle)`, loading included.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import sys
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

PRODUCTS = {"linear", "matmul", "bmm", "einsum"}
MOST = {"solve": 20, "sample": 15}
PUZZLE = "Q......./......../......../......../......../......../......../........"


def solve() -> None:
    """One puzzle, as the command line solves it."""
    from gram.cli.main import main

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main(["solve", "nqueens8", PUZZLE, "--width", "1", "--depth", "1"])


def sample() -> None:
    """One puzzle from Python."""
    import gram

    gram.load("nqueens8").sample(PUZZLE, width=1, depth=1)


def is_ours(name: str) -> bool:
    """Whether a module belongs to the package."""
    return name == "gram" or name.startswith("gram.")


def callers(frame: FrameType) -> Iterator[tuple[str, str]]:
    """Module and function of a frame and of all that led to it."""
    for each, _ in traceback.walk_stack(frame):
        yield each.f_globals.get("__name__", ""), each.f_code.co_name


def is_importing(frame: FrameType) -> bool:
    """Whether a function of ours runs because a module is imported."""
    return any(function == "<module>" and is_ours(module) for module, function in callers(frame))


def is_in_kernel(frame: FrameType) -> bool:
    """Whether a supervision step is being computed."""
    return any(module.startswith("gram.kernels.") for module, _ in callers(frame))


def walk(start: Callable[[], None]) -> dict[str, str]:
    """Modules on the walk, in the order in which they are entered, each with the function that entered it."""
    found: dict[str, str] = {}
    is_over = False

    def look(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal is_over
        if is_over:
            return
        if event == "c_call":
            is_over = getattr(argument, "__name__", "") in PRODUCTS and is_in_kernel(frame)
            return
        name = frame.f_globals.get("__name__", "")
        is_function = event == "call" and frame.f_code.co_flags & inspect.CO_OPTIMIZED
        if is_function and is_ours(name) and name not in found and not is_importing(frame):
            found[name] = frame.f_code.co_name

    sys.setprofile(look)
    try:
        start()
    finally:
        sys.setprofile(None)
    if not is_over:
        raise RuntimeError("walk must end at a matrix product, got none")
    return found


def main() -> None:
    """Prints the walk named on the command line, or both, each in a process of its own."""
    import subprocess

    if not sys.argv[1:]:
        sys.exit(max(subprocess.call([sys.executable, __file__, name]) for name in MOST))
    name = sys.argv[1]
    found = walk({"solve": solve, "sample": sample}[name])
    print(f"{name}: {len(found)} modules, at most {MOST[name]}")
    for number, (module, function) in enumerate(found.items(), start=1):
        print(f"{number:>4}  {module}: {function}")
    sys.exit(len(found) > MOST[name])


if __name__ == "__main__":
    main()
