"""Guest physical RAM: memfd-backed regions, bounds-checked access.

Devices reach guest memory through this object only.  Whoever writes through it (DMA) tells the write observers which
bytes changed *after* they changed, so that translated code made from them is dropped.  All device code, and so all DMA,
runs on the thread that owns the machine's devices.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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

    def close(self) -> None:
        os.close(self.fd)  # the mapping itself lives as long as anything refers to it


class GuestMemory:
    """The RAM regions of one machine, ascending and disjoint.  All integers are little-endian."""

    def __init__(self) -> None:
        self.regions: list[Region] = []
        self._observers: list[Callable[[int, int], None]] = []

    def add_ram(self, base: int, size_bytes: int, name: str = "ram") -> Region:
        if any(base < r.end and r.base < base + size_bytes for r in self.regions):
            raise ValueError(f"RAM at {base:#x} overlaps another region")
        region = Region(base, size_bytes, name)
        self.regions = sorted([*self.regions, region], key=lambda r: r.base)
        return region

    @property
    def size_bytes(self) -> int:
        return sum(r.size_bytes for r in self.regions)

    def on_write(self, observer: Callable[[int, int], None]) -> None:
        """`observer(guest_addr, size_bytes)` is called after every write through this object."""
        self._observers.append(observer)

    def _find(self, guest_addr: int, size_bytes: int) -> tuple[Region, int]:
        for region in self.regions:
            if region.base <= guest_addr and guest_addr + size_bytes <= region.end:
                return region, guest_addr - region.base
        raise GuestMemoryError(guest_addr, size_bytes)

    def contains(self, guest_addr: int, size_bytes: int) -> bool:
        return any(r.base <= guest_addr and guest_addr + size_bytes <= r.end for r in self.regions)

    def view(self, guest_addr: int, size_bytes: int) -> memoryview:
        """The bytes themselves, for reading only; raises GuestMemoryError when not all of them are RAM."""
        region, offset = self._find(guest_addr, size_bytes)
        return region.view[offset : offset + size_bytes].toreadonly()

    @contextmanager
    def writable(self, guest_addr: int, size_bytes: int) -> Iterator[memoryview]:
        """The bytes themselves, to be filled inside the `with` block (for `os.preadv` and the like)."""
        region, offset = self._find(guest_addr, size_bytes)
        try:
            yield region.view[offset : offset + size_bytes]
        finally:
            self._wrote(guest_addr, size_bytes)

    def _wrote(self, guest_addr: int, size_bytes: int) -> None:
        for observer in self._observers:
            observer(guest_addr, size_bytes)

    def read(self, guest_addr: int, size_bytes: int) -> bytes:
        region, offset = self._find(guest_addr, size_bytes)
        return region.map[offset : offset + size_bytes]

    def write(self, guest_addr: int, data: bytes | bytearray | memoryview) -> None:
        region, offset = self._find(guest_addr, len(data))
        region.view[offset : offset + len(data)] = data
        self._wrote(guest_addr, len(data))

    def read_uint(self, guest_addr: int, size_bytes: int) -> int:
        return int.from_bytes(self.read(guest_addr, size_bytes), "little")

    def write_uint(self, guest_addr: int, size_bytes: int, value: int) -> None:
        self.write(guest_addr, value.to_bytes(size_bytes, "little"))

    def clear(self) -> None:
        """All RAM reads as zero again and its pages go back to the host (a machine that is reset)."""
        for region in self.regions:
            region.map.madvise(mmap.MADV_REMOVE)
            self._wrote(region.base, region.size_bytes)

    def pages_touched(self) -> int:
        """How many 4 KiB pages the host has had to provide so far."""
        return sum(os.fstat(r.fd).st_blocks * 512 // PAGE_BYTES for r in self.regions)

    def close(self) -> None:
        for region in self.regions:
            region.close()
