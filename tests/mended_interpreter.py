"""Triton's interpreter with its two faults of bfloat16 mended, its loads and stores counted, in a third of the time.

Triton 3.9's interpreter keeps bfloat16 as 16-bit integers: `tl.dot` multiplies those integers, and a cast from fp32
cuts bits off where devices round to the nearest, ties to even.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def hasten() -> None:
    """Leaves out, in this process, two things whose outcome nobody reads.

    Every call of a function inside a kernel replaces the whole language again, which the kernel's start has replaced
    and its end restores. And every integer sum and product is computed twice to look for overflow, which is then
    reported only by an option of debugging that is off.
    """
    replace_language, is_replaced = interpreter._patch_lang, False
    both = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})
    """Where kernels find the language, and where its own functions do."""

    def replace_once(function: Any) -> Any:
        nonlocal is_replaced
        if is_replaced:
            return SimpleNamespace(restore=lambda: None)
        scope, is_replaced = replace_language(both), True
        if scope is None:  # before triton 3.6 a start replaces the language for good
            return None
        restore = scope.restore

        def restored() -> None:
            nonlocal is_replaced
            is_replaced = False
            restore()

        scope.restore = restored
        return scope

    interpreter._patch_lang = replace_once
    options = interpreter.interpreter_builder.options
    assert not options.debug
    interpreter.interpreter_builder.options = replace(options, sanitize_overflow=False)


def widened(bits: np.ndarray) -> np.ndarray:
    """bfloat16, as integers, in fp32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(values: np.ndarray) -> np.ndarray:
    """fp32 to the nearest bfloat16, as integers; ties to even, NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    nearest = (bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, nearest).astype(np.uint16)


@contextmanager
def bfloat16() -> Iterator[None]:
    """Casts round and products multiply values, until the block ends."""
    cast, dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        pair = (src.dtype.scalar, dst_type.scalar)
        if pair == (tl.float32, tl.bfloat16):
            return TensorHandle(rounded(src.data), tl.bfloat16)
        if pair == (tl.bfloat16, tl.float32):
            return TensorHandle(widened(src.data), tl.float32)
        return cast(self, src, dst_type)

    def create_dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        a, b = (TensorHandle(widened(x.data), tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return dot(self, a, b, d, *options)

    with mock.patch.multiple(InterpreterBuilder, cast_impl=cast_impl, create_dot=create_dot):
        yield


@contextmanager
def ordered_products() -> Iterator[None]:
    """Products in fp32 sum their terms one after the other, whatever the row: numpy's library does not."""

    def create_dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        total = d.data.copy()
        for index in range(a.data.shape[1]):
            total += a.data[:, index, None] * b.data[index]
        return TensorHandle(total, d.dtype.scalar)

    with mock.patch.object(InterpreterBuilder, "create_dot", create_dot):
        yield


class Traffic:
    """Bytes that kernels moved, by what was pointed at: `{"bf16": ...}`; tiles read by descriptor apart."""

    def __init__(self) -> None:
        self.loaded: dict[str, int] = {}
        self.stored: dict[str, int] = {}
        self.tiles = 0


@contextmanager
def traffic() -> Iterator[Traffic]:
    """Counts the elements under the mask of every load and store until the block ends."""
    counted, is_tile = Traffic(), False
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
    tile = InterpreterBuilder.create_descriptor_load

    def size(ptrs: Any, mask: Any) -> tuple[str, int]:
        kind = ptrs.get_element_ty()
        return str(kind), int(np.broadcast_to(mask.data, ptrs.data.shape).sum()) * kind.primitive_bitwidth // 8

    def create_masked_load(self: Any, ptrs: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        kind, count = size(ptrs, mask)
        if is_tile:
            counted.tiles += count
        else:
            counted.loaded[kind] = counted.loaded.get(kind, 0) + count
        return load(self, ptrs, mask, *rest, **named)

    def create_masked_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        kind, count = size(ptrs, mask)
        counted.stored[kind] = counted.stored.get(kind, 0) + count
        return store(self, ptrs, value, mask, *rest)

    def create_descriptor_load(self: Any, *arguments: Any) -> Any:
        nonlocal is_tile
        is_tile = True
        try:
            return tile(self, *arguments)
        finally:
            is_tile = False

    with mock.patch.multiple(
        InterpreterBuilder,
        create_masked_load=create_masked_load,
        create_masked_store=create_masked_store,
        create_descriptor_load=create_descriptor_load,
    ):
        yield counted
