"""The two cascaded DMA controllers of a PC/AT with their page registers.

Intel 8237A data sheet (231466), and 82371SB (PIIX3, 290550-002) sections 2.5.1 to 2.5.12, whose word channels, page registers and
register addresses these are.  As on the PIIX there is no memory-to-memory transfer (command bits 0 and 1 are kept, without effect).

    channels 0-3   ports 0x00-0x0f               bytes, address = page << 16 | counter: a buffer wraps within 64 KiB
    channels 5-7   ports 0xc0-0xdf, every second words, address = (page & 0xfe) << 16 | counter << 1: it wraps within 128 KiB
    channel 4      carries the requests of channels 0-3; while it is masked they do not get through
    pages          ports 0x80-0x8f               the low 16 MiB and nothing else

A device holds a `DmaChannel`.  Its request and the bus cycles that answer it are one call, which moves as many bytes as the device
offers, ended by the terminal count (TC): single, demand and block mode differ in the rhythm of bus cycles only, which nobody sees.
Cycles that meet no RAM read as ones and write nothing, and count all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ringfence.core.errors import GuestMemoryError
from ringfence.core.state import Field, State
from ringfence.core.trace import tracer
from ringfence.core.units import PAGE_BYTES
from ringfence.devices.api import Device
from ringfence.devices.ports import BytePorts
from ringfence.memory.guest_memory import GuestMemory

trace = tracer("dma")

LOW_BASE, LOW_PORTS = 0x00, 16
HIGH_BASE, HIGH_PORTS = 0xC0, 32
PAGE_BASE, PAGE_PORTS = 0x80, 16
CHANNELS = 8
CASCADE = 4  # the channel of the second controller that the first one hangs on
# Page register of each channel, as an offset from 0x80; that of channel 4 served memory refresh.
_PAGE_OF = (0x7, 0x3, 0x1, 0x2, 0xF, 0xB, 0x9, 0xA)
# Registers of one controller behind its four pairs of address and count
_STATUS_COMMAND, _REQUEST, _SINGLE_MASK, _MODE, _CLEAR_FLIP_FLOP, _MASTER_CLEAR, _CLEAR_MASK, _ALL_MASK = range(8, 16)
_COMMAND_DISABLE = 0x04
_MODE_CASCADE, _MODE_DECREMENT, _MODE_AUTO_INIT, _MODE_TRANSFER = 0xC0, 0x20, 0x10, 0x0C
_VERIFY, _TO_MEMORY, _FROM_MEMORY = 0x00, 0x04, 0x08


class DmaChannel(Protocol):
    """What a device sees of its channel.  Device thread only; nothing raises."""

    @property
    def terminal_count(self) -> bool:
        """The last transfer ended because the count ran out: TC came with its last byte."""

    def transfer_to_memory(self, data: bytes) -> int:
        """Offers bytes; returns how many were taken.  Fewer than offered: TC, or (without TC) the channel does not serve the device.

        On a channel programmed for "verify" bytes are taken and go nowhere.  Word channels take an even number.
        """

    def transfer_from_memory(self, max_bytes: int) -> bytes:
        """Asks for bytes; fewer come at TC, or (without TC) when the channel does not serve the device."""

    @property
    def ready(self) -> bool:
        """Whether a request would be served now: not masked, not disabled, not a cascade."""

    def request(self, level: bool) -> None:
        """Shows DREQ in the status register; transfers need no request."""

    def on_ready(self, callback: Callable[[], None]) -> None:
        """`callback` runs whenever software has made the channel ready: for devices that wait with data at hand."""


class DmaState(State):
    base_address = Field(16, count=CHANNELS, doc="base address register")
    base_count = Field(16, count=CHANNELS, doc="base word count register: transfers less one")
    address = Field(16, count=CHANNELS, doc="current address register")
    count = Field(16, count=CHANNELS, doc="current word count register")
    mode = Field(8, count=CHANNELS, doc="mode register; bits 1:0 are zero")
    page = Field(8, count=PAGE_PORTS, doc="page registers, the unused ones included (0x80 is where firmware shows its progress)")
    command = Field(8, count=2, doc="command register of each controller")
    mask = Field(1, count=CHANNELS, reset=1, doc="mask register")
    software_request = Field(1, count=CHANNELS, doc="request register")
    dreq = Field(1, count=CHANNELS, doc="level of the DREQ input")
    reached_tc = Field(1, count=CHANNELS, doc="status register: TC since the last read")
    terminal_count = Field(1, count=CHANNELS, doc="the last transfer ended by TC")
    flip_flop = Field(1, count=2, doc="1: the high byte comes next")

    def reset(self) -> None:
        super().reset()
        # Firmware's first act, done here for machines that start a kernel without any.
        self.mode[CASCADE] = _MODE_CASCADE
        self.mask[CASCADE] = 0


class _Channel:
    """The one implementation of `DmaChannel`."""

    def __init__(self, dma: Dma8237, number: int) -> None:
        self._dma = dma
        self.number = number
        self.unit_bytes = 1 if number < CASCADE else 2
        self.callbacks: list[Callable[[], None]] = []

    @property
    def terminal_count(self) -> bool:
        return bool(self._dma.state.terminal_count[self.number])

    @property
    def ready(self) -> bool:
        return self._dma.serves(self.number)

    def request(self, level: bool) -> None:
        self._dma.state.dreq[self.number] = int(level)

    def on_ready(self, callback: Callable[[], None]) -> None:
        self.callbacks.append(callback)

    def transfer_to_memory(self, data: bytes) -> int:
        self._dma.state.terminal_count[self.number] = 0
        if not self.ready or self._dma.state.mode[self.number] & _MODE_TRANSFER not in (_TO_MEMORY, _VERIFY):
            return 0
        return self.move(len(data) // self.unit_bytes, data) * self.unit_bytes

    def transfer_from_memory(self, max_bytes: int) -> bytes:
        self._dma.state.terminal_count[self.number] = 0
        if not self.ready or self._dma.state.mode[self.number] & _MODE_TRANSFER != _FROM_MEMORY:
            return b""
        read = bytearray()
        self.move(max_bytes // self.unit_bytes, read=read)
        return bytes(read)

    def move(self, units: int, data: bytes | None = None, read: bytearray | None = None) -> int:
        """Performs up to `units` transfers, to the count's end at most; returns how many.  Moves the current registers.

        `data` is written where the mode says so (None: what an undriven bus shows), what is read is appended to `read`.
        """
        s, channel, unit = self._dma.state, self.number, self.unit_bytes
        units = min(units, s.count[channel] + 1)
        backward = bool(s.mode[channel] & _MODE_DECREMENT)
        transfer = s.mode[channel] & _MODE_TRANSFER
        done = 0
        while done < units:
            address = s.address[channel]
            run = min(units - done, address + 1 if backward else 0x10000 - address)  # up to where the counter wraps
            first = address - run + 1 if backward else address
            where, size = self._guest_addr(first), run * unit
            if transfer == _TO_MEMORY:
                chunk = b"\xff" * size if data is None else data[done * unit : done * unit + size]
                self._dma.write_memory(where, self._reverse(chunk) if backward else chunk)
            elif transfer == _FROM_MEMORY and read is not None:
                chunk = self._dma.read_memory(where, size)
                read += self._reverse(chunk) if backward else chunk
            s.address[channel] = address + (-run if backward else run) & 0xFFFF
            done += run
        self._count_down(units)
        return units

    def _guest_addr(self, counter: int) -> int:
        page: int = self._dma.state.page[_PAGE_OF[self.number]]
        return page << 16 | counter if self.unit_bytes == 1 else (page & 0xFE) << 16 | counter << 1

    def _reverse(self, data: bytes) -> bytes:
        if self.unit_bytes == 1:
            return data[::-1]
        swapped = bytearray(len(data))
        swapped[0::2], swapped[1::2] = data[-2::-2], data[-1::-2]
        return bytes(swapped)

    def _count_down(self, units: int) -> None:
        """8237A, "program condition": passing zero is the terminal count, after which the channel starts over or masks itself."""
        s, channel = self._dma.state, self.number
        left = s.count[channel] - units
        s.count[channel] = left & 0xFFFF
        if units and left < 0:
            s.terminal_count[channel] = s.reached_tc[channel] = 1
            s.software_request[channel] = 0
            if s.mode[channel] & _MODE_AUTO_INIT:
                s.address[channel], s.count[channel] = s.base_address[channel], s.base_count[channel]
            else:
                s.mask[channel] = 1


class Dma8237(Device):
    """Handlers `low` (16 ports at 0x00), `high` (32 ports at 0xC0) and `pages` (16 ports at 0x80)."""

    name = "dma"
    state: DmaState

    def __init__(self, memory: GuestMemory) -> None:
        self.state = DmaState()
        self._memory = memory
        self._channels = [_Channel(self, number) for number in range(CHANNELS)]
        self.low = BytePorts(LOW_PORTS, lambda port: self._read(0, port), lambda port, value: self._write(0, port, value))
        self.high = BytePorts(HIGH_PORTS, self._read_high, self._write_high)
        self.pages = BytePorts(PAGE_PORTS, self._read_page, self._write_page)

    def channel(self, number: int) -> DmaChannel:
        """The device's end of channel 0-3 or 5-7."""
        if number == CASCADE or not 0 <= number < CHANNELS:
            raise ValueError(f"there is no DMA channel {number} for devices")
        return self._channels[number]

    def serves(self, number: int) -> bool:
        """Whether a device's request on the channel gets through."""
        s = self.state
        if s.mask[number] or s.command[number >> 2] & _COMMAND_DISABLE or s.mode[number] & _MODE_CASCADE == _MODE_CASCADE:
            return False
        return number > CASCADE or not (s.mask[CASCADE] or s.command[1] & _COMMAND_DISABLE)

    # -- memory ----------------------------------------------------------------------------------------------------------

    def write_memory(self, guest_addr: int, data: bytes) -> None:
        try:
            self._memory.write(guest_addr, data)
        except GuestMemoryError:
            for addr, start, size in _pages(guest_addr, len(data)):
                try:
                    self._memory.write(addr, data[start : start + size])
                except GuestMemoryError:
                    if trace:
                        trace("write to %#x+%#x: not RAM", addr, size)

    def read_memory(self, guest_addr: int, size_bytes: int) -> bytes:
        try:
            return self._memory.read(guest_addr, size_bytes)
        except GuestMemoryError:
            data = bytearray(b"\xff" * size_bytes)
            for addr, start, size in _pages(guest_addr, size_bytes):
                try:
                    data[start : start + size] = self._memory.read(addr, size)
                except GuestMemoryError:
                    if trace:
                        trace("read from %#x+%#x: not RAM", addr, size)
            return bytes(data)

    # -- registers -------------------------------------------------------------------------------------------------------

    def _read_high(self, port: int) -> int:
        return self._read(1, port >> 1)  # A0 is not decoded

    def _write_high(self, port: int, value: int) -> None:
        self._write(1, port >> 1, value)

    def _read_page(self, port: int) -> int:
        return int(self.state.page[port])

    def _write_page(self, port: int, value: int) -> None:
        self.state.page[port] = value

    def _read(self, unit: int, port: int) -> int:
        s, first = self.state, 4 * unit
        if port < 8:
            word: int = (s.count if port & 1 else s.address)[first + (port >> 1)]
            high = s.flip_flop[unit]
            s.flip_flop[unit] ^= 1
            return word >> 8 if high else word & 0xFF
        if port == _STATUS_COMMAND:
            status = 0
            for k in range(4):
                status |= s.reached_tc[first + k] << k | (s.dreq[first + k] | s.software_request[first + k]) << k + 4
                s.reached_tc[first + k] = 0
            return int(status)
        if port == _ALL_MASK:
            return 0xF0 | int(sum(s.mask[first + k] << k for k in range(4)))
        return 0  # the temporary register, and what cannot be read

    def _write(self, unit: int, port: int, value: int) -> None:
        s, first = self.state, 4 * unit
        chosen = first + (value & 3)
        if port < 8:
            channel = first + (port >> 1)
            base, current = (s.base_count, s.count) if port & 1 else (s.base_address, s.address)
            shift = 8 * s.flip_flop[unit]
            base[channel] = current[channel] = base[channel] & ~(0xFF << shift) | value << shift
            s.flip_flop[unit] ^= 1
        elif port == _STATUS_COMMAND:
            s.command[unit] = value
        elif port == _REQUEST:
            s.software_request[chosen] = value >> 2 & 1
        elif port == _SINGLE_MASK:
            s.mask[chosen] = value >> 2 & 1
        elif port == _MODE:
            s.mode[chosen] = value & 0xFC
        elif port == _CLEAR_FLIP_FLOP:
            s.flip_flop[unit] = 0
        elif port == _MASTER_CLEAR:
            # 8237A, "master clear": as the RESET pin; address, count and mode stay
            s.command[unit] = s.flip_flop[unit] = 0
            for channel in range(first, first + 4):
                s.mask[channel], s.software_request[channel], s.reached_tc[channel] = 1, 0, 0
        elif port == _CLEAR_MASK:
            s.mask[first : first + 4] = [0, 0, 0, 0]
        else:
            s.mask[first : first + 4] = [value >> k & 1 for k in range(4)]
        if port in (_STATUS_COMMAND, _REQUEST, _SINGLE_MASK, _MODE, _CLEAR_MASK, _ALL_MASK):
            self._serve_software(first)
            self._announce()

    def _serve_software(self, first: int) -> None:
        """8237A, "software DMA requests": not maskable; they run to the terminal count, here with no device at the other end."""
        s = self.state
        for channel in range(first, first + 4):
            if not s.software_request[channel] or s.mode[channel] & _MODE_CASCADE == _MODE_CASCADE:
                continue
            if not s.command[first >> 2] & _COMMAND_DISABLE:
                self._channels[channel].move(0x10000)

    def _announce(self) -> None:
        for channel in self._channels:
            if channel.callbacks and channel.ready:
                for callback in channel.callbacks:
                    callback()


def _pages(guest_addr: int, size_bytes: int) -> list[tuple[int, int, int]]:
    """Pieces that do not cross a page: (guest address, offset from the start, size)."""
    pieces = []
    start = 0
    while start < size_bytes:
        size = min(size_bytes - start, PAGE_BYTES - (guest_addr + start) % PAGE_BYTES)
        pieces.append((guest_addr + start, start, size))
        start += size
    return pieces
