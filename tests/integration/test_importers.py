"""Imported checkpoints compute what their project's format says: against a plain re-implementation from that format.

`scripts/check_import.py` holds them against the official code, which the project does not carry.
"""

import csv
import gzip
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from gram import checkpoint
from gram.checkpoint import CheckpointError
from gram.cli.main import main
from gram.importers import import_checkpoint, write
from gram.kernels import reference
from gram.kernels.philox import NoiseKey, Site, noise
from gram.kernels.spec import Injection
from gram.tasks.registry import get_task

DIM, HEADS, TOKENS = 16, 2, 81
ROOT = Path(__file__).parents[2]
ARCH = {"H_cycles": 2, "L_cycles": 3, "num_heads": HEADS, "hidden_size": DIM, "halt_max_steps": 5}


def state_dict(family, mixer="mlp_t", *, prefix=None, learned=False, blocks=2, seed=0, vocabulary=11, tokens=TOKENS):
    """Random tensors of a family's names and shapes; `prefix` tokens of embedding are three quarters filled."""
    generator = torch.Generator().manual_seed(seed)
    prefix = {"trm": 3, "hrm": 1, "eqr": 0}[family] if prefix is None else prefix
    length = prefix + tokens

    def drawn(*shape):
        return torch.randn(shape, generator=generator) * shape[-1] ** -0.5

    state = {
        "embed_tokens.embedding_weight": drawn(vocabulary, DIM),
        "lm_head.weight": drawn(vocabulary, DIM),
        "q_head.weight": drawn(2, DIM),
        "q_head.bias": torch.randn(2, generator=generator),
    }
    if prefix:
        state["puzzle_emb.weights"] = drawn(1, DIM)
    if learned:
        state["embed_pos.embedding_weight"] = drawn(length, DIM)
    if family != "eqr":
        state["H_init"] = torch.randn(DIM, generator=generator).bfloat16()
        state["L_init"] = torch.randn(DIM, generator=generator).bfloat16()
    for level in ("L_level", "H_level") if family == "hrm" else ("L_level",):
        for layer in range(blocks):
            name = f"{level}.layers.{layer}."
            if mixer == "mlp_t":
                state[name + "mlp_t.gate_up_proj.weight"] = drawn(24, length)
                state[name + "mlp_t.down_proj.weight"] = drawn(length, 12)
            else:
                state[name + "self_attn.qkv_proj.weight"] = drawn(3 * DIM, DIM)
                state[name + "self_attn.o_proj.weight"] = drawn(DIM, DIM)
            state[name + "mlp.gate_up_proj.weight"] = drawn(40, DIM)
            state[name + "mlp.down_proj.weight"] = drawn(DIM, 20)
    return {f"inner.{name}": tensor for name, tensor in state.items()}


def norm(x, axis):
    return x / (x.square().mean(axis, keepdim=True) + 1e-5).sqrt()


def gated(x, state, name):
    gate, up = linear(x, state[name + "gate_up_proj.weight"]).chunk(2, -1)
    return linear(silu(gate) * up, state[name + "down_proj.weight"])


