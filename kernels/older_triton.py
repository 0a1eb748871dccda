"""What the oldest triton in our range lacks; importing this module makes it take what kernels ask for."""

from __future__ import annotations

import inspect
from typing import Any

import triton.language as tl

if "disable_licm" not in inspect.signature(tl.range.__init__).parameters:

    class Range(tl.range):  # type: ignore[misc]  # its base class is not annotated
        """`tl.range` of triton 3.4, which knows no `disable_licm`: it moves out of a loop all that it can."""

        def __init__(self, *arguments: Any, disable_licm: bool = False, **more: Any) -> None:
            super().__init__(*arguments, **more)

    tl.range = Range
