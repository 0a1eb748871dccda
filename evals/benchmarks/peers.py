"""Official models of other projects, built from a checkout that the user supplies, to compare with.

None of their code is here: their own modules are imported from the checkout, on a CPU, with random weights.
"""

from __future__ import annotations

import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from gram.importers import import_checkpoint
from gram.model import Model

SHARED = {
    "batch_size": 2,
    "halt_max_steps": 16,
    "halt_exploration_prob": 0.1,
    "expansion": 4,
    "forward_dtype": "float32",
}
SUDOKU = {"seq_len": 81, "vocab_size": 11}
MAZE = {"seq_len": 900, "vocab_size": 6}
ARC = {"seq_len": 900, "vocab_size": 12, "pos_encodings": "rope"}
TRM = {"H_cycles": 3, "H_layers": 0, "L_layers": 2, "hidden_size": 512, "num_heads": 8, "puzzle_emb_ndim": 512}
HRM = {"H_cycles": 2, "L_cycles": 2, "H_layers": 4, "L_layers": 4, "hidden_size": 512, "num_heads": 8}
EQR = {"H_cycles": 3, "H_layers": 0, "hidden_size": 512, "num_heads": 8}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "trm": {
        "sudoku-mlp": TRM | SUDOKU | {"L_cycles": 6, "mlp_t": True, "pos_encodings": "none"},
        "sudoku-attention": TRM | SUDOKU | {"L_cycles": 6, "pos_encodings": "rope"},
        "sudoku-learned": TRM | SUDOKU | {"L_cycles": 4, "pos_encodings": "learned"},
        "maze-attention": TRM | MAZE | {"L_cycles": 4, "pos_encodings": "rope"},
    },
    "hrm": {
        "sudoku": HRM | SUDOKU | {"puzzle_emb_ndim": 512, "pos_encodings": "rope"},
        "sudoku-learned": HRM | SUDOKU | {"puzzle_emb_ndim": 512, "pos_encodings": "learned"},
    },
    "eqr": {
        "sudoku-mlp": EQR | SUDOKU | {"L_cycles": 6, "L_layers": 2, "mlp_t": True, "pos_encodings": "rope"},
        "maze": EQR | MAZE | {"L_cycles": 4, "L_layers": 1, "hidden_size": 128, "pos_encodings": "rope"},
    },
}
ARC_VARIANTS: dict[str, dict[str, Any]] = {
    "trm": TRM | ARC | {"L_cycles": 4},
    "hrm": HRM | ARC | {"puzzle_emb_ndim": 512},
}
"""With a table of identities: they need a data set, which `scripts/check_arc.py` has built."""
CLASSES = {
    "trm": ("models/recursive_reasoning/trm.py", "TinyRecursiveReasoningModel_ACTV1", "recursive_reasoning.trm"),
    "hrm": ("models/hrm/hrm_act_v1.py", "HierarchicalReasoningModel_ACTV1", "hrm.hrm_act_v1"),
    "eqr": ("models/eqr.py", "EqRModel", "eqr"),
}


def stand_in(name: str, **members: Any) -> None:
    """A module of that name where none is installed."""
    try:
        __import__(name)
    except ImportError:
        module = types.ModuleType(name)
        module.__dict__.update(members)
        sys.modules[name] = module


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """FlashAttention's call, `[B, L, H, W]`, by PyTorch."""
    query, key, value = (x.transpose(1, 2) for x in (q, k, v))
    mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
    return mixed.transpose(1, 2).contiguous()


def swap_axes(x: Tensor, pattern: str) -> Tensor:
    """The two patterns that TRM's attention asks of einops."""
    assert pattern in ("B S H D -> B H S D", "B H S D -> B S H D"), pattern
    return x.transpose(1, 2).contiguous()


def family_of(repo: Path) -> str:
    """Which project a checkout holds."""
    found = [family for family, (path, _, _) in CLASSES.items() if (repo / path).is_file()]
    if len(found) != 1:
        raise ValueError(f"peer_repo must be a checkout of TRM, HRM or EqR, got {repo}")
    return found[0]


def sudoku_mlp(repo: Path, **settings: Any) -> tuple[nn.Module, dict[str, Any]]:
    """TRM Sudoku-MLP (D=512, L=97), random weights, and its settings. Raises `ValueError` where `repo` is not TRM's."""
    if (family := family_of(repo)) != "trm":
        raise ValueError(f"peer_repo must be a checkout of TRM, got one of {family}")
    config = SHARED | {"num_puzzle_identifiers": 1} | VARIANTS["trm"]["sudoku-mlp"] | settings
    return official(repo, "trm", config, 0), config


def official(repo: Path, family: str, config: dict[str, Any], seed: int) -> nn.Module:
    """The official model with random weights, heads and prefix included."""
    stand_in("einops", rearrange=swap_axes)
    stand_in("flash_attn", flash_attn_func=attend)
    empty = types.SimpleNamespace(RED="", RESET_ALL="", YELLOW="", BLUE="", GREEN="", CYAN="", MAGENTA="", WHITE="")
    stand_in("colorama", Fore=empty, Style=empty, Back=empty, init=lambda **_: None)
    sys.path.insert(0, str(repo))
    path, kind, _ = CLASSES[family]
    module = __import__(path.removesuffix(".py").replace("/", "."), fromlist=[kind])
    torch.manual_seed(seed)
    model: nn.Module = getattr(module, kind)(config)
    inner: Any = model.inner
    with torch.no_grad():
        inner.q_head.weight.normal_(std=config["hidden_size"] ** -0.5)
        inner.q_head.bias.normal_()
        if hasattr(inner, "puzzle_emb"):
            inner.puzzle_emb.weights.normal_(std=config["hidden_size"] ** -0.5)
    return model.eval()


def imported(family: str, model: nn.Module, config: dict[str, Any], *, data: Path | None = None) -> Model:
    """The model saved as its training saves it (inside its loss head, compiled), imported; `data` is the data set of a
    table of identities."""
    state = {f"_orig_mod.model.{name}": tensor for name, tensor in model.state_dict().items()}
    arch = {"name": f"{CLASSES[family][2]}@{CLASSES[family][1]}", **config}
    with tempfile.TemporaryDirectory() as folder:
        file, settings = Path(folder, "step_1"), Path(folder, "all_config.yaml")
        torch.save({"model": state, "config": {"arch": arch}} if family == "eqr" else state, file)
        settings.write_text(yaml.safe_dump({"arch": arch}))
        return import_checkpoint(family, file, settings=settings, data=data).model


def official_steps(model: nn.Module, puzzles: Tensor, steps: int) -> None:
    """Supervision steps of the official model's own evaluation loop, from its initial carry: TRM and HRM."""
    whole: Any = model
    batch = {"inputs": puzzles, "puzzle_identifiers": torch.zeros(len(puzzles), dtype=torch.long)}
    with torch.inference_mode():
        carry = whole.initial_carry(batch)
        for _ in range(steps):
            carry, _ = whole(carry=carry, batch=batch)
