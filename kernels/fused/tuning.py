"""How the fused kernel is cut for a device: warps, stages, tiles, and how many trajectories one program takes.

A measured choice stands in a file, one entry for each device, version of triton, model's shape and type: `gram bench
tuning --out FILE` times and writes it on a GPU, `GRAM_TUNING=FILE` takes it. Without an entry the choice is by count
and by compiled resources (`default`). Two cuts round differently, so the file's digest is part of a result's identity
on a GPU.

Triton is not imported here: it is slow to load.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, fields
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import torch

from gram.kernels.fused.pack import ALONE, TOKEN_TILE, Packed, Tuning, group_obstacle, pack, token_rows
from gram.kernels.reference import Weights
from gram.kernels.spec import Spec

FILE_VARIABLE = "GRAM_TUNING"
WARPS, STAGES, TILES, GROUPS = (4, 8), (1, 2, 3), (32, 64), (1, 2, 3)
"""What a sweep tries."""
TENSOR_COLUMNS = 512
"""Of a multiprocessor's tensor memory on sm_100, where products keep their sums (PTX ISA, Tensor Memory)."""
FEW_COLUMNS_SINCE = (3, 8)
"""Triton from which on every product's sum need not have columns of its own; found by compiling."""


def target_of(device: torch.device) -> str:
    """The architecture of a device, as `resources.TARGETS` names them; `interpreter` for a CPU."""
    if device.type != "cuda":
        return "interpreter"
    if torch.version.hip:
        return str(torch.cuda.get_device_properties(device).gcnArchName).split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def precision(target: str, dtype: torch.dtype) -> str:
    """How exactly the kernels compute. `tf32x3`: NVIDIA's matrix units take fp32 factors in three parts of TF32, nearly
    exact; they do not take them as they are. `tanh`: with bfloat16 on sm_90 and sm_100, SiLU by one approximate
    hyperbolic tangent of the special-function units, whose error of 2^-11 is below the type's. Else `ieee`."""
    if dtype is torch.bfloat16 and target in ("sm_90", "sm_100"):
        return "tanh"
    return "tf32x3" if target.startswith("sm_") and dtype is torch.float32 else "ieee"


def _triton() -> tuple[int, ...]:
    """Version of triton, major and minor."""
    return tuple(map(int, version("triton").split(".")[:2]))


def spends_columns(target: str) -> bool:
    """Whether the installed Triton gives sums on this target more columns of tensor memory than some cuts have."""
    return target == "sm_100" and _triton() < FEW_COLUMNS_SINCE


def column_excess(metadata: object) -> str | None:
    """Why a compiled kernel does not fit tensor memory, or None where it does; `metadata` is Triton's. The compiler
    goes on where columns do not suffice: what it makes does nothing but trap."""
    needed = getattr(metadata, "tmem_size", None) or 0  # other targets have no such number
    if needed <= TENSOR_COLUMNS:
        return None
    return f"needs {needed} columns of tensor memory, of {TENSOR_COLUMNS}, with triton {version('triton')}"


def column_obstacle(device: torch.device, dtype: torch.dtype, spec: Spec) -> str | None:
    """Why `fused` and `blocks` do not fit a GPU's tensor memory with the installed Triton, or None; by compiling."""
    rows = token_rows(spec)
    width = spec.dim // spec.heads if spec.mixer == "attention" else 0
    if dtype is torch.float32:
        is_wide = rows * spec.dim > 64 * 64 or (width > 0 and rows > 64) or (width >= 64 and rows == 64)
    else:
        is_wide = rows > 64 and width >= 64
    if not is_wide or not torch.cuda.is_available() or not spends_columns(target_of(device)):
        return None
    return (
        f"{str(dtype).removeprefix('torch.')} with {spec.length} tokens of {spec.dim} channels needs more than the "
        f"{TENSOR_COLUMNS} columns of tensor memory with triton {version('triton')}: take triton "
        f"{'.'.join(map(str, FEW_COLUMNS_SINCE))}" + (" or bfloat16" if dtype is torch.float32 else "")
    )


def guidance_hidden(weights: Weights, spec: Spec) -> int:
    """Hidden units of the prior; 0 without one."""
    return 0 if spec.guidance == "none" else weights["prior.down"].shape[1]


