"""Tables of `gram bench kernels`: what a supervision step takes by count, and what the compiled kernels take."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from rich.text import Text

from gram.cli import terminal
from gram.evals.benchmarks import kernel_counts
from gram.evals.benchmarks.timing import Measurement


def show_counts(counts: dict[str, Any], rows: Iterable[Measurement]) -> None:
    """Prints the roofline, with times that `rows` measured on a GPU beside it, and the resources if there are any."""
    console = terminal.output()
    rates = counts["rates"]
    trajectories = counts["roofline"][0]["trajectories"]
    console.print(
        Text(
            f"A step of {trajectories:,} trajectories in bf16, by count; floors at "
            f"{rates['teraflops']:.3g} TFLOP/s, {rates['terabytes']:.3g} TB/s, L2 {rates['l2_terabytes']:.3g} TB/s, "
            f"{rates['special_tera']:.3g} T special functions/s",
            "bold",
        )
    )
    console.print(_roofline(counts["roofline"], measured_ms(rows)))
    worst = list(kernel_counts.worst(counts["resources"]))
    for preset in dict.fromkeys(entry["preset"] for entry in worst):
        console.print()
        console.print(
            Text(f"Compiled kernels of {preset} on each target; the worst of a path that has several", "bold")
        )
        mine = [entry for entry in worst if entry["preset"] == preset]
        console.print(_resources(mine))
        for entry in mine:
            if "error" in entry:
                console.print(Text(f"{entry['path']} on {entry['target']}: {entry['error']}", "red"))
    console.print()


def measured_ms(rows: Iterable[Measurement]) -> dict[tuple[str, str], float]:
    """Median milliseconds by preset and path, of rows measured on a GPU."""
    return {
        (row.facts["preset"], path): 1e3 * statistics.median(seconds)
        for row in rows
        if {"preset", "seconds"} <= row.facts.keys()
        for path, seconds in row.facts["seconds"].items()
    }


def _roofline(entries: list[dict[str, Any]], measured: dict[tuple[str, str], float]) -> Any:
    headers = ["preset", "kernel", "launches", "GFLOP", "MB", "L2 MB", "floor, ms", "bound by"]
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
            f"{entry['l2_bytes'] / 1e6:,.0f}",
            f"{entry['floor_ms']:,.2f}",
            entry["bound"],
        ]
        made.add_row(*cells, *([terminal.number(measured.get(key))] if measured else []))
        before = entry["preset"]
    return made


def _resources(entries: list[dict[str, Any]]) -> Any:
    headers = ("kernel", "target", "registers", "stack", "spills", "inner", "shared", "occupancy", "products")
    made = terminal.table(*headers, left=2)
    before = ""
    for entry in entries:
        names = [entry["path"] if entry["path"] != before else "", entry["target"]]
        before = entry["path"]
        if "error" in entry:
            made.add_row(*names, *[""] * 5, Text("fails", "red"))
            continue
        made.add_row(
            *names,
            str(entry["registers"]),
            f"{entry['stack_bytes']} B",
            str(entry["spills"]),
            str(entry["inner_spills"]),
            f"{entry['shared_bytes'] / 1024:.0f} KiB",
            f"{100 * entry['occupancy']:.1f} %" if entry["programs"] else Text("no room", "red"),
            entry["products"].split(".")[0],
        )
    return made
