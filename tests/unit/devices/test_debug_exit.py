"""Exit status of the debug-exit port."""

from __future__ import annotations

from ringfence.devices.debug_exit import DebugExit


def test_status_is_twice_the_value_plus_one() -> None:
    seen: list[int] = []
    device = DebugExit(seen.append)
    device.write(0, 1, 0)
    device.write(0, 4, 0x10)
    assert seen == [1, 0x21]
    assert device.read(0, 1) == 0
