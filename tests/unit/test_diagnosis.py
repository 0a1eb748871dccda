"""The leak diagnosis and the bound: every transition's KL, rollouts that decide, and the ELBO by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from gram.formatting import plain
from gram.kernels.philox import Site
from gram.kernels.reference import add_noise, core, decode
from gram.model import embed, embed_target
from gram.training.diagnosis import RECENT_LINES, Signs, diagnose, explain, recent_signs
from gram.training.elbo import elbo
from gram.training.guidance import kl, posterior, prior
from gram.training.objective import _normals, earlier_transitions
from gram.training.trainer import LOG_EVERY_STEPS
from tests.unit.test_training import recipe, run, trainer

TWO = {"transitions": 2, "noise_order": "after", "noise_free_steps": 0}
"""Of the two transitions the loss charges one, as in the paper's order."""


def signs(**values) -> Signs:
    return Signs(**{"kl_first": 0.05, "rollout_right": 0.9, "exact": 0.9, "fraction": 1.0, **values})


def log_of(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"kl_first": 0.5}, "leaking"),
        ({"kl_first": 0.5, "rollout_right": 0.0}, "leaking"),
        ({}, "healthy"),
        ({"kl_first": 0.0005}, "collapsed"),
        ({"kl_first": 0.0005, "rollout_right": 0.0}, "collapsed"),
        ({"kl_first": math.nan, "rollout_right": 0.0}, "undefined"),
        ({"rollout_right": 0.0}, "failing"),
        ({"rollout_right": 0.0, "exact": 0.0}, "failing"),
        ({"rollout_right": 0.04, "fraction": 0.3}, "failing"),
        ({"rollout_right": 0.0, "fraction": 0.1}, "healthy"),
        ({"rollout_right": 0.2, "fraction": 0.3}, "healthy"),
        ({"rollout_right": math.nan}, "healthy"),
    ],
)
def test_diagnosis(values, word):
    told = explain(signs(**values))
    assert diagnose(signs(**values)) == word
    assert told.startswith("KL") == (word != "undefined")
    assert word == "undefined" or f", {word}: " in told


def test_the_sentence_follows_what_guides():
    collapsed = signs(kl_first=0.0)
    assert "one solution" in explain(collapsed, is_multi_solution=False)
    assert explain(collapsed, guidance="none") == ""
    assert "lower kl_beta" not in explain(collapsed, guidance="mean"), "it has no noise to bring back"
    assert "Prior rollouts right 2.0%, slots led by the posterior 95.0%" in explain(
        signs(rollout_right=0.02, exact=0.95)
    )


def test_the_diagnosis_is_of_many_lines(tmp_path):
    """One line's figure comes of a few slots; lines without one, and old ones, do not count."""
    assert math.isnan(recent_signs(tmp_path / "none.jsonl").kl_first)
    values = [9.0] * 55 + [0.1, None] * 15 + [0.3] * 15
    lines = [
        {"step": step, "kl_first": value, "rollout_right": float(step >= 70), "exact": 0.5, "fraction": step / 100}
        for step, value in enumerate(values)
    ]
    found = recent_signs(log_of(tmp_path / "log.jsonl", lines))
    assert found.kl_first == pytest.approx(0.2)
    assert found.rollout_right == pytest.approx(1.0)
    assert len(lines) - RECENT_LINES == 70
    assert (found.exact, found.fraction) == (0.5, 99 / 100)


def test_the_diagnosis_of_a_short_run_is_of_its_later_half(tmp_path):
    """Its noise was used at first and has collapsed since."""
    lines = [{"kl_first": 0.2 if step < 6 else 0.0, "rollout_right": 0.0, "exact": 0.5} for step in range(12)]
    assert recent_signs(log_of(tmp_path / "log.jsonl", lines)).kl_first == 0.0
    assert ", collapsed" in explain(recent_signs(tmp_path / "log.jsonl"))


def test_a_run_like_published_is_not_called_healthy(tmp_path):
    """Figures planted: the last transition's KL looks sound, no rollout is right, slots decode their targets."""
    planted = {"kl_first": 0.007, "rollout_right": 0.0, "exact": 0.97, "fraction": 1.0}
    told = explain(recent_signs(log_of(tmp_path / "log.jsonl", [planted] * 40)))
    assert "healthy" not in told
    assert ", failing: " in told
    assert "97.0%" in told
    for share in (0.0, 0.001, 0.02):
        for fraction in (0.25, 0.6, 1.0):
            for kl_first in (0.004, 0.05, 0.2):
                assert diagnose(signs(kl_first=kl_first, rollout_right=share, fraction=fraction)) != "healthy"


def test_a_short_run_in_the_papers_order_says_what_every_transition_draws(tmp_path):
    """Really trained, with a KL weight that charges next to nothing: the first transition's draw is not free of KL, and
    the figure to watch is the sum."""
    out = tmp_path / "run"
    made = recipe(model=TWO, steps=60, batch=16, kl_beta=((0.0, 1e-4),), learning_rate=3e-3)
    card = run(out, made)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(LOG_EVERY_STEPS, 61, LOG_EVERY_STEPS))
    for line in lines:
        first, last = line["kl_transitions"]
        assert last == pytest.approx(line["kl"])
        assert first > 0
    last = lines[-1]
    assert last["kl_first"] > last["kl"]
    assert last["evaluation"]["single_accuracy"] < 0.3
    assert diagnose(recent_signs(out / "log.jsonl")) == "leaking"
    assert ", leaking: " in card["leak_diagnosis"]


