"""The port that SeaBIOS writes its log to (Bochs' port E9h convention, at 0x402): reads tell that somebody listens."""

from __future__ import annotations

from collections.abc import Callable

from ringfence.core.state import Field, State
from ringfence.devices.api import Device

DEBUG_CONSOLE_PORT = 0x402
_PRESENT = 0xE9
_LINE_BYTES = 256


class DebugConsoleState(State):
    line = Field(8, count=_LINE_BYTES, doc="bytes of the line so far")
    used = Field(9, doc="how many they are")


class DebugConsole(Device):
    """A handler for one port; `on_line` gets each line of text without its end, in pieces where it is long."""

    name = "debug-console"

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self.state: DebugConsoleState = DebugConsoleState()
        self._on_line = on_line

    def read(self, offset: int, size: int) -> int:
        return _PRESENT

    def write(self, offset: int, size: int, value: int) -> None:
        s = self.state
        byte = value & 0xFF
        if byte != 0x0A:
            s.line[s.used] = byte
            s.used += 1
        if byte == 0x0A or s.used == _LINE_BYTES:
            text = bytes(s.line[: s.used]).decode("latin-1").rstrip("\r")
            s.used = 0
            self._on_line(text)
