"""A PS/2 keyboard with 101 or more keys (IBM PS/2 Hardware Interface Technical Reference, "Keyboard (101- and 102-key)").

All three scan code sets, with the fake shifts that the grey keys send so that software for the 84-key keyboard, which
does not know the prefix e0, sees what it expects.  Typematic settings are kept but the repetition comes from outside:
`key(code, True)` for a key that is down already repeats it, as displays do while a key is held.
"""

from __future__ import annotations

from ringfence.core.state import Field
from ringfence.devices import keymap
from ringfence.devices.keymap import Key
from ringfence.devices.ps2 import ACK, BAT_PASSED, RESEND, Ps2Device, Ps2State

BUFFER_BYTES = 16
_TYPEMATIC, _MAKE_BREAK, _MAKE, _ALL = range(4)  # key types of set 3
_SET3_CODES = 0x90
_FIRST_COMMAND = 0xED
_SET_LEDS, _ECHO, _SCAN_CODE_SET, _IDENTIFY = 0xED, 0xEE, 0xF0, 0xF2
_TYPEMATIC_RATE, _ENABLE, _DEFAULT_DISABLE, _DEFAULT = 0xF3, 0xF4, 0xF5, 0xF6
_SET_ALL = {0xF7: _TYPEMATIC, 0xF8: _MAKE_BREAK, 0xF9: _MAKE, 0xFA: _ALL}
_SET_KEY = {0xFB: _TYPEMATIC, 0xFC: _MAKE_BREAK, 0xFD: _MAKE}
_RESET = 0xFF
_IDENTITY = (0xAB, 0x83)
_LED_NUM_LOCK = 2
_DEFAULT_RATE = 0x2B  # 10.9 a second, after half a second
_SYSRQ_SET2 = 0x84  # Print Screen with Alt
_PAUSE = bytes.fromhex("e1 14 77 e1 f0 14 f0 77")
_LEFT_SHIFT, _RIGHT_SHIFT = 0x12, 0x59
# Grey keys that the keypad of the 84-key keyboard had: their fake shifts hide Num Lock and Shift from old software.
_NAVIGATION = frozenset(keymap.CODES[n] for n in ("home", "up", "pageup", "left", "right", "end", "down", "pagedown", "insert", "delete"))
_KPSLASH = keymap.CODES["kpslash"]
_MAKE_BREAK_KEYS = "capslock leftshift rightshift leftctrl leftalt"
_MAKE_KEYS = (
    "rightalt rightctrl insert home end pageup pagedown numlock kp7 kp4 kp1 kpslash kp8 kp5 kp2 kp0 kpasterisk kp9 kp6 kp3 kpdot kpminus"
    " kpenter esc f1 f2 f3 f4 f5 f6 f7 f8 f9 f10 f11 f12 sysrq scrolllock pause"
)


def _default_types() -> list[int]:
    types = [_TYPEMATIC] * _SET3_CODES
    for names, kind in ((_MAKE_BREAK_KEYS, _MAKE_BREAK), (_MAKE_KEYS, _MAKE)):
        for name in names.split():
            types[keymap.KEYS[keymap.CODES[name]].set3] = kind
    return types


class KeyboardState(Ps2State):
    scan_code_set = Field(2, reset=2, doc="1, 2 or 3")
    leds = Field(3, doc="bit 0 Scroll Lock, 1 Num Lock, 2 Caps Lock")
    typematic = Field(7, reset=_DEFAULT_RATE, doc="bits 0-4 rate, 5-6 delay")
    types = Field(2, count=_SET3_CODES, doc="of keys in set 3: 0 typematic, 1 make/break, 2 make, 3 all of it")
    down = Field(1, count=256, doc="keys held down, by their input number")
    sysrq = Field(1, doc="Print Screen went down as SysRq")
    faking = Field(8, doc="the key whose fake shifts are in force, 0 for none")
    faked_down = Field(1, doc="they press Shift; else they lift it")

    def reset(self) -> None:
        super().reset()
        self.scanning = 1
        self.types = _default_types()


