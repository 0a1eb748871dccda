"""A run goes through few modules before it computes."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
@pytest.mark.parametrize("walk", ["solve", "sample"])
def test_the_way_to_the_first_product_is_short(walk):
    ran = subprocess.run([sys.executable, "scripts/count_walk.py", walk], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
