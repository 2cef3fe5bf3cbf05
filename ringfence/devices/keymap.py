"""The keys of a PC keyboard: Linux input numbers, PS/2 scan codes, and the characters of the US layout.

IBM PS/2 Hardware Interface Technical Reference, "Keyboard (101- and 102-key)", scan code tables of sets 2 and 3; set 1 is
what the 8042's translation makes of set 2 (`SET2_TO_SET1`).  Keys that came later: Microsoft, "Keyboard Scan Code
Specification", revision 1.3a.  Numbers of keys are those of Linux's input-event-codes.h (KEY_*).

A code 0xe0NN stands for the two bytes e0 NN.
"""

from __future__ import annotations

from typing import NamedTuple

# The 8042's table, from set 2 to set 1.  What is not below 0x80 passes unchanged but for the codes of F7 and SysRq.
SET2_TO_SET1 = bytes.fromhex(
    "ff 43 41 3f 3d 3b 3c 58 64 44 42 40 3e 0f 29 59"
    "65 38 2a 70 1d 10 02 5a 66 71 2c 1f 1e 11 03 5b"
    "67 2e 2d 20 12 05 04 5c 68 39 2f 21 14 13 06 5d"
    "69 31 30 23 22 15 07 5e 6a 72 32 24 16 08 09 5f"
    "6b 33 25 17 18 0b 0a 60 6c 34 35 26 27 19 0c 61"
    "6d 73 28 74 1a 0d 62 6e 3a 36 1c 1b 75 2b 63 76"
    "55 56 77 78 79 7a 0e 7b 7c 4f 7d 4b 47 7e 7f 6f"
    "52 53 50 4c 4d 48 01 45 57 4e 51 4a 37 49 46 54"
) + bytes((0x80, 0x81, 0x82, 0x41, 0x54, *range(0x85, 0x100)))


class Key(NamedTuple):
    """`set3` is 0 for keys that the 101-key keyboard did not have.  `plain` and `shifted` are "" where nothing is typed."""

    code: int
    name: str
    set2: int
    set3: int
    plain: str = ""
    shifted: str = ""

    @property
    def set1(self) -> int:
        return self.set2 & 0xFF00 | SET2_TO_SET1[self.set2 & 0xFF]


KEY_LEFTCTRL, KEY_LEFTSHIFT, KEY_RIGHTSHIFT, KEY_LEFTALT = 29, 42, 54, 56
KEY_RIGHTCTRL, KEY_SYSRQ, KEY_RIGHTALT, KEY_PAUSE = 97, 99, 100, 119  # KEY_SYSRQ is Print Screen

