"""The contract between a machine and whatever executes its vCPUs.

    exit = engine.run(vcpu)      runs guest instructions until something needs the outside; at an instruction boundary
    engine.kick()                from any thread: the current or next `run` returns `Interrupted` soon

`Exit` is a closed union, the same for every engine.  A machine handles an exit and calls `run` again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ringfence.core.record import Record


class Halt(Record):
    """HLT with interrupts enabled (`wakeable`) or disabled (only NMI or reset could wake it)."""

    wakeable: bool


class Shutdown(Record):
    """Triple fault.  `reason` tells which exceptions led to it."""

    reason: str


class Interrupted(Record):
    """Kicked, or a deadline passed, or an interrupt can be injected now."""


class Fault(Record):
    """The engine cannot go on with this guest (not the guest's architectural fault); `reason` is for the user."""

    reason: str


class Watch(Record):
    """Data that a debugger watches: `size_bytes` (1 or more) from linear address `address` on."""

    address: int
    size_bytes: int
    on_read: bool
    on_write: bool


class Debug(Record):
    """A debugger's point was met.  With `watch` the access has been made and the instruction is done; without, the instruction
    at linear address `address`, which has a breakpoint, has not begun."""

    address: int
    watch: Watch | None = None


Exit = Halt | Shutdown | Interrupted | Fault | Debug


class AddressSpace(Protocol):
    """I/O ports or MMIO as an engine sees them (`ringfence.bus.bus.Bus` is one).  Sizes in bytes: 1, 2, 4, 8.

    An engine performs port I/O and MMIO itself, between two guest instructions and on the vCPU's thread; only what the
    machine must decide becomes an Exit.
    """

    def read(self, address: int, size: int) -> int: ...

    def write(self, address: int, size: int, value: int) -> None: ...


class InterruptController(Protocol):
    """What an engine asks of the machine's local APIC (and PIC behind it) for one vCPU."""

    def pending(self) -> bool:
        """Whether an interrupt of high enough priority waits."""

    def acknowledge(self) -> int:
        """Takes the interrupt of highest priority and returns its vector (0-255)."""


class MsrHandler(Protocol):
    """Model-specific registers that live in devices (x2APIC, kvmclock).  None / False means #GP."""

    def read_msr(self, index: int) -> int | None: ...

    def write_msr(self, index: int, value: int) -> bool: ...


class Engine(Protocol):
    """One vCPU's executor."""

    name: str

    def run(self, deadline_ns: int | None) -> Exit:
        """Runs until an exit, at the latest shortly after `deadline_ns` of the machine's clock."""

    def step(self, interrupts: bool) -> Exit | None:
        """One instruction, breakpoint or not, or with `interrupts` the delivery of one that waits.  None: nothing to tell."""

    def set_points(self, breakpoints: Sequence[int], watches: Sequence[Watch]) -> None:
        """The debugger's breakpoints (linear addresses of instructions) and watchpoints, in place of those before.  `run` passes
        over a breakpoint at the very instruction that it starts with."""

    def kick(self) -> None: ...

    def interrupt_changed(self) -> None:
        """The interrupt controller's `pending` may have become true.  On the vCPU's thread."""

    def deadline_moved(self) -> None:
        """A timer was armed that is due before the deadline given to `run`.  On the vCPU's thread."""

    def read_state(self) -> dict[str, int]:
        """Architectural registers by their manual names (rax, rip, rflags, cr0, cs, gs_base, efer …)."""

    def write_state(self, values: dict[str, int]) -> None:
        """Sets the named registers, all others unchanged."""

    def rest(self) -> int:
        """The guest has been idle for a while: gives memory back that can be made again, in bytes.  Between two calls of `run`, on the
        vCPU's thread."""

    def stats(self) -> dict[str, Any]: ...

    def close(self) -> None: ...
