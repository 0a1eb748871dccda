"""A stand-in of the Hugging Face hub's endpoint on this machine, which huggingface_hub is pointed to."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

COMMIT = "0" * 40


def resolved(dataset, file):
    """Path that the hub serves a data set's file at."""
    return f"/datasets/{dataset}/resolve/main/{file}"


class Hub(BaseHTTPRequestHandler):
    """Files of data sets, and models that take commits."""

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
        if self.path in self.server.files:
            etag = f'"{hashlib.sha256(self.path.encode()).hexdigest()}"'
            self.answer(200, self.server.files[self.path], ETag=etag, X_Repo_Commit=COMMIT)
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
def empty_hub(tmp_path, monkeypatch):
    """A hub without files: `files` takes the bytes of each path, as `resolved` gives it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # between its retries
    server.committed, server.made, server.files = {}, [], {}
    yield server
    server.shutdown()
    server.server_close()
