"""The contract between a machine and whatever executes its vCPUs.

    exit = engine.run(vcpu)      runs guest instructions until something needs the outside; at an instruction boundary
    engine.kick()                from any thread: the current or next `run` returns `Interrupted` soon

`Exit` is a closed union, the same for every engine.  A machine handles an exit and calls `run` again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(slots=True)
class Halt:
    """HLT with interrupts enabled (`wakeable`) or disabled (only NMI or reset could wake it)."""

    wakeable: bool


@dataclass(slots=True)
class Shutdown:
    """Triple fault.  `reason` tells which exceptions led to it."""

    reason: str


@dataclass(slots=True)
class Interrupted:
    """Kicked, or a deadline passed, or an interrupt can be injected now."""


@dataclass(slots=True)
class Fault:
    """The engine cannot go on with this guest (not the guest's architectural fault); `reason` is for the user."""

    reason: str


Exit = Halt | Shutdown | Interrupted | Fault


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

    def kick(self) -> None: ...

    def interrupt_changed(self) -> None:
        """The interrupt controller's `pending` may have become true.  On the vCPU's thread."""

    def deadline_moved(self) -> None:
        """A timer was armed that is due before the deadline given to `run`.  On the vCPU's thread."""

    def read_state(self) -> dict[str, int]:
        """Architectural registers by their manual names (rax, rip, rflags, cr0, cs, gs_base, efer …)."""

    def write_state(self, values: dict[str, int]) -> None:
        """Sets the named registers, all others unchanged."""

    def stats(self) -> dict[str, Any]: ...

    def close(self) -> None: ...
