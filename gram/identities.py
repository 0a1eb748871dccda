"""The table of task embeddings: a row for each identity, which is a task under one view (HRM, 2506.21734; TRM).

A model with a table fills its registers from the row of a puzzle's identity. The table is no parameter: it may have
gigabytes, so it stays on the CPU, memory-mapped where it comes from a file, and only the rows in use are read. It is
learned by an optimiser of its own (`learn`). In a checkpoint it is `identities.safetensors`, beside it the names of its
rows (`identifiers.json`, as TRM's data sets have them).

Shapes: `I` identities, `E` numbers of a row, at most `R * D`, `P` puzzles, `R` registers, `D` channels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.functional import pad

from gram.atomic_files import replacing
from gram.tasks.arc_folder import NAMES_FILE

if TYPE_CHECKING:
    from gram.config import ModelConfig

TABLE_FILE = "identities.safetensors"
TENSOR = "identities"
BLOCK_ROWS = 8192
"""Rows that are copied at once."""
STORED = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
"""Types of a stored table, as safetensors names them."""


class IdentityTable:
    """The rows of all identities, and their names where these are known."""

    def __init__(self, rows: Tensor, config: ModelConfig, names: Path | None = None, *, factor: float = 1.0) -> None:
        """`rows [I, E]`, in memory or mapped, are multiplied by `factor` where they are read; `names` is the JSON file
        of their names."""
        self.rows, self.registers, self.dim, self.names = rows, config.registers, config.dim, names
        self.factor = factor

    @classmethod
    def zeros(cls, config: ModelConfig) -> IdentityTable:
        """A table that knows nothing of any task."""
        # numpy's zeros take no memory before they are written; torch writes them.
        return cls(torch.from_numpy(np.zeros((config.identities, config.identity_dim), np.float32)), config)

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, identities: Tensor) -> Tensor:
        """The rows of `identities [P]`, fp32 `[P, E]`. Raises `ValueError` for a row that is not there or not
        finite."""
        index = identities.to("cpu", torch.int64)
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise ValueError(
                f"identities must be rows from 0 to {len(self) - 1:,}, got {int(index.min())} to {int(index.max()):,}"
            )
        rows = self.rows[index].to(torch.float32) * self.factor
        if not bool(rows.isfinite().all()):
            bad = int(index[~rows.isfinite().all(1)][0])
            raise ValueError(f"identity {bad:,} must be finite, got NaN or infinity")
        return rows

    def fill(self, rows: Tensor) -> Tensor:
        """Rows `[P, E]` as registers, `[P, R, D]`: taken in order, zeros behind."""
        return pad(rows, (0, self.registers * self.dim - rows.shape[1])).view(-1, self.registers, self.dim)

    def part(self, identities: NDArray[np.int64]) -> tuple[Tensor, NDArray[np.int64]]:
        """The different rows of `identities [P]`, in their order here, and the place of each puzzle's among them."""
        used, places = np.unique(identities, return_inverse=True)
        return self.rows[torch.from_numpy(used)], places.reshape(-1).astype(np.int64)

    def digest(self, identities: NDArray[np.int64]) -> str:
        """Hex SHA-256 of which rows the puzzles `[P]` have, and of these rows: their numbers in the table do not
        count."""
        used, places = np.unique(identities, return_inverse=True)
        digest = hashlib.sha256(places.reshape(-1).astype(np.int64).tobytes())
        for first in range(0, len(used), BLOCK_ROWS):
            digest.update(_bytes(self.rows[torch.from_numpy(used[first : first + BLOCK_ROWS])]))
        return digest.hexdigest()

    @torch.no_grad()
    def learn(self, identities: Tensor, gradient: Tensor, rate: float, weight_decay: float) -> None:
        """One step of SignSGD with decoupled weight decay on the rows of `identities [P]` alone, of which some may be
        equal: their `gradient [P, E]` is summed. Adam with a very sparse gradient comes to the same (HRM's and TRM's
        optimiser)."""
        used, places = identities.to("cpu").unique(return_inverse=True)
        total = torch.zeros(len(used), gradient.shape[1])
        total.index_add_(0, places, gradient.to("cpu", torch.float32))
        self.rows[used] = self.rows[used] * (1 - rate * weight_decay) - rate * total.sign()

    def blocks(self) -> Iterator[Tensor]:
        """All rows in order, a few at a time."""
        for first in range(0, len(self), BLOCK_ROWS):
            block = self.rows[first : first + BLOCK_ROWS]
            yield block if self.factor == 1 else block * self.factor

    def save(self, directory: Path, dtype: torch.dtype | None = None) -> None:
        """Writes the table, in `dtype`, and its names into a checkpoint's folder, a block at a time."""
        write_table(directory / TABLE_FILE, self.blocks(), self.rows.shape, dtype or self.rows.dtype)
        if self.names is not None and self.names != directory / NAMES_FILE:
            with replacing(directory / NAMES_FILE) as temporary:
                temporary.write_bytes(self.names.read_bytes())


def write_table(path: Path, blocks: Iterable[Tensor], shape: Iterable[int], dtype: torch.dtype) -> None:
    """A table as a safetensors file, written block by block, so that no more than one is in memory. Atomic."""
    rows, width = shape
    header = {
        "__metadata__": {"format": "pt"},
        TENSOR: {"dtype": STORED[dtype], "shape": [rows, width], "data_offsets": [0, rows * width * dtype.itemsize]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for block in blocks:
            file.write(_bytes(block.to(dtype)))


def open_table(directory: Path, config: ModelConfig) -> IdentityTable:
    """The table of a checkpoint's folder, mapped and not read. Raises `ValueError` in one line where it is missing or
    not the model's."""
    path, names = directory / TABLE_FILE, directory / NAMES_FILE
    if not path.is_file():
        raise ValueError(f"{path}: must hold the model's {config.identities:,} identities, got no such file")
    rows = None
    try:
        with safe_open(path, framework="pt") as file, suppress(SafetensorError):
            rows = file.get_tensor(TENSOR)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a safetensors file ({' '.join(str(error).split())[:100]})") from None
    wanted = [config.identities, config.identity_dim]
    if rows is None or list(rows.shape) != wanted or rows.dtype not in STORED:
        got = "no such tensor" if rows is None else f"{list(rows.shape)} {str(rows.dtype).removeprefix('torch.')}"
        raise ValueError(f"{path}: {TENSOR} must be {wanted} floating point, got {got}")
    return IdentityTable(rows, config, names if names.is_file() else None)


def with_table(config: ModelConfig, rows: Tensor) -> tuple[ModelConfig, IdentityTable]:
    """A configuration with a table of other rows `[I, E]`, and that table."""
    config = replace(config, identities=len(rows), identity_dim=rows.shape[1])
    return config, IdentityTable(rows, config)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()
