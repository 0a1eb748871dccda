"""How long work tells of its progress: a function that is given a total and a unit, as a command's bar is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Advance = Callable[[int], None]
"""Called with how many more units are done."""
ShowProgress = Callable[[int, str], AbstractContextManager[Advance]]


def silent(total: int, unit: str) -> AbstractContextManager[Advance]:
    """Shows nothing."""
    return nullcontext(lambda count: None)
