"""From what a client of RFB names a key by (X keysyms, XT scan codes) to the keys of the guest's keyboard (Linux's KEY_* numbers).

A character is found where the US layout has it.  `Keys` is one client's keyboard: it knows what is held down, holds Shift for
characters that need it there, and lets everything go when the client leaves.
"""

from __future__ import annotations

from ringfence.backends.display.api import Seat

LEFT_CTRL, LEFT_SHIFT, RIGHT_SHIFT, LEFT_ALT, SYSRQ, PAUSE, MENU = 29, 42, 54, 56, 99, 119, 127

_ROWS = ((2, "1234567890-=", "!@#$%^&*()_+"), (16, "qwertyuiop[]", "QWERTYUIOP{}"), (30, "asdfghjkl;'`", 'ASDFGHJKL:"~'))
_LAST_ROW = (43, "\\zxcvbnm,./", "|ZXCVBNM<>?")


def _characters() -> dict[str, tuple[int, bool]]:
    found = {" ": (57, False), "\n": (28, False), "\r": (28, False), "\t": (15, False), "\b": (14, False), "\x1b": (1, False)}
    for first, plain, shifted in (*_ROWS, _LAST_ROW):
        for number, (low, high) in enumerate(zip(plain, shifted, strict=True)):
            found[low], found[high] = (first + number, False), (first + number, True)
    return found


CHARACTERS = _characters()
"""Where the US layout has a character: its key, and whether with Shift."""

# fmt: off
_SPECIAL = {
    0xFF08: 14, 0xFF09: 15, 0xFE20: 15, 0xFF0A: 28, 0xFF0D: 28, 0xFF13: PAUSE, 0xFF6B: PAUSE, 0xFF14: 70, 0xFF15: SYSRQ,
    0xFF1B: 1, 0xFFFF: 111, 0xFF50: 102, 0xFF51: 105, 0xFF52: 103, 0xFF53: 106, 0xFF54: 108, 0xFF55: 104, 0xFF56: 109,
    0xFF57: 107, 0xFF61: SYSRQ, 0xFF63: 110, 0xFF67: MENU, 0xFF7F: 69,
    # the keypad: as cursor keys, then as digits
    0xFF8D: 96, 0xFF95: 71, 0xFF96: 75, 0xFF97: 72, 0xFF98: 77, 0xFF99: 80, 0xFF9A: 73, 0xFF9B: 81, 0xFF9C: 79, 0xFF9D: 76,
    0xFF9E: 82, 0xFF9F: 83, 0xFFAA: 55, 0xFFAB: 78, 0xFFAC: 121, 0xFFAD: 74, 0xFFAE: 83, 0xFFAF: 98, 0xFFBD: 117,
    **dict(zip(range(0xFFB0, 0xFFBA), (82, 79, 80, 81, 75, 76, 77, 71, 72, 73), strict=True)),
    **dict(zip(range(0xFFBE, 0xFFCA), (*range(59, 69), 87, 88), strict=True)),
    # Shift, Control, Caps Lock, Meta, Alt, Super, AltGr
    0xFFE1: LEFT_SHIFT, 0xFFE2: RIGHT_SHIFT, 0xFFE3: LEFT_CTRL, 0xFFE4: 97, 0xFFE5: 58, 0xFFE7: LEFT_ALT, 0xFFE8: 100,
    0xFFE9: LEFT_ALT, 0xFFEA: 100, 0xFFEB: 125, 0xFFEC: 126, 0xFE03: 100,
}
# fmt: on

# What XT keyboards had keeps its scan code as KEY_* number; keys with the prefix E0 come with bit 7 set.
_LAST_XT = 0x58
# fmt: off
_EXTENDED = {
    0x1C: 96, 0x1D: 97, 0x20: 113, 0x2E: 114, 0x30: 115, 0x35: 98, 0x37: SYSRQ, 0x38: 100, 0x46: PAUSE, 0x47: 102, 0x48: 103,
    0x49: 104, 0x4B: 105, 0x4D: 106, 0x4F: 107, 0x50: 108, 0x51: 109, 0x52: 110, 0x53: 111, 0x5B: 125, 0x5C: 126, 0x5D: MENU,
    0x5E: 116,
}
# fmt: on


def code_of_scancode(scancode: int) -> int | None:
    """The key of a QEMU extended key event's code."""
    if scancode & 0x80:
        return _EXTENDED.get(scancode & 0x7F) if scancode < 0x100 else None
    if scancode == 0x54:
        return SYSRQ
    return scancode if 0 < scancode <= _LAST_XT and scancode != 0x55 else None


def key_of_keysym(keysym: int) -> tuple[int, bool | None] | None:
    """The key of a keysym, and whether Shift is needed to get its character there (None: it does not matter)."""
    code = _SPECIAL.get(keysym)
    if code is not None:
        return code, None
    if 0x20 <= keysym <= 0x7E:
        character = chr(keysym)
        code, shift = CHARACTERS[character]
        # With Caps Lock on, the client's letters are upper case without Shift, and so are the guest's.
        return code, None if character.isalpha() else shift
    return None


class Keys:
    """One client's keyboard."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        self._held: dict[int, int] = {}  # what the client calls a key -> the key that went down for it

    def keysym(self, keysym: int, down: bool) -> None:
        if not down:
            self._release(keysym)
        elif (found := key_of_keysym(keysym)) is not None:
            code, shift = found
            shifts = [held for held in self._held.values() if held in (LEFT_SHIFT, RIGHT_SHIFT)]
            self._held[keysym] = code
            if shift is None or shift == bool(shifts):
                self._seat.key(code, True)
                return
            # The user's layout has the character elsewhere: Shift is made to fit for this one key.
            for held in shifts or [LEFT_SHIFT]:
                self._seat.key(held, shift)
            self._seat.key(code, True)
            for held in shifts or [LEFT_SHIFT]:
                self._seat.key(held, not shift)

    def scancode(self, scancode: int, down: bool) -> None:
        name = -1 - scancode  # no keysym is negative
        if not down:
            self._release(name)
        elif (code := code_of_scancode(scancode)) is not None:
            self._held[name] = code
            self._seat.key(code, True)

    def release_all(self) -> None:
        for name in list(self._held):
            self._release(name)

    def _release(self, name: int) -> None:
        code = self._held.pop(name, None)
        if code is not None:
            self._seat.key(code, False)
