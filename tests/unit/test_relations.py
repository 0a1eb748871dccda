"""The mixer `relations`: sums along the lines of a board, the same weights on any board, refused where it cannot be."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gram import checkpoint
from gram.config import ModelConfig, Relation, config_from_json, config_to_json
from gram.evals.cost import step_macs
from gram.kernels import dispatch, reference, relations
from gram.kernels import spec as spec_module
from gram.kernels.compiled import path as compiled
from gram.kernels.fused import pack
from gram.kernels.gemm import pack as gemm_pack
from gram.kernels.philox import NoiseKey
from gram.model import Model
from gram.sizes import misfit, shape_of
from gram.tasks.registry import get_task
from gram.tasks.sudoku_solver import BOXES, solver
from gram.tasks.views import SYMMETRIES, turn
from gram.training.recipe import load_recipe
from tests.models import tiny_config, tiny_model

LINES = {
    "row": lambda a, b: a[0] == b[0],
    "column": lambda a, b: a[1] == b[1],
    "diagonal": lambda a, b: a[0] - a[1] == b[0] - b[1],
    "antidiagonal": lambda a, b: sum(a) == sum(b),
}
NEIGHBOURS = {
    "up": lambda a, b: (a[0] - 1, a[1]) == b,
    "down": lambda a, b: (a[0] + 1, a[1]) == b,
    "left": lambda a, b: (a[0], a[1] - 1) == b,
    "right": lambda a, b: (a[0], a[1] + 1) == b,
}
RAYS = {
    "above": lambda a, b: b[1] == a[1] and b[0] < a[0],
    "below": lambda a, b: b[1] == a[1] and b[0] > a[0],
    "before": lambda a, b: b[0] == a[0] and b[1] < a[1],
    "after": lambda a, b: b[0] == a[0] and b[1] > a[1],
}
ALL = {"mixer": "relations", "relations": (*LINES, "all"), "mixer_hidden": 20, "positions": "none"}


def test_every_relation_that_settings_know_has_a_table():
    names = relations.fixed(Relation.__args__)
    assert relations.tables(names, 16, torch.device("cpu")).shape == (len(names), 16, 16)


@given(side=st.integers(1, 7), name=st.sampled_from(sorted(LINES)))
def test_a_line_relates_a_square_to_the_others_of_its_line(side, name):
    table = relations.tables((name,), side * side, torch.device("cpu"))[0]
    squares = [(row, column) for row in range(side) for column in range(side)]
    for i, one in enumerate(squares):
        for j, other in enumerate(squares):
            expected = side**-0.5 if i != j and LINES[name](one, other) else 0.0
            assert float(table[i, j]) == pytest.approx(expected)


@pytest.mark.parametrize("name", sorted(NEIGHBOURS))
def test_a_direction_relates_a_square_to_its_neighbour(name):
    table = relations.tables((name,), 25, torch.device("cpu"))[0]
    squares = [divmod(place, 5) for place in range(25)]
    assert table.tolist() == [[float(NEIGHBOURS[name](one, other)) for other in squares] for one in squares]


@pytest.mark.parametrize("name", sorted(RAYS))
def test_a_ray_relates_a_square_to_all_on_one_side(name):
    table = relations.tables((name,), 25, torch.device("cpu"))[0] * 5**0.5
    squares = [divmod(place, 5) for place in range(25)]
    torch.testing.assert_close(table, torch.tensor([[float(RAYS[name](a, b)) for b in squares] for a in squares]))


@pytest.mark.parametrize("side", [4, 5])
def test_the_symmetries_of_the_square_are_all_but_the_identity(side):
    places = np.arange(side * side).reshape(side, side)
    expected = {turn(places, number).tobytes() for number in range(1, SYMMETRIES)}
    tables = relations.tables(tuple(relations.TURNS), side * side, torch.device("cpu"))
    found = {(table @ torch.arange(side * side).float()).long().numpy().tobytes() for table in tables}
    assert found == expected
    assert len(found) == 7


@given(side=st.integers(4, 12), base=st.sampled_from(sorted(relations.RANDOM)))
def test_a_random_relation_has_the_links_of_its_base_among_tokens_in_another_order(side, base):
    plain, found = relations.tables((base, relations.RANDOM[base]), side * side, torch.device("cpu"))
    order = relations._order(relations.RANDOM[base], side * side, torch.device("cpu"))
    assert sorted(order.tolist()) == list(range(side * side))
    assert torch.equal(found[order][:, order], plain)
    assert not torch.equal(found, plain)


def test_random_relations_differ_from_each_other_and_stay_as_they_are():
    orders = {name: relations._order(name, 64, torch.device("cpu")).tolist() for name in relations.BASES}
    assert len({tuple(order) for order in orders.values()}) == len(relations.RANDOM)
    # Checkpoints of models with random relations rest on it.
    assert orders["random-up"][:8] == [25, 11, 13, 58, 26, 62, 5, 29]
    # Links of neighbours stay neighbours as often as chance has it.
    table = relations.tables(("random-up",), 441, torch.device("cpu"))[0]
    heard, near = torch.nonzero(table).T
    apart = (heard // 21 - near // 21).abs() + (heard % 21 - near % 21).abs()
    assert float((apart == 1).float().mean()) < 0.03


def test_a_model_of_random_relations_is_of_one_task_alone():
    task = get_task("maze12")
    names = tuple(relations.RANDOM.get(name, name) for name in task.relations)
    settings = {**ALL, "relations": names, "mixer_hidden": 14, "task": task.name, **shape_of(task)}
    assert misfit(tiny_config(**settings), get_task("maze11")) == "the task has no relation " + ", ".join(names[:-1])


@pytest.mark.parametrize("n", BOXES)
def test_a_box_is_a_box_of_sudoku(n):
    table = relations.tables(("box",), n * n, torch.device("cpu"))[0]
    boxes = solver(n).units[2 * n :]
    for box in boxes:
        for cell in box:
            assert set(torch.nonzero(table[cell]).flatten().tolist()) == {*box} - {cell}
    assert float(table.max()) == pytest.approx(n**-0.5)


@given(side=st.integers(4, 16), axis=st.sampled_from([0, 1]), as_on_gpu=st.booleans(), data=st.data())
def test_sums_by_line_are_the_products_with_the_tables(side, axis, as_on_gpu, data):
    known = [name for name in relations.fixed(Relation.__args__) if name != "box" or not is_prime(side)]
    names = tuple(data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=4, unique=True)))
    x = torch.randn(3, side * side, 2 * len(names), generator=torch.Generator().manual_seed(side))
    tables = relations.tables(names, side * side, torch.device("cpu"))
    expected = torch.cat([table @ part for table, part in zip(tables, x.chunk(len(names), -1), strict=True)], -1)
    with pytest.MonkeyPatch.context() as patch:
        if as_on_gpu:
            patch.setattr(relations, "_line_totals", relations._multiplied)
        found = relations.sums(names, x if axis else x.transpose(0, 1), axis)
    assert torch.allclose(found if axis else found.transpose(0, 1), expected, atol=1e-5)


def is_prime(number):
    return all(number % factor for factor in range(2, number))


def test_a_large_grid_takes_sums_by_line_with_the_gradients_of_the_tables(monkeypatch):
    spec = replace(tiny_model(**ALL).spec, tokens=169, output_tokens=169)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 169, 16, generator=generator, requires_grad=True)
    gate_up, down = torch.randn(40, 16, generator=generator), torch.randn(16, 20, generator=generator)

    def computed():
        y = reference.relate(x, gate_up, down, spec)
        return y, *torch.autograd.grad(y.square().sum(), x)

    assert not spec_module.Spec(tokens=169).are_sums_products
    by_line = computed()
    monkeypatch.setattr(spec_module, "DENSE_TOKENS", 169)
    for found, expected in zip(by_line, computed(), strict=True):
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5 * float(expected.detach().abs().max()))


@pytest.mark.parametrize("tokens", [16, 169])
def test_what_is_compiled_is_the_reference_with_the_token_axis_first(tokens):
    """The module that inductor takes, run as it is; the compiled pieces themselves are tested in `test_compiled.py`."""
    names = ("up", "right", "row", "box", "all") if tokens == 16 else ("up", "right", "random-row", "diagonal", "all")
    model = Model(tiny_config(**{**ALL, "relations": names, "tokens": tokens, "output_tokens": tokens}))
    weights, spec = model.weights(), model.spec
    x = torch.randn(2, tokens, 16, generator=torch.Generator().manual_seed(0))
    expected = reference.core(weights, "low", x, spec)
    first = x.transpose(0, 1)
    found = compiled.Core(spec)(first, torch.zeros_like(first), *compiled.core_weights(weights, "low", spec))
    assert torch.allclose(found.transpose(0, 1), expected, atol=1e-5)


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


def test_flops_of_a_large_grid_grow_with_its_tokens():
    spec = tiny_config(**ALL, tokens=900, output_tokens=900, guidance="none")
    model = Model(spec)
    mixer = 2 * 900 * (3 * 20 * 16) + 2 * 2 * 900 * 20
    channel = 2 * 900 * 3 * 16 * 16
    assert dispatch.step_flops(model.weights(), model.spec) == 3 * spec.blocks * (mixer + channel)
    assert 2 * step_macs(spec)["core"] == 3 * spec.blocks * (mixer + channel)


@pytest.mark.parametrize("name", ["sudoku4", "sudoku9", "nqueens6", "maze12", "arc"])
def test_a_recipe_takes_the_relations_of_its_task(name, tmp_path):
    path = tmp_path / "recipe.toml"
    hidden = 4 * len(get_task(name).relations)
    path.write_text(f'task = "{name}"\n[model]\nmixer = "relations"\nmixer_hidden = {hidden}\n[training]\nsteps = 1\n')
    assert load_recipe(path).model.relations == get_task(name).relations
    path.write_text(path.read_text().replace("[training]", 'relations = ["all"]\n[training]'))
    assert load_recipe(path).model.relations == ("all",)


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
        ({"relations": ("random-all",)}, "got ['random-all']"),
        ({"relations": ("row",), "tokens": 63, "output_tokens": 63}, "square grid"),
        ({"relations": ("row",), "registers": 2}, "2 registers"),
        ({"relations": ("row", "column", "all"), "mixer_hidden": 128}, "share out among 3 relations, got 128"),
        ({"relations": ("box",), "tokens": 49, "output_tokens": 49}, "two factors, got side 7"),
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
