"""START HERE. The idea on one page: GRAM (arXiv:2605.19376), one small network applied to a latent state many times.

    puzzle = get_task("nqueens8").split("test", limit=1).puzzles[0]  # tokens [L]
    answers, steps, votes, selected = solve(load("nqueens8"), puzzle, width=20)

Plain PyTorch for one puzzle, from the loop down to the layers. `gram/model.py`, `kernels/` and `gram/sampler/` compute
the same trajectories fast, for many puzzles; `tests/unit/test_minimal.py` holds them to this page, answer for answer.

Shapes: `N` trajectories still running, `L` tokens of a puzzle, `A` of an answer, `D` columns of a token's state.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from gram import checkpoint
from gram.config import ModelConfig
from gram.kernels.philox import NoiseKey, Site, noise
from gram.kernels.relations import tables
from gram.tasks.protocol import Tokens, puzzle_hash
from gram.tasks.registry import get_task


@torch.inference_mode()
def solve(
    model: "Gram", puzzle: Tokens | None, *, width: int = 20, depth: int | None = None, seed: int = 0
) -> tuple[Tokens, Tensor, list[int], int]:
    """Samples `width` trajectories of one puzzle (None: the empty condition) and takes a majority vote over answers."""
    config, e_x = model.config, model.embed(puzzle)
    h, l = (z0.expand(width, config.tokens, -1) for z0 in (model.z0_h, model.z0_l))  # all trajectories start alike
    answers, steps = np.zeros((width, config.output_tokens), np.uint8), torch.zeros(width, dtype=torch.long)
    running = torch.arange(width)  # [N], ids of the trajectories that have not stopped
    puzzle_id = puzzle_hash(config.task, np.zeros(config.tokens, np.uint8) if puzzle is None else puzzle)

    def draw(t: int) -> Tensor:  # normals [N, L, D], decided by seed, puzzle, trajectory and transition alone
        puzzles, transitions = torch.full_like(running, puzzle_id), torch.full_like(running, t)
        key = NoiseKey(seed, puzzles, running, transitions // config.transitions)
        return noise((config.tokens, config.dim), key, Site.PRIOR, transitions)

    for step in range(depth or config.depth):  # a supervision step: T transitions, then decode and ask the halt head
        is_noisy = config.guidance == "full" and step >= config.noise_free_steps
        for t in range(step * config.transitions, (step + 1) * config.transitions):
            h, l = model(h, l, e_x, draw(t) if is_noisy else None)
        answers[running.numpy()], steps[running] = model.decode(h).numpy(), step + 1
        stops = model.halt(h).mean((1, 2)).sigmoid() > config.halt_threshold  # early exit (adaptive computation time)
        stops &= is_noisy or config.guidance == "none"  # before the first noise all trajectories are one
        h, l, running = h[~stops], l[~stops], running[~stops]
        if not len(running):
            break
    ballots = [answer.tobytes() for answer in get_task(config.task).canonical(answers)]
    votes = [ballots.count(ballot) for ballot in ballots]  # self-consistency: how many agree with each trajectory
    return answers, steps, votes, votes.index(max(votes))  # [width, A], [width], [width], which one is selected


class Gram(nn.Module):
    """Encoder, recursion, learned noise, decoder and heads. A trajectory's latent state is `(h, l)`, each `[L, D]`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, self.config = config.dim, config
        self.embedding, self.decoder = nn.Embedding(config.vocabulary, dim), nn.Linear(dim, config.vocabulary, False)
        self.positions = nn.Parameter(torch.zeros(config.tokens, dim)) if config.positions == "learned" else 0.0
        if config.has_empty_condition or not config.is_conditional:
            self.empty = nn.Parameter(torch.zeros(dim))
        self.core = nn.Sequential(*[Block(config) for _ in range(config.blocks)])  # both f_L and f_H (TRM)
        if config.guidance == "full":
            self.prior = SwiGLU(dim, config.guidance_hidden, 2 * dim)
        self.halt = SwiGLU(dim, config.head_hidden, 1, bias=True)  # "my answer is right"; the value head is left out
        self.z0_h, self.z0_l = (nn.Parameter(torch.zeros(dim)) for _ in range(2))

    def embed(self, puzzle: Tokens | None) -> Tensor:
        """`e_x [L, D]`, computed once; the empty condition without a puzzle."""
        e_x = self.empty if puzzle is None else self.embedding(torch.from_numpy(puzzle.astype(int)))
        return (e_x + self.positions) * self.config.dim**0.5

    def forward(self, h: Tensor, l: Tensor, e_x: Tensor, normal: Tensor | None) -> tuple[Tensor, Tensor]:
        """One transition of `h` and `l`, `[N, L, D]`: eqs. 3 to 5, with the noise first (`docs/how-it-works.md`)."""
        if normal is not None:  # h <- h + eps, eps ~ N(mu(h), sigma(h)^2): what makes trajectories differ
            mu, raw = self.prior(h).chunk(2, dim=-1)
            center, reach = self.config.log_sigma_center, self.config.log_sigma_range
            h = h + mu + (center + reach * torch.tanh(raw / reach)).exp() * normal
        for _ in range(self.config.low_level_updates):  # K times l <- f_L(l, h + e_x)
            l = self.core(l + (h + e_x))
        return self.core(h + l), l  # h <- f_H(h, l)

    def decode(self, h: Tensor) -> Tensor:
        """The likeliest token at each output position, `[N, A]`; after any step `h` can answer."""
        return self.decoder(h[:, self.config.output_start :][:, : self.config.output_tokens]).argmax(-1)


