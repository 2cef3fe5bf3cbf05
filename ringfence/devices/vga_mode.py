"""What the VGA's registers say about the picture: its kind and size, and which memory each line shows.

IBM, "PS/2 Hardware Interface Technical Reference, Video Subsystem" (1992), "CRT controller registers".  A guest may write any
numbers; a picture is never larger than 2048 by 2048 dots.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from ringfence.core.late import LateModule
from ringfence.devices.vga_memory import CHAIN4, GFX_CHAIN_ODD_EVEN, GFX_GRAPHICS, SEQUENTIAL
from ringfence.devices.vga_registers import PALETTE_ADDRESS_SOURCE
from ringfence.devices.vga_state import VgaState, vertical

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    np = LateModule("numpy")  # a machine at whose screen nobody looks does without

MAX_DOTS = 2048
ATTR_MODE, ATTR_PANNING = 0x10, 0x13
ATTR_LINE_GRAPHICS, ATTR_BLINK, ATTR_PANNING_COMPATIBLE = 0x04, 0x08, 0x20
_SCREEN_OFF, _HALF_DOT_CLOCK, _EIGHT_DOTS = 0x20, 0x08, 0x01  # Clocking Mode

Ints: TypeAlias = "NDArray[np.int64]"


class Kind(Enum):
    TEXT = "text"
    PLANAR = "planar"  # a bit of a pixel in each plane
    CGA = "cga"  # two bits of a pixel in a byte
    BYTES = "bytes"  # a byte a pixel, two dots wide


class Shape(NamedTuple):
    """A picture of `cells` characters by `lines` scan lines, each cell `dots` wide, each dot `dot_width` pixels on the screen."""

    kind: Kind
    cells: int
    lines: int
    dots: int
    dot_width: int


class ScanLines(NamedTuple):
    """For each line: the address counter at its begin, the scan line within a character, PEL panning in dots."""

    counters: Ints
    row_scans: Ints
    panning: Ints
    split: int  # the first line below the split, at most the number of lines


def blanked(s: VgaState) -> bool:
    return not s.attr_index & PALETTE_ADDRESS_SOURCE or bool(s.seq[1] & _SCREEN_OFF)


def shape(s: VgaState) -> Shape:
    crtc, gfx, clocking = s.crtc, s.gfx, s.seq[1]
    if not gfx[6] & GFX_GRAPHICS:
        kind = Kind.TEXT
    elif gfx[5] & 0x40:
        kind = Kind.BYTES
    elif gfx[5] & 0x20:
        kind = Kind.CGA
    else:
        kind = Kind.PLANAR
    dots = 9 if kind is Kind.TEXT and not clocking & _EIGHT_DOTS else 8
    dot_width = 2 if clocking & _HALF_DOT_CLOCK else 1
    cells = min(crtc[1] + 1, MAX_DOTS // (dots * dot_width))
    lines = vertical(crtc, 0x12, 1, 6) + 1 << (crtc[0x17] >> 2 & 1)
    return Shape(kind, cells, lines, dots, dot_width)


def row_scan_lines(s: VgaState) -> int:
    """Scan lines of a row of characters, as the beam counts them."""
    return int((s.crtc[9] & 0x1F) + 1 << (s.crtc[9] >> 7))


def start_counter(s: VgaState) -> int:
    return int((s.crtc[0x0C] << 8 | s.crtc[0x0D]) + (s.crtc[8] >> 5 & 3))


def row_pitch(s: VgaState) -> int:
    """What is added to the address counter from one row to the next."""
    return int(2 * s.crtc[0x13])


def split_line(s: VgaState) -> int:
    """The line after Line Compare, at which the address counter starts again from 0."""
    crtc = s.crtc
    compare = crtc[0x18] | (crtc[7] >> 4 & 1) << 8 | (crtc[9] >> 6 & 1) << 9
    return int(compare + 1 << (crtc[0x17] >> 2 & 1))


def scan_lines(s: VgaState, look: Shape) -> ScanLines:
    crtc = s.crtc
    doubled = crtc[9] >> 7
    row_lines = row_scan_lines(s)
    split = min(split_line(s), look.lines)
    y = np.arange(look.lines)
    from_top = y + ((crtc[8] & 0x1F) << doubled)  # Preset Row Scan
    from_split = y - split
    t = np.where(y < split, from_top, from_split)
    row, row_scan = np.divmod(t, row_lines)

    panning = s.attr[ATTR_PANNING] & 0xF
    if look.kind is Kind.TEXT and look.dots == 9:
        panning = panning + 1 if panning < 8 else 0
    elif look.kind is Kind.BYTES:
        panning = (panning & 7) >> 1 << 1  # counts dots, of which a pixel has two
    else:
        panning &= 7
    compatible = bool(s.attr[ATTR_MODE] & ATTR_PANNING_COMPATIBLE)  # the lower part does not move
    below = 0 if compatible else crtc[8] >> 5 & 3
    base = np.where(y < split, start_counter(s), below)
    return ScanLines(base + row * row_pitch(s), row_scan >> doubled, np.where(y < split, panning, 0 if compatible else panning), split)


def plane_offsets(s: VgaState, counters: Ints, row_scans: Any) -> Ints:
    """Offsets within the planes for values of the address counter.

    The counter goes to memory shifted in word and doubleword mode, which skips the bytes that odd/even and chain-4 accesses leave
    unused; vga_memory does not leave them unused, so that the two shifts cancel each other in every standard mode.
    """
    crtc, mode = s.crtc, s.crtc[0x17]
    counters = counters & 0xFFFF
    if crtc[0x14] & 0x40:
        address = counters << 2 & 0xFFFF | counters >> 12 & 3
    elif mode & 0x40:
        address = counters
    else:
        address = counters << 1 & 0xFFFF | counters >> (15 if mode & 0x20 else 13) & 1
    if not mode & 1:  # CGA: odd lines lie 8 KiB further
        address = address & ~0x2000 | (row_scans & 1) << 13
    if not mode & 2:  # Hercules: four groups of lines
        address = address & ~0x4000 | (row_scans >> 1 & 1) << 14
    return address >> _packing(s)


def _packing(s: VgaState) -> int:
    """By how many bits vga_memory shifts the addresses of accesses."""
    if s.seq[4] & CHAIN4:
        return 2
    return 1 if s.gfx[6] & GFX_CHAIN_ODD_EVEN and not s.seq[4] & SEQUENTIAL else 0


def columns(s: VgaState, cells: int) -> Ints:
    """What the address counter has moved on by in each character of a line."""
    slow = 2 if s.crtc[0x14] & 0x20 else s.crtc[0x17] >> 3 & 1
    return np.arange(cells) >> slow
