"""Text read off pictures that a console drew with a font."""

from __future__ import annotations

import struct
import time
from typing import Any

import numpy as np
import pytest

from ringfence.backends.api import Frame
from ringfence.machine.fonts import CODE_PAGE_437, HEIGHTS, UNKNOWN, Font, find_fonts
from ringfence.machine.glyphs import GlyphReader
from tests.unit.machine.glyph_painter import own_font, paint

LINES = ["Hello, world! 0123456789", "", "  The quick brown fox", "~ # ls /dev | grep ttyS0"]
TEXT = "\n".join(LINES)
GREY, BLACK, BLUE, WHITE = (170, 170, 170), (0, 0, 0), (0, 0, 170), (255, 255, 255)


def frame(picture: Any) -> Frame:
    return Frame(picture.shape[1], picture.shape[0], picture.tobytes())


def read(picture: Any, *fonts: Font) -> str | None:
    text = GlyphReader(fonts).read(frame(picture))
    return None if text is None else text.rstrip("\n")


@pytest.mark.parametrize("height", HEIGHTS)
@pytest.mark.parametrize("colors", [(GREY, BLACK), (BLACK, WHITE), (WHITE, BLUE), (BLUE, GREY)])
@pytest.mark.parametrize("cell", [8, 9])
def test_cells_of_a_console(height: int, colors: Any, cell: int) -> None:
    fonts = [own_font(each, seed=each)[1] for each in HEIGHTS]
    font = next(font for font in fonts if font.height == height)
    assert read(paint(LINES, font, 640, 400, *colors, cell), *fonts) == TEXT


@pytest.mark.parametrize("at", [(3, 5), (7, 15), (100, 33)])
def test_cells_that_do_not_begin_in_the_corner(at: tuple[int, int]) -> None:
    _, font = own_font(16)
    text = read(paint(LINES, font, 640, 400, WHITE, BLUE, at=at), font)
    assert text is not None and [line.strip() for line in text.strip().splitlines()] == [line.strip() for line in LINES]


def test_lines_in_several_colours_and_inverted() -> None:
    _, font = own_font(16)
    picture = paint(LINES, font, 320, 200)
    picture[32:48] = paint([LINES[2]], font, 320, 16, BLACK, GREY)
    picture[48:64] = paint([LINES[3]], font, 320, 16, WHITE, BLUE)
    assert read(picture, font) == TEXT


def test_every_character_that_is_not_like_another() -> None:
    _, font = own_font(16)
    lines = [CODE_PAGE_437[start : start + 64].replace("\0", " ").replace("\xa0", " ").replace("█", " ") for start in range(0, 256, 64)]
    assert read(paint(lines, font, 512, 64), font) == "\n".join(line.rstrip() for line in lines)


def test_cursors() -> None:
    _, font = own_font(16)
    under, block, empty = paint(LINES, font, 320, 200), paint(LINES, font, 320, 200), paint(LINES, font, 320, 200)
    under[14:16, 8:16] = GREY  # an underline below the "e"
    block[0:16, 8:16] = 170 - block[0:16, 8:16]
    empty[30:32, 0:8] = GREY
    assert read(under, font) == read(block, font) == read(empty, font) == TEXT


def test_a_logo_beside_the_text_reads_as_blanks_and_a_strange_glyph_as_unknown() -> None:
    _, font = own_font(16)
    picture = paint(["", "", *LINES], font, 640, 400)
    picture[0:32, 0:16] = np.random.default_rng(1).integers(0, 256, (32, 16, 3))
    picture[16:32, 32:40] = np.random.default_rng(1).integers(0, 2, (16, 8, 1)) * 170
    assert read(picture, font) == "\n".join(["", "    " + UNKNOWN, *LINES])


