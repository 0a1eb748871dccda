"""Where finished shards are kept: an append log that survives a kill at any byte. No torch here.

A folder holds `plan.json` (version, plan key, number of shards, facts about the run) and `shards.bin`, records one
after another, each a header and a payload:

    magic 4 bytes "GRMS", version u16, zero u16, shard index u32, elapsed microseconds u64, payload length u64,
    BLAKE2b-128 digest of the payload (16 bytes), CRC-32 of the header before it u32      (little-endian, 48 bytes)
    payload: the shard's arrays in the safetensors format, names sorted

The digest depends on the arrays alone. On opening, records are scanned: one whose payload does not fit its digest
counts as missing; where no header can be read, everything from there on is cut off (or passed over when only reading).
Missing shards are run again. The first result of a shard wins; another one with the same digest is passed over, one
with another digest is an error. Writes reach the disk in groups, at most half a second apart.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import struct
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from gram.checkpoint import write_json

PLAN_FILE = "plan.json"
SHARDS_FILE = "shards.bin"
VERSION = 1
SYNC_EVERY_S = 0.5
_MAGIC = b"GRMS"
_FIELDS = struct.Struct("<4sHHIQQ16s")
_HEADER_BYTES = _FIELDS.size + 4
_CHUNK = 1 << 20


class StoreError(ValueError):
    """A folder that cannot be used; the message is one line."""


class _Record(NamedTuple):
    """Where a whole record lies."""

    start: int
    """Of its payload."""
    length: int
    digest: bytes
    elapsed_s: float


class Store:
    """One run's folder. Use `open` or `read_only`, and close it (or use it in a `with`)."""

    def __init__(self, folder: Path, plan: dict[str, Any], file: BinaryIO, *, is_writing: bool) -> None:
        self.folder, self.plan_key, self.shard_count = folder, str(plan["plan_key"]), int(plan["shards"])
        self.about: dict[str, Any] = plan["about"]
        """Facts about the run: task, checkpoint, settings, shards."""
        self._file, self._is_writing = file, is_writing
        self._records, self._end = _scan(file, self.shard_count)
        self._synced_at, self._is_dirty = time.monotonic(), False
        if is_writing and self._end < file.seek(0, os.SEEK_END):
            file.truncate(self._end)
            self._is_dirty = True
            self.sync()

    @classmethod
    def open(cls, folder: Path, plan_key: str, shards: int, about: Mapping[str, Any]) -> Store:
        """Starts a run in `folder`, or continues it. Raises `StoreError` where the folder holds another run, is a file
        or is being written by another process."""
        if folder.exists() and not folder.is_dir():
            raise StoreError(f"folder must be a directory, got the file {folder}")
        path = folder / PLAN_FILE
        mine = {"version": VERSION, "plan_key": plan_key, "shards": shards, "about": dict(about)}
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / SHARDS_FILE).open("a+b")
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise StoreError(f"{folder}: another process is writing there, expected to be the only one") from None
            if path.is_file():
                _check(folder, _read_plan(path), mine)
            elif file.seek(0, os.SEEK_END):
                raise StoreError(f"{path}: is missing beside {SHARDS_FILE}, expected both or neither")
            else:
                write_json(path, mine)
                _sync_folder(folder)
            return cls(folder, mine, file, is_writing=True)
        except BaseException:
            file.close()
            raise

    @classmethod
    def read_only(cls, folder: Path) -> Store:
        """A finished or running run, to read what it has so far. Raises `StoreError`."""
        path = folder / PLAN_FILE
        if not path.is_file():
            raise StoreError(f"folder must hold a run ({PLAN_FILE}), got {folder}")
        try:
            return cls(folder, _read_plan(path), (folder / SHARDS_FILE).open("rb"), is_writing=False)
        except OSError as error:
            raise StoreError(f"{folder / SHARDS_FILE}: {error.strerror}") from None

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def done(self) -> frozenset[int]:
        """Shards that are kept whole."""
        return frozenset(self._records)

    def missing(self) -> list[int]:
        """Shards that are not, in order."""
        return [index for index in range(self.shard_count) if index not in self._records]

    @property
    def elapsed_s(self) -> float:
        """Seconds that the kept shards took, as told to `append`."""
        return sum(record.elapsed_s for record in self._records.values())

    def append(self, index: int, arrays: Mapping[str, NDArray[Any]], elapsed_s: float = 0.0) -> bool:
        """Keeps a shard; False where it is kept already. Raises `StoreError` for an index out of range, another result
        of a kept shard, or a disk that refuses: the store is then as it was."""
        if not 0 <= index < self.shard_count:
            raise StoreError(f"shard must be within 0 and {self.shard_count - 1}, got {index}")
        payload = save_arrays({name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)})
        digest = hashlib.blake2b(payload, digest_size=16).digest()
        if (kept := self._records.get(index)) is not None:
            if kept.digest != digest:
                raise StoreError(f"{self.folder}: shard {index} came twice with different results, expected the same")
            return False
        fields = _FIELDS.pack(_MAGIC, VERSION, 0, index, round(elapsed_s * 1e6), len(payload), digest)
        try:
            self._write(fields + struct.pack("<I", zlib.crc32(fields)) + payload)
        except OSError as error:
            self._file.truncate(self._end)
            reason = error.strerror or error
            raise StoreError(f"{self.folder / SHARDS_FILE}: {reason}; what was kept is intact") from None
        self._records[index] = _Record(self._end + _HEADER_BYTES, len(payload), digest, round(elapsed_s * 1e6) / 1e6)
        self._end += _HEADER_BYTES + len(payload)
        self._is_dirty = True
        if time.monotonic() - self._synced_at >= SYNC_EVERY_S:
            self.sync()
        return True

    def read(self, index: int) -> dict[str, NDArray[Any]]:
        """A kept shard's arrays. Raises `StoreError` where it is missing or no longer fits its digest."""
        record = self._records.get(index)
        if record is None:
            kept = f"{len(self._records)} of {self.shard_count} kept"
            raise StoreError(f"{self.folder}: shard {index} is missing ({kept})")
        payload = os.pread(self._file.fileno(), record.length, record.start)
        if hashlib.blake2b(payload, digest_size=16).digest() != record.digest:
            raise StoreError(f"{self.folder / SHARDS_FILE}: shard {index} has changed on disk, expected its digest")
        return load_arrays(payload)

    def sync(self) -> None:
        """Waits until everything kept so far has reached the disk."""
        if self._is_dirty:
            os.fsync(self._file.fileno())
        self._synced_at, self._is_dirty = time.monotonic(), False

    def close(self) -> None:
        """Syncs and lets go of the folder."""
        if self._file.closed:
            return
        try:
            if self._is_writing:
                self.sync()
        finally:
            self._file.close()

    def _write(self, record: bytes) -> None:
        view = memoryview(record)
        while view:
            view = view[os.write(self._file.fileno(), view) :]


