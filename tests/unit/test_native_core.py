"""The native core against the reference: forward, gradients, threads and shapes that are no multiple of anything."""

import pytest
import torch

from gram.kernels import reference
from gram.kernels.native import build, path
from gram.kernels.spec import Spec
from gram.training.recipe import load_recipe
from gram.training.trainer import Trainer

SHAPES = [
    {},
    {"tokens": 5, "rows": 9},
    {"tokens": 16, "rows": 1, "low_level_updates": 1},
    {"tokens": 33, "blocks": 1, "dim": 96, "hidden": 96, "mixer_hidden": 20},
    {"tokens": 7, "low_level_updates": 0, "hidden": 64},
]


def needs_bf16():
    if not path.has_avx512_bfloat16():
        pytest.skip("needs a processor with AVX-512 products of bfloat16")


def made(tokens=18, rows=6, dim=64, hidden=160, mixer_hidden=36, blocks=2, low_level_updates=2):
    """Weights, spec and states in bf16."""
    spec = Spec(
        tokens=tokens,
        output_tokens=tokens,
        dim=dim,
        blocks=blocks,
        low_level_updates=low_level_updates,
        guidance="none",
    )
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return (torch.randn(shape, generator=generator) * shape[-1] ** -0.5).to(torch.bfloat16)

    weights = {"decoder.weight": drawn(4, dim)}
    for block in range(blocks):
        weights |= {
            f"low.{block}.mixer.gate_up": drawn(2 * mixer_hidden, tokens),
            f"low.{block}.mixer.down": drawn(tokens, mixer_hidden),
            f"low.{block}.channel.gate_up": drawn(2 * hidden, dim),
            f"low.{block}.channel.down": drawn(dim, hidden),
        }
    states = [torch.randn(rows, tokens, dim, generator=generator).to(torch.bfloat16) for _ in range(4)]
    return weights, spec, states


def run(function, weights, spec, states, dtype):
    """State after a transition and all gradients, by name."""
    weights = {name: weight.to(dtype).requires_grad_() for name, weight in weights.items()}
    h, l, e_x, pull = (state.to(dtype) for state in states)
    h, e_x = h.requires_grad_(), e_x.requires_grad_()
    found, low = function(weights, spec, h, l, e_x, None)
    found.backward(pull)
    gradients = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
    given = {"e_x": e_x.grad} if spec.low_level_updates else {}
    return {"h": found.detach(), "l": low.detach(), "dh": h.grad, **given, **gradients}


def error(found, true):
    return float((found.float() - true).norm() / true.norm())


@pytest.mark.parametrize("shape", SHAPES)
def test_the_native_core_is_as_near_to_fp32_as_the_reference_in_bf16(shape):
    needs_bf16()
    weights, spec, states = made(**shape)
    assert path.unsupported_reason(weights, spec) is None
    true = run(reference.transition, weights, spec, states, torch.float32)
    plain = run(reference.transition, weights, spec, states, torch.bfloat16)
    native = run(path.transition, weights, spec, states, torch.bfloat16)
    for name, value in true.items():
        # Rounded less often than the reference in bf16: half as much again is a fault.
        assert error(native[name], value) < 1.5 * max(error(plain[name], value), 2**-9), name


def test_compiled_around_it_gives_the_same():
    needs_bf16()
    weights, spec, states = made()
    alone = run(path.transition, weights, spec, states, torch.bfloat16)
    around = run(torch.compile(path.transition, backend="aot_eager"), weights, spec, states, torch.bfloat16)
    for name, value in alone.items():
        assert torch.equal(value, around[name]), name


def test_threads_change_no_state_and_gradients_by_rounding():
    needs_bf16()
    weights, spec, states = made(rows=11)
    h, l, e_x, _ = states
    one = path.transition(weights, spec, h, l, e_x, None)
    with torch.no_grad():
        for threads in (2, 3):
            torch.set_num_threads(threads)
            try:
                assert all(map(torch.equal, one, path.transition(weights, spec, h, l, e_x, None)))
            finally:
                torch.set_num_threads(1)
    alone = run(path.transition, weights, spec, states, torch.bfloat16)
    torch.set_num_threads(3)
    try:
        several = run(path.transition, weights, spec, states, torch.bfloat16)
    finally:
        torch.set_num_threads(1)
    for name, value in alone.items():
        # Sums of three threads' parts are rounded to bf16 once more or less.
        assert error(several[name], value.float()) < 2**-8, name


