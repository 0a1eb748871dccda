"""Training on several devices: every process (rank) advances its share of the slots, and gradients are averaged.

`torchrun --nproc-per-node 8 -m gram train ...` starts the ranks. Each rank draws the same puzzles for all slots and
keeps its own share. So the gradient of the slots does not depend on the number of ranks, up to the rounding of sums.
The heads learn from rollouts that each rank draws for itself. A run may be continued with another number of ranks. All
ranks agree on what decides its course (the clock, a signal) after every optimiser step.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed
from torch import Tensor

PATIENCE = timedelta(hours=2)
"""How long a rank waits for the others: the first one evaluates alone."""


class Ranks:
    """The processes of a run, seen from one of them. The default is a run of one process."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def share(self, count: int, name: str) -> slice:
        """This rank's part of `count` things. Raises `ValueError` where they cannot be shared evenly."""
        if count % self.size:
            raise ValueError(f"{name} must be a multiple of the {self.size} processes, got {count}")
        own = count // self.size
        return slice(self.rank * own, (self.rank + 1) * own)

    def average(self, tensor: Tensor) -> Tensor:
        """The mean over ranks, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)
            tensor /= self.size
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """The ranks' tensors of equal shape one after another, along the first axis."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        torch.distributed.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    def all_reduce(self, elapsed_s: float, is_stopping: bool, device: torch.device) -> tuple[float, bool]:
        """The first rank's clock, and whether any rank was asked to stop."""
        if self.size == 1:
            return elapsed_s, is_stopping
        said = torch.tensor([[elapsed_s, float(is_stopping)]], dtype=torch.float64, device=device)
        everyone = self.gather(said)
        return float(everyone[0, 0]), bool(everyone[:, 1].any())

    def barrier(self) -> None:
        """Waits until all ranks have reached this point."""
        if self.size > 1:
            torch.distributed.barrier()

    def exit(self) -> None:
        """Ends this process with exit code 0 where it is one of several.

        PyTorch's threads may use the interpreter while it shuts down. That aborted a rank whose work was done in one of
        thirteen runs on busy cores.
        """
        if self.size > 1:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """This process among those that torchrun started; alone where it was started otherwise."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield Ranks()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    ranks = Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size())
    try:
        yield ranks
        # No rank closes its connections while another still works.
        ranks.barrier()
    finally:
        torch.distributed.destroy_process_group()


def local_device(device: torch.device) -> torch.device:
    """The GPU of this process among those of its machine, where there are several processes."""
    rank = os.environ.get("LOCAL_RANK")
    return torch.device("cuda", int(rank)) if device.type == "cuda" and device.index is None and rank else device
