"""The only source of time.

A `Clock` tells monotonic nanoseconds and wall-clock seconds and keeps timers.  Timer callbacks never run by
themselves: the machine's loop calls `run_due()` on the thread that owns the devices, and asks `next_deadline_ns()` how
long it may run or sleep.  Tests use a `ManualClock`.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable

_STALE_LIMIT = 1024


class Timer:
    """A one-shot timer; arming it again moves it.  Made by `Clock.timer`; use from the device thread only."""

    __slots__ = ("_clock", "_callback", "_ticket", "deadline_ns")

    def __init__(self, clock: Clock, callback: Callable[[], None]) -> None:
        self._clock = clock
        self._callback = callback
        self._ticket = 0
        self.deadline_ns: int | None = None

    def arm(self, deadline_ns: int) -> None:
        """Fire once at `deadline_ns` on the clock's monotonic scale (in the past: at the next `run_due`)."""
        self.deadline_ns = deadline_ns
        self._clock._push(deadline_ns, self)

    def cancel(self) -> None:
        self.deadline_ns = None
        self._ticket = 0


class Clock:
    """Host time.

    `on_earlier()`, when set, is called whenever a timer is armed that is due before all others: a vCPU that runs with an
    older deadline must then be told.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Timer]] = []
        self._tickets = itertools.count(1)
        self.on_earlier: Callable[[], None] | None = None

    def _push(self, deadline_ns: int, timer: Timer) -> None:
        heap = self._heap
        if len(heap) >= _STALE_LIMIT:
            # A guest may move one timer for ever without letting anything fire; moved entries are dropped here.
            heap[:] = [entry for entry in heap if entry[2]._ticket == entry[1]]
            heapq.heapify(heap)
        timer._ticket = ticket = next(self._tickets)
        heapq.heappush(heap, (deadline_ns, ticket, timer))
        if heap[0][1] == ticket and self.on_earlier is not None:
            self.on_earlier()

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def wall_s(self) -> float:
        """Seconds since the Unix epoch, UTC."""
        return time.time()

    def timer(self, callback: Callable[[], None]) -> Timer:
        return Timer(self, callback)

    def next_deadline_ns(self) -> int | None:
        """The earliest armed deadline, or None."""
        heap = self._heap
        while heap and heap[0][2]._ticket != heap[0][1]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def run_due(self) -> None:
        """Calls back every timer whose deadline has passed, in order of deadlines."""
        while True:
            deadline = self.next_deadline_ns()
            if deadline is None or deadline > self.now_ns():
                return
            timer = heapq.heappop(self._heap)[2]
            timer._ticket = 0
            timer.deadline_ns = None
            timer._callback()


class ManualClock(Clock):
    """Stands still until told otherwise."""

    def __init__(self, now_ns: int = 0, wall_s: float = 0.0) -> None:
        super().__init__()
        self._now_ns = now_ns
        self._wall_s = wall_s

    def now_ns(self) -> int:
        return self._now_ns

    def wall_s(self) -> float:
        return self._wall_s + self._now_ns / 1e9

    def advance(self, delta_ns: int) -> None:
        """Moves time on and runs what becomes due, each timer at its own deadline."""
        end = self._now_ns + delta_ns
        while (deadline := self.next_deadline_ns()) is not None and deadline <= end:
            self._now_ns = max(self._now_ns, deadline)
            self.run_due()
        self._now_ns = end