def default(target: str, dtype: torch.dtype, spec: Spec, weights: Weights) -> Tuning:
    """By count and by compiled resources (`gram bench kernels`), for want of a measurement.

    As many trajectories a program as fit 128 rows, on sm_90 and sm_100 in bfloat16: their products then do nearly
    nothing twice. Elsewhere registers or shared memory do not hold them, and fp32 takes twice the room. Stages and
    tiles are those that compile without a stack, with the fewest barriers, by Triton 3.9.
    """
    if target not in ("sm_90", "sm_100") or dtype is not torch.bfloat16:
        return ALONE
    hidden = guidance_hidden(weights, spec)
    group = next((each for each in (3, 2) if group_obstacle(spec, each, hidden) is None), 1)
    if spec.length > 64 or spec.dim < 128:
        group = 1  # short of rows or of channels, nothing was compiled
    is_token = spec.mixer == "token"
    if spends_columns(target) and not (is_token and group == 3 and _triton() >= (3, 7)):
        # Two or, in attention, three take 544 to 720 columns of tensor memory; three in token mixers spill before 3.7.
        group = 1
    if group == 1:
        return Tuning(stages=3 if target == "sm_90" else 1)
    # A third tile ahead takes barriers away from loops over tokens on sm_100, and none from those over heads.
    stages = 3 if target == "sm_100" and is_token else 2
    # Three sums over tokens, one after the other, leave sm_90 no room for wider tiles.
    token_tile = 16 if target == "sm_90" and is_token and group == 3 else TOKEN_TILE
    # Takes a barrier away from loops over heads on sm_100, and adds some on sm_90. It costs a product a block, which is
    # too much where heads are few.
    output_lag = int(target == "sm_100" and not is_token and group == 3 and spec.heads >= 8)
    return Tuning(stages=stages, group=group, token_tile=token_tile, output_lag=output_lag)


def candidates(spec: Spec, weights: Weights) -> Iterator[Tuning]:
    """Every cut that a model's shape allows, for a sweep."""
    hidden = guidance_hidden(weights, spec)
    for warps, stages, tile, group in product(WARPS, STAGES, TILES, GROUPS):
        if group_obstacle(spec, group, hidden) is None:
            for lag in (0, 1) if group == 3 and spec.mixer == "attention" else (0,):
                yield Tuning(warps=warps, stages=stages, tile=tile, token_tile=tile, group=group, output_lag=lag)


def shape_of(weights: Weights, spec: Spec) -> str:
    """A digest of what of a model decides how fast a cut is."""
    shapes = {name: list(tensor.shape) for name, tensor in weights.items()}
    return hashlib.sha256(json.dumps([asdict(spec), shapes], sort_keys=True).encode()).hexdigest()[:16]


def device_of(device: torch.device) -> dict[str, str]:
    """What beside the model decides how fast a cut is."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, "triton": version("triton")}


def file() -> Path | None:
    """The file that `GRAM_TUNING` names, or None."""
    named = os.environ.get(FILE_VARIABLE)
    return Path(named) if named else None


def entries(path: Path) -> list[dict[str, Any]]:
    """What a file of choices holds. Raises `ValueError` where it is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["choices"]
        for each in found:
            each["tuning"] = Tuning(**each["tuning"])
            if not all(type(getattr(each["tuning"], field.name)) is int for field in fields(Tuning)):
                raise TypeError("a choice of no whole numbers")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{FILE_VARIABLE} must name a file that gram bench tuning wrote, got {path}: {error}"
        ) from None
    return list(found)


def chosen(device: torch.device, dtype: torch.dtype, spec: Spec, weights: Weights) -> Tuning:
    """The measured cut for a device and a model where the file has one, else `default`.

    Raises `ValueError` where `GRAM_TUNING` names no such file.
    """
    path = file()
    if path is not None:
        wanted = device_of(device) | {"dtype": str(dtype), "shape": shape_of(weights, spec)}
        for entry in entries(path):
            if all(entry.get(name) == value for name, value in wanted.items()):
                tuning: Tuning = entry["tuning"]
                return tuning
    return default(target_of(device), dtype, spec, weights)


def packed(weights: Weights, spec: Spec, dtype: torch.dtype) -> Packed:
    """`pack.pack` for the device that the weights are on, cut as `chosen` says."""
    device = next(iter(weights.values())).device
    return pack(weights, spec, dtype, chosen(device, dtype, spec, weights))


def provenance(device_type: str) -> str:
    """The file of choices as a part of a result's identity: a clause with its digest on a GPU, else nothing.

    Raises `ValueError` where `GRAM_TUNING` names no such file.
    """
    path = file()
    if path is None or device_type == "cpu":
        return ""
    entries(path)
    return f", tuning {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
