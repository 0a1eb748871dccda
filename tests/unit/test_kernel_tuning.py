"""How the fused kernel is cut: the default, the sweep with a stub in the clock's place, the file, and the counts."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch

from gram.cli.main import main
from gram.evals.benchmarks import tuning_benchmark
from gram.kernels.fused import ahead, pack, tuning, work
from gram.kernels.resources import TARGETS, barriers_of, shapes_of
from gram.model import Model
from gram.presets import PRESETS, model_config
from gram.sampler import run
from tests.kernel_presets import shipped_config
from tests.models import tiny_model


def model_of(name):
    return Model(model_config(name) if name in PRESETS else shipped_config(name))


@pytest.mark.parametrize(
    ("name", "target", "dtype", "group", "stages"),
    [
        ("small", "sm_90", torch.bfloat16, 2, 2),
        ("small", "sm_100", torch.bfloat16, 2, 3),
        ("small-attention", "sm_100", torch.bfloat16, 2, 2),
        ("colouring10", "sm_90", torch.bfloat16, 2, 2),
        ("sudoku6", "sm_90", torch.bfloat16, 3, 2),
        ("sudoku6", "sm_90", torch.float32, 1, 1),
        ("sudoku6", "sm_80", torch.bfloat16, 1, 1),
        ("sudoku6", "gfx942", torch.bfloat16, 1, 1),
        ("sudoku6", "interpreter", torch.bfloat16, 1, 1),
    ],
)
def test_the_cut_where_none_was_measured(name, target, dtype, group, stages, monkeypatch):
    """Before Triton 3.8 sm_100 has others (`test_tensor_memory.py`)."""
    monkeypatch.setattr(tuning, "version", lambda _: "3.9.0")
    model = model_of(name)
    made = tuning.default(target, dtype, model.spec, model.weights())
    assert made == pack.Tuning(group=group, stages=stages, token_tile=16 if group == 3 else 32)


@pytest.mark.parametrize(("name", "target", "lag"), [("colouring8", "sm_100", 1), ("colouring8", "sm_90", 0)])
def test_on_an_sm_100_the_output_product_of_three_trajectories_comes_a_head_later(name, target, lag, monkeypatch):
    monkeypatch.setattr(tuning, "version", lambda _: "3.9.0")
    model = model_of(name)
    made = tuning.default(target, torch.bfloat16, model.spec, model.weights())
    assert made == pack.Tuning(group=3, stages=2, output_lag=lag)


@pytest.mark.parametrize(("name", "group"), [("sudoku6", 3), ("colouring8", 1)])
def test_only_attention_of_several_trajectories_has_an_output_product_to_delay(name, group):
    model = model_of(name)
    with pytest.raises(ValueError, match=r"^output_lag must be 0 but for attention of several"):
        pack.layout_of(model.weights(), model.spec, pack.Tuning(group=group, output_lag=1))


def test_more_than_64_tokens_are_one_trajectory_a_program_with_three_stages():
    model = Model(model_config("small", tokens=81, output_tokens=81))
    made = tuning.default("sm_90", torch.bfloat16, model.spec, model.weights())
    assert made == pack.Tuning(group=1, stages=3)


@pytest.mark.parametrize(("target", "group"), [("sm_90", 3), ("sm_100", 1)])
def test_on_an_sm_100_older_compilers_have_one_trajectory_a_program(target, group, monkeypatch):
    monkeypatch.setattr(tuning, "version", lambda _: "3.6.0")
    model = model_of("colouring8")
    assert tuning.default(target, torch.bfloat16, model.spec, model.weights()).group == group


def test_fp32_is_multiplied_in_three_parts_where_units_take_tf32():
    assert tuning.precision("sm_90", torch.float32) == "tf32x3"
    assert tuning.precision("gfx942", torch.float32) == "ieee"
    assert tuning.precision("sm_80", torch.bfloat16) == "ieee"


def test_silu_is_approximate_with_bfloat16_on_sm_90_and_sm_100_alone():
    targets = ("sm_80", "sm_90", "sm_100", "gfx942", "interpreter")
    assert [name for name in targets if tuning.precision(name, torch.bfloat16) == "tanh"] == ["sm_90", "sm_100"]
    assert not [name for name in targets if tuning.precision(name, torch.float32) == "tanh"]


@pytest.mark.parametrize(("name", "cuts"), [("small", 24), ("sudoku6", 36), ("colouring8", 48)])
def test_every_cut_of_the_sweep_can_be_packed(name, cuts):
    model = model_of(name)
    tried = list(tuning.candidates(model.spec, model.weights()))
    assert len(set(tried)) == len(tried) == cuts
    for cut in tried:
        pack.pack(model.weights(), model.spec, torch.bfloat16, cut)


BEST = pack.Tuning(warps=4, stages=2, tile=64, token_tile=64, group=2)


def stub(model, cut, rounds):
    """In the clock's place: `BEST` is the fastest of those that can run."""
    if cut.group == 1:
        raise RuntimeError("out of shared memory\nand more")
    return [1e-3 if cut == BEST else 2e-3] * rounds


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A file of one choice, and the model that it is of."""
    model, choices = tiny_model(), tuning_benchmark.Choices.of(tmp_path / "tuning.json")
    rows = list(tuning_benchmark.rows({"tiny": model}, choices, rounds=3, timer=stub))
    assert len(rows) == 24
    assert {row.error for row in rows if row.facts["tuning"]["group"] == 1} == {"RuntimeError: out of shared memory"}
    assert sorted(row.ratio for row in rows if row.error is None) == [1.0] + [2.0] * 11
    monkeypatch.setenv("GRAM_TUNING", str(tmp_path / "tuning.json"))
    return model, tmp_path / "tuning.json"


def chosen(model, dtype=torch.float32):
    return tuning.chosen(torch.device("cpu"), dtype, model.spec, model.weights())


def test_the_fastest_cut_is_kept_and_taken_for_its_model_type_device_and_compiler(kept, monkeypatch):
    model, _ = kept
    assert chosen(model) == BEST
    assert tuning.packed(model.weights(), model.spec, torch.float32).layout.tuning == BEST
    assert chosen(model, torch.bfloat16) == pack.ALONE
    assert chosen(tiny_model(hidden=32)) == pack.ALONE
    monkeypatch.setattr(tuning, "version", lambda _: "another")
    assert chosen(model) == pack.ALONE
    monkeypatch.delenv("GRAM_TUNING")
    assert chosen(model) == pack.ALONE


def test_the_file_is_part_of_a_results_identity_on_a_gpu(kept, monkeypatch):
    _, path = kept
    with_file = run.software("cuda")
    assert run.software("cpu") == ""
    path.write_text(path.read_text().replace('"warps": 4', '"warps": 8'))
    assert run.software("cuda") != with_file
    monkeypatch.delenv("GRAM_TUNING")
    assert with_file.startswith(run.software("cuda") + ", tuning ")


@pytest.mark.parametrize(
    "content", [None, "{", '{"choices": [{"tuning": {"warps": "8"}}]}', '{"choices": [{"tuning": {"warp": 8}}]}', "[]"]
)
def test_a_file_that_is_none_is_refused_in_one_line(content, tmp_path, monkeypatch):
    path = tmp_path / "tuning.json"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("GRAM_TUNING", str(path))
    for ask in (lambda: chosen(tiny_model()), lambda: run.software("cuda")):
        with pytest.raises(ValueError, match="must name a file that gram bench tuning wrote") as raised:
            ask()
        assert "\n" not in str(raised.value)


def test_nothing_is_ranked_without_a_gpu(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("gram.api.choose_device", lambda: torch.device("cpu"))
    out = tmp_path / "tuning.json"
    assert main(["bench", "tuning", "--preset", "small", "--preset", "paper", "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "gram: tuning must be timed on a GPU, got cpu: 24 cuts are not timed, none is chosen\n"
    assert not out.exists()


def test_a_sweep_that_was_ended_keeps_the_best_so_far_and_goes_on(tmp_path, monkeypatch):
    path, model, tried = tmp_path / "tuning.json", tiny_model(), []

    def timer(model, cut, rounds):
        tried.append(cut)
        return stub(model, cut, rounds)

    def sweep():
        yield from tuning_benchmark.rows({"tiny": model}, tuning_benchmark.Choices.of(path), rounds=2, timer=timer)

    ended = sweep()
    for _ in range(5):
        next(ended)
    ended.close()
    (entry,) = tuning.entries(path)
    assert entry["milliseconds"] == 2.0
    assert entry["tuning"].group == 2
    rows = list(sweep())
    assert len(rows) == len(tried) == len(set(tried)) == 24
    assert sum(row.error is not None for row in rows) == 12
    monkeypatch.setenv("GRAM_TUNING", str(path))
    assert chosen(model) == BEST
    list(sweep())
    assert len(tried) == 24, "nothing is left"


def test_a_sweep_says_whether_its_best_is_faster_than_the_default():
    """In every round; where the default fails, anything is."""

    def best_of(times):
        def timer(model, cut, rounds):
            found = times.get(cut, [3.0, 3.0])
            if found is None:
                raise RuntimeError("out of shared memory")
            return [each / 1e3 for each in found]

        choices = tuning_benchmark.Choices()
        first = next(iter(tuning_benchmark.rows({"tiny": tiny_model()}, choices, rounds=2, timer=timer)))
        assert first.facts["tuning"] == asdict(pack.ALONE), "the default is timed first"
        list(tuning_benchmark.rows({"tiny": tiny_model()}, choices, rounds=2, timer=timer))
        (entry,) = choices.entries
        return entry["is_faster"], entry["default_milliseconds"]

    assert best_of({pack.ALONE: [2.0, 2.0], BEST: [1.0, 1.9]}) == (True, 2.0)
    assert best_of({pack.ALONE: [2.0, 2.4], BEST: [1.0, 2.1]}) == (False, 2.2)
    assert best_of({pack.ALONE: [2.0, 2.0]}) == (False, 2.0)
    assert best_of({pack.ALONE: None}) == (True, None)


def test_a_sweep_compiles_what_is_left_ahead(tmp_path):
    """Every model's cuts at once, and of a sweep that goes on the others alone."""
    asked, path = [], tmp_path / "tuning.json"

    def sweep():
        choices = tuning_benchmark.Choices.of(path)
        compiler = lambda model, cuts: asked.append(list(cuts))  # noqa: E731
        return tuning_benchmark.rows({"tiny": tiny_model()}, choices, rounds=1, timer=stub, compiler=compiler)

    ended = sweep()
    for _ in range(5):
        next(ended)
    ended.close()
    list(sweep())
    list(sweep())
    assert [len(cuts) for cuts in asked] == [24, 19]
    assert asked[1] == asked[0][5:]


