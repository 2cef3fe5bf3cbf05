"""What the monitor tells firmware: QEMU's firmware configuration device (docs/specs/fw_cfg), with its DMA interface.

    0x510  selector, 16 bits, written    0x514  DMA address, 64 bits, big-endian; the write of its lower half starts it
    0x511  data, a byte at a time

Items are byte strings by key.  Named files are items from key 0x20 on, listed in the directory item 0x19.  Nothing here is
writable: a DMA write answers with its error bit.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from contextlib import suppress

from ringfence.core.errors import GuestMemoryError
from ringfence.core.state import Field, State
from ringfence.core.units import KIB
from ringfence.devices.api import Device
from ringfence.memory.guest_memory import GuestMemory

FW_CFG_PORT, FW_CFG_PORTS = 0x510, 2
FW_CFG_DMA_PORT, FW_CFG_DMA_PORTS = 0x514, 8

SIGNATURE, ID, FILE_DIR, FIRST_FILE = 0x0000, 0x0001, 0x0019, 0x0020
NAME_BYTES = 56
_VERSION_TRADITIONAL, _VERSION_DMA = 1, 2
_DMA_SIGNATURE = 0x51454D5520434647  # "QEMU CFG"
_ERROR, _READ, _SKIP, _SELECT, _WRITE = 1, 2, 4, 8, 16
_ACCESS = struct.Struct(">IIQ")
_FILE = struct.Struct(f">IHH{NAME_BYTES}s")
_CHUNK_BYTES = 64 * KIB


class FwCfgState(State):
    selector = Field(16, doc="key of the item being read")
    offset = Field(32, doc="of the next byte in that item")
    dma_high = Field(32, doc="upper half of the address of the next DMA access structure")


class FwCfg(Device):
    """`select`: the handler for ports 0x510 and 0x511; the device itself for the 8 ports from 0x514.

    `items` are further items by key, `files` by name (at most 55 characters of ASCII); both can be replaced until the guest reads them.
    """

    name = "fw-cfg"

    def __init__(self, memory: GuestMemory, items: Mapping[int, bytes] | None = None, files: Mapping[str, bytes] | None = None) -> None:
        self.state: FwCfgState = FwCfgState()
        self._memory = memory
        self.select = _SelectorPorts(self)
        self.set_contents(items or {}, files or {})

    def set_contents(self, items: Mapping[int, bytes], files: Mapping[str, bytes]) -> None:
        """Replaces everything; raises ValueError for a name that does not fit the directory."""
        directory = struct.pack(">I", len(files))
        self._items = {SIGNATURE: b"QEMU", ID: struct.pack("<I", _VERSION_TRADITIONAL | _VERSION_DMA), **items}
        for key, name in enumerate(sorted(files), FIRST_FILE):
            encoded = name.encode("ascii")
            if len(encoded) >= NAME_BYTES:
                raise ValueError(f"{name!r} is too long for a firmware file")
            directory += _FILE.pack(len(files[name]), key, 0, encoded)
            self._items[key] = files[name]
        self._items[FILE_DIR] = directory

    def choose(self, key: int) -> None:
        self.state.selector = key & 0xFFFF
        self.state.offset = 0

    def next_bytes(self, count: int) -> bytes:
        """The item's next bytes; zeroes after its end."""
        s = self.state
        data = self._items.get(s.selector, b"")[s.offset : s.offset + count]
        self._skip(count)
        return data.ljust(count, b"\0")

    def _skip(self, count: int) -> None:
        self.state.offset = min(self.state.offset + count, 0xFFFF_FFFF)

    # -- DMA

    def read(self, offset: int, size: int) -> int:
        if offset + size > FW_CFG_DMA_PORTS:
            return (1 << 8 * size) - 1
        return int.from_bytes(_DMA_SIGNATURE.to_bytes(8, "big")[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        swapped = int.from_bytes(value.to_bytes(size, "little"), "big")
        if (offset, size) == (0, 4):
            self.state.dma_high = swapped
        elif (offset, size) == (4, 4):
            address, self.state.dma_high = self.state.dma_high << 32 | swapped, 0
            self._access(address)

    def _access(self, address: int) -> None:
        memory = self._memory
        try:
            control, length, target = _ACCESS.unpack(memory.read(address, _ACCESS.size))
        except GuestMemoryError:
            return  # nowhere to answer to
        if control & _SELECT:
            self.choose(control >> 16)
        result = 0
        if control & _READ:
            result = self._copy(target, length)
        elif control & _WRITE:
            result = _ERROR
        elif control & _SKIP:
            self._skip(length)
        with suppress(GuestMemoryError):  # it can be read but not written
            memory.write(address, result.to_bytes(4, "big"))

    def _copy(self, target: int, length: int) -> int:
        """Chunk by chunk: a length of 4 GiB ends at the end of RAM, not in a buffer of that size."""
        while length:
            count = min(length, _CHUNK_BYTES)
            try:
                self._memory.write(target, self.next_bytes(count))
            except GuestMemoryError:
                return _ERROR
            target += count
            length -= count
        return 0


class _SelectorPorts:
    """Ports 0x510 and 0x511."""

    def __init__(self, device: FwCfg) -> None:
        self._device = device

    def read(self, offset: int, size: int) -> int:
        return self._device.next_bytes(1)[0] if (offset, size) == (1, 1) else (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        if (offset, size) == (0, 2):
            self._device.choose(value)
