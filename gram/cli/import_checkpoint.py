"""`gram import`: a checkpoint of TRM, EqR or HRM as one of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gram.cli.options import Json


def import_foreign(
    family: Annotated[str, typer.Argument(metavar="trm|eqr|hrm", help="Project that trained the checkpoint.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Its file, as torch.save wrote it.")],
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Settings of its run (all_config.yaml). [default: as published]"),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="New checkpoint directory.")] = None,
    task: Annotated[
        str | None, typer.Option(metavar="NAME", help="Task of the checkpoint. [default: by its shapes]")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Data set of an ARC checkpoint's training; names the rows of its table."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Convert a checkpoint of another project; the model computes the same logits."""
    from gram.importers import import_checkpoint, write

    if out is None:
        raise ValueError("folder of the checkpoint must be named by --out, got none")
    imported = import_checkpoint(family, file, settings=config, task=task, data=data)
    write(imported, out)
    report(imported.model, imported.card["imported"], out, as_json)


def report(model: Any, facts: dict[str, Any], out: Path, as_json: bool) -> None:
    """What was converted, and which settings were assumed."""
    from gram.checkpoint import config_json
    from gram.cli import terminal

    parameters = sum(tensor.numel() for tensor in model.weights().values())
    if as_json:
        terminal.print_json({"out": str(out), "parameters": parameters, "config": config_json(model.config), **facts})
        return
    config = model.config
    console = terminal.output()
    console.print(f"{facts['family']}: {parameters:,} parameters, task {config.task}, written to {out}")
    console.print(
        f"{config.transitions} transitions of {config.low_level_updates} low-level updates, depth {config.depth}, "
        f"{config.blocks} blocks, {config.mixer} mixer, positions {config.positions}"
    )
    if config.identities:
        console.print(f"table of {config.identities:,} identities, {config.identity_dim} numbers each")
    if facts["assumed"]:
        given = ", ".join(f"{name} {value}" for name, value in facts["assumed"].items())
        console.print(f"assumed, as published: {given} (give --config to say otherwise)")
    for note in facts["notes"]:
        console.print(note)
