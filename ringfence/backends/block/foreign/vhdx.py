"""VHDX, the format of Hyper-V: fixed and dynamic images.

An image whose log is not empty was not closed properly; it is refused rather than repaired, for a reader writes nothing.

Specification: [MS-VHDX] "Virtual Hard Disk v2 (VHDX) File Format", Microsoft.  Integers are little-endian.
"""

from __future__ import annotations

import struct
import uuid

from ringfence.backends.block.foreign.source import ForeignBlock, Run, differencing
from ringfence.backends.block.foreign.window import PagedTable, Window, crc32c
from ringfence.backends.block.hostfile import HostFile
from ringfence.core.errors import ImageError
from ringfence.core.units import MIB

SIGNATURE = b"vhdxfile"
_HEADER_OFFSETS, _REGION_OFFSETS = (64 << 10, 128 << 10), (192 << 10, 256 << 10)  # 2.2
_HEADER = struct.Struct("<4sIQ16s16s16sHHIQ")  # signature, checksum, sequence, file, data and log GUID, log version, version, log
_HEADER_BYTES, _REGION_TABLE_BYTES, _METADATA_TABLE_BYTES = 4096, 64 << 10, 64 << 10
_REGIONS = struct.Struct("<4sIII")
_REGION = struct.Struct("<16sQII")  # GUID, offset, length, required
_METADATA = struct.Struct("<8sHH20x")
_ITEM = struct.Struct("<16sIII4x")  # GUID, offset, length, flags
_MOST_ENTRIES = 2047
_REQUIRED_REGION, _REQUIRED_ITEM = 1, 4
_HAS_PARENT, _LEAVE_ALLOCATED = 2, 1


def _guid(text: str) -> bytes:
    return uuid.UUID(text).bytes_le


