"""Pictures of small scenes, worked out by hand."""

from __future__ import annotations

import pytest

from tests.unit.devices.vga_rig import COLORS, CRTC, GFX, SEQ, Rig, rgb

# DAC indices of attribute values 0-15 in the BIOS's 16-colour modes
PALETTE = (0, 1, 2, 3, 4, 5, 0x14, 7, *range(0x38, 0x40))
GLYPH = bytes((0b1000_0001, 0b1111_1111, 0b0001_1000))


def text_rig(mode: str = "80x25") -> Rig:
    """A screen of blanks, light grey on black, without a cursor.  Glyph 0x41 and 0xc4 are GLYPH; 0x41 in map 1 is all ones."""
    rig = Rig()
    rig.mode(mode)
    for at, glyph in ((32 * 0x41, GLYPH), (32 * 0xC4, GLYPH), (0x4000 + 32 * 0x41, b"\xff" * 32)):
        rig.load_planes((b"", b"", glyph), at)
    rig.mode(mode)
    rig.set(CRTC if mode != "mono" else 0x3B4, 0x0A, 0x20)
    base = 0xB0000 if mode == "mono" else 0xB8000
    rig.poke(base, *b" \x07" * 2000)
    return rig


def colors(pixels: str, **meaning: int) -> list[int]:
    return [meaning[pixel] for pixel in pixels]


# -- text -----------------------------------------------------------------------------------------------------------


def test_a_character_has_nine_dots_the_last_of_them_background() -> None:
    rig = text_rig()
    rig.poke(0xB8000 + 2 * 81, 0x41, 0x1E)  # row 1, column 1: yellow on blue
    frame = rig.card.frame()
    assert (frame.width, frame.height, len(frame.rgb)) == (720, 400, 720 * 400 * 3)
    f, b = PALETTE[0xE], PALETTE[1]
    assert rig.row(16, 8, 11) == [0, *colors("f......f..", **{"f": f, ".": b})[:9], 0]
    assert rig.row(17, 9, 9) == colors("ffffffff.", **{"f": f, ".": b})
    assert rig.row(18, 9, 9) == colors("...ff....", **{"f": f, ".": b})
    assert rig.row(15, 9, 9) == [0] * 9 and rig.row(19, 9, 9) == [b] * 9 and rig.row(32, 9, 9) == [0] * 9


def test_line_graphics_reach_into_the_ninth_dot() -> None:
    rig = text_rig()
    rig.poke(0xB8000, 0xC4, 0x07)
    assert rig.row(0, 0, 9) == colors("f......ff", **{"f": 7, ".": 0})
    rig.set_attr(0x10, 0x08)
    assert rig.row(0, 0, 9) == colors("f......f.", **{"f": 7, ".": 0})


def test_eight_dots_and_forty_columns() -> None:
    rig = text_rig("40x25")
    rig.poke(0xB8000 + 2 * 40, 0x41, 0x07)
    assert rig.card.frame()[:2] == (720, 400)
    assert rig.row(16, 0, 18) == colors("ff............ff..", **{"f": 7, ".": 0})
    rig.set(SEQ, 1, 9)
    assert rig.card.frame()[:2] == (640, 400)
    assert rig.row(18, 0, 18) == colors("......ffff........", **{"f": 7, ".": 0})
    rig.set(SEQ, 1, 1)
    assert rig.card.frame()[:2] == (320, 400)


def test_blinking_characters_hide_for_sixteen_pictures() -> None:
    rig = text_rig()
    rig.poke(0xB8000, 0x41, 0x8F)
    frame_ns = rig.card.retrace.frame_ns
    shown = []
    for _ in range(64):
        shown.append(rig.pixel(0, 0) == tuple(rgb(PALETTE[15])))
        rig.clock.advance(frame_ns)
    assert sum(shown) == 32 and sum(a != b for a, b in zip(shown, shown[1:], strict=False)) in (3, 4)
    rig.set_attr(0x10, 0x04)  # no blinking: bit 7 makes the background bright
    assert rig.row(0, 0, 2) == [PALETTE[15], PALETTE[8]]


