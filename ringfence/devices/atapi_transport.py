"""How a CD-ROM drive takes command packets and gives data.

ATA/ATAPI-6 (T13/1410D revision 3b), clauses 8 (PACKET, interrupt reason) and 9 (its protocols).  Data goes to
the host in blocks that the byte count registers announce, no longer than the limit the host had put there, or by DMA.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from ringfence.backends.api import Block
from ringfence.core.state import Field
from ringfence.devices.api import Executor
from ringfence.devices.cd_data import RawLayout, fill_sectors, sectors_of
from ringfence.devices.ide_drive import PIECE_BYTES, SYNC_BYTES, DriveState, IdeDrive
from ringfence.devices.ide_registers import (
    ABRT,
    DRDY,
    DSC,
    ERR,
    FEATURES,
    LBA_HIGH,
    LBA_MID,
    REASON_COMMAND,
    REASON_TO_HOST,
    SECTOR_COUNT,
)

PACKET_BYTES = 12
NOTHING, PACKET, REPLY_PIO, READ_PIO, REPLY_DMA, READ_DMA = range(6)  # operations
_FEATURE_DMA, _FEATURE_OVERLAP = 1, 2
_MAX_SECTORS_AT_ONCE = 16  # of PIO data
EVENT_EJECT_REQUEST, EVENT_NEW_MEDIA, EVENT_REMOVAL = 1, 2, 3  # MMC-5, GET EVENT STATUS NOTIFICATION


class Sense(NamedTuple):
    """Sense key, additional sense code and its qualifier (MMC-5, annex F)."""

    key: int
    asc: int
    ascq: int = 0


NO_SENSE = Sense(0, 0)
ILLEGAL_REQUEST, UNIT_ATTENTION = 5, 6
NO_MEDIUM_TRAY_CLOSED, NO_MEDIUM_TRAY_OPEN = Sense(2, 0x3A, 1), Sense(2, 0x3A, 2)
UNRECOVERED_READ_ERROR = Sense(3, 0x11)
INVALID_OPCODE, LBA_OUT_OF_RANGE, INVALID_FIELD = Sense(5, 0x20), Sense(5, 0x21), Sense(5, 0x24)
SAVING_NOT_SUPPORTED, REMOVAL_PREVENTED = Sense(5, 0x39), Sense(5, 0x53, 2)
MEDIUM_CHANGED = Sense(6, 0x28)


class AtapiState(DriveState):
    operation = Field(3, doc="transfer under way")
    use_dma = Field(1, doc="the command's data goes by DMA")
    limit = Field(16, doc="byte count limit of the command")
    lba = Field(32, doc="next sector to be read")
    left = Field(32, doc="sectors left to be read")
    raw = Field(5, doc="parts of raw sectors that READ CD asked for; 0: user data only")
    sense_key = Field(4)
    asc = Field(8)
    ascq = Field(8)
    change = Field(2, doc="medium change to be told: 1 that the old one has gone, 2 that there is a new one")
    event = Field(4, doc="media event that GET EVENT STATUS NOTIFICATION has not told")
    tray_open = Field(1)
    locked = Field(1, doc="PREVENT ALLOW MEDIUM REMOVAL")


class AtapiTransport(IdeDrive):
    """The part of `AtapiDrive` that moves packets and data; `medium` holds sectors of 2048 bytes."""

    state: AtapiState
    signature = (0x14, 0xEB)
    reset_status = 0  # DRDY comes with the first command

    def __init__(self, medium: Block | None, executor: Executor, dma: bool, name: str) -> None:
        self.medium = medium
        super().__init__(name, executor, AtapiState(), dma)

    @abstractmethod
    def perform_packet(self, packet: bytes) -> None:
        """Executes a command packet."""

    def _after_reset(self) -> None:
        super()._after_reset()
        self.state.operation = NOTHING

    # -- phases --------------------------------------------------------------------------------------------------

    def _await_packet(self) -> None:
        """PACKET."""
        s = self.state
        features = s.registers[FEATURES]
        if features & _FEATURE_OVERLAP or (features & _FEATURE_DMA and (not self._dma or self._host.bus_master is None)):
            self._abort()
            return
        s.use_dma = features & _FEATURE_DMA
        s.limit = s.registers[LBA_HIGH] << 8 | s.registers[LBA_MID]
        s.operation = PACKET
        s.registers[SECTOR_COUNT] = REASON_COMMAND
        self._receive(PACKET_BYTES, interrupt=False)

    def _data_out_done(self) -> None:
        packet = bytes(self._data)
        self._end_block()
        self.state.operation = NOTHING
        self.perform_packet(packet)

    def _good(self) -> None:
        """The command has succeeded."""
        self._finish(DRDY | DSC)

    def _check(self, sense: Sense) -> None:
        """CHECK CONDITION: the command has failed, REQUEST SENSE tells why."""
        s = self.state
        s.sense_key, s.asc, s.ascq = sense
        s.error = sense.key << 4 | (ABRT if sense.key == ILLEGAL_REQUEST else 0)
        self._finish(DRDY | ERR)

    def _finish(self, status: int) -> None:
        s = self.state
        s.operation = NOTHING
        s.left = 0
        self._end_block()
        s.registers[SECTOR_COUNT] = REASON_COMMAND | REASON_TO_HOST
        s.status = status
        self._raise_interrupt()

    # -- data ----------------------------------------------------------------------------------------------------

    def _can_send(self) -> bool:
        """PIO data needs a byte count limit; False when the command was aborted for want of it."""
        s = self.state
        if s.use_dma or s.limit:
            return True
        s.operation = NOTHING
        self._abort()
        return False

    def _reply(self, data: bytes, allocation: int) -> None:
        """Sends the first `allocation` bytes of `data`."""
        s = self.state
        data = data[:allocation]
        if not data:
            self._good()
        elif self._can_send():
            self._data = bytearray(data)
            s.position = 0
            if s.use_dma:
                s.operation = REPLY_DMA
                self._wait_for_dma()
                self._continue_dma()
            else:
                s.operation = REPLY_PIO
                self._offer_block()

    def _read_medium(self, lba: int, count: int, raw: int = 0) -> None:
        """Sends sectors; the medium is there."""
        assert self.medium is not None
        s = self.state
        if lba + count > sectors_of(self.medium):
            self._check(LBA_OUT_OF_RANGE)
        elif not count:
            self._good()
        elif self._can_send():
            s.lba, s.left, s.raw = lba, count, raw
            if s.use_dma:
                s.operation = READ_DMA
                self._wait_for_dma()
                self._continue_dma()
            else:
                s.operation = READ_PIO
                self._read_block()

    def _reader(self, count: int) -> tuple[int, Callable[[memoryview], None]]:
        """How many bytes the next `count` sectors give, and what reads them on any thread."""
        s = self.state
        layout, lba, medium = RawLayout(s.raw), s.lba, self.medium
        assert medium is not None
        return count * layout.sector_bytes, lambda buffer: fill_sectors(medium, lba, layout, buffer)

    def _offer_block(self) -> None:
        """The next part of `_data` as one block."""
        s = self.state
        remaining = len(self._data) - s.position
        # PACKET, byte count: the count is even unless it is the last; 0xFFFF means 0xFFFE.
        size = remaining if remaining <= min(s.limit, 0xFFFE) else max(min(s.limit, 0xFFFE) & ~1, 2)
        size = min(size, remaining)
        s.read_stop = s.position + size
        s.registers[LBA_MID], s.registers[LBA_HIGH] = size & 0xFF, size >> 8
        s.registers[SECTOR_COUNT] = REASON_TO_HOST
        self._wait_for_dma()
        self._raise_interrupt()

    def _data_in_done(self) -> None:
        s = self.state
        if s.operation not in (REPLY_PIO, READ_PIO):
            self._end_block()  # IDENTIFY PACKET DEVICE
            s.status = DRDY | DSC
        elif s.position < len(self._data):
            self._offer_block()
        elif s.operation == READ_PIO and s.left:
            self._read_block()
        else:
            self._good()

    def _read_block(self) -> None:
        s = self.state
        sector_bytes = RawLayout(s.raw).sector_bytes
        count = max(1, min(s.left, s.limit // sector_bytes, _MAX_SECTORS_AT_ONCE))
        size, read = self._reader(count)
        data = bytearray(size)

        def offer(error: Exception | None) -> None:
            if error is not None:
                self._check(UNRECOVERED_READ_ERROR)
                return
            s.lba += count
            s.left -= count
            self._data = data
            s.position = 0
            self._offer_block()

        self._end_block()
        self._perform(lambda: read(memoryview(data)), offer, True)

    def _continue_dma(self) -> None:
        s, bus_master = self.state, self._host.bus_master
        if s.operation not in (REPLY_DMA, READ_DMA) or bus_master is None or not bus_master.active or self._held:
            return
        if s.operation == REPLY_DMA:
            ranges = bus_master.take(len(self._data))
            size = sum(size for _, size in ranges)
            if bus_master.scatter(ranges, self._data[:size]):
                del self._data[:size]
                if not self._data:
                    bus_master.finished()
                    self._good()
            return
        sector_bytes = RawLayout(s.raw).sector_bytes
        at_once = SYNC_BYTES if s.left * sector_bytes <= SYNC_BYTES else PIECE_BYTES
        ranges = bus_master.take(min(s.left, at_once // sector_bytes) * sector_bytes)
        # Where the table ends within a sector that sector is not transferred.
        count = sum(size for _, size in ranges) // sector_bytes
        if not count:
            self._wait_for_dma()
            return
        size, read = self._reader(count)
        self._fill(ranges, read, size, lambda *how: self._piece_read(count, *how))

    def _piece_read(self, count: int, host_could: bool, guest_has_ram: bool) -> None:
        s = self.state
        if not host_could:
            self._check(UNRECOVERED_READ_ERROR)
            return
        self._wait_for_dma()
        if guest_has_ram:
            s.lba += count
            s.left -= count
            if s.left:
                self._continue_dma()
            else:
                if self._host.bus_master is not None:
                    self._host.bus_master.finished()
                self._good()

    # -- the medium ----------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        return self.medium is not None and not self.state.tray_open

    def change_medium(self, medium: Block | None) -> Block | None:
        """Puts another disc in, or none, and closes the tray; returns the one before, which the caller closes.

        Device thread.  Also while the guest has locked the door: it is told as if someone had used the emergency hole.
        """
        self.settle()
        s = self.state
        old, self.medium = self.medium, medium
        s.tray_open = 0
        # Systems that only look for ready and not ready must see a drive without a disc in between.
        s.change = 0 if medium is None else 1 if old is not None else 2
        s.event = EVENT_REMOVAL if medium is None else EVENT_NEW_MEDIA
        if s.operation in (READ_PIO, READ_DMA):
            self._check(NO_MEDIUM_TRAY_CLOSED)
        return old
