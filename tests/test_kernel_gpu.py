"""The fused kernel on a GPU, against the reference in float64; runs only where there is one."""

import pytest
import torch

from gram.kernels import pack, reference
from tests.models import tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize("mixer", ["token", "attention"])
@pytest.mark.parametrize("tokens", [9, 63, 64, 81])
def test_equals_float64(dtype, limit, mixer, tokens):
    """Relative error of the states; norms and noise are fp32 there too, and bf16 rounds every activation (2^-9)."""
    from gram.kernels import transition

    model = tiny_model(
        mixer=mixer, tokens=tokens, output_tokens=tokens, dim=128, heads=4, hidden=256, mixer_hidden=128,
        positions="both", guidance_hidden=128,
    ).to("cuda", dtype)  # fmt: skip
    generator = torch.Generator("cuda").manual_seed(0)
    shape, rows = (33, tokens, 128), torch.arange(33, device="cuda")
    h, l, e_x = (torch.randn(shape, generator=generator, device="cuda").to(dtype) for _ in range(3))
    keys = {"seed": 2**40 + 3, "puzzle_hash_B": rows % 5, "trajectory_B": rows, "step_B": rows % 3}
    out = (torch.full((2, *shape), float("nan"), device="cuda", dtype=dtype), torch.full((2, 33), 0.0, device="cuda"))
    packed = pack.pack(model.weights(), model.spec, dtype)
    actual = transition.supervision_step(packed, model.spec, h, l, e_x, out=out, **keys)
    weights = {name: tensor.double() for name, tensor in model.weights().items()}
    expected = reference.supervision_step(weights, model.spec, h.double(), l.double(), e_x.double(), **keys)
    for one, other in ((actual.h, expected.h), (actual.l, expected.l)):
        gap = (one.double() - other).square().mean().sqrt() / other.square().mean().sqrt()
        assert float(gap) <= limit
    alone = transition.supervision_step(
        packed, model.spec, h[7:8], l[7:8], e_x[7:8], **{k: v if k == "seed" else v[7:8] for k, v in keys.items()}
    )
    assert torch.equal(alone.h[0], actual.h[7])
