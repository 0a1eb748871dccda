"""KL, its balance and what each part may move."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from gram.training.guidance import Gaussian, balanced_kl, kl, posterior, prior
from tests.models import tiny_model


def gaussians(seed=0, **grad):
    generator = torch.Generator().manual_seed(seed)
    return [
        Gaussian(*(torch.randn(2, 3, 4, generator=generator).mul(0.5).requires_grad_(**grad) for _ in range(2)))
        for _ in range(2)
    ]


def test_kl_equals_torch_distributions():
    q, p = gaussians(requires_grad=False)
    expected = kl_divergence(Normal(q.mean, q.log_sigma.exp()), Normal(p.mean, p.log_sigma.exp())).sum(-1)
    assert torch.allclose(kl(q, p), expected, atol=1e-5)
    assert torch.allclose(kl(q, q), torch.zeros(2, 3), atol=1e-6)


@pytest.mark.parametrize("balance", [0.0, 0.8, 1.0])
def test_balance_shares_the_gradient_not_the_value(balance):
    q, p = gaussians(requires_grad=True)
    value = balanced_kl(q, p, balance)
    assert torch.allclose(value, kl(q, p))
    value.sum().backward()
    plain_q, plain_p = gaussians(requires_grad=True)
    kl(plain_q, plain_p).sum().backward()
    assert torch.allclose(p.mean.grad, balance * plain_p.mean.grad, atol=1e-5)
    assert torch.allclose(q.mean.grad, (1 - balance) * plain_q.mean.grad, atol=1e-5)


def test_posterior_sees_the_target_and_prior_does_not():
    model = tiny_model()
    u, e_y = torch.randn(1, 16, 16), torch.randn(1, 16, 16)
    weights = model.weights()
    assert not torch.equal(posterior(weights, model.spec, u, e_y).mean, posterior(weights, model.spec, u, -e_y).mean)
    assert prior(weights, model.spec, u).mean.shape == (1, 16, 16)


def test_noise_only_guidance_has_no_mean():
    model = tiny_model(guidance="noise")
    assert not prior(model.weights(), model.spec, torch.randn(1, 16, 16)).mean.any()
