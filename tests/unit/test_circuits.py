"""Circuits: a planted one is found, needed and enough; a control without a rule has none; files, page and command."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from gram import checkpoint
from gram.cli.main import main
from gram.evals.circuits.behaviour import SHIPPED, BehaviourError, read_behaviour, shipped_behaviours
from gram.evals.circuits.contrasts import behaviours
from gram.evals.circuits.graph import count_edges, graph_of
from gram.evals.circuits.masked import MaskedModel
from gram.evals.circuits.pruning import BehaviourJudge, prune
from gram.evals.circuits.study import open_model, study
from gram.evals.pages.circuit_page import render
from gram.kernels.philox import NoiseKey
from gram.kernels.spec import Injection
from gram.model import Model
from gram.tasks.registry import get_task
from tests.models import tiny_config, tiny_model

ROOT = Path(__file__).parents[2]
TARGET = 0.001
"""Low enough that no digit can be left out."""
BLANK, DIGITS, OUTS, CLUTTER = 0, range(1, 5), range(5, 9), range(9, 16)


def planted() -> Model:
    """A model of 4x4 Sudoku that knows one thing: a blank is none of the digits of its row. Four hidden units sum one
    digit each over the row, and write against it; everything else is clutter that nothing reads."""
    config = tiny_config(
        task="sudoku4",
        vocabulary=6,
        mixer="relations",
        relations=("row", "column", "box", "all"),
        mixer_hidden=16,
        hidden=8,
        positions="none",
        guidance="none",
        blocks=1,
        depth=1,
        low_level_updates=1,
        noise_free_steps=0,
    )
    model = Model(config).requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    block = model.low[0]
    clutter = torch.zeros(16)
    clutter[list(CLUTTER)] = 1
    for name, weight in model.named_parameters():
        if name != "decoder.weight":
            weight.normal_(generator=generator).mul_(0.3)
    model.embedding.weight.mul_(clutter)
    block.mixer.gate_up.mul_(clutter)
    block.mixer.down.mul_(clutter[:, None])
    block.channel.gate_up.mul_(clutter)
    block.channel.down.mul_(clutter[:, None])
    model.decoder.weight.zero_()
    model.z0_h.zero_()
    model.z0_l.zero_()
    model.embedding.weight[1, BLANK] = 1.0
    for number, (digit, out) in enumerate(zip(DIGITS, OUTS, strict=True)):
        model.embedding.weight[1 + digit, digit] = 1.0
        for row in (number, 16 + number):
            block.mixer.gate_up[row] = 0
        block.mixer.down[:, number] = 0
        block.mixer.gate_up[number, BLANK] = 1.0
        block.mixer.gate_up[16 + number, digit] = 1.0
        block.mixer.down[out, number] = -1.0
        model.decoder.weight[1 + digit, out] = 6.0
    return model


@pytest.fixture(scope="module")
def found():
    model, behaviour = open_model(planted(), read_behaviour("sudoku4-row")), read_behaviour("sudoku4-row")
    return model, behaviour, *study(model, behaviour, target=TARGET, steps=60)


def test_a_planted_circuit_is_found_and_nothing_else(found):
    _, _, made, graph = found
    assert made["is_reached"]
    assert made["loss"] <= TARGET
    kept = {node["id"] for node in graph.nodes if node["kind"] in ("state", "mixer", "channel", "prior")}
    # The gate reads that a cell is blank, as its mean will do.
    assert kept == {f"state.{channel}" for channel in (*DIGITS, *OUTS)} | {f"low.0.mixer.{unit}" for unit in range(4)}
    assert made["nodes"] == 12 < made["nodes_of"] == 40
    assert made["edges"] == len(graph.edges) == 16 < made["edges_of"] / 20
    sums = [node["words"] for node in graph.nodes if node["kind"] == "mixer"]
    assert sums
    assert set(sums) == {"sums over row"}


def test_a_planted_circuit_is_enough_and_needed(found):
    _, _, made, _ = found
    assert made["whole"]["accuracy"] == made["circuit"]["accuracy"] == 1
    assert made["circuit"]["low"] > 0.8
    assert made["ablated"]["accuracy"] == 0.5
    assert made["ablated"]["loss"] > 0.6
    assert made["random"]["accuracy"] < 0.8


def test_shuffled_labels_have_no_small_circuit(found):
    model, behaviour, made, _ = found
    control = prune(model, behaviour.halves()[0].shuffled(0), TARGET, steps=60)
    assert not control.is_reached
    assert control.nodes == made["nodes_of"]


def test_edges_are_the_nonzero_weights_between_kept_nodes(found):
    model, behaviour, _, _ = found
    none = {site: torch.zeros(size) for site, size in model.sizes.items()}
    assert count_edges(model, behaviour, none) == 0
    one = {**none, "state": none["state"].clone(), "low.0.mixer": none["low.0.mixer"].clone()}
    one["state"][[BLANK, 2, 6]] = 1
    one["low.0.mixer"][1] = 1
    edges = {(edge.source, edge.target, edge.matrix) for edge in graph_of(model, behaviour, one).edges}
    assert edges == {
        ("token.blank", "state.0", "embedding"),
        ("token.2", "state.2", "embedding"),
        ("state.0", "low.0.mixer.1", "low.0.mixer.gate"),
        ("state.2", "low.0.mixer.1", "low.0.mixer.up"),
        ("low.0.mixer.1", "state.6", "low.0.mixer.down"),
        ("state.6", "value.2", "decoder"),
    }


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"guidance": "none", "mixer_norm": "tokens"},
        {"guidance": "mean", "noise_order": "after", "transitions": 2, "noise_free_steps": 0},
        {"guidance": "noise", "is_core_shared": False, "path_keep": 0.2},
        {"mixer": "relations", "relations": ("row", "all"), "positions": "none", "low_level_updates": 0},
        {"registers": 2, "blocks": 1},
    ],
)
def test_the_whole_masked_model_is_the_model(settings):
    model = tiny_model(**settings)
    puzzles = torch.from_numpy(get_task("nqueens4").split("train").puzzles[:5].astype("int64"))
    masked = MaskedModel(model)
    h, l = model.initial_state(len(puzzles))
    e_x = model.embed(puzzles)
    for step in range(model.config.depth):
        key = NoiseKey(0, torch.zeros(5, dtype=torch.int64), torch.arange(5), torch.full((5,), step))
        h, l, *_ = model.step(h, l, e_x, key, injection=Injection(temperature=0.0))
    expected = model.decode(h)
    masked.learn_means(puzzles)
    kept = {site: torch.ones(size) for site, size in masked.sizes.items()}
    # Products in another order round otherwise.
    torch.testing.assert_close(masked.logits(puzzles), expected, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(masked.logits(puzzles, kept), expected, atol=2e-5, rtol=2e-5)


def test_an_ablated_model_says_the_same_of_every_puzzle():
    masked = MaskedModel(tiny_model(mixer="relations", relations=("row", "all"), positions="none"))
    puzzles = torch.from_numpy(get_task("nqueens4").split("train").puzzles[:5].astype("int64"))
    masked.learn_means(puzzles)
    logits = masked.logits(puzzles, {site: torch.zeros(size) for site, size in masked.sizes.items()})
    torch.testing.assert_close(logits, logits[:1, :1].expand_as(logits))


def test_masks_get_a_gradient_through_the_step(found):
    model, behaviour, _, _ = found
    masks = {site: torch.full((size,), 1.0, requires_grad=True) for site, size in model.sizes.items()}
    BehaviourJudge(model, behaviour).loss(masks).backward()
    assert all(masks["low.0.mixer"].grad[:4] != 0)
    assert not masks["low.0.mixer"].grad[4:].abs().max() > 1


# Behaviours


def test_shipped_files_are_what_the_script_writes(tmp_path):
    text = runpy.run_path(str(ROOT / "scripts" / "make_behaviours.py"))["text"]
    made = behaviours()
    assert sorted(made) == shipped_behaviours()
    for name, values in made.items():
        assert (SHIPPED / f"{name}.json").read_text() == text(values)


@pytest.mark.parametrize("name", ["nqueens8-diagonal", "sudoku4-box", "sudoku4-hidden", "sudoku4-row"])
def test_the_rules_bear_every_shipped_pair_out(name):
    behaviour = read_behaviour(name)
    task = behaviour.task
    for puzzle, place, right, wrong in zip(
        behaviour.puzzles, behaviour.positions, behaviour.right, behaviour.wrong, strict=True
    ):
        solutions = task.solutions(puzzle)
        assert len(solutions)
        assert (solutions[:, place] == right).all()
        assert right != wrong
        assert puzzle[place] == 1
    first, second = behaviour.halves()
    assert len(first.puzzles) == len(second.puzzles) == 40
    assert not {puzzle.tobytes() for puzzle in first.puzzles} & {puzzle.tobytes() for puzzle in second.puzzles}


def test_the_attacked_square_is_attacked_along_a_diagonal_alone():
    behaviour = read_behaviour("nqueens8-diagonal")
    for puzzle, place, right in zip(behaviour.puzzles, behaviour.positions, behaviour.right, strict=True):
        queens = np.flatnonzero(puzzle == 2)
        row, column = queens // 8 - place // 8, queens % 8 - place % 8
        assert (row != 0).all()
        assert (column != 0).all()
        assert (abs(row) == abs(column)).sum() == (1 if right == 1 else 0)


def test_a_control_keeps_puzzles_and_values_and_loses_the_rule():
    behaviour = read_behaviour("sudoku4-row")
    control = behaviour.shuffled(0)
    is_turned = control.right != behaviour.right
    assert is_turned.sum() == len(is_turned) // 2
    assert (np.where(is_turned, control.wrong, control.right) == behaviour.right).all()
    assert (control.puzzles == behaviour.puzzles).all()


GOOD = {"puzzles": ["4..2.2......23.4", "4..2.2......21.4"], "position": 14, "values": ["1", "3"]}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"task": "sudoku4"}, "pairs must be at least 2 contrasting pairs of puzzles, got none"),
        ({"task": "sudoku4", "pairs": []}, "contrasting pairs of puzzles, got 0"),
        ({"task": "sudoku4", "pairs": [GOOD]}, "contrasting pairs of puzzles, got 1"),
        (
            {"task": "sudoku4", "pairs": [GOOD, {**GOOD, "puzzles": [GOOD["puzzles"][0]] * 2}]},
            "pair 2: puzzles must di",
        ),
        ({"task": "sudoku4", "pairs": [GOOD, {**GOOD, "values": ["1", "1"]}]}, "pair 2: values must differ"),
        ({"task": "sudoku4", "pairs": [GOOD, {**GOOD, "values": ["1", "x"]}]}, "values must be symbols"),
        ({"task": "sudoku4", "pairs": [GOOD, {**GOOD, "values": "13"}]}, "values must be two texts"),
        ({"task": "sudoku4", "pairs": [GOOD, {**GOOD, "position": 16}]}, "position must be within 0 and 15"),
        ({"task": "sudoku4", "pairs": [GOOD, {**GOOD, "position": True}]}, "position must be within"),
        ({"task": "sudoku4", "pairs": [GOOD, {**GOOD, "puzzles": ["1", "2"]}]}, "pair 2: sudoku4 puzzle"),
        ({"task": "sudoku4", "pairs": [GOOD, {"position": 1}]}, "must have puzzles, position and values"),
        ({"task": "sudoku5", "pairs": [GOOD, GOOD]}, "task must be"),
        ({"task": "sudoku4", "pairs": [GOOD, GOOD], "more": 1}, "'more' is not a key"),
    ],
)
def test_a_behaviour_without_contrast_is_one_line(tmp_path, capsys, values, words):
    path = tmp_path / "b.json"
    path.write_text(json.dumps(values))
    with pytest.raises(BehaviourError, match=words) as raised:
        read_behaviour(path)
    assert "\n" not in str(raised.value)


# The command


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    checkpoint.save(planted(), folder)
    return folder


def test_the_command_writes_a_graph_and_a_page(folder, tmp_path, capsys):
    out = tmp_path / "out"
    line = [
        "circuit",
        str(folder),
        "--behaviour",
        "sudoku4-row",
        "--steps",
        "40",
        "--control",
        "--out",
        str(out),
        "--json",
    ]
    assert main([*line, "--against", str(folder)]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made == json.loads((out / "circuit.json").read_text())
    assert not made["control"]["is_reached"]
    assert made["against"]["edges"] == made["edges"]
    page = (out / "circuit.html").read_text()
    assert page.count("<svg") == 1
    for node in made["graph"]["nodes"]:
        assert node["id"].split(".")[-1] in page
    for word in ("http://", "https://", "<link", " src="):
        assert word not in page
    assert main(line[:-1]) == 0
    said = capsys.readouterr().out
    assert f"{made['nodes']} of {made['nodes_of']} nodes" in said
    assert "with shuffled labels: none" in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--behaviour", "nothing"], "behaviour must be a JSON file or one of nqueens8-diagonal"),
        (["--behaviour", "nqueens8-diagonal"], "behaviour must be of the model's task sudoku4, got nqueens8"),
        (["--target", "0"], "target must be above 0"),
        (["--target", "0.7"], "target must be above 0 and below log 2"),
        (["--target", "0.000001"], "target must be at least the whole model's loss"),
        (["--depth", "0"], "depth must be at least 1"),
        (["--steps", "0"], "steps must be at least 1"),
        (["--against", "nothing"], "checkpoint must be"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(folder, tmp_path, capsys, change, words):
    line = [
        "circuit",
        str(folder),
        "--behaviour",
        "sudoku4-row",
        "--steps",
        "1",
        "--out",
        str(tmp_path / "out"),
        *change,
    ]
    assert main(line) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_both_models_are_looked_at_before_either_is_pruned(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("gram.evals.circuits.study.prune", lambda *_, **__: pytest.fail("pruned"))
    unable = planted()
    unable.decoder.weight.zero_()
    checkpoint.save(unable, tmp_path / "unable")
    line = ["circuit", str(folder), "--behaviour", "sudoku4-row", "--out", str(tmp_path / "out"), "--against"]
    for other, words in (
        (tmp_path / "nothing", "checkpoint must be"),
        (tmp_path / "unable", f"target must be at least the whole model's loss, 0.693 ({tmp_path / 'unable'}), got"),
    ):
        assert main([*line, str(other)]) == 2
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_page_says_where_another_model_has_no_circuit(found):
    _, _, made, graph = found
    against = {"checkpoint": "dense", "is_reached": False, "nodes": 40, "edges": 987_654, "loss": 0.6}
    page = render({**made, "graph": graph.to_json(), "about": {"checkpoint": "sparse"}, "against": against})
    assert page.count("none reaches the target") == 2
    assert "987,654" not in page


def test_models_of_other_kinds_are_refused_in_one_line():
    with pytest.raises(ValueError, match="experts must be none to find circuits, got 2"):
        MaskedModel(tiny_model(experts=2))
    with pytest.raises(ValueError, match="got attention"):
        MaskedModel(tiny_model(mixer="attention"))
