"""Compares the memory of demonstrations with `titans-pytorch` 0.5.5: `python scripts/compare_titans.py`.

`NeuralMemory` with a linear model of depth 1, without its norms and residual, writes a random sequence in chunks, the
gradient of each taken at the memory of its start (`batch_size` = `chunk_size`). `gram.kernels.memory.write` gets the
same keys, values and rates; both are in fp32. Its error is the mean over the `d` channels of a value, so the gradient
is scaled by 2 / d. Prints the largest differences, and fails above `LIMIT`. `--write FILE` keeps one case as a
fixture, so that tests need no such package.

Shapes: `B` sequences, `N` chunks of `C` tokens, `d` channels of keys and values alike.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from gram.kernels.memory import write

LIMIT = 1e-5
SEQUENCES, SHAPES = 3, ((1, 4, 8), (3, 4, 8), (5, 16, 32), (8, 16, 16))
"""Sequences, and numbers of chunks, tokens of a chunk and channels of the cases."""


def reference(chunks: int, size: int, dim: int, *, momentum: bool = True) -> dict[str, Tensor]:
    """What the package computes from a random sequence, and what its projections give for it."""
    from titans_pytorch import MemoryMLP, NeuralMemory

    torch.manual_seed(chunks * size + dim)
    model = NeuralMemory(
        dim,
        chunk_size=size,
        batch_size=size,
        model=MemoryMLP(dim, depth=1),
        pre_rmsnorm=False,
        mem_model_norm_add_residual=False,
        momentum=momentum,
        adaptive_step_transform=softplus,
    )
    sequence = torch.randn(SEQUENCES, chunks * size, dim)
    with torch.no_grad():
        _, state = model(sequence, store_seq=sequence)
        pooled = sequence.unflatten(1, (chunks, size)).mean(2)
        keep = model.to_momentum[0](pooled)[..., 0].sigmoid() if momentum else torch.zeros(SEQUENCES, chunks)
        (weight,) = dict(state.states[0]).values()
        return {
            # The package multiplies from the right: x @ weight.
            "start": model.memory_model.weights[0].detach().mT.clone(),
            "keys": model.to_keys(sequence).unflatten(1, (chunks, size)),
            "values": model.to_values(sequence).unflatten(1, (chunks, size)),
            "forgetting": model.to_decay_factor[0](pooled)[..., 0].sigmoid(),
            "keep": keep,
            "steps": softplus(model.to_adaptive_step[0](sequence))[..., 0].unflatten(1, (chunks, size)),
            "memory": weight.mT.clone(),
        }


def difference(case: dict[str, Tensor], kind: str) -> float:
    """Largest difference of our memory from theirs."""
    given = {name: value for name, value in case.items() if name != "memory"}
    return float((write(**given, kind=kind)[:, -1] - case["memory"]).abs().max())


def main() -> None:
    """Prints a line a case."""
    worst = 0.0
    for shape in SHAPES:
        for kind in ("titans", "no-momentum"):
            found = difference(reference(*shape, momentum=kind == "titans"), kind)
            worst = max(worst, found)
            print(f"{shape[0]} chunks of {shape[1]} tokens, d {shape[2]}, {kind}: largest difference {found:.1e}")
    if sys.argv[1:2] == ["--write"]:
        np.savez_compressed(Path(sys.argv[2]), **{name: value.numpy() for name, value in reference(3, 4, 8).items()})
    if worst > LIMIT:
        sys.exit(f"difference must be at most {LIMIT:g}, got {worst:.1e}")


if __name__ == "__main__":
    main()
