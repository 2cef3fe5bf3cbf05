"""The firmware ROM on a board, and everything by which it learns what the board is: CMOS, fw_cfg, its log.

4 GiB - size ... 4 GiB      the ROM
0xe0000-0xfffff             its last 128 KiB: the board's matter (shadow RAM of the 440FX, plain RAM on the ISA board)
0x402                       its log, printed with RINGFENCE_TRACE=firmware and kept in `log`
0x510-0x51b                 fw_cfg
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ringfence.core.trace import tracer
from ringfence.core.units import GIB
from ringfence.devices import fw_cfg
from ringfence.devices.ata_geometry import Geometry, Translation
from ringfence.devices.debug_console import DEBUG_CONSOLE_PORT, DebugConsole
from ringfence.machine.boot import cmos, firmware_files, kernel_rom, smbios

if TYPE_CHECKING:
    from ringfence.machine.boards.base import Board

trace = tracer("firmware")

_ROM_END = 4 * GIB
_ALL_KINDS = 4


class _Trigger:
    """A port whose write is a message."""

    def __init__(self, told: Callable[[], None]) -> None:
        self._told = told

    def read(self, offset: int, size: int) -> int:
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        self._told()


class FirmwareParts:
    """Of one board; `rom` is a whole number of pages."""

    def __init__(self, board: Board, rom: bytes) -> None:
        memory = board.memory
        self._board = board
        self.rom = memory.add_backing(len(rom), "firmware")
        self.rom.view[:] = rom
        memory.overlay(_ROM_END - len(rom), len(rom), self.rom, writable=False)
        self.config = board.add(fw_cfg.FwCfg(memory))
        board.map_ports(fw_cfg.FW_CFG_PORT, fw_cfg.FW_CFG_PORTS, self.config.select, "fw-cfg")
        board.map_ports(fw_cfg.FW_CFG_DMA_PORT, fw_cfg.FW_CFG_DMA_PORTS, self.config, "fw-cfg-dma")
        if trace:  # SeaBIOS writes half of all its port accesses there where somebody listens
            board.map_ports(DEBUG_CONSOLE_PORT, 1, board.add(DebugConsole(lambda line: trace("%s", line))), "firmware-log")

    def describe(self, ide_disks: Mapping[int, tuple[Geometry, Translation]], paths: list[str], files: Mapping[str, bytes]) -> None:
        """Once every part is there.

        `ide_disks` by place (0 primary master to 3 secondary slave), `paths` the drives to be started from in order, `files` what
        else the board has for firmware.
        """
        board = self._board
        host = board.host
        floppies = [drive.block.size_bytes for drive in host.drives if drive.kind == "floppy"]
        nvram = cmos.contents(board.memory, floppies, ide_disks, host.boot_order, mouse=board.mouse is not None)
        nvram[cmos.FURTHER_CPUS] = host.cpus - 1
        if board.isa.floppy is not None:
            first, second = board.isa.floppy.kinds
            nvram[0x10] = first.value << 4 | second.value
        for index, value in (nvram | cmos.checksum_bytes(nvram)).items():
            board.rtc.set_nvram(index, value)
        named = len(set(host.boot_order)) < _ALL_KINDS
        if host.start_kernel is not None:
            paths = [kernel_rom.BOOT_PATH, *paths]
            files = {**files, kernel_rom.FILE_NAME: kernel_rom.build()}
            board.map_ports(kernel_rom.KERNEL_PORT, 1, _Trigger(host.start_kernel), "kernel-start")
        contents = {
            "etc/e820": firmware_files.e820(board.memory),
            "etc/system-states": firmware_files.system_states(),
            # After the last of the kinds that the user named, stop.
            "bootorder": firmware_files.boot_order([*paths, "HALT"] if named else paths),
            **smbios.files(board.name, "virtual CPU", [(r.base, r.size_bytes) for r in board.memory.regions], host.cpus),
            **files,
        }
        if board.has_acpi:
            contents |= firmware_files.acpi_files(board.acpi_config())
        if host.serial_terminal:
            contents["etc/sercon-port"] = firmware_files.number(0x3F8)
        items = {
            firmware_files.CPUS_KEY: host.cpus.to_bytes(2, "little"),
            firmware_files.MAX_CPUS_KEY: host.cpus.to_bytes(2, "little"),
            firmware_files.BOOT_MENU_KEY: (0).to_bytes(2, "little"),
            firmware_files.RAM_SIZE_KEY: board.memory.size_bytes.to_bytes(8, "little"),
        }
        self.config.set_contents(items, contents)
