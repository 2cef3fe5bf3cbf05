"""kvmclock: what the guest computes from the published structure is the machine's time."""

from __future__ import annotations

import struct

import pytest

from ringfence.core.clock import ManualClock
from ringfence.devices.kvmclock import KvmClock, tsc_scale
from ringfence.memory.guest_memory import GuestMemory

SYSTEM_TIME, WALL_CLOCK = 0x4B56_4D01, 0x4B56_4D00


class Rig:
    def __init__(self, tsc_hz: int = 2_000_000_000) -> None:
        self.memory = GuestMemory()
        self.memory.add_ram(0, 0x10000)
        self.clock = ManualClock(now_ns=777, wall_s=1_700_000_000.0)
        self.tsc_hz = tsc_hz
        self.device = KvmClock(self.memory, self.clock, tsc_hz, self.tsc)

    def tsc(self) -> int:
        return self.clock.now_ns() * self.tsc_hz // 10**9

    def guest_ns(self, address: int) -> int:
        version, tsc, system, mul, shift, flags = struct.unpack("<IxxxxQQIbBxx", self.memory.read(address, 32))
        assert version % 2 == 0 and flags == 1
        delta = self.tsc() - tsc
        return system + ((delta << shift if shift >= 0 else delta >> -shift) * mul >> 32)


@pytest.mark.parametrize("tsc_hz", [1_000_000, 999_999_999, 1_000_000_000, 2_000_000_001, 3_693_000_000, 12_000_000_000])
def test_guest_time_follows_the_clock(tsc_hz: int) -> None:
    rig = Rig(tsc_hz)
    assert rig.device.write_msr(SYSTEM_TIME, 0x1041)
    rig.clock.advance(3600 * 10**9)
    assert rig.guest_ns(0x1040) == pytest.approx(3600 * 10**9, abs=10_000)
    assert rig.device.read_msr(SYSTEM_TIME) == 0x1041


@pytest.mark.parametrize("tsc_hz", [1_000_000, 1_000_000_000, 2_000_000_000, 5_000_000_000])
def test_scale_keeps_31_bits_or_more(tsc_hz: int) -> None:
    multiplier, shift = tsc_scale(tsc_hz)
    assert 1 << 31 <= multiplier < 1 << 32 and -32 < shift < 32


def test_wall_clock_is_that_of_boot() -> None:
    rig = Rig()
    rig.clock.advance(10 * 10**9)
    assert rig.device.write_msr(WALL_CLOCK, 0x2000)
    version, seconds, ns = struct.unpack("<III", rig.memory.read(0x2000, 12))
    assert version % 2 == 0 and seconds + ns / 1e9 == pytest.approx(1_700_000_000, abs=1e-3)


@pytest.mark.parametrize("address", [0xFFF5, 0x10001, (1 << 64) - 1, (1 << 64) - 31])
def test_wild_addresses_are_ignored(address: int) -> None:
    rig = Rig()
    assert rig.device.write_msr(SYSTEM_TIME, address)
    assert rig.device.write_msr(WALL_CLOCK, address)
    assert rig.memory.read(0, 0x10000) == bytes(0x10000)


def test_disabled_writes_nothing_and_old_numbers_work() -> None:
    rig = Rig()
    assert rig.device.write_msr(0x12, 0x3000)
    assert rig.memory.read(0x3000, 32) == bytes(32)
    assert rig.device.write_msr(0x12, 0x3001)
    assert rig.memory.read(0x3000, 32) != bytes(32)
    assert rig.device.read_msr(0x11) == 0
    assert rig.device.read_msr(0x13) is None and not rig.device.write_msr(0x13, 0)


def test_pause_stops_system_time_and_resume_publishes() -> None:
    rig = Rig()
    rig.device.write_msr(SYSTEM_TIME, 0x1001)
    rig.clock.advance(10**9)
    rig.device.pause()
    rig.clock.advance(50 * 10**9)
    rig.device.resume()
    assert rig.guest_ns(0x1000) == 10**9
