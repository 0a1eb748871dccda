"""The CPU's compiled path: a supervision step whose core calls and noise were compiled ahead of time by inductor.

It computes `reference.supervision_step` in another order. Blocks of a fixed number of trajectories go through all
transitions; a block is small enough for the processor's caches, and the last one is padded. So a trajectory's result
depends on neither its launch nor its slot. Inside a block the token axis comes first. Then every product is one plain
matrix product: the token mixer's weights multiply `[L, B*D]` from the left, the others `[L*B, D]` from the right. The
compiler fuses what lies between products. The compiled pieces take weights as arguments, so models of one shape share
them; `cache.py` keeps them between processes.

Shapes: `B` trajectories of a block, `L` tokens (registers included), `D` channels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from gram.kernels import experts, lookup, patterns, reference, relations
from gram.kernels.compiled import cache as compile_cache
from gram.kernels.philox import NoiseKey, Site, bits_of, box_muller, counter_word1, philox4x32
from gram.kernels.reference import Step, Weights, keep_largest, rmsnorm, swiglu
from gram.kernels.spec import LEARNED, MANY_TOKENS, Injection, Spec

BLOCK = 16
"""Trajectories of a block where a state is small; see `block_size`."""

ROUTED = ("router", "gate_up", "down")
"""Weights of the routed experts."""
Piece = Callable[..., Tensor]
Shapes = tuple[tuple[int, ...], ...]


def block_size(spec: Spec) -> int:
    """Trajectories that go through the transitions together: fixed for a model, part of what is compiled."""
    if spec.length > MANY_TOKENS:
        return 4
    return BLOCK if spec.length * spec.dim <= 128 * 128 else 8


def core_weights(weights: Weights, name: str, spec: Spec) -> list[Tensor]:
    """The weights of `f_L` (`name` "low") or `f_H` ("high") in the order in which the compiled core takes them."""
    first, second = ("qkv", "out") if spec.mixer == "attention" else ("gate_up", "down")
    routed = tuple(f"experts.{part}" for part in ROUTED) if spec.experts else ()
    return [
        weights[f"{name}.{block}.{part}"]
        for block in range(spec.blocks)
        for part in (f"mixer.{first}", f"mixer.{second}", "channel.gate_up", "channel.down", *routed)
    ] + ([weights["lookup.taps"]] if spec.lookup else [])


def _mix_tokens(x_LBD: Tensor, gate_up: Tensor, down: Tensor, active_share: float) -> Tensor:
    gate, up = (gate_up @ x_LBD.flatten(1)).chunk(2)
    return (down @ keep_largest(silu(gate) * up, active_share, 0)).view_as(x_LBD)


def _attend(x_LBD: Tensor, qkv: Tensor, out: Tensor, spec: Spec, cos: Tensor, sin: Tensor) -> Tensor:
    """`reference.attend` with the token axis first."""
    width = spec.dim // spec.heads
    query, key, value = linear(x_LBD, qkv).unflatten(-1, (3, spec.heads, width)).permute(2, 1, 3, 0, 4)
    if spec.is_rotary:
        query, key = reference._rotate(query, cos, sin), reference._rotate(key, cos, sin)
    if spec.pattern != "full":
        return linear(patterns.attend(query, key, value, spec).permute(2, 0, 1, 3).flatten(2), out)
    scores = (query * width**-0.5) @ key.transpose(-1, -2)
    attention = torch.softmax(scores.to(torch.float32), dim=-1).to(x_LBD.dtype)
    return linear((attention @ value).permute(2, 0, 1, 3).flatten(2), out)


def _relate(
    x_LBD: Tensor, gate_up: Tensor, down: Tensor, spec: Spec, tables: Tensor, graph: Tensor | None = None
) -> Tensor:
    """`reference.relate` with the token axis first; `graph` is `[L, B, L]`."""
    gate, up = linear(x_LBD, gate_up).chunk(2, dim=-1)
    if not spec.are_sums_products:
        heard = relations.sums(spec.relations, up, axis=0, values=spec.value_tokens)
        return linear(keep_largest(silu(gate) * heard, spec.active_share), down)
    table, sums = iter(tables), []
    for name, part in zip(spec.relations, up.chunk(len(spec.relations), -1), strict=True):
        if name == "graph":
            assert graph is not None
            sums.append((graph.transpose(0, 1) @ part.transpose(0, 1)).transpose(0, 1))
        else:
            sums.append((next(table) @ part.flatten(1)).view_as(part))
    return linear(keep_largest(silu(gate) * torch.cat(sums, -1), spec.active_share), down)


class Core(nn.Module):
    """One core call on the sum of its state and injection, `[L, B, D]` each."""

    tables: Tensor
    cos: Tensor
    sin: Tensor

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        # Made before tracing: the reference caches its tables, and must never cache a trace's placeholders.
        width = spec.dim // spec.heads if spec.mixer == "attention" and spec.is_rotary else 2
        cos, sin = reference.rotary_tables(spec.length, width, spec.rope_theta, torch.device("cpu"))
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)
        is_related = spec.mixer == "relations" and spec.are_sums_products
        named = (relations.fixed(spec.relations), spec.length, torch.device("cpu"))
        self.register_buffer("tables", relations.tables(*named) if is_related else torch.empty(0))

    def forward(self, state: Tensor, injection: Tensor, *weights: Tensor) -> Tensor:
        """The new state; `weights` as `core_weights` orders them, and behind them the puzzles' graphs, or keys and
        values of their n-grams, where there are some."""
        spec = self.spec
        graph = weights[-1] if spec.has_graph else None
        x = state + injection
        each = 4 + (len(ROUTED) if spec.experts else 0)
        if spec.lookup:
            taps, *found = weights[-3:]
            x = lookup.read(x, lookup.LookedUp(*found), taps, spec, axis=0)
        for block in range(spec.blocks):
            own = weights[each * block : each * (block + 1)]
            first, second, gate_up, down = own[:4]
            if spec.mixer == "token":
                mixed = _mix_tokens(x, first, second, spec.active_share)
            elif spec.mixer == "relations":
                mixed = _relate(x, first, second, spec, self.tables.to(x.dtype), graph)
            else:
                mixed = _attend(x, first, second, spec, self.cos, self.sin)
            x = rmsnorm(x + mixed, spec.norm_eps, axis=0 if spec.mixer_norm == "tokens" else -1)
            said = swiglu(x, gate_up, down, spec.active_share)
            if spec.experts:
                routed = experts.route(x.transpose(0, 1), dict(zip(ROUTED, own[4:], strict=True)), "", spec)
                said = said + routed.transpose(0, 1)
            x = rmsnorm(x + said, spec.norm_eps)
        return x


class Normals(nn.Module):
    """Standard normals of the noise contract (`philox.py`) by planes, fp32 `[4, B, L*D/4]`.

    Channel `4c + p` of a row is element `c` of plane `p`: a loop over channels in the contract's own order would not be
    vectorised.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, key: Tensor, c1_B: Tensor, c2_B: Tensor, c3_B: Tensor) -> Tensor:
        """`key [2]` holds the seed's halves, `c1_B, c2_B, c3_B` the counter words; int64 all."""
        block = torch.arange(self.spec.length * self.spec.dim // 4, dtype=torch.int64)
        words = philox4x32(block[None, :], c1_B[:, None], c2_B[:, None], c3_B[:, None], key[0], key[1])
        first, second, third, fourth = (bits_of(word) for word in words)
        return torch.stack([*box_muller(first, second), *box_muller(third, fourth)])


class Guide(nn.Module):
    """The prior's noise on `u [L, B, D]`: `reference.gaussian`, then `reference.add_noise`."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec

    def forward(
        self, u: Tensor, normal: Tensor, noisy_B: Tensor, temperature: Tensor, gate_up: Tensor, down: Tensor
    ) -> Tensor:
        """`u` with noise in the rows where `noisy_B`."""
        weights = {"prior.gate_up": gate_up, "prior.down": down}
        mean, log_sigma = reference.gaussian(weights, "prior", u, self.spec)
        eps = mean if self.spec.guidance == "mean" else mean + temperature * log_sigma.exp() * normal
        return torch.where(noisy_B[None, :, None], (u.to(torch.float32) + eps).to(u.dtype), u)


PIECES: dict[str, type[nn.Module]] = {"core": Core, "normals": Normals, "guide": Guide}
PATTERN = ("pattern", "pattern_radius", "pattern_block", "pattern_kept")
EXPERTS = ("experts", "experts_kept", "expert_hidden", "expert_capacity")
READ: dict[str, tuple[str, ...]] = {
    "core": (
        "blocks",
        "mixer",
        "mixer_norm",
        "relations",
        "heads",
        "rope_theta",
        "norm_eps",
        "lookup",
        *EXPERTS,
        "active_share",
        *PATTERN,
    ),
    "normals": (),
    "guide": ("guidance", "log_sigma_center", "log_sigma_range"),
}
"""Fields of the spec that a piece reads beside the length, the width and whether there are rotary positions."""


def _arguments(name: str, spec: Spec, dtype: torch.dtype, shapes: Shapes) -> tuple[Tensor, ...]:
    """Tensors of the shapes and types that a piece is compiled for."""
    rows = block_size(spec)
    state = torch.zeros(spec.length, rows, spec.dim, dtype=dtype)
    counter = torch.zeros(rows, dtype=torch.int64)
    weights = [torch.zeros(shape, dtype=dtype) for shape in shapes]
    if name == "core":
        graph = [torch.zeros(spec.length, rows, spec.length, dtype=dtype)] if spec.has_graph else []
        found = [state.clone(), state.clone()] if spec.lookup else []
        return (state, state.clone(), *weights, *graph, *found)
    if name == "normals":
        return (torch.zeros(2, dtype=torch.int64), counter, counter.clone(), counter.clone())
    return (state, state.float().clone(), counter > 0, torch.zeros(()), *weights)


def _alike(name: str, spec: Spec) -> Spec:
    """The spec with what a piece does not read left at its default: models that differ elsewhere share the piece."""
    read = {field: getattr(spec, field) for field in READ[name]}
    if name == "core" and spec.is_rotary:
        read["positions"] = "rotary"
    tokens = spec.tokens if spec.value_tokens > 1 else spec.length
    if name == "core" and spec.pattern != "full":
        tokens, read["registers"] = spec.tokens, spec.registers  # a pattern tells them from the grid
    return Spec(tokens=tokens, output_tokens=tokens, value_tokens=spec.value_tokens, dim=spec.dim, **read)


def piece(name: str, spec: Spec, dtype: torch.dtype, shapes: Shapes) -> Piece:
    """A compiled piece, from this process, the cache on disk or the compiler; `shapes` are those of its weights.

    Raises `RuntimeError` where it cannot be compiled.
    """
    return _piece(name, _alike(name, spec), dtype, shapes, block_size(spec), torch.get_num_threads())


@cache
def _piece(name: str, spec: Spec, dtype: torch.dtype, shapes: Shapes, block: int, threads: int) -> Piece:
    module = PIECES[name](spec).eval()
    return compile_cache.compiled(module, _arguments(name, spec, dtype, shapes), (name, spec, dtype, shapes, block))


def noise(spec: Spec, key: NoiseKey, site: Site, transition_B: Tensor) -> Tensor:
    """`philox.noise` of one block with the token axis first: standard normals `[L, B, D]`, fp32.

    Raises `RuntimeError` where the piece cannot be compiled.
    """
    halves = torch.tensor([key.seed & 0xFFFFFFFF, key.seed >> 32], dtype=torch.int64)
    run = piece("normals", spec, torch.float32, ())
    planes = run(halves, counter_word1(transition_B, site), key.trajectory, key.puzzle_hash)
    made = torch.empty(spec.length, len(key.step), spec.dim // 4, 4)
    for plane, values in enumerate(planes):
        made[..., plane] = values.view(len(key.step), spec.length, -1).transpose(0, 1)
    return made.flatten(2)


def is_kept(weights: Weights, spec: Spec, dtype: torch.dtype) -> bool:
    """Whether the cache on disk holds every piece of a model under the learned noise, so that nothing is compiled."""
    needed: list[tuple[str, torch.dtype, Shapes]] = [("core", dtype, _shapes(core_weights(weights, "low", spec)))]
    if spec.guidance != "none":
        prior = [weights["prior.gate_up"], weights["prior.down"]]
        needed += [("normals", torch.float32, ()), ("guide", dtype, _shapes(prior))]
    return all(
        compile_cache.has((name, _alike(name, spec), kind, shapes, block_size(spec))) for name, kind, shapes in needed
    )


def _shapes(weights: list[Tensor]) -> Shapes:
    return tuple(tuple(weight.shape) for weight in weights)


def supervision_step(
    weights: Weights,
    spec: Spec,
    h: Tensor,
    l: Tensor,
    e_x: Tensor,
    key: NoiseKey,
    *,
    injection: Injection = LEARNED,
) -> Step:
    """See `reference.supervision_step`: the same numbers within rounding, without gradients, on a CPU.

    Raises `RuntimeError` where a piece cannot be compiled.
    """
    rows, count = block_size(spec), len(key.step)
    made: list[Step] = []
    with torch.no_grad():
        for first in range(0, count, rows):
            index = torch.arange(first, first + rows)
            index = torch.where(index < count, index, first)  # padded with copies of the block's first row
            made.append(_block(weights, spec, h[index], l[index], e_x[index], key.at(index), injection))
    if len(made) == 1 and count == rows:
        return made[0]
    return Step(*(torch.cat(parts)[:count] for parts in zip(*made, strict=True)))


def _block(
    weights: Weights, spec: Spec, h: Tensor, l: Tensor, e_x: Tensor, key: NoiseKey, injection: Injection
) -> Step:
    """One block of trajectories."""

    def normals(site: Site, transition_B: Tensor) -> Tensor:
        return noise(spec, key, site, transition_B)

    h, l, e_x = (x.transpose(0, 1).contiguous() for x in (h, l, e_x))
    if injection.injector == "gaussian" and injection.sigma:
        if injection.site in ("h", "both"):
            h = reference.perturb(h, injection.sigma, normals(Site.FIXED_SCALE_HIGH, key.step))
        if injection.site in ("l", "both"):
            l = reference.perturb(l, injection.sigma, normals(Site.FIXED_SCALE_LOW, key.step))
    path_scale = injection.sigma if injection.injector == "path" else 0.0
    temperature = injection.temperature if injection.injector == "prior" else 0.0
    e_x, graph = relations.split_graph(e_x, spec)
    behind = [] if graph is None else [graph.contiguous()]
    if spec.lookup:
        e_x, found = lookup.split_lookup(e_x, spec)
        behind = [part.contiguous() for part in found]

    low = core_weights(weights, "low", spec)
    high = low if spec.is_core_shared else core_weights(weights, "high", spec)
    core = piece("core", spec, h.dtype, _shapes(low))

    def called(state: Tensor, injected: Tensor, which: list[Tensor], call_B: Tensor) -> Tensor:
        new = core(state, injected, *which, *behind)
        if not (spec.path_keep or path_scale):
            return new
        eps = path_scale * normals(Site.PATH, call_B) if path_scale else None
        return reference.damp(state, new, spec.path_keep, eps)

    def guided(u: Tensor, transition_B: Tensor) -> Tensor:
        prior = [weights["prior.gate_up"], weights["prior.down"]]
        normal = normals(Site.PRIOR, transition_B) if temperature else torch.zeros(u.shape)
        noisy_B, scale = key.step >= spec.noise_free_steps, torch.tensor(float(temperature))
        return piece("guide", spec, u.dtype, _shapes(prior))(u, normal, noisy_B, scale, *prior)

    for index in range(spec.transitions):
        transition_B = key.step * spec.transitions + index
        call_B = transition_B * (spec.low_level_updates + 1)
        if spec.guidance != "none" and spec.noise_order == "before":
            h = guided(h, transition_B)
        injected = h + e_x if spec.low_level_updates else l
        for call in range(spec.low_level_updates):
            l = called(l, injected, low, call_B + call)
        h = called(h, l, high, call_B + spec.low_level_updates)
        if spec.guidance != "none" and spec.noise_order == "after":
            h = guided(h, transition_B)
    h, l = h.transpose(0, 1), l.transpose(0, 1)
    return Step(h, l, *reference.read_heads(weights, h, spec))
