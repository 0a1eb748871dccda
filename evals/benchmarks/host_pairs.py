"""What the host's work takes beside that of another commit: both measured by turns, as processes of their own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gram.evals.benchmarks import host_probe
from gram.evals.benchmarks.asked_process import AskedProcess, check_folder
from gram.evals.benchmarks.timing import ROOT, Measurement


def rows(against: Path, rounds: int) -> Iterator[Measurement]:
    """For each row of `host_benchmark` that both have, microseconds in the worktree `against` over those here: median
    of the rounds, with the least and the greatest.

    Raises `ValueError` where `against` holds no package, or one that cannot measure this.
    """
    folders = ROOT, check_folder(against)
    found: dict[str, tuple[list[float], list[float]]] = {}
    rng = random.Random(0)
    with ExitStack() as opened:
        probes = []
        for folder in folders:
            must = f"the package in {folder} must measure its host's work"
            probes.append(AskedProcess(folder, host_probe.__file__, must=must))
            opened.callback(probes[-1].close)
        for _ in range(rounds):
            word = "begin"
            while True:
                said: list[dict[str, Any]] = [{}, {}]
                for side in rng.sample((0, 1), 2):
                    said[side] = probes[side].ask(word)
                word = "next"
                here, other = said
                if not here or here.get("name") != other.get("name"):
                    break
                values = found.setdefault(here["name"], ([], []))
                for side in (0, 1):
                    values[side].append(said[side]["us"])
    for name, (here_us, other_us) in found.items():
        facts = {"against": str(against), "us": {"here": here_us, "other": other_us}}
        label = name.replace(": us a trajectory-step", f": time in {against.name} over that here")
        yield Measurement.of_ratios(label, other_us, here_us, facts=facts)
