"""Holds an imported model against the official code: `python scripts/check_import.py --peer-repo DIR [--variant NAME]`.

DIR is your checkout of TRM (SamsungSAILMontreal/TinyRecursiveModels), HRM (sapientinc/HRM) or EqR (locuslab/EqR). Its
model is built in fp32 with random weights, saved as its training does, imported, and both run side by side; the largest
difference of the logits after 1 and after `--steps` supervision steps is printed as JSON. Exits 1 where step 1, or any
step that starts from the same state, differs by 1e-4 or more. Untrained attention is chaotic: rounding grows step by
step until the runs part, as the official model's own does from a start moved by 1e-6 (printed beside). EqR's noise is
drawn from our generator for both, so its noisy steps are compared too. Packages that the models import but a CPU does
not need are replaced.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from gram.importers import import_checkpoint
from gram.kernels.philox import Site, noise
from gram.kernels.reference import Injection, Step
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
CLASSES = {
    "trm": ("models/recursive_reasoning/trm.py", "TinyRecursiveReasoningModel_ACTV1", "recursive_reasoning.trm"),
    "hrm": ("models/hrm/hrm_act_v1.py", "HierarchicalReasoningModel_ACTV1", "hrm.hrm_act_v1"),
    "eqr": ("models/eqr.py", "EqRModel", "eqr"),
}
LIMIT = 1e-4


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
    moved = (x.transpose(1, 2) for x in (q, k, v))
    return nn.functional.scaled_dot_product_attention(*moved, is_causal=causal).transpose(1, 2).contiguous()


def swap_axes(x: Tensor, pattern: str) -> Tensor:
    """The two patterns that TRM's attention asks of einops."""
    assert pattern in ("B S H D -> B H S D", "B H S D -> B S H D"), pattern
    return x.transpose(1, 2).contiguous()


def family_of(repo: Path) -> str:
    """Which project a checkout holds."""
    found = [family for family, (path, _, _) in CLASSES.items() if (repo / path).is_file()]
    if len(found) != 1:
        raise SystemExit(f"--peer-repo must be a checkout of TRM, HRM or EqR, got {repo}")
    return found[0]


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
    with torch.no_grad():
        model.inner.q_head.weight.normal_(std=config["hidden_size"] ** -0.5)
        model.inner.q_head.bias.normal_()
        if hasattr(model.inner, "puzzle_emb"):
            model.inner.puzzle_emb.weights.normal_(std=config["hidden_size"] ** -0.5)
    return model.eval()


def imported(family: str, model: nn.Module, config: dict[str, Any]) -> Model:
    """The model saved as its training saves it (inside its loss head, compiled), imported."""
    state = {f"_orig_mod.model.{name}": tensor for name, tensor in model.state_dict().items()}
    arch = {"name": f"{CLASSES[family][2]}@{CLASSES[family][1]}", **config}
    with tempfile.TemporaryDirectory() as folder:
        file, settings = Path(folder, "step_1"), Path(folder, "all_config.yaml")
        torch.save({"model": state, "config": {"arch": arch}} if family == "eqr" else state, file)
        settings.write_text(yaml.safe_dump({"arch": arch}))
        return import_checkpoint(family, file, settings=settings).model


def run(model: nn.Module, ours: Model, family: str, config: dict[str, Any], steps: int) -> dict[str, Any]:
    """Both models on the same puzzles; the largest differences step by step."""
    generator = torch.Generator().manual_seed(1)
    rows = config["batch_size"]
    puzzles = torch.randint(1, config["vocab_size"], (rows, config["seq_len"]), generator=generator)
    batch = {"inputs": puzzles, "puzzle_identifiers": torch.zeros(rows, dtype=torch.long)}
    keys = {"seed": 0, "puzzle_hash_B": torch.arange(rows), "trajectory_B": torch.zeros(rows, dtype=torch.long)}
    inner: Any = model.inner
    injection = Injection(injector="none")
    if family == "eqr":
        h, l = ours.random_state(**keys)
        injection = Injection(injector="path", sigma=ours.config.path_noise)
        torch.randn_like = our_normals(ours, keys)  # type: ignore[assignment]
    else:
        h, l = ours.initial_state(rows)
    carry = inner.empty_carry(rows)
    if family == "eqr":
        carry.z_H, carry.z_L = h.clone(), l.clone()
    else:
        carry = inner.reset_carry(torch.ones(rows, dtype=torch.bool), carry)
    moved = copy.copy(carry)
    moved.z_H = carry.z_H * (1 + 1e-6 * torch.randn(carry.z_H.shape, generator=generator))
    e_x = ours.embed(puzzles)
    found: dict[str, list[float]] = {"logits": [], "halt": [], "same_state": [], "moved": [], "size": []}

    def advance(h: Tensor, l: Tensor, index: int) -> tuple[Step, Tensor]:
        step = ours.step(h, l, e_x, step_B=torch.full((rows,), index), injection=injection, **keys)
        return step, ours.decode(step.h)

    for index in range(steps):
        _, logits_of_theirs = advance(carry.z_H, carry.z_L, index)
        step, logits = advance(h, l, index)
        h, l = step.h, step.l
        carry, theirs, q = inner(carry, batch)
        if family != "eqr":
            moved, theirs_moved, _ = inner(moved, batch)
            found["moved"].append(largest(theirs - theirs_moved))
        found["logits"].append(largest(theirs - logits))
        found["same_state"].append(largest(theirs - logits_of_theirs))
        found["halt"].append(largest((q[0] if isinstance(q, tuple) else q) - step.halt))
        found["size"].append(largest(theirs))
    return {
        "after_1": found["logits"][0],
        f"after_{steps}": found["logits"][-1],
        "any_step_from_the_same_state": max(found["same_state"]),
        f"theirs_after_{steps}_from_a_start_moved_by_1e-6": found["moved"][-1] if found["moved"] else None,
        "halt_after_1": found["halt"][0],
        f"halt_after_{steps}": found["halt"][-1],
        "largest_logit": max(found["size"]),
    }


def largest(x: Tensor) -> float:
    """The largest size of any element."""
    return x.abs().max().item()


def our_normals(ours: Model, keys: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    """What stands for `torch.randn_like` in EqR's code: the noise of our core calls, in their order."""
    calls = 0

    def normals(like: Tensor) -> Tensor:
        nonlocal calls
        at = torch.full((like.shape[0],), calls)
        calls += 1
        return noise((ours.spec.tokens, ours.spec.dim), site=Site.PATH, transition_B=at, **keys).to(like.dtype)

    return normals


@torch.no_grad()
def main() -> int:
    """Compares the variants asked for; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-repo", type=Path, required=True, metavar="DIR")
    parser.add_argument("--variant", action="append", metavar="NAME", help="default: all of the project's")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    family = family_of(options.peer_repo)
    rows: list[dict[str, Any]] = []
    drawn = torch.randn_like
    for name in options.variant or VARIANTS[family]:
        config = SHARED | {"num_puzzle_identifiers": 1} | VARIANTS[family][name]
        if family == "eqr":
            config.pop("num_puzzle_identifiers")
        started = time.perf_counter()
        model = official(options.peer_repo, family, config, options.seed)
        found = run(model, imported(family, model, config), family, config, options.steps)
        torch.randn_like = drawn
        rows.append({"family": family, "variant": name, **found, "elapsed_s": round(time.perf_counter() - started, 1)})
        print(json.dumps(rows[-1]), flush=True)
    return int(any(max(row["after_1"], row["any_step_from_the_same_state"]) >= LIMIT for row in rows))


if __name__ == "__main__":
    sys.exit(main())
