"""New weights: one seed is one model, whatever the version of PyTorch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gram.model import init_parameter


def drawn(shape: tuple[int, ...], seed: int, **options) -> torch.Tensor:
    return init_parameter(shape, torch.Generator().manual_seed(seed), **options).detach()


@given(shape=st.tuples(st.integers(1, 40), st.integers(1, 40)), seed=st.integers(0, 2**32), scale=st.floats(0.01, 8))
def test_nothing_lies_beyond_two_standard_deviations(shape, seed, scale):
    deviation = scale * shape[-1] ** -0.5
    assert drawn(shape, seed, scale=scale).abs().max() <= torch.tensor(2 * deviation)


def test_draws_are_of_a_normal_distribution_cut_off():
    draws = drawn((400, 400), 3, fan_in=1)
    kept = 0.954500
    """What lies within two standard deviations."""
    variance = 1 - 4 * 0.053991 / kept  # 1 - 2 b phi(b) / kept, b = 2
    assert float(draws.mean()) == pytest.approx(0, abs=0.01)
    assert float(draws.var()) == pytest.approx(variance, rel=0.01)
    assert float((draws.abs() < 1).float().mean()) == pytest.approx(0.682689 / kept, abs=0.005)


def test_a_seed_gives_what_it_gave():
    """Of a generator's numbers alone, which have been the same in every version."""
    draws = drawn((4, 4), 0)
    assert draws.flatten()[:4].tolist() == pytest.approx([-0.56291991, -0.57618010, -0.12528929, -0.21693940], rel=1e-6)
    generator = torch.Generator().manual_seed(0)
    plain = torch.empty(4, 4).normal_(0.0, 0.5, generator=generator)
    again = torch.empty(4, 4).normal_(0.0, 0.5, generator=generator)
    assert torch.equal(draws, torch.where(plain.abs() > 1, again, plain))


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13),
    reason=f"nn.init.trunc_normal_ of torch {torch.__version__} draws otherwise than that of 2.13",
)
@pytest.mark.parametrize("shape", [(1,), (7, 5), (3, 33, 9)])
def test_draws_are_those_of_the_library(shape):
    theirs = nn.init.trunc_normal_(
        torch.empty(shape), std=shape[-1] ** -0.5, a=-2 * shape[-1] ** -0.5, b=2 * shape[-1] ** -0.5,
        generator=torch.Generator().manual_seed(11),
    )  # fmt: skip
    assert torch.equal(drawn(shape, 11), theirs)
