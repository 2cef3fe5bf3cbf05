"""Reads the text of a screen in a graphics mode: what a console drew with a font of the PC is recognised, glyph by glyph.

Linux's frame buffer console, boot loaders and installers draw text in cells of 8 pixels by the font's height with two colours
each.  A cell's pixels are looked up in fonts, as they are and inverted; a cursor may cover a cell's last rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ringfence.backends.api import Frame
from ringfence.machine.fonts import CURSOR_ROWS, UNKNOWN, Font

_LEAST_GLYPHS = 4  # fewer known glyphs are chance
_LEAST_SHARE = 0.3  # of the cells that are not empty
_INKS = 64  # colours in which text over a picture is looked for
_COLORS = 3  # backgrounds that are tried in the search for an offset
_INK_SHARE = 0.003  # of what the commonest colour has
_BACKGROUND_SHARE = 0.1  # of the pixels
_SEARCH_SHARE = 0.1  # of the time may go into such searches


class _Grid(NamedTuple):
    font: Font
    width: int  # of a cell: 8, or 9 where the VGA adds a column
    x: int
    y: int


class GlyphReader:
    """Reads screens with the fonts it has; it remembers where the cells were last time."""

    def __init__(self, fonts: Sequence[Font]) -> None:
        self.fonts = tuple(fonts)
        self._grid: _Grid | None = None
        self._frame: Frame | None = None
        self._text: str | None = None
        self._search_after = 0.0

    def use(self, fonts: Sequence[Font]) -> None:
        """Reads with these fonts from now on."""
        if tuple(map(id, fonts)) != tuple(map(id, self.fonts)):
            self.fonts, self._frame, self._search_after = tuple(fonts), None, 0.0

    def read(self, frame: Frame) -> str | None:
        """Lines of text without blanks at their ends; `UNKNOWN` stands for what no font has.  None: there is no text."""
        if frame != self._frame:
            self._frame, self._text = frame, self._read(frame)
        return self._text

    def _read(self, frame: Frame) -> str | None:
        rgb = np.frombuffer(frame.rgb, np.uint8).reshape(frame.height, frame.width, 3).astype(np.uint32)
        pixels: NDArray[np.uint32] = rgb[..., 0] << np.uint32(16) | rgb[..., 1] << np.uint32(8) | rgb[..., 2]
        if frame.width % 2 == 0 and frame.height % 2 == 0 and _doubled(pixels):
            pixels = pixels[::2, ::2]
        grids = [_Grid(font, width, 0, 0) for font in self.fonts for width in (8, 9)]
        if self._grid is not None and self._grid.font in self.fonts:
            grids.insert(0, self._grid)
        for grid in grids:
            if (text := _cells(pixels, grid)) is not None:
                self._grid = grid
                return text
        now = time.monotonic()
        if now < self._search_after:
            return None
        moved = self._search(pixels)
        took = time.monotonic() - now
        self._search_after = now + took / _SEARCH_SHARE
        if moved is None:
            return None
        self._grid = moved
        return _cells(pixels, moved)

    def _search(self, pixels: NDArray[np.uint32]) -> _Grid | None:
        """Where the cells begin when not in the corner."""
        colors, counts = np.unique(pixels[::2, ::2], return_counts=True)
        order = np.argsort(counts)[::-1]
        common = colors[counts >= counts.max() * _INK_SHARE]
        light = (common >> 16) + (common >> 8 & 255) + (common & 255)
        # Over a picture the ink is known instead of the background: what stands out is the lightest or the darkest.
        inks = [int(common[light.argmax()]), int(common[light.argmin()])]
        flat = order[:_COLORS][counts[order[:_COLORS]] > counts.sum() * _BACKGROUND_SHARE]
        for font in self.fonts:
            for number, color in enumerate([*colors[flat].tolist(), *inks]):
                ink = pixels != color if number < len(flat) else pixels == color
                if (offset := _offset(ink, font)) is not None:
                    return _Grid(font, 8, *offset)
        return None


def _doubled(pixels: NDArray[np.uint32]) -> bool:
    return bool((pixels[::2] == pixels[1::2]).all() and (pixels[:, ::2] == pixels[:, 1::2]).all())


def _cells(pixels: NDArray[np.uint32], grid: _Grid) -> str | None:
    """The text of a grid of cells; None when that is not what the picture shows."""
    font, width = grid.font, grid.width
    rows, columns = (pixels.shape[0] - grid.y) // font.height, (pixels.shape[1] - grid.x) // width
    if rows < 1 or columns < 1:
        return None
    area = pixels[grid.y : grid.y + rows * font.height, grid.x : grid.x + columns * width]
    cells = area.reshape(rows, font.height, columns, width).transpose(0, 2, 1, 3)[..., :8]
    low, high = cells.min(axis=(2, 3)), cells.max(axis=(2, 3))
    set_pixels = cells == high[..., None, None]
    two_colors = (set_pixels | (cells == low[..., None, None])).all(axis=(2, 3))
    bits = np.packbits(set_pixels, axis=3)[..., 0]
    over_picture = _over_picture(cells, (low != high) & ~two_colors, font)
    lines, known, seen = [], len(over_picture), len(over_picture)
    for row in range(rows):
        line = []
        for column in range(columns):
            if low[row, column] == high[row, column]:
                line.append(" ")
                continue
            if not two_colors[row, column]:
                line.append(over_picture.get((row, column), " "))
                continue
            character, sure = _recognise(bits[row, column], font)
            if over_picture and character == UNKNOWN:
                character = " "  # the picture
            else:
                seen += 1
            known += sure
            line.append(character)
        lines.append("".join(line).rstrip())
    if known < _LEAST_GLYPHS or known < seen * _LEAST_SHARE:
        return None
    return "\n".join(lines)


def _over_picture(cells: NDArray[np.uint32], which: NDArray[np.bool_], font: Font) -> dict[tuple[int, int], str]:
    """Boot menus write over pictures: glyphs in one of the commonest colours of the cells that have many, by row and column."""
    found: dict[tuple[int, int], str] = {}
    places = np.argwhere(which).tolist()
    if not places:
        return found
    wanted = _hashed(_bitmaps(font, str.isascii))
    parts = cells[which]
    colors, counts = np.unique(parts[:, ::3, ::2], return_counts=True)
    for color in colors[np.argsort(counts)[::-1][:_INKS]].tolist():
        bits = np.packbits(parts == color, axis=2)[..., 0]
        for number in np.flatnonzero(np.isin(_hashed(bits), wanted)).tolist():
            row, column = places[number]
            if (character := font.glyphs.get(bits[number].tobytes())) is not None:  # two bitmaps may have one number
                found.setdefault((row, column), character)
    return found


def _hashed(bitmaps: NDArray[Any]) -> NDArray[np.uint64]:
    """One number for each bitmap of rows, as good as different for different ones."""
    hashes: NDArray[np.uint64] = (bitmaps.astype(np.uint64) * _factors(bitmaps.shape[1])).sum(axis=1, dtype=np.uint64)
    return hashes


def _factors(height: int) -> NDArray[np.uint64]:
    return np.random.default_rng(1).integers(1, 1 << 63, height, dtype=np.uint64) | np.uint64(1)


def _bitmaps(font: Font, wanted: Callable[[str], bool]) -> NDArray[np.uint8]:
    """Of the characters that are wanted."""
    return np.array([list(glyph) for glyph, character in font.glyphs.items() if wanted(character)], np.uint8).reshape(-1, font.height)


def _recognise(bits: NDArray[np.uint8], font: Font) -> tuple[str, bool]:
    """A cell's character, and whether that is beyond doubt."""
    plain, inverse = bits.tobytes(), (~bits).tobytes()
    character = font.glyphs.get(plain) or font.glyphs.get(inverse)
    if character is not None:
        return character, character.isascii()
    # The last rows may be a cursor's.
    top, inverse_top = plain[:-CURSOR_ROWS], inverse[:-CURSOR_ROWS]
    if not any(top) or not any(inverse_top):
        return " ", False
    return font.tops.get(top) or font.tops.get(inverse_top) or UNKNOWN, False


def _offset(ink: NDArray[np.bool_], font: Font) -> tuple[int, int] | None:
    """Looks for letters at every pixel: each place's 8 x height pixels as one hashed number."""
    height = font.height
    if ink.shape[0] < height or ink.shape[1] < 8:
        return None
    columns = ink.shape[1] - 7
    rows = np.zeros((ink.shape[0], columns), np.uint64)
    for bit in range(8):
        rows |= ink[:, bit : bit + columns].astype(np.uint64) << np.uint64(7 - bit)
    factors = _factors(height)
    places = ink.shape[0] - height + 1
    hashes: NDArray[Any] = np.zeros((places, columns), np.uint64)
    for row in range(height):
        hashes += rows[row : row + places] * factors[row]
    y, x = np.nonzero(np.isin(hashes, _hashed(_bitmaps(font, str.isalnum))))
    if len(x) < _LEAST_GLYPHS:
        return None
    votes = np.bincount((y % height) * 8 + x % 8, minlength=8 * height)
    best = int(votes.argmax())
    return (best % 8, best // 8) if votes[best] >= _LEAST_GLYPHS else None
