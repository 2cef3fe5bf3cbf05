"""8254: counting modes, latches, and the sequences by which kernels calibrate the TSC."""

from __future__ import annotations

import pytest

from ringfence.bus.irq import IrqLine
from ringfence.core.clock import ManualClock
from ringfence.devices.pit8254 import PIT_HZ, Pit


class Rig:
    def __init__(self) -> None:
        self.clock = ManualClock(now_ns=12345)
        self.edges: list[int] = []
        self.line = IrqLine("irq0", lambda level: self.edges.append(self.clock.now_ns()) if level else None)
        self.pit = Pit(self.line.pin(), self.clock)

    def out(self, port: int, *values: int) -> None:
        for value in values:
            self.pit.ports.write(port, 1, value)

    def read16(self, port: int) -> int:
        return self.pit.ports.read(port, 1) | self.pit.ports.read(port, 1) << 8

    def ticks(self, count: int) -> None:
        """To just after `count` ticks since the last whole tick."""
        self.clock.advance(-(-count * 10**9 // PIT_HZ))


def test_mode_2_interrupts_periodically() -> None:
    rig = Rig()
    rig.out(0x43 & 3, 0x34)
    rig.out(0, 0x9C, 0x2E)  # 11932: 100 Hz
    rig.edges.clear()
    rig.clock.advance(1_000_000_000)
    assert len(rig.edges) in (99, 100)
    assert 9_999_000 < (rig.edges[-1] - rig.edges[0]) / (len(rig.edges) - 1) < 10_001_000


def test_tiny_periods_do_not_hold_the_loop() -> None:
    rig = Rig()
    rig.out(3, 0x14)
    rig.out(0, 2)
    rig.edges.clear()
    rig.clock.advance(10_000_000)
    assert 50 <= len(rig.edges) <= 101


@pytest.mark.parametrize("control", [0x30, 0x38])
def test_one_shot_modes_interrupt_once(control: int) -> None:
    rig = Rig()
    rig.out(3, control)
    rig.out(0, 0xE8, 0x03)
    rig.edges.clear()
    start = rig.clock.now_ns()
    rig.clock.advance(100_000_000)
    assert len(rig.edges) == 1
    assert rig.edges[0] - start == pytest.approx(1000 * 1e9 / PIT_HZ, abs=2)


def test_hardware_triggered_modes_of_channel_0_never_fire() -> None:
    rig = Rig()
    rig.out(3, 0x32)
    rig.out(0, 1, 0)
    rig.edges.clear()
    rig.clock.advance(10_000_000)
    assert rig.edges == [] and rig.clock.next_deadline_ns() is None


def test_latch_and_read_back() -> None:
    rig = Rig()
    rig.out(3, 0xB4)
    rig.out(2, 0x00, 0x10)
    rig.pit.port61.write(0, 1, 1)
    rig.ticks(0x100)
    rig.out(3, 0x80)
    rig.ticks(0x100)
    assert rig.read16(2) == 0xF00
    assert 0xDFE <= rig.read16(2) <= 0xE00
    rig.out(3, 0xC8)  # status and count of channel 2
    status = rig.pit.ports.read(2, 1)
    assert status & 0x3F == 0x34 and status & 0x80 and not status & 0x40
    assert 0xDFE <= rig.read16(2) <= 0xE00


def test_null_count_until_a_count_is_written() -> None:
    rig = Rig()
    rig.out(3, 0x30, 0xE2)
    assert rig.pit.ports.read(0, 1) == 0x70
    assert rig.pit.output(0) is False


def test_bcd() -> None:
    rig = Rig()
    rig.out(3, 0x31)
    rig.out(0, 0x00, 0x10)  # 1000
    rig.ticks(1)
    assert rig.read16(0) == 0x0999
    rig.out(3, 0x35)
    rig.out(0, 0, 0)
    rig.ticks(1)
    assert rig.read16(0) == 0x9999


def test_access_to_one_byte_only() -> None:
    rig = Rig()
    rig.out(3, 0x20)
    rig.out(0, 0x12)
    assert rig.pit.ports.read(0, 1) == 0x12


def test_calibration_by_out2() -> None:
    """Gate up, mode 0, then wait for port 0x61 bit 5."""
    rig = Rig()
    port61 = rig.pit.port61
    port61.write(0, 1, port61.read(0, 1) & ~2 | 1)
    rig.out(3, 0xB0)
    rig.out(2, 0x9C, 0x2E)
    assert not port61.read(0, 1) & 0x20
    rig.ticks(11931)
    assert not port61.read(0, 1) & 0x20
    rig.ticks(2)
    assert port61.read(0, 1) & 0x20


def test_calibration_by_the_high_byte() -> None:
    rig = Rig()
    rig.pit.port61.write(0, 1, 1)
    rig.out(3, 0xB0)
    rig.out(2, 0xFF, 0xFF)
    seen = []
    for _ in range(600):
        rig.pit.ports.read(2, 1)
        seen.append(rig.pit.ports.read(2, 1))
        rig.clock.advance(1000)
    assert seen[0] == 0xFF and seen == sorted(seen, reverse=True) and len(set(seen)) >= 3


def test_gate_holds_mode_0_and_restarts_mode_3() -> None:
    rig = Rig()
    port61 = rig.pit.port61
    port61.write(0, 1, 1)
    rig.out(3, 0xB0)
    rig.out(2, 0xE8, 0x03)
    rig.ticks(500)
    port61.write(0, 1, 0)
    rig.ticks(5000)
    assert not rig.pit.output(2)
    held = rig.read16(2)
    assert 499 <= held <= 500
    port61.write(0, 1, 1)
    rig.ticks(499)
    assert not rig.pit.output(2)
    rig.ticks(3)
    assert rig.pit.output(2)
    rig.out(3, 0xB6)
    rig.out(2, 0xE8, 0x03)
    rig.ticks(600)
    assert not rig.pit.output(2)
    port61.write(0, 1, 0)
    assert rig.pit.output(2)
    port61.write(0, 1, 1)
    rig.ticks(400)
    assert rig.pit.output(2)


def test_refresh_toggles() -> None:
    rig = Rig()
    seen = set()
    for _ in range(40):
        seen.add(rig.pit.port61.read(0, 1) & 0x10)
        rig.clock.advance(1000)
    assert seen == {0, 0x10}


def test_time_stands_still_between_pause_and_resume() -> None:
    rig = Rig()
    rig.out(3, 0x30)
    rig.out(0, 0, 0x10)
    rig.ticks(0x100)
    before = rig.read16(0)
    rig.pit.pause()
    saved = rig.pit.save()
    rig.clock.advance(5_000_000_000)
    assert rig.pit.save() == saved
    rig.pit.resume()
    assert rig.read16(0) == before
    rig.edges.clear()
    rig.clock.advance(5_000_000_000)
    assert len(rig.edges) == 1
