"""virtio over PCI: a modern (non-transitional) PCI function.

OASIS VIRTIO 1.2, section 4.1.  BAR 0 holds the four structures that the vendor capabilities point to, a page each;
BAR 2 the MSI-X table.

    BAR 0   0x0000 common configuration   0x1000 ISR status   0x2000 device configuration   0x3000 notifications
"""

from __future__ import annotations

import struct
from typing import Any

from ringfence.bus.irq import IrqPin, MsiSink
from ringfence.bus.msix import Msix
from ringfence.bus.pci import BarKind, PciFunction, PciState
from ringfence.core.errors import SnapshotError
from ringfence.core.state import Field, State
from ringfence.devices.api import Device
from ringfence.devices.virtio.device import VirtioDevice
from ringfence.devices.virtio.queue import Virtqueue
from ringfence.memory.guest_memory import GuestMemory

VENDOR_ID = 0x1AF4
FIRST_DEVICE_ID = 0x1040
FIRST_SUBSYSTEM_ID = 0x40  # 4.1.2.1: 0x40 and above tells legacy drivers to keep off
NO_VECTOR = 0xFFFF
MAX_QUEUES = 128
ISR_QUEUE, ISR_CONFIG = 1, 2

VIRTIO_BAR, MSIX_BAR = 0, 2
COMMON, ISR, DEVICE, NOTIFY = 0x0000, 0x1000, 0x2000, 0x3000
STRUCTURE_BYTES, VIRTIO_BAR_BYTES = 0x1000, 0x4000
NOTIFY_MULTIPLIER = 4

CAPABILITY_VENDOR = 0x09
CFG_COMMON, CFG_NOTIFY, CFG_ISR, CFG_DEVICE, CFG_PCI = 1, 2, 3, 4, 5
PCI_CFG_DATA = 16  # offset of pci_cfg_data in the capability of type CFG_PCI

# 4.1.4.3, struct virtio_pci_common_cfg
_COMMON_CFG = struct.Struct("<IIIIHHBBHHHHHQQQHH")
_QUEUE_ADDRESSES = {32: "desc_addr", 40: "driver_addr", 48: "device_addr"}


class VirtioPciState(State):
    device_feature_select = Field(32)
    driver_feature_select = Field(32)
    queue_select = Field(16)
    config_vector = Field(16, reset=NO_VECTOR, doc="config_msix_vector")
    queue_vectors = Field(16, count=MAX_QUEUES, reset=NO_VECTOR, doc="queue_msix_vector of each queue")
    isr = Field(2, doc="ISR status: bit 0 queue, bit 1 configuration change")


