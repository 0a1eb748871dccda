"""What an optimiser step of training costs on a GPU, in each way to launch it: as one CUDA graph, operation by
operation without waiting, with the host at every step, and not compiled.

Each way is a process of its own, one after another, so that each has the GPU's memory to itself. A round has as many
steps as a run has between two readings of its figures, and one reading. Nothing else may run on the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from gram.evals.benchmarks.timing import ROOT, Measurement
from gram.evals.benchmarks.training_benchmark import Probe, made_puzzles
from gram.evals.benchmarks.training_probe import VERSIONS
from gram.training.cost import cost_of
from gram.training.device_trainer import PLAIN_STEPS
from gram.training.recipe import load_recipe
from gram.training.trainer import LOG_EVERY_STEPS

NAMES = dict(
    zip(
        VERSIONS,
        ("as one CUDA graph", "without waiting, no graph", "compiled, waiting at every step", "not compiled"),
        strict=True,
    )
)
WARM_STEPS = LOG_EVERY_STEPS * (PLAIN_STEPS + 1)
"""Steps before any is timed: the rarest kind of step, one in `LOG_EVERY_STEPS`, has been captured then."""


def rows(
    recipe: str,
    *,
    puzzles: Path | None = None,
    rounds: int = 5,
    warm_steps: int = WARM_STEPS,
    tell: Callable[[str], None] = lambda line: None,
) -> Iterator[Measurement]:
    """Milliseconds a step of one recipe (a name or a TOML file) in each way, then counted arithmetic a second of each
    and how many times as long each takes as one graph. A way that fails is a row that says why.

    Raises `ValueError` where puzzles are missing, `RecipeError` as `load_recipe`.
    """
    loaded = load_recipe(recipe)
    if puzzles is not None and not puzzles.exists():
        raise ValueError(f"puzzles must be a file that is there, got {puzzles}")
    found = str(Path(recipe).absolute()) if Path(recipe).suffix == ".toml" else recipe
    seconds: dict[str, list[float]] = {}
    with ExitStack() as opened:
        file = str(puzzles.absolute()) if puzzles else opened.enter_context(made_puzzles(loaded))
        for version, said in NAMES.items():
            name = f"{recipe}: ms an optimiser step, {said}"
            tell(f"compiling and warming up: {said}")
            probe = Probe(ROOT, found, file, version)
            try:
                probe.ask(warm_steps)
                made = [probe.ask(LOG_EVERY_STEPS) for _ in range(rounds)]
            except ValueError as error:
                yield Measurement.failed(name, error)
                continue
            finally:
                probe.close()
            seconds[version] = [sum(each["seconds"]) / LOG_EVERY_STEPS for each in made]
            facts = {"seconds": seconds[version], "peak_bytes": made[-1]["peak_bytes"]}
            yield Measurement.of(name, [1000 * each for each in seconds[version]], facts=facts)
    flops = cost_of(loaded).step_flops
    for version, each in seconds.items():
        yield Measurement.of(f"{recipe}: counted TFLOP/s, {NAMES[version]}", [flops / one / 1e12 for one in each])
    for version in VERSIONS[1:]:
        if version in seconds and VERSIONS[0] in seconds:
            name = f"{recipe}: times as long as one graph, {NAMES[version]}"
            yield Measurement.of_ratios(name, seconds[version], seconds[VERSIONS[0]])
