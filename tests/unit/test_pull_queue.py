"""The driver's queue, against workers that die, fail, stall, answer late or twice. No Ray, no clock."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gram.distributed.pull_queue import ATTEMPTS, COPIES, Assignment, PullQueue

MOVES = ("finish", "finish", "finish", "fail", "lose", "lose node", "join", "late", "again", "release")


class Cluster:
    """Carries out what the queue says with workers that do whatever a random source wills."""

    def __init__(self, queue: PullQueue, poison: set[int], source: random.Random) -> None:
        self.queue, self.poison, self.random = queue, poison, source
        self.inboxes: dict[str, list[int]] = {}
        self.lost: list[tuple[str, int]] = []
        """Of lost workers, what may have been finished just before."""
        self.answered: list[tuple[str, int]] = []
        self.firsts: list[int] = []
        self.cancelled: list[Assignment] = []
        """Told to end, and not answered for."""
        self.names = 0
        self.sent: list[Assignment] = []

    def join(self) -> None:
        self.names += 1
        self.inboxes[f"w{self.names}"] = []
        self.queue.join(f"w{self.names}")

    def carry_out(self) -> None:
        for worker, shard in self.queue.assign():
            assert worker in self.inboxes, "only a worker that is there gets work"
            assert shard not in self.inboxes[worker]
            assert shard not in self.firsts, "finished shards are not sent again"
            self.inboxes[worker].append(shard)
            assert len(self.inboxes[worker]) <= self.queue.depth
            self.sent.append(Assignment(worker, shard))
        for worker, shard in self.queue.unneeded():
            assert shard in self.firsts, "only copies of what has its result are cancelled"
            assert shard in self.inboxes[worker]
            assert (worker, shard) not in self.cancelled
            self.cancelled.append(Assignment(worker, shard))
        for worker, inbox in self.inboxes.items():
            assert self.queue.holds(worker) == tuple(inbox)
            for shard in inbox:
                assert ((worker, shard) in self.cancelled) == (shard in self.firsts), "and all of them"

    def answer(self, worker: str, shard: int) -> None:
        self.cancelled = [each for each in self.cancelled if each != (worker, shard)]
        if self.queue.finish(worker, shard):
            self.firsts.append(shard)
        self.answered.append((worker, shard))

    def step(self, move: str) -> None:
        busy = [worker for worker, inbox in self.inboxes.items() if inbox]
        if move == "join" and len(self.inboxes) < 5:
            self.join()
        elif move == "late" and self.lost:
            worker, shard = self.lost.pop(self.random.randrange(len(self.lost)))
            if shard not in self.poison:
                self.answer(worker, shard)
        elif move == "again" and self.answered:
            self.answer(*self.random.choice(self.answered))
        elif move in ("lose", "lose node") and self.inboxes:
            worker = self.random.choice(list(self.inboxes))
            inbox = self.inboxes.pop(worker)
            self.cancelled = [each for each in self.cancelled if each.worker != worker]
            self.lost += [(worker, shard) for shard in inbox[:1]]
            self.queue.leave(worker, "died", is_blamed=move == "lose")
        elif move in ("finish", "fail") and busy:
            worker = self.random.choice(busy)
            shard = self.inboxes[worker].pop(0)
            if move == "fail":
                self.cancelled = [each for each in self.cancelled if each != (worker, shard)]
            if move == "fail" or shard in self.poison:
                self.queue.fail(worker, shard, f"shard {shard} is ill")
            else:
                self.answer(worker, shard)
        elif move == "release" and self.cancelled:
            ended = self.cancelled.pop(self.random.randrange(len(self.cancelled)))
            self.inboxes[ended.worker].remove(ended.shard)
            before = self.queue.failures, self.queue.retries
            self.queue.release(*ended)
            assert (self.queue.failures, self.queue.retries) == before, "no attempt, and nothing to do again"
        self.carry_out()


@settings(max_examples=300)
@given(
    st.integers(0, 12),
    st.sets(st.integers(0, 11), max_size=3),
    st.integers(1, 3),
    st.lists(st.sampled_from(MOVES), max_size=60),
    st.randoms(use_true_random=False),
)
def test_every_shard_exactly_once_or_named_and_the_run_ends(shards, poison, depth, moves, source):
    queue = PullQueue(range(shards), depth=depth)
    cluster = Cluster(queue, poison, source)
    for move in moves:
        cluster.step(move)
    for _ in range(1000):  # from here on nothing else goes wrong
        if queue.is_over:
            break
        if not cluster.inboxes:
            cluster.join()
            cluster.carry_out()
        cluster.step("finish")
    assert queue.is_over
    assert sorted([*cluster.firsts, *queue.poison]) == list(range(shards))
    for shard, attempts in queue.poison.items():
        assert len(attempts) >= ATTEMPTS
        assert all(reason in ("died", f"shard {shard} is ill") for _, reason in attempts)
        assert shard in poison or any(reason == "died" for _, reason in attempts) or "fail" in moves
    assert poison.intersection(range(shards)) <= set(queue.poison)
    assert queue.duplicates == len(cluster.answered) - len(cluster.firsts)
    assert queue.finished == len(cluster.firsts)
    assert queue.poisoned == len(queue.poison)
    assert queue.assign() == [], "nothing is sent after the end"


@given(st.lists(st.sampled_from(MOVES), max_size=40), st.integers(0, 1000))
def test_same_events_same_assignments(moves, seed):
    def play() -> list[Assignment]:
        cluster = Cluster(PullQueue(range(9)), {4}, random.Random(seed))
        for move in moves:
            cluster.step(move)
        return cluster.sent

    assert play() == play()


def test_nothing_is_sent_before_a_worker_is_ready():
    queue = PullQueue(range(3))
    assert queue.assign() == []
    queue.join("a")
    assert queue.assign() == [("a", 0), ("a", 1)]


def test_one_each_before_two_and_one_each_at_the_tail():
    queue = PullQueue(range(6))
    queue.join("a")
    queue.join("b")
    assert queue.assign() == [("a", 0), ("b", 1), ("a", 2), ("b", 3)]
    queue.finish("a", 0)
    assert queue.assign() == [], "two are left for two workers: who is idle first takes them"
    queue.finish("a", 2)
    assert queue.assign() == [("a", 4)]


def test_the_tail_is_copied_and_the_first_result_counts():
    queue = PullQueue(range(2))
    queue.join("slow")
    queue.join("fast")
    assert queue.assign() == [("slow", 0), ("fast", 1)]
    queue.finish("fast", 1)
    assert queue.assign() == [("fast", 0)]
    assert queue.finish("fast", 0)
    assert queue.is_over
    assert not queue.finish("slow", 0)
    assert (queue.reissues, queue.duplicates, queue.retries) == (1, 1, 0)


def test_the_slower_copy_is_cancelled_and_its_worker_takes_other_work():
    queue = PullQueue(range(3))
    queue.join("slow")
    queue.join("fast")
    assert queue.assign() == [("slow", 0), ("fast", 1)]
    queue.finish("fast", 1)
    assert queue.assign() == [("fast", 2)]
    assert queue.unneeded() == []
    queue.fail("fast", 2, "out of memory")
    assert queue.assign() == [("fast", 0)], "what waits has failed here: a copy of what is slow instead"
    queue.finish("fast", 0)
    assert queue.unneeded() == [("slow", 0)]
    assert queue.unneeded() == [], "named once"
    assert queue.assign() == [], "slow is busy until it answers"
    queue.release("slow", 0)
    assert queue.assign() == [("slow", 2)]
    assert queue.finish("slow", 2)
    assert queue.is_over
    assert (queue.reissues, queue.cancelled, queue.duplicates, queue.failures) == (1, 1, 0, 1)


def test_a_cancelled_shard_that_is_needed_is_queued_again_and_counts_no_attempt():
    """Nobody but the driver cancels, and only what is finished; were it otherwise, nothing is lost."""
    queue = PullQueue([0], attempts=1)
    queue.join("a")
    queue.assign()
    queue.release("a", 0)
    assert (queue.failures, queue.poisoned) == (0, 0)
    assert queue.assign() == [("a", 0)]
    queue.release("b", 0)
    assert queue.holds("a") == (0,), "what a worker does not hold is passed over"


def test_the_copy_of_a_lost_worker_is_not_cancelled():
    queue = PullQueue([0])
    queue.join("a")
    queue.assign()
    queue.join("b")
    assert queue.assign() == [("b", 0)]
    queue.finish("b", 0)
    queue.leave("a", "killed")
    assert queue.unneeded() == []
    assert queue.failures == 0, "what it ran was finished"


def test_copies_are_limited():
    queue = PullQueue([0])
    for name in "abcdef":
        queue.join(name)
    sent = queue.assign()
    while more := queue.assign():
        sent += more
    assert len(sent) == COPIES


def test_only_the_running_shard_of_a_lost_worker_counts_an_attempt():
    queue = PullQueue(range(9), attempts=1)
    queue.join("a")
    assert queue.assign() == [("a", 0), ("a", 1)]
    queue.leave("a", "killed")
    assert queue.poison == {0: (("a", "killed"),)}
    queue.join("b")
    assert queue.assign() == [("b", 1), ("b", 2)]


def test_a_lost_node_counts_no_attempt():
    queue = PullQueue([0], attempts=1)
    for name in "abcd":
        queue.join(name)
        queue.assign()
        queue.leave(name, "its node is gone", is_blamed=False)
    assert not queue.poison
    assert queue.retries == 4


def test_a_failed_shard_goes_to_another_worker():
    queue = PullQueue(range(2))
    queue.join("bad")
    queue.join("good")
    assert queue.assign() == [("bad", 0), ("good", 1)]
    queue.fail("bad", 0, "out of memory")
    assert queue.assign() == [("bad", 1)] or queue.waiting == 1
    queue.finish("good", 1)
    assert ("good", 0) in queue.assign()
    assert queue.finish("good", 0)
    assert queue.is_over
    assert not queue.poison


def test_a_late_result_saves_a_poison_shard():
    queue = PullQueue([0], attempts=1)
    queue.join("a")
    queue.assign()
    queue.leave("a", "killed")
    assert queue.is_over
    assert list(queue.poison) == [0]
    assert queue.finish("a", 0)
    assert queue.is_over
    assert not queue.poison


def test_limits_and_names_are_checked():
    with pytest.raises(ValueError, match="attempts must be at least 1, got 0"):
        PullQueue([], attempts=0)
    queue = PullQueue([])
    queue.join("a")
    with pytest.raises(ValueError, match="worker must be a new one, got 'a' again"):
        queue.join("a")
    assert queue.is_over
