"""The page of a folder of scripts/bench_gpu.sh."""

import json
import math
from dataclasses import asdict

import pytest

from gram.cli.report import report
from gram.evals.benchmarks import gpu_folder
from gram.evals.benchmarks.timing import Measurement, to_json
from gram.evals.frontier.files import write
from gram.formatting import plain
from tests.browser import Browser, chromium
from tests.unit.test_frontier import made

GPU = "GPU 0: NVIDIA <H200> (UUID: GPU-1)"


def bench(folder, name, *rows):
    (folder / f"{name}.rows.json").write_text(json.dumps(plain(to_json(rows))))


@pytest.fixture
def folder(tmp_path):
    lines = [
        "part\texit\tseconds\tcommand",
        "tests-bfloat16\t1\t90\tpython -m pytest -k bfloat16",
        "tuning-small\t0\t300\tgram bench tuning --preset small",
        "kernels-small\t124\t540\tgram bench kernels --preset small",
        "engine\t0\t200\tgram bench engine",
        "frontier-fused\t0\t400\tgram frontier sudoku6 --kernel fused",
        "tests-float32\t-\t0\tnot run: No module named 'hypothesis'",
    ]
    (tmp_path / "status.tsv").write_text("\n".join(lines) + "\n")
    (tmp_path / "run.txt").write_text(f"{GPU}\n123 456\n")
    (tmp_path / "tests-bfloat16.txt").write_text("F\n\n= 1 failed, 60 passed in 80.1s =\n")
    (tmp_path / "tests-bfloat16.log").write_text("")
    (tmp_path / "kernels-small.log").write_text("first\nsmall: timing <fused>\n")
    bench(
        tmp_path,
        "kernels-small",
        Measurement.of("small: compiled / fused, time", [2.0, 2.5, 3.0], 2.0),
        Measurement.of("small: share of the floor", [0.2], 0.4),
        Measurement.failed("small: blocks", RuntimeError("out of <memory>")),
    )
    bench(tmp_path, "engine", Measurement.of("sudoku6: host share, %", [8.0], 10, is_ceiling=True))
    cut = {"warps": 8, "stages": 2, "tile": 32, "token_tile": 32, "group": 2}
    choice = {"model": "small", "dtype": "torch.bfloat16", "milliseconds": 0.4567, "tuning": cut, "device": "H200"}
    (tmp_path / "tuning.json").write_text(json.dumps({"choices": [choice]}))
    write(tmp_path / "frontier-fused", plain(made()))
    (tmp_path / "training").mkdir()
    log = [
        {"step": 10, "elapsed_s": 6.0, "fraction": 0.1, "cross_entropy": 1.25, "evaluation": {}},
        {"step": 20, "elapsed_s": 12.0, "fraction": 0.2, "cross_entropy": None, "evaluation": {"single_accuracy": 0.5}},
        {"step": 30, "elapsed_s": 18.0, "fraction": 0.3, "cross_entropy": 0.75, "evaluation": {}},
    ]
    cut_off = '{"step": 40, "ela'
    (tmp_path / "training" / "log.jsonl").write_text("\n".join([*map(json.dumps, log), cut_off]))
    return tmp_path


def test_the_page_has_what_every_part_left(folder):
    report(folder)
    page = (folder / "report.html").read_text()
    assert GPU.replace("<", "&lt;").replace(">", "&gt;") in page
    assert "4 of 6 parts without a failure" in page
    assert "of 4 measurements 1 short of their floor, 1 with an error." in page
    assert "1 failed, 60 passed in 80.1s" in page
    assert "out of time" in page
    assert "<small>No module named &#x27;hypothesis&#x27;</small>" in page
    assert "small: timing &lt;fused&gt;" in page
    assert "RuntimeError: out of &lt;memory&gt;" in page
    assert "2.50<br><small>2.00 to 3.00</small>" in page
    assert page.count("<strong>short</strong>") == 1
    assert "0.457" in page
    assert 'href="frontier-fused/report.html"' in page
    training = page.split("The run of the paper")[1].split("</section>")[0]
    assert "single accuracy 0.500" in training
    assert [f">{step}<" in training for step in (10, 20, 30, 40)] == [False, True, True, False]
    assert (folder / "frontier-fused" / "report.html").is_file()
    assert not (folder / "joint.json").exists()


def test_before_and_after_the_sweep_stand_side_by_side(folder):
    """And a part that a call's end cut off is no failure."""
    with (folder / "status.tsv").open("a") as file:
        file.write("kernels-small-tuned\t0\t90\tgram bench kernels\nsampler\tcut\t12\tgram bench sampler\n")
    bench(folder, "kernels-small-tuned", Measurement.of("small: compiled / fused, time", [3.5], 2.0))
    choices = json.loads((folder / "tuning.json").read_text())
    choices["choices"][0]["default_milliseconds"] = 0.7891
    (folder / "tuning.json").write_text(json.dumps(choices))
    report(folder)
    page = (folder / "report.html").read_text()
    rows = [
        line for line in page.split("<tr") if "small: compiled / fused, time" in line or "share of the floor" in line
    ]
    assert ["with the fastest cuts" in row for row in rows] == [False, True, False]
    assert "3.50<br>" in rows[1]
    assert "0.789" in page
    assert "cut off, to go on" in page
    assert "6 of 8 parts without a failure" in page
    assert '<p class="warn">sampler' not in page


def test_a_run_that_has_only_begun_has_a_page(tmp_path):
    (tmp_path / "status.tsv").write_text("part\texit\tseconds\tcommand\n")
    (tmp_path / "run.txt").write_text(GPU)
    report(tmp_path)
    assert "0 of 0 parts without a failure" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("status.tsv", "part\texit\nslots\t0\n", "status.tsv: must have lines of part, exit, seconds, command"),
        ("status.tsv", "", "status.tsv: must have lines of part, exit, seconds, command"),
        ("status.tsv", "part\texit\tseconds\tcommand\nslots\t0\tsoon\tgram\n", "status.tsv: must have lines of"),
        ("engine.rows.json", "{}", "engine.rows.json: must hold a list of rows, got none"),
        ("engine.rows.json", "{", "engine.rows.json"),
        ("tuning.json", "[]", "tuning.json"),
    ],
)
def test_a_damaged_file_is_named_and_nothing_is_written(folder, name, text, said):
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=said):
        report(folder)
    assert not (folder / "report.html").exists()


def test_a_measurement_without_a_value_is_read_as_it_was_written(folder):
    (part,) = (each for each in gpu_folder.read(folder).parts if each.name == "kernels-small")
    assert [row["error"] for row in part.rows] == [None, None, "RuntimeError: out of <memory>"]
    assert math.isnan(asdict(Measurement.failed("x", RuntimeError("y")))["ratio"])
    assert part.rows[2]["ratio"] is None


@pytest.mark.slow
def test_a_browser_draws_it_within_its_width(folder):
    chromium()
    report(folder)
    browser = Browser()
    try:
        for width in (400, 900):
            browser.open(folder / "report.html", width=width, is_phone=width < 500)
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.faults() == []
    finally:
        browser.close()
