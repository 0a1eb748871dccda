"""Timings in a file, under what they depend on: one JSON object a line, the first of them the identity.

A file of another processor, thread count or launch policy is never mixed in: its name holds the identity's digest, and
its first line the identity itself.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gram.atomic_files import naming

IDENTITY = "identity"


def name_of(identity: Mapping[str, Any]) -> str:
    """The name of an identity's file."""
    return f"latency-{hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]}.jsonl"


def different(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """`name: this instead of that` for everything in which two identities differ."""
    found = []
    for name in sorted({*one, *other}):
        here, there = one.get(name), other.get(name)
        if isinstance(here, dict) and isinstance(there, dict):
            found += different(here, there)
        elif here != there:
            found.append(f"{name} {here} instead of {there}")
    return found


def others(folder: Path, identity: Mapping[str, Any]) -> str | None:
    """One line that says why timings in `folder` are not used here; None where there are some of this identity, or none
    at all."""
    own = name_of(identity)
    found = sorted(folder.glob("latency-*.jsonl"))
    if not found or any(path.name == own for path in found):
        return None
    newest = max(found, key=lambda path: path.stat().st_mtime)
    why = "; ".join(different(identity, _identity(newest) or {})) or "another identity"
    return f"{newest} is not used, timing anew: {why}"


def read(file: Path | None, identity: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Timings kept so far by course; a line torn by a kill is left out. Raises `ValueError` for another identity."""
    kept: dict[str, list[dict[str, Any]]] = {}
    if file is None or not file.is_file():
        return kept
    lines = _lines(file)
    if lines and (known := _identity(file)) != dict(identity):
        why = "; ".join(different(identity, known)) if known else "no identity in its first line"
        raise ValueError(f"{file}: timings must be of this machine and run, got others ({why}); remove it")
    for line in lines:
        if "course" in line:
            kept.setdefault(line["course"], []).append(line)
    return kept


def append(file: Path | None, identity: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> None:
    """Keeps a round; the identity first where the file is new."""
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    head = [] if file.is_file() and _identity(file) is not None else [{IDENTITY: identity}]
    with naming(file), file.open("a") as stream:
        # The first newline ends a line that a kill may have torn.
        stream.write("\n" + "".join(json.dumps(line) + "\n" for line in (*head, *lines)))
        stream.flush()
        os.fsync(stream.fileno())


def _identity(file: Path) -> dict[str, Any] | None:
    """What a file's timings depend on; None where it does not say."""
    first = next(iter(_lines(file)), {})
    found = first.get(IDENTITY)
    return found if isinstance(found, dict) else None


def _lines(file: Path) -> list[dict[str, Any]]:
    """The objects in a file."""
    found = []
    for text in file.read_text().splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict):
            found.append(line)
    return found
