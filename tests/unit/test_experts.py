"""Routed experts: against a loop over tokens, capacity and its drops, the balance loss, refusals, training."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from gram import checkpoint
from gram.config import config_from_json, config_to_json
from gram.evals.cost import step_macs
from gram.kernels import dispatch, experts, reference
from gram.kernels.philox import NoiseKey
from gram.model import Model
from gram.tasks.registry import get_task
from gram.training.config import TrainConfig
from gram.training.recipe import Recipe, load_recipe
from gram.training.run import train
from gram.training.trainer import Trainer
from tests.models import tiny_config, tiny_model

NAME = "low.0.experts."


def drawn(seed: int = 0, **overrides):
    """A model's weights with experts, its spec, and states `[3, 16, 16]`."""
    own = tiny_model(seed, **({"experts": 5, "expert_hidden": 8} | overrides))
    return own.weights(), own.spec, torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(seed))


def token_by_token(x, weights, spec):
    """The definition without a limit: every token is sent through each of its experts."""
    made = torch.zeros_like(x)
    for row, token in [(row, token) for row in range(x.shape[0]) for token in range(x.shape[1])]:
        likely = (weights[NAME + "router"] @ x[row, token]).softmax(-1)
        best, which = likely.topk(spec.experts_kept)
        share = best / best.sum() if spec.experts_kept > 1 else best
        for weight, expert in zip(share, which.tolist(), strict=True):
            parts = weights[NAME + "gate_up"][expert], weights[NAME + "down"][expert]
            made[row, token] += weight * reference.swiglu(x[row, token], *parts)
    return made


@given(seed=st.integers(0, 99), kept=st.integers(1, 5))
def test_without_a_limit_it_is_the_sum_of_the_kept_experts(seed, kept):
    weights, spec, x = drawn(seed, experts_kept=kept, expert_capacity=0)
    torch.testing.assert_close(experts.route(x, weights, NAME, spec), token_by_token(x, weights, spec))


@given(seed=st.integers(0, 99), limit=st.sampled_from([1.0, 1.25, 2.0]))
def test_a_full_expert_drops_those_that_want_it_least_and_counts_them(seed, limit):
    weights, spec, x = drawn(seed, expert_capacity=limit)
    most = math.ceil(limit * 2 * 16 / 5)
    assert experts.capacity(spec) == most
    routed: list[experts.Routing] = []
    experts.route(x, weights, NAME, spec, routed)
    _, wanted = experts.choose(x @ weights[NAME + "router"].T, spec)
    over = (wanted > 0).sum(1).sub(most).clamp(min=0).sum()
    assert float(routed[0].dropped) == pytest.approx(int(over) / (3 * 16 * 2), abs=1e-6)


def test_drops_are_of_one_state_and_do_not_depend_on_company():
    weights, spec, x = drawn(3, expert_capacity=1)
    together = experts.route(x, weights, NAME, spec)
    for row in range(3):
        torch.testing.assert_close(experts.route(x[row : row + 1], weights, NAME, spec)[0], together[row])


def test_the_balance_loss_is_1_where_loads_are_equal_and_e_where_one_takes_all():
    weights, spec, x = drawn(experts_kept=1, expert_capacity=0)
    router = torch.zeros(5, 16)
    router[0, 0] = 50
    routed: list[experts.Routing] = []
    x[..., 0] = 5
    experts.route(x, dict(weights) | {NAME + "router": router}, NAME, spec, routed)
    equal = torch.zeros(5, 16)
    equal[:, :5] = 50 * torch.eye(5)
    x[..., :5] = torch.eye(5).repeat(10, 1)[:48].view(3, 16, 5)
    experts.route(x, dict(weights) | {NAME + "router": equal}, NAME, spec, routed)
    assert float(routed[0].balance) == pytest.approx(5, abs=1e-4)
    assert float(routed[1].balance) == pytest.approx(1, abs=0.01)


def test_the_dense_expert_always_remains():
    own = tiny_model(experts=3)
    weights = {name: torch.zeros_like(it) if ".experts." in name else it for name, it in own.weights().items()}
    plain = {name: it for name, it in own.weights().items() if ".experts." not in name}
    x = torch.randn(2, 16, 16)
    made = reference.core(weights, "low", x, own.spec)
    torch.testing.assert_close(made, reference.core(plain, "low", x, tiny_config().spec))


