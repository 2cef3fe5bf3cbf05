"""The ways a PC's software resets it: port 0xcf9, port 0x92, and the keyboard controller's output line.

    0xcf9  reset control register (PIIX3 82371SB data sheet, 2.5.2); also the ACPI reset register of the FADT
    0x92   system control port A (PS/2 Technical Reference): fast reset and the A20 gate
    0x60,  on boards without an 8042 only its pulse-output command (0xf0-0xff): line 0 is the CPU's reset
    0x64

Boards with a keyboard map `i8042.I8042` at 0x60 and 0x64.  On the others there is no keyboard behind them: the status
register always says "output buffer full", so that a driver that flushes the buffer before anything else gives up after a
few reads, and "input buffer empty", so that whoever wants to send the reset command need not wait.
"""

from __future__ import annotations

from collections.abc import Callable

from ringfence.core.state import Field, State
from ringfence.devices.a20 import A20Gate
from ringfence.devices.api import Device
from ringfence.devices.ports import BytePorts

RESET_CONTROL_PORT = 0xCF9
RESET_CONTROL_VALUE = 0x06  # what the FADT names as RESET_VALUE: hard reset
SYSTEM_CONTROL_PORT = 0x92
KEYBOARD_DATA_PORT, KEYBOARD_COMMAND_PORT = 0x60, 0x64
_SYS_RST, _RST_CPU = 2, 4
_ALT_INIT, _ALT_A20 = 1, 2  # port 0x92
_STATUS_ABSENT = 0xFD


class ResetState(State):
    control = Field(8, doc="reset control register without the bit that triggers")
    port_a = Field(8, reset=_ALT_A20, doc="system control port A; bit 1 is the A20 gate where the board has none")


class ResetControl(Device):
    """Bus handlers of one port each: `control` (0xcf9), `port_a` (0x92), `keyboard_data` (0x60), `keyboard_command` (0x64).

    `on_reset` and `on_cpu_reset` are called from within the guest's write: the first is the reset of the whole machine, the
    second that of the CPU alone, which keeps memory and devices (how software of the 286 leaves protected mode).  Without `a20`
    port 0x92 shows a gate that stays open.  Port 0xcf9 lies inside of the PCI configuration address register 0xcf8-0xcfb, which
    takes only 32-bit accesses: the host bridge passes byte accesses at 0xcf9 to `control`.
    """

    name = "reset"

    def __init__(self, on_reset: Callable[[], None], on_cpu_reset: Callable[[], None], a20: A20Gate | None = None) -> None:
        self.state: ResetState = ResetState()
        self._on_reset = on_reset
        self._on_cpu_reset = on_cpu_reset
        self._a20 = a20
        self.control = BytePorts(1, lambda _: int(self.state.control), self._write_control)
        self.port_a = BytePorts(1, lambda _: self._read_port_a(), self._write_port_a)
        self.keyboard_data = BytePorts(1, lambda _: 0xFF, lambda _, value: None)
        self.keyboard_command = BytePorts(1, lambda _: _STATUS_ABSENT, self._write_command)

    def _write_control(self, _: int, value: int) -> None:
        self.state.control = value & 0x0A
        if value & _RST_CPU:
            (self._on_reset if value & _SYS_RST else self._on_cpu_reset)()

    def _read_port_a(self) -> int:
        value: int = self.state.port_a
        return value if self._a20 is None else value & ~_ALT_A20 | self._a20.enabled << 1

    def _write_port_a(self, _: int, value: int) -> None:
        rising = value & ~self.state.port_a & _ALT_INIT
        self.state.port_a = value & (_ALT_INIT | _ALT_A20)
        if self._a20 is not None:
            self._a20.set(bool(value & _ALT_A20))
        if rising:
            self._on_cpu_reset()

    def _write_command(self, _: int, value: int) -> None:
        if value & 0xF1 == 0xF0:  # 8042: a 0 bit pulses that output line
            self._on_cpu_reset()
