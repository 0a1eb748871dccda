"""Traces: encoding and merging against plain loops, and the reader over a store."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gram.sampler import trace
from gram.sampler.store import SHARDS_FILE, Store, StoreError
from gram.sampler.trace import FLOATS, Traces, encode

Arrays = dict[str, np.ndarray]


def canonical(answers: np.ndarray) -> np.ndarray:
    """Sorted tokens: answers of one multiset are one class."""
    assert len(answers)
    return np.sort(answers, axis=1)


def verify(puzzles: np.ndarray, answers: np.ndarray) -> np.ndarray:
    assert len(puzzles) == len(answers) > 0
    return (answers.sum(axis=1) + puzzles[:, 0]) % 3 == 0


def a_run(seed: int, puzzles: int, width: int, depth: int, tokens: int, values: int) -> tuple[np.ndarray, ...]:
    """Puzzles `[P, L]`, answers `[P, N, M, A]` (arbitrary behind the steps taken) and steps `[P, N]`."""
    rng = np.random.default_rng(seed)
    given_tokens = rng.integers(0, 5, (puzzles, tokens + 1), dtype=np.uint8)
    answers = rng.integers(0, values, (puzzles, width, depth, tokens), dtype=np.uint8)
    return given_tokens, answers, rng.integers(0, depth + 1, (puzzles, width))


def plain(puzzle: np.ndarray, answers: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Table, index and verdict of one puzzle's trajectories `[N, M, A]`, by loops."""
    width, depth, _ = answers.shape
    table: dict[bytes, int] = {}
    index = np.full((width, depth), -1)
    is_right = np.zeros((width, depth), dtype=bool)
    for n in range(width):
        for m in range(depth if steps[n] else 0):
            answer = answers[n, min(m, steps[n] - 1)]
            index[n, m] = table.setdefault(np.sort(answer).tobytes(), len(table))
            is_right[n, m] = (int(answer.sum()) + int(puzzle[0])) % 3 == 0
    rows = np.frombuffer(b"".join(table), np.uint8).reshape(len(table), answers.shape[2])
    return rows, index, is_right


def store_run(folder: Path, run: tuple[np.ndarray, ...], block: int, together: int, skip: int = -1) -> Arrays:
    """Writes a run's shards, last shard first; returns its floats `[P, N, M]` by name."""
    puzzles, answers, steps = run
    count, width, depth, _ = answers.shape
    rng = np.random.default_rng(0)
    floats = {name: rng.standard_normal((count, width, depth)).astype(np.float32) for name in FLOATS}
    shards: list[list[int]] = []
    for n in range(0, width, block):
        for p in range(0, count, together):
            shards.append([len(shards), p, min(together, count - p), n, min(block, width - n)])
    about = {"config": {"width": width, "depth": depth}, "puzzles": count, "shards": shards, "task": "t"}
    with Store.open(folder, "key", len(shards), about) as store:
        for index, p, ps, n, ns in reversed(shards):
            part = np.s_[p : p + ps, n : n + ns]
            arrays: dict[str, Any] = encode(answers[part], canonical, verify, puzzles[p : p + ps], steps[part])
            arrays |= {f"trace_{name}": array[part] for name, array in floats.items()}
            arrays |= {"puzzles": puzzles[p : p + ps], "steps": steps[part]}
            if index != skip:
                store.append(index, arrays)
    return floats


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 1000),
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 5), st.integers(1, 9)),
    values=st.integers(1, 4),
    block=st.integers(1, 6),
    together=st.integers(1, 5),
    is_hash_useless=st.booleans(),
)
def test_a_run_reads_back_as_plain_loops_say(
    seed: int, sizes: tuple[int, int, int, int], values: int, block: int, together: int, is_hash_useless: bool
) -> None:
    run = a_run(seed, *sizes, values)
    puzzles, answers, steps = run
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        if is_hash_useless:  # every row collides: the exact comparison has to notice
            patch.setattr(trace, "row_hashes", lambda words: np.zeros(len(words), np.uint64))
        floats = store_run(Path(name), run, block, together)
        with Traces.open(Path(name)) as traces:
            assert (traces.puzzle_count, traces.width, traces.depth) == sizes[:3]
            assert traces.metadata["task"] == "t"
            blocks = list(traces.blocks())
    assert np.concatenate([b.puzzle for b in blocks]).tolist() == list(range(len(puzzles)))
    for b in blocks:
        assert np.array_equal(b.puzzles, puzzles[b.puzzle])
        assert np.array_equal(b.steps, steps[b.puzzle])
        assert (b.answer.dtype, b.is_right.dtype) == (np.int32, np.bool_)
        for name, array in floats.items():
            assert np.array_equal(getattr(b, name), array[b.puzzle])
        for row, puzzle in enumerate(b.puzzle):
            table, index, is_right = plain(puzzles[puzzle], answers[puzzle], steps[puzzle])
            assert np.array_equal(b.tables[row], table)
            assert np.array_equal(b.answer[row], index)
            assert np.array_equal(b.is_right[row], is_right)


