"""What a new Ray cluster adds to the time of a small evaluation: whole commands, with and without, in turn."""

from __future__ import annotations

import statistics
import subprocess
import sys

from gram.evals.sampler_benchmark import Row, paired

COMMAND = ("eval", "nqueens8", "--limit", "4", "--width", "4", "--quiet", "--json")
MOST_S = 12.0


def start_row(rounds: int) -> Row:
    """Extra seconds of `--ray new` over `--ray off`, from the start of the command to its end; median of the rounds."""

    def run(*options: str) -> None:
        command = [sys.executable, "-m", "gram", *COMMAND, *options]
        subprocess.run(command, check=True, capture_output=True)

    seconds = paired({"off": run, "new": lambda: run("--ray", "new", "--workers", "1")}, rounds)
    extra = [new - off for new, off in zip(seconds["new"], seconds["off"], strict=True)]
    return Row(
        name="nqueens8: extra seconds of --ray new",
        ratio=statistics.median(extra),
        low=min(extra),
        high=max(extra),
        floor=MOST_S,
        is_ceiling=True,
        facts={"seconds": seconds},
    )
