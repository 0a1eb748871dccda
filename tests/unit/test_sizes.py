"""One model for tasks of several sizes: what it takes, what it refuses, training by turns, graphs as relations."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gram
from gram import checkpoint
from gram.config import ModelConfig, SamplerConfig
from gram.kernels import reference, relations
from gram.kernels.compiled import path as compiled
from gram.kernels.philox import NoiseKey
from gram.model import Model
from gram.sampler.run import sample
from gram.sizes import fits, misfit, resized, settings_for
from gram.tasks.colouring import EDGE, Colouring
from gram.tasks.nqueens import SIZES as SIDES
from gram.tasks.registry import get_task
from gram.training.puzzles import TrainingPuzzles
from gram.training.recipe import RecipeError, load_recipe
from gram.training.trainer import Trainer

QUEENS = {"task": "nqueens6", "tokens": 36, "output_tokens": 36, "mixer_hidden": 20}
SIZES = """
task = "nqueens6"
tasks = ["nqueens5"]
[model]
preset = "small"
mixer = "relations"
positions = "none"
dim = 16
hidden = 16
mixer_hidden = 20
guidance_hidden = 8
depth = 3
[training]
steps = 6
batch = 8
rollout_slots = 4
evaluate_every_steps = 6
evaluate_puzzles = 4
evaluate_width = 2
checkpoint_every_steps = 3
"""


def queens(**changes):
    relations = get_task("nqueens6").relations
    return ModelConfig(**{"mixer": "relations", "relations": relations, "positions": "none", **QUEENS, **changes})


def graph_config(n, **changes):
    task = get_task(f"colouring{n}")
    shape = {name: getattr(task, name) for name in ("vocabulary", "tokens", "output_start", "output_tokens")}
    small = {"dim": 16, "hidden": 24, "mixer_hidden": 20, "guidance_hidden": 8, "depth": 3, "positions": "none"}
    return ModelConfig(task=task.name, mixer="relations", relations=("graph", "all"), **{**shape, **small, **changes})


def graph_model(n, **changes):
    return Model(graph_config(n, **changes))


@pytest.mark.parametrize(
    ("config", "task", "words"),
    [
        (queens(), "nqueens9", None),
        (queens(), "maze6", "of family nqueens"),
        (queens(positions="learned"), "nqueens9", "parameters of its own size"),
        (queens(mixer="token", relations=()), "nqueens9", "parameters of its own size"),
        (graph_config(8), "colouring14", None),
        (queens(task="sudoku6", vocabulary=8, relations=("row",)), "sudoku9", "vocabulary is 8"),
        (queens(relations=("row", "up")), "nqueens9", "no relation up"),
        (queens(), "nqueens6", None),
    ],
)
def test_what_a_model_can_do_is_one_clause(config, task, words):
    found = misfit(config, get_task(task))
    assert (found is None) == (words is None) == fits(config, task)
    if words is not None:
        assert words in found
        with pytest.raises(ValueError, match="task must be one that a model of") as error:
            resized(config, get_task(task))
        assert "\n" not in str(error.value)


def test_a_resized_configuration_is_that_of_the_other_task_with_settings_of_its_own():
    card = {"tasks": {"nqueens9": {"settings": {"depth": 21}}, "nqueens10": {}}}
    found = resized(queens(), get_task("nqueens9"), settings_for(card, "nqueens9"))
    assert (found.task, found.tokens, found.output_tokens, found.depth) == ("nqueens9", 81, 81, 21)
    assert settings_for(card, "nqueens10") == settings_for({}, "nqueens9") == {}
    assert resized(queens(), get_task("nqueens6")) == queens()


def test_an_unknown_task_is_no_task_that_fits():
    assert not fits(queens(), "nqueens99")


def test_a_checkpoint_samples_another_size_and_keeps_its_own(tmp_path):
    checkpoint.save(Model(queens(dim=16, hidden=16)), tmp_path, card={"task": "nqueens6"})
    sampler = gram.load(tmp_path, task="nqueens7", device="cpu")
    puzzles = sampler.task.split("validation", limit=2).puzzles
    found = sampler.sample(puzzles, width=2, depth=2)
    assert found.answers.shape == (2, 49)
    assert gram.load(tmp_path, device="cpu").task.name == "nqueens6"
    with pytest.raises(ValueError, match="got maze6"):
        gram.load(tmp_path, task="maze6", device="cpu")


def test_the_best_checkpoint_of_a_task_is_told_by_cards(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHIPPED", tmp_path)
    model = Model(queens(dim=16, hidden=16))
    listed = {"nqueens8": {"figures": {"accuracy": 0.9}}}
    own = Model(queens(task="nqueens8", tokens=64, output_tokens=64, dim=16, hidden=16))
    checkpoint.save(model, tmp_path / "many", card={"figures": {"accuracy": 0.5}, "tasks": listed})
    checkpoint.save(own, tmp_path / "one", card={"figures": {"accuracy": 0.8}})
    assert [checkpoint.default_for(f"nqueens{n}") for n in (6, 8, 9)] == ["many"] * 3
    checkpoint.save(own, tmp_path / "one", card={"figures": {"accuracy": 0.95}})
    assert checkpoint.default_for("nqueens8") == "one"
    hard = {"hard": {"accuracy": 0.4}}
    checkpoint.save(own, tmp_path / "other", card={"figures": {"accuracy": 0.9}, **hard})
    assert checkpoint.default_for("nqueens8") == "other"
    assert checkpoint.default_for("nqueens6") == "many"
    with pytest.raises(checkpoint.CheckpointError, match="no shipped checkpoint solves task 'maze6'"):
        checkpoint.default_for("maze6")


def test_continuous_states_come_before_a_lattice_but_on_hard_puzzles(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHIPPED", tmp_path)
    shape = {"dim": 16, "hidden": 16, "values": (1, 2), "value_tokens": 2}
    lattice = Model(queens(latent="lattice", guidance="none", low_level_updates=0, **shape))
    sure = {"figures": {"accuracy": 1.0}}
    checkpoint.save(lattice, tmp_path / "lattice", card={**sure, "tasks": {"nqueens7": sure, "nqueens8": sure}})
    checkpoint.save(Model(queens(dim=16, hidden=16)), tmp_path / "noisy", card={"figures": {"accuracy": 0.6}})
    assert checkpoint.default_for("nqueens6") == "noisy", "it takes every injector and resampler"
    assert checkpoint.default_for("nqueens7") == "lattice", "the other is of one size"
    checkpoint.save(lattice, tmp_path / "lattice", card={**sure, "hard": {"accuracy": 0.5}})
    assert checkpoint.default_for("nqueens6") == "lattice"


def test_every_board_of_queens_has_a_shipped_checkpoint_that_solves_it():
    chosen = {f"nqueens{n}": checkpoint.default_for(f"nqueens{n}") for n in SIDES}
    assert {name: found for name, found in chosen.items() if found != "queens"} == {
        name: name for name in ("nqueens8", "nqueens10")
    }, "of these, continuous models are shipped"
    for name, found in chosen.items():
        sampler = gram.load(found, task=name, device="cpu")
        puzzles = sampler.task.split("validation", limit=2)
        answers = sampler.sample(puzzles, width=4, launch=8).answers
        assert sampler.task.verify(puzzles.puzzles, answers).all(), name


def test_training_takes_the_sizes_by_turns_and_goes_on_bit_for_bit(tmp_path):
    (tmp_path / "sizes.toml").write_text(SIZES)
    recipe = load_recipe(tmp_path / "sizes.toml")
    assert recipe.to_json()["tasks"] == ["nqueens5"]

    def trainer(name):
        (tmp_path / name).mkdir(exist_ok=True)
        options = {"device": torch.device("cpu"), "dtype": torch.float32, "is_compiled": False}
        return Trainer(recipe, tmp_path / name, **options)

    whole = trainer("whole")
    for _ in range(6):
        whole.advance()
    assert all(lane.slots.started > 8 for lane in whole.lanes)
    part = trainer("part")
    for _ in range(3):
        part.advance()
    part.save_state()
    rest = trainer("part")
    assert rest.load_state()
    for _ in range(3):
        rest.advance()
    assert torch.equal(rest.flat.compute, whole.flat.compute)
    figures = whole.evaluate()
    assert {"single_accuracy", "nqueens5/single_accuracy", "nqueens6/coverage_pooled"} <= figures.keys()
    assert figures["single_accuracy"] == pytest.approx(
        (figures["nqueens5/single_accuracy"] + figures["nqueens6/single_accuracy"]) / 2
    )


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('["nqueens5"]', '["nqueens6"]', "tasks must be different ones beside nqueens6"),
        ('["nqueens5"]', '["maze6"]', "got maze6"),
        ('["nqueens5"]', "[5]", "tasks must be a list of names"),
        ('["nqueens5"]', '"nqueens5"', "tasks must be a list of names"),
        ('positions = "none"', 'positions = "learned"', "parameters of its own size"),
    ],
)
def test_a_recipe_of_sizes_that_do_not_go_together_is_one_line(tmp_path, old, new, words):
    (tmp_path / "sizes.toml").write_text(SIZES.replace(old, new))
    with pytest.raises(RecipeError, match="task") as error:
        load_recipe(tmp_path / "sizes.toml")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_of_puzzles_is_refused_for_several_sizes(tmp_path):
    (tmp_path / "sizes.toml").write_text(SIZES)
    with pytest.raises(RecipeError, match="trains on several tasks"):
        gram.train(tmp_path / "sizes.toml", tmp_path / "out", puzzles=tmp_path / "none.csv")


# Graphs: each puzzle brings a relation of its own.


def test_kernels_and_tasks_mean_the_same_token_by_an_edge():
    assert relations.EDGE == EDGE


@given(n=st.integers(3, 9), seed=st.integers(0, 99))
def test_the_graph_of_a_puzzle_is_its_matrix(n, seed):
    task = Colouring(n)
    puzzles, _ = task.training_batch(np.random.default_rng(seed), 3)
    found = relations.graphs(torch.from_numpy(puzzles.astype(np.int64)), n)
    for puzzle, matrix in zip(puzzles, found, strict=True):
        edges = {tuple(pair) for pair, token in zip(task.pairs.tolist(), puzzle, strict=False) if token == EDGE}
        expected = [[0.5 * ((min(a, b), max(a, b)) in edges) for b in range(n)] for a in range(n)]
        assert matrix.tolist() == expected


def test_a_nodes_sums_are_over_its_neighbours():
    spec = graph_config(5).spec
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 16, generator=generator)
    gate_up, down = torch.randn(40, 16, generator=generator), torch.randn(16, 20, generator=generator)
    joined = torch.zeros(2, 5, 5)
    joined[0, 1, 2] = joined[0, 2, 1] = joined[1, 0, 4] = joined[1, 4, 0] = 0.5
    gate, up = (x @ gate_up.T).chunk(2, -1)
    heard = torch.zeros_like(up)
    for row in range(2):
        for i in range(5):
            for j in range(5):
                heard[row, i, :10] += joined[row, i, j] * up[row, j, :10]
                heard[row, i, 10:] += up[row, j, 10:] / 5
    expected = (torch.nn.functional.silu(gate) * heard) @ down.T
    assert torch.allclose(reference.relate(x, gate_up, down, spec, joined), expected, atol=1e-4)


def test_a_model_of_graphs_answers_renamed_nodes_alike():
    """The puzzle under a permutation of its nodes gives the permuted answer: nothing knows a node's number."""
    task, model = get_task("colouring6"), graph_model(6, guidance="none")
    puzzles, _ = task.training_batch(np.random.default_rng(0), 4)
    words = np.random.default_rng(1).integers(0, 2**32, (4, 6), dtype=np.uint32)
    views = task.symmetry(puzzles, words)
    rows = torch.arange(4)

    def answered(tokens):
        e_x = model.embed(torch.from_numpy(tokens.astype(np.int64)))
        out = model.step(*model.initial_state(4), e_x, NoiseKey(0, rows, rows, rows))
        return model.decode(out.h)

    nodes = torch.from_numpy(views.positions[:, task.output_start :] - task.output_start)
    expected = torch.take_along_dim(answered(puzzles), nodes[:, :, None], 1)
    assert torch.allclose(answered(views.apply(puzzles)), expected, atol=1e-5)


