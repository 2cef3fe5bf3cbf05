"""Local APIC: priorities, registers in both modes, timer, IPIs, ExtINT, paravirtual EOI."""

from __future__ import annotations

import pytest

from ringfence.core.clock import ManualClock
from ringfence.devices.apic import ApicBus, LocalApic
from ringfence.devices.pic8259 import PicPair
from ringfence.memory.guest_memory import GuestMemory

TSC_HZ = 2_000_000_000
EOI, TPR, SVR, ICR, ICR_HIGH = 0xB0, 0x80, 0xF0, 0x300, 0x310
LVT_TIMER, LVT_LINT0, LVT_LINT1, LVT_ERROR, ESR = 0x320, 0x350, 0x360, 0x370, 0x280
INITIAL, CURRENT, DIVIDE = 0x380, 0x390, 0x3E0
DEADLINE, PV_EOI, BASE = 0x6E0, 0x4B56_4D04, 0x1B


class Rig:
    def __init__(self, count: int = 1) -> None:
        self.clock = ManualClock()
        self.memory = GuestMemory()
        self.memory.add_ram(0, 0x4000)
        self.bus = ApicBus()
        self.kicks = 0
        self.eois: list[int] = []
        self.events: list[tuple[int, str, int]] = []
        self.apics = [self._make(n) for n in range(count)]
        self.apic = self.apics[0]
        for apic in self.apics:
            self.bus.add(apic)
            apic.write(SVR, 4, 0x1FF)

    def _make(self, number: int) -> LocalApic:
        return LocalApic(
            number,
            self.clock,
            TSC_HZ,
            self.tsc,
            self._kick,
            self.eois.append,
            self.bus,
            self.memory,
            on_init=lambda: self.events.append((number, "init", 0)),
            on_startup=lambda vector: self.events.append((number, "startup", vector)),
        )

    def tsc(self) -> int:
        return self.clock.now_ns() * TSC_HZ // 10**9

    def _kick(self) -> None:
        self.kicks += 1

    def msi(self, vector: int, destination: int = 0, data: int = 0, address: int = 0) -> None:
        self.bus.send_msi(0xFEE0_0000 | destination << 12 | address, data | vector)

    def x2apic(self) -> None:
        for apic in self.apics:
            base = apic.read_msr(BASE)
            assert base is not None and apic.write_msr(BASE, base | 0x400)


def test_acceptance_and_eoi() -> None:
    rig = Rig()
    rig.msi(0x41)
    assert rig.kicks == 1 and rig.apic.pending()
    rig.msi(0x41)
    assert rig.kicks == 1
    assert rig.apic.acknowledge() == 0x41
    assert not rig.apic.pending()
    assert rig.apic.read(0x100 + 0x20, 4) == 1 << 1
    rig.apic.write(EOI, 4, 0)
    assert rig.apic.read(0x120, 4) == 0 and rig.eois == []


def test_priorities() -> None:
    rig = Rig()
    rig.msi(0x55)
    assert rig.apic.acknowledge() == 0x55
    rig.msi(0x5F)  # same class: waits
    assert not rig.apic.pending()
    rig.msi(0x61)
    assert rig.apic.acknowledge() == 0x61
    assert rig.apic.read(0xA0, 4) == 0x60
    kicks = rig.kicks
    rig.apic.write(EOI, 4, 0)
    rig.apic.write(EOI, 4, 0)
    assert rig.kicks > kicks and rig.apic.acknowledge() == 0x5F


def test_task_priority_and_cr8() -> None:
    rig = Rig()
    rig.apic.set_tpr(6)
    assert rig.apic.read(TPR, 4) == 0x60 and rig.apic.tpr == 6
    rig.msi(0x6F)
    assert not rig.apic.pending()
    kicks = rig.kicks
    rig.apic.tpr = 5
    assert rig.kicks == kicks + 1 and rig.apic.pending()
    rig.apic.write(TPR, 4, 0x6F)
    assert rig.apic.acknowledge() == 0xFF  # the spurious vector, and nothing enters service
    assert rig.apic.read(0x100 + 0x70, 4) == 0


def test_level_triggered_interrupts_broadcast_their_eoi() -> None:
    rig = Rig()
    rig.msi(0x71, data=0xC000)
    assert rig.apic.read(0x180 + 0x30, 4) == 1 << 17
    rig.apic.acknowledge()
    rig.apic.write(EOI, 4, 0)
    assert rig.eois == [0x71]


def test_software_disable_masks_and_refuses() -> None:
    rig = Rig()
    rig.apic.write(LVT_TIMER, 4, 0x40)
    rig.apic.write(SVR, 4, 0xFF)
    assert rig.apic.read(LVT_TIMER, 4) == 0x1_0040
    rig.apic.write(LVT_TIMER, 4, 0x40)
    assert rig.apic.read(LVT_TIMER, 4) == 0x1_0040
    rig.msi(0x41)
    assert not rig.apic.pending()


