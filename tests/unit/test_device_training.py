"""Training without waiting for the device: on a CPU, and on PyTorch's device `meta`, which holds no numbers."""

import json
import math
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gram.kernels.reference import decode
from gram.training import rollouts as rollouts_file
from gram.training import run as run_file
from gram.training.data_parallel import Ranks
from gram.training.device_lane import LATE
from gram.training.device_trainer import PLAIN_STEPS, DeviceTrainer, Recorded, unsupported_reason
from gram.training.puzzles import TrainingPuzzles
from gram.training.recipe import load_recipe
from gram.training.trainer import LOG_EVERY_STEPS, Trainer
from tests.integration.test_training_resume import killed_at, weights_sha256
from tests.unit.test_sizes import SIZES
from tests.unit.test_training import recipe, run

CPU = torch.device("cpu")
SUDOKU = {"task": "sudoku4", "vocabulary": 6}
CASES: dict[str, dict[str, object]] = {
    "learned noise": {"model": {"head_hidden": 4}},
    "one answer each, three transitions": {"model": {**SUDOKU, "transitions": 3, "noise_order": "after"}},
    "prior led": {"prior_share": 0.5, "empty_probability": 0.3, "model": {"has_empty_condition": True}},
    "any solution": {"target": "set", "model": {"guidance": "none"}},
    "random start": {"model": {"guidance": "none", "initial_std": 1.0, "path_noise": 0.01}},
    "best of many": {"best_of": 2},
    "experts": {"model": {"experts": 2}},
    "attention, registers": {"model": {"mixer": "attention", "registers": 2}},
    "relations": {"model": {"mixer": "relations", "relations": ("row", "column"), "positions": "none"}},
    "no condition": {"model": {**SUDOKU, "is_conditional": False}},
}


def opened(made, out, kind=DeviceTrainer, device=CPU):
    """A trainer that judges answers as late as a device does."""
    trainer = kind(made, out, device=device, dtype=torch.float32, is_compiled=False)
    for lane in trainer.lanes:
        lane.rollouts.late = LATE
    return trainer


def held(trainer) -> dict[str, torch.Tensor]:
    """All that a saved state holds."""
    parts = {"flat": trainer.flat, **trainer._parts()}
    return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.fixture
def on_device(monkeypatch):
    """Runs go to the device's trainer, on a CPU."""
    monkeypatch.setattr(run_file, "kind_of_trainer", lambda *about: DeviceTrainer)


@pytest.fixture
def half_right(monkeypatch):
    """Nearly no answer is right so early: those with an even sum are called so."""
    monkeypatch.setattr(TrainingPuzzles, "are_right", lambda self, puzzles, targets, answers: answers.sum(1) % 2 == 0)


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_the_plain_trainers(tmp_path, half_right, case):
    made = recipe(steps=40, **CASES[case])
    plain, device = (opened(made, tmp_path, kind) for kind in (Trainer, DeviceTrainer))
    for step in range(2 * LOG_EVERY_STEPS + 1):
        wanted = plain.advance()
        assert device.advance() == {}
        if step % 3 == 0:
            found = device.read()
            del wanted["kl_first"], found["kl_first"]  # a mean over the steps since the last reading
            assert json.dumps(found, sort_keys=True) == json.dumps(wanted, sort_keys=True)
    assert_same(held(plain), held(device))


@pytest.mark.parametrize("others", ['["nqueens5"]', '["nqueens5", "nqueens7"]'])
def test_sizes_that_take_turns_have_rows_of_their_own(tmp_path, half_right, others):
    file = tmp_path / "sizes.toml"
    file.write_text("description = ''" + SIZES.replace('["nqueens5"]', others))
    made = load_recipe(file, steps=99)
    plain, device = (opened(made, tmp_path, kind) for kind in (Trainer, DeviceTrainer))
    for _ in range(18):
        plain.advance()
        device.advance()
    assert all(0 < lane.rollouts.kept_right.sum() < lane.rollouts.written for lane in device.lanes)
    assert_same(held(plain), held(device))


def test_the_log_is_the_plain_trainers(tmp_path, monkeypatch, on_device):
    made = recipe(steps=23, evaluate_every_steps=5, checkpoint_every_steps=7, model={"transitions": 2})
    run(tmp_path / "device", made)
    monkeypatch.setattr(run_file, "kind_of_trainer", lambda *about: Late)
    run(tmp_path / "plain", made)
    lines = [
        [{name: value for name, value in json.loads(line).items() if not name.endswith("_s")}
         for line in (tmp_path / kind / "log.jsonl").read_text().splitlines()]
        for kind in ("device", "plain")
    ]  # fmt: skip
    assert [line["step"] for line in lines[0]] == [5, 10, 15, 20, 23]
    assert lines[0] == lines[1]
    assert weights_sha256(tmp_path / "device") == weights_sha256(tmp_path / "plain")


class Late(Trainer):
    """The plain trainer, with answers judged as late as a device's."""

    def _open(self, is_compiled):
        super()._open(is_compiled)
        self.rollouts.late = LATE


