"""DIMACS graphs (`.col`): comments `c ...`, one line `p edge N M`, then an edge `e I J` a line with nodes from 1."""

from __future__ import annotations

import re

from gram.tasks.puzzle_sets import PuzzleError

FORMATS = ("edge", "edges", "col")
"""Words that files write behind `p`."""
FORM = "'c ...', 'p edge N M' or 'e I J'"


def is_dimacs(text: str) -> bool:
    """Whether a text begins as DIMACS does, with a line of one letter and its words."""
    return re.match(r"\s*[A-Za-z]\s", text) is not None


def read_dimacs(text: str) -> tuple[int, list[tuple[int, int]]]:
    """Number of nodes and the edges, as the lines name them. Raises `PuzzleError` naming the line at fault.

    The `p` line's `M` must agree with the edges; published files count an edge once or twice, whether they list it
    once or in both directions.
    """
    size: int | None = None
    stated = 0
    edges: list[tuple[int, int]] = []
    for number, line in enumerate(re.split(r"\r\n|\n|\r", text), 1):
        words = line.split()
        if not words or words[0] == "c":
            continue
        is_size = words[0] == "p" and len(words) == 4 and words[1] in FORMATS
        is_edge = words[0] == "e" and len(words) == 3
        if not (is_size or is_edge) or not all(map(is_number, words[-2:])):
            raise PuzzleError(f"DIMACS line {number} must be {FORM}, got {line[:40]!r}")
        if is_edge:
            edges.append((int(words[1]), int(words[2])))
        elif size is None:
            size, stated = int(words[2]), int(words[3])
        else:
            raise PuzzleError(f"DIMACS line {number} must not be a second 'p' line, got {line[:40]!r}")
    if size is None:
        raise PuzzleError("DIMACS text must have a line 'p edge N M', got none")
    different = len({frozenset(edge) for edge in edges})
    if stated not in (len(edges), different, 2 * different):
        raise PuzzleError(f"DIMACS text must have the {stated} edges of its 'p' line, got {different}")
    return size, edges


def is_number(text: str) -> bool:
    """Whether a text is a node's number: plain digits."""
    # Longer ones are no node anyway, and int() refuses them.
    return text.isascii() and text.isdecimal() and len(text) < 10
