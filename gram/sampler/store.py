"""The one result store: what local runs, Ray, resume and traces write shard by shard, and what reports read.

Not the plan (`gram/sampler/run.py`) and not what the arrays mean (`gram/sampler/trace.py`). No torch here.

A store is a folder with two files.

`plan.json`, written atomically before the first record: `version` (1), `plan_key`, `shards` (their number) and `about`
(the run's metadata: what the caller wants a reader to know).

`shards.bin`, a log of records (`gram/sampler/record.py` has their bytes).

A process may be killed, or the machine lose power, at any byte. Opening reads the whole log once, in pieces:

- a record that ends behind the end of the file, or the last one if its payload fails its digest, is a torn tail: it is
  cut off and its shard is missing;
- a record whose header is whole and whose payload fails its digest, with more behind it, is skipped: its shard is
  missing and is appended again;
- where no header stands (bad magic or CRC), lengths cannot be trusted any more: everything from there on is cut off.

A reader does the same but cuts nothing: it ignores. Of two good records of a shard with one digest the first counts;
two with different digests are an error.

One process writes: it holds a lock (`flock`) on `shards.bin`, which goes with the process. Records reach the disk in
groups: at most `SYNC_EVERY_S` apart while records arrive, and at `sync` and `close`. A store is not for several
threads.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays

from gram.atomic_files import lock, replacing, sync
from gram.sampler.record import HEADER_BYTES, Record, Serialized, StoreError, header_of, read_payload, scan

__all__ = ["Store", "StoreError"]

PLAN_FILE = "plan.json"
SHARDS_FILE = "shards.bin"
VERSION = 1
SYNC_EVERY_S = 0.5
"""Longest time between two fsyncs while records arrive: what a power cut can cost; a killed process loses nothing."""
_LONGEST_VALUE = 60


def _differences(theirs: Any, ours: Any, name: str = "") -> Iterator[str]:
    """What differs between two JSON values, one phrase each."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in dict.fromkeys([*theirs, *ours]):
            yield from _differences(theirs.get(key), ours.get(key), f"{name}.{key}" if name else key)
    elif theirs != ours:
        there, here = json.dumps(theirs), json.dumps(ours)
        is_short = max(len(there), len(here)) <= _LONGEST_VALUE
        yield f"{name} is {there} there and {here} here" if is_short else f"{name} differs"


