"""Outcomes of a frontier by puzzle, kept beside `frontier.json` so that two checkpoints can be compared later, paired.

`outcomes.npz`, of the puzzles that count and in the run's order: `puzzles` uint8 `[P, L]`, `groups` int64 `[P]` (their
clusters), `accuracy` float32 `[P, H, M, N, S]`, `direct` bool in the same shape (verdicts of a direct run) and, on
tasks of several solutions, `coverage` float32 `[P, H, M, N]`. The axes are those of the frontier's grid.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

OUTCOMES_FILE = "outcomes.npz"
Arrays = Mapping[str, NDArray[Any]]
NEEDED = ("puzzles", "groups", "accuracy", "direct")


def to_bytes(arrays: Arrays) -> bytes:
    """The file's content."""
    stream = io.BytesIO()
    names: dict[str, Any] = dict(arrays)
    np.savez_compressed(stream, **names)
    return stream.getvalue()


def read(path: Path, grid: Mapping[str, Any]) -> dict[str, NDArray[Any]] | None:
    """The arrays of a file, None where there is none. Raises `ValueError` where they are not of this grid."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path}: must hold arrays of a frontier, got {error}") from None
    for name in NEEDED:
        if name not in arrays:
            raise ValueError(f"{path}: must hold {', '.join(NEEDED)}, got {', '.join(sorted(arrays)) or 'nothing'}")
    wanted = (len(arrays["puzzles"]), *(len(grid[name]) for name in ("haltings", "depths", "widths", "selectors")))
    if arrays["accuracy"].shape != wanted:
        raise ValueError(f"{path}: accuracy must have the frontier's shape {wanted}, got {arrays['accuracy'].shape}")
    return arrays
