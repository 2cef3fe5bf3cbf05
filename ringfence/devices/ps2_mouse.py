"""A PS/2 mouse: standard, or with a wheel (IntelliMouse), or with a wheel and five buttons (IntelliMouse Explorer).

IBM PS/2 Hardware Interface Technical Reference, "Mouse"; Microsoft IntelliMouse protocol.  A driver asks for the larger
packets by setting three sample rates in a row: 200, 100, 80 for the wheel, 200, 200, 80 for five buttons.

    byte 0   YO XO YS XS 1 M R L        byte 2   movement in y, upwards
    byte 1   movement in x              byte 3   wheel, towards the user; with five buttons 0 0 B5 B4 and four bits of wheel

Movement is gathered while the last packet waits for the line, so the overflow bits are never set; a packet goes out as soon
as the line is free, whatever the sample rate.  A click is never gathered away: every change of a button has its packet.
"""

from __future__ import annotations

from ringfence.core.state import Field
from ringfence.devices.ps2 import ACK, BAT_PASSED, MAX_BUFFER, RESEND, Ps2Device, Ps2State

_STANDARD, _WHEEL, _FIVE_BUTTONS = 0, 3, 4
_SCALING_1_1, _SCALING_2_1, _RESOLUTION, _STATUS, _STREAM, _READ_DATA, _RESET_WRAP, _WRAP = 0xE6, 0xE7, 0xE8, 0xE9, 0xEA, 0xEB, 0xEC, 0xEE
_REMOTE, _GET_ID, _SAMPLE_RATE, _ENABLE, _DISABLE, _DEFAULT, _RESET = 0xF0, 0xF2, 0xF3, 0xF4, 0xF5, 0xF6, 0xFF
_KNOCKS = {(200, 100, 80): _WHEEL, (200, 200, 80): _FIVE_BUTTONS}
_DEFAULT_RATE, _DEFAULT_RESOLUTION = 100, 2  # reports a second; 4 counts a millimetre
_BIAS = 0x8000
_SCALED = (0, 1, 1, 3, 6, 9)


class MouseState(Ps2State):
    kind = Field(3, doc="what the driver asked for: 0 standard, 3 wheel, 4 five buttons")
    remote = Field(1, doc="packets are sent only on request")
    wrap = Field(1, doc="bytes are echoed")
    scaling = Field(1, doc="2:1 instead of 1:1")
    resolution = Field(2, reset=_DEFAULT_RESOLUTION)
    rate = Field(8, reset=_DEFAULT_RATE, doc="sample rate")
    knock = Field(8, count=3, doc="the last three sample rates")
    buttons = Field(5, doc="bit 0 left, 1 right, 2 middle, 3 and 4 on the side")
    told = Field(5, doc="buttons as last sent")
    moved = Field(16, count=3, reset=_BIAS, doc="movement not sent yet, plus 0x8000: right, down, wheel away from the user")
    packet = Field(8, count=4, doc="the last packet or reply, for resending")
    packet_bytes = Field(3)


def _scaled(value: int) -> int:
    """Scaling 2:1, of one packet's movement."""
    size = abs(value)
    size = _SCALED[size] if size < len(_SCALED) else 2 * size
    return size if value >= 0 else -size


