"""Console fonts: found in a guest's memory, or read from the files that consoles load.

No font is kept here.  The PC's fonts are found in the guest itself, in the VGA BIOS or in the kernel: code page 437 has five
block characters in a row (0xDB to 0xDF: full, lower, left, right, upper) whose bitmaps nothing else looks like.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

HEIGHTS = (16, 14, 8)
UNKNOWN = "\ufffd"
CURSOR_ROWS = 3
"""At the foot of a cell: what a cursor may cover."""
_CONTROLS = "\0☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼"
CODE_PAGE_437 = _CONTROLS + bytes(range(32, 127)).decode("ascii") + "⌂" + bytes(range(128, 256)).decode("cp437")
_FULL, _LEFT = 0xDB, 0xDD
_MOST_FONTS = 8  # of one height in one piece of memory
_MOST_HEIGHT, _MOST_GLYPHS = 64, 65536


@dataclass(frozen=True)
class Font:
    """Glyphs of 8 pixels by `height`: a byte a row, the leftmost pixel its highest bit.

    `tops` are the glyphs without their last rows, as far as those tell them apart.
    """

    height: int
    glyphs: dict[bytes, str]
    tops: dict[bytes, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        tops: dict[bytes, str] = {}
        doubtful = set()
        for glyph, character in self.glyphs.items():
            top = glyph[:-CURSOR_ROWS]
            if len(set(top)) < 2:  # too little to tell
                continue
            if tops.setdefault(top, character) != character:
                doubtful.add(top)
        object.__setattr__(self, "tops", {top: character for top, character in tops.items() if top not in doubtful})

    @classmethod
    def of(cls, height: int, glyphs: Iterable[tuple[bytes, str]]) -> Font:
        """Of glyphs that look alike an ASCII one counts, then the first."""
        chosen: dict[bytes, str] = {}
        for bitmap, character in sorted(glyphs, key=lambda pair: not pair[1].isascii() or not pair[1].isprintable()):
            if len(bitmap) == height and any(bitmap):
                chosen.setdefault(bitmap, character)
        return cls(height, chosen)

    @classmethod
    def from_table(cls, table: bytes, height: int, characters: Sequence[str] = CODE_PAGE_437) -> Font:
        """A table of bitmaps in the order of `characters`."""
        return cls.of(height, [(table[n * height : (n + 1) * height], character) for n, character in enumerate(characters)])

    @classmethod
    def merged(cls, fonts: Iterable[Font]) -> list[Font]:
        """One font for each height, with every glyph of those given; the first to have a glyph names it."""
        together: dict[int, dict[bytes, str]] = {}
        for font in fonts:
            glyphs = together.setdefault(font.height, {})
            for bitmap, character in font.glyphs.items():
                glyphs.setdefault(bitmap, character)
        return [cls(height, glyphs) for height, glyphs in together.items()]

    @classmethod
    def from_psf(cls, data: bytes) -> Font:
        """A console font of Linux's kbd (PSF 1 or 2, unpacked) of 8 pixels width; raises ValueError."""
        if data[:2] == b"\x36\x04" and len(data) >= 4:
            mode, height = data[2], data[3]
            count, start, unicode = 512 if mode & 1 else 256, 4, bool(mode & 2)
            separator, sequence, width = b"\xff\xff", b"\xfe\xff", 2
        elif data[:4] == b"\x72\xb5\x4a\x86" and len(data) >= 32:
            _, start, flags, count, size, height, columns = struct.unpack_from("<7I", data, 4)
            if columns != 8 or size != height or not 0 < height <= _MOST_HEIGHT or count > _MOST_GLYPHS:
                raise ValueError("only fonts of 8 pixels width can be read")
            unicode, separator, sequence, width = bool(flags & 1), b"\xff", b"\xfe", 1
        else:
            raise ValueError("not a PSF font")
        end = start + count * height
        if not unicode:
            return cls.from_table(data[start:end], height)
        characters, rest = [], data[end:]
        for _ in range(count):
            here, rest = _until(rest, separator, width)
            first = _until(here, sequence, width)[0]
            text = first.decode("utf-16-le" if width == 2 else "utf-8", "ignore")
            characters.append(next((c for c in text if 0x20 <= ord(c) < 0x7F), text[:1] or UNKNOWN))
        return cls.from_table(data[start:end], height, characters)

    @classmethod
    def from_bgf(cls, data: bytes) -> Font:
        """A font of the terminal bterm, which Debian's installer uses (BOGL's format, made on a 32- or 64-bit machine); its wide
        glyphs are left out.  Raises ValueError."""
        try:
            if data[:4] != b"BGF1":
                raise ValueError("not a font of bterm")
            layout = "<QIIQQQ" if data[8:12] == bytes(4) else "<6I"
            _, height, mask, heads, chains, rows = struct.unpack_from(layout, data, 4)
            if not 0 < height <= _MOST_HEIGHT or mask & mask + 1 or mask > 0xFFFF:
                raise ValueError("a damaged font of bterm")
            return cls.of(height, _bgf_glyphs(data, height, mask, heads, chains, rows))
        except struct.error as error:
            raise ValueError("a damaged font of bterm") from error


