"""SMBIOS structures that firmware hands on: who made the machine, its chassis, CPU and memory.

System Management BIOS Reference Specification 2.8 (DSP0134): entry point (5.2.1), structures (7).  Firmware adds the structure about
itself (type 0), places everything and fills the addresses in.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from ringfence.core.units import GIB, KIB, MIB

TABLES_FILE, ANCHOR_FILE = "etc/smbios/smbios-tables", "etc/smbios/smbios-anchor"
_MAKER = "Ringfence"
_SYSTEM, _CHASSIS, _CPU, _MEMORY_ARRAY, _MEMORY_DEVICE, _MEMORY_RANGE, _BOOT, _END = 1, 3, 4, 16, 17, 19, 32, 127
_ENTRY_BYTES = 31
_OTHER, _UNKNOWN = 1, 2
_NONE = 0xFFFE


def files(board: str, cpu: str, ram: Sequence[tuple[int, int]], cpus: int = 1) -> dict[str, bytes]:
    """For fw_cfg; `ram` are (base, bytes), ascending."""
    structures = list(_structures(board, cpu, ram, cpus))
    tables = b"".join(structures)
    return {TABLES_FILE: tables, ANCHOR_FILE: _anchor(tables, len(structures), max(len(s) for s in structures))}


def _structures(board: str, cpu: str, ram: Sequence[tuple[int, int]], cpus: int) -> Iterator[bytes]:
    system = struct.pack("<BBBB16sBBB", 1, 2, 0, 0, bytes(16), 6, 0, 0)  # wake-up by the power switch; no serial number
    yield _structure(_SYSTEM, 0x100, system, _MAKER, board)
    yield _structure(_CHASSIS, 0x300, struct.pack("<BBBBBBBBBIBBBB", 1, _OTHER, 0, 0, 0, 3, 3, 3, _UNKNOWN, 0, 0, 0, 0, 0), _MAKER)
    identity = struct.pack("<BBBBQBBHHHBB", 1, 3, _OTHER, 2, 0, 3, 0, 0, 0, 0, 0x41, _OTHER)  # a central processor, enabled
    details = struct.pack("<HHHBBBBBBHH", *[0xFFFF] * 3, 0, 0, 0, 1, 1, 1, 0, 0)
    for number in range(cpus):
        yield _structure(_CPU, 0x400 + number, identity + details, f"CPU {number}", _MAKER, cpu)
    total = sum(size for _, size in ram)
    yield _structure(_MEMORY_ARRAY, 0x1000, struct.pack("<BBBIHHQ", 1, 3, 3, min(total // KIB, 0x8000_0000), _NONE, 1, total))
    size_mib = min(total // MIB, 0x7FFE)
    device = struct.pack("<HHHHHBBBBBHHBBBBBIH", 0x1000, _NONE, 0xFFFF, 0xFFFF, size_mib, 9, 0, 1, 0, 7, 2, 0, 2, 0, 0, 0, 0, 0, 0)
    yield _structure(_MEMORY_DEVICE, 0x1100, device, "DIMM 0", _MAKER)
    for number, (base, size) in enumerate(ram):
        if base + size <= 4 * GIB:
            body = struct.pack("<IIHBQQ", base // KIB, (base + size - 1) // KIB, 0x1000, 1, 0, 0)
        else:
            body = struct.pack("<IIHBQQ", 0xFFFF_FFFF, 0xFFFF_FFFF, 0x1000, 1, base, base + size - 1)
        yield _structure(_MEMORY_RANGE, 0x1300 + number, body)
    yield _structure(_BOOT, 0x2000, bytes(7))
    yield _structure(_END, 0x7F00, b"")


def _structure(kind: int, handle: int, body: bytes, *strings: str) -> bytes:
    """Header, formatted area, and the strings that it refers to by number; two NULs at the end (6.1.3)."""
    texts = b"".join(text.encode("ascii", "replace") + b"\0" for text in strings)
    return struct.pack("<BBH", kind, 4 + len(body), handle) + body + (texts or b"\0") + b"\0"


def _anchor(tables: bytes, count: int, longest: int) -> bytes:
    intermediate = struct.pack("<5sBHIHB", b"_DMI_", 0, len(tables), 0, count, 0x28)
    entry = bytearray(struct.pack("<4sBBBBHB5s", b"_SM_", 0, _ENTRY_BYTES, 2, 8, longest, 0, b"") + intermediate)
    entry[21] = -sum(entry[16:]) & 0xFF
    entry[4] = -sum(entry) & 0xFF
    return bytes(entry)
