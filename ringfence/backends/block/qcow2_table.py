"""Tables of big-endian integers, one cluster each, as qcow2 uses them for reference counts and for cluster mapping.

Specification: qcow2, sections "Host cluster management" (entries of 1 to 64 bits, the first entry of a byte in its least
significant bits) and "Cluster mapping".
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator

PAGE_BITS = 12  # a changed table is written back in pages of 4 KiB
_TYPE_CODES = {1: "B", 2: "B", 4: "B", 8: "B", 16: "H", 32: "I", 64: "Q"}

Write = tuple[int, bytes]


class Table:
    """One cluster of `bits` wide big-endian entries, as an array of native integers."""

    __slots__ = ("offset", "bits", "entries", "dirty", "fresh")

    def __init__(self, offset: int, bits: int, entries: array[int], fresh: bool = False, dirty: Iterable[int] = ()) -> None:
        self.offset = offset
        self.bits = bits
        self.entries = entries
        self.dirty = set(dirty)  # pages that differ from the file
        self.fresh = fresh  # not in the file yet at all

    def mark(self, first: int, count: int) -> None:
        shift = PAGE_BITS + 3
        self.dirty.update(range(first * self.bits >> shift, ((first + count) * self.bits - 1 >> shift) + 1))

    def writes(self) -> Iterator[Write]:
        """The changed pages, neighbours together."""
        pages = sorted(self.dirty)
        step = (8 << PAGE_BITS) // self.bits
        at = 0
        while at < len(pages):
            run = at + 1
            while run < len(pages) and pages[run] == pages[run - 1] + 1:
                run += 1
            yield self.offset + (pages[at] << PAGE_BITS), encode(self.entries[pages[at] * step : (pages[run - 1] + 1) * step], self.bits)
            at = run


def decode(data: bytes | bytearray, bits: int) -> array[int]:
    entries = array(_TYPE_CODES[bits])
    if bits >= 8:
        entries.frombytes(data)
        if sys.byteorder == "little":
            entries.byteswap()
        return entries
    # entries narrower than a byte, the first in the least significant bits: shift all bytes at once as one long integer
    packed, per_byte = int.from_bytes(data, "little"), 8 // bits
    mask = int.from_bytes(bytes([(1 << bits) - 1]) * len(data), "little")
    spread = bytearray(len(data) * per_byte)
    for position in range(per_byte):
        spread[position::per_byte] = (packed >> position * bits & mask).to_bytes(len(data), "little")
    entries.frombytes(spread)
    return entries


def encode(entries: array[int], bits: int) -> bytes:
    if bits >= 8:
        copy = array(entries.typecode, entries)
        if sys.byteorder == "little":
            copy.byteswap()
        return copy.tobytes()
    per_byte, spread = 8 // bits, entries.tobytes()
    size_bytes = len(spread) // per_byte
    packed = sum(int.from_bytes(spread[position::per_byte], "little") << position * bits for position in range(per_byte))
    return packed.to_bytes(size_bytes, "little")
