"""A guest that has come to rest gives memory back: most of what was translated for its start is never executed again."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable

from ringfence.core.clock import Clock
from ringfence.core.trace import tracer

trace = tracer("start")

LOOK_NS = 2_000_000_000
IDLE_SHARE = 0.05  # of one host CPU, by everything in this process
FIRST_PAUSE_NS = 60_000_000_000  # before the next time; each pause is twice the last one, as what comes back is then in use


class IdleWatch:
    """Calls `rest` on the device thread when the machine has been idle for a look's time.  `rest` returns the bytes it gave back."""

    def __init__(self, clock: Clock, rest: Callable[[], int]) -> None:
        self._clock = clock
        self._rest = rest
        self._timer = clock.timer(self._look)
        self._spent_ns = 0
        self._looked_ns = 0
        self._pause_ns = FIRST_PAUSE_NS
        self._not_before_ns = 0

    def start(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._spent_ns, self._looked_ns = time.process_time_ns(), self._clock.now_ns()
        self._timer.arm(max(self._looked_ns + LOOK_NS, self._not_before_ns))

    def _look(self) -> None:
        passed, spent = self._clock.now_ns() - self._looked_ns, time.process_time_ns() - self._spent_ns
        if passed < 2 * LOOK_NS and spent < IDLE_SHARE * passed:
            size = self._rest()
            _trim_heap()
            if trace:
                trace("the guest is idle: %d bytes of translated code given back", size)
            self._not_before_ns = self._clock.now_ns() + self._pause_ns
            self._pause_ns *= 2
        self._begin()


def _trim_heap() -> None:
    """Gives free memory of the C library's heap back (malloc_trim(3)), where it can do that."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
