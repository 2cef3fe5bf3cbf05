"""A disk whose bytes are the file's bytes: an image file or a block device of the host."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence

from ringfence.backends.block.hostfile import HostFile

SECTOR_BYTES = 512
QCOW_MAGIC = b"QFI\xfb"
_MAX_BYTES = 1 << 62


def check_range(offset: int, size_bytes: int, disk_bytes: int) -> None:
    """Raises OSError (EINVAL) unless the range is made of whole sectors of the disk."""
    if offset < 0 or size_bytes < 0 or offset % SECTOR_BYTES or size_bytes % SECTOR_BYTES or offset + size_bytes > disk_bytes:
        raise OSError(errno.EINVAL, f"bytes {offset} + {size_bytes} are not whole sectors of a disk of {disk_bytes} bytes")


class RawBlock:
    """See `ringfence.backends.api.Block`.  A size that is no multiple of 512 is rounded up; the rest reads as zeroes.

    `guard_probe` is for a disk that was found to be raw by looking at it: the guest may then not write another format's
    magic number to its first sector (EPERM), or the next start would believe it and open files that the guest names.
    """

    def __init__(self, path: str | os.PathLike[str] | HostFile, readonly: bool = False, guard_probe: bool = False) -> None:
        self._file = path if isinstance(path, HostFile) else HostFile.open(path, readonly)
        self.readonly = readonly
        self._guard_probe = guard_probe
        self.size_bytes = -(-min(self._file.end(), _MAX_BYTES) // SECTOR_BYTES) * SECTOR_BYTES

    def read(self, offset: int, buffer: memoryview) -> None:
        check_range(offset, len(buffer), self.size_bytes)
        self._file.read_into(offset, buffer)

    def data_ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Offset and size, ascending, of all parts of this range that may hold anything but zeroes."""
        return self._file.data_ranges(start, min(end, self._file.end()))

    def write(self, offset: int, data: memoryview) -> None:
        self._check_write(offset, len(data))
        if offset == 0 and self._guard_probe and bytes(data[:4]) == QCOW_MAGIC:
            raise OSError(errno.EPERM, "the guest may not turn a probed raw disk into another format; give format=raw to allow it")
        self._file.write(offset, data)

    def read_vector(self, offset: int, buffers: Sequence[memoryview], wait: bool = True) -> bool:
        total = sum(map(len, buffers))
        check_range(offset, total, self.size_bytes)
        return self._file.read_into_vector(offset, buffers, total, wait)

    def write_vector(self, offset: int, parts: Sequence[memoryview]) -> None:
        if offset == 0 and self._guard_probe:
            self.write(0, memoryview(b"".join(parts)))
            return
        total = sum(map(len, parts))
        self._check_write(offset, total)
        self._file.write_vector(offset, parts, total)

    def flush(self) -> None:
        if not self.readonly:
            self._file.sync()

    def discard(self, offset: int, size_bytes: int) -> None:
        self._check_write(offset, size_bytes)
        if size_bytes:
            self._file.punch_hole(offset, size_bytes)

    def write_zeroes(self, offset: int, size_bytes: int, may_unmap: bool) -> None:
        self._check_write(offset, size_bytes)
        if size_bytes:
            self._file.write_zeroes(offset, size_bytes, may_unmap)

    def close(self) -> None:
        self._file.close()

    def _check_write(self, offset: int, size_bytes: int) -> None:
        if self.readonly:
            raise OSError(errno.EROFS, "the disk is read-only")
        check_range(offset, size_bytes, self.size_bytes)
