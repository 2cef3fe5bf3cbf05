"""The local APIC's timer (Intel SDM volume 3A, section "APIC Timer"): one-shot, periodic and TSC-deadline modes.

Counts are computed from the time of the write; only expiry needs a clock timer.  Expiries of a periodic timer that come
closer than 100 us are merged.
"""

from __future__ import annotations

from collections.abc import Callable

from ringfence.core.clock import Clock
from ringfence.devices.apic_state import LVT_TIMER, LocalApicState
from ringfence.devices.timed import MIN_PERIOD_NS

_ONE_SHOT, _PERIODIC, _TSC_DEADLINE = 0, 1, 2
_NS = 1_000_000_000
_FAR_NS = 1 << 62
_RETRY_NS = 20_000  # longer than the loop takes, so that a TSC that stands still cannot hold it


class ApicTimer:
    """Counts at APIC_TIMER_HZ (1 ns a tick before the divider).  `expired` is called whether or not the LVT is masked."""

    def __init__(self, state: LocalApicState, clock: Clock, tsc_hz: int, read_tsc: Callable[[], int], expired: Callable[[], None]) -> None:
        self._state = state
        self._clock = clock
        self._tsc_hz = tsc_hz
        self._read_tsc = read_tsc
        self._expired = expired
        self._timer = clock.timer(self._due)
        self._start_ns = clock.now_ns()

    def _mode(self) -> int:
        return int(self._state.lvt[LVT_TIMER]) >> 17 & 3

    def _tick_ns(self) -> int:
        """Nanoseconds of one count: the divider, 1-128 (SDM 3A figure 11-10)."""
        divide: int = self._state.timer_divide
        return 1 << ((divide & 3 | divide >> 1 & 4) + 1 & 7)

    def freeze(self) -> None:
        self._state.timer_age_ns = min(self._clock.now_ns() - self._start_ns, _FAR_NS)

    def thaw(self) -> None:
        self._start_ns = self._clock.now_ns() - self._state.timer_age_ns
        self.arm()

    def stop(self) -> None:
        self._timer.cancel()

    def current_count(self) -> int:
        s = self._state
        initial, mode = s.timer_initial, self._mode()
        if not initial or mode > _PERIODIC:
            return 0
        ticks = (self._clock.now_ns() - self._start_ns) // self._tick_ns()
        if mode == _PERIODIC:
            return int(initial - ticks % initial)
        return max(0, int(initial - ticks)) if s.timer_due else 0

    def write_initial(self, value: int) -> None:
        s = self._state
        if self._mode() > _PERIODIC:
            return  # SDM: ignored in TSC-deadline mode
        s.timer_initial = value
        s.timer_due = int(value != 0)
        self._start_ns = self._clock.now_ns()
        self.arm()

    def write_divide(self, value: int) -> None:
        s = self._state
        ticks = (self._clock.now_ns() - self._start_ns) // self._tick_ns()
        s.timer_divide = value & 0x0B
        self._start_ns = self._clock.now_ns() - ticks * self._tick_ns()  # what was counted stays counted
        self.arm()

    def mode_changed(self, old_mode: int) -> None:
        """The LVT entry was written.  Going to or from TSC-deadline mode disarms the timer."""
        s = self._state
        mode = self._mode()
        if mode == old_mode:
            return
        if _TSC_DEADLINE in (mode, old_mode):
            s.timer_initial = s.timer_due = s.tsc_deadline = 0
        self.arm()

    def write_deadline(self, tsc: int) -> None:
        if self._mode() == _TSC_DEADLINE:
            self._state.tsc_deadline = tsc
            self.arm()

    def arm(self, not_before_ns: int = 0) -> None:
        """Waits for the next expiry; also to be called when the TSC was set."""
        s = self._state
        mode = self._mode()
        if mode == _TSC_DEADLINE:
            if s.tsc_deadline:
                left = s.tsc_deadline - self._read_tsc()
                now_ns = self._clock.now_ns()
                self._timer.arm(now_ns if left <= 0 else now_ns + min(left * _NS // self._tsc_hz + 1, _FAR_NS))
                return
        elif mode == _ONE_SHOT:
            if s.timer_due:
                self._timer.arm(self._start_ns + s.timer_initial * self._tick_ns())
                return
        elif mode == _PERIODIC and s.timer_initial:
            period_ns = s.timer_initial * self._tick_ns()
            after_ns = max(self._clock.now_ns(), not_before_ns)
            self._timer.arm(after_ns + period_ns - (after_ns - self._start_ns) % period_ns)
            return
        self._timer.cancel()

    def _due(self) -> None:
        s = self._state
        mode = self._mode()
        if mode == _TSC_DEADLINE:
            if self._read_tsc() < s.tsc_deadline:  # the clock and the TSC do not agree to the last nanosecond
                left = s.tsc_deadline - self._read_tsc()
                self._timer.arm(self._clock.now_ns() + min(max(left * _NS // self._tsc_hz + 1, _RETRY_NS), _FAR_NS))
                return
            s.tsc_deadline = 0
        elif mode == _ONE_SHOT:
            s.timer_due = 0
        else:
            self.arm(self._clock.now_ns() + MIN_PERIOD_NS)
        self._expired()
