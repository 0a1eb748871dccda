"""The settings of a model and of a sampling run, their defaults, and presets; training's are in `training/config.py`.

What a setting's value may be is at the head, how settings become JSON and come from it and how files of them are read
at the end. What a supervision step reads of a model is in `kernels/spec.py`. Nothing else holds defaults: the command
line, recipes (TOML), JSON and ablation keys use these field names. Field strings give meaning, unit and range;
`__post_init__` refuses a value out of range in one line.
"""

from __future__ import annotations

import json
import math
import reprlib
import tomllib
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from gram import latent_kinds
from gram.kernels.spec import Guidance, HeadReadout, Memory, Mixer, MixerNorm, NoiseOrder, Positions, Spec, check_limits
from gram.sampler.halting import RULES, Halting

Line = Literal[
    "row", "column", "diagonal", "antidiagonal", "box", "up", "down", "left", "right", "graph", "value", "all"
]
Ray = Literal["above", "below", "before", "after"]
Turn = Literal["mirror", "flip", "half-turn", "transpose", "antitranspose", "quarter-turn", "three-quarter-turn"]
Shuffled = Literal["random-row", "random-column", "random-up", "random-down", "random-left", "random-right"]
Relation = Literal[Line, Ray, Turn, Shuffled]
Injector = Literal["none", "prior", "gaussian", "path", "commitment"]
NoiseSite = Literal["h", "l", "both"]
Resampler = Literal["none", "lprm", "halt", "lprm-increment", "halt-increment"]
Selector = Literal["vote", "lprm", "halt", "residual", "margin", "first", "first-halt", "sparsity"]
WidthPolicy = Literal["fixed", "staged", "trusted", "sparse", "decided", "verified", "first-halt"]
ViewChoice = Literal["off", "random"]
Latent = Literal["continuous", "lattice"]
Kernel = Literal["auto", "eager", "compiled", "fused", "blocks", "gemm"]

SELECTORS: tuple[str, ...] = get_args(Selector)
HALTINGS: tuple[str, ...] = tuple(RULES)
INJECTORS: tuple[str, ...] = get_args(Injector)
NOISE_SITES: tuple[str, ...] = get_args(NoiseSite)
RESAMPLERS: tuple[str, ...] = get_args(Resampler)
WIDTH_POLICIES: tuple[str, ...] = get_args(WidthPolicy)
POLICIES_OF_THRESHOLDS: tuple[WidthPolicy, ...] = ("staged", "trusted", "sparse", "decided")
"""Those that read `width_threshold`."""
VIEWS: tuple[str, ...] = get_args(ViewChoice)
KERNELS: tuple[str, ...] = get_args(Kernel)

MODEL_FIELDS = (
    *("task", "vocabulary", "tokens", "output_start", "output_tokens", "registers", "dim", "blocks", "mixer"),
    *("relations", "mixer_norm", "mixer_hidden", "heads", "hidden", "positions", "rope_theta", "norm_eps"),
    *("is_core_shared", "transitions", "low_level_updates", "depth", "trained_depth", "guidance", "guidance_hidden"),
    *("noise_order", "noise_free_steps", "path_keep", "path_noise", "initial_std", "log_sigma_center"),
    *("log_sigma_range", "head_readout", "head_hidden", "halt_threshold", "selector", "views", "is_conditional"),
    *("has_empty_condition", "value_tokens", "values", "are_values_alike", "latent", "drop_below"),
    *("conflict_above", "commitment_temperature", "commitment_focus", "search", "width_policy", "notes"),
    "is_warm_started",
    "width_stage",
    *("identities", "identity_dim"),
    *("demonstrations", "memory", "memory_keys", "memory_values", "memory_chunk", "memory_heard", "encoder_blocks"),
    *latent_kinds.SPARSE,
)
"""Fields of `ModelConfig` in the order of `config.json`."""
LATER: dict[str, Any] = {
    "views": "off",
    "width_policy": "fixed",
    "width_stage": None,
    "latent": "continuous",
    "identities": 0,
    "identity_dim": 0,
    **latent_kinds.LATTICE,
    **latent_kinds.DEMONSTRATED,
    **latent_kinds.SPARSE,
}
"""Settings of a model that came after the first checkpoints, with the value by which all is as before. There it stands
not in a model's JSON."""
LATER_SAMPLING: dict[str, Any] = {"measures_sparsity": False, "width_stage": None, "is_warm_started": False}
"""The same of sampling."""

