"""The ways to reset a PC."""

from __future__ import annotations

from ringfence.devices.a20 import A20Gate
from ringfence.devices.reset import RESET_CONTROL_VALUE, ResetControl


def make() -> tuple[ResetControl, list[str]]:
    seen: list[str] = []
    return ResetControl(lambda: seen.append("reset"), lambda: seen.append("cpu")), seen


def test_reset_control_register() -> None:
    device, seen = make()
    device.control.write(0, 1, 0x02)
    assert not seen and device.control.read(0, 1) == 2
    device.control.write(0, 1, RESET_CONTROL_VALUE)
    assert seen == ["reset"]
    device.control.write(0, 1, 0x04)  # without SYS_RST
    assert seen == ["reset", "cpu"]


def test_system_control_port_a() -> None:
    device, seen = make()
    assert device.port_a.read(0, 1) == 2  # A20 is open
    device.port_a.write(0, 1, 2)
    assert not seen
    device.port_a.write(0, 1, 3)
    assert seen == ["cpu"]
    device.port_a.write(0, 1, 3)  # only the rising edge counts
    assert seen == ["cpu"]
    device.port_a.write(0, 1, 0)
    assert device.port_a.read(0, 1) == 0


def test_port_a_and_the_gate_of_the_board() -> None:
    changes: list[bool] = []
    gate = A20Gate(changes.append)
    port_a = ResetControl(lambda: None, lambda: None, gate).port_a
    assert port_a.read(0, 1) == 2
    port_a.write(0, 1, 0)
    port_a.write(0, 1, 0)
    assert changes == [False] and port_a.read(0, 1) == 0
    gate.set(True)  # the keyboard controller opens it: one gate, whoever asks
    assert port_a.read(0, 1) == 2
    saved = gate.save()
    port_a.write(0, 1, 0)
    gate.load(saved)
    assert changes == [False, True, False, True] and gate.enabled
    port_a.write(0, 1, 0)
    gate.reset()
    assert gate.enabled and changes[-1]


def test_keyboard_controller_is_only_a_reset_line() -> None:
    device, seen = make()
    status = device.keyboard_command.read(0, 1)
    assert status & 1  # a flush never ends: the driver takes the controller for absent
    assert not status & 2  # a command can be written at once
    device.keyboard_command.write(0, 1, 0xD1)
    device.keyboard_data.write(0, 1, 0xDF)
    assert not seen
    device.keyboard_command.write(0, 1, 0xFE)
    assert seen == ["cpu"]
