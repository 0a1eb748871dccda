"""A sampling run's settings with nothing left open: what the model decides where the user did not."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

from gram.config import SamplerConfig, Selector
from gram.kernels import dispatch
from gram.kernels.dispatch import Injection, Spec
from gram.model import Model

HALT_THRESHOLDS = {"residual": 0.01, "unchanged": 2.0}
WIDTH_THRESHOLDS = {"staged": 0.9, "decided": 0.95}
SELECTOR = "vote"
"""Of a checkpoint that names none."""
GAUSSIAN_SIGMA = 0.3
"""PTRM's scale on Sudoku (2605.19943)."""


def resolve(config: SamplerConfig, model: Model, puzzles: int = 0) -> SamplerConfig:
    """`config` with what it leaves open filled in; `puzzles` says how long the run is.

    Raises `ValueError` where the model cannot do what it asks.
    """
    injector = config.injector or model.config.injector
    if injector == "prior" and model.config.guidance == "none":
        raise ValueError("injector must be none, gaussian or path for a model without a prior, got prior")
    sigma = config.sigma
    if sigma is None and injector == "gaussian":
        sigma = GAUSSIAN_SIGMA
    if sigma is None and injector == "path":
        sigma = model.config.path_noise
        if not (sigma or model.config.initial_std):
            raise ValueError("sigma must be given for injector path with a model trained without, got none")
    selector = config.selector or model.config.selector or SELECTOR
    if selector not in supported_selectors(model):
        raise ValueError(f"selector must be of a head that was trained, got {selector} and an LPRM of zeros")
    halting, width_policy, spec = config.halting, config.width_policy, model.spec
    thresholds = HALT_THRESHOLDS | {"head": model.config.halt_threshold}
    launch = config.launch if config.launch is not None else dispatch.launch_size(spec)
    depth = config.depth if config.depth is not None else model.config.depth
    transitions = config.transitions if config.transitions is not None else spec.transitions
    updates = config.low_level_updates if config.low_level_updates is not None else spec.low_level_updates
    asked = replace(spec, transitions=transitions, low_level_updates=updates)
    flops = puzzles * config.width * depth * dispatch.step_flops(model.weights(), asked)
    return replace(
        config,
        depth=depth,
        selector=selector,
        injector=injector,
        sigma=sigma,
        halt_threshold=config.halt_threshold if config.halt_threshold is not None else thresholds.get(halting),
        width_threshold=config.width_threshold
        if config.width_threshold is not None
        else WIDTH_THRESHOLDS.get(width_policy),
        transitions=transitions,
        low_level_updates=updates,
        launch=launch,
        kernel=dispatch.choose(model.device, spec, model.dtype, config.kernel, flops).kernel,
        slots=config.slots if config.slots is not None else dispatch.slot_count(model.device, launch),
    )


def supported_selectors(model: Model) -> tuple[Selector, ...]:
    """Selectors that the model has a trained head for. An imported model keeps zeros where the LPRM would be: all its
    trajectories would tie."""
    has_lprm = bool(model.lprm.weight.any())
    return tuple(each for each in get_args(Selector) if each != "lprm" or has_lprm)


def injection_of(config: SamplerConfig) -> Injection:
    """Where noise enters, from resolved settings."""
    assert config.injector is not None
    return Injection(
        injector=config.injector,
        temperature=config.temperature,
        sigma=config.sigma or 0.0,
        site=config.noise_site,
    )


def spec_of(config: SamplerConfig, model: Model) -> Spec:
    """The model's spec with the run's own `T` and `K`, from resolved settings."""
    assert config.transitions is not None
    assert config.low_level_updates is not None
    return replace(model.spec, transitions=config.transitions, low_level_updates=config.low_level_updates)


def first_halt(config: SamplerConfig, model: Model) -> int:
    """First supervision step after which a trajectory may halt.

    Before the prior's first noise all trajectories of a puzzle are one: halting there would make width worthless.
    """
    is_random_later = config.injector == "prior" and model.config.guidance in ("full", "noise")
    return 1 + (model.config.noise_free_steps if is_random_later else 0)
