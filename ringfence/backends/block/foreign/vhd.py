"""VHD, the format of Virtual PC and of Hyper-V's first generation: fixed and dynamic images.

The disk's size is the footer's "Current Size".  (Virtual PC showed its guests the part of it that the geometry describes, which is
less by up to one cylinder.)  In dynamic images, sectors that a block's bitmap does not mark read as zeroes.

Specification: "Virtual Hard Disk Image Format Specification", Microsoft, version 1.0, October 2006.  Integers are big-endian.
"""

from __future__ import annotations

import struct

from ringfence.backends.block.foreign.source import ForeignBlock, Run, differencing
from ringfence.backends.block.foreign.window import PagedTable, Window
from ringfence.backends.block.hostfile import HostFile
from ringfence.backends.block.raw import SECTOR_BYTES
from ringfence.core.errors import ImageError
from ringfence.core.units import MIB

COOKIE, _DYNAMIC_COOKIE = b"conectix", b"cxsparse"
FOOTER_BYTES, _DYNAMIC_BYTES = 512, 1024
# cookie, features, version, data offset, time, creator (3), original and current size, geometry, type, checksum
_FOOTER = struct.Struct(">8sIIQI4sI4sQQIII")
_DYNAMIC_HEADER = struct.Struct(">8sQQIIII")  # cookie, data offset, table offset, version, entries, block size, checksum
_FIXED, _DYNAMIC, _DIFFERENCING = 2, 3, 4
_FREE = 0xFFFFFFFF
_MAX_BLOCK_BYTES = 256 * MIB
_MOST_BITMAPS = 64
_PART_BYTES = 2 * MIB  # what one sector of a bitmap describes


class VhdBlock(ForeignBlock):
    format = "vhd"

    def __init__(self, file: HostFile, window: Window) -> None:
        footer = find_footer(window)
        if footer is None:
            raise ImageError(f"{window.name} is not a VHD image.", "Check the path, or give its format.")
        _, _, version, header_offset, _, _, _, _, _, disk_bytes, _, kind, checksum = _FOOTER.unpack_from(footer)
        if checksum != _checksum(footer, _FOOTER.size - 4):
            raise window.damaged("its footer has a wrong checksum")
        if version >> 16 != 1:
            raise ImageError(f"{window.name} is a VHD image of version {version >> 16}; 1 is supported.", "Convert it with Hyper-V.")
        if kind == _DIFFERENCING:
            raise differencing(window)
        if kind not in (_FIXED, _DYNAMIC):
            raise window.damaged(f"a disk type of {kind} is not possible")
        super().__init__([file], window, disk_bytes, "fixed" if kind == _FIXED else "dynamic")
        self._table: PagedTable | None = None
        if kind == _FIXED:
            window.check(0, disk_bytes + FOOTER_BYTES, "data")
            return
        header = window.read(header_offset, _DYNAMIC_BYTES, "dynamic header")
        cookie, _, table_offset, _, entries, block_bytes, checksum = _DYNAMIC_HEADER.unpack_from(header)
        if cookie != _DYNAMIC_COOKIE or checksum != _checksum(header, _DYNAMIC_HEADER.size - 4):
            raise window.damaged("its dynamic header has no cookie or a wrong checksum")
        if not SECTOR_BYTES <= block_bytes <= _MAX_BLOCK_BYTES or block_bytes & block_bytes - 1:
            raise window.damaged(f"blocks of {block_bytes} bytes are not possible")
        if entries < -(-disk_bytes // block_bytes):
            raise window.damaged("its block allocation table is too small for its size")
        self._block_bytes = block_bytes
        self._bitmap_bytes = -(-block_bytes // SECTOR_BYTES // 8 // SECTOR_BYTES) * SECTOR_BYTES or SECTOR_BYTES
        self._table = PagedTable(window, table_offset, entries, 4, "block allocation table", big_endian=True)
        self._bitmaps: dict[tuple[int, int], int] = {}

    def _run(self, offset: int, limit: int) -> Run:
        if self._table is None:
            return Run(limit, self._file, offset)
        block, within = divmod(offset, self._block_bytes)
        entry = self._table[block]
        if entry == _FREE:
            most = -(-(within + limit) // self._block_bytes)
            return Run(min(limit, self._table.repeats(block, most) * self._block_bytes - within))
        part = within // _PART_BYTES
        end = min(self._block_bytes, (part + 1) * _PART_BYTES)
        count = (end - within // SECTOR_BYTES * SECTOR_BYTES) // SECTOR_BYTES
        rest = self._bitmap(entry, part) & (1 << count) - 1
        marked = rest >> count - 1
        other = (1 << count) - 1 ^ rest if marked else rest  # its highest bit is where the answer changes
        size_bytes = min(limit, (count - other.bit_length()) * SECTOR_BYTES - within % SECTOR_BYTES)
        if not marked:
            return Run(size_bytes)
        return Run(size_bytes, self._file, entry * SECTOR_BYTES + self._bitmap_bytes + within)

    def _bitmap(self, sector: int, part: int) -> int:
        """Which sectors of a part of a block hold data, the first in the highest bit of a number."""
        key = (sector, part)
        bits = self._bitmaps.get(key)
        if bits is None:
            data = self._file.read(sector * SECTOR_BYTES + part * SECTOR_BYTES, SECTOR_BYTES, "bitmap of a block")
            count = min(self._block_bytes, _PART_BYTES) // SECTOR_BYTES
            bits = int.from_bytes(data, "big") >> len(data) * 8 - count
            if len(self._bitmaps) >= _MOST_BITMAPS:
                del self._bitmaps[next(iter(self._bitmaps))]
            self._bitmaps[key] = bits
        return bits


def find_footer(window: Window) -> bytearray | None:
    """The footer at the end, or where that is missing or damaged its copy at the beginning of dynamic images; None without one."""
    found = None
    if window.size_bytes >= FOOTER_BYTES:
        for offset in (window.size_bytes - FOOTER_BYTES, 0):
            footer = window.read(offset, FOOTER_BYTES, "footer")
            if footer[: len(COOKIE)] != COOKIE:
                continue
            fits = _FOOTER.unpack_from(footer)[-1] == _checksum(footer, _FOOTER.size - 4)
            if fits:
                return footer
            found = found or footer
    return found


def _checksum(data: bytearray, at: int) -> int:
    """One's complement of the sum of all bytes but those of the checksum itself."""
    return ~(sum(data) - sum(data[at : at + 4])) & 0xFFFFFFFF