def test_illegal_vectors_and_registers_are_reported_once() -> None:
    rig = Rig()
    rig.apic.write(LVT_ERROR, 4, 0x0F)  # an error vector that is an error itself
    rig.msi(3)
    rig.apic.read(0x3F0, 4)
    rig.apic.write(ICR, 4, 0x40000 | 5)
    assert rig.apic.read(ESR, 4) == 0
    rig.apic.write(ESR, 4, 0)
    assert rig.apic.read(ESR, 4) == 0xE0
    rig.apic.write(LVT_ERROR, 4, 0x41)
    rig.msi(3)
    assert rig.apic.acknowledge() == 0x41


def test_one_shot_timer() -> None:
    rig = Rig()
    rig.apic.write(LVT_TIMER, 4, 0x40)
    rig.apic.write(DIVIDE, 4, 3)  # by 16
    rig.apic.write(INITIAL, 4, 1000)
    rig.clock.advance(8_000)
    assert rig.apic.read(CURRENT, 4) == 500
    rig.clock.advance(7_999)
    assert not rig.apic.pending()
    rig.clock.advance(1)
    assert rig.apic.acknowledge() == 0x40 and rig.apic.read(CURRENT, 4) == 0
    rig.apic.write(EOI, 4, 0)
    rig.clock.advance(10**9)
    assert not rig.apic.pending()


@pytest.mark.parametrize(("value", "divisor"), [(0xB, 1), (0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128)])
def test_divider(value: int, divisor: int) -> None:
    rig = Rig()
    rig.apic.write(DIVIDE, 4, value)
    rig.apic.write(INITIAL, 4, 1_000_000)
    rig.clock.advance(128_000)
    assert rig.apic.read(CURRENT, 4) == 1_000_000 - 128_000 // divisor


def test_periodic_timer() -> None:
    rig = Rig()
    rig.apic.write(LVT_TIMER, 4, 0x2_0040)
    rig.apic.write(DIVIDE, 4, 0xB)
    rig.apic.write(INITIAL, 4, 1_000_000)
    count = 0
    for _ in range(100):
        rig.clock.advance(100_000)
        if rig.apic.pending():
            count += 1
            rig.apic.acknowledge()
            rig.apic.write(EOI, 4, 0)
    assert count == 10
    rig.apic.write(INITIAL, 4, 0)
    assert rig.clock.next_deadline_ns() is None


def test_tiny_periods_do_not_hold_the_loop() -> None:
    rig = Rig()
    rig.apic.write(LVT_TIMER, 4, 0x2_0040)
    rig.apic.write(DIVIDE, 4, 0xB)
    rig.apic.write(INITIAL, 4, 1)
    rig.clock.advance(1_000_000)
    assert rig.apic.pending()


def test_tsc_deadline() -> None:
    rig = Rig()
    rig.apic.write_msr(DEADLINE, 12345)
    assert rig.apic.read_msr(DEADLINE) == 0  # not in that mode
    rig.apic.write(LVT_TIMER, 4, 0x4_0040)
    rig.apic.write_msr(DEADLINE, 2_000_000)
    assert rig.apic.read_msr(DEADLINE) == 2_000_000
    rig.clock.advance(999_999)
    assert not rig.apic.pending()
    rig.clock.advance(30_000)
    assert rig.apic.acknowledge() == 0x40 and rig.apic.read_msr(DEADLINE) == 0
    rig.apic.write(EOI, 4, 0)
    rig.apic.write_msr(DEADLINE, 1)  # already past
    rig.clock.run_due()
    assert rig.apic.pending()
    rig.apic.write_msr(DEADLINE, 1 << 63)
    rig.apic.write(LVT_TIMER, 4, 0x40)
    assert rig.apic.read_msr(DEADLINE) == 0 and rig.clock.next_deadline_ns() is None


def test_moving_a_deadline_for_ever_needs_no_memory() -> None:
    rig = Rig()
    rig.apic.write(LVT_TIMER, 4, 0x4_0040)
    for k in range(5000):
        rig.apic.write_msr(DEADLINE, (1 << 50) - k % 2)
    assert len(rig.clock._heap) <= 1024


def test_earlier_deadlines_are_told() -> None:
    rig = Rig()
    told: list[int | None] = []
    rig.clock.on_earlier = lambda: told.append(rig.clock.next_deadline_ns())
    rig.apic.write(LVT_TIMER, 4, 0x4_0040)
    rig.apic.write_msr(DEADLINE, 2_000_000)
    later = rig.clock.timer(lambda: None)
    later.arm(5_000_000)
    assert told == [1_000_001]


