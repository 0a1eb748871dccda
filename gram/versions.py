"""Versions of what a figure depends on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from gram import __version__


def installed(distribution: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def device_software(device_type: str) -> str:
    """Versions that decide how a result on a device is rounded: PyTorch's and Triton's on a GPU, whose libraries and
    compilers they bring; nothing on a CPU, where the type of machine counts as much. A build (`+cpu`, `+cu130`) is no
    part, so that a driver without a GPU can name what its workers must have."""
    if device_type == "cpu":
        return ""
    return ", ".join(f"{name} {(installed(name) or 'none').split('+')[0]}" for name in ("torch", "triton"))


def versions() -> dict[str, str | None]:
    """Versions for results."""
    return {
        "gram": __version__,
        "python": platform.python_version(),
        "torch": installed("torch"),
        "triton": installed("triton"),
        "numpy": installed("numpy"),
    }
