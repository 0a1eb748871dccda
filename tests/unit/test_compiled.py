"""The compiled CPU path equals the reference and does not depend on a trajectory's company."""

import os
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gram.kernels import dispatch, reference
from gram.kernels.compiled import cache as compile_cache
from gram.kernels.compiled import path as compiled
from gram.kernels.philox import NoiseKey, Site, noise
from gram.kernels.spec import Injection
from tests.models import tiny_model

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Largest error of fp32; relative error (root of mean squares) of bf16, against the reference in fp32 with the same
weights and states: two bf16 paths round in different places, and neither is the other's truth."""
CASES = [
    {"mixer": "token", "noise_order": "before"},
    {"mixer": "token", "noise_order": "after", "mixer_norm": "tokens", "is_core_shared": False, "transitions": 2},
    {"mixer": "attention", "positions": "rotary", "noise_order": "after", "registers": 2},
    {"mixer": "attention", "positions": "learned", "noise_order": "before", "path_keep": 0.3, "guidance": "none"},
    {"mixer": "relations", "relations": ("row", "antidiagonal"), "positions": "none", "noise_order": "before"},
    {"mixer": "attention", "lookup": ("row", "box"), "experts": 3, "expert_hidden": 8, "is_core_shared": False},
    {"mixer": "token", "active_share": 0.5, "guidance": "none"},
    {"mixer": "attention", "pattern": "axial", "positions": "both", "guidance": "none"},
    {"mixer": "attention", "pattern": "block-topk", "pattern_block": 5, "registers": 2, "guidance": "none"},
]


def cut(share):
    return lambda path: path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def flip(path):
    """One bit of what is stored."""
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 1
    path.write_bytes(content)


def folder_instead(path):
    path.unlink()
    (path / "something").mkdir(parents=True)


DAMAGES = {
    "cut in half": cut(0.5),
    "cut near its end": cut(0.99),
    "empty": cut(0),
    "zero bytes": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "garbage": lambda path: path.write_bytes(b"not an archive" * 99),
    "another archive": lambda path: zipfile.ZipFile(path, "w").close(),
    "one bit": flip,
    "a folder": folder_instead,
    "a link to nothing": lambda path: (path.unlink(), path.symlink_to(path.parent / "nothing")),
}
"""What can become of a package."""

DTYPES = [torch.bfloat16, *(len(CASES) - 1) * [torch.float32]]
"""One type for each case: every compilation takes many seconds."""


