"""Cylinders, heads and sectors of disks that have none.

What a disk tells in IDENTIFY (the physical geometry) and what firmware makes of it for INT 13h (the logical one, at most
1024 cylinders) matter to systems that address by cylinder.  A disk that was partitioned elsewhere carries the logical geometry
of that machine in its partition table: the last sector of a partition usually ends a cylinder.
ATA/ATAPI-6, annex on CHS; the translations are those of Phoenix's Enhanced Disk Drive Specification 1.1, 5.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

MAX_CYLINDERS, MAX_HEADS, MAX_SECTORS = 16383, 16, 63
_TABLE, _ENTRY_BYTES, _ENTRIES = 0x1BE, 16, 4


class Geometry(NamedTuple):
    cylinders: int
    heads: int
    sectors: int


class Translation(IntEnum):
    """How firmware makes the logical geometry; the values are those of CMOS byte 0x39, two bits a disk."""

    NONE, LBA, LARGE = 0, 1, 2


def default_geometry(sectors: int) -> Geometry:
    """For a disk of `sectors`: 16 heads of 63 sectors, and as many cylinders as are filled."""
    return Geometry(min(max(sectors // (MAX_HEADS * MAX_SECTORS), 1), MAX_CYLINDERS), MAX_HEADS, MAX_SECTORS)


def guess_geometry(sectors: int, first_sector: bytes) -> tuple[Geometry, Translation]:
    """The geometry of a disk of `sectors` that begins with `first_sector`, and the translation it is used with."""
    heads, per_track = _partitioned_with(first_sector)
    if 1 <= heads <= MAX_HEADS and per_track:
        # No translation was active where it was partitioned: a disk of that time, with that geometry.
        cylinders = sectors // (heads * per_track)
        if 1 <= cylinders <= MAX_CYLINDERS:
            return Geometry(cylinders, heads, per_track), Translation.NONE
    physical = default_geometry(sectors)
    if heads <= MAX_HEADS and physical.cylinders <= 1024:
        return physical, Translation.NONE
    # With 255 heads and 63 sectors only LBA-assisted translation agrees; LARGE doubles heads until 1024 cylinders are left.
    if heads and heads not in (255, 256) and physical.cylinders * physical.heads <= 131072:
        return physical, Translation.LARGE
    return physical, Translation.LBA


def _partitioned_with(first_sector: bytes) -> tuple[int, int]:
    """(heads, sectors a track) by the end of the first partition that tells; zeroes when none does."""
    if len(first_sector) < 512 or first_sector[510:512] != b"\x55\xaa":
        return 0, 0
    for k in range(_ENTRIES):
        entry = first_sector[_TABLE + k * _ENTRY_BYTES : _TABLE + (k + 1) * _ENTRY_BYTES]
        end_head, end_sector = entry[5], entry[6] & 0x3F
        if entry[0] & 0x7F:
            return 0, 0  # no partition table: a boot sector of a file system
        (size,) = struct.unpack_from("<I", entry, 12)
        if entry[4] and size and end_head and end_sector:
            return end_head + 1, end_sector
    return 0, 0
