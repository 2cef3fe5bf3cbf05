"""Block device.  OASIS VIRTIO 1.2, section 5.2, one request queue.

A request is performed in one of two ways.  Small reads and writes, and larger ones that the host's page cache answers, go straight
to the backend on the device thread, most of them by `block_quick`; flushes, discards and other large transfers go to one worker
thread, so that the vCPU goes on meanwhile.  While the worker has
anything to do, everything goes there: a backend takes calls from one thread at a time.  The worker sees private buffers
only; guest memory is read before and written after, on the device thread.
"""

from __future__ import annotations

import struct
from typing import Any

from ringfence.backends.api import Block
from ringfence.core.errors import RingfenceError
from ringfence.core.state import Field
from ringfence.devices.api import Executor
from ringfence.devices.virtio.block_quick import DONE, LEFT, SLOW, SYNC_BYTES, QuickRequests
from ringfence.devices.virtio.block_request import (
    ID_BYTES,
    MAX_DISCARD_SECTORS,
    MAX_SEGMENTS,
    MAX_WRITE_ZEROES_SECTORS,
    S_OK,
    SECTOR_BYTES,
    T_GET_ID,
    T_IN,
    T_OUT,
    Request,
    parse,
)
from ringfence.devices.virtio.buffers import gather, scatter
from ringfence.devices.virtio.device import VirtioDevice, VirtioState
from ringfence.devices.virtio.worker import Worker

F_SEG_MAX, F_RO, F_BLK_SIZE, F_FLUSH, F_TOPOLOGY = 1 << 2, 1 << 5, 1 << 6, 1 << 9, 1 << 10
F_CONFIG_WCE, F_DISCARD, F_WRITE_ZEROES = 1 << 11, 1 << 13, 1 << 14

QUEUE_SIZE = 256
WRITEBACK_OFFSET = 32
PHYSICAL_BLOCK_EXPONENT = 3  # 4 KiB, what host file systems work in
# 5.2.4: capacity, size_max, seg_max, geometry, blk_size, topology, writeback, num_queues, discard, write zeroes
_CONFIG = struct.Struct("<QII4xIBBHIBxHIIIIIB3x")

_STATUS = (b"\0", b"\1", b"\2")
# Disk reads may write new requests into the ring itself, for ever: after this many others have their turn.
MAX_CHAINS_AT_ONCE = 4 * QUEUE_SIZE
# What requests under way may hold in private buffers (one more request may begin below the limit).
MAX_BYTES_IN_FLIGHT = 32 << 20


class BlockState(VirtioState):
    writeback = Field(1, reset=1, doc="configuration field: 1 write-back, 0 write-through")


