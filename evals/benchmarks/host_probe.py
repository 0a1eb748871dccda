"""A process that measures the host's work row by row as it is asked to: `python FILE`, PYTHONPATH naming the package.

A line `begin` of its input starts the rows anew, any other asks for the next one; each line of its output is JSON: a
row's name and microseconds, or nothing where none is left. It is run as a file, since the package that it measures may
be another commit's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any


def main() -> None:
    """Answers until its input ends."""
    import torch

    from gram.evals.benchmarks import host_benchmark

    torch.set_num_threads(1)  # more would wait at each other's cost
    rows: Iterator[Any] = iter(())
    for line in sys.stdin:
        if line.strip() == "begin":
            rows = host_benchmark.rows(1)
        row = next(rows, None)
        said = {} if row is None else {"name": row.name, "us": row.ratio}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, ImportError, OSError, RuntimeError) as error:
        print(json.dumps({"error": (str(error).strip().splitlines() or [type(error).__name__])[0]}), flush=True)
