"""The start info that a PVH kernel finds in EBX at its 32-bit entry point.

Xen docs/misc/pvh ("x86/HVM direct boot ABI") and public/arch-x86/hvm/start_info.h, version 1 of the structure (with memory map).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from ringfence.machine.boot import layout
from ringfence.machine.boot.layout import E820Entry
from ringfence.memory.guest_memory import GuestMemory

_MAGIC, _VERSION = 0x336E_C578, 1
_START_INFO = struct.Struct("<IIIIQQQQII")
_MODULE = struct.Struct("<QQQQ")
_MEMORY_RANGE = struct.Struct("<QQII")
_MODULES_ADDR = layout.START_INFO_ADDR + 0x40
_MEMORY_MAP_ADDR = layout.START_INFO_ADDR + 0x80


def write_start_info(memory: GuestMemory, initrd: tuple[int, int], e820: Sequence[E820Entry], acpi_rsdp: int | None) -> int:
    """Fills the start info and returns its address; `initrd` is (address, bytes), (0, 0) for none, and becomes module 0."""
    module_count = 1 if initrd[1] else 0
    ranges = b"".join(_MEMORY_RANGE.pack(*entry, 0) for entry in e820)
    if _MEMORY_MAP_ADDR + len(ranges) > layout.ZERO_PAGE_ADDR:
        raise ValueError(f"{len(e820)} memory ranges do not fit the start info's page")
    modules_addr = _MODULES_ADDR if module_count else 0
    info = _START_INFO.pack(
        _MAGIC, _VERSION, 0, module_count, modules_addr, layout.CMDLINE_ADDR, acpi_rsdp or 0, _MEMORY_MAP_ADDR, len(e820), 0
    )
    memory.write(layout.START_INFO_ADDR, info)
    memory.write(_MODULES_ADDR, _MODULE.pack(*initrd, 0, 0))
    memory.write(_MEMORY_MAP_ADDR, ranges)
    return layout.START_INFO_ADDR
