"""What the host gives to devices.  A backend is never saved; it is always supplied anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable


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


@runtime_checkable
class VectorBlock(Block, Protocol):
    """A disk that is quicker when it gets an access's pieces at once, and leaves their bytes where they are."""

    def read_vector(self, offset: int, buffers: Sequence[memoryview], wait: bool = True) -> bool:
        """Fills the buffers, one after the other, from one place on.

        Without `wait` it may return False instead, with nothing or a part of it done: the host would have to ask its disk.
        """

    def write_vector(self, offset: int, parts: Sequence[memoryview]) -> None: ...


class Char(Protocol):
    """A byte stream: a serial line's other end."""

    def write(self, data: bytes) -> None:
        """Bytes from the guest."""

    def start(self, receive: Callable[[bytes], None]) -> None:
        """From now on `receive` is called, on any thread, with bytes for the guest."""

    def close(self) -> None:
        """Stops receiving and gives the host's terminal back as it was."""


class Frame(NamedTuple):
    """One picture of a screen: three bytes a pixel (red, green, blue), rows from top to bottom without padding."""

    width: int
    height: int
    rgb: bytes


class TextScreen(NamedTuple):
    """A screen in a text mode.  `lines` are `rows` texts of `columns` characters; `attributes` holds one byte a cell as in VGA
    memory (background in the high nibble, foreground in the low one); `cursor` is column and row, None while it is hidden."""

    columns: int
    rows: int
    lines: tuple[str, ...]
    cursor: tuple[int, int] | None
    attributes: bytes


class Screen(Protocol):
    """A video card as its viewers see it.  On the device thread only."""

    def frame(self) -> Frame: ...

    def text(self) -> TextScreen | None:
        """The characters shown; None in graphics modes."""
