"""Parallel port: printing by polling and by interrupt, and what drivers test for."""

from __future__ import annotations

import pytest

from ringfence.bus.irq import IrqLine
from ringfence.core.clock import ManualClock
from ringfence.devices.parallel import ParallelPort


class Paper:
    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.pieces.append(data)

    def start(self, receive: object) -> None: ...

    def close(self) -> None: ...


class Rig:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.edges = 0
        self.paper = Paper()
        self.lpt = ParallelPort(IrqLine("irq7", self._irq).pin(), self.paper, self.clock)

    def _irq(self, level: bool) -> None:
        self.edges += level

    def out(self, port: int, value: int) -> None:
        self.lpt.ports.write(port, 1, value)

    def read(self, port: int) -> int:
        return self.lpt.ports.read(port, 1)

    def bios_print(self, text: bytes) -> int:
        """INT 17h function 0; returns how many bytes were acknowledged."""
        done = 0
        for byte in text:
            assert self.read(1) & 0x80
            self.out(0, byte)
            control = self.read(2)
            self.out(2, control | 1)
            self.out(2, control & ~1)
            done += not self.read(1) & 0x40
        return done


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_printing_by_polling(rig: Rig) -> None:
    assert rig.bios_print(b"hello\r\n") == 7
    assert rig.paper.pieces == [] and rig.edges == 0
    rig.clock.advance(1_000_000)
    assert rig.paper.pieces == [b"hello\r\n"]


def test_printing_by_interrupt(rig: Rig) -> None:
    for n, byte in enumerate(b"abc"):
        rig.out(0, byte)
        rig.out(2, 0x1D)
        assert rig.edges == n and not rig.read(1) & 0x80  # busy while the strobe lasts
        rig.out(2, 0x1C)
        assert rig.edges == n + 1
    rig.lpt.pause()
    assert rig.paper.pieces == [b"abc"]


def test_the_byte_is_taken_as_the_strobe_begins(rig: Rig) -> None:
    rig.out(0, 0x41)
    rig.out(2, 0x0D)
    rig.out(0, 0x42)
    rig.out(2, 0x0D)
    rig.out(2, 0x0C)
    rig.lpt.flush()
    assert rig.paper.pieces == [b"A"]


def test_status_when_idle(rig: Rig) -> None:
    assert rig.read(1) == 0xD8 == rig.read(1)
    rig.out(2, 0x08)  # reset of the printer
    assert not rig.read(1) & 0x80
    rig.out(2, 0x0C)
    assert rig.read(1) == 0xD8
    rig.out(1, 0x00)
    assert rig.read(1) == 0xD8


def test_a_printer_in_reset_or_not_selected_takes_nothing(rig: Rig) -> None:
    for control in (0x08, 0x04):
        rig.out(2, control)
        rig.out(2, control | 1)
        rig.out(2, control)
    rig.out(2, 0x0C)
    assert rig.read(1) == 0xD8
    rig.lpt.flush()
    assert rig.paper.pieces == []


def test_a_reset_in_the_midst_of_a_strobe(rig: Rig) -> None:
    rig.out(2, 0x0D)
    rig.out(2, 0x08)
    rig.out(2, 0x1C)
    assert rig.edges == 0 and rig.read(1) == 0xD8


def test_registers_that_drivers_probe(rig: Rig) -> None:
    for value in (0x55, 0xAA):
        rig.out(0, value)
        assert rig.read(0) == value
        rig.out(2, 0x2C)  # as inputs the lines float
        assert rig.read(0) == 0xFF
        rig.out(2, 0x0C)
    assert rig.read(2) == 0xCC
    assert rig.lpt.ports.read(3, 1) == 0xFF


def test_a_long_print_does_not_wait_for_the_clock(rig: Rig) -> None:
    rig.bios_print(bytes(3000))
    assert [len(piece) for piece in rig.paper.pieces] == [1024, 1024]
    rig.lpt.reset()
    assert sum(map(len, rig.paper.pieces)) == 3000
