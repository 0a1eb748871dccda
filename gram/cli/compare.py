"""`gram compare`: two evaluations of the same puzzles, paired."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gram.cli.options import Json

if TYPE_CHECKING:
    from gram.evals.comparison import Judged


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="Folder of `gram eval --out`, or a cell of `gram ablate`.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one, of the same puzzles.")],
    as_json: Json = False,
) -> None:
    """Compare two runs puzzle by puzzle: difference with 95 % interval and test, who won what."""
    from gram.cli import terminal
    from gram.evals import comparison

    first, second = comparison.read(a), comparison.read(b)
    found = comparison.compare(first, second, known_groups(first))
    if as_json:
        terminal.print_json(found)
    else:
        _show(found)


def known_groups(judged: Judged) -> Any:
    """Cluster of each puzzle where the run was of a built-in task; else None."""
    import numpy as np

    from gram.tasks.protocol import PuzzleError
    from gram.tasks.registry import get_task

    name, split = judged.results.get("task"), judged.results.get("split")
    if not isinstance(name, str) or not len(judged.index):
        return None
    try:
        task = get_task(name)
    except ValueError:
        return None
    if not isinstance(split, str):
        try:
            return task.classes(np.stack([task.parse(puzzle) for puzzle in judged.puzzles]))
        except PuzzleError:
            return None
    groups = task.split(split, limit=int(judged.index.max()) + 1).groups
    return None if groups is None else groups[judged.index]


def _show(found: dict[str, Any]) -> None:
    from gram.cli import terminal

    console = terminal.output()
    console.print(f"A {found['a']}\nB {found['b']}\n", soft_wrap=True)
    made = terminal.table("accuracy of", "A", "B", "A less B, points", "95 % interval", "p")
    for row in found["differences"]:
        difference = f"{100 * row['difference']:+.1f}"
        interval = f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}"
        name = {"accuracy": "the answer", "single_accuracy": "one trajectory"}[row["measure"]]
        sides = terminal.percent(row["a"]), terminal.percent(row["b"])
        made.add_row(name, *sides, difference, interval, terminal.number(row["p_value"], 3))
    console.print(made)
    console.print(
        f"\nof {terminal.plural(found['puzzles'], 'puzzle')}: A alone right on {found['only_a']}, B alone on "
        f"{found['only_b']}, both on {found['both_right']}, neither on {found['both_wrong']}",
        soft_wrap=True,
    )
    is_apart = found["differences"][0]["is_told_apart"]
    console.print("told apart" if is_apart else "not told apart: the interval holds zero")
