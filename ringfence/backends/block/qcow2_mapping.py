"""The L1 and L2 tables: which host cluster holds a guest cluster.

Changes stay in memory until `Qcow2Block.flush` commits them.  Entries are checked when they are used, never trusted.

Specification: qcow2, section "Cluster mapping".
"""

from __future__ import annotations

import struct
from array import array
from enum import IntEnum

from ringfence.backends.block.hostfile import DamagedImage, HostFile
from ringfence.backends.block.qcow2_format import OFFSET_MASK, Header
from ringfence.backends.block.qcow2_refcounts import Refcounts
from ringfence.backends.block.qcow2_table import Table, Write, decode, encode
from ringfence.core.units import MIB

COPIED, COMPRESSED_FLAG, ZERO_FLAG = 1 << 63, 1 << 62, 1
_L1_RESERVED = ~(COPIED | OFFSET_MASK)
_L2_RESERVED = ~(COPIED | OFFSET_MASK | ZERO_FLAG)
_CACHE_BYTES = 32 * MIB


class Kind(IntEnum):
    UNALLOCATED = 0  # the backing file's contents, or zeroes
    ZERO = 1
    DATA = 2  # in a cluster that nothing else refers to
    SHARED = 3  # in a cluster that must be copied before it is written
    COMPRESSED = 4


