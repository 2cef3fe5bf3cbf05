"""The mouse by itself: packets of its three kinds, modes, commands."""

from __future__ import annotations

import pytest

from ringfence.devices.ps2_mouse import Ps2Mouse


def take(mouse: Ps2Mouse) -> list[int]:
    found = []
    while (value := mouse.take()) is not None:
        found.append(value)
    return found


def ask(mouse: Ps2Mouse, *values: int) -> list[int]:
    for value in values:
        mouse.receive(value)
    return take(mouse)


def knock(mouse: Ps2Mouse, *rates: int) -> int:
    for rate in rates:
        assert ask(mouse, 0xF3, rate) == [0xFA, 0xFA]
    answer = ask(mouse, 0xF2)
    assert answer[0] == 0xFA
    return answer[1]


@pytest.fixture
def mouse() -> Ps2Mouse:
    mouse = Ps2Mouse()
    assert ask(mouse, 0xF4) == [0xFA]
    return mouse


def test_linux_probes_from_bare_to_explorer(mouse: Ps2Mouse) -> None:
    assert ask(mouse, 0xFF) == [0xFA, 0xAA, 0x00]
    assert knock(mouse) == 0
    assert knock(mouse, 200, 100, 80) == 3
    assert knock(mouse, 200, 200, 80) == 4
    assert ask(mouse, 0xF6) == [0xFA] and knock(mouse) == 4
    assert ask(mouse, 0xFF) == [0xFA, 0xAA, 0x00] and knock(mouse) == 0


def test_a_reset_ends_a_knock(mouse: Ps2Mouse) -> None:
    assert knock(mouse, 200, 100) == 0
    ask(mouse, 0xFF)
    assert knock(mouse, 80) == 0


def test_signs(mouse: Ps2Mouse) -> None:
    mouse.move(3, 4)
    assert take(mouse) == [0x28, 3, 0xFC]
    mouse.move(-3, -4)
    assert take(mouse) == [0x18, 0xFD, 4]


def test_wheel_and_five_buttons(mouse: Ps2Mouse) -> None:
    knock(mouse, 200, 100, 80)
    mouse.move(0, 0, 1)
    assert take(mouse) == [0x08, 0, 0, 0xFF]  # away from the user
    mouse.move(0, 0, -2)
    assert take(mouse) == [0x08, 0, 0, 2]
    knock(mouse, 200, 200, 80)
    mouse.move(0, 0, 2)
    assert take(mouse) == [0x08, 0, 0, 0x0F] * 2
    mouse.buttons(0x18)
    assert take(mouse) == [0x08, 0, 0, 0x30]


def test_a_wheel_that_nobody_asked_for_is_still(mouse: Ps2Mouse) -> None:
    mouse.move(0, 0, 5)
    assert take(mouse) == []
    assert knock(mouse, 200, 100, 80) == 3
    mouse.move(1, 0)
    assert take(mouse) == [0x08, 1, 0, 0]


def test_large_movement_is_spread_over_packets(mouse: Ps2Mouse) -> None:
    mouse.move(600, -600)
    assert take(mouse) == [0x08, 255, 255, 0x08, 255, 255, 0x08, 90, 90]


def test_movement_is_gathered_while_a_packet_waits(mouse: Ps2Mouse) -> None:
    for _ in range(5):
        mouse.move(1, 0)
    assert take(mouse) == [0x08, 1, 0, 0x08, 4, 0]


def test_every_click_has_its_packets(mouse: Ps2Mouse) -> None:
    mouse.move(7, 0)
    for mask in (1, 0, 2, 0, 4, 0):
        mouse.buttons(mask)
    packets = take(mouse)
    assert packets[0::3] == [8, 9, 8, 10, 8, 12, 8]


def test_an_endless_clicker_ends_in_the_right_state(mouse: Ps2Mouse) -> None:
    for n in range(1001):
        mouse.buttons(n & 1 ^ 1)
    packets = take(mouse)
    assert len(packets) <= 66 and packets[-3] == 9


def test_scaling(mouse: Ps2Mouse) -> None:
    assert ask(mouse, 0xE7) == [0xFA]
    expected = {1: 1, 2: 1, 3: 3, 4: 6, 5: 9, 6: 12, 100: 200}
    for counts, scaled in expected.items():
        mouse.move(counts, 0)
        assert take(mouse) == [8, scaled, 0]
        mouse.move(-counts, 0)
        assert take(mouse) == [0x18, -scaled & 0xFF, 0]
    mouse.move(200, 0)
    assert take(mouse) == [8, 254, 0, 8, 146, 0]
    mouse.move(2, 0)
    take(mouse)
    ask(mouse, 0xF0)
    mouse.move(2, 0)
    assert ask(mouse, 0xEB) == [0xFA, 8, 2, 0]  # not in remote mode
    assert ask(mouse, 0xE6, 0xEA) == [0xFA, 0xFA]
    mouse.move(2, 0)
    assert take(mouse) == [8, 2, 0]


def test_remote_mode_reports_on_request(mouse: Ps2Mouse) -> None:
    assert ask(mouse, 0xF5, 0xF0) == [0xFA, 0xFA]
    mouse.move(1, 0)
    mouse.move(1, 0)
    mouse.buttons(1)
    assert take(mouse) == []
    assert ask(mouse, 0xEB) == [0xFA, 0x09, 2, 0]
    assert ask(mouse, 0xEB) == [0xFA, 0x09, 0, 0]


def test_disabled_means_still(mouse: Ps2Mouse) -> None:
    assert ask(mouse, 0xF5) == [0xFA]
    mouse.move(9, 9)
    mouse.buttons(1)
    assert take(mouse) == []
    assert ask(mouse, 0xF4) == [0xFA]
    mouse.move(1, 0)
    assert take(mouse) == [0x09, 1, 0]


def test_status(mouse: Ps2Mouse) -> None:
    assert ask(mouse, 0xE8, 3) == [0xFA, 0xFA]
    assert ask(mouse, 0xE8, 4) == [0xFA, 0xFE]
    assert ask(mouse, 0xF3, 60, 0xE7) == [0xFA] * 3
    mouse.buttons(0b110)
    take(mouse)
    assert ask(mouse, 0xE9) == [0xFA, 0x20 | 0x10 | 0b011, 3, 60]
    assert ask(mouse, 0xF6, 0xE9) == [0xFA, 0xFA, 0b011, 2, 100]


def test_wrap_mode_echoes(mouse: Ps2Mouse) -> None:
    assert ask(mouse, 0xEE) == [0xFA]
    assert ask(mouse, 0x12, 0xF2, 0xEE) == [0x12, 0xF2, 0xEE]
    mouse.move(1, 1)
    assert take(mouse) == []
    assert ask(mouse, 0xEC, 0xF2) == [0xFA, 0xFA, 0x00]


def test_resend(mouse: Ps2Mouse) -> None:
    mouse.move(1, 2)
    packet = take(mouse)
    assert ask(mouse, 0xFE) == packet
    assert ask(mouse, 0xF2, 0xFE) == [0xFA, 0x00, 0xFA, 0x00]
    assert ask(mouse, 0xE1) == [0xFE]


def test_wild_movement_fits_its_field(mouse: Ps2Mouse) -> None:
    mouse.move(10**12, -(10**12), 10**12)
    mouse.move(10**12, -(10**12), 10**12)
    saved = mouse.save()
    Ps2Mouse().load(saved)