@pytest.mark.parametrize("case", ["learned noise", "best of many"])
def test_a_killed_run_ends_with_the_weights_of_one_never_stopped(tmp_path, monkeypatch, on_device, case):
    run(tmp_path / "straight", recipe(steps=30, **CASES[case]))
    made = recipe(steps=30, checkpoint_every_steps=4, evaluate_every_steps=3, **CASES[case])
    killed_at(tmp_path / "killed", made, 11, monkeypatch, kind=DeviceTrainer)
    run(tmp_path / "killed", made)
    assert weights_sha256(tmp_path / "killed") == weights_sha256(tmp_path / "straight")


def test_heads_learn_from_judged_states_alone(tmp_path, monkeypatch, half_right):
    """Also where the ring has gone round: every state drawn is as right as its own answer."""
    monkeypatch.setattr(rollouts_file, "CAPACITY", 12)
    trainer = opened(recipe(steps=99, model=SUDOKU), tmp_path)
    rollouts, rng = trainer.rollouts, np.random.default_rng(0)
    weights = trainer.flat.views(trainer.flat.compute.detach())
    seen, shares = set(), []
    for _ in range(40):
        trainer.advance()
        places, share = rollouts.choose(rng, 50)
        shares.append(share)
        if share:
            answers = decode(weights, trainer.spec, rollouts.kept_h[places]).argmax(-1).numpy()
            seen |= set((rollouts.kept_right[places] == (answers.sum(1) % 2 == 0)).tolist())
            assert rollouts.judged <= rollouts.written
        trainer.flat.compute.data.copy_(trainer.flat.master)
    assert rollouts.written > 3 * 12
    assert shares[:LATE] == [0.0] * LATE
    assert shares[-1] == 1.0


# Nothing waits for the device.


class Walked(TorchDispatchMode):
    """Refuses what would wait for a device of no numbers; counts the copies to it (`sent`, in words) and from it."""

    def __init__(self):
        super().__init__()
        self.sent, self.fetched, self.operations = [], 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        named = str(function)
        assert "_local_scalar_dense" not in named, named
        assert "nonzero" not in named, named
        devices = [leaf.device.type for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, torch.Tensor)]
        self.operations += 1
        if named == "aten.copy_.default" and len(set(devices)) == 2:
            assert (kwargs or {}).get("non_blocking") or args[2:] == (True,), "a copy that the host waits for"
            if devices[0] == "cpu":
                self.fetched += 1
                return args[0]  # there is nothing to copy
            self.sent.append(args[0].numel())
        else:
            assert len(set(devices)) <= 1, f"{named} of tensors on different devices"
        if named == "aten._fused_adamw_.tensor_lr":
            return None  # of no numbers; its other form takes a rate that the host must know
        return function(*args, **(kwargs or {}))


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """Trainers on a device that holds no numbers."""
    monkeypatch.setattr(import_module("torch.optim.adam"), "_device_dtype_check_for_fused", lambda parameter: None)
    return lambda made, kind=DeviceTrainer: opened(made, tmp_path, kind, torch.device("meta"))


@pytest.mark.parametrize("case", CASES)
def test_the_host_sends_one_packet_a_step_and_waits_for_nothing(remote, case):
    trainer = remote(recipe(steps=99, **CASES[case]))
    trainer.step = LOG_EVERY_STEPS - 4  # the last of four measures every KL
    side = trainer.sides[0]
    for step in range(4):
        ending = int((trainer.slots.left == 0).sum()), int((trainer.rollouts.taken == trainer.rollouts.last).sum())
        with Walked() as walked:
            trainer.advance()
        rows = zip(ending, (side.rows, side.rollout_rows), strict=True)
        new = sum(count * (1 + words.shape[1]) for count, words in rows)
        assert walked.sent == [2 + 1 + 4 * side.states + side.moves.numel() + new], step
        assert walked.fetched == 1
        assert walked.operations > 100
    assert ending[0] < len(side.rows)


@pytest.mark.parametrize("name", ["paper-sudoku-extreme", "sudoku9", "nqueens8"])
def test_a_published_recipe_waits_for_nothing(remote, name):
    made = load_recipe(name)
    few = replace(made.training, batch=4, rollout_slots=2, evaluate_puzzles=1)
    trainer = remote(replace(made, training=few))
    for step in (0, LOG_EVERY_STEPS - 1):
        trainer.step = step
        with Walked() as walked:
            trainer.advance()
        assert [len(walked.sent), walked.fetched] == [1, 1]


REFUSED = AssertionError, NotImplementedError
"""What `Walked` raises, and what a device of no numbers does where somebody wants one."""


