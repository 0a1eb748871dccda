"""How the host hands supervision steps to a device without waiting: some at a time, a stretch, and reads its report
one stretch late.

On a GPU a stretch is one CUDA graph over fixed buffers, captured once in a run and launched again and again; elsewhere
it is called. A report is one piece of memory on the device. Behind each stretch it is copied to one of two places on
the host, without waiting; the host reads the older one while the device takes the newer stretch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from math import prod
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from gram.kernels import graphs
from gram.kernels.philox import Drawn

AHEAD = 2
"""Stretches that may be on their way at once: one that runs, and one whose report is read."""
CALLED_FIRST = 4
"""Stretches of a run that are called before the graph is captured, so that short runs never pay for it."""
Fields = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""Type and shape of arrays, by name, the widest type first: each then begins at a whole number of its own."""


class Stretches(Protocol):
    """Runs stretches. `captures` counts graphs, which took `capture_s` to make."""

    captures: int
    capture_s: float

    def run(self, stretch: Callable[[], None]) -> None:
        """Runs one. `stretch` is the same function each time, over the same buffers."""


class CalledStretches:
    """Each is called."""

    captures = 0
    capture_s = 0.0

    def run(self, stretch: Callable[[], None]) -> None:
        stretch()


class CapturedStretches:
    """The first ones are called: they make ready what must not be made inside a graph, such as compiled kernels. The
    others are launches of one graph."""

    def __init__(self, device: torch.device, keeps: Callable[[], Any]) -> None:
        """`keeps` says what a stretch reads beside its buffers: it must live as long as the graph, which knows
        addresses alone."""
        self.keeps, self.kept = keeps, None
        self.aside = torch.cuda.Stream(device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.called = self.captures = 0
        self.capture_s = 0.0
        self.drawn = 0
        """Random numbers of a stretch."""
        self.is_compiled = False
        """How the last one that was called, or the graph, draws them (`Drawn`)."""

    def run(self, stretch: Callable[[], None]) -> None:
        is_compiled = Drawn.is_repaid()
        if self.graph is not None and self.drawn and self.is_compiled != is_compiled:
            self.graph = None
        if self.graph is None:
            # Captured is only what was called as it is now, so that nothing is made ready in the graph.
            is_new = not self.called or self.is_compiled != is_compiled or self.keeps() is not self.kept
            if is_new or self.called < CALLED_FIRST:
                with Drawn.held():
                    stretch()
                self.called, self.is_compiled, self.kept = self.called + 1, is_compiled, self.keeps()
                return
            self.graph = self._captured(stretch)
        Drawn.elements += self.drawn
        self.graph.replay()

    def _captured(self, stretch: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """The graph of a stretch, which is not run."""
        began = time.perf_counter()
        before, pool = Drawn.elements, torch.cuda.graph_pool_handle()
        with Drawn.held():
            graph = graphs.capture(stretch, stream=self.aside, pool=pool, what="supervision steps")
        self.drawn, Drawn.elements = Drawn.elements - before, before
        self.captures += 1
        self.capture_s += time.perf_counter() - began
        return graph


class Reports:
    """What stretches report: arrays on the device, which they fill, and copies on the host."""

    def __init__(self, device: torch.device, fields: Fields) -> None:
        size = sum(prod(shape) * kind.itemsize for kind, shape in fields.values())
        is_gpu = device.type == "cuda"
        self.whole = torch.empty(size, dtype=torch.uint8, device=device)
        self.arrays = _views(self.whole, fields)
        """On the device, by name."""
        self.copies = [torch.empty(size, dtype=torch.uint8, pin_memory=is_gpu) for _ in range(AHEAD)]
        self.found = [{name: view.numpy() for name, view in _views(copy, fields).items()} for copy in self.copies]
        self.arrived = [torch.cuda.Event() for _ in range(AHEAD)] if is_gpu else []
        self.sent = self.read = 0
        self.waited_s = 0.0
        """How long the host has waited for the device."""

    @property
    def ahead(self) -> int:
        """Reports that have been sent and not been read."""
        return self.sent - self.read

    def send(self) -> None:
        """Has the report copied to the host, behind all that the current stream was given. At most `AHEAD` may be on
        their way."""
        place = self.sent % AHEAD
        self.copies[place].copy_(self.whole, non_blocking=True)
        if self.arrived:
            self.arrived[place].record()
        self.sent += 1

    def take(self) -> dict[str, NDArray[Any]]:
        """The oldest report that has not been read, waited for. Its arrays hold until `AHEAD` more are sent."""
        place = self.read % AHEAD
        if self.arrived:
            began = time.perf_counter()
            self.arrived[place].synchronize()
            self.waited_s += time.perf_counter() - began
        self.read += 1
        return self.found[place]


def _views(whole: Tensor, fields: Fields) -> dict[str, Tensor]:
    """Arrays one behind the other in one piece of bytes."""
    views: dict[str, Tensor] = {}
    first = 0
    for name, (kind, shape) in fields.items():
        last = first + prod(shape) * kind.itemsize
        views[name] = whole[first:last].view(kind).view(shape)
        first = last
    return views