# fmt: off
_ROWS = (
    Key(1, "esc", 0x76, 0x08, "\x1b"),
    Key(2, "1", 0x16, 0x16, "1", "!"),
    Key(3, "2", 0x1E, 0x1E, "2", "@"),
    Key(4, "3", 0x26, 0x26, "3", "#"),
    Key(5, "4", 0x25, 0x25, "4", "$"),
    Key(6, "5", 0x2E, 0x2E, "5", "%"),
    Key(7, "6", 0x36, 0x36, "6", "^"),
    Key(8, "7", 0x3D, 0x3D, "7", "&"),
    Key(9, "8", 0x3E, 0x3E, "8", "*"),
    Key(10, "9", 0x46, 0x46, "9", "("),
    Key(11, "0", 0x45, 0x45, "0", ")"),
    Key(12, "minus", 0x4E, 0x4E, "-", "_"),
    Key(13, "equal", 0x55, 0x55, "=", "+"),
    Key(14, "backspace", 0x66, 0x66, "\b"),
    Key(15, "tab", 0x0D, 0x0D, "\t"),
    Key(16, "q", 0x15, 0x15, "q", "Q"),
    Key(17, "w", 0x1D, 0x1D, "w", "W"),
    Key(18, "e", 0x24, 0x24, "e", "E"),
    Key(19, "r", 0x2D, 0x2D, "r", "R"),
    Key(20, "t", 0x2C, 0x2C, "t", "T"),
    Key(21, "y", 0x35, 0x35, "y", "Y"),
    Key(22, "u", 0x3C, 0x3C, "u", "U"),
    Key(23, "i", 0x43, 0x43, "i", "I"),
    Key(24, "o", 0x44, 0x44, "o", "O"),
    Key(25, "p", 0x4D, 0x4D, "p", "P"),
    Key(26, "leftbrace", 0x54, 0x54, "[", "{"),
    Key(27, "rightbrace", 0x5B, 0x5B, "]", "}"),
    Key(28, "enter", 0x5A, 0x5A, "\n"),
    Key(29, "leftctrl", 0x14, 0x11),
    Key(30, "a", 0x1C, 0x1C, "a", "A"),
    Key(31, "s", 0x1B, 0x1B, "s", "S"),
    Key(32, "d", 0x23, 0x23, "d", "D"),
    Key(33, "f", 0x2B, 0x2B, "f", "F"),
    Key(34, "g", 0x34, 0x34, "g", "G"),
    Key(35, "h", 0x33, 0x33, "h", "H"),
    Key(36, "j", 0x3B, 0x3B, "j", "J"),
    Key(37, "k", 0x42, 0x42, "k", "K"),
    Key(38, "l", 0x4B, 0x4B, "l", "L"),
    Key(39, "semicolon", 0x4C, 0x4C, ";", ":"),
    Key(40, "apostrophe", 0x52, 0x52, "'", '"'),
    Key(41, "grave", 0x0E, 0x0E, "`", "~"),
    Key(42, "leftshift", 0x12, 0x12),
    Key(43, "backslash", 0x5D, 0x5C, "\\", "|"),
    Key(44, "z", 0x1A, 0x1A, "z", "Z"),
    Key(45, "x", 0x22, 0x22, "x", "X"),
    Key(46, "c", 0x21, 0x21, "c", "C"),
    Key(47, "v", 0x2A, 0x2A, "v", "V"),
    Key(48, "b", 0x32, 0x32, "b", "B"),
    Key(49, "n", 0x31, 0x31, "n", "N"),
    Key(50, "m", 0x3A, 0x3A, "m", "M"),
    Key(51, "comma", 0x41, 0x41, ",", "<"),
    Key(52, "dot", 0x49, 0x49, ".", ">"),
    Key(53, "slash", 0x4A, 0x4A, "/", "?"),
    Key(54, "rightshift", 0x59, 0x59),
    Key(55, "kpasterisk", 0x7C, 0x7E),
    Key(56, "leftalt", 0x11, 0x19),
    Key(57, "space", 0x29, 0x29, " "),
    Key(58, "capslock", 0x58, 0x14),
    Key(59, "f1", 0x05, 0x07),
    Key(60, "f2", 0x06, 0x0F),
    Key(61, "f3", 0x04, 0x17),
    Key(62, "f4", 0x0C, 0x1F),
    Key(63, "f5", 0x03, 0x27),
    Key(64, "f6", 0x0B, 0x2F),
    Key(65, "f7", 0x83, 0x37),
    Key(66, "f8", 0x0A, 0x3F),
    Key(67, "f9", 0x01, 0x47),
    Key(68, "f10", 0x09, 0x4F),
    Key(69, "numlock", 0x77, 0x76),
    Key(70, "scrolllock", 0x7E, 0x5F),
    Key(71, "kp7", 0x6C, 0x6C),
    Key(72, "kp8", 0x75, 0x75),
    Key(73, "kp9", 0x7D, 0x7D),
    Key(74, "kpminus", 0x7B, 0x84),
    Key(75, "kp4", 0x6B, 0x6B),
    Key(76, "kp5", 0x73, 0x73),
    Key(77, "kp6", 0x74, 0x74),
    Key(78, "kpplus", 0x79, 0x7C),
    Key(79, "kp1", 0x69, 0x69),
    Key(80, "kp2", 0x72, 0x72),
    Key(81, "kp3", 0x7A, 0x7A),
    Key(82, "kp0", 0x70, 0x70),
    Key(83, "kpdot", 0x71, 0x71),
    Key(86, "102nd", 0x61, 0x13),
    Key(87, "f11", 0x78, 0x56),
    Key(88, "f12", 0x07, 0x5E),
    Key(89, "ro", 0x51, 0),
    Key(92, "henkan", 0x64, 0x86),
    Key(93, "katakanahiragana", 0x13, 0x87),
    Key(94, "muhenkan", 0x67, 0x85),
    Key(95, "kpjpcomma", 0x27, 0),
    Key(96, "kpenter", 0xE05A, 0x79),
    Key(97, "rightctrl", 0xE014, 0x58),
    Key(98, "kpslash", 0xE04A, 0x77),
    Key(99, "sysrq", 0xE07C, 0x57),
    Key(100, "rightalt", 0xE011, 0x39),
    Key(102, "home", 0xE06C, 0x6E),
    Key(103, "up", 0xE075, 0x63),
    Key(104, "pageup", 0xE07D, 0x6F),
    Key(105, "left", 0xE06B, 0x61),
    Key(106, "right", 0xE074, 0x6A),
    Key(107, "end", 0xE069, 0x65),
    Key(108, "down", 0xE072, 0x60),
    Key(109, "pagedown", 0xE07A, 0x6D),
    Key(110, "insert", 0xE070, 0x67),
    Key(111, "delete", 0xE071, 0x64, "\x7f"),
    Key(113, "mute", 0xE023, 0),
    Key(114, "volumedown", 0xE021, 0),
    Key(115, "volumeup", 0xE032, 0),
    Key(116, "power", 0xE037, 0),
    Key(117, "kpequal", 0x0F, 0),
    Key(119, "pause", 0xE07E, 0x62),  # as sent with Ctrl; without, it is a sequence of its own
    Key(121, "kpcomma", 0x6D, 0),
    Key(124, "yen", 0x6A, 0x5D),
    Key(125, "leftmeta", 0xE01F, 0x8B),
    Key(126, "rightmeta", 0xE027, 0x8C),
    Key(127, "compose", 0xE02F, 0x8D),
    Key(140, "calc", 0xE02B, 0),
    Key(142, "sleep", 0xE03F, 0),
    Key(143, "wakeup", 0xE05E, 0),
    Key(155, "mail", 0xE048, 0),
    Key(156, "bookmarks", 0xE018, 0),
    Key(157, "computer", 0xE040, 0),
    Key(158, "back", 0xE038, 0),
    Key(159, "forward", 0xE030, 0),
    Key(163, "nextsong", 0xE04D, 0),
    Key(164, "playpause", 0xE034, 0),
    Key(165, "previoussong", 0xE015, 0),
    Key(166, "stopcd", 0xE03B, 0),
    Key(172, "homepage", 0xE03A, 0),
    Key(173, "refresh", 0xE020, 0),
    Key(183, "f13", 0x08, 0x7F),
    Key(184, "f14", 0x10, 0x80),
    Key(185, "f15", 0x18, 0x81),
    Key(186, "f16", 0x20, 0x82),
    Key(187, "f17", 0x28, 0x83),
    Key(188, "f18", 0x30, 0),
    Key(189, "f19", 0x38, 0),
    Key(190, "f20", 0x40, 0),
    Key(191, "f21", 0x48, 0),
    Key(192, "f22", 0x50, 0),
    Key(193, "f23", 0x57, 0),
    Key(194, "f24", 0x5F, 0),
    Key(217, "search", 0xE010, 0),
    Key(226, "media", 0xE050, 0),
)
# fmt: on

KEYS: dict[int, Key] = {key.code: key for key in _ROWS}
CODES: dict[str, int] = {key.name: key.code for key in _ROWS}
"""Names as in Linux's KEY_* without the prefix, in lower case."""

_CHARACTERS = {key.plain: (key.code, False) for key in _ROWS if key.plain}
_CHARACTERS |= {key.shifted: (key.code, True) for key in _ROWS if key.shifted}
_CHARACTERS["\r"] = _CHARACTERS["\n"]


def for_character(character: str) -> tuple[int, bool] | None:
    """The key that types it on a US keyboard, and whether with Shift.  None where no key does."""
    return _CHARACTERS.get(character)


def to_set1(set2: bytes) -> bytes:
    """What the 8042 makes of a sequence of set 2: f0 goes, and the next code gets bit 7."""
    out, release = bytearray(), 0
    for byte in set2:
        if byte == 0xF0:
            release = 0x80
        elif byte in (0xE0, 0xE1):
            out.append(byte)
        else:
            out.append(SET2_TO_SET1[byte] | release)
            release = 0
    return bytes(out)
