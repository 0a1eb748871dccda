"""How a run on a cluster stands: what a person who watches it is shown. No Ray."""

from __future__ import annotations

from typing import NamedTuple


class Standing(NamedTuple):
    """Of the run that is going on, or of the last one."""

    shards: int
    """That this run has to run; those that its folder held before are not among them."""
    finished: int
    poison: int
    """Shards that have failed too often; the run will end with an error that names them."""
    workers: int
    """Ready now."""
    starting: int
    """Workers on their way."""
    nodes: int
    """That ready workers are on."""
    retries: int
    """Shards queued again after a failure or a loss."""
    copies: int
    """Shards handed to a second worker because the first was slow."""