class Ps2Mouse(Ps2Device):
    """`move` and `buttons` are for displays and programs, the rest for the controller."""

    name = "ps2-mouse"

    def __init__(self) -> None:
        super().__init__()
        self.state: MouseState = MouseState()

    def move(self, dx: int, dy: int, dz: int = 0) -> None:
        """Counts to the right, downwards, and of the wheel away from the user (signs as Linux's REL_X, REL_Y, REL_WHEEL)."""
        s = self.state
        if not (s.scanning or s.remote):
            return
        for axis, delta in enumerate((dx, dy, dz)):
            s.moved[axis] = min(max(s.moved[axis] + delta, 0), 2 * _BIAS - 1)
        if s.kind == _STANDARD:
            s.moved[2] = _BIAS
        if self._reportable():
            self._send(self._packet(s.scaling))

    def buttons(self, mask: int) -> None:
        """Bit 0 left, 1 right, 2 middle, 3 and 4 on the side."""
        s = self.state
        s.buttons = mask & 0x1F
        if s.buttons != s.told and self._streaming() and len(self._buffer) + self._packet_bytes() <= MAX_BUFFER:
            self._send(self._packet(s.scaling))

    def _streaming(self) -> bool:
        s = self.state
        return bool(s.scanning and not s.remote and not s.wrap)

    def _packet_bytes(self) -> int:
        return 3 if self.state.kind == _STANDARD else 4

    def _reportable(self) -> bool:
        s = self.state
        return self._streaming() and not self._buffer and (s.buttons != s.told or any(value != _BIAS for value in s.moved))

    def _drained(self) -> None:
        if self._reportable():
            self._queue(self._packet(self.state.scaling))

    def _take(self, axis: int, limit: int) -> int:
        """Movement along an axis, as much of it as fits."""
        moved = self.state.moved
        value: int = min(max(moved[axis] - _BIAS, -limit), limit)
        moved[axis] -= value
        return value

    def _packet(self, scaling: int) -> bytes:
        s = self.state
        limit = 127 if scaling else 255
        dx, dy = self._take(0, limit), -self._take(1, limit)
        if scaling:
            dx, dy = _scaled(dx), _scaled(dy)
        s.told = s.buttons
        data = [s.buttons & 7 | 8 | (dx < 0) << 4 | (dy < 0) << 5, dx & 0xFF, dy & 0xFF]
        if s.kind == _WHEEL:
            data.append(-self._take(2, 127) & 0xFF)
        elif s.kind == _FIVE_BUTTONS:
            # One step a packet: some drivers take more for a second wheel.
            data.append(-self._take(2, 1) & 0x0F | s.buttons >> 3 << 4)
        self._remember(*data)
        return bytes(data)

    def _remember(self, *data: int) -> None:
        self.state.packet = [*data, *[0] * (4 - len(data))]
        self.state.packet_bytes = len(data)

    def _answer(self, *values: int) -> None:
        self._remember(*values)
        self._reply(*values)

    def _still(self) -> None:
        """Forgets movement that was not sent."""
        self.state.moved = [_BIAS] * 3
        self.state.told = self.state.buttons
        self._clear_buffer()

    def _defaults(self) -> None:
        s = self.state
        s.scanning = s.remote = s.wrap = s.scaling = 0
        s.resolution, s.rate = _DEFAULT_RESOLUTION, _DEFAULT_RATE
        self._still()

    def _command(self, value: int) -> None:
        s = self.state
        if s.wrap and value not in (_RESET_WRAP, _RESET):
            self._answer(value)
            return
        if value in (_SCALING_1_1, _SCALING_2_1):
            s.scaling = value - _SCALING_1_1
            self._answer(ACK)
        elif value in (_RESOLUTION, _SAMPLE_RATE):
            s.command = value
            self._answer(ACK)
        elif value == _STATUS:
            held = (s.buttons & 1) << 2 | (s.buttons & 4) >> 1 | (s.buttons & 2) >> 1
            self._answer(ACK, s.remote << 6 | s.scanning << 5 | s.scaling << 4 | held, s.resolution, s.rate)
        elif value in (_STREAM, _REMOTE):
            s.remote = int(value == _REMOTE)
            self._still()
            self._answer(ACK)
        elif value == _READ_DATA:
            self._reply(ACK, *self._packet(scaling=0))  # 2:1 is for stream mode only
        elif value in (_WRAP, _RESET_WRAP):
            s.wrap = int(value == _WRAP)
            self._still()
            self._answer(ACK)
        elif value == _GET_ID:
            self._answer(ACK, s.kind)
        elif value in (_ENABLE, _DISABLE):
            s.scanning = int(value == _ENABLE)
            self._still()
            self._answer(ACK)
        elif value == _DEFAULT:
            self._defaults()
            self._answer(ACK)
        elif value == RESEND:
            self._reply(*s.packet[: s.packet_bytes])
        elif value == _RESET:
            self._defaults()
            s.kind, s.knock = _STANDARD, [0, 0, 0]
            self._answer(ACK, BAT_PASSED, s.kind)
        else:
            self._answer(RESEND)

    def _argument(self, command: int, value: int) -> bool:
        s = self.state
        if command == _RESOLUTION:
            if value > 3:
                self._answer(RESEND)
                return True
            s.resolution = value
        else:
            s.rate = value
            s.knock = [*s.knock[1:], value]
            s.kind = _KNOCKS.get(tuple(s.knock), s.kind)
        self._answer(ACK)
        return True