_BAT = _guid("2dc27766-f623-4200-9d64-115e9bfd4a08")
_METADATA_REGION = _guid("8b7ca206-4790-4b9a-b8fe-575f050f886e")
_FILE_PARAMETERS = _guid("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
_DISK_SIZE = _guid("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
_DISK_ID = _guid("beca12ab-b2e6-4523-93ef-c309e000c746")
_LOGICAL_SECTOR = _guid("8141bf1d-a96f-4709-ba47-f233a8faab5f")
_PHYSICAL_SECTOR = _guid("cda348c7-445d-4471-9cc9-e9885251c556")
_PARENT_LOCATOR = _guid("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")
_KNOWN_ITEMS = {_FILE_PARAMETERS, _DISK_SIZE, _DISK_ID, _LOGICAL_SECTOR, _PHYSICAL_SECTOR, _PARENT_LOCATOR}

# 2.5.1.1, states of payload blocks
_FULLY_PRESENT, _PARTIALLY_PRESENT = 6, 7
_READS_AS_ZEROES = (0, 1, 2, 3)  # not present, undefined, zero, unmapped
_MIN_BLOCK_BYTES, _MAX_BLOCK_BYTES = MIB, 256 * MIB


class VhdxBlock(ForeignBlock):
    format = "vhdx"

    def __init__(self, file: HostFile, window: Window) -> None:
        if window.size_bytes < len(SIGNATURE) or window.read(0, len(SIGNATURE), "signature") != SIGNATURE:
            raise ImageError(f"{window.name} is not a VHDX image.", "Check the path, or give its format.")
        _check_header(window)
        regions = _regions(window)
        items = _metadata(window, *regions[_METADATA_REGION])
        block_bytes, flags = _unpack(window, items, _FILE_PARAMETERS, "<II", "file parameters")
        (disk_bytes,) = _unpack(window, items, _DISK_SIZE, "<Q", "disk size")
        (sector_bytes,) = _unpack(window, items, _LOGICAL_SECTOR, "<I", "logical sector size")
        if flags & _HAS_PARENT:
            raise differencing(window)
        if not _MIN_BLOCK_BYTES <= block_bytes <= _MAX_BLOCK_BYTES or block_bytes & block_bytes - 1:
            raise window.damaged(f"blocks of {block_bytes} bytes are not possible")
        if sector_bytes not in (512, 4096):
            raise window.damaged(f"sectors of {sector_bytes} bytes are not possible")
        super().__init__([file], window, disk_bytes, "fixed" if flags & _LEAVE_ALLOCATED else "dynamic")
        self._block_bytes = block_bytes
        self._chunk = (sector_bytes << 23) // block_bytes  # payload blocks between two entries for bitmaps
        blocks = -(-disk_bytes // block_bytes)
        entries = blocks + (blocks - 1) // self._chunk
        bat_offset, bat_bytes = regions[_BAT]
        if entries * 8 > bat_bytes:
            raise window.damaged("its block allocation table is too small for its size")
        self._table = PagedTable(window, bat_offset, entries, 8, "block allocation table")

    def _run(self, offset: int, limit: int) -> Run:
        block, within = divmod(offset, self._block_bytes)
        chunk, place = divmod(block, self._chunk)
        index = block + chunk
        most = min(-(-(within + limit) // self._block_bytes), self._chunk - place)
        entry = self._table[index]
        state = entry & 7
        if state in _READS_AS_ZEROES:
            return Run(min(limit, self._table.repeats(index, most) * self._block_bytes - within))
        if state != _FULLY_PRESENT:
            what = "partially present, which only images with a parent know" if state == _PARTIALLY_PRESENT else f"in the state {state}"
            raise self._file.damaged(f"block {block} is {what}")
        if entry < MIB:
            raise self._file.damaged(f"block {block} cannot be in the file's header")
        size_bytes = min(limit, self._table.ascends(index, most, self._block_bytes) * self._block_bytes - within)
        return Run(size_bytes, self._file, (entry >> 20 << 20) + within)


def _check_header(window: Window) -> None:
    """2.2.2: the valid header with the higher sequence number counts."""
    newest, log_guid, version = -1, bytes(16), 0
    for offset in _HEADER_OFFSETS:
        data = window.read(offset, _HEADER_BYTES, "header")
        signature, _, sequence, _, _, log, _, this_version, _, _ = _HEADER.unpack_from(data)
        if signature == b"head" and _checksum_fits(data) and sequence > newest:
            newest, log_guid, version = sequence, log, this_version
    if newest < 0:
        raise window.damaged("neither of its headers is valid")
    if version != 1:
        raise ImageError(f"{window.name} is a VHDX image of version {version}; 1 is supported.", "Convert it with Hyper-V.")
    if any(log_guid):
        raise ImageError(
            f"{window.name} was not closed properly: its log holds changes that are not in their places yet.",
            "Open it once in Hyper-V, or replay the log of a copy with `qemu-img check -r all`.",
        )


def _regions(window: Window) -> dict[bytes, tuple[int, int]]:
    """2.2.3: offset and length of the two regions, from the first valid table."""
    for offset in _REGION_OFFSETS:
        data = window.read(offset, _REGION_TABLE_BYTES, "region table")
        signature, _, count, _ = _REGIONS.unpack_from(data)
        if signature == b"regi" and count <= _MOST_ENTRIES and _checksum_fits(data):
            break
    else:
        raise window.damaged("neither of its region tables is valid")
    found: dict[bytes, tuple[int, int]] = {}
    for number in range(count):
        guid, start, size_bytes, required = _REGION.unpack_from(data, _REGIONS.size + number * _REGION.size)
        if guid in (_BAT, _METADATA_REGION):
            if guid in found:
                raise window.damaged("a region appears twice")
            if start < MIB or start % MIB or size_bytes % MIB:
                raise window.damaged(f"a region cannot be at {start:#x} + {size_bytes:#x}")
            found[guid] = (start, size_bytes)
        elif required & _REQUIRED_REGION:
            raise ImageError(f"{window.name} needs the unknown region {uuid.UUID(bytes_le=guid)}.", "Convert it with Hyper-V.")
    if len(found) != 2:
        raise window.damaged("it has no block allocation table or no metadata")
    return found


def _metadata(window: Window, start: int, size_bytes: int) -> dict[bytes, tuple[int, int]]:
    """2.6: offset in the file and length of each item."""
    if size_bytes < _METADATA_TABLE_BYTES:
        raise window.damaged("its metadata region is too small")
    data = window.read(start, _METADATA_TABLE_BYTES, "metadata table")
    signature, _, count = _METADATA.unpack_from(data)
    if signature != b"metadata" or count > _MOST_ENTRIES:
        raise window.damaged("its metadata table is not valid")
    found: dict[bytes, tuple[int, int]] = {}
    for number in range(count):
        guid, offset, length, flags = _ITEM.unpack_from(data, _METADATA.size + number * _ITEM.size)
        if guid in _KNOWN_ITEMS:
            if guid in found or offset < _METADATA_TABLE_BYTES or offset + length > size_bytes:
                raise window.damaged("a metadata item appears twice or is not where it can be")
            found[guid] = (start + offset, length)
        elif flags & _REQUIRED_ITEM:
            raise ImageError(f"{window.name} needs the unknown metadata {uuid.UUID(bytes_le=guid)}.", "Convert it with Hyper-V.")
    return found


def _unpack(window: Window, items: dict[bytes, tuple[int, int]], guid: bytes, layout: str, what: str) -> tuple[int, ...]:
    size_bytes = struct.calcsize(layout)
    offset, length = items.get(guid, (0, -1))
    if length != size_bytes:
        raise window.damaged(f"its metadata does not tell the {what}")
    return struct.unpack(layout, window.read(offset, size_bytes, what))


def _checksum_fits(data: bytearray) -> bool:
    stored = int.from_bytes(data[4:8], "little")
    data[4:8] = bytes(4)
    return stored == crc32c(data)
