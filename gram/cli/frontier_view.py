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
    console.print("points, at the headline's budget; *: significant", style="dim")


def show_estimate(label: str, estimate: dict[str, Any]) -> None:
    """The pre-flight, on stderr."""
    from gram.cli import terminal

    minutes = (estimate["trace_s"] + estimate["latency_s"]) / 60
    needed = ", ".join(
        f"{each['puzzles']:,.0f} for {100 * each['difference']:g} points" for each in estimate["puzzles_needed"]
    )
    work = f"{estimate['cells']:,} cells from {estimate['steps_of_trace']:,} supervision steps"
    saving = f"{estimate['saving']:.1f} times fewer than cell by cell"
    terminal.log(f"{label}: {work} ({saving}), {estimate['macs'] / 1e12:.2f} TMACs")
    parts = f"{estimate['trace_s'] / 60:.1f} traces, {estimate['latency_s'] / 60:.1f} latency"
    disk, memory = (f"{estimate[name] / 2**20:,.0f} MiB" for name in ("disk_bytes", "memory_bytes"))
    terminal.log(f"about {minutes:.1f} minutes ({parts}), {disk} on disk, up to {memory} of memory")
    here = terminal.plural(estimate["puzzles"], "puzzle")
    if estimate["bases"] < estimate["puzzles"]:
        here += f" of {terminal.plural(estimate['bases'], 'cluster')}, which count"
    terminal.log(f"independent puzzles that make a difference significant, power 80 %: {needed} (here {here})")
