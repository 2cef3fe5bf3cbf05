"""Split virtqueues, the device's side.

OASIS Virtual I/O Device (VIRTIO) 1.2, section 2.7; little-endian, modern layout only.

    descriptor table   16 bytes each: le64 address, le32 length, le16 flags, le16 next      2.7.5
    driver area        le16 flags, le16 index, le16 ring[size], le16 used_event             2.7.6
    device area        le16 flags, le16 index, {le32 id, le32 length}[size], le16 avail_event   2.7.8

Everything read here was written by the guest.  What breaks the rules raises `VirtqueueError`, which
`VirtioDevice` turns into DEVICE_NEEDS_RESET; a walk never takes more steps than the queue has entries.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from threading import Lock
from typing import Any

from ringfence.core.errors import GuestMemoryError, RingfenceError
from ringfence.core.state import Field, State
from ringfence.memory.guest_memory import GuestMemory, Region

DESC_NEXT, DESC_WRITE, DESC_INDIRECT = 1, 2, 4
DESC_BYTES = 16
AVAIL_NO_INTERRUPT = 1
MAX_QUEUE_SIZE = 32768

_DESC = struct.Struct("<QIHH")
_USED_ELEMENT = struct.Struct("<II")
_U16 = struct.Struct("<H")

GuestRange = tuple[int, int]  # guest address, size in bytes


class VirtqueueError(RingfenceError):
    """The driver broke a rule of section 2.7; the device needs a reset."""


class Chain:
    """A request: its buffers as (guest address, size in bytes), all of them RAM, empty ones left out."""

    __slots__ = ("head", "readable", "writable")

    def __init__(self, head: int, readable: list[GuestRange], writable: list[GuestRange]) -> None:
        self.head = head
        self.readable = readable
        self.writable = writable

    @property
    def readable_bytes(self) -> int:
        return sum(size for _, size in self.readable)

    @property
    def writable_bytes(self) -> int:
        return sum(size for _, size in self.writable)


class Virtqueue(State):
    """One queue; its declared state is its own attributes.  Device thread only."""

    size = Field(16, doc="entries, a power of two; set by the driver, at most max_size")
    ready = Field(1, doc="enabled by the driver")
    desc_addr = Field(64, doc="guest address of the descriptor table")
    driver_addr = Field(64, doc="guest address of the driver area (available ring)")
    device_addr = Field(64, doc="guest address of the device area (used ring)")
    last_avail = Field(16, doc="how far the available ring has been taken, modulo 2^16")
    used_index = Field(16, doc="index of the used ring as last written")
    signalled = Field(16, doc="used index at the last decision about a notification")
    event_idx = Field(1, doc="VIRTIO_F_EVENT_IDX was negotiated")
    indirect = Field(1, doc="VIRTIO_F_INDIRECT_DESC was negotiated")

    def __init__(self, memory: GuestMemory, max_size: int) -> None:
        if not 1 <= max_size <= MAX_QUEUE_SIZE or max_size & max_size - 1:
            raise ValueError(f"a virtqueue of {max_size} entries: a power of two up to {MAX_QUEUE_SIZE} is needed")
        self._memory = memory
        self.max_size = max_size
        self._desc = memoryview(b"")
        self._avail = memoryview(b"").cast("H")
        self._used: tuple[Region, int, memoryview] | None = None  # where the device area lies: region, offset, the region's bytes
        self._barrier = Lock()
        super().__init__()

    def reset(self) -> None:
        super().reset()
        self.size = self.max_size

    def load(self, saved: dict[str, Any]) -> None:
        super().load(saved)
        if not 1 <= self.size <= self.max_size or self.size & self.size - 1:
            raise VirtqueueError(f"{self.size} entries in a queue of at most {self.max_size}")
        if self.ready:
            self._attach()

    def set_size(self, size: int) -> None:
        """The driver's choice; anything but a power of two up to `max_size` is ignored."""
        if not self.ready and 1 <= size <= self.max_size and not size & size - 1:
            self.size = size

    def set_address(self, area: str, shift: int, half: int) -> None:
        """Sets 32 bits, from bit `shift` (0 or 32), of `desc_addr`, `driver_addr` or `device_addr`."""
        if not self.ready:
            setattr(self, area, getattr(self, area) & ~(0xFFFFFFFF << shift) | half << shift)

    def enable(self, event_idx: bool, indirect: bool) -> None:
        """Takes the rings that the driver set up.  Raises VirtqueueError when they are misaligned or not RAM."""
        self.event_idx, self.indirect = int(event_idx), int(indirect)
        self.last_avail = self.used_index = self.signalled = 0
        self._attach()
        self.ready = 1

    def _attach(self) -> None:
        size = self.size
        # 2.7: alignment; 2.7.6, 2.7.8: the areas with their event fields
        if self.desc_addr % 16 or self.driver_addr % 2 or self.device_addr % 4:
            raise VirtqueueError("a ring is not aligned")
        try:
            self._desc = self._memory.view(self.desc_addr, DESC_BYTES * size)
            self._avail = self._memory.view(self.driver_addr, 6 + 2 * size).cast("H")
            region, offset = self._memory.locate(self.device_addr, 6 + 8 * size, write=True)
        except GuestMemoryError as error:
            raise VirtqueueError(f"a ring is outside of RAM: {error}") from error
        self._used = region, offset, region.view

    # -- available ring -------------------------------------------------------------------------------------------

    def _avail_entry(self, index: int) -> int:
        value = self._avail[index]
        return value if sys.byteorder == "little" else (value >> 8 | value << 8) & 0xFFFF

    def pop(self) -> Chain | None:
        """The next request, or None when the driver has offered no more."""
        head = self.next_head()
        return None if head < 0 else self.chain(head)

    def next_head(self) -> int:
        """The descriptor at which the next request begins, or -1 when the driver has offered no more."""
        last = self.last_avail
        waiting = self._avail_entry(1) - last & 0xFFFF
        if not waiting:
            return -1
        size = self.size
        if waiting > size:
            raise VirtqueueError(f"the available index is {waiting} ahead in a queue of {size}")
        head = self._avail_entry(2 + (last & size - 1))
        if head >= size:
            raise VirtqueueError(f"descriptor {head} in a queue of {size}")
        self.last_avail = last + 1 & 0xFFFF
        return head

    def descriptor(self, index: int) -> tuple[int, int, int, int]:
        """Address, size, flags and follower of an entry of the queue's own table."""
        return _DESC.unpack_from(self._desc, DESC_BYTES * index)

    def chain(self, head: int) -> Chain:
        """The request that begins at descriptor `head`."""
        readable: list[GuestRange] = []
        writable: list[GuestRange] = []
        table, entries, index, steps = self._desc, self.size, head, 0
        pieces, low, high = self._memory.pieces, self._memory.main.base, self._memory.main.end
        unpack, most = _DESC.unpack_from, self.max_size
        while True:
            addr, size, flags, following = unpack(table, DESC_BYTES * index)
            if flags & DESC_INDIRECT:
                # 2.7.5.3.1: only the last of a chain, not nested, whole entries
                if not self.indirect or table is not self._desc or flags & DESC_NEXT or not size or size % DESC_BYTES:
                    raise VirtqueueError("bad indirect descriptor")
                try:
                    table = self._memory.view(addr, size)
                except GuestMemoryError as error:
                    raise VirtqueueError(f"an indirect table is outside of RAM: {error}") from error
                entries, index = size // DESC_BYTES, 0
                continue
            steps += 1
            if steps > most:
                raise VirtqueueError(f"a chain of more than {self.max_size} descriptors, or a loop")
            if size:
                end = addr + size
                if not (low <= addr and end <= high) and not any(p.base <= addr and end <= p.end for p in pieces):
                    raise VirtqueueError(f"a buffer at {addr:#x}+{size:#x} is outside of RAM")
                if flags & DESC_WRITE:
                    writable.append((addr, size))
                elif writable:
                    raise VirtqueueError("a readable buffer follows a writable one")  # 2.7.4.2
                else:
                    readable.append((addr, size))
            if not flags & DESC_NEXT:
                return Chain(head, readable, writable)
            if following >= entries:
                raise VirtqueueError(f"descriptor {following} in a table of {entries}")
            index = following

    def rearm(self) -> bool:
        """Asks the driver for a notification of the next request; True when one came in meanwhile (then go on popping)."""
        if self.event_idx:
            self._put(_U16, 4 + 8 * self.size, self.last_avail)
            # The store above must be seen before the index is read again (2.7.13.3): a lock is a full barrier.
            with self._barrier:
                pass
        return bool(self._avail_entry(1) != self.last_avail)

    def chains(self) -> Iterator[Chain]:
        """All requests until the driver offers no more; afterwards it will notify again."""
        while True:
            while (chain := self.pop()) is not None:
                yield chain
            if not self.rearm():
                return

    # -- used ring ------------------------------------------------------------------------------------------------

    def push(self, chain: Chain, written_bytes: int) -> None:
        """Hands a request back; `written_bytes` of its writable buffers were filled, from their start."""
        self.push_head(chain.head, written_bytes)

    def push_head(self, head: int, written_bytes: int) -> None:
        """The same by the descriptor at which the request began."""
        index = self.used_index
        self._put(_USED_ELEMENT, 4 + 8 * (index & self.size - 1), head, written_bytes)
        self.used_index = index = index + 1 & 0xFFFF
        self._put(_U16, 2, index)

    def _put(self, form: struct.Struct, at: int, *values: int) -> None:
        """Writes into the device area."""
        if self._used is None:
            raise VirtqueueError("the queue has no rings")
        region, offset, view = self._used
        form.pack_into(view, offset + at, *values)
        self._memory.wrote(region, offset + at, form.size)

    def must_notify(self) -> bool:
        """Whether the driver wants to hear of what was pushed since the last call (2.7.7, 2.7.10)."""
        new, old = self.used_index, self.signalled
        if new == old:
            return False
        self.signalled = new
        with self._barrier:  # the used index must be seen before used_event or the flags are read
            pass
        if self.event_idx:
            used_event = self._avail_entry(2 + self.size)
            return bool((new - used_event - 1 & 0xFFFF) < (new - old & 0xFFFF))
        return not self._avail_entry(0) & AVAIL_NO_INTERRUPT
