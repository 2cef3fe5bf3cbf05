"""The guest's side of virtio, as small as it goes: queues laid out in guest memory, and drivers for both transports."""

from __future__ import annotations

import struct
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence

from ringfence.bus.bus import Bus
from ringfence.bus.irq import IrqLine
from ringfence.bus.pci import PciBus
from ringfence.devices.virtio.device import (
    ACKNOWLEDGE,
    DRIVER,
    DRIVER_OK,
    F_EVENT_IDX,
    F_INDIRECT_DESC,
    F_VERSION_1,
    FEATURES_OK,
    VirtioDevice,
)
from ringfence.devices.virtio.mmio import MMIO_BYTES, Reg, VirtioMmio
from ringfence.devices.virtio.pci import COMMON, DEVICE, ISR, NOTIFY, NOTIFY_MULTIPLIER, VirtioPci
from ringfence.devices.virtio.queue import DESC_INDIRECT, DESC_NEXT, DESC_WRITE
from ringfence.memory.guest_memory import GuestMemory

RAM_BYTES = 4 << 20
RINGS = 0x10000  # where rings are laid out, 64 KiB a queue
BUFFERS = 0x100000  # free for tests
READ, WRITE = False, True  # what the device does with a buffer


def make_memory() -> GuestMemory:
    memory = GuestMemory()
    memory.add_ram(0, RAM_BYTES)
    return memory


class Posted:
    """An executor whose posted work runs when the test says so."""

    def __init__(self) -> None:
        self._work: deque[Callable[[], None]] = deque()
        self._arrived = threading.Semaphore(0)

    def post(self, function: Callable[[], None]) -> None:
        self._work.append(function)
        self._arrived.release()

    def run_one(self, timeout_s: float = 10) -> None:
        assert self._arrived.acquire(timeout=timeout_s), "nothing was posted"
        self._work.popleft()()

    def run_all(self) -> None:
        while self._arrived.acquire(blocking=False):
            self._work.popleft()()


class Ring:
    """One split virtqueue, the driver's side."""

    def __init__(self, memory: GuestMemory, size: int, base: int = RINGS) -> None:
        self.memory = memory
        self.size = size
        self.desc, self.avail, self.used = base, base + 0x4000, base + 0x8000
        self.tables = base + 0xC000
        self.free = 0
        self.avail_index = 0
        self.used_index = 0

    def describe(self, index: int, addr: int, size: int, flags: int, following: int = 0, table: int | None = None) -> None:
        self.memory.write((self.desc if table is None else table) + 16 * index, struct.pack("<QIHH", addr, size, flags, following))

    def make_available(self, head: int) -> None:
        self.memory.write_uint(self.avail + 4 + 2 * (self.avail_index % self.size), 2, head)
        self.avail_index = self.avail_index + 1 & 0xFFFF
        self.memory.write_uint(self.avail + 2, 2, self.avail_index)

    def offer(self, *buffers: tuple[int, int, bool], indirect: bool = False) -> int:
        """Puts a chain of (address, size, device writes) into the queue; returns its head."""
        head = self.free
        last = len(buffers) - 1
        table = self.tables if indirect else None
        for k, (addr, size, writes) in enumerate(buffers):
            flags = (DESC_WRITE if writes else 0) | (DESC_NEXT if k < last else 0)
            index = k if indirect else (head + k) % self.size
            self.describe(index, addr, size, flags, k + 1 if indirect else (head + k + 1) % self.size, table)
        if indirect:
            self.describe(head, self.tables, 16 * len(buffers), DESC_INDIRECT)
            self.tables += 16 * len(buffers)
            if self.tables > self.desc + 0xF000:
                self.tables = self.desc + 0xC000
        self.free = (head + (1 if indirect else len(buffers))) % self.size
        self.make_available(head)
        return head

    def collect(self) -> list[tuple[int, int]]:
        """(head, bytes written) of every chain that came back since the last call."""
        found = []
        while self.used_index != self.memory.read_uint(self.used + 2, 2):
            found.append(struct.unpack("<II", self.memory.read(self.used + 4 + 8 * (self.used_index % self.size), 8)))
            self.used_index = self.used_index + 1 & 0xFFFF
        return found

    def set_used_event(self, index: int) -> None:
        self.memory.write_uint(self.avail + 4 + 2 * self.size, 2, index)

    @property
    def avail_event(self) -> int:
        return self.memory.read_uint(self.used + 4 + 8 * self.size, 2)


