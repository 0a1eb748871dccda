"""Energy counters that a device reports: joules since some moment, so that two readings tell what lay between them.

An NVIDIA GPU has one (NVML, from Volta on); a CPU's packages have theirs under Linux's power capping (Intel's and AMD's
RAPL), often for root alone. Where none can be read there is no energy, and none is guessed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

Counter = Callable[[], float]
"""Joules so far; only differences mean something."""
POWERCAP = Path("/sys/class/powercap")


def counter(gpu: str | None = None, *, powercap: Path = POWERCAP) -> Counter | None:
    """The counter of a GPU (its UUID as PyTorch gives it), or else of all CPU packages; None where none can be read."""
    return _nvml(gpu) if gpu is not None else _packages(powercap)


def _packages(powercap: Path) -> Counter | None:
    """Sum over CPU packages; each counter starts again from 0 at its own limit."""
    folders = [path.parent for path in sorted(powercap.glob("*/energy_uj")) if path.parent.name.count(":") == 1]
    try:
        packages = [
            (folder / "energy_uj", int((folder / "max_energy_range_uj").read_text()))
            for folder in folders
            if (folder / "name").read_text().startswith("package")
        ]
        last = [int(path.read_text()) for path, _ in packages]
    except (OSError, ValueError):
        return None
    if not packages:
        return None
    total = 0

    def read() -> float:
        nonlocal total
        for place, (path, limit) in enumerate(packages):
            now = int(path.read_text())
            total += now - last[place] if now >= last[place] else now + limit - last[place]
            last[place] = now
        return total / 1e6

    return read


def _nvml(gpu: str) -> Counter | None:
    """NVML's counter of a GPU, in millijoules there."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    name = (gpu if gpu.startswith(("GPU-", "MIG-")) else f"GPU-{gpu}").encode()
    if library.nvmlInit_v2() or library.nvmlDeviceGetHandleByUUID(name, ctypes.byref(handle)):
        return None
    if library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)):
        return None

    def read() -> float:
        if code := library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)):
            raise OSError(f"the GPU's energy counter must be readable, got NVML's error {code}")
        return millijoules.value / 1e3

    return read
