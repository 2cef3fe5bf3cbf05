"""Counts the references to every cluster anew and corrects the stored counts: no leak, no cluster that is used but free.

Needed after a crash: the dirty bit of version 3 says so; version 2 has no such bit, so its images are always counted when
opened for writing.  Memory is bounded by the file's size in clusters, time by the tables that are really in the file.

Specification: qcow2, sections "Host cluster management" and "Header" (dirty bit, copied flags).
"""

from __future__ import annotations

import mmap
from array import array
from collections import Counter
from collections.abc import Iterable

from ringfence.backends.block.hostfile import DamagedImage, HostFile
from ringfence.backends.block.qcow2_areas import BITMAP_TABLE, SNAPSHOT_L1, Area, bitmap_clusters
from ringfence.backends.block.qcow2_format import OFFSET_MASK, Header
from ringfence.backends.block.qcow2_mapping import COMPRESSED_FLAG, COPIED, Mapping
from ringfence.backends.block.qcow2_refcounts import Refcounts
from ringfence.backends.block.qcow2_table import decode, encode
from ringfence.core.errors import ImageError

MAX_CLUSTERS = 1 << 27


def recount(file: HostFile, header: Header, mapping: Mapping, refcounts: Refcounts, areas: Iterable[Area]) -> None:
    """Corrects reference counts (in memory, for the next commit) and copied flags.  Raises ImageError on worse damage."""
    clusters = -(-file.end() >> header.cluster_bits)
    if clusters > MAX_CLUSTERS:
        raise ImageError(f"{header.name} was not closed properly and is too large to repair here.", "Run `qemu-img check -r all` on it.")
    # private anonymous memory: pages that stay zero cost nothing
    counts = memoryview(mmap.mmap(-1, max(clusters, 1) * 4, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)).cast("I")

    def count(offset: int, size_bytes: int, times: int = 1) -> None:
        first, last = offset >> header.cluster_bits, offset + size_bytes - 1 >> header.cluster_bits
        if last >= clusters:
            raise DamagedImage(header.name, f"something refers to {offset:#x}, behind the end of the file")
        for cluster in range(first, last + 1):
            counts[cluster] += times

    tables = Counter(entry & OFFSET_MASK for entry in mapping.l1 if entry)
    for area in areas:
        count(area.offset, area.size_bytes)
        if area.what == SNAPSHOT_L1:
            tables.update(entry & OFFSET_MASK for entry in decode(file.read(area.offset, area.size_bytes), 64) if entry & OFFSET_MASK)
        elif area.what == BITMAP_TABLE:
            for offset in bitmap_clusters(file, area):
                count(offset, 1)
    for offset, times in tables.items():
        if offset & header.cluster_bytes - 1:
            raise DamagedImage(header.name, f"an L2 table cannot be at {offset:#x}")
        count(offset, 1, times)
        for entry in filter(None, decode(file.read(offset, header.cluster_bytes), 64)):
            if entry & COMPRESSED_FLAG:
                count(*mapping.compressed_range(entry & COMPRESSED_FLAG - 1), times)
            elif entry & OFFSET_MASK:
                if entry & OFFSET_MASK & header.cluster_bytes - 1:
                    raise DamagedImage(header.name, f"data cannot be at {entry:#x}")
                count(entry & OFFSET_MASK, 1, times)
    for offset in filter(None, refcounts.table):
        if counts[offset >> header.cluster_bits]:
            raise DamagedImage(header.name, f"the refcount block at {offset:#x} is used for something else too")
        count(offset, 1)
    _store(header, refcounts, counts, clusters)
    _correct_copied(file, header, mapping, counts)


def _store(header: Header, refcounts: Refcounts, counts: memoryview, clusters: int) -> None:
    largest = (1 << header.refcount_bits) - 1
    for slot, offset in enumerate(refcounts.table):
        part = counts[slot * refcounts.per_block : (slot + 1) * refcounts.per_block]
        used = part.tobytes().strip(b"\0")
        if not offset and not used:
            continue
        wanted = array("Q", part.tolist() if used else ())
        if wanted and max(wanted) > largest:
            raise DamagedImage(header.name, f"clusters are referenced more often than counts of {header.refcount_bits} bits can say")
        wanted.extend([0] * (refcounts.per_block - len(wanted)))
        refcounts.replace(slot, wanted)
    countable = len(refcounts.table) * refcounts.per_block
    if clusters > countable and counts[countable:].tobytes().strip(b"\0"):
        raise ImageError(f"{header.name} is longer than its refcount table can say.", "Run `qemu-img check -r all` on it.")


def _correct_copied(file: HostFile, header: Header, mapping: Mapping, counts: memoryview) -> None:
    """The flags of the active tables say whether a cluster's count is exactly one."""
    for index, entry in enumerate(mapping.l1):
        if not entry:
            continue
        offset = entry & OFFSET_MASK
        flagged = offset | (COPIED if counts[offset >> header.cluster_bits] == 1 else 0)
        table = decode(file.read(offset, header.cluster_bytes), 64)
        corrected = array("Q", (_flag(e, counts, header.cluster_bits) if e else 0 for e in table))
        if corrected != table:
            file.write(offset, encode(corrected, 64))
        if flagged != entry:
            mapping.set_l1(index, flagged)


def _flag(entry: int, counts: memoryview, cluster_bits: int) -> int:
    offset = entry & OFFSET_MASK
    if entry & COMPRESSED_FLAG or not offset:
        return entry
    return entry | COPIED if counts[offset >> cluster_bits] == 1 else entry & ~COPIED