def test_the_verifier_sees_each_distinct_answer_once_as_it_was_written() -> None:
    seen: list[tuple[list[int], list[int]]] = []

    def watched(puzzles: np.ndarray, answers: np.ndarray) -> np.ndarray:
        seen.extend(zip(puzzles[:, 0].tolist(), answers.tolist(), strict=True))
        return np.arange(len(answers)) % 2 == 0

    answers = np.array([[[[2, 1], [1, 2], [3, 3]], [[3, 3], [1, 1], [9, 9]]], [[[2, 1]] * 3] * 2], np.uint8)
    arrays = encode(answers, canonical, watched, np.array([[7], [8]], np.uint8), np.array([[3, 2], [1, 3]]))
    assert seen == [(7, [2, 1]), (7, [3, 3]), (7, [1, 1]), (8, [2, 1])]
    assert arrays["trace_table"].tolist() == [[1, 2], [3, 3], [1, 1], [1, 2]]
    assert arrays["trace_table_size"].tolist() == [3, 1]
    assert arrays["trace_right"].tolist() == [True, False, True, False]
    assert arrays["trace_answer"].tolist() == [[[0, 0, 1], [1, 2, 2]], [[0, 0, 0], [0, 0, 0]]]
    assert arrays["trace_answer"].dtype == np.uint16


@pytest.mark.parametrize(("rows", "kind"), [(65534, np.uint16), (65535, np.uint32)])
def test_a_large_table_takes_a_wider_index(rows: int, kind: type) -> None:
    numbers = np.arange(rows, dtype="<u4").view(np.uint8).reshape(1, 1, rows, 4)
    arrays = encode(numbers, lambda a: a, verify, np.zeros((1, 1), np.uint8), np.array([[rows]]))
    assert arrays["trace_answer"].dtype == kind
    assert arrays["trace_answer"][0, 0].tolist() == list(range(rows))


def test_wrong_steps_are_refused() -> None:
    answers, puzzles = np.zeros((1, 2, 3, 4), np.uint8), np.zeros((1, 4), np.uint8)
    for steps in (np.array([[1, 4]]), np.array([[1]]), np.array([[-1, 1]])):
        with pytest.raises(ValueError, match=r"steps must be \[1, 2\] in \[0, 3\], got"):
            encode(answers, canonical, verify, puzzles, steps)


def test_unfinished_untraced_and_damaged_runs_are_refused(tmp_path: Path) -> None:
    run = a_run(0, 4, 4, 3, 5, 3)
    store_run(tmp_path / "unfinished", run, 2, 2, skip=1)
    with pytest.raises(StoreError, match="1 of 4 shards are missing"):
        Traces.open(tmp_path / "unfinished")
    with Store.open(tmp_path / "other", "key", 1, {}) as store:
        store.append(0, {"steps": np.zeros((1, 1))})
    with pytest.raises(StoreError, match="about must hold config, puzzles and shards"):
        Traces.open(tmp_path / "other")
    about = {"config": {"width": 1, "depth": 1}, "puzzles": 1, "shards": [[0, 0, 1, 0, 1]]}
    with Store.open(tmp_path / "untraced", "key", 1, about) as store:
        store.append(0, {"steps": np.zeros((1, 1))})
    with Traces.open(tmp_path / "untraced") as traces, pytest.raises(StoreError, match="must hold puzzles of a traced"):
        next(traces.blocks())
    for shards in ([[0, 0, 1, 0, 1], [1, 0, 1, 0, 1]], [[0, 0, 2, 0, 1]], [[0, 1, 1, 0, 1]], []):
        with Store.open(tmp_path / f"cover{shards}", "key", 0, about | {"shards": shards}):
            pass
        with pytest.raises(StoreError, match="shards must cover"):
            Traces.open(tmp_path / f"cover{shards}")
    store_run(tmp_path / "damaged", run, 2, 2)
    with Traces.open(tmp_path / "damaged") as traces:
        path = tmp_path / "damaged" / SHARDS_FILE
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        with pytest.raises(StoreError, match="damaged"):
            list(traces.blocks())


def test_encoding_a_large_shard_is_fast() -> None:
    rng = np.random.default_rng(0)
    answers = rng.integers(0, 10, (256, 4, 32, 81), dtype=np.uint8)
    answers[:, :, 12:] = answers[:, :, 11:12]
    puzzles, steps = np.zeros((256, 81), np.uint8), np.full((256, 4), 32)
    start_s = time.process_time()
    encode(answers, lambda rows: rows, verify, puzzles, steps)
    assert time.process_time() - start_s < 1.0
