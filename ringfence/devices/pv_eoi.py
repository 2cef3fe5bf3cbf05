"""Paravirtual end of interrupt (Linux, Documentation/virt/kvm/x86/msr.rst, MSR_KVM_PV_EOI_EN).

When an interrupt goes into service and nothing else waits, bit 0 at an address chosen by the guest is set.  A guest that
finds it set clears it and is done: the EOI is noticed when the local APIC next looks at its registers.  Should another
interrupt arrive meanwhile, the bit is taken back, and the guest makes its EOI in the ordinary way.
"""

from __future__ import annotations

from ringfence.devices.apic_state import LocalApicState
from ringfence.memory.guest_memory import GuestMemory

_ENABLED = 1


class PvEoi:
    """Reads and writes the guest's flag; `armed` says that it was set."""

    __slots__ = ("_memory", "_state", "_view")

    def __init__(self, state: LocalApicState, memory: GuestMemory | None) -> None:
        self._state = state
        self._memory = memory
        self._view: memoryview | None = None

    def configure(self, value: int) -> bool:
        """A write of the MSR; False (#GP) when reserved bits are set."""
        if value & 2:
            return False
        self.revoke()
        self._state.pv_eoi = value
        self.locate()
        return True

    def locate(self) -> None:
        """Finds the byte in guest memory; an address outside of RAM switches the mechanism off silently."""
        address = self._state.pv_eoi & ~3
        usable = self._state.pv_eoi & _ENABLED and self._memory is not None and self._memory.contains(address, 1)
        self._view = self._memory.view(address, 1) if usable and self._memory is not None else None
        if self._view is None:
            self._state.pv_eoi_armed = 0

    @property
    def usable(self) -> bool:
        return self._view is not None

    def arm(self) -> None:
        if self._view is not None and self._memory is not None:
            self._memory.write(self._state.pv_eoi & ~3, bytes((self._view[0] | 1,)))
            self._state.pv_eoi_armed = 1

    def taken(self) -> bool:
        """Whether the guest has made its EOI since `arm`."""
        return self._view is not None and not self._view[0] & 1

    def revoke(self) -> None:
        if self._state.pv_eoi_armed and self._view is not None and self._memory is not None:
            self._memory.write(self._state.pv_eoi & ~3, bytes((self._view[0] & 0xFE,)))
        self._state.pv_eoi_armed = 0
