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


def versions() -> dict[str, str | None]:
    """Versions for results."""
    return {
        "gram": __version__,
        "python": platform.python_version(),
        "torch": installed("torch"),
        "numpy": installed("numpy"),
    }
