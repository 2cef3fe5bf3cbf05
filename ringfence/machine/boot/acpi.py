"""ACPI tables: RSDP, RSDT, XSDT, FADT, FACS, MADT, DSDT, and HPET or MCFG where the board has them.

ACPI 6.4, chapter 5.2; MCFG: PCI Firmware 3.3, 4.1.2; HPET: IA-PC HPET 1.0a, 3.2.4.  A machine without firmware starts in ACPI mode:
SMI_CMD is 0 and SCI_EN is to read as 1.  One with firmware places the tables itself (`firmware_files`), and so they come as one
block with a list of what depends on its address.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from ringfence.core.errors import UserError
from ringfence.core.record import Record
from ringfence.machine.boot import layout
from ringfence.machine.boot.acpi_config import AcpiConfig, PciConfig, PowerConfig, SerialPort, VirtioMmioSlot
from ringfence.machine.boot.dsdt import dsdt_body
from ringfence.memory.guest_memory import GuestMemory

__all__ = ["AcpiConfig", "AcpiTables", "PciConfig", "PowerConfig", "SerialPort", "VirtioMmioSlot", "build_tables", "checksum", "lay_out"]

_OEM_ID, _OEM_TABLE_ID, _CREATOR_ID = b"RINGFN", b"RINGFNCE", b"RNGF"
_HEADER = struct.Struct("<4sIBB6s8sI4sI")
_RSDP = struct.Struct("<8sB6sBIIQB3x")
RSDP_POINTERS = ((16, 4), (24, 8))  # RSDT and XSDT: offset and size in bytes
RSDP_CHECKSUMS = ((8, 20), (32, 36))  # where each is, and over how many bytes from the start on
CHECKSUM_OFFSET = 9  # in every other table
_FACS_BYTES = 64
BLOCK_ALIGNMENT = 64  # the FACS asks for it
_FADT_POINTERS = ((36, 4), (40, 4), (140, 8))  # FIRMWARE_CTRL, DSDT, X_DSDT

# FADT flags (table 5.10)
_WBINVD, _PROC_C1, _SLP_BUTTON, _FIX_RTC = 1 << 0, 1 << 2, 1 << 5, 1 << 6
_TMR_VAL_EXT, _RESET_REG_SUP = 1 << 8, 1 << 10
# IA-PC boot architecture flags (table 5.11)
_LEGACY_DEVICES, _HAS_8042, _NO_VGA, _NO_CMOS_RTC = 1 << 0, 1 << 1, 1 << 2, 1 << 5

_SYSTEM_MEMORY, _SYSTEM_IO = 0, 1
_ACCESS_BYTE, _ACCESS_WORD, _ACCESS_DWORD = 1, 2, 3

_MADT_PCAT_COMPAT = 1 << 0
_MPS_LEVEL_ACTIVE_HIGH = 0b1101
_MAX_LOCAL_APIC_ID = 254  # 255 is the broadcast identifier; from there on only x2APIC entries exist


class AcpiTables(Record):
    """The RSDP, and all other tables as one block; addresses in both are those of a block at `base`.

    `pointers` are (offset, bytes) in the block; `tables` are (offset, bytes) of those tables that hold pointers and a checksum.
    """

    base: int
    rsdp: bytes
    block: bytes
    pointers: tuple[tuple[int, int], ...]
    tables: tuple[tuple[int, int], ...]


def build_tables(memory: GuestMemory, config: AcpiConfig) -> int:
    """Writes all tables into 0xe0000-0xfffff and returns the RSDP's address.  Raises UserError when they do not fit."""
    tables = lay_out(config, layout.ACPI_ADDR + BLOCK_ALIGNMENT)
    if tables.base + len(tables.block) > layout.ACPI_END_ADDR:
        raise UserError("The ACPI tables of this machine do not fit 128 KiB.", "Give it fewer CPUs or devices.")
    memory.write(layout.ACPI_ADDR, tables.rsdp)
    memory.write(tables.base, tables.block)
    return layout.ACPI_ADDR


