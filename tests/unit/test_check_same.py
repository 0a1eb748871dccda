"""Comparing two checkouts: times and nothing else may differ."""

import json
import struct

import numpy as np
import pytest

from scripts.check_same import differences, outputs


def recorded(folder, *, right=1.0, elapsed_s=1.0, steps=3):
    """Outputs of every kind, as `tests/same/record.py` leaves them."""
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"accuracy": right, "elapsed_s": elapsed_s, "out": str(folder)}))
    np.savez(folder / "arrays.npz", steps=np.array([steps]), lprm=np.array([np.nan]))
    header = struct.pack("<4sHHIQQ16s", b"GRSR", 1, 0, 7, int(1e6 * elapsed_s), 3, bytes(16))
    (folder / "shards.bin").write_bytes(header + struct.pack("<I", int(elapsed_s)) + b"abc")
    meta = json.dumps({"__metadata__": {"elapsed_s": str(elapsed_s), "step": "3"}}).encode()
    (folder / "state.safetensors").write_bytes(len(meta).to_bytes(8, "little") + meta + b"weights")
    (folder / "page.html").write_text(str(elapsed_s))
    return dict(outputs(folder, folder.parent))


def test_times_and_folders_may_differ(tmp_path):
    one, other = recorded(tmp_path / "one"), recorded(tmp_path / "another", elapsed_s=2.5e-3)
    assert len(one) == 5
    assert differences(one, other) == []


def test_a_later_setting_may_be_written_out_where_it_changes_nothing(tmp_path):
    """And nowhere else: any other value of it is named."""
    made = []
    for number, settings in enumerate(({"seed": 0}, {"views": "off", "seed": 0}, {"views": "random", "seed": 0})):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "run.json").write_text(json.dumps(settings, indent=2))
        made.append(dict(outputs(tmp_path / str(number), tmp_path)))
    assert differences(made[0], made[1]) == []
    assert len(differences(made[0], made[2])) == 1


@pytest.mark.parametrize(
    ("planted", "name"), [({"right": 0.999}, "run.json"), ({"steps": 4}, "arrays.npz steps")], ids=["figure", "array"]
)
def test_a_planted_difference_is_named(tmp_path, planted, name):
    one, other = recorded(tmp_path / "one"), recorded(tmp_path / "other", **planted)
    (found,) = differences(one, other)
    assert found.startswith(f"{name}: differs at byte ")


def test_one_byte_of_a_stored_answer_and_what_only_one_has_are_named(tmp_path):
    one, other = recorded(tmp_path / "one"), recorded(tmp_path / "other")
    other["shards.bin"] = other["shards.bin"][:-1] + b"d"
    del other["state.safetensors"]
    first, second = differences(one, other)
    assert first.startswith("shards.bin: differs at byte ")
    assert second == "state.safetensors: only in the old checkout"
