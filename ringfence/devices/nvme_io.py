"""NVMe I/O commands over a block backend.

NVM Express Base Specification 1.4, chapter 6: flush, write, read, compare, write zeroes, dataset management.  As in
`virtio.block`, small transfers go straight to the backend on the device thread and all else to one worker thread, which sees
private buffers only; while the worker has anything to do, everything goes there.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable

from ringfence.backends.api import Block
from ringfence.core.errors import GuestMemoryError, RingfenceError
from ringfence.core.trace import tracer
from ringfence.core.units import PAGE_BYTES
from ringfence.devices.api import Executor
from ringfence.devices.nvme_queue import (
    CAPACITY_EXCEEDED,
    COMPARE_FAILURE,
    DATA_TRANSFER_ERROR,
    INVALID_FIELD,
    INVALID_NAMESPACE,
    INVALID_OPCODE,
    LBA_OUT_OF_RANGE,
    SUCCESS,
    UNRECOVERED_READ,
    WRITE_FAULT,
    WRITE_PROTECTED,
    Command,
    CommandError,
    GuestRange,
    gather,
    prp_ranges,
    scatter,
)
from ringfence.devices.virtio.worker import Worker
from ringfence.memory.guest_memory import GuestMemory

trace = tracer("nvme")

FLUSH, WRITE, READ, COMPARE, WRITE_ZEROES, DATASET_MANAGEMENT = 0x00, 0x01, 0x02, 0x05, 0x08, 0x09
LBA_SHIFT = 9
MDTS = 8  # the largest transfer: 2^8 pages
MAX_TRANSFER_BYTES = PAGE_BYTES << MDTS
NAMESPACE, ALL_NAMESPACES = 1, 0xFFFFFFFF
# As in virtio.block, whose comment has the measurements.
SYNC_BYTES = 256 << 10
MAX_BYTES_IN_FLIGHT = 32 << 20
# A deallocation is a hint; what one command asks beyond this is not done.
MAX_DISCARD_BYTES = 4 << 30
_FUA, _DEALLOCATE = 1 << 30, 1 << 25
_ATTRIBUTE_DEALLOCATE = 1 << 2
_RANGE = struct.Struct("<IIQ")


class IoRequest:
    """One command; `status` tells the outcome."""

    __slots__ = (
        "queue",
        "cid",
        "kind",
        "offset",
        "size_bytes",
        "ranges",
        "data",
        "pieces",
        "may_unmap",
        "flush_after",
        "status",
        "_backend",
    )

    def __init__(self, backend: Block, queue: int, cid: int, kind: int) -> None:
        self.queue = queue  # number of the submission queue
        self.cid = cid
        self.kind = kind
        self.offset = 0  # on the disk, in bytes
        self.size_bytes = 0
        self.ranges: list[GuestRange] = []
        self.data: bytes | bytearray | memoryview = b""  # what `perform` writes, compares or has read
        self.pieces: list[GuestRange] = []  # what to deallocate: offset and size in bytes
        self.may_unmap = False
        self.flush_after = False
        self.status = SUCCESS
        self._backend = backend

    def perform(self) -> None:
        """Runs on the worker's thread, too: touches nothing of the guest's.  Sets `status`."""
        backend = self._backend
        try:
            if self.kind in (READ, COMPARE):
                found = bytearray(self.size_bytes)
                backend.read(self.offset, memoryview(found))
                if self.kind == READ:
                    self.data = found
                elif found != self.data:
                    self.status = COMPARE_FAILURE
            elif self.kind == WRITE:
                backend.write(self.offset, memoryview(self.data))
            elif self.kind == WRITE_ZEROES:
                backend.write_zeroes(self.offset, self.size_bytes, self.may_unmap)
            elif self.kind == DATASET_MANAGEMENT:
                for offset, size in self.pieces:
                    backend.discard(offset, size)
            if self.kind == FLUSH or self.flush_after:
                backend.flush()
        except (OSError, RingfenceError) as error:
            self.failed(error)

    def failed(self, error: Exception) -> None:
        if trace:
            trace("command %#x at %#x+%#x: %s", self.kind, self.offset, self.size_bytes, error)
        if isinstance(error, GuestMemoryError):
            self.status = DATA_TRANSFER_ERROR
        elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            self.status = CAPACITY_EXCEEDED
        else:
            self.status = UNRECOVERED_READ if self.kind in (READ, COMPARE) else WRITE_FAULT


class IoPath:
    """Begins requests; those that could not be done at once come back through `finished`, on the device thread."""

    def __init__(
        self, memory: GuestMemory, backend: Block, executor: Executor, finished: Callable[[list[IoRequest]], None], name: str
    ) -> None:
        self._memory = memory
        self._backend = backend
        self._finished = finished
        self._worker: Worker[IoRequest] = Worker(name, executor, self._hand_back)
        self._bytes_in_flight = 0

    @property
    def full(self) -> bool:
        """No more may begin until something has finished."""
        return self._bytes_in_flight >= MAX_BYTES_IN_FLIGHT

    def begin(self, queue: int, command: Command, write_back: bool) -> IoRequest | None:
        """The request when it is done already, else None.  Raises CommandError for what must not be done."""
        try:
            request = self._parse(queue, command)
            request.flush_after |= not write_back and request.kind in (WRITE, WRITE_ZEROES)
            if self._worker.pending or request.size_bytes > SYNC_BYTES or not self._perform_now(request):
                self._hand_over(request)
                return None
        except GuestMemoryError as error:
            raise CommandError(DATA_TRANSFER_ERROR) from error
        return request

    def flush(self, queue: int, cid: int) -> None:
        """A flush of the controller's own (a shutdown)."""
        self._hand_over(IoRequest(self._backend, queue, cid, FLUSH))

    def drain(self) -> None:
        """Returns when nothing is under way any more; all of it went through `finished`."""
        self._worker.stop()

    def complete(self, request: IoRequest) -> int:
        """Moves what was read into the guest's memory; the status of the command."""
        if request.status == SUCCESS and request.kind == READ and request.data:
            try:
                scatter(self._memory, request.ranges, bytes(request.data))
            except GuestMemoryError as error:
                request.failed(error)
        return request.status

    def _parse(self, queue: int, command: Command) -> IoRequest:
        backend, kind = self._backend, command.opcode
        if kind not in (FLUSH, WRITE, READ, COMPARE, WRITE_ZEROES, DATASET_MANAGEMENT):
            raise CommandError(INVALID_OPCODE)
        if command.flags:  # fused operations, scatter gather lists
            raise CommandError(INVALID_FIELD)
        if command.nsid != NAMESPACE and not (kind == FLUSH and command.nsid == ALL_NAMESPACES):
            raise CommandError(INVALID_NAMESPACE)
        request = IoRequest(backend, queue, command.cid, kind)
        if kind in (WRITE, WRITE_ZEROES, DATASET_MANAGEMENT) and backend.readonly:
            raise CommandError(WRITE_PROTECTED)
        if kind == DATASET_MANAGEMENT:
            self._parse_ranges(request, command)
        elif kind != FLUSH:
            request.offset = (command.cdw11 << 32 | command.cdw10) << LBA_SHIFT
            request.size_bytes = (command.cdw12 & 0xFFFF) + 1 << LBA_SHIFT
            request.flush_after = bool(command.cdw12 & _FUA) and kind != COMPARE
            request.may_unmap = bool(command.cdw12 & _DEALLOCATE)
            if kind != WRITE_ZEROES and request.size_bytes > MAX_TRANSFER_BYTES:
                raise CommandError(INVALID_FIELD)
            if request.offset + request.size_bytes > backend.size_bytes:
                raise CommandError(LBA_OUT_OF_RANGE)
            if kind != WRITE_ZEROES:
                request.ranges = prp_ranges(self._memory, command, request.size_bytes)
        if kind == READ:
            request.flush_after = False  # FUA on a read: the host file is the medium
        return request

    def _parse_ranges(self, request: IoRequest, command: Command) -> None:
        size = ((command.cdw10 & 0xFF) + 1) * _RANGE.size
        budget = MAX_DISCARD_BYTES
        for _, blocks, lba in _RANGE.iter_unpack(gather(self._memory, prp_ranges(self._memory, command, size))):
            if (lba + blocks) << LBA_SHIFT > self._backend.size_bytes:
                raise CommandError(LBA_OUT_OF_RANGE)
            length = min(blocks << LBA_SHIFT, budget)
            if length and command.cdw11 & _ATTRIBUTE_DEALLOCATE:  # other attributes are hints that mean nothing here
                request.pieces.append((lba << LBA_SHIFT, length))
                budget -= length

    def _perform_now(self, request: IoRequest) -> bool:
        """On the device thread, in guest memory itself where the data is in one piece; False when it may take long."""
        memory, backend = self._memory, self._backend
        if request.kind == READ:
            if len(request.ranges) == 1 and memory.contains(*request.ranges[0]):
                with memory.writable(*request.ranges[0]) as buffer:
                    try:
                        backend.read(request.offset, buffer)
                    except (OSError, RingfenceError) as error:
                        request.failed(error)
            else:
                request.perform()
            return True
        if request.kind == WRITE and not request.flush_after:
            whole = len(request.ranges) == 1 and memory.contains(*request.ranges[0])
            request.data = memory.view(*request.ranges[0]) if whole else gather(memory, request.ranges)
            request.perform()
            return True
        return False

    def _hand_over(self, request: IoRequest) -> None:
        if request.kind in (WRITE, COMPARE):
            request.data = gather(self._memory, request.ranges)
        if request.kind != WRITE_ZEROES:
            self._bytes_in_flight += request.size_bytes
        self._worker.submit(request)

    def _hand_back(self, requests: list[IoRequest]) -> None:
        self._bytes_in_flight -= sum(request.size_bytes for request in requests if request.kind != WRITE_ZEROES)
        self._finished(requests)