def test_cursor() -> None:
    rig = text_rig()
    for index, value in ((0x0A, 14), (0x0B, 15), (0x0E, 0), (0x0F, 81)):
        rig.set(CRTC, index, value)
    lit = [(y, rig.row(y, 9, 10)) for y in range(28, 33)]
    assert lit == [(28, [0] * 10), (29, [0] * 10), (30, [7] * 9 + [0]), (31, [7] * 9 + [0]), (32, [0] * 10)]
    rig.clock.advance(8 * rig.card.retrace.frame_ns)
    assert rig.row(30, 9, 9) == [0] * 9, "it blinks twice as fast as characters"
    rig.clock.advance(8 * rig.card.retrace.frame_ns)
    assert rig.row(30, 9, 1) == [7]
    rig.set(CRTC, 0x0A, 0x20 | 14)
    assert rig.row(30, 9, 1) == [0]
    rig.set(CRTC, 0x0A, 15)
    rig.set(CRTC, 0x0B, 14)
    assert rig.row(30, 9, 1) == rig.row(31, 9, 1) == [0], "an end above the start shows nothing"


def test_underline_of_monochrome_text() -> None:
    rig = text_rig("mono")
    rig.poke(0xB0000, 0x20, 0x01, 0x20, 0x07)
    assert rig.row(13, 0, 10) == [8] * 9 + [0]
    assert rig.row(12, 0, 9) == rig.row(14, 0, 9) == [0] * 9


def test_bit_3_chooses_between_two_fonts() -> None:
    rig = text_rig()
    rig.set(SEQ, 3, 0b000100)  # map A: 1, map B: 0
    rig.poke(0xB8000, 0x41, 0x07, 0x41, 0x0F)
    assert rig.row(4, 0, 18) == [0] * 9 + [PALETTE[15]] * 8 + [0]
    rig.set(SEQ, 3, 0b000001)  # the other way round
    assert rig.row(4, 0, 18) == [7] * 8 + [0] * 10


def test_upper_fonts_lie_between_the_lower_ones() -> None:
    rig = text_rig()
    rig.load_planes((b"", b"", b"\x3c"), 0x2000 + 32 * 0x41)
    rig.mode("80x25")
    rig.set(CRTC, 0x0A, 0x20)
    rig.set(SEQ, 3, 0b010000)  # map B: 4, at 8 KiB
    rig.poke(0xB8000, 0x41, 0x07)
    assert rig.row(0, 0, 9) == colors("..ffff...", **{"f": 7, ".": 0})


def test_screen_text() -> None:
    rig = text_rig()
    rig.poke(0xB8000 + 160, *(byte for char in b"Hi \x01\xb0\xe1\x00\xff" for byte in (char, 0x1E)))
    rig.set(CRTC, 0x0A, 14)
    rig.set(CRTC, 0x0F, 165)
    screen = rig.card.text()
    assert screen is not None
    assert (screen.columns, screen.rows, len(screen.lines), screen.cursor) == (80, 25, 25, (5, 2))
    assert screen.lines[1] == "Hi ☺░ß  " + " " * 72
    assert screen.attributes == b"\x07" * 80 + b"\x1e" * 8 + b"\x07" * (2000 - 88)
    rig.set(CRTC, 0x0A, 0x2E)
    screen = rig.card.text()
    assert screen is not None and screen.cursor is None
    rig.mode("320x200x256")
    assert rig.card.text() is None


def test_scrolling_by_start_address_and_a_split_screen() -> None:
    rig = text_rig()
    for row in range(40):
        rig.poke(0xB8000 + 160 * row, 0x30 + row, 0x07)
    rig.set(CRTC, 0x0C, 800 >> 8)
    rig.set(CRTC, 0x0D, 800 & 0xFF)
    screen = rig.card.text()
    assert screen is not None and "".join(line[0] for line in screen.lines) == "".join(chr(0x30 + k) for k in range(10, 35))
    rig.set(CRTC, 0x18, 20 * 16 - 1 & 0xFF)
    rig.set(CRTC, 0x07, 0x1F)
    rig.set(CRTC, 0x09, 0x0F)
    screen = rig.card.text()
    assert screen is not None and "".join(line[0] for line in screen.lines) == "".join(chr(0x30 + k) for k in (*range(10, 30), *range(5)))


def test_panning_of_text() -> None:
    rig = text_rig()
    rig.poke(0xB8000, 0x41, 0x07, 0x41, 0x70)
    rig.set_attr(0x13, 1)  # by two of nine dots
    assert rig.row(1, 0, 16) == [7] * 6 + [0] + [0] * 8 + [7]
    rig.set(CRTC, 8, 1)  # Preset Row Scan: one line up
    assert rig.row(0, 0, 7) == [7] * 6 + [0]


