"""Several ranks train what one process trains; only the first writes; a run goes on with another number of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gram.training.data_parallel import Ranks, joined
from gram.training.trainer import Trainer
from tests import two_ranks
from tests.unit.test_training import recipe, run

ROOT = Path(__file__).parents[2]


def test_shares_are_even_and_whole():
    assert [Ranks(rank, 4).share(8, "batch") for rank in range(4)] == [
        slice(0, 2),
        slice(2, 4),
        slice(4, 6),
        slice(6, 8),
    ]
    with pytest.raises(ValueError, match="batch must be a multiple of the 3 processes, got 8"):
        Ranks(0, 3).share(8, "batch")


def test_a_batch_that_cannot_be_shared_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError, match="batch must be a multiple of the 3 processes, got 8"):
        run(tmp_path / "run", recipe(), ranks=Ranks(0, 3))
    assert not (tmp_path / "run").exists()


def test_a_process_that_torchrun_did_not_start_is_alone(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with joined(torch.device("cpu")) as ranks:
        assert (ranks.rank, ranks.size, ranks.is_first) == (0, 1, True)
        tensor = torch.ones(2)
        assert ranks.average(tensor) is tensor
        assert ranks.gather(tensor) is tensor
        assert ranks.all_reduce(1.5, True, torch.device("cpu")) == (1.5, True)
        ranks.barrier()


@pytest.fixture(scope="module")
def of_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What `two_ranks.py` wrote and printed in two processes: they take long to start, so they start once. One process
    began the run that they continue."""
    folder = tmp_path_factory.mktemp("ranks")
    run(folder / "run", recipe(steps=10, checkpoint_every_steps=1))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    done = subprocess.run(
        [*command, "tests.two_ranks", str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("case", two_ranks.CASES)
def test_two_ranks_give_the_gradients_of_one(of_two_ranks, tmp_path, case):
    alone = Trainer(
        recipe(**two_ranks.COMMON, **two_ranks.CASES[case]), tmp_path, device=torch.device("cpu"), dtype=torch.float32,
        is_compiled=False,
    )  # fmt: skip
    expected = two_ranks.gradients(alone)
    first, second = (torch.load(of_two_ranks[0] / f"{case}-{rank}.pt", weights_only=True) for rank in range(2))
    core = [name for name in alone.flat.shapes if not name.startswith(("halt", "lprm"))]
    assert core
    for step in range(two_ranks.STEPS):
        assert torch.equal(first[step], second[step])
        found, wanted = alone.flat.views(first[step]), alone.flat.views(expected[step])
        assert sum(float(wanted[name].abs().sum()) for name in core) > 0
        for name in core:
            assert torch.allclose(found[name], wanted[name], atol=1e-5, rtol=1e-4), (step, name)


@pytest.mark.slow
@pytest.mark.alone
def test_two_ranks_continue_a_run_and_only_the_first_writes(of_two_ranks):
    """One process begins, two go on, one ends: the folder holds one log, whole, and no temporary file."""
    folder, printed = of_two_ranks
    out = folder / "run"
    said = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert sorted((line["rank"], line["steps"]) for line in said) == [(0, 20), (1, 20)]
    assert run(out, recipe(steps=30, checkpoint_every_steps=1))["optimiser_steps"] == 30
    steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert steps == [10, 20, 30]
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]
