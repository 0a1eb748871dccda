"""Packages that only some commands need, and the extra of `pip install` that brings each of them."""

from __future__ import annotations

EXTRAS = {
    "ray": "cluster",
    "transformers": "hub",
    "huggingface_hub": "hub",
    "yaml": "import",
    "tensorboard": "tensorboard",
}
"""The import name of each optional package: its extra in `pyproject.toml`."""


def missing_package(error: ModuleNotFoundError) -> str | None:
    """One line for an optional package that is not installed; None where `error` is about something else."""
    package = (error.name or "").split(".")[0]
    if package not in EXTRAS:
        return None
    return f"{package} is not installed, and this needs it: pip install 'gram-sampler[{EXTRAS[package]}]'"
