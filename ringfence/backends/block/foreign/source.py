"""What is read when an image is converted, and the part that the foreign formats share."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from ringfence.backends.block.foreign.window import Window
from ringfence.backends.block.hostfile import HostFile
from ringfence.backends.block.raw import SECTOR_BYTES, check_range
from ringfence.core.errors import ImageError
from ringfence.core.units import TIB, format_size

MAX_DISK_BYTES = 64 * TIB  # the largest of the formats (VHDX) ends here; larger numbers are damage or an attack


class Source(Protocol):
    """A disk that is read from its beginning to its end.  Foreign images, `RawBlock` and `Qcow2Block` are."""

    size_bytes: int

    def read(self, offset: int, buffer: memoryview) -> None: ...

    def data_ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Offset and size, ascending, of all parts of this range that may hold anything but zeroes.

        Raises ImageError when the image turns out to be damaged.
        """

    def close(self) -> None: ...


class Run(NamedTuple):
    """How the bytes from some place on are stored: zeroes (`file` and `unpack` None), neighbours in a file, or a compressed block."""

    size_bytes: int
    file: Window | None = None
    at: int = 0  # offset in the file, or in what `unpack` gives
    unpack: Callable[[], bytes] | None = None


class ForeignBlock(ABC):
    """See `ringfence.backends.api.Block` and `Source`; every write is refused (EROFS).  Formats define `_run`.

    `kind` is the format's variant in the words of its specification.  Owns its files and closes them.
    """

    format = ""
    readonly = True

    def __init__(self, files: list[HostFile], file: Window, size_bytes: int, kind: str) -> None:
        """`size_bytes` is rounded up to whole sectors; what lies behind reads as zeroes."""
        self.size_bytes = check_size(file, size_bytes)
        self.kind = kind
        self.notes: tuple[str, ...] = ()  # what whoever asked for the image should be told
        self._files = files
        self._file = file
        self._disk_bytes = size_bytes

    @abstractmethod
    def _run(self, offset: int, limit: int) -> Run:
        """The longest run from this byte of the disk on, at most `limit` bytes, where all of them are bytes of the disk."""

    def read(self, offset: int, buffer: memoryview) -> None:
        check_range(offset, len(buffer), self.size_bytes)
        done, total = 0, len(buffer)
        within = min(total, self._disk_bytes - offset)
        while done < within:
            run = self._run(offset + done, within - done)
            part = buffer[done : done + run.size_bytes]
            if run.unpack is not None:
                part[:] = run.unpack()[run.at : run.at + run.size_bytes]
            elif run.file is not None:
                run.file.read_into(run.at, part)
            else:
                part[:] = bytes(run.size_bytes)
            done += run.size_bytes
        if done < total:
            buffer[done:] = bytes(total - done)

    def data_ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        end = min(end, self._disk_bytes)
        left = self._data_limit()
        while start < end:
            run = self._run(start, end - start)
            if run.unpack is not None:
                left -= SECTOR_BYTES  # what a compressed block takes at least
                yield start, run.size_bytes
            elif run.file is not None:
                left -= run.size_bytes
                run.file.check(run.at, run.size_bytes, "data")
                for at, size_bytes in run.file.data_ranges(run.at, run.at + run.size_bytes):
                    yield start + at - run.at, size_bytes
            if left < 0:
                raise self._file.damaged("its tables refer to the same data more than once")
            start += run.size_bytes

    def _data_limit(self) -> int:
        """How many bytes of data the files can hold."""
        return self._file.size_bytes

    def write(self, offset: int, data: memoryview) -> None:
        raise OSError(errno.EROFS, f"a disk of the format {self.format} is read-only")

    def discard(self, offset: int, size_bytes: int) -> None:
        raise OSError(errno.EROFS, f"a disk of the format {self.format} is read-only")

    def write_zeroes(self, offset: int, size_bytes: int, may_unmap: bool) -> None:
        raise OSError(errno.EROFS, f"a disk of the format {self.format} is read-only")

    def flush(self) -> None:  # noqa: B027  (whole as it is)
        """Nothing was written."""

    def close(self) -> None:
        for file in self._files:
            file.close()


def check_size(file: Window, size_bytes: int) -> int:
    """The size in whole sectors.  Raises ImageError for a disk that is empty or larger than 64 TiB."""
    if size_bytes <= 0:
        raise file.damaged("its disk has no size")
    if size_bytes > MAX_DISK_BYTES:
        raise ImageError(
            f"The disk in {file.name} claims to have {size_bytes} bytes; up to {format_size(MAX_DISK_BYTES)} are supported.",
            "Check where the image comes from; it may be damaged.",
        )
    return -(-size_bytes // SECTOR_BYTES) * SECTOR_BYTES


def differencing(file: Window, parent: str = "") -> ImageError:
    """The error for an image that holds only changes to another one."""
    other = f" ({parent})" if parent else ""
    return ImageError(
        f"{file.name} holds only the changes to another image{other}, which is not supported.",
        "Merge it with its parent first, in the program that made it or with `qemu-img convert`.",
    )