class Driver(ABC):
    """Brings a device up (3.1.1); transports say how registers are reached."""

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.rings: list[Ring] = []
        self.interrupts = 0

    def start(self, device: VirtioDevice, features: int | None = None, size: int | None = None) -> None:
        accepted = device.features if features is None else features | F_VERSION_1
        self.set_status(0)
        self.set_status(ACKNOWLEDGE)
        self.set_status(ACKNOWLEDGE | DRIVER)
        self.accept(accepted)
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK)
        assert self.status() & FEATURES_OK
        self.rings = []
        for index, maximum in enumerate(device.queue_sizes):
            ring = Ring(self.memory, size or maximum, RINGS + 0x10000 * index)
            for addr in (ring.desc, ring.avail, ring.used):
                self.memory.write(addr, bytes(0x4000))
            self.set_up_queue(index, ring)
            self.rings.append(ring)
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)

    @abstractmethod
    def set_status(self, value: int) -> None: ...

    @abstractmethod
    def status(self) -> int: ...

    @abstractmethod
    def accept(self, features: int) -> None: ...

    @abstractmethod
    def set_up_queue(self, index: int, ring: Ring) -> None: ...

    @abstractmethod
    def kick(self, queue_index: int = 0) -> None: ...

    @abstractmethod
    def acknowledge(self) -> int:
        """Takes the interrupt: its causes."""

    @abstractmethod
    def read_config(self, offset: int, size: int) -> int: ...

    @abstractmethod
    def write_config(self, offset: int, size: int, value: int) -> None: ...