class Block(nn.Module):
    """Mix tokens, then columns; each sum is followed by an RMSNorm without weight."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, tokens, hidden, self.is_over_tokens = config.dim, config.tokens, config.mixer_hidden, False
        if config.mixer == "attention":
            self.mixer: nn.Module = Attention(dim, config.heads)
        elif config.mixer == "relations":
            self.mixer = SwiGLU(dim, hidden, dim, relations=tables(config.relations, tokens, torch.device("cpu")))
        else:
            self.mixer, self.is_over_tokens = SwiGLU(tokens, hidden, tokens), True  # as TRM (arXiv:2510.04871)
        self.channel, self.norm = SwiGLU(dim, config.hidden, dim), nn.RMSNorm(dim, config.norm_eps, False)

    def forward(self, x: Tensor) -> Tensor:  # [N, L, D]
        x = self.norm(x + (self.mixer(x.mT).mT if self.is_over_tokens else self.mixer(x)))
        return self.norm(x + self.channel(x))


class Attention(nn.Module):
    """Every token attends to every other."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """A gated network over the last axis. Relations `[R, L, L]` sum shares of it along rows, columns ... of a board."""

    def __init__(self, inputs: int, hidden: int, outputs: int, *, bias: bool = False, relations: Tensor | None = None):
        super().__init__()
        self.gate_up, self.down = nn.Linear(inputs, 2 * hidden, bias=False), nn.Linear(hidden, outputs, bias)
        self.relations = relations

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        if self.relations is not None:
            up = torch.einsum("rij,njrc->nirc", self.relations, up.unflatten(-1, (len(self.relations), -1))).flatten(2)
        return self.down(silu(gate) * up)


def load(name: str) -> Gram:
    """The model of a shipped checkpoint, or of a folder with one, in float32. Refuses what this page leaves out."""
    stored, plain = checkpoint.load(checkpoint.find(name), dtype=torch.float32), ModelConfig(head_hidden=64)
    same = "registers positions guidance injector noise_order mixer_norm is_core_shared path_keep head_readout"
    for setting in (*same.split(), "demonstrations", "lookup", "experts", "active_share", "pattern", "head_hidden"):
        if (value := getattr(stored.config, setting)) not in (getattr(plain, setting), "none"):
            raise ValueError(f"{setting} must be {getattr(plain, setting)} on this page, got {value}")
    if stored.config.has_graph:
        raise ValueError(f"relations must be a board's on this page, got {', '.join(stored.config.relations)}")
    model, weights = Gram(stored.config), stored.weights()
    for name, parameter in model.named_parameters():
        key = name.replace("core.", "low.").replace("halt.down", "halt")
        parameter.data = weights[key if key in weights else key.removesuffix(".weight")]
    return model
