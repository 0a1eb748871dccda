"""The table of departures from the papers names settings, recipes and files that there are."""

import re
from pathlib import Path

import pytest

from gram.checkpoint import shipped_names
from gram.config import ModelConfig
from gram.tasks.registry import get_task
from gram.training.config import TrainConfig
from gram.training.progress import TrainProgress
from gram.training.recipe import recipe_names

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "deviations.md").read_text()
ROWS = [line for line in TEXT.splitlines() if line.startswith("| ") and not line.startswith("| paper |")]
FIELDS = {*ModelConfig.__dataclass_fields__, *TrainConfig.__dataclass_fields__, *TrainProgress.__dataclass_fields__}
OTHER = {"f_H", "f_L", "nelbo", *shipped_names()}


def test_every_row_says_paper_here_why_and_effect():
    assert len(ROWS) > 20
    for row in ROWS:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 4, row
        assert all(cells), row


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`([A-Za-z0-9-]*_[A-Za-z0-9_]+)`", TEXT))))
def test_a_named_setting_is_one(name):
    assert name in FIELDS | OTHER or hasattr(get_task("sudoku4"), name)


def test_settings_shown_with_a_value_are_fields_too():
    shown = re.findall(r"`([a-z_0-9]+) = ", TEXT)
    assert shown
    assert set(shown) <= FIELDS


def test_named_baselines_are_recipes():
    named = set(re.findall(r'"([a-z-]+)"', TEXT)) - {"before", "relations", "drawn", "baselines", "after"}
    assert {"literal", "published", "trm-set"} <= named
    assert {f"nqueens8-{name}" for name in named} <= set(recipe_names())


def test_named_files_exist():
    files = re.findall(r"`((?:gram|evals|scripts)/[a-z_/]+\.[a-z]+)`", TEXT)
    assert files
    assert [name for name in files if not (ROOT / name).is_file()] == []