# -- graphics -------------------------------------------------------------------------------------------------------


def test_planes_make_sixteen_colors() -> None:
    rig = Rig()
    rig.mode("640x480x16")
    rig.load_planes((b"\0" * 80 + b"\x81", b"\0" * 80 + b"\xc0", b"\0" * 80 + b"\xf0", b"\0" * 80 + b"\x01"))
    assert rig.card.frame()[:2] == (640, 480)
    assert rig.row(1, 0, 9) == [PALETTE[k] for k in (7, 6, 4, 4, 0, 0, 0, 9, 0)]
    assert rig.row(0, 0, 8) == [0] * 8
    rig.set_attr(0x12, 0b0101)  # Color Plane Enable
    assert rig.row(1, 0, 8) == [PALETTE[k] for k in (5, 4, 4, 4, 0, 0, 0, 1)]


def test_color_select_and_pel_mask() -> None:
    rig = Rig()
    rig.mode("640x480x16")
    rig.load_planes((b"\x80",))
    rig.set_attr(0x14, 0b1010)
    assert rig.row(0, 0, 1) == [0x81]
    rig.set_attr(0x10, 0x81)
    assert rig.row(0, 0, 1) == [0xA1]
    rig.out(0x3C6, 0x0F)
    assert rig.row(0, 0, 1) == [1]


def test_low_resolution_planes_are_doubled_both_ways() -> None:
    rig = Rig()
    rig.mode("320x200x16")
    rig.load_planes((b"\x40", b"", b"", bytes(40) + b"\x80"))
    assert rig.card.frame()[:2] == (640, 400)
    assert rig.row(0, 0, 6) == rig.row(1, 0, 6) == [0, 0, 1, 1, 0, 0]
    assert rig.row(2, 0, 4) == rig.row(3, 0, 4) == [0x10, 0x10, 0, 0]


def test_cga_four_colors() -> None:
    rig = Rig()
    rig.mode("cga4")
    rig.poke(0xB8000, 0b00_01_10_11, 0b11_00_00_00)
    rig.poke(0xB8000 + 79, 0b11)
    rig.poke(0xBA000, 0b10_00_00_00)
    rig.poke(0xB8050, 0b01_00_00_00)
    assert rig.card.frame()[:2] == (640, 400)
    assert rig.row(0, 0, 12) == rig.row(1, 0, 12) == [0, 0, 0x13, 0x13, 0x15, 0x15, 0x17, 0x17, 0x17, 0x17, 0, 0]
    assert rig.row(0, 636, 4) == [0, 0, 0x17, 0x17]
    assert rig.row(2, 0, 4) == rig.row(3, 0, 4) == [0x15, 0x15, 0, 0], "odd lines lie 8 KiB further"
    assert rig.row(4, 0, 4) == [0x13, 0x13, 0, 0]


def test_cga_two_colors() -> None:
    rig = Rig()
    rig.mode("cga2")
    rig.poke(0xB8000, 0b1010_0001)
    rig.poke(0xBA000 + 79, 1)
    assert rig.row(0, 0, 9) == rig.row(1, 0, 9) == [0x17 * int(bit) for bit in "101000010"]
    assert rig.row(2, 638, 2) == [0, 0x17]


def test_mode_13h() -> None:
    rig = Rig()
    rig.mode("320x200x256")
    rig.poke(0xA0000, 5, 6, 255)
    rig.poke(0xA0000 + 320 * 199 + 319, 77)
    assert rig.card.frame()[:2] == (640, 400)
    assert rig.row(0, 0, 7) == rig.row(1, 0, 7) == [5, 5, 6, 6, 255, 255, 0]
    assert rig.row(399, 637, 3) == [0, 77, 77]


