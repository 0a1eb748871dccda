"""The verdicts of a frontier on a terminal: the sentences, what warns of them, and one line for each selector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def show(label: str, made: Mapping[str, Any]) -> None:
    """Prints the verdicts of what `frontier.json` holds."""
    from gram.cli import terminal
    from gram.evals.frontier.beside import beside_sentences, coverage_line, selector_heads, selector_lines
    from gram.evals.frontier.launch_check import launch_words

    verdict, covered = made["verdict"], made["coverage"]
    console = terminal.output()
    lines = [f"\n{label}: {verdict['sentence']}", *beside_sentences(made)]
    for line in filter(None, lines):
        console.print(line, soft_wrap=True)
    if (told := launch_words(made["latency"].get("launch_check"))) is not None:
        console.print(told, soft_wrap=True)
    for warning in verdict["warnings"]:
        console.print(f"Warning: {warning}", soft_wrap=True)
    rows = selector_lines(made)
    if not rows:
        return
    table = terminal.table(*selector_heads(made))
    for row in rows:
        table.add_row(*row)
    if covered is not None:
        table.add_row(*coverage_line(made))
    console.print(table)
    console.print("points, at the headline's budget; *: told apart", style="dim")
