"""16550A UART (National Semiconductor PC16550D data sheet, June 1995), as COM1-COM4 of a PC.

The line is infinitely fast: the transmitter is always empty, so LSR.THRE and LSR.TEMT never drop, and received bytes wait
outside of the FIFO until the guest has drained it (no overrun outside of loopback).  The character time-out interrupt
comes at once for the same reason.  Line parameters (divisor, word length, parity) are kept and have no effect.

    guest --THR--> _out --flush--> backend          backend --receive--> _queue --> FIFO --RBR--> guest
"""

from __future__ import annotations

from collections import deque
from typing import Any

from ringfence.backends.api import Char
from ringfence.bus.irq import IrqPin
from ringfence.core.clock import Clock
from ringfence.core.errors import SnapshotError
from ringfence.core.port_hint import PortHint
from ringfence.core.state import Field, State
from ringfence.devices.api import Device

UART_PORTS = 8
FIFO_BYTES = 16
_TRIGGER_BYTES = (1, 4, 8, 14)  # FCR bits 7:6
_FLUSH_BYTES = 1024
_FLUSH_NS = 1_000_000

_IER_RDA, _IER_THRE, _IER_RLS, _IER_MSI = 1, 2, 4, 8
_IIR_NONE, _IIR_MSI, _IIR_THRE, _IIR_RDA, _IIR_RLS, _IIR_TIMEOUT = 0x01, 0x00, 0x02, 0x04, 0x06, 0x0C
_LCR_DLAB = 0x80
_LSR_DR, _LSR_OE, _LSR_ERRORS, _LSR_EMPTY = 0x01, 0x02, 0x1E, 0x60
_MCR_LOOP = 0x10
_MSR_CONNECTED = 0xB0  # DCD, DSR and CTS: the other end is always there


class UartState(State):
    ier = Field(8, doc="interrupt enable register")
    lcr = Field(8, doc="line control register")
    mcr = Field(8, doc="modem control register")
    lsr = Field(8, reset=_LSR_EMPTY, doc="line status register")
    msr = Field(8, reset=_MSR_CONNECTED, doc="modem status register, delta bits included")
    scr = Field(8, doc="scratch register")
    dll = Field(8, reset=0x0C, doc="divisor latch, low (9600 baud)")
    dlm = Field(8, doc="divisor latch, high")
    fcr = Field(8, doc="FIFO control register: enable and trigger level")
    thre_pending = Field(1, doc="the transmitter-empty interrupt has not been seen yet")
    fifo = Field(8, count=FIFO_BYTES, doc="receive FIFO, oldest first (filled in by save)")
    fifo_bytes = Field(5, doc="bytes in the receive FIFO (filled in by save)")


