"""The ways to reset a PC."""

from __future__ import annotations

from ringfence.devices.reset import RESET_CONTROL_VALUE, ResetControl


def make() -> tuple[ResetControl, list[str]]:
    seen: list[str] = []
    return ResetControl(lambda: seen.append("reset")), seen


def test_reset_control_register() -> None:
    device, seen = make()
    device.control.write(0, 1, 0x02)
    assert not seen and device.control.read(0, 1) == 2
    device.control.write(0, 1, RESET_CONTROL_VALUE)
    assert seen == ["reset"]


def test_system_control_port_a() -> None:
    device, seen = make()
    assert device.port_a.read(0, 1) == 2  # A20 is open
    device.port_a.write(0, 1, 2)
    assert not seen
    device.port_a.write(0, 1, 3)
    assert seen == ["reset"]


def test_keyboard_controller_is_only_a_reset_line() -> None:
    device, seen = make()
    status = device.keyboard_command.read(0, 1)
    assert status & 1  # a flush never ends: the driver takes the controller for absent
    assert not status & 2  # a command can be written at once
    device.keyboard_command.write(0, 1, 0xD1)
    device.keyboard_data.write(0, 1, 0xDF)
    assert not seen
    device.keyboard_command.write(0, 1, 0xFE)
    assert seen == ["reset"]
