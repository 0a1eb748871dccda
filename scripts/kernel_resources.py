"""What the fused kernel takes of sm_90 and sm_100, for every preset and shipped checkpoint of up to 64 tokens, as it is
cut by default. Compiled ahead of time and counted; no GPU is used.

    python scripts/kernel_resources.py [--alone]

prints the table of evals/results/kernels.md; `--alone` the same with one trajectory a program. What is compiled is
kept, as by `gram bench kernels`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import torch

from gram.checkpoint import find, read_config, shipped_names
from gram.config import ModelConfig
from gram.kernels.fused import pack, tuning
from gram.kernels.resources import Resources, kept_or_compiled, shapes_of
from gram.model import Model
from gram.presets import PRESETS, model_config

LONGEST = 64
TARGETS = ("sm_90", "sm_100")


def configs() -> Iterator[tuple[str, ModelConfig]]:
    """The models that the fused kernel takes, by name."""
    named = {name: model_config(name) for name in PRESETS}
    named |= {name: read_config(find(name)) for name in shipped_names()}
    for name, config in named.items():
        if config.spec.length <= LONGEST and pack.unsupported_reason(config.spec) is None:
            yield name, config


def line(name: str, cut: pack.Tuning, made: Resources) -> str:
    """A row of the table."""
    barriers = "" if made.barriers is None else f"{made.barriers:.2f}"
    figures = [
        made.registers, made.stack_bytes, made.inner_spills, barriers, f"{made.executed:.2f}", made.shared_bytes // 1024
    ]  # fmt: skip
    return f"| `{name}` | {made.target} | {cut.group} | {cut.stages} | " + " | ".join(map(str, figures)) + " |"


def main() -> int:
    """Prints the table; what does not compile goes to standard error, and the status is 1."""
    status = 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alone", action="store_true", help="one trajectory a program")
    is_alone = parser.parse_args().alone
    print(
        "| model | target | trajectories a program | stages | registers | stack, bytes | spills of inner loops | "
        "barriers a tile | executed / useful | shared memory, KiB |\n|---|---|" + "---:|" * 8
    )
    for name, config in configs():
        model = Model(config)
        weights, spec = model.weights(), model.spec
        for target in TARGETS:
            cut = tuning.default(target, torch.bfloat16, spec, weights)
            if is_alone:
                cut = pack.Tuning(stages=3 if target == "sm_90" else 1)
            try:
                (made,) = kept_or_compiled(spec, shapes_of(weights), target, tuning=cut)
            except RuntimeError as error:
                print(f"{name}: {error}", file=sys.stderr)
                status = 1
                continue
            print(line(name, cut, made), flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