def lay_out(config: AcpiConfig, base: int) -> AcpiTables:
    """The tables for a block at `base`, a multiple of BLOCK_ALIGNMENT.  Raises UserError for what cannot be expressed."""
    config.check()
    arena = _Arena(base)
    facs_addr = arena.put(_facs(), BLOCK_ALIGNMENT)
    dsdt_addr = arena.put(_table(b"DSDT", 2, dsdt_body(config)))
    addresses = [arena.put(_fadt(config, facs_addr, dsdt_addr), pointers=_FADT_POINTERS), arena.put(_madt(config))]
    if config.hpet_base is not None:
        addresses.append(arena.put(_hpet(config.hpet_base)))
    if config.pci is not None and config.pci.ecam_base is not None:
        addresses.append(arena.put(_mcfg(config.pci.ecam_base, config.pci.bus_count)))
    count = len(addresses)
    roots = []
    for signature, size, code in ((b"RSDT", 4, "I"), (b"XSDT", 8, "Q")):
        table = _table(signature, 1, struct.pack(f"<{count}{code}", *addresses))
        roots.append(arena.put(table, pointers=[(_HEADER.size + size * n, size) for n in range(count)]))
    return AcpiTables(base, _rsdp(*roots), bytes(arena.block), tuple(arena.pointers), tuple(arena.tables))


def checksum(data: bytes | bytearray) -> int:
    """The byte that makes the sum of all bytes 0 modulo 256."""
    return -sum(data) & 0xFF


class _Arena:
    """Tables one after the other from `base` on."""

    def __init__(self, base: int) -> None:
        self._base = base
        self.block = bytearray()
        self.pointers: list[tuple[int, int]] = []
        self.tables: list[tuple[int, int]] = []

    def put(self, table: bytes, alignment: int = 16, pointers: Sequence[tuple[int, int]] = ()) -> int:
        """Appends a table and returns its address; `pointers` are (offset, bytes) in the table."""
        self.block += bytes(-len(self.block) % alignment)
        offset = len(self.block)
        self.block += table
        self.pointers += [(offset + at, size) for at, size in pointers]
        if pointers:
            self.tables.append((offset, len(table)))
        return self._base + offset


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    header = (signature, _HEADER.size + len(body), revision, 0, _OEM_ID, _OEM_TABLE_ID, 1, _CREATOR_ID, 1)
    table = bytearray(_HEADER.pack(*header) + body)
    table[CHECKSUM_OFFSET] = checksum(table)
    return bytes(table)


def _rsdp(rsdt_addr: int, xsdt_addr: int) -> bytes:
    """Revision 2 has two checksums, of the first 20 bytes and of all 36; readers of revision 1 take the RSDT."""
    rsdp = bytearray(_RSDP.pack(b"RSD PTR ", 0, _OEM_ID, 2, rsdt_addr, _RSDP.size, xsdt_addr, 0))
    for at, size in RSDP_CHECKSUMS:
        rsdp[at] = checksum(rsdp[:size])
    return bytes(rsdp)


def _facs() -> bytes:
    return struct.pack("<4sIIIIIQB", b"FACS", _FACS_BYTES, 0, 0, 0, 0, 0, 2).ljust(_FACS_BYTES, b"\0")


def _gas(space: int, address: int, size_bytes: int, access: int) -> bytes:
    """Generic address structure (5.2.3.2)."""
    return struct.pack("<BBBBQ", space, 8 * size_bytes, 0, access, address)


_NO_GAS = bytes(12)


