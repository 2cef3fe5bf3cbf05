"""What every virtio device has, whatever transport carries it.

OASIS VIRTIO 1.2, chapter 2: status, feature bits, configuration space, queues.  A subclass gives `device_id`, feature
bits and queue sizes, fills `config`, and handles `process(queue)`.

Errors a driver makes end in DEVICE_NEEDS_RESET and a configuration interrupt (2.1.2), never in an exception: every way
into a device goes through `_guarded`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

from ringfence.core.errors import GuestMemoryError, SnapshotError
from ringfence.core.state import Field, State
from ringfence.core.trace import tracer
from ringfence.devices.api import Device
from ringfence.devices.virtio.queue import Virtqueue, VirtqueueError
from ringfence.memory.guest_memory import GuestMemory

trace = tracer("virtio")

# 2.1: device status
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 64, 128
# Chapter 6: reserved feature bits
F_INDIRECT_DESC, F_EVENT_IDX, F_VERSION_1 = 1 << 28, 1 << 29, 1 << 32
TRANSPORT_FEATURES = F_INDIRECT_DESC | F_EVENT_IDX | F_VERSION_1


class Transport(Protocol):
    """How a device reaches the driver."""

    def queue_interrupt(self, queue_index: int) -> None: ...

    def config_interrupt(self) -> None: ...


class VirtioState(State):
    status = Field(8, doc="device status")
    driver_features = Field(64, doc="feature bits the driver accepted")
    config_generation = Field(8, doc="changes with every change of the configuration space")


class VirtioDevice(Device):
    """Base class.  `attach` completes it; all methods run on the device thread."""

    state: VirtioState
    device_id: ClassVar[int]
    pci_class_code: ClassVar[int] = 0xFF0000
    queue_sizes: ClassVar[tuple[int, ...]]
    msix_vectors: ClassVar[int] = 0
    """How many a PCI transport offers; 0 for one a queue and one more."""

    def __init__(self, name: str, features: int = 0, config_bytes: int = 0) -> None:
        self.name = name
        self.state = VirtioState()
        self.features = features | TRANSPORT_FEATURES
        self.config = bytearray(config_bytes)
        self.queues: list[Virtqueue] = []
        self.memory = GuestMemory()
        self._transport: Transport | None = None

    def attach(self, memory: GuestMemory, transport: Transport) -> None:
        """Called once, by the transport."""
        self.memory = memory
        self._transport = transport
        self.queues = [Virtqueue(memory, size) for size in self.queue_sizes]

    # -- for subclasses -------------------------------------------------------------------------------------------

    def process(self, queue_index: int) -> None:
        """Serves a queue that is ready; called on every notification and when the driver becomes ready."""

    def drain(self) -> None:
        """Waits for requests under way and hands them back; for devices that work on another thread."""

    def config_written(self, offset: int, size: int, value: int) -> None:
        """The driver wrote to the configuration space; by default that is swallowed."""

    def negotiated(self, feature: int) -> bool:
        return bool(self.state.driver_features & feature)

    @property
    def running(self) -> bool:
        """The driver is ready and the device is not broken."""
        return bool(self.state.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK)

    def signal(self, queue_index: int) -> None:
        """Interrupts the driver when it wants to hear of what was pushed."""
        if self._transport is not None and self.queues[queue_index].must_notify():
            self._transport.queue_interrupt(queue_index)

    def config_changed(self) -> None:
        """Tells the driver that the configuration space changed."""
        self.state.config_generation = self.state.config_generation + 1 & 0xFF
        if self._transport is not None and self.state.status & DRIVER_OK:
            self._transport.config_interrupt()

    def fail(self, reason: str) -> None:
        """The driver broke the rules: nothing more is done until it resets the device (2.1.2)."""
        if trace:
            trace("%s needs a reset: %s", self.name, reason)
        if not self.state.status & NEEDS_RESET:
            self.state.status |= NEEDS_RESET
            self.config_changed()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (VirtqueueError, GuestMemoryError) as error:
            self.fail(str(error))

    # -- for transports -------------------------------------------------------------------------------------------

    def notify(self, queue_index: int) -> None:
        """The driver put something into a queue."""
        if self.running and queue_index < len(self.queues) and self.queues[queue_index].ready:
            try:
                self.process(queue_index)
            except (VirtqueueError, GuestMemoryError) as error:
                self.fail(str(error))

    def set_driver_features(self, word: int, value: int) -> None:
        """Bits 32 * word to 32 * word + 31; frozen after FEATURES_OK (2.2.1)."""
        if word < 2 and not self.state.status & FEATURES_OK:
            shift = 32 * word
            self.state.driver_features = self.state.driver_features & ~(0xFFFFFFFF << shift) | value << shift

    def set_status(self, value: int) -> None:
        """3.1.1: the driver adds bits step by step; 0 resets the device."""
        if value == 0:
            self.reset()
            return
        old = self.state.status
        new = old | value & (ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED)
        accepted = self.state.driver_features
        if not old & FEATURES_OK and (accepted & ~self.features or not accepted & F_VERSION_1):
            new &= ~FEATURES_OK  # the driver reads it back and gives up
        if not new & FEATURES_OK:
            new &= ~DRIVER_OK
        self.state.status = new
        if new & DRIVER_OK and not old & DRIVER_OK:
            for index in range(len(self.queues)):
                self.notify(index)

    def enable_queue(self, queue: Virtqueue) -> None:
        """The driver set the queue up."""
        if not queue.ready:
            self._guarded(lambda: queue.enable(self.negotiated(F_EVENT_IDX), self.negotiated(F_INDIRECT_DESC)))

    def disable_queue(self, queue: Virtqueue) -> None:
        """The driver takes its rings back; nothing of them is touched afterwards."""
        self.drain()
        queue.ready = 0

    def read_config(self, offset: int, size: int) -> int:
        """Beyond the end: zeroes."""
        return int.from_bytes(self.config[offset : offset + size], "little")

    def write_config(self, offset: int, size: int, value: int) -> None:
        if offset + size <= len(self.config):
            self._guarded(lambda: self.config_written(offset, size, value))

    # -- Device ---------------------------------------------------------------------------------------------------

    def pause(self) -> None:
        self.drain()

    def reset(self) -> None:
        self.drain()
        self.state.reset()
        for queue in self.queues:
            queue.reset()

    def save(self) -> dict[str, Any]:
        return {"state": self.state.save(), "queues": [queue.save() for queue in self.queues]}

    def load(self, saved: dict[str, Any]) -> None:
        if saved.keys() != {"state", "queues"} or len(saved["queues"]) != len(self.queues):
            raise SnapshotError(f"{self.name}: parts or number of queues differ")
        self.state.load(saved["state"])
        for queue, fields in zip(self.queues, saved["queues"], strict=True):
            try:
                queue.load(fields)
            except VirtqueueError as error:
                raise SnapshotError(f"{self.name}: {error}") from error