@pytest.mark.parametrize(("steps", "every", "logged"), [(3, 100, [3]), (7, 5, [5, 7]), (12, 100, [10, 12])])
def test_every_line_of_a_log_has_the_kl_of_every_transition(tmp_path, steps, every, logged):
    """Also those of an evaluation and of the end, so that a run of few steps is diagnosed."""
    out = tmp_path / "run"
    card = run(out, recipe(model=TWO, steps=steps, batch=16, evaluate_every_steps=every))
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == logged
    assert [len(line["kl_transitions"]) for line in lines] == [2] * len(logged)
    assert card["leak_diagnosis"]


def test_one_transition_is_the_kl_of_the_loss(tmp_path):
    made = trainer(tmp_path)
    values = made.advance()
    assert values["kl_transitions"] == [values["kl"]]
    assert trainer(tmp_path, model={"guidance": "none"}).advance()["kl_transitions"] == []


def test_measuring_changes_no_weight(tmp_path, monkeypatch):
    """Whether a step is logged decides nothing of the run."""
    watched, plain = trainer(tmp_path, model=TWO), trainer(tmp_path, model=TWO)
    monkeypatch.setattr(type(watched), "is_watched", property(lambda self: self is watched))
    for _ in range(4):
        assert len(watched.advance()["kl_transitions"]) == 2
        values = plain.advance()
        assert values["kl_transitions"] == []
        assert math.isnan(values["kl_first"])
    assert torch.equal(watched.flat.master, plain.flat.master)
    assert torch.equal(watched.slots.h, plain.slots.h)


def test_slots_that_follow_the_prior_count_in_no_kl(tmp_path):
    made = trainer(tmp_path, model=TWO, prior_share=0.5, batch=32)
    made.slots.refill(made.model.weights(), np.random.default_rng(0))
    slots = made.slots.view()
    weights = made.model.weights()
    args = (weights, made.recipe.model, made.training)
    mixed = earlier_transitions(*args, slots, is_watched=True)
    led = (~slots.is_prior).nonzero()[:, 0]
    alone = earlier_transitions(*args, slots.take(led), is_watched=True)
    assert 0 < len(led) < 32
    assert float(mixed.kl[0]) == pytest.approx(float(alone.kl[0]), rel=1e-4)
    assert float(mixed.kl_first) == pytest.approx(float(alone.kl_first), rel=1e-4)


@pytest.mark.parametrize("order", ["before", "after"])
def test_the_bound_by_hand(tmp_path, order):
    """Two steps of two transitions, written out: the KL of all of them, then the cross-entropy of the last answer."""
    model = {"transitions": 2, "noise_order": order, "noise_free_steps": 1, "depth": 2, "low_level_updates": 1}
    made = trainer(tmp_path, model=model)
    config, spec, weights = made.recipe.model, made.spec, made.model.weights()
    held = made.puzzles.held_out
    found = elbo(made.model, made.training, held.puzzles, held.answers)

    made.slots.refill(made.model.weights(), np.random.default_rng(0))
    count = len(held)
    slots = made.slots.view().take(torch.arange(count))
    from gram.tasks.protocol import puzzle_hash  # the noise is named by the puzzle

    hashes = torch.tensor([puzzle_hash(config.task, puzzle) for puzzle in held.puzzles])
    puzzles, targets = (torch.from_numpy(part.astype(np.int64)) for part in (held.puzzles, held.answers))
    e_x, e_y = embed(weights, config, puzzles), embed_target(weights, config, targets)
    h, l = made.model.initial_state(count)
    total = torch.zeros(count)
    with torch.no_grad():
        for step in range(2):
            for index in range(2):
                slots = slots._replace(
                    puzzle_hash=hashes, trajectory=torch.arange(count), step=torch.full((count,), step)
                )
                normal = _normals(slots, spec, Site.POSTERIOR, slots.step * 2 + index, made.training.seed)

                def guided(u, normal=normal, step=step):
                    nonlocal total
                    q, p = posterior(weights, spec, u, e_y), prior(weights, spec, u)
                    if step >= 1:
                        total = total + kl(q, p).sum(1)
                    return add_noise(u, *q, normal, torch.full((count,), step >= 1), spec, 1.0)

                start = guided(h) if order == "before" else h
                l = core(weights, "low", l + start + e_x, spec)
                h = core(weights, "high" if not spec.is_core_shared else "low", start + l, spec)
                h = guided(h) if order == "after" else h
        entropy = torch.nn.functional.cross_entropy(
            decode(weights, spec, h).transpose(1, 2), targets, reduction="none"
        ).sum(1)
    assert found["nelbo_kl"] == pytest.approx(float(total.mean()), rel=1e-4)
    assert found["nelbo"] == pytest.approx(float((total + entropy).mean()), rel=1e-4)
    assert found["nelbo_kl"] > 0


def test_the_bound_is_a_figure_of_evaluations_where_there_is_a_posterior(tmp_path):
    assert {"nelbo", "nelbo_kl"} <= set(trainer(tmp_path).evaluate())
    for settings in ({"model": {"guidance": "none"}}, {"best_of": 2}):
        assert "nelbo" not in trainer(tmp_path, **settings).evaluate()
    twin = trainer(tmp_path, model={"guidance": "none"})
    with pytest.raises(ValueError, match="must have guidance to have a bound, got guidance 'none'"):
        elbo(twin.model, twin.training, twin.puzzles.held_out.puzzles, twin.puzzles.held_out.answers)


def test_numbers_that_json_lacks_are_null_at_any_place():
    told = plain({"a": math.nan, "b": [1.0, math.inf], "c": {"d": -math.inf, "e": 2}, "f": "x"})
    assert told == {"a": None, "b": [1.0, None], "c": {"d": None, "e": 2}, "f": "x"}
