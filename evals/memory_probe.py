"""A process that samples so many trajectories of a tiny checkpoint into a folder and tells its peak memory.

python -m gram.evals.memory_probe FOLDER COUNT
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import numpy as np

import gram

PUZZLES = 500


def main(folder: Path, count: int) -> None:
    """Prints `{"peak_mib": ...}`."""
    sampler = gram.load(folder / "tiny", device="cpu")
    held = sampler.task.split("train").puzzles
    puzzles = np.resize(held, (PUZZLES, held.shape[1]))
    result = sampler.sample(puzzles, width=count // PUZZLES, launch=256, out=folder / str(count))
    assert result.trajectories == count
    print(json.dumps({"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
