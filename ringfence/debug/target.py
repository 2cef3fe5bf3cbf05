"""What the stub asks of a machine.  Everything here is called on the machine's own thread.

Addresses of breakpoints are linear.  Registers are named as `Engine.read_state` names them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ringfence.engine.api import Watch

SIGNAL_INT, SIGNAL_TRAP, SIGNAL_ABRT, SIGNAL_SEGV = 2, 5, 6, 11  # GDB's own numbers (include/gdb/signals.def)
MAX_BREAKPOINTS, MAX_WATCHES, MAX_WATCH_BYTES = 128, 28, 1 << 16  # what engines have room for


@dataclass(frozen=True, slots=True)
class Stop:
    """Why the vCPU stands still.  `address`: of the breakpoint, or the datum's within `watch`; `text` is for the user."""

    signal: int
    reason: str = ""  # "breakpoint", "watchpoint" or "step", else empty
    address: int = 0
    watch: Watch | None = None
    text: str = ""


class PhysicalMemory(Protocol):
    """`ringfence.memory.GuestMemory` is one; raises GuestMemoryError."""

    def read(self, guest_addr: int, size_bytes: int) -> bytes: ...

    def write(self, guest_addr: int, data: bytes) -> None: ...


class Target(Protocol):
    """One machine with one vCPU."""

    physical: PhysicalMemory
    has_long_mode: bool

    def registers(self) -> dict[str, int]: ...

    def write_registers(self, values: dict[str, int]) -> None: ...

    def set_points(self, breakpoints: Sequence[int], watches: Sequence[Watch]) -> None:
        """Replaces all breakpoints (linear addresses of instructions) and watchpoints."""

    def attach(self) -> None:
        """A debugger has come: the vCPU stops, and a crash stops it, too."""

    def detach(self) -> None:
        """The debugger has left: all points are removed and the vCPU goes on."""

    def resume(self) -> None: ...

    def step(self, first: int, end: int, interrupts: bool) -> None:
        """One instruction, and more as long as the next one lies in [first, end).  `interrupts`: deliver those that wait."""

    def interrupt(self) -> None:
        """Stops the vCPU with SIGNAL_INT where it is."""

    def kill(self) -> None:
        """Ends the machine."""

    def reset(self) -> None: ...

    def press_power_button(self) -> None: ...

    def describe(self) -> str:
        """One line on the machine, for `monitor info status`."""