class VirtioBlock(VirtioDevice):
    """A disk over `backend`; `serial` is what the guest gets as its ID (20 bytes at most)."""

    state: BlockState
    device_id = 2
    pci_class_code = 0x018000
    queue_sizes = (QUEUE_SIZE,)

    def __init__(self, backend: Block, executor: Executor, serial: str = "", name: str = "virtio-blk") -> None:
        features = F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY | F_CONFIG_WCE
        features |= F_RO if backend.readonly else F_DISCARD | F_WRITE_ZEROES
        super().__init__(name, features, _CONFIG.size)
        self.state = BlockState()
        self._backend = backend
        self._quick = QuickRequests(backend)
        self._executor = executor
        self._serial = serial.encode()[:ID_BYTES].ljust(ID_BYTES, b"\0")
        self._worker: Worker[Request] = Worker(name, executor, self._finished)
        self._bytes_in_flight = 0
        self._held = False
        _CONFIG.pack_into(
            self.config,
            0,
            backend.size_bytes // SECTOR_BYTES,
            0,
            QUEUE_SIZE - 2,  # a queue's worth of descriptors less header and status
            SECTOR_BYTES,
            PHYSICAL_BLOCK_EXPONENT,
            0,
            1 << PHYSICAL_BLOCK_EXPONENT,
            0,
            self.state.writeback,
            1,
            MAX_DISCARD_SECTORS,
            MAX_SEGMENTS,
            1 << PHYSICAL_BLOCK_EXPONENT,
            MAX_WRITE_ZEROES_SECTORS,
            MAX_SEGMENTS,
            1,
        )

    def config_written(self, offset: int, size: int, value: int) -> None:
        if offset == WRITEBACK_OFFSET and size == 1 and self.negotiated(F_CONFIG_WCE):
            self._set_writeback(value & 1)

    def _set_writeback(self, value: int) -> None:
        self.state.writeback = self.config[WRITEBACK_OFFSET] = value

    @property
    def _write_through(self) -> bool:
        # 5.2.6.2: a driver that cannot flush gets its writes on stable storage before they are acknowledged
        return not self.state.writeback or not self.negotiated(F_FLUSH)

    # -- requests -------------------------------------------------------------------------------------------------

    def process(self, queue_index: int) -> None:
        if not self._held:
            self._take()
            self.signal(0)

    def _take(self) -> None:
        """Begins with what the driver offers, as far as memory for private buffers goes; the rest stays in the queue."""
        memory, queue, backend, quick = self.memory, self.queues[0], self._backend, self._quick
        writes = not self._write_through and not backend.readonly
        for _ in range(MAX_CHAINS_AT_ONCE):
            if self._bytes_in_flight >= MAX_BYTES_IN_FLIGHT:
                return
            head = queue.next_head()
            if head < 0:
                if not queue.rearm():
                    return
                continue
            how = LEFT if self._worker.pending else quick.perform(memory, queue, head, writes)
            if how == DONE:
                continue
            request = parse(memory, backend, queue.chain(head))
            if request.status != S_OK:
                self._complete(request)
            elif request.kind == T_GET_ID:
                request.data = self._serial
                self._complete(request)
            elif how != SLOW and request.size_bytes <= SYNC_BYTES and not self._worker.pending and self._perform_now(request):
                self._complete(request)
            else:
                self._hand_over(request)
        self._executor.post(lambda: self.notify(0))

    def _perform_now(self, request: Request) -> bool:
        """On the device thread, from and to guest memory directly where that is in one piece; False when it may take long."""
        if request.kind == T_IN:
            if len(request.data_in) == 1:
                try:
                    with self.memory.writable(*request.data_in[0]) as buffer:
                        self._backend.read(request.offset, buffer)
                except (OSError, RingfenceError) as error:
                    request.failed(error)
            elif request.size_bytes:
                request.perform()
            return True
        if request.kind == T_OUT and not self._write_through:
            if len(request.data_out) == 1:
                request.data = self.memory.view(*request.data_out[0])
            else:
                request.data = gather(self.memory, request.data_out)
            if request.data:
                request.perform()
            return True
        return False

    def _hand_over(self, request: Request) -> None:
        if request.kind == T_OUT:
            request.data = gather(self.memory, request.data_out)
        request.flush_after = self._write_through and request.kind != T_IN
        self._bytes_in_flight += request.size_bytes
        self._worker.submit(request)

    def _finished(self, requests: list[Request]) -> None:
        """Requests come back from the worker."""
        self._bytes_in_flight -= sum(request.size_bytes for request in requests)
        if self.running and self.queues[0].ready:
            self._guarded(lambda: self._complete_all(requests))

    def _complete_all(self, requests: list[Request]) -> None:
        for request in requests:
            self._complete(request)
        if self._held:
            self.signal(0)
        else:
            self.process(0)

    def _complete(self, request: Request) -> None:
        """Data, status, used ring; the interrupt follows once for several requests."""
        memory, chain = self.memory, request.chain
        written = 0
        if request.status == S_OK:
            if request.kind in (T_IN, T_GET_ID):  # data is empty when it was read in place
                scatter(memory, request.data_in, request.data)
            written = chain.writable_bytes
        addr, size = chain.writable[-1]
        memory.write(addr + size - 1, _STATUS[request.status])
        self.queues[0].push(chain, written)

    # -- life -----------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        held, self._held = self._held, True
        self._worker.stop()
        self._held = held

    def pause(self) -> None:
        self.drain()
        self._held = True

    def resume(self) -> None:
        self._held = False
        self.notify(0)

    def reset(self) -> None:
        super().reset()
        self._set_writeback(1)

    def load(self, saved: dict[str, Any]) -> None:
        super().load(saved)
        self._set_writeback(self.state.writeback)
