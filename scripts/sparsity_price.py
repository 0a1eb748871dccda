"""What each kind of sparsity costs a supervision step: `python scripts/sparsity_price.py`.

For each mechanism two models that differ in it alone: parameters that are not zero, multiply-accumulates of a step, and
the latency of a step of `--rows` trajectories (eager, one thread), timed in turn in one process. A ratio is with the
mechanism over without; the median of the rounds, with the least and the greatest. Prints Markdown. Leave the machine
otherwise idle.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

import torch

from gram.config import ModelConfig
from gram.evals.benchmarks.timing import Measurement, paired
from gram.evals.cost import step_macs
from gram.kernels.philox import NoiseKey
from gram.model import Model
from gram.sampler.sparsity import measures_of_states
from gram.sizes import shape_of
from gram.tasks.registry import get_task
from gram.training.recipe import load_recipe

LINES = ("row", "column", "diagonal", "antidiagonal", "all")


def board(**changes: object) -> ModelConfig:
    """A model of 8x8 N-Queens, 64 tokens of 64 channels, without noise."""
    task = get_task("nqueens8")
    plain = ModelConfig(
        task=task.name,
        **shape_of(task),
        mixer="relations",
        relations=LINES,
        mixer_hidden=80,
        positions="none",
        guidance="none",
        dim=64,
        hidden=128,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def stepper(model: Model, rows: int, *, is_measured: bool = False) -> Callable[[], object]:
    """A function that takes one supervision step; `is_measured` takes the sparsity of its states, too."""
    config = model.config
    h, l = model.initial_state(rows)
    generator = torch.Generator().manual_seed(0)
    h, l = h + torch.randn(h.shape, generator=generator), l + torch.randn(l.shape, generator=generator)
    puzzles = torch.randint(1, config.vocabulary, (rows, config.tokens), generator=generator)
    e_x, names, weights = model.embed(puzzles), torch.arange(rows), model.weights()
    key = NoiseKey(0, names, names, torch.ones_like(names))

    def run() -> object:
        with torch.inference_mode():
            state = model.step(h, l, e_x, key, weights=weights)
            return measures_of_states(state.h, state.l) if is_measured else state

    return run


def thinned(config: ModelConfig, share: float) -> Model:
    """A model of whose matrices only the largest share of the weights is not zero."""
    model = Model(config).requires_grad_(False)
    for weight in model.parameters():
        if weight.ndim == 2:
            weight.mul_(weight.abs() >= weight.abs().flatten().quantile(1 - share))
    return model


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=64, help="trajectories of a step")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    for name in ("rows", "rounds"):
        if getattr(given, name) < 1:
            parser.error(f"{name} must be at least 1, got {getattr(given, name)}")
    torch.set_num_threads(1)
    recolour = load_recipe("recolour").model
    lookup = {"lookup": ("diagonal", "antidiagonal")}
    experts = {"experts": 22, "experts_kept": 2, "expert_hidden": 32, "hidden": 64}
    pairs = {
        "relations, against attention": (board(), board(mixer="attention", relations=(), positions="learned")),
        "memory of demonstrations": (recolour, replace(recolour, memory="none", memory_heard=0)),
        "lookup memory": (board(**lookup), board()),
        "22 experts of which 2 are kept, against a dense SwiGLU as wide as those": (board(**experts), board()),
        "a quarter of the hidden units (AbsTopK)": (board(active_share=0.25), board()),
    }
    print("| mechanism | parameters, with / without | MACs of a step | latency of a step |\n|---|---|---|---|")

    def row(name: str, costs: str, versions: dict[str, Callable[[], object]]) -> None:
        seconds = paired(versions, given.rounds)
        found = Measurement.of_ratios(name, seconds["with"], seconds["without"])
        print(f"| {name} | {costs} | {found.ratio:.2f} ({found.low:.2f} to {found.high:.2f}) |", flush=True)

    for name, (own, other) in pairs.items():
        models = [Model(each).requires_grad_(False) for each in (own, other)]
        sizes = [sum(weight.numel() for weight in each.parameters()) for each in models]
        macs = step_macs(own)["total"] / step_macs(other)["total"]
        versions = dict(zip(("with", "without"), (stepper(each, given.rows) for each in models), strict=True))
        row(name, f"{sizes[0]:,} / {sizes[1]:,} | {macs:.2f}", versions)
    dense, sparse = Model(board()).requires_grad_(False), thinned(board(), 1 / 16)
    sizes = [sum(int(weight.count_nonzero()) for weight in each.parameters()) for each in (sparse, dense)]
    without = stepper(dense, given.rows)
    row(
        "a sixteenth of the weights, in dense products",
        f"{sizes[0]:,} / {sizes[1]:,} | 1.00",
        {"with": stepper(sparse, given.rows), "without": without},
    )
    measured = stepper(dense, given.rows, is_measured=True)
    row("sparsity of states measured", f"{sizes[1]:,} / {sizes[1]:,} | 1.00", {"with": measured, "without": without})


if __name__ == "__main__":
    main()
