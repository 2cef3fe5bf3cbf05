"""Register values of the VGA BIOS's standard modes (IBM, "PS/2 and PC BIOS Interface Technical Reference"), for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

Out = Callable[[int, int], None]


class Mode(NamedTuple):
    misc: int
    seq: str  # from Clocking Mode on
    crtc: str
    gfx: str
    attr: str


_TEXT_COLORS = "00 01 02 03 04 05 14 07 38 39 3a 3b 3c 3d 3e 3f"
_GAME_COLORS = "00 01 02 03 04 05 06 07 10 11 12 13 14 15 16 17"
_400 = "bf 1f 00"
_END400 = "9c 8e 8f"
_VGA256 = "00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f 41 00 0f 00 00"

MODES = {
    "40x25": Mode(
        0x67,
        "08 03 00 02",
        f"2d 27 28 90 2b a0 {_400} 4f 0d 0e 00 00 00 00 {_END400} 14 1f 96 b9 a3 ff",
        "00 00 00 00 00 10 0e 00 ff",
        f"{_TEXT_COLORS} 0c 00 0f 08 00",
    ),
    "80x25": Mode(
        0x67,
        "00 03 00 02",
        f"5f 4f 50 82 55 81 {_400} 4f 0d 0e 00 00 00 00 {_END400} 28 1f 96 b9 a3 ff",
        "00 00 00 00 00 10 0e 00 ff",
        f"{_TEXT_COLORS} 0c 00 0f 08 00",
    ),
    "mono": Mode(
        0x66,
        "00 03 00 02",
        f"5f 4f 50 82 55 81 {_400} 4f 0d 0e 00 00 00 00 {_END400} 28 0d 96 b9 a3 ff",
        "00 00 00 00 00 10 0a 00 ff",
        "00 08 08 08 08 08 08 08 10 18 18 18 18 18 18 18 0e 00 0f 08 00",
    ),
    "cga4": Mode(
        0x63,
        "09 03 00 02",
        f"2d 27 28 90 2b 80 {_400} c1 00 00 00 00 00 00 {_END400} 14 00 96 b9 a2 ff",
        "00 00 00 00 00 30 0f 00 ff",
        "00 13 15 17 02 04 06 07 10 11 12 13 14 15 16 17 01 00 03 00 00",
    ),
    "cga2": Mode(
        0x63,
        "01 01 00 06",
        f"5f 4f 50 82 54 80 {_400} c1 00 00 00 00 00 00 {_END400} 28 00 96 b9 c2 ff",
        "00 00 00 00 00 00 0d 00 ff",
        "00 17 17 17 17 17 17 17 17 17 17 17 17 17 17 17 01 00 01 00 00",
    ),
    "320x200x16": Mode(
        0x63,
        "09 0f 00 06",
        f"2d 27 28 90 2b 80 {_400} c0 00 00 00 00 00 00 {_END400} 14 00 96 b9 e3 ff",
        "00 00 00 00 00 00 05 0f ff",
        f"{_GAME_COLORS} 01 00 0f 00 00",
    ),
    "640x480x16": Mode(
        0xE3,
        "01 0f 00 06",
        "5f 4f 50 82 54 80 0b 3e 00 40 00 00 00 00 00 00 ea 8c df 28 00 e7 04 e3 ff",
        "00 00 00 00 00 00 05 0f ff",
        f"{_TEXT_COLORS} 01 00 0f 00 00",
    ),
    "320x200x256": Mode(
        0x63,
        "01 0f 00 0e",
        f"5f 4f 50 82 54 80 {_400} 41 00 00 00 00 00 00 {_END400} 28 40 96 b9 a3 ff",
        "00 00 00 00 00 40 05 0f ff",
        _VGA256,
    ),
    "320x240x256": Mode(  # "mode X": planes, square pixels
        0xE3,
        "01 0f 00 06",
        "5f 4f 50 82 54 80 0d 3e 00 41 00 00 00 00 00 00 ea 2c df 28 00 e7 06 e3 ff",
        "00 00 00 00 00 40 05 0f ff",
        _VGA256,
    ),
}


def set_mode(out: Out, read: Callable[[int], int], name: str) -> None:
    """Programs a mode as the BIOS does; `out(port, byte)`."""
    mode = MODES[name]
    crtc_port = 0x3D4 if mode.misc & 1 else 0x3B4
    out(0x3C4, 0), out(0x3C5, 1)
    out(0x3C2, mode.misc)
    for index, value in enumerate(bytes.fromhex(mode.seq), 1):
        out(0x3C4, index), out(0x3C5, value)
    out(0x3C4, 0), out(0x3C5, 3)
    out(crtc_port, 0x11), out(crtc_port + 1, 0)
    for index, value in enumerate(bytes.fromhex(mode.crtc)):
        out(crtc_port, index), out(crtc_port + 1, value)
    for index, value in enumerate(bytes.fromhex(mode.gfx)):
        out(0x3CE, index), out(0x3CF, value)
    read(crtc_port + 6)
    for index, value in enumerate(bytes.fromhex(mode.attr)):
        out(0x3C0, index), out(0x3C0, value)
    out(0x3C0, 0x20)


def set_dac(out: Out, colors: bytes) -> None:
    """768 bytes of six bits."""
    out(0x3C6, 0xFF), out(0x3C8, 0)
    for value in colors:
        out(0x3C9, value)