def _scan(file: BinaryIO, shards: int) -> tuple[dict[int, _Record], int]:
    """The whole records of a log and where its readable part ends."""
    records: dict[int, _Record] = {}
    size = os.fstat(file.fileno()).st_size
    position = 0
    while position + _HEADER_BYTES <= size:
        header = os.pread(file.fileno(), _HEADER_BYTES, position)
        fields, (checksum,) = header[: _FIELDS.size], struct.unpack("<I", header[_FIELDS.size :])
        magic, version, _, index, elapsed_us, length, digest = _FIELDS.unpack(fields)
        start = position + _HEADER_BYTES
        if zlib.crc32(fields) != checksum or magic != _MAGIC or version != VERSION or start + length > size:
            break
        if index < shards and index not in records and _digest(file, start, length) == digest:
            records[index] = _Record(start, length, digest, elapsed_us / 1e6)
        position = start + length
    return records, position


def _digest(file: BinaryIO, start: int, length: int) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for place in range(start, start + length, _CHUNK):
        digest.update(os.pread(file.fileno(), min(_CHUNK, start + length - place), place))
    return digest.digest()


def _read_plan(path: Path) -> dict[str, Any]:
    try:
        plan = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise StoreError(f"{path}: must be a run's plan ({error})") from None
    if not isinstance(plan, dict) or not {"version", "plan_key", "shards", "about"} <= set(plan):
        raise StoreError(f"{path}: must be a run's plan, got other JSON")
    if plan["version"] != VERSION:
        raise StoreError(f"{path}: version must be {VERSION}, got {plan['version']}")
    return plan


def _check(folder: Path, theirs: dict[str, Any], mine: dict[str, Any]) -> None:
    """Raises `StoreError` naming what differs where the folder holds another run."""
    if theirs["plan_key"] == mine["plan_key"]:
        return
    old, new = ({**plan["about"], **plan["about"].get("config", {})} for plan in (theirs, mine))
    keys = [key for key in new if key not in ("config", "shards", "slots", "selector") and old.get(key) != new[key]]
    what = f"{keys[0]} {old.get(keys[0])!r}, expected {new[keys[0]]!r}" if keys else "other weights, puzzles or code"
    raise StoreError(f"folder {folder} must be empty or hold the same run, got one with {what}")


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
