"""The folder of a `scripts/bench_gpu.sh`: what ran there and what it found, read from its files alone.

A part that has not run yet, failed or was ended in the middle leaves fewer files; whatever is there is read.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gram.config import read_json

STATUS_FILE, RUN_FILE, TUNING_FILE = "status.tsv", "run.txt", "tuning.json"
HEADS = ["part", "exit", "seconds", "command"]
LAST_LINES = 3
"""Of a part that failed, shown of what it said last."""
OUT_OF_TIME = ("124", "137")
"""Exit statuses of a part that its time limit ended."""
CUT = "cut"
"""In an exit status's place, of a part that the end of its call cut off: the next call goes on with it."""
UNFAILED = ("0", "-", CUT)
TUNED = "-tuned"
"""Ends the names of parts that measure once more, with the fastest cuts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A line of `status.tsv`."""

    name: str
    exit: str
    """Exit status, or `CUT`; `-` where it could not run, which `command` says then."""
    seconds: int
    command: str
    last_lines: tuple[str, ...] = ()
    """What it said last, where it failed."""
    summary: str = ""
    """Of a part of tests: pytest's last line."""
    rows: tuple[dict[str, Any], ...] = ()
    """Of a benchmark: its measurements (`timing.Measurement`), those from before its end too."""

    @property
    def outcome(self) -> str:
        """In a word or two."""
        if self.exit in ("-", CUT):
            return "not run" if self.exit == "-" else "cut off, to go on"
        return "done" if self.exit == "0" else "out of time" if self.exit in OUT_OF_TIME else f"failed ({self.exit})"


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuFolder:
    """Everything of a folder that its page shows."""

    gpus: tuple[str, ...]
    """As `nvidia-smi -L` names them."""
    parts: tuple[Part, ...]
    cuts: tuple[dict[str, Any], ...] = ()
    """The choices of `gram bench tuning`."""
    training: tuple[dict[str, Any], ...] = ()
    """Lines of the training's log that have an evaluation, and its last line."""


def is_one(folder: Path) -> bool:
    """Whether a folder is that of a `bench_gpu.sh`."""
    return (folder / STATUS_FILE).is_file() and (folder / RUN_FILE).is_file()


def read(folder: Path) -> GpuFolder:
    """What a folder holds. Raises `ValueError` for a damaged file, by its name."""
    lines = (folder / RUN_FILE).read_text(encoding="utf-8").splitlines()
    cuts = folder / TUNING_FILE
    return GpuFolder(
        gpus=tuple(line for line in lines if line.startswith("GPU ")),
        parts=tuple(_parts(folder)),
        cuts=tuple(_listed(cuts, "choices")) if cuts.is_file() else (),
        training=tuple(_training(folder / "training" / "log.jsonl")),
    )


def _parts(folder: Path) -> Iterator[Part]:
    path = folder / STATUS_FILE
    with path.open(encoding="utf-8", newline="") as file:
        heads, *lines = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)) or [[]]
    if heads != HEADS or not all(len(line) == len(HEADS) and line[2].isdigit() for line in lines):
        raise ValueError(f"{path}: must have lines of {', '.join(HEADS)}, got others")
    for name, status, seconds, command in lines:
        text, log, rows = (folder / f"{name}{ending}" for ending in (".txt", ".log", ".rows.json"))
        said = _last(text, 1) if name.startswith("tests-") else ()
        yield Part(
            name=name,
            exit=status,
            seconds=int(seconds),
            command=command,
            last_lines=() if status in UNFAILED or said else _last(log, LAST_LINES) or _last(text, LAST_LINES),
            summary="".join(said).strip("= "),
            rows=tuple(_listed(rows, "rows")) if rows.is_file() else (),
        )


def _last(path: Path, count: int) -> tuple[str, ...]:
    """The last lines of a file that say something; none where there is no file."""
    if not path.is_file():
        return ()
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return tuple(lines[-count:])


def _listed(path: Path, name: str) -> list[dict[str, Any]]:
    found = read_json(path)
    if not isinstance(found.get(name), list) or not all(isinstance(each, dict) for each in found[name]):
        raise ValueError(f"{path}: must hold a list of {name}, got none")
    return list(found[name])


def _training(log: Path) -> Iterator[dict[str, Any]]:
    if not log.is_file():
        return
    found = []
    for line in log.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):  # a line that an end cut off
            found.append(json.loads(line))
    yield from (line for line in found if line.get("evaluation") or line is found[-1])
