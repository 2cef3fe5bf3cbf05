"""VMDK, the format of VMware: monolithicSparse, streamOptimized, monolithicFlat, twoGbMaxExtentSparse and twoGbMaxExtentFlat.

Specification: "Virtual Disk Format 5.0", VMware, 2011 (sections "Hosted Sparse Extents" and "Stream-Optimized Compressed Sparse
Extents").  Compressed grains are zlib streams (RFC 1950).  Integers are little-endian.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib

from ringfence.backends.block.foreign.source import ForeignBlock, Run
from ringfence.backends.block.foreign.vmdk_text import MAX_TEXT_BYTES, TITLE, Extent, extent_path, parse_descriptor
from ringfence.backends.block.foreign.window import PagedTable, Window
from ringfence.backends.block.hostfile import HostFile
from ringfence.backends.block.raw import SECTOR_BYTES
from ringfence.core.errors import ImageError

MAGIC, ESX_MAGIC = b"KDMV", b"COWD"
# magic, version, flags, capacity, grain, descriptor offset and size, entries a table, two grain directories, overhead, unclean,
# four characters that show a transfer as text, compression
HEADER = struct.Struct("<4sIIQQQQIQQQB4sH")
GRAIN_MARKER = struct.Struct("<QI")
NEWLINES, ZERO_GRAINS, COMPRESSED, MARKERS = 1, 4, 1 << 16, 1 << 17
NEWLINE_TEST = b"\n \r\n"
DEFLATE, TABLE_ENTRIES = 1, 512
DIRECTORY_AT_END = (1 << 64) - 1
_MIN_GRAIN_SECTORS, _MAX_GRAIN_SECTORS = 8, 4096
_TABLE_BYTES = TABLE_ENTRIES * 4
_MOST_TABLES = 64
_PACKING_BYTES = 64 << 10  # what deflate adds at most to what it cannot compress, and more
_FOOTER_DISTANCE = 2 * SECTOR_BYTES  # from the end: the footer, then the end-of-stream marker


class SparseExtent:
    """The sparse extent that fills a file: a directory of tables of grains, each where it is or compressed."""

    def __init__(self, window: Window) -> None:
        self.file = window
        header = window.read(0, HEADER.size, "header")
        fields = HEADER.unpack(header)
        if fields[9] == DIRECTORY_AT_END:
            header = window.read(max(0, window.size_bytes - _FOOTER_DISTANCE), HEADER.size, "footer")
            fields = HEADER.unpack(header)
        magic, version, flags, capacity, grain, self.text_sector, self.text_sectors = fields[:7]
        entries, _, directory, _, _, newlines, method = fields[7:]
        if magic != MAGIC:
            raise window.damaged("its header or footer has no signature")
        if not 1 <= version <= 3:
            raise ImageError(f"{window.name} is a VMDK image of version {version}; 1 to 3 are supported.", "Convert it with its own tools.")
        if flags & NEWLINES and newlines != NEWLINE_TEST:
            raise window.damaged("it was transferred as text, which changed its line ends")
        if not _MIN_GRAIN_SECTORS <= grain <= _MAX_GRAIN_SECTORS or grain & grain - 1 or entries != TABLE_ENTRIES:
            raise window.damaged(f"grains of {grain} sectors in tables of {entries} are not possible")
        if method not in (0, DEFLATE) or bool(flags & COMPRESSED) != bool(method):
            raise ImageError(f"{window.name} is compressed with an unknown method ({method}).", "Convert it with `qemu-img convert`.")
        self.size_bytes = capacity * SECTOR_BYTES
        self.compressed = bool(method)
        self._zero_grains = bool(flags & ZERO_GRAINS)
        self._grain_bytes = grain * SECTOR_BYTES
        self._grain_sectors = grain
        self._table_span = self._grain_bytes * TABLE_ENTRIES  # bytes of the disk that a table maps
        tables = -(-self.size_bytes // self._table_span)
        self._directory = PagedTable(window, directory * SECTOR_BYTES, tables, 4, "grain directory")
        self._tables: dict[int, PagedTable] = {}
        self._unpacked: tuple[int, bytes] = (-1, b"")

    def descriptor_text(self) -> bytearray | None:
        """The descriptor, where the extent holds one."""
        if not self.text_sector or not self.text_sectors:
            return None
        return self.file.read(self.text_sector * SECTOR_BYTES, min(self.text_sectors * SECTOR_BYTES, MAX_TEXT_BYTES), "descriptor")

    def run(self, offset: int, limit: int) -> Run:
        index, within = divmod(offset, self._table_span)
        sector = self._directory[index]
        if not sector:
            most = -(-(within + limit) // self._table_span)
            return Run(min(limit, self._directory.repeats(index, most) * self._table_span - within))
        limit = min(limit, self._table_span - within)
        table = self._table(sector)
        grain, within = divmod(within, self._grain_bytes)
        most = -(-(within + limit) // self._grain_bytes)
        entry = table[grain]
        if not entry or (entry == 1 and self._zero_grains):
            return Run(min(limit, table.repeats(grain, most) * self._grain_bytes - within))
        if self.compressed:
            first = index * TABLE_ENTRIES + grain
            here = min(self._grain_bytes, self.size_bytes - first * self._grain_bytes)
            return Run(min(limit, here - within), at=within, unpack=lambda: self._unpack(entry, first, here))
        count = table.ascends(grain, most, self._grain_sectors)
        return Run(min(limit, count * self._grain_bytes - within), self.file, entry * SECTOR_BYTES + within)

    def _table(self, sector: int) -> PagedTable:
        table = self._tables.get(sector)
        if table is None:
            if len(self._tables) >= _MOST_TABLES:
                del self._tables[next(iter(self._tables))]
            table = self._tables[sector] = PagedTable(self.file, sector * SECTOR_BYTES, TABLE_ENTRIES, 4, "grain table")
        return table

    def _unpack(self, sector: int, grain: int, size_bytes: int) -> bytes:
        """The contents of a compressed grain, of which the disk needs `size_bytes`."""
        known, data = self._unpacked
        if known != grain:
            at = sector * SECTOR_BYTES
            lba, packed_bytes = GRAIN_MARKER.unpack(self.file.read(at, GRAIN_MARKER.size, "compressed grain"))
            if lba != grain * self._grain_sectors or packed_bytes > self._grain_bytes + _PACKING_BYTES:
                raise self.file.damaged(f"there is no compressed grain {grain} at {at:#x}")
            packed = self.file.read(at + GRAIN_MARKER.size, packed_bytes, "compressed grain")
            try:
                data = zlib.decompressobj().decompress(packed, self._grain_bytes)
            except zlib.error as error:
                raise self.file.damaged(f"the compressed grain at {at:#x} cannot be read ({error})") from error
            if len(data) < size_bytes:
                raise self.file.damaged(f"the compressed grain at {at:#x} is too short")
            self._unpacked = (grain, data)
        return data


class VmdkBlock(ForeignBlock):
    """One file with a sparse extent, or a descriptor with extents beside it.  `alone`: no other file may be opened."""

    format = "vmdk"

    def __init__(self, file: HostFile, window: Window, alone: bool = False) -> None:
        self._parts: list[tuple[int, Extent | None, Window | SparseExtent | None]] = []  # end on the disk, what, where
        files = [file]
        head = window.read(0, min(len(TITLE), window.size_bytes), "header")
        if head[:4] == ESX_MAGIC:
            raise ImageError(f"{window.name} is an ESX sparse image (COWD), which is not supported.", "Convert it with `qemu-img convert`.")
        if head[:4] == MAGIC:
            extent = SparseExtent(window)
            text = extent.descriptor_text()
            kind = parse_descriptor(window, text).create_type if text is not None else ""
            self._parts.append((extent.size_bytes, None, extent))
            super().__init__(files, window, extent.size_bytes, kind or ("streamOptimized" if extent.compressed else "monolithicSparse"))
            self._at = 0
            if text is None:
                self.notes = ("The image has no descriptor: it may be one part of a split image.",)
            return
        if window.size_bytes > MAX_TEXT_BYTES:
            raise window.damaged("it is neither a sparse extent nor a descriptor")
        descriptor = parse_descriptor(window, window.read(0, window.size_bytes, "descriptor"))
        if alone:
            raise ImageError(f"{window.name} needs other files, which is not supported here.", "Give a stream-optimised image.")
        end = 0
        try:
            for extent_line in descriptor.extents:
                if extent_line.size_bytes:
                    end += extent_line.size_bytes
                    self._parts.append((end, extent_line, _open_extent(window, extent_line, files)))
            super().__init__(files, window, end, descriptor.create_type)
        except BaseException:
            for other in files[1:]:
                other.close()
            raise
        self._at = 0

    def _run(self, offset: int, limit: int) -> Run:
        if not self._begin(self._at) <= offset < self._parts[self._at][0]:
            self._at = next(n for n, part in enumerate(self._parts) if offset < part[0])
        begin, (end, extent, where) = self._begin(self._at), self._parts[self._at]
        limit = min(limit, end - offset)
        if isinstance(where, SparseExtent):
            return where.run(offset - begin, limit)
        if where is None:
            return Run(limit)
        return Run(limit, where, (extent.offset if extent else 0) + offset - begin)

    def _begin(self, part: int) -> int:
        return self._parts[part - 1][0] if part else 0

    def _data_limit(self) -> int:
        others = {file.identity: file.end() for file in self._files[1:]}
        return self._file.size_bytes + sum(others.values())


def _open_extent(window: Window, extent: Extent, files: list[HostFile]) -> Window | SparseExtent | None:
    if extent.type == "ZERO":
        return None
    path = extent_path(window, extent.file_name)
    file = HostFile.open(path, readonly=True)
    files.append(file)
    if not stat.S_ISREG(os.fstat(file.fd).st_mode):
        raise ImageError(f"The extent {extent.file_name!r} of {window.name} is not a regular file.", "Give an image of regular files.")
    part = Window(file)
    if extent.type == "FLAT":
        part.check(extent.offset, extent.size_bytes, "extent")
        return part
    sparse = SparseExtent(part)
    if sparse.size_bytes < extent.size_bytes:
        raise part.damaged("it is smaller than its descriptor says")
    return sparse
