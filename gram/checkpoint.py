"""The one checkpoint format: a directory with `config.json` and `model.safetensors`, as `save_pretrained` writes it.

Weights may also lie in shards that `model.safetensors.index.json` lists (`save_pretrained(max_shard_size=...)`).
Reads and writes it without importing transformers (seconds of start-up); `gram/hub.py` is the transformers side, and a
test holds the two equal. Tensor names carry the prefix `model.`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gram.atomic_files import making, replacing
from gram.config import LATER, MODEL_FIELDS, MOST_NAMED, ModelConfig, config_from_json, config_to_json, read_json, shown
from gram.identities import TABLE_FILE, open_table
from gram.model import Model
from gram.sizes import fits
from gram.sparse_storage import PackedMatrix, pack, unpack
from gram.tasks.arc_folder import NAMES_FILE

PREFIX = "model."
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SPARSE_FILE = "sparse.safetensors"
"""In place of `model.safetensors` where most weights are zero (`gram/sparse_storage.py`)."""
CONFIG_FILE = "config.json"
CARD_FILE = "card.json"
LOST = "lost+found"
"""What the root of a new file system holds."""
SHIPPED = Path(__file__).parent / "weights"
TYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
"""Types that weights may be stored in."""
TRANSFORMERS_KEYS = (
    *("architectures", "auto_map", "chunk_size_feed_forward", "dtype", "id2label", "is_encoder_decoder", "label2id"),
    *("model_type", "num_labels", "output_attentions", "output_hidden_states", "problem_type", "return_dict"),
    *("tie_word_embeddings", "torch_dtype", "transformers_version", "use_cache"),
)
"""Keys of `config.json` that transformers writes for itself; they change nothing here."""


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
    """Safetensors, atomically. Raises `OSError` naming the file where it cannot be written, as on a full disk."""
    for stale in path.parent.glob(f".{path.name}.*"):
        stale.unlink(missing_ok=True)  # left by a process that was killed while it wrote
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        try:
            save_file(contiguous, temporary, metadata=metadata or {"format": "pt"})
        except SafetensorError as error:
            # Only the text holds the system's error.
            if (said := re.search(r"os error (\d+)", str(error))) is None:
                raise
            raise OSError(int(said[1]), os.strerror(int(said[1])), str(temporary)) from None


def config_json(config: ModelConfig) -> dict[str, Any]:
    """`config.json` of a model: our fields, and those that transformers needs."""
    return {"architectures": ["GramForReasoning"], "model_type": "gram", **config_to_json(config)}


def save(
    model: Model,
    directory: Path | str,
    *,
    card: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    is_sparse: bool = False,
) -> None:
    """Writes a checkpoint directory; `card` becomes `card.json` (recipe, command, steps, figures). `is_sparse` stores
    the nonzero weights alone of every matrix where that is smaller.

    `config.json` comes last: without it the folder is no checkpoint.
    """
    directory = Path(directory)
    tensors = {PREFIX + name: tensor.detach().to(dtype or tensor.dtype) for name, tensor in model.weights().items()}
    if is_sparse:
        write_tensors(directory / SPARSE_FILE, *pack(tensors))
        (directory / WEIGHTS_FILE).unlink(missing_ok=True)
    else:
        write_tensors(directory / WEIGHTS_FILE, tensors)
        (directory / SPARSE_FILE).unlink(missing_ok=True)
    if model.identities is not None:
        model.identities.save(directory, dtype)
    if card is not None:
        write_json(directory / CARD_FILE, card)
    write_json(directory / CONFIG_FILE, config_json(model.config))


def save_new(model: Model, directory: Path, *, card: dict[str, Any]) -> None:
    """`save` into a new folder, which then appears at once, or into an empty one, such as a mount point.

    A failure leaves no file behind. Raises `CheckpointError` where the folder holds something, and `OSError`.
    """
    directory = directory.resolve()  # `.` has no name, and a link cannot be replaced by a folder
    if directory.exists() and (not directory.is_dir() or any(entry.name != LOST for entry in directory.iterdir())):
        raise CheckpointError(f"--out must be a new or empty folder, got {directory}")
    if directory.exists():
        try:
            save(model, directory, card=card)
        except BaseException:
            for name in (CONFIG_FILE, CARD_FILE, WEIGHTS_FILE, SPARSE_FILE, TABLE_FILE, NAMES_FILE):
                (directory / name).unlink(missing_ok=True)
            raise
        return
    with making(directory) as temporary:
        save(model, temporary, card=card)


def read_config(directory: Path | str) -> ModelConfig:
    """The model configuration of a checkpoint directory. Raises `CheckpointError`."""
    path = Path(directory) / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(f"checkpoint must be a directory with {CONFIG_FILE}, got {directory}")
    values = read_json(path, CheckpointError)
    if values.get("model_type") != "gram":
        raise CheckpointError(f"{path}: model_type must be 'gram', got {shown(values.get('model_type'))}")
    known = set(ModelConfig.__dataclass_fields__)
    try:
        check_stored(values, beside=TRANSFORMERS_KEYS, where=str(path))
        return config_from_json(ModelConfig, {k: v for k, v in values.items() if k in known}, where=str(path))
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def read_card(directory: Path | str) -> dict[str, Any]:
    """`card.json` of a checkpoint, or an empty one. Raises `CheckpointError` where it cannot be read."""
    path = Path(directory) / CARD_FILE
    return read_json(path, CheckpointError) if path.is_file() else {}


def weight_files(directory: Path) -> list[Path]:
    """The file of a checkpoint's weights, or its shards in order. Raises `CheckpointError` where one is missing."""
    for name in (WEIGHTS_FILE, SPARSE_FILE):
        if (directory / name).is_file():
            return [directory / name]
    index = directory / INDEX_FILE
    if not index.is_file():
        raise CheckpointError(f"checkpoint must hold {WEIGHTS_FILE} or {INDEX_FILE}, got {directory} without them")
    places = read_json(index, CheckpointError).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index}: weight_map must name the file of every tensor, got {shown(places)}")
    for name in places.values():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index}: weight_map must name safetensors files beside it, got {shown(name)}")
    files = [directory / name for name in sorted(set(places.values()))]
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{index}: {file.name} must lie beside it, got none")
    return files


