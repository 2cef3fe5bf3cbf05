"""8042 keyboard controller of a PS/2-class PC, with its auxiliary (mouse) port.

IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device Controller"; IBM PC/AT Technical Reference,
"Keyboard controller"; Intel UPI-41 data sheet for the host's side.

    0x60 data:  read the output buffer; write the argument of a command, else a byte for the keyboard
    0x64 read the status register; write a command

The controller works on commands at once, so the input buffer is never full.  A byte from a device enters the output buffer
when that is empty and the device's line enabled.  A reply to the guest comes at once; a scan code or movement takes the line
about a millisecond, as on the wire: software of the DOS age reads port 0x60 more than once for one interrupt (its own handler,
then the BIOS's) and must see the same byte again.  A vCPU may take longer for that than the CPU of those days, where its host is
busy or the code is new to it; so bytes also wait, for a while, for the end of the interrupt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ringfence.bus.irq import IrqPin
from ringfence.core.clock import Clock
from ringfence.core.errors import SnapshotError
from ringfence.core.state import Field, State
from ringfence.devices.a20 import A20Gate
from ringfence.devices.keymap import SET2_TO_SET1
from ringfence.devices.ports import BytePorts
from ringfence.devices.ps2 import Ps2Device
from ringfence.devices.timed import TimedDevice

DATA_PORT, COMMAND_PORT = 0x60, 0x64
KEYBOARD_IRQ, MOUSE_IRQ = 1, 12
_LINE_NS = 1_000_000  # 11 bits at about 11 kHz
_SERVICE_POLL_NS, _MAX_SERVICE_NS = 200_000, 100_000_000

_OBF, _SYS, _A2, _UNLOCKED, _AUX_OBF, _TIMEOUT = 1 << 0, 1 << 2, 1 << 3, 1 << 4, 1 << 5, 1 << 6  # status register
_KBD_INT, _AUX_INT, _SYS_FLAG, _KBD_OFF, _AUX_OFF, _TRANSLATE = 1 << 0, 1 << 1, 1 << 2, 1 << 4, 1 << 5, 1 << 6  # command byte
_FIRMWARE_COMMAND_BYTE = _KBD_INT | _SYS_FLAG | _AUX_OFF | _TRANSLATE
_NOT_RESET, _A20_OPEN, _OUTPUT_ONES = 1 << 0, 1 << 1, 0xCC  # output port; the lines of the devices' clock and data are high
_INPUT_PORT = 0xB0  # lock open, colour display, no manufacturing jumper, RAM
_NO_PASSWORD, _SELF_TEST_PASSED, _LINE_TEST_PASSED, _NO_ANSWER = 0xF1, 0x55, 0x00, 0xFE

_TEST_PASSWORD, _LOAD_PASSWORD, _AUX_DISABLE, _AUX_ENABLE, _AUX_TEST = 0xA4, 0xA5, 0xA7, 0xA8, 0xA9
_SELF_TEST, _KBD_TEST, _KBD_DISABLE, _KBD_ENABLE = 0xAA, 0xAB, 0xAD, 0xAE
_READ_INPUT, _READ_OUTPUT, _WRITE_OUTPUT, _FROM_KBD, _FROM_AUX, _TO_AUX = 0xC0, 0xD0, 0xD1, 0xD2, 0xD3, 0xD4
_A20_SHUT_COMMAND, _A20_OPEN_COMMAND, _READ_TEST_INPUTS = 0xDD, 0xDF, 0xE0

_NOTHING, _KEYBOARD, _AUX = 0, 1, 2


class I8042State(State):
    ram = Field(8, count=32, doc="the controller's RAM; byte 0 is the command byte")
    data = Field(8, doc="output buffer; keeps its value when it was read")
    full = Field(1, doc="the output buffer holds a byte that was not read (OBF)")
    aux = Field(1, doc="that byte is the mouse's")
    timeout = Field(1, doc="a device did not answer")
    a2 = Field(1, doc="the last write was a command")
    expects = Field(8, doc="command whose data byte comes next, 0 for none")
    reply = Field(8, doc="the controller's own reply that waits for the output buffer")
    reply_kind = Field(2, doc="0 there is none, 1 as if from the keyboard, 2 from the mouse")
    release = Field(1, doc="translation has seen f0")
    line_ns = Field(32, doc="time until the next scan code or movement may enter (filled in by save)")

    def reset(self) -> None:
        super().reset()
        self.ram[0] = _KBD_INT | _AUX_INT


class I8042(TimedDevice):
    """Bus handlers of one port each: `data` (0x60) and `command` (0x64).

    `keyboard` and `mouse` are devices of their own for reset and snapshots; without a mouse its port answers with time-outs.
    `on_reset` is called from within the guest's write, `a20` is the gate that it shares with port 0x92.  `in_service` tells
    whether the CPU is in a handler of IRQ 1 or 12.
    """

    name = "i8042"

    def __init__(
        self,
        keyboard_irq: IrqPin,
        mouse_irq: IrqPin,
        clock: Clock,
        keyboard: Ps2Device,
        mouse: Ps2Device | None,
        a20: A20Gate,
        on_reset: Callable[[], None],
        in_service: Callable[[], bool] = lambda: False,
    ) -> None:
        self.state: I8042State = I8042State()
        self._keyboard_irq = keyboard_irq
        self._mouse_irq = mouse_irq
        self._clock = clock
        self._keyboard = keyboard
        self._mouse = mouse
        self._a20 = a20
        self._on_reset = on_reset
        self._in_service = in_service
        self._line_free_ns = 0
        self._timer = clock.timer(self._fill)
        self.data = BytePorts(1, lambda _: self._read_data(), lambda _, value: self._write_data(value))
        self.command = BytePorts(1, lambda _: self._status(), lambda _, value: self._write_command(value))
        keyboard.connect(self._fill)
        if mouse is not None:
            mouse.connect(self._fill)

    def start_as_firmware(self) -> None:
        """What firmware leaves behind, for kernels that are started without one: translation and IRQ 1 on, the mouse off."""
        self.state.ram[0] = _FIRMWARE_COMMAND_BYTE
        self._update()

    # --- Device ---

    def reset(self) -> None:
        self.state.reset()
        self._timer.cancel()
        self._line_free_ns = 0
        self._update()

    def _freeze(self) -> None:
        self.state.line_ns = max(0, self._line_free_ns - self._clock.now_ns())

    def _thaw(self) -> None:
        self._line_free_ns = self._clock.now_ns() + self.state.line_ns
        self._fill()

    def _stop_timers(self) -> None:
        self._timer.cancel()

    def load(self, saved: dict[str, Any]) -> None:
        if isinstance(line_ns := saved.get("line_ns"), int) and line_ns > _LINE_NS:
            raise SnapshotError(f"{self.name}: a line is busy for {line_ns} ns")
        self.state.load(saved)
        self._stop_timers()
        for pin, level in zip((self._keyboard_irq, self._mouse_irq), self._levels(), strict=True):
            pin.restore(level)
        self._line_free_ns = self._clock.now_ns() + self.state.line_ns
        self._timer.arm(self._line_free_ns)  # not at once: the devices at the lines may be loaded after this one

    # --- output buffer ---

    def _levels(self) -> tuple[bool, bool]:
        """IRQ 1 and IRQ 12."""
        s = self.state
        command_byte = s.ram[0]
        if not s.full:
            return False, False
        if s.aux:
            return False, bool(command_byte & _AUX_INT)
        # A line that is switched off asks for nothing: whoever reads replies by polling does that first.
        return bool(command_byte & _KBD_INT and not command_byte & _KBD_OFF), False

    def _update(self) -> None:
        keyboard, mouse = self._levels()
        self._keyboard_irq.set(keyboard)
        self._mouse_irq.set(mouse)

    def _put(self, value: int, aux: bool, timeout: bool = False) -> None:
        s = self.state
        s.data, s.full, s.aux, s.timeout = value, 1, int(aux), int(timeout)
        self._update()

    def _fill(self) -> None:
        """Moves the next byte into the output buffer when that is empty."""
        s = self.state
        if s.full or self._paused:
            return
        if s.reply_kind:
            aux, s.reply_kind = s.reply_kind == _AUX, _NOTHING
            self._put(s.reply, aux)
            return
        now_ns = self._clock.now_ns()
        line_is_free = now_ns >= self._line_free_ns and not (now_ns < self._line_free_ns + _MAX_SERVICE_NS and self._in_service())
        waiting = False
        for device, off in ((self._keyboard, _KBD_OFF), (self._mouse, _AUX_OFF)):
            if device is None or s.ram[0] & off or not device.backlog_bytes:
                continue
            if not (device.answers or line_is_free):
                waiting = True
            elif (value := self._fetch(device)) is not None:
                self._put(value, device is self._mouse)
                return
        if waiting:
            self._timer.arm(max(self._line_free_ns, now_ns + _SERVICE_POLL_NS))

    def _fetch(self, device: Ps2Device) -> int | None:
        """A byte from a device's line, translated when it is the keyboard's.  None: there was but the f0 of a release."""
        s = self.state
        value = device.take()
        if device is self._mouse:
            return value
        if not s.ram[0] & _TRANSLATE:
            s.release = 0
            return value
        if value == 0xF0:
            s.release = 1
            value = device.take()
        if value is None or value == 0xF0:
            return None
        if value in (0xE0, 0xE1):
            return value
        release: int = s.release << 7
        s.release = 0
        return SET2_TO_SET1[value] | release

    def _reply(self, value: int, kind: int = _KEYBOARD) -> None:
        """A reply of the controller itself goes ahead of what the devices have.  A newer one replaces one that waits."""
        self.state.reply, self.state.reply_kind = value, kind
        self._fill()

    # --- ports ---

    def _status(self) -> int:
        s = self.state
        value = _UNLOCKED | s.ram[0] & _SYS_FLAG | s.a2 << 3 | s.timeout << 6
        return int(value | (_OBF | s.aux << 5 if s.full else 0))

    def _read_data(self) -> int:
        s = self.state
        value = int(s.data)
        if s.full:
            s.full = s.timeout = 0
            self._update()
            self._line_free_ns = self._clock.now_ns() + _LINE_NS
            self._fill()
        return value

    def _write_data(self, value: int) -> None:
        s = self.state
        expects, s.expects, s.a2 = s.expects, 0, 0
        if expects == 0:
            s.ram[0] &= ~_KBD_OFF  # sending to the keyboard enables its line
            self._keyboard.receive(value)
        elif expects < 0x80:
            s.ram[expects & 0x1F] = value
        elif expects == _LOAD_PASSWORD:
            s.expects = _LOAD_PASSWORD if value else 0  # swallowed up to its final zero
        elif expects == _WRITE_OUTPUT:
            self._a20.set(bool(value & _A20_OPEN))
            if not value & _NOT_RESET:
                self._on_reset()
        elif expects == _FROM_KBD:
            self._reply(value)
        elif expects == _FROM_AUX:
            self._reply(value, _AUX)
        elif self._mouse is not None:
            s.ram[0] &= ~_AUX_OFF
            self._mouse.receive(value)
        elif not s.full:
            self._put(_NO_ANSWER, aux=True, timeout=True)
        self._update()
        self._fill()

    def _write_command(self, command: int) -> None:
        s = self.state
        s.a2, s.expects = 1, 0
        if 0x20 <= command < 0x40:
            self._reply(s.ram[command & 0x1F])
        elif 0x60 <= command < 0x80 or command in (_LOAD_PASSWORD, _WRITE_OUTPUT, _FROM_KBD, _FROM_AUX, _TO_AUX):
            s.expects = command
        elif command == _TEST_PASSWORD:
            self._reply(_NO_PASSWORD)
        elif command == _AUX_DISABLE:
            s.ram[0] |= _AUX_OFF
        elif command == _AUX_ENABLE:
            s.ram[0] &= ~_AUX_OFF
        elif command in (_AUX_TEST, _KBD_TEST):
            self._reply(_LINE_TEST_PASSED)
        elif command == _SELF_TEST:
            s.ram[0] |= _SYS_FLAG
            self._reply(_SELF_TEST_PASSED)
        elif command == _KBD_DISABLE:
            s.ram[0] |= _KBD_OFF
        elif command == _KBD_ENABLE:
            s.ram[0] &= ~_KBD_OFF
        elif command == _READ_INPUT:
            self._reply(_INPUT_PORT)
        elif command == _READ_OUTPUT:
            keyboard, mouse = self._levels()
            self._reply(_OUTPUT_ONES | _NOT_RESET | self._a20.enabled << 1 | keyboard << 4 | mouse << 5)
        elif command in (_A20_SHUT_COMMAND, _A20_OPEN_COMMAND):
            self._a20.set(command == _A20_OPEN_COMMAND)
        elif command == _READ_TEST_INPUTS:
            self._reply((not s.ram[0] & _KBD_OFF) | (not s.ram[0] & _AUX_OFF) << 1)
        elif command & 0xF1 == 0xF0:  # pulse output lines: bit 0 low pulses the CPU's reset
            self._on_reset()
        self._update()
        self._fill()
