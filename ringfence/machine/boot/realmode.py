"""Kernel images whose setup code runs in real mode, on top of a BIOS (Linux Documentation/arch/x86/boot.rst, "The Real-Mode Code").

    0x1_0000   boot sector and setup code; heap and stack up to 0x1_e000, command line behind
    0x10_0000  protected-mode code; of an old image that is not "loaded high": 0x1_0000, and the setup code at 0x9_0000

The setup code is entered 0x20 paragraphs after its segment's start, interrupts off, all data segments on that segment.
"""

from __future__ import annotations

import struct

from ringfence.core.errors import UserError
from ringfence.machine.boot import cpu_state, layout
from ringfence.machine.boot.bzimage import BzImage
from ringfence.memory.guest_memory import GuestMemory

_HIGH_BASE, _LOW_BASE = 0x1_0000, 0x9_0000
_HIGH_HEAP_END, _LOW_HEAP_END = 0xE000, 0x9800
_LOW_CODE_ADDR, _LOW_CODE_END = 0x1_0000, 0x9_0000
_STACK_BYTES = 0x200
_CMDLINE_MAX_BYTES = 0x1000 - 1
# Offsets in the setup header
_TYPE_OF_LOADER, _LOADFLAGS, _RAMDISK_IMAGE, _RAMDISK_SIZE, _HEAP_END_PTR, _CMD_LINE_PTR = 0x210, 0x211, 0x218, 0x21C, 0x224, 0x228
_CL_MAGIC, _CL_MAGIC_VALUE = 0x20, 0xA33F  # before protocol 2.02
_CAN_USE_HEAP = 0x80
_LOADER_UNDEFINED = 0xFF


def load(memory: GuestMemory, image: BzImage, command_line: str, initrd: tuple[int, int], name: str) -> tuple[dict[str, int], int]:
    """Copies setup and kernel, fills the header in and returns (registers, entry address).  `initrd` is (address, bytes).

    Raises UserError where that cannot be.
    """
    base, heap_end = (_HIGH_BASE, _HIGH_HEAP_END) if image.loaded_high else (_LOW_BASE, _LOW_HEAP_END)
    text = command_line.encode("utf-8", "surrogateescape")
    limit = min(image.cmdline_size, _CMDLINE_MAX_BYTES)
    if b"\0" in text or len(text) > limit:
        raise UserError(f"The kernel command line must have at most {limit} bytes, none of them NUL.", "Shorten what --append gives.")
    setup = bytearray(image.setup)
    if len(setup) > heap_end - _STACK_BYTES:
        raise UserError(f"The setup code of {name} is too long ({len(setup)} bytes).", "Give another kernel.")
    setup[_TYPE_OF_LOADER] = _LOADER_UNDEFINED
    if image.version >= 0x201:
        setup[_LOADFLAGS] |= _CAN_USE_HEAP
        struct.pack_into("<H", setup, _HEAP_END_PTR, heap_end - _STACK_BYTES)
    if image.version >= 0x202:
        struct.pack_into("<I", setup, _CMD_LINE_PTR, base + heap_end)
    else:
        struct.pack_into("<HH", setup, _CL_MAGIC, _CL_MAGIC_VALUE, heap_end)
    struct.pack_into("<II", setup, _RAMDISK_IMAGE, *initrd)
    memory.write(base, setup)
    memory.write(base + heap_end, text + b"\0")
    if image.loaded_high:
        memory.write(layout.HIGH_MEMORY_ADDR, image.code)
    elif _LOW_CODE_ADDR + len(image.code) > _LOW_CODE_END:
        raise UserError(f"{name} says that it is loaded below 640 KiB, but is too large for that.", "Give another kernel.")
    else:
        memory.write(_LOW_CODE_ADDR, image.code)
    return cpu_state.real_mode(base >> 4, heap_end), base + 0x200
