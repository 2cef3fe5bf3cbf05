"""8254 programmable interval timer (Intel 8254 data sheet, order 231164-005) and port 0x61 of a PC.

    channel 0 -> IRQ 0        channel 1: memory refresh, not wired        channel 2 -> speaker, gated by port 0x61

A channel is a pure function of the time since its count was loaded; only channel 0 keeps a timer, for its rising edges.
Differences from the part: a new count takes effect at once (not at the end of the cycle in modes 2 and 3), and edges of
channel 0 that come closer than 100 us are merged.
"""

from __future__ import annotations

from ringfence.bus.irq import IrqPin
from ringfence.core.clock import Clock
from ringfence.core.state import Field, State
from ringfence.devices.ports import BytePorts
from ringfence.devices.timed import MIN_PERIOD_NS, TimedDevice

PIT_HZ = 1_193_182
PIT_BASE, PORT61 = 0x40, 0x61
_REFRESH_NS = 15_085  # port 0x61 bit 4 toggles with every memory refresh (18 PIT ticks)
_NS = 1_000_000_000
_GATED_OFF_AGE = (1 << 63) - 1
_LATCHED_ALL = 3  # as in `access`: both bytes


class PitState(State):
    mode = Field(3, count=3, doc="counter mode 0-5")
    bcd = Field(1, count=3, doc="counts in BCD")
    access = Field(2, count=3, reset=3, doc="control word RW bits: 1 low byte, 2 high byte, 3 both")
    count = Field(17, count=3, reset=0x10000, doc="initial count in ticks, 1-65536")
    loaded = Field(1, count=3, doc="a count was written since the control word")
    write_high = Field(1, count=3, doc="the next write is the high byte")
    write_low = Field(8, count=3, doc="low byte written first")
    read_high = Field(1, count=3, doc="the next read is the high byte")
    latched = Field(2, count=3, doc="bytes of the latched count still to be read: bit 0 low, bit 1 high")
    latch = Field(16, count=3, doc="latched count")
    status_latched = Field(1, count=3, doc="the next read gives the status")
    status = Field(8, count=3, doc="latched status")
    gate = Field(1, count=3, reset=1, doc="gate input; that of channel 2 is port 0x61 bit 0")
    triggered = Field(1, count=3, doc="modes 1 and 5: the gate has risen since the control word")
    age_ns = Field(63, count=3, doc="time counted since the count was loaded or the gate rose")
    edge_due = Field(1, doc="channel 0 in modes 0 and 4: the terminal count has not been reached")
    irq_level = Field(1, doc="level of the IRQ 0 pin (filled in by save)")
    speaker = Field(1, doc="port 0x61 bit 1: speaker data enable")
    checks = Field(2, doc="port 0x61 bits 2 and 3: RAM parity and I/O channel checks are off; nothing ever fails them")


def _to_bcd(value: int) -> int:
    return value % 10 | value // 10 % 10 << 4 | value // 100 % 10 << 8 | value // 1000 % 10 << 12


def _from_bcd(value: int) -> int:
    return (value & 15) + 10 * (value >> 4 & 15) + 100 * (value >> 8 & 15) + 1000 * (value >> 12 & 15)