def test_extint_from_the_8259_pair() -> None:
    rig = Rig()
    pic = PicPair(rig.apic.set_lint0)
    rig.apic.connect_pic(pic)
    for value in (0x11,):
        pic.master.write(0, 1, value)
    for value in (0x30, 4, 1):
        pic.master.write(1, 1, value)
    pic.input(4)(True)
    assert rig.kicks == 1 and rig.apic.pending()  # virtual wire mode after reset
    rig.apic.write(LVT_LINT0, 4, 0x1_0700)
    assert not rig.apic.pending()
    rig.apic.write(LVT_LINT0, 4, 0x700)
    assert rig.kicks == 2 and rig.apic.acknowledge() == 0x34
    assert not rig.apic.pending()


def test_lint1_is_nmi() -> None:
    rig = Rig()
    rig.apic.set_lint1(True)
    assert not rig.apic.nmi_pending
    rig.apic.set_lint1(False)
    rig.apic.write(LVT_LINT1, 4, 0x400)
    rig.apic.set_lint1(True)
    assert rig.apic.nmi_pending and rig.kicks == 1
    rig.apic.acknowledge_nmi()
    assert not rig.apic.nmi_pending


def test_ipi_shorthands_and_modes() -> None:
    rig = Rig(3)
    for shorthand, targets in ((1, [0]), (2, [0, 1, 2]), (3, [1, 2])):
        rig.apic.write(ICR, 4, shorthand << 18 | 0x50)
        assert [n for n, apic in enumerate(rig.apics) if apic.pending()] == targets
        for n in targets:
            rig.apics[n].acknowledge()
            rig.apics[n].write(EOI, 4, 0)
    rig.apic.write(ICR_HIGH, 4, 2 << 24)
    rig.apic.write(ICR, 4, 0x400)
    assert rig.apics[2].nmi_pending and not rig.apics[1].nmi_pending
    rig.apic.write(ICR_HIGH, 4, 1 << 24)
    rig.apic.write(ICR, 4, 0xC500)
    rig.apic.write(ICR, 4, 0x8500)
    rig.apic.write(ICR, 4, 0x0608)
    assert rig.events == [(1, "init", 0), (1, "startup", 8)]
    assert rig.apics[1].read(SVR, 4) == 0xFF


def test_logical_destinations() -> None:
    rig = Rig(3)
    for n, apic in enumerate(rig.apics):
        apic.write(0xD0, 4, 1 << 24 + n)
    rig.msi(0x51, 0b110, address=4)
    assert [apic.pending() for apic in rig.apics] == [False, True, True]
    rig.apics[1].set_tpr(1)
    rig.msi(0x81, 0b110, data=0x100, address=4)  # lowest priority: APIC 2 has the lower TPR
    assert rig.apics[2].acknowledge() == 0x81 and rig.apics[1].acknowledge() == 0x51
    for n, apic in enumerate(rig.apics):
        apic.write(0xE0, 4, 0x0FFF_FFFF)  # cluster model
        apic.write(0xD0, 4, (0x10 | 1 << n) << 24)
    rig.msi(0x91, 0x11, address=4)
    rig.msi(0x91, 0x22, address=4)
    assert [apic.pending() for apic in rig.apics] == [True, False, False]
    rig.msi(0xA1, 0xFF)
    assert all(apic.pending() for apic in rig.apics)


def test_x2apic() -> None:
    rig = Rig(18)
    rig.x2apic()
    last = rig.apics[17]
    assert last.read_msr(0x802) == 17 and last.read_msr(0x80D) == 0x0001_0002
    assert last.read(SVR, 4) == 0xFFFF_FFFF  # the page is gone
    assert rig.apic.write_msr(0x830, 17 << 32 | 0x61)
    assert last.acknowledge() == 0x61 and last.write_msr(0x80B, 0)
    assert rig.apic.write_msr(0x830, 0x0001_0002 << 32 | 0x862)  # logical
    assert last.acknowledge() == 0x62
    assert rig.apic.write_msr(0x83F, 0x63) and rig.apic.acknowledge() == 0x63
    assert rig.apic.read_msr(0x808) == 0 and rig.apic.write_msr(0x808, 0x20) and rig.apic.tpr == 2


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0x802, 0),
        (0x803, 0),
        (0x80B, 1),
        (0x80E, 0),
        (0x808, 0x100),
        (0x80F, 0x1000),
        (0x828, 1),
        (0x830, 0x1000),
        (0x831, 0),
        (0x832, 0x8_0000),
        (0x838, 1 << 32),
        (0x839, 0),
        (0x83E, 4),
        (0x83F, 0x100),
        (0x8FF, 0),
        (BASE, 0xFEE0_0901),
        (BASE, 0xFEE0_0500),
        (BASE, 0xFEE0_0900),
        (PV_EOI, 3),
        (0x900, 0),
    ],
)
def test_msr_writes_that_fault(index: int, value: int) -> None:
    rig = Rig()
    rig.x2apic()
    before = rig.apic.save()
    assert not rig.apic.write_msr(index, value)
    assert rig.apic.save() == before


