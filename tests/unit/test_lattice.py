"""The lattice: what a round may do, that its choices follow from the noise key alone, and that the engine plays it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gram.config import ModelConfig, SamplerConfig, config_from_json, config_to_json
from gram.kernels import dispatch, reference, relations
from gram.kernels.philox import NoiseKey
from gram.model import Model, embed_sets, read_values
from gram.sampler.lattice import Opinion, Rules, play_round
from gram.sampler.lattice_slots import UNSOLVED
from gram.sampler.run import resolve, sample
from gram.sizes import resized
from gram.tasks.registry import get_task
from tests.models import tiny_model

TOKENS, VALUES = 6, 4
LINES = ("row", "column", "box", "value", "all")


def key(count: int, *, step: int = 0, first: int = 0) -> NoiseKey:
    trajectories = torch.arange(first, first + count)
    return NoiseKey(3, torch.full((count,), 77), trajectories, torch.full((count,), step))


def opinion(count: int, *, keep: float = 5.0, sound: float = 5.0, seed: int = 0) -> Opinion:
    values = torch.randn(count, TOKENS, VALUES, generator=torch.Generator().manual_seed(seed))
    return Opinion(torch.full_like(values, keep), values, torch.full((count,), sound))


def rules(**changes: float) -> Rules:
    return Rules(**{"drop_below": 0.1, "conflict_above": 0.5, "temperature": 1.0, **changes})


def open_sets(count: int) -> torch.Tensor:
    return torch.ones(count, TOKENS, VALUES, dtype=torch.bool)


NONE_GIVEN = torch.zeros(1, TOKENS, dtype=torch.bool)


def test_a_round_commits_one_open_token_to_one_value():
    played = play_round(open_sets(9), NONE_GIVEN.expand(9, -1), opinion(9), rules(), key(9))
    assert (played.sets.sum(-1) == 1).sum(-1).tolist() == [1] * 9
    assert not played.is_conflict.any()
    assert not played.is_solved.any()


def test_without_temperature_the_likeliest_value_is_taken():
    said = opinion(50)
    played = play_round(open_sets(50), NONE_GIVEN.expand(50, -1), said, rules(temperature=0), key(50))
    row, token = (played.sets.sum(-1) == 1).nonzero().unbind(1)
    assert torch.equal(played.sets[row, token].int().argmax(-1), said.value[row, token].argmax(-1))


def test_values_are_drawn_by_their_probability_at_temperature_one():
    count = 20_000
    said = opinion(count)
    same = Opinion(said.keep, said.value[:1].expand(count, -1, -1), said.sound)
    played = play_round(open_sets(count), NONE_GIVEN.expand(count, -1), same, rules(), key(count))
    row, token = (played.sets.sum(-1) == 1).nonzero().unbind(1)
    assert np.bincount(token, minlength=TOKENS) / count == pytest.approx([1 / TOKENS] * TOKENS, abs=0.015)
    mine = row[token == 2]
    drawn = played.sets[mine, 2].float().mean(0)
    assert torch.allclose(drawn, said.value[0, 2].softmax(-1), atol=0.04)


def test_a_value_thought_wrong_goes_and_a_given_one_stays():
    count = 30
    is_given = NONE_GIVEN.clone()
    is_given[0, 1] = True
    sets, said = open_sets(count), opinion(count)
    sets[:, 1] = False
    sets[:, 1, 0] = True
    said.keep[:, 0, 0] = said.keep[:, 1, 0] = -9.0
    played = play_round(sets, is_given.expand(count, -1), said, rules(), key(count))
    assert played.sets[:, 1, 0].all()
    assert not played.sets[:, 0, 0].any()
    assert played.sets[:, 0, 1].sum() > 10  # where another token was committed, the others stay


@pytest.mark.parametrize("why", ["judged unsound", "a token without a value"])
def test_conflicts_commit_nothing(why):
    said = opinion(4, sound=-5.0 if why == "judged unsound" else 5.0)
    if why != "judged unsound":
        said.keep[:, 2] = -9.0
    played = play_round(open_sets(4), NONE_GIVEN.expand(4, -1), said, rules(), key(4))
    assert played.is_conflict.all()
    assert not played.is_solved.any()
    assert (played.sets.sum(-1) != 1).all()


def test_one_value_everywhere_is_solved():
    sets = torch.nn.functional.one_hot(torch.randint(VALUES, (3, TOKENS)), VALUES).bool()
    played = play_round(sets, NONE_GIVEN.expand(3, -1), opinion(3), rules(), key(3))
    assert played.is_solved.all()
    assert torch.equal(played.sets, sets)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 6))
def test_a_round_only_ever_removes_and_is_the_same_in_any_company(seed, count):
    generator = torch.Generator().manual_seed(seed)
    sets = torch.rand(count, TOKENS, VALUES, generator=generator) < 0.7
    said = Opinion(
        torch.randn(sets.shape, generator=generator) * 3,
        torch.randn(sets.shape, generator=generator),
        torch.randn(count, generator=generator) * 3,
    )
    names = key(count, step=seed % 1000)
    together = play_round(sets, NONE_GIVEN.expand(count, -1), said, rules(), names)
    assert not (together.sets & ~sets).any()
    assert not (together.is_conflict & together.is_solved).any()
    for row in range(count):
        rows = slice(row, row + 1)
        alone = play_round(sets[rows], NONE_GIVEN, Opinion(*(part[rows] for part in said)), rules(), names.at(rows))
        for ours, theirs in zip(alone, together, strict=True):
            assert torch.equal(ours, theirs[rows])


def lattice_config(task_name: str = "sudoku4", **changes: object) -> ModelConfig:
    task = get_task(task_name)
    shape = {name: getattr(task, name) for name in ("vocabulary", "tokens", "output_start", "output_tokens")}
    made = {
        "task": task.name,
        "latent": "lattice",
        "values": task.answer_values,
        "value_tokens": len(task.answer_values),
        "are_values_alike": task.are_values_alike,
        "mixer": "relations",
        "relations": LINES,
        "positions": "none",
        "guidance": "none",
        "low_level_updates": 0,
        "transitions": 2,
        "depth": 12,
        "dim": 16,
        "hidden": 16,
        "mixer_hidden": 20,
        "head_hidden": 8,
    }
    return ModelConfig(**{**shape, **made, **changes})


def lattice_model(task_name: str = "sudoku4", **changes: object) -> Model:
    model = Model(lattice_config(task_name, **changes), seed=1).requires_grad_(False)
    model.halt.weight.normal_(generator=torch.Generator().manual_seed(1))
    model.halt.bias.fill_(2.0)
    return model


@pytest.mark.parametrize("name", LINES)
def test_a_token_receives_what_the_definition_says(name):
    values, side = 3, 4
    state = torch.randn(2, values * side * side, 5)
    made = relations.sums((name,), state, 1, values).unflatten(1, (values, side, side))
    grid = state.unflatten(1, (values, side, side))
    for value in range(values):
        for row in range(side):
            for column in range(side):
                others = torch.zeros(2, 5)
                for v in range(values):
                    for r in range(side):
                        for c in range(side):
                            is_same = (v, r, c) == (value, row, column)
                            related = {
                                "row": v == value and r == row,
                                "column": v == value and c == column,
                                "box": v == value and (r // 2, c // 2) == (row // 2, column // 2),
                                "value": (r, c) == (row, column),
                                "all": v == value,
                            }[name]
                            if related and (name == "all" or not is_same):
                                others += grid[:, v, r, c]
                length = {"value": values**0.5, "all": side * side}.get(name, side**0.5)
                assert torch.allclose(made[:, value, row, column], others / length, atol=1e-5)


def test_alike_values_cannot_be_told_apart():
    """Renaming the digits of state and puzzle renames what the model says of them, and changes nothing else."""
    task, model = get_task("sudoku4"), lattice_model()
    puzzles = task.split("test", limit=3).puzzles
    renamed = np.array([0, 1, 4, 2, 5, 3], np.uint8)
    made = []
    for tokens in (puzzles, renamed[puzzles]):
        sets = torch.from_numpy(task.candidates(tokens))[..., list(model.config.values)]
        shown = embed_sets(model.weights(), model.config, torch.from_numpy(tokens).long(), sets)
        h = model.step(model.initial_state(3)[0], shown, torch.zeros_like(shown), key(3)).h
        made.append(read_values(model.weights(), model.config, h))
    order = torch.from_numpy(renamed[2:].astype(np.int64)) - 2
    for plain, turned in zip(*made, strict=True):
        assert torch.allclose(plain, turned[..., order], atol=1e-4)


def test_trajectories_do_not_depend_on_slots_and_keep_what_is_given():
    task, model = get_task("sudoku4"), lattice_model()
    puzzles = task.split("test", limit=5).puzzles
    few, many = (sample(model, task, puzzles, SamplerConfig(width=4, slots=slots, launch=2)) for slots in (2, 16))
    assert few.trajectories_sha256 == many.trajectories_sha256
    np.testing.assert_array_equal(few.halt, many.halt)
    is_given = np.repeat(puzzles[:, None], 4, 1) > 1
    np.testing.assert_array_equal(few.candidates[is_given], np.repeat(puzzles[:, None], 4, 1)[is_given])
    assert len(np.unique(few.candidates.reshape(20, -1), axis=0)) > 5  # commitments differ by trajectory


def test_a_trajectory_halts_exactly_where_it_is_solved():
    task, model = get_task("sudoku4"), lattice_model(conflict_above=1.0, drop_below=0.0)
    found = sample(
        model, task, task.split("test", limit=4).puzzles, SamplerConfig(width=3, depth=16, halt_threshold=0.5)
    )
    # Nothing is removed and nothing is a conflict: a token is committed each round, and the last round finds it done.
    blanks = (found.puzzles == 1).sum(1)
    assert (found.halt == UNSOLVED)[~found.is_halted].all()
    expected = np.minimum(blanks + 1, 16)[:, None].repeat(3, 1)
    np.testing.assert_array_equal(found.steps[found.is_halted], expected[found.is_halted])
    assert found.is_halted.any()


def test_views_turn_the_answer_back():
    task, model = get_task("sudoku4"), lattice_model()
    puzzles = task.split("test", limit=3).puzzles
    found = sample(model, task, puzzles, SamplerConfig(width=4, views="random"))
    is_given = np.repeat(puzzles[:, None], 4, 1) > 1
    np.testing.assert_array_equal(found.candidates[is_given], np.repeat(puzzles[:, None], 4, 1)[is_given])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"injector": "prior"}, "injector must be commitment with a lattice, got prior"),
        ({"resampler": "halt"}, "resampler must be none with a lattice, got halt"),
        ({"low_level_updates": 3}, "low_level_updates must be 0 with a lattice, got 3"),
    ],
)
def test_what_only_continuous_states_have_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        resolve(SamplerConfig(**changes), lattice_model())


def test_a_checkpoint_may_have_a_width_policy_of_its_own():
    model = lattice_model(width_policy="trusted")
    assert resolve(SamplerConfig(), model).width_policy == "trusted"
    assert resolve(SamplerConfig(), model).width_threshold == 0.5
    assert resolve(SamplerConfig(width_policy="fixed"), model).width_policy == "fixed"
    own = tiny_model(width_policy="decided")
    assert resolve(SamplerConfig(resampler="halt"), own).width_policy == "fixed"
    assert resolve(SamplerConfig(), tiny_model()).width_policy == "fixed"


def test_a_checkpoint_may_run_some_side_by_side_of_its_own():
    model = lattice_model(width_policy="first-halt", width_stage=4)

    def resolved(**asked):
        config = resolve(SamplerConfig(**asked), model)
        return config.width_policy, config.width_stage

    assert resolved(width=20) == ("first-halt", 4)
    assert resolved(width=2) == ("first-halt", 2), "of a smaller width all"
    assert resolved(width=20, width_stage=8) == ("first-halt", 8)
    assert resolved(width=20, width_policy="first-halt") == ("first-halt", None), "who names the policy names the stage"
    assert resolved(width=20, width_policy="trusted") == ("trusted", None)
    assert resolved(width=20, halting="fixed") == ("fixed", None), "where nothing halts all run"
    assert model.config == config_from_json(ModelConfig, config_to_json(model.config), where="here")
    with pytest.raises(ValueError, match="slots must be at least the 4 trajectories"):
        resolved(width=20, slots=3, launch=1)
    with pytest.raises(ValueError, match="width_stage must come with first-halt, got trusted"):
        resolved(width=20, width_policy="trusted", width_stage=4)
    with pytest.raises(ValueError, match="width_stage must come with first-halt, got fixed"):
        resolve(SamplerConfig(width_stage=4), tiny_model())
    with pytest.raises(ValueError, match="width_stage must come with first-halt, got trusted"):
        lattice_model(width_policy="trusted", width_stage=4)
    with pytest.raises(ValueError, match="width_stage must be within 1 and the width, 1048576, got 0"):
        lattice_model(width_policy="first-halt", width_stage=0)


def test_commitment_is_refused_without_a_lattice():
    with pytest.raises(ValueError, match="injector must be none, prior, gaussian or path for continuous states"):
        resolve(SamplerConfig(injector="commitment"), tiny_model())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance": "full"}, "guidance must be 'none' with a lattice"),
        ({"low_level_updates": 1}, "low_level_updates must be 0 with a lattice"),
        ({"values": (2, 3)}, r"values must be 4 different tokens \(value_tokens\), got \[2, 3\]"),
        ({"values": (2, 3, 4, 6)}, "values must be tokens from 1 to 5"),
        ({"drop_below": 1.5}, "drop_below must be within 0 and 1, got 1.5"),
        ({"latent": "continuous"}, "value_tokens must come with the latent lattice"),
    ],
)
def test_models_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        lattice_config(**changes)


def test_a_configuration_survives_json():
    config = lattice_config()
    values = config_to_json(config)
    assert values["latent"] == "lattice"
    assert values["values"] == [2, 3, 4, 5]
    assert config_from_json(ModelConfig, values, where="test") == config


@pytest.mark.slow
def test_the_compiled_path_says_the_same():
    model = lattice_model()
    task = get_task("sudoku4")
    puzzles = task.split("test", limit=5).puzzles
    sets = torch.from_numpy(task.candidates(puzzles))[..., list(model.config.values)]
    shown = embed_sets(model.weights(), model.config, torch.from_numpy(puzzles).long(), sets)
    start, blank = model.initial_state(5)[0].contiguous(), torch.zeros_like(shown)
    eager, compiled = (
        dispatch.supervision_step(model.weights(), model.spec, start, shown, blank, key(5), kernel=kernel)
        for kernel in ("eager", "compiled")
    )
    assert torch.allclose(eager.h, compiled.h, atol=1e-4)
    assert torch.allclose(eager.halt, compiled.halt, atol=1e-4)


def test_one_lattice_does_every_size_of_sudoku():
    """Also one with another number of digits, which it cannot tell apart."""
    model, larger = lattice_model("sudoku4"), get_task("sudoku6")
    model.resize(resized(model.config, larger))
    puzzles = larger.split("test", limit=3).puzzles
    found = sample(model, larger, puzzles, SamplerConfig(width=2, depth=4))
    assert found.candidates.shape == (3, 2, 36)
    is_given = np.repeat(puzzles[:, None], 2, 1) > 1
    np.testing.assert_array_equal(found.candidates[is_given], np.repeat(puzzles[:, None], 2, 1)[is_given])


def test_a_lattice_of_unlike_values_fits_no_other_number_of_them():
    config = lattice_config("maze5", relations=("row", "column", "value", "all"), mixer_hidden=16)
    assert not config.are_values_alike
    assert resized(config, get_task("maze7")).tokens == 49
    with pytest.raises(ValueError, match="the model is of family maze"):
        resized(config, get_task("sudoku4"))


def test_weights_fit_another_size():
    """No parameter depends on the number of cells or digits."""
    small, large = lattice_model("sudoku4"), lattice_model("sudoku9")
    assert {name: it.shape for name, it in small.state_dict().items() if name != "embedding.weight"} == {
        name: it.shape for name, it in large.state_dict().items() if name != "embedding.weight"
    }
    assert math.isfinite(float(reference.rmsnorm(torch.ones(1, 4), 1e-5).sum()))


def test_spec_counts_every_value():
    config = lattice_config()
    assert config.length == config.spec.length == 4 * 16
    assert replace(config, depth=3).spec == config.spec
