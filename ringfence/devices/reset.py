"""The ways a PC's software resets it: port 0xcf9, port 0x92, and the keyboard controller's output line.

    0xcf9  reset control register (PIIX3 82371SB data sheet, 2.5.2); also the ACPI reset register of the FADT
    0x92   system control port A (PS/2 Technical Reference): fast reset and the A20 gate
    0x60,  of an 8042 only its pulse-output command (0xf0-0xff): line 0 is the CPU's reset
    0x64

There is no keyboard behind 0x60 and 0x64.  The status register always says "output buffer full", so that a driver that
flushes the buffer before anything else gives up after a few reads, and "input buffer empty", so that whoever wants to
send the reset command need not wait.
"""

from __future__ import annotations

from collections.abc import Callable

from ringfence.core.state import Field, State
from ringfence.devices.api import Device
from ringfence.devices.ports import BytePorts

RESET_CONTROL_PORT = 0xCF9
RESET_CONTROL_VALUE = 0x06  # what the FADT names as RESET_VALUE: hard reset
SYSTEM_CONTROL_PORT = 0x92
KEYBOARD_DATA_PORT, KEYBOARD_COMMAND_PORT = 0x60, 0x64
_RST_CPU = 4
_STATUS_ABSENT = 0xFD


class ResetState(State):
    control = Field(8, doc="reset control register without the bit that triggers")
    port_a = Field(8, reset=0x02, doc="system control port A; bit 1 is the A20 gate, which is always open")


class ResetControl(Device):
    """Bus handlers of one port each: `control` (0xcf9), `port_a` (0x92), `keyboard_data` (0x60), `keyboard_command` (0x64).

    `on_reset` is called from within the guest's write.  Port 0xcf9 lies inside of the PCI configuration address register
    0xcf8-0xcfb, which takes only 32-bit accesses: the host bridge passes byte accesses at 0xcf9 to `control`.
    """

    name = "reset"

    def __init__(self, on_reset: Callable[[], None]) -> None:
        self.state: ResetState = ResetState()
        self._on_reset = on_reset
        self.control = BytePorts(1, lambda _: int(self.state.control), self._write_control)
        self.port_a = BytePorts(1, lambda _: int(self.state.port_a), self._write_port_a)
        self.keyboard_data = BytePorts(1, lambda _: 0xFF, lambda _, value: None)
        self.keyboard_command = BytePorts(1, lambda _: _STATUS_ABSENT, self._write_command)

    def _write_control(self, _: int, value: int) -> None:
        self.state.control = value & 0x0A
        if value & _RST_CPU:
            self._on_reset()

    def _write_port_a(self, _: int, value: int) -> None:
        rising = value & ~self.state.port_a & 1
        self.state.port_a = value & 0x03
        if rising:
            self._on_reset()

    def _write_command(self, _: int, value: int) -> None:
        if value & 0xF1 == 0xF0:  # 8042: a 0 bit pulses that output line
            self._on_reset()
