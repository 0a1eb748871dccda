"""`gram report`: the page and pictures of a finished folder again, from its files alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="Folder of a frontier, of an ablation, of several frontiers, or of bench_gpu.sh."
        ),
    ],
) -> None:
    """Render the report of a folder again, without running anything; several frontiers get a page in common, and so
    does all that scripts/bench_gpu.sh has left."""
    from gram.checkpoint import write_atomically
    from gram.cli import terminal
    from gram.config import read_json
    from gram.evals import ablation
    from gram.evals.benchmarks import gpu_folder
    from gram.evals.frontier.files import FRONTIER_FILE, REPORT_FILE, members, write, write_multi_checkpoint
    from gram.evals.pages import gpu_page

    if (folder / FRONTIER_FILE).is_file():
        write(folder, read_json(folder / FRONTIER_FILE))
    elif (folder / ablation.ABLATION_FILE).is_file():
        ablation.write(folder, read_json(folder / ablation.ABLATION_FILE))
    elif gpu_folder.is_one(folder):
        whole, frontiers = gpu_folder.read(folder), members(folder)  # all read before the first is written
        for each in frontiers:
            write(folder / each.label, dict(each.frontier))
        verdicts = {each.label: str(each.frontier["verdict"]["sentence"]) for each in frontiers}
        write_atomically(folder / REPORT_FILE, gpu_page.render(whole, verdicts).encode())
    elif found := members(folder):  # all read before the first is written
        for each in found:
            write(folder / each.label, dict(each.frontier))
        write_multi_checkpoint(folder, found)
    else:
        raise ValueError(
            f"{folder}: must hold {FRONTIER_FILE}, {ablation.ABLATION_FILE}, {gpu_folder.STATUS_FILE} or folders with "
            f"{FRONTIER_FILE}, got none of them"
        )
    terminal.output().print(str(folder / REPORT_FILE), soft_wrap=True)
