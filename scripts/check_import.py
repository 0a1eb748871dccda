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
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gram.evals.benchmarks.peers import SHARED, VARIANTS, family_of, imported, official
from gram.kernels.philox import NoiseKey, Site, noise
from gram.kernels.reference import Step
from gram.kernels.spec import Injection
from gram.model import Model

LIMIT = 1e-4


def run(model: nn.Module, ours: Model, family: str, config: dict[str, Any], steps: int) -> dict[str, Any]:
    """Both models on the same puzzles; the largest differences step by step."""
    generator = torch.Generator().manual_seed(1)
    rows = config["batch_size"]
    puzzles = torch.randint(1, config["vocab_size"], (rows, config["seq_len"]), generator=generator)
    batch = {"inputs": puzzles, "puzzle_identifiers": torch.zeros(rows, dtype=torch.long)}
    key = NoiseKey(0, torch.arange(rows), *torch.zeros(2, rows, dtype=torch.long))
    inner: Any = model.inner
    injection = Injection(injector="none")
    if family == "eqr":
        h, l = ours.random_state(key)
        injection = Injection(injector="path", sigma=ours.config.path_noise)
        torch.randn_like = our_normals(ours, key)  # type: ignore[assignment]
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
        step = ours.step(h, l, e_x, key._replace(step=torch.full((rows,), index)), injection=injection)
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


def our_normals(ours: Model, key: NoiseKey) -> Callable[[Tensor], Tensor]:
    """What stands for `torch.randn_like` in EqR's code: the noise of our core calls, in their order."""
    calls = 0

    def normals(like: Tensor) -> Tensor:
        nonlocal calls
        at = torch.full((like.shape[0],), calls)
        calls += 1
        return noise((ours.spec.length, ours.spec.dim), key, Site.PATH, at).to(like.dtype)

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
    try:
        family = family_of(options.peer_repo)
    except ValueError as error:
        raise SystemExit(str(error)) from None
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