def test_the_graph_travels_with_every_trajectory():
    """The engine in one launch of mixed puzzles gives the answers of puzzles alone, views included."""
    task, model = get_task("colouring7"), graph_model(7)
    puzzles, _ = task.training_batch(np.random.default_rng(0), 3)
    for views in ("off", "random"):
        settings = SamplerConfig(width=3, depth=3, views=views, halting="fixed", slots=4, launch=4)
        together = sample(model, task, puzzles, settings).candidates
        alone = [sample(model, task, puzzles[[row]], settings).candidates[0] for row in range(3)]
        assert np.array_equal(together, np.stack(alone))


def test_what_is_compiled_of_graphs_is_the_reference():
    model = graph_model(6)
    weights, spec = model.weights(), model.spec
    generator = torch.Generator().manual_seed(0)
    x, joined = torch.randn(3, 6, 16, generator=generator), torch.rand(3, 6, 6, generator=generator)
    first = x.transpose(0, 1)
    found = compiled.Core(spec)(
        first, torch.zeros_like(first), *compiled.core_weights(weights, "low", spec), joined.transpose(0, 1)
    )
    assert torch.allclose(found.transpose(0, 1), reference.core(weights, "low", x, spec, joined), atol=1e-5)


def test_the_empty_condition_has_no_edges():
    model = graph_model(6, has_empty_condition=True)
    assert not model.embed_empty(2)[..., 16:].any()


