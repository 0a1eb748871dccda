"""`gram report`: the page and pictures of a finished folder again, from its JSON alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from gram.cli.frontier import FRONTIER_FILE, REPORT_FILE

ABLATION_FILE = "ablation.json"


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a frontier or an ablation.")],
) -> None:
    """Render the report of a folder again, without running anything."""
    from gram.cli import terminal
    from gram.cli.frontier import write

    if (folder / FRONTIER_FILE).is_file():
        write(folder, _read(folder / FRONTIER_FILE))
    elif (folder / ABLATION_FILE).is_file():
        from gram.checkpoint import write_atomically
        from gram.evals.ablation_page import render

        write_atomically(folder / REPORT_FILE, render(_read(folder / ABLATION_FILE)).encode())
    else:
        raise ValueError(f"{folder}: must hold {FRONTIER_FILE} or {ABLATION_FILE}, got neither")
    terminal.output().print(str(folder / REPORT_FILE), soft_wrap=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    return values
