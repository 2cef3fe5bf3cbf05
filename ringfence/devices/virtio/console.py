"""Console device with a single port.  OASIS VIRTIO 1.2, section 5.3, without VIRTIO_CONSOLE_F_MULTIPORT."""

from __future__ import annotations

import struct
from typing import Any

from ringfence.backends.api import Char
from ringfence.core.errors import SnapshotError
from ringfence.core.trace import tracer
from ringfence.devices.api import Executor
from ringfence.devices.virtio.buffers import gather, scatter, total_bytes
from ringfence.devices.virtio.device import VirtioDevice
from ringfence.devices.virtio.queue import VirtqueueError

trace = tracer("virtio")

F_SIZE, F_EMERG_WRITE = 1 << 0, 1 << 2
RECEIVE, TRANSMIT = 0, 1
EMERG_WR = 8
CONFIG_BYTES = 12  # le16 cols, le16 rows, le32 max_nr_ports, le32 emerg_wr
# Drivers write a few KiB at a time; more than this in one request is an attempt to keep the device busy.
MAX_REQUEST_BYTES = 1 << 20
# A guest that does not read loses what is typed or piped beyond this, like any serial line's receiver.
MAX_INPUT_BYTES = 1 << 20


class VirtioConsole(VirtioDevice):
    """Bytes from the guest go to `backend`; bytes for the guest come through `receive`."""

    device_id = 3
    pci_class_code = 0x078000
    queue_sizes = (128, 128)

    def __init__(self, backend: Char | None, executor: Executor, name: str = "virtio-console") -> None:
        super().__init__(name, F_SIZE | F_EMERG_WRITE, CONFIG_BYTES)
        self._backend = backend
        self._executor = executor
        self._input = bytearray()
        self.resize(80, 25)

    def start(self) -> None:
        """Begins to listen to the backend, for a machine that does not feed `receive` itself."""
        if self._backend is not None:
            self._backend.start(lambda data: self._executor.post(lambda: self.receive(data)))

    def receive(self, data: bytes) -> None:
        """Bytes for the guest; they wait until it gives buffers.  Device thread."""
        room = MAX_INPUT_BYTES - len(self._input)
        if len(data) > room and trace:
            trace("%s: %d bytes of input lost", self.name, len(data) - room)
        self._input += data[:room]
        self.notify(RECEIVE)

    def resize(self, columns: int, rows: int) -> None:
        """The host's terminal has this size now.  Device thread.  Like the backend it is no part of saved state."""
        before = bytes(self.config)
        struct.pack_into("<HHI", self.config, 0, min(columns, 0xFFFF), min(rows, 0xFFFF), 1)
        if self.config != before:
            self.config_changed()

    def config_written(self, offset: int, size: int, value: int) -> None:
        if offset == EMERG_WR and self._backend is not None:  # 5.3.4: output before the queues work
            self._backend.write(bytes([value & 0xFF]))

    def process(self, queue_index: int) -> None:
        if queue_index == RECEIVE:
            self._deliver()
        else:
            self._transmit()
        self.signal(queue_index)

    def _transmit(self) -> None:
        queue = self.queues[TRANSMIT]
        for chain in queue.chains():
            size = total_bytes(chain.readable)
            if size > MAX_REQUEST_BYTES:
                raise VirtqueueError(f"console output of {size} bytes in one request")
            if size and self._backend is not None:
                self._backend.write(gather(self.memory, chain.readable))
            queue.push(chain, 0)

    def _deliver(self) -> None:
        queue, waiting = self.queues[RECEIVE], self._input
        while waiting:
            chain = queue.pop()
            if chain is not None:
                done = scatter(self.memory, chain.writable, bytes(waiting[: chain.writable_bytes]))
                del waiting[:done]
                queue.push(chain, done)
            elif not queue.rearm():
                return

    def save(self) -> dict[str, Any]:
        return {**super().save(), "input": list(self._input)}

    def load(self, saved: dict[str, Any]) -> None:
        try:
            waiting = bytes(saved["input"])
        except (KeyError, TypeError, ValueError) as error:
            raise SnapshotError(f"{self.name}: input is missing or not a list of bytes") from error
        super().load({key: value for key, value in saved.items() if key != "input"})
        self._input[:] = waiting

    def resume(self) -> None:
        self.notify(RECEIVE)
