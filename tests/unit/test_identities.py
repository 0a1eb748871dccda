"""The table of task embeddings: what it fills, how it is learned, stored, mapped and counted in a run's key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gram import checkpoint
from gram.api import Sampler
from gram.checkpoint import CheckpointError
from gram.config import ModelConfig, SamplerConfig, config_to_json
from gram.distributed.worker import Runner, pack
from gram.identities import TABLE_FILE, IdentityTable, open_table
from gram.model import Model
from gram.sampler.run import Job, make_plan, resolve, sample
from gram.sampler.scheduler import Shard
from gram.tasks.arc_folder import NAMES_FILE, read_names
from gram.tasks.protocol import PuzzleSet
from gram.tasks.registry import get_task

TASK = get_task("sudoku4")
SHAPE: dict[str, Any] = {"task": "sudoku4", "vocabulary": 5, "tokens": 16, "output_tokens": 16, "dim": 8, "heads": 2}
CONFIG = ModelConfig(
    **SHAPE, mixer="attention", registers=3, guidance="none", hidden=8, depth=3, identities=5, identity_dim=20
)
PUZZLES = np.stack([TASK.parse("1...............")] * 4)
IDENTITIES = np.array([4, 1, 4, 2])


def made(config: ModelConfig = CONFIG) -> Model:
    model = Model(config, seed=1)
    assert model.identities is not None
    model.identities.rows.normal_(generator=torch.Generator().manual_seed(0))
    torch.nn.init.ones_(model.halt.weight)
    return model.eval().requires_grad_(False)


def test_registers_are_the_row_in_order_and_zeros_behind() -> None:
    model = made()
    assert model.identities is not None
    assert "registers" not in model.weights()
    e_x = model.embed(torch.from_numpy(PUZZLES).long(), torch.from_numpy(IDENTITIES))
    front = (e_x - model.positions * CONFIG.dim**0.5)[:, :3].flatten(1) / CONFIG.dim**0.5
    assert torch.allclose(front[:, :20], model.identities.rows[IDENTITIES], atol=1e-6)
    assert torch.allclose(front[:, 20:], torch.zeros(4, 4), atol=1e-6)
    same = Model(CONFIG)
    assert same.identities is not None
    assert not same.identities.rows.any()


@pytest.mark.parametrize("identities", [None, torch.tensor([5]), torch.tensor([-1])])
def test_a_row_that_is_not_there_is_refused(identities: torch.Tensor | None) -> None:
    with pytest.raises(ValueError, match="identities must be"):
        made().embed(torch.ones(1, 16, dtype=torch.long), identities)


def test_the_same_puzzle_under_two_identities_is_two_puzzles() -> None:
    model = made()
    result = sample(model, TASK, PUZZLES, SamplerConfig(width=1, halting="fixed"), identities=IDENTITIES)
    assert np.array_equal(result.halt[0], result.halt[2])
    assert not np.array_equal(result.halt[0], result.halt[1])
    whole = Sampler(model, TASK, name="x").sample(PuzzleSet(puzzles=PUZZLES, identities=IDENTITIES), width=1)
    assert whole.candidates.shape == (4, 1, 16)


def test_the_key_of_a_run_is_of_the_rows_in_use() -> None:
    model, settings = made(), resolve(SamplerConfig(width=1), made())

    def key(identities: np.ndarray) -> str:
        plan = make_plan(model, TASK, PUZZLES, settings, identities=identities, is_unconditional=False, is_traced=False)
        return plan.key

    assert model.identities is not None
    first = key(IDENTITIES)
    assert key(np.array([4, 1, 4, 3])) != first
    model.identities.rows[3] += 1  # in use by nobody
    assert key(IDENTITIES) == first
    model.identities.rows[2] += 1
    assert key(IDENTITIES) != first


def test_a_worker_gets_the_rows_in_use_alone() -> None:
    model, shard = made(), Shard(0, 0, 4, 0, 1)
    config = resolve(SamplerConfig(width=1, halting="fixed"), model)
    job = Job(
        model=model, task=TASK, puzzles=PUZZLES, config=config, device=model.device, identities=IDENTITIES
    )  # fmt: skip
    runner = Runner(pack(job, task_module=None))
    assert runner.job.model.identities is not None
    assert len(runner.job.model.identities) == 3
    here, there = job.run_shard(shard), runner.job.run_shard(shard)
    assert np.array_equal(here.halt, there.halt)
    plans = [
        make_plan(
            each.model,
            TASK,
            PUZZLES,
            config,
            identities=each.identities,
            is_unconditional=False,
            is_traced=False,
        ).key
        for each in (job, runner.job)
    ]
    assert plans[0] == plans[1]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.floats(0, 0.5, width=32), st.floats(0, 1, width=32))
def test_a_step_is_that_of_signsgd_on_the_sum_of_each_rows_gradients(
    identities: list[int], rate: float, decay: float
) -> None:
    config = ModelConfig(**SHAPE, registers=1, identities=4, identity_dim=2)
    generator = torch.Generator().manual_seed(len(identities))
    rows = torch.randn(4, 2, generator=generator)
    gradient = torch.randn(len(identities), 2, generator=generator)
    table = IdentityTable(rows.clone(), config)
    table.learn(torch.tensor(identities), gradient, rate, decay)
    for row in range(4):
        mine = [gradient[place] for place, each in enumerate(identities) if each == row]
        wanted = rows[row] * (1 - rate * decay) - rate * torch.stack(mine).sum(0).sign() if mine else rows[row]
        assert torch.allclose(table.rows[row], wanted, atol=1e-6)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_checkpoint_holds_the_table_mapped_and_its_names(tmp_path: Path, dtype: torch.dtype | None) -> None:
    model = made()
    assert model.identities is not None
    names = tmp_path / "names.json"
    names.write_text(json.dumps(["<blank>", "a", "b", "c", "d"]))
    model.identities.names = names
    checkpoint.save(model, tmp_path / "model", dtype=dtype)
    loaded = checkpoint.load(tmp_path / "model")
    assert loaded.identities is not None
    assert loaded.identities.names is not None
    assert torch.equal(loaded.identities.rows, model.identities.rows.to(dtype or torch.float32))
    assert read_names(loaded.identities.names) == ["<blank>", "a", "b", "c", "d"]
    assert config_to_json(loaded.config)["identity_dim"] == 20
    stored = (tmp_path / "model" / TABLE_FILE).read_bytes()
    checkpoint.save_new(loaded, tmp_path / "again", card={})
    assert (tmp_path / "again" / TABLE_FILE).read_bytes() == stored
    assert (tmp_path / "again" / NAMES_FILE).read_bytes() == names.read_bytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda file: file.unlink(), "must hold the model's 5 identities, got no such file"),
        (lambda file: file.write_bytes(b"text"), "not a safetensors file"),
        (lambda file: file.write_bytes(file.read_bytes()[:-8]), "not a safetensors file"),
    ],
)
def test_a_damaged_table_is_one_line(tmp_path: Path, change: Any, words: str) -> None:
    checkpoint.save(made(), tmp_path)
    change(tmp_path / TABLE_FILE)
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(tmp_path)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_table_of_another_shape_and_a_row_that_is_not_finite_are_one_line(tmp_path: Path) -> None:
    model = made()
    assert model.identities is not None
    model.identities.rows[3, 2] = float("nan")
    model.identities.save(tmp_path)
    with pytest.raises(ValueError, match=r"identities must be \[4, 20\] floating point, got \[5, 20\] float32"):
        open_table(tmp_path, ModelConfig(**SHAPE, registers=3, identities=4, identity_dim=20))
    table = open_table(tmp_path, CONFIG)
    assert table.take(torch.tensor([4, 0])).isfinite().all()
    with pytest.raises(ValueError, match="identity 3 must be finite"):
        table.take(torch.tensor([1, 3]))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"identities": 3}, "identity_dim must be within 1 and registers times dim"),
        ({"identities": 3, "identity_dim": 25, "registers": 3}, r"\(24\), got 25"),
        ({"identities": -1, "identity_dim": 1, "registers": 3}, "identities must be at least 0, got -1"),
        ({"identity_dim": 1, "registers": 3, "views": "random"}, "views must be off"),
        ({"identity_dim": 1, "registers": 3, "has_empty_condition": True}, "got an empty one"),
    ],
)
def test_a_table_that_contradicts_its_model_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ModelConfig(**SHAPE, **values)


def test_runs_that_do_not_go_with_the_table_are_refused() -> None:
    model, plain = made(), Model(ModelConfig(**SHAPE))
    with pytest.raises(ValueError, match="views must be off where an identity names the view"):
        resolve(SamplerConfig(views="random"), model)
    with pytest.raises(ValueError, match="puzzles must come with their identities"):
        sample(model, TASK, PUZZLES, SamplerConfig(width=1))
    with pytest.raises(ValueError, match="got a model without a table"):
        sample(plain, TASK, PUZZLES, SamplerConfig(width=1), identities=IDENTITIES)
    with pytest.raises(ValueError, match="got 2 for 4 puzzles"):
        sample(model, TASK, PUZZLES, SamplerConfig(width=1), identities=IDENTITIES[:2])