def _read_tensors(directory: Path) -> dict[str, tuple[Tensor | PackedMatrix, Path]]:
    """Every stored tensor by name, and its file."""
    found: dict[str, tuple[Tensor | PackedMatrix, Path]] = {}
    for path in weight_files(directory):
        try:
            tensors: Mapping[str, Tensor | PackedMatrix] = unpack(path) if path.name == SPARSE_FILE else load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path}: not a safetensors file ({' '.join(str(error).split())[:100]})") from None
        for name, tensor in tensors.items():
            if name in found:
                raise CheckpointError(f"{path}: {name} must be in one shard, got it in {found[name][1].name} too")
            found[name] = tensor, path
    return found


def load(directory: Path | str, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Model:
    """The model of a checkpoint directory, its weights cast once to `dtype` (None: as stored); its table of task
    embeddings is mapped, not read.

    Raises `CheckpointError` naming what is missing, surplus, of another shape or type, or not finite.
    """
    directory = Path(directory)
    config = read_config(directory)
    stored = _read_tensors(directory)
    where = min((path for _, path in stored.values()), default=directory)
    # Shapes alone: nothing is allocated before they are those of the file.
    with torch.device("meta"):
        model = Model(config)
    weights: dict[str, Tensor] = {}
    for name, wanted in model.weights().items():
        tensor, path = stored.pop(PREFIX + name, (None, where))
        if tensor is None:
            raise CheckpointError(f"{path}: tensor {PREFIX}{name} is missing, expected {list(wanted.shape)}")
        weights[name] = _checked(PREFIX + name, tensor, wanted, path, dtype)
    for name, (_, path) in sorted(stored.items()):
        raise CheckpointError(f"{path}: {name} is not a tensor of this model")
    model.load_state_dict(weights, assign=True)
    if config.identities:
        try:
            model.identities = open_table(directory, config)
        except ValueError as error:
            raise CheckpointError(str(error)) from None
    return model.to(device=device).eval().requires_grad_(False)


def _checked(name: str, tensor: Tensor | PackedMatrix, wanted: Tensor, path: Path, dtype: torch.dtype | None) -> Tensor:
    """A stored tensor in the type asked for. Raises `CheckpointError` where it does not fit the model."""
    if tensor.shape != wanted.shape:
        raise CheckpointError(f"{path}: {name} must be {list(wanted.shape)}, got {list(tensor.shape)}")
    if tensor.dtype not in TYPES:
        known = ", ".join(str(one).removeprefix("torch.") for one in TYPES)
        raise CheckpointError(f"{path}: {name} must be one of {known}, got {str(tensor.dtype).removeprefix('torch.')}")
    if isinstance(tensor, PackedMatrix):
        tensor = tensor.whole()
    cast = tensor.to(dtype or tensor.dtype)
    if not bool(cast.isfinite().all()):
        raise CheckpointError(f"{path}: {name} must be finite, got NaN or infinity")
    return cast


def shipped_names() -> list[str]:
    """Names of the checkpoints that come with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{CONFIG_FILE}"))


def default_for(task: str, *, is_conditional: bool = True) -> str:
    """Name of the shipped checkpoint that solves a task best by its card or, without a condition, generates its boards.

    Where a card has a figure on the task's hard puzzles (`hard`), that comes first: on the test set several may do as
    well. Else continuous states come before a lattice, which takes no injector and no resampler. A card may list tasks
    of other sizes that its model does (`tasks`); of those that fit and are not listed it has no figure. Raises
    `CheckpointError` where none does.
    """
    figure, able = "accuracy" if is_conditional else "valid", {}
    for name in shipped_names():
        config = read_config(SHIPPED / name)
        can_do = config.is_conditional if is_conditional else config.has_empty_condition or not config.is_conditional
        card = read_card(SHIPPED / name)
        listed = card if config.task == task else card.get("tasks", {}).get(task, {})
        if can_do and (
            config.task == task or ("tasks" in card and _is_alike(config.task, task) and fits(config, task))
        ):
            sure = _sure(listed.get("figures", {}), figure, is_own=config.task == task)
            hard, takes_noise = listed.get("hard", {}).get(figure, 0.0), config.latent != "lattice"
            able[name] = (hard, takes_noise, sure, name == task)
    if not able:
        what = "solves" if is_conditional else "generates boards of"
        raise CheckpointError(
            f"no shipped checkpoint {what} task {task!r}: expected --checkpoint DIR "
            f"(shipped: {', '.join(shipped_names()) or 'none'})"
        )
    return max(able, key=lambda name: able[name])


def _is_alike(one: str, other: str) -> bool:
    """Whether names differ in their number alone; no others can be of one family, and none need be made to see it."""
    return one.rstrip("0123456789") == other.rstrip("0123456789")


def _sure(figures: dict[str, Any], figure: str, *, is_own: bool) -> float:
    """A card's figure; of a model of another size the low end of its interval: what was trained for a task gives way to
    what is surely better alone."""
    if not is_own and figure in figures.get("intervals", {}):
        return float(figures["intervals"][figure][0])
    return float(figures.get(figure, 0))


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


def check_stored(values: Mapping[str, Any], *, beside: Collection[str] = (), where: str) -> None:
    """Checks that a stored `ModelConfig` has every field that decides what its weights compute.

    A default in place of a missing or misspelled field would silently run another model. Only a field whose default is
    empty (None, no relations) or that came later may be missing. `beside` names other keys that may be there; private
    keys always may.
    Raises `ValueError` in one line that names missing and unknown keys.
    """
    own = {field.name: field.default for field in fields(ModelConfig)}
    missing = [name for name in MODEL_FIELDS if own[name] not in (None, ()) and name not in {*values, *LATER}]
    unknown = [key for key in values if key not in own and key not in beside and not key.startswith("_")]
    faults = []
    if missing:
        more = f" and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
        named = ", ".join(missing[:MOST_NAMED]) + more
        faults.append(f"{named} must be given, since what the weights compute depends on it, got none")
    if unknown:
        faults.append(f"{', '.join(shown(key) for key in unknown[:MOST_NAMED])}: not a setting of a model")
    if faults:
        raise ValueError(f"{where}: {'; '.join(faults)}")
