"""How a disk moves sectors: addresses, PIO blocks, DMA.

ATA/ATAPI-6 (T13/1410D revision 3b), clauses 6 (addresses) and 9 (protocols of PIO data in, PIO data out and DMA).  Every
transfer stands in the `State` between two blocks or pieces, so that it can be saved and goes on after that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ringfence.backends.api import Block
from ringfence.core.errors import SnapshotError
from ringfence.core.state import Field
from ringfence.devices.api import Executor
from ringfence.devices.ata_geometry import Geometry, default_geometry
from ringfence.devices.ide_drive import PIECE_BYTES, SYNC_BYTES, DriveState, IdeDrive
from ringfence.devices.ide_registers import (
    ABRT,
    DEVICE,
    DEVICE_LBA,
    DRDY,
    DSC,
    IDNF,
    LBA_HIGH,
    LBA_LOW,
    LBA_MID,
    SECTOR_BYTES,
    SECTOR_COUNT,
    UNC,
)

MAX_MULTIPLE = 16  # sectors in a block of READ and WRITE MULTIPLE
NOTHING, PIO_READ, PIO_WRITE, DMA_READ, DMA_WRITE, FILL_BUFFER = range(6)  # operations


class AtaState(DriveState):
    operation = Field(3, doc="transfer under way")
    extended = Field(1, doc="its command has a 48-bit address")
    by_lba = Field(1, doc="its command addresses by LBA")
    lba = Field(48, doc="next sector to be transferred")
    left = Field(17, doc="sectors left to be transferred")
    block = Field(8, reset=1, doc="sectors in a PIO block of the command")
    through = Field(1, doc="the command's writes are flushed before it ends")
    multiple = Field(8, reset=MAX_MULTIPLE, doc="sectors in a block of READ and WRITE MULTIPLE; 0 disables them")
    cylinders = Field(16, doc="current geometry (INITIALIZE DEVICE PARAMETERS)")
    heads = Field(5)
    sectors = Field(8)
    write_cache = Field(1, reset=1)
    smart = Field(1, reset=1)


class _Address(NamedTuple):
    lba: int
    sectors: int


class AtaTransfers(IdeDrive):
    """The part of `AtaDrive` that moves sectors from and to `backend`."""

    state: AtaState
    signature = (0x00, 0x00)
    reset_status = DRDY | DSC

    def __init__(self, backend: Block, executor: Executor, geometry: Geometry | None, dma: bool, name: str) -> None:
        self.backend = backend
        self.total_sectors = backend.size_bytes // SECTOR_BYTES
        self.geometry = geometry or default_geometry(self.total_sectors)
        self._buffer = bytes(SECTOR_BYTES)  # of READ and WRITE BUFFER
        super().__init__(name, executor, AtaState(), dma)
        self._native_geometry()

    def _native_geometry(self) -> None:
        self.state.cylinders, self.state.heads, self.state.sectors = self.geometry

    def reset(self) -> None:
        super().reset()
        self._native_geometry()

    def _after_reset(self) -> None:
        super()._after_reset()
        self.state.operation = NOTHING

    def load(self, saved: dict[str, Any]) -> None:
        if not (saved.get("heads", 1) and saved.get("sectors", 1) and saved.get("block", 1)):
            raise SnapshotError(f"{self.name}: a geometry of nothing")
        super().load(saved)

    # -- addresses -----------------------------------------------------------------------------------------------

    def _address(self, extended: bool) -> _Address | None:
        """What the task file asks for; None where a cylinder address names no sector."""
        s = self.state
        r, p = s.registers, s.previous
        s.extended, s.by_lba = int(extended), int(extended or bool(r[DEVICE] & DEVICE_LBA))
        if extended:
            low = r[LBA_HIGH] << 16 | r[LBA_MID] << 8 | r[LBA_LOW]
            high = p[LBA_HIGH] << 16 | p[LBA_MID] << 8 | p[LBA_LOW]
            return _Address(high << 24 | low, p[SECTOR_COUNT] << 8 | r[SECTOR_COUNT] or 0x10000)
        count = r[SECTOR_COUNT] or 0x100
        if s.by_lba:
            return _Address((r[DEVICE] & 15) << 24 | r[LBA_HIGH] << 16 | r[LBA_MID] << 8 | r[LBA_LOW], count)
        cylinder, head, sector = r[LBA_HIGH] << 8 | r[LBA_MID], r[DEVICE] & 15, r[LBA_LOW]
        if not 1 <= sector <= s.sectors or head >= s.heads:
            return None
        return _Address((cylinder * s.heads + head) * s.sectors + sector - 1, count)

    def _show_address(self) -> None:
        """Puts the next sector and what is left into the task file, as drivers of the CHS era read it back."""
        s = self.state
        r = s.registers
        lba, left = s.lba, s.left
        if s.by_lba:
            r[LBA_LOW], r[LBA_MID], r[LBA_HIGH] = lba & 0xFF, lba >> 8 & 0xFF, lba >> 16 & 0xFF
            if s.extended:
                s.previous[SECTOR_COUNT] = left >> 8 & 0xFF
                s.previous[LBA_LOW : LBA_HIGH + 1] = [lba >> 24 & 0xFF, lba >> 32 & 0xFF, lba >> 40 & 0xFF]
            else:
                r[DEVICE] = r[DEVICE] & 0xF0 | lba >> 24 & 15
        else:
            track, sector = divmod(lba, s.sectors)
            cylinder, head = divmod(track, s.heads)
            r[LBA_LOW], r[LBA_MID], r[LBA_HIGH] = sector + 1, cylinder & 0xFF, cylinder >> 8 & 0xFF
            r[DEVICE] = r[DEVICE] & 0xF0 | head
        r[SECTOR_COUNT] = left & 0xFF

    def _begin(self, operation: int, extended: bool, block: int, through: bool = False) -> bool:
        """Takes the command's address; False when it names no sector and the command has ended."""
        address = self._address(extended)
        if address is None:
            self._abort(IDNF)
            return False
        s = self.state
        s.operation, s.block, (s.lba, s.left) = operation, block, address
        s.through = int(through or not s.write_cache)
        return True

    def _present(self, count: int) -> bool:
        return bool(self.state.lba + count <= self.total_sectors)

    def _advance(self, count: int) -> None:
        self.state.lba += count
        self.state.left -= count
        self._show_address()

    def _end(self, interrupt: bool = True) -> None:
        """The transfer is over."""
        s = self.state
        s.operation = NOTHING
        self._end_block()
        s.status = DRDY | DSC
        if interrupt:
            self._raise_interrupt()

    def _fail(self, error: int) -> None:
        self.state.operation = NOTHING
        if self.state.left:
            self._show_address()
        self._abort(error)

    # -- PIO -----------------------------------------------------------------------------------------------------

    def _read_sectors(self, extended: bool, block: int) -> None:
        if not block:
            self._abort()  # READ MULTIPLE while it is disabled
        elif self._begin(PIO_READ, extended, block):
            self._read_block()

    def _block_sectors(self) -> int:
        return int(min(self.state.block, self.state.left))

    def _read_block(self) -> None:
        count = self._block_sectors()
        if not self._present(count):
            self._fail(IDNF)
            return
        data = bytearray(count * SECTOR_BYTES)
        offset = self.state.lba * SECTOR_BYTES

        def offer(error: Exception | None) -> None:
            if error is not None:
                self._fail(UNC)
            else:
                self._send(data)

        self._perform(lambda: self.backend.read(offset, memoryview(data)), offer, True)

    def _data_in_done(self) -> None:
        s = self.state
        if s.operation == PIO_READ:
            self._advance(self._block_sectors())
            if s.left:
                self._read_block()
                return
        self._end(interrupt=False)

    def _write_sectors(self, extended: bool, block: int, through: bool = False) -> None:
        if self.backend.readonly or not block:
            self._abort()
        elif self._begin(PIO_WRITE, extended, block, through):
            self._ask_for_block(first=True)

    def _ask_for_block(self, first: bool) -> None:
        count = self._block_sectors()
        if not self._present(count):
            self._fail(IDNF)
        else:
            self._receive(count * SECTOR_BYTES, interrupt=not first)

    def _data_out_done(self) -> None:
        s = self.state
        if s.operation == FILL_BUFFER:
            self._buffer = bytes(self._data)
            self._end()
            return
        count, data = self._block_sectors(), self._data
        self._end_block()
        self._write(data, lambda: self._block_written(count))

    def _block_written(self, count: int) -> None:
        self._advance(count)
        if self.state.left:
            self._ask_for_block(first=False)
        else:
            self._end()

    def _write(self, data: bytearray | memoryview, then: Callable[[], None]) -> None:
        """At the command's next sector; on the worker where it may take long."""
        backend, offset, through = self.backend, self.state.lba * SECTOR_BYTES, self.state.through

        def work() -> None:
            backend.write(offset, memoryview(data))
            if through:
                backend.flush()

        self._perform(work, lambda error: self._fail(ABRT) if error is not None else then(), len(data) <= SYNC_BYTES and not through)

    # -- DMA -----------------------------------------------------------------------------------------------------

    def _transfer_dma(self, operation: int, extended: bool, through: bool = False) -> None:
        if not self._dma or self._host.bus_master is None or (operation == DMA_WRITE and self.backend.readonly):
            self._abort()
        elif self._begin(operation, extended, 1, through):
            if not self._present(self.state.left):
                self._fail(IDNF)
                return
            self._wait_for_dma()
            self._continue_dma()

    def _continue_dma(self) -> None:
        s, bus_master = self.state, self._host.bus_master
        if s.operation not in (DMA_READ, DMA_WRITE) or bus_master is None or not bus_master.active or self._held:
            return
        wanted = s.left * SECTOR_BYTES
        ranges = bus_master.take(wanted if wanted <= SYNC_BYTES else min(wanted, PIECE_BYTES))
        # Where the table ends within a sector that sector is not transferred.
        size = sum(size for _, size in ranges) & -SECTOR_BYTES
        count = size // SECTOR_BYTES
        if not size:
            self._wait_for_dma()  # for a table with more room; the protocol knows no other end but a reset
        elif s.operation == DMA_READ:
            offset = s.lba * SECTOR_BYTES
            self._fill(ranges, lambda buffer: self.backend.read(offset, buffer), size, lambda *how: self._piece_read(count, *how))
        else:
            data = bus_master.gather(ranges)
            if data is None:
                self._wait_for_dma()
            else:
                self._write(memoryview(data)[:size], lambda: self._piece_moved(count))

    def _piece_read(self, count: int, host_could: bool, guest_has_ram: bool) -> None:
        if not host_could:
            self._fail(UNC)
        elif not guest_has_ram:
            self._wait_for_dma()
        else:
            self._piece_moved(count)

    def _piece_moved(self, count: int) -> None:
        self._advance(count)
        if self.state.left:
            self._wait_for_dma()
            self._continue_dma()
        else:
            if self._host.bus_master is not None:
                self._host.bus_master.finished()
            self._end()

    def _verify(self, extended: bool) -> None:
        """READ VERIFY: reads at the host and keeps nothing."""
        if not self._begin(NOTHING, extended, 1):
            return
        s = self.state
        if not self._present(s.left):
            self._fail(IDNF)
            return
        backend, position, end = self.backend, s.lba, s.lba + s.left

        def work() -> None:
            nonlocal position
            scratch = memoryview(bytearray(min((end - position) * SECTOR_BYTES, PIECE_BYTES)))
            while position < end:
                part = scratch[: (end - position) * SECTOR_BYTES]
                backend.read(position * SECTOR_BYTES, part)
                position += len(part) // SECTOR_BYTES

        def then(error: Exception | None) -> None:
            self._advance(position - s.lba)
            if error is not None:
                self._fail(UNC)
            else:
                self._end()

        self._perform(work, then, s.left * SECTOR_BYTES <= SYNC_BYTES)
