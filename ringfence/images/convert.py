"""Converts a disk image to raw, qcow2 or VMDK, and verifies the result by reading it back.

Only data is copied: what the source does not store, and pieces of 64 KiB that are all zeroes, become holes.  While reading, a digest of
the contents is made; then the new image is read through its own reader, from the host's page cache, and must have the same.

The digest is the SHA-256 of the disk's size and of each piece of 64 KiB that is not all zeroes, with its offset in front (8 bytes,
big-endian).  Two images have the same digest when they are the same disk, whatever their formats; zeroes cost nothing, so that a disk
of many terabytes with little on it is converted at once.

The new image is written beside its place under a temporary name, synced, verified, and only then gets its name, which must be free.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from ringfence.backends.block.foreign.open import SOURCE_FORMATS, open_source
from ringfence.backends.block.foreign.source import Source
from ringfence.backends.block.foreign.vmdk_write import SparseWriter, StreamWriter
from ringfence.backends.block.hostfile import HostFile
from ringfence.backends.block.qcow2_block import Qcow2Block
from ringfence.backends.block.qcow2_create import write_empty
from ringfence.backends.block.qcow2_format import read_header
from ringfence.core.errors import ImageError, UserError
from ringfence.core.units import MIB

__all__ = ["SOURCE_FORMATS", "TARGET_FORMATS", "Conversion", "Progress", "convert", "disk_digest"]

TARGET_FORMATS = ("raw", "qcow2", "vmdk", "vmdk-stream")
_READ_BACK_AS = {"vmdk-stream": "vmdk"}

Progress = Callable[[str, int, int], None]  # label, done, total; in MiB

PIECE_BYTES = 64 << 10
_CHUNK_BYTES = 4 * MIB
_BUFFERS = 3  # one is read, one hashed, one waits
_ZEROES = bytes(PIECE_BYTES)


@dataclass(frozen=True)
class Conversion:
    """What was done.  `kind` is the source format's variant, `data_bytes` what is not a hole, `notes` what a user should read."""

    source_format: str
    kind: str
    size_bytes: int
    data_bytes: int
    digest: str
    notes: tuple[str, ...]


class Target(Protocol):
    """Gets a disk's data in ascending order, at multiples of 64 KiB."""

    def write(self, offset: int, data: memoryview) -> None: ...

    def finish(self, digest: str) -> None: ...

    def close(self) -> None: ...


def convert(
    source_path: str | os.PathLike[str],
    target_path: str | os.PathLike[str],
    target_format: str,
    *,
    source_format: str | None = None,
    member: str | None = None,
    on_progress: Progress | None = None,
) -> Conversion:
    """Makes `target_path`, of one of TARGET_FORMATS, from an image of one of SOURCE_FORMATS (default: what its magic number says).

    "vmdk" is monolithicSparse, "vmdk-stream" streamOptimized.  `member` chooses among the disks of an OVA.  A qcow2 image with a backing
    file is only read where its format is given (see `foreign.open`).  When anything fails, or the caller is interrupted by an
    exception, nothing is left behind.

    Raises UserError: a file that is missing, in use, or may not be read or written, a target that exists, no room, an unknown
    format; ImageError: the source is damaged or not supported, or the result is not what was written.
    """
    if target_format not in TARGET_FORMATS:
        raise UserError(f"{target_format!r} is not a disk format that can be written.", f"Known formats: {', '.join(TARGET_FORMATS)}.")
    target_name = os.fspath(target_path)
    if os.path.lexists(target_name):
        raise UserError(f"The file {target_name!r} exists already.", "Choose another name, or remove the file.")
    report = on_progress or _report_nothing
    source = open_source(source_path, source_format, member)
    try:
        temporary = os.path.join(os.path.dirname(target_name), f".{os.path.basename(target_name)[:200]}.{secrets.token_hex(8)}.part")
        file = HostFile.create(temporary)
        try:
            digest = _write(source, file, target_format, os.path.basename(target_name), report)
            _verify(temporary, target_name, target_format, digest, source.size_bytes, report)
            _publish(temporary, target_name)
        finally:
            file.close()
            if os.path.lexists(temporary):
                os.unlink(temporary)
    except UserError:
        raise
    except OSError as error:
        cause = f"The disk image {os.fspath(source_path)!r} cannot be converted to {target_name!r}: {error.strerror or error}."
        raise UserError(cause, "Make room, or check the storage.") from error
    finally:
        source.close()
    return Conversion(source.format, source.kind, source.size_bytes, digest.data_bytes, digest.value(), source.notes)


def disk_digest(path: str | os.PathLike[str], format: str | None = None, on_progress: Progress | None = None) -> str:
    """The digest of a disk's contents (see the module).  Raises as `convert` does."""
    source = open_source(path, format)
    try:
        digest = _Digest(source.size_bytes)
        for _ in _data(source, digest, "reading", on_progress or _report_nothing):
            pass
        return digest.value()
    finally:
        source.close()


def _report_nothing(label: str, done: int, total: int) -> None:
    """Nobody wants to know."""


class _Digest:
    """See the module."""

    def __init__(self, size_bytes: int) -> None:
        self._hash = hashlib.sha256(struct.pack(">Q", size_bytes))
        self.data_bytes = 0

    def add(self, runs: list[tuple[int, memoryview]]) -> None:
        """Offsets, at multiples of 64 KiB, and data; in ascending order."""
        update = self._hash.update
        for offset, data in runs:
            for at in range(0, len(data), PIECE_BYTES):
                update(struct.pack(">Q", offset + at))
                update(data[at : at + PIECE_BYTES])
            self.data_bytes += len(data)

    def value(self) -> str:
        return self._hash.hexdigest()


