"""Standard parallel port (IBM PC/AT Technical Reference, "Serial/Parallel Adapter"; bidirectional as in the PS/2) with a printer.

    base + 0  data     base + 1  status (read only)     base + 2  control

The printer takes every byte as the strobe begins: it answers its end with a pulse on nACK, which IRQ 7 follows, and is
ready again.  A program that polls sees the pulse in the first reading of the status register.  EPP and ECP are absent.
"""

from __future__ import annotations

from typing import Any

from ringfence.backends.api import Char
from ringfence.bus.irq import IrqPin
from ringfence.core.clock import Clock
from ringfence.core.state import Field, State
from ringfence.devices.api import Device
from ringfence.devices.ports import BytePorts

LPT1_BASE, LPT1_IRQ = 0x378, 7
PARALLEL_PORTS = 3
_STROBE, _NOT_INIT, _SELECT_IN, _IRQ_ENABLE, _INPUT = 1 << 0, 1 << 2, 1 << 3, 1 << 4, 1 << 5  # control
_CONTROL_ONES = 0xC0
_NOT_BUSY, _NOT_ACK = 1 << 7, 1 << 6  # status
# Selected, no error, paper.  The three low bits are not wired; SeaBIOS hands bit 0 on as its time-out, so they are zeroes.
_ON_LINE = 0x18
_FLUSH_BYTES = 1024
_FLUSH_NS = 1_000_000


class ParallelState(State):
    data = Field(8, doc="data latch")
    control = Field(6, reset=_NOT_INIT | _SELECT_IN, doc="control register; bit 5 turns the data lines to input")
    printing = Field(1, doc="the printer has a byte and waits for the strobe's end")
    acknowledging = Field(1, doc="nACK is low until the status is read")


class ParallelPort(Device):
    """`ports` is a handler for three ports.  The bytes printed go to `backend`, gathered for a millisecond."""

    name = "parallel"

    def __init__(self, irq: IrqPin, backend: Char | None, clock: Clock) -> None:
        self.state: ParallelState = ParallelState()
        self._irq = irq
        self._backend = backend
        self._clock = clock
        self._flush_timer = clock.timer(self.flush)
        self._out = bytearray()
        self.ports = BytePorts(PARALLEL_PORTS, self._read, self._write)

    def reset(self) -> None:
        self.flush()
        self.state.reset()
        self._irq.set(False)

    def pause(self) -> None:
        self.flush()

    def save(self) -> dict[str, Any]:
        self.flush()
        return self.state.save()

    def flush(self) -> None:
        """Hands what was printed to the backend."""
        self._flush_timer.cancel()
        if self._out:
            data = bytes(self._out)
            self._out.clear()
            if self._backend is not None:
                self._backend.write(data)

    def _read(self, port: int) -> int:
        s = self.state
        if port == 0:
            return 0xFF if s.control & _INPUT else int(s.data)  # the printer drives no data lines
        if port == 2:
            return _CONTROL_ONES | int(s.control)
        busy = s.acknowledging or s.control & _STROBE or not s.control & _NOT_INIT
        status = _ON_LINE | (0 if busy else _NOT_BUSY) | (0 if s.acknowledging else _NOT_ACK)
        s.acknowledging = 0
        return status

    def _write(self, port: int, value: int) -> None:
        s = self.state
        if port == 0:
            s.data = value
        elif port == 2:
            before, s.control = s.control, value & 0x3F
            if not value & _NOT_INIT:
                s.acknowledging = 0
                s.printing = 0
            elif value & _STROBE & ~before and value & _SELECT_IN:
                s.printing = 1
                self._print(s.data)
            elif s.printing and not value & _STROBE:
                s.printing, s.acknowledging = 0, 1
                if value & _IRQ_ENABLE:
                    self._irq.pulse()

    def _print(self, byte: int) -> None:
        self._out.append(byte)
        if len(self._out) >= _FLUSH_BYTES:
            self.flush()
        elif len(self._out) == 1:
            self._flush_timer.arm(self._clock.now_ns() + _FLUSH_NS)
