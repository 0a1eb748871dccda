"""`gram push DIR OWNER/NAME`: a checkpoint to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def push(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Checkpoint directory, as `gram train` writes it.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Model on the hub; made if it is new.")],
    is_private: Annotated[bool, typer.Option("--private", help="Make a new model private.")] = False,
) -> None:
    """Upload a checkpoint to the Hugging Face hub (needs a token: HF_TOKEN or `hf auth login`)."""
    from gram import hub_files

    print(hub_files.push(directory, repository, is_private=is_private))
