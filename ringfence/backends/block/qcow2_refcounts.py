"""Reference counts of host clusters, and the allocation of clusters.

Changes stay in memory until `Qcow2Block.flush` commits them in an order that keeps the file consistent at each step.
A cluster whose last reference goes is not given out again before the commit that removed the reference is on stable
storage: until then an older table on disk may still point to it.

Specification: qcow2, section "Host cluster management".
"""

from __future__ import annotations

import errno
import struct
from array import array
from collections.abc import Callable, Iterable

from ringfence.backends.block.hostfile import DamagedImage, HostFile
from ringfence.backends.block.qcow2_format import MAX_REFCOUNT_TABLE_BYTES, REFCOUNT_TABLE_OFFSET, Header
from ringfence.backends.block.qcow2_table import PAGE_BITS, Table, Write, decode, encode
from ringfence.core.units import MIB

_CACHE_BYTES = 16 * MIB


class Refcounts:
    """`metadata` holds the numbers of the clusters with tables, shared with `qcow2_mapping.Mapping`; `commit` flushes the image."""

    def __init__(self, file: HostFile, header: Header, metadata: set[int], commit: Callable[[], None]) -> None:
        self._file = file
        self._name = header.name
        self._bits = header.refcount_bits
        self._cluster_bits = header.cluster_bits
        self._metadata = metadata
        self._commit = commit
        self.per_block = (8 << header.cluster_bits) // header.refcount_bits
        self.table_offset = header.refcount_table_offset
        self.table = decode(file.read(self.table_offset, header.refcount_table_clusters << header.cluster_bits), 64)
        self._blocks: dict[int, Table] = {}  # by slot in the table, the latest used last
        self._max_blocks = max(2, _CACHE_BYTES >> header.cluster_bits)
        self._changed: set[int] = set()  # slots whose block differs from the file
        self._moved: set[int] = set()  # slots whose entry in the table differs from the file
        self._released: list[int] = []
        self._dropped: list[int] = []
        self._next = 0
        file_end = file.end()
        for offset in filter(None, self.table):
            cluster = offset >> self._cluster_bits
            if offset & (1 << self._cluster_bits) - 1 or offset >= file_end or cluster in metadata:
                raise DamagedImage(self._name, f"a refcount block cannot be at {offset:#x}")
            metadata.add(cluster)

    def get(self, cluster: int) -> int:
        block = self._block(cluster // self.per_block)
        return block.entries[cluster % self.per_block] if block else 0

    def exclusive(self, first: int, count: int) -> bool:
        """Whether each of the clusters is referenced exactly once and holds no table."""
        if not self._metadata.isdisjoint(range(first, first + count)):
            return False
        while count:
            slot, start = divmod(first, self.per_block)
            part = min(count, self.per_block - start)
            block = self._block(slot)
            if block is None or block.entries[start : start + part].count(1) != part:
                return False
            first += part
            count -= part
        return True

    def allocate(self, limit: int) -> tuple[int, int]:
        """Neighbouring free clusters, at most `limit`, now with one reference each: the first one's number, how many."""
        while True:
            slot, start = divmod(self._next, self.per_block)
            if slot >= len(self.table):
                self._grow()
                continue
            entries = (self._block(slot) or self._new_block(slot)).entries
            try:
                start = entries.index(0, start)
            except ValueError:
                self._next = (slot + 1) * self.per_block
                continue
            end = start + 1
            while end < len(entries) and end - start < limit and not entries[end]:
                end += 1
            first = slot * self.per_block + start
            self._check_free(first, end - start)
            self._set(slot, start, end - start, 1)
            self._next = first + end - start
            return first, end - start

    def cancel(self, first: int, count: int) -> None:
        """Takes back an allocation, all of it, that nothing refers to."""
        slot, start = divmod(first, self.per_block)
        self._set(slot, start, count, 0)
        self._next = min(self._next, first)

    def release(self, first: int, count: int = 1) -> None:
        """One reference less to each, from the next commit on."""
        self._released.extend(range(first, first + count))

    def replace(self, slot: int, counts: array[int]) -> None:
        """New counts for a whole block, for `qcow2_check`; commits now and then."""
        block = self._block(slot)
        if block is None:
            self._new_block(slot, counts)
        elif (wanted := array(block.entries.typecode, counts)) != block.entries:
            block.entries[:] = wanted
            block.mark(0, self.per_block)
            self._changed.add(slot)
        if self.crowded:
            self._commit()

    # --- what a commit writes, in this order ---

    @property
    def changed(self) -> bool:
        return bool(self._released or self._moved or self._changed)

    @property
    def crowded(self) -> bool:
        """So much is changed in memory that it should be committed."""
        return len(self._changed) >= self._max_blocks or len(self._released) > 1 << 16

    def new_tables(self) -> list[Write]:
        """Blocks that the file has no reference to yet."""
        fresh = (self._blocks[slot] for slot in sorted(self._changed))
        return [(block.offset, encode(block.entries, self._bits)) for block in fresh if block.fresh]

    def changes(self) -> list[Write]:
        """Where new blocks are, and changed parts of the others."""
        writes = [(self.table_offset + slot * 8, struct.pack(">Q", self.table[slot])) for slot in sorted(self._moved)]
        for slot in sorted(self._changed):
            if not self._blocks[slot].fresh:
                writes.extend(self._blocks[slot].writes())
        return writes

    def drop_released(self) -> list[Write]:
        """Counts the released references down in memory; returns what to write.  `committed` or `restore` must follow."""
        pages: dict[int, set[int]] = {}
        for cluster in self._released:
            slot, index = divmod(cluster, self.per_block)
            block = self._block(slot)
            if block is not None and block.entries[index]:  # zero only where a damaged image counted too low
                block.entries[index] -= 1
                self._dropped.append(cluster)
                pages.setdefault(slot, set()).add(index * self._bits >> PAGE_BITS + 3)
                self._changed.add(slot)
        writes: list[Write] = []
        for slot, touched in pages.items():
            block = self._blocks[slot]
            block.dirty |= touched
            writes.extend(Table(block.offset, self._bits, block.entries, dirty=touched).writes())
        return writes

    def restore(self) -> None:
        """The commit failed: what it counted down may still be referenced by the file."""
        for cluster in self._dropped:
            slot, index = divmod(cluster, self.per_block)
            self._blocks[slot].entries[index] += 1
        self._dropped.clear()

    def committed(self) -> list[int]:
        """The file is up to date.  Returns the clusters that became free, ascending."""
        free = sorted({cluster for cluster in self._dropped if not self.get(cluster)})
        self._dropped.clear()
        self._released.clear()
        self._moved.clear()
        for slot in self._changed:
            block = self._blocks[slot]
            block.fresh = False
            block.dirty.clear()
        self._changed.clear()
        if free:
            self._next = min(self._next, free[0])
        return free

    # --- blocks ---

    def _block(self, slot: int) -> Table | None:
        block = self._blocks.pop(slot, None)
        if block is None:
            if slot >= len(self.table) or not self.table[slot]:
                return None
            offset = self.table[slot]
            block = Table(offset, self._bits, decode(self._file.read(offset, 1 << self._cluster_bits), self._bits))
            self._evict()
        self._blocks[slot] = block
        return block

    def _evict(self) -> None:
        if len(self._blocks) >= self._max_blocks:
            oldest = next((slot for slot in self._blocks if slot not in self._changed), None)
            if oldest is not None:
                del self._blocks[oldest]

    def _new_block(self, slot: int, counts: Iterable[int] | None = None) -> Table:
        """A block for a part of the file that had none, placed in the first free cluster that it counts itself."""
        entries = decode(bytes(1 << self._cluster_bits), self._bits)
        if counts is not None:
            entries[:] = array(entries.typecode, counts)
        try:
            cluster = slot * self.per_block + entries.index(0)
        except ValueError:
            raise DamagedImage(self._name, f"there is no room for refcount block {slot}") from None
        self._check_free(cluster, 1)
        self._evict()
        self._blocks[slot] = block = Table(cluster << self._cluster_bits, self._bits, entries, fresh=True)
        self._set(slot, cluster % self.per_block, 1, 1)
        self.table[slot] = block.offset
        self._moved.add(slot)
        self._metadata.add(cluster)
        return block

    def _set(self, slot: int, start: int, count: int, value: int) -> None:
        block = self._blocks[slot]
        block.entries[start : start + count] = array(block.entries.typecode, [value]) * count
        block.mark(start, count)
        self._changed.add(slot)

    def _check_free(self, first: int, count: int) -> None:
        if not self._metadata.isdisjoint(range(first, first + count)):
            raise DamagedImage(self._name, f"a table near cluster {first} is counted as free")

    def _grow(self) -> None:
        """A larger table, behind all that the old one counts: blocks for the new place, the table, then the header."""
        self._commit()
        cluster_bytes, slots = 1 << self._cluster_bits, len(self.table)
        old_first, old_count = self.table_offset >> self._cluster_bits, slots * 8 >> self._cluster_bits
        table_clusters = -(-(slots + slots // 2 + 1) * 8 >> self._cluster_bits)
        if table_clusters << self._cluster_bits > MAX_REFCOUNT_TABLE_BYTES:
            raise OSError(errno.EFBIG, f"the disk image {self._name} has reached the largest size of its format")
        blocks = 1
        while blocks * self.per_block < blocks + table_clusters:
            blocks += 1
        first, used = slots * self.per_block, blocks + table_clusters
        self._check_free(first, used)
        table = self.table + array("Q", bytes((table_clusters << self._cluster_bits) - slots * 8))
        new: dict[int, Table] = {}
        for n in range(blocks):
            here = max(0, min(used - n * self.per_block, self.per_block))
            entries = decode(bytes(cluster_bytes), self._bits)
            entries[:here] = array(entries.typecode, [1]) * here
            new[slots + n] = Table((first + n) << self._cluster_bits, self._bits, entries)
            table[slots + n] = new[slots + n].offset
            self._file.write(new[slots + n].offset, encode(entries, self._bits))
        table_offset = (first + blocks) << self._cluster_bits
        self._file.write(table_offset, encode(table, 64))
        self._file.sync()
        self._file.write(REFCOUNT_TABLE_OFFSET, struct.pack(">QI", table_offset, table_clusters))
        self._file.sync()
        self.table, self.table_offset = table, table_offset
        self._blocks.update(new)
        self._metadata.update(range(first, first + used))
        self._metadata.difference_update(range(old_first, old_first + old_count))
        self.release(old_first, old_count)
        self._commit()
