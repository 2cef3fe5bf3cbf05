"""A port whose write ends the machine with a chosen exit status, for tests inside of a guest.

The convention is that of QEMU's `isa-debug-exit` device: value v at port 0xf4 gives exit status (v << 1) | 1.
"""

from __future__ import annotations

from collections.abc import Callable

from ringfence.core.state import Field, State
from ringfence.devices.api import Device

DEBUG_EXIT_BASE = 0xF4
DEBUG_EXIT_PORTS = 4


class DebugExitState(State):
    status = Field(65, doc="status given by the last write, 0 before any")


class DebugExit(Device):
    """A handler for four ports.  `on_exit(status)` is called from within the guest's write."""

    name = "debug-exit"

    def __init__(self, on_exit: Callable[[int], None]) -> None:
        self.state: DebugExitState = DebugExitState()
        self._on_exit = on_exit

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        self.state.status = value << 1 | 1
        self._on_exit(value << 1 | 1)
