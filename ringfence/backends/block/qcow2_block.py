"""A qcow2 image of version 2 or 3 as a disk.

How it survives being killed.  New clusters are filled while nothing in the file refers to them; tables change in memory
only.  A flush then writes, in this order: new tables, where nothing points to yet (and fsync, which covers the data
too); higher reference counts; L2 and L1 entries; lower reference counts (and fsync).  A process killed between two
of these steps leaves at worst clusters that are counted but not used, for the few microseconds of the last three
steps; before the first such step, version 3 has its dirty bit set, so that after a kill or a loss of power the next
writer (this one or QEMU) counts anew.  Version 2 has no such bit: there each step waits for stable storage, and the
counts are verified at every opening for writing.

Specification: "Qcow2 Image File Format", QEMU project.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator, Sequence

from ringfence.backends.api import Block
from ringfence.backends.block.compression import Decompressor
from ringfence.backends.block.hostfile import DamagedImage, HostFile
from ringfence.backends.block.qcow2_areas import BITMAP_TABLE, bitmap_areas, bitmap_clusters, claim, fixed_areas, snapshot_areas
from ringfence.backends.block.qcow2_check import recount
from ringfence.backends.block.qcow2_format import AUTOCLEAR_OFFSET, CORRUPT, DIRTY, INCOMPATIBLE_OFFSET, Header
from ringfence.backends.block.qcow2_mapping import Kind, Mapping
from ringfence.backends.block.qcow2_refcounts import Refcounts
from ringfence.backends.block.raw import RawBlock, check_range
from ringfence.core.errors import ImageError
from ringfence.core.trace import tracer
from ringfence.core.units import MIB

_trace = tracer("block")
_DEFLATE_RATIO, _ZSTD_RATIO = 1032, 32768  # the most that they compress; Zstandard: a block of 128 KiB in 4 bytes


class Qcow2Block:
    """See `ringfence.backends.api.Block`.  Made by `open.open_block`; owns the file and the backing disk and closes both.

    Damage that shows up later than at opening is an OSError (EIO) of the access that met it.
    """

    def __init__(self, file: HostFile, header: Header, backing: Block | None = None) -> None:
        self._file = file
        self._header = header
        self._backing = backing
        self._backing_bytes = backing.size_bytes if backing else 0
        self.readonly = file.readonly
        self.size_bytes = header.size_bytes
        self._cluster_bytes = header.cluster_bytes
        self._marked_dirty = False
        self._autoclear = header.autoclear
        self._decompressor = Decompressor(header)
        metadata: set[int] = set()
        file_bytes = file.end()
        areas = claim(header, fixed_areas(header), file_bytes, metadata)
        areas += claim(header, snapshot_areas(file, header), file_bytes, metadata)
        if self.readonly:
            self._mapping = Mapping(file, header, None, metadata)
            return
        if header.incompatible & CORRUPT:
            raise ImageError(f"{header.name} is marked as corrupt.", "Repair it with `qemu-img check -r all`, or open it readonly.")
        self._metadata = metadata
        self._bitmaps = claim(header, bitmap_areas(file, header), file_bytes, metadata)
        areas += self._bitmaps
        self._refcounts = Refcounts(file, header, metadata, self.flush)
        self._mapping = Mapping(file, header, self._refcounts, metadata)
        if header.version == 2 or header.incompatible & DIRTY:
            self._marked_dirty = bool(header.incompatible & DIRTY)
            if _trace:
                _trace("%s: counting references anew", header.name)
            recount(file, header, self._mapping, self._refcounts, areas)
            self.flush()
            self._mark_clean()

    # --- reading ---

    def read(self, offset: int, buffer: memoryview) -> None:
        check_range(offset, len(buffer), self.size_bytes)
        self._read(offset, buffer)

    def read_vector(self, offset: int, buffers: Sequence[memoryview], wait: bool = True) -> bool:
        total = sum(map(len, buffers))
        check_range(offset, total, self.size_bytes)
        cluster, within = divmod(offset, self._cluster_bytes)
        kind, host, count = self._mapping.lookup(cluster, -(-(within + total) // self._cluster_bytes))
        if (kind is Kind.DATA or kind is Kind.SHARED) and total <= count * self._cluster_bytes - within:
            return self._file.read_into_vector(host + within, buffers, total, wait)
        if not wait and kind is Kind.COMPRESSED:
            return False
        data = memoryview(bytearray(total))  # pieces need not be whole sectors
        self._read(offset, data)
        at = 0
        for buffer in buffers:
            buffer[:] = data[at : at + len(buffer)]
            at += len(buffer)
        return True

    def _read(self, offset: int, buffer: memoryview) -> None:
        done, total, cluster_bytes = 0, len(buffer), self._cluster_bytes
        while done < total:
            cluster, within = divmod(offset + done, cluster_bytes)
            kind, host, count = self._mapping.lookup(cluster, -(-(within + total - done) // cluster_bytes))
            span = min(count * cluster_bytes - within, total - done)
            part = buffer[done : done + span]
            if kind is Kind.DATA or kind is Kind.SHARED:
                self._file.read_into(host + within, part)
            elif kind is Kind.COMPRESSED:
                part[:] = self._decompress(host)[within : within + span]
            elif kind is Kind.UNALLOCATED and offset + done < self._backing_bytes:
                self._read_backing(offset + done, part)
            else:
                part[:] = bytes(span)
            done += span

    def _read_backing(self, offset: int, part: memoryview) -> None:
        assert self._backing is not None
        here = min(len(part), self._backing_bytes - offset)
        self._backing.read(offset, part[:here])
        part[here:] = bytes(len(part) - here)

    def _decompress(self, descriptor: int) -> bytes:
        offset, size_bytes = self._mapping.compressed_range(descriptor)
        return self._decompressor.cluster(descriptor, lambda: self._file.read(offset, size_bytes))

    def data_ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Offset and size, ascending, of all parts of this range that may hold anything but zeroes.

        Raises ImageError when the image is damaged, also when it uses more data than its file can hold.
        """
        cluster_bytes, backing = self._cluster_bytes, self._backing
        left = self._file.end() + cluster_bytes
        least_bytes = max(16, cluster_bytes // (_ZSTD_RATIO if self._header.zstd else _DEFLATE_RATIO))
        while start < end:
            cluster, within = divmod(start, cluster_bytes)
            kind, host, count = self._mapping.lookup(cluster, -(-(within + end - start) // cluster_bytes))
            span = min(count * cluster_bytes - within, end - start)
            if kind is Kind.DATA or kind is Kind.SHARED:
                left -= span
                for at, size_bytes in self._file.data_ranges(host + within, host + within + span):
                    yield start + at - host - within, size_bytes
            elif kind is Kind.COMPRESSED:
                left -= max(least_bytes, self._mapping.compressed_range(host)[1] - 511)  # it ends in its last sector
                yield start, span
            elif kind is Kind.UNALLOCATED and isinstance(backing, RawBlock | Qcow2Block):
                yield from backing.data_ranges(start, min(start + span, self._backing_bytes))
            elif kind is Kind.UNALLOCATED and start < self._backing_bytes:
                yield start, min(span, self._backing_bytes - start)
            if left < 0:
                raise DamagedImage(self._header.name, "its tables refer to the same data more than once")
            start += span

    # --- writing ---

    def write(self, offset: int, data: memoryview) -> None:
        self._check_write(offset, len(data))
        done, total, cluster_bytes = 0, len(data), self._cluster_bytes
        while done < total:
            cluster, within = divmod(offset + done, cluster_bytes)
            kind, host, count = self._mapping.lookup(cluster, -(-(within + total - done) // cluster_bytes))
            if kind is Kind.DATA and self._refcounts.exclusive(host >> self._header.cluster_bits, count):
                span = min(count * cluster_bytes - within, total - done)
                self._file.write(host + within, data[done : done + span])
                done += span
            else:
                done += self._write_new(cluster, count, within, data[done:])

    def write_vector(self, offset: int, parts: Sequence[memoryview]) -> None:
        total = sum(map(len, parts))
        self._check_write(offset, total)
        cluster, within = divmod(offset, self._cluster_bytes)
        kind, host, count = self._mapping.lookup(cluster, -(-(within + total) // self._cluster_bytes))
        whole = kind is Kind.DATA and total <= count * self._cluster_bytes - within
        if whole and self._refcounts.exclusive(host >> self._header.cluster_bits, count):
            self._file.write_vector(host + within, parts, total)
        else:
            self.write(offset, memoryview(b"".join(parts)))

    def _write_new(self, cluster: int, count: int, within: int, data: memoryview) -> int:
        """Puts data into new clusters, completed with what the guest's clusters held before.  Returns how much was written."""
        cluster_bytes, mapping = self._cluster_bytes, self._mapping
        self._make_room()
        mapping.make_writable(cluster)
        count = min(count, mapping.per_table - cluster % mapping.per_table)
        span = min(count * cluster_bytes - within, len(data))
        first, count = self._refcounts.allocate(-(-(within + span) // cluster_bytes))
        try:
            span = min(count * cluster_bytes - within, span)
            last, tail_bytes = cluster + count - 1, -(within + span) % cluster_bytes
            host, parts = first * cluster_bytes + within, [data[:span]]
            # behind the end of the file all is zeroes already, and stays a hole
            new_ground = first * cluster_bytes >= self._file.end()
            if within and not (new_ground and self._reads_as_zeroes(cluster)):
                host -= within
                parts.insert(0, self._old(cluster * cluster_bytes, within))
            if tail_bytes and not (new_ground and self._reads_as_zeroes(last)):
                parts.append(self._old((last + 1) * cluster_bytes - tail_bytes, tail_bytes))
            self._file.write_vector(host, parts)
            mapping.assign(cluster, first, count)
        except BaseException:
            self._refcounts.cancel(first, count)
            raise
        return span

    def _old(self, offset: int, size_bytes: int) -> memoryview:
        data = memoryview(bytearray(size_bytes))
        self._read(offset, data)
        return data

    def _reads_as_zeroes(self, cluster: int) -> bool:
        kind, _, _ = self._mapping.lookup(cluster, 1)
        return kind is Kind.ZERO or (kind is Kind.UNALLOCATED and not self._hides_backing(cluster))

    def discard(self, offset: int, size_bytes: int) -> None:
        self._check_write(offset, size_bytes)
        cluster, end = self._whole_clusters(offset, size_bytes)
        while cluster < end:
            kind, _, count = self._mapping.lookup(cluster, end - cluster)
            hidden = self._hides_backing(cluster)
            if kind in (Kind.DATA, Kind.SHARED, Kind.COMPRESSED) and (self._header.version > 2 or not hidden):
                self._make_room()
                self._mapping.clear(cluster, count, zero=hidden)
            cluster += count

    def write_zeroes(self, offset: int, size_bytes: int, may_unmap: bool) -> None:
        self._check_write(offset, size_bytes)
        cluster, end = self._whole_clusters(offset, size_bytes)
        if cluster >= end:
            self._write_zero_bytes(offset, size_bytes)
            return
        self._write_zero_bytes(offset, cluster * self._cluster_bytes - offset)
        while cluster < end:
            kind, host, count = self._mapping.lookup(cluster, end - cluster)
            hidden = self._hides_backing(cluster)
            if kind is Kind.DATA and not may_unmap and self._refcounts.exclusive(host >> self._header.cluster_bits, count):
                self._file.write_zeroes(host, count * self._cluster_bytes, may_unmap=False)
            elif kind is not Kind.ZERO and (kind is not Kind.UNALLOCATED or hidden):
                if self._header.version > 2 or not hidden:
                    self._make_room()
                    count = min(count, self._mapping.per_table - cluster % self._mapping.per_table)
                    self._mapping.clear(cluster, count, zero=self._header.version > 2)
                else:
                    count = min(count, max(1, MIB // self._cluster_bytes))
                    start = cluster * self._cluster_bytes
                    self.write(start, memoryview(bytes(min(count * self._cluster_bytes, self.size_bytes - start))))
            cluster += count
        rest = end * self._cluster_bytes
        self._write_zero_bytes(rest, max(0, offset + size_bytes - rest))

    def _write_zero_bytes(self, offset: int, size_bytes: int) -> None:
        """At most two clusters' worth, less than one of each."""
        while size_bytes:
            cluster, within = divmod(offset, self._cluster_bytes)
            part = min(size_bytes, self._cluster_bytes - within)
            if not self._reads_as_zeroes(cluster):
                self.write(offset, memoryview(bytes(part)))
            offset += part
            size_bytes -= part

    def _whole_clusters(self, offset: int, size_bytes: int) -> tuple[int, int]:
        """The first cluster that lies in the range entirely and the one behind the last; the disk's end counts as a boundary."""
        end = offset + size_bytes
        return -(-offset // self._cluster_bytes), (-(-end // self._cluster_bytes) if end == self.size_bytes else end // self._cluster_bytes)

    def _hides_backing(self, cluster: int) -> bool:
        return cluster * self._cluster_bytes < self._backing_bytes

    def _check_write(self, offset: int, size_bytes: int) -> None:
        if self.readonly:
            raise OSError(errno.EROFS, "the disk is read-only")
        check_range(offset, size_bytes, self.size_bytes)
        if self._autoclear:
            self._give_up_bitmaps()

    def _make_room(self) -> None:
        if self._refcounts.crowded or self._mapping.crowded:
            self.flush()

    # --- committing ---

    def flush(self) -> None:
        if self.readonly:
            return
        refcounts, mapping, file = self._refcounts, self._mapping, self._file
        if not (refcounts.changed or mapping.changed):
            file.sync()
            return
        self._mark_dirty()
        for at, data in refcounts.new_tables() + mapping.new_tables():
            file.write(at, data)
        file.sync()
        # all is laid out before the first write, so that a kill has the least time to fall between two of them
        steps = [refcounts.changes(), mapping.changes()]
        steps.append(refcounts.drop_released())
        try:
            for step in steps:
                for at, data in step:
                    file.write(at, data)
                if step and self._header.version == 2:
                    file.sync()
            file.sync()
        except BaseException:
            refcounts.restore()
            raise
        mapping.committed()
        self._give_back(refcounts.committed())

    def _give_back(self, free: list[int]) -> None:
        """Makes holes of free clusters, neighbours together."""
        at = 0
        while at < len(free):
            run = at + 1
            while run < len(free) and free[run] == free[run - 1] + 1:
                run += 1
            if not self._file.punch_hole(free[at] * self._cluster_bytes, (run - at) * self._cluster_bytes):
                return
            at = run

    def _mark_dirty(self) -> None:
        if self._header.version < 3 or self._marked_dirty or self._file.volatile:
            return
        self._file.write(INCOMPATIBLE_OFFSET, struct.pack(">Q", self._header.incompatible | DIRTY))
        self._marked_dirty = True

    def _give_up_bitmaps(self) -> None:
        """Before the first change: bitmaps of changes are not kept up to date here."""
        self._file.write(AUTOCLEAR_OFFSET, bytes(8))
        self._file.sync()
        self._autoclear = 0
        for area in self._bitmaps:
            if area.what == BITMAP_TABLE:
                for offset in bitmap_clusters(self._file, area):
                    self._refcounts.release(offset >> self._header.cluster_bits)
            clusters = area.clusters(self._header.cluster_bits)
            self._refcounts.release(clusters.start, len(clusters))
            self._metadata.difference_update(clusters)
        self._bitmaps = []

    def _mark_clean(self) -> None:
        if self._marked_dirty:
            self._file.write(INCOMPATIBLE_OFFSET, struct.pack(">Q", self._header.incompatible & ~DIRTY))
            self._file.sync()
            self._marked_dirty = False

    def close(self) -> None:
        """Commits everything.  Raises OSError when that fails; the file is closed all the same."""
        if self._file.fd < 0:
            return
        try:
            self.flush()
            if not self.readonly:
                self._mark_clean()
        finally:
            self._file.close()
            if self._backing is not None:
                self._backing.close()