class Ps2Keyboard(Ps2Device):
    """`key` is for displays and programs, the rest for the controller."""

    name = "ps2-keyboard"

    def __init__(self) -> None:
        super().__init__()
        self.state: KeyboardState = KeyboardState()

    @property
    def leds(self) -> int:
        return int(self.state.leds)

    def key(self, code: int, down: bool) -> None:
        """A key of Linux's number `code` goes down, repeats, or goes up.  Numbers that no PS/2 keyboard has are ignored.

        The buffer holds 16 bytes; what the guest is too slow for is lost, with an overrun code.
        """
        key = keymap.KEYS.get(code)
        if key is None:
            return
        s = self.state
        sequence = b""
        if s.scanning:
            sequence = self._set3(key, down) if s.scan_code_set == 3 else self._set2(key, down)
            if s.scan_code_set == 1:
                sequence = keymap.to_set1(sequence)
        s.down[code] = int(down)
        if not sequence:
            return
        overrun = 0xFF if s.scan_code_set == 1 else 0x00
        if len(self._buffer) + len(sequence) <= BUFFER_BYTES:
            self._send(sequence)
        elif self._buffer[-1] != overrun:
            self._send(bytes((overrun,)))

    # --- scan codes ---

    def _set3(self, key: Key, down: bool) -> bytes:
        if not key.set3:
            return b""
        s = self.state
        kind = s.types[key.set3]
        if down:
            return b"" if s.down[key.code] and kind in (_MAKE_BREAK, _MAKE) else bytes((key.set3,))
        return bytes((0xF0, key.set3)) if kind in (_MAKE_BREAK, _ALL) else b""

    def _set2(self, key: Key, down: bool) -> bytes:
        s = self.state
        code, held = key.code, s.down
        repeated = down and s.faking == code
        before = b"" if s.faking == code else self._end_fake()
        control = held[keymap.KEY_LEFTCTRL] or held[keymap.KEY_RIGHTCTRL]
        if code == keymap.KEY_PAUSE:  # never repeats, and has no break code
            if not down or held[code]:
                return before
            return before + (bytes.fromhex("e0 7e e0 f0 7e") if control else _PAUSE)
        prefix, last = key.set2 >> 8, key.set2 & 0xFF
        if code == keymap.KEY_SYSRQ:
            if down and not repeated and (s.sysrq or held[keymap.KEY_LEFTALT] or held[keymap.KEY_RIGHTALT]):
                s.sysrq = 1
            if s.sysrq:
                s.sysrq = int(down)
                prefix, last = 0, _SYSRQ_SET2
        head = bytes((prefix,)) if prefix else b""
        if not down:
            return before + head + bytes((0xF0, last)) + (self._end_fake() if s.faking == code else b"")
        if not repeated and prefix:
            before += self._begin_fake(code, bool(control))
        return before + head + bytes((last,))

    def _shifts(self) -> list[int]:
        """Codes of the Shift keys that are down."""
        held = self.state.down
        pairs = ((keymap.KEY_LEFTSHIFT, _LEFT_SHIFT), (keymap.KEY_RIGHTSHIFT, _RIGHT_SHIFT))
        return [code for key, code in pairs if held[key]]

    def _begin_fake(self, code: int, control: bool) -> bytes:
        s = self.state
        shifts = self._shifts()
        if shifts and (code in _NAVIGATION or code == _KPSLASH):
            s.faking, s.faked_down = code, 0
            return b"".join(bytes((0xE0, 0xF0, shift)) for shift in shifts)
        if not shifts and ((code in _NAVIGATION and s.leds & _LED_NUM_LOCK) or (code == keymap.KEY_SYSRQ and not control)):
            s.faking, s.faked_down = code, 1
            return bytes((0xE0, _LEFT_SHIFT))
        return b""

    def _end_fake(self) -> bytes:
        """Undoes fake shifts: when their key goes up, or before anything else is sent."""
        s = self.state
        if not s.faking:
            return b""
        s.faking = 0
        if s.faked_down:
            return bytes((0xE0, 0xF0, _LEFT_SHIFT))
        return b"".join(bytes((0xE0, shift)) for shift in self._shifts())

    # --- commands ---

    def _defaults(self) -> None:
        s = self.state
        s.scan_code_set, s.typematic, s.types = 2, _DEFAULT_RATE, _default_types()
        s.faking = s.sysrq = 0
        self._clear_buffer()

    def _command(self, value: int) -> None:
        s = self.state
        if value == _ECHO:
            self._reply(_ECHO)
        elif value == RESEND:
            self._reply(s.last)
        elif value == _IDENTIFY:
            self._reply(ACK, *_IDENTITY)
        elif value in (_SET_LEDS, _SCAN_CODE_SET, _TYPEMATIC_RATE) or value in _SET_KEY:
            s.command = value
            self._reply(ACK)
        elif value == _ENABLE:
            s.scanning = 1
            self._clear_buffer()
            self._reply(ACK)
        elif value in (_DEFAULT, _DEFAULT_DISABLE):
            self._defaults()
            s.scanning = int(value == _DEFAULT)
            self._reply(ACK)
        elif value in _SET_ALL:
            s.types = [_SET_ALL[value]] * _SET3_CODES
            self._clear_buffer()
            self._reply(ACK)
        elif value == _RESET:
            self._defaults()
            s.scanning, s.leds = 1, 0
            self._reply(ACK, BAT_PASSED)
        else:
            self._reply(RESEND)

    def _argument(self, command: int, value: int) -> bool:
        s = self.state
        if command in _SET_KEY:
            if value >= _FIRST_COMMAND:
                return False
            if value < _SET3_CODES:
                s.types[value] = _SET_KEY[command]
            s.command = command  # more codes may follow, up to the next command
        elif value & 0x80:
            return False
        elif command == _SET_LEDS:
            s.leds = value & 7
        elif command == _TYPEMATIC_RATE:
            s.typematic = value
        elif value > 3:
            self._reply(RESEND)
            return True
        elif value == 0:
            self._reply(ACK, s.scan_code_set)
            return True
        else:
            s.scan_code_set = value
            self._clear_buffer()
        self._reply(ACK)
        return True
