"""A run whose shards come from elsewhere: its store is a local run's, and what damage on the way does to it."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from pathlib import Path

import numpy as np
import pytest

from gram.api import Sampler
from gram.config import SamplerConfig
from gram.sampler.engine import Progress
from gram.sampler.record import Serialized, digest_of, payload_of
from gram.sampler.run import Job
from gram.sampler.scheduler import Shard
from gram.sampler.store import Store, StoreError
from gram.tasks.registry import get_task
from tests.models import tiny_model

TASK = get_task("nqueens4")
PUZZLES = TASK.split("train").puzzles
CONFIG = SamplerConfig(width=12, launch=8)


class Elsewhere:
    """Serializes what a local run would give; `damage` is what becomes of it on the way, shard by shard."""

    device = None

    def __init__(self, damage: dict[int, list[Serialized | None]] | None = None) -> None:
        self.damage, self.ran = damage or {}, list[int]()

    def start(self, job: Job, shards: int) -> None:
        self.job = job

    def run(self, shards: Iterable[Shard]) -> Generator[tuple[Shard, Serialized], None, None]:
        for shard in shards:
            self.ran.append(shard.index)
            serialized = Serialized.of(self.job.run_shard(shard).arrays())
            for other in self.damage.get(shard.index, [None]):
                yield shard, Serialized.from_bytes((other or serialized).to_bytes())


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return Sampler(tiny_model(), TASK, name="tiny")


@pytest.fixture(scope="module")
def here(sampler: Sampler, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a local run."""
    folder = tmp_path_factory.mktemp("here") / "run"
    sampler.sample(PUZZLES, CONFIG, out=folder)
    return folder


def serialized_of(folder: Path, index: int) -> Serialized:
    with Store.read_only(folder) as store:
        return Serialized.of(store.read(index))


def assert_same(folder: Path, here: Path) -> None:
    with Store.read_only(folder) as mine, Store.read_only(here) as local:
        assert (mine.plan_key, mine.missing()) == (local.plan_key, [])
        for index in range(local.shard_count):
            assert payload_of(mine.read(index)) == payload_of(local.read(index))


def test_the_store_of_a_local_run(sampler, here, tmp_path):
    """Also where results come twice."""
    twice: dict[int, list[Serialized | None]] = {0: [None, None]}
    told: list[int] = []
    result = sampler.sample(PUZZLES, CONFIG, out=tmp_path, backend=Elsewhere(twice), observer=Progress(told.append))
    assert_same(tmp_path, here)
    assert sum(told) == result.trajectories == 12 * len(PUZZLES)


def test_damage_on_the_way_is_found_and_mended_by_the_same_command(sampler, here, tmp_path):
    good = serialized_of(here, 1)
    broken = bytearray(good.payload)
    broken[-1] ^= 1
    first = Elsewhere({1: [Serialized(bytes(broken), good.digest)]})
    with pytest.raises(StoreError, match="the result of shard 1 is damaged"):
        sampler.sample(PUZZLES, CONFIG, out=tmp_path, backend=first)
    again = Elsewhere()
    sampler.sample(PUZZLES, CONFIG, out=tmp_path, backend=again)
    assert again.ran == [1]
    assert_same(tmp_path, here)


def test_two_results_of_a_shard_are_an_error(sampler, here, tmp_path):
    other = Elsewhere({0: [None, serialized_of(here, 1)]})
    with pytest.raises(StoreError, match="shard 0 is stored already with another result"):
        sampler.sample(PUZZLES, CONFIG, out=tmp_path, backend=other)


def test_a_serialized_result_that_holds_no_arrays_is_refused_when_it_is_read(tmp_path):
    text = b"no safetensors here"
    with Store.open(tmp_path, "key", 2, {}) as store:
        assert store.append_serialized(0, Serialized.of({"x": np.zeros(3)}))
        assert store.append_serialized(1, Serialized(text, digest_of(text)))
        with pytest.raises(StoreError, match="the result of shard 1 holds no arrays"):
            store.read(1)
    with pytest.raises(StoreError, match="must be longer than its digest of 16, got 16"):
        Serialized.from_bytes(bytes(16))
