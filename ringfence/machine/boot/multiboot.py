"""Multiboot 1 kernels: ELF of 32 or 64 bits, or a flat file that tells its own addresses ("a.out kludge").

Multiboot Specification version 0.6.96: header (3.1), machine state (3.2), boot information (3.3).  Entry is in 32-bit protected
mode, for ELF64 too.  Every initrd is a module; modules lie after the kernel, each on a page of its own.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from ringfence.core.errors import ImageError, UserError
from ringfence.core.record import Record
from ringfence.core.units import PAGE_BYTES, format_size
from ringfence.machine.boot import elf, layout
from ringfence.machine.boot.layout import E820Entry
from ringfence.memory.guest_memory import GuestMemory

LOADER_MAGIC = 0x2BAD_B002  # in EAX
_MAGIC = 0x1BAD_B002
_SEARCH_BYTES = 8192
_ADDRESSES_VALID, _WANTS_VIDEO, _KNOWN_REQUIREMENTS = 1 << 16, 1 << 2, 0x7
_TEXT_MODE = 1

# Boot information flags
_HAS_MEMORY, _HAS_BOOT_DEVICE, _HAS_CMDLINE, _HAS_MODULES, _HAS_MEMORY_MAP = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 6
_HAS_LOADER_NAME, _HAS_FRAMEBUFFER = 1 << 9, 1 << 12
_INFO_BYTES = 116
_LOADER_NAME = b"Ringfence\0"
_FRAMEBUFFER_TEXT = 2
_VGA_TEXT_ADDR, _COLUMNS, _ROWS = 0xB8000, 80, 25

_INFO_ADDR = layout.START_INFO_ADDR
_TABLES_ADDR, _TABLES_END = layout.START_INFO_ADDR + 0x100, layout.ZERO_PAGE_ADDR
_STRINGS_ADDR, _STRINGS_END = layout.CMDLINE_ADDR, layout.CMDLINE_END_ADDR


class Module(Record):
    """A file for the kernel, and the string that goes with it."""

    data: bytes
    text: str


class Header(Record):
    """`addresses` (load, load_end, bss_end, entry and the file offset of the first byte) only where the file is no ELF."""

    flags: int
    addresses: tuple[int, int, int, int, int] | None
    video_mode: int | None  # 0 linear graphics, 1 text; None: the kernel asks for nothing


def find_header(data: bytes) -> Header | None:
    """The header in the first 8 KiB, None when the file has none."""
    for at in range(0, min(len(data), _SEARCH_BYTES) - 11, 4):
        magic, flags, checksum = struct.unpack_from("<III", data, at)
        if magic != _MAGIC or (magic + flags + checksum) & 0xFFFF_FFFF:
            continue
        addresses = None
        if flags & _ADDRESSES_VALID and at + 32 <= len(data):
            header_addr, load, load_end, bss_end, entry = struct.unpack_from("<5I", data, at + 12)
            addresses = (load, load_end, bss_end, entry, at - (header_addr - load))
        video = struct.unpack_from("<I", data, at + 32)[0] if flags & _WANTS_VIDEO and at + 36 <= len(data) else None
        return Header(flags, addresses, video)
    return None


def load(memory: GuestMemory, data: bytes, header: Header, name: str) -> tuple[int, int, int]:
    """Copies the kernel to where it wants to be and returns (entry, base, end).  Raises UserError where that cannot be."""
    unknown = header.flags & 0xFFFF & ~_KNOWN_REQUIREMENTS
    if unknown:
        raise ImageError(f"{name} asks for Multiboot features that do not exist here (flags {unknown:#x}).", "Build it without them.")
    if header.addresses is None:
        if not data.startswith(elf.MAGIC):
            raise ImageError(f"{name} has a Multiboot header, but is neither ELF nor tells its addresses.", "Set bit 16 of its flags.")
        kernel = elf.parse(data, name)
        elf.load(memory, kernel, name)
        return kernel.entry, kernel.base, kernel.end
    base, load_end, bss_end, entry, offset = header.addresses
    size_bytes = load_end - base if load_end else len(data) - offset
    end = max(bss_end, base + size_bytes)
    if offset < 0 or size_bytes < 0 or offset + size_bytes > len(data) or not base <= entry < end:
        raise ImageError(f"{name} is damaged: its Multiboot addresses lie outside of the file.", "Copy or build the file again.")
    kernel = elf.ElfKernel(entry, None, (elf.Segment(base, base, end - base, memoryview(data)[offset : offset + size_bytes]),), 32)
    elf.load(memory, kernel, name)
    return entry, base, end


def write_info(
    memory: GuestMemory, command_line: str, modules: Sequence[Module], kernel_end: int, e820: Sequence[E820Entry], *, text_screen: bool
) -> int:
    """Places modules and boot information; the information's address goes into EBX.  Raises UserError when they do not fit.

    `text_screen` says that a VGA shows its text mode of 80 by 25, which the kernel is told whatever mode it asked for.
    """
    strings = _Strings(memory)
    flags = _HAS_MEMORY | _HAS_CMDLINE | _HAS_MODULES | _HAS_MEMORY_MAP | _HAS_LOADER_NAME
    info = bytearray(_INFO_BYTES)
    upper = next((e for e in e820 if e.base == layout.HIGH_MEMORY_ADDR and e.kind == layout.E820_RAM), None)
    struct.pack_into("<II", info, 4, layout.EBDA_ADDR // 1024, upper.size_bytes // 1024 if upper else 0)
    struct.pack_into("<I", info, 16, strings.put(_encode(command_line)))
    table = b"".join(struct.pack("<IQQI", 20, *entry) for entry in e820)
    struct.pack_into("<II", info, 44, len(table), _TABLES_ADDR)
    modules_addr = _TABLES_ADDR + len(table)
    placed = b"".join(_place_modules(memory, modules, kernel_end, strings, e820))
    struct.pack_into("<II", info, 20, len(modules), modules_addr)
    if modules_addr + len(placed) > _TABLES_END:
        raise UserError(f"{len(modules)} modules do not fit the boot information.", "Give fewer --initrd files.")
    struct.pack_into("<I", info, 64, strings.put(_LOADER_NAME))
    if text_screen:
        flags |= _HAS_FRAMEBUFFER
        struct.pack_into("<QIIIBB", info, 88, _VGA_TEXT_ADDR, 2 * _COLUMNS, _COLUMNS, _ROWS, 16, _FRAMEBUFFER_TEXT)
    struct.pack_into("<I", info, 0, flags)
    memory.write(_TABLES_ADDR, table + placed)
    memory.write(_INFO_ADDR, info)
    return _INFO_ADDR


def _place_modules(
    memory: GuestMemory, modules: Sequence[Module], kernel_end: int, strings: _Strings, e820: Sequence[E820Entry]
) -> list[bytes]:
    """Copies the modules and returns their entries."""
    limit = next((e.end for e in e820 if e.base == layout.HIGH_MEMORY_ADDR and e.kind == layout.E820_RAM), 0)
    entries, next_addr = [], kernel_end
    for module in modules:
        base = -(-next_addr // PAGE_BYTES) * PAGE_BYTES
        next_addr = base + len(module.data)
        if next_addr > limit:
            total = sum(len(m.data) for m in modules)
            raise UserError(
                f"The modules ({format_size(total)}) do not fit beside the kernel into {format_size(memory.size_bytes)} of memory.",
                f"Give the machine more memory, for example --memory {max(128, 2 * (kernel_end + total >> 20))}M.",
            )
        memory.write(base, module.data)
        entries.append(struct.pack("<IIII", base, next_addr, strings.put(_encode(module.text)), 0))
    return entries


class _Strings:
    """Texts that end with a NUL, one after the other."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._next = _STRINGS_ADDR

    def put(self, text: bytes) -> int:
        address = self._next
        if address + len(text) > _STRINGS_END:
            raise UserError(
                "The command line and the modules' names are too long for the boot information.", "Shorten what --append gives."
            )
        self._memory.write(address, text)
        self._next += len(text)
        return address


def _encode(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogateescape")
    if b"\0" in encoded:
        raise UserError("The kernel command line contains a NUL character.", "Remove it from --append.")
    return encoded + b"\0"
