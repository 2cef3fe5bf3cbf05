"""Requests of the block device: taken apart, checked, performed.  OASIS VIRTIO 1.2, section 5.2.6.

readable   le32 type, le32 reserved, le64 sector; then data to write, or discard segments
writable   data read; the last byte is the status
"""

from __future__ import annotations

import struct

from ringfence.backends.api import Block
from ringfence.core.errors import RingfenceError
from ringfence.core.trace import tracer
from ringfence.devices.virtio.buffers import gather, skip, take, total_bytes
from ringfence.devices.virtio.queue import Chain, GuestRange, VirtqueueError
from ringfence.memory.guest_memory import GuestMemory

trace = tracer("virtio")

SECTOR_BYTES = 512
T_IN, T_OUT, T_FLUSH, T_GET_ID, T_DISCARD, T_WRITE_ZEROES = 0, 1, 4, 8, 11, 13
S_OK, S_IOERR, S_UNSUPP = 0, 1, 2
ID_BYTES = 20
SEGMENT_UNMAP = 1

# Bounds on what one request may cost.  Drivers stay far below the first (Linux: 1280 KiB unless told otherwise) and are
# told of the others.
MAX_REQUEST_BYTES = 32 << 20
MAX_DISCARD_SECTORS = (256 << 20) // SECTOR_BYTES
MAX_WRITE_ZEROES_SECTORS = (64 << 20) // SECTOR_BYTES
MAX_SEGMENTS = 1

_HEADER = struct.Struct("<IIQ")
_SEGMENT = struct.Struct("<QII")
HEADER_BYTES = _HEADER.size


class Request:
    """One request; `status` tells the outcome."""

    __slots__ = ("chain", "kind", "offset", "size_bytes", "data_out", "data_in", "data", "segments", "flush_after", "status", "_backend")

    def __init__(self, backend: Block, chain: Chain, kind: int, offset: int) -> None:
        self.chain = chain
        self.kind = kind
        self.offset = offset  # on the disk, in bytes
        self.size_bytes = 0
        self.data_out: list[GuestRange] = []
        self.data_in: list[GuestRange] = []
        self.data: bytes | bytearray | memoryview = b""  # what `perform` writes or has read
        self.segments: list[tuple[int, int, bool]] = []  # offset and size in bytes, may unmap
        self.flush_after = False
        self.status = S_OK
        self._backend = backend

    def perform(self) -> None:
        """Runs on the worker's thread, too: touches nothing of the guest's.  Sets `status`."""
        backend, kind = self._backend, self.kind
        try:
            if kind == T_IN:
                self.data = bytearray(self.size_bytes)
                backend.read(self.offset, memoryview(self.data))
            elif kind == T_OUT:
                backend.write(self.offset, memoryview(self.data))
            elif kind == T_DISCARD:
                for offset, size, _ in self.segments:
                    backend.discard(offset, size)
            elif kind == T_WRITE_ZEROES:
                for offset, size, may_unmap in self.segments:
                    backend.write_zeroes(offset, size, may_unmap)
            if kind == T_FLUSH or self.flush_after:
                backend.flush()
        except (OSError, RingfenceError) as error:
            self.failed(error)

    def failed(self, error: Exception) -> None:
        """The host's answer goes to the guest as an I/O error (5.2.6.2)."""
        if trace:
            trace("block request %d at %#x+%#x: %s", self.kind, self.offset, self.size_bytes, error)
        self.status = S_IOERR


def parse(memory: GuestMemory, backend: Block, chain: Chain) -> Request:
    """Takes a chain apart; what must not be performed comes back with `status` set.

    Raises VirtqueueError when there is no header or no place for the status.
    """
    readable, writable = chain.readable, chain.writable
    if not writable or not readable:
        raise VirtqueueError("a block request without header or status")
    if readable[0][1] == HEADER_BYTES:
        header, data_out = memory.read(*readable[0]), readable[1:]
    else:
        header, data_out = gather(memory, take(readable, HEADER_BYTES)), skip(readable, HEADER_BYTES)
        if len(header) < HEADER_BYTES:
            raise VirtqueueError("a block request with a short header")
    kind, _, sector = _HEADER.unpack(header)
    last_addr, last_size = writable[-1]
    request = Request(backend, chain, kind, sector * SECTOR_BYTES)
    request.data_out = data_out
    request.data_in = writable[:-1] if last_size == 1 else [*writable[:-1], (last_addr, last_size - 1)]
    if kind in (T_IN, T_OUT):
        size = request.size_bytes = total_bytes(request.data_in if kind == T_IN else data_out)
        beyond = size > MAX_REQUEST_BYTES or request.offset + size > backend.size_bytes
        if size % SECTOR_BYTES or beyond or (kind == T_OUT and backend.readonly):
            request.status = S_IOERR
    elif kind in (T_DISCARD, T_WRITE_ZEROES):
        request.status = _parse_segments(memory, backend, request)
    elif kind not in (T_FLUSH, T_GET_ID):
        request.status = S_UNSUPP
    return request


def _parse_segments(memory: GuestMemory, backend: Block, request: Request) -> int:
    size = total_bytes(request.data_out)
    if not size or size % _SEGMENT.size or size > MAX_SEGMENTS * _SEGMENT.size or backend.readonly:
        return S_IOERR
    limit = MAX_DISCARD_SECTORS if request.kind == T_DISCARD else MAX_WRITE_ZEROES_SECTORS
    for sector, sectors, flags in _SEGMENT.iter_unpack(gather(memory, request.data_out)):
        # 5.2.6.2: reserved flags, and unmap together with discard, are not supported
        if flags & ~SEGMENT_UNMAP or (flags and request.kind == T_DISCARD):
            return S_UNSUPP
        if sectors > limit or (sector + sectors) * SECTOR_BYTES > backend.size_bytes:
            return S_IOERR
        if sectors:
            request.segments.append((sector * SECTOR_BYTES, sectors * SECTOR_BYTES, bool(flags)))
    return S_OK
