"""A model that reads demonstrations: its memory is shared; it is sampled, trained, resumed, refused where it must."""

import numpy as np
import pytest
import torch

from gram import checkpoint
from gram.config import ModelConfig, SamplerConfig, config_from_json, config_to_json
from gram.evals.cost import step_macs
from gram.kernels import dispatch
from gram.model import Model
from gram.sampler.run import resolve, sample
from gram.sizes import resized
from gram.tasks.registry import get_task
from gram.training.config import TrainConfig
from gram.training.demonstration_trainer import DemonstrationTrainer
from gram.training.recipe import Recipe

TASK = get_task("recolour2")
KINDS = ("titans", "no-momentum", "no-forgetting", "delta", "sum", "mean", "none")
SHAPE = ("vocabulary", "tokens", "output_start", "output_tokens", "demonstrations", "relations")


def config(task=TASK, **overrides) -> ModelConfig:
    values = {name: getattr(task, name) for name in SHAPE} | {
        "task": task.name,
        "mixer": "relations",
        "mixer_hidden": 16,
        "positions": "none",
        "guidance": "none",
        "dim": 16,
        "hidden": 16,
        "blocks": 1,
        "encoder_blocks": 1,
        "low_level_updates": 1,
        "depth": 2,
        "memory": "titans",
        "memory_keys": 12,
        "memory_values": 8,
    }
    return ModelConfig(**(values | overrides))


def model(**overrides) -> Model:
    return Model(config(**overrides), seed=1).requires_grad_(False)


PUZZLES = TASK.split("test", limit=6)


@pytest.mark.parametrize("width", [1, 7])
def test_the_memory_is_computed_once_a_task(width, monkeypatch):
    read = []
    embed = Model.embed
    monkeypatch.setattr(
        Model, "embed", lambda self, tokens, *rest: read.append(len(tokens)) or embed(self, tokens, *rest)
    )
    settings = SamplerConfig(width=width, injector="gaussian", sigma=0.5, slots=4, launch=2)
    found = sample(model(), TASK, PUZZLES.puzzles, settings)
    assert found.candidates.shape == (6, width, 64)
    assert read == [1] * 6


def test_a_trajectory_is_the_same_in_any_company():
    own = model()
    settings = SamplerConfig(width=2, injector="gaussian", sigma=0.5, halting="fixed")
    every = sample(own, TASK, PUZZLES.puzzles, settings)
    for row in range(6):
        alone = sample(own, TASK, PUZZLES.puzzles[[row]], settings)
        assert np.array_equal(alone.candidates[0], every.candidates[row])
        assert np.array_equal(alone.halt[0], every.halt[row])


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_depends_on_the_demonstrations_unless_they_are_not_remembered(kind):
    own = model(memory=kind)
    tokens = torch.from_numpy(PUZZLES.puzzles[:1].astype(np.int64))
    other = tokens.clone()
    other[:, 64:128] = torch.from_numpy(PUZZLES.puzzles[1:2, 64:128].astype(np.int64))
    e_x, changed = own.embed(tokens), own.embed(other)
    assert e_x.shape == (1, 64, own.spec.embedded_dim)
    assert torch.equal(e_x[..., :16], changed[..., :16])
    assert torch.equal(e_x, changed) == (kind == "none")


def test_cells_outside_every_grid_are_not_remembered():
    own = model()
    tokens = torch.from_numpy(PUZZLES.puzzles[:1].astype(np.int64))
    nothing = tokens.clone()
    nothing[:, :128] = 1
    other = nothing.clone()
    own.memory.value[1] = 3.0
    assert torch.equal(own.embed(nothing), own.embed(other))
    changed = own.embed(nothing)
    own.memory.value[1] = -3.0
    torch.testing.assert_close(own.embed(nothing)[..., 16:], changed[..., 16:])


def test_one_model_takes_any_number_of_demonstrations(tmp_path):
    checkpoint.save(model(), tmp_path)
    own = checkpoint.load(tmp_path)
    assert own.config == config()
    for count in (1, 2, 16):
        task = get_task(f"recolour{count}")
        own.resize(resized(config(), task))
        assert own.embed(torch.from_numpy(task.split("test", limit=1).puzzles.astype(np.int64))).shape[:2] == (1, 64)


