"""The files that firmware gets through fw_cfg: memory map, boot order, ACPI tables and how to place them.

Formats: QEMU docs/specs/fw_cfg and the linker/loader commands of SeaBIOS (src/fw/romfile_loader.h): 128 bytes each, little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from ringfence.machine.boot.acpi import (
    BLOCK_ALIGNMENT,
    CHECKSUM_OFFSET,
    RSDP_CHECKSUMS,
    RSDP_POINTERS,
    AcpiConfig,
    lay_out,
)
from ringfence.machine.boot.layout import E820_RAM
from ringfence.memory.guest_memory import GuestMemory

BOOT_MENU_KEY, MAX_CPUS_KEY, CPUS_KEY, RAM_SIZE_KEY = 0x0E, 0x0F, 0x05, 0x03
_RSDP_FILE, _TABLES_FILE, _LOADER_FILE = "etc/acpi/rsdp", "etc/acpi/tables", "etc/table-loader"
_COMMAND_BYTES = 128
_NAME = "56s"
_ALLOCATE, _ADD_POINTER, _ADD_CHECKSUM = 1, 2, 3
_ZONE_HIGH, _ZONE_FSEG = 1, 2
# One byte a sleep state: bit 7 says that it is offered, the others are its SLP_TYP.
_SYSTEM_STATES = bytes((0x80, 0, 0, 0, 0, 0x80))


def e820(memory: GuestMemory) -> bytes:
    """RAM as the board has it; firmware takes from it what it needs."""
    return b"".join(struct.pack("<QQI", region.base, region.size_bytes, E820_RAM) for region in memory.regions)


def boot_order(paths: Sequence[str]) -> bytes:
    """Open Firmware device paths, the first to be tried first; ends with a NUL."""
    return "\n".join(paths).encode("ascii") + b"\0"


def number(value: int) -> bytes:
    """A file that SeaBIOS reads as a number."""
    return struct.pack("<Q", value)


def acpi_files(config: AcpiConfig) -> dict[str, bytes]:
    """Our tables, and the commands by which firmware allocates, links and sums them."""
    tables = lay_out(config, 0)
    rsdp, block = _name(_RSDP_FILE), _name(_TABLES_FILE)
    commands = [
        _command(f"{_NAME}IB", _ALLOCATE, rsdp, 16, _ZONE_FSEG),
        _command(f"{_NAME}IB", _ALLOCATE, block, BLOCK_ALIGNMENT, _ZONE_HIGH),
    ]
    pointers = [(block, at, size) for at, size in tables.pointers] + [(rsdp, at, size) for at, size in RSDP_POINTERS]
    commands += [_command(f"{_NAME}{_NAME}IB", _ADD_POINTER, holder, block, at, size) for holder, at, size in pointers]
    commands += [_command(f"{_NAME}III", _ADD_CHECKSUM, block, at + CHECKSUM_OFFSET, at, size) for at, size in tables.tables]
    commands += [_command(f"{_NAME}III", _ADD_CHECKSUM, rsdp, at, 0, size) for at, size in RSDP_CHECKSUMS]
    return {_RSDP_FILE: tables.rsdp, _TABLES_FILE: tables.block, _LOADER_FILE: b"".join(commands)}


def system_states() -> bytes:
    """S0 and S5 are offered; suspending is not."""
    return _SYSTEM_STATES


def _name(text: str) -> bytes:
    return text.encode("ascii")


def _command(form: str, kind: int, *values: bytes | int) -> bytes:
    return struct.pack("<I" + form, kind, *values).ljust(_COMMAND_BYTES, b"\0")