def _bgf_glyphs(data: bytes, height: int, mask: int, heads: int, chains: int, rows: int) -> Iterator[tuple[bytes, str]]:
    """Characters with the same low bits (`mask`) are in one chain of pairs: high bits and width, place of the bitmap."""
    left = _MOST_GLYPHS
    for low, place in enumerate(struct.unpack_from(f"<{mask + 1}I", data, heads)):
        while left > 0:
            left -= 1
            key, bitmap = struct.unpack_from("<2I", data, chains + 4 * place)
            place += 2
            if not key:
                break
            if key & mask == 8 and key & ~mask | low < 0x110000:
                words = struct.unpack_from(f"<{height}I", data, rows + 4 * bitmap)
                yield bytes(word >> 24 for word in words), chr(key & ~mask | low)


def _until(data: bytes, mark: bytes, width: int) -> tuple[bytes, bytes]:
    """What is before and behind the first mark, which stands at a multiple of `width`."""
    at = data.find(mark)
    while at >= 0 and at % width:
        at = data.find(mark, at + 1)
    return (data, b"") if at < 0 else (data[:at], data[at + width :])


# -- fonts in a guest's memory


def find_fonts(data: bytes | memoryview, heights: Sequence[int] = HEIGHTS, aligned: bool = False) -> list[Font]:
    """Fonts of code page 437 in a piece of memory.  With `aligned` they begin at multiples of 8 bytes (as compilers put them),
    which can be searched for in hundreds of megabytes."""
    found = []
    for height in heights:
        tables: list[bytes] = []
        for start in _left_blocks(data, height) if aligned else _left_blocks_anywhere(bytes(data), height):
            table = bytes(data[max(start - _LEFT * height, 0) : start + (256 - _LEFT) * height])
            if start >= _LEFT * height and table not in tables and _is_font(table, height):
                tables.append(table)
                if len(tables) == _MOST_FONTS:
                    break
        found += [Font.from_table(table, height) for table in tables]
    return found


def _left_blocks_anywhere(data: bytes, height: int) -> Iterator[int]:
    pattern = b"\xf0" * height + b"\x0f" * height
    at = data.find(pattern)
    while at >= 0:
        yield at
        at = data.find(pattern, at + 1)


def _left_blocks(data: bytes | memoryview, height: int) -> Iterator[int]:
    """As numbers of eight bytes, whose search neither copies nor holds the interpreter."""
    if height % 8:
        return
    words = np.frombuffer(data, np.uint64, len(data) // 8)
    step = 1 << 20
    for begin in range(0, len(words), step):
        for index in np.flatnonzero(words[begin : begin + step] == 0xF0F0_F0F0_F0F0_F0F0).tolist():
            at = (begin + index) * 8
            if bytes(data[at : at + 2 * height]) == b"\xf0" * height + b"\x0f" * height:
                yield at


def _is_font(table: bytes, height: int) -> bool:
    def glyph(code: int) -> bytes:
        return table[code * height : (code + 1) * height]

    blocks = glyph(_FULL) == b"\xff" * height and glyph(_LEFT) == b"\xf0" * height and glyph(_LEFT + 1) == b"\x0f" * height
    empty = not any(glyph(0x20)) and not any(glyph(0))
    letters = [glyph(code) for code in b"AEHIOTXaeox0"]
    return len(table) == 256 * height and blocks and empty and all(map(any, letters)) and len(set(letters)) == len(letters)
