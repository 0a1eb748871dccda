"""`scripts/bench_gpu.sh`: it refuses in one line, and a part which fails hides no other. Nothing is measured."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gram.checkpoint import find, read_config, shipped_names
from gram.kernels.fused.pack import unsupported_reason
from gram.presets import PRESETS, model_config

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_gpu.sh"
KERNELS = [f"kernels-{preset}" for preset in PRESETS]
SPECS = {name: model_config(name).spec for name in PRESETS} | {
    name: read_config(find(name)).spec for name in shipped_names()
}
TUNED = [name for name, spec in SPECS.items() if unsupported_reason(spec) is None]
FIRST = ["machine", "doctor", "graphs-fused", "graphs-eager", "kernels-small", "tests-bfloat16", "slots", "engine",
         "frontier-fused", "frontier-eager", "training-sudoku9"]  # fmt: skip
SWEPT = ["tuning-small", "tuning-sudoku6", "tuning-colouring8", "tuning-small-attention"]
LAST = ["kernels-small-attention", "kernels-paper-sudoku", "tests-training", "training-paper-sudoku-extreme",
        "kernels-paper", "tuning-colouring10", "tuning-sudoku6-unconditional", "tests-float32", "sampler"]  # fmt: skip
PARTS = FIRST + SWEPT + LAST

PYTHON = """#!/bin/sh
# Stands in for the interpreter: prints what it is asked for; parts in FAILING end with 3, those in SLOW take long,
# those in SAVING end after SIGTERM and say whether their own child had none, those in LEAVING leave a process behind.
# `-c` does as SEES_GPU says where it asks for torch, as LACKING where it imports what is named there, and says what
# FASTER is.
case "$*" in
-c*torch*) exit "$SEES_GPU" ;;
-c*is_faster*) echo "$FASTER"; exit 0 ;;
-c*)
    for word in $LACKING; do
        case "$*" in *"$word"*) echo "ModuleNotFoundError: No module named '$word'" >&2; exit 1 ;; esac
    done
    exit 0 ;;
esac
# The page is made after every part.
case "$*" in *"gram report"*)
    case "$FAILING" in *report*) echo "no report" >&2; exit 3 ;; esac
    for folder in "$@"; do :; done
    echo page >"$folder/report.html"
    exit 0
    ;;
esac
echo "$PYTHONPATH graphs:${GRAM_GRAPHS:-on} $*" >>"$ASKED"
echo "${GRAM_TUNING:-none} $*" >>"$ASKED.tuning"
# A sweep writes its file after every cut, also where it is ended or fails.
case "$*" in *"bench tuning"*) for file in "$@"; do :; done; echo '{"choices": []}' >"$file" ;; esac
for word in $FAILING; do
    case "$*" in *"$word"*) echo "no $word" >&2; exit 3 ;; esac
done
case "${NO_GRAPHS:-} ${GRAM_GRAPHS:-on} $*" in "yes on "*eval*) echo "no graph" >&2; exit 3 ;; esac
for word in $SLOW; do
    case "$*" in *"$word"*) echo $$ >"$ASKED.pid"; echo begun; exec sleep 60 ;; esac
done
for word in $LEAVING; do
    case "$*" in *"$word"*) sleep 60 & echo $! >"$ASKED.pid" ;; esac
done
for word in $SAVING; do
    case "$*" in *"$word"*)
        sleep 60 &
        helper=$!
        trap came=yes TERM
        while [ -z "$came" ]; do sleep 0.1; done
        sleep 0.5
        grep -q '^State:.S' "/proc/$helper/status" && echo "SIGTERM, alone"
        exit 143
        ;;
    esac
done
case "$*" in *--json*) echo '{"asked": "'"$*"'"}' ;; *) echo "asked: $*" ;; esac
"""


@pytest.fixture
def checkout(tmp_path):
    """A checkout whose installation, interpreter and GPU are stand-ins."""
    root = tmp_path / "checkout"
    for name, text in (
        ("scripts/setup.sh", "true"),
        (".venv/bin/python", PYTHON),
        ("bin/nvidia-smi", "#!/bin/sh\necho ${GPU:-GPU 0}\n"),
        ("bin/python3", PYTHON),
        ("bin/other-python", PYTHON),
        ("gram/model.py", "x = 1\n"),
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    shutil.copy(SCRIPT, root / "scripts")
    return root


def command(root: Path, *arguments: str, sees_gpu: int = 0, has_gpu: bool = True, **more: str):
    """The script's command line and environment."""
    path = os.environ["PATH"]
    if has_gpu:
        path = f"{root / 'bin'}:{path}"
    environment = {**os.environ, "PATH": path, "SEES_GPU": str(sees_gpu), "ASKED": str(root / "asked")}
    words = ("FAILING", "SLOW", "SAVING", "LEAVING", "LACKING", "FASTER", "PYTHONPATH")
    environment |= dict.fromkeys(words, "") | more
    line = ["bash", str(root / "scripts" / "bench_gpu.sh"), *arguments]
    return line, environment


