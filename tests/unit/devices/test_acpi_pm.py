"""ACPI fixed hardware: PM timer, power button, SCI, S5."""

from __future__ import annotations

from ringfence.bus.irq import IrqLine
from ringfence.core.clock import ManualClock
from ringfence.devices.acpi_pm import PM_TIMER_HZ, S5_SLP_TYP, AcpiPm


class Rig:
    def __init__(self, bits: int = 32) -> None:
        self.clock = ManualClock()
        self.off = 0
        self.line = IrqLine("sci")
        self.pm = AcpiPm(self.line.pin(), self.clock, self._power_off, bits)

    def _power_off(self) -> None:
        self.off += 1


def test_pm_timer_rate_and_width() -> None:
    rig = Rig(24)
    rig.clock.advance(1_000_000_000)
    assert rig.pm.timer.read(0, 4) == PM_TIMER_HZ
    rig.clock.advance(4_000_000_000)
    assert rig.pm.timer.read(0, 4) == 5 * PM_TIMER_HZ % (1 << 24)
    assert rig.pm.timer.read(1, 1) & 0xFF == 5 * PM_TIMER_HZ >> 8 & 0xFF


def test_timer_status_on_every_change_of_the_highest_bit() -> None:
    rig = Rig(24)
    rig.pm.pm1_event.write(2, 2, 1)
    rig.clock.advance(2_343_000_000)
    assert not rig.line.level
    rig.clock.advance(2_000_000)
    assert rig.line.level and rig.pm.pm1_event.read(0, 2) == 1
    rig.pm.pm1_event.write(0, 2, 1)
    assert not rig.line.level
    rig.clock.advance(2_344_000_000)
    assert rig.line.level


def test_power_button() -> None:
    rig = Rig()
    rig.pm.press_power_button()
    assert not rig.line.level and rig.pm.pm1_event.read(0, 2) == 0x100
    rig.pm.pm1_event.write(2, 2, 0x100)
    assert rig.line.level
    rig.pm.pm1_event.write(0, 2, 0x100)
    assert not rig.line.level


def test_general_purpose_event() -> None:
    rig = Rig()
    rig.pm.raise_gpe(9)
    rig.pm.gpe0.write(2, 2, 0x200)
    assert rig.line.level and rig.pm.gpe0.read(0, 4) == 0x0200_0200
    rig.pm.gpe0.write(1, 1, 2)
    assert not rig.line.level


def test_power_off_only_by_s5_with_slp_en() -> None:
    rig = Rig()
    rig.pm.pm1_control.write(0, 2, S5_SLP_TYP << 10)
    rig.pm.pm1_control.write(0, 2, 1 << 13 | 1 << 10)
    assert rig.off == 0
    rig.pm.pm1_control.write(0, 2, 1 << 13 | S5_SLP_TYP << 10)
    assert rig.off == 1
    assert rig.pm.pm1_control.read(0, 2) == S5_SLP_TYP << 10 | 1  # SLP_EN is write-only, SCI_EN is fixed


def test_timer_goes_on_where_the_snapshot_was_made() -> None:
    rig = Rig()
    rig.clock.advance(1_000_000_000)
    saved = rig.pm.save()
    other = Rig()
    other.clock.advance(77_000_000_000)
    other.pm.load(saved)
    assert other.pm.timer.read(0, 4) == PM_TIMER_HZ
