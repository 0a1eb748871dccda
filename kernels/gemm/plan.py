"""A supervision step of kernel C as a list of operations on buffers of its own: matrix products and launches.

Model, launch shape and kind of noise determine the list; the buffers hold what changes from step to step (states, keys,
scales). So the list can be captured once (`path.py`), counted without running (`cost.py`) and compiled without a GPU
(`resources.py`); on the meta device nothing is allocated.

Shapes: `B` trajectories of the launch, `L` tokens (registers included), `D` channels, `F` hidden units.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from gram.kernels.fused.pack import TOKEN_TILE, next_power_of_2
from gram.kernels.fused.path import head_width, noise_constants
from gram.kernels.gemm import kernel as bodies
from gram.kernels.gemm.pack import Matrices
from gram.kernels.spec import Injection, Spec

WARPS = 4
PRODUCT_WARPS = 8
"""Of the token mixer, whose programs hold `128 x 128` sums."""
ROW_ELEMENTS = 2048
"""Numbers of a state that one program of the row kernels holds."""
NO_SUM, HIGH_SUM, LOW_SUM = (int(kind.value) for kind in (bodies.NO_SUM, bodies.HIGH_SUM, bodies.LOW_SUM))
IN_X, IN_H, IN_L = 0, 1, 2
"""Where a block's result goes: on to the next block, or into a state."""


class Product(NamedTuple):
    """`out = left right`, or `out += left right`; with three dimensions one product a trajectory."""

    left: Tensor
    right: Tensor
    out: Tensor
    is_added: bool

    def run(self) -> None:
        """Multiplies with the device's own library."""
        if self.out.dim() == 3:
            left = self.left.expand(len(self.out), -1, -1)
            if self.is_added:
                self.out.baddbmm_(left, self.right)
            else:
                torch.bmm(left, self.right, out=self.out)
        elif self.is_added:
            self.out.addmm_(self.left, self.right)
        else:
            torch.mm(self.left, self.right, out=self.out)

    def moved(self) -> list[Tensor]:
        """What it reads and writes: an operand once, a sum twice."""
        return [self.left, self.right, self.out] + [self.out] * self.is_added


