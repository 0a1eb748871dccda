"""The model as transformers knows it: `AutoModel.from_pretrained(directory)`, `save_pretrained`, `push_to_hub`.

Import this module once to register it. The directory is the same as `gram/checkpoint.py` reads and writes.

    import gram.hub
    from transformers import AutoModel
    model = AutoModel.from_pretrained("path/to/checkpoint")
    logits = model(input_ids).logits
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from gram.config import ModelConfig, config_from_json, config_to_json
from gram.model import Model
from gram.tasks import identity


class GramConfig(PretrainedConfig):
    """`gram.config.ModelConfig` in transformers' clothes: the same field names in `config.json`."""

    model_type = "gram"

    def __init__(self, **values: Any) -> None:
        known = {field.name for field in fields(ModelConfig)}
        mine = {name: values.pop(name) for name in list(values) if name in known}
        # Every field is written out, so that a later release's defaults cannot change what old weights mean.
        for name, value in config_to_json(config_from_json(ModelConfig, mine, where="config.json")).items():
            setattr(self, name, value)
        super().__init__(**values)

    def to_model_config(self) -> ModelConfig:
        """The library's own configuration."""
        values = {field.name: getattr(self, field.name) for field in fields(ModelConfig)}
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
        """The parameters start themselves (`gram/layers.py`)."""

    def forward(
        self, input_ids: Tensor, *, depth: int | None = None, seed: int = 0, puzzle_hash: Tensor | None = None, **_: Any
    ) -> GramOutput:
        """One trajectory (id 0) of each puzzle `[P, L]` for `depth` supervision steps.

        `puzzle_hash [P]` keys the noise; by default it is the sampler's own. The launch has `P` rows, not the sampler's
        fixed number, so that values agree with it to rounding, not bit for bit.
        """
        if puzzle_hash is None:
            task = self.model.config.task
            hashes = [identity.puzzle_hash(task, row.astype(np.uint8)) for row in input_ids.cpu().numpy()]
            puzzle_hash = torch.tensor(hashes, device=input_ids.device)
        rows = torch.zeros(input_ids.shape[0], dtype=torch.int64, device=input_ids.device)
        e_x = self.model.embed(input_ids)
        h, l = self.model.initial_state(len(rows))
        halt = lprm = None
        for step in range(depth or self.model.config.depth):
            h, l, halt, lprm = self.model.step(
                h,
                l,
                e_x,
                seed=seed,
                puzzle_hash_B=puzzle_hash,
                trajectory_B=rows,
                step_B=torch.full_like(rows, step),
            )
        return GramOutput(logits=self.model.decode(h), halt=halt, lprm=lprm)


AutoConfig.register("gram", GramConfig)
AutoModel.register(GramConfig, GramForReasoning)
