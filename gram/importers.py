"""Checkpoints of TRM (2510.04871), HRM (2506.21734) and EqR (2605.21488) as models of ours, with the same logits.

All three are one recursion with other numbers: post-norm blocks on the sum of state and injection, `H_cycles`
transitions of `L_cycles` low-level updates. Their tensors and ours (D channels, L tokens, P prefix tokens):

    inner.embed_tokens.embedding_weight [V, D]   embedding
    inner.puzzle_emb.weights [1, <= P*D]         registers: one row, padded with zeros to P tokens
                             [I, <= P*D]         of ARC: the table of identities, mapped and never copied in memory
    inner.embed_pos.embedding_weight [P+L, D]    positions (these, embedding and registers times 1/sqrt(2), as theirs)
    inner.{H,L}_init [D]                         z0_h, z0_l
    inner.{L,H}_level.layers.{i}                 low.{i}, high.{i} (HRM has both, TRM and EqR share one)
      mlp_t | self_attn                          mixer: a SwiGLU over tokens, or attention
      mlp                                        channel
    inner.lm_head.weight [V, D]                  decoder
    inner.q_head.weight [2, D], bias [2]         halt: row 0. Row 1, the logit to continue, is dropped

The LPRM is zero. Shapes do not determine cycles, heads and rotary base. These come from the run's settings
(`all_config.yaml`, or the file itself for EqR), else from the published runs; the card lists those that were assumed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gram import checkpoint
from gram.checkpoint import CheckpointError
from gram.config import ModelConfig, shown
from gram.foreign_files import TABLE, file_sha256, read_archive, read_settings, tensors_of
from gram.identities import IdentityTable
from gram.model import Model
from gram.tasks.arc_folder import NAMES_FILE, open_arc_folder
from gram.tasks.registry import get_task

FAMILIES = ("trm", "eqr", "hrm")
CLASSES = {
    "trm": ("TinyRecursiveReasoningModel_ACTV1", "TRMModel"),
    "hrm": ("HierarchicalReasoningModel_ACTV1",),
    "eqr": ("EqRModel",),
}
"""Classes that the settings' `arch.name` may name; the part before `@` is their module."""
MODULES = {"trm": ("trm",), "hrm": ("hrm", "hrm_act_v1"), "eqr": ("eqr",)}
TASKS = {(81, 11): "sudoku9", (900, 6): "maze30", (900, 12): "arc"}
"""Task by tokens and vocabulary."""
DEFAULTS: dict[str, dict[str, Any]] = {
    "trm": {"H_cycles": 3, "puzzle_emb_len": 16},
    "hrm": {"H_cycles": 2, "L_cycles": 2, "puzzle_emb_len": 0},
    "eqr": {"H_cycles": 3, "lambda_": 0.95, "noise_scale": 0.01, "H_init_std": 1.0, "L_init_std": 1.0},
}
"""Published settings of each family; `COMMON` holds those that all share."""
COMMON = {"num_heads": 8, "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "halt_max_steps": 16}
PASSED_OVER = {
    *("name", "short_name", "loss", "halt_exploration_prob", "expansion", "puzzle_emb_ndim", "forward_dtype"),
    *("no_ACT_continue", "puzzle_emb_len", "board_height", "board_width", "batch_size", "num_puzzle_identifiers"),
    "H_layers",
    *("disable_act_halt", "act_inference", "halt_threshold", "halt_confirm_steps", "halt_confirm_mode"),
}
"""Settings that change no logit, or that the tensors' shapes determine."""
HALF_VARIANCE = 0.707106781
"""Their factor on embedding + learned positions."""
NOTES = {
    "trm": "halt logit: output 0 of q_head; TRM's training halts where it is above 0 (probability .5)",
    "hrm": "halt logit: output 0 of q_head (halt); HRM's rule, halt above continue, needs output 1, which is dropped",
    "eqr": "halt logit: output 0 of q_head on the first token; EqR picks by residual, and its noise stays on",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """A foreign checkpoint as a model of ours."""

    model: Model
    card: dict[str, Any]
    """What becomes `card.json`: family, file, its hash, assumed settings, notes."""


@dataclass(frozen=True, slots=True)
class _Tensors:
    """Tensors of a file. Each is taken once; one that is left at the end is an error."""

    where: str
    left: dict[str, Tensor]

    def take(self, name: str, *shape: int | None) -> Tensor:
        """The tensor `inner.<name>`, checked against `shape` (None: any size)."""
        found = self.left.pop(f"inner.{name}", None)
        wanted = str([size or "any" for size in shape]).replace("'", "")
        if found is None:
            raise CheckpointError(f"{self.where}: tensor inner.{name} is missing, expected {wanted}")
        if found.dim() != len(shape) or any(b and a != b for a, b in zip(found.shape, shape, strict=True)):
            raise CheckpointError(f"{self.where}: inner.{name} must be {wanted}, got {list(found.shape)}")
        return found

    def has(self, name: str) -> bool:
        return f"inner.{name}" in self.left

    def layers(self, level: str) -> int:
        """Number of blocks of a level."""
        found = re.compile(rf"inner\.{level}\.layers\.(\d+)\.")
        return len({match[1] for name in self.left if (match := found.match(name))})


@dataclass(slots=True)
class _Settings:
    """`arch` of a project's settings, over the published defaults."""

    where: str
    given: dict[str, Any]
    defaults: dict[str, Any]
    assumed: dict[str, Any] = field(default_factory=dict)

    def number(self, name: str) -> Any:
        """A setting as the type of its default."""
        default = self.defaults[name]
        if (value := self.given.get(name)) is None:
            self.assumed[name] = default
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or (isinstance(default, int) and value % 1):
            kind = "a whole number" if isinstance(default, int) else "a number"
            raise CheckpointError(f"{self.where}: {name} must be {kind}, got {shown(value)}")
        return type(default)(value)

    def agree(self, name: str, found: Any) -> None:
        """Raises `CheckpointError` where a setting contradicts the tensors."""
        if self.given.get(name, found) != found:
            raise CheckpointError(
                f"{self.where}: {name} must be {found} as in the tensors, got {shown(self.given[name])}"
            )


def import_checkpoint(
    family: str,
    file: Path | str,
    *,
    settings: Path | str | None = None,
    task: str | None = None,
    data: Path | str | None = None,
) -> Imported:
    """The model in a foreign `file`; `settings` is the YAML of its run, `task` replaces the guess by shapes. `data` is
    the folder that a model with a table of identities was trained on, which names its rows.

    Raises `CheckpointError` in one line for a file that is damaged, holds more than it should, or computes what ours
    cannot; `FileNotFoundError`.
    """
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    file, settings = Path(file), None if settings is None else Path(settings)
    found = read_archive(file)
    tensors = _Tensors(str(file), tensors_of(found, file))
    inside = read_settings(settings) if settings else found.get("config")  # EqR's files hold their run's settings
    arch = _arch(inside, settings or file) if isinstance(inside, dict) else {}
    read = _read_settings(family, arch, str(settings or file))
    identities = tensors.left.pop(TABLE) if _is_table(tensors.left.get(TABLE)) else None
    names, named = _names_of(identities, data, file)
    config, weights = _convert(family, tensors, read, task, identities)
    if tensors.left:
        raise CheckpointError(
            f"{file}: {min(tensors.left)} is not a tensor of a {family.upper()} model that ours computes"
        )
    model = Model(config)
    model.load_state_dict(weights, assign=True)
    if identities is not None:
        factor = HALF_VARIANCE if "positions" in weights else 1.0
        model.identities = IdentityTable(identities, config, names, factor=factor)
    card: dict[str, Any] = {
        "imported": {
            "family": family,
            "file": file.name,
            "sha256": file_sha256(file),
            "settings": None if settings is None else settings.name,
            "assumed": read.assumed,
            "notes": [NOTES[family], "the LPRM is zero: it was never trained"],
        }
    }
    if identities is not None and names is not None:
        if unnamed := len(identities) - named:
            card["imported"]["notes"].append(f"{unnamed:,} of {len(identities):,} identities have no name")
        card["imported"] |= {"data": names.resolve().parent.name, "identifiers_sha256": file_sha256(names)}
    return Imported(model=model.eval().requires_grad_(False), card=card)


def write(imported: Imported, directory: Path) -> None:
    """Writes a checkpoint directory whole or not at all. Raises `CheckpointError` where it holds something."""
    checkpoint.save_new(imported.model, directory, card=imported.card)


def _arch(values: dict[str, Any], where: Path) -> dict[str, Any]:
    """The settings of the architecture: under `arch`, or the mapping itself (`config/arch/*.yaml`)."""
    arch = values.get("arch", values)
    if not isinstance(arch, dict) or not arch.keys() & {"H_cycles", "hidden_size", "name"}:
        raise CheckpointError(f"{where}: must hold the mapping 'arch' of a run's settings, got none")
    return arch


def _read_settings(family: str, arch: dict[str, Any], where: str) -> _Settings:
    """Settings of a family. Raises `CheckpointError` where they name another family or something unknown."""
    if name := arch.get("name"):
        module, _, kind = (name if isinstance(name, str) else shown(name)).rpartition("@")
        if kind not in CLASSES[family] or module.split(".")[-1] not in MODULES[family]:
            raise CheckpointError(f"{where}: arch.name must be of the family {family}, got {shown(name)}")
    defaults = COMMON | DEFAULTS[family]
    known = {*defaults, *PASSED_OVER, "L_cycles", "L_layers", "hidden_size", "mlp_t", "pos_encodings", "seq_len"}
    if unknown := sorted(str(key) for key in set(arch) - known - {"vocab_size"}):
        raise CheckpointError(f"{where}: {unknown[0]} is not a setting of {family.upper()} that ours computes")
    return _Settings(where, arch, defaults)


def _is_table(found: Tensor | None) -> bool:
    """Whether a puzzle embedding is one of many identities."""
    return found is not None and found.dim() == 2 and found.shape[0] > 1


def _names_of(identities: Tensor | None, data: Path | str | None, file: Path) -> tuple[Path | None, int]:
    """The file with the names of a table's rows, and their number; none where there is no table. Raises
    `CheckpointError`."""
    if identities is None:
        if data is not None:
            raise CheckpointError(f"{file}: --data must come with a checkpoint of many identities, got {data}")
        return None, 0
    if data is None:
        raise CheckpointError(
            f"{file}: {TABLE} has {identities.shape[0]:,} identities: the data set that names them must be given "
            "(--data DIR, the folder of its training with identifiers.json), got none"
        )
    names = open_arc_folder(data).names
    if len(names) > identities.shape[0]:
        raise CheckpointError(
            f"{file}: {TABLE} must have a row for each of {len(names):,} names in {Path(data) / NAMES_FILE}, got "
            f"{identities.shape[0]:,}"
        )
    return Path(data) / NAMES_FILE, len(names)


def _convert(
    family: str, tensors: _Tensors, settings: _Settings, task: str | None, identities: Tensor | None
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Configuration and tensors of ours, but the table of `identities`."""
    embedding = tensors.take("embed_tokens.embedding_weight", None, None)
    vocabulary, dim = embedding.shape
    is_token_mixer = tensors.has("L_level.layers.0.mlp_t.gate_up_proj.weight")
    settings.agree("hidden_size", dim)
    settings.agree("vocab_size", vocabulary)
    settings.agree("mlp_t", is_token_mixer)

    registers = _registers(tensors, settings, dim, identities)
    positions = (
        tensors.take("embed_pos.embedding_weight", None, dim) if tensors.has("embed_pos.embedding_weight") else None
    )
    tokens = _tokens(tensors, vocabulary, len(registers), positions, task)
    settings.agree("seq_len", tokens)
    blocks = tensors.layers("L_level")
    is_core_shared = family != "hrm"
    settings.agree("L_layers", blocks)
    if not is_core_shared:
        settings.agree("H_layers", blocks)

    length = len(registers) + tokens
    weights: dict[str, Tensor] = {}
    hidden = mixer_hidden = 1
    for name, level in (("low", "L_level"), *(() if is_core_shared else (("high", "H_level"),))):
        for block in range(max(blocks, 1)):
            theirs, ours = f"{level}.layers.{block}.", f"{name}.{block}."
            if is_token_mixer:
                mixer_hidden = _swiglu(tensors, theirs + "mlp_t.", weights, ours + "mixer.", length, mixer_hidden)
            else:
                weights[ours + "mixer.qkv"] = tensors.take(theirs + "self_attn.qkv_proj.weight", 3 * dim, dim)
                weights[ours + "mixer.out"] = tensors.take(theirs + "self_attn.o_proj.weight", dim, dim)
            hidden = _swiglu(tensors, theirs + "mlp.", weights, ours + "channel.", dim, hidden)

    scale = 1.0 if positions is None else HALF_VARIANCE
    weights["embedding.weight"] = embedding * scale
    if len(registers) and identities is None:
        weights["registers"] = registers * scale
    if positions is not None:
        weights["positions"] = positions * scale
    weights["decoder.weight"] = tensors.take("lm_head.weight", vocabulary, dim)
    weights["halt.weight"] = tensors.take("q_head.weight", 2, dim)[:1].clone()
    weights["halt.bias"] = tensors.take("q_head.bias", 2)[:1].clone()
    weights |= {"lprm.weight": torch.zeros(1, dim), "lprm.bias": torch.zeros(1)}
    for ours, theirs in (("z0_h", "H_init"), ("z0_l", "L_init")):
        # EqR draws a random state for every trajectory and saves none.
        is_saved = family != "eqr" or tensors.has(theirs)
        weights[ours] = tensors.take(theirs, dim) if is_saved else torch.zeros(dim)

    if task is None and (task := TASKS.get((tokens, vocabulary))) is None:
        raise CheckpointError(
            f"{tensors.where}: task must be named (--task), got {tokens} tokens of vocabulary {vocabulary}"
        )
    settings.defaults["L_cycles"] = settings.defaults.get("L_cycles", 6 if tokens == 81 else 4)
    config = ModelConfig(
        task=task,
        vocabulary=vocabulary,
        tokens=tokens,
        output_tokens=tokens,
        registers=len(registers),
        dim=dim,
        blocks=blocks,
        mixer="token" if is_token_mixer else "attention",
        mixer_norm="tokens" if is_token_mixer else "columns",
        mixer_hidden=mixer_hidden,
        heads=1 if is_token_mixer else settings.number("num_heads"),
        hidden=hidden,
        positions=_positions(settings, is_token_mixer, positions is not None),
        rope_theta=settings.number("rope_theta"),
        norm_eps=settings.number("rms_norm_eps"),
        is_core_shared=is_core_shared,
        transitions=settings.number("H_cycles"),
        low_level_updates=settings.number("L_cycles"),
        depth=settings.number("halt_max_steps"),
        guidance="none",
        noise_free_steps=0,
        head_readout="register" if len(registers) else "first",
        identities=0 if identities is None else identities.shape[0],
        identity_dim=0 if identities is None else identities.shape[1],
        **_path(settings) if family == "eqr" else {},
    )
    _check_task(config)
    return config, weights


def _swiglu(tensors: _Tensors, theirs: str, weights: dict[str, Tensor], ours: str, width: int, hidden: int) -> int:
    """Moves one SwiGLU; returns its hidden width, which all blocks must share (1: the first block decides)."""
    gate_up = tensors.take(theirs + "gate_up_proj.weight", None if hidden == 1 else 2 * hidden, width)
    weights[ours + "gate_up"] = gate_up
    weights[ours + "down"] = tensors.take(theirs + "down_proj.weight", width, gate_up.shape[0] // 2)
    return gate_up.shape[0] // 2


def _registers(tensors: _Tensors, settings: _Settings, dim: int, identities: Tensor | None) -> Tensor:
    """The prefix tokens `[P, D]` of a data set with one puzzle identifier; none where there is no puzzle embedding, and
    zeros where a table of `identities` fills them."""
    if identities is not None:
        table = torch.zeros(1, identities.shape[1])
    elif tensors.has("puzzle_emb.weights"):
        table = tensors.take("puzzle_emb.weights", None, None)
    else:
        return torch.zeros(0, dim)
    if table.shape[0] != 1:
        raise CheckpointError(f"{tensors.where}: {TABLE} must have rows, got none")
    length = settings.number("puzzle_emb_len") or -(-table.shape[1] // dim)
    if table.shape[1] > length * dim:
        raise CheckpointError(
            f"{tensors.where}: inner.puzzle_emb.weights must fill {length} x {dim} columns, got {table.shape[1]}"
        )
    return torch.nn.functional.pad(table[0], (0, length * dim - table.shape[1])).view(length, dim)


def _tokens(tensors: _Tensors, vocabulary: int, registers: int, positions: Tensor | None, task: str | None) -> int:
    """Tokens of a puzzle: from what is as long as the sequence, else from the task or the vocabulary."""
    mixer = tensors.left.get("inner.L_level.layers.0.mlp_t.gate_up_proj.weight")
    length = mixer.shape[-1] if mixer is not None else None if positions is None else positions.shape[0]
    if length is not None:
        if length <= registers:
            raise CheckpointError(
                f"{tensors.where}: sequence must be longer than {registers} prefix tokens, got {length}"
            )
        return int(length) - registers
    if task is not None:
        return get_task(task).tokens
    known = [tokens for tokens, symbols in TASKS if symbols == vocabulary]
    if not known:
        raise CheckpointError(
            f"{tensors.where}: task must be named (--task) for a vocabulary other than "
            f"{', '.join(str(symbols) for _, symbols in TASKS)}, got {vocabulary}"
        )
    return known[0]


def _positions(settings: _Settings, is_token_mixer: bool, is_learned: bool) -> Any:
    given = settings.given.get("pos_encodings", "learned" if is_learned else "none" if is_token_mixer else "rope")
    given = given or "none"
    if not isinstance(given, str) or given not in ("rope", "learned", "none") or (given == "learned") != is_learned:
        wanted = "learned, as in the tensors" if is_learned else "rope or none"
        raise CheckpointError(f"{settings.where}: pos_encodings must be {wanted}, got {shown(given)}")
    if "pos_encodings" not in settings.given:
        settings.assumed["pos_encodings"] = given
    # A token mixer ignores rotary tables.
    return {"rope": "none" if is_token_mixer else "rotary"}.get(given, given)


def _path(settings: _Settings) -> dict[str, Any]:
    """EqR's settings. Their `lambda_` is the share of the new state."""
    deviations = settings.number("H_init_std"), settings.number("L_init_std")
    if deviations[0] != deviations[1]:
        raise CheckpointError(
            f"{settings.where}: L_init_std must equal H_init_std {deviations[0]}, got {deviations[1]}"
        )
    return {
        "path_keep": 1 - settings.number("lambda_"),
        "path_noise": settings.number("noise_scale"),
        "initial_std": deviations[0],
    }


def _check_task(config: ModelConfig) -> None:
    task = get_task(config.task)
    ours = (task.tokens, task.vocabulary, task.output_start, task.output_tokens)
    if ours != (config.tokens, config.vocabulary, 0, config.tokens):
        raise CheckpointError(
            f"task {config.task} must have the checkpoint's {config.tokens} tokens of vocabulary {config.vocabulary}, "
            f"got {task.tokens} of {task.vocabulary}"
        )
