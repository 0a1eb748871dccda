"""What the GPU at hand can do at most, for the floors of `kernel_counts`: measured here, unless it was given.

Memory by one copy that is many times the second-level cache, products by one large product in bfloat16 of random
numbers, special functions by the device's multiprocessors and clock. The least time of several counts: a floor is what
cannot be beaten. What fails is taken from an H100.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from gram.evals.benchmarks.kernel_counts import H100, SPECIAL_A_CLOCK, Rates
from gram.kernels import resources

COPIED = 1 << 30
"""Bytes of a copy; as many are read as written."""
WIDTH = 8192
"""Rows, columns and terms of the product."""
TRIES, REPEATS = 5, 4
"""Timings of each, and runs timed together."""


class Known(NamedTuple):
    """Rates, and where each is from: `given`, `measured`, `counted` or `H100`, there with the reason where one is."""

    rates: Rates
    sources: dict[str, str]


def known(given: Mapping[str, float], device: torch.device | None) -> Known:
    """The rates given, and for want of them those of a GPU; without one those of an H100."""
    rates: dict[str, float] = dict(H100._asdict())
    sources = dict.fromkeys(Rates._fields, "H100")
    makers: dict[str, tuple[str, Callable[[torch.device], float]]] = {
        "teraflops": ("measured", product_teraflops),
        "terabytes": ("measured", copy_terabytes),
        "special_tera": ("counted", special_tera),
    }
    for name, (how, make) in makers.items():
        if device is None or name in given:
            continue
        try:
            rates[name], sources[name] = make(device), how
        except Exception as error:
            sources[name] = f"H100, since here: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return Known(Rates(**{**rates, **given}), sources | dict.fromkeys(given, "given"))


def copy_terabytes(device: torch.device, size: int = COPIED) -> float:
    """Bytes read and written a second by a copy in device memory, 10^12."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _least_s(lambda: target.copy_(source), device) / 1e12


def product_teraflops(device: torch.device, width: int = WIDTH) -> float:
    """Multiplications and additions a second of a square product in bfloat16, 10^12."""
    left, right = torch.randn(2, width, width, device=device).to(torch.bfloat16)
    out = torch.empty_like(left)
    return 2 * width**3 / _least_s(lambda: torch.mm(left, right, out=out), device) / 1e12


def special_tera(device: torch.device) -> float:
    """Special functions a second, 10^12, of all multiprocessors at the highest clock."""
    units = torch.cuda.get_device_properties(device).multi_processor_count
    return float(SPECIAL_A_CLOCK * units * resources.highest_clock_hz(device) / 1e12)


def _least_s(run: Callable[[], object], device: torch.device) -> float:
    """The least seconds of a run, after some to warm up."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    found = []
    for _ in range(TRIES + 1):
        wait()
        began = time.perf_counter()
        for _ in range(REPEATS):
            run()
        wait()
        found.append((time.perf_counter() - began) / REPEATS)
    return min(found[1:])
