"""Where things are in guest physical memory before the guest's first instruction.

    0x0000_0500  global descriptor table
    0x0000_6000  PVH start info, its module list and memory map
    0x0000_7000  zero page (boot_params)
    0x0000_8000  stack, growing down from 0x9000
    0x0000_9000  page tables: identity map of the first 4 GiB
    0x0002_0000  command line
    0x0009_fc00  extended BIOS data area and, from 0xa0000, video memory and option ROMs: not usable RAM
    0x000e_0000  ACPI tables, RSDP first (ACPI 6.4, 5.2.5.1: found by a search of 0xe0000-0xfffff)
    0x0010_0000  kernel, at the address it was linked for; the initrd as high as it may be
    0xc000_0000  hole for PCI windows, I/O APIC and local APIC, up to 4 GiB
    0x1_0000_0000  RAM that did not fit below the hole

The memory map that a guest sees follows ACPI 6.4, 15 (system address map, INT 15h E820h).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from ringfence.core.errors import UserError
from ringfence.core.units import GIB, KIB, MIB, format_size
from ringfence.memory.guest_memory import GuestMemory

GDT_ADDR = 0x500
START_INFO_ADDR = 0x6000
ZERO_PAGE_ADDR = 0x7000
STACK_TOP_ADDR = 0x9000
PAGE_TABLES_ADDR = 0x9000
CMDLINE_ADDR = 0x20000
CMDLINE_END_ADDR = 0x30000
EBDA_ADDR = 0x9FC00
VIDEO_ADDR = 0xA0000
ACPI_ADDR = 0xE0000
ACPI_END_ADDR = 0x100000
HIGH_MEMORY_ADDR = 0x100000

LOW_RAM_END = 0xC000_0000
"""RAM below 4 GiB ends here at the latest; devices own the rest up to 4 GiB."""
HIGH_RAM_ADDR = 4 * GIB

MIN_RAM_BYTES = 2 * MIB
FIRMWARE_HIGH_BYTES = MIB
"""SeaBIOS keeps ACPI tables and its own data at the end of the RAM below 4 GiB (256 KiB and what option ROMs ask for)."""

E820_RAM = 1
E820_RESERVED = 2


class E820Entry(NamedTuple):
    """One range of the guest's memory map."""

    base: int
    size_bytes: int
    kind: int

    @property
    def end(self) -> int:
        return self.base + self.size_bytes


def add_ram(memory: GuestMemory, size_bytes: int) -> None:
    """Gives the machine `size_bytes` of RAM: up to the hole below 4 GiB, the rest from 4 GiB on.  Raises UserError."""
    if size_bytes < MIN_RAM_BYTES:
        raise UserError(f"A machine cannot start with {format_size(size_bytes)} of memory.", "Give at least 2 MiB; Linux wants 128 MiB.")
    low_bytes = min(size_bytes, LOW_RAM_END)
    memory.add_ram(0, low_bytes, "ram-low")
    if size_bytes > low_bytes:
        memory.add_ram(HIGH_RAM_ADDR, size_bytes - low_bytes, "ram-high")


def low_ram_end(memory: GuestMemory) -> int:
    """End (exclusive) of the RAM that starts at address 0; 0 when there is none."""
    return next((region.end for region in memory.regions if region.base == 0), 0)


def usable_end(memory: GuestMemory, *, behind_firmware: bool) -> int:
    """End of the RAM from address 0 on that a kernel may use."""
    end = low_ram_end(memory)
    return end - FIRMWARE_HIGH_BYTES if behind_firmware and end > 2 * HIGH_MEMORY_ADDR else end


def memory_map(memory: GuestMemory, reserved: Iterable[tuple[int, int]] = (), *, behind_firmware: bool = False) -> list[E820Entry]:
    """The ranges that a guest is told of, ascending and disjoint.  `behind_firmware`: the top of RAM below 4 GiB is its.

    `reserved` are further (base, size_bytes) ranges outside of RAM that firmware would reserve, such as the PCI
    configuration window (PCI Firmware 3.3, 4.1.2).
    """
    entries = [E820Entry(base, size, E820_RESERVED) for base, size in reserved]
    for region in memory.regions:
        if region.base >= HIGH_MEMORY_ADDR:
            entries.append(E820Entry(region.base, region.size_bytes, E820_RAM))
            continue
        holes = [(EBDA_ADDR, VIDEO_ADDR - EBDA_ADDR, E820_RESERVED), (ACPI_ADDR, ACPI_END_ADDR - ACPI_ADDR, E820_RESERVED)]
        entries += [E820Entry(*hole) for hole in holes]
        entries.append(E820Entry(0, EBDA_ADDR, E820_RAM))
        end = usable_end(memory, behind_firmware=behind_firmware)
        if end > HIGH_MEMORY_ADDR:
            entries.append(E820Entry(HIGH_MEMORY_ADDR, end - HIGH_MEMORY_ADDR, E820_RAM))
        if end < region.end:
            entries.append(E820Entry(end, region.end - end, E820_RESERVED))
    entries.sort()
    for before, after in pairwise(entries):
        if before.end > after.base:
            raise ValueError(f"memory map: {before.base:#x}-{before.end:#x} overlaps {after.base:#x}")
    return entries


CMDLINE_MAX_BYTES = CMDLINE_END_ADDR - CMDLINE_ADDR - 1
assert CMDLINE_MAX_BYTES < 64 * KIB
