"""The one checkpoint format: a directory with `config.json` and `model.safetensors`, as `save_pretrained` writes it.

Reads and writes it without importing transformers (seconds of start-up); `gram/hub.py` is the transformers side, and a
test holds the two equal. Tensor names carry the prefix `model.`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gram.atomic_files import replacing
from gram.config import ModelConfig, config_from_json, config_to_json
from gram.model import Model

PREFIX = "model."
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
CARD_FILE = "card.json"
SHIPPED = Path(__file__).parent / "weights"


class CheckpointError(ValueError):
    """A checkpoint that cannot be read; the message is one line."""


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name and moves it into place, so that a reader never sees half of it."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """`write_atomically` of one JSON value."""
    write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Safetensors, atomically."""
    for stale in path.parent.glob(f".{path.name}.*"):
        stale.unlink(missing_ok=True)  # left by a process that was killed while it wrote
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(contiguous, temporary, metadata=metadata or {"format": "pt"})


def config_json(config: ModelConfig) -> dict[str, Any]:
    """`config.json` of a model: our fields beside what transformers looks for."""
    return {"architectures": ["GramForReasoning"], "model_type": "gram", **config_to_json(config)}


def save(
    model: Model, directory: Path | str, *, card: dict[str, Any] | None = None, dtype: torch.dtype | None = None
) -> None:
    """Writes a checkpoint directory; `card` becomes `card.json` (recipe, command, steps, figures)."""
    directory = Path(directory)
    tensors = {PREFIX + name: tensor.detach().to(dtype or tensor.dtype) for name, tensor in model.weights().items()}
    write_tensors(directory / WEIGHTS_FILE, tensors)
    write_json(directory / CONFIG_FILE, config_json(model.config))
    if card is not None:
        write_json(directory / CARD_FILE, card)


def read_config(directory: Path | str) -> ModelConfig:
    """The model configuration of a checkpoint directory. Raises `CheckpointError`."""
    path = Path(directory) / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(f"checkpoint must be a directory with {CONFIG_FILE}, got {directory}")
    try:
        values = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from None
    if not isinstance(values, dict) or values.get("model_type") != "gram":
        raise CheckpointError(f"{path}: model_type must be 'gram', got {values.get('model_type')!r}")
    known = set(ModelConfig.__dataclass_fields__)
    try:
        return config_from_json(ModelConfig, {k: v for k, v in values.items() if k in known}, where=str(path))
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def read_card(directory: Path | str) -> dict[str, Any]:
    """`card.json` of a checkpoint, or an empty one."""
    path = Path(directory) / CARD_FILE
    card: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return card


def load(directory: Path | str, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Model:
    """The model of a checkpoint directory, its weights cast once to `dtype` (None: as stored).

    Raises `CheckpointError` naming what is missing, surplus or of another shape.
    """
    config = read_config(directory)
    path = Path(directory) / WEIGHTS_FILE
    if not path.is_file():
        raise CheckpointError(f"checkpoint must hold {WEIGHTS_FILE}, got {directory} without it")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error})") from None
    model = Model(config)
    wanted = {PREFIX + name: tensor.shape for name, tensor in model.weights().items()}
    for name, shape in wanted.items():
        if name not in tensors:
            raise CheckpointError(f"{path}: tensor {name} is missing, expected {list(shape)}")
        if tensors[name].shape != shape:
            raise CheckpointError(f"{path}: {name} must be {list(shape)}, got {list(tensors[name].shape)}")
    if surplus := sorted(set(tensors) - set(wanted)):
        raise CheckpointError(f"{path}: {surplus[0]} is not a tensor of this model")
    model.load_state_dict({name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}, assign=True)
    return model.to(device=device, dtype=dtype).eval().requires_grad_(False)


def shipped_names() -> list[str]:
    """Names of the checkpoints that come with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{CONFIG_FILE}"))


def find(name_or_directory: str | Path) -> Path:
    """Directory of a shipped checkpoint's name or of a checkpoint on disk. Raises `CheckpointError`."""
    shipped = SHIPPED / str(name_or_directory)
    if str(name_or_directory) in shipped_names():
        return shipped
    directory = Path(name_or_directory)
    if (directory / CONFIG_FILE).is_file():
        return directory
    raise CheckpointError(
        f"checkpoint must be a directory with {CONFIG_FILE} or one of {', '.join(shipped_names()) or 'none shipped'}, "
        f"got {str(name_or_directory)!r}"
    )