def run(root: Path, *arguments: str, sees_gpu: int = 0, has_gpu: bool = True, **more: str):
    """`more` is environment, in capitals."""
    line, environment = command(root, *arguments, sees_gpu=sees_gpu, has_gpu=has_gpu, **more)
    return subprocess.run(line, capture_output=True, text=True, env=environment, cwd=root.parent)


def with_setting(root: Path, name: str, value: int) -> None:
    """Another value of one of the script's own."""
    script = root / "scripts" / "bench_gpu.sh"
    text, count = re.subn(rf"^{name}=\d+", f"{name}={value}", script.read_text(), flags=re.MULTILINE)
    assert count == 1
    script.write_text(text)


def is_running(pid: int) -> bool:
    """Whether a process runs; one that ended and was not yet waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def statuses(folder: Path) -> dict[str, str]:
    """Exit status of each part, in order."""
    lines = [line.split("\t") for line in (folder / "status.tsv").read_text().splitlines()]
    assert lines[0] == ["part", "exit", "seconds", "command"]
    return {line[0]: line[1] for line in lines[1:]}


def assert_refused(done, *words):
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert all(word in line for word in words), line


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a GPU here")
def test_without_a_gpu_it_says_so_and_writes_nothing(checkout, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert_refused(run(checkout, "results", has_gpu=False), "GPU", "nothing was run")
    assert sorted(tmp_path.rglob("*")) == before


def test_bad_arguments_are_refused(checkout, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").write_text("mine")
    assert_refused(run(checkout), "folder", "none")
    assert_refused(run(checkout, "one", "two"), "--installed", "one two")
    assert_refused(run(checkout, "--installed"), "folder", "--installed")
    assert_refused(run(checkout, "file"), "file")
    assert_refused(run(checkout, "full"), "earlier run")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["kept"]
    assert_refused(run(checkout, "results", sees_gpu=1), "PyTorch")
    assert_refused(run(checkout, "results", "--installed", GRAM_PYTHON="no-such-python"), "no-such-python")
    assert not (tmp_path / "results").exists()


def test_every_part_leaves_its_result(checkout, tmp_path):
    done = run(checkout, "results")
    assert done.returncode == 0, done.stderr
    results = tmp_path / "results"
    assert list(statuses(results).items()) == [(part, "0") for part in PARTS]
    assert "frontier sudoku6 --kernel fused" in json.loads((results / "frontier-fused.json").read_text())["asked"]
    assert (results / "report.html").is_file()
    assert done.stdout.splitlines()[-1] == f"results: {results}, a page of them: {results}/report.html"
    text = (results / "tests-bfloat16.txt").read_text()
    assert "-k bfloat16 tests/unit/test_kernel_gpu.py" in text
    assert "-n " in text
    assert "-k  tests/unit/test_training_gpu.py" in (results / "tests-training.txt").read_text()
    assert (
        f"--preset paper --no-resources --no-cpu --out {results}/kernels-paper.rows.json"
        in (results / "kernels-paper.txt").read_text()
    )


def test_the_sweep_is_of_every_model_that_the_fused_kernel_takes(checkout, tmp_path):
    run(checkout, "results")
    file = tmp_path / "results" / "tuning.json"
    sweeps = [line for line in (checkout / "asked").read_text().splitlines() if "bench tuning" in line]
    assert all(line.endswith(f" --rounds 3 --out {file}") for line in sweeps)
    assert sorted(line.split()[-5] for line in sweeps) == sorted(TUNED)


@pytest.mark.parametrize(
    ("faster", "failing", "tuned"),
    [
        ("", "", []),
        ("colouring10", "", []),
        ("small", "", ["kernels-small-tuned"]),
        ("small-attention colouring8", "tuning", ["engine-tuned", "kernels-small-attention-tuned"]),
    ],
)
def test_what_is_faster_with_a_sweeps_cuts_is_measured_with_them_too(checkout, tmp_path, faster, failing, tuned):
    """In a part of its own, whatever ended the sweep: it keeps what it timed. All else takes the default."""
    run(checkout, "results", FASTER=faster, FAILING=failing, GRAM_TUNING="mine.json")
    results = tmp_path / "results"
    found = list(statuses(results))
    assert [name for name in found if name.endswith("-tuned")] == tuned
    assert all(found.index(name) > found.index("tuning-small-attention") for name in tuned)
    asked = [line.split(" ", 1) for line in (checkout / "asked.tuning").read_text().splitlines()]
    given = [line for file, line in asked if file == str(results / "tuning.json")]
    assert len(given) == len(tuned)
    assert all(line.endswith(f"--out {results}/{name}.rows.json") for name, line in zip(tuned, given, strict=True))
    assert {file for file, line in asked if line not in given} == {"none"}


@pytest.mark.parametrize("python", [None, "other-python"])
def test_an_installed_interpreter_is_taken_as_it_is(checkout, tmp_path, python):
    """Without set-up, with this checkout in its path; what lacks xdist runs its tests one by one."""
    (checkout / "scripts" / "setup.sh").write_text("exit 1")
    shutil.rmtree(checkout / ".venv")
    named = {} if python is None else {"GRAM_PYTHON": python}
    done = run(checkout, "results", "--installed", LACKING="xdist", **named)
    assert done.returncode == 0, done.stderr
    assert statuses(tmp_path / "results") == dict.fromkeys(PARTS, "0")
    assert " -n " not in (tmp_path / "results" / "tests-bfloat16.txt").read_text()
    asked = (checkout / "asked").read_text().splitlines()
    assert len(asked) == len(PARTS) - 1
    assert all(line.startswith(f"{checkout} ") for line in asked)
    refused = run(checkout, "another")
    assert refused.returncode == 2
    assert "--installed" in refused.stderr
    assert not (tmp_path / "another").exists()


def test_what_cannot_run_says_why(checkout, tmp_path):
    done = run(checkout, "results", "--installed", LACKING="hypothesis")
    assert done.returncode == 1
    assert "tests-float32: not run: ModuleNotFoundError: No module named 'hypothesis'" in done.stdout
    tests = {"tests-bfloat16", "tests-training", "tests-float32"}
    assert statuses(tmp_path / "results") == {name: "-" if name in tests else "0" for name in PARTS}


def test_a_part_that_fails_is_told_and_hides_no_other(checkout, tmp_path):
    done = run(checkout, "results", FAILING="kernels sampler")
    assert done.returncode == 1
    results = tmp_path / "results"
    assert {name for name, status in statuses(results).items() if status == "3"} == {*KERNELS, "sampler"}
    assert set(statuses(results)) == set(PARTS)
    assert "no kernels" in done.stdout
    assert not (results / "kernels-paper.txt").exists()
    assert (results / "frontier-fused.json").exists()


def test_a_page_that_cannot_be_made_is_told(checkout, tmp_path):
    done = run(checkout, "results", FAILING="report")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].endswith("no page of them could be made: no report")
    assert set(statuses(tmp_path / "results").values()) == {"0"}


def test_where_graphs_fail_the_rest_runs_without(checkout, tmp_path):
    """And a part that had failed asks for them again."""
    for round_ in range(2):
        done = run(checkout, "results", NO_GRAPHS="yes")
        assert done.returncode == 1
        assert done.stdout.count("later parts run without graphs") == 1
        asked = (checkout / "asked").read_text().splitlines()
        (checkout / "asked").unlink()
        graphs = ["graphs:on" in line for line in asked if " eval " in line]
        assert graphs == ([True, True] if round_ else [True, False, True])
        others = ["graphs:off" in line for line in asked if " eval " not in line]
        assert others == ([] if round_ else [False] + [True] * (len(PARTS) - 4))
    failed = {"graphs-fused", "graphs-eager"}
    expected = {name: "3" if name in failed else "0" for name in (*PARTS, "called-fused")}
    assert statuses(tmp_path / "results") == expected


def test_what_fails_without_graphs_too_says_nothing_of_them(checkout, tmp_path):
    done = run(checkout, "results", FAILING="fused")
    assert done.returncode == 1
    assert "without graphs" not in done.stdout
    asked = (checkout / "asked").read_text().splitlines()
    assert ["graphs:off" in line for line in asked if "eval" in line] == [False, True, False]
    assert not any("graphs:off" in line for line in asked if "eval" not in line)
    found = statuses(tmp_path / "results")
    assert [found[name] for name in ("graphs-fused", "called-fused", "graphs-eager")] == ["3", "3", "0"]


def test_the_same_command_goes_on_with_what_is_missing_then_with_what_failed(checkout, tmp_path):
    run(checkout, "results", FAILING="slots")
    results = tmp_path / "results"
    status = (results / "status.tsv").read_text()
    (results / "status.tsv").write_text("".join(line for line in status.splitlines(True) if "engine\t" not in line))
    (checkout / "asked").unlink()
    done = run(checkout, "results")
    assert done.returncode == 0, done.stderr
    asked = (checkout / "asked").read_text().splitlines()
    assert ["engine" in asked[0], "slots" in asked[1], len(asked)] == [True, True, 2]
    assert statuses(results) == dict.fromkeys(PARTS, "0")
    assert run(checkout, "results").returncode == 0
    assert (checkout / "asked").read_text().splitlines() == asked, "nothing is left"


def test_results_of_other_sources_or_another_gpu_are_not_mixed(checkout, tmp_path):
    run(checkout, "results")
    assert_refused(run(checkout, "results", GPU="GPU 1"), "same sources and kind of GPU")
    (checkout / "gram" / "model.py").write_text("x = 2\n")
    assert_refused(run(checkout, "results"), "same sources and kind of GPU")


def test_another_machine_with_a_gpu_of_the_same_kind_goes_on(checkout, tmp_path):
    """Also with a folder of an earlier version, which had the UUID."""
    assert run(checkout, "results", GPU="GPU 0: NVIDIA H200 (UUID: GPU-12-34)").returncode == 0
    file = tmp_path / "results" / "run.txt"
    assert file.read_text().startswith("GPU 0: NVIDIA H200\n")
    assert run(checkout, "results", GPU="GPU 0: NVIDIA H200 (UUID: GPU-56-78)").returncode == 0
    file.write_text(file.read_text().replace("H200", "H200 (UUID: GPU-12-34)"))
    assert run(checkout, "results", GPU="GPU 0: NVIDIA H200 (UUID: GPU-56-78)").returncode == 0
    assert_refused(run(checkout, "results", GPU="GPU 0: NVIDIA H100 (UUID: GPU-12-34)"), "kind of GPU")


def test_a_part_is_ended_in_time_and_its_beginning_kept(checkout, tmp_path):
    with_setting(checkout, "limit", 1)
    done = run(checkout, "results", SLOW="engine")
    assert done.returncode == 1
    assert statuses(tmp_path / "results") == {name: "124" if name == "engine" else "0" for name in PARTS}
    assert "was ended after 1 s" in done.stdout
    assert (tmp_path / "results" / "engine.txt").read_text() == "begun\n"


def test_a_call_ends_in_time_and_the_next_one_goes_on(checkout, tmp_path):
    """What its end cut off is no failure, what should have more than is left does not begin, and the page is made."""
    results = tmp_path / "results"
    for value in ("59", "1e3", "-70", "none"):
        assert_refused(run(checkout, "results", GRAM_SECONDS=value), "GRAM_SECONDS", value)
    with_setting(checkout, "page", 56)
    script = checkout / "scripts" / "bench_gpu.sh"
    script.write_text(script.read_text().replace("[slots]=60", "[slots]=1"))
    done = run(checkout, "results", GRAM_SECONDS="60", SLOW="slots")
    assert done.returncode == 3, done.stderr
    assert statuses(results) == {"machine": "0", "slots": "cut"}, "too little was left for any other"
    assert "== kernels-small: left to the next call: it should have 100 s" in done.stdout
    assert "was cut off by the end of this call" in done.stdout
    assert (results / "slots.txt").read_text() == "begun\n"
    assert (results / "report.html").is_file()
    assert done.stdout.splitlines()[-1] == f"parts left to the next call of the same command: {len(PARTS) - 1}"
    done = run(checkout, "results", GRAM_SECONDS="600")
    assert done.returncode == 0, done.stderr
    assert statuses(results) == dict.fromkeys(PARTS, "0")


def test_a_part_that_has_a_call_to_itself_is_out_of_time(checkout, tmp_path):
    """Else it would begin every call anew, and nothing else would have its turn."""
    results = tmp_path / "results"
    with_setting(checkout, "page", 58)
    run(checkout, "results", FAILING="engine", GRAM_SECONDS="600")
    status = (results / "status.tsv").read_text()
    (results / "status.tsv").write_text("".join(line for line in status.splitlines(True) if "slots\t" not in line))
    done = run(checkout, "results", GRAM_SECONDS="60", SLOW="slots")
    assert done.returncode == 3, "engine is left"
    assert statuses(results)["slots"] == "124"
    assert statuses(results)["engine"] == "3"


@pytest.mark.parametrize("is_group", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_ends_a_call_ends_its_part(checkout, tmp_path, number, is_group):
    """As `timeout` does, with the whole group and twice."""
    line, environment = command(checkout, "results", SLOW="engine")
    file, pids = tmp_path / "results" / "engine.txt", checkout / "asked.pid"
    with subprocess.Popen(
        line, env=environment, cwd=tmp_path, start_new_session=True, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 60
        while not (file.exists() and file.read_text()) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        part = int(pids.read_text())
        assert is_running(part)
        process.send_signal(number)
        if is_group:
            os.killpg(process.pid, number)
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 128 + number
    assert not is_running(part)
    assert statuses(tmp_path / "results")["engine"] == "cut"
    assert not (tmp_path / "results" / "report.html").exists()
    assert run(checkout, "results").returncode == 0


def test_a_part_alone_hears_of_its_end_and_leaves_nothing_behind(checkout, tmp_path):
    """`timeout` tells a group besides, so that the part hears it twice and its compilers end while it saves."""
    with_setting(checkout, "limit", 1)
    run(checkout, "results", SAVING="engine", LEAVING="slots")
    assert (tmp_path / "results" / "engine.txt").read_text() == "SIGTERM, alone\n"
    assert not is_running(int((checkout / "asked.pid").read_text()))


def test_the_training_has_its_turn_before_what_had_failed(checkout, tmp_path):
    (tmp_path / "pairs.csv").write_text("")
    named = {"GRAM_PUZZLES": "pairs.csv", "FAILING": "engine"}
    run(checkout, "results", **named)
    (checkout / "asked").unlink()
    assert run(checkout, "results", **named).returncode == 1
    asked = (checkout / "asked").read_text().splitlines()
    assert ["pairs.csv" in line for line in asked] == [True, False]


def test_every_call_goes_on_with_the_run_of_the_puzzles(checkout, tmp_path):
    """Also where its time ends it, and after a call without puzzles."""
    (tmp_path / "pairs.csv").write_text("")
    named = {"GRAM_PUZZLES": "pairs.csv"}
    assert_refused(run(checkout, "results", GRAM_PUZZLES="none.csv"), "GRAM_PUZZLES", "none.csv")
    with_setting(checkout, "piece", 1)
    done = run(checkout, "results")
    assert done.returncode == 0, done.stderr
    assert "training: not run: GRAM_PUZZLES names no file of puzzles" in done.stdout
    results = tmp_path / "results"
    assert "training" not in statuses(results)
    for slow in ("", "extreme", ""):
        (checkout / "asked").unlink()
        done = run(checkout, "results", SLOW=slow, **named)
        assert done.returncode == 0, done.stderr
        (asked,) = (checkout / "asked").read_text().splitlines()
        assert asked.endswith(
            f"-m gram train paper-sudoku-extreme --puzzles {tmp_path}/pairs.csv --out {results}/training"
        )
        assert ("begun" if slow else "asked: ") in done.stdout
        assert list(statuses(results).items()) == [(part, "0") for part in (*PARTS, "training")]
    done = run(checkout, "results", FAILING="extreme", **named)
    assert done.returncode == 1
    assert statuses(results)["training"] == "3"
    assert "no extreme" in done.stdout


def test_a_run_that_fails_goes_on_without_graphs(checkout, tmp_path):
    (tmp_path / "pairs.csv").write_text("")
    done = run(checkout, "results", FAILING="pairs.csv", GRAM_PUZZLES="pairs.csv")
    assert done.returncode == 1
    asked = [line for line in (checkout / "asked").read_text().splitlines() if "pairs.csv" in line]
    assert ["graphs:off" in line for line in asked] == [False, True]
    assert statuses(tmp_path / "results")["training"] == "3"


BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ray", "jsonschema"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
"""


@pytest.mark.slow
def test_the_gpu_tests_are_found_without_ray_and_jsonschema(tmp_path):
    """In all of the tests, with no settings of ours."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKED)
    line = (
        "-m pytest -c /dev/null --rootdir . --import-mode=importlib -p no:cacheprovider -W ignore -m gpu --co -q tests"
    )
    done = subprocess.run(
        [sys.executable, *line.split()], capture_output=True, text=True, cwd=SCRIPT.parents[1],
        env=os.environ | {"PYTHONPATH": f"{SCRIPT.parents[1]}:{tmp_path}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert "test_kernel_gpu.py::test_equals_float64" in done.stdout
    assert "error" not in done.stdout.splitlines()[-1]
