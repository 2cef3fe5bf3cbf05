"""The board "pc": PCI with a 440FX-class host bridge.  What sits on it depends on how the machine starts.

Behind firmware it is a whole PC, and firmware places the BARs:

slot 0                  host bridge 8086:1237 with shadow RAM, configuration at ports 0xcf8-0xcff
slot 1                  PIIX: ISA bridge with PIRQ routing (.0), IDE (.1), power management (.3)
slot 2                  VGA 1234:1111
slot 3, 4, ...          NVMe and virtio disks, virtio devices, in the order of the spec

A kernel finds BARs placed, and only what it was given something for: the host bridge, virtio devices from slot 1 on, or from slot 3
on where the IDE function or the VGA are there too.

interrupts              pin p of slot s to PIRQ (s - 1 + p) mod 4: through the ISA bridge to the 8259 pair as the guest routes it,
                        and to GSI 16 + (s + p) mod 4
0xe000_0000             window from which BARs are placed without firmware, up to the I/O APIC
0xfec0_0000             I/O APIC
0xfee0_0000             local APIC
ports                   8259 pair 0x20 0xa0 0x4d0, 8254 0x40, RTC 0x70, COM1 0x3f8 (IRQ 4), ACPI PM 0x600 (SCI 9), BARs from 0xd000
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringfence.bus.pci import PciBus, PciFunction
from ringfence.core.errors import UserError
from ringfence.core.late import LateModule
from ringfence.core.units import GIB
from ringfence.devices import pci_host
from ringfence.devices.piix4_pm import ACPI_DISABLE, ACPI_ENABLE, APM_PORTS, APM_PORTS_BASE, Piix4Pm
from ringfence.machine.boards import ide_places
from ringfence.machine.boards.base import POWER, Board, Surroundings
from ringfence.machine.boards.drives import Drive
from ringfence.machine.boards.firmware import FirmwareParts
from ringfence.machine.boot import firmware as rom_files
from ringfence.machine.boot import layout
from ringfence.machine.boot.acpi import AcpiConfig, PciConfig

if TYPE_CHECKING:
    from ringfence.devices import i440fx, ide_channel, ide_pci, nvme, piix3, vga_card
    from ringfence.devices.virtio import pci as virtio_pci
    from ringfence.devices.virtio.device import VirtioDevice
else:  # behind firmware, or where a drive or another part asks for them
    i440fx = LateModule("ringfence.devices.i440fx")
    ide_channel = LateModule("ringfence.devices.ide_channel")
    ide_pci = LateModule("ringfence.devices.ide_pci")
    piix3 = LateModule("ringfence.devices.piix3")
    vga_card = LateModule("ringfence.devices.vga_card")
    nvme = LateModule("ringfence.devices.nvme")
    virtio_pci = LateModule("ringfence.devices.virtio.pci")

PCI_WINDOW = (0xE000_0000, 0x1EC0_0000)
PCI_WINDOW_END = 0xFEC0_0000
PORT_WINDOW = (0xD000, 0xE000)
PCI_GSIS = (16, 17, 18, 19)
# SeaBIOS routes PIRQA and PIRQB to IRQ 10, PIRQC and PIRQD to 11; in the order of PCI_GSIS.
PIC_IRQS = (11, 10, 10, 11)
PCI_SLOTS = 32
PIIX_SLOT, VGA_SLOT, FIRST_SLOT = 1, 2, 3


class Pc(Board):
    name = "pc"

    def __init__(self, host: Surroundings) -> None:
        self._ide_places: dict[int, Drive] = ide_places.place(host.drives)
        self._whole = host.firmware is not None
        self._has_vga = self._whole or host.display
        self._has_piix = self._whole or bool(self._ide_places)
        self._slot = FIRST_SLOT if self._has_piix or self._has_vga else 1
        self._paths: dict[str, list[str]] = {"floppy": [], "disk": [], "cdrom": [], "net": []}
        super().__init__(host)
        if self.firmware is not None:
            self._describe(self.firmware)
        else:
            base, size_bytes = PCI_WINDOW
            self.pci.assign_addresses(base, base + size_bytes, *PORT_WINDOW)

    def _add_legacy_parts(self) -> None:
        host = self.host
        self.pci = PciBus(self.mmio, self.ports, self.memory)
        super()._add_legacy_parts()
        self.firmware = FirmwareParts(self, host.firmware) if host.firmware is not None else None
        bridge = i440fx.I440Fx(self.memory, self.mmio, self.firmware.rom) if self.firmware is not None else None
        # Byte accesses to 0xcf9, inside of CONFIG_ADDRESS, are the reset control register; the bridge passes them on.
        self.pci_host = self.add(pci_host.PciHost(self.pci, self.reset_control.control, bridge))
        self.map_ports(pci_host.CONFIG_ADDRESS_PORT, pci_host.CONFIG_PORTS, self.pci_host, "pci-config")
        if self._has_piix:
            self._add_piix()
        if self._has_vga:
            path = rom_files.find_vga_bios()
            vga = self.add(vga_card.VgaPci(self.memory, host.clock, path.read_bytes() if path is not None else b""))
            self.pci.add(VGA_SLOT, vga)
            vga.map_legacy(self.ports, self.mmio)
            self.screen = vga
        for number, drive in enumerate(drive for drive in host.drives if drive.interface == "nvme"):
            self._add_nvme(drive, f"ringfence-nvme{number}")

    def _add_nvme(self, drive: Drive, name: str) -> None:
        slot = self._take_slot()
        irq = self.pin(self._gsi(slot))
        self._plug(slot, self.add(nvme.Nvme(drive.block, self.memory, self.host.executor, self.apics, irq, serial=name, name=name)))
        self._paths["disk"].append(f"/pci@i0cf8/nvme@{slot:x}")

    def _add_piix(self) -> None:
        piix = self.add(piix3.Piix3({irq: self.pin(irq) for irq in piix3.ROUTABLE_IRQS}))
        for gsi in PCI_GSIS:
            self._lines[gsi].connect(piix.pirq(gsi - PCI_GSIS[0] - 1 & 3))
        self.pci.add(PIIX_SLOT, piix)
        irqs = self.pin(ide_channel.PRIMARY[2]), self.pin(ide_channel.SECONDARY[2])
        self.ide = self.add(ide_pci.PiixIde(self.memory, irqs, ide_places.build(self._ide_places, self.host.executor, dma=True)))
        for channel, (command, control, _) in zip(self.ide.channels, (ide_channel.PRIMARY, ide_channel.SECONDARY), strict=True):
            self.map_ports(command, 8, channel, channel.name)
            self.map_ports(control, 1, channel.control, f"{channel.name}-control")
        self.pci.add(PIIX_SLOT, self.ide.function, 1)
        if self._whole:
            self.pci.add(PIIX_SLOT, self.power_function, 3)

    def _map_power_ports(self) -> None:
        if not self._whole:
            super()._map_power_ports()
            return
        self.power_function = self.add(Piix4Pm(self.power, self.ports, self.pin(self._gsi(PIIX_SLOT))))
        self.map_ports(APM_PORTS_BASE, APM_PORTS, self.power_function.apm, "apm")

    def _gsi(self, slot: int, pin: int = 0) -> int:
        return PCI_GSIS[(slot + pin) % len(PCI_GSIS)]

    def _take_slot(self) -> int:
        if self._slot == PCI_SLOTS:
            raise UserError(f"The PCI bus has room for {PCI_SLOTS - 1} devices.", "Use fewer disks.")
        self._slot += 1
        return self._slot - 1

    def _plug(self, slot: int, function: PciFunction) -> None:
        self.pci.add(slot, function)

    def add_virtio(self, device: VirtioDevice) -> None:
        slot = self._take_slot()
        self._plug(slot, self.add(virtio_pci.VirtioPci(device, self.memory, self.apics, self.pin(self._gsi(slot)))))
        if device.name == "virtio-blk":
            self._paths["disk"].append(f"/pci@i0cf8/scsi@{slot:x}/disk@0,0")

    def _describe(self, firmware: FirmwareParts) -> None:
        """What firmware has to know of the drives."""
        disks = {number: ide_places.geometry(drive) for number, drive in self._ide_places.items() if drive.kind == "disk"}
        paths = {kind: list(found) for kind, found in self._paths.items()}
        for number, drive in self._ide_places.items():
            paths[drive.kind].append(f"/pci@i0cf8/ide@{PIIX_SLOT:x},1/drive@{number >> 1}/disk@{number & 1}")
        floppies = sum(drive.kind == "floppy" for drive in self.host.drives)
        paths["floppy"] += [f"/pci@i0cf8/isa@{PIIX_SLOT:x}/fdc@03f0/floppy@{unit}" for unit in range(floppies)]
        firmware.describe(disks, [path for kind in self.host.boot_order for path in paths[kind]], {})

    def acpi_config(self) -> AcpiConfig:
        config = super().acpi_config()
        if not self._whole:
            return config.replace(pci=PciConfig(memory_window=PCI_WINDOW, gsis=PCI_GSIS))
        # SeaBIOS places BARs below the I/O APIC, downwards, and takes more of the room where there is little RAM.
        base = 2 * GIB if layout.low_ram_end(self.memory) <= 2 * GIB else layout.LOW_RAM_END
        power = POWER.replace(smi_command_port=APM_PORTS_BASE, acpi_enable=ACPI_ENABLE, acpi_disable=ACPI_DISABLE)
        pci = PciConfig(memory_window=(base, PCI_WINDOW_END - base), gsis=PCI_GSIS, pic_irqs=PIC_IRQS)
        return config.replace(pci=pci, power=power)