class Store:
    """Results of a plan's shards on disk; made by `open` (one writer) or `read_only` (any number)."""

    def __init__(self, folder: Path, handle: int, plan: dict[str, Any], *, is_writable: bool) -> None:
        """For `open` and `read_only` alone."""
        self._folder, self._path = folder, folder / SHARDS_FILE
        self._handle, self._plan, self._is_writable = handle, plan, is_writable
        self._records: dict[int, Record] = {}
        self._end = self._synced_end = 0
        self._synced_at_s = time.monotonic()

    @classmethod
    def open(cls, folder: Path | str, plan_key: str, shards: int, metadata: dict[str, Any]) -> Self:
        """A writer: creates the store in `folder`, or continues the one that is there.

        The `metadata` of an existing store stays. Raises `StoreError` where the folder holds another plan, another
        process writes, or nothing can be written.
        """
        folder = Path(folder)
        plan = {"version": VERSION, "plan_key": plan_key, "shards": shards, "about": metadata}
        try:
            plan = json.loads(json.dumps(plan, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise StoreError(f"about must be JSON, got {error}") from None
        if folder.exists() and not folder.is_dir():
            raise StoreError(f"{folder} must be a folder, got a file")
        if (folder / PLAN_FILE).exists():
            cls._check_plan(folder, cls._read_plan(folder), plan)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder / SHARDS_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise StoreError(f"{folder / SHARDS_FILE} cannot be written: {error.strerror}") from None
        try:
            lock(handle, folder / SHARDS_FILE, StoreError, f"{folder} is being written by another process")
            if (folder / PLAN_FILE).exists():
                stored = cls._read_plan(folder)
                cls._check_plan(folder, stored, plan)
                plan = stored
            elif os.fstat(handle).st_size:
                raise StoreError(f"{folder} holds {SHARDS_FILE} without {PLAN_FILE}: not a store to continue")
            else:
                cls._write_plan(folder, handle, plan)
            store = cls(folder, handle, plan, is_writable=True)
            store._fill_index()
            if os.fstat(handle).st_size > store._end:
                os.ftruncate(handle, store._end)
                os.fsync(handle)
            return store
        except OSError as error:
            os.close(handle)
            raise StoreError(f"{folder} cannot be written: {error.strerror}") from None
        except BaseException:
            os.close(handle)
            raise

    @classmethod
    def read_only(cls, folder: Path | str) -> Store:
        """A reader of what is stored now, of a finished or a running run; it locks and writes nothing."""
        folder = Path(folder)
        if not (folder / PLAN_FILE).is_file():
            raise StoreError(f"{folder} must be the folder of a run with {PLAN_FILE}, got none")
        plan = cls._read_plan(folder)
        try:
            handle = os.open(folder / SHARDS_FILE, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StoreError(f"{folder / SHARDS_FILE} cannot be read: {error.strerror}") from None
        store = cls(folder, handle, plan, is_writable=False)
        try:
            store._fill_index()
        except OSError as error:
            os.close(handle)
            raise StoreError(f"{store._path} cannot be read: {error.strerror}") from None
        except BaseException:
            os.close(handle)
            raise
        return store

    @staticmethod
    def _read_plan(folder: Path) -> dict[str, Any]:
        path = folder / PLAN_FILE
        try:
            plan = json.loads(path.read_bytes())
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise StoreError(f"{path}: not JSON ({error})") from None
        if not isinstance(plan, dict) or plan.get("version") != VERSION:
            version = plan.get("version") if isinstance(plan, dict) else None
            raise StoreError(f"{path}: version must be {VERSION}, got {version!r}")
        for name, kind in (("plan_key", str), ("shards", int), ("about", dict)):
            if not isinstance(plan.get(name), kind):
                raise StoreError(f"{path}: {name} must be of type {kind.__name__}, got {plan.get(name)!r}")
        return plan

    @staticmethod
    def _check_plan(folder: Path, stored: dict[str, Any], plan: dict[str, Any]) -> None:
        if (stored["plan_key"], stored["shards"]) != (plan["plan_key"], plan["shards"]):
            found = list(_differences(stored["about"], plan["about"]))
            if stored["shards"] != plan["shards"]:
                found.append(f"shards are {stored['shards']} there and {plan['shards']} here")
            found = found or [f"plan_key is {stored['plan_key'][:12]} there and {plan['plan_key'][:12]} here"]
            raise StoreError(f"{folder} holds another run: {'; '.join(found)}")

    @staticmethod
    def _write_plan(folder: Path, handle: int, plan: dict[str, Any]) -> None:
        """Under the lock, so that what a killed process left can go."""
        for stale in folder.glob(f".{PLAN_FILE}.*"):
            stale.unlink(missing_ok=True)
        with replacing(folder / PLAN_FILE) as temporary:
            temporary.write_bytes((json.dumps(plan, indent=2) + "\n").encode())
            os.fsync(handle)
        sync(folder)
        sync(folder.absolute().parent)

    def _fill_index(self) -> None:
        for record, is_whole in scan(self._handle, self._plan["shards"]):
            self._end = self._synced_end = record.offset + record.size
            if is_whole and self._records.setdefault(record.index, record).digest != record.digest:
                raise StoreError(f"{self._path}: shard {record.index} is stored twice with different results")

    @property
    def plan_key(self) -> str:
        """Key of the plan whose results these are."""
        return str(self._plan["plan_key"])

    @property
    def shard_count(self) -> int:
        """Shards of the plan, done or not."""
        return int(self._plan["shards"])

    @property
    def metadata(self) -> dict[str, Any]:
        """What the run wrote about itself when it began."""
        metadata: dict[str, Any] = self._plan["about"]
        return metadata

    @property
    def elapsed_s(self) -> float:
        """Seconds that the stored shards took, summed."""
        return sum(record.elapsed_us for record in self._records.values()) / 1e6

    def done(self) -> frozenset[int]:
        """Indices of the shards with a whole record."""
        return frozenset(self._records)

    def missing(self) -> list[int]:
        """Indices of the other shards, ascending."""
        return [index for index in range(self.shard_count) if index not in self._records]

    def append(self, index: int, arrays: Mapping[str, NDArray[Any]], elapsed_s: float = 0.0) -> bool:
        """Stores the result of a shard; False where it is there already (the first one stays).

        Raises `StoreError` for another result than the stored one, an index outside the plan, or a failed write: then
        the record is cut off again and the store can go on once there is room.
        """
        return self.append_serialized(index, Serialized.of(arrays), elapsed_s)

    def append_serialized(self, index: int, serialized: Serialized, elapsed_s: float = 0.0) -> bool:
        """As `append`, for a result that was serialized elsewhere. Its digest is trusted here and checked when it is
        read: a result that was damaged on the way is missing from then on, as if the disk had done it."""
        self._must_be_writable()
        if not 0 <= index < self.shard_count:
            raise StoreError(f"shard index must be in [0, {self.shard_count}), got {index}")
        payload, digest = serialized.payload, serialized.digest
        if (stored := self._records.get(index)) is not None:
            if stored.digest != digest:
                raise StoreError(f"{self._path}: shard {index} is stored already with another result")
            return False
        elapsed_us = max(0, round(elapsed_s * 1e6))
        record = Record(index, elapsed_us, self._end + HEADER_BYTES, len(payload), digest)
        try:
            self._write(b"".join((header_of(index, elapsed_us, len(payload), digest), payload)))
        except BaseException as error:
            self._cut()
            if isinstance(error, OSError):
                raise StoreError(f"{self._path} cannot be written: {error.strerror}") from None
            raise
        self._records[index] = record
        self._end = record.offset + record.size
        if time.monotonic() - self._synced_at_s >= SYNC_EVERY_S:
            self.sync()
        return True

    def _write(self, content: bytes) -> None:
        rest, offset = memoryview(content), self._end
        while rest:
            written = os.pwrite(self._handle, rest, offset)
            rest, offset = rest[written:], offset + written

    def _cut(self) -> None:
        """Cuts what lies behind the last record. Where even that fails, the next record is written over it."""
        try:
            os.ftruncate(self._handle, self._end)
        except OSError:
            return

    def read(self, index: int) -> dict[str, NDArray[Any]]:
        """The arrays of a stored shard, read and checked now. Raises `StoreError` where missing or damaged."""
        self._must_be_open()
        if (record := self._records.get(index)) is None:
            raise StoreError(f"{self._path} holds no result of shard {index}")
        try:
            payload = read_payload(self._handle, record)
        except OSError as error:
            raise StoreError(f"{self._path} cannot be read: {error.strerror}") from None
        if payload is None:
            raise StoreError(f"{self._path}: the result of shard {index} is damaged")
        try:
            arrays: dict[str, NDArray[Any]] = load_arrays(payload)
        except (SafetensorError, KeyError) as error:
            raise StoreError(f"{self._path}: the result of shard {index} holds no arrays: {error}") from None
        return arrays

    def sync(self) -> None:
        """Brings everything appended to the disk.

        Raises `StoreError` where that fails; the kernel may then have dropped any of it, so all records since the last
        sync are given up and their shards are missing again.
        """
        self._must_be_writable()
        self._synced_at_s = time.monotonic()
        if self._end == self._synced_end:
            return
        try:
            os.fsync(self._handle)
        except OSError as error:
            self._records = {i: r for i, r in self._records.items() if r.offset < self._synced_end}
            self._end = self._synced_end
            self._cut()
            raise StoreError(f"{self._path} cannot be written: {error.strerror}") from None
        self._synced_end = self._end

    def close(self) -> None:
        """Syncs a writer, frees the lock and the file; a second call does nothing."""
        if self._handle < 0:
            return
        try:
            if self._is_writable:
                self.sync()
        finally:
            os.close(self._handle)
            self._handle = -1

    def _must_be_open(self) -> None:
        if self._handle < 0:
            raise StoreError(f"{self._folder}: the store is closed")

    def _must_be_writable(self) -> None:
        self._must_be_open()
        if not self._is_writable:
            raise StoreError(f"{self._folder}: the store is open for reading only")

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
