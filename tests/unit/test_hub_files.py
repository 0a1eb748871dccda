"""Puzzles from the Hugging Face hub and checkpoints to it, against a stand-in of its endpoint on this machine."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import gram
from gram import checkpoint
from gram.api import Sampler
from gram.cli.main import main
from gram.tasks.registry import get_task
from tests.models import tiny_model

COMMIT = "0" * 40
PUZZLES = b"question\n.Q..............\n"


class Hub(BaseHTTPRequestHandler):
    """One data set with one file, and models that take commits."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, code, body=b"{}", **headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self):
        if self.path == "/datasets/us/queens/resolve/main/small/test.csv":
            self.answer(200, PUZZLES, ETag='"e"', X_Repo_Commit=COMMIT)
        else:
            self.answer(404, b"", X_Error_Code="RepoNotFound" if "/nobody/" in self.path else "EntryNotFound")

    do_GET = do_HEAD

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            self.server.made.append(json.loads(body))
            self.answer(200, json.dumps({"url": "https://huggingface.co/us/tiny"}).encode())
        elif "/preupload/" in self.path:
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            self.answer(200, json.dumps({"files": files}).encode())
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.committed[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = "https://huggingface.co/us/tiny/commit/" + COMMIT
            self.answer(200, json.dumps({"commitUrl": url, "commitOid": COMMIT, "success": True}).encode())
        else:
            self.answer(404)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # between its retries
    server.committed, server.made = {}, []
    yield server
    server.shutdown()
    server.server_close()


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
    sampler.save(tmp_path / "saved")
    assert gram.load(tmp_path / "saved", device="cpu", dtype="float32").model.digest() == sampler.model.digest()
    Sampler(sampler.model, get_task("nqueens4"), name="mine").push("us/tiny")
    assert hub.committed["model.safetensors"] == (tmp_path / "saved" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("where", "name"), [("tiny", "tiny"), ("nowhere", "us/tiny"), ("tiny", "a b/c")])
def test_pushes_of_nothing_and_to_nowhere_are_refused(hub, folder, capsys, where, name):
    assert main(("push", str(folder.parent / where), name)) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not hub.committed
