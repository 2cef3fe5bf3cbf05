"""Snapshots and bitmaps of a qcow2 image: where they are, so that nothing overwrites them.

Snapshots stay as they are.  Dirty bitmaps would be wrong after the first write, as nobody here keeps them: they are given up
then, which the header's auto-clear bit tells to everyone.

Specification: qcow2, sections "Snapshots" and "Bitmaps".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ringfence.backends.block.hostfile import DamagedImage, HostFile
from ringfence.backends.block.qcow2_format import BITMAPS_VALID, MAX_L1_BYTES, OFFSET_MASK, Header
from ringfence.backends.block.qcow2_table import decode
from ringfence.core.units import MIB

SNAPSHOT_L1, BITMAP_TABLE = "L1 table of a snapshot", "bitmap table"
_ENTRY = struct.Struct(">QIHHIIQII")
_BITMAP = struct.Struct(">QIIBBHI")
_MAX_SNAPSHOT_TABLE_BYTES = 64 * MIB
_MAX_TOTAL_BYTES = 256 * MIB
_MAX_BITMAP_TABLE_BYTES = 32 * MIB


@dataclass(frozen=True)
class Area:
    """Bytes of the file that belong to one table."""

    what: str
    offset: int
    size_bytes: int

    def clusters(self, cluster_bits: int) -> range:
        return range(self.offset >> cluster_bits, (self.offset + self.size_bytes - 1 >> cluster_bits) + 1)


def snapshot_areas(file: HostFile, header: Header) -> Iterator[Area]:
    """The snapshots' L1 tables, then the table of snapshots."""
    offset, file_bytes = header.snapshots_offset, file.end()
    for _ in range(header.snapshot_count):
        l1_offset, l1_entries, id_bytes, name_bytes, *_times, _state_bytes, extra_bytes = _ENTRY.unpack(file.read(offset, _ENTRY.size))
        if l1_entries * 8 > MAX_L1_BYTES:
            raise DamagedImage(header.name, "a snapshot's L1 table is too large")
        yield Area(SNAPSHOT_L1, l1_offset, l1_entries * 8)
        offset += -(-(_ENTRY.size + extra_bytes + id_bytes + name_bytes) // 8) * 8
        if offset - header.snapshots_offset > _MAX_SNAPSHOT_TABLE_BYTES or offset > file_bytes + 7:
            raise DamagedImage(header.name, "its snapshot table is too long")
    if header.snapshot_count:
        yield Area("snapshot table", header.snapshots_offset, min(offset, file_bytes) - header.snapshots_offset)


def bitmap_areas(file: HostFile, header: Header) -> Iterator[Area]:
    """The directory of bitmaps, then the table of each; none when the header calls them out of date."""
    if header.bitmaps is None or not header.autoclear & BITMAPS_VALID:
        return
    directory = file.read(header.bitmaps.directory_offset, header.bitmaps.directory_bytes)
    yield Area("bitmap directory", header.bitmaps.directory_offset, len(directory))
    at = 0
    for _ in range(header.bitmaps.count):
        if at + _BITMAP.size > len(directory):
            raise DamagedImage(header.name, "its bitmap directory is cut off")
        offset, entries, _flags, _kind, _granularity, name_bytes, extra_bytes = _BITMAP.unpack_from(directory, at)
        if entries * 8 > _MAX_BITMAP_TABLE_BYTES:
            raise DamagedImage(header.name, "a bitmap's table is too large")
        yield Area(BITMAP_TABLE, offset, entries * 8)
        at += -(-(_BITMAP.size + extra_bytes + name_bytes) // 8) * 8


def bitmap_clusters(file: HostFile, area: Area) -> list[int]:
    """Offsets of the clusters that a bitmap's table refers to."""
    return [entry & OFFSET_MASK for entry in decode(file.read(area.offset, area.size_bytes), 64) if entry & OFFSET_MASK]


def claim(header: Header, areas: Iterator[Area], file_bytes: int, metadata: set[int]) -> list[Area]:
    """Enters the areas' clusters into `metadata`.  Raises ImageError: unaligned, behind the end of the file, overlapping."""
    claimed = []
    total_bytes = 0
    for area in areas:
        if not area.size_bytes:
            continue
        total_bytes += area.size_bytes
        if total_bytes > _MAX_TOTAL_BYTES:  # a file of holes can hold terabytes of empty tables
            raise DamagedImage(header.name, "its snapshots or bitmaps have too large tables")
        if area.offset % header.cluster_bytes or area.offset + area.size_bytes > file_bytes:
            raise DamagedImage(header.name, f"its {area.what} is not where it can be ({area.offset:#x} + {area.size_bytes:#x})")
        clusters = area.clusters(header.cluster_bits)
        if not metadata.isdisjoint(clusters):
            raise DamagedImage(header.name, f"its {area.what} overlaps another table")
        metadata.update(clusters)
        claimed.append(area)
    return claimed


def fixed_areas(header: Header) -> Iterator[Area]:
    """What the header itself points to."""
    yield Area("header", 0, 1)
    yield Area("L1 table", header.l1_offset, header.l1_entries * 8)
    yield Area("refcount table", header.refcount_table_offset, header.refcount_table_clusters << header.cluster_bits)