class MmioDriver(Driver):
    BASE = 0xFEB0_0000

    def __init__(self, device: VirtioDevice, memory: GuestMemory) -> None:
        super().__init__(memory)
        self.line = IrqLine("virtio", self._edge)
        self.transport = VirtioMmio(device, self.line.pin(), memory)
        self.bus = Bus("mmio", 1 << 46)
        self.bus.add(self.BASE, MMIO_BYTES, self.transport, "virtio-mmio")

    def _edge(self, level: bool) -> None:
        self.interrupts += level

    def read(self, offset: int, size: int = 4) -> int:
        return self.bus.read(self.BASE + offset, size)

    def write(self, offset: int, value: int, size: int = 4) -> None:
        self.bus.write(self.BASE + offset, size, value)

    def set_status(self, value: int) -> None:
        self.write(Reg.Status, value)

    def status(self) -> int:
        return self.read(Reg.Status)

    def accept(self, features: int) -> None:
        for word in (0, 1):
            self.write(Reg.DriverFeaturesSel, word)
            self.write(Reg.DriverFeatures, features >> 32 * word & 0xFFFFFFFF)

    def set_up_queue(self, index: int, ring: Ring) -> None:
        self.write(Reg.QueueSel, index)
        self.write(Reg.QueueNum, ring.size)
        for register, addr in ((Reg.QueueDescLow, ring.desc), (Reg.QueueDriverLow, ring.avail), (Reg.QueueDeviceLow, ring.used)):
            self.write(register, addr & 0xFFFFFFFF)
            self.write(register + 4, addr >> 32)
        self.write(Reg.QueueReady, 1)

    def kick(self, queue_index: int = 0) -> None:
        self.write(Reg.QueueNotify, queue_index)

    def acknowledge(self) -> int:
        causes = self.read(Reg.InterruptStatus)
        self.write(Reg.InterruptACK, causes)
        return causes

    def read_config(self, offset: int, size: int) -> int:
        return self.read(Reg.Config + offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        self.write(Reg.Config + offset, value, size)


class Messages:
    """An MsiSink that remembers."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, int]] = []

    def send_msi(self, address: int, data: int) -> None:
        self.sent.append((address, data))


class PciDriver(Driver):
    BASE = 0xE000_0000
    SLOT = 3

    def __init__(self, device: VirtioDevice, memory: GuestMemory) -> None:
        super().__init__(memory)
        self.line = IrqLine("INTA", self._edge)
        self.messages = Messages()
        self.transport = VirtioPci(device, memory, self.messages, self.line.pin())
        self.mmio, self.ports = Bus("mmio", 1 << 46), Bus("ports", 1 << 16)
        self.pci = PciBus(self.mmio, self.ports)
        self.pci.add(self.SLOT, self.transport)
        self.pci.assign_addresses(self.BASE, self.BASE + (1 << 20), 0xC000, 0xD000)
        self._decode()
        self.bar0 = self.pci.read_config(self.SLOT << 3, 0x10, 4) & ~15
        self.bar2 = self.pci.read_config(self.SLOT << 3, 0x18, 4) & ~15

    def _edge(self, level: bool) -> None:
        self.interrupts += level

    def _decode(self) -> None:
        self.pci.write_config(self.SLOT << 3, 4, 2, 0x0006)

    def start(self, device: VirtioDevice, features: int | None = None, size: int | None = None) -> None:
        self._decode()  # a reset of the function ended it
        super().start(device, features, size)

    def enable_msix(self) -> None:
        """Vector k sends 0x4000 + k to 0xFEE00000; vector 0 is for configuration changes, 1 + q for queue q."""
        vectors = len(self.transport.device.queue_sizes) + 1
        for vector in range(vectors):
            for k, value in enumerate((0xFEE0_0000, 0, 0x4000 + vector, 0)):
                self.mmio.write(self.bar2 + 16 * vector + 4 * k, 4, value)
        self.write(COMMON + 16, 2, 0)
        for index in range(vectors - 1):
            self.write(COMMON + 22, 2, index)
            self.write(COMMON + 26, 2, index + 1)
        capability = self.find_capability(0x11)
        self.pci.write_config(self.SLOT << 3, capability + 2, 2, 0x8000)

    def find_capability(self, capability_id: int) -> int:
        at = self.pci.read_config(self.SLOT << 3, 0x34, 1)
        while at and self.pci.read_config(self.SLOT << 3, at, 1) != capability_id:
            at = self.pci.read_config(self.SLOT << 3, at + 1, 1)
        return at

    def read(self, offset: int, size: int) -> int:
        return self.mmio.read(self.bar0 + offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self.mmio.write(self.bar0 + offset, size, value)

    def set_status(self, value: int) -> None:
        self.write(COMMON + 20, 1, value)

    def status(self) -> int:
        return self.read(COMMON + 20, 1)

    def accept(self, features: int) -> None:
        for word in (0, 1):
            self.write(COMMON + 8, 4, word)
            self.write(COMMON + 12, 4, features >> 32 * word & 0xFFFFFFFF)

    def set_up_queue(self, index: int, ring: Ring) -> None:
        self.write(COMMON + 22, 2, index)
        self.write(COMMON + 24, 2, ring.size)
        for offset, addr in ((32, ring.desc), (40, ring.avail), (48, ring.used)):
            self.write(COMMON + offset, 4, addr & 0xFFFFFFFF)
            self.write(COMMON + offset + 4, 4, addr >> 32)
        self.write(COMMON + 28, 2, 1)

    def kick(self, queue_index: int = 0) -> None:
        self.write(NOTIFY + NOTIFY_MULTIPLIER * queue_index, 2, queue_index)

    def acknowledge(self) -> int:
        return self.read(ISR, 1)

    def read_config(self, offset: int, size: int) -> int:
        return self.read(DEVICE + offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        self.write(DEVICE + offset, size, value)


class Disk:
    """A Block in memory that remembers what was asked of it."""

    def __init__(self, size_bytes: int = 1 << 20, readonly: bool = False) -> None:
        self.size_bytes = size_bytes
        self.readonly = readonly
        self.data = bytearray(size_bytes)
        self.calls: list[str] = []
        self.threads: set[int] = set()
        self.error: Exception | None = None
        self.gate = threading.Event()  # closed: calls wait
        self.gate.set()

    def _called(self, name: str) -> None:
        assert self.gate.wait(10)
        self.calls.append(name)
        self.threads.add(threading.get_ident())
        if self.error is not None:
            raise self.error

    def read(self, offset: int, buffer: memoryview) -> None:
        self._called("read")
        buffer[:] = self.data[offset : offset + len(buffer)]

    def write(self, offset: int, data: memoryview) -> None:
        self._called("write")
        self.data[offset : offset + len(data)] = data

    def flush(self) -> None:
        self._called("flush")

    def discard(self, offset: int, size_bytes: int) -> None:
        self._called(f"discard {offset} {size_bytes}")

    def write_zeroes(self, offset: int, size_bytes: int, may_unmap: bool) -> None:
        self._called(f"write_zeroes {offset} {size_bytes} {may_unmap}")
        self.data[offset : offset + size_bytes] = bytes(size_bytes)

    def close(self) -> None:
        pass


class VectorDisk(Disk):
    """The same for backends that take many buffers at once."""

    cached = True

    def read_vector(self, offset: int, buffers: Sequence[memoryview], wait: bool = True) -> bool:
        self._called("read_vector")
        if not wait and not self.cached:
            return False
        for buffer in buffers:
            buffer[:] = self.data[offset : offset + len(buffer)]
            offset += len(buffer)
        return True

    def write_vector(self, offset: int, parts: Sequence[memoryview]) -> None:
        self._called("write_vector")
        data = b"".join(parts)
        self.data[offset : offset + len(data)] = data


__all__ = [
    "F_EVENT_IDX",
    "F_INDIRECT_DESC",
    "Disk",
    "Driver",
    "Messages",
    "MmioDriver",
    "PciDriver",
    "Posted",
    "Ring",
    "VectorDisk",
    "make_memory",
]
