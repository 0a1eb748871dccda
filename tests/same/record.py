"""Records what the `gram` on the path computes for the cases of this folder: `record.py [--slow]` in a work folder.

`scripts/check_same.py` starts it once for each checkout and compares what it leaves in the two work folders. It uses
only what users do: command lines, `gram.load(...).sample(...)` and the fields of its result.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import sys
import traceback
from importlib import import_module
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
RESULT = [
    "puzzles",
    "candidates",
    "answers",
    "steps",
    "halt",
    "lprm",
    "residual",
    "margin",
    "is_halted",
    "lineage",
    "widths",
    "selected",
    "votes",
    "steps_run",
    "trajectories",
    "trajectories_sha256",
    "kernel",
    "dtype",
]
MOVED = {"gram.cli.main": "gram.cli.main"}
"""Modules by their name in the older checkout, with their newer name."""


def module(name):
    """A module by either of its names."""
    try:
        return import_module(name)
    except ModuleNotFoundError:
        return import_module(MOVED[name])


def run(arguments):
    """Standard output of one command line, with its exit code."""
    out = io.StringIO()
    sys.argv = ["gram", *arguments]
    with contextlib.redirect_stdout(out):
        try:
            code = module("gram.cli.main").main(arguments)
        except SystemExit as stop:
            code = stop.code
        except Exception:
            traceback.print_exc()
            code = traceback.format_exc().splitlines()[-1]
    return f"{out.getvalue()}exit code {code}\n"


def settle_times(folder):
    """Replaces measured times by made-up ones, so that all that follows from them is the same everywhere."""
    for path in folder.rglob("latency-*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines() if line]
        for number, line in enumerate(lines):
            if "course" not in line:
                continue
            rows = int(line["course"].split()[-1]) if line["course"][-1].isdigit() else 1
            wobble = int(hashlib.sha256(f"{number} {line['course']}".encode()).hexdigest()[:4], 16) / 2**16
            made = {"ms": 20 + wobble, "step_ms": 4 + 0.3 * rows + 0.2 * wobble, "ending_ms": 0.5, "overhead_ms": 1.0}
            line |= {name: value for name, value in made.items() if name in line}
            line |= {name: 1.0 for name in ("load", "mhz") if line.get(name) is not None}
        path.write_text("".join("\n" + json.dumps(line) for line in lines) + "\n")


def record(cases, base):
    """Runs commands, then samples; leaves `stdout/NAME.json` and `arrays/NAME.npz` beside what commands write."""
    for name, line in cases["commands"].items():
        arguments = line.split()
        text = run(arguments)
        if arguments[0] == "frontier":
            settle_times(Path(arguments[arguments.index("--out") + 1]))
            text = run(arguments)
        Path("stdout", f"{name}.json").write_text(text)
        if text.endswith("exit code 0\n") == name.startswith("refused"):
            Path("failed", name).touch()
    load = import_module("gram").load
    samplers = {}
    for name, case in cases["sampling"].items():
        settings = {**base, **case}
        checkpoint, puzzles = settings.pop("checkpoint"), Path("puzzles", settings.pop("puzzles"))
        path = Path("arrays", f"{name}.npz")
        try:
            if checkpoint not in samplers:
                samplers[checkpoint] = load(checkpoint)
            result = samplers[checkpoint].sample(puzzles.read_text().split(), **settings)
            np.savez(path, **{field: np.asarray(getattr(result, field)) for field in RESULT})
        except Exception:
            traceback.print_exc()
            Path("failed", name).touch()


def main(is_slow):
    """Records the cases, or those that compile."""
    cases = json.loads((HERE / "cases.json").read_text())
    for name in ("puzzles", "recipes"):
        shutil.copytree(HERE / name, name)
    shutil.copy(HERE / "study.toml", ".")
    for name in ("stdout", "arrays", "failed"):
        Path(name).mkdir()
    weights = Path(import_module("gram").__file__).parent / "weights"
    for name, digest in cases["weights"].items():
        if (found := hashlib.sha256((weights / name / "model.safetensors").read_bytes()).hexdigest()) != digest:
            sys.exit(f"{weights / name} must have weights of sha256 {digest}, got {found}")
    record(cases["slow"] if is_slow else cases, cases["base"])


if __name__ == "__main__":
    main("--slow" in sys.argv[1:])
