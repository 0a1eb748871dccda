"""Sparse storage of a checkpoint's matrices: the places and values of the nonzero weights, where that is smaller.

In the safetensors file a packed tensor NAME is `NAME.indices` (places in row-major order, ascending; 16 bits where
they fit, else 32) and `NAME.values`. Its shape stands in the file's JSON header under `shapes`. Every value comes back
bit for bit, but that a negative zero becomes zero.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

INDICES, VALUES, SHAPES = ".indices", ".values", "shapes"


class PackedMatrix(NamedTuple):
    """A tensor of which only what is not zero is held."""

    shape: tuple[int, ...]
    indices: Tensor
    """Places in row-major order, ascending, `[K]` int64."""
    values: Tensor
    """`[K]`."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of its values."""
        return self.values.dtype

    def whole(self) -> Tensor:
        """The tensor with its zeros."""
        flat = torch.zeros(math.prod(self.shape), dtype=self.values.dtype)
        flat[self.indices] = self.values
        return flat.view(self.shape)


def pack(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors as they are stored, matrices packed where that takes fewer bytes, and the file's header."""
    stored: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for name, tensor in tensors.items():
        kind = torch.uint16 if tensor.numel() <= 2**16 else torch.int32
        flat = tensor.flatten()
        indices = flat.nonzero().squeeze(1)
        is_smaller = len(indices) * (kind.itemsize + tensor.itemsize) < tensor.numel() * tensor.itemsize
        if tensor.ndim >= 2 and is_smaller and tensor.numel() < 2**31:
            shapes[name] = list(tensor.shape)
            stored |= {name + INDICES: indices.to(kind), name + VALUES: flat[indices]}
        else:
            stored[name] = tensor
    # One key alone: safetensors writes several in any order, and equal weights must be equal files.
    return stored, {SHAPES: json.dumps(shapes)}


def unpack(path: Path) -> dict[str, Tensor | PackedMatrix]:
    """Every tensor of a file that `pack` made, none made whole yet.

    Raises `ValueError` in one line where a packed tensor is not one, and what safetensors raises.
    """
    with safe_open(path, framework="pt") as file:
        header = (file.metadata() or {}).get(SHAPES)
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    shapes = json.loads(header) if header else None
    if not isinstance(shapes, dict):
        raise ValueError("its header must hold the shapes of packed tensors")
    found: dict[str, Tensor | PackedMatrix] = {}
    for name, shape in shapes.items():
        found[name] = _packed(name, shape, tensors.pop(name + INDICES, None), tensors.pop(name + VALUES, None))
    return found | tensors


def _packed(name: str, shape: object, indices: Tensor | None, values: Tensor | None) -> PackedMatrix:
    """One packed tensor. Raises `ValueError` where its parts do not fit each other."""
    if not isinstance(shape, list) or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise ValueError(f"the shape of {name} must be a list of sizes")
    if indices is None or values is None or indices.shape != values.shape or indices.ndim != 1:
        raise ValueError(f"{name} must have indices and values of one length")
    if indices.dtype not in (torch.uint16, torch.int32):
        raise ValueError(f"the indices of {name} must be whole numbers of 16 or 32 bits")
    places = indices.to(torch.int64)
    inside = len(places) == 0 or (int(places[0]) >= 0 and int(places[-1]) < math.prod(shape))
    if not inside or not bool((places[1:] > places[:-1]).all()):
        raise ValueError(f"the indices of {name} must rise within its {math.prod(shape)} places")
    return PackedMatrix(tuple(shape), places, values)
