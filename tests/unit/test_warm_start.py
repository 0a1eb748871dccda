"""Lattices whose rounds go on from the core's state of the round before."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gram import checkpoint
from gram.cli.main import main
from gram.config import SamplerConfig, config_to_json
from gram.kernels.philox import NoiseKey
from gram.model import Model, embed_sets, over_symbols, read_values
from gram.sampler.backtracking import begin, follow
from gram.sampler.lattice import Opinion, play_round, rules_of
from gram.sampler.run import resolve, sample
from gram.tasks.protocol import puzzle_hash
from gram.tasks.registry import get_task
from tests.models import tiny_config, tiny_model
from tests.unit.test_lattice import lattice_model

DEPTH = 20
KIND = {"search": "backtrack", "drop_below": 0.4, "halt_threshold": 0.86}
"""At these a random model commits, meets conflicts and solves some."""
WARM = lattice_model(is_warm_started=True, **KIND)
TASK = get_task("sudoku4")


def written_out(model: Model, puzzle: np.ndarray, trajectory: int) -> tuple[int, int, int]:
    """One trajectory by itself. Returns its rounds, how many of them went on from the one before, and how many
    conflicts there were."""
    own, weights = model.config, model.weights()
    first = torch.from_numpy(TASK.candidates(puzzle[None]))
    tokens, rules = torch.from_numpy(puzzle[None].astype(np.int64)), rules_of(own)
    start = model.initial_state(1)[0].contiguous()
    trail, h, warm, conflicts = begin(first), start, 0, 0
    names = torch.tensor([puzzle_hash(TASK.name, puzzle)]), torch.tensor([trajectory])
    for number in range(DEPTH):
        key = NoiseKey(0, *names, torch.tensor([number]))
        warm += h is not start
        shown = embed_sets(weights, own, tokens, trail.sets[..., list(own.values)])
        after = model.step(h, shown, torch.zeros_like(shown), key)
        opinion = Opinion(*(over_symbols(own, part) for part in read_values(weights, own, after.h)), after.halt)
        played = play_round(trail.sets, first.sum(-1) == 1, opinion, rules, key, trail.belief)
        if played.is_solved:
            return number + 1, warm, conflicts
        trail = follow(trail, first, played)
        conflicts += bool(played.is_conflict)
        is_answer = bool((trail.sets.sum(-1) == 1).all())
        h = start if played.is_conflict or is_answer or not own.is_warm_started else after.h
    return DEPTH, warm, conflicts


@pytest.mark.parametrize("is_warm_started", [False, True])
def test_a_trajectory_is_its_rounds_written_out(is_warm_started):
    model = lattice_model(is_warm_started=is_warm_started, **KIND)
    puzzles = TASK.split("test", limit=4).puzzles
    found = sample(model, TASK, puzzles, SamplerConfig(width=3, depth=DEPTH, launch=4, kernel="eager"))
    made = [[written_out(model, puzzle, trajectory) for trajectory in range(3)] for puzzle in puzzles]
    steps, warm, conflicts = np.array(made).transpose(2, 0, 1)
    np.testing.assert_array_equal(found.steps, steps)
    assert len(np.unique(steps)) > 1
    assert conflicts.any()
    assert warm.any() == is_warm_started


def test_a_warm_start_changes_trajectories_and_no_weight():
    cold = lattice_model(**KIND)
    assert cold.digest() == WARM.digest()
    puzzles = TASK.split("test", limit=6).puzzles
    shas = {
        sample(each, TASK, puzzles, SamplerConfig(width=4, depth=DEPTH)).trajectories_sha256 for each in (cold, WARM)
    }
    assert len(shas) == 2


@settings(max_examples=15, deadline=None)
@given(
    slots=st.integers(1, 30),
    launch=st.integers(1, 5),
    some=st.sampled_from([slice(0, 6), slice(2, 5), slice(5, 6)]),
    views=st.sampled_from(["off", "random"]),
)
def test_trajectories_are_the_same_in_any_company(slots, launch, some, views):
    puzzles = TASK.split("test", limit=6).puzzles
    alone = sample(WARM, TASK, puzzles, SamplerConfig(width=4, depth=DEPTH, slots=24, launch=4, views=views))
    other = sample(
        WARM, TASK, puzzles[some], SamplerConfig(width=4, depth=DEPTH, slots=slots, launch=launch, views=views)
    )
    for name in ("candidates", "steps", "halt", "is_halted", "margin"):
        np.testing.assert_array_equal(getattr(other, name), getattr(alone, name)[some], err_msg=name)


def test_a_model_without_is_written_as_before_and_one_with_reads_back(tmp_path):
    assert "is_warm_started" not in config_to_json(lattice_model(**KIND).config)
    checkpoint.save(WARM, tmp_path / "warm")
    assert checkpoint.read_config(tmp_path / "warm").is_warm_started


def test_a_run_may_say_otherwise_than_its_model():
    cold, puzzles = lattice_model(**KIND), TASK.split("test", limit=4).puzzles
    asked = SamplerConfig(width=3, depth=DEPTH)
    told = replace(asked, is_warm_started=True), replace(asked, is_warm_started=False)
    assert not resolve(asked, cold).is_warm_started
    assert resolve(asked, WARM).is_warm_started
    for model, config, like in ((cold, told[0], WARM), (WARM, told[1], cold)):
        one, other = sample(model, TASK, puzzles, config), sample(like, TASK, puzzles, asked)
        assert one.trajectories_sha256 == other.trajectories_sha256
        assert one.config == other.config
    assert "is_warm_started" not in config_to_json(resolve(asked, cold)), "runs of before keep their names"


def test_the_command_line_says_it(tmp_path, capsys):
    checkpoint.save(lattice_model(**KIND), tmp_path / "tiny")
    command = ["sample", "sudoku4", "--checkpoint", str(tmp_path / "tiny"), "--limit", "2", "--width", "2", "--json"]
    made = []
    for number, flags in enumerate(([], ["--cold-start"], ["--warm-start", "--transitions", "5"])):
        assert main([*command, "--out", str(tmp_path / str(number)), *flags]) == 0
        made.append(json.loads(capsys.readouterr().out))
    assert made[0]["trajectories_sha256"] == made[1]["trajectories_sha256"]
    assert "is_warm_started" not in made[1]
    assert (made[2]["is_warm_started"], made[2]["transitions"]) == (True, 5)
    assert main(["solve", "nqueens4", "--checkpoint", "nqueens8", "--warm-start"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_continuous_states_are_refused_in_one_line():
    with pytest.raises(ValueError, match=r"^is_warm_started must come with the latent lattice, got latent continuous$"):
        tiny_config(is_warm_started=True)
    with pytest.raises(ValueError, match="is_warm_started must be off for continuous states"):
        resolve(SamplerConfig(is_warm_started=True), tiny_model())
