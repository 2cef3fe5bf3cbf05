"""Geometry by size and by partition table."""

from __future__ import annotations

import struct

import pytest

from ringfence.devices.ata_geometry import Geometry, Translation, default_geometry, guess_geometry


def mbr(end_head: int, end_sector: int, entry: int = 0, kind: int = 6, status: int = 0x80) -> bytes:
    table = bytearray(64)
    struct.pack_into("<8BII", table, 16 * entry, status, 1, 1, 0, kind, end_head, end_sector | 0xC0, 0xFF, 63, 1000)
    return bytes(446) + bytes(table) + b"\x55\xaa"


@pytest.mark.parametrize(
    ("sectors", "geometry"),
    [(1, (1, 16, 63)), (20160, (20, 16, 63)), (1008 * 16383, (16383, 16, 63)), (1 << 40, (16383, 16, 63))],
)
def test_by_size(sectors: int, geometry: tuple[int, int, int]) -> None:
    assert default_geometry(sectors) == geometry


@pytest.mark.parametrize(
    ("sectors", "first", "geometry", "translation"),
    [
        (41820, mbr(3, 17), Geometry(615, 4, 17), Translation.NONE),  # a 20 MB disk of 1984
        (41820, mbr(3, 17, entry=2), Geometry(615, 4, 17), Translation.NONE),
        (1_000_000, bytes(512), Geometry(992, 16, 63), Translation.NONE),
        (2_097_152, mbr(63, 63), Geometry(2080, 16, 63), Translation.LARGE),
        (2_097_152, mbr(254, 63), Geometry(2080, 16, 63), Translation.LBA),
        (2_097_152, bytes(512), Geometry(2080, 16, 63), Translation.LBA),
        (41820, mbr(254, 63), Geometry(41, 16, 63), Translation.LBA),
        (1 << 30, mbr(254, 63), Geometry(16383, 16, 63), Translation.LBA),
        (41820, mbr(3, 17)[:510] + bytes(2), Geometry(41, 16, 63), Translation.NONE),
        (41820, mbr(3, 17, status=0x31), Geometry(41, 16, 63), Translation.NONE),
        (41820, mbr(3, 17, kind=0), Geometry(41, 16, 63), Translation.NONE),
        (41820, b"", Geometry(41, 16, 63), Translation.NONE),
        (10, mbr(15, 63), Geometry(1, 16, 63), Translation.NONE),  # smaller than its own cylinder
    ],
)
def test_by_partition_table(sectors: int, first: bytes, geometry: Geometry, translation: Translation) -> None:
    assert guess_geometry(sectors, first) == (geometry, translation)