class VirtioPci(PciFunction, Device):
    """Carries `device`; goes into a `PciBus`.  Its saved state includes the device's.

    Interrupts are MSI-X messages to `msi` while the guest enables MSI-X (one vector a queue, or as
    many as the device wants, and one for configuration changes), INTA# on `irq` otherwise.
    """

    state: PciState

    def __init__(self, device: VirtioDevice, memory: GuestMemory, msi: MsiSink, irq: IrqPin | None = None) -> None:
        super().__init__(
            device.name,
            VENDOR_ID,
            FIRST_DEVICE_ID + device.device_id,
            device.pci_class_code,
            revision_id=1,
            subsystem_vendor_id=VENDOR_ID,
            subsystem_id=FIRST_SUBSYSTEM_ID + device.device_id,
            irq=irq,
        )
        self.device = device
        self.transport = VirtioPciState()
        device.attach(memory, self)
        self.add_bar(VIRTIO_BAR, VIRTIO_BAR_BYTES, self, BarKind.MEM64)
        self.msix = Msix(self, device.msix_vectors or len(device.queues) + 1, MSIX_BAR, msi)
        self.on_config_write(self.msix.control_offset, 1, self._drive)
        self._add_structure(CFG_COMMON, COMMON, _COMMON_CFG.size)
        self._add_structure(CFG_ISR, ISR, 1)
        if device.config:
            self._add_structure(CFG_DEVICE, DEVICE, len(device.config))
        self._add_structure(CFG_NOTIFY, NOTIFY, NOTIFY_MULTIPLIER * len(device.queues), struct.pack("<I", NOTIFY_MULTIPLIER))
        window = struct.pack("<BBBB2xII", 20, CFG_PCI, 0, 0, 0, 0) + bytes(4)
        self._pci_cfg = self.add_capability(CAPABILITY_VENDOR, window, b"\0\0\xff\0\0\0" + b"\xff" * 12)

    def _add_structure(self, cfg_type: int, offset: int, size: int, extra: bytes = b"") -> None:
        body = struct.pack("<BBBB2xII", 16 + len(extra), cfg_type, VIRTIO_BAR, 0, offset, size)
        self.add_capability(CAPABILITY_VENDOR, body + extra)

    # -- Transport ------------------------------------------------------------------------------------------------

    def queue_interrupt(self, queue_index: int) -> None:
        self._interrupt(self.transport.queue_vectors[queue_index], ISR_QUEUE)

    def config_interrupt(self) -> None:
        self._interrupt(self.transport.config_vector, ISR_CONFIG)

    def _interrupt(self, vector: int, cause: int) -> None:
        if self.msix.enabled:
            self.msix.notify(vector)  # NO_VECTOR is out of range: ignored
        else:
            self.transport.isr |= cause
            self.set_intx(True)

    def _drive(self) -> None:
        """PCI 3.0, 6.8.3.3: INTA# is silent while MSI-X is enabled."""
        self.set_intx(bool(self.transport.isr) and not self.msix.enabled)

    # -- BAR 0 ----------------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        if offset < ISR:
            return int.from_bytes(self._common()[offset : offset + size], "little")
        if offset < DEVICE:
            if offset != ISR:
                return 0
            isr = int(self.transport.isr)  # 4.1.4.5: reading clears it and deasserts INTA#
            self.transport.isr = 0
            self.set_intx(False)
            return isr
        return self.device.read_config(offset - DEVICE, size) if offset < NOTIFY else 0

    def write(self, offset: int, size: int, value: int) -> None:
        if offset >= NOTIFY:
            self.device.notify((offset - NOTIFY) // NOTIFY_MULTIPLIER)
        elif offset < ISR:
            self._write_common(offset, size, value)
        elif offset >= DEVICE:
            self.device.write_config(offset - DEVICE, size, value)

    def _queue(self) -> Virtqueue | None:
        queues, index = self.device.queues, self.transport.queue_select
        return queues[index] if index < len(queues) else None

    def _common(self) -> bytes:
        t, device, queue = self.transport, self.device, self._queue()
        select = t.device_feature_select
        driver_select = t.driver_feature_select
        if queue is None:  # 4.1.4.3.1: a queue that does not exist has size 0
            fields = (0, NO_VECTOR, 0, 0, 0, 0, 0)
        else:
            vector = t.queue_vectors[t.queue_select]
            fields = (queue.size, vector, queue.ready, t.queue_select, queue.desc_addr, queue.driver_addr, queue.device_addr)
        return _COMMON_CFG.pack(
            select,
            device.features >> 32 * select & 0xFFFFFFFF if select < 2 else 0,
            driver_select,
            device.state.driver_features >> 32 * driver_select & 0xFFFFFFFF if driver_select < 2 else 0,
            t.config_vector,
            len(device.queues),
            device.state.status,
            device.state.config_generation,
            t.queue_select,
            *fields,
            0,
            0,
        )

    def _write_common(self, offset: int, size: int, value: int) -> None:
        """4.1.3.1: fields are written with their own width, 64-bit ones as two halves (or at once)."""
        t, device = self.transport, self.device
        match offset, size:
            case 0, 4:
                t.device_feature_select = value
            case 8, 4:
                t.driver_feature_select = value
            case 12, 4:
                device.set_driver_features(t.driver_feature_select, value)
            case 16, 2:
                t.config_vector = value if value < self.msix.vectors else NO_VECTOR
            case 20, 1:
                if value:
                    device.set_status(value)
                else:
                    self._reset_virtio()
            case 22, 2:
                t.queue_select = value
            case _:
                if (queue := self._queue()) is not None:
                    self._write_queue(queue, offset, size, value)

    def _write_queue(self, queue: Virtqueue, offset: int, size: int, value: int) -> None:
        match offset, size:
            case 24, 2:
                queue.set_size(value)
            case 26, 2:
                # 4.1.5.1.2.1: the driver reads NO_VECTOR back when a vector cannot be had
                self.transport.queue_vectors[self.transport.queue_select] = value if value < self.msix.vectors else NO_VECTOR
            case 28, 2 if value == 1:
                self.device.enable_queue(queue)
            case ((32 | 40 | 48), 8):
                queue.set_address(_QUEUE_ADDRESSES[offset], 0, value & 0xFFFFFFFF)
                queue.set_address(_QUEUE_ADDRESSES[offset], 32, value >> 32)
            case ((32 | 36 | 40 | 44 | 48 | 52), 4):
                queue.set_address(_QUEUE_ADDRESSES[offset & ~4], 32 if offset & 4 else 0, value)

    # -- 4.1.4.9: the window in configuration space through which firmware reaches BAR 0 ------------------------------

    def _window(self) -> tuple[int, int] | None:
        config, at = self.state.config, self._pci_cfg
        offset = int.from_bytes(config[at + 8 : at + 12], "little")
        size = int.from_bytes(config[at + 12 : at + 16], "little")
        if config[at + 4] != VIRTIO_BAR or size not in (1, 2, 4) or offset % size or offset + size > VIRTIO_BAR_BYTES:
            return None
        return offset, size

    def _touches_window(self, offset: int, size: int) -> bool:
        data = self._pci_cfg + PCI_CFG_DATA
        return offset < data + 4 and data < offset + size

    def read_config(self, offset: int, size: int) -> int:
        if self._touches_window(offset, size) and (window := self._window()):
            data = self._pci_cfg + PCI_CFG_DATA
            mask = (1 << 8 * window[1]) - 1
            self.state.config[data : data + 4] = (self.read(*window) & mask).to_bytes(4, "little")
        return super().read_config(offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        super().write_config(offset, size, value)
        if self._touches_window(offset, size) and (window := self._window()):
            data = self._pci_cfg + PCI_CFG_DATA
            self.write(*window, int.from_bytes(self.state.config[data : data + window[1]], "little"))

    # -- Device ---------------------------------------------------------------------------------------------------

    def _reset_virtio(self) -> None:
        """Status 0 resets the virtio device and its vectors, not the PCI function."""
        self.device.reset()
        self.transport.reset()
        self.set_intx(False)

    def reset(self) -> None:
        self._reset_virtio()
        self.msix.reset()
        super().reset()

    def save(self) -> dict[str, Any]:
        return {"pci": super().save(), "msix": self.msix.save(), "transport": self.transport.save(), "device": self.device.save()}

    def load(self, saved: dict[str, Any]) -> None:
        if saved.keys() != {"pci", "msix", "transport", "device"}:
            raise SnapshotError(f"{self.name}: parts differ: {sorted(saved)}")
        super().load(saved["pci"])
        self.msix.load(saved["msix"])
        self.transport.load(saved["transport"])
        self.device.load(saved["device"])

    def pause(self) -> None:
        self.device.pause()

    def resume(self) -> None:
        self.device.resume()
