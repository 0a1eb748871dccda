"""The noise contract: which random number belongs to which element of which trajectory.

Philox4x32-10 (Salmon et al. 2011, Random123). Key: the seed's two 32-bit halves. Counter, four 32-bit words:

    c0  element block: token index (registers first) * D/4 + channel/4; one call gives four adjacent channels
    c1  index of the transition or core call (low 24 bits, noise-free ones counted) and site (high 8 bits)
    c2  trajectory id
    c3  hash of the task and the puzzle's tokens

So noise depends on (seed, puzzle, trajectory, transition, site) and on nothing else: not on batch, launch, worker or
retry. The integers are exact on every path; normals are exact on one path and within 1e-5 between paths.

Shapes: `B` trajectories, `L` tokens (registers included), `D` channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF
_TWO_PI = 6.283185307179586
COMPILE_FROM_ELEMENTS = 1 << 31
"""Normals asked for in one process from which compiling the integers pays (about 20 s of eager work, as much as the
compiler takes)."""


class Site(IntEnum):
    """Where noise enters; the high 8 bits of counter word c1."""

    PRIOR = 0
    POSTERIOR = 1
    INITIAL_STATE = 2
    FIXED_SCALE_LOW = 3
    FIXED_SCALE_HIGH = 4
    PATH = 5
    RESAMPLING = 6
    VIEW = 7
    COMMITMENT = 8


class NoiseKey(NamedTuple):
    """Names the noise of `B` trajectories at a supervision step, up to site and transition."""

    seed: int
    """In [0, 2^64)."""
    puzzle_hash: Tensor
    """Hash of task and puzzle (`gram/tasks/identity.py`), int64 `[B]`."""
    trajectory: Tensor
    """Trajectory ids, int64 `[B]`."""
    step: Tensor
    """Supervision steps taken so far, int64 `[B]`."""

    @classmethod
    def of_arrays(
        cls,
        seed: int,
        puzzle_hash: NDArray[np.int64],
        trajectory: NDArray[np.int64],
        step: NDArray[np.int64],
        device: torch.device,
    ) -> NoiseKey:
        """The key of arrays `[B]`, moved to a device."""
        return cls(seed, *(torch.from_numpy(array).to(device) for array in (puzzle_hash, trajectory, step)))

    def at(self, rows: Tensor | slice) -> NoiseKey:
        """The key of some of the trajectories."""
        return NoiseKey(self.seed, self.puzzle_hash[rows], self.trajectory[rows], self.step[rows])


def philox4x32(c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, k0: Tensor, k1: Tensor) -> tuple[Tensor, ...]:
    """Ten rounds of Philox4x32.

    All arguments are int64 tensors holding 32-bit unsigned values and broadcast together; so are the four words
    returned. int64 products wrap, which leaves both 32-bit halves right.
    """
    for _ in range(10):
        product0, product1 = c0 * _M0, c2 * _M1
        c0 = ((product1 >> 32) & _MASK) ^ c1 ^ k0
        c2 = ((product0 >> 32) & _MASK) ^ c3 ^ k1
        c1, c3 = product1 & _MASK, product0 & _MASK
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def _bits(elements: int, k0: Tensor, k1: Tensor, c1_B: Tensor, c2_B: Tensor, c3_B: Tensor) -> Tensor:
    """23 random bits per element: int32 `[B, elements]`, four adjacent elements from one counter."""
    block = torch.arange(elements // 4, dtype=torch.int64, device=c1_B.device)
    words = philox4x32(block[None, :], c1_B[:, None], c2_B[:, None], c3_B[:, None], k0, k1)
    return torch.stack([bits_of(word) for word in words], dim=-1).flatten(1)


@cache
def _compiled_bits() -> Callable[..., Tensor]:
    return torch.compile(_bits, dynamic=True)


class Drawn:
    """What the process has drawn so far. It decides how integers are computed, never their values."""

    elements = 0
    is_compiled = False
    """How they were computed last."""
    is_held = False

    @classmethod
    def is_repaid(cls) -> bool:
        """Whether so many were drawn that compiling pays."""
        return cls.elements >= COMPILE_FROM_ELEMENTS

    @classmethod
    @contextmanager
    def held(cls) -> Iterator[None]:
        """Integers are computed throughout as they would be at its beginning: what is called once to make ready is then
        what a CUDA graph captures, in which nothing may be compiled."""
        cls.is_compiled, cls.is_held = cls.is_repaid(), True
        try:
            yield
        finally:
            cls.is_held = False


def random_bits(elements: int, seed: int, c1_B: Tensor, c2_B: Tensor, c3_B: Tensor) -> Tensor:
    """23 random bits for each of `elements` adjacent channels of `B` trajectories, int32 `[B, elements]`.

    Counter words `c1_B, c2_B, c3_B` are int64 `[B]`. Compiled once the process has asked for enough to repay it.
    """
    # Filled on the device: a tensor made of a number is copied there, which waits for all work before it.
    k0, k1 = (torch.full((), half, dtype=torch.int64, device=c1_B.device) for half in (seed & _MASK, seed >> 32))
    if torch.compiler.is_compiling():
        return _bits(elements, k0, k1, c1_B, c2_B, c3_B)
    Drawn.elements += elements * c1_B.shape[0]
    if not Drawn.is_held:
        Drawn.is_compiled = Drawn.is_repaid()
    run = _compiled_bits() if Drawn.is_compiled else _bits
    return run(elements, k0, k1, c1_B, c2_B, c3_B)


def random_words(
    count: int, seed: int, puzzle_hash: NDArray[np.int64], trajectory: NDArray[np.int64], site: Site
) -> NDArray[np.uint32]:
    """`count` 32-bit words of a site that no transition has a part in, for `B` trajectories of puzzles of these hashes
    `[B]`: `[B, count]`, on the CPU."""
    block = torch.arange(-(-count // 4), dtype=torch.int64)[None, :]
    word1 = counter_word1(torch.zeros(1, dtype=torch.int64), site)
    c2_B, c3_B = (torch.from_numpy(array)[:, None] for array in (trajectory, puzzle_hash))
    k0, k1 = (torch.tensor(half, dtype=torch.int64) for half in (seed & _MASK, seed >> 32))
    words = torch.stack(philox4x32(block, word1, c2_B, c3_B, k0, k1), dim=-1).flatten(1)
    return words[:, :count].numpy().astype(np.uint32)


def bits_of(word: Tensor) -> Tensor:
    """The 23 bits that are used of a 32-bit word (int64), int32."""
    return (word >> 9).to(torch.int32)


def box_muller(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two standard normals, fp32, from two 23-bit integers, elementwise.

    `(bits + 0.5) / 2^23` is exact in fp32 and never 0 or 1, so the largest normal is 5.77.
    """
    radius = torch.sqrt(-2.0 * torch.log((first.to(torch.float32) + 0.5) * 2.0**-23))
    angle = (second.to(torch.float32) + 0.5) * 2.0**-23 * _TWO_PI
    return radius * torch.cos(angle), radius * torch.sin(angle)


def normals_from_bits(bits: Tensor) -> Tensor:
    """Standard normals, fp32, from 23-bit integers `[B, 4n]` by Box-Muller on adjacent pairs."""
    first, second = bits.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack(box_muller(first, second), dim=-1).flatten(-2)


def counter_word1(transition_B: Tensor, site: Site) -> Tensor:
    """Counter word c1 from transition indices `[B]` (int64, below 2^24) and a site."""
    return (transition_B & 0xFFFFFF) | (int(site) << 24)


def noise(shape: tuple[int, int], key: NoiseKey, site: Site, transition_B: Tensor) -> Tensor:
    """Standard normals `[B, L, D]`, fp32, for `shape = (L, D)`, at transitions (or core calls) `[B]` of a site."""
    tokens, dim = shape
    bits = random_bits(tokens * dim, key.seed, counter_word1(transition_B, site), key.trajectory, key.puzzle_hash)
    return normals_from_bits(bits).view(-1, tokens, dim)
