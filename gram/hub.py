"""The model as transformers knows it: `AutoModel.from_pretrained(directory)`, `save_pretrained`, `push_to_hub`.

Import this module once to register it. The directory is the same as `gram/checkpoint.py` reads and writes; what that
refuses is refused here too.

    import gram.hub
    from transformers import AutoModel
    model = AutoModel.from_pretrained("path/to/checkpoint")
    logits = model(input_ids).logits
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from gram import checkpoint
from gram.checkpoint import CheckpointError
from gram.config import ModelConfig, ResolvedConfig, SamplerConfig, config_from_json, config_to_json
from gram.kernels.philox import NoiseKey
from gram.model import Model
from gram.sampler.engine import injection_of, spec_of
from gram.sampler.run import resolve
from gram.tasks.protocol import puzzle_hash as hash_of


class GramConfig(PretrainedConfig):
    """`gram.config.ModelConfig` as transformers stores it: the same field names in `config.json`."""

    model_type = "gram"

    def __init__(self, **values: Any) -> None:
        known = {field.name for field in fields(ModelConfig)}
        mine = {name: values.pop(name) for name in list(values) if name in known}
        # Every field is written out, so that a later release's defaults cannot change what old weights mean.
        for name, value in config_to_json(config_from_json(ModelConfig, mine, where="config.json")).items():
            setattr(self, name, value)
        super().__init__(**values)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers', of what a `config.json` holds. Raises `CheckpointError` where it leaves something open."""
        try:
            checkpoint.check_stored(config_dict, beside=checkpoint.TRANSFORMERS_KEYS, where=checkpoint.CONFIG_FILE)
        except ValueError as error:
            raise CheckpointError(str(error)) from None
        return super().from_dict(config_dict, **kwargs)

    def to_model_config(self) -> ModelConfig:
        """The library's own configuration."""
        values = {field.name: getattr(self, field.name) for field in fields(ModelConfig) if hasattr(self, field.name)}
        return config_from_json(ModelConfig, values, where="config.json")


@dataclass
class GramOutput(ModelOutput):
    """What one trajectory per puzzle gives."""

    logits: Tensor | None = None
    """`[P, A, V]`."""
    halt: Tensor | None = None
    """Halt logit `[P]`."""
    lprm: Tensor | None = None
    """Predicted final accuracy `[P]`."""


