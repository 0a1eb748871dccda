"""A program for torchrun: two ranks advance a tiny run and write down their gradients. Not a test itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from gram.training.data_parallel import joined
from gram.training.run import train
from gram.training.trainer import Trainer
from tests.unit.test_training import recipe

CPU = torch.device("cpu")
STEPS = 3


def gradients(trainer: Trainer) -> list[torch.Tensor]:
    """What AdamW is given at each of `STEPS` optimiser steps."""
    found = []
    for _ in range(STEPS):
        trainer.advance()
        assert trainer.flat.master.grad is not None
        found.append(trainer.flat.master.grad.clone())
    return found


# A clip that never acts: heads learn from rollouts that differ with the number of ranks.
COMMON = {"clip": 1e9, "batch": 8, "rollout_slots": 4}
CASES: dict[str, dict[str, object]] = {
    "plain": {},
    "several-transitions": {"model": {"transitions": 2, "noise_order": "after"}},
    "best-of-many": {"best_of": 2},
    "random-start": {"model": {"guidance": "none", "initial_std": 1.0, "path_noise": 0.01, "path_keep": 0.05}},
    "prior-share": {"prior_share": 0.5},
    "identities": {"model": {"registers": 2, "identities": 3, "identity_dim": 20}},
    "unconditional": {"prior_share": 0.5, "model": {"task": "sudoku4", "vocabulary": 6, "is_conditional": False}},
}
"""Settings that draw noise in every way, and in several transitions; a table that both ranks learn alike."""


def main() -> None:
    """`two_ranks.py FOLDER`: writes the gradients of every case there, then continues FOLDER/run to 20 steps."""
    folder = Path(sys.argv[1])
    with joined(CPU) as ranks:
        assert ranks.size == 2
        for name, case in CASES.items():
            made = recipe(**COMMON, **case)
            trainer = Trainer(made, folder / name, device=CPU, dtype=torch.float32, is_compiled=False, ranks=ranks)
            torch.save(gradients(trainer), folder / f"{name}-{ranks.rank}.pt")
        made = recipe(steps=20, checkpoint_every_steps=1)
        card = train(made, folder / "run", dtype=torch.float32, is_compiled=False, ranks=ranks)
        print(json.dumps({"rank": ranks.rank, "steps": card["optimiser_steps"]}), flush=True)
    ranks.exit()


if __name__ == "__main__":
    main()
