"""ARC on many views: `gram data arc`, `gram import --data`, `gram eval arc --data`, end to end on a tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from gram import api, checkpoint
from gram.cli.main import main
from gram.config import SamplerConfig
from gram.evals import arc
from gram.evals.arc import evaluate_arc
from gram.kernels.philox import NoiseKey
from gram.sampler.engine import Engine
from gram.tasks.arc_folder import NAMES_FILE, open_arc_folder
from gram.tasks.arc_grids import decode
from tests.arc_tasks import arc_folder, arc_json, arc_model, tasks
from tests.integration.test_importers import ARCH, state_dict

QUIET = ("--quiet", "--width", "2", "--depth", "1", "--halting", "fixed", "--launch", "2", "--slots", "2")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def test_a_data_set_is_built_and_a_model_of_it_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = arc_json(tmp_path / "a.json", tasks(3))
    code, out, err = run(capsys, "data", "arc", file, "--out", tmp_path / "data", "--views", 4, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert (told["identities"], told["tests"], told["examples"]) == (16, 4, {"train": 30, "test": 20})
    model = arc_model(tmp_path / "model", tmp_path / "data")
    command = ("eval", "arc", "--data", tmp_path / "data", "--checkpoint", model, "--out", tmp_path / "out", *QUIET)
    code, out, err = run(capsys, *command, "--json")
    assert code == 0, err
    told = json.loads(out, parse_constant=pytest.fail)
    assert (told["tasks"], told["tests"], told["examples"], told["trajectories"]) == (3, 4, 20, 40)
    assert {f"pass@{k}" for k in (1, 2, 5, 10, 100, 1000)} <= set(told)
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == told
    submitted = json.loads((tmp_path / "out" / "submission.json").read_text())
    assert {name: len(tests) for name, tests in submitted.items()} == {"task0": 1, "task1": 2, "task2": 1}
    assert set(submitted["task0"][0]) == {"attempt_1", "attempt_2"}
    rows = [json.loads(line) for line in (tmp_path / "out" / "tasks.jsonl").read_text().splitlines()]
    assert [row["predictions"] for row in rows] == [10] * 4
    code, out, err = run(capsys, *command)
    assert code == 0, err
    assert "pass@1000" in out
    assert str(tmp_path / "out" / "submission.json") in out.replace("\n", "")


def test_views_are_puzzles_with_their_own_rows(tmp_path: Path) -> None:
    data = arc_folder(tmp_path)
    sampler = api.load(arc_model(tmp_path / "model", data), dtype="float32")
    folder = open_arc_folder(data)
    settings = sampler.settings(SamplerConfig(width=1, depth=1, halting="fixed", launch=2, slots=2))
    report = evaluate_arc(sampler, folder, settings)
    split = folder.split("test")
    examples = np.arange(len(split.inputs))
    identities = split.identities[split.puzzles_of(examples)]
    model = sampler.model
    e_x = model.embed(torch.from_numpy(split.inputs.astype(np.int64)), torch.from_numpy(identities))
    h, l = model.initial_state(len(examples))
    zeros = torch.zeros(len(examples), dtype=torch.long)
    step = model.step(h, l, e_x, NoiseKey(0, zeros, zeros, zeros))
    answers = model.decode(step.h).argmax(-1).numpy().astype(np.uint8)
    grids = [
        folder.view(int(identity))[1].undo(decode(answer)) for identity, answer in zip(identities, answers, strict=True)
    ]
    row = report.rows[0]
    of_test = {
        grid.tobytes() + bytes(grid.shape)
        for grid, identity in zip(grids, identities, strict=True)
        if folder.view(int(identity))[0] == row["task"]
    }
    assert row["candidates"] == len(of_test)
    # Other rows, other answers.
    assert model.identities is not None
    model.identities.rows = model.identities.rows.clone().normal_(std=9, generator=torch.Generator().manual_seed(5))
    assert evaluate_arc(sampler, folder, settings).rows != report.rows


def test_a_killed_evaluation_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = arc_folder(tmp_path)
    monkeypatch.setattr(arc, "BLOCK_TRAJECTORIES", 1)
    sampler = api.load(arc_model(tmp_path / "model", data), dtype="float32")
    folder, settings = open_arc_folder(data), sampler.settings(SamplerConfig(width=1, depth=1, launch=2, slots=2))
    whole = evaluate_arc(sampler, folder, settings)
    run_engine, runs = Engine.run, list[int]()

    def counted(self: Engine, shards: Any) -> Any:
        runs.append(1)
        if len(runs) == 3:
            raise KeyboardInterrupt
        return run_engine(self, shards)

    monkeypatch.setattr(Engine, "run", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate_arc(sampler, folder, settings, out=tmp_path / "out")
    monkeypatch.setattr(Engine, "run", run_engine)
    steps: list[int] = []
    monkeypatch.setattr(Engine, "_step", lambda self, step=Engine._step: (steps.append(1), step(self))[1])
    again = evaluate_arc(sampler, folder, settings, out=tmp_path / "out")
    assert again.rows == whole.rows
    assert len(steps) == 3  # five views of the last task, two at a time


def test_a_model_that_knows_no_task_is_evaluated_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, model = arc_folder(tmp_path), arc_model(tmp_path / "model")
    code, out, err = run(capsys, "eval", "arc", "--data", data, "--checkpoint", model, *QUIET, "--limit", 1, "--json")
    assert code == 0, err
    assert json.loads(out)["tasks"] == 1


def test_tests_without_output_are_told_and_submitted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = {"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[1, 2]]}]}
    data = arc_folder(tmp_path, count=0, secret=secret)
    model = arc_model(tmp_path / "model", data)
    command = ("eval", "arc", "--data", data, "--checkpoint", model, "--out", tmp_path / "out", *QUIET)
    code, out, err = run(capsys, *command)
    assert code == 0, err
    assert "no label of 1 of 1 tests" in err
    assert "no label" in out
    assert len(json.loads((tmp_path / "out" / "submission.json").read_text())["secret"]) == 1
    assert json.loads((tmp_path / "out" / "results.json").read_text())["pass@2"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("eval", "arc", "--data", "{data}", "--views", "random"),
            "views must be off where an identity names the view",
        ),
        (("eval", "arc", "--data", "{data}", "--puzzles", "a.json"), "--puzzles must be left out with --data"),
        (("eval", "arc", "--data", "{data}", "--width-policy", "verified"), "width_policy must not be verified"),
        (("eval", "arc", "--data", "{data}", "--width-policy", "first-halt"), "width_policy must not be first-halt"),
        (("eval", "arc", "--data", "{folder}"), "data must be a folder with identifiers.json"),
        (("eval", "arc", "--data", "{other}"), "must be ones that the checkpoint was trained on"),
        (("eval", "arc", "--puzzles", "{folder}/tasks.json"), "puzzles must come with their identities"),
        (("solve", "arc", "--puzzles", "{folder}/tasks.json"), "puzzles must come with their identities"),
        (("eval", "arc", "--puzzles", "{data}"), "got the data set of views"),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, tuple) else None,
)
def test_what_does_not_go_together_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    words: str,
) -> None:
    data = arc_folder(tmp_path)
    model = arc_model(tmp_path / "model", data)
    (tmp_path / "b").mkdir()
    names = {"data": data, "folder": tmp_path, "other": arc_folder(tmp_path / "b", views=6)}
    monkeypatch.setattr(Engine, "run", lambda *_: pytest.fail("sampled"))
    out = tmp_path / "out"
    code, told, err = run(capsys, *(part.format(**names) for part in arguments), "--checkpoint", model)
    assert (code, told) == (2, "")
    assert words in err
    assert err.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("task0|||t9|||0123456789", "name of a view must be TASK"),
        ("task0|||t1", "name of a view must be TASK"),
    ],
)
def test_a_view_that_does_not_parse_is_told_before_sampling(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    data = arc_folder(tmp_path)
    names = json.loads((data / NAMES_FILE).read_text())
    (data / NAMES_FILE).write_text(json.dumps([*names[:2], name, *names[3:]]))
    model = arc_model(tmp_path / "model", data)
    monkeypatch.setattr(Engine, "run", lambda *_: pytest.fail("sampled"))
    code, _, err = run(capsys, "eval", "arc", "--data", data, "--checkpoint", model, "--out", tmp_path / "out", *QUIET)
    assert code == 2
    assert words in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("arc",), "files of ARC tasks must be named"),
        (("arc", "{}", "--limit", "3"), "--limit must be of a set other than arc"),
        (("arc", "{}", "--views", "-1"), "views must be within 0"),
        (("maze-hard", "{}"), "files and --views must be of arc"),
        (("arc", "{}.none"), "no such file"),
    ],
)
def test_bad_orders_of_a_data_set_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    file = arc_json(tmp_path / "a.json", tasks(1))
    code, _, err = run(capsys, "data", *(part.format(file) for part in arguments), "--out", tmp_path / "data")
    assert code == 2
    assert words in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == [file]


def foreign(folder: Path, data: Path, rows: int, *, learned: bool = False) -> tuple[Path, Path, dict[str, Any]]:
    """A TRM checkpoint with a table of `rows` identities, its settings, and its tensors."""
    state = state_dict("trm", "self_attn", learned=learned, vocabulary=12, tokens=900)
    state["inner.puzzle_emb.weights"] = torch.randn(rows, 40, generator=torch.Generator().manual_seed(3))
    torch.save({f"_orig_mod.model.{name}": tensor for name, tensor in state.items()}, folder / "step_1")
    arch = ARCH | {"puzzle_emb_len": 3} | ({"pos_encodings": "learned"} if learned else {})
    (folder / "config.yaml").write_text(yaml.safe_dump({"arch": arch}))
    return folder / "step_1", folder / "config.yaml", state


@pytest.mark.parametrize("learned", [False, True])
def test_an_imported_table_fills_the_registers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], learned: bool
) -> None:
    data = arc_folder(tmp_path)
    file, settings, state = foreign(tmp_path, data, 18, learned=learned)
    command = ("import", "trm", file, "--config", settings, "--data", data, "--out", tmp_path / "model")
    code, out, err = run(capsys, *command)
    assert code == 0, err
    assert "table of 18 identities, 40 numbers each" in out
    assert "2 of 18 identities have no name" in out
    model = checkpoint.load(tmp_path / "model")
    table = state["inner.puzzle_emb.weights"] * (0.707106781 if learned else 1.0)
    assert model.identities is not None
    assert torch.equal(model.identities.rows, table)
    assert (tmp_path / "model" / NAMES_FILE).read_bytes() == (data / NAMES_FILE).read_bytes()
    assert checkpoint.read_card(tmp_path / "model")["imported"]["data"] == "data"
    arguments = ("eval", "arc", "--data", data, "--checkpoint", tmp_path / "model", "--limit", 1, *QUIET)
    code, _, err = run(capsys, *arguments)
    assert code == 0, err


@pytest.mark.parametrize(
    ("rows", "with_data", "words"),
    [
        (16, False, "has 16 identities: the data set that names them must be given (--data DIR"),
        (15, True, "must have a row for each of 16 names in"),
    ],
)
def test_a_table_without_its_names_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: int, with_data: bool, words: str
) -> None:
    data = arc_folder(tmp_path)
    file, settings, _ = foreign(tmp_path, data, rows)
    given = ("--data", data) if with_data else ()
    code, _, err = run(capsys, "import", "trm", file, "--config", settings, *given, "--out", tmp_path / "model")
    assert code == 2
    assert words in err
    assert err.count("\n") == 1
    assert not (tmp_path / "model").exists()


BIG_TABLE = """
import json, sys, torch
from pathlib import Path
from gram.cli.main import main
def anonymous():
    return max(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) / 1024
