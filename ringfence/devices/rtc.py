"""Real-time clock and CMOS RAM (Motorola MC146818A data sheet, 1984), 128 bytes as in a PC/AT; century at 0x32 (ACPI 6.5, 5.2.9).

Time is the host's wall clock plus an offset that moves when the guest sets the time.  The time registers are a view of
it, made when they are read, so they cannot be torn; they stand still while SET or the divider's reset holds them.
UIP is up during the last 244 us of every second.  The battery never runs down: `reset` keeps time and RAM.
"""

from __future__ import annotations

from itertools import product

from ringfence.bus.irq import IrqPin
from ringfence.core.clock import Clock
from ringfence.core.state import Field, State
from ringfence.devices.ports import BytePorts
from ringfence.devices.timed import MIN_PERIOD_NS, TimedDevice

RTC_BASE = 0x70
RTC_PORTS = 2
CMOS_BYTES = 128
_NS = 1_000_000_000
_UIP_NS = 244_000
_HALF_SECOND_NS = 500_000_000
_SECONDS, _MINUTES, _HOURS, _WEEKDAY, _DAY, _MONTH, _YEAR, _CENTURY = 0, 2, 4, 6, 7, 8, 9, 0x32
_TIME = frozenset((_SECONDS, _MINUTES, _HOURS, _WEEKDAY, _DAY, _MONTH, _YEAR, _CENTURY))
_ALARM = frozenset((1, 3, 5))
_A, _B, _C, _D = 0x0A, 0x0B, 0x0C, 0x0D
_SET, _PIE, _AIE, _UIE, _DM_BINARY, _24H = 0x80, 0x40, 0x20, 0x10, 0x04, 0x02
_PF, _AF, _UF, _IRQF = 0x40, 0x20, 0x10, 0x80
_OFFSET_BIAS_NS = 1 << 70  # the offset is signed; a guest can ask for any of 16,665 years


