"""The board "isapc": a PC/AT without PCI and ACPI, for software that is older than both.

ports                   8259 pair 0x20 0xa0 0x4d0, 8254 0x40, RTC 0x70, COM1 0x3f8 (IRQ 4), reset 0xcf9;
                        IDE 0x1f0 (IRQ 14) and 0x170 (IRQ 15) without bus master
0xa0000                 VGA; its linear frame buffer at 0xe000_0000
0xe0000                 firmware, copied into RAM at every reset, as SeaBIOS keeps its variables there and finds no chipset that
                        could show it RAM instead of ROM

Behind firmware all parts are there; a kernel finds those that it was given something for.  There is no way to switch it off from
inside.
"""

from __future__ import annotations

from pathlib import Path

from ringfence.devices import reset
from ringfence.devices.i440fx import ISA_ROM_BYTES, SHADOW_END
from ringfence.devices.ide_channel import PRIMARY, SECONDARY, IdeChannel
from ringfence.devices.vga_card import VgaIsa
from ringfence.machine.boards import ide_places
from ringfence.machine.boards.base import Board, Surroundings
from ringfence.machine.boards.firmware import FirmwareParts
from ringfence.machine.boot import firmware as rom_files

_VGA_BIOS = "vgabios-isavga.bin"


class IsaPc(Board):
    name = "isapc"
    has_acpi = False
    has_virtio = False

    def __init__(self, host: Surroundings) -> None:
        self._ide_places = ide_places.place(host.drives)
        super().__init__(host)
        self.map_ports(reset.RESET_CONTROL_PORT, 1, self.reset_control.control, "reset-control")
        whole = host.firmware is not None
        if whole or self._ide_places:
            self._add_ide()
        vga_bios: Path | None = None
        if whole or host.display:
            vga = self.add(VgaIsa(self.memory, host.clock))
            vga.map_legacy(self.ports, self.mmio)
            self.screen = vga
            vga_bios = rom_files.find_vga_bios(_VGA_BIOS)
        self.firmware = FirmwareParts(self, host.firmware) if host.firmware is not None else None
        if self.firmware is not None:
            disks = {number: ide_places.geometry(drive) for number, drive in self._ide_places.items() if drive.kind == "disk"}
            files = {f"vgaroms/{_VGA_BIOS}": vga_bios.read_bytes()} if vga_bios is not None else {}
            self.firmware.describe(disks, [], files)
            self._copy_firmware(self.firmware)

    def _map_power_ports(self) -> None:
        """No power management."""

    def _add_ide(self) -> None:
        drives = ide_places.build(self._ide_places, self.host.executor, dma=False)
        for number, (command, control, irq) in enumerate((PRIMARY, SECONDARY)):
            pair = drives[2 * number : 2 * number + 2]
            if any(pair):
                channel = self.add(IdeChannel(self.pin(irq), pair, name=f"ide{number}"))
                self.map_ports(command, 8, channel, channel.name)
                self.map_ports(control, 1, channel.control, f"{channel.name}-control")

    def _copy_firmware(self, firmware: FirmwareParts) -> None:
        size_bytes = min(ISA_ROM_BYTES, firmware.rom.size_bytes)
        self.memory.write(SHADOW_END - size_bytes, bytes(firmware.rom.view[-size_bytes:]))

    def reset(self) -> None:
        super().reset()
        if self.firmware is not None:
            self._copy_firmware(self.firmware)
