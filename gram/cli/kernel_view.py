"""Tables of `gram bench kernels`: what a supervision step takes by count, and what the compiled kernels take."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from rich.text import Text

from gram.cli import terminal
from gram.evals import kernel_counts
from gram.evals.sampler_benchmark import Row


def show_counts(counts: dict[str, Any], rows: Iterable[Row]) -> None:
    """Prints the roofline, with times that `rows` measured on a GPU beside it, and the resources if there are any."""
    console = terminal.output()
    rates = counts["rates"]
    trajectories = counts["roofline"][0]["trajectories"]
    console.print(
        Text(
            f"A supervision step of {trajectories:,} trajectories in bf16, by count; floor at "
            f"{rates['teraflops']:g} TFLOP/s and {rates['terabytes']:g} TB/s",
            "bold",
        )
    )
    console.print(_roofline(counts["roofline"], measured_ms(rows)))
    if counts["resources"]:
        console.print()
        console.print(Text("What the compiled kernels take (of several kernels the worst); no GPU was asked", "bold"))
        console.print(_resources(counts["resources"]))
    console.print()


def measured_ms(rows: Iterable[Row]) -> dict[tuple[str, str], float]:
    """Median milliseconds by preset and path, of rows measured on a GPU."""
    return {
        (row.facts["preset"], path): 1e3 * statistics.median(seconds)
        for row in rows
        if "preset" in row.facts
        for path, seconds in row.facts["seconds"].items()
    }


def _roofline(entries: list[dict[str, Any]], measured: dict[tuple[str, str], float]) -> Any:
    headers = ["preset", "kernel", "launches", "GFLOP", "MB", "floor, ms", "bound by"]
    made = terminal.table(*headers, *(["measured, ms"] if measured else []), left=2)
    before = ""
    for entry in entries:
        key = entry["preset"], entry["path"]
        cells = [
            entry["preset"] if entry["preset"] != before else "",
            entry["path"],
            f"{entry['launches']:,}",
            f"{entry['flops'] / 1e9:,.0f}",
            f"{entry['bytes'] / 1e6:,.0f}",
            f"{entry['floor_ms']:,.2f}",
            entry["bound"],
        ]
        made.add_row(*cells, *([terminal.number(measured.get(key))] if measured else []))
        before = entry["preset"]
    return made


def _resources(entries: list[dict[str, Any]]) -> Any:
    headers = ("preset", "kernel", "target", "registers", "stack", "spills", "shared", "occupancy", "products")
    made = terminal.table(*headers, left=3)
    before = ("", "")
    for entry in kernel_counts.worst(entries):
        path = entry["path"] + (f" ({entry['kernels']})" if entry["kernels"] > 1 else "")
        here = entry["preset"], path
        names = [now if here[: index + 1] != before[: index + 1] else "" for index, now in enumerate(here)]
        before = here
        if "error" in entry:
            made.add_row(*names, entry["target"], *[""] * 5, Text("does not compile", "red"))
            continue
        occupancy = f"{100 * entry['occupancy']:.1f} %" if entry["programs"] else "does not fit"
        made.add_row(
            *names,
            entry["target"],
            str(entry["registers"]),
            f"{entry['stack_bytes']} B",
            f"{entry['spills']} ({entry['inner_spills']} inner)" if entry["spills"] else "0",
            f"{entry['shared_bytes'] / 1024:.0f} KiB",
            Text(occupancy, "" if entry["programs"] else "red"),
            entry["products"],
        )
    return made
