"""The engine against the page that is the idea (`gram/minimal.py`), for every shipped checkpoint."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import gram
from gram import checkpoint, minimal
from gram.config import ModelConfig
from gram.model import Model
from gram.sampler.result import SampleResult

WIDTH, DEPTH = 6, 4


def by_engine(name: str, **settings: object) -> SampleResult:
    """Two held-out puzzles, or the empty condition, in one launch of 8 rows that the engine refills."""
    sampler = gram.load(name, device="cpu", dtype="float32")
    settings = {"depth": DEPTH, "launch": 8, "slots": 8, "kernel": "eager", "selector": "vote"} | settings
    if not sampler.model.config.is_conditional:
        return sampler.generate(WIDTH, **settings)
    settings = {"views": "off"} | settings
    return sampler.sample(sampler.task.split("validation", limit=2), width=WIDTH, **settings)


def by_page(name: str, puzzle: np.ndarray, seed: int = 0, **changes: object) -> tuple[list[object], ...]:
    model = minimal.load(name)
    model.config = replace(model.config, **changes)
    answers, steps, votes, selected = minimal.solve(
        model, puzzle if model.config.is_conditional else None, width=WIDTH, depth=DEPTH, seed=seed
    )
    return answers.tolist(), steps.tolist(), votes, [selected]


def of_puzzle(result: SampleResult, index: int) -> tuple[list[object], ...]:
    columns = result.candidates[index], result.steps[index], result.votes[index], result.selected[index : index + 1]
    return tuple(column.tolist() for column in columns)


def is_on_the_page(name):
    """Neither a lattice nor a model of graphs or of demonstrations, which the page leaves out."""
    config = checkpoint.read_config(checkpoint.find(name))
    return config.latent == "continuous" and not config.has_graph and not config.demonstrations


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", [name for name in checkpoint.shipped_names() if is_on_the_page(name)])
def test_engine_gives_the_answers_steps_votes_and_choice_of_the_page(name, seed):
    result = by_engine(name, seed=seed)
    for index, puzzle in enumerate(result.puzzles):
        assert of_puzzle(result, index) == by_page(name, puzzle, seed)


def test_no_trajectory_halts_before_its_first_noise():
    result = by_engine("sudoku6", halt_threshold=0.01)
    assert (result.steps == 2).all()
    for index, puzzle in enumerate(result.puzzles):
        assert of_puzzle(result, index) == by_page("sudoku6", puzzle, halt_threshold=0.01)


@pytest.mark.parametrize("change", [{"seed": 1}, {"temperature": 0.0}, {"temperature": 1.5}, {"halt_threshold": 0.6}])
def test_page_differs_from_an_engine_with_other_noise_or_halting(change):
    result = by_engine("colouring10", **change)
    assert of_puzzle(result, 0) != by_page("colouring10", result.puzzles[0])


def test_page_refuses_a_model_of_demonstrations():
    with pytest.raises(ValueError, match="demonstrations must be 0 on this page, got 4"):
        minimal.load("recolour")


@pytest.mark.parametrize(
    ("setting", "value"), [("noise_order", "after"), ("guidance", "mean"), ("registers", 1), ("initial_std", 1.0)]
)
def test_page_refuses_what_it_leaves_out(tmp_path, setting, value):
    config = ModelConfig(task="sudoku4", tokens=16, output_tokens=16, dim=8, head_hidden=64, **{setting: value})
    checkpoint.save(Model(config), tmp_path)
    with pytest.raises(ValueError, match=setting if setting != "initial_std" else "injector"):
        minimal.load(tmp_path)