def days_from_civil(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01 in the proleptic Gregorian calendar; a day beyond the month's end runs into the next month."""
    shifted = year - (month < 3)
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    return shifted * 365 + shifted // 4 - shifted // 100 + shifted // 400 + day_of_year - 719468


def civil_from_days(days: int) -> tuple[int, int, int]:
    """(year, month, day); the opposite of `days_from_civil`."""
    days += 719468
    era, day_of_era = divmod(days, 146097)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36524 - day_of_era // 146096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted_month = (5 * day_of_year + 2) // 153
    month = (shifted_month + 2) % 12 + 1
    return year_of_era + era * 400 + (month < 3), month, day_of_year - (153 * shifted_month + 2) // 5 + 1


class RtcState(State):
    index = Field(8, doc="last byte written to port 0x70; bit 7 masks NMI")
    cmos = Field(8, count=CMOS_BYTES, doc="registers A-D, alarm, RAM; time only while it stands still")
    offset_ns = Field(71, reset=_OFFSET_BIAS_NS, doc="RTC time minus the host's UTC, biased by 2^70")
    phase_ns = Field(30, doc="part of a second that had passed when the time was stopped")
    seen_s = Field(64, doc="second up to which update and alarm flags were raised (biased by 2^40)")
    periodic_age_ns = Field(63, doc="time since the last periodic flag (filled in by save)")
    irq_level = Field(1, doc="level of the IRQ 8 pin (filled in by save)")


_SECOND_BIAS = 1 << 40


class Rtc(TimedDevice):
    """A handler for ports 0x70 and 0x71."""

    name = "rtc"

    def __init__(self, irq: IrqPin, clock: Clock) -> None:
        self.state: RtcState = RtcState()
        self._irq = irq
        self._clock = clock
        self._timer = clock.timer(self._due)
        self._periodic_ns = clock.now_ns()  # instant of the last periodic flag
        cmos = self.state.cmos
        cmos[_A], cmos[_B], cmos[_D] = 0x26, _24H, 0x80
        self.state.seen_s = self._now_ns() // _NS + _SECOND_BIAS
        ports = BytePorts(RTC_PORTS, self._read, self._write)
        self.read, self.write = ports.read, ports.write

    def reset(self) -> None:
        """MC146818A, RESET pin: interrupt enables and flags are cleared, all else is kept."""
        s = self.state
        s.index = 0
        s.cmos[_B] &= ~(_PIE | _AIE | _UIE | 0x08)
        s.cmos[_C] = 0
        self._irq.set(False)
        self._rearm()

    def set_offset_s(self, seconds: float) -> None:
        """Lets the RTC tell UTC plus `seconds`."""
        self.state.offset_ns = _OFFSET_BIAS_NS + int(seconds * _NS)
        self.state.seen_s = self._now_ns() // _NS + _SECOND_BIAS
        self._rearm()

    def set_nvram(self, index: int, value: int) -> None:
        """Firmware configuration bytes (0x0e-0x7f)."""
        self.state.cmos[index] = value & 0xFF

    def nvram(self, index: int) -> int:
        """A byte that `set_nvram` or the guest wrote."""
        return int(self.state.cmos[index])

    def _freeze(self) -> None:
        self.state.periodic_age_ns = max(0, self._clock.now_ns() - self._periodic_ns)
        self.state.irq_level = int(self._irq.level)

    def _thaw(self) -> None:
        self._periodic_ns = self._clock.now_ns() - self.state.periodic_age_ns
        self._irq.restore(bool(self.state.irq_level))
        self._rearm()

    def _stop_timers(self) -> None:
        self._timer.cancel()

    # --- time ---------------------------------------------------------------------------------------------------------

    def _running(self) -> bool:
        cmos = self.state.cmos
        return bool(not cmos[_B] & _SET and cmos[_A] & 0x60 != 0x60)

    def _now_ns(self) -> int:
        offset_ns: int = self.state.offset_ns - _OFFSET_BIAS_NS
        return int(self._clock.wall_s() * _NS) + offset_ns

    def _encode(self, value: int) -> int:
        return value if self.state.cmos[_B] & _DM_BINARY else value % 10 | value // 10 % 10 << 4

    def _decode(self, value: int) -> int:
        return value if self.state.cmos[_B] & _DM_BINARY else (value & 15) + 10 * (value >> 4)

    def _encode_hour(self, hour: int) -> int:
        if self.state.cmos[_B] & _24H:
            return self._encode(hour)
        return self._encode(hour % 12 or 12) | (0x80 if hour >= 12 else 0)

    def _decode_hour(self, value: int) -> int:
        if self.state.cmos[_B] & _24H:
            return self._decode(value)
        return self._decode(value & 0x7F) % 12 + (12 if value & 0x80 else 0)

    def _show(self) -> None:
        """Brings the time registers up to date."""
        if not self._running():
            return
        cmos = self.state.cmos
        days, second = divmod(self._now_ns() // _NS, 86400)
        year, month, day = civil_from_days(days)
        cmos[_SECONDS] = self._encode(second % 60)
        cmos[_MINUTES] = self._encode(second // 60 % 60)
        cmos[_HOURS] = self._encode_hour(second // 3600)
        cmos[_WEEKDAY] = self._encode((days + 4) % 7 + 1)
        cmos[_DAY], cmos[_MONTH] = self._encode(day), self._encode(month)
        cmos[_YEAR], cmos[_CENTURY] = self._encode(year % 100), self._encode(year // 100 % 100)

    def _adopt(self, phase_ns: int) -> None:
        """The time registers become the time, `phase_ns` into their second."""
        cmos = self.state.cmos
        year = self._decode(cmos[_CENTURY]) * 100 + self._decode(cmos[_YEAR])
        month = min(max(self._decode(cmos[_MONTH]), 1), 12)
        days = days_from_civil(year, month, self._decode(cmos[_DAY]))
        second = self._decode_hour(cmos[_HOURS]) * 3600 + self._decode(cmos[_MINUTES]) * 60 + self._decode(cmos[_SECONDS])
        wall_ns = int(self._clock.wall_s() * _NS)
        self.state.offset_ns = _OFFSET_BIAS_NS + (days * 86400 + second) * _NS + phase_ns - wall_ns
        self.state.seen_s = self._now_ns() // _NS + _SECOND_BIAS

    # --- flags and interrupts -----------------------------------------------------------------------------------------

    def _period_ns(self) -> int | None:
        """Rate of the periodic interrupt (MC146818A table 5, 32.768 kHz time base)."""
        rate: int = self.state.cmos[_A] & 15
        if not rate:
            return None
        return (1 << (rate + 6 if rate < 3 else rate - 1)) * _NS // 32768

    def _next_alarm_s(self, after_s: int) -> int | None:
        """The first second after `after_s` that matches the alarm registers; 0xc0-0xff match everything."""
        cmos = self.state.cmos

        def allowed(value: int, decoded: int, limit: int) -> range:
            if value >= 0xC0:
                return range(limit)
            return range(decoded, decoded + 1) if decoded < limit else range(0)

        hours = allowed(cmos[5], self._decode_hour(cmos[5]), 24)
        minutes = allowed(cmos[3], self._decode(cmos[3]), 60)
        seconds = allowed(cmos[1], self._decode(cmos[1]), 60)
        midnight_s = after_s - after_s % 86400
        for day, hour in product((0, 1), hours):
            hour_s = midnight_s + day * 86400 + hour * 3600
            if hour_s + 3599 <= after_s:
                continue
            for minute in minutes:
                minute_s = hour_s + minute * 60
                if minute_s + 59 <= after_s:
                    continue
                for second in seconds:
                    if minute_s + second > after_s:
                        return minute_s + second
        return None

    def _advance(self) -> None:
        """Raises the flags of everything that has happened since the last call."""
        s = self.state
        cmos = s.cmos
        now_ns = self._clock.now_ns()
        period_ns = self._period_ns()
        if period_ns is not None and now_ns - self._periodic_ns >= period_ns:
            cmos[_C] |= _PF
            self._periodic_ns = now_ns - (now_ns - self._periodic_ns) % period_ns
        if self._running():
            now_s = self._now_ns() // _NS
            seen_s = s.seen_s - _SECOND_BIAS
            if now_s > seen_s:
                cmos[_C] |= _UF
                alarm_s = self._next_alarm_s(seen_s)
                if alarm_s is not None and alarm_s <= now_s:
                    cmos[_C] |= _AF
            s.seen_s = now_s + _SECOND_BIAS  # also when the host's clock was set back
        if cmos[_C] & cmos[_B] & (_PF | _AF | _UF):
            cmos[_C] |= _IRQF
        self._irq.set(bool(cmos[_C] & _IRQF))

    def _rearm(self) -> None:
        """Waits for the next event that may interrupt; flags that only poll are raised when register C is read."""
        s = self.state
        cmos = s.cmos
        now_ns = self._clock.now_ns()
        deadlines = []
        period_ns = self._period_ns()
        if cmos[_B] & _PIE and period_ns is not None:
            deadlines.append(self._periodic_ns + period_ns)
        if cmos[_B] & (_UIE | _AIE) and self._running():
            rtc_ns = self._now_ns()
            next_s: int | None = rtc_ns // _NS + 1
            if not cmos[_B] & _UIE:
                next_s = self._next_alarm_s(rtc_ns // _NS)
            if next_s is not None:
                deadlines.append(now_ns + next_s * _NS - rtc_ns)
        if deadlines and not cmos[_C] & _IRQF:  # register C must be read before anything can interrupt again
            self._timer.arm(max(min(deadlines), now_ns + MIN_PERIOD_NS))
        else:
            self._timer.cancel()

    def _due(self) -> None:
        self._advance()
        self._rearm()

    # --- ports --------------------------------------------------------------------------------------------------------

    def _read(self, port: int) -> int:
        if port == 0:
            return 0xFF  # the index register is write-only
        s = self.state
        index = s.index & 0x7F
        if index in _TIME:
            self._show()
        elif index == _A:
            updating = self._running() and self._now_ns() % _NS >= _NS - _UIP_NS
            return int(s.cmos[_A]) & 0x7F | updating << 7
        elif index == _C:
            self._advance()
            value = int(s.cmos[_C])
            s.cmos[_C] = 0
            self._irq.set(False)
            self._rearm()
            return value
        return int(s.cmos[index])

    def _write(self, port: int, value: int) -> None:
        s = self.state
        if port == 0:
            s.index = value
            return
        index = s.index & 0x7F
        if index in (_A, _B):
            self._write_control(index, value)
        elif index in _TIME:
            self._show()
            s.cmos[index] = value
            if self._running():
                self._adopt(self._now_ns() % _NS)
                self._rearm()
        elif index in _ALARM:
            self._advance()
            s.cmos[index] = value
            self._rearm()
        elif index not in (_C, _D):
            s.cmos[index] = value

    def _write_control(self, index: int, value: int) -> None:
        s = self.state
        self._advance()
        self._show()
        was_running, was_reset = self._running(), s.cmos[_A] & 0x60 == 0x60
        if index == _A:
            if (s.cmos[_A] ^ value) & 15:
                self._periodic_ns = self._clock.now_ns()
            s.cmos[_A] = value & 0x7F
        else:
            s.cmos[_B] = value & ~_UIE if value & _SET else value  # SET clears UIE
        if was_running and not self._running():
            s.phase_ns = self._now_ns() % _NS
        elif not was_running and self._running():
            # MC146818A, "divider control": the first update comes half a second after the divider's reset ends.
            self._adopt(_HALF_SECOND_NS if was_reset else s.phase_ns)
        self._advance()
        self._rearm()
