"""A made-up console font and what a console draws with it.  (Fonts of others are not kept in this project.)"""

from __future__ import annotations

from typing import Any

import numpy as np

from ringfence.machine.fonts import Font


def own_font(height: int, seed: int = 3) -> tuple[bytes, Font]:
    """Code page 437's 256 glyphs: its blocks as they are everywhere, letters and the rest at random with a blank last column."""
    random = np.random.default_rng(seed)
    table = (random.integers(0, 256, (256, height), dtype=np.uint8) & 0xFE).astype(np.uint8)
    table[:, -3:] = 0
    table[[0, 0x20, 0xFF]] = 0
    half = height // 2
    for code, (upper, lower) in {0xDB: (255, 255), 0xDC: (0, 255), 0xDD: (0xF0, 0xF0), 0xDE: (15, 15), 0xDF: (255, 0)}.items():
        table[code, :half], table[code, half:] = upper, lower
    data = table.tobytes()
    return data, Font.from_table(data, height)


def paint(
    lines: list[str],
    font: Font,
    width: int,
    height: int,
    ink: tuple[int, int, int] = (170, 170, 170),
    paper: tuple[int, int, int] = (0, 0, 0),
    cell: int = 8,
    at: tuple[int, int] = (0, 0),
) -> Any:
    bitmaps = {character: glyph for glyph, character in font.glyphs.items()}
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:] = paper
    for row, line in enumerate(lines):
        for column, character in enumerate(line):
            if character != " ":
                bits = np.unpackbits(np.frombuffer(bitmaps[character], np.uint8)[:, None], axis=1).astype(bool)
                y, x = at[1] + row * font.height, at[0] + column * cell
                picture[y : y + font.height, x : x + 8][bits] = ink
    return picture
