"""`gram compare`: two evaluations of the same puzzles, paired."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from gram.cli.options import Json


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="Folder of `gram eval --out`, or a cell of `gram ablate`.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one, of the same puzzles.")],
    as_json: Json = False,
) -> None:
    """Compare two runs puzzle by puzzle: difference with 95 % interval and test, who won what."""
    from gram.cli import terminal
    from gram.evals import comparison

    first, second = comparison.read(a), comparison.read(b)
    found = comparison.compare(first, second, comparison.known_clusters(first))
    if as_json:
        terminal.print_json(found)
    else:
        _show(found)


def _show(found: dict[str, Any]) -> None:
    from gram.cli import terminal

    console = terminal.output()
    console.print(f"A {found['a']}\nB {found['b']}\n", soft_wrap=True)
    made = terminal.table("accuracy of", "A", "B", "A minus B, points", "95 % interval", "p")
    for row in found["differences"]:
        if math.isnan(row["difference"]):
            continue
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
    is_significant = found["differences"][0]["is_told_apart"]
    console.print("significant" if is_significant else "not significant: the interval holds zero")
