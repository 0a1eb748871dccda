"""What the host's work takes beside that of another commit: both measured by turns, as processes of their own."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gram.evals.benchmarks import host_probe
from gram.evals.benchmarks.timing import ROOT, Measurement


def rows(against: Path, rounds: int) -> Iterator[Measurement]:
    """For each row of `host_benchmark` that both have, microseconds in the worktree `against` over those here: median
    of the rounds, with the least and the greatest.

    Raises `ValueError` where `against` holds no package, or one that cannot measure this.
    """
    if not (against / "gram" / "__init__.py").is_file():
        raise ValueError(f"against must be a worktree of this repository, with a folder gram in it, got {against}")
    found: dict[str, tuple[list[float], list[float]]] = {}
    rng = random.Random(0)
    with ExitStack() as opened:
        probes = [opened.enter_context(_probe(folder)) for folder in (ROOT, against.absolute())]
        for _ in range(rounds):
            word = "begin"
            while True:
                said: list[dict[str, Any]] = [{}, {}]
                for side in rng.sample((0, 1), 2):
                    said[side] = _ask(probes[side], word, (ROOT, against)[side])
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


def _probe(folder: Path) -> subprocess.Popen[str]:
    # The script's own folder comes before PYTHONPATH, but holds no `gram`.
    environment = os.environ | {"PYTHONPATH": str(folder)}
    command = [sys.executable, host_probe.__file__]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder
    )


def _ask(probe: subprocess.Popen[str], word: str, folder: Path) -> dict[str, Any]:
    assert probe.stdin is not None
    assert probe.stdout is not None
    try:
        probe.stdin.write(f"{word}\n")
        probe.stdin.flush()
    except BrokenPipeError:
        pass  # it has ended, and may have said why
    line = probe.stdout.readline()
    said: dict[str, Any] = json.loads(line) if line else {"error": f"its process ended with code {probe.wait()}"}
    if "error" in said:
        raise ValueError(f"the package in {folder} must measure its host's work, got: {said['error']}")
    return said
