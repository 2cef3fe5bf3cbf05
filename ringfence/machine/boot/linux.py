"""The zero page (struct boot_params) that a Linux kernel finds in RSI at its 64-bit entry point.

Linux Documentation/arch/x86/zero-page.rst and boot.rst ("The Real-Mode Kernel Header").  All integers little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from ringfence.core.errors import UserError
from ringfence.core.units import PAGE_BYTES
from ringfence.machine.boot import layout
from ringfence.machine.boot.bzimage import HEADER_OFFSET
from ringfence.machine.boot.layout import E820_RAM, E820Entry
from ringfence.memory.guest_memory import GuestMemory

# Of struct boot_params.  Where no firmware set up a screen, screen_info (from 0x000 on) stays zero: no video mode, lines and columns
# mean that there is no VGA to be probed.  The sentinel (0x1ef) stays zero too: it says that a loader filled the page field by field.
_EXT_MEM_K, _ALT_MEM_K = 0x002, 0x1E0  # before E820: KiB above 1 MiB, in 16 and in 32 bits
_ACPI_RSDP_ADDR, _EXT_RAMDISK_IMAGE, _EXT_RAMDISK_SIZE = 0x070, 0x0C0, 0x0C4
_E820_ENTRIES, _E820_TABLE, _E820_MAX = 0x1E8, 0x2D0, 128

# Of the setup header, by offset in the page.
_VID_MODE, _BOOT_FLAG, _JUMP, _VERSION, _TYPE_OF_LOADER, _LOADFLAGS = 0x1FA, 0x1FE, 0x200, 0x206, 0x210, 0x211
_RAMDISK_IMAGE, _RAMDISK_SIZE, _CMD_LINE_PTR, _CMDLINE_SIZE = 0x218, 0x21C, 0x228, 0x238

_VID_MODE_NORMAL = 0xFFFF
_LOADER_UNDEFINED = 0xFF
_LOADED_HIGH = 1 << 0
_PROTOCOL = 0x20F

DEFAULT_CMDLINE_MAX_BYTES = 2047  # COMMAND_LINE_SIZE of x86 less its NUL, for kernels that come without a setup header
DEFAULT_INITRD_ADDR_MAX = 0x7FFF_FFFF


def write_zero_page(
    memory: GuestMemory,
    header: bytes | None,
    initrd: tuple[int, int],
    e820: Sequence[E820Entry],
    acpi_rsdp: int | None,
    *,
    text_screen: bool = False,
) -> int:
    """Fills the zero page and returns its address.  `text_screen`: firmware left a VGA in its text mode of 80 by 25.

    `header` is a bzImage's own setup header, None for a bare vmlinux, for which one is made up; `initrd` is (address, bytes), (0, 0)
    for none.  The command line is at its fixed place already.
    """
    page = bytearray(PAGE_BYTES)
    if header is None:
        struct.pack_into("<H", page, _BOOT_FLAG, 0xAA55)
        page[_JUMP : _VERSION + 2] = b"\xeb\x66HdrS" + struct.pack("<H", _PROTOCOL)
        struct.pack_into("<I", page, _CMDLINE_SIZE, DEFAULT_CMDLINE_MAX_BYTES)
    else:
        page[HEADER_OFFSET : HEADER_OFFSET + len(header)] = header
    if text_screen:
        # orig_x, orig_y, ..., orig_video_page, mode, columns, ..., ega_bx, ..., lines, isVGA, points
        struct.pack_into("<BB2xHBB2xH2xBBH", page, 0, 0, 24, 0, 3, 80, 3, 25, 1, 16)
    above_1m = sum(e.size_bytes for e in e820 if e.kind == E820_RAM and e.base == layout.HIGH_MEMORY_ADDR) // 1024
    struct.pack_into("<H", page, _EXT_MEM_K, min(above_1m, 0xFC00))
    struct.pack_into("<I", page, _ALT_MEM_K, min(above_1m, 0xFFFF_FFFF))
    address, size_bytes = initrd
    struct.pack_into("<H", page, _VID_MODE, _VID_MODE_NORMAL)
    page[_TYPE_OF_LOADER] = _LOADER_UNDEFINED
    page[_LOADFLAGS] = _LOADED_HIGH
    struct.pack_into("<II", page, _RAMDISK_IMAGE, address & 0xFFFF_FFFF, size_bytes & 0xFFFF_FFFF)
    struct.pack_into("<II", page, _EXT_RAMDISK_IMAGE, address >> 32, size_bytes >> 32)
    struct.pack_into("<I", page, _CMD_LINE_PTR, layout.CMDLINE_ADDR)
    struct.pack_into("<Q", page, _ACPI_RSDP_ADDR, acpi_rsdp or 0)
    if len(e820) > _E820_MAX:
        raise ValueError(f"{len(e820)} memory ranges do not fit the zero page")
    page[_E820_ENTRIES] = len(e820)
    for index, entry in enumerate(e820):
        struct.pack_into("<QQI", page, _E820_TABLE + 20 * index, entry.base, entry.size_bytes, entry.kind)
    memory.write(layout.ZERO_PAGE_ADDR, page)
    return layout.ZERO_PAGE_ADDR


def write_cmdline(memory: GuestMemory, cmdline: str, max_bytes: int) -> int:
    """Stores the command line with its NUL and returns its address; `max_bytes` is the kernel's own limit, NUL not counted."""
    text = cmdline.encode("utf-8", "surrogateescape")
    limit = min(max_bytes, layout.CMDLINE_MAX_BYTES)
    if b"\0" in text:
        raise UserError("The kernel command line contains a NUL character.", "Remove it from --append.")
    if len(text) > limit:
        raise UserError(
            f"The kernel command line has {len(text)} bytes; this kernel takes at most {limit}.", "Shorten what --append gives."
        )
    memory.write(layout.CMDLINE_ADDR, text + b"\0")
    return layout.CMDLINE_ADDR
