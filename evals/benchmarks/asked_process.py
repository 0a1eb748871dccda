"""A process that runs a script with the package of a folder, such as another commit's, and answers line by line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


class AskedProcess:
    """It is told a line and answers with a line of JSON; one that has `error` says why it cannot."""

    def __init__(self, folder: Path, script: str, *arguments: str, must: str) -> None:
        """`must` says who must do what in this folder, as an error has it."""
        self.must = must
        self.process = subprocess.Popen(
            [sys.executable, script, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(folder)},
            # The script's own folder comes before PYTHONPATH, but holds no `gram`; the working directory is not read.
            cwd=folder,
        )

    def ask(self, line: object) -> dict[str, Any]:
        """What it answers to a line. Raises `ValueError` where it fails."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, and may have said why
        told = self.process.stdout.readline()
        said: dict[str, Any] = (
            json.loads(told) if told else {"error": f"its process ended with code {self.process.wait()}"}
        )
        if "error" in said:
            raise ValueError(f"{self.must}, got: {said['error']}")
        return said

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.communicate()


def check_folder(folder: Path) -> Path:
    """A folder that holds the package. Raises `ValueError`."""
    if not (folder / "gram" / "__init__.py").is_file():
        raise ValueError(f"against must be a worktree of this repository, with a folder gram in it, got {folder}")
    return folder.absolute()
