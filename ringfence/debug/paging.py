"""Linear to physical addresses as the vCPU's paging mode says, without setting accessed or dirty bits (SDM 3A 4.3-4.5).

A debugger reads what the running code would see, so rights do not matter, only presence.
"""

from __future__ import annotations

from ringfence.core.errors import GuestMemoryError
from ringfence.debug.target import PhysicalMemory

PAGE_BYTES = 4096
_PG, _PSE, _PAE, _LA57, _LMA = 1 << 31, 1 << 4, 1 << 5, 1 << 12, 1 << 10
_PRESENT, _LARGE = 1, 1 << 7
_FRAME = 0x000F_FFFF_FFFF_F000


def translate(registers: dict[str, int], physical: PhysicalMemory, address: int) -> int | None:
    """The guest physical address of a linear address, None where nothing is mapped."""
    if not registers["cr0"] & _PG:
        return address & 0xFFFF_FFFF
    cr4 = registers["cr4"]
    try:
        if registers["efer"] & _LMA:
            return _long(physical, registers["cr3"], address)
        if cr4 & _PAE:
            return _pae(physical, registers["cr3"], address & 0xFFFF_FFFF)
        return _legacy(physical, registers["cr3"], bool(cr4 & _PSE), address & 0xFFFF_FFFF)
    except GuestMemoryError:  # a table lies outside of RAM
        return None


def _entry(physical: PhysicalMemory, table: int, index: int, size: int) -> int:
    return int.from_bytes(physical.read(table + index * size, size), "little")


def _long(physical: PhysicalMemory, cr3: int, address: int) -> int | None:
    address &= (1 << 64) - 1
    if address >> 47 not in (0, 0x1FFFF):
        return None
    return _walk(physical, cr3 & _FRAME, address, 39)


def _pae(physical: PhysicalMemory, cr3: int, address: int) -> int | None:
    entry = _entry(physical, cr3 & 0xFFFF_FFE0, address >> 30, 8)
    return _walk(physical, entry & _FRAME, address, 21) if entry & _PRESENT else None


def _walk(physical: PhysicalMemory, table: int, address: int, shift: int) -> int | None:
    while True:
        entry = _entry(physical, table, address >> shift & 511, 8)
        if not entry & _PRESENT:
            return None
        if shift == 12 or (entry & _LARGE and shift <= 30):
            mask = (1 << shift) - 1
            return entry & _FRAME & ~mask | address & mask
        table = entry & _FRAME
        shift -= 9


def _legacy(physical: PhysicalMemory, cr3: int, large_pages: bool, address: int) -> int | None:
    entry = _entry(physical, cr3 & 0xFFFF_F000, address >> 22, 4)
    if not entry & _PRESENT:
        return None
    if large_pages and entry & _LARGE:  # PSE-36: bits 20:13 are address bits 39:32
        return entry & 0xFFC0_0000 | (entry >> 13 & 0xFF) << 32 | address & 0x3F_FFFF
    entry = _entry(physical, entry & 0xFFFF_F000, address >> 12 & 1023, 4)
    return entry & 0xFFFF_F000 | address & 0xFFF if entry & _PRESENT else None


def pieces(registers: dict[str, int], physical: PhysicalMemory, address: int, size: int, linear: bool) -> list[tuple[int, int]] | None:
    """(physical address, bytes) of the parts of a range; None when the first byte is not mapped.  Ends at the first hole."""
    found: list[tuple[int, int]] = []
    while size > 0:
        part = min(size, PAGE_BYTES - address % PAGE_BYTES)
        place = translate(registers, physical, address) if linear else address
        if place is None:
            break
        found.append((place, part))
        address, size = address + part, size - part
    return found or None