before = anonymous()
most = before
import threading, time
def watch():
    global most
    while True:
        most = max(most, anonymous())
        time.sleep(0.005)
threading.Thread(target=watch, daemon=True).start()
code = main(sys.argv[1:])
assert code == 0, code
print(json.dumps({"before_mib": before, "most_mib": most}), file=sys.stderr)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="RssAnon is Linux's")
def test_a_large_table_is_imported_without_being_held(tmp_path: Path) -> None:
    """Of a table of 160 MB less than a quarter may be in anonymous memory beside what a small one's import has."""
    data = arc_folder(tmp_path)
    sizes = {}
    for rows, name in ((16, "small"), (1_000_000, "large")):
        file, settings, _ = foreign(tmp_path, data, rows)
        out = tmp_path / name
        command = ["import", "trm", file, "--config", settings, "--data", data, "--out", out, "--json"]
        done = subprocess.run(
            [sys.executable, "-c", BIG_TABLE, *map(str, command)], capture_output=True, text=True, env=os.environ
        )
        assert done.returncode == 0, done.stderr
        sizes[name] = json.loads(done.stderr.splitlines()[-1])["most_mib"]
    assert (tmp_path / "large" / "identities.safetensors").stat().st_size > 160_000_000
    assert sizes["large"] < sizes["small"] + 40


@pytest.mark.slow
@pytest.mark.parametrize("project", ["TRM", "HRM"])
def test_against_the_official_code(gram_data: Path, project: str) -> None:
    """Where GRAM_PEER_TRM or _HRM names a checkout."""
    repo = os.environ.get(f"GRAM_PEER_{project}")
    if not repo:
        pytest.skip(f"GRAM_PEER_{project} does not name a checkout of the official code")
    root = Path(__file__).parents[2]
    tasks_file = gram_data / "arc_agi" / "public_arc1_training400.json.gz"
    command = [sys.executable, str(root / "scripts" / "check_arc.py"), "--peer-repo", repo, "--tasks", str(tasks_file)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(root)})
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == {"TRM": 4, "HRM": 1}[project]