class Uart(Device):
    """A handler for eight byte-wide ports.  With a `clock`, output is gathered for a line or a millisecond."""

    def __init__(self, irq: IrqPin, backend: Char | None, clock: Clock | None = None, name: str = "uart") -> None:
        self.name = name
        self.state: UartState = UartState()
        self._irq = irq
        self._backend = backend
        self._clock = clock
        self._flush_timer = clock.timer(self.flush) if clock is not None else None
        self._fifo: deque[int] = deque()
        self._queue: deque[int] = deque()
        self._out = bytearray()
        self.line_status, self.transmitter = PortHint(), PortHint()  # at offsets 5 and 0
        self._hint()

    def reset(self) -> None:
        self.flush()
        self.state.reset()
        self._fifo.clear()
        self._queue.clear()
        self._irq.set(False)
        self._hint()

    def pause(self) -> None:
        self.flush()

    def save(self) -> dict[str, Any]:
        """State and `queue`, the bytes from the host that did not fit the FIFO yet."""
        self.flush()
        held = list(self._fifo)
        self.state.fifo = held + [0] * (FIFO_BYTES - len(held))
        self.state.fifo_bytes = len(held)
        return {**self.state.save(), "queue": list(self._queue)}

    def load(self, saved: dict[str, Any]) -> None:
        queue = saved.get("queue")
        if not isinstance(queue, list) or any(not isinstance(b, int) or not 0 <= b < 256 for b in queue):
            raise SnapshotError(f"{self.name}: queue is not a list of bytes")
        fields = {k: v for k, v in saved.items() if k != "queue"}
        count = fields.get("fifo_bytes")
        if isinstance(count, int) and count > FIFO_BYTES:
            raise SnapshotError(f"{self.name}: {count} bytes do not fit the FIFO")
        self.state.load(fields)
        self._fifo = deque(self.state.fifo[: self.state.fifo_bytes])
        self._queue = deque(queue)
        self._irq.restore(self._interrupt() != _IIR_NONE)
        self._hint()

    def receive(self, data: bytes) -> None:
        """Bytes from the host, on the device thread."""
        self._queue.extend(data)
        self._fill()
        self._update()

    def flush(self) -> None:
        """Hands gathered output to the backend."""
        if self._out:
            data = bytes(self._out)
            self._out.clear()
            if self._flush_timer is not None:
                self._flush_timer.cancel()
            if self._backend is not None:
                self._backend.write(data)

    def read(self, offset: int, size: int) -> int:
        if size != 1:
            return sum(self.read(offset + k & 7, 1) << 8 * k for k in range(size))
        s = self.state
        if offset == 5:
            value: int = s.lsr
            if value & _LSR_ERRORS:
                s.lsr = value & ~_LSR_ERRORS
                self._update()
            return value
        if offset == 0:
            if s.lcr & _LCR_DLAB:
                return int(s.dll)
            return self._read_data()
        if offset == 2:
            iir = self._interrupt()
            if iir == _IIR_THRE:
                s.thre_pending = 0
                self._update()
            return iir | (0xC0 if s.fcr & 1 else 0)
        if offset == 1:
            return int(s.dlm if s.lcr & _LCR_DLAB else s.ier)
        if offset == 6:
            value = s.msr
            if value & 0x0F:
                s.msr = value & 0xF0
                self._update()
            return value
        return int(s.lcr if offset == 3 else s.mcr if offset == 4 else s.scr)

    def write(self, offset: int, size: int, value: int) -> None:
        if size != 1:
            for k in range(size):
                self.write(offset + k & 7, 1, value >> 8 * k & 0xFF)
            return
        value &= 0xFF
        s = self.state
        if offset == 0:
            if s.lcr & _LCR_DLAB:
                s.dll = value
            else:
                self._transmit(value)
        elif offset == 1:
            if s.lcr & _LCR_DLAB:
                s.dlm = value
                return
            # PC16550D 8.6: enabling the interrupt while THR is empty raises it at once.
            if value & _IER_THRE and not s.ier & _IER_THRE:
                s.thre_pending = 1
            s.ier = value & 0x0F
            self._update()
        elif offset == 2:
            self._write_fcr(value)
        elif offset == 3:
            s.lcr = value
            self._hint()
        elif offset == 4:
            s.mcr = value & 0x1F
            self._update_modem()
        elif offset == 7:
            s.scr = value

    def _transmit(self, byte: int) -> None:
        s = self.state
        if s.mcr & _MCR_LOOP:
            if len(self._fifo) < (FIFO_BYTES if s.fcr & 1 else 1):
                self._fifo.append(byte)
            else:
                s.lsr |= _LSR_OE
            s.lsr |= _LSR_DR
            self._hint()
        else:
            out = self._out
            out.append(byte)
            if byte == 0x0A or self._clock is None or len(out) >= _FLUSH_BYTES:
                self.flush()
            elif len(out) == 1 and self._flush_timer is not None:
                self._flush_timer.arm(self._clock.now_ns() + _FLUSH_NS)
        s.thre_pending = 1
        if s.ier:
            self._update()

    def _read_data(self) -> int:
        if not self._fifo:
            return 0
        byte = self._fifo.popleft()
        if self._queue:
            self._fill()
        elif not self._fifo:
            self.state.lsr &= ~_LSR_DR
        self._update()
        return byte

    def _fill(self) -> None:
        s = self.state
        if not s.mcr & _MCR_LOOP:
            room = (FIFO_BYTES if s.fcr & 1 else 1) - len(self._fifo)
            for _ in range(min(room, len(self._queue))):
                self._fifo.append(self._queue.popleft())
        if self._fifo:
            s.lsr |= _LSR_DR
        else:
            s.lsr &= ~_LSR_DR
        self._hint()

    def _write_fcr(self, value: int) -> None:
        s = self.state
        # PC16550D 8.4: switching FIFO mode clears the FIFO; other bits count only while bit 0 is written as 1.
        if (value ^ s.fcr) & 1 or value & 3 == 3:
            self._fifo.clear()
        s.fcr = value & 0xC9 if value & 1 else 0
        self._fill()
        self._update()

    def _update_modem(self) -> None:
        s = self.state
        status = _MSR_CONNECTED
        if s.mcr & _MCR_LOOP:
            # PC16550D 8.7: DTR, RTS, OUT1, OUT2 are wired to DSR, CTS, RI, DCD.
            m = s.mcr
            status = (m & 2) << 3 | (m & 1) << 5 | (m & 4) << 4 | (m & 8) << 4
        changed = (s.msr ^ status) & 0xF0
        delta = changed >> 4
        if status & 0x40:
            delta &= ~4  # TERI: only the trailing edge of RI counts
        s.msr = status | s.msr & 0x0F | delta
        self._fill()
        self._update()

    def _interrupt(self) -> int:
        """The IIR's identification of the highest-priority source (PC16550D table IV)."""
        s = self.state
        ier = s.ier
        if ier & _IER_RLS and s.lsr & _LSR_ERRORS:
            return _IIR_RLS
        if ier & _IER_RDA and s.lsr & _LSR_DR:
            full = not s.fcr & 1 or len(self._fifo) >= _TRIGGER_BYTES[s.fcr >> 6]
            return _IIR_RDA if full else _IIR_TIMEOUT
        if ier & _IER_THRE and s.thre_pending:
            return _IIR_THRE
        if ier & _IER_MSI and s.msr & 0x0F:
            return _IIR_MSI
        return _IIR_NONE

    def _update(self) -> None:
        self._irq.set(self._interrupt() != _IIR_NONE)
        self._hint()

    def _hint(self) -> None:
        """A kernel's console polls LSR and writes THR, with its interrupt disabled: neither needs the device at once."""
        s = self.state
        self.line_status.set(None if s.lsr & _LSR_ERRORS else s.lsr, False)
        self.transmitter.set(None, not (s.ier & _IER_THRE or s.lcr & _LCR_DLAB or s.mcr & _MCR_LOOP))
