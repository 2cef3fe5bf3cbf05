"""Address spaces: ranges to handlers.

One `Bus` for I/O ports (64 KiB) and one for MMIO (guest physical addresses that are not RAM).  A handler sees offsets
relative to its own base and accesses of 1, 2, 4 or 8 bytes that lie wholly inside of its range; an access that straddles
ranges is split into bytes.  What nobody claims reads as all ones and swallows writes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple, Protocol


class Handler(Protocol):
    """What a device offers to a bus.  `offset` is in bytes from the range's base, `size` in bytes (1, 2, 4, 8)."""

    def read(self, offset: int, size: int) -> int: ...

    def write(self, offset: int, size: int, value: int) -> None: ...


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
