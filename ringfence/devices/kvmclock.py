"""kvmclock: paravirtual time from the TSC (Linux, Documentation/virt/kvm/x86/msr.rst and cpuid.rst).

The guest names a page; the device writes there how to turn the TSC into nanoseconds, once and not at every tick, for the
TSC and the machine's clock run at fixed rates (PVCLOCK_TSC_STABLE_BIT).  One object a vCPU.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from ringfence.core.clock import Clock
from ringfence.core.state import Field, State
from ringfence.devices.timed import TimedDevice
from ringfence.memory.guest_memory import GuestMemory

MSR_KVM_WALL_CLOCK, MSR_KVM_SYSTEM_TIME = 0x11, 0x12
MSR_KVM_WALL_CLOCK_NEW, MSR_KVM_SYSTEM_TIME_NEW = 0x4B56_4D00, 0x4B56_4D01
_ENABLED = 1
_TSC_STABLE = 1
_NS = 1_000_000_000
_BODY = struct.Struct("<QQIbBxx")  # pvclock_vcpu_time_info after version and padding
_VERSION_BYTES = 8
_WALL_BODY = struct.Struct("<II")  # pvclock_wall_clock after version


class KvmClockState(State):
    wall_clock = Field(64, doc="MSR_KVM_WALL_CLOCK_NEW: guest address")
    system_time = Field(64, doc="MSR_KVM_SYSTEM_TIME_NEW: guest address and enable bit")
    version = Field(32, doc="version of the published structure, even")
    wall_version = Field(32, doc="version of the wall-clock structure, even")
    age_ns = Field(63, doc="system time (filled in by save)")


def tsc_scale(tsc_hz: int) -> tuple[int, int]:
    """(multiplier, shift) with nanoseconds = ((ticks << shift) * multiplier) >> 32; a negative shift goes right."""
    shift = 0
    while tsc_hz << max(shift, 0) <= _NS:
        shift += 1
    while tsc_hz > 2 * _NS << -min(shift, 0):
        shift -= 1
    return ((_NS << 32) << max(-shift, 0)) // (tsc_hz << max(shift, 0)), shift


class KvmClock(TimedDevice):
    """An MSR handler.  System time counts from the object's making, or from `origin_ns` of the clock when given."""

    MSRS = (MSR_KVM_WALL_CLOCK, MSR_KVM_SYSTEM_TIME, MSR_KVM_WALL_CLOCK_NEW, MSR_KVM_SYSTEM_TIME_NEW)

    name = "kvmclock"

    def __init__(self, memory: GuestMemory, clock: Clock, tsc_hz: int, read_tsc: Callable[[], int], origin_ns: int | None = None) -> None:
        self.state: KvmClockState = KvmClockState()
        self._memory = memory
        self._clock = clock
        self._read_tsc = read_tsc
        self._scale = tsc_scale(tsc_hz)
        self._start_ns = clock.now_ns() if origin_ns is None else origin_ns

    def _freeze(self) -> None:
        self.state.age_ns = max(0, self._clock.now_ns() - self._start_ns)

    def _thaw(self) -> None:
        self._start_ns = self._clock.now_ns() - self.state.age_ns

    def _stop_timers(self) -> None:
        """There are none."""

    def resume(self) -> None:
        """Publishes anew: the TSC and the clock may have moved differently."""
        super().resume()
        self.publish()

    def read_msr(self, index: int) -> int | None:
        if index in (MSR_KVM_SYSTEM_TIME_NEW, MSR_KVM_SYSTEM_TIME):
            return int(self.state.system_time)
        if index in (MSR_KVM_WALL_CLOCK_NEW, MSR_KVM_WALL_CLOCK):
            return int(self.state.wall_clock)
        return None

    def write_msr(self, index: int, value: int) -> bool:
        if index in (MSR_KVM_SYSTEM_TIME_NEW, MSR_KVM_SYSTEM_TIME):
            self.state.system_time = value
            self.publish()
        elif index in (MSR_KVM_WALL_CLOCK_NEW, MSR_KVM_WALL_CLOCK):
            self.state.wall_clock = value
            self._publish_wall_clock()
        else:
            return False
        return True

    def publish(self) -> None:
        """Writes the time structure, if the guest asked for it.  Call it after the TSC was set."""
        s = self.state
        if not s.system_time & _ENABLED:
            return
        multiplier, shift = self._scale
        tsc, system_ns = self._read_tsc(), self._clock.now_ns() - self._start_ns
        body = _BODY.pack(tsc & (1 << 64) - 1, max(0, system_ns), multiplier, shift, _TSC_STABLE)
        s.version = self._write(s.system_time & ~1, s.version, _VERSION_BYTES, body)

    def _publish_wall_clock(self) -> None:
        """The wall-clock time at which system time was 0; asked for once, at boot."""
        s = self.state
        system_ns = self._clock.now_ns() - self._start_ns
        boot_ns = max(0, int(self._clock.wall_s() * _NS) - system_ns)
        body = _WALL_BODY.pack(boot_ns // _NS & 0xFFFF_FFFF, boot_ns % _NS)
        s.wall_version = self._write(s.wall_clock, s.wall_version, 4, body)

    def _write(self, guest_addr: int, version: int, header_bytes: int, body: bytes) -> int:
        """Writes `body` under the version protocol (odd while it changes); an address outside of RAM is ignored."""
        if not self._memory.contains(guest_addr, header_bytes + len(body)):
            return version
        self._memory.write_uint(guest_addr, 4, version + 1 & 0xFFFF_FFFF)
        self._memory.write(guest_addr + header_bytes, body)
        self._memory.write_uint(guest_addr, 4, version + 2 & 0xFFFF_FFFF)
        return version + 2 & 0xFFFF_FFFF
