"""A process that samples so many trajectories of a tiny checkpoint into a folder and tells its peak memory.

python -m gram.evals.benchmarks.memory_probe FOLDER COUNT
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
    print(json.dumps({"peak_mib": peak_kib() / 1024}))


def peak_kib() -> int:
    """Peak memory of this process. Linux's `getrusage` begins with that of whoever started it, so it is not asked."""
    status = Path("/proc/self/status")
    if status.is_file():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
