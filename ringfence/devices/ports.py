"""Byte-wide register files behind wider port accesses.

Parts of the ISA era decode eight data lines; the bus controller turns a wider access into byte accesses at ascending
ports (PC/AT Technical Reference, "I/O bus conversion").  `BytePorts` does that turning for a device that only knows
bytes.
"""

from __future__ import annotations

from collections.abc import Callable


class BytePorts:
    """A bus handler of `count` byte-wide ports; what lies behind the last one reads as all ones."""

    __slots__ = ("_read8", "_write8", "count")

    def __init__(self, count: int, read8: Callable[[int], int], write8: Callable[[int, int], None]) -> None:
        self.count = count
        self._read8 = read8
        self._write8 = write8

    def read(self, offset: int, size: int) -> int:
        if size == 1 and offset < self.count:
            return self._read8(offset)
        value = 0
        for k in range(size):
            value |= (self._read8(offset + k) if offset + k < self.count else 0xFF) << 8 * k
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        for k in range(min(size, self.count - offset)):
            self._write8(offset + k, value >> 8 * k & 0xFF)