T = TypeVar("T")

MOST_NAMED = 5
"""Names that one line lists."""
SIZES = (
    *("vocabulary", "tokens", "output_tokens", "value_tokens", "dim", "hidden", "heads", "mixer_hidden"),
    "guidance_hidden",
)
MOST_UNITS, MOST_BLOCKS = 10_000_000, 1_000
"""No model has more channels, tokens, symbols or blocks. A larger number is a slip that only an allocator would
notice."""
MOST: dict[str, int] = {
    "width": 2**20,
    "depth": 2**16,
    "transitions": 2**8,
    "low_level_updates": 2**10,
    "slots": 2**20,
    "launch": 2**16,
}
"""Largest values of sampling. Depth times transitions stays within the 24 bits that a noise counter has for them."""
EXPECTED = {"int": "a whole number", "float": "a finite number", "bool": "true or false"}
MOST_BYTES = 16 * 2**20
"""No file of settings is longer."""
_SHORT = reprlib.Repr()
# A value that nests without end, or repeats one part a million times, must never be written out in full.
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 4, 200, 200, 60


def at_least(name: str, value: float, low: float) -> None:
    """Raises `ValueError` where a setting is below `low`."""
    if not value >= low:
        raise ValueError(f"{name} must be at least {low:g}, got {value}")


def at_most(name: str, value: float, high: float) -> None:
    """Raises `ValueError` where a setting is above `high`."""
    if value > high:
        raise ValueError(f"{name} must be at most {high:,}, got {shown(value)}")


def within(name: str, value: float, low: float, high: float) -> None:
    """Raises `ValueError` where a setting lies outside its range, both ends included."""
    if not low <= value <= high:
        raise ValueError(f"{name} must be within {low:g} and {high:g}, got {value}")


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises `ValueError` where a setting is none of its choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def make_plain(config: Any) -> None:
    """Turns a frozen configuration's values into plain ones of their declared types (numpy's numbers into Python's).

    Raises `ValueError` in one line for a value of another type; a truth value is no number.
    """
    for field in fields(config):
        value = _plain(getattr(config, field.name), str(field.type), field.name)
        object.__setattr__(config, field.name, value)


