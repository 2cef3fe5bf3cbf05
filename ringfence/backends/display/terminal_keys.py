"""From what a terminal sends for its keys (ECMA-48, xterm's control sequences, the Linux console) to keys of a PC keyboard.

A terminal tells characters, not keys: each becomes a short press of the keys that make it on a US keyboard.  Escape alone and
the beginning of a sequence look the same until some time has passed without more.
"""

from __future__ import annotations

from ringfence.backends.display.keysyms import CHARACTERS, LEFT_ALT, LEFT_CTRL, LEFT_SHIFT

Stroke = tuple[int, ...]  # keys that go down one after the other, and up again together

_ESC = 0x1B
_ESCAPE_KEY, _BACKSPACE, _TAB, _ENTER, _KP_ENTER = 1, 14, 15, 28, 96
_FUNCTION = (*range(59, 69), 87, 88)  # F1 to F12
_LETTERS = {"A": 103, "B": 108, "C": 106, "D": 105, "E": 76, "F": 107, "H": 102, "P": 59, "Q": 60, "R": 61, "S": 62}
_NUMBERS = {1: 102, 2: 110, 3: 111, 4: 107, 5: 104, 6: 109, 7: 102, 8: 107}
_NUMBERS |= dict(zip((11, 12, 13, 14, 15, 17, 18, 19, 20, 21, 23, 24), _FUNCTION, strict=True))
_LONGEST = 32


class KeyDecoder:
    """Bytes in, strokes out.  `waiting`: an escape has come whose meaning depends on what follows."""

    def __init__(self) -> None:
        self._pending = bytearray()

    @property
    def waiting(self) -> bool:
        return bool(self._pending)

    def feed(self, data: bytes) -> list[Stroke]:
        strokes: list[Stroke] = []
        for byte in data:
            self._pending.append(byte)
            self._advance(strokes)
        return strokes

    def flush(self) -> list[Stroke]:
        """Nothing has followed for a while: what waits stands for itself."""
        strokes: list[Stroke] = []
        pending, self._pending = bytes(self._pending), bytearray()
        if pending[:1] == bytes([_ESC]):
            strokes.append((_ESCAPE_KEY,))
            pending = pending[1:]
        strokes += [stroke for byte in pending if (stroke := _plain(byte))]
        return strokes

    def _advance(self, strokes: list[Stroke]) -> None:
        """Takes the pending bytes where they are complete."""
        pending = self._pending
        if pending[0] != _ESC:
            stroke = _plain(pending[0])
        elif len(pending) == 1:
            return
        elif pending[1] == _ESC:  # Escape twice, or Alt with a key that is a sequence itself: the former
            strokes.append((_ESCAPE_KEY,))
            del pending[0]
            return
        elif pending[1] not in b"[O":
            stroke = _plain(pending[1])
            if stroke is not None:
                stroke = (LEFT_ALT, *stroke)
        elif (end := _complete(pending)) is None and len(pending) < _LONGEST:
            return
        else:
            stroke = _sequence(bytes(pending)) if end else None
        pending.clear()
        if stroke:
            strokes.append(stroke)


def _complete(pending: bytearray) -> bool | None:
    """Whether a sequence has its last byte; None while it has not."""
    if len(pending) < 3:
        return None
    if pending[2] == ord("[") and pending[1] == ord("["):  # the Linux console's F1 to F5: ESC [ [ A
        return True if len(pending) == 4 else None
    return True if 0x40 <= pending[-1] <= 0x7E else None


def _sequence(data: bytes) -> Stroke | None:
    final = chr(data[-1])
    if data[1:3] == b"[[":
        return (_FUNCTION[ord(final) - ord("A")],) if "A" <= final <= "E" else None
    if data[1:2] == b"O" and final == "M":
        return (_KP_ENTER,)
    if final == "Z":
        return (LEFT_SHIFT, _TAB)
    numbers = data[2:-1].split(b";")
    if not all(number.isdigit() or not number for number in numbers):
        return None
    first, second = (int(number[:4] or b"1") for number in (*numbers, b"", b"")[:2])
    code = _NUMBERS.get(first) if final == "~" else _LETTERS.get(final)
    if code is None:
        return None
    held = second - 1  # xterm's modifiers: 1 Shift, 2 Alt, 4 Control
    modifiers = ((1, LEFT_SHIFT), (2, LEFT_ALT), (4, LEFT_CTRL))
    return (*(key for bit, key in modifiers if held & bit), code)


def _plain(byte: int) -> Stroke | None:
    """A key of its own; None for what no US keyboard types (the bytes of UTF-8)."""
    if byte in (0x7F, 0x08):
        return (_BACKSPACE,)
    if byte in (0x0D, 0x0A):
        return (_ENTER,)
    if byte == 0x09:
        return (_TAB,)
    if byte < 0x20:  # Control with the character 64 above, 0 and 0x1b to 0x1f too
        code, _ = CHARACTERS[chr(byte + 0x40).lower() if byte else "2"]
        return (LEFT_CTRL, code)
    found = CHARACTERS.get(chr(byte))
    if found is None:
        return None
    code, shift = found
    return (LEFT_SHIFT, code) if shift else (code,)
