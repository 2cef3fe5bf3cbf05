"""MC146818: formats, setting the time, UIP, alarm, update and periodic interrupts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.bus.irq import IrqLine
from ringfence.core.clock import ManualClock
from ringfence.devices.rtc import Rtc, civil_from_days, days_from_civil

NOON = datetime(2024, 2, 29, 13, 59, 58, tzinfo=UTC)
SECOND = 1_000_000_000


class Rig:
    def __init__(self) -> None:
        self.clock = ManualClock(wall_s=NOON.timestamp())
        self.edges = 0
        line = IrqLine("irq8", self._changed)
        self.rtc = Rtc(line.pin(), self.clock)

    def _changed(self, level: bool) -> None:
        self.edges += level

    def get(self, index: int) -> int:
        self.rtc.write(0, 1, index)
        return self.rtc.read(1, 1)

    def put(self, index: int, value: int) -> None:
        self.rtc.write(0, 1, index)
        self.rtc.write(1, 1, value)

    def time(self) -> list[int]:
        return [self.get(index) for index in (0x32, 9, 8, 7, 4, 2, 0)]


def test_time_in_bcd() -> None:
    rig = Rig()
    assert rig.time() == [0x20, 0x24, 0x02, 0x29, 0x13, 0x59, 0x58]
    assert rig.get(6) == 5  # Thursday, Sunday is 1
    rig.clock.advance(2 * SECOND)
    assert rig.time() == [0x20, 0x24, 0x02, 0x29, 0x14, 0x00, 0x00]
    assert rig.get(0x0D) == 0x80


def test_time_in_binary_and_12_hours() -> None:
    rig = Rig()
    rig.put(0x0B, 0x04)
    assert rig.time() == [20, 24, 2, 29, 0x81, 59, 58]
    rig.clock.advance(11 * 3600 * SECOND)
    assert rig.get(4) == 12  # midnight is 12 am


def test_setting_the_time_the_way_drivers_do() -> None:
    rig = Rig()
    rig.put(0x0B, 0x82)
    rig.put(0x0A, 0x76)
    for index, value in ((0, 0x30), (2, 0x15), (4, 0x06), (7, 0x31), (8, 0x12), (9, 0x99), (0x32, 0x19)):
        rig.put(index, value)
    rig.clock.advance(5 * SECOND)
    assert rig.time() == [0x19, 0x99, 0x12, 0x31, 0x06, 0x15, 0x30]  # it stands still
    rig.put(0x0B, 0x02)
    rig.put(0x0A, 0x26)
    rig.clock.advance(SECOND // 2 - 1000)
    assert rig.get(0) == 0x30
    rig.clock.advance(2000)
    assert rig.get(0) == 0x31  # half a second after the divider was released
    rig.clock.advance(18 * 3600 * SECOND)
    assert rig.time()[:4] == [0x20, 0x00, 0x01, 0x01]


def test_uip_announces_the_update_and_nothing_changes_before() -> None:
    rig = Rig()
    assert not rig.get(0x0A) & 0x80
    rig.clock.advance(SECOND - 245_000)
    assert not rig.get(0x0A) & 0x80
    rig.clock.advance(2_000)
    assert rig.get(0x0A) & 0x80 and rig.get(0) == 0x58
    rig.clock.advance(243_500)
    assert not rig.get(0x0A) & 0x80 and rig.get(0) == 0x59


def test_update_interrupt() -> None:
    rig = Rig()
    rig.get(0x0C)
    rig.put(0x0B, 0x12)
    rig.clock.advance(3 * SECOND)
    assert rig.edges == 1  # register C was not read
    assert rig.get(0x0C) & 0xB0 == 0x90
    assert rig.get(0x0C) == 0
    rig.clock.advance(SECOND)
    assert rig.edges == 2


def test_update_flag_can_be_polled() -> None:
    rig = Rig()
    rig.get(0x0C)
    assert rig.get(0x0C) == 0
    rig.clock.advance(SECOND)
    assert rig.get(0x0C) == 0x50 and rig.edges == 0  # the periodic flag rises without its enable, too


def test_alarm_at_a_time_and_with_wildcards() -> None:
    rig = Rig()
    for index, value in ((1, 0x10), (3, 0x30), (5, 0x14)):
        rig.put(index, value)
    rig.get(0x0C)
    rig.put(0x0B, 0x22)
    rig.clock.advance(30 * 60 * SECOND + 11 * SECOND)
    assert rig.edges == 0
    rig.clock.advance(2 * SECOND)
    assert rig.edges == 1 and rig.get(0x0C) & 0xA0 == 0xA0
    rig.put(5, 0xFF)
    rig.put(3, 0xC0)
    rig.clock.advance(60 * SECOND)
    assert rig.edges == 2 and rig.get(0x0C) & 0x20


def test_an_impossible_alarm_never_fires() -> None:
    rig = Rig()
    rig.put(5, 0x99)
    rig.put(0x0B, 0x22)
    assert rig.clock.next_deadline_ns() is None


@pytest.mark.parametrize(("rate", "hz"), [(6, 1024), (15, 2), (1, 256), (3, 8192)])
def test_periodic_interrupt(rate: int, hz: int) -> None:
    rig = Rig()
    rig.put(0x0A, 0x20 | rate)
    rig.put(0x0B, 0x42)
    for _ in range(2000):
        rig.clock.advance(500_000)
        rig.get(0x0C)
    assert min(hz, 2000) * 0.97 <= rig.edges <= hz


def test_nvram_and_index_register() -> None:
    rig = Rig()
    rig.put(0x80 | 0x40, 0x5A)
    assert rig.get(0x40) == 0x5A
    assert rig.rtc.read(0, 1) == 0xFF
    rig.rtc.set_nvram(0x7F, 1)
    rig.rtc.reset()
    assert rig.get(0x40) == 0x5A and rig.get(0x7F) == 1  # the battery keeps it


def test_time_can_be_offset() -> None:
    rig = Rig()
    rig.rtc.set_offset_s(3600)
    assert rig.get(4) == 0x14


@given(st.integers(-800_000, 8_000_000))
def test_calendar_is_the_gregorian_one(days: int) -> None:
    year, month, day = civil_from_days(days)
    assert days_from_civil(year, month, day) == days
    if 1 <= year <= 9999:
        date = datetime(1970, 1, 1) + timedelta(days=days) if 1 <= year < 9999 else datetime(year, month, day)
        assert (date.year, date.month, date.day) == (year, month, day)


@given(st.lists(st.tuples(st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0x0A, 0x0B, 0x0C, 0x32]), st.integers(0, 255)), max_size=20))
def test_no_register_content_can_upset_it(writes: list[tuple[int, int]]) -> None:
    rig = Rig()
    for index, value in writes:
        rig.put(index, value)
        rig.clock.advance(700_000_000)
    rig.time()
    saved = rig.rtc.save()
    rig.rtc.load(saved)
    assert rig.rtc.save() == saved
