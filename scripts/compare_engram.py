"""Compares the lookup memory with Engram's official demo: `python scripts/compare_engram.py --peer-repo DIR`.

`DIR` has `engram_demo_v1.py` of `deepseek-ai/Engram`. Its tokenizer, which needs a download, is replaced by one that
leaves tokens as they are; biases of its projections are set to 0, and there is one stream of hidden states. Both get
the same tokens, tables and weights, those of the norms included, in fp32. Compared are the primes, the rows of every
n-gram (bit by bit), and what is added to the hidden states; it fails above `LIMIT`. `--write FILE` keeps one case as a
fixture, so that tests need no such repository.

Shapes: `P` texts of `L` tokens, `D` channels, `E` channels of all rows of a token, `H` tables of each `n`.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gram.kernels import lookup
from gram.kernels.spec import NGRAMS, Spec

LIMIT = 1e-6
CASES = ((3, 16, 11, 3, 16), (2, 81, 11, 2, 32), (2, 225, 6, 4, 24), (1, 64, 5000, 8, 64))
"""Texts, tokens of each, vocabulary, heads and channels."""
CHANNELS = 8
LEAST_ROWS = 61


class AsTheyAre:
    """A tokenizer that changes nothing."""

    def __init__(self, vocabulary: int) -> None:
        self.lookup_table = np.arange(vocabulary)

    def __len__(self) -> int:
        return len(self.lookup_table)

    def __call__(self, tokens: Any) -> Any:
        return np.asarray(tokens)


def load_demo(folder: Path) -> ModuleType:
    """The demo as a module. Raises `ValueError` in one line where it is not there."""
    path = folder / "engram_demo_v1.py"
    if not path.is_file():
        raise ValueError(f"peer-repo must be a folder with engram_demo_v1.py, got {folder}")
    spec = importlib.util.spec_from_file_location("engram_demo_v1", path)
    assert spec is not None
    assert spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = demo  # its dataclasses look themselves up
    spec.loader.exec_module(demo)
    return demo


def theirs(demo: Any, texts: int, length: int, vocabulary: int, heads: int, dim: int) -> dict[str, Tensor]:
    """What the demo looks up and adds for random tokens and states, and its weights."""
    torch.manual_seed(length + dim)
    config = demo.engram_cfg
    config.engram_vocab_size, config.pad_id, config.layer_ids = [LEAST_ROWS, LEAST_ROWS], 0, [0]
    config.n_head_per_ngram, config.n_embed_per_ngram = heads, heads * CHANNELS
    demo.backbone_config.hidden_size, demo.backbone_config.hc_mult = dim, 1
    demo.CompressedTokenizer = lambda tokenizer_name_or_path: AsTheyAre(vocabulary)
    demo._HASH_MAPPING_CACHE.clear()
    engram = demo.Engram(0)
    tokens, states = torch.randint(0, vocabulary, (texts, length)), torch.randn(texts, length, dim)
    with torch.no_grad():
        for norm in (engram.norm1[0], engram.norm2[0], engram.short_conv.norms[0]):
            norm.weight.normal_(1, 0.3)
        for projection in (engram.value_proj, engram.key_projs[0]):
            projection.bias.zero_()
        added = engram(states[:, :, None], tokens.numpy())[:, :, 0]
    mapping = engram.hash_mapping
    made = {
        "tokens": tokens,
        "states": states,
        "multipliers": torch.from_numpy(mapping.layer_multipliers[0]),
        "primes": torch.tensor(mapping.vocab_size_across_layers[0]),
        "rows": torch.from_numpy(mapping.hash(tokens.numpy())[0]),
        "table": engram.multi_head_embedding.embedding.weight,
        "key": engram.key_projs[0].weight,
        "value": engram.value_proj.weight,
        "scale": engram.norm1[0].weight * engram.norm2[0].weight,
        "taps": engram.short_conv.conv.weight[:, 0] * engram.short_conv.norms[0].weight[:, None],
        "added": added,
    }
    return {name: value.detach() for name, value in made.items()}


def ours(case: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same primes, rows and addition as this package makes them, of the same tokens, multipliers and weights."""
    length, dim = case["states"].shape[1:]
    spec = Spec(
        tokens=length,
        output_tokens=length,
        dim=dim,
        lookup=("text",),
        lookup_heads=case["primes"].shape[1],
        lookup_rows=LEAST_ROWS,
        lookup_channels=CHANNELS,
    )
    primes = torch.tensor(lookup.table_sizes(spec)).view(1, len(NGRAMS), -1)
    before = (primes.flatten().cumsum(0) - primes.flatten()).view_as(primes)
    at = lookup.Addresses(lookup.places_before("text", length)[None], case["multipliers"][None], primes, before)
    weights = {f"lookup.{name}": case[name] for name in ("key", "value", "scale", "taps")}
    weights["lookup.table"] = case["table"] * spec.lookup_width**-0.5  # ours are scaled where they are read
    rows = lookup.rows_of(case["tokens"], at)
    found = lookup.describe(weights, spec, rows)
    added = lookup.read(case["states"], found, case["taps"], spec) - case["states"]
    return {"primes": primes[0], "rows": rows - before.flatten(), "added": added}


def differences(case: dict[str, Tensor]) -> tuple[bool, float]:
    """Whether primes and rows are the same, and the largest difference of what is added."""
    made = ours(case)
    is_same = all(torch.equal(made[name], case[name]) for name in ("primes", "rows"))
    return is_same, float((made["added"] - case["added"]).abs().max())


def main() -> None:
    """Prints a line a case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-repo", type=Path, required=True, metavar="DIR", help="folder of the official demo")
    parser.add_argument("--write", type=Path, metavar="FILE", help="keep the first case as a fixture")
    given = parser.parse_args()
    try:
        demo = load_demo(given.peer_repo)
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    faults = 0
    for shape in CASES:
        case = theirs(demo, *shape)
        is_same, worst = differences(case)
        faults += not is_same or worst > LIMIT
        texts, length, vocabulary, heads, dim = shape
        print(
            f"{texts} x {length} tokens of {vocabulary}, {heads} heads, D {dim}: primes and rows "
            f"{'equal' if is_same else 'differ'}, largest difference {worst:.1e}"
        )
    if given.write:
        first = theirs(demo, *CASES[0])
        np.savez_compressed(given.write, **{name: value.numpy() for name, value in first.items()})
    if faults:
        sys.exit(f"rows must be equal and differences at most {LIMIT:g}, got {faults} of {len(CASES)} cases beyond")


if __name__ == "__main__":
    main()