def test_settings_are_kept_and_other_models_know_none_of_them():
    own = config(memory="delta", memory_chunk=64)
    assert config_from_json(ModelConfig, config_to_json(own), where="x") == own
    assert not {"memory", "demonstrations", "encoder_blocks"} & config_to_json(ModelConfig()).keys()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"memory": "lstm"}, "memory must be one of titans"),
        ({"memory_chunk": 48}, "memory_chunk must divide the 64 cells"),
        ({"memory_keys": 0}, "memory_keys must be within 1 and 4096, got 0"),
        ({"encoder_blocks": 0}, "encoder_blocks must be within"),
        ({"demonstrations": 3}, "must be 3 pairs of 64 tokens"),
        ({"demonstrations": 0, "output_start": 0, "tokens": 64}, "memory must come with a task of demonstrations"),
        ({"has_empty_condition": True}, "has_empty_condition must be false"),
        ({"is_conditional": False}, "is_conditional must be True with demonstrations"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(overrides, expected):
    with pytest.raises(ValueError, match=expected):
        config(**overrides)


def test_other_kernels_say_that_they_read_no_memory():
    own = model()
    for kernel in ("compiled", "fused", "gemm"):
        with pytest.raises(ValueError, match=r"eager alone reads a memory|needs a GPU"):
            dispatch.choose(own.device, own.spec, own.dtype, kernel)
    assert resolve(SamplerConfig(width=1000), own, puzzles=10**9).kernel == "eager"


@pytest.mark.parametrize("kind", KINDS)
def test_what_reading_costs_is_counted(kind):
    own = model(memory=kind)
    counted = step_macs(own.config)
    assert bool(counted.get("memory")) == (kind != "none")
    assert dispatch.step_flops(own.weights(), own.spec) == 2 * (counted["core"] + counted.get("memory", 0))


def recipe(**overrides) -> Recipe:
    training = TrainConfig(steps=4, batch=2, evaluate_puzzles=2, warmup_steps=1, learning_rate=1e-2)
    return Recipe("tiny", "", TASK, config(**overrides), training, others=(get_task("recolour3"),))


def trainer(out, **overrides) -> DemonstrationTrainer:
    return DemonstrationTrainer(
        recipe(**overrides), out, device=torch.device("cpu"), dtype=torch.float32, is_compiled=False
    )


@pytest.mark.parametrize("kind", KINDS)
def test_training_moves_every_weight_that_the_memory_has(kind, tmp_path):
    run = trainer(tmp_path, memory=kind)
    before = {name: value.detach().clone() for name, value in run.flat.views(run.flat.master).items()}
    figures = [run.advance() for _ in range(2)]
    assert all(np.isfinite(each["cross_entropy"]) for each in figures)
    after = run.flat.views(run.flat.master)
    moved = {name for name in after if name.startswith("memory.") and not torch.equal(after[name], before[name])}
    assert moved == {name for name in after if name.startswith("memory.")}
    assert bool(moved) == (kind != "none")
    assert set(run.evaluate()) == {"single_accuracy"}


def test_a_run_that_was_stopped_ends_with_the_same_weights(tmp_path):
    whole = trainer(tmp_path / "a")
    for _ in range(4):
        whole.advance()
    (tmp_path / "b").mkdir()
    first = trainer(tmp_path / "b")
    for _ in range(2):
        first.advance()
    first.save("")
    second = trainer(tmp_path / "b")
    assert second.load_state()
    assert second.step == 2
    for _ in range(2):
        second.advance()
    assert torch.equal(whole.flat.average, second.flat.average)


def test_every_beginning_of_the_demonstrations_predicts_the_next_grid(tmp_path):
    run = trainer(tmp_path)
    assert run.shown.demonstrations == 3
    puzzles, answers = run.shown.training_batch(np.random.default_rng(0), 1)
    canvases = torch.from_numpy(np.concatenate([puzzles, answers], 1).astype(np.int64)).unflatten(1, (-1, 64))
    with torch.no_grad():
        e_x = run._embed(run.flat.compute, canvases)
    assert e_x.shape == (3, 64, run.spec.embedded_dim)
    for shown in (1, 2, 3):
        task = get_task(f"recolour{shown}")
        puzzle = canvases[:, : 2 * shown + 1].flatten(1)
        own = Model(resized(config(), task))
        own.load_state_dict(run.flat.views(run.flat.compute.detach()))
        torch.testing.assert_close(own.embed(puzzle)[0], e_x[shown - 1], atol=1e-5, rtol=1e-4)
