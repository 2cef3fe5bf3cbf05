"""PIIX: PCI interrupts to ISA lines, power management ports that move, the SMI command port without SMIs."""

from __future__ import annotations

import random

import pytest

from ringfence.bus.bus import Bus
from ringfence.bus.irq import IrqLine
from ringfence.core.clock import ManualClock
from ringfence.devices.acpi_pm import AcpiPm
from ringfence.devices.piix3 import PIRQRC, ROUTABLE_IRQS, Piix3
from ringfence.devices.piix4_pm import DEVACTB, PMBASE, PMREGMISC, SMBBA, SMBHSTCFG, Piix4Pm


class Router:
    def __init__(self) -> None:
        self.lines = {irq: IrqLine(f"irq{irq}") for irq in ROUTABLE_IRQS}
        self.bridge = Piix3({irq: line.pin() for irq, line in self.lines.items()})
        self.pirq = [self.bridge.pirq(n) for n in range(4)]

    def high(self) -> set[int]:
        return {irq for irq, line in self.lines.items() if line.level}


@pytest.fixture
def router() -> Router:
    return Router()


def test_nothing_is_routed_after_power_on(router: Router) -> None:
    assert router.bridge.read_config(PIRQRC, 4) == 0x80808080
    for pirq in router.pirq:
        pirq(True)
    assert not router.high()


def test_two_pirqs_share_a_line(router: Router) -> None:
    router.bridge.write_config(PIRQRC, 4, 0x0B0B0A0A)
    router.pirq[0](True)
    assert router.high() == {10}
    router.pirq[1](True)
    router.pirq[0](False)
    assert router.high() == {10}
    router.pirq[3](True)
    assert router.high() == {10, 11}
    router.pirq[1](False)
    assert router.high() == {11}


def test_routing_moves_an_asserted_interrupt(router: Router) -> None:
    router.pirq[2](True)
    router.bridge.write_config(PIRQRC + 2, 1, 5)
    assert router.high() == {5}
    router.bridge.write_config(PIRQRC + 2, 1, 0x85)
    assert not router.high()
    for reserved in (0, 1, 2, 8, 13):
        router.bridge.write_config(PIRQRC + 2, 1, reserved)
        assert not router.high()


def test_reset_ends_routing_and_keeps_levels(router: Router) -> None:
    router.bridge.write_config(PIRQRC, 1, 10)
    router.pirq[0](True)
    saved = router.bridge.save()
    router.bridge.reset()
    assert not router.high()
    router.bridge.write_config(PIRQRC, 1, 10)
    assert router.high() == {10}
    router.bridge.reset()
    router.bridge.load(saved)
    assert router.high() == {10}


class Power:
    def __init__(self) -> None:
        self.clock = ManualClock(now_ns=10**9)
        self.ports = Bus("ports", 1 << 16)
        self.sci = IrqLine("sci")
        self.ended: list[bool] = []
        self.acpi = AcpiPm(self.sci.pin(), self.clock, lambda: self.ended.append(True), legacy_start=True)
        self.function = Piix4Pm(self.acpi, self.ports)

    def place(self, base: int = 0x600) -> None:
        self.function.write_config(PMBASE, 4, base | 1)
        self.function.write_config(PMREGMISC, 1, 1)


@pytest.fixture
def power() -> Power:
    return Power()


def test_ports_appear_where_pmbase_says(power: Power) -> None:
    assert power.function.read_config(0, 4) == 0x71138086
    power.function.write_config(PMBASE, 4, 0xFFFFFFFF)
    assert power.function.read_config(PMBASE, 4) == 0xFFC1
    assert list(power.ports) == []
    power.place()
    assert [(r.base, r.end) for r in power.ports] == [(0x600, 0x640)]
    power.place(0xB000)
    assert [(r.base, r.end) for r in power.ports] == [(0xB000, 0xB040)]
    power.function.write_config(PMREGMISC, 1, 0)
    assert list(power.ports) == []


def test_a_place_that_is_taken_is_not_claimed(power: Power) -> None:
    taken = power.ports.add(0x620, 4, power.acpi.gpe0, "other")
    power.place()
    assert [r.name for r in power.ports] == ["other"]
    power.ports.remove(taken)
    power.place()
    assert [r.base for r in power.ports] == [0x600]


def test_pm_timer_and_power_off_through_the_block(power: Power) -> None:
    power.place()
    first = power.ports.read(0x608, 4)
    power.clock.advance(1_000_000_000)
    assert power.ports.read(0x608, 4) - first in (3_579_545, 3_579_546)
    assert power.ports.read(0x609, 1) == power.ports.read(0x608, 4) >> 8 & 0xFF
    power.ports.write(0x604, 2, 1 << 13 | 5 << 10)
    assert power.ended == [True]


def test_smi_command_port_switches_acpi_mode_and_nothing_else(power: Power) -> None:
    power.place()
    assert not power.ports.read(0x604, 2) & 1
    power.ports.write(0x602, 2, 1 << 8)
    power.acpi.press_power_button()
    assert not power.sci.level
    power.function.apm.write(0, 1, 0xF1)
    assert power.ports.read(0x604, 2) & 1 and power.sci.level
    power.function.apm.write(0, 1, 0xF0)
    assert not power.ports.read(0x604, 2) & 1 and not power.sci.level
    power.function.apm.write(0, 2, 0x5A00)
    assert (power.function.apm.read(0, 1), power.function.apm.read(1, 1)) == (0, 0x5A)


def test_firmware_is_told_that_smm_is_set_up(power: Power) -> None:
    assert power.function.read_config(DEVACTB, 4) & 1 << 25
    power.function.write_config(DEVACTB, 4, 0)
    assert power.function.read_config(DEVACTB, 4) & 1 << 25


def test_nobody_answers_on_the_smbus(power: Power) -> None:
    power.function.write_config(SMBBA, 4, 0x701)
    power.function.write_config(SMBHSTCFG, 1, 9)
    power.ports.write(0x704, 1, 0xA1)
    power.ports.write(0x702, 1, 0x48)
    assert power.ports.read(0x700, 1) == 0x04 and power.ports.read(0x702, 1) == 0x08
    power.ports.write(0x700, 1, 0xFF)
    assert power.ports.read(0x700, 1) == 0


def test_legacy_mode_returns_with_a_reset(power: Power) -> None:
    power.place()
    power.function.apm.write(0, 1, 0xF1)
    power.function.reset()
    power.acpi.reset()
    assert list(power.ports) == []
    power.place()
    assert not power.ports.read(0x604, 2) & 1


def test_random_registers_do_no_harm(power: Power) -> None:
    draw = random.Random(1)
    for _ in range(3000):
        power.function.write_config(
            draw.choice((0x04, PMBASE, PMREGMISC, SMBBA, SMBHSTCFG, DEVACTB, draw.randrange(253))), 2, draw.getrandbits(16)
        )
        entries = list(power.ports)
        if entries:
            entry = draw.choice(entries)
            size = draw.choice((1, 2, 4))
            power.ports.read(entry.base + draw.randrange(64), size)
            power.ports.write(entry.base + draw.randrange(64), size, draw.getrandbits(32))
