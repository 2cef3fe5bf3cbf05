"""An option ROM by which firmware starts a kernel that the machine was given.

Firmware runs it as a boot entry (BIOS Boot Specification 1.01, "bootstrap entry vector"); its only act is a write to KERNEL_PORT,
upon which the machine loads the kernel and sets the vCPU's registers (`load.load_kernel`).  So a kernel finds a screen that is set up
and a BIOS that can be called.
"""

from __future__ import annotations

import struct

FILE_NAME = "genroms/ringfence-kernel.rom"
BOOT_PATH = "/rom@" + FILE_NAME
KERNEL_PORT = 0x520

_ROM_BYTES = 512
_PNP_AT, _NAME_AT, _ENTRY_AT, _INIT_AT = 0x20, 0x40, 0x60, 0x06
_PNP = struct.Struct("<4sBBHBBIHHBHBHHHHH")  # plug and play expansion header (Plug and Play BIOS Specification 1.0A, 3.2)


def build() -> bytes:
    """The ROM, whose bytes sum up to 0."""
    rom = bytearray(_ROM_BYTES)
    rom[0:3] = b"\x55\xaa" + bytes([_ROM_BYTES // 512])
    rom[3:_INIT_AT] = b"\xeb\x01\x90"  # jmp over the nop
    rom[_INIT_AT] = 0xCB  # retf: nothing to initialise
    struct.pack_into("<H", rom, 0x1A, _PNP_AT)
    # IPL device, may be shared; no boot connection or disconnect vector
    pnp = bytearray(_PNP.pack(b"$PnP", 1, _PNP.size // 16, 0, 0, 0, 0, 0, _NAME_AT, 0, 0, 0x64, 0, 0, _ENTRY_AT, 0, 0))
    pnp[9] = -sum(pnp) & 0xFF
    rom[_PNP_AT : _PNP_AT + len(pnp)] = pnp
    rom[_NAME_AT : _NAME_AT + 17] = b"Ringfence kernel\0"
    # mov dx, KERNEL_PORT; out dx, al; then: cli; hlt; jmp then
    rom[_ENTRY_AT : _ENTRY_AT + 8] = b"\xba" + struct.pack("<H", KERNEL_PORT) + b"\xee\xfa\xf4\xeb\xfc"
    rom[-1] = -sum(rom) & 0xFF
    return bytes(rom)
