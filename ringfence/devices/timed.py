"""Devices whose registers follow the clock.

Saved state holds ages and remaining times in nanoseconds, never instants: the clock of the process that loads a snapshot
has another origin.  A subclass turns one into the other in two places, `_freeze` and `_thaw`; guest-visible time stands
still between `pause` and `resume`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from ringfence.devices.api import Device

# A guest may ask for periods of nanoseconds; the monitor's loop would never leave `run_due`.
MIN_PERIOD_NS = 100_000


class TimedDevice(Device, ABC):
    """Base of devices that keep instants of the clock outside of their declared state."""

    _paused = False

    @abstractmethod
    def _freeze(self) -> None:
        """Writes ages into the state; changes nothing else."""

    @abstractmethod
    def _thaw(self) -> None:
        """Makes instants from the ages in the state and arms timers."""

    @abstractmethod
    def _stop_timers(self) -> None: ...

    def pause(self) -> None:
        if not self._paused:
            self._freeze()
            self._stop_timers()
            self._paused = True

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            self._thaw()

    def save(self) -> dict[str, Any]:
        if not self._paused:
            self._freeze()
        return self.state.save()

    def load(self, saved: dict[str, Any]) -> None:
        self.state.load(saved)
        self._stop_timers()
        if not self._paused:
            self._thaw()