def rotated(x, theta=10000.0):
    """Rotary positions of `[B, H, L, W]`, column by column."""
    length, width = x.shape[-2:]
    out = torch.empty_like(x)
    for column in range(width // 2):
        angle = torch.arange(length) * theta ** (-2 * column / width)
        first, second = x[..., column], x[..., column + width // 2]
        out[..., column] = first * angle.cos() - second * angle.sin()
        out[..., column + width // 2] = second * angle.cos() + first * angle.sin()
    return out


def level(x, state, name, positions):
    for layer in range(2):
        here = f"inner.{name}.layers.{layer}."
        if here + "mlp_t.down_proj.weight" in state:
            turned = x.transpose(1, 2)
            x = norm(turned + gated(turned, state, here + "mlp_t."), -1).transpose(1, 2)
        else:
            heads = linear(x, state[here + "self_attn.qkv_proj.weight"]).unflatten(-1, (3 * HEADS, DIM // HEADS))
            query, key, value = heads.transpose(1, 2).chunk(3, 1)
            if positions == "rope":
                query, key = rotated(query), rotated(key)
            mixed = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
            x = norm(x + linear(mixed, state[here + "self_attn.o_proj.weight"]), -1)
        x = norm(x + gated(x, state, here + "mlp."), -1)
    return x


def plain_step(state, puzzles, h, l, *, prefix, positions, damp=lambda old, new: new):
    """Logits, halt logit and state after one supervision step, from the format alone."""
    state = {name: tensor.float() for name, tensor in state.items()}
    e_x = state["inner.embed_tokens.embedding_weight"][puzzles]
    if prefix:
        front = torch.zeros(prefix * DIM)
        front[:DIM] = state["inner.puzzle_emb.weights"][0]
        e_x = torch.cat([front.view(1, prefix, DIM).expand(len(puzzles), -1, -1), e_x], 1)
    if positions == "learned":
        e_x = (e_x + state["inner.embed_pos.embedding_weight"]) / 2**0.5
    e_x = e_x * DIM**0.5
    high = "H_level" if "inner.H_level.layers.0.mlp.down_proj.weight" in state else "L_level"
    for _ in range(ARCH["H_cycles"]):
        for _ in range(ARCH["L_cycles"]):
            l = damp(l, level(l + h + e_x, state, "L_level", positions))
        h = damp(h, level(h + l, state, high, positions))
    halt = linear(h[:, 0], state["inner.q_head.weight"], state["inner.q_head.bias"])[:, 0]
    return linear(h, state["inner.lm_head.weight"])[:, prefix:], halt, h, l


def saved(path, state, arch=None):
    torch.save(state, path)
    settings = path.with_suffix(".yaml")
    settings.write_text(yaml.safe_dump({"arch": {**ARCH, **(arch or {})}, "seed": 0}))
    return {"file": path, "settings": settings}


PUZZLES = torch.randint(1, 11, (2, TOKENS), generator=torch.Generator().manual_seed(7))
KEY = NoiseKey(3, torch.tensor([5, 6]), torch.tensor([0, 1]), torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize(
    ("family", "mixer", "positions", "wrapper"),
    [
        ("trm", "mlp_t", "none", "_orig_mod.model."),
        ("trm", "self_attn", "rope", "model."),
        ("trm", "self_attn", "learned", "_orig_mod."),
        ("trm", "mlp_t", "rope", ""),
        ("hrm", "self_attn", "rope", "_orig_mod.model."),
        ("hrm", "self_attn", "learned", "model._orig_mod."),
    ],
)
def test_logits_are_those_of_the_format(tmp_path, family, mixer, positions, wrapper):
    prefix = {"trm": 3, "hrm": 1}[family]
    state = state_dict(family, mixer, learned=positions == "learned")
    arch = {"pos_encodings": positions, "puzzle_emb_len": prefix, "L_layers": 2, "H_layers": 2}
    files = saved(tmp_path / "step_1", {wrapper + name: tensor for name, tensor in state.items()}, arch)
    write(import_checkpoint(family, **files), tmp_path / "out")
    model = checkpoint.load(tmp_path / "out")
    assert (model.config.task, model.config.depth, model.config.registers) == ("sudoku9", 5, prefix)
    h, l = (state[f"inner.{name}_init"].float().expand(2, prefix + TOKENS, DIM) for name in "HL")
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.initial_state(2), (h, l), strict=True))
    for index in range(2):
        step = model.step(h, l, model.embed(PUZZLES), KEY._replace(step=torch.full((2,), index)))
        logits, halt, h, l = plain_step(state, PUZZLES, h, l, prefix=prefix, positions=positions)
        # fp32 on both sides; 8 core calls in another order of operations, from the same state.
        assert (model.decode(step.h) - logits).abs().max() < 1e-4
        assert (step.halt - halt).abs().max() < 1e-4
        assert not step.lprm.any()


@pytest.mark.parametrize("mixer", ["mlp_t", "self_attn"])
def test_eqr_keeps_mixes_and_perturbs_as_the_format_says(tmp_path, mixer):
    state, shadow = state_dict("eqr", mixer, seed=1), state_dict("eqr", mixer)
    positions = "none" if mixer == "mlp_t" else "rope"
    wrapped = {
        "model": {f"_orig_mod.model.{name}": tensor for name, tensor in state.items()},
        "ema": {"mu": 0.999, "shadow": {f"model.{name}": tensor for name, tensor in shadow.items()}},
        "config": {"arch": {**ARCH, "name": "eqr@EqRModel", "pos_encodings": positions, "lambda_": 0.9}},
    }
    torch.save(wrapped, tmp_path / "eqr.pth")
    model = import_checkpoint("eqr", tmp_path / "eqr.pth").model
    config = model.config
    assert config.path_keep == pytest.approx(0.1)
    assert (config.path_noise, config.initial_std, config.registers, config.head_readout) == (0.01, 1.0, 0, "first")
    assert config.injector == "path"
    h, l = model.random_state(KEY)
    calls = iter(range(100))

    def damp(old, new):
        at = torch.full((2,), next(calls))
        return 0.1 * old + 0.9 * new + 0.01 * noise((TOKENS, DIM), KEY, Site.PATH, at)

    logits, halt, _, _ = plain_step(shadow, PUZZLES, h, l, prefix=0, positions=positions, damp=damp)
    injection = Injection(injector="path", sigma=config.path_noise)
    step = model.step(h, l, model.embed(PUZZLES), KEY, injection=injection)
    assert (model.decode(step.h) - logits).abs().max() < 1e-4
    assert (step.halt - halt).abs().max() < 1e-4


def test_random_start_is_a_truncated_normal():
    x = reference.truncated(torch.randn(400_000, generator=torch.Generator().manual_seed(0)))
    assert x.std().item() == pytest.approx(1, abs=0.005)
    assert x.mean().item() == pytest.approx(0, abs=0.005)
    assert 2.2 < x.abs().max() <= 2 / 0.87962566 + 1e-4  # 2 over the deviation of N(0, 1) within +-2
    assert reference.truncated(torch.tensor([0.0, 40.0, -40.0])).isfinite().all()


def test_published_defaults_are_told(tmp_path):
    torch.save(state_dict("trm", prefix=16), tmp_path / "step_1")
    imported = import_checkpoint("trm", tmp_path / "step_1")
    assert (imported.model.config.transitions, imported.model.config.low_level_updates) == (3, 6)
    assert imported.model.config.depth == 16
    told = imported.card["imported"]
    assert told["assumed"] == {
        "H_cycles": 3,
        "L_cycles": 6,
        "halt_max_steps": 16,
        "pos_encodings": "none",
        "puzzle_emb_len": 16,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
    }
    assert "output 0 of q_head" in told["notes"][0]
    assert len(told["sha256"]) == 64


def test_an_attention_maze_is_known_by_its_vocabulary(tmp_path):
    state = state_dict("trm", "self_attn", vocabulary=6)
    files = saved(tmp_path / "step_1", state, {"puzzle_emb_len": 3})
    config = import_checkpoint("trm", **files).model.config
    assert (config.task, config.tokens, config.positions) == ("maze30", 900, "rotary")


def test_the_command_converts_and_the_result_is_evaluated(tmp_path, capsys):
    files = saved(tmp_path / "step_1", state_dict("trm"), {"puzzle_emb_len": 3})
    out = str(tmp_path / "out")
    command = ["import", "trm", str(files["file"]), "--config", str(files["settings"]), "--out", out]
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["out"], told["family"], told["config"]["task"]) == (out, "trm", "sudoku9")
    assert checkpoint.read_card(Path(out))["imported"]["file"] == "step_1"
    assert main(command) == 2
    assert "must be a new or empty folder" in capsys.readouterr().err
    puzzle = "." * 80 + "1"
    assert main(["solve", "sudoku9", puzzle, "--checkpoint", out, "--width", "2", "--depth", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["puzzles"]


def changed(**tensors):
    """A TRM state with tensors replaced, added or (None) taken away."""
    state = state_dict("trm") | {f"inner.{name.replace('__', '.')}": tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in state.items() if tensor is not None}


class Malice:
    def __reduce__(self):
        return os.system, ("false",)


@pytest.mark.parametrize(
    ("family", "state", "arch", "words"),
    [
        ("trm", changed(extra=torch.zeros(2)), {}, "inner.extra is not a tensor of a TRM model"),
        ("trm", state_dict("hrm"), {"puzzle_emb_len": 1}, "inner.H_level.layers.0"),
        ("hrm", state_dict("trm"), {}, "inner.H_level.layers.0.mlp_t.gate_up_proj.weight is missing"),
        ("trm", changed(lm_head__weight=None), {}, "tensor inner.lm_head.weight is missing, expected [11, 16]"),
        ("trm", changed(q_head__bias=torch.zeros(3)), {}, "inner.q_head.bias must be [2], got [3]"),
        ("trm", changed(H_init=torch.zeros(4, 4)), {}, "inner.H_init must be [16], got [4, 4]"),
        ("trm", changed(H_init=torch.full((DIM,), float("nan"))), {}, "inner.H_init must be finite"),
        ("trm", changed(H_init=torch.zeros(DIM, dtype=torch.int8)), {}, "must be dense floating point"),
        ("trm", changed(H_init="text"), {}, "inner.H_init must be a tensor, got str"),
        ("trm", changed(puzzle_emb__weights=torch.zeros(1200, DIM)), {}, "has 1,200 identities: the data set"),
        ("trm", changed(puzzle_emb__weights=torch.zeros(1, 99)), {}, "must fill 3 x 16 columns, got 99"),
        ("trm", state_dict("trm"), {"puzzle_emb_len": 4}, "task must be named (--task), got 80 tokens"),
        ("trm", state_dict("trm", vocabulary=9), {}, "task must be named (--task), got 81 tokens of vocabulary 9"),
        ("trm", state_dict("trm", "self_attn", vocabulary=9), {}, "for a vocabulary other than 11, 6, 12, got 9"),
        ("trm", state_dict("trm"), {"L_layers": 3}, "L_layers must be 2 as in the tensors, got 3"),
        ("trm", state_dict("trm"), {"mlp_t": False}, "mlp_t must be True as in the tensors"),
        ("trm", state_dict("trm"), {"H_cycles": "three"}, "H_cycles must be a whole number, got 'three'"),
        ("trm", state_dict("trm"), {"H_cycles": 0}, "transitions must be at least 1, got 0"),
        ("trm", state_dict("trm"), {"pos_encodings": "learned"}, "pos_encodings must be rope or none"),
        ("eqr", state_dict("eqr", "self_attn"), {"pos_encodings": "rope2d"}, "must be rope or none, got 'rope2d'"),
        ("eqr", state_dict("eqr"), {"H_init_std": 2.0}, "L_init_std must equal H_init_std 2.0"),
        ("trm", state_dict("trm"), {"windows": 3}, "windows is not a setting of TRM"),
        ("trm", state_dict("trm"), {"name": "recursive_reasoning.hrm@HierarchicalReasoningModel_ACTV1"}, "family trm"),
        (
            "trm",
            state_dict("trm"),
            {"name": "recursive_reasoning.trm_singlez@TinyRecursiveReasoningModel_ACTV1"},
            "trm",
        ),
        ("trm", [1, 2], {}, "must hold a dictionary of tensors, got list"),
        ("trm", {}, {}, "tensor inner.embed_tokens.embedding_weight is missing"),
        ("trm", {"model": Malice()}, {}, "which would run code"),
    ],
)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(tmp_path, capsys, family, state, arch, words):
    files = saved(tmp_path / "step_1", state, {"puzzle_emb_len": 3, **arch})
    out = tmp_path / "out"
    command = ["import", family, str(files["file"]), "--config", str(files["settings"]), "--out", str(out)]
    before = sorted(tmp_path.iterdir())
    assert main(command) == 2
    told = capsys.readouterr()
    assert words in told.err
    assert told.err.count("\n") == 1
    assert told.out == ""
    assert sorted(tmp_path.iterdir()) == before


def test_damaged_files_are_one_line(tmp_path):
    path = tmp_path / "step_1"
    torch.save(state_dict("trm"), path)
    whole = path.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2], whole[:-30], whole[200:]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError) as error:
            import_checkpoint("trm", path)
        assert "\n" not in str(error.value)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "nothing")
    with pytest.raises(CheckpointError, match="cannot be read"):
        import_checkpoint("trm", path)
    with pytest.raises(CheckpointError, match="got a folder"):
        import_checkpoint("trm", tmp_path)
    with pytest.raises(FileNotFoundError):
        import_checkpoint("trm", tmp_path / "none")
    with pytest.raises(ValueError, match="family must be one of trm, eqr, hrm, got 'gpt'"):
        import_checkpoint("gpt", path)


@pytest.mark.parametrize("content", ["a: [", "- 1", "b: 1", "!!python/object/apply:os.system [false]", "arch: 3"])
def test_bad_settings_are_one_line(tmp_path, content):
    files = saved(tmp_path / "step_1", state_dict("trm"))
    files["settings"].write_text(content)
    with pytest.raises(CheckpointError) as error:
        import_checkpoint("trm", **files)
    assert "\n" not in str(error.value)
    assert "step_1.yaml" in str(error.value)


def test_training_objects_of_eqr_are_passed_over(tmp_path):
    """Its files hold the carry of the run, objects of its own classes, and numpy's random state."""
    script = """
import sys, types, torch, numpy as np, dataclasses
module = types.ModuleType("models.eqr")
sys.modules["models"], sys.modules["models.eqr"] = types.ModuleType("models"), module
for name in ("ModelCarry", "LatentCarry"):
    kind = dataclasses.make_dataclass(name, ["z_H", "steps"])
    kind.__module__ = "models.eqr"
    setattr(module, name, kind)
state = torch.load(sys.argv[1], weights_only=True)
carry = module.ModelCarry(module.LatentCarry(torch.zeros(3), 1), {"x": torch.ones(2)})
torch.save({"model": state, "carry": carry, "numpy": np.random.get_state(), "python": (3, (1, 2), None)}, sys.argv[1])
"""
    path = tmp_path / "eqr.pth"
    torch.save(state_dict("eqr"), path)
    subprocess.run([sys.executable, "-c", script, str(path)], check=True)
    assert "models.eqr.ModelCarry" in torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    assert import_checkpoint("eqr", path).model.config.tokens == TOKENS
    assert not any("Blank" in str(known) for known in torch.serialization.get_safe_globals())


def test_sudoku_tokens_are_the_published_ones(gram_data):
    path = gram_data / "sudoku_extreme_1k" / "public_800.csv.gz"
    with gzip.open(path, "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    loaded = get_task("sudoku9").load(path)
    for row, puzzle, answer in zip(rows, loaded.puzzles, loaded.answers, strict=True):
        # HRM's and TRM's: 0 for a blank, plus 1.
        assert puzzle.tolist() == [int(symbol) + 1 for symbol in row["question"].replace(".", "0")]
        assert answer.tolist() == [int(symbol) + 1 for symbol in row["answer"]]


@pytest.mark.slow
@pytest.mark.parametrize("project", ["TRM", "HRM", "EQR"])
def test_against_the_official_code(project):
    """Where GRAM_PEER_TRM, _HRM or _EQR names a checkout."""
    repo = os.environ.get(f"GRAM_PEER_{project}")
    if not repo:
        pytest.skip(f"GRAM_PEER_{project} does not name a checkout of the official code")
    script = str(ROOT / "scripts" / "check_import.py")
    command = [sys.executable, script, "--peer-repo", repo, "--steps", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout + done.stderr
