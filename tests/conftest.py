"""Settings of hypothesis, the order of tests and the folder of published puzzles."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

from gram.distributed.access import QUIET

# Ray reads some of these when it is imported, which a module of tests may do long before a cluster starts.
os.environ.update(QUIET)

# A job in the background of a script ignores SIGINT, and so would every process that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests start first: in the end no process has one left while the others are idle.

    Raises where a test stands alone and is not slow: `scripts/test.sh` looks for such ones with `--slow` only.
    """
    for item in items:
        if item.get_closest_marker("alone") and not item.get_closest_marker("slow"):
            raise pytest.UsageError(f"a test marked alone must be marked slow too, got {item.nodeid}")
    items.sort(key=lambda item: item.get_closest_marker("slow") is None and "in_a_process" not in item.name)


@pytest.fixture(scope="session")
def gram_data() -> Path:
    """The folder named by `GRAM_DATA`, of published puzzles that the project does not carry; skips without it."""
    folder = os.environ.get("GRAM_DATA")
    if not folder:
        pytest.skip("GRAM_DATA does not name a folder of published puzzles")
    return Path(folder)
