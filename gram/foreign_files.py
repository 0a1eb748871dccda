"""Reads files of other projects, `torch.save` archives and YAML settings, as plain dictionaries.

`gram/importers.py` knows what they mean. Nothing in a file is executed: tensors and plain values are read with
`weights_only=True`, and the few training objects in EqR's files are read as blanks.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from gram.checkpoint import CheckpointError

WRAPPERS = ("model", "model_state_dict", "state_dict", "module")
"""Entries under which training frameworks keep the weights, one in the other in any order, as dictionaries or as parts
of tensors' names."""
INSERTED = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of tensors' names that torch.compile, DataParallel and others put before and between."""
ROOT = "inner."
"""What the names of all tensors of these projects begin with."""
TABLE = f"{ROOT}puzzle_emb.weights"
"""A row for each identity of the data set."""
BLANKS = re.compile(
    r"models\.(eqr|trm)\.(ModelCarry|LatentCarry)"
    r"|numpy\._?core\.multiarray\.(_reconstruct|scalar)"
    r"|numpy\.(ndarray|dtype)|numpy\.dtypes\.\w+DType"
)
"""Names of objects that EqR saves beside the weights (carry, state of numpy's generator); no import needs them."""


class Blank:
    """Replaces a training object of a file: accepts any arguments and keeps nothing."""

    def __new__(cls, *_: Any) -> Blank:
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def read_archive(path: Path) -> dict[str, Any]:
    """The dictionary of a `torch.save` file, tensors on the CPU. Raises `CheckpointError`, `FileNotFoundError`."""
    if path.is_dir():
        raise CheckpointError(f"{path}: must be a file, got a folder")
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise CheckpointError(f"{path}: must be a whole file of torch.save (a zip archive), got something else")
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception as error:
        raise CheckpointError(f"{path}: must be a torch.save file, but cannot be read ({_short(error)})") from None
    if refused := sorted(name for name in names if not BLANKS.fullmatch(name)):
        raise CheckpointError(f"{path}: must hold tensors and plain values, got {refused[0]}, which would run code")
    try:
        with torch.serialization.safe_globals([(Blank, name) for name in names]):
            # Mapped: a table of identities may be larger than memory.
            found = torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise CheckpointError(f"{path}: must be a torch.save file, but cannot be read ({_short(error)})") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: must hold a dictionary of tensors, got {type(found).__name__}")
    return found


def tensors_of(found: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """Tensors by canonical name: of a state dictionary, wrapped or not, `ema.shadow` laid over it where it has one.

    What wrappers (`WRAPPERS`, `INSERTED`) put before the names is dropped. Raises `CheckpointError`.
    """
    layers = [_unwrapped(found, path)]
    ema = found.get("ema")
    if layers[0] is not found and isinstance(ema, dict) and isinstance(ema.get("shadow"), dict):
        layers.append(_unwrapped(ema["shadow"], path))
    tensors: dict[str, Tensor] = {}
    for layer in layers:
        named: dict[str, str] = {}
        for key, value in layer.items():
            if not isinstance(value, Tensor):
                raise CheckpointError(f"{path}: {key} must be a tensor, got {type(value).__name__}")
            if not value.is_floating_point() or value.layout != torch.strided:
                raise CheckpointError(f"{path}: {key} must be dense floating point, got {value.dtype}, {value.layout}")
            name = canonical_name(str(key))
            # A table may have gigabytes: its rows are checked when they are read.
            is_table = name == TABLE and value.dim() == 2 and value.shape[0] > 1
            if not is_table and not bool(value.isfinite().all()):
                raise CheckpointError(f"{path}: {key} must be finite, got NaN or infinity")
            if name in named:
                raise CheckpointError(f"{path}: {name} must be there once, got {named[name]} and {key}")
            named[name] = str(key)
            tensors[name] = value.detach() if is_table else value.detach().to(torch.float32)
    if not any(name.startswith(ROOT) for name in tensors) and (inside := [name for name in tensors if ROOT in name]):
        prefix = inside[0][: inside[0].index(ROOT)]
        raise CheckpointError(f"{path}: tensors must be named {ROOT}*, got the prefix {prefix}")
    return tensors


def _unwrapped(found: dict[Any, Any], path: Path) -> dict[Any, Any]:
    """The innermost dictionary under the wrappers' names. Raises `CheckpointError` where there are several."""
    while inner := [name for name in WRAPPERS if isinstance(found.get(name), dict)]:
        if len(inner) > 1:
            raise CheckpointError(f"{path}: must hold one set of weights, got {' and '.join(inner)}")
        found = found[inner[0]]
    return found


def canonical_name(key: str) -> str:
    """A tensor's name without what wrappers put before it and between."""
    parts = [part for part in key.split(".") if part not in INSERTED]
    while len(parts) > 1 and parts[0] in WRAPPERS:
        del parts[0]
    return ".".join(parts)


def read_settings(path: Path) -> dict[str, Any]:
    """The mapping of a YAML file. Raises `CheckpointError`, `FileNotFoundError`."""
    try:
        found = yaml.safe_load(path.read_bytes())
    except RecursionError:
        raise CheckpointError(f"{path}: not YAML (nested too deep)") from None
    except (yaml.YAMLError, ValueError) as error:  # a date that is none is a ValueError
        raise CheckpointError(f"{path}: not YAML ({_short(error)})") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: must be a YAML mapping, got {type(found).__name__}")
    return found


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _short(error: Exception) -> str:
    """The first sentence of a message that may run over many lines."""
    return " ".join(str(error).split())[:100] or type(error).__name__
