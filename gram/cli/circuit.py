"""`gram circuit CHECKPOINT --behaviour FILE`: the smallest part of a model that does one thing, and the proof."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from gram.cli.errors import raise_if_stopped
from gram.cli.options import Json, Quiet, at_least_one, real, whole

SHOWN_EVERY_S = 5.0
RESULT_FILE, PAGE_FILE = "circuit.json", "circuit.html"


def circuit(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Shipped name or directory.")],
    behaviour: Annotated[
        str, typer.Option(metavar="FILE", help="What the circuit does: a JSON file, or the name of a shipped one.")
    ],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write circuit.json and circuit.html there.")] = None,
    against: Annotated[
        str | None, typer.Option(metavar="C", help="Another checkpoint (dense), to be pruned in the same way.")
    ] = None,
    target: Annotated[
        float | None, typer.Option(parser=real, metavar="X", help="Loss of the circuit in nats. [default: 0.15]")
    ] = None,
    depth: Annotated[
        int | None, typer.Option(parser=whole, metavar="M", help="Supervision steps. [default: as trained]")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(parser=whole, metavar="K", help="Optimiser steps of the masks. [default: 120]")
    ] = None,
    has_control: Annotated[bool, typer.Option("--control", help="Prune for shuffled labels too.")] = False,
    as_json: Json = False,
    is_quiet: Quiet = False,
) -> None:
    """Find the part of a model that does a behaviour: its graph, and whether it is needed and enough."""
    from gram import checkpoint as checkpoints
    from gram.checkpoint import write_atomically, write_json
    from gram.cli import terminal
    from gram.evals.circuits.behaviour import read_behaviour
    from gram.evals.circuits.pruning import STEPS
    from gram.evals.circuits.study import TARGET, check_target, open_model, study
    from gram.evals.pages.circuit_page import render
    from gram.formatting import plain

    at_least_one("depth", depth)
    at_least_one("steps", steps)
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder, got the file {out}")
    wanted = read_behaviour(behaviour)
    show = _shower(is_quiet, steps or STEPS)
    aim = TARGET if target is None else target
    models = {}
    for name in (checkpoint, *([] if against is None else [against])):
        models[name] = open_model(checkpoints.load(checkpoints.find(name)), wanted, depth=depth)
        check_target(models[name], wanted, aim, name)

    def found(name: str, is_controlled: bool) -> tuple[dict[str, Any], Any]:
        return study(models[name], wanted, target=aim, steps=steps or STEPS, has_control=is_controlled, on_step=show)

    made, graph = found(checkpoint, has_control)
    made["about"] = {"checkpoint": checkpoint, "command": shlex.join(["gram", *sys.argv[1:]])}
    made["against"] = None
    if against is not None:
        other, _ = found(against, False)
        made["against"] = {
            "checkpoint": against,
            **{name: other[name] for name in ("is_reached", "nodes", "edges", "loss")},
        }
    made = plain({**made, "graph": graph.to_json()})
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / RESULT_FILE, made)
        write_atomically(out / PAGE_FILE, render(made).encode())
    if as_json:
        terminal.print_json(made)
    else:
        _show(made, out)


def _shower(is_quiet: bool, steps: int) -> Any:
    """A function that says on stderr how far the pruning is."""
    shown_s = time.monotonic()

    def show(step: int) -> None:
        nonlocal shown_s
        raise_if_stopped()
        if not is_quiet and time.monotonic() - shown_s >= SHOWN_EVERY_S:
            shown_s = time.monotonic()
            done = "dropping what is not needed" if step == steps else f"step {step} of {steps}"
            print(f"pruning: {done}", file=sys.stderr, flush=True)

    return show


def _show(made: dict[str, Any], out: Path | None) -> None:
    from gram.cli import terminal

    console = terminal.output()
    console.print(f"{made['description']} ({made['behaviour']})", style="bold")
    reached = "" if made["is_reached"] else "; the target was not reached, so these are all nodes"
    console.print(
        f"circuit: {made['nodes']:,} of {made['nodes_of']:,} nodes, {made['edges']:,} of {made['edges_of']:,} edges"
        f"{reached}",
        soft_wrap=True,
    )
    table = terminal.table("kept", "right choices", "95 % interval", "loss, nats")
    names = {"whole": "all", "circuit": "the circuit", "ablated": "all but the circuit", "random": "as many at random"}
    for name, text in names.items():
        row = made[name]
        interval = f"{100 * row['low']:.1f} to {100 * row['high']:.1f}" if "low" in row else ""
        table.add_row(text, terminal.percent(row["accuracy"]), interval, terminal.number(row["loss"], 3))
    console.print(table)
    if (control := made["control"]) is not None:
        size = f"{control['nodes']:,} nodes, {control['edges']:,} edges" if control["is_reached"] else "none"
        console.print(f"with shuffled labels: {size}", soft_wrap=True)
    if (other := made["against"]) is not None:
        size = f"{other['nodes']:,} nodes, {other['edges']:,} edges" if other["is_reached"] else "none"
        console.print(f"{other['checkpoint']}: {size}", soft_wrap=True)
    if out is not None:
        console.print(f"\n{out / PAGE_FILE}", soft_wrap=True)