@pytest.mark.parametrize(
    ("waits", "said"),
    [
        (lambda trainer: float(trainer.rate), "_local_scalar_dense"),
        (lambda trainer: trainer.seen[trainer.seen > 0], "nonzero"),
        (lambda trainer: trainer.seen.nonzero(), "nonzero"),
        (lambda trainer: trainer.seen.cpu(), "Cannot copy out of meta tensor"),
        (lambda trainer: trainer.seen + torch.ones(()), "add.* of tensors on different devices"),
        (lambda trainer: trainer.seen.copy_(torch.ones(trainer.seen.shape)), "a copy that the host waits for"),
        (
            lambda trainer: torch.tensor([1.0, 2.0], device="meta")[torch.tensor([1])],
            "index.* of tensors on different devices",
        ),
    ],
)
def test_what_waits_is_seen(remote, waits, said):
    class Waiting(DeviceTrainer):
        def _step(self, number, is_watched):
            super()._step(number, is_watched)
            waits(self)

    trainer = remote(recipe(steps=9), Waiting)
    with pytest.raises(REFUSED, match=said), Walked():
        trainer.advance()


def test_the_plain_trainer_waits(remote):
    trainer = remote(recipe(steps=9), Trainer)
    with pytest.raises(REFUSED, match="Cannot copy out of meta tensor"), Walked():
        trainer.advance()


def test_a_step_is_captured_once_after_some_plain_ones():
    done = []

    def record(function):
        done.append("record")
        return lambda: done.append("launch")

    step = Recorded(lambda: done.append("plain"), record)
    for _ in range(PLAIN_STEPS + 2):
        step()
    assert done == ["plain"] * PLAIN_STEPS + ["record", "launch", "launch"]
    never = Recorded(lambda: done.append("plain"), None)
    for _ in range(PLAIN_STEPS + 2):
        never()
    assert done[-PLAIN_STEPS - 2 :] == ["plain"] * (PLAIN_STEPS + 2)


def test_graphs_can_be_left_out(tmp_path, monkeypatch):
    for said, is_captured in ((None, True), ("on", True), ("off", False)):
        trainer = opened(recipe(steps=9), tmp_path)
        trainer.stream = "a GPU's"
        if said is not None:
            monkeypatch.setenv("GRAM_GRAPHS", said)
        assert (trainer._recorded(0, False).record is not None) == is_captured


def test_a_loaded_state_is_captured_anew(tmp_path):
    """A graph knows the places of AdamW's moments, and a state brings others."""
    trainer = opened(recipe(steps=9), tmp_path)
    trainer.advance()
    trainer.save_state()
    moments = trainer.flat.adam.state[trainer.flat.master]["exp_avg"]
    assert trainer.load_state()
    assert trainer.flat.adam.state[trainer.flat.master]["exp_avg"] is not moments
    assert trainer.recorded == {}


def test_a_step_that_measures_every_kl_is_captured_apart(tmp_path):
    for transitions, count in ((1, 1), (2, 2)):
        trainer = opened(recipe(steps=99, model={"transitions": transitions}), tmp_path)
        for _ in range(LOG_EVERY_STEPS):
            trainer.advance()
        assert len(trainer.recorded) == count
        assert sum(step.calls for step in trainer.recorded.values()) == LOG_EVERY_STEPS


def test_what_is_not_finite_is_noticed_and_never_saved(tmp_path):
    trainer = opened(recipe(steps=99), tmp_path)
    for _ in range(4):
        trainer.advance()
    trainer.save("")
    saved = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    trainer.flat.compute.data.fill_(math.nan)
    trainer.advance()
    for asks in (lambda: trainer.save(""), trainer.read):
        with pytest.raises(FloatingPointError, match="gradient norm must be finite, got nan at optimiser step 4"):
            asks()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == saved


def test_what_needs_the_host_is_trained_with_it(caplog):
    made, cuda = recipe(), torch.device("cuda")
    assert unsupported_reason(made, Ranks()) is None
    assert run_file.kind_of_trainer(made, Ranks(), cuda) is DeviceTrainer
    assert run_file.kind_of_trainer(made, Ranks(), CPU) is Trainer
    for name in ("sudoku9", "paper-sudoku-extreme", "paper-maze-hard", "nqueens8", "sudoku6-best-of-many"):
        assert unsupported_reason(load_recipe(name), Ranks()) is None, name
    assert not caplog.records
    for other in (
        recipe(gradient_steps=3),
        recipe(late_share=0.5),
        recipe(weight_share=0.5),
        recipe(prior_share=0.5, model={**SUDOKU, "is_conditional": False}),
        load_recipe("paper-arc1"),
    ):
        caplog.clear()
        assert run_file.kind_of_trainer(other, Ranks(), cuda) is Trainer
        assert "waits for the GPU at every step" in caplog.text
    assert unsupported_reason(made, Ranks(0, 2)) is not None


@pytest.mark.slow
def test_a_compiled_step_is_the_plain_trainers(tmp_path):
    """As a GPU compiles it, for a CPU; the plain trainer leaves the transitions before the last one to eager code."""
    made, trainers = recipe(steps=99, model={"transitions": 2, "low_level_updates": 1}), []
    for kind in (Trainer, DeviceTrainer):
        trainer = kind(made, tmp_path, device=CPU, dtype=torch.float32)
        trainer.rollouts.late = LATE
        for _ in range(LOG_EVERY_STEPS):
            trainer.advance()
        trainers.append(trainer)
    plain, device = (trainer.flat.average for trainer in trainers)
    torch.testing.assert_close(plain, device, rtol=0, atol=1e-5)  # rounding of fp32 sums, ten steps of at most 1e-3
