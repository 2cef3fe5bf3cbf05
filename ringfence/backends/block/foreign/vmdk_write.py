"""Writes VMDK images from a disk's data in ascending order: monolithicSparse, and streamOptimized as appliances use it.

Specification: "Virtual Disk Format 5.0", VMware, 2011 (sections "Hosted Sparse Extents" and "Stream-Optimized Compressed Sparse
Extents").  Grains of 64 KiB, tables of 512 entries.
"""

from __future__ import annotations

import os
import struct
import zlib
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from ringfence.backends.block.foreign.vmdk import (
    COMPRESSED,
    DEFLATE,
    DIRECTORY_AT_END,
    GRAIN_MARKER,
    HEADER,
    MAGIC,
    MARKERS,
    NEWLINE_TEST,
    NEWLINES,
    TABLE_ENTRIES,
)
from ringfence.backends.block.hostfile import BytesLike, HostFile
from ringfence.backends.block.raw import SECTOR_BYTES
from ringfence.core.errors import UserError
from ringfence.core.units import format_size

GRAIN_BYTES = 64 << 10
_GRAIN_SECTORS = GRAIN_BYTES // SECTOR_BYTES
_SPAN_BYTES = GRAIN_BYTES * TABLE_ENTRIES
_TABLE_SECTORS = TABLE_ENTRIES * 4 // SECTOR_BYTES
_TEXT_SECTOR, _TEXT_SECTORS = 1, 20
_MAX_SECTORS = 1 << 32  # a grain's place is a number of 32 bits
_REDUNDANT = 2  # header flag: the second directory is in use
_MARKER = struct.Struct("<QII496x")
_TABLE_MARKER, _DIRECTORY_MARKER, _FOOTER_MARKER = 1, 2, 3
_LEVEL = 3