def test_operations_are_counted_at_capacity():
    own = tiny_model(experts=5, expert_hidden=8)
    plain = tiny_model()
    added = dispatch.step_flops(own.weights(), own.spec) - dispatch.step_flops(plain.weights(), plain.spec)
    places = 5 * math.ceil(1.25 * 2 * 16 / 5)
    calls = 3 * own.spec.blocks
    assert added == 2 * calls * (16 * 5 * 16 + 3 * 16 * 8 * places)
    assert step_macs(own.config)["experts"] == added / 2


def test_settings_stand_in_json_only_where_they_change_something():
    assert not {"experts", "experts_kept"} & set(config_to_json(tiny_config()))
    own = tiny_config(experts=3, expert_capacity=2)
    assert config_from_json(type(own), config_to_json(own), where="here") == own


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"experts": 2, "experts_kept": 3}, "experts_kept must be within 1 and the 2 experts, got 3"),
        ({"experts": 2, "experts_kept": 0}, "experts_kept must be within 1 and the 2 experts, got 0"),
        ({"experts_kept": 3}, "experts must be within 1"),
        ({"experts": -1}, "experts must be within 1"),
        ({"experts": 2, "expert_capacity": 0.5}, "expert_capacity must be 0 or within 1"),
        ({"experts": 2, "expert_hidden": 0}, "expert_hidden must be within 1"),
    ],
)
def test_what_cannot_be_is_one_line(overrides, words):
    with pytest.raises(ValueError, match=words) as error:
        tiny_config(**overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kernel", ["fused", "blocks", "gemm"])
def test_kernels_of_a_gpu_refuse_them(kernel):
    with pytest.raises(ValueError, match="eager and compiled alone"):
        dispatch.choose(torch.device("cuda"), tiny_config(experts=3).spec, wanted=kernel)


def recipe(**overrides) -> Recipe:
    """A few steps of a tiny model with a lookup memory and experts."""
    training = {"steps": 10, "batch": 8, "rollout_slots": 4, "evaluate_puzzles": 4, "evaluate_width": 2}
    model = tiny_config(experts=4, expert_hidden=8, lookup=("row",), lookup_rows=31, task="nqueens4")
    return Recipe("tiny", "", get_task("nqueens4"), model, TrainConfig(**(training | overrides)))


def test_training_logs_drops_and_moves_router_experts_and_tables(tmp_path):
    train(recipe(), tmp_path, is_compiled=False)
    line = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert 0 <= line["experts_dropped"] < 1
    start = Model(recipe().model, seed=0).weights()
    master = load_file(tmp_path / "state.safetensors")
    assert master["flat.master"].isfinite().all()
    made = checkpoint.load(tmp_path, dtype=torch.float32).weights()
    for name in ("low.0.experts.router", "low.1.experts.down", "lookup.table"):
        assert not torch.equal(made[name], start[name].to(torch.bfloat16).float())


def test_the_balance_loss_pulls_on_the_router(tmp_path):
    gradients = []
    for weight in (0.0, 10.0):
        trainer = Trainer(
            recipe(expert_balance=weight),
            tmp_path / str(weight),
            device=torch.device("cpu"),
            dtype=torch.float32,
            is_compiled=False,
        )
        trainer.advance()
        gradients.append(trainer.flat.views(trainer.flat.master.grad)[NAME + "router"].clone())
    assert not torch.allclose(gradients[0], gradients[1])


def test_rows_of_a_step_are_named_by_their_key_alone():
    own = tiny_model(experts=4, lookup=("row",))
    puzzles = torch.randint(1, 3, (4, 16), generator=torch.Generator().manual_seed(1))
    numbers = torch.arange(4)
    key = NoiseKey(1, numbers, numbers, torch.ones_like(numbers))
    e_x = own.embed(puzzles)
    both = own.step(*own.initial_state(4), e_x, key)
    one = own.step(*own.initial_state(2), e_x[2:], key.at(slice(2, 4)))
    torch.testing.assert_close(one.h, both.h[2:])


def test_few_weights_and_experts_together_are_one_line():
    with pytest.raises(ValueError, match="weight_share must be 1 with experts"):
        load_recipe(recipe(), weight_share=0.5)


def test_a_run_without_experts_says_nothing_of_them():
    assert "expert_balance" not in load_recipe("nqueens8").to_json()["training"]
    assert recipe().to_json()["training"]["expert_balance"] == 0.01
