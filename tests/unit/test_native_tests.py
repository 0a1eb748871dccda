"""Sequential tests in native code do what those in numpy do, look by look."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gram.kernels.native import build
from gram.sampler import native_tests
from gram.sampler.scheduler import Final, Shard, Trajectories
from gram.sampler.sequential_tests import SequentialTests
from gram.sampler.width import Decided, FirstHalt, NotSparse, Staged, Trusted, Verified
from gram.tasks.registry import get_task

TASK, TOKENS = get_task("nqueens4"), 16
PUZZLES = np.zeros((9, TOKENS), np.uint8)
RIGHT = TASK.solutions(PUZZLES[0])[0]
POLICIES = {
    "decided": lambda: Decided(0.8),
    "staged": lambda: Staged(0.7),
    "trusted": lambda: Trusted(0.9),
    "verified": Verified,
    "sparse": lambda: NotSparse(0.1),
    "first-halt": lambda: FirstHalt(3),
}


class Side:
    """A table of trajectories and its tests."""

    def __init__(self, policy, is_native):
        self.table = Trajectories(TASK, PUZZLES, answer_tokens=TOKENS, depth=0, measures_sparsity=True)
        self.tests = SequentialTests(policy, answer_tokens=TOKENS, trusts_halt_head=False, is_native=is_native)
        self.opened = {}

    def open(self, shard):
        """The trajectories that are needed at once."""
        self.opened[shard.index] = self.table.open(shard)
        return self.tests.open(self.opened[shard.index], self.table).tolist()

    def end(self, rows, answers, trust):
        """The puzzles that this decides, at which width, and the trajectories that come to be needed in their order."""
        nothing = np.zeros(len(rows), np.float32)
        is_halted = trust > 0.5
        final = Final(answers, np.ones(len(rows), np.int64), nothing, trust, nothing, nothing, is_halted, trust - 0.5)
        self.table.end(rows, final)
        decided, more = self.tests.end(rows, final, self.table)
        decided = np.sort(decided)
        return decided.tolist(), self.tests.decided[decided].tolist(), more.tolist()

    def speculate(self, count):
        """Trajectories that may come to be needed, in their order."""
        return self.tests.next_speculative(count, self.table).tolist()


@pytest.mark.parametrize("name", POLICIES)
@given(st.integers(0, 2**32 - 1), st.integers(1, 23), st.integers(2, 5))
@settings(max_examples=25, deadline=None)
def test_both_decide_and_ask_alike(name, seed, columns, answers):
    """Trajectories end in any order, some that nobody asked for, and rows of a closed shard serve another one."""
    rng = np.random.default_rng(seed)
    sides = [Side(POLICIES[name](), is_native) for is_native in (False, True)]
    for shards in ((Shard(0, 0, 3, 0, columns), Shard(1, 3, 2, 0, columns)), (Shard(2, 5, 3, 0, columns),)):
        running = set()
        for shard in shards:
            first, second = (side.open(shard) for side in sides)
            assert first == second
            running |= set(first)
        while running:
            some = rng.permutation(sorted(running))[: rng.integers(1, 9)]
            tokens = rng.integers(0, answers, (len(some), 1)).repeat(TOKENS, axis=1).astype(np.uint8)
            tokens[rng.random(len(some)) < 0.05] = RIGHT
            trust = rng.random(len(some)).astype(np.float32)
            trust[rng.random(len(some)) < 0.05] = np.nan
            first, second = (side.end(some, tokens, trust) for side in sides)
            assert first == second
            decided, _, more = first
            running = {row for row in (running - set(some.tolist())) | set(more) if row - row % columns not in decided}
            asked = int(rng.integers(1, 7))
            first, second = (side.speculate(asked) for side in sides)
            assert first == second
            assert len(first) <= asked
            running |= set(first)
        for side in sides:
            for shard in shards:
                side.table.close(side.opened[shard.index], side.tests.decided[side.opened[shard.index].firsts])


def test_answers_of_one_hash_are_told_apart(tmp_path, monkeypatch):
    """The code with a hash that is always the same."""
    hashing = "return hash ^ hash >> 32;"
    told = native_tests.SOURCE.read_text()
    assert told.count(hashing) == 1
    blind = tmp_path / "blind.cpp"
    blind.write_text(told.replace(hashing, "return 7;"))
    monkeypatch.setattr(native_tests, "SOURCE", blind)
    side = Side(Decided(0.95), True)
    side.open(Shard(0, 0, 1, 0, 12))
    for row, answer in enumerate((1, 2, 1, 2)):
        side.end(np.array([row]), np.full((1, TOKENS), answer, np.uint8), np.zeros(1, np.float32))
    assert side.tests.hashes[:4].tolist() == [7] * 4
    assert side.tests.votes[:4].tolist() == [1, 1, 2, 2]
    assert side.tests.answer[:4].tolist() == [0, 1, 0, 1]


def test_without_a_compiler_numpy_does_it(monkeypatch):
    monkeypatch.setattr(native_tests.compile_cache, "compiler", lambda: None)
    build.library.cache_clear()
    native_tests.obstacle.cache_clear()
    try:
        assert native_tests.obstacle() == "the native core needs a C++ compiler (c++, g++, clang++), got none"
        assert SequentialTests(Verified(), answer_tokens=TOKENS, trusts_halt_head=False).native is None
    finally:
        build.library.cache_clear()
        native_tests.obstacle.cache_clear()


def test_without_a_folder_to_keep_it_in_numpy_does_it(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GRAM_CACHE", str(tmp_path / "file"))
    native_tests.obstacle.cache_clear()
    try:
        assert "GRAM_CACHE must name a folder" in native_tests.obstacle()
    finally:
        native_tests.obstacle.cache_clear()