def _plain(value: Any, declared: str, name: str) -> Any:
    """`value` as the declared type of its field, or a `ValueError` in one line."""
    if declared.startswith("tuple["):
        return _plain_list(value, declared, name)
    kind, _, optional = declared.partition(" | ")
    if value is None and optional == "None":
        return None
    if kind == "int" and isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    if kind == "float" and isinstance(value, Real) and not isinstance(value, bool):
        try:
            if math.isfinite(number := float(value)):
                return number
        except OverflowError:
            pass
    # numpy's truth value is neither a bool nor a number; its type is known by name, since numpy is slow to import.
    if kind == "bool" and (isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")):
        return bool(value)
    if kind not in EXPECTED and isinstance(value, str):
        return str(value)
    expected = EXPECTED.get(kind, "a name") + (" or none" if optional else "")
    raise ValueError(f"{name} must be {expected}, got {shown(value)}")


def _plain_list(value: Any, declared: str, name: str) -> Any:
    """A tuple of names, or of pairs of numbers; lists will do."""
    is_listed = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    if declared in ("tuple[str, ...]", "tuple[int, ...]"):
        kind = "str" if "str" in declared else "int"
        if not is_listed or (kind == "str" and not all(isinstance(entry, str) for entry in value)):
            raise ValueError(f"{name} must be a list of {'names' if kind == 'str' else 'numbers'}, got {shown(value)}")
        return tuple(_plain(entry, kind, name) for entry in value)
    kinds = declared.removeprefix("tuple[tuple[").split("]")[0].split(", ")
    if not is_listed or not all(
        isinstance(pair, Sequence) and not isinstance(pair, str | bytes) and len(pair) == len(kinds) for pair in value
    ):
        raise ValueError(f"{name} must be a list of pairs, got {shown(value)}")
    return tuple(tuple(_plain(part, kind, name) for part, kind in zip(pair, kinds, strict=True)) for pair in value)


def shown(value: Any) -> str:
    """A value's first characters, on one line."""
    return " ".join(_SHORT.repr(value).split())[:40]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig(Spec):
    """One model (2605.19376, section 3): everything that decides what its weights mean. What a supervision step reads
    of it is its `Spec` (`kernels/spec.py`)."""

    task: str = ""
    """Task whose tokens the model reads."""
    vocabulary: int = 3
    """`V`: tokens known to embedding and decoder, padding included."""
    mixer_hidden: int = 128
    """Hidden width of the token mixer, or of all relations together; unused by attention."""
    hidden: int = 256
    """Hidden width of the channel SwiGLU (FFN)."""
    depth: int = 8
    """`M`: supervision steps the model was trained to take, or was found after training to gain from (its card says
    which); the default depth of sampling."""
    trained_depth: int | None = None
    """Supervision steps the model was trained to take, where `depth` was found after training; None: `depth`."""
    guidance_hidden: int = 128
    """Hidden width of the prior's and posterior's SwiGLU."""
    path_noise: float = 0.0
    """Scale of the normal noise added after every core call that the model was trained with (EqR)."""
    initial_std: float = 0.0
    """Deviation of a random initial state drawn for every trajectory; 0 starts all at the stored `z0` (EqR: 1)."""
    head_hidden: int = 0
    """Hidden width of the heads' position-wise SwiGLU, applied before the readout; 0 is one linear map of the
    readout."""
    halt_threshold: float = 0.95
    """Probability of the halt head above which a trajectory stops where the user names none, in (0, 1). The papers take
    .5; a stricter one costs few steps and keeps accuracy."""
    selector: Selector | None = None
    """Which candidate is the answer where the user names none. It is chosen on puzzles outside the test set (its card
    names them); None is `vote`."""
    views: ViewChoice = "off"
    """Whether each trajectory sees its puzzle under a symmetry of its own where the user does not say."""
    width_policy: WidthPolicy = "fixed"
    """How many trajectories a puzzle gets where the user does not say."""
    width_stage: int | None = None
    """Of its width policy `first-halt`: trajectories that run side by side; None is all of a width."""
    is_conditional: bool = True
    """Whether puzzles condition the model; False: it only samples `p(x)` from the empty condition."""
    has_empty_condition: bool = False
    """Whether the empty condition was trained, so that `gram generate` works."""
    latent: Latent = "continuous"
    """What a trajectory carries from one supervision step to the next: `continuous`, the states `h` and `l`, or
    `lattice`, the values that are still possible for each answer token (`gram/sampler/lattice.py`)."""
    values: tuple[int, ...] = ()
    """Of a lattice: tokens that an answer may have where the puzzle leaves it open; `value_tokens` is their number."""
    are_values_alike: bool = False
    """Of a lattice: whether any renaming of the values is a symmetry of the task (digits of Sudoku). The model then
    cannot tell them apart, and fits a task with another number of them."""
    drop_below: float = 0.1
    """Of a lattice: probability of belonging to a solution below which a value is removed."""
    conflict_above: float = 0.5
    """Of a lattice: probability that no solution is left above which a state is in conflict."""
    commitment_temperature: float = 1.0
    """Of a lattice: factor on the temperature of the value that a token is committed to; 0 takes the likeliest."""
    commitment_focus: float = 0.0
    """Of a lattice: the token to commit is drawn in proportion to the probability of its likeliest value, to this
    power; 0 draws uniformly."""
    search: latent_kinds.Search = "restart"
    """Of a lattice: a conflict leads back to the puzzle (`restart`), or takes the last commitment back, whose value is
    ruled out then, and tokens of the fewest values are committed (`backtrack`; `gram/sampler/backtracking.py`), or
    a token without a value gets all values back, and one is committed where a round changes nothing (`repair`)."""
    is_warm_started: bool = False
    """Of a lattice: whether a round goes on from the core's state of the round before (a warm start), except after a
    conflict and where every token has one value. Else, and in training always, it starts from `z0`."""
    notes: bool = False
    """Of a lattice: whether values are symbols of the task's notes (`gram/tasks/notes.py`), in one token a cell."""
    identities: int = 0
    """`I`: rows of the table of task embeddings from which registers are filled (`gram/identities.py`); in a recipe 0,
    where its data set has their number."""
    identity_dim: int = 0
    """`E`: numbers of a row, at most `registers * dim`; 0: registers are learned, and the same for all puzzles."""

    memory_chunk: int = 16
    """Tokens of demonstrations that are written into the memory at once."""
    memory_heard: int = 0
    """Channels that tell which symbols a cell hears along each relation of the mixer; keys are made of them and of the
    encoder's features."""
    encoder_blocks: int = 2
    """Blocks of the encoder that reads demonstrations' inputs and the test input."""

    def __post_init__(self) -> None:
        make_plain(self)
        for name in (*SIZES, "blocks", "transitions", "depth"):
            at_least(name, getattr(self, name), 1)
        if self.trained_depth is not None:
            at_least("trained_depth", self.trained_depth, 1)
        counts = ("registers", "head_hidden", "output_start", "identities", "identity_dim")
        for name in ("low_level_updates", "noise_free_steps", *counts):
            at_least(name, getattr(self, name), 0)
        for name in (*SIZES, *counts, *latent_kinds.MEMORY_SIZES, *latent_kinds.SPARSE_SIZES):
            at_most(name, getattr(self, name), MOST_UNITS)
        for name in ("blocks", "encoder_blocks"):
            at_most(name, getattr(self, name), MOST_BLOCKS)
        for name in ("depth", "transitions", "low_level_updates"):
            at_most(name, getattr(self, name), MOST[name])
        at_most("noise_free_steps", self.noise_free_steps, MOST["depth"])
        for name, choices in (
            ("mixer", get_args(Mixer)),
            ("mixer_norm", get_args(MixerNorm)),
            ("positions", get_args(Positions)),
            ("guidance", get_args(Guidance)),
            ("noise_order", get_args(NoiseOrder)),
            ("head_readout", get_args(HeadReadout)),
            ("views", VIEWS),
            ("width_policy", WIDTH_POLICIES),
            ("latent", get_args(Latent)),
            ("memory", get_args(Memory)),
        ):
            one_of(name, getattr(self, name), choices)
        if self.latent == "lattice":
            latent_kinds.check_lattice(self)
        elif strange := [name for name in latent_kinds.LATTICE if getattr(self, name) not in (LATER[name], ())]:
            raise ValueError(f"{strange[0]} must come with the latent lattice, got latent {self.latent}")
        if self.identities or self.identity_dim:
            latent_kinds.check_identities(self)
        if self.demonstrations:
            latent_kinds.check_demonstrations(self)
        elif strange := [name for name in latent_kinds.DEMONSTRATED if getattr(self, name) != LATER[name]]:
            raise ValueError(f"{strange[0]} must come with a task of demonstrations, got {getattr(self, strange[0])}")
        if self.width_stage is not None:
            latent_kinds.check_stage(self.width_stage, self.width_policy, MOST["width"])
        if any(getattr(self, name) not in (LATER[name], ()) for name in latent_kinds.SPARSE):
            latent_kinds.check_sparse(self)
        check_limits("halt_threshold", self.halt_threshold, RULES["head"])
        if self.selector is not None:
            one_of("selector", self.selector, SELECTORS)
        for name in ("path_noise", "initial_std"):
            at_least(name, getattr(self, name), 0)
        for name in ("norm_eps", "rope_theta"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if not 0 <= self.path_keep < 1:
            raise ValueError(f"path_keep must be at least 0 and below 1, got {self.path_keep}")
        if self.dim % 4:
            raise ValueError(f"dim must be a multiple of 4, got {self.dim}")
        if self.mixer == "attention" and (self.dim % self.heads or (self.dim // self.heads) % 2):
            raise ValueError(f"dim must split into {self.heads} heads of even width, got {self.dim}")
        if self.relations or self.mixer == "relations":
            self._check_relations()
        if self.output_start + self.output_tokens > self.tokens:
            raise ValueError(
                f"output tokens must end within {self.tokens} tokens, got {self.output_start}+{self.output_tokens}"
            )
        if self.head_readout == "register" and not self.registers:
            raise ValueError("head_readout 'register' must have registers of at least 1, got 0")

    def _check_relations(self) -> None:
        """Raises `ValueError` where relations and mixer do not go together."""
        names, known = self.relations, get_args(Relation)
        if self.mixer != "relations":
            raise ValueError(f"relations must come with the mixer relations, got mixer {self.mixer}")
        if not names or len(set(names)) != len(names) or set(names) - {*known}:
            raise ValueError(f"relations must be different and some of {', '.join(known)}, got {list(names)}")
        if "value" in names and self.latent == "continuous":
            raise ValueError("relation value must come with the latent lattice, got latent continuous")
        latent_kinds.check_graph(self) if self.has_graph else self.check_grid()
        if self.mixer_hidden % len(names):
            raise ValueError(f"mixer_hidden must share out among {len(names)} relations, got {self.mixer_hidden}")

    @property
    def symbols(self) -> int:
        """Symbols of a lattice: the vocabulary's, then those of notes."""
        return max(self.vocabulary, *(value + 1 for value in self.values)) if self.values else self.vocabulary

    @property
    def spec(self) -> Spec:
        """What a supervision step reads of the model."""
        return Spec(**{field.name: getattr(self, field.name) for field in fields(Spec)})

    @property
    def is_stochastic(self) -> bool:
        """Whether two trajectories of one puzzle differ as the model was trained."""
        has_noise = self.guidance in ("full", "noise") or self.path_noise > 0 or self.initial_std > 0
        return has_noise or self.latent == "lattice"

    @property
    def injector(self) -> Injector:
        """The noise that the model was trained with: the default of sampling."""
        if self.latent == "lattice":
            return "commitment"
        if self.path_noise > 0 or self.initial_std > 0:
            return "path"
        return "none" if self.guidance == "none" else "prior"


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplerConfig:
    """One sampling run: width, depth and the policies. Flags, JSON and studies use these names."""

    width: int = 20
    """`N`: trajectories per puzzle, at most 2^20; the most of them where `width_policy` may stop earlier."""
    depth: int | None = None
    """`M`: supervision steps a trajectory may take, at most 2^16; None is the checkpoint's own."""
    selector: Selector | None = None
    """Which candidate is the answer; None is the checkpoint's own."""
    views: ViewChoice | None = None
    """`random`: each trajectory but the first sees its puzzle under a random symmetry of the task, drawn from the seed,
    and its answer is turned back; `off`: all see the puzzle as it is. None is the checkpoint's own."""
    injector: Injector | None = None
    """Where noise comes from: `prior` (GRAM), `gaussian` of fixed scale before each supervision step (PTRM), `path`
    after every core call with a random initial state (EqR), or `none`; None is what the model was trained with."""
    sigma: float | None = None
    """Scale of fixed noise: of `gaussian`, relative to the state's RMS (None: 0.3); of `path`, absolute (None: as
    trained)."""
    noise_site: NoiseSite = "h"
    """State that `gaussian` perturbs: `h`, `l` or `both`."""
    temperature: float = 1.0
    """Factor on the prior's standard deviation; 0 takes the mean."""
    resampler: Resampler = "none"
    """Score by which a puzzle's running trajectories are resampled, or `none`."""
    resample_threshold: float = 0.5
    """Effective share of a puzzle's trajectories under which they are resampled, in (0, 1]."""
    halting: Halting = "head"
    """When a trajectory stops: by its halt head (never before it has met noise), at a fixed depth, when its latent
    state hardly moves (`residual`), or when its answer has not changed (`unchanged`)."""
    halt_threshold: float | None = None
    """`head`: probability above which a trajectory stops, in (0, 1) (None: the checkpoint's). `residual`: relative
    movement of `h` below which it stops (None: .01). `unchanged`: steps without a change after which it stops
    (None: 2)."""
    width_policy: WidthPolicy | None = None
    """How many trajectories a puzzle gets: `width` of them (`fixed`), 1, 4, 16 ... until the leading answer (`staged`)
    or any (`trusted`) is trusted or any has a state so little sparse (`sparse`), until the vote is decided (`decided`),
    until the verifier accepts one (`verified`), or `width_stage` at a time, all of which stop at the first that halts
    (`first-halt`). None is the checkpoint's own, or `fixed` with a resampler, or for first-halt where nothing halts."""
    width_threshold: float | None = None
    """`staged` and `trusted`: predicted accuracy (LPRM; of a model without, the halt head) that is trusted (None: .9,
    .5). `sparse`: most sparsity (Hoyer) of `h` (None: a Gaussian's). `decided`: probability of the lead (None: .95)."""
    width_stage: int | None = None
    """`first-halt`: trajectories of a puzzle that run side by side, at most `width`; the next ones start where none of
    these halts. None is all of `width`, or the checkpoint's own where it has the policy as its own."""
    transitions: int | None = None
    """`T` of sampling, at most 2^8; None is the model's."""
    low_level_updates: int | None = None
    """`K` of sampling, at most 2^10; None is the model's."""
    seed: int = 0
    """Key of all noise, in [0, 2^64)."""
    slots: int | None = None
    """Trajectories advanced side by side, at most 2^20; None lets the model's size decide. No part of a result's
    identity."""
    launch: int | None = None
    """Trajectories of one launch, 1 to 2^16; None lets model, device and kernel decide. Part of a result's identity."""
    is_padded: bool = True
    """Whether every launch has its full number of rows, the last one by padding. Without padding a launch has the rows
    that run, so few cost less; but a trajectory's rounding may follow its company. So such a run is kept in no folder
    and spread over no cluster."""
    kernel: Kernel = "auto"
    """Kernel path: `eager`, `compiled` (for a CPU), on a GPU `fused` (one launch a step), `blocks` (one a block) or
    `gemm` (matrix products, for a large `dim`); `auto` is what is proven on the device and pays for the run. Part of a
    result's identity."""
    measures_sparsity: bool = False
    """Whether the sparsity of states is measured, and a column of the result and its trace
    (`gram/sampler/sparsity.py`); the selector `sparsity` and the width policy `sparse` turn it on."""
    is_warm_started: bool | None = None
    """Of a lattice: whether a round goes on from the core's state of the round before (`ModelConfig`); None is the
    model's."""

    def __post_init__(self) -> None:
        make_plain(self)
        for name in ("width", "depth", "transitions", "slots"):
            if getattr(self, name) is not None:
                at_least(name, getattr(self, name), 1)
        if self.low_level_updates is not None:
            at_least("low_level_updates", self.low_level_updates, 0)
        for name, most in MOST.items():
            if getattr(self, name) is not None:
                at_most(name, getattr(self, name), most)
        choices = {"halting": tuple(RULES), "noise_site": NOISE_SITES, "resampler": RESAMPLERS, "kernel": KERNELS}
        own = {"selector": SELECTORS, "injector": INJECTORS, "views": VIEWS, "width_policy": WIDTH_POLICIES}
        choices |= {name: known for name, known in own.items() if getattr(self, name) is not None}
        for name, known in choices.items():
            one_of(name, getattr(self, name), known)
        within("temperature", self.temperature, 0, 100)
        if self.sigma is not None:
            within("sigma", self.sigma, 0, 100)
            if self.injector not in ("gaussian", "path"):
                raise ValueError(f"sigma must come with injector gaussian or path, got {self.injector}")
        if not 0 < self.resample_threshold <= 1:
            raise ValueError(f"resample_threshold must be above 0 and at most 1, got {self.resample_threshold}")
        check_limits("halt_threshold", self.halt_threshold, RULES[self.halting])
        if self.width_threshold is not None and self.width_policy not in (them := POLICIES_OF_THRESHOLDS):
            raise ValueError(f"width_threshold must come with {', '.join(them)}, got {self.width_policy or 'none'}")
        if self.width_threshold is not None and not 0 < self.width_threshold < 1:
            raise ValueError(f"width_threshold must be between 0 and 1, got {self.width_threshold}")
        if self.width_stage is not None:
            latent_kinds.check_stage(self.width_stage, self.width_policy or "first-halt", self.width)
        if self.width_policy == "first-halt" and self.halting == "fixed":
            raise ValueError("halting must be a rule that halts for width_policy first-halt, got fixed")
        if self.resampler != "none" and self.width_policy not in (None, "fixed"):
            raise ValueError(f"width_policy must be fixed with a resampler, got {self.width_policy}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be within 0 and 2^64 - 1, got {self.seed}")
        if self.launch is not None:
            at_least("launch", self.launch, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedConfig(SamplerConfig):
    """Settings of a run with nothing left open: `gram.sampler.run.resolve` asks the model where the user did not say.

    None is left only where it has no meaning (`sigma` of an injector without, thresholds of policies without) and as
    `width_stage`, all of a width.
    """

    depth: int
    selector: Selector
    views: ViewChoice
    width_policy: WidthPolicy = "fixed"
    injector: Injector
    transitions: int
    low_level_updates: int
    slots: int
    launch: int
    is_warm_started: bool = False

    def __post_init__(self) -> None:
        SamplerConfig.__post_init__(self)
        if self.width_policy == "first-halt" and self.slots < self.stage:
            side_by_side = f"the {self.stage} trajectories that first-halt runs side by side"
            raise ValueError(f"slots must be at least {side_by_side}, got {self.slots}")
        if self.halt_threshold is None and RULES[self.halting].threshold is not None:
            raise ValueError(f"halt_threshold must be given in resolved settings with halting {self.halting}, got none")

    @property
    def stage(self) -> int:
        """Trajectories of a puzzle that `first-halt` runs side by side."""
        return self.width if self.width_stage is None else self.width_stage


def config_to_json(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON values, without settings that came later and change nothing."""
    values = asdict(config)
    names = MODEL_FIELDS if isinstance(config, ModelConfig) else values
    found = {name: list(values[name]) if isinstance(values[name], tuple) else values[name] for name in names}
    later = LATER if isinstance(config, ModelConfig) else LATER_SAMPLING
    return {name: value for name, value in found.items() if name not in later or value != later[name]}


def identity_json(config: ResolvedConfig, *, without: Collection[str]) -> dict[str, Any]:
    """Settings that name a run, as JSON: all but those `without`, and but views where there are none (older runs do not
    know them)."""
    values = config_to_json(config)
    return {name: it for name, it in values.items() if name not in without and (name, it) != ("views", "off")}


def config_from_json(kind: type[T], values: dict[str, Any], *, where: str) -> T:
    """A configuration from JSON or TOML values; an unknown key or a wrong type is one line naming `where`.

    Raises `ValueError`.
    """
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"{where}: {key!r} is not a setting; known: {', '.join(sorted(known))}")
        arguments[key] = value
    try:
        return kind(**arguments)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def read_json(path: Path, refusal: type[ValueError] = ValueError) -> dict[str, Any]:
    """The JSON object of a file, in UTF-8, -16 or -32. Raises `refusal` in one line, and `OSError`."""
    return _read(path, "JSON", lambda content: parse_json(content), refusal)


def parse_json(text: str | bytes) -> Any:
    """A JSON value. A repeated key is refused: either value would be a guess.

    Raises `ValueError`, whose message names no file, and `RecursionError` for one nested too deep.
    """
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"{shown(key)} stands twice")
        values[key] = value
    return values


def read_toml(path: Path, refusal: type[ValueError] = ValueError) -> dict[str, Any]:
    """The values of a TOML file, without a byte order mark. Raises `refusal` in one line, `OSError`."""
    return _read(path, "TOML", lambda content: tomllib.loads(content.decode("utf-8-sig")), refusal)


def _read(path: Path, form: str, parse: Callable[[bytes], Any], refusal: type[ValueError]) -> dict[str, Any]:
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise refusal(f"{path}: must be {form} of at most {MOST_BYTES:,} bytes, got more")
    try:
        values = parse(content)
    except RecursionError:
        raise refusal(f"{path}: not {form} (nested too deep)") from None
    except ValueError as error:
        raise refusal(f"{path}: not {form} ({_reason(error)})") from None
    if not isinstance(values, dict):
        raise refusal(f"{path}: must hold a {form} object, got {shown(values)}")
    return values


def _reason(error: ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not {error.encoding.upper()}"
    return " ".join(str(error).split())[:100]
