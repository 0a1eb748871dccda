"""Weight-sparse training and sparse storage: what is kept, exactly, in training, checkpoint and file."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from gram import checkpoint
from gram.checkpoint import SPARSE_FILE, WEIGHTS_FILE, CheckpointError
from gram.tasks.registry import get_task
from gram.training.config import SPARSE, TrainConfig
from gram.training.recipe import Recipe, RecipeError, load_recipe
from gram.training.run import train
from gram.training.weight_sparsity import kept, kept_count, weight_share
from tests.models import tiny_config, tiny_model

TINY = {"batch": 8, "rollout_slots": 4, "evaluate_puzzles": 4, "evaluate_width": 1, "warmup_steps": 2}


def recipe(**training) -> Recipe:
    values = {"steps": 4, "evaluate_every_steps": 100, **TINY, **training}
    return Recipe("tiny", "", get_task("nqueens4"), tiny_config(), TrainConfig(**values))


def run(path, made: Recipe, **options):
    return train(made, path, device="cpu", dtype="float32", is_compiled=False, **options)


def matrices(model) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in model.named_parameters() if weight.ndim == 2}


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    share=st.floats(0.01, 1.0),
    least=st.integers(0, 4),
    name=st.sampled_from(["low.0.channel.gate_up", "low.0.channel.down"]),
    seed=st.integers(0, 99),
)
def test_the_share_is_kept_exactly_and_every_neuron_has_its_least(rows, columns, share, least, name, seed):
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    mask = kept(name, matrix, share, least)
    axis = 0 if name.endswith("down") else 1
    neurons, inputs = matrix.shape[1 - axis], matrix.shape[axis]
    assert int(mask.sum()) == max(round(share * rows * columns), neurons * min(least, inputs))
    assert int(mask.sum()) == kept_count(matrix.shape, neurons, share, least)
    assert int(mask.sum(axis).min()) >= min(least, inputs)
    # A weight is dropped only where its neuron has its least and no smaller one is kept beyond that.
    largest = matrix.abs().topk(min(least, inputs), axis).indices
    forced = torch.zeros_like(mask).scatter(axis, largest, True)
    free = matrix.abs()[mask & ~forced]
    if len(free) and not mask.all():
        assert float(free.min()) >= float(matrix.abs()[~mask].max())
    assert torch.equal(kept(name, matrix * mask, share, least) & (matrix * mask != 0), mask & (matrix != 0))


def test_the_share_falls_on_a_line_to_its_target():
    training = TrainConfig(steps=10, weight_share=0.25, weight_share_end=0.5)
    assert [weight_share(training, at) for at in (0, 0.25, 0.5, 1)] == [1, 0.625, 0.25, 0.25]
    assert weight_share(replace(training, weight_share_end=0.0), 0) == 0.25


@pytest.mark.parametrize("share", [0.25, 1 / 16])
def test_master_average_and_checkpoint_hold_exactly_the_share(tmp_path, share):
    made = recipe(weight_share=share, weight_least=1)
    run(tmp_path, made)
    model = checkpoint.load(tmp_path)
    for name, weight in matrices(model).items():
        neurons = weight.shape[1 if name.endswith("down") else 0]
        expected = kept_count(weight.shape, neurons, share, 1)
        found = int((weight != 0).sum())
        # A head starts at zero, and may not have learned yet.
        assert found == expected or (found == 0 and name in ("halt.weight", "lprm.weight")), name
    state = load_file(tmp_path / "state.safetensors")
    assert torch.equal(state["flat.master"] != 0, state["flat.average"] != 0)
    assert (tmp_path / SPARSE_FILE).is_file()
    assert not (tmp_path / WEIGHTS_FILE).exists()


def test_a_sparse_run_that_was_stopped_ends_with_the_same_weights(tmp_path):
    made, calls = recipe(weight_share=0.25, steps=6), iter([False, False, False, True])
    run(tmp_path / "whole", made)
    run(tmp_path / "parts", made, should_stop=lambda: next(calls))
    assert json.loads((tmp_path / "parts" / "card.json").read_text())["optimiser_steps"] == 3
    run(tmp_path / "parts", made)
    assert (tmp_path / "whole" / SPARSE_FILE).read_bytes() == (tmp_path / "parts" / SPARSE_FILE).read_bytes()


def test_a_dense_run_neither_names_the_settings_nor_stores_otherwise(tmp_path):
    run(tmp_path, recipe())
    assert not SPARSE.keys() & json.loads((tmp_path / "run.json").read_text())["training"].keys()
    assert (tmp_path / WEIGHTS_FILE).is_file()
    assert not (tmp_path / SPARSE_FILE).exists()


@settings(max_examples=10, deadline=None)
@given(share=st.floats(0, 1), kind=st.sampled_from([torch.float32, torch.bfloat16]), seed=st.integers(0, 99))
def test_sparse_storage_gives_every_bit_back(tmp_path_factory, share, kind, seed):
    folder = tmp_path_factory.mktemp("stored")
    model, generator = tiny_model(seed=seed), torch.Generator().manual_seed(seed)
    for weight in matrices(model).values():
        weight.masked_fill_(torch.rand(weight.shape, generator=generator) > share, 0)
    checkpoint.save(model, folder / "dense", dtype=kind)
    checkpoint.save(model, folder / "sparse", dtype=kind, is_sparse=True)
    dense, sparse = checkpoint.load(folder / "dense"), checkpoint.load(folder / "sparse")
    assert dense.digest() == sparse.digest()
    for one, other in zip(dense.weights().values(), sparse.weights().values(), strict=True):
        assert torch.equal(one, other)
    if share < 0.2:
        sizes = [(folder / place).stat().st_size for place in ("dense/" + WEIGHTS_FILE, "sparse/" + SPARSE_FILE)]
        assert sizes[1] < sizes[0]


def test_equal_weights_are_equal_files(tmp_path):
    for number in range(8):
        checkpoint.save(tiny_model(), tmp_path / str(number), is_sparse=True)
    assert len({(tmp_path / str(number) / SPARSE_FILE).read_bytes() for number in range(8)}) == 1


def test_a_folder_has_one_file_of_weights(tmp_path):
    checkpoint.save(tiny_model(), tmp_path, is_sparse=True)
    checkpoint.save(tiny_model(seed=1), tmp_path)
    assert not (tmp_path / SPARSE_FILE).exists()
    checkpoint.save(tiny_model(), tmp_path, is_sparse=True)
    assert not (tmp_path / WEIGHTS_FILE).exists()
    assert checkpoint.load(tmp_path).digest() == tiny_model().digest()


def damaged(folder, change) -> None:
    model = tiny_model()
    for weight in matrices(model).values():
        weight.masked_fill_(torch.arange(weight.numel()).view_as(weight) % 8 > 0, 0)
    checkpoint.save(model, folder, is_sparse=True)
    tensors = load_file(folder / SPARSE_FILE)
    shapes = {
        name.removesuffix(".indices"): list(model.weights()[name[6:].removesuffix(".indices")].shape)
        for name in tensors
        if name.endswith(".indices")
    }
    header = {"format": "pt", "shapes": json.dumps(shapes)}
    change(tensors, header)
    save_file(tensors, folder / SPARSE_FILE, metadata=header)


NAME = "model.low.0.channel.down"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors, header: header.pop("shapes"), "shapes"),
        (lambda tensors, header: tensors.pop(NAME + ".values"), "indices and values"),
        (lambda tensors, header: tensors.update({NAME + ".values": torch.zeros(1)}), "one length"),
        (
            lambda tensors, header: tensors.update(
                {NAME + ".indices": tensors[NAME + ".indices"].to(torch.int32).flip(0)}
            ),
            "must rise",
        ),
        (lambda tensors, header: tensors[NAME + ".indices"].fill_(7), "must rise"),
        (
            lambda tensors, header: header.update(shapes=header["shapes"].replace("[16, 16]", "[999999999, 999999]")),
            r"must be \[16, 16\]|must be \[\d+, 16\]",
        ),
        (lambda tensors, header: header.update(shapes="{}"), "is missing"),
    ],
)
def test_a_damaged_sparse_file_is_one_line(tmp_path, change, words):
    damaged(tmp_path, change)
    with pytest.raises(CheckpointError, match=words) as raised:
        checkpoint.load(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("share", [0, -0.5, 1.5, float("nan")])
def test_a_share_outside_its_range_is_one_line(share):
    with pytest.raises(ValueError, match="weight_share"):
        TrainConfig(steps=1, weight_share=share)
    with pytest.raises(RecipeError, match="weight_share") as raised:
        load_recipe("nqueens8", weight_share=share)
    assert "\n" not in str(raised.value)
