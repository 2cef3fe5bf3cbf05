"""Several local APICs: who gets an interprocessor interrupt, an MSI, an I/O APIC's message (SDM 3A 11.6.2, 11.11)."""

from __future__ import annotations

import pytest

from ringfence.core.clock import ManualClock
from ringfence.devices.apic import ApicBus, LocalApic
from ringfence.devices.ioapic import IoApic
from ringfence.memory.guest_memory import GuestMemory

LDR, DFR, SVR, ICR, ICR_HIGH, TPR = 0xD0, 0xE0, 0xF0, 0x300, 0x310, 0x80
BASE, X2APIC_ICR, PV_EOI = 0x1B, 0x830, 0x4B56_4D04
FLAT, CLUSTER = 0xFFFF_FFFF, 0x0FFF_FFFF
LOGICAL, LOWEST, LEVEL = 1 << 11, 1 << 8, 1 << 15
FLAG = 0x1000


class Rig:
    """`elsewhere` are the CPUs whose threads do not make the call that is under test."""

    def __init__(self, count: int) -> None:
        self.memory = GuestMemory()
        self.memory.add_ram(0, 0x4000)
        self.bus = ApicBus()
        self.told: list[int] = []
        self.elsewhere: set[int] = set()
        self.apics = [self._make(number) for number in range(count)]
        for apic in self.apics:
            self.bus.add(apic)
            apic.write(SVR, 4, 0x1FF)

    def _make(self, n: int) -> LocalApic:
        clock = ManualClock()
        return LocalApic(
            n, clock, 10**9, clock.now_ns, lambda: self.told.append(n), lambda vector: None, self.bus, self.memory,
            is_elsewhere=lambda: n in self.elsewhere,
        )  # fmt: skip

    def model(self, dfr: int, ldrs: list[int]) -> None:
        for apic, ldr in zip(self.apics, ldrs, strict=True):
            apic.write(DFR, 4, dfr)
            apic.write(LDR, 4, ldr << 24)

    def x2apic(self) -> None:
        for apic in self.apics:
            base = apic.read_msr(BASE)
            assert base is not None and apic.write_msr(BASE, base | 0x400)

    def ipi(self, source: int, destination: int, icr: int) -> None:
        self.apics[source].write(ICR_HIGH, 4, destination << 24)
        self.apics[source].write(ICR, 4, icr)

    def taken(self) -> list[int]:
        """Numbers of the CPUs that an interrupt waits for, which they take."""
        found = [n for n, apic in enumerate(self.apics) if apic.pending()]
        for n in found:
            self.apics[n].acknowledge()
            self.apics[n].write(0xB0, 4, 0)
        return found


@pytest.mark.parametrize(
    ("destination", "logical", "who"),
    [(2, False, [2]), (0xFF, False, [0, 1, 2, 3]), (9, False, []), (0b1010, True, [1, 3]), (0xFF, True, [0, 1, 2, 3]), (0x10, True, [])],
)
def test_physical_and_flat(destination: int, logical: bool, who: list[int]) -> None:
    rig = Rig(4)
    rig.model(FLAT, [1, 2, 4, 8])
    rig.ipi(0, destination, 0x41 | (LOGICAL if logical else 0))
    assert rig.taken() == who
    rig.bus.send_msi(0xFEE0_0000 | destination << 12 | (4 if logical else 0), 0x42)
    assert rig.taken() == who


@pytest.mark.parametrize(
    ("destination", "who"), [(0x11, [0]), (0x13, [0, 1]), (0x21, [2]), (0x2F, [2, 3]), (0x31, []), (0xFF, [0, 1, 2, 3])]
)
def test_clusters(destination: int, who: list[int]) -> None:
    rig = Rig(4)
    rig.model(CLUSTER, [0x11, 0x12, 0x21, 0x22])
    rig.ipi(3, destination, 0x41 | LOGICAL)
    assert rig.taken() == who


@pytest.mark.parametrize(
    ("destination", "logical", "who"),
    [(17, False, [17]), (0x0001_0006, True, [17, 18]), (0x0000_0003, True, [0, 1]), (0xFFFF_FFFF, False, list(range(20)))],
)
def test_x2apic_clusters_of_sixteen(destination: int, logical: bool, who: list[int]) -> None:
    rig = Rig(20)
    rig.x2apic()
    assert rig.apics[18].read_msr(0x80D) == 0x0001_0004
    rig.apics[5].write_msr(X2APIC_ICR, destination << 32 | 0x41 | (LOGICAL if logical else 0))
    assert [n for n, apic in enumerate(rig.apics) if apic.pending()] == who


@pytest.mark.parametrize(("shorthand", "who"), [(1, [2]), (2, [0, 1, 2]), (3, [0, 1])])
def test_shorthands(shorthand: int, who: list[int]) -> None:
    rig = Rig(3)
    rig.ipi(2, 0, 0x41 | shorthand << 18)
    assert rig.taken() == who


def test_lowest_priority_goes_to_the_least_busy() -> None:
    rig = Rig(3)
    rig.model(FLAT, [1, 2, 4])
    rig.apics[0].write(TPR, 4, 0x50)
    rig.apics[2].write(TPR, 4, 0x20)
    rig.ipi(0, 0b101, 0x61 | LOGICAL | LOWEST)
    assert rig.taken() == [2]
    rig.apics[2].write(TPR, 4, 0x60)
    rig.ipi(1, 0b101, 0x61 | LOGICAL | LOWEST)
    assert rig.taken() == [0]


def test_the_io_apic_reaches_every_cpu() -> None:
    rig = Rig(2)
    ioapic = IoApic(rig.bus.send_msi)
    line = ioapic.input(5)
    for destination in (1, 0):
        ioapic.write(0, 4, 0x10 + 2 * 5 + 1)
        ioapic.write(0x10, 4, destination << 24)
        ioapic.write(0, 4, 0x10 + 2 * 5)
        ioapic.write(0x10, 4, 0x71)
        line(True)
        line(False)
        assert rig.taken() == [destination]


def test_nobody_with_its_apic_off() -> None:
    rig = Rig(2)
    base = rig.apics[1].read_msr(BASE)
    assert base is not None and rig.apics[1].write_msr(BASE, base & ~0x800)
    rig.ipi(0, 0xFF, 0x41)
    assert rig.taken() == [0]


def test_the_flag_of_a_cpu_that_executes_is_left_alone() -> None:
    """Paravirtual EOI: taking it back while its CPU clears it, by an instruction that is not atomic, would lose an EOI."""
    rig = Rig(2)
    apic = rig.apics[1]
    assert apic.write_msr(PV_EOI, FLAG | 1)
    rig.ipi(0, 1, 0x41)
    assert apic.acknowledge() == 0x41 and rig.memory.read_uint(FLAG, 1) == 1
    rig.elsewhere = {1}
    rig.told.clear()
    rig.ipi(0, 1, 0x31)
    assert rig.memory.read_uint(FLAG, 1) == 1 and rig.told == [1]
    rig.elsewhere = set()
    assert not apic.pending() and rig.memory.read_uint(FLAG, 1) == 0  # lower than what is in service: its EOI is asked for
    apic.write(0xB0, 4, 0)
    assert apic.pending() and apic.acknowledge() == 0x31