class Pit(TimedDevice):
    """Bus handlers: `ports` (0x40-0x43) and `port61`."""

    name = "pit"

    def __init__(self, irq: IrqPin, clock: Clock) -> None:
        self.state: PitState = PitState()
        self._irq = irq
        self._clock = clock
        self._timer = clock.timer(self._edge)
        self._start_ns = [0, 0, 0]
        self.ports = BytePorts(4, self._read, self._write)
        self.port61 = BytePorts(1, self._read_port61, self._write_port61)
        self.reset()

    def reset(self) -> None:
        self.state.reset()
        self.state.gate[2] = 0
        self._irq.set(False)
        self._thaw()

    def _freeze(self) -> None:
        now = self._clock.now_ns()
        s = self.state
        s.irq_level = int(self._irq.level)
        s.age_ns = [min(now - start, _GATED_OFF_AGE) if s.gate[c] else s.age_ns[c] for c, start in enumerate(self._start_ns)]

    def _thaw(self) -> None:
        now = self._clock.now_ns()
        self._start_ns = [now - age for age in self.state.age_ns]
        self._irq.restore(bool(self.state.irq_level))
        self._arm()

    def _stop_timers(self) -> None:
        self._timer.cancel()

    def _ticks(self, c: int) -> int:
        """Ticks counted since the count was loaded.  A low gate holds them."""
        age_ns = self._clock.now_ns() - self._start_ns[c] if self.state.gate[c] else self.state.age_ns[c]
        return age_ns * PIT_HZ // _NS

    def _running(self, c: int) -> bool:
        s = self.state
        return bool(s.loaded[c] and (s.mode[c] not in (1, 5) or s.triggered[c]))

    def output(self, c: int) -> bool:
        """The level of channel c's OUT pin now."""
        s = self.state
        mode: int = s.mode[c]
        count: int = s.count[c]
        if not self._running(c):
            return bool(mode != 0)
        ticks = self._ticks(c)
        if mode in (0, 1):
            return ticks >= count
        if mode in (4, 5):
            return ticks != count
        if not s.gate[c]:
            return True
        return ticks % count != count - 1 if mode == 2 else ticks % count < count + 1 >> 1

    def _current(self, c: int) -> int:
        """The counting element as the guest reads it."""
        s = self.state
        mode, count = s.mode[c], s.count[c]
        ticks = self._ticks(c) if self._running(c) else 0
        if mode == 2:
            value = count - ticks % count
        elif mode == 3:
            value = (count - 2 * ticks % count) & ~1  # counts down by two, twice a period
        else:
            value = count - ticks
        return _to_bcd(value % 10000) if s.bcd[c] else value & 0xFFFF

    def _arm(self, not_before_ns: int = 0) -> None:
        """Waits for the next rising edge of channel 0, whose gate is always high."""
        s = self.state
        mode, count, start = s.mode[0], s.count[0], self._start_ns[0]
        periodic = mode in (2, 3)
        if not s.loaded[0] or not (periodic or s.edge_due):
            self._timer.cancel()
            return
        after_ns = max(self._clock.now_ns(), not_before_ns)
        periods = (after_ns - start) * PIT_HZ // _NS // count + 1 if periodic else 1
        self._timer.arm(start - -periods * count * _NS // PIT_HZ)

    def _edge(self) -> None:
        self.state.edge_due = 0
        self._irq.set(False)
        self._irq.set(True)
        self._arm(self._clock.now_ns() + MIN_PERIOD_NS)

    def _read(self, port: int) -> int:
        if port == 3:
            return 0xFF  # the control word register cannot be read
        s = self.state
        if s.status_latched[port]:
            s.status_latched[port] = 0
            return int(s.status[port])
        if s.latched[port]:
            high = not s.latched[port] & 1
            s.latched[port] &= 2 if not high else 0
            value = s.latch[port]
        else:
            high = bool(s.access[port] == 2 or (s.access[port] == 3 and s.read_high[port]))
            if s.access[port] == 3:
                s.read_high[port] ^= 1
            value = self._current(port)
        return int(value) >> 8 & 0xFF if high else int(value) & 0xFF

    def _write(self, port: int, value: int) -> None:
        s = self.state
        if port == 3:
            self._write_control(value)
        elif s.access[port] == 1:
            self._load(port, value)
        elif s.access[port] == 2:
            self._load(port, value << 8)
        elif s.write_high[port]:
            s.write_high[port] = 0
            self._load(port, value << 8 | s.write_low[port])
        else:
            s.write_low[port] = value
            s.write_high[port] = 1

    def _write_control(self, value: int) -> None:
        s = self.state
        c, access = value >> 6, value >> 4 & 3
        if c == 3:  # read-back command: bits 5 and 4 are active low
            for n in range(3):
                if value >> n + 1 & 1:
                    if not value & 0x20:
                        self._latch_count(n)
                    if not value & 0x10 and not s.status_latched[n]:
                        s.status_latched[n] = 1
                        s.status[n] = self.output(n) << 7 | (1 - s.loaded[n]) << 6 | s.access[n] << 4 | s.mode[n] << 1 | s.bcd[n]
            return
        if access == 0:
            self._latch_count(c)
            return
        mode = value >> 1 & 7
        s.access[c] = access
        s.mode[c] = mode if mode < 6 else mode - 4  # bit 2 is "don't care" for modes 2 and 3
        s.bcd[c] = value & 1
        s.loaded[c] = s.write_high[c] = s.read_high[c] = s.latched[c] = s.status_latched[c] = s.triggered[c] = 0
        if c == 0:
            s.edge_due = 0
            self._arm()
            self._irq.set(s.mode[0] != 0)

    def _latch_count(self, c: int) -> None:
        s = self.state
        if not s.latched[c]:  # 8254: latching again before the count is read changes nothing
            s.latch[c] = self._current(c)
            s.latched[c] = _LATCHED_ALL if s.access[c] == 3 else s.access[c]

    def _load(self, c: int, value: int) -> None:
        s = self.state
        s.count[c] = (_from_bcd(value) or 10000) if s.bcd[c] else value or 0x10000
        s.loaded[c] = 1
        if s.mode[c] in (1, 5) and s.triggered[c]:
            return  # the one-shot under way goes on; the next trigger loads the count
        s.age_ns[c] = 0
        self._start_ns[c] = self._clock.now_ns()
        if c == 0:
            s.edge_due = int(s.mode[0] in (0, 4))
            self._irq.set(s.mode[0] != 0)
            self._arm()

    def _read_port61(self, _: int) -> int:
        s = self.state
        refresh = self._clock.now_ns() // _REFRESH_NS & 1
        return int(s.gate[2] | s.speaker << 1 | s.checks << 2 | refresh << 4 | self.output(2) << 5)

    def _write_port61(self, _: int, value: int) -> None:
        s = self.state
        s.speaker, s.checks = value >> 1 & 1, value >> 2 & 3
        gate, now = value & 1, self._clock.now_ns()
        if gate == s.gate[2]:
            return
        if not gate:
            s.age_ns[2] = min(now - self._start_ns[2], _GATED_OFF_AGE)
        elif s.mode[2] in (0, 4):
            self._start_ns[2] = now - s.age_ns[2]
        else:  # the rising edge starts the count anew
            self._start_ns[2] = now
            s.age_ns[2] = 0
            s.triggered[2] = 1
        s.gate[2] = gate
