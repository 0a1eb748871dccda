"""How long work tells of its progress: a function that is given a total and a unit, as a command's bar is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Advance = Callable[[int], None]
"""Called with how many more units are done."""
ShowProgress = Callable[[int, str], AbstractContextManager[Advance]]


@contextmanager
def silent(total: int, unit: str) -> Iterator[Advance]:
    """Shows nothing."""
    yield lambda count: None
