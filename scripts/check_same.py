"""Whether two checkouts compute the same: `python scripts/check_same.py OLD NEW [--slow] [--keep DIR]`.

Runs the cases of `tests/same/` with the code of each checkout, on this machine and this interpreter, and compares
trajectories, stored answers and JSON bit by bit, the values of `TIMES` and the settings of `LATER` apart. Prints what
differs; exits 1 where anything does. `--slow` compares what `torch.compile` makes, too. With `--keep`, outputs stay in
DIR, and those of the old checkout serve again while the cases stay as they are.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

CASES = Path(__file__).parent.parent / "tests" / "same"
TIMES = (
    "elapsed_s",
    "trajectories_per_s",
    "ms_per_puzzle",
    "steps_per_s",
    "left_s",
    "minutes",
    "traced_s",
    "timed_s",
    "analysed_s",
)
"""Keys of times in JSON."""
TIME = re.compile(rf'("(?:{"|".join(TIMES)})": )[-+.0-9e]+')
LATER = re.compile(r'"views": "off",\s*|"triton": "[^"]*",\s*')
"""What older checkouts do not write out: settings, with the value by which all is as before, and a version."""
RECORD = re.compile(rb"(GRSR\x01\0\0\0.{4}).{8}(.{24}).{4}", re.DOTALL)
"""Header of a stored record: between the groups its elapsed time, behind them its checksum."""
COMPARED = {".json", ".jsonl", ".csv", ".bin", ".safetensors", ".npz", ".toml"}
"""Kinds of files that are compared. Pages and pictures are not."""


def start(checkout: Path, out: Path, *, is_slow: bool) -> subprocess.Popen[bytes]:
    """Starts recording what a checkout computes."""
    if not (checkout / "gram" / "__init__.py").is_file():
        sys.exit(f"{checkout} must be a checkout of this project, got none")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "GRAM_CACHE": str(out / "cache")}
    if not is_slow:
        environment["TORCHDYNAMO_DISABLE"] = "1"  # training compiles otherwise
    command = [sys.executable, str(CASES / "record.py"), *(["--slow"] if is_slow else [])]
    return subprocess.Popen(command, cwd=out, env=environment)


def outputs(folder: Path, checkout: Path) -> Iterator[tuple[str, bytes]]:
    """Everything recorded, by name."""
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix not in COMPARED or name.split("/")[0] in ("cache", "puzzles", "recipes"):
            continue
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                for key, array in arrays.items():
                    yield f"{name} {key}", f"{array.dtype} {array.shape} ".encode() + array.tobytes()
        elif path.suffix == ".bin":
            yield name, RECORD.sub(rb"\1\2", path.read_bytes())
        elif path.suffix == ".safetensors":
            with path.open("rb") as stream:
                header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
                header.get("__metadata__", {}).pop("elapsed_s", None)
                yield name, json.dumps(header, sort_keys=True).encode() + stream.read()
        else:
            text = path.read_text().replace(str(folder), "WORK").replace(str(checkout), "CHECKOUT")
            yield name, LATER.sub("", TIME.sub(r"\g<1>TIME", text)).encode()


def differences(old: dict[str, bytes], new: dict[str, bytes]) -> list[str]:
    """One line for every output that is not the same."""
    found = []
    for name in sorted({*old, *new}):
        if name not in old or name not in new:
            found.append(f"{name}: only in the {'old' if name in old else 'new'} checkout")
        elif old[name] != new[name]:
            place = next((i for i, (a, b) in enumerate(zip(old[name], new[name], strict=False)) if a != b), None)
            place = min(len(old[name]), len(new[name])) if place is None else place
            one, other = (each[max(0, place - 60) : place + 40] for each in (old[name], new[name]))
            found.append(f"{name}: differs at byte {place}: {one!r} was, {other!r} is")
    return found


def key_of(checkout: Path) -> str:
    """What the old outputs depend on."""
    digest = hashlib.sha256(str(checkout).encode())
    for path in (Path(__file__), *sorted(CASES.rglob("*.*"))):
        if path.suffix != ".pyc":
            digest.update(path.read_bytes())
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, check=True, capture_output=True).stdout
    return f"{digest.hexdigest()} {head.decode()}"


def compare(old: Path, new: Path, folder: Path, *, is_slow: bool) -> tuple[int, list[str]]:
    """How many outputs of the two checkouts were compared, and which differ."""
    mark, key = folder / "old.key", key_of(old)
    runs = [(new, folder / "new")]
    if not (mark.is_file() and mark.read_text() == key):
        mark.unlink(missing_ok=True)
        runs.append((old, folder / "old"))
    started = [start(checkout, out, is_slow=is_slow) for checkout, out in runs]
    codes = [process.wait() for process in started]
    if any(codes):
        sys.exit("a checkout could not be recorded")
    mark.write_text(key)
    failed = [path.stem for path in (folder / "old" / "failed").glob("*")]
    if failed:
        sys.exit(f"the old checkout cannot run {', '.join(sorted(failed))}")
    made = [dict(outputs(folder / name, checkout)) for name, checkout in (("old", old), ("new", new))]
    return len({*made[0], *made[1]}), differences(*made)


def main() -> int:
    """Compares and reports."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--slow", action="store_true", help="compare compiled paths, too (minutes)")
    parser.add_argument("--keep", type=Path, help="folder in which outputs stay")
    given = parser.parse_args()
    old, new = given.old.resolve(), given.new.resolve()
    count, found = 0, []
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.keep or Path(temporary)).resolve()
        for is_slow in (False, True)[: 1 + given.slow]:
            some, differing = compare(old, new, folder / ("slow" if is_slow else "cases"), is_slow=is_slow)
            count, found = count + some, found + differing
    print(*found, sep="\n", end="\n" if found else "")
    print(f"{count} outputs compared, {len(found)} differ")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
