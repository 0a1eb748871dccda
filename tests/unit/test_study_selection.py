"""The page of selectors and resamplers: what it says of resampling that never happened."""

from gram import checkpoint
from gram.config import RESAMPLERS
from scripts.study_selection import study
from tests.models import tiny_model


def resampled(page):
    """Difference from no resampling by resampler, as the last table tells it."""
    table = page[page.index("| resampler |") :].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table if line]
    return {row[0]: row[3] for row in rows}


def test_a_resampler_that_never_fired_is_no_result(tmp_path):
    """A threshold of 1 resamples at every step, one near 0 never."""
    model = tiny_model()
    model.halt.weight.mul_(10)  # scores far apart
    checkpoint.save(model, tmp_path / "tiny")
    never, always = (resampled(study(str(tmp_path / "tiny"), 3, {}, 4, each)) for each in (1e-9, 1.0))
    assert never.keys() == always.keys() == set(RESAMPLERS)
    assert {never[each] for each in RESAMPLERS if each != "none"} == {"never fired"}
    assert "never fired" not in (never["none"], always["none"], always["halt"])
