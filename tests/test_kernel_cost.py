"""The counter of bytes, against cases worked by hand, and the bound on the fused kernel's."""

import pytest
import torch

from gram.kernels import cost, pack
from gram.model import Model
from tests.kernel_presets import shipped_config
from tests.models import tiny_model


def test_eager_count_by_hand():
    """`a [2, 8] + b [8]` moves 16 + 8 + 16 numbers of 4 bytes; a view moves nothing; an expanded tensor counts once."""
    a, b = torch.zeros(2, 8, device="meta"), torch.zeros(8, device="meta")
    assert cost.count_eager(lambda: a.view(16)) == (0, 0)
    assert cost.count_eager(lambda: a + b) == (160, 1)
    assert cost.count_eager(lambda: a + b.expand(2, 8)) == (160, 1)


def test_fused_count_by_hand():
    """T=1, K=2, guided: 4 copies, 3 calls of 3 plus e_x twice, the guide's 2, the heads' 1: 18 states of 16 x 16."""
    model = tiny_model()
    packed = pack.pack(model.weights(), model.spec, torch.float32)
    shared = 4 * (packed.matrix.numel() + packed.tokens.numel() + packed.vector.numel())
    expected = 5 * (18 * 16 * 16 * 4 + 32) + shared
    assert cost.fused_step(model.weights(), model.spec, 5, torch.float32) == (expected, 1)


@pytest.mark.parametrize("name", ["nqueens8", "colouring8"])
def test_the_fused_kernel_moves_far_less(name):
    model = Model(shipped_config(name))
    sizes = (model.weights(), model.spec, 1024, torch.bfloat16)
    eager, fused = cost.eager_step(*sizes), cost.fused_step(*sizes)
    print(name, eager, fused, eager.bytes / fused.bytes)
    assert eager.launches > 100
    assert fused.bytes * 10 < eager.bytes
