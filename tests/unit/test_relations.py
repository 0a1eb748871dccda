"""The mixer `relations`: sums along the lines of a board, the same weights on any board, refused where it cannot be."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gram import checkpoint
from gram.config import ModelConfig, Relation, config_from_json, config_to_json
from gram.kernels import dispatch, reference, relations
from gram.kernels.fused import pack
from gram.kernels.gemm import pack as gemm_pack
from gram.kernels.philox import NoiseKey
from gram.model import Model
from tests.models import tiny_config, tiny_model

LINES = {
    "row": lambda a, b: a[0] == b[0],
    "column": lambda a, b: a[1] == b[1],
    "diagonal": lambda a, b: a[0] - a[1] == b[0] - b[1],
    "antidiagonal": lambda a, b: sum(a) == sum(b),
}
ALL = {"mixer": "relations", "relations": (*LINES, "all"), "mixer_hidden": 20, "positions": "none"}


def test_every_relation_that_settings_know_has_a_table():
    names = tuple(Relation.__args__)
    assert relations.tables(names, 16, torch.device("cpu")).shape == (len(names), 16, 16)


@given(side=st.integers(1, 7), name=st.sampled_from(sorted(LINES)))
def test_a_line_relates_a_square_to_the_others_of_its_line(side, name):
    table = relations.tables((name,), side * side, torch.device("cpu"))[0]
    squares = [(row, column) for row in range(side) for column in range(side)]
    for i, one in enumerate(squares):
        for j, other in enumerate(squares):
            expected = side**-0.5 if i != j and LINES[name](one, other) else 0.0
            assert float(table[i, j]) == pytest.approx(expected)


def test_gated_sums_against_loops():
    spec = tiny_model(**ALL).spec
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 16, 16, generator=generator)
    gate_up, down = torch.randn(40, 16, generator=generator), torch.randn(16, 20, generator=generator)
    expected = torch.zeros_like(x)
    for row in range(3):
        for i in range(16):
            hidden = torch.zeros(20)
            for number, name in enumerate(spec.relations):
                part = slice(4 * number, 4 * number + 4)
                said = x[row] @ gate_up[20:][part].T
                heard = [
                    said[j] / 16 if name == "all" else said[j] / 2
                    for j in range(16)
                    if name == "all" or (j != i and LINES[name](divmod(i, 4), divmod(j, 4)))
                ]
                hidden[part] = torch.nn.functional.silu(gate_up[:20][part] @ x[row, i]) * sum(heard)
            expected[row, i] = down @ hidden
    assert torch.allclose(reference.relate(x, gate_up, down, spec), expected, atol=1e-4)


def test_no_parameter_depends_on_the_board():
    small, large = (Model(tiny_config(**ALL, tokens=n * n, output_tokens=n * n)) for n in (4, 9))
    assert {name: weight.shape for name, weight in small.weights().items()} == {
        name: weight.shape for name, weight in large.weights().items()
    }
    large.load_state_dict(small.state_dict())
    assert torch.isfinite(large.step(*large.initial_state(1), large.embed(torch.ones(1, 81, dtype=torch.long)),
                                     NoiseKey(0, *torch.tensor([[1], [0], [1]]))).h).all()  # fmt: skip


@pytest.mark.parametrize("axis", [1, 2])
def test_a_mirrored_board_gives_the_mirrored_answer_where_the_mirrored_lines_are_alike(axis):
    """Rows and columns map to themselves under a mirror, so a model of these alone answers mirrored puzzles alike."""
    model = tiny_model(**{**ALL, "relations": ("row", "column", "all"), "mixer_hidden": 21}, guidance="none")
    puzzles = torch.randint(1, 3, (2, 4, 4), generator=torch.Generator().manual_seed(0))
    rows = torch.arange(2)

    def answered(boards):
        out = model.step(
            *model.initial_state(2), model.embed(boards.flatten(1)), NoiseKey(0, rows, rows, rows),
        )  # fmt: skip
        return model.decode(out.h).view(2, 4, 4, -1)

    assert torch.allclose(answered(puzzles).flip(axis), answered(puzzles.flip(axis)), atol=1e-5)


def test_flops_count_the_products_along_relations():
    model = tiny_model(**ALL, guidance="none")
    mixer = 2 * 16 * (3 * 20 * 16) + 2 * 16 * 16 * 20
    channel = 2 * 16 * 3 * 16 * 16
    assert dispatch.step_flops(model.weights(), model.spec) == 3 * model.spec.blocks * (mixer + channel)


@pytest.mark.parametrize("unsupported_reason", [pack.unsupported_reason, gemm_pack.unsupported_reason])
def test_the_kernels_that_lack_it_refuse_in_one_line(unsupported_reason):
    reason = unsupported_reason(replace(tiny_model().spec, mixer="relations", relations=("row",)))
    assert reason is not None
    assert "relations" in reason
    assert "\n" not in reason


def test_a_checkpoint_keeps_the_relations(tmp_path):
    model = tiny_model(**ALL)
    checkpoint.save(model, tmp_path / "model", card={"task": "nqueens4"}, dtype=torch.float32)
    kept = checkpoint.load(tmp_path / "model", dtype=torch.float32)
    assert kept.config == model.config
    assert kept.digest() == model.digest()
    assert config_from_json(ModelConfig, config_to_json(model.config), where="config.json") == model.config


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"relations": ()}, "relations must be different and some of row"),
        ({"relations": ("row", "row")}, "relations must be different"),
        ({"relations": ("knight",)}, "got ['knight']"),
        ({"relations": ("row",), "tokens": 63, "output_tokens": 63}, "square grid"),
        ({"relations": ("row",), "registers": 2}, "2 registers"),
        ({"relations": ("row", "column", "all"), "mixer_hidden": 128}, "share out among 3 relations, got 128"),
        ({"mixer": "token", "relations": ("row",)}, "must come with the mixer relations, got mixer token"),
    ],
)
def test_what_does_not_go_together_is_one_line(values, words):
    with pytest.raises(ValueError, match="relations") as error:
        ModelConfig(**{"mixer": "relations", **values})
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["row", [1, 2], [["row"]], None])
def test_relations_of_a_file_must_be_a_list_of_names(value):
    with pytest.raises(ValueError, match="relations must be a list of names"):
        config_from_json(ModelConfig, {"mixer": "relations", "relations": value}, where="config.json")
