"""The result store: round trips, kills at every byte, damage, duplicates, one writer, full disks."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gram.sampler import store as store_module
from gram.sampler.record import HEADER_BYTES
from gram.sampler.store import PLAN_FILE, SHARDS_FILE, Store, StoreError

ROOT = Path(__file__).parents[2]
Arrays = dict[str, np.ndarray]

TYPES = st.sampled_from([np.bool_, np.uint8, np.int64, np.float32, np.uint16])
ARRAYS = st.dictionaries(
    st.text(st.characters(codec="ascii", categories=["L"]), min_size=1, max_size=5),
    TYPES.flatmap(lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))),
    max_size=4,
)

WRITER = """
import sys
import time
from pathlib import Path
import numpy as np
from gram.sampler.store import Store
store = Store.open(Path(sys.argv[1]), "key", 4000, {})
print("open", flush=True)
for index in store.missing():
    store.append(index, {"x": np.full(2000, index), "y": np.arange(index % 7)}, 0.25)
    print(index, flush=True)
time.sleep(600)
"""


def result(index: int) -> Arrays:
    return {"x": np.arange(index + 3), "ok": np.array([True, index % 2 == 0]), "none": np.zeros((0, 2), np.float32)}


def opened(folder: Path, shards: int = 4, key: str = "key", about: dict[str, Any] | None = None) -> Store:
    return Store.open(folder, key, shards, about or {})


def filled(folder: Path, count: int = 3, shards: int = 4) -> list[int]:
    """A store of the first `count` results; the end of the file after each, from before the first."""
    ends = [0]
    with opened(folder, shards) as store:
        for index in range(count):
            assert store.append(index, result(index), 0.5)
            ends.append((folder / SHARDS_FILE).stat().st_size)
    return ends


def assert_same(found: Arrays, wanted: Arrays) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


@pytest.fixture
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of stores in one test: waiting for the disk would be most of its time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@settings(deadline=None, max_examples=60)
@given(st.lists(ARRAYS, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_round_trip(results: list[Arrays], order: random.Random) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "a" / "run"
        indices = list(range(len(results)))
        order.shuffle(indices)
        with opened(folder, len(results) + 1, about={"task": "x"}) as store:
            for index in indices:
                assert store.append(index, results[index], 1.5)
                assert_same(store.read(index), results[index])
                shuffled = dict(reversed(results[index].items()))
                assert not store.append(index, shuffled, 99.0)
        for store in (opened(folder, len(results) + 1), Store.read_only(folder)):
            with store:
                assert store.done() == frozenset(indices)
                assert store.missing() == [len(results)]
                assert store.elapsed_s == 1.5 * len(results)
                assert (store.metadata, store.plan_key, store.shard_count) == ({"task": "x"}, "key", len(results) + 1)
                for index in indices:
                    assert_same(store.read(index), results[index])


def test_layout_and_byte_order_of_arrays_do_not_matter(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.int64).reshape(3, 4)
    with opened(tmp_path) as store:
        assert store.append(0, {"x": array})
        assert not store.append(0, {"x": np.asfortranarray(array)})
        assert not store.append(0, {"x": array.astype(">i8")})
        assert not store.append(0, {"x": np.repeat(array, 2, axis=1)[:, ::2]})
        with pytest.raises(StoreError, match="another result"):
            store.append(0, {"x": array.astype(np.int32)})


def test_a_file_cut_at_every_byte_of_its_last_record_continues(tmp_path: Path, no_sync: None) -> None:
    ends = filled(tmp_path)
    whole = (tmp_path / SHARDS_FILE).read_bytes()
    assert ends[-1] == len(whole)
    assert ends[-2] + HEADER_BYTES < len(whole)
    for size in range(ends[-2], len(whole)):
        (tmp_path / SHARDS_FILE).write_bytes(whole[:size])
        with Store.read_only(tmp_path) as reader:
            assert reader.done() == {0, 1}
        assert (tmp_path / SHARDS_FILE).stat().st_size == size
        with opened(tmp_path) as store:
            assert store.missing() == [2, 3]
            assert (tmp_path / SHARDS_FILE).stat().st_size == ends[-2]
            for index in (0, 1):
                assert_same(store.read(index), result(index))
            assert store.append(2, result(2), 0.5)
        assert (tmp_path / SHARDS_FILE).read_bytes() == whole


@pytest.mark.parametrize("tail", [b"\0", b"\0" * 500, b"garbage" * 30])
def test_garbage_behind_the_records_is_cut(tmp_path: Path, tail: bytes) -> None:
    filled(tmp_path)
    whole = (tmp_path / SHARDS_FILE).read_bytes()
    (tmp_path / SHARDS_FILE).write_bytes(whole + tail)
    with opened(tmp_path) as store:
        assert store.done() == {0, 1, 2}
    assert (tmp_path / SHARDS_FILE).read_bytes() == whole


def test_a_flipped_byte_never_gives_a_wrong_array(tmp_path: Path, no_sync: None) -> None:
    ends = filled(tmp_path)
    whole = (tmp_path / SHARDS_FILE).read_bytes()
    for place in range(len(whole)):
        broken = bytearray(whole)
        broken[place] ^= 1 << (place % 8)
        (tmp_path / SHARDS_FILE).write_bytes(broken)
        damaged = next(i for i, end in enumerate(ends[1:]) if place < end)
        is_header = place < ends[damaged] + HEADER_BYTES
        kept = {i for i in range(3) if i < damaged or (i > damaged and not is_header)}
        with Store.read_only(tmp_path) as reader:
            assert reader.done() == kept
        with opened(tmp_path) as store:
            assert store.done() == kept
            for index in store.missing()[:-1]:
                assert store.append(index, result(index))
        with Store.read_only(tmp_path) as reader:
            assert reader.done() == {0, 1, 2}
            for index in range(3):
                assert_same(reader.read(index), result(index))


def test_damage_after_opening_is_found_by_read(tmp_path: Path) -> None:
    ends = filled(tmp_path)
    with Store.read_only(tmp_path) as store:
        with (tmp_path / SHARDS_FILE).open("r+b") as file:
            file.seek(ends[2] - 1)
            file.write(b"\xff")
        assert_same(store.read(0), result(0))
        with pytest.raises(StoreError, match="shard 1 is damaged"):
            store.read(1)
        os.truncate(tmp_path / SHARDS_FILE, ends[2])
        with pytest.raises(StoreError, match="shard 2 is damaged"):
            store.read(2)
        with pytest.raises(StoreError, match="no result of shard 3"):
            store.read(3)


def test_the_first_result_wins_and_another_is_an_error(tmp_path: Path) -> None:
    filled(tmp_path)
    before = (tmp_path / SHARDS_FILE).read_bytes()
    with opened(tmp_path) as store:
        assert not store.append(1, result(1), 7.0)
        with pytest.raises(StoreError, match="shard 1 is stored already with another result"):
            store.append(1, result(2))
        for index in (-1, 4):
            with pytest.raises(StoreError, match=rf"must be in \[0, 4\), got {index}"):
                store.append(index, result(0))
        with pytest.raises(StoreError, match="numbers or bools"):
            store.append(3, {"x": np.array(["a"])})
        assert store.elapsed_s == 1.5
    assert (tmp_path / SHARDS_FILE).read_bytes() == before


def test_two_good_records_with_different_results_are_an_error(tmp_path: Path) -> None:
    ends = filled(tmp_path / "a", 1)
    with opened(tmp_path / "b") as store:
        store.append(0, result(3))
    other = (tmp_path / "b" / SHARDS_FILE).read_bytes()
    with (tmp_path / "a" / SHARDS_FILE).open("ab") as file:
        file.write(other)
    assert (tmp_path / "a" / SHARDS_FILE).stat().st_size == ends[1] + len(other)
    with pytest.raises(StoreError, match="stored twice"):
        opened(tmp_path / "a")
    with pytest.raises(StoreError, match="stored twice"):
        Store.read_only(tmp_path / "a")


def test_one_writer_and_any_number_of_readers(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.append(0, result(0))
        with pytest.raises(StoreError, match="being written by another process"):
            opened(tmp_path)
        with Store.read_only(tmp_path) as reader:
            store.append(1, result(1))
            assert reader.done() == {0}
            assert_same(reader.read(0), result(0))
            for write in (lambda: reader.append(2, result(2)), reader.sync):
                with pytest.raises(StoreError, match="reading only"):
                    write()
        with Store.read_only(tmp_path) as reader:
            assert reader.done() == {0, 1}
    with pytest.raises(StoreError, match="closed"):
        store.append(2, result(2))
    with opened(tmp_path) as store:
        assert store.done() == {0, 1}


def test_another_plan_is_refused_and_leaves_the_store_alone(tmp_path: Path) -> None:
    about = {"task": "nqueens8", "config": {"width": 4, "seed": 0}, "long": list(range(100))}
    with opened(tmp_path, about=about) as store:
        store.append(0, result(0))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {PLAN_FILE, SHARDS_FILE}
    other = about | {"config": {"width": 8, "seed": 0}}
    with pytest.raises(StoreError, match=r"another run: config.width is 4 there and 8 here$"):
        opened(tmp_path, key="other", about=other)
    with pytest.raises(StoreError, match=r"another run: long differs$"):
        opened(tmp_path, key="other", about=about | {"long": [1]})
    with pytest.raises(StoreError, match="plan_key is key there and other here"):
        opened(tmp_path, key="other", about=about)
    with pytest.raises(StoreError, match="shards are 4 there and 5 here"):
        opened(tmp_path, shards=5, about=about)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with opened(tmp_path, about={"config": "now otherwise"}) as store:
        assert store.metadata == about


def test_folders_that_are_no_store_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="must be a folder, got a file"):
        opened(tmp_path / "file")
    with pytest.raises(StoreError, match=r"must be the folder of a run with plan.json, got none"):
        Store.read_only(tmp_path)
    with pytest.raises(StoreError, match="about must be JSON"):
        opened(tmp_path, about={"x": float("nan")})
    (tmp_path / SHARDS_FILE).write_bytes(b"something of somebody's")
    with pytest.raises(StoreError, match=r"without plan.json"):
        opened(tmp_path)
    assert (tmp_path / SHARDS_FILE).read_bytes() == b"something of somebody's"
    for text, match in (("{", "not JSON"), ('{"version": 2}', "version must be 1, got 2"), ("[]", "version must be")):
        (tmp_path / PLAN_FILE).write_text(text)
        with pytest.raises(StoreError, match=match):
            opened(tmp_path)


def test_a_kill_between_the_two_files_is_a_new_store(tmp_path: Path) -> None:
    (tmp_path / SHARDS_FILE).touch()
    (tmp_path / f".{PLAN_FILE}.new").write_text("{half")
    with opened(tmp_path) as store:
        assert store.append(0, result(0))
    assert sorted(path.name for path in tmp_path.iterdir()) == [PLAN_FILE, SHARDS_FILE]


def test_a_full_disk_is_an_error_and_the_same_store_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, ends = os.pwrite, filled(tmp_path, 1)
    before = (tmp_path / SHARDS_FILE).read_bytes()
    with opened(tmp_path) as store:
        for room in range(0, 200, 7):

            def full(handle: int, content: memoryview, offset: int, limit: int = ends[1] + room) -> int:
                if offset >= limit:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return real(handle, content[: limit - offset], offset)

            monkeypatch.setattr(os, "pwrite", full)
            with pytest.raises(StoreError, match=rf"{SHARDS_FILE} cannot be written: No space left on device"):
                store.append(1, result(1), 0.5)
            assert (tmp_path / SHARDS_FILE).read_bytes() == before
            assert store.done() == {0}
        monkeypatch.setattr(os, "pwrite", real)
        for index in (1, 2):
            assert store.append(index, result(index), 0.5)
    filled(tmp_path / "other")
    assert (tmp_path / SHARDS_FILE).read_bytes() == (tmp_path / "other" / SHARDS_FILE).read_bytes()


def test_a_failed_sync_gives_up_what_may_be_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def failing(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with opened(tmp_path) as store:
        store.append(0, result(0))
        store.sync()
        store.append(1, result(1))
        monkeypatch.setattr(os, "fsync", failing)
        with pytest.raises(StoreError, match=rf"{SHARDS_FILE} cannot be written: Input/output error"):
            store.sync()
        monkeypatch.setattr(os, "fsync", real)
        assert store.done() == {0}
        assert store.append(1, result(1))
    with Store.read_only(tmp_path) as reader:
        assert reader.done() == {0, 1}


def test_syncs_come_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, synced, now_s = os.fsync, [], 100.0
    monkeypatch.setattr(store_module.time, "monotonic", lambda: now_s)
    store = opened(tmp_path, 10)
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(now_s), real(handle)))
    for index in range(10):
        now_s += 0.2
        store.append(index, result(index))
    assert synced == pytest.approx([100.6, 101.2, 101.8])
    store.close()
    assert len(synced) == 4


def kill_writer(folder: Path, rng: random.Random) -> None:
    """Starts a writer, kills it at a random moment and checks that nothing it reported is lost."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WRITER, str(folder)]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "open\n"
        with pytest.raises(StoreError, match="another process"):
            opened(folder, 4000)
        time.sleep(rng.random() * 0.05)
        writer.send_signal(signal.SIGKILL)
        reported = [int(line) for line in writer.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    with opened(folder, 4000) as store:
        assert store.done() >= set(reported)
        assert not (set(store.missing()) & set(reported))
        for index in store.done():
            assert_same(store.read(index), {"x": np.full(2000, index), "y": np.arange(index % 7)})
        assert store.elapsed_s == 0.25 * len(store.done())


def test_a_killed_writer_loses_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        kill_writer(tmp_path, random.Random(1))


@pytest.mark.slow
def test_a_writer_killed_twenty_times_loses_nothing(tmp_path: Path) -> None:
    rng = random.Random(2)
    for _ in range(20):
        kill_writer(tmp_path, rng)


def test_no_torch() -> None:
    command = "import sys, gram.sampler.store, gram.sampler.trace; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], cwd=ROOT).returncode == 0
