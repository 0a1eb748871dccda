"""CUDA graphs: whether they are wanted, and capturing one so that a failure says why and harms no later one."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import torch

_CAPTURING = threading.Lock()
"""A process may capture one graph at a time."""


def are_on() -> bool:
    """Whether supervision steps and steps of training become CUDA graphs: not where `GRAM_GRAPHS=off` says so.

    Raises `ValueError` for another value.
    """
    asked = os.environ.get("GRAM_GRAPHS", "on")
    if asked not in ("on", "off"):
        raise ValueError(f"GRAM_GRAPHS must be on or off, got {asked!r}")
    return asked == "on"


def capture(
    function: Callable[[], object],
    *,
    stream: torch.cuda.Stream,
    pool: Any,
    what: str,
    hint: str = "GRAM_GRAPHS=off runs without",
) -> torch.cuda.CUDAGraph:
    """The graph of a function, which is not run, and must not allocate pinned memory. `pool` is a handle of the memory
    that it works in, `what` names what it does, `hint` says what to do where it cannot be.

    Raises `RuntimeError` where it cannot be captured, with what has failed first: what PyTorch raises when a capture
    ends says only that something has.
    """
    graph, collects = torch.cuda.CUDAGraph(), gc.isenabled()
    failed: list[Exception] = []
    gc.disable()  # what it frees may be of the device
    try:
        with _CAPTURING, ExitStack() as begun:
            # A capture that fails to begin leaves the stream that it has changed to.
            begun.enter_context(torch.cuda.stream(torch.cuda.current_stream()))
            # What the first one makes for the random generator must not be an inference tensor: later ones fill it.
            with torch.inference_mode(False):
                # What other threads do meanwhile, such as moving a model to the device, does not concern this capture.
                begun.enter_context(
                    torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local")
                )
            try:
                function()
            except Exception as error:
                failed.append(error)
                raise
    except Exception as error:
        _give_up(pool)
        first = (failed or [error])[0]
        reason = (str(first).strip().splitlines() or [type(first).__name__])[0]
        raise RuntimeError(f"{what} must become a CUDA graph, got: {reason}; {hint}") from error
    finally:
        if collects:
            gc.enable()
    return graph


def _give_up(pool: Any) -> None:
    """Ends what a failed capture has begun. PyTorch's allocator would take it to be under way for good, and then gives
    no memory back, which every later capture begins with."""
    with suppress(RuntimeError):  # it has ended by itself, or never begun
        device = torch.cuda.current_device()
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)
