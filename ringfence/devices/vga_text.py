"""Text modes: characters with attributes in planes 0 and 1, fonts in plane 2.

IBM, "PS/2 Hardware Interface Technical Reference, Video Subsystem" (1992): "Attribute controller", "Character map select".
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ringfence.backends.api import Frame, TextScreen
from ringfence.devices.vga_memory import VgaMemory
from ringfence.devices.vga_mode import (
    ATTR_BLINK,
    ATTR_LINE_GRAPHICS,
    ATTR_MODE,
    Ints,
    Shape,
    columns,
    plane_offsets,
    row_pitch,
    row_scan_lines,
    scan_lines,
    split_line,
    start_counter,
)
from ringfence.devices.vga_palette import attribute_lut, look_up
from ringfence.devices.vga_render import SPREAD1, frame_of, panned
from ringfence.devices.vga_state import VgaState

# Code page 437 as the screen shows it: pictures instead of control codes, and blanks that can be searched for
_CODES = " ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼" + bytes(range(0x20, 0x7F)).decode() + "⌂" + bytes(range(0x80, 0xFF)).decode("cp437") + " "
_CURSOR_OFF = 0x20  # Cursor Start
_CURSOR_BLINK_FRAMES, _CHARACTER_BLINK_FRAMES = 8, 16  # the two halves of a period each
_ONES = np.uint64(0x0101010101010101)


def _cursor_cell(s: VgaState) -> int:
    """The address counter's value where the cursor is."""
    return int((s.crtc[0x0E] << 8 | s.crtc[0x0F]) + (s.crtc[0x0B] >> 5 & 3) & 0xFFFF)


def _fonts(s: VgaState, memory: VgaMemory) -> NDArray[np.uint8]:
    """512 glyphs of 32 bytes: those of attributes with bit 3 clear (map B), then those with it set (map A)."""
    select = s.seq[3]
    numbers = (select & 3 | select >> 2 & 4, select >> 2 & 3 | select >> 3 & 4)
    # maps 0-3 lie 16 KiB apart, 4-7 8 KiB behind them
    return np.concatenate([memory.plane2(0x4000 * (n & 3) + 0x2000 * (n >> 2), 0x2000) for n in numbers]).reshape(512, 32)


def _cells(s: VgaState, memory: VgaMemory, counters: Ints) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Characters and attributes at values of the address counter."""
    quads = memory.quads(plane_offsets(s, counters, 0))
    return (quads & 0xFF).astype(np.uint8), (quads >> 8 & 0xFF).astype(np.uint8)


def render(s: VgaState, memory: VgaMemory, look: Shape, frames: int) -> Frame:
    """`frames` is the number of pictures since some point in time: it makes things blink."""
    lines = scan_lines(s, look)
    row_scans = lines.row_scans[:, None]
    starts, row_of_line = np.unique(lines.counters, return_inverse=True)
    counters: Ints = starts[:, None] + columns(s, look.cells + 1)
    characters, attributes = _cells(s, memory, counters)

    foreground, background = attributes & 15, attributes >> 4
    if s.attr[ATTR_MODE] & ATTR_BLINK:
        hidden = background >> 3 if frames // _CHARACTER_BLINK_FRAMES & 1 else np.zeros_like(background)
        background = background & 7
        foreground = np.where(hidden, background, foreground)

    # 64-bit words from here on: eight dots of a cell, 0 or 1 a byte
    glyphs = characters + ((attributes >> 3 & 1).astype(np.int64) << 8)
    dots = SPREAD1[_fonts(s, memory)[glyphs[row_of_line], row_scans]]
    filled = _filled(s, attributes, counters, row_of_line, row_scans, frames)
    if filled is not None:
        dots[filled] = _ONES
    # times the difference of two colours: products stay below 16, so no byte carries into the next
    difference = (foreground ^ background).astype(np.uint64)[row_of_line]
    pixels = (dots * difference ^ (background.astype(np.uint64) * _ONES)[row_of_line]).view(np.uint8)
    if look.dots == 9:
        height, cells = len(row_of_line), look.cells + 1
        wide = np.empty((height, cells, 9), np.uint8)
        wide[..., :8] = pixels.reshape(height, cells, 8)
        wide[..., 8] = background[row_of_line]
        if s.attr[ATTR_MODE] & ATTR_LINE_GRAPHICS:
            joined = ((characters >= 0xC0) & (characters < 0xE0))[row_of_line]
            wide[..., 8][joined] = wide[..., 7][joined]
        if filled is not None:
            wide[..., 8][filled] = wide[..., 7][filled]
        pixels = wide.reshape(height, 9 * cells)
    shown = panned(pixels, lines.panning, lines.split, look.cells * look.dots)
    if look.dot_width > 1:
        shown = np.repeat(shown, look.dot_width, axis=1)
    return frame_of(look_up(attribute_lut(s), shown))


def _filled(
    s: VgaState, attributes: NDArray[np.uint8], counters: Ints, row_of_line: Any, row_scans: Ints, frames: int
) -> NDArray[np.bool_] | None:
    """The cells of each line that the cursor or an underline fills; None when there are none."""
    filled: NDArray[np.bool_] | None = None
    underlined = attributes & 7 == 1
    if underlined.any():
        filled = underlined[row_of_line] & (row_scans == s.crtc[0x14] & 0x1F)
    start, end = s.crtc[0x0A], s.crtc[0x0B] & 0x1F
    if not (start & _CURSOR_OFF or start & 0x1F > end or frames // _CURSOR_BLINK_FRAMES & 1):
        here = counters & 0xFFFF == _cursor_cell(s)
        if here.any():
            cursor: NDArray[np.bool_] = here[row_of_line] & (row_scans >= start & 0x1F) & (row_scans <= end)
            filled = cursor if filled is None else filled | cursor
    return filled


def text(s: VgaState, memory: VgaMemory, look: Shape) -> TextScreen:
    """The characters on the screen; a row of which only the upper part is seen counts."""
    row_lines = row_scan_lines(s)
    split = split_line(s)
    above = -(-min(split, look.lines) // row_lines)
    below = -(-max(look.lines - split, 0) // row_lines)
    starts = np.concatenate((start_counter(s) + np.arange(above) * row_pitch(s), np.arange(below) * row_pitch(s)))
    counters: Ints = (starts[:, None] + columns(s, look.cells)) & 0xFFFF
    characters, attributes = _cells(s, memory, counters)
    cursor = None
    if not s.crtc[0x0A] & _CURSOR_OFF and s.crtc[0x0A] & 0x1F <= s.crtc[0x0B] & 0x1F:
        found = np.argwhere(counters == _cursor_cell(s))
        if len(found):
            cursor = int(found[0][1]), int(found[0][0])
    lines = tuple("".join([_CODES[c] for c in row]) for row in characters.tolist())
    return TextScreen(look.cells, len(lines), lines, cursor, attributes.tobytes())
