"""Puzzles from the Hugging Face hub and checkpoints to it, against a stand-in of its endpoint on this machine."""

import json

import pytest

import gram
from gram import checkpoint
from gram.api import Sampler
from gram.cli.main import main
from gram.tasks.registry import get_task
from tests.hub_server import empty_hub, resolved
from tests.models import tiny_model

__all__ = ["empty_hub"]


@pytest.fixture
def hub(empty_hub):
    """One with a file of puzzles."""
    hub = empty_hub
    hub.files[resolved("us/queens", "small/test.csv")] = b"question\n.Q..............\n"
    return hub


@pytest.fixture
def folder(tmp_path):
    checkpoint.save(tiny_model(), tmp_path / "tiny", card={"task": "nqueens4"})
    return tmp_path / "tiny"


@pytest.mark.parametrize("command", ["solve", "eval"])
def test_puzzles_of_the_hub_are_fetched_once(hub, folder, capsys, command):
    given = (command, "nqueens4", "--checkpoint", str(folder), "--puzzles", "hf://us/queens/small/test.csv", "--json")
    assert main(given) == 0
    found = json.loads(capsys.readouterr().out)
    hub.shutdown()
    hub.server_close()
    assert main(given) == 0, "from the cache"
    again = json.loads(capsys.readouterr().out)
    assert found["trajectories_sha256"] == again["trajectories_sha256"]


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("hf://us/queens", "must be hf://owner/dataset/path/file"),
        ("hf://us/queens/other.csv", "not on the hub"),
        ("hf://nobody/queens/a.csv", "not on the hub"),
        ("hf://us/..queens/a.csv", "..queens"),
    ],
)
def test_what_the_hub_lacks_is_one_line(hub, folder, capsys, uri, words):
    assert main(("solve", "nqueens4", "--checkpoint", str(folder), "--puzzles", uri)) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    "given",
    ["solve nqueens4 --checkpoint {0} --puzzles hf://us/queens/a.csv", "push {0} us/tiny"],
    ids=["solve", "push"],
)
def test_no_network_is_one_line(hub, folder, capsys, given):
    hub.shutdown()
    hub.server_close()
    assert main(given.format(folder).split()) == 2
    told = capsys.readouterr().err
    assert "cannot be reached" in told
    assert told.count("\n") == 1


def test_a_pushed_checkpoint_is_the_checkpoint(hub, folder, tmp_path, capsys):
    (folder / "log.jsonl").write_text("{}")
    assert main(("push", str(folder), "us/tiny", "--private")) == 0
    assert capsys.readouterr().out.endswith("/us/tiny\n")
    assert hub.made[0]["visibility"] == "private"
    assert set(hub.committed) == {"config.json", "model.safetensors", "card.json"}
    for name, content in hub.committed.items():
        (tmp_path / "back" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "back" / name).write_bytes(content)
    assert checkpoint.load(tmp_path / "back").digest() == checkpoint.load(folder).digest()


def test_a_sampler_saves_and_pushes_itself(hub, folder, tmp_path):
    sampler = gram.load(folder, device="cpu", dtype="float32")
    assert repr(sampler).startswith(f"<Sampler of {sampler.task.name}, checkpoint {folder}: cpu")
    sampler.save(tmp_path / "saved")
    assert gram.load(tmp_path / "saved", device="cpu", dtype="float32").model.digest() == sampler.model.digest()
    Sampler(sampler.model, get_task("nqueens4"), name="mine").push("us/tiny")
    assert hub.committed["model.safetensors"] == (tmp_path / "saved" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("where", "name"), [("tiny", "tiny"), ("nowhere", "us/tiny"), ("tiny", "a b/c")])
def test_pushes_of_nothing_and_to_nowhere_are_refused(hub, folder, capsys, where, name):
    assert main(("push", str(folder.parent / where), name)) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not hub.committed
