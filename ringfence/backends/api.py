"""What the host gives to devices.  A backend is never saved; it is always supplied anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Block(Protocol):
    """A disk.  Offsets and sizes are in bytes, multiples of 512.  Methods may be called from any one thread at a time.

    An `OSError` (ENOSPC, EIO) is the host's answer to an access; the device reports it to the guest.
    """

    size_bytes: int
    readonly: bool

    def read(self, offset: int, buffer: memoryview) -> None:
        """Fills the buffer."""

    def write(self, offset: int, data: memoryview) -> None: ...

    def flush(self) -> None:
        """Returns when everything written before is on stable storage (fsync)."""

    def discard(self, offset: int, size_bytes: int) -> None:
        """The range's contents are of no interest any more; it may read back as zeroes or unchanged."""

    def write_zeroes(self, offset: int, size_bytes: int, may_unmap: bool) -> None: ...

    def close(self) -> None: ...


class Char(Protocol):
    """A byte stream: a serial line's other end."""

    def write(self, data: bytes) -> None:
        """Bytes from the guest."""

    def start(self, receive: Callable[[bytes], None]) -> None:
        """From now on `receive` is called, on any thread, with bytes for the guest."""

    def close(self) -> None:
        """Stops receiving and gives the host's terminal back as it was."""
