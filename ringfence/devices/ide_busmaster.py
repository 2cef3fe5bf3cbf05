"""Bus-master DMA of an IDE channel.

Programming Interface for Bus Master IDE Controller, revision 1.0 (Intel, 1994); registers named as in the 82371SB (PIIX3)
data sheet, 290550-002, 2.7.  Eight ports a channel::

    0 BMICX  command: start, direction      2 BMISX  status: active, error, interrupt      4 BMIDTPX  descriptor table

A descriptor (PRD) is an address, a count of bytes (0 means 64 KiB) and, in bit 31 of its last dword, the end of the table.
The table is fetched as the transfer goes on.  It lies within 64 KiB, so one start reads 8192 descriptors at most; a drive
asks for no more than its command's bytes.  Nothing the guest writes here makes an endless transfer.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from ringfence.core.errors import GuestMemoryError
from ringfence.core.state import Field, State
from ringfence.core.trace import tracer
from ringfence.devices.ports import BytePorts
from ringfence.memory.guest_memory import GuestMemory

trace = tracer("ide")

BUS_MASTER_PORTS = 8
START, TO_MEMORY = 0x01, 0x08
ACTIVE, FAILED, INTERRUPT, DRIVES_CAPABLE = 0x01, 0x02, 0x04, 0x60
_BMICX, _BMISX, _BMIDTPX = 0, 2, 4
_MAX_PRDS = 8192
_PRD = struct.Struct("<II")


class BusMasterState(State):
    bmicx = Field(8, doc="command")
    bmisx = Field(8, doc="status")
    bmidtpx = Field(32, doc="descriptor table pointer")
    next_prd = Field(33, doc="address of the descriptor to be fetched next")
    fetched = Field(14, doc="descriptors fetched since the start")
    addr = Field(33, doc="what remains of the current descriptor: guest physical address")
    left_bytes = Field(17, doc="what remains of the current descriptor: bytes")
    last = Field(1, doc="the current descriptor ends the table")


class BusMaster:
    """One channel's engine.  `ports` is its handler; `on_start` and `on_stop` tell the channel what the guest wrote."""

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.state = BusMasterState()
        self.on_start: Callable[[], None] = _nothing
        self.on_stop: Callable[[], None] = _nothing
        self.ports = BytePorts(BUS_MASTER_PORTS, self._read, self._write)

    @property
    def active(self) -> bool:
        return bool(self.state.bmisx & ACTIVE)

    # -- for the drive --------------------------------------------------------------------------------------------

    def take(self, size_bytes: int) -> list[tuple[int, int]]:
        """The next ranges of guest physical addresses, `size_bytes` in all; less when the table ends, and then the engine has stopped.

        Neighbours come joined; whether they are RAM shows when they are used.
        """
        s = self.state
        ranges: list[tuple[int, int]] = []
        while size_bytes > 0:
            if not s.left_bytes and not self._fetch():
                break
            size = min(size_bytes, s.left_bytes)
            if ranges and sum(ranges[-1]) == s.addr:
                ranges[-1] = (ranges[-1][0], ranges[-1][1] + size)
            else:
                ranges.append((s.addr, size))
            s.addr += size
            s.left_bytes -= size
            size_bytes -= size
        return ranges

    def gather(self, ranges: Sequence[tuple[int, int]]) -> bytes | None:
        """What the guest has there; None, and the engine has failed, when some of it is not RAM."""
        try:
            return b"".join([self.memory.read(*found) for found in ranges])
        except GuestMemoryError as error:
            self.fail("data", error.guest_addr)
            return None

    def scatter(self, ranges: Sequence[tuple[int, int]], data: bytes | bytearray | memoryview) -> bool:
        """Puts `data` there; False, and the engine has failed, when some of it is not writable RAM (ranges before it are written)."""
        view, done = memoryview(data), 0
        try:
            for addr, size in ranges:
                self.memory.write(addr, view[done : done + size])
                done += size
                if done >= len(view):
                    break
        except GuestMemoryError as error:
            self.fail("data", error.guest_addr)
            return False
        return True

    def _fetch(self) -> bool:
        s = self.state
        if s.last or s.fetched >= _MAX_PRDS:
            s.bmisx &= ~ACTIVE  # the drive wants more than the table gives: it waits, and nothing interrupts
            return False
        try:
            addr, count = _PRD.unpack(self.memory.read(s.next_prd, _PRD.size))
        except GuestMemoryError:
            self.fail("table", s.next_prd)
            return False
        s.addr, s.left_bytes = addr & ~1, (count & 0xFFFE) or 0x10000
        s.last = count >> 31
        s.next_prd += _PRD.size
        s.fetched += 1
        return True

    def fail(self, what: str, guest_addr: int) -> None:
        """A master or target abort on the PCI bus ends the transfer (PIIX3, BMISX bit 1)."""
        if trace:
            trace("bus master: %s at %#x is not RAM", what, guest_addr)
        self.state.bmisx = self.state.bmisx & ~ACTIVE | FAILED

    def finished(self) -> None:
        """The drive has transferred everything.  The engine is still active when descriptors remain (revision 1.0, 3.1)."""
        s = self.state
        if s.last and not s.left_bytes:
            s.bmisx &= ~ACTIVE

    def interrupt(self) -> None:
        """A rising edge of INTRQ."""
        self.state.bmisx |= INTERRUPT

    # -- ports ----------------------------------------------------------------------------------------------------

    def _read(self, port: int) -> int:
        s = self.state
        if port == _BMICX:
            return int(s.bmicx)
        if port == _BMISX:
            return int(s.bmisx)
        return int(s.bmidtpx >> 8 * (port - _BMIDTPX)) & 0xFF if port >= _BMIDTPX else 0

    def _write(self, port: int, value: int) -> None:
        s = self.state
        if port >= _BMIDTPX:
            shift = 8 * (port - _BMIDTPX)
            s.bmidtpx = (s.bmidtpx & ~(0xFF << shift) | value << shift) & ~3
        elif port == _BMISX:
            s.bmisx = s.bmisx & ~(value & (FAILED | INTERRUPT) | DRIVES_CAPABLE) | value & DRIVES_CAPABLE
        elif port == _BMICX:
            started = bool(s.bmicx & START)
            s.bmicx = value & (START | TO_MEMORY)
            if value & START and not started:
                s.next_prd, s.fetched, s.left_bytes, s.last = s.bmidtpx, 0, 0, 0
                s.bmisx |= ACTIVE
                self.on_start()
            elif started and not value & START:
                self.on_stop()
                s.bmisx &= ~ACTIVE


def _nothing() -> None:
    """Nobody listens yet."""