def test_msr_reads_that_fault() -> None:
    rig = Rig()
    assert rig.apic.read_msr(0x802) is None
    rig.x2apic()
    for index in (0x80B, 0x80E, 0x831, 0x83F, 0x8FF, 0x7FF, 0x10):
        assert rig.apic.read_msr(index) is None


def test_disabling_the_apic() -> None:
    rig = Rig()
    rig.x2apic()
    assert rig.apic.write_msr(BASE, 0xFEE0_0100)
    rig.msi(0x41)
    assert not rig.apic.pending()
    assert not rig.apic.write_msr(BASE, 0xFEE0_0D00)  # x2APIC only from xAPIC
    assert rig.apic.write_msr(BASE, 0xFEE0_0900) and rig.apic.read(SVR, 4) == 0xFF


def armed(rig: Rig) -> None:
    assert rig.apic.write_msr(PV_EOI, 0x1001)
    rig.msi(0x41)
    assert rig.apic.acknowledge() == 0x41


def test_paravirtual_eoi() -> None:
    rig = Rig()
    armed(rig)
    assert rig.memory.read_uint(0x1000, 1) == 1
    rig.memory.write_uint(0x1000, 1, 0)  # the guest's EOI
    rig.msi(0x31)  # of lower priority than what was in service
    assert rig.apic.pending() and rig.apic.acknowledge() == 0x31


def test_paravirtual_eoi_is_taken_back_when_another_interrupt_waits() -> None:
    rig = Rig()
    armed(rig)
    rig.msi(0x42)
    assert rig.memory.read_uint(0x1000, 1) == 0
    assert not rig.apic.pending()
    rig.apic.write(EOI, 4, 0)
    assert rig.apic.acknowledge() == 0x42


def test_paravirtual_eoi_is_not_offered_while_one_waits_or_for_levels() -> None:
    rig = Rig()
    assert rig.apic.write_msr(PV_EOI, 0x1001)
    rig.msi(0x41)
    rig.msi(0x31)
    rig.apic.acknowledge()
    assert rig.memory.read_uint(0x1000, 1) == 0
    rig.apic.write(EOI, 4, 0)
    rig.apic.acknowledge()
    rig.memory.write_uint(0x1000, 1, 0)
    rig.msi(0x71, data=0xC000)
    rig.apic.acknowledge()
    assert rig.memory.read_uint(0x1000, 1) == 0
    rig.apic.write(EOI, 4, 0)
    assert rig.eois == [0x71]


def test_an_ordinary_eoi_after_the_offer_counts_once() -> None:
    rig = Rig()
    armed(rig)
    rig.apic.write(EOI, 4, 0)
    assert rig.memory.read_uint(0x1000, 1) == 0
    assert [rig.apic.read(0x100 + 16 * k, 4) for k in range(8)] == [0] * 8


def test_nested_paravirtual_and_ordinary_eoi() -> None:
    rig = Rig()
    armed(rig)
    rig.msi(0x81)
    assert rig.apic.acknowledge() == 0x81 and rig.memory.read_uint(0x1000, 1) == 1
    rig.memory.write_uint(0x1000, 1, 0)
    rig.apic.write(EOI, 4, 0)  # ends 0x41
    assert [rig.apic.read(0x100 + 16 * k, 4) for k in range(8)] == [0] * 8


def test_paravirtual_eoi_at_a_wild_address() -> None:
    rig = Rig()
    assert rig.apic.write_msr(PV_EOI, 0x7FFF_FFFF_FFFF_FFFD)
    rig.msi(0x41)
    assert rig.apic.acknowledge() == 0x41
    rig.apic.write(EOI, 4, 0)
    assert not rig.apic.pending()


def test_timer_goes_on_after_load() -> None:
    rig = Rig()
    rig.apic.write(LVT_TIMER, 4, 0x40)
    rig.apic.write(DIVIDE, 4, 0xB)
    rig.apic.write(INITIAL, 4, 1_000_000)
    rig.clock.advance(400_000)
    saved = rig.apic.save()
    other = Rig()
    other.clock.advance(10**12)
    other.apic.load(saved)
    assert other.apic.read(CURRENT, 4) == 600_000
    other.clock.advance(600_000)
    assert other.apic.acknowledge() == 0x40