class Mapping:
    """`metadata` holds the numbers of the clusters with tables, shared with `Refcounts`."""

    def __init__(self, file: HostFile, header: Header, refcounts: Refcounts | None, metadata: set[int]) -> None:
        self._file = file
        self._name = header.name
        self._version = header.version
        self.cluster_bits = header.cluster_bits
        self.cluster_bytes = header.cluster_bytes
        self._refcounts = refcounts
        self._metadata = metadata
        self._l1_offset = header.l1_offset
        self.l1 = decode(file.read(header.l1_offset, header.l1_entries * 8), 64)
        self.per_table = header.cluster_bytes // 8
        self._tables: dict[int, Table] = {}  # by index in L1, the latest used last
        self._max_tables = max(2, _CACHE_BYTES >> header.cluster_bits)
        self._changed: set[int] = set()  # indexes in L1 whose table differs from the file
        self._moved: set[int] = set()  # indexes in L1 whose entry differs from the file
        # what lies behind this is damage; the last cluster of a file may be incomplete
        self._end = -(-file.end() // self.cluster_bytes) * self.cluster_bytes
        for entry in filter(None, self.l1):
            offset = entry & OFFSET_MASK
            if entry & _L1_RESERVED or offset & self.cluster_bytes - 1 or not 0 < offset < self._end:
                raise DamagedImage(self._name, f"an L2 table cannot be at {entry:#x}")
            if offset >> self.cluster_bits in metadata:
                raise DamagedImage(self._name, f"the L2 table at {offset:#x} overlaps another table")
            metadata.add(offset >> self.cluster_bits)

    def lookup(self, cluster: int, limit: int) -> tuple[Kind, int, int]:
        """The longest run of neighbours of one kind from guest cluster `cluster` on, at most `limit` of them.

        Returns kind, host offset (of neighbouring host clusters; for COMPRESSED the descriptor), number of clusters.
        """
        index, start = divmod(cluster, self.per_table)
        if not self.l1[index]:
            last = (cluster + limit - 1) // self.per_table
            while index < last and not self.l1[index + 1]:
                index += 1
            return Kind.UNALLOCATED, 0, min(limit, (index + 1) * self.per_table - cluster)
        entries = self._table(index).entries
        first = entries[start]
        end = min(self.per_table, start + limit)
        at = start + 1
        if first & COMPRESSED_FLAG:
            return Kind.COMPRESSED, first & COMPRESSED_FLAG - 1, 1
        if first & _L2_RESERVED or first & OFFSET_MASK & self.cluster_bytes - 1:
            raise DamagedImage(self._name, f"the entry {first:#x} for guest cluster {cluster} is not possible")
        if first & ZERO_FLAG:
            if self._version < 3:
                raise DamagedImage(self._name, f"guest cluster {cluster} is marked as zero, which version 2 does not know")
            while at < end and entries[at] & (ZERO_FLAG | COMPRESSED_FLAG) == ZERO_FLAG:
                at += 1
            return Kind.ZERO, 0, at - start
        host = first & OFFSET_MASK
        if not host:
            if first:
                raise DamagedImage(self._name, f"the entry {first:#x} for guest cluster {cluster} is not possible")
            while at < end and not entries[at]:
                at += 1
            return Kind.UNALLOCATED, 0, at - start
        step = self.cluster_bytes
        expected = first + step
        while at < end and entries[at] == expected:
            expected += step
            at += 1
        if host + (at - start) * step > self._end:
            raise DamagedImage(self._name, f"guest cluster {cluster} lies behind the end of the file")
        return (Kind.DATA if first & COPIED else Kind.SHARED), host, at - start

    def compressed_range(self, descriptor: int) -> tuple[int, int]:
        """Host offset and size in bytes of the area that holds a compressed cluster; it may end behind the data."""
        offset_bits = 62 - (self.cluster_bits - 8)
        offset = descriptor & (1 << offset_bits) - 1
        sectors = descriptor >> offset_bits
        size_bytes = (sectors + 1) * 512 - (offset & 511)
        if not offset or offset >= self._end:
            raise DamagedImage(self._name, f"compressed data cannot be at {offset:#x}")
        return offset, min(size_bytes, self._end - offset)

    def assign(self, cluster: int, host_cluster: int, count: int) -> None:
        """Guest clusters (of one L2 table) now live in neighbouring, newly allocated host clusters; old ones are released."""
        host = host_cluster << self.cluster_bits
        end = host + (count << self.cluster_bits)
        self._end = max(self._end, end)
        self._replace(cluster, array("Q", range(host | COPIED, end | COPIED, self.cluster_bytes)))

    def clear(self, cluster: int, count: int, zero: bool) -> None:
        """Guest clusters (of one L2 table) hold no data any more: they read as zeroes, or as unallocated."""
        self._replace(cluster, array("Q", [ZERO_FLAG if zero else 0]) * count)

    def set_l1(self, index: int, entry: int) -> None:
        """Changes the flag of an L1 entry, for `qcow2_check`."""
        self.l1[index] = entry
        self._moved.add(index)

    def make_writable(self, cluster: int) -> None:
        """Sees to an L2 table that covers the cluster and belongs to the active state alone.  Allocates; call it first."""
        index = cluster // self.per_table
        entry = self.l1[index]
        if entry & COPIED:
            return
        refcounts = self._writer()
        entries = array("Q", self._table(index).entries) if entry else array("Q", bytes(self.cluster_bytes))
        host_cluster, _ = refcounts.allocate(1)
        self._metadata.add(host_cluster)
        self._end = max(self._end, host_cluster + 1 << self.cluster_bits)
        if entry:
            old = (entry & OFFSET_MASK) >> self.cluster_bits
            refcounts.release(old)
            # a snapshot may still use the old table: as a table it stays protected, whoever else counts it
            if refcounts.get(old) <= 1:
                self._metadata.discard(old)
        self._tables.pop(index, None)
        self._evict()
        self._tables[index] = Table(host_cluster << self.cluster_bits, 64, entries, fresh=True)
        self.l1[index] = host_cluster << self.cluster_bits | COPIED
        self._moved.add(index)
        self._changed.add(index)

    def _replace(self, cluster: int, entries: array[int]) -> None:
        self.make_writable(cluster)
        index, start = divmod(cluster, self.per_table)
        table = self._table(index)
        old = [self._host_clusters(entry) for entry in table.entries[start : start + len(entries)] if entry]
        for run in old:
            self._writer().release(run.start, len(run))
        table.entries[start : start + len(entries)] = entries
        table.mark(start, len(entries))
        self._changed.add(index)

    def _host_clusters(self, entry: int) -> range:
        """The clusters that an L2 entry refers to."""
        if entry & COMPRESSED_FLAG:
            offset, size_bytes = self.compressed_range(entry & COMPRESSED_FLAG - 1)
            return range(offset >> self.cluster_bits, (offset + size_bytes - 1 >> self.cluster_bits) + 1)
        offset = entry & OFFSET_MASK
        first = offset >> self.cluster_bits
        if offset and (first in self._metadata or offset >= self._end):
            raise DamagedImage(self._name, f"data cannot be at {offset:#x}")
        return range(first, first + 1 if first else 0)

    # --- what a commit writes, in this order ---

    @property
    def changed(self) -> bool:
        return bool(self._changed or self._moved)

    @property
    def crowded(self) -> bool:
        """So much is changed in memory that it should be committed."""
        return len(self._changed) >= self._max_tables

    def new_tables(self) -> list[Write]:
        tables = (self._tables[index] for index in sorted(self._changed))
        return [(table.offset, encode(table.entries, 64)) for table in tables if table.fresh]

    def changes(self) -> list[Write]:
        writes: list[Write] = []
        for index in sorted(self._changed):
            if not self._tables[index].fresh:
                writes.extend(self._tables[index].writes())
        writes.extend((self._l1_offset + index * 8, struct.pack(">Q", self.l1[index])) for index in sorted(self._moved))
        return writes

    def committed(self) -> None:
        for index in self._changed:
            self._tables[index].fresh = False
            self._tables[index].dirty.clear()
        self._changed.clear()
        self._moved.clear()

    # --- tables ---

    def _table(self, index: int) -> Table:
        table = self._tables.pop(index, None)
        if table is None:
            offset = self.l1[index] & OFFSET_MASK
            table = Table(offset, 64, decode(self._file.read(offset, self.cluster_bytes), 64))
            self._evict()
        self._tables[index] = table
        return table

    def _evict(self) -> None:
        if len(self._tables) >= self._max_tables:
            oldest = next((index for index in self._tables if index not in self._changed), None)
            if oldest is not None:
                del self._tables[oldest]

    def _writer(self) -> Refcounts:
        assert self._refcounts is not None, "a read-only image is not changed"
        return self._refcounts
