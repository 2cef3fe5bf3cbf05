"""A guest's screen as a terminal's control sequences (ECMA-48, with xterm's colours): text as text, graphics in half blocks.

A painter remembers what each line of the terminal shows and writes the lines that change.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ringfence.backends.api import Frame, TextScreen
from ringfence.backends.display.pixels import Rgb, as_array

ENTER = "\x1b[?1049h\x1b[2J"  # the alternate screen keeps what was there before
LEAVE = "\x1b[0m\x1b[?25h\x1b[?1049l"
_ANSI = (0, 4, 2, 6, 1, 5, 3, 7)  # the VGA's colours count blue first, a terminal's red
_UPPER_HALF = "▀"
_BLINK = 0x80


class Painter:
    """`size` is the terminal's columns and rows.  With `many_colors` it knows colours of 24 bits, else 256."""

    def __init__(self, many_colors: bool) -> None:
        self._many_colors = many_colors
        self._size = (0, 0)
        self._lines: list[str] = []
        self._cursor: str | None = None

    def paint(self, seen: TextScreen | Frame, size: tuple[int, int], note: str = "") -> str:
        """What to write so that the terminal shows it; "" when it does already.  `note` covers the last line."""
        out = []
        if size != self._size:
            self._size, self._lines, self._cursor = size, [""] * size[1], None
            out.append("\x1b[0m\x1b[2J")
        columns, rows = size
        cursor = "\x1b[?25l"
        if isinstance(seen, TextScreen):
            left, top = _window(seen, columns, rows)
            lines = [_text_line(seen, row, left, columns) for row in range(top, min(seen.rows, top + rows))]
            if seen.cursor is not None and not note:
                x, y = seen.cursor[0] - left, seen.cursor[1] - top
                if 0 <= x < columns and 0 <= y < rows:
                    cursor = f"\x1b[{y + 1};{x + 1}H\x1b[?25h"
        else:
            lines = self._picture_lines(seen, columns, rows)
        lines += [""] * (rows - len(lines))
        if note:
            lines[rows - 1] = f"\x1b[0;7m{note[:columns].ljust(columns)}"
        changed = [row for row in range(rows) if lines[row] != self._lines[row]]
        # The last column's autowrap must not scroll; \x1b[K clears what a shorter line leaves.
        out += [f"\x1b[{row + 1};1H\x1b[0m\x1b[K{lines[row]}" for row in changed]
        if out or cursor != self._cursor:
            out.append("\x1b[0m" + cursor)
        self._lines, self._cursor = lines, cursor
        return "".join(out)

    def _picture_lines(self, frame: Frame, columns: int, rows: int) -> list[str]:
        """Two pixels a character, one above the other, as many as fit in the picture's proportions."""
        if not frame.width or not frame.height:
            return []
        scale = min(columns / frame.width, 2 * rows / frame.height)
        width = max(1, min(columns, round(frame.width * scale)))
        height = max(2, min(2 * rows, round(frame.height * scale)) & ~1)
        small = _scaled(as_array(frame), width, height)
        if not self._many_colors:
            small = _to_256(small)
        return [self._picture_line(small[2 * row].tolist(), small[2 * row + 1].tolist()) for row in range(height // 2)]

    def _picture_line(self, upper: list[list[int]], lower: list[list[int]]) -> str:
        parts = []
        before: tuple[list[int], list[int]] | None = None
        for top, bottom in zip(upper, lower, strict=True):
            if (top, bottom) != before:
                parts.append(f"\x1b[{self._color(38, top)};{self._color(48, bottom)}m")
                before = (top, bottom)
            parts.append(_UPPER_HALF)
        return "".join(parts)

    def _color(self, which: int, color: list[int]) -> str:
        if self._many_colors:
            return f"{which};2;{color[0]};{color[1]};{color[2]}"
        return f"{which};5;{color[0]}"


def _window(seen: TextScreen, columns: int, rows: int) -> tuple[int, int]:
    """The part of a screen that a smaller terminal shows: where the cursor is."""
    x, y = seen.cursor or (0, 0)
    left = min(max(0, x - columns + 1), max(0, seen.columns - columns))
    return left, min(max(0, y - rows + 1), max(0, seen.rows - rows))


def _text_line(seen: TextScreen, row: int, left: int, columns: int) -> str:
    attributes = seen.attributes[row * seen.columns + left : row * seen.columns + min(seen.columns, left + columns)]
    text = seen.lines[row][left : left + columns]
    parts = []
    before = None
    for character, attribute in zip(text, attributes, strict=False):
        if attribute != before:
            parts.append(_attribute(attribute))
            before = attribute
        parts.append(character if character.isprintable() else " ")  # a guest says nothing to the terminal itself
    return "".join(parts)


def _attribute(value: int) -> str:
    blink = ";5" if value & _BLINK else ""
    return f"\x1b[0;{(90 if value & 8 else 30) + _ANSI[value & 7]};{40 + _ANSI[value >> 4 & 7]}{blink}m"


def _scaled(picture: Rgb, width: int, height: int) -> Rgb:
    """Each new pixel is the mean of the old ones that it covers (or the nearest one, where it is smaller than they)."""

    def edges(count: int, into: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        all_edges = np.arange(into + 1) * count // into
        return all_edges[:-1], np.maximum(np.diff(all_edges), 1)

    rows, row_counts = edges(picture.shape[0], height)
    columns, column_counts = edges(picture.shape[1], width)
    sums = np.add.reduceat(np.add.reduceat(picture.astype(np.uint32), rows, axis=0), columns, axis=1)
    mean: Rgb = (sums // (row_counts[:, None, None] * column_counts[None, :, None])).astype(np.uint8)
    return mean


def _to_256(picture: Rgb) -> Rgb:
    """Places in xterm's cube of 6 x 6 x 6 colours, which begins at 16; a single channel."""
    sixths = (picture.astype(np.uint16) * 5 + 127) // 255
    return (16 + sixths[..., 0:1] * 36 + sixths[..., 1:2] * 6 + sixths[..., 2:3]).astype(np.uint8)