def _fadt(config: AcpiConfig, facs_addr: int, dsdt_addr: int) -> bytes:
    """Revision 6 (5.2.9), fixed hardware: no GPE blocks, no C2/C3, power button by PM1, none for sleep."""
    power = config.power
    flags = _WBINVD | _PROC_C1 | _SLP_BUTTON | _FIX_RTC | _RESET_REG_SUP
    if power.pm_timer_bits == 32:
        flags |= _TMR_VAL_EXT
    boot_flags = _LEGACY_DEVICES if config.serial_ports or config.ps2 else 0
    boot_flags |= (_HAS_8042 if config.ps2 else 0) | (0 if config.vga else _NO_VGA) | (0 if config.rtc else _NO_CMOS_RTC)
    body = b"".join(
        (
            struct.pack("<IIBBH", facs_addr, dsdt_addr, 0, 0, power.sci_gsi),
            struct.pack("<IBBBB", power.smi_command_port, power.acpi_enable, power.acpi_disable, 0, 0),  # no S4BIOS_REQ, PSTATE_CNT
            struct.pack("<IIII", power.pm1_event_port, 0, power.pm1_control_port, 0),
            struct.pack("<IIII", 0, power.pm_timer_port, 0, 0),  # PM2_CNT, PM_TMR, GPE0, GPE1
            struct.pack("<BBBBBBBB", 4, 2, 0, 4, 0, 0, 0, 0),  # lengths of the blocks, GPE1_BASE, CST_CNT
            struct.pack("<HHHH", 0xFFFF, 0xFFFF, 0, 0),  # latencies above 100 and 1000 us: no C2, no C3
            struct.pack("<BBBBB", 0, 0, 0, 0, 0x32 if config.rtc else 0),  # duty, alarms, CENTURY in CMOS
            struct.pack("<HBI", boot_flags, 0, flags),
            _gas(_SYSTEM_IO, power.reset_port, 1, _ACCESS_BYTE),
            struct.pack("<BHB", power.reset_value, 0, 4),  # ARM boot flags, minor version
            struct.pack("<QQ", 0, dsdt_addr),  # X_FIRMWARE_CTRL is used only where FIRMWARE_CTRL is 0
            _gas(_SYSTEM_IO, power.pm1_event_port, 4, _ACCESS_WORD),
            _NO_GAS,
            _gas(_SYSTEM_IO, power.pm1_control_port, 2, _ACCESS_WORD),
            _NO_GAS,
            _NO_GAS,
            _gas(_SYSTEM_IO, power.pm_timer_port, 4, _ACCESS_DWORD),
            _NO_GAS,
            _NO_GAS,
            _NO_GAS,  # SLEEP_CONTROL_REG and SLEEP_STATUS_REG are for reduced hardware
            _NO_GAS,
            bytes(8),  # hypervisor vendor identity
        )
    )
    return _table(b"FACP", 6, body)


def _madt(config: AcpiConfig) -> bytes:
    """Revision 5 (5.2.12): CPUs, one I/O APIC from GSI 0 on, and where its lines differ from ISA."""
    entries = [struct.pack("<BBBBI", 0, 8, cpu, cpu, 1) for cpu in range(min(config.cpus, _MAX_LOCAL_APIC_ID + 1))]
    entries += [struct.pack("<BBHIII", 9, 16, 0, cpu, 1, cpu) for cpu in range(_MAX_LOCAL_APIC_ID + 1, config.cpus)]
    entries.append(struct.pack("<BBBBII", 1, 12, config.io_apic_id, 0, config.io_apic_base, 0))
    if config.pic:
        entries.append(_source_override(0, 2, 0))
    entries += [_source_override(gsi, gsi, _MPS_LEVEL_ACTIVE_HIGH) for gsi in config.level_gsis()]
    entries.append(struct.pack("<BBBHB", 4, 6, 0xFF, 0, 1))  # NMI at LINT1 of every CPU
    head = struct.pack("<II", config.local_apic_base, _MADT_PCAT_COMPAT if config.pic else 0)
    return _table(b"APIC", 5, head + b"".join(entries))


def _source_override(irq: int, gsi: int, flags: int) -> bytes:
    return struct.pack("<BBBBIH", 2, 10, 0, irq, gsi, flags)


def _hpet(base: int) -> bytes:
    """Block id: revision 1, three timers, 64 bits, legacy replacement routing, Intel's vendor id as every reader expects it."""
    return _table(b"HPET", 1, struct.pack("<I", 0x8086_A201) + _gas(_SYSTEM_MEMORY, base, 8, 0) + struct.pack("<BHB", 0, 100, 0))


def _mcfg(ecam_base: int, bus_count: int) -> bytes:
    return _table(b"MCFG", 1, bytes(8) + struct.pack("<QHBB4x", ecam_base, 0, 0, bus_count - 1))