def test_mode_x() -> None:
    """Planes of pixels 0, 4, 8, ...; two pages; a status line that neither scrolls nor pans."""
    rig = Rig()
    rig.mode("320x240x256")
    rig.load_planes((b"\x01\x05", b"\x02", b"\x03", b"\x04"), 16000)
    rig.set(GFX, 5, 0x40)
    rig.set(CRTC, 0x0C, 16000 >> 8)
    rig.set(CRTC, 0x0D, 16000 & 0xFF)
    assert rig.card.frame()[:2] == (640, 480)
    assert rig.row(0, 0, 12) == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 0, 0]
    rig.set_attr(0x13, 4)  # two pixels
    assert rig.row(0, 0, 8) == [3, 3, 4, 4, 5, 5, 0, 0]
    rig.load_planes((b"\x09",))
    rig.set(GFX, 5, 0x40)
    rig.set(CRTC, 0x07, 0x2E)
    rig.set(CRTC, 0x09, 0x01)
    rig.set(CRTC, 0x18, 199)
    assert (rig.row(199, 0, 3), rig.row(200, 0, 3), rig.row(202, 0, 1)) == ([0, 0, 0], [0, 0, 0], [0])
    rig.set_attr(0x10, 0x61)  # PEL panning compatibility
    assert rig.row(200, 0, 3) == rig.row(201, 0, 3) == [9, 9, 0]
    assert rig.row(0, 0, 2) == [3, 3]


def test_a_blanked_screen_is_black() -> None:
    rig = Rig()
    rig.mode("320x200x256")
    rig.poke(0xA0000, 5)
    rig.set(SEQ, 1, 0x21)
    assert not any(rig.card.frame().rgb) and rig.card.frame()[:2] == (640, 400)
    rig.set(SEQ, 1, 0x01)
    assert any(rig.card.frame().rgb)
    rig.read_port(0x3DA)
    rig.out(0x3C0, 0)  # Palette Address Source off
    assert not any(rig.card.frame().rgb)


def test_before_anything_is_programmed() -> None:
    frame = Rig().card.frame()
    assert frame[:2] == (640, 400) and frame.rgb == bytes(640 * 400 * 3)
    assert Rig().card.text() is None


# -- VBE ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bpp", "pixel", "expected"),
    [
        (8, b"\x55", rgb(0x55)),
        (15, b"\x1f\x7c", b"\xff\x00\xff"),
        (15, b"\xe0\x03", b"\x00\xff\x00"),
        (15, b"\x01\x84", b"\x08\x00\x08"),
        (16, b"\x1f\xf8", b"\xff\x00\xff"),
        (16, b"\x20\x00", b"\x00\x04\x00"),
        (24, b"\x10\x20\x30", b"\x30\x20\x10"),
        (32, b"\x10\x20\x30\xff", b"\x30\x20\x10"),
    ],
)
def test_vbe_pixels(bpp: int, pixel: bytes, expected: bytes) -> None:
    rig = Rig()
    rig.mode("320x200x256")
    rig.vbe(xres=800, yres=600, bpp=bpp, enable=0x41)
    pitch = 800 * len(pixel)
    at = 2 * pitch + 3 * len(pixel)
    rig.memory.write(0xE0000000 + at, pixel)
    assert rig.card.frame()[:2] == (800, 600)
    assert rig.pixel(3, 2) == tuple(expected)
    assert rig.pixel(2, 2) == rig.pixel(4, 2) == rig.pixel(3, 1) == (0, 0, 0)


def test_vbe_planes() -> None:
    rig = Rig()
    rig.mode("640x480x16")
    rig.vbe(xres=800, yres=600, bpp=4, enable=1, bank=1)
    rig.set(SEQ, 2, 0b0101)
    at = 700 * 100 - 0x10000
    rig.poke(0xA0000 + at, 0x80)  # line 700, in the second bank
    rig.vbe(y_offset=699, x_offset=0)
    assert rig.row(1, 0, 2) == [PALETTE[5], 0]
    rig.vbe(x_offset=798)
    assert rig.row(0, 0, 4) == [0, 0, PALETTE[5], 0]


def test_virtual_screen_and_offsets() -> None:
    rig = Rig()
    rig.mode("320x200x256")
    rig.vbe(xres=640, yres=480, bpp=32, enable=0x41, virt_width=1024, x_offset=100, y_offset=50)
    rig.memory.write(0xE0000000 + 4 * (1024 * 52 + 103), b"\x01\x02\x03")
    assert rig.pixel(3, 2) == (3, 2, 1)


def test_eight_bit_palette() -> None:
    rig = Rig()
    rig.mode("320x200x256")
    rig.vbe(xres=640, yres=480, bpp=8, enable=0x61)
    rig.out(0x3C8, 7)
    for value in (0x81, 0x02, 0xFF):
        rig.out(0x3C9, value)
    rig.poke(0xA0000, 7)
    assert rig.pixel(0, 0) == (0x81, 0x02, 0xFF)


def test_colors_of_the_rig_are_told_apart() -> None:
    assert len(COLORS) == 256
