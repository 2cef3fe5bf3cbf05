"""Bounded reading from images that are not trusted: a file or a part of one, tables by pages, CRC-32C."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator

from ringfence.backends.block.hostfile import DamagedImage, HostFile
from ringfence.core.units import MIB

_TYPE_CODES = {4: "I", 8: "Q"}
_PAGE_BYTES = 64 << 10
_MOST_PAGES = 16
_LARGEST_PIECE_BYTES = 4 * MIB


class Window:
    """Bytes `start` to `start + size_bytes` of an open file as a file of its own; by default all of it.  Does not own the file."""

    def __init__(self, file: HostFile, start: int = 0, size_bytes: int | None = None, name: str | None = None) -> None:
        self._file = file
        self._start = start
        self.size_bytes = file.end() - start if size_bytes is None else size_bytes
        self.name = name or file.name

    def damaged(self, what: str) -> DamagedImage:
        return DamagedImage(self.name, what)

    def read(self, offset: int, size_bytes: int, what: str) -> bytearray:
        """Exactly these bytes, at most 4 MiB.  Raises ImageError with `what` when they are not in the file."""
        self.check(offset, size_bytes, what)
        if size_bytes > _LARGEST_PIECE_BYTES:
            raise self.damaged(f"its {what} is too large ({size_bytes} bytes)")
        return self._file.read(self._start + offset, size_bytes)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.check(offset, len(buffer), "data")
        self._file.read_into(self._start + offset, buffer)

    def check(self, offset: int, size_bytes: int, what: str) -> None:
        if offset < 0 or size_bytes < 0 or offset + size_bytes > self.size_bytes:
            raise self.damaged(f"its {what} is not in the file ({offset:#x} + {size_bytes:#x} of {self.size_bytes:#x})")

    def data_ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Offset and size of what the host's file system does not know as holes."""
        for at, size_bytes in self._file.data_ranges(self._start + start, self._start + end):
            yield at - self._start, size_bytes


class PagedTable:
    """`count` unsigned integers of 4 or 8 bytes, read in pages of 64 KiB when one is used; a MiB of them is kept."""

    def __init__(self, file: Window, offset: int, count: int, entry_bytes: int, what: str, big_endian: bool = False) -> None:
        """Raises ImageError when the table is not in the file."""
        file.check(offset, count * entry_bytes, what)
        self._file = file
        self._offset = offset
        self.count = count
        self._entry_bytes = entry_bytes
        self._what = what
        self._swapped = big_endian != (sys.byteorder == "big")
        self._per_page = _PAGE_BYTES // entry_bytes
        self._pages: dict[int, tuple[array[int], bool]] = {}  # entries, and whether all are equal

    def __getitem__(self, index: int) -> int:
        number, within = divmod(index, self._per_page)
        return self._page(number)[0][within]

    def repeats(self, index: int, limit: int) -> int:
        """How many entries from `index` on equal the first of them; at least 1, at most `limit`."""
        value, at, end = self[index], index, min(index + limit, self.count)
        while at < end:
            number, within = divmod(at, self._per_page)
            entries, uniform = self._page(number)
            stop = min(len(entries), within + end - at)
            if uniform and entries[0] == value:
                at += stop - within
                continue
            begun = within
            while within < stop and entries[within] == value:
                within += 1
            at += within - begun
            if within < stop:
                break
        return at - index

    def ascends(self, index: int, limit: int, step: int) -> int:
        """How many entries from `index` on each are `step` more than the one before; at least 1, at most `limit`."""
        expected, at, end = self[index] + step, index + 1, min(index + limit, self.count)
        while at < end and self[at] == expected:
            expected += step
            at += 1
        return at - index

    def _page(self, number: int) -> tuple[array[int], bool]:
        page = self._pages.get(number)
        if page is None:
            first = number * self._per_page
            count = min(self._per_page, self.count - first)
            data = self._file.read(self._offset + first * self._entry_bytes, count * self._entry_bytes, self._what)
            entries = array(_TYPE_CODES[self._entry_bytes])
            entries.frombytes(data)
            if self._swapped:
                entries.byteswap()
            page = (entries, data[self._entry_bytes :] == data[: -self._entry_bytes])
            if len(self._pages) >= _MOST_PAGES:
                del self._pages[next(iter(self._pages))]
            self._pages[number] = page
        return page


# --- CRC-32C (Castagnoli; RFC 3720, 12.1, reflected polynomial) ---

_POLYNOMIAL = 0x82F63B78


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


_CRC_TABLE = _crc_table()


def crc32c(data: bytes | bytearray) -> int:
    """The checksum; zeroes at the end cost next to nothing, which is most of what is checked here."""
    head = data.rstrip(b"\0")
    register, table = 0xFFFFFFFF, _CRC_TABLE
    for byte in head:
        register = register >> 8 ^ table[(register ^ byte) & 0xFF]
    return _times(register, _power_of_x(8 * (len(data) - len(head)))) ^ 0xFFFFFFFF


def _times(left: int, right: int) -> int:
    """The product of two polynomials modulo the CRC's; the coefficient of x^0 is the highest of the 32 bits."""
    product = 0
    for bit in range(31, -1, -1):
        if left >> bit & 1:
            product ^= right
        right = right >> 1 ^ (_POLYNOMIAL if right & 1 else 0)
    return product


def _power_of_x(exponent: int) -> int:
    result, square = 1 << 31, 1 << 30
    while exponent:
        if exponent & 1:
            result = _times(result, square)
        square = _times(square, square)
        exponent >>= 1
    return result