@pytest.fixture(scope="module", autouse=True)
def packages(tmp_path_factory):
    """One folder for all processes of a test run: what one compiled, the others load."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(compile_cache.FOLDER_VARIABLE, str(folder))
        compiled._piece.cache_clear()
        yield
    compiled._piece.cache_clear()


def arguments(model, rows, dtype=torch.float32):
    """State and counters of some of 40 trajectories that differ in everything."""
    generator = torch.Generator().manual_seed(0)
    widths = (model.spec.dim, model.spec.dim, model.spec.embedded_dim)
    shapes = [(40, model.spec.length, width) for width in widths]
    states = [torch.randn(shape, generator=generator).to(dtype)[rows] for shape in shapes]
    every = torch.arange(40)[rows]
    return states, NoiseKey((7 << 40) + 5, every * 3, every % 5, every % 4)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "dtype"), list(zip(CASES, DTYPES, strict=True)))
def test_equals_the_reference_with_every_injector(case, dtype):
    injections = [
        Injection(injector="none"),
        Injection(injector="gaussian", sigma=0.3, site="both"),
        Injection(injector="path", sigma=0.1),
        Injection(temperature=0.7),
    ]
    model = tiny_model(**case).to(dtype)
    if model.spec.lookup:  # a convolution starts at zero, and would hide a wrong order of its tokens
        model.lookup.taps.normal_(generator=torch.Generator().manual_seed(2))
    states, key = arguments(model, torch.arange(19), dtype)
    wide = {name: weight.float() for name, weight in model.weights().items()}
    for injection in injections:
        expected = reference.supervision_step(
            wide, model.spec, *(state.float() for state in states), key, injection=injection
        )
        actual = compiled.supervision_step(model.weights(), model.spec, *states, key, injection=injection)
        for one, other in zip(actual, expected, strict=True):
            gap = one.float() - other.float()
            if dtype is torch.float32:
                assert gap.abs().max() <= TOLERANCE[dtype], injection
            else:
                size = other.float().square().mean().sqrt().clamp(min=1)
                assert gap.square().mean().sqrt() / size <= TOLERANCE[dtype], injection


@pytest.mark.slow
def test_a_trajectory_is_the_same_bit_for_bit_in_any_company_and_slot():
    model = tiny_model(**CASES[1])
    states, key = arguments(model, torch.arange(40))
    whole = compiled.supervision_step(model.weights(), model.spec, *states, key)
    for rows in (torch.tensor([33]), torch.tensor([5, 33, 2]), torch.randperm(40)):
        states, key = arguments(model, rows)
        part = compiled.supervision_step(model.weights(), model.spec, *states, key)
        assert all(torch.equal(one, other[rows]) for one, other in zip(part, whole, strict=True))


@pytest.mark.slow
def test_noise_is_that_of_the_contract_and_packages_are_kept(monkeypatch):
    spec = tiny_model(**CASES[1]).spec
    rows = torch.arange(compiled.block_size(spec))
    seed = (123 << 33) + 9
    key = NoiseKey(seed, rows * 3, rows * 2, rows)
    drawn = compiled.noise(spec, key, Site.PATH, rows)
    expected = noise((spec.length, spec.dim), key, Site.PATH, rows)
    assert (drawn.transpose(0, 1) - expected).abs().max() <= 1e-5
    compiled._piece.cache_clear()
    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", lambda *_, **__: pytest.fail("is kept"))
    compiled.piece("normals", spec, torch.float32, ())


def test_auto_compiles_long_runs_on_a_cpu_alone():
    cpu, spec = torch.device("cpu"), tiny_model().spec
    assert dispatch.choose(cpu, spec, flops=1e9).kernel == "eager"
    long = dispatch.choose(cpu, spec, flops=1e15)
    assert long.kernel == "compiled"
    assert "1e+15" in long.reason
    assert dispatch.choose(cpu, spec, wanted="compiled") == ("compiled", "asked for")
    with pytest.raises(ValueError, match="for a CPU"):
        dispatch.choose(torch.device("cuda"), spec, wanted="compiled")


def test_without_a_compiler_it_is_refused_and_auto_says_so(monkeypatch):
    monkeypatch.setattr(compile_cache, "compiler", lambda: None)
    cpu, spec = torch.device("cpu"), tiny_model().spec
    assert "C++ compiler" in dispatch.choose(cpu, spec, flops=1e15).reason
    with pytest.raises(ValueError, match=r"C\+\+ compiler"):
        dispatch.choose(cpu, spec, wanted="compiled")


def test_flops_of_a_step_by_hand():
    model = tiny_model(transitions=2, low_level_updates=2)
    block = 2 * 16 * 3 * 8 * 16 + 2 * 16 * 3 * 16 * 16
    prior = 2 * 16 * (2 * 8 * 16 + 2 * 16 * 8)
    assert dispatch.step_flops(model.weights(), model.spec) == 2 * (3 * model.spec.blocks * block + prior)
    split = replace(model.spec, is_core_shared=False)
    other = tiny_model(transitions=2, low_level_updates=2, is_core_shared=False)
    assert dispatch.step_flops(other.weights(), split) == 2 * (3 * model.spec.blocks * block + prior)


@pytest.mark.parametrize("overrides", [{}, {"guidance": "none"}, {"mixer": "attention", "is_core_shared": False}])
def test_a_model_is_known_to_be_kept_when_all_its_pieces_are(monkeypatch, tmp_path, overrides):
    def kept(module, arguments, key):
        with zipfile.ZipFile(compile_cache.path_of(key), "w") as archive:
            archive.writestr("piece", "code" * 100)
        return module

    monkeypatch.setenv(compile_cache.FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setattr(compile_cache, "compiled", kept)
    compiled._piece.cache_clear()
    model = tiny_model(**overrides)
    states, key = arguments(model, [0, 1])
    assert not compiled.is_kept(model.weights(), model.spec, torch.float32)
    compiled.supervision_step(model.weights(), model.spec, *states, key)
    assert compiled.is_kept(model.weights(), model.spec, torch.float32)
    assert not compiled.is_kept(model.weights(), model.spec, torch.bfloat16)
    one = next(tmp_path.iterdir())
    for damage in DAMAGES.values():
        whole = one.read_bytes()
        damage(one)
        assert not compiled.is_kept(model.weights(), model.spec, torch.float32)
        shutil.rmtree(one) if one.is_dir() else one.unlink(missing_ok=True)
        one.write_bytes(whole)
        assert compiled.is_kept(model.weights(), model.spec, torch.float32)
    compiled._piece.cache_clear()


@pytest.mark.slow
def test_a_damaged_package_is_compiled_again_and_one_that_nothing_keeps_runs(monkeypatch, tmp_path):
    """The first package is compiled; later ones are its copies, since a compilation takes many seconds."""
    monkeypatch.setenv(compile_cache.FOLDER_VARIABLE, str(tmp_path / "cache"))
    module, arguments, kept = torch.nn.Hardtanh(), (torch.linspace(-3, 3, 8),), []
    keep = compile_cache.keep
    monkeypatch.setattr(compile_cache, "keep", lambda written, path: (kept.append(path), keep(written, path)))

    def run():
        assert torch.equal(compile_cache.compiled(module, arguments, "key")(*arguments), module(*arguments))

    def copied(program, package_path):
        Path(package_path).write_bytes(whole)
        return package_path

    run()
    path = compile_cache.path_of("key")
    whole = path.read_bytes()
    assert kept == [path]
    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", copied)
    for number, damage in enumerate(DAMAGES.values(), start=2):
        damage(path)
        run()  # compiles
        run()  # does not
        assert kept == [path] * number
        assert path.read_bytes() == whole
    monkeypatch.setenv(compile_cache.FOLDER_VARIABLE, str(path / "below a file"))
    assert "GRAM_CACHE" in (compile_cache.obstacle() or "")
    run()
    assert kept == [path] * number
