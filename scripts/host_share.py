"""What part of a run on a CPU is the engine's own work, in two checkouts, paired.

    python scripts/host_share.py OLD NEW --checkpoint OLD/gram/weights/nqueens8 --limit 400 --width 20 --rounds 3

The host's share is a run's processor time outside of what a device would do: embedding puzzles, initial states,
supervision steps, reading answers. Runs alternate, in processes of one thread, and every one must give the same
answers, halt logits and steps. Prints a line for each run, and what the new checkout takes of the old one's time.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEVICE = (
    *(("gram.model", "Model", name) for name in ("step", "embed", "embed_empty", "initial_state", "random_state")),
    ("gram.sampler.engine", "SlotStates", "read_states"),
    ("gram.sampler.engine", "SlotStates", "read"),
    ("gram.sampler.slots", "Slots", "read"),
)
"""Methods that stand for the device, by module and class; not every checkout has all of those that read."""


class Stopwatch:
    """Processor time inside of methods, of the outermost where they call each other."""

    def __init__(self) -> None:
        self.seconds, self.inside = 0.0, False

    def timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """The same method, timed."""

        def run(*args: Any, **kwargs: Any) -> Any:
            if self.inside:
                return method(*args, **kwargs)
            self.inside, began = True, time.process_time()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds, self.inside = self.seconds + time.process_time() - began, False

        return run


def measure(checkpoint: str, limit: int, width: int) -> dict[str, Any]:
    """One run with the code at hand: seconds in all and of the host, and a digest of what it gave."""
    import torch

    import gram

    torch.set_num_threads(1)
    sampler: Any = gram.load(checkpoint)
    puzzles, watch = sampler.task.split("test", limit=limit).puzzles, Stopwatch()
    sampler.sample(puzzles[:2], width=2, kernel="eager")
    for module, owner, name in DEVICE:
        try:
            kind = getattr(importlib.import_module(module), owner)
            setattr(kind, name, watch.timed(getattr(kind, name)))
        except (ImportError, AttributeError):
            continue
    began = time.process_time()
    found = sampler.sample(puzzles, width=width, kernel="eager")
    seconds = time.process_time() - began
    digest = hashlib.sha256(b"".join(each.tobytes() for each in (found.candidates, found.halt, found.steps)))
    return {"seconds": seconds, "host": seconds - watch.seconds, "digest": digest.hexdigest()}


def run(checkout: Path, given: argparse.Namespace) -> dict[str, Any]:
    """One run of a checkout in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--checkpoint", given.checkpoint]
    command += ["--limit", str(given.limit), "--width", str(given.width)]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True, cwd=checkout)
    found: dict[str, Any] = json.loads(done.stdout)
    print(f"{checkout}: {found['seconds']:.2f} s, of which {found['host']:.3f} s of the host", flush=True)
    return found


def main() -> None:
    """Runs both, or one that a run of both has asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="*", type=Path, metavar="OLD NEW")
    parser.add_argument("--checkpoint", default="nqueens8", help="name or folder [default: %(default)s]")
    for name, default in (("limit", 400), ("width", 20), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    if Path(given.checkpoint).is_dir():
        given.checkpoint = str(Path(given.checkpoint).resolve())
    if not given.checkouts:
        print(json.dumps(measure(given.checkpoint, given.limit, given.width)))
        return
    if len(given.checkouts) != 2 or not all((each / "gram" / "__init__.py").is_file() for each in given.checkouts):
        parser.error(f"OLD and NEW must be two checkouts of gram, got {' '.join(map(str, given.checkouts))}")
    rounds = [[run(checkout, given) for checkout in given.checkouts] for _ in range(given.rounds)]
    for name, place in (("old", 0), ("new", 1)):
        shares = sorted(100 * each[place]["host"] / each[place]["seconds"] for each in rounds)
        print(f"host's share, {name}: {statistics.median(shares):.2f} % ({shares[0]:.2f} to {shares[-1]:.2f})")
    for what in ("seconds", "host"):
        ratios = sorted(new[what] / old[what] for old, new in rounds)
        print(f"{what}, new / old: {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")
    if len(digests := {each["digest"] for pair in rounds for each in pair}) > 1:
        sys.exit(f"all runs must give the same, got {len(digests)} different digests")
    print("all runs gave the same")


if __name__ == "__main__":
    main()
