"""`gram report`: the page and pictures of a finished folder again, from its files alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of a frontier, of an ablation, or of several frontiers.")
    ],
) -> None:
    """Render the report of a folder again, without running anything; several frontiers get a page in common."""
    from gram.cli import terminal
    from gram.config import read_json
    from gram.evals import ablation
    from gram.evals.frontier.files import FRONTIER_FILE, REPORT_FILE, members, write, write_multi_checkpoint

    if (folder / FRONTIER_FILE).is_file():
        write(folder, read_json(folder / FRONTIER_FILE))
    elif (folder / ablation.ABLATION_FILE).is_file():
        ablation.write(folder, read_json(folder / ablation.ABLATION_FILE))
    elif found := members(folder):  # all read before the first is written
        for each in found:
            write(folder / each.label, dict(each.frontier))
        write_multi_checkpoint(folder, found)
    else:
        raise ValueError(
            f"{folder}: must hold {FRONTIER_FILE}, {ablation.ABLATION_FILE} or folders with {FRONTIER_FILE}, "
            "got none of them"
        )
    terminal.output().print(str(folder / REPORT_FILE), soft_wrap=True)