class SparseWriter:
    """A monolithicSparse image of `size_bytes` in an empty file.  `name` is the file's later name, which the descriptor tells."""

    def __init__(self, file: HostFile, size_bytes: int, name: str) -> None:
        self._file = file
        self._size_bytes = size_bytes
        self._name = name
        tables = -(-size_bytes // _SPAN_BYTES)
        directory_sectors = -(-tables * 4 // SECTOR_BYTES)
        self._copy_sectors = directory_sectors + tables * _TABLE_SECTORS  # from the redundant tables to the others
        self._redundant = _TEXT_SECTOR + _TEXT_SECTORS
        self._directory = self._redundant + self._copy_sectors
        self._first_table = self._redundant + directory_sectors
        self._overhead = -(-(self._directory + self._copy_sectors) // _GRAIN_SECTORS) * _GRAIN_SECTORS
        self._next = self._overhead
        if self._overhead + size_bytes // SECTOR_BYTES + _GRAIN_SECTORS > _MAX_SECTORS:
            raise UserError(
                f"A VMDK image of this kind cannot hold a disk of {format_size(size_bytes)}; it ends before 2 TiB.",
                "Choose qcow2, or vmdk-stream.",
            )
        for start in (self._redundant, self._directory):
            first = start + directory_sectors
            places = range(first, first + tables * _TABLE_SECTORS, _TABLE_SECTORS)
            file.write(start * SECTOR_BYTES, _entries(array("I", places)))
        self._table = -1
        self._grains = array("I")

    def write(self, offset: int, data: memoryview) -> None:
        """Data at a multiple of 64 KiB, behind all that was written before; only the disk's last grain may be incomplete."""
        self._file.write(self._next * SECTOR_BYTES, data)
        for grain in range(offset // GRAIN_BYTES, -(-(offset + len(data)) // GRAIN_BYTES)):
            table, place = divmod(grain, TABLE_ENTRIES)
            if table != self._table:
                self._end_table()
                self._table, self._grains = table, array("I", bytes(TABLE_ENTRIES * 4))
            self._grains[place] = self._next
            self._next += _GRAIN_SECTORS

    def finish(self, digest: str) -> None:
        """Writes what is left; `digest` identifies the contents.  Syncing and closing are the caller's."""
        self._end_table()
        os.ftruncate(self._file.fd, self._next * SECTOR_BYTES)
        text = _descriptor("monolithicSparse", self._size_bytes, self._name, digest)
        self._file.write(_TEXT_SECTOR * SECTOR_BYTES, text)
        header = HEADER.pack(
            MAGIC, 1, NEWLINES | _REDUNDANT, self._size_bytes // SECTOR_BYTES, _GRAIN_SECTORS, _TEXT_SECTOR, _TEXT_SECTORS,
            TABLE_ENTRIES, self._redundant, self._directory, self._overhead, 0, NEWLINE_TEST, 0,
        )  # fmt: skip
        self._file.write(0, header)

    def close(self) -> None:
        """Nothing is held besides the file, which is the caller's."""

    def _end_table(self) -> None:
        if self._table >= 0:
            at = self._first_table + self._table * _TABLE_SECTORS
            for sector in (at, at + self._copy_sectors):
                self._file.write(sector * SECTOR_BYTES, _entries(self._grains))


class StreamWriter:
    """A streamOptimized image: compressed grains one behind the other, tables and directory after them."""

    def __init__(self, file: HostFile, size_bytes: int, name: str) -> None:
        self._file = file
        self._size_bytes = size_bytes
        self._name = name
        self._next = _GRAIN_SECTORS
        self._directory = array("I", bytes(4 * -(-size_bytes // _SPAN_BYTES)))
        self._table = -1
        self._grains = array("I")
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="compress")

    def write(self, offset: int, data: memoryview) -> None:
        """Data at a multiple of 64 KiB, behind all that was written before; only the disk's last grain may be incomplete."""
        first = offset // GRAIN_BYTES
        pieces: list[BytesLike] = []
        place = self._next
        for grain, packed in enumerate(self._pool.map(_pack, _pieces(data)), first):
            table, entry = divmod(grain, TABLE_ENTRIES)
            if table != self._table:
                self._put(pieces)
                pieces = []
                self._end_table()
                place = self._next
                self._table, self._grains = table, array("I", bytes(TABLE_ENTRIES * 4))
            self._grains[entry] = place
            marked = GRAIN_MARKER.pack(grain * _GRAIN_SECTORS, len(packed)) + packed
            pieces.append(marked + bytes(-len(marked) % SECTOR_BYTES))
            place += len(pieces[-1]) // SECTOR_BYTES
        self._put(pieces)

    def finish(self, digest: str) -> None:
        """Writes what is left; `digest` identifies the contents.  Syncing and closing are the caller's."""
        self._end_table()
        entries = _entries(self._directory)
        entries += bytes(-len(entries) % SECTOR_BYTES)
        directory = self._next + 1
        self._put([_MARKER.pack(len(entries) // SECTOR_BYTES, 0, _DIRECTORY_MARKER), entries])
        footer = self._header(directory)
        self._put([_MARKER.pack(1, 0, _FOOTER_MARKER), footer + bytes(SECTOR_BYTES - len(footer)), bytes(SECTOR_BYTES)])
        text = _descriptor("streamOptimized", self._size_bytes, self._name, digest)
        self._file.write(_TEXT_SECTOR * SECTOR_BYTES, text)
        self._file.write(0, self._header(DIRECTORY_AT_END))

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _header(self, directory: int) -> bytes:
        return HEADER.pack(
            MAGIC, 3, NEWLINES | COMPRESSED | MARKERS, self._size_bytes // SECTOR_BYTES, _GRAIN_SECTORS, _TEXT_SECTOR, _TEXT_SECTORS,
            TABLE_ENTRIES, 0, directory, _GRAIN_SECTORS, 0, NEWLINE_TEST, DEFLATE,
        )  # fmt: skip

    def _end_table(self) -> None:
        if self._table >= 0:
            self._directory[self._table] = self._next + 1
            self._put([_MARKER.pack(_TABLE_SECTORS, 0, _TABLE_MARKER), _entries(self._grains)])

    def _put(self, pieces: list[BytesLike]) -> None:
        if pieces:
            size_bytes = sum(map(len, pieces))
            if self._next + size_bytes // SECTOR_BYTES > _MAX_SECTORS:
                raise UserError("A VMDK image cannot hold more than 2 TiB of compressed data.", "Choose qcow2.")
            self._file.write_vector(self._next * SECTOR_BYTES, pieces, size_bytes)
            self._next += size_bytes // SECTOR_BYTES


def _pieces(data: memoryview) -> Iterator[memoryview]:
    for at in range(0, len(data), GRAIN_BYTES):
        yield data[at : at + GRAIN_BYTES]


def _pack(data: memoryview) -> bytes:
    if len(data) < GRAIN_BYTES:
        return zlib.compress(bytes(data) + bytes(GRAIN_BYTES - len(data)), _LEVEL)
    return zlib.compress(data, _LEVEL)


def _entries(values: array[int]) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def _descriptor(kind: str, size_bytes: int, name: str, digest: str) -> bytes:
    """The descriptor, filled up to its place.  Its content ID is made from the digest, so that equal disks give equal images."""
    if not name.isprintable() or '"' in name:
        name = "disk.vmdk"
    sectors = size_bytes // SECTOR_BYTES
    cylinders = min(max(sectors // (16 * 63), 1), 16383)
    text = f"""# Disk DescriptorFile
version=1
CID={int(digest[:8], 16) % 0xFFFFFFFE:08x}
parentCID=ffffffff
createType="{kind}"

# Extent description
RW {sectors} SPARSE "{name}"

# The Disk Data Base
#DDB

ddb.virtualHWVersion = "4"
ddb.geometry.cylinders = "{cylinders}"
ddb.geometry.heads = "16"
ddb.geometry.sectors = "63"
ddb.adapterType = "ide"
"""
    return text.encode().ljust(_TEXT_SECTORS * SECTOR_BYTES, b"\0")