class KernelLaunch(NamedTuple):
    """One launch of a Triton kernel."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    constants: dict[str, Any]
    touched: tuple[Tensor, ...]
    """What it reads and writes, one entry each time; keys and scales left out."""
    weights: tuple[Tensor, ...] = ()
    warps: int = WARPS

    def run(self) -> None:
        """Launches on the current stream."""
        self.kernel[self.grid](**self.arguments, **self.constants, num_warps=self.warps)

    def moved(self) -> list[Tensor]:
        """What it reads and writes."""
        return [*self.touched, *self.weights]


class StepPlan:
    """Operations of a supervision step of `count` trajectories, and its buffers, which start unfilled."""

    def __init__(
        self,
        matrices: Matrices,
        spec: Spec,
        count: int,
        injection: Injection,
        *,
        has_active: bool,
        device: torch.device,
    ) -> None:
        # The matrices hold the plan, so the plan holds their layers alone: a cycle would keep a GPU's memory.
        self.layers, self.spec, self.count = matrices.layers, spec, count
        self.rows = count * spec.length
        self.kind = noise_constants(spec, injection)
        self.operations: list[Product | KernelLaunch] = []
        layers, dim, dtype = self.layers, spec.dim, matrices.dtype
        self.hidden = layers["low.0.channel.down"].shape[1]
        self.has_tiles = "low.0.mixer.tiles" in layers
        self.mixer_hidden = layers["low.0.mixer.down"].shape[1] if "low.0.mixer.down" in layers else 0
        self.guidance_hidden = layers["prior.down"].shape[1] if spec.guidance != "none" else 0
        self.head_hidden = len(layers["heads.gate_up"]) // 4 if "heads.gate_up" in layers else 0
        wide = 2 * max(self.hidden, self.guidance_hidden, 2 * self.head_hidden, dim)
        narrow = max(self.hidden, self.guidance_hidden)
        if spec.mixer == "token":
            mixed = -(-self.mixer_hidden * dim // spec.length)
            wide, narrow = max(wide, 2 * mixed), max(narrow, mixed)  # no more where the mixer is one kernel
        else:
            wide, narrow = max(wide, 3 * dim), max(narrow, dim)

        def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        self.state, self.e_x = empty(2, count, spec.length, dim), empty(count, spec.length, dim)
        """`h` and `l`, given, then made in place; the embedding."""
        self.x, self.norm = empty(self.rows, dim), empty(self.rows, dtype=torch.float32)
        self.wide, self.narrow = empty(self.rows * wide), empty(self.rows * narrow)
        self.puzzle_hash, self.trajectory, self.step = (empty(count, dtype=torch.int64) for _ in range(3))
        self.active = empty(count, dtype=torch.int8) if has_active else None
        """Rows to advance; None is all."""
        self.key, self.scale = empty(2, dtype=torch.int64), empty(2, dtype=torch.float32)
        """Both halves of the seed; temperature and sigma."""
        self.numbers: tuple[float, ...] = ()
        """What `key` and `scale` hold, as `write_numbers` has written them."""
        self.score = empty(2, count, dtype=torch.float32)
        """Halt logit and LPRM."""
        self.buffers = {
            "x_ptr": self.x,
            "norm_ptr": self.norm,
            "state_ptr": self.state,
            "e_ptr": self.e_x,
            "hash_ptr": self.puzzle_hash,
            "trajectory_ptr": self.trajectory,
            "step_ptr": self.step,
            "active_ptr": self.active,
            "key_ptr": self.key,
            "scale_ptr": self.scale,
            "score_ptr": self.score,
            "cos_ptr": matrices.cos,
            "sin_ptr": matrices.sin,
            "vector_ptr": matrices.vector,
            "rows": self.rows,
            "count": count,
        }
        padded = next_power_of_2(dim)
        self.fixed = self.kind | {
            "L": spec.length,
            "D": dim,
            "DP": padded,
            "R": max(1, ROW_ELEMENTS // padded),
            "T": spec.transitions,
            "CALLS": spec.transitions * (spec.low_level_updates + 1),
            "EPS": spec.norm_eps,
            "IS_SCALED": spec.mixer_norm == "columns",
            "IS_ROTARY": spec.is_rotary and spec.mixer == "attention",
            "HAS_ACTIVE": has_active,
            "W": head_width(spec),
        }
        self._lay_out()

    def given(self) -> list[Tensor]:
        """What a step is given, in the order `h, l, e_x`, hashes, trajectories, steps and active rows."""
        rows = [self.puzzle_hash, self.trajectory, self.step]
        return [*self.state, self.e_x, *rows, *([] if self.active is None else [self.active])]

    def write_numbers(self, seed: int, temperature: float, sigma: float) -> None:
        """Writes seed and scales into their buffers where they have changed: filled on the device, not copied to it."""
        numbers = (seed & 0xFFFFFFFF, seed >> 32, temperature, sigma)
        if numbers != self.numbers:
            for cell, number in zip((*self.key, *self.scale), numbers, strict=True):
                cell.fill_(number)
            self.numbers = numbers

    def run(self) -> None:
        """Runs every operation in order."""
        for operation in self.operations:
            operation.run()

    @property
    def h_rows(self) -> Tensor:
        return self.state[0].view(self.rows, self.spec.dim)

    def in_wide(self, *shape: int) -> Tensor:
        return self.wide[: prod(shape)].view(shape)

    def in_narrow(self, *shape: int) -> Tensor:
        return self.narrow[: prod(shape)].view(shape)

    def product(self, left: Tensor, right: Tensor, out: Tensor, *, is_added: bool = False) -> None:
        self.operations.append(Product(left, right, out, is_added))

    def launch(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        touched: Sequence[Tensor],
        weights: tuple[Tensor, ...] = (),
        warps: int = WARPS,
        **own: Any,
    ) -> None:
        """Takes what the kernel names from `own`, the buffers and the constants; those are its upper-case names."""
        everything = self.buffers | self.fixed | own
        values = {name: everything[name] for name in kernel.arg_names}
        constants = {name: value for name, value in values.items() if name.isupper()}
        arguments = {name: value for name, value in values.items() if not name.isupper()}
        self.operations.append(KernelLaunch(kernel, grid, arguments, constants, tuple(touched), weights, warps))

    def by_rows(self, kernel: Any, touched: Sequence[Tensor], **own: Any) -> None:
        self.launch(kernel, (-(-self.rows // self.fixed["R"]),), touched, **own)

    def gate(self, wide: Tensor, act: Tensor, groups: int) -> None:
        size = act.numel() // groups
        tile = min(1024, next_power_of_2(size))
        grid = (groups, -(-size // tile))
        self.launch(bodies.gate_kernel, grid, (wide, act), wide_ptr=wide, act_ptr=act, N=size, TILE=tile)

    def mix(self, name: str) -> None:
        """`x += mixer(x)`, normed where the norm runs over tokens."""
        spec, layers = self.spec, self.layers
        if self.has_tiles:
            self.mix_tiles(layers[name + "tiles"])
            return
        if spec.mixer == "token":
            x = self.x.view(self.count, spec.length, spec.dim)
            wide = self.in_wide(self.count, 2 * self.mixer_hidden, spec.dim)
            act = self.in_narrow(self.count, self.mixer_hidden, spec.dim)
            self.product(layers[name + "gate_up"].T, x, wide)
            self.gate(wide, act, self.count)
            self.product(layers[name + "down"], act, x, is_added=True)
        else:
            qkv, mixed = self.in_wide(self.rows, 3 * spec.dim), self.in_narrow(self.rows, spec.dim)
            self.product(self.x, layers[name + "qkv"].T, qkv)
            queries = min(64, max(16, next_power_of_2(spec.length)))
            grid = (self.count, spec.heads, -(-spec.length // queries))
            self.launch(
                bodies.attention_kernel, grid, (qkv, mixed), qkv_ptr=qkv, mixed_ptr=mixed, BM=queries, BN=queries
            )
            self.product(mixed, layers[name + "out"].T, self.x, is_added=True)
        if spec.mixer_norm == "tokens":
            padded = next_power_of_2(spec.length)
            channels = min(next_power_of_2(spec.dim), max(8, 4096 // padded))
            by_channels = (self.count, -(-spec.dim // channels))
            self.launch(bodies.token_norm_kernel, by_channels, (self.x, self.x), LP=padded, CT=channels)

    def mix_tiles(self, tiles: Tensor) -> None:
        """A token mixer in one launch."""
        channels = min(128, max(16, self.fixed["DP"]))
        own = {"tiles": TensorDescriptor.from_tensor(tiles, [TOKEN_TILE, tiles.shape[1]]), "TT": TOKEN_TILE}
        own |= {"HM": len(tiles) // 3, "LP": tiles.shape[1], "CT": channels}
        grid = (self.count, -(-self.spec.dim // channels))
        self.launch(bodies.token_mix_kernel, grid, (self.x, self.x), (tiles,), PRODUCT_WARPS, **own)

    def swiglu(self, name: str) -> None:
        """`x += swiglu(norm(x)) / s`, with `s` kept in `norm`; under a norm over tokens `x += swiglu(x)`."""
        layers = self.layers
        wide, act = self.in_wide(self.rows, 2 * self.hidden), self.in_narrow(self.rows, self.hidden)
        self.product(self.x, layers[name + "gate_up"].T, wide)
        if self.fixed["IS_SCALED"]:
            own = {"wide_ptr": wide, "act_ptr": act, "F": self.hidden, "TILE": min(512, next_power_of_2(self.hidden))}
            self.by_rows(bodies.scaled_gate_kernel, (self.x, wide, act, self.norm), **own)
        else:
            self.gate(wide, act, self.rows)
        self.product(act, layers[name + "down"].T, self.x, is_added=True)

    def damp(self, place: int, sums: int, call: int) -> None:
        """Norms `x` into its place, and sums for the next core call."""
        touched = [self.x] + [self.norm] * self.fixed["IS_SCALED"]
        kept = {}
        if place == IN_X:
            touched += [self.x]
            kept = {"KEEP": 0.0, "HAS_PATH": False}
        else:
            touched += [self.state[place - 1]] * (1 + (self.kind["KEEP"] > 0)) + self.summed(sums, self.state[0])
        self.by_rows(bodies.damp_kernel, touched, PLACE=place, SUMS=sums, call=call, **kept)

    def summed(self, sums: int, *read: Tensor) -> list[Tensor]:
        """What a sum for the next core call moves beside what is at hand."""
        return [*read, *([self.e_x] if sums == LOW_SUM else []), self.x] if sums != NO_SUM else []

    def core(self, name: str, place: int, sums: int, call: int) -> None:
        """One core call on the sum in `x`."""
        for block in range(self.spec.blocks):
            self.mix(f"{name}.{block}.mixer.")
            self.swiglu(f"{name}.{block}.channel.")
            is_last = block == self.spec.blocks - 1
            self.damp(place if is_last else IN_X, sums if is_last else NO_SUM, call)

    def guide(self, index: int, sums: int, *, has_mean: bool, has_normal: bool) -> None:
        """The prior's noise on `h`, and the sum for the next core call."""
        layers, dim = self.layers, self.spec.dim
        wide, act = self.in_wide(self.rows, 2 * self.guidance_hidden), self.in_narrow(self.rows, self.guidance_hidden)
        self.product(self.h_rows, layers["prior.gate_up"].T, wide)
        self.gate(wide, act, self.rows)
        down = layers["prior.down"][0 if has_mean else dim : 2 * dim if has_normal else dim]
        gaussian = self.in_wide(self.rows, len(down))
        self.product(act, down.T, gaussian)
        touched = [gaussian, self.state[0], self.state[0], *self.summed(sums, self.state[1])]
        own = {"prior_ptr": gaussian, "index": index, "SUMS": sums, "HAS_MEAN": has_mean, "HAS_NORMAL": has_normal}
        self.by_rows(bodies.guide_kernel, touched, **own)

    def read_out(self) -> None:
        """Halt logit and LPRM."""
        spec = self.spec
        tokens = spec.length if spec.head_readout == "mean" else 1
        read, size, stride = self.state[0], self.head_hidden or spec.dim, spec.length * spec.dim
        if self.head_hidden:
            heads = self.layers["heads.gate_up"]
            states = self.h_rows if tokens == spec.length else self.state[0][:, 0]
            read, stride = self.in_wide(len(states), len(heads)), tokens * len(heads)
            self.product(states, heads.T, read)
        touched = (read if self.head_hidden else read[:, :tokens],) * 2 + (self.score,)
        padded = next_power_of_2(size)
        own: dict[str, Any] = {"read": tokens, "N": size, "NP": padded, "R": max(1, ROW_ELEMENTS // padded)}
        own |= {"read_ptr": read, "read_stride": stride, "HAS_HIDDEN": self.head_hidden > 0}
        self.launch(bodies.readout_kernel, (self.count,), touched, **own)

    def _lay_out(self) -> None:
        """Appends the operations of the whole step."""
        spec, updates = self.spec, self.spec.low_level_updates
        has_mean = spec.guidance in ("full", "mean")
        has_normal = self.kind["IS_WARM"] and spec.guidance in ("full", "noise")
        is_guided = has_mean or has_normal
        is_before = is_guided and spec.noise_order == "before"
        is_after = is_guided and not is_before
        first = LOW_SUM if updates else HIGH_SUM
        begun = NO_SUM if is_before else first
        perturbed = [state for state, name in zip(self.state, "HL", strict=True) if self.kind["PERTURBS_" + name]]
        if perturbed or begun:
            summed = self.summed(begun)
            self.by_rows(bodies.begin_kernel, [self.state, *perturbed, *summed], SUMS=begun)
        for index in range(spec.transitions):
            is_last = index == spec.transitions - 1
            if is_before:
                self.guide(index, first, has_mean=has_mean, has_normal=has_normal)
            for call in range(updates):
                sums = LOW_SUM if call < updates - 1 else HIGH_SUM
                self.core("low", IN_L, sums, index * (updates + 1) + call)
            sums = NO_SUM if is_last or is_guided else first
            self.core("low" if spec.is_core_shared else "high", IN_H, sums, index * (updates + 1) + updates)
            if is_after:
                self.guide(index, NO_SUM if is_last else first, has_mean=has_mean, has_normal=has_normal)
        self.read_out()