class GramForReasoning(PreTrainedModel):
    """The whole model. `forward` runs one trajectory per puzzle; sampling many is `gram.api.Sampler`'s work."""

    config_class = GramConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"

    def __init__(self, config: GramConfig) -> None:
        super().__init__(config)
        self.model = Model(config.to_model_config())
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: Any) -> None:
        """The parameters start themselves (`gram/model.py`)."""

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As transformers', but the whole model or an error. Raises `CheckpointError` for weights that are missing,
        surplus, of another shape or type, or not finite: nothing would initialise them."""
        source = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        if source is not None and not kwargs.get("subfolder") and (Path(source) / checkpoint.CONFIG_FILE).is_file():
            checkpoint.load(Path(source))
        both: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, info = both
        for what in ("missing_keys", "mismatched_keys", "unexpected_keys"):
            if found := info.get(what):
                name = min(str(one[0] if isinstance(one, tuple) else one) for one in found)
                raise CheckpointError(f"{source}: tensor {name} must be that of this model, got {what.split('_')[0]}")
        for name, tensor in model.model.weights().items():
            if not bool(tensor.isfinite().all()):
                raise CheckpointError(f"{source}: model.{name} must be finite in {tensor.dtype}, got NaN or infinity")
        return (model, info) if output_loading_info else model

    def forward(
        self,
        input_ids: Tensor,
        *,
        depth: int | None = None,
        seed: int | None = None,
        puzzle_hash: Tensor | None = None,
        sampling: SamplerConfig | None = None,
        **_: Any,
    ) -> GramOutput:
        """One trajectory (id 0) of each puzzle `[P, L]` for `depth` supervision steps, with the noise of its training.

        `sampling` names other noise, `T`, `K`, launch or kernel; `depth` and `seed` come before its own. `puzzle_hash
        [P]` keys the noise; by default it is the sampler's own. Rows are advanced in the sampler's launches, so that
        values agree with trajectory 0 of `halting="fixed"` bit for bit. A model without condition sees the empty one,
        whatever the puzzles. Raises `ValueError` for what are no tokens.
        """
        if self.model.config.latent == "lattice":
            raise ValueError("forward must be of a model with continuous states, got a lattice: sample it (gram.load)")
        if self.model.config.identity_dim:
            raise ValueError("forward must be of a model without task embeddings: sample it (gram eval arc --data DIR)")
        given: dict[str, Any] = {name: value for name, value in (("depth", depth), ("seed", seed)) if value is not None}
        config = resolve(replace(sampling or SamplerConfig(), **given), self.model)
        self._check_tokens(input_ids)
        if puzzle_hash is None:
            task = self.model.config.task
            hashes = [hash_of(task, row.astype(np.uint8)) for row in input_ids.cpu().numpy()]
            puzzle_hash = torch.tensor(hashes, dtype=torch.int64, device=input_ids.device)
        parts = [
            self._launched(input_ids[first : first + config.launch], puzzle_hash[first : first + config.launch], config)
            for first in range(0, len(input_ids), config.launch)
        ]
        logits, halt, lprm = (torch.cat(part) for part in zip(*parts, strict=True))
        return GramOutput(logits=logits, halt=halt, lprm=lprm)

    def _launched(self, input_ids: Tensor, hashes: Tensor, config: ResolvedConfig) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, halt logits and LPRM of at most a launch of puzzles; the rows after them are copies of the first."""
        count = len(input_ids)
        rows = torch.arange(config.launch, device=input_ids.device)
        rows = torch.where(rows < count, rows, 0)
        is_empty = not self.model.config.is_conditional
        e_x = self.model.embed_empty(len(rows)) if is_empty else self.model.embed(input_ids[rows])
        hashes, trajectory = hashes[rows], torch.zeros_like(rows)
        if config.injector == "path" and self.model.config.initial_std > 0:
            h, l = self.model.random_state(NoiseKey(config.seed, hashes, trajectory, torch.zeros_like(rows)))
        else:
            h, l = self.model.initial_state(len(rows))
        halt = lprm = h.new_zeros(0)
        for step in range(config.depth):
            h, l, halt, lprm = self.model.step(
                h,
                l,
                e_x,
                NoiseKey(config.seed, hashes, trajectory, torch.full_like(rows, step)),
                injection=injection_of(config),
                spec=spec_of(config, self.model),
                kernel=config.kernel,
            )
        return self.model.decode(h)[:count], halt[:count], lprm[:count]

    def _check_tokens(self, input_ids: Tensor) -> None:
        """Raises `ValueError` where `input_ids` are no puzzles of the model's length and vocabulary."""
        config = self.model.config
        is_whole = not (input_ids.is_floating_point() or input_ids.is_complex()) and input_ids.dtype != torch.bool
        if not is_whole or input_ids.dim() != 2 or input_ids.shape[1] != config.tokens or not len(input_ids):
            raise ValueError(
                f"input_ids must be whole numbers [P, {config.tokens}], got {input_ids.dtype} {list(input_ids.shape)}"
            )
        if not 0 <= int(input_ids.min()) <= int(input_ids.max()) < config.vocabulary:
            raise ValueError(
                f"input_ids must be tokens from 0 to {config.vocabulary - 1}, got {int(input_ids.min())} to "
                f"{int(input_ids.max())}"
            )


AutoConfig.register("gram", GramConfig)
AutoModel.register(GramConfig, GramForReasoning)
