"""Parts of the displays by themselves: options, keys, pixels, the cipher of VNC passwords."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ringfence.backends.display.des import encrypt_block, vnc_response
from ringfence.backends.display.keysyms import CHARACTERS, code_of_scancode, key_of_keysym
from ringfence.backends.display.options import DisplayOptions, VncOptions, check_display, parse_display
from ringfence.backends.display.pixels import MOST_PIXELS, Rect, all_tiles, changed_tiles, rectangles, tiles_of
from ringfence.core.errors import UserError
from ringfence.devices import keymap
from tests.unit.backends.display.fakes import noise


@pytest.mark.parametrize(
    ("text", "host", "port", "password"),
    [
        ("vnc", "127.0.0.1", 5900, None),
        ("vnc=:1", "127.0.0.1", 5901, None),
        ("vnc=:0", "127.0.0.1", 5900, None),
        ("vnc=:99", "127.0.0.1", 5999, None),
        ("vnc=127.0.0.1:5901", "127.0.0.1", 5901, None),
        ("vnc=0.0.0.0:2,password=secret=1", "0.0.0.0", 5902, "secret=1"),
        ("vnc=[::1]:7000", "::1", 7000, None),
        ("vnc,password=x", "127.0.0.1", 5900, "x"),
    ],
)
def test_vnc_options(text: str, host: str, port: int, password: str | None) -> None:
    check_display(text)
    assert parse_display(text) == DisplayOptions("vnc", VncOptions(host, port, password))


def test_other_displays() -> None:
    assert parse_display("none").kind == "none" and parse_display("terminal").kind == "terminal"


@pytest.mark.parametrize(
    "text",
    ["", "gtk", "vnc=", "vnc=5901", "vnc=:x", "vnc=:65536", "vnc=:" + "9" * 5000, "vnc,password=", "vnc,secret=1", "vnc,", "none,x"]
    + ["terminal=1", "vnc,password=a,password=b", "vnc=:²"],
)
def test_wrong_displays_are_told(text: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_display(text)
    assert caught.value.remedy
    with pytest.raises(ValueError):
        check_display(text)


def test_password_file(tmp_path: Path) -> None:
    file = tmp_path / "password"
    check_display(f"vnc,password-file={file}")  # it may come later
    with pytest.raises(UserError, match="cannot be read"):
        parse_display(f"vnc,password-file={file}")
    file.write_text("\n")
    with pytest.raises(UserError, match="empty"):
        parse_display(f"vnc,password-file={file}")
    file.write_text("sesame\nmore\n")
    assert parse_display(f"vnc=:3,password-file={file}").vnc == VncOptions("127.0.0.1", 5903, "sesame")


def test_des_against_published_vectors() -> None:
    """NBS Special Publication 500-20, variable plaintext and key, and the textbook example of FIPS 46."""
    for key, plain, cipher in (
        ("133457799bbcdff1", "0123456789abcdef", "85e813540f0ab405"),
        ("0101010101010101", "8000000000000000", "95f8a5e5dd31d900"),
        ("8001010101010101", "0000000000000000", "95a8d72813daa94d"),
        ("7ca110454a1a6e57", "01a1d6d039776742", "690f5b0d9a26939b"),
    ):
        assert encrypt_block(bytes.fromhex(key), bytes.fromhex(plain)).hex() == cipher


def test_only_eight_bytes_of_a_password_count() -> None:
    challenge = bytes(range(16))
    assert vnc_response("12345678", challenge) == vnc_response("123456789", challenge) != vnc_response("1234567", challenge)
    assert len(vnc_response("", challenge)) == 16


# -- keys


def test_the_us_layout_is_the_keyboards() -> None:
    """Displays may not import devices, so that they have a layout of their own; here both are compared."""
    for code in range(0x20, 0x7F):
        assert CHARACTERS[chr(code)] == keymap.for_character(chr(code))


def test_every_key_of_a_scancode_is_the_keyboards() -> None:
    reached = set()
    for scancode in range(0x200):
        code = code_of_scancode(scancode)
        if code is not None:
            reached.add(code)
            key = keymap.KEYS.get(code)
            prefix = 0x80 if scancode & 0x80 else 0
            if key is not None and code not in (keymap.KEY_PAUSE, keymap.KEY_SYSRQ):
                assert (key.set1 >> 8 == 0xE0) == bool(prefix) and key.set1 & 0xFF == scancode & 0x7F, key
    assert {key.code for key in keymap.KEYS.values() if key.set3 and key.code < 120} - reached <= {
        keymap.CODES["katakanahiragana"],
        89,
        92,
        94,
    }


def test_keysyms() -> None:
    names = {0xFF0D: "enter", 0xFF8D: "kpenter", 0xFFC8: "f11", 0xFFC9: "f12", 0xFFB7: "kp7", 0xFF95: "kp7", 0xFF9F: "kpdot"}
    names |= {0xFFE4: "rightctrl", 0xFF63: "insert", 0xFFFF: "delete", 0xFF67: "compose", 0xFE03: "rightalt", 0xFFEB: "leftmeta"}
    names |= {0xFF13: "pause", 0xFF61: "sysrq"}
    for keysym, name in names.items():
        assert key_of_keysym(keysym) == (keymap.CODES[name], None)
    assert key_of_keysym(ord("a")) == (30, None) and key_of_keysym(ord("%")) == (6, True) and key_of_keysym(ord("/")) == (53, False)
    assert key_of_keysym(0x1234567) is None and key_of_keysym(0xE4) is None


# -- pixels


def test_rectangles_cover_exactly_the_tiles() -> None:
    random = np.random.default_rng(8)
    for width, height in ((64, 16), (65, 17), (640, 480), (1000, 37), (2, 2)):
        for share in (0, 0.1, 0.5, 0.9, 1):
            tiles = random.random(all_tiles(width, height, False).shape) < share
            covered = np.zeros((height, width), np.int64)
            for rect in rectangles(tiles, width, height):
                assert rect.width > 0 and rect.height > 0 and rect.x + rect.width <= width and rect.y + rect.height <= height
                covered[rect.y : rect.y + rect.height, rect.x : rect.x + rect.width] += 1
            expected = tiles.repeat(16, axis=0).repeat(64, axis=1)[:height, :width]
            assert (covered == expected).all()


def test_rectangles_are_of_bounded_size() -> None:
    rects = list(rectangles(all_tiles(5000, 3000, True), 5000, 3000, widest=2048))
    assert all(rect.width <= 2048 and rect.width * rect.height <= MOST_PIXELS for rect in rects)
    assert sum(rect.width * rect.height for rect in rects) == 5000 * 3000


def test_changed_tiles_and_tiles_of_a_rectangle() -> None:
    before = noise(200, 50)
    after = before.copy()
    after[49, 199, 2] ^= 1
    after[16, 63, 0] ^= 1
    tiles = changed_tiles(before, after)
    assert np.argwhere(tiles).tolist() == [[1, 0], [3, 3]]
    index = all_tiles(200, 50, False)
    index[tiles_of(Rect(63, 15, 2, 2))] = True
    assert np.argwhere(index).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert Rect(190, 40, 65535, 65535).within(200, 50) == (190, 40, 10, 10)
    assert Rect(300, 300, 5, 5).within(200, 50) == (200, 50, 0, 0)
