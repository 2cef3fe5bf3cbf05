"""How often a display looks at a screen: quickly while something happens, seldom while nothing does."""

from __future__ import annotations

import time

_FASTEST_S, _SLOWEST_S = 1 / 30, 0.2
_SLOWER = 1.3


class Pace:
    """At most 30 looks a second, down to 5 while nothing changes.  Times are those of `time.monotonic`."""

    def __init__(self) -> None:
        self._interval_s = _FASTEST_S
        self._looked = 0.0

    def looks_now(self) -> None:
        self._looked = time.monotonic()

    def saw(self, change: bool) -> None:
        self._interval_s = _FASTEST_S if change else min(self._interval_s * _SLOWER, _SLOWEST_S)

    def hurry(self) -> None:
        """Somebody typed, or has come: an answer may show soon."""
        self._interval_s = _FASTEST_S

    def left_s(self) -> float:
        """How long it is until the next look; 0 when it is due."""
        return max(0.0, self._looked + self._interval_s - time.monotonic())
