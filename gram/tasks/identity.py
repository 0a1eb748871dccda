"""Who a puzzle is: a hash of its task and tokens, never of its place in a file. Word c3 of every noise counter."""

from __future__ import annotations

import hashlib

import numpy as np

from gram.tasks.protocol import Tokens


def puzzle_hash(task_name: str, puzzle: Tokens) -> int:
    """32-bit hash of a task's name and a puzzle's tokens `[L]`: blake2b, little-endian."""
    content = task_name.encode() + b"\0" + np.ascontiguousarray(puzzle, dtype=np.uint8).tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=4).digest(), "little")
