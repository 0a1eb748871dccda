"""One record of a result store: its bytes, and how a log of them is read after a crash. Not the store (`store.py`).

A log is an append-only file without a header of its own: records one behind the other, all numbers little-endian.

    offset  bytes  field
         0      4  magic, `GRSR`
         4      2  version, 1
         6      2  zero
         8      4  index of the shard in its plan
        12      8  elapsed microseconds
        20      8  bytes of the payload
        28     16  BLAKE2b-128 of the payload
        44      4  CRC-32 of the 44 bytes before
        48         payload: safetensors, names sorted; it depends on the arrays alone
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save as save_arrays

VERSION = 1
_MAGIC = b"GRSR"
DIGEST_BYTES = 16
_HEADER = struct.Struct(f"<4sHHIQQ{DIGEST_BYTES}s")
_CRC = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _CRC.size
_PIECE = 1 << 20


class StoreError(ValueError):
    """A store that cannot be opened, written or read; the message is one line."""


@dataclass(frozen=True, slots=True)
class Record:
    """Where a payload lies and what its header says."""

    index: int
    elapsed_us: int
    offset: int
    size: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Serialized:
    """A shard's result as it is stored: made where the arrays are, so that whoever passes it on need not look inside.

    A payload that was damaged on the way no longer has its digest, which shows when the store is read.
    """

    payload: bytes | memoryview
    digest: bytes

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> Serialized:
        """Raises `StoreError` for what cannot be kept."""
        payload = payload_of(arrays)
        return cls(payload, digest_of(payload))

    @classmethod
    def from_bytes(cls, content: bytes) -> Serialized:
        """The inverse of `to_bytes`, without a copy. Raises `StoreError` for too few bytes."""
        if len(content) <= DIGEST_BYTES:
            raise StoreError(f"serialized result must be longer than its digest of {DIGEST_BYTES}, got {len(content)}")
        return cls(memoryview(content)[DIGEST_BYTES:], content[:DIGEST_BYTES])

    def to_bytes(self) -> bytes:
        """Digest, then payload."""
        return b"".join((self.digest, self.payload))


def digest_of(payload: bytes) -> bytes:
    """BLAKE2b-128 of a payload."""
    return hashlib.blake2b(payload, digest_size=DIGEST_BYTES).digest()


def header_of(index: int, elapsed_us: int, size: int, digest: bytes) -> bytes:
    """The header of a record."""
    head = _HEADER.pack(_MAGIC, VERSION, 0, index, elapsed_us, size, digest)
    return head + _CRC.pack(zlib.crc32(head))


def _parse_header(header: bytes, start: int) -> Record | None:
    """The record whose header this is, or None where it is none."""
    if len(header) < HEADER_BYTES or zlib.crc32(header[: _HEADER.size]) != _CRC.unpack_from(header, _HEADER.size)[0]:
        return None
    magic, version, zero, index, elapsed_us, size, digest = _HEADER.unpack_from(header)
    if (magic, version, zero) != (_MAGIC, VERSION, 0):
        return None
    return Record(index, elapsed_us, start + HEADER_BYTES, size, digest)


def payload_of(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Bytes that depend on the names, types, shapes and values alone. Raises `StoreError` for what cannot be kept."""
    plain: dict[str, NDArray[Any]] = {}
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        if array.dtype.kind not in "biuf" or name == "__metadata__":
            raise StoreError(
                f"a stored array must be numbers or bools under a name of its own, got {name} {array.dtype}"
            )
        plain[name] = array.astype(array.dtype.newbyteorder("="), copy=False)
    try:
        return save_arrays(plain)
    except (SafetensorError, KeyError) as error:
        raise StoreError(f"arrays {', '.join(plain)} cannot be stored: {error}") from None


def scan(handle: int, shards: int) -> Iterator[tuple[Record, bool]]:
    """The records of a log from its start, and whether each payload is whole; memory for one piece of a payload.

    It ends at the first thing that is no header of a plan of so many shards, at a record that ends behind the end of
    the file, and at a last record that is not whole: nothing from there on belongs to the log.
    """
    start, size = 0, os.fstat(handle).st_size
    while (record := _parse_header(os.pread(handle, HEADER_BYTES, start), start)) is not None:
        start = record.offset + record.size
        if start > size or record.index >= shards:
            return
        is_whole = _is_whole(handle, record)
        if not is_whole and start == size:
            return
        yield record, is_whole


def _pieces(handle: int, record: Record) -> Iterator[bytes]:
    done = 0
    while done < record.size and (piece := os.pread(handle, min(_PIECE, record.size - done), record.offset + done)):
        yield piece
        done += len(piece)


def _is_whole(handle: int, record: Record) -> bool:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for piece in _pieces(handle, record):
        digest.update(piece)
    return digest.digest() == record.digest


def read_payload(handle: int, record: Record) -> bytes | None:
    """The payload of a record, or None where it fails its digest."""
    payload = b"".join(_pieces(handle, record))
    return payload if digest_of(payload) == record.digest else None