def test_a_model_of_graphs_learns_all_names_of_the_colours():
    task, config = get_task("colouring6"), graph_config(6)
    recipe_training = replace(load_recipe("colouring8").training, evaluate_puzzles=4)
    source = TrainingPuzzles(task, config, recipe_training)
    puzzles, targets = source.draw(np.random.default_rng(0), 60)
    assert task.verify(puzzles, targets).all()
    assert {*targets[:, 0].tolist()} == {3, 4, 5}  # the first node has any colour
    listed = source.solutions(puzzles[0])
    assert len(listed) == 6 * task.count_solutions(puzzles[0])
    assert len(np.unique(task.canonical(listed), axis=0)) == task.count_solutions(puzzles[0])


def test_renamings_leave_what_is_no_colour():
    task = get_task("colouring3")
    found = task.renamings(np.array([[3, 0, 5]], dtype=np.uint8))
    assert found.shape == (6, 1, 3)
    assert sorted(found[:, 0].tolist()) == [[3, 0, 4], [3, 0, 5], [4, 0, 3], [4, 0, 5], [5, 0, 3], [5, 0, 4]]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"relations": ("graph", "row")}, "must be graph and all, got row"),
        ({"tokens": 37}, "of a graph's pairs and then its nodes"),
        ({"registers": 2}, "and 2 registers"),
    ],
)
def test_graphs_that_are_none_are_one_line(values, words):
    with pytest.raises(ValueError, match="relations") as error:
        replace(graph_config(8), **values)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
