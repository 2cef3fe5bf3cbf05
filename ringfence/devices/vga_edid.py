"""What the monitor tells about itself: VESA Enhanced EDID 1.4, one block of 128 bytes.

A colour monitor without a physical size, digital, whose preferred mode is 1024x768 at 60 Hz.
"""

from __future__ import annotations

import struct

_HEADER = b"\x00\xff\xff\xff\xff\xff\xff\x00"


def _manufacturer(letters: str) -> int:
    """3.4.1: three letters of five bits each, most significant first."""
    return sum((ord(letter) - 64) << 10 - 5 * k for k, letter in enumerate(letters))


def _standard_timing(width: int, ratio: int, hz: int) -> bytes:
    """3.9: `ratio` 0 is 16:10, 1 is 4:3, 2 is 5:4, 3 is 16:9."""
    return bytes((width // 8 - 31, ratio << 6 | hz - 60))


def _detailed_timing() -> bytes:
    """3.10.2: 1024x768 at 60 Hz as VESA DMT has it, both syncs negative."""
    horizontal, horizontal_blank, front, sync = 1024, 320, 24, 136
    vertical, vertical_blank, vertical_front, vertical_sync = 768, 38, 3, 6
    return struct.pack(
        "<H10B5B",
        65_000_000 // 10_000,
        horizontal & 0xFF,
        horizontal_blank & 0xFF,
        horizontal >> 8 << 4 | horizontal_blank >> 8,
        vertical & 0xFF,
        vertical_blank & 0xFF,
        vertical >> 8 << 4 | vertical_blank >> 8,
        front & 0xFF,
        sync & 0xFF,
        (vertical_front & 15) << 4 | vertical_sync & 15,
        front >> 8 << 6 | sync >> 8 << 4 | vertical_front >> 4 << 2 | vertical_sync >> 4,
        0,  # the picture's size in millimetres
        0,
        0,
        0,  # no border
        0,
    ) + bytes((0x18,))


def _descriptor(tag: int, body: bytes) -> bytes:
    return bytes((0, 0, 0, tag, 0)) + body


def _build() -> bytes:
    name = b"Ringfence\n".ljust(13)
    range_limits = bytes((50, 125, 30, 160, 26, 1)) + b"\n" + b" " * 6  # 50-125 Hz, 30-160 kHz, up to 260 MHz, no more
    block = b"".join(
        (
            _HEADER,
            struct.pack(">H", _manufacturer("RFE")),
            struct.pack("<HI", 1, 0),
            bytes((0, 34, 1, 4)),  # week unknown, year 2024, EDID 1.4
            bytes((0xA0, 0, 0, 120, 0x07)),  # digital, 8 bits a colour; gamma 2.2; sRGB, preferred timing is native, any frequency
            bytes((0xEE, 0x91, 0xA3, 0x54, 0x4C, 0x99, 0x26, 0x0F, 0x50, 0x54)),  # the chromaticity of sRGB
            bytes((0x21, 0x08, 0x00)),  # established: 640x480, 800x600, 1024x768 at 60 Hz
            _standard_timing(1280, 1, 60),
            _standard_timing(1280, 2, 60),
            _standard_timing(1280, 0, 60),
            _standard_timing(1440, 0, 60),
            _standard_timing(1600, 1, 60),
            _standard_timing(1920, 3, 60),
            _standard_timing(1920, 0, 60),
            b"\x01\x01",  # unused
            _detailed_timing(),
            _descriptor(0xFD, range_limits),
            _descriptor(0xFC, name),
            _descriptor(0x10, bytes(13)),  # dummy
            b"\x00",  # no extension blocks
        )
    )
    return block + bytes((-sum(block) & 0xFF,))


EDID = _build()