def _data(source: Source, digest: _Digest, label: str, report: Progress) -> Iterator[tuple[int, memoryview]]:
    """Offset and contents of all that is not zeroes, valid until the next is asked for; the digest is made on the side."""
    total = max(1, source.size_bytes // MIB)
    buffers = [bytearray(min(_CHUNK_BYTES, source.size_bytes)) for _ in range(_BUFFERS)]
    busy: list[Future[None] | None] = [None] * _BUFFERS
    turn = 0
    with ThreadPoolExecutor(1, thread_name_prefix="digest") as worker:
        for start, end in _chunks(source):
            before = busy[turn]
            if before is not None:
                before.result()
            data = memoryview(buffers[turn])[: end - start]
            source.read(start, data)
            runs = [(start + first, data[first:last]) for first, last in _filled(buffers[turn], len(data))]
            busy[turn] = worker.submit(digest.add, runs)
            yield from runs
            report(label, end // MIB, total)
            turn = (turn + 1) % _BUFFERS
        for future in busy:
            if future is not None:
                future.result()
    report(label, total, total)


def _chunks(source: Source) -> Iterator[tuple[int, int]]:
    """Start and end of what must be read: whole pieces, at most a chunk at once, neighbours together."""
    begin = end = 0
    for offset, size_bytes in source.data_ranges(0, source.size_bytes):
        first = offset // PIECE_BYTES * PIECE_BYTES
        last = min(-(-(offset + size_bytes) // PIECE_BYTES) * PIECE_BYTES, source.size_bytes)
        if first > end:
            if begin < end:
                yield begin, end
            begin = first
        end = max(end, last)
        while end - begin >= _CHUNK_BYTES:
            yield begin, begin + _CHUNK_BYTES
            begin += _CHUNK_BYTES
    if begin < end:
        yield begin, end


def _filled(buffer: bytearray, size_bytes: int) -> Iterator[tuple[int, int]]:
    """Start and end of the runs of pieces that are not all zeroes."""
    begin = -1
    for at in range(0, size_bytes, PIECE_BYTES):
        rest = size_bytes - at
        # startswith compares in place, where a slice would copy
        if buffer.startswith(_ZEROES if rest >= PIECE_BYTES else _ZEROES[:rest], at):
            if begin >= 0:
                yield begin, at
                begin = -1
        elif begin < 0:
            begin = at
    if begin >= 0:
        yield begin, size_bytes


class _RawTarget:
    def __init__(self, file: HostFile, size_bytes: int) -> None:
        self._file = file
        os.ftruncate(file.fd, size_bytes)

    def write(self, offset: int, data: memoryview) -> None:
        self._file.write(offset, data)

    def finish(self, digest: str) -> None:
        """A raw image is complete as it is."""

    def close(self) -> None:
        """The file is closed by its owner."""


class _Qcow2Target:
    def __init__(self, file: HostFile, size_bytes: int) -> None:
        write_empty(file, size_bytes)
        self._block = Qcow2Block(file, read_header(file))

    def write(self, offset: int, data: memoryview) -> None:
        self._block.write(offset, data)

    def finish(self, digest: str) -> None:
        self._block.close()

    def close(self) -> None:
        """The file is closed by its owner; a failed image need not be complete."""


def _make_target(file: HostFile, format: str, size_bytes: int, name: str) -> Target:
    if format == "raw":
        return _RawTarget(file, size_bytes)
    if format == "qcow2":
        return _Qcow2Target(file, size_bytes)
    if format == "vmdk":
        return SparseWriter(file, size_bytes, name)
    return StreamWriter(file, size_bytes, name)


def _write(source: Source, file: HostFile, format: str, name: str, report: Progress) -> _Digest:
    digest = _Digest(source.size_bytes)
    target = _make_target(file, format, source.size_bytes, name)
    try:
        for offset, data in _data(source, digest, "converting", report):
            target.write(offset, data)
        target.finish(digest.value())
    finally:
        target.close()
    if file.fd >= 0:  # a qcow2 image has synced and closed it
        os.fsync(file.fd)
        file.close()
    return digest


def _verify(temporary: str, name: str, format: str, expected: _Digest, size_bytes: int, report: Progress) -> None:
    source = open_source(temporary, _READ_BACK_AS.get(format, format))
    try:
        digest = _Digest(source.size_bytes)
        for _ in _data(source, digest, "verifying", report):
            pass
    finally:
        source.close()
    if source.size_bytes != size_bytes or digest.value() != expected.value():
        raise ImageError(
            f"The new image {name!r} does not read back as it was written.",
            "Check the storage and the memory of this host. Nothing was kept.",
        )


def _publish(temporary: str, target: str) -> None:
    """Gives the image its name, which nobody may have taken meanwhile; both are on stable storage when it returns."""
    try:
        os.link(temporary, target)
        os.unlink(temporary)
    except FileExistsError:
        raise UserError(f"The file {target!r} exists already.", "Choose another name, or remove the file.") from None
    except PermissionError:  # a file system without links
        os.rename(temporary, target)
    folder = os.open(os.path.dirname(os.path.abspath(target)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
