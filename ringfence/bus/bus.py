"""Address spaces: ranges to handlers.

One `Bus` for I/O ports (64 KiB) and one for MMIO (guest physical addresses that are not RAM).  A handler sees offsets
relative to its own base and accesses of 1, 2, 4 or 8 bytes that lie wholly inside of its range; an access that straddles
ranges is split into bytes.  What nobody claims reads as all ones and swallows writes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

from ringfence.core.port_hint import PortHint

AT_ONCE = 64  # accesses to a handler without bulk access, between two looks of the caller at interrupts and the clock


class Handler(Protocol):
    """What a device offers to a bus.  `offset` is in bytes from the range's base, `size` in bytes (1, 2, 4, 8)."""

    def read(self, offset: int, size: int) -> int: ...

    def write(self, offset: int, size: int, value: int) -> None: ...


@runtime_checkable
class BulkHandler(Handler, Protocol):
    """A handler that is quicker when it gets a string instruction's accesses (`rep insw`) at once.

    They all go to the same offset, as from a port to memory.  The handler may do fewer than asked, but one at least: a drive
    stops where a block of data ends, so that the interrupt that follows is seen between two blocks.  The caller comes again.
    """

    def read_many(self, offset: int, size: int, count: int) -> bytes:
        """What up to `count` reads of `size` bytes gave, one after the other; whole elements, at least one."""

    def write_many(self, offset: int, size: int, data: bytes | memoryview) -> int:
        """Takes `data`, elements of `size` bytes, as writes; returns how many elements it has taken, at least one."""


class Range(NamedTuple):
    base: int
    end: int  # exclusive
    handler: Handler
    name: str


class Bus:
    """A sorted list of disjoint ranges."""

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self.hints: dict[int, PortHint] = {}  # by port; entered before the engine is built
        self._ranges: list[Range] = []
        self._bases: list[int] = []

    def add(self, base: int, size: int, handler: Handler, name: str) -> Range:
        """Claims [base, base + size); raises ValueError when that overlaps another range or leaves the space."""
        new = Range(base, base + size, handler, name)
        if size <= 0 or base < 0 or new.end > self.size:
            raise ValueError(f"{self.name}: {name} at {base:#x}+{size:#x} does not fit the address space")
        for old in self._ranges:
            if base < old.end and old.base < new.end:
                raise ValueError(f"{self.name}: {name} at {base:#x}+{size:#x} overlaps {old.name} at {old.base:#x}")
        self._ranges = sorted([*self._ranges, new])
        self._bases = [r.base for r in self._ranges]
        return new

    def remove(self, entry: Range) -> None:
        """Gives up a range (a PCI BAR that moves)."""
        self._ranges = [r for r in self._ranges if r is not entry]
        self._bases = [r.base for r in self._ranges]

    def find(self, address: int) -> Range | None:
        index = bisect_right(self._bases, address) - 1
        if index >= 0 and address < self._ranges[index].end:
            return self._ranges[index]
        return None

    def __iter__(self) -> Iterator[Range]:
        return iter(self._ranges)

    def read(self, address: int, size: int) -> int:
        entry = self.find(address)
        if entry is not None and address + size <= entry.end:
            return entry.handler.read(address - entry.base, size) & (1 << 8 * size) - 1
        if size == 1 or (entry is None and self.find(address + size - 1) is None):
            return (1 << 8 * size) - 1
        return sum(self.read(address + k, 1) << 8 * k for k in range(size))

    def write(self, address: int, size: int, value: int) -> None:
        entry = self.find(address)
        if entry is not None and address + size <= entry.end:
            entry.handler.write(address - entry.base, size, value & (1 << 8 * size) - 1)
        elif size > 1 and (entry is not None or self.find(address + size - 1) is not None):
            for k in range(size):
                self.write(address + k, 1, value >> 8 * k & 0xFF)

    def read_many(self, address: int, size: int, count: int) -> bytes:
        """`count` reads of the same address; fewer, but one at least, where a pause is wanted (see `BulkHandler`)."""
        entry = self.find(address)
        if entry is not None and address + size <= entry.end and isinstance(entry.handler, BulkHandler):
            return entry.handler.read_many(address - entry.base, size, count)
        return b"".join([self.read(address, size).to_bytes(size, "little") for _ in range(min(count, AT_ONCE))])

    def write_many(self, address: int, size: int, data: bytes | memoryview) -> int:
        """Writes `data`, elements of `size` bytes, to the same address; returns how many elements were taken."""
        entry = self.find(address)
        if entry is not None and address + size <= entry.end and isinstance(entry.handler, BulkHandler):
            return entry.handler.write_many(address - entry.base, size, data)
        taken = min(len(data) // size, AT_ONCE)
        for start in range(0, taken * size, size):
            self.write(address, size, int.from_bytes(data[start : start + size], "little"))
        return taken
