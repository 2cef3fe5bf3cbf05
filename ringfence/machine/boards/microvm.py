"""The board "microvm": no PCI, virtio devices at fixed addresses, announced by ACPI.

0xfeb0_0000 + 0x200 n   virtio-mmio transport n, level-triggered on GSI 16 + n; eight of them
0xfec0_0000             I/O APIC
0xfee0_0000             local APIC
ports                   8259 pair 0x20 0xa0 0x4d0, 8254 0x40, RTC 0x70, COM1 0x3f8 (IRQ 4), ACPI PM 0x600 (SCI 9), reset 0xcf9
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringfence.core.errors import UserError
from ringfence.devices import reset
from ringfence.devices.virtio.mmio import MMIO_BYTES, VirtioMmio
from ringfence.machine.boards.base import Board, Surroundings
from ringfence.machine.boot.acpi import AcpiConfig, VirtioMmioSlot

if TYPE_CHECKING:
    from ringfence.devices.virtio.device import VirtioDevice

VIRTIO_BASE = 0xFEB0_0000
FIRST_VIRTIO_GSI = 16
VIRTIO_SLOTS = 8


class MicroVm(Board):
    name = "microvm"
    has_old_parts = False

    def __init__(self, host: Surroundings) -> None:
        self._slots: list[VirtioMmioSlot] = []
        super().__init__(host)
        self.map_ports(reset.RESET_CONTROL_PORT, 1, self.reset_control.control, "reset-control")

    def add_virtio(self, device: VirtioDevice) -> None:
        index = len(self._slots)
        if index == VIRTIO_SLOTS:
            raise UserError(f"The board microvm has room for {VIRTIO_SLOTS} virtio devices.", "Use --board pc, or fewer disks.")
        slot = VirtioMmioSlot(VIRTIO_BASE + index * MMIO_BYTES, FIRST_VIRTIO_GSI + index)
        self._slots.append(slot)
        transport = self.add(VirtioMmio(device, self.pin(slot.gsi), self.memory))
        self.map_mmio(slot.base, MMIO_BYTES, transport, f"virtio-mmio{index}")

    def acpi_config(self) -> AcpiConfig:
        return super().acpi_config().replace(virtio_mmio=tuple(self._slots))

    def command_line(self) -> list[str]:
        """Linux looks for PCI by ports that nobody answers, and complains, unless it is told."""
        return ["pci=off"]
