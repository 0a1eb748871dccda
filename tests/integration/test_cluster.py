"""What of a cluster can be tested without one: addresses, tokens, options, and the worker's work."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gram.cli.main import main
from gram.config import SamplerConfig
from gram.distributed import access, cluster, processes
from gram.distributed.worker import CANCELLED, Runner, ShardOutcome, expected_metadata, pack
from gram.sampler.engine import SlotStates
from gram.sampler.record import Serialized, digest_of, payload_of
from gram.sampler.run import Job, resolve, shards_of
from gram.tasks.registry import get_task
from tests.integration.test_cli import TASK, tiny
from tests.models import tiny_model

PUZZLES = get_task(TASK).split("train").puzzles


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (access.TOKEN, access.TOKEN_PATH, access.MODE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize("where", ["", "old", "10.0.0.1", "ray://10.0.0.1:10001", "host:0", "host:99999", ":6379"])
def test_an_address_that_is_none_is_refused(where):
    with pytest.raises(ValueError, match="ray must be off, new, auto or an address as host:port, got"):
        access.split_address(where)


def test_addresses():
    assert access.split_address("10.0.0.1:6379") == ("10.0.0.1", 6379)
    assert access.is_loopback("127.0.0.1")
    assert not access.is_loopback("10.0.0.1")


def test_a_cluster_elsewhere_must_come_with_a_token(monkeypatch):
    with pytest.raises(ValueError, match=r"ray address 10.0.0.1:6379 must come with a token, .*, got none"):
        access.check_token("10.0.0.1:6379", "10.0.0.1")
    access.check_token("127.0.0.1:6379", "127.0.0.1")
    monkeypatch.setenv(access.TOKEN, "secret")
    monkeypatch.setattr(access, "ask_for_token", lambda: None)
    access.check_token("10.0.0.1:6379", "10.0.0.1")


def test_a_token_file_must_be_its_owners_alone(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(access, "ask_for_token", lambda: asked.append(True))
    file = tmp_path / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text("secret")
    file.chmod(0o644)
    with pytest.raises(ValueError, match=r"auth_token must be for its owner alone \(chmod 600\), got mode 644"):
        access.check_token("10.0.0.1:6379", "10.0.0.1")
    assert not asked
    file.chmod(0o600)
    access.check_token("10.0.0.1:6379", "10.0.0.1")
    assert asked


def free_port() -> int:
    with socket.socket() as one:
        one.bind((access.LOOPBACK, 0))
        return int(one.getsockname()[1])


def test_a_cluster_that_is_not_there_is_told_soon():
    port = free_port()
    with pytest.raises(ValueError, match=f"ray address 127.0.0.1:{port} must be a running cluster, got Connection ref"):
        access.check_reachable(f"127.0.0.1:{port}", access.LOOPBACK, port)


def test_a_machine_without_a_node_is_told_at_once(monkeypatch):
    """Ray connects through a node on this machine, and looks for one for a minute."""
    seen = [processes.Process(2, 1, "raylet2", 2)]
    monkeypatch.setattr(processes, "_all", lambda: seen)
    with socket.create_server((access.LOOPBACK, 0)) as head:
        where = f"{access.LOOPBACK}:{head.getsockname()[1]}"
        told = f"got no node here .gram cluster up --join {where} starts one"
        with pytest.raises(ValueError, match=told), cluster.connected(where):
            pass
    seen.append(processes.Process(1, 1, "raylet", 1))
    access.check_node_here(where)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--workers", "2"], "--workers must come with --ray, got 2 without"),
        (["--gpus-per-worker", "0.5"], "--gpus-per-worker must come with --ray, got 0.5 without"),
        (["--ray", "new", "--workers", "0"], "workers must be at least 1, got 0"),
        (["--ray", "nowhere"], "ray must be off, new, auto or an address as host:port, got 'nowhere'"),
        (["--ray", "192.0.2.1:6379"], "ray address 192.0.2.1:6379 must come with a token"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options, line, tmp_path, capsys):
    assert main(["eval", TASK, "--checkpoint", tiny(tmp_path / "c"), "--quiet", *options]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"gram: {line}")
    assert err.count("\n") == 1


def test_without_a_cluster_ray_is_not_imported(tmp_path):
    code = (
        "import sys; from gram.cli.main import main; code = main(sys.argv[1:]);"
        "assert 'ray' not in sys.modules; sys.exit(code)"
    )
    arguments = ["eval", TASK, "--checkpoint", tiny(tmp_path / "c"), "--limit", "2", "--json", "--quiet"]
    root = Path(__file__).parents[2]
    ran = subprocess.run([sys.executable, "-c", code, *arguments], cwd=root, check=True, capture_output=True, text=True)
    assert "workers" not in json.loads(ran.stdout)


def job(**flags: bool) -> Job:
    model = tiny_model()
    return Job(
        model=model,
        task=get_task(TASK),
        puzzles=PUZZLES,
        config=resolve(SamplerConfig(width=6, launch=8, seed=3), model),
        device=model.device,
        **flags,
    )


@pytest.mark.parametrize("is_traced", [False, True])
def test_a_worker_gives_what_a_local_run_gives(is_traced):
    """From bytes alone: weights, puzzles, settings."""
    given = job(is_traced=is_traced)
    runner = Runner(pack(given, task_module=None))
    assert runner.metadata("node")[:-2] == expected_metadata(given)
    for shard in shards_of(len(PUZZLES), given.config):
        outcome = ShardOutcome(*runner.run(shard))
        mine = given.run_shard(shard).arrays()
        assert outcome.error == ""
        serialized = Serialized.from_bytes(outcome.serialized)
        assert bytes(serialized.payload) == payload_of(mine), "what a local run's store would hold, byte for byte"
        assert serialized.digest == digest_of(payload_of(mine))


@pytest.mark.parametrize("policy", ["fixed", "decided"])
@given(data=st.data())
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_cancelled_shard_ends_within_one_supervision_step_and_leaves_nothing_behind(data, policy, monkeypatch):
    """Whenever it is cancelled, no further step is taken, and the next run of the shard gives what it always gives."""
    given_job = replace(job(), config=replace(job().config, width=12, width_policy=policy))
    runner, shard = Runner(pack(given_job, task_module=None)), shards_of(len(PUZZLES), given_job.config)[0]
    advance, steps, last = SlotStates.advance, 0, 0

    def counted(self: SlotStates, count: int) -> object:
        nonlocal steps
        steps += 1
        return advance(self, count)

    with monkeypatch.context() as patch:
        patch.setattr(SlotStates, "advance", counted)
        wanted = runner.run(shard)
        assert (wanted.error, steps > 2) == ("", True)
        last, steps = data.draw(st.integers(0, steps)), 0
        cancelled = runner.run(shard, is_cancelled=lambda: steps >= last)
        assert (cancelled[:2], steps) == ((b"", CANCELLED), last)
        assert runner.run(shard, is_cancelled=lambda: False)[0] == wanted[0]


def test_a_worker_tells_why_a_shard_failed(monkeypatch):
    runner = Runner(pack(job(), task_module=None))

    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("no\nroom")

    monkeypatch.setattr(Job, "run_shard", fail)
    assert runner.run(shards_of(4, SamplerConfig())[0])[:2] == (b"", "OutOfMemoryError: no room")


def test_a_users_task_travels_with_the_job(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from gram.tasks.registry import get_task as builtin\n\n\ndef get_task(name):\n    return builtin(name)\n"
    )
    runner = Runner(pack(job(), task_module=file))
    file.unlink()
    assert runner.job.task.name == TASK
