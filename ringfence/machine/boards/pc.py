"""The board "pc": a PCI bus with a 440FX-class host bridge; virtio devices are PCI functions with MSI-X.

slot 0                  host bridge 8086:1237, configuration at ports 0xcf8-0xcff
slot 1, 2, ...          virtio devices in the order of the spec; INTA of slot s to GSI 16 + (s mod 4) where MSI-X is not used
0xe000_0000             window from which BARs are placed, up to the I/O APIC
0xfec0_0000             I/O APIC
0xfee0_0000             local APIC
ports                   8259 pair 0x20 0xa0 0x4d0, 8254 0x40, RTC 0x70, COM1 0x3f8 (IRQ 4), ACPI PM 0x600 (SCI 9), BARs from 0xd000
"""

from __future__ import annotations

from dataclasses import replace

from ringfence.bus.pci import PciBus
from ringfence.core.errors import UserError
from ringfence.devices import pci_host
from ringfence.devices.virtio.device import VirtioDevice
from ringfence.devices.virtio.pci import VirtioPci
from ringfence.machine.boards.base import Board, Surroundings
from ringfence.machine.boot.acpi import AcpiConfig, PciConfig

PCI_WINDOW = (0xE000_0000, 0x1EC0_0000)
PORT_WINDOW = (0xD000, 0xE000)
PCI_GSIS = (16, 17, 18, 19)
PCI_SLOTS = 32


class Pc(Board):
    name = "pc"

    def __init__(self, host: Surroundings) -> None:
        self._slot = 1
        super().__init__(host)
        base, size_bytes = PCI_WINDOW
        self.pci.assign_addresses(base, base + size_bytes, *PORT_WINDOW)

    def _add_legacy_parts(self) -> None:
        super()._add_legacy_parts()
        self.pci = PciBus(self.mmio, self.ports)
        # Byte accesses to 0xcf9, inside of CONFIG_ADDRESS, are the reset control register; the bridge passes them on.
        self.pci_host = self.add(pci_host.PciHost(self.pci, self.reset_control.control))
        self.map_ports(pci_host.CONFIG_ADDRESS_PORT, pci_host.CONFIG_PORTS, self.pci_host, "pci-config")

    def add_virtio(self, device: VirtioDevice) -> None:
        if self._slot == PCI_SLOTS:
            raise UserError(f"The PCI bus has room for {PCI_SLOTS - 1} devices.", "Use fewer disks.")
        irq = self.pin(PCI_GSIS[self._slot % len(PCI_GSIS)])
        function = self.add(VirtioPci(device, self.memory, self.apics, irq))
        self.pci.add(self._slot, function)
        self._slot += 1

    def acpi_config(self) -> AcpiConfig:
        return replace(super().acpi_config(), pci=PciConfig(memory_window=PCI_WINDOW, gsis=PCI_GSIS))