@pytest.mark.parametrize(
    ("errors", "cores", "said"),
    [
        ([None, None, None], 5, "compiled 3 of 3 cuts in 3 processes, 0 s"),
        (
            [None, "ValueError: no", "ValueError: none"],
            4,
            "compiled 1 of 3 cuts in 2 processes, 0 s; the first that failed: ValueError: no",
        ),
        (
            RuntimeError("broken"),
            5,
            "compiled 0 of 3 cuts in 3 processes, 0 s; the first that failed: RuntimeError: broken",
        ),
        ([None, None, None], 3, None),
    ],
)
def test_compiling_ahead_takes_the_cores_but_two_and_fails_no_sweep(errors, cores, said, monkeypatch):
    model, told = tiny_model(), []

    def compile_all(requests, processes):
        assert [each.tuning for each in requests] == cuts
        if isinstance(errors, Exception):
            raise errors
        return errors

    cuts = list(tuning.candidates(model.spec, model.weights()))[:3]
    monkeypatch.setattr(tuning_benchmark.os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(tuning_benchmark.time, "perf_counter", lambda: 1.0)
    monkeypatch.setattr(ahead, "compiler_target", lambda device: TARGETS["sm_90"])
    monkeypatch.setattr(ahead, "compile_all", compile_all)
    tuning_benchmark.compiled_ahead(model, cuts, tell=told.append)
    assert told == ([said] if said else [])


def test_a_sweep_does_not_go_on_with_another_file(tmp_path):
    (tmp_path / "tuning.json").write_text('{"rows": []}')
    with pytest.raises(ValueError, match="gram bench tuning wrote"):
        tuning_benchmark.Choices.of(tmp_path / "tuning.json")


def test_a_choice_that_could_not_be_timed_is_not_kept():
    choices = tuning_benchmark.Choices()

    def fails(*_):
        raise RuntimeError("no such instruction")

    rows = list(tuning_benchmark.rows({"tiny": tiny_model()}, choices, rounds=1, timer=fails))
    assert all(row.error for row in rows)
    assert choices.entries == []
    assert json.loads(json.dumps(choices.entries)) == []


LISTING = """
#mma = #ttg.nvidia_mma<{versionMajor = 3, versionMinor = 0, warpsPerCTA = [8, 1], instrShape = [16, 32, 16]}>
#mma1 = #ttg.nvidia_mma<{versionMajor = 3, versionMinor = 0, warpsPerCTA = [4, 2], instrShape = [16, 64, 16]}>
 %a = ttng.warp_group_dot %x, %y, %z {isAsync = true} : tensor<64x16xbf16> * !ttg.memdesc<128x32xbf16> -> tensor<64x32xf32, #mma> loc(#1)
 %b = ttng.warp_group_dot %x, %y, %z : tensor<64x16xbf16> * !ttg.memdesc<16x128xbf16> -> tensor<64x128xf32, #mma1> loc(#2)
 %c = ttng.tc_gen5_mma %x, %y, %z : !ttg.memdesc<128x64xbf16, #s>, !ttg.memdesc<64x32xbf16>, !ttg.memdesc<128x32xf32, #tmem>, loc(#3)
"""  # noqa: E501


def test_warps_that_compute_the_same_are_read_from_the_layouts():
    assert work.repeats(LISTING) == {(64, 32): 2.0, (64, 128): 1.0, (128, 32): 1.0}


def test_barriers_are_of_loops_over_tiles_alone():
    loop = [
        ".L_1:",
        " BAR.SYNC 0x0",
        " BAR.SYNC 0x0",
        " BAR.SYNC 0x0",
        " UTMALDG.2D x",
        " UTMALDG.2D x",
        " BRA `(.L_1)",
    ]
    storing = [".L_2:", " BAR.SYNC 0x0", " UTMALDG.2D x", " STG.E y", " BRA `(.L_2)"]
    none = [".L_3:", " BAR.SYNC 0x0", " BRA `(.L_3)"]
    assert barriers_of("\n".join(loop + storing + none)) == 1.5
    assert barriers_of("\n".join(storing + none)) is None


class Once(dict):
    """Nothing is computed twice."""

    def __missing__(self, size):
        return 1.0


def ratio(name, group, lag=0):
    model = model_of(name)
    layout = pack.layout_of(model.weights(), model.spec, pack.Tuning(group=group, output_lag=lag))
    return work.ratio(model.spec, layout, 32, shapes_of(model.weights()), Once())


def test_executed_work_by_hand():
    """36 tokens in 64 rows: all but the token mixer's products have 64 / 36 of the rows, its own as many columns."""
    assert ratio("sudoku6", 1) == pytest.approx(64 / 36)
    assert ratio("small", 1) == ratio("small", 2) == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "group", "lag", "limit"),
    [
        ("small", 2, 0, 1.1),
        ("small-attention", 2, 0, 1.1),
        ("sudoku6", 3, 0, 1.35),
        ("colouring8", 3, 0, 1.35),
        ("colouring8", 3, 1, 1.35),
    ],
)
def test_groups_execute_little_that_is_not_needed(name, group, lag, limit):
    assert 1 <= ratio(name, group, lag) <= limit


def test_an_output_product_that_lags_is_executed_once_more_in_each_block():
    model = model_of("colouring8")
    spec = model.spec
    calls = spec.transitions * (spec.low_level_updates + 1) * spec.blocks
    once = 128 * (spec.dim // spec.heads) * spec.dim / (3 * work.useful(spec, shapes_of(model.weights())))
    assert ratio("colouring8", 3, 1) - ratio("colouring8", 3) == pytest.approx(calls * once)
