"""Training on a GPU: a captured step, and a host that does not wait; runs only where there is one."""

import pytest
import torch

from gram.training.device_lane import LATE
from gram.training.device_trainer import PLAIN_STEPS, DeviceTrainer
from gram.training.side_by_side import train_seeds
from gram.training.trainer import LOG_EVERY_STEPS, Trainer
from tests.unit.test_training import recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

DEVICE = torch.device("cuda")
STEPS = LOG_EVERY_STEPS * (PLAIN_STEPS + 2)
"""Until both kinds of step, with every KL and without, have been launched as graphs for a while."""
MADE = recipe(steps=2 * STEPS, model={"transitions": 2, "low_level_updates": 1, "head_hidden": 4})


def trained(out, kind=DeviceTrainer, *, is_captured=True, is_compiled=True):
    trainer = kind(MADE, out, device=DEVICE, dtype=torch.float32, is_compiled=is_compiled)
    trainer.is_captured = is_captured
    trainer.rollouts.late = LATE
    lines = [trainer.advance() or trainer.read() for _ in range(STEPS)]
    return trainer, lines


def apart(one, other, start) -> float:
    """Distance of two averaged weights, of the way that one has come."""
    return float((one.flat.average - other.flat.average).norm() / (one.flat.average - start).norm())


def test_a_captured_step_is_the_plain_trainers(tmp_path):
    """Within what fp32 sums in another order make of fifty steps of AdamW."""
    start = DeviceTrainer(MADE, tmp_path, device=DEVICE, dtype=torch.float32, is_compiled=False).flat.master.detach()
    captured, lines = trained(tmp_path)
    called, others = trained(tmp_path, is_captured=False)
    plain, wanted = trained(tmp_path, Trainer, is_compiled=False)
    graphs = [step.launch is not step.function for step in captured.recorded.values()]
    assert graphs == [True, True]
    assert apart(captured, called, start) < 0.05
    assert apart(captured, plain, start) < 0.05
    for found in (lines, others):
        for name in ("cross_entropy", "kl", "gradient_norm"):
            # The first steps, before rounding has grown.
            assert [line[name] for line in found[:5]] == pytest.approx([line[name] for line in wanted[:5]], rel=1e-2)


def test_the_host_does_not_wait(tmp_path):
    trainer, _ = trained(tmp_path)
    trainer.stream.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(LOG_EVERY_STEPS):
            trainer.advance()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.read()["cross_entropy"] > 0


def test_seeds_go_side_by_side(tmp_path):
    """Each ends near the weights that it has alone: a run that read another's states would be far away."""
    options = {"device": DEVICE, "dtype": torch.float32, "is_compiled": False}
    many = train_seeds(MADE, tmp_path / "many", [0, 1], at_once=2, **options)
    alone = train_seeds(MADE, tmp_path / "alone", [0, 1], at_once=1, **options)
    for seed in (0, 1):
        assert many[seed]["optimiser_steps"] == alone[seed]["optimiser_steps"] == 2 * STEPS
        folders = [tmp_path / way / f"seed{seed}" for way in ("many", "alone")]
        ends = [DeviceTrainer(MADE, each, device=DEVICE, dtype=torch.float32, is_compiled=False) for each in folders]
        start = ends[0].flat.master.detach().clone()
        assert all(end.load_state() for end in ends)
        assert apart(*ends, start) < 0.1
