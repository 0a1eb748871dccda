"""The memory of demonstrations: its definition, its ablations, agreement with titans-pytorch, and how it is carried."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gram.demonstrations import order
from gram.kernels import memory
from gram.kernels.spec import Spec

FIXTURE = Path(__file__).parent.parent / "fixtures" / "titans.npz"
KINDS = ("titans", "no-momentum", "no-forgetting", "delta", "sum")


def drawn(seed: int, rows: int = 2, chunks: int = 3, size: int = 4, keys: int = 6, values: int = 5):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "start": normal(values, keys),
        "keys": normal(rows, chunks, size, keys),
        "values": normal(rows, chunks, size, values),
        "forgetting": normal(rows, chunks).sigmoid(),
        "keep": normal(rows, chunks).sigmoid(),
        "steps": normal(rows, chunks, size).abs(),
    }


def test_it_agrees_with_titans_pytorch():
    with np.load(FIXTURE) as file:
        case = {name: torch.from_numpy(file[name]) for name in file.files}
    expected = case.pop("memory")
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(memory.write(**case)[:, -1], expected, atol=1e-5, rtol=0)


@given(seed=st.integers(0, 99), kind=st.sampled_from(KINDS), chunks=st.integers(1, 4), size=st.integers(1, 4))
def test_a_chunk_follows_the_gradient_of_the_error_at_its_start(seed, kind, chunks, size):
    case = drawn(seed, 1, chunks, size)
    state, momentum = case["start"], torch.zeros_like(case["start"])
    for chunk in range(chunks):
        at = state.clone().requires_grad_()
        said = torch.zeros(size, 5) if kind == "sum" else case["keys"][0, chunk] @ at.T
        errors = (said - case["values"][0, chunk]).square().mean(-1)
        if kind == "sum":  # plain outer products, in the gradient's scale
            outer = torch.einsum("c,cv,ck->vk", *(case[name][0, chunk] for name in ("steps", "values", "keys")))
            gradient = -2 / 5 * outer
        else:
            (gradient,) = torch.autograd.grad((case["steps"][0, chunk] * errors).sum(), at)
        alpha = case["forgetting"][0, chunk] if kind in ("titans", "no-momentum") else 0.0
        eta = case["keep"][0, chunk] if kind in ("titans", "no-forgetting") else 0.0
        momentum = eta * momentum - gradient
        state = (1 - alpha) * state + momentum
    torch.testing.assert_close(memory.write(**case, kind=kind)[0, -1], state, atol=1e-4, rtol=1e-4)


def test_the_memory_after_fewer_demonstrations_is_that_of_these_alone():
    case = drawn(1, chunks=6)
    every = memory.write(**case, every=2)
    assert every.shape[1] == 3
    first = {name: value if name == "start" else value[:, :2] for name, value in case.items()}
    torch.testing.assert_close(memory.write(**first)[:, -1], every[:, 0])


def test_a_token_with_step_0_is_not_written():
    case = drawn(2)
    case["steps"][:, :, 1] = 0
    other = {name: value.clone() for name, value in case.items()}
    other["keys"][:, :, 1], other["values"][:, :, 1] = 7, 7
    torch.testing.assert_close(memory.write(**case), memory.write(**other))


@pytest.mark.parametrize(("kind", "keys", "values"), [("titans", 6, 5), ("delta", 7, 3), ("mean", 4, 4)])
def test_it_stands_behind_the_embedding_and_is_found_there(kind, keys, values):
    spec = Spec(
        tokens=48,
        output_start=32,
        output_tokens=16,
        demonstrations=1,
        dim=12,
        memory=kind,
        memory_keys=keys,
        memory_values=values,
    )
    is_mean = kind == "mean"
    made = memory.Remembered(
        torch.randn(2, *((1, 12) if is_mean else (values, keys))), torch.randn(2, 16, 0 if is_mean else keys)
    )
    e_x = torch.randn(2, 16, 12)
    carried = torch.cat([e_x, memory.fold(made, spec)], -1)
    assert carried.shape[-1] == spec.embedded_dim
    embedding, found = memory.split_memory(carried, spec)
    assert torch.equal(embedding, e_x)
    assert all(torch.equal(one, other) for one, other in zip(found, made, strict=True))


def test_every_cell_is_written_once_and_every_chunk_sees_the_whole_grid():
    places = order(64)
    assert sorted(places.tolist()) == list(range(64))
    for chunk in places.view(4, 16):
        assert {(int(place) // 16, int(place) % 8 // 2) for place in chunk} == {
            (r, c) for r in range(4) for c in range(4)
        }
