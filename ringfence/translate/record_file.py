"""A cache file of many named records, of which a run reads few.

    header    8 bytes magic, u32 records, u32 complete, u64 where the index is, checksum of the index, checksum of all that
    records   name and value, one behind the other
    index     a record each, ascending: u32 crc32 of the name, u32 where, u32 bytes of the name, u32 of the value, u32 crc32 of both

The header is looked at when the file is opened, the index when something is first looked for, a record when it is found: what is
damaged is as if it were not there.  The file is read, not mapped, so that nothing that happens to it later can hurt.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

from ringfence.core.cache_files import CHECK_BYTES, check, open_private, replace_file
from ringfence.core.trace import tracer

trace = tracer("stencils")

_MAGIC = b"RFrecs\0\2"
_HEAD = struct.Struct(f"<8sIIQ{CHECK_BYTES}s")
_HEADER_BYTES = _HEAD.size + CHECK_BYTES
_ENTRY = struct.Struct("<5I")


class RecordFile:
    """The file as it was when it was opened; `Records` opens it."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        data = os.pread(descriptor, _HEADER_BYTES, 0)
        if len(data) != _HEADER_BYTES or check(data[: _HEAD.size]) != data[_HEAD.size :]:
            raise ValueError("header")
        magic, self.count, complete, self._index_at, self._digest = _HEAD.unpack_from(data)
        if magic != _MAGIC:
            raise ValueError("kind")
        self.complete = bool(complete)
        self.damaged = False

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # `os` itself may be gone at the end of the process
        close(self._descriptor)

    @cached_property
    def _index(self) -> bytes:
        index = self._read(self.count * _ENTRY.size, self._index_at)
        if check(index) == self._digest:
            return index
        self._tell("index")
        self.damaged = True
        return b""

    def _read(self, size_bytes: int, at: int) -> bytes:
        parts = []
        while size_bytes > 0 and (part := os.pread(self._descriptor, size_bytes, at)):
            parts.append(part)
            at += len(part)
            size_bytes -= len(part)
        return b"".join(parts)

    def _tell(self, what: str) -> None:
        if trace:
            trace("%s is damaged (%s): ignored", self.path, what)

    def _record(self, entry: tuple[int, ...]) -> tuple[bytes, bytes] | None:
        _, at, name_bytes, value_bytes, checksum = entry
        data = self._read(name_bytes + value_bytes, at)
        if len(data) == name_bytes + value_bytes and zlib.crc32(data) == checksum:
            return data[:name_bytes], data[name_bytes:]
        self._tell("record")
        return None

    def get(self, name: bytes) -> bytes | None:
        index, wanted = self._index, zlib.crc32(name)
        low, high = 0, len(index) // _ENTRY.size
        while low < high:
            middle = (low + high) // 2
            if struct.unpack_from("<I", index, middle * _ENTRY.size)[0] < wanted:
                low = middle + 1
            else:
                high = middle
        for at in range(low * _ENTRY.size, len(index), _ENTRY.size):
            entry = _ENTRY.unpack_from(index, at)
            if entry[0] != wanted:
                break
            if (found := self._record(entry)) is not None and found[0] == name:
                return found[1]
        return None

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        for entry in _ENTRY.iter_unpack(self._index):
            if (found := self._record(entry)) is not None:
                yield found


def open_records(path: Path) -> RecordFile | None:
    descriptor = open_private(path)
    if descriptor is None:
        return None
    try:
        return RecordFile(path, descriptor)
    except ValueError as error:
        if trace:
            trace("%s is damaged (%s): ignored", path, error)
        return None


def write_records(path: Path, records: Mapping[bytes, bytes], complete: bool) -> bool:
    """Replaces the file; False where the folder cannot be written, which is not an error."""
    parts, entries, at = [b""], [], _HEADER_BYTES
    for name, value in records.items():
        data = name + value
        entries.append((zlib.crc32(name), at, len(name), len(value), zlib.crc32(data)))
        parts.append(data)
        at += len(data)
    index = b"".join(_ENTRY.pack(*entry) for entry in sorted(entries))
    head = _HEAD.pack(_MAGIC, len(entries), complete, at, check(index))
    parts[0] = head + check(head)
    return replace_file(path, [*parts, index])


class Records:
    """The records of a file, and those that were added since it was opened.  `complete`: nothing that was shipped is missing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.added: dict[bytes, bytes] = {}
        self._file = open_records(path)
        self.complete = self._file is not None and self._file.complete

    def get(self, name: bytes) -> bytes | None:
        value = self.added.get(name)
        return self._file.get(name) if value is None and self._file is not None else value

    def __contains__(self, name: bytes) -> bool:
        return self.get(name) is not None

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All of them, in no order; reads the whole file."""
        if self._file is not None:
            for name, value in self._file.items():
                if name not in self.added:
                    yield name, value
        yield from self.added.items()

    def save(self) -> bool:
        """Writes what was added, beside what other processes have written meanwhile."""
        now = open_records(self.path)
        merged = {**dict(now.items() if now is not None else ()), **self.added}
        self.complete &= now is None or not now.damaged
        if not write_records(self.path, merged, self.complete):
            return False
        self.added = {}
        self._file = open_records(self.path)
        return True
