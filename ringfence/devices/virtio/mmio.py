"""virtio over MMIO: 0x200 bytes of registers and one interrupt line.

OASIS VIRTIO 1.2, section 4.2.2 (version 2 of the layout; the legacy interface is not offered).
"""

from __future__ import annotations

from typing import Any

from ringfence.bus.irq import IrqPin
from ringfence.core.errors import SnapshotError
from ringfence.core.state import Field, State
from ringfence.devices.api import Device
from ringfence.devices.virtio.device import VirtioDevice
from ringfence.devices.virtio.queue import Virtqueue
from ringfence.memory.guest_memory import GuestMemory

MMIO_BYTES = 0x200
MAGIC = int.from_bytes(b"virt", "little")
VERSION = 2
VENDOR_ID = int.from_bytes(b"RING", "little")
USED_BUFFER, CONFIG_CHANGE = 1, 2


class Reg:
    """Register offsets, named as in table 4.1."""

    MagicValue, Version, DeviceID, VendorID = 0x000, 0x004, 0x008, 0x00C
    DeviceFeatures, DeviceFeaturesSel, DriverFeatures, DriverFeaturesSel = 0x010, 0x014, 0x020, 0x024
    QueueSel, QueueNumMax, QueueNum, QueueReady, QueueNotify = 0x030, 0x034, 0x038, 0x044, 0x050
    InterruptStatus, InterruptACK, Status = 0x060, 0x064, 0x070
    QueueDescLow, QueueDriverLow, QueueDeviceLow = 0x080, 0x090, 0x0A0
    SHMLenLow, SHMBaseHigh, ConfigGeneration, Config = 0x0B0, 0x0BC, 0x0FC, 0x100


_QUEUE_ADDRESSES = {
    base + 4 * high: (area, 32 * high)
    for base, area in ((Reg.QueueDescLow, "desc_addr"), (Reg.QueueDriverLow, "driver_addr"), (Reg.QueueDeviceLow, "device_addr"))
    for high in (0, 1)
}


class VirtioMmioState(State):
    device_features_sel = Field(32)
    driver_features_sel = Field(32)
    queue_sel = Field(32)
    interrupt_status = Field(2, doc="bit 0 used buffer, bit 1 configuration change")


class VirtioMmio(Device):
    """Carries `device`; a handler for `MMIO_BYTES`.  Its saved state includes the device's."""

    state: VirtioMmioState

    def __init__(self, device: VirtioDevice, irq: IrqPin, memory: GuestMemory) -> None:
        self.state = VirtioMmioState()
        self.device = device
        self.name = device.name
        self._irq = irq
        device.attach(memory, self)

    # -- Transport ------------------------------------------------------------------------------------------------

    def queue_interrupt(self, queue_index: int) -> None:
        self._interrupt(USED_BUFFER)

    def config_interrupt(self) -> None:
        self._interrupt(CONFIG_CHANGE)

    def _interrupt(self, cause: int) -> None:
        self.state.interrupt_status |= cause
        self._irq.set(True)

    # -- registers ------------------------------------------------------------------------------------------------

    def _queue(self) -> Virtqueue | None:
        queues, index = self.device.queues, self.state.queue_sel
        return queues[index] if index < len(queues) else None

    def read(self, offset: int, size: int) -> int:
        if offset >= Reg.Config:
            return self.device.read_config(offset - Reg.Config, size)
        if size != 4 or offset & 3:
            return 0  # 4.2.2.2: drivers use aligned 32-bit accesses only
        state, device = self.state, self.device
        match offset:
            case Reg.InterruptStatus:  # first: read in every interrupt
                return int(state.interrupt_status)
            case Reg.MagicValue:
                return MAGIC
            case Reg.Version:
                return VERSION
            case Reg.DeviceID:
                return device.device_id
            case Reg.VendorID:
                return VENDOR_ID
            case Reg.DeviceFeatures:
                word = state.device_features_sel
                return device.features >> 32 * word & 0xFFFFFFFF if word < 2 else 0
            case Reg.QueueNumMax:
                return queue.max_size if (queue := self._queue()) else 0
            case Reg.QueueReady:
                return int(queue.ready) if (queue := self._queue()) else 0
            case Reg.Status:
                return int(device.state.status)
            case Reg.ConfigGeneration:
                return int(device.state.config_generation)
        if Reg.SHMLenLow <= offset <= Reg.SHMBaseHigh:
            return 0xFFFFFFFF  # 4.2.2.1: no shared memory region has this ID
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        device, state = self.device, self.state
        if offset == Reg.QueueNotify and size == 4:
            device.notify(value)
        elif offset >= Reg.Config:
            device.write_config(offset - Reg.Config, size, value)
        elif size != 4 or offset & 3:
            return
        elif offset == Reg.InterruptACK:
            state.interrupt_status &= ~value
            self._irq.set(state.interrupt_status != 0)
        elif offset == Reg.Status:
            if value & 0xFF:
                device.set_status(value & 0xFF)
            else:
                self.reset()
        elif offset == Reg.DeviceFeaturesSel:
            state.device_features_sel = value
        elif offset == Reg.DriverFeaturesSel:
            state.driver_features_sel = value
        elif offset == Reg.DriverFeatures:
            device.set_driver_features(state.driver_features_sel, value)
        elif offset == Reg.QueueSel:
            state.queue_sel = value
        elif (queue := self._queue()) is not None:
            self._write_queue(queue, offset, value)

    def _write_queue(self, queue: Virtqueue, offset: int, value: int) -> None:
        if offset == Reg.QueueNum:
            queue.set_size(value)
        elif offset == Reg.QueueReady:
            if value & 1:
                self.device.enable_queue(queue)
            else:
                self.device.disable_queue(queue)
        elif offset in _QUEUE_ADDRESSES:
            area, shift = _QUEUE_ADDRESSES[offset]
            queue.set_address(area, shift, value)

    # -- Device ---------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        self.device.reset()
        self.state.reset()
        self._irq.set(False)

    def save(self) -> dict[str, Any]:
        return {"transport": self.state.save(), "device": self.device.save()}

    def load(self, saved: dict[str, Any]) -> None:
        if saved.keys() != {"transport", "device"}:
            raise SnapshotError(f"{self.name}: parts differ: {sorted(saved)}")
        self.state.load(saved["transport"])
        self.device.load(saved["device"])
        self._irq.restore(self.state.interrupt_status != 0)

    def pause(self) -> None:
        self.device.pause()

    def resume(self) -> None:
        self.device.resume()
