"""Halting rules: one place to add one, and one meaning in the sampler and in frontiers."""

import numpy as np
import pytest

from gram.cli.options import SETTINGS
from gram.config import HALTINGS, ModelConfig, SamplerConfig
from gram.evals.frontier.grid import stop_steps
from gram.sampler import halting
from gram.sampler.engine import Observer
from gram.sampler.halting import RULES, Readings
from gram.sampler.run import sample
from gram.sampler.scheduler import trace
from gram.tasks.colouring import FIRST_COLOUR
from gram.tasks.registry import get_task
from tests.models import tiny_model

COLOURING = get_task("colouring4")


def test_the_names_of_rules_are_those_that_types_allow():
    assert tuple(RULES) == HALTINGS == halting.Halting.__args__
    assert SETTINGS["halting"].__metadata__[0].metavar == "|".join(RULES)


def test_a_rule_is_added_in_one_place(monkeypatch):
    """Registering a function is all: settings check it, the sampler and a frontier halt by it."""
    monkeypatch.setattr(halting, "RULES", RULES)
    before = dict(RULES)
    try:

        @halting.rule("patient", threshold=2.0, meaning="steps", expected="a whole number of steps", is_whole=True)
        def patient(now: Readings, steps: float):
            return now.step >= steps

        with pytest.raises(ValueError, match=r"a whole number of steps, got 1\.5"):
            SamplerConfig(halting="patient", halt_threshold=1.5)
        task = get_task("nqueens4")
        puzzles = task.split("test").puzzles[:2]
        config = SamplerConfig(width=3, depth=3, launch=8, halting="patient")
        result = sample(tiny_model(), task, puzzles, config)
        assert (result.steps == 2).all()
        assert result.is_halted.all()
        assert result.config.halt_threshold == 2
        block = trace.TraceBlock(*[np.zeros((2, 3, 4), np.float32)] * 10)
        assert (stop_steps(block, "patient", 3.0, 1, slice(None)) == 3).all()
    finally:
        RULES.clear()
        RULES.update(before)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("head", (0.1, 0.999), (0.0, 1.0, -0.5)),
        ("residual", (1e-9, 5.0), (0.0, -1.0)),
        ("unchanged", (1.0, 7.0), (0.0, 0.5, 2.5, -1.0)),
        ("fixed", (), (0.0, 0.5, 1.0)),
    ],
)
def test_thresholds_are_checked(name, good, bad):
    for threshold in good:
        assert SamplerConfig(halting=name, halt_threshold=threshold).halt_threshold == threshold
    for threshold in bad:
        with pytest.raises(ValueError, match=f"halt_threshold must .*, got {threshold}"):
            SamplerConfig(halting=name, halt_threshold=threshold)
    with pytest.raises(ValueError, match="halt_threshold must be between 0 and 1, got 1"):
        ModelConfig(halt_threshold=1.0)


def test_colours_that_are_only_renamed_leave_an_answer_unchanged():
    """`unchanged` compares canonical answers, as votes and frontiers do: a colouring is no other under new names."""
    puzzle = COLOURING.split("test", limit=1).puzzles
    count = COLOURING.output_tokens
    one = (np.arange(count) % 2 + FIRST_COLOUR).astype(np.uint8)[None]
    other = (2 * FIRST_COLOUR + 1 - one).astype(np.uint8)
    assert np.array_equal(COLOURING.canonical(one), COLOURING.canonical(other))
    model = tiny_model(
        task="colouring4",
        vocabulary=COLOURING.vocabulary,
        tokens=COLOURING.tokens,
        output_start=COLOURING.output_start,
        output_tokens=count,
    )
    written = []

    class Alternating(Observer):
        """Makes the model write the two answers in turn."""

        def on_advanced(self, engine):
            written.append(engine.unchanged[:1].copy())

    decoded = iter([one, other] * 4)

    def decode(h):
        answer = next(decoded)[0].astype(np.int64)
        logits = h.new_zeros(len(h), count, COLOURING.vocabulary)
        logits[:, np.arange(count), answer] = 1
        return logits

    model.decode = decode
    config = SamplerConfig(width=1, depth=6, launch=1, halting="unchanged", halt_threshold=2)
    result = sample(model, COLOURING, puzzle, config, observer=Alternating())
    assert result.is_halted.all()
    assert int(result.steps[0, 0]) == 3
    assert [int(each[0]) for each in written] == [0, 1, 2]
