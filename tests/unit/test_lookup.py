"""The lookup memory: agreement with Engram's demo, lines and tables, what it reaches, what it costs, where it is
refused."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gram import checkpoint
from gram.config import SamplerConfig, config_from_json, config_to_json
from gram.evals.cost import lookup_share, step_macs
from gram.kernels import dispatch, lookup
from gram.kernels.philox import NoiseKey
from gram.kernels.spec import LINES
from gram.model import Model
from gram.sampler.run import sample
from gram.tasks.registry import get_task
from gram.training.cost import cost_of
from gram.training.recipe import load_recipe
from scripts.compare_engram import LIMIT, differences, load_demo
from tests.models import tiny_config, tiny_model

FIXTURE = Path(__file__).parent.parent / "fixtures" / "engram.npz"
PUZZLES = torch.randint(1, 3, (4, 16), generator=torch.Generator().manual_seed(0))


def key(step: int = 1, rows: int = 4) -> NoiseKey:
    numbers = torch.arange(rows)
    return NoiseKey(3, numbers, numbers, torch.full((rows,), step))


def test_it_agrees_with_the_official_demo():
    with np.load(FIXTURE) as file:
        case = {name: torch.from_numpy(file[name]) for name in file.files}
    assert case["added"].abs().max() > 0.1
    is_same, worst = differences(case)
    assert is_same
    assert worst <= LIMIT


def test_a_folder_without_the_demo_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"must be a folder with engram_demo_v1\.py"):
        load_demo(tmp_path)


@given(least=st.integers(1, 3000), count=st.integers(1, 12))
def test_table_sizes_are_the_next_primes(least, count):
    found = lookup.primes_from(least, count)
    assert found == sorted(set(found))
    assert found[0] >= least
    between = range(max(least, 2), found[-1] + 1)
    assert found == [n for n in between if all(n % d for d in range(2, math.isqrt(n) + 1))]


def test_places_before_a_token_are_on_its_line():
    places = {line: lookup.places_before(line, 36).tolist() for line in LINES}
    at = 2 * 6 + 3  # row 2, column 3: the first of the second box of two rows and three columns
    assert places["text"][at] == [15, 14, 13]
    assert places["row"][at] == [15, 14, 13]
    assert places["column"][at] == [15, 9, 3]
    assert places["diagonal"][at] == [15, 8, 1]
    assert places["antidiagonal"][at] == [15, 10, 5]
    assert places["box"][at] == [15, 36, 36]
    assert places["box"][3 * 6 + 3] == [21, 17, 16]
    assert places["row"][2 * 6 + 1] == [13, 12, 36]
    assert places["text"][0] == [0, 36, 36]
    assert places["antidiagonal"][5] == [5, 36, 36]


@given(vocabulary=st.integers(2, 10**6), lines=st.integers(1, 6))
def test_multipliers_are_odd_and_products_stay_in_int64(vocabulary, lines):
    made = lookup.odd_multipliers(lines, vocabulary)
    assert (made % 2 == 1).all()
    assert int(made.max()) * (vocabulary - 1) < 2**63
    assert len(set(made.flatten().tolist())) == made.numel()


def test_a_token_reaches_the_n_grams_that_it_is_of_and_no_others():
    own = tiny_model(lookup=("row", "column"), lookup_rows=101)
    other = PUZZLES.clone()
    other[:, 5] = 3 - other[:, 5]
    before, after = own.embed(PUZZLES), own.embed(other)
    moved = (before != after)[..., own.spec.dim :].any(-1).any(0)
    assert moved.nonzero().flatten().tolist() == [5, 6, 7, 9, 13]


def test_it_is_gated_by_the_state_and_shared_by_all_steps():
    own = tiny_model(lookup=("text",))
    e_x = own.embed(PUZZLES)
    assert e_x.shape == (4, 16, own.spec.embedded_dim)
    _, found = lookup.split_lookup(e_x, own.spec)
    one, other = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    assert not torch.allclose(lookup.gate(one, found.key), lookup.gate(other, found.key))
    assert ((lookup.gate(one, found.key) > 0) & (lookup.gate(one, found.key) < 1)).all()
    without = e_x.clone()
    without[..., own.spec.dim :] = 0
    h, l = own.initial_state(4)
    assert not torch.allclose(own.step(h, l, e_x, key()).h, own.step(h, l, without, key()).h)


def test_registers_have_no_n_grams():
    own = tiny_model(lookup=("text",), registers=2)
    _, found = lookup.split_lookup(own.embed(PUZZLES), own.spec)
    assert not found.key[:, :2].any()
    assert found.key[:, 2:].any()


def test_every_part_of_it_learns():
    own = Model(tiny_config(lookup=("row", "box")), seed=1)
    h, l = own.initial_state(4)
    own.step(h, l, own.embed(PUZZLES), key()).h.square().mul(torch.randn(16)).sum().backward()
    parts = {name: part.grad for name, part in own.named_parameters() if name.startswith("lookup.")}
    assert set(parts) == {f"lookup.{name}" for name in ("table", "key", "value", "scale", "taps")}
    assert all(grad is not None and grad.abs().sum() > 0 for grad in parts.values())


def test_a_checkpoint_with_it_samples_as_before(tmp_path):
    own, task = tiny_model(lookup=("row",), lookup_rows=31), get_task("nqueens4")
    checkpoint.save(own, tmp_path, card={})
    back = checkpoint.load(tmp_path, dtype=torch.float32)
    assert back.config.lookup == ("row",)
    puzzles = task.split("train", limit=2).puzzles
    settings = SamplerConfig(width=3, seed=1)
    made = [sample(each, task, puzzles, settings).candidates for each in (own, back)]
    assert (made[0] == made[1]).all()


def test_settings_stand_in_json_only_where_they_change_something():
    assert "lookup" not in config_to_json(tiny_config())
    own = tiny_config(lookup=("row", "box"), lookup_rows=31)
    written = config_to_json(own)
    assert written["lookup"] == ["row", "box"]
    assert config_from_json(type(own), written, where="here") == own


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"lookup_rows": 31}, "lookup_rows must come with lookup"),
        ({"lookup": ("row", "row")}, "lookup must be different"),
        ({"lookup": ("knight",)}, "lookup must be different and some of text, row"),
        ({"lookup": ("row",), "lookup_rows": 0}, "lookup_rows must be within 1"),
        ({"lookup": ("row",), "has_empty_condition": True}, "lookup must come with puzzles"),
        ({"lookup": ("row",), "tokens": 15, "output_tokens": 15}, "lookup must be along text"),
    ],
)
def test_what_cannot_be_is_one_line(overrides, words):
    with pytest.raises(ValueError, match=words) as error:
        tiny_config(**overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kernel", ["fused", "blocks", "gemm"])
def test_kernels_of_a_gpu_refuse_it(kernel):
    with pytest.raises(ValueError, match="eager and compiled alone"):
        dispatch.choose(torch.device("cuda"), tiny_config(lookup=("row",)).spec, wanted=kernel)


@pytest.mark.parametrize(
    ("recipe", "lines"), [("nqueens8", ("row", "column", "diagonal")), ("sudoku9", ("row", "box"))]
)
def test_it_costs_at_most_two_percent_of_a_step(recipe, lines):
    plain = load_recipe(recipe)
    values = config_to_json(plain.model) | {"has_empty_condition": False, "lookup": list(lines)}
    own = config_from_json(type(plain.model), values, where="here")
    assert 0.0005 < lookup_share(own, width=20) <= 0.02
    flops = [dispatch.step_flops(Model(each).weights(), each.spec) for each in (plain.model, own)]
    assert flops[1] - flops[0] == 2 * step_macs(own)["lookup"]
    assert cost_of(type(plain)("", "", plain.task, own, plain.training)).step_flops > 1.001 * cost_of(plain).step_flops
