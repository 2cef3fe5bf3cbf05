"""What each vCPU of a board has of its own: a local APIC at the address where all have theirs, and registers that live in devices."""

from __future__ import annotations

from typing import NamedTuple

from ringfence.bus.bus import Bus
from ringfence.devices.apic import APIC_BASE, APIC_SIZE, LocalApic
from ringfence.machine.boards.msrs import MsrRouter


class OwnApicSpace:
    """The board's MMIO as a further vCPU sees it; is an `engine.api.AddressSpace`."""

    def __init__(self, mmio: Bus, apic: LocalApic) -> None:
        self._mmio = mmio
        self._apic = apic

    def read(self, address: int, size: int) -> int:
        if APIC_BASE <= address <= APIC_BASE + APIC_SIZE - size:
            return self._apic.read(address - APIC_BASE, size) & (1 << 8 * size) - 1
        return self._mmio.read(address, size)

    def write(self, address: int, size: int, value: int) -> None:
        if APIC_BASE <= address <= APIC_BASE + APIC_SIZE - size:
            self._apic.write(address - APIC_BASE, size, value & (1 << 8 * size) - 1)
        else:
            self._mmio.write(address, size, value)


class CpuParts(NamedTuple):
    """Of a vCPU beside the first."""

    apic: LocalApic
    msrs: MsrRouter
    mmio: OwnApicSpace

    def interrupt_waits(self, deaf: bool) -> bool:
        """Whether the vCPU, halted, has to wake up; of one with interrupts disabled (`deaf`), only for an NMI."""
        return self.apic.nmi_pending or (not deaf and self.apic.pending())
