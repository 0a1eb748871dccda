"""The counter of bytes and of special functions, against cases worked by hand, and the bound on the fused kernel's."""

import pytest
import torch

from gram.kernels import cost
from gram.kernels.fused import pack
from gram.model import Model
from gram.presets import PRESETS, model_config
from tests.kernel_presets import shipped_config
from tests.models import tiny_model


def test_eager_count_by_hand():
    """`a [2, 8] + b [8]` moves 16 + 8 + 16 numbers of 4 bytes; a view moves nothing; an expanded tensor counts once. An
    exponential of each number is one special function, a logarithm none."""
    a, b = torch.zeros(2, 8, device="meta"), torch.zeros(8, device="meta")
    assert cost.count_eager(lambda: a.view(16)) == (0, 0, 0, 0)
    assert cost.count_eager(lambda: a + b) == (160, 1, 160, 0)
    assert cost.count_eager(lambda: a + b.expand(2, 8)) == (160, 1, 160, 0)
    assert cost.count_eager(lambda: (a.exp(), a.log())) == (256, 2, 256, 16)


SPECIAL = 6 * (16 * 8 + 16 * 16 + 2 * 16) + 16 * 8 + 2 * 16 * 16 + 16 * 16 // 2
"""Of a trajectory of the tiny model: six blocks, each with a SiLU of 8 hidden units for each channel and of 16 for each
token and two norms of 16 tokens; the prior's 8 units for each token, a bound and an exponential of each sigma, and a
root for each two normals."""


def test_attention_takes_an_exponential_for_each_score():
    """Six blocks, each with 2 heads of 16 x 16 scores in place of 8 hidden units for each channel. Angles of the rotary
    embedding are a table's."""
    model = tiny_model(mixer="attention", positions="rotary", heads=2)
    counted = cost.eager_step(model.weights(), model.spec, 5, torch.bfloat16)
    assert counted.special_functions == 5 * (SPECIAL + 6 * (2 * 16 * 16 - 16 * 8))


def test_fused_count_by_hand():
    """T=1, K=2: 4 copy both states, the prior takes 2, l is loaded once, h 3 times, e_x twice, 2 are stored, 1 is read.

    That makes 15 states of 16 x 16 numbers. Device memory gives the weights once, the second-level cache to every
    trajectory: two blocks in each of three calls, with 3 x 32 rows of 16 for the tokens and as many for the channels,
    and the prior's 4 x 32 rows. The names of a trajectory are read at the start and for its noise.
    """
    model = tiny_model()
    packed = pack.pack(model.weights(), model.spec, torch.float32)
    shared = 4 * (packed.matrix.numel() + packed.tokens.numel() + packed.vector.numel())
    states = 15 * 16 * 16 * 4 + 2 * 24 + 8
    read = 4 * (3 * 2 * (96 * 16 + 96 * 16) + 128 * 16 + 2 * 17)
    expected = (5 * states + shared, 1, 5 * (states + read), 5 * SPECIAL)
    assert cost.fused_step(model.weights(), model.spec, 5, torch.float32) == expected


def test_gemm_count_by_hand():
    """S numbers in a state of 5 x 16 x 16. Prior: 2S, 1.5S, 2.5S and 7S, weights 512. A block: 12S, weights 3 x 32 x 16
    and 768, the norms' 80 once; its settling 2S inside, 5S, 4S and 2S at the ends of the three calls, 80 each. Heads:
    2S and 10. Copies, both ways: h, l, e_x, both results, rows' names, scores."""
    model = tiny_model()
    s = 5 * 16 * 16
    blocks = 6 * (12 * s + 1536 + 768 + 80)
    settled = 3 * (2 * s + 80) + (5 + 4 + 2) * s + 3 * 80
    operations = 4 * (13 * s + 512 + blocks + settled + 2 * s + 10)
    copies = 2 * (4 * 5 * s + 3 * 5 * 8 + 40)
    launches = 4 + 6 * 4 + 6 + 1 + 8
    assert cost.gemm_step(model.weights(), model.spec, 5, torch.float32) == (
        operations + copies,
        launches,
        operations + copies,
        5 * SPECIAL,
    )


@pytest.mark.parametrize(
    ("preset", "overrides", "less_bytes"),
    [
        ("paper-sudoku", {"tokens": 81, "output_tokens": 81}, 6),
        ("paper-sudoku", {"tokens": 81, "output_tokens": 81, "mixer_norm": "tokens"}, 6),
        ("paper", {"tokens": 81, "output_tokens": 81}, 6),
    ],
    ids=["token", "norm-over-tokens", "attention"],
)
def test_kernel_c_moves_less_at_512(preset, overrides, less_bytes):
    """A step of 64 x 20 trajectories; most of what is left, the library's products move."""
    model = Model(model_config(preset, **overrides))
    sizes = (model.weights(), model.spec, 1280, torch.bfloat16)
    eager, gemm = cost.eager_step(*sizes), cost.gemm_step(*sizes)
    print(preset, overrides, eager, gemm, eager.bytes / gemm.bytes)
    assert gemm.bytes * less_bytes < eager.bytes
    assert gemm.launches * 6 < eager.launches


def test_blocks_count_by_hand():
    """T=1, K=2, two blocks: both states copied (4); two sums of 3 and one of 2, and a block's other 3 moves six times.

    The second blocks' mixers load 1 each; the prior loads and stores, the heads load: 4 + 8 + 18 + 3 + 2 + 1 states.
    """
    model = tiny_model()
    packed = pack.pack(model.weights(), model.spec, torch.float32)
    layout = packed.layout
    block = layout.core_rows * 16 + 3 * layout.mixer_hidden * 16
    shared = 4 * (6 * block + 4 * layout.guidance_hidden * 16 + packed.vector.numel())
    states = 36 * 16 * 16 * 4 + 2 * 24 + 8
    expected = (5 * states + shared, 15, 5 * (states + shared), 5 * SPECIAL)
    assert cost.blocks_step(model.weights(), model.spec, 5, torch.float32) == expected


@pytest.mark.parametrize("name", ["sudoku6", "colouring8", "small", "small-attention"])
def test_the_fused_kernel_moves_a_fiftieth_in_one_launch(name):
    model = Model(model_config(name) if name in PRESETS else shipped_config(name))
    sizes = (model.weights(), model.spec, 1024, torch.bfloat16)
    eager, fused = cost.eager_step(*sizes), cost.fused_step(*sizes)
    print(name, eager, fused, eager.bytes / fused.bytes)
    assert eager.launches > 100
    assert fused.launches == 1
    assert fused.bytes * 50 <= eager.bytes
    assert fused.bytes < cost.blocks_step(*sizes).bytes < eager.bytes
