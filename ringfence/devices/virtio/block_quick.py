"""Requests as a kernel's block layer makes nearly all of them: reads and writes in an indirect table.

    header, 16 bytes, readable -> data, one buffer or more -> status, one byte, writable       all in the largest piece of RAM

They are read at one go and performed at once, from and to guest memory.  Whatever else a request is, or has wrong, is left to the
general way (queue.py, block_request.py), which has not been begun then.
"""

from __future__ import annotations

import struct
from operator import add

from ringfence.backends.api import Block, VectorBlock
from ringfence.core.errors import RingfenceError
from ringfence.core.trace import tracer
from ringfence.devices.virtio.block_request import HEADER_BYTES, S_IOERR, S_OK, SECTOR_BYTES, T_IN, T_OUT
from ringfence.devices.virtio.queue import DESC_BYTES, DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Virtqueue
from ringfence.memory.guest_memory import GuestMemory, Region

trace = tracer("virtio")

# What is done here stops the vCPU meanwhile.  Measured on two cores, file in the page cache, CPU time of a whole request here against
# through the worker: 512 bytes 22 and 81 us, 64 KiB 39 and 95-216 us, 256 KiB 62 and 119-350 us, 1 MiB 170 and 340 us; two thread
# changes and the private buffer cost 60 us and more.  A read that must go to the host's disk takes as long as that disk does: beyond
# SYNC_BYTES it is given to the worker, if the host can tell.
SYNC_BYTES = 256 << 10
MOST_BYTES = 2 << 20

_HEADER = struct.Struct("<I4xQ")
_DESC = struct.Struct("<QIHH")
_THREE = struct.Struct("<QIHHQIHHQIHH")
LEFT, DONE, SLOW = range(3)
_OUT, _IN = DESC_NEXT, DESC_NEXT | DESC_WRITE  # flags of data that the device reads, or writes


class QuickRequests:
    """Device thread only."""

    def __init__(self, backend: Block) -> None:
        self._backend = backend
        self._vectors = backend if isinstance(backend, VectorBlock) else None

    def perform(self, memory: GuestMemory, queue: Virtqueue, head: int, writes: bool) -> int:
        """Performs the request whose chain begins at descriptor `head` and hands it back: DONE.

        LEFT: it must go the general way; SLOW: and it will take its time.  `writes` tells whether writes may be done here: the disk
        takes them, and they may be acknowledged without a flush.
        """
        table, table_bytes, flags, _ = queue.descriptor(head)
        base, end, region, shift, writable = memory.main
        if flags != DESC_INDIRECT or not queue.indirect or not writable or not base <= table <= end - table_bytes:
            return LEFT
        view, shift = region.view, shift - base
        if table_bytes != 3 * DESC_BYTES:
            return self._pieces(memory, queue, head, writes, table, table_bytes)
        first, size, flags, following, data, data_bytes, data_flags, last, status, status_bytes, status_flags, _ = _THREE.unpack_from(
            view, table + shift
        )
        if size != HEADER_BYTES or flags != DESC_NEXT or following != 1 or last != 2 or status_bytes != 1 or status_flags != DESC_WRITE:
            return LEFT
        if not (base <= first <= end - HEADER_BYTES and base <= status < end and base <= data <= end - data_bytes):
            return LEFT
        kind, sector = _HEADER.unpack_from(view, first + shift)
        offset = sector * SECTOR_BYTES
        if data_bytes > SYNC_BYTES:
            return self._pieces(memory, queue, head, writes, table, table_bytes)
        if data_bytes % SECTOR_BYTES or not data_bytes or offset + data_bytes > self._backend.size_bytes:
            return LEFT
        at = data + shift
        outcome, written = S_OK, 1
        try:
            if kind == T_IN and data_flags == _IN:
                written += data_bytes
                try:
                    self._backend.read(offset, view[at : at + data_bytes])
                finally:
                    memory.wrote(region, at, data_bytes)
            elif kind == T_OUT and data_flags == _OUT and writes:
                self._backend.write(offset, view[at : at + data_bytes])
            else:
                return LEFT
        except (OSError, RingfenceError) as error:
            outcome, written = _failed(kind, offset, data_bytes, error)
        _finish(memory, region, status + shift, outcome)
        queue.push_head(head, written)
        return DONE

    def _pieces(self, memory: GuestMemory, queue: Virtqueue, head: int, writes: bool, table: int, table_bytes: int) -> int:
        """The same for data in several buffers."""
        backend = self._vectors
        base, end, region, shift, _ = memory.main
        view, shift = region.view, shift - base
        if backend is None or table_bytes % DESC_BYTES or not 3 * DESC_BYTES <= table_bytes <= queue.max_size * DESC_BYTES:
            return LEFT
        (first, size, flags, following), *data, (status, status_bytes, status_flags, _) = _DESC.iter_unpack(
            view[table + shift : table + shift + table_bytes]
        )
        if size != HEADER_BYTES or flags != DESC_NEXT or following != 1 or status_bytes != 1 or status_flags != DESC_WRITE:
            return LEFT
        if not (base <= first <= end - HEADER_BYTES and base <= status < end):
            return LEFT
        kind, sector = _HEADER.unpack_from(view, first + shift)
        if kind != T_IN and (kind != T_OUT or not writes):
            return LEFT
        # columns, for a loop over the pieces takes as long as their data
        addresses, sizes, kinds, followers = zip(*data, strict=True)
        if kinds.count(_IN if kind == T_IN else _OUT) != len(data) or followers != tuple(range(2, len(data) + 2)):
            return LEFT
        if not min(sizes) or min(addresses) < base or max(map(add, addresses, sizes)) > end:
            return LEFT
        total = sum(sizes)
        offset = sector * SECTOR_BYTES
        if total % SECTOR_BYTES or total > MOST_BYTES or offset + total > backend.size_bytes:
            return LEFT
        places = [(at + shift, size) for at, size in zip(addresses, sizes, strict=True)]
        outcome, written = S_OK, 1
        try:
            if kind == T_IN:
                written += total
                try:
                    if not backend.read_vector(offset, [view[at : at + size] for at, size in places], wait=total <= SYNC_BYTES):
                        return SLOW
                finally:
                    memory.wrote_many(region, places)
            else:
                backend.write_vector(offset, [view[at : at + size] for at, size in places])
        except (OSError, RingfenceError) as error:
            outcome, written = _failed(kind, offset, total, error)
        _finish(memory, region, status + shift, outcome)
        queue.push_head(head, written)
        return DONE


def _failed(kind: int, offset: int, size_bytes: int, error: Exception) -> tuple[int, int]:
    """Status and bytes written of a request that the host refused."""
    if trace:
        trace("block request %d at %#x+%#x: %s", kind, offset, size_bytes, error)
    return S_IOERR, 0


def _finish(memory: GuestMemory, region: Region, at: int, outcome: int) -> None:
    region.view[at] = outcome
    memory.wrote(region, at, 1)
