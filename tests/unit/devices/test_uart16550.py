"""16550A register file: data sheet behaviour that drivers rely on."""

from __future__ import annotations

import pytest

from ringfence.bus.irq import IrqLine, IrqPin
from ringfence.core.clock import ManualClock
from ringfence.core.errors import SnapshotError
from ringfence.devices.uart16550 import Uart


class Sink:
    """A `Char` that keeps what it gets, write by write."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def start(self, receive: object) -> None: ...

    def close(self) -> None: ...


def make(clock: ManualClock | None = None) -> tuple[Uart, Sink, IrqPin]:
    sink, pin = Sink(), IrqLine("irq4").pin()
    return Uart(pin, sink, clock), sink, pin


def test_output_without_a_clock_goes_out_at_once() -> None:
    uart, sink, _ = make()
    for byte in b"ok":
        uart.write(0, 1, byte)
    assert sink.writes == [b"o", b"k"]


def test_output_is_gathered_for_a_line_or_a_millisecond() -> None:
    clock = ManualClock()
    uart, sink, _ = make(clock)
    for byte in b"line\n$ ":
        uart.write(0, 1, byte)
    assert sink.writes == [b"line\n"]
    clock.advance(1_000_000)
    assert sink.writes == [b"line\n", b"$ "]
    uart.write(0, 1, 0x41)
    uart.pause()
    assert sink.writes[-1] == b"A"
    assert clock.next_deadline_ns() is None


def test_thre_interrupt_as_a_driver_sees_it() -> None:
    uart, _, pin = make()
    assert uart.read(5, 1) == 0x60
    assert uart.read(2, 1) == 0x01
    uart.write(1, 1, 2)  # enabling it with an empty transmitter raises it at once
    assert pin.level
    assert uart.read(2, 1) == 0x02
    assert not pin.level  # reading IIR is the acknowledgement
    assert uart.read(2, 1) == 0x01
    uart.write(0, 1, 0x55)
    assert pin.level
    uart.write(1, 1, 0)
    assert not pin.level


def test_fifo_detection() -> None:
    uart, _, _ = make()
    uart.write(2, 1, 1)
    assert uart.read(2, 1) >> 6 == 3
    uart.write(2, 1, 0)
    assert uart.read(2, 1) >> 6 == 0
    uart.write(1, 1, 0xFF)
    assert uart.read(1, 1) == 0x0F  # upper IER bits exist only in other parts


def test_reception_with_trigger_level_and_timeout() -> None:
    uart, _, pin = make()
    uart.write(2, 1, 0x81)  # trigger at 8
    uart.write(1, 1, 1)
    uart.receive(b"1234567")
    assert pin.level and uart.read(2, 1) == 0xCC
    uart.receive(b"8")
    assert uart.read(2, 1) == 0xC4
    assert bytes(uart.read(0, 1) for _ in range(8)) == b"12345678"
    assert not pin.level and uart.read(5, 1) & 1 == 0


def test_a_long_paste_is_kept_and_never_overruns() -> None:
    uart, _, _ = make()
    data = bytes(range(256)) * 4
    uart.receive(data)
    got = bytearray()
    while uart.read(5, 1) & 1:
        got.append(uart.read(0, 1))
    assert bytes(got) == data


def test_loopback() -> None:
    uart, sink, pin = make()
    uart.write(2, 1, 1)
    uart.write(4, 1, 0x1A)
    assert uart.read(6, 1) & 0xF0 == 0x90  # what a driver's probe expects of RTS and OUT2
    for byte in range(17):
        uart.write(0, 1, byte)
    assert sink.writes == []
    uart.write(1, 1, 4)
    assert pin.level
    assert uart.read(5, 1) & 3 == 3  # the seventeenth byte overran
    assert not pin.level and uart.read(5, 1) & 2 == 0
    assert [uart.read(0, 1) for _ in range(16)] == list(range(16))


def test_modem_status_delta_interrupt() -> None:
    uart, _, pin = make()
    uart.write(1, 1, 8)
    uart.write(4, 1, 0x10)  # loopback drops DCD, DSR and CTS
    assert pin.level and uart.read(2, 1) == 0
    assert uart.read(6, 1) == 0x0B
    assert not pin.level and uart.read(6, 1) == 0


def test_divisor_latch_hides_data_and_ier() -> None:
    uart, sink, _ = make()
    uart.write(3, 1, 0x83)
    uart.write(0, 2, 0x0201)
    assert uart.read(0, 2) == 0x0201
    uart.write(3, 1, 3)
    assert uart.read(1, 1) == 0 and sink.writes == []


def test_save_keeps_fifo_and_queue() -> None:
    uart, _, _ = make()
    uart.write(2, 1, 1)
    uart.receive(bytes(range(40)))
    saved = uart.save()
    other, _, pin = make()
    other.load(saved)
    assert [other.read(0, 1) for _ in range(40)] == list(range(40))
    assert not pin.level
    with pytest.raises(SnapshotError):
        other.load({**saved, "fifo_bytes": 17})
    with pytest.raises(SnapshotError):
        other.load({**saved, "queue": [256]})


def test_what_needs_no_device() -> None:
    """A console polls LSR and writes THR with its interrupt disabled; in every other state both reach the device."""
    uart, _, _ = make()

    def hints() -> tuple[int | None, bool]:
        return uart.line_status.value, uart.transmitter.gather

    assert hints() == (0x60, True)
    uart.write(1, 1, 2)
    assert hints() == (0x60, False)
    uart.write(1, 1, 0)
    uart.write(3, 1, 0x83)
    assert hints() == (0x60, False)
    uart.write(3, 1, 3)
    uart.receive(b"ab")
    assert hints() == (0x61, True)
    uart.read(0, 1)
    uart.read(0, 1)
    assert hints() == (0x60, True)
    uart.write(4, 1, 0x10)
    assert hints() == (0x60, False)
    for _ in range(2):
        uart.write(0, 1, 0x41)
    assert hints() == (None, False)  # an overrun that a read of LSR would clear
    uart.read(5, 1)
    assert hints() == (0x61, False)
    uart.reset()
    assert hints() == (0x60, True)
