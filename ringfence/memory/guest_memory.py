"""Guest physical memory: memfd-backed regions, bounds-checked access, and what is laid over what.

    RAM regions      at the bottom, where the board put them
    overlays         ROM, shadow RAM, frame buffers, holes for devices: the newest one wins

Devices reach guest memory through this object only.  Whoever writes through it (DMA) tells the write observers which
bytes changed *after* they changed, so that translated code made from them is dropped.  All device code, and so all DMA,
runs on the thread that owns the machine's devices.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from ringfence.core.errors import GuestMemoryError, UserError
from ringfence.core.units import PAGE_BYTES, format_size


class Region:
    """`size_bytes` of RAM at guest physical address `base`; `host_addr` is where this process maps it."""

    def __init__(self, base: int, size_bytes: int, name: str) -> None:
        if base % PAGE_BYTES or size_bytes % PAGE_BYTES or size_bytes <= 0:
            raise UserError(f"RAM of {size_bytes} bytes at {base:#x} is not made of whole pages.", "Give a multiple of 4 KiB.")
        self.base = base
        self.size_bytes = size_bytes
        self.end = base + size_bytes
        self.fd = os.memfd_create(f"ringfence-{name}", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, size_bytes)
            self.map = mmap.mmap(self.fd, size_bytes)
        except (OSError, OverflowError, ValueError) as error:
            os.close(self.fd)
            raise UserError(f"The host cannot give {format_size(size_bytes)} of memory: {error}.", "Ask for less with --memory.") from error
        self.view = memoryview(self.map)
        self.host_addr = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        self._descriptor = weakref.finalize(self, os.close, self.fd)  # one that is forgotten does not keep its descriptor

    def touched(self) -> Iterator[tuple[int, int]]:
        """Parts (start, end) that the host has provided, in order.  All else is zero, and would be provided by reading it."""
        start = end = 0
        while end < self.size_bytes:
            try:
                start = os.lseek(self.fd, end, os.SEEK_DATA)
                end = os.lseek(self.fd, start, os.SEEK_HOLE)
            except OSError:  # there is nothing behind `end`
                return
            yield start, end

    def close(self) -> None:
        self._descriptor()  # the mapping itself lives as long as anything refers to it


class Overlay(NamedTuple):
    """A window on `region` from `offset` on, at guest physical [base, end); `region` None is a hole that devices answer.

    Where it is not `writable` the guest reads and executes it, and its writes go to the MMIO bus.
    """

    number: int
    base: int
    end: int
    region: Region | None
    offset: int
    writable: bool


class Piece(NamedTuple):
    """A range of guest physical memory that one part of one region answers."""

    base: int
    end: int
    region: Region
    offset: int
    writable: bool


Places = list[tuple[int, int]]  # in a region: offset, size in bytes
_NO_PIECE: Any = Piece(0, 0, None, 0, False)  # type: ignore[arg-type]


class GuestMemory:
    """The memory of one machine.  All integers are little-endian.

    `regions` is its RAM, ascending and disjoint; `stores` all regions there are; `pieces` what a guest sees where, ascending.
    """

    def __init__(self) -> None:
        self.regions: list[Region] = []
        self.stores: list[Region] = []
        self.pieces: list[Piece] = []
        self.main = _NO_PIECE  # the largest of `pieces`
        self.a20 = True
        self._overlays: list[Overlay] = []
        self._numbers = itertools.count()
        self._observers: list[Callable[[Region, int, int], None]] = []
        self._observers_of_many: list[Callable[[Region, Places], None]] = []
        self._map_observers: list[Callable[[], None]] = []

    def add_ram(self, base: int, size_bytes: int, name: str = "ram") -> Region:
        if any(base < r.end and r.base < base + size_bytes for r in self.regions):
            raise ValueError(f"RAM at {base:#x} overlaps another region")
        region = Region(base, size_bytes, name)
        self.regions = sorted([*self.regions, region], key=lambda r: r.base)
        self.stores.append(region)
        self._remap()
        return region

    def add_backing(self, size_bytes: int, name: str) -> Region:
        """Memory that the guest does not see until it is laid over something.  Before the machine starts only."""
        region = Region(0, size_bytes, name)
        self.stores.append(region)
        return region

    def overlay(self, base: int, size_bytes: int, region: Region | None, offset: int = 0, writable: bool = True) -> Overlay:
        """Shows a part of `region` at guest physical `base`; all numbers are multiples of 4 KiB."""
        if (base | size_bytes | offset) % PAGE_BYTES or size_bytes <= 0 or (region and offset + size_bytes > region.size_bytes):
            raise ValueError(f"an overlay of {size_bytes:#x} bytes at {base:#x} is not made of whole pages of its region")
        new = Overlay(next(self._numbers), base, base + size_bytes, region, offset, writable)
        self._overlays.append(new)
        self._remap()
        return new

    def remove(self, overlay: Overlay) -> None:
        """What lies below is seen again."""
        self._overlays.remove(overlay)
        self._remap()

    def replace(self, old: list[Overlay], new: list[tuple[int, int, Region | None, int, bool]]) -> list[Overlay]:
        """Several changes at once: removes `old`, lays `new` (base, size_bytes, region, offset, writable) in order."""
        for overlay in old:
            self._overlays.remove(overlay)
        made = [Overlay(next(self._numbers), base, base + size, region, offset, rw) for base, size, region, offset, rw in new]
        self._overlays += made
        self._remap()
        return made

    def set_a20(self, enabled: bool) -> None:
        """The gate of the CPU's address line 20: while it is off, that bit of every address the CPU puts out is 0."""
        if enabled != self.a20:
            self.a20 = enabled
            self._tell_map()

    def on_remap(self, observer: Callable[[], None]) -> None:
        """`observer()` is called after `pieces` or `a20` changed."""
        self._map_observers.append(observer)

    def _remap(self) -> None:
        layers = [Overlay(-1, r.base, r.end, r, 0, True) for r in self.regions] + self._overlays
        edges = sorted({edge for layer in layers for edge in (layer.base, layer.end)})
        pieces: list[Piece] = []
        for base, end in itertools.pairwise(edges):
            top = next((layer for layer in reversed(layers) if layer.base <= base < layer.end), None)
            if top is None or top.region is None:
                continue
            offset = top.offset + base - top.base
            last = pieces[-1] if pieces else None
            joins = last is not None and last.end == base and last.region is top.region and last.writable == top.writable
            if last is not None and joins and last.offset + base - last.base == offset:
                pieces[-1] = last._replace(end=end)
            else:
                pieces.append(Piece(base, end, top.region, offset, top.writable))
        self.pieces = pieces
        self.main = max(pieces, key=lambda p: p.end - p.base, default=_NO_PIECE)
        self._tell_map()

    def _tell_map(self) -> None:
        for observer in self._map_observers:
            observer()

    @property
    def size_bytes(self) -> int:
        """Bytes of RAM."""
        return sum(r.size_bytes for r in self.regions)

    def on_write(self, observer: Callable[[Region, int, int], None], of_many: Callable[[Region, Places], None] | None = None) -> None:
        """`observer(region, offset, size_bytes)` is called after every write through this object, or `of_many(region, places)` after
        several at once."""

        def one_by_one(region: Region, places: Places) -> None:
            for offset, size_bytes in places:
                observer(region, offset, size_bytes)

        self._observers.append(observer)
        self._observers_of_many.append(of_many or one_by_one)

    def _find(self, guest_addr: int, size_bytes: int, write: bool = False) -> tuple[Region, int]:
        for base, end, region, offset, writable in self.pieces:
            if base <= guest_addr and guest_addr + size_bytes <= end and (writable or not write):
                return region, guest_addr - base + offset
        raise GuestMemoryError(guest_addr, size_bytes)

    def contains(self, guest_addr: int, size_bytes: int) -> bool:
        return any(p.base <= guest_addr and guest_addr + size_bytes <= p.end for p in self.pieces)

    def _joined(self, guest_addr: int, size_bytes: int, write: bool) -> Iterator[tuple[Region, int, int, int]]:
        """(region, offset, bytes, position) of a range that may run over several pieces; all of it is found before any is used."""
        parts = []
        position = 0
        while position < size_bytes:
            at = guest_addr + position
            piece = next((p for p in self.pieces if p.base <= at < p.end and (p.writable or not write)), None)
            if piece is None:
                raise GuestMemoryError(guest_addr, size_bytes)
            n = min(size_bytes - position, piece.end - at)
            parts.append((piece.region, at - piece.base + piece.offset, n, position))
            position += n
        return iter(parts)

    def view(self, guest_addr: int, size_bytes: int) -> memoryview:
        """The bytes themselves, for reading only; raises GuestMemoryError when not all of them are RAM."""
        region, offset = self._find(guest_addr, size_bytes)
        return region.view[offset : offset + size_bytes].toreadonly()

    @contextmanager
    def writable(self, guest_addr: int, size_bytes: int) -> Iterator[memoryview]:
        """The bytes themselves, to be filled inside the `with` block (for `os.preadv` and the like)."""
        region, offset = self._find(guest_addr, size_bytes, write=True)
        try:
            yield region.view[offset : offset + size_bytes]
        finally:
            self._wrote(region, offset, size_bytes)

    def locate(self, guest_addr: int, size_bytes: int, write: bool = False) -> tuple[Region, int]:
        """Region and offset of a range in one piece, for who uses `region.view` itself and calls `wrote` after each write.

        Raises GuestMemoryError.
        """
        return self._find(guest_addr, size_bytes, write)

    def wrote(self, region: Region, offset: int, size_bytes: int) -> None:
        """Tells the observers of bytes that were changed through `region.view`."""
        for observer in self._observers:
            observer(region, offset, size_bytes)

    def wrote_many(self, region: Region, places: Places) -> None:
        """The same for several (offset, size in bytes)."""
        for observer in self._observers_of_many:
            observer(region, places)

    def _wrote(self, region: Region, offset: int, size_bytes: int) -> None:
        for observer in self._observers:
            observer(region, offset, size_bytes)

    def read(self, guest_addr: int, size_bytes: int) -> bytes:
        try:
            region, offset = self._find(guest_addr, size_bytes)
        except GuestMemoryError:
            return b"".join(r.map[at : at + n] for r, at, n, _ in self._joined(guest_addr, size_bytes, False))
        return region.map[offset : offset + size_bytes]

    def write(self, guest_addr: int, data: bytes | bytearray | memoryview) -> None:
        try:
            region, offset = self._find(guest_addr, len(data), write=True)
        except GuestMemoryError:
            for part, at, n, position in self._joined(guest_addr, len(data), True):
                part.view[at : at + n] = data[position : position + n]
                self._wrote(part, at, n)
            return
        region.view[offset : offset + len(data)] = data
        self._wrote(region, offset, len(data))

    def store(self, region: Region, offset: int, data: bytes) -> None:
        """Writes into `region` whether or not the guest sees it (a chipset that passes writes on to RAM behind a ROM)."""
        region.view[offset : offset + len(data)] = data
        self._wrote(region, offset, len(data))

    def read_uint(self, guest_addr: int, size_bytes: int) -> int:
        return int.from_bytes(self.read(guest_addr, size_bytes), "little")

    def write_uint(self, guest_addr: int, size_bytes: int, value: int) -> None:
        self.write(guest_addr, value.to_bytes(size_bytes, "little"))

    def clear(self) -> None:
        """All RAM reads as zero again and its pages go back to the host (a machine that is reset)."""
        for region in self.regions:
            region.map.madvise(mmap.MADV_REMOVE)
            self._wrote(region, 0, region.size_bytes)

    def pages_touched(self) -> int:
        """How many 4 KiB pages the host has had to provide so far."""
        return sum(os.fstat(r.fd).st_blocks * 512 // PAGE_BYTES for r in self.regions)

    def close(self) -> None:
        for region in self.stores:
            region.close()