def test_it_says_what_it_cannot_do():
    weights, spec, _ = made()
    if path.has_avx512_bfloat16():
        assert "damping" in path.unsupported_reason(weights, spec, path_noise=0.1)
        assert "multiples" in path.unsupported_reason(*made(dim=48)[:2])
        assert "SwiGLU" in path.unsupported_reason(weights, Spec(mixer="attention"))
    with pytest.raises(ValueError, match="must have neither damping nor experts"):
        path.transition(weights, spec, *made()[2][:3], None, damping=lambda old, new, call: new)


RECIPE = """task = "nqueens4"
description = "tiny"
[model]
dim = 32
hidden = 32
mixer_hidden = 8
guidance_hidden = 8
head_hidden = 8
depth = 3
low_level_updates = 1
transitions = 2
[training]
steps = 100
batch = 6
rollout_slots = 5
evaluate_puzzles = 2
"""


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """Opens a run in a folder of the test's; nothing is compiled but the native core."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    file = tmp_path / "tiny.toml"
    file.write_text(RECIPE)

    def opened(name):
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        return Trainer(load_recipe(file), out, device=torch.device("cpu"), dtype=torch.bfloat16)

    return opened


def test_training_takes_it_follows_the_reference_and_resumes_bit_for_bit(trainer, monkeypatch):
    needs_bf16()
    whole = trainer("whole")
    assert whole._transition is path.transition
    losses = [whole.advance()["cross_entropy"] for _ in range(6)]
    first = trainer("parts")
    for _ in range(3):
        first.advance()
    first.save_state()
    second = trainer("parts")
    assert second.load_state()
    for _ in range(3):
        second.advance()
    assert torch.equal(second.flat.master, whole.flat.master)
    monkeypatch.setattr(path, "unsupported_reason", lambda *_, **__: "not wanted")
    plain = trainer("plain")
    assert plain._transition is reference.transition
    assert [plain.advance()["cross_entropy"] for _ in range(6)] == pytest.approx(losses, abs=0.02)


def test_older_pytorch_is_asked_in_its_own_way(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert not path.has_avx512_bfloat16()
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert path.has_avx512_bfloat16()


def test_a_damaged_library_is_made_again(monkeypatch, tmp_path):
    """Opened as it is, it would end the process."""
    needs_bf16()
    monkeypatch.setenv("GRAM_CACHE", str(tmp_path))
    build.library.cache_clear()
    sizes = tuple(
        f"{name}={value}"
        for name, value in zip(
            ("L", "D", "HM", "F", "BLOCKS", "UPDATES", "EPS"), (4, 32, 4, 32, 1, 1, "1e-05f"), strict=True
        )
    )
    build.library(build.FOLDER / "core.cpp", sizes)
    (kept,) = tmp_path.rglob("native-*.so")
    whole = kept.read_bytes()
    kept.unlink()  # another file, so that the one in use stays
    kept.write_bytes(whole[: len(whole) // 2])
    build.library.cache_clear()
    build.library(build.FOLDER / "core.cpp", sizes)
    assert kept.stat().st_size == len(whole)
    build.library.cache_clear()


def test_training_goes_on_without_a_core_that_cannot_be_built(monkeypatch, tmp_path, caplog):
    needs_bf16()

    def fails(*_: object) -> None:
        raise RuntimeError("the native core must compile, got: an old compiler")

    monkeypatch.setattr(path, "prepare", fails)
    file = tmp_path / "tiny.toml"
    file.write_text(RECIPE)
    trainer = Trainer(load_recipe(file), tmp_path, device=torch.device("cpu"), dtype=torch.bfloat16)
    assert trainer._transition is reference.transition
    assert "training without the native core" in caplog.text
