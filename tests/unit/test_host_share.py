"""scripts/host_share.py: the host's part of a run in two checkouts."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "host_share.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_checkout_beside_itself_gives_the_same_and_the_host_does_the_least() -> None:
    done = run(ROOT, ROOT, "--checkpoint", "nqueens8", "--limit", 4, "--width", 4, "--rounds", 1)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "all runs gave the same"
    shares = [float(each) for each in re.findall(r"host's share, \w+: ([\d.]+) %", done.stdout)]
    assert len(shares) == 2
    assert all(0 < each < 50 for each in shares)


def test_two_checkouts_are_needed(tmp_path: Path) -> None:
    for given in ((ROOT,), (ROOT, tmp_path)):
        done = run(*given)
        assert done.returncode == 2
        assert "OLD and NEW must be two checkouts of gram, got" in done.stderr
