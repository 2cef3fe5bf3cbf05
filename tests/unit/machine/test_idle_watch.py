"""When a machine counts as idle, and how often it gives memory back."""

from __future__ import annotations

import time

import pytest

from ringfence.core.clock import ManualClock
from ringfence.machine.idle_watch import FIRST_PAUSE_NS, LOOK_NS, IdleWatch


class Host:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = ManualClock()
        self.rests: list[int] = []
        self.spent_ns = 0
        monkeypatch.setattr(time, "process_time_ns", lambda: self.spent_ns)
        IdleWatch(self.clock, self._rest).start()

    def _rest(self) -> int:
        self.rests.append(self.clock.now_ns())
        return 0

    def run(self, looks: int, share: float) -> None:
        for _ in range(looks):
            self.spent_ns += int(share * LOOK_NS)
            self.clock.advance(LOOK_NS)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(monkeypatch)


def test_a_busy_machine_is_left_alone(host: Host) -> None:
    host.run(100, 0.1)
    assert host.rests == []


def test_an_idle_one_rests_once_and_then_more_and_more_rarely(host: Host) -> None:
    host.run(5, 1.0)
    host.run(1, 0.0)
    assert host.rests == [6 * LOOK_NS]
    host.run(500, 0.01)
    pauses = [b - a for a, b in zip(host.rests, host.rests[1:], strict=False)]
    assert pauses[0] >= FIRST_PAUSE_NS and all(later > 1.5 * sooner for sooner, later in zip(pauses, pauses[1:], strict=False))
    assert 3 <= len(host.rests) <= 6