@pytest.mark.parametrize("at", [(0, 0), (0, 8), (5, 3)])
def test_text_over_a_picture(at: tuple[int, int]) -> None:
    _, font = own_font(16)
    text = paint(LINES, font, 640, 480, WHITE, BLACK, at=at)
    shade = np.arange(640, dtype=np.uint8)[None, :] // 5 + np.arange(480, dtype=np.uint16)[:, None].astype(np.uint8) // 5
    picture = np.stack([shade // 2, shade, shade // 3], axis=-1).astype(np.uint8)
    picture[text[..., 0] == 255] = 255
    assert read(picture, font) == TEXT


def test_doubled_pixels() -> None:
    _, font = own_font(8)
    picture = paint(LINES, font, 320, 200).repeat(2, axis=0).repeat(2, axis=1)
    assert read(picture, font) == TEXT


def test_no_text() -> None:
    _, font = own_font(16)
    random = np.random.default_rng(1).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    for picture in (np.zeros((480, 640, 3), np.uint8), random, random // 128 * 255, random[:1, :1], paint(["ab"], font, 640, 480)):
        assert read(picture, font) is None
    assert read(paint(LINES, font, 640, 400)) is None, "without fonts"


def test_searches_do_not_take_all_the_time() -> None:
    _, font = own_font(16)
    reader = GlyphReader([font])
    picture = np.zeros((480, 640, 3), np.uint8)
    begun = time.monotonic()
    for n in range(20):
        picture[100, n] = 255
        assert reader.read(frame(picture)) is None
    assert reader._search_after > begun, "the next search waits"


def test_the_same_picture_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    _, font = own_font(16)
    reader = GlyphReader([font])
    shown = frame(paint(LINES, font, 320, 200))
    first = reader.read(shown)
    monkeypatch.setattr(reader, "_read", lambda frame: pytest.fail("read again"))
    assert reader.read(Frame(*shown)) == first


# -- fonts


@pytest.mark.parametrize("height", HEIGHTS)
def test_fonts_in_memory(height: int) -> None:
    table, font = own_font(height)
    random = np.random.default_rng(2).bytes(5000)
    assert find_fonts(random + table + random) == [font]
    assert find_fonts(table) == [font]
    assert find_fonts(random) == find_fonts(b"") == find_fonts(table[:-1]) == find_fonts(table[1:]) == []
    if height % 8 == 0:
        assert find_fonts(memoryview(bytes(4096) + table + bytes(100)), aligned=True) == [font]
        assert find_fonts(memoryview(bytes(4095) + table + bytes(100)), aligned=True) == []


def test_patterns_that_are_no_font() -> None:
    table = bytearray(own_font(16)[0])
    for at, value in ((0xDB * 16, 0), (0x20 * 16, 1), (ord("A") * 16, 0)):
        broken = bytearray(table)
        broken[at : at + 16] = bytes([value]) * 16
        assert find_fonts(bytes(broken)) == []
    assert find_fonts((b"\xf0" * 16 + b"\x0f" * 16) * 1000) == []
    assert find_fonts(memoryview((b"\xf0" * 16 + b"\x0f" * 16) * 1000), aligned=True) == []


def test_fonts_of_one_height_are_joined() -> None:
    """A kernel's font and the VGA BIOS's differ in a few letters; a screen shows what either of them drew."""
    (_, one), (_, other), (_, small) = own_font(16, seed=1), own_font(16, seed=2), own_font(8)
    both, rest = Font.merged([one, other, small])
    assert (both.height, rest) == (16, small) and both.glyphs.items() >= one.glyphs.items()
    picture = paint(LINES, one, 320, 200)
    picture[48:64] = paint([LINES[3]], other, 320, 16)
    assert UNKNOWN in (read(picture, one) or UNKNOWN) and read(picture, both) == TEXT
    assert find_fonts(own_font(16, seed=1)[0] + b"gap" + own_font(16, seed=2)[0], heights=(16,)) == [one, other]


def bgf(font: Font, layout: str) -> bytes:
    """A font as bterm keeps it, with chains of characters that share their low four bits, and a wide one."""
    size = 4 + struct.calcsize(layout)
    chains: dict[int, list[tuple[int, int]]] = {low: [] for low in range(16)}
    rows: list[int] = []
    for glyph, character in font.glyphs.items():
        if ord(character) > 15:
            chains[ord(character) & 15].append((ord(character) & ~15 | 8, len(rows)))
            rows += [row << 24 for row in glyph]
    chains[3].append((0x4E0 | 15, 0))
    heads, pairs = [], []
    for low in range(16):
        heads.append(len(pairs))
        pairs += [number for pair in chains[low] for number in pair] + [0, 0]
    places = (size, size + 64, size + 64 + 4 * len(pairs))
    head = b"BGF1" + struct.pack(layout, size, font.height, 15, *places)
    return head + struct.pack(f"<{len(heads) + len(pairs) + len(rows)}I", *heads, *pairs, *rows)


@pytest.mark.parametrize("layout", ["<QIIQQQ", "<6I"])
def test_fonts_of_bterm(layout: str) -> None:
    _, font = own_font(16)
    data = bgf(font, layout)
    assert read(paint(LINES, font, 320, 200), Font.from_bgf(data)) == TEXT
    random = np.random.default_rng(3)
    for wrong in (b"", b"BGF1", data[:30], data[:-1], data[:2000], b"BGF1" + b"\xff" * 100, b"PK" + data):
        with pytest.raises(ValueError):
            Font.from_bgf(wrong)
    for _ in range(200):
        damaged = bytearray(data)
        damaged[random.integers(4, 3000)] = random.integers(0, 256)
        try:
            Font.from_bgf(bytes(damaged))
        except ValueError:
            continue


def test_psf_fonts() -> None:
    table, font = own_font(16)
    head1 = struct.pack("<BBBB", 0x36, 4, 2, 16)
    pairs = b"".join(character.encode("utf-16-le") + b"\xff\xff" for character in CODE_PAGE_437)
    assert Font.from_psf(head1 + table + pairs).glyphs.items() >= {(g, c) for g, c in font.glyphs.items() if c.isalnum() and c.isascii()}
    assert Font.from_psf(b"\x36\x04\x00\x10" + table) == font
    head2 = struct.pack("<4s7I", b"\x72\xb5\x4a\x86", 0, 32, 1, 256, 16, 16, 8)
    entries = b"".join(("é" + character if character == "e" else character).encode() + b"\xfex\xff" for character in CODE_PAGE_437)
    assert "e" in Font.from_psf(head2 + table + entries).glyphs.values()
    for wrong in (b"", b"\x36\x04", head2[:20], struct.pack("<4s7I", b"\x72\xb5\x4a\x86", 0, 32, 1, 256, 32, 16, 16), b"\x7fELF" * 10):
        with pytest.raises(ValueError):
            Font.from_psf(wrong)
