"""The floppy controller's data commands: sectors found, moved, compared, formatted.

Intel 82077AA data sheet (290166-007), 5.1 (data transfer commands) and 5.2 (status).  A command runs in steps: `begin`, then
`proceed` as often as the host has emptied or filled the buffer in non-DMA mode; with DMA the first step is the last.  A step
either asks the controller for an exchange of data with the host, or it ends the command with its seven result bytes.

Media hold sectors of 512 bytes with plain marks, so READ DELETED DATA finds sectors with the wrong mark only, WRITE DELETED DATA
leaves plain ones, and FORMAT TRACK can fill those sectors that the medium's format knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ringfence.devices.dma8237 import DmaChannel
from ringfence.devices.floppy_media import SECTOR_BYTES, Drive
from ringfence.devices.floppy_state import (
    CONFIG_EIS,
    DOR_DMA_GATE,
    MFM,
    MULTI_TRACK,
    SKIP,
    ST0_ABNORMAL,
    ST0_EQUIPMENT,
    ST1_DE,
    ST1_EN,
    ST1_MA,
    ST1_ND,
    ST1_NW,
    ST1_OR,
    ST2_CM,
    ST2_DD,
    ST2_SH,
    ST2_SN,
    ST2_WC,
    Command,
    FloppyState,
)

SECTOR_SIZE_CODE = 2  # N: 128 << 2 bytes
_READS = (Command.READ_DATA, Command.READ_DELETED_DATA, Command.READ_TRACK)
_WRITES = (Command.WRITE_DATA, Command.WRITE_DELETED_DATA)
_SCANS = (Command.SCAN_EQUAL, Command.SCAN_LOW_OR_EQUAL, Command.SCAN_HIGH_OR_EQUAL)


class Give(NamedTuple):
    """Non-DMA: the host is to read this."""

    data: bytes


class Take(NamedTuple):
    """Non-DMA: the host is to write so many bytes."""

    size_bytes: int


class Result(NamedTuple):
    """The command is over."""

    data: bytes


Step = Give | Take | Result


class _End(Exception):
    """Ends the command from within; status bits are or-ed to what is there."""

    def __init__(self, st0: int = 0, st1: int = 0, st2: int = 0) -> None:
        super().__init__()
        self.st0, self.st1, self.st2 = st0, st1, st2


class Transfers:
    """Performs the data command in the FIFO of `state`."""

    def __init__(self, state: FloppyState, drives: Sequence[Drive | None], channel: DmaChannel) -> None:
        self._state = state
        self._drives = drives
        self._channel = channel

    def begin(self) -> Step:
        s = self._state
        s.st1 = s.st2 = s.sectors_done = 0
        s.unit, s.head = s.fifo[1] & 3, s.fifo[1] >> 2 & 1
        command = Command(s.fifo[0] & 0x1F)
        if command not in (Command.READ_ID, Command.FORMAT_TRACK):
            s.id_cylinder, s.id_head, s.id_sector = s.fifo[2:5]
            if s.config & CONFIG_EIS:
                self.seek(s.unit, s.id_cylinder - s.pcn[s.unit])
                s.pcn[s.unit] = s.id_cylinder
        return self._step(command, None)

    def proceed(self, received: bytes) -> Step:
        """The host has taken what was given, or `received` is what it wrote."""
        return self._step(Command(self._state.fifo[0] & 0x1F), received)

    def overrun(self) -> Result:
        """Non-DMA: the host came too late for the data under way."""
        return self._result(_End(ST0_ABNORMAL, ST1_OR))

    def seek(self, unit: int, steps: int) -> None:
        """Moves a drive's head, inwards when positive; a step over a medium resets the disk change latch."""
        s, drive = self._state, self._drives[unit]
        if drive is not None and steps:
            s.cylinder[unit] = min(max(s.cylinder[unit] + steps, 0), drive.kind.last_cylinder)
            if drive.block is not None:
                s.disk_changed[unit] = 0

    def _step(self, command: Command, received: bytes | None) -> Step:
        try:
            if command is Command.READ_ID:
                self._read_id()
            if command is Command.FORMAT_TRACK:
                return self._format(received)
            if command in _WRITES and self._drive is not None and self._drive.readonly:
                raise _End(ST0_ABNORMAL, ST1_NW)
            if received is not None and command is Command.READ_DELETED_DATA:
                raise _End
            if received is not None and command in _READS:
                self._next(False)
            return self._sectors(command, received)
        except _End as end:
            return self._result(end)

    def _result(self, end: _End) -> Result:
        s = self._state
        st0 = end.st0 | s.head << 2 | s.unit
        return Result(bytes((st0, s.st1 | end.st1, s.st2 | end.st2, s.id_cylinder, s.id_head, s.id_sector, SECTOR_SIZE_CODE)))

    # -- the medium ------------------------------------------------------------------------------------------------------

    @property
    def _drive(self) -> Drive | None:
        unit: int = self._state.unit
        return self._drives[unit]

    def _track(self) -> tuple[Drive, int, int]:
        """The drive, the track below its head, and that track's number of sectors; nothing readable there: missing address mark."""
        s, drive = self._state, self._drive
        if drive is not None and drive.geometry is not None:
            track = drive.track(s.cylinder[s.unit])
            readable = s.rate == drive.rate() and s.fifo[0] & MFM
            if track is not None and s.head < drive.geometry.heads and readable:
                return drive, track, drive.geometry.sectors
        raise _End(ST0_ABNORMAL, ST1_MA)

    def _find(self) -> tuple[Drive, int]:
        """The sector whose turn it is."""
        s = self._state
        drive, track, sectors = self._track()
        if s.fifo[0] & 0x1F == Command.READ_TRACK:
            # 5.1.3: sectors come as they pass by; one that is not the expected sets ND and is read all the same
            if s.sectors_done >= sectors:
                raise _End(ST0_ABNORMAL, ST1_EN)
            if s.id_cylinder != track or s.id_head != s.head or s.id_sector != s.sectors_done + 1:
                s.st1 |= ST1_ND
            return drive, track
        if s.id_cylinder != track:
            raise _End(ST0_ABNORMAL, ST1_ND, ST2_WC)
        if s.id_head != s.head or s.fifo[5] != SECTOR_SIZE_CODE or not 1 <= s.id_sector <= sectors:
            raise _End(ST0_ABNORMAL, ST1_ND)
        return drive, track

    def _read(self) -> bytes:
        s = self._state
        drive, track = self._find()
        sector = s.sectors_done + 1 if s.fifo[0] & 0x1F == Command.READ_TRACK else s.id_sector
        data = drive.read(track, s.head, sector)
        if data is None:
            raise _End(ST0_ABNORMAL, ST1_DE, ST2_DD)
        return data

    def _read_run(self) -> bytes | None:
        """All sectors up to EOT on this side in one piece, None when they have to be read one by one."""
        s = self._state
        drive, track, sectors = self._track()
        self._find()
        count = min(s.fifo[6], sectors) - s.id_sector + 1
        return drive.read(track, s.head, s.id_sector, count) if count > 1 else None

    def _next(self, terminal_count: bool, step: int = 1) -> None:
        """A sector is done: the ID moves on (table 5-8), and the command ends behind EOT or with the terminal count."""
        s = self._state
        eot = s.fifo[6]
        s.sectors_done += 1
        if s.fifo[0] & 0x1F == Command.READ_TRACK:
            if s.sectors_done >= eot and not terminal_count:
                raise _End(ST0_ABNORMAL, ST1_EN)
            s.id_sector = s.id_sector + 1 & 0xFF
        elif s.id_sector != eot and s.id_sector + step != eot + 1:
            s.id_sector = s.id_sector + step & 0xFF
        else:
            other_side = s.fifo[0] & MULTI_TRACK and not s.head
            terminal_count |= not other_side and self._ends_at_eot()
            if not other_side and not terminal_count:
                raise _End(ST0_ABNORMAL, ST1_EN)  # the ID stays: drivers count the last sector by EN
            s.id_sector = 1
            if s.fifo[0] & MULTI_TRACK:
                s.id_head ^= 1
            if not other_side:
                s.id_cylinder = s.id_cylinder + 1 & 0xFF
            s.head |= not terminal_count
        if terminal_count:
            raise _End

    def _ends_at_eot(self) -> bool:
        """5.1.7, 5.1.9: for scans, and for VERIFY without EC, EOT is what the terminal count is to others."""
        command = self._state.fifo[0] & 0x1F
        return command in _SCANS or (command == Command.VERIFY and not self._state.fifo[1] & 0x80)

    # -- the host --------------------------------------------------------------------------------------------------------

    @property
    def _dma(self) -> bool:
        return not self._state.hlt_nd & 1

    def _dma_take(self, size_bytes: int) -> tuple[bytes, bool]:
        """Bytes from memory and whether the count ended with them; too few without that are an overrun."""
        gate = bool(self._state.dor & DOR_DMA_GATE)
        data = self._channel.transfer_from_memory(size_bytes) if gate else b""
        ended = gate and self._channel.terminal_count
        if len(data) < size_bytes and not ended:
            raise _End(ST0_ABNORMAL, ST1_OR)
        return data.ljust(size_bytes, b"\0"), ended

    def _dma_offer(self, data: bytes) -> tuple[int, bool]:
        """How many bytes memory took, and whether the count ended with them."""
        if not self._state.dor & DOR_DMA_GATE:
            return 0, False
        taken = self._channel.transfer_to_memory(data)
        return taken, self._channel.terminal_count

    def _dma_give(self, data: bytes) -> bool:
        taken, ended = self._dma_offer(data)
        if taken < len(data) and not ended:
            raise _End(ST0_ABNORMAL, ST1_OR)
        return ended

    # -- commands --------------------------------------------------------------------------------------------------------

    def _sectors(self, command: Command, received: bytes | None) -> Step:
        """Until something ends it: at the latest the last sector of the second side."""
        while True:
            if command is Command.VERIFY:
                self._verify_one()
            elif command is Command.READ_DATA and self._dma and (run := self._read_run()):
                self._give_run(run)
            elif command in _READS:
                data = self._read()
                if command is Command.READ_DELETED_DATA:
                    self._state.st2 |= ST2_CM
                    if self._state.fifo[0] & SKIP:
                        self._next(False)
                        continue
                if not self._dma:
                    return Give(data)
                ended = self._dma_give(data)
                if command is Command.READ_DELETED_DATA:  # 5.1.2: the unwanted mark ends it after this sector
                    raise _End
                self._next(ended)
            else:
                self._find()
                if received is not None:
                    data, ended, received = received, False, None
                elif self._dma:
                    data, ended = self._dma_take(SECTOR_BYTES)
                else:
                    return Take(SECTOR_BYTES)
                if command in _WRITES:
                    self._write_one(data)
                    self._next(ended)
                else:
                    self._scan_one(command, data, ended)

    def _give_run(self, run: bytes) -> None:
        taken, ended = self._dma_offer(run)
        whole = taken // SECTOR_BYTES
        if not ended:
            for _ in range(whole):
                self._next(False)
            if taken < len(run):
                raise _End(ST0_ABNORMAL, ST1_OR)
            return
        for _ in range((taken - 1) // SECTOR_BYTES):
            self._next(False)
        self._next(True)

    def _write_one(self, data: bytes) -> None:
        drive, track = self._find()
        if not drive.write(track, self._state.head, self._state.id_sector, data):
            raise _End(ST0_ABNORMAL, ST1_DE, ST2_DD)

    def _verify_one(self) -> None:
        s = self._state
        self._read()
        self._next(bool(s.fifo[1] & 0x80) and s.sectors_done + 1 >= s.fifo[8])

    def _scan_one(self, command: Command, data: bytes, ended: bool) -> None:
        """5.1.9: 0xff on either side matches everything."""
        s = self._state
        found = self._read()
        pairs = [(a, b) for a, b in zip(found, data, strict=True) if a != 0xFF and b != 0xFF and a != b]
        s.st2 &= ~(ST2_SH | ST2_SN)
        if not pairs:
            s.st2 |= ST2_SH
            self._next(True)
        if command is Command.SCAN_LOW_OR_EQUAL:
            satisfied = pairs[0][0] < pairs[0][1]
        else:
            satisfied = command is Command.SCAN_HIGH_OR_EQUAL and pairs[0][0] > pairs[0][1]
        if satisfied:
            self._next(True)
        s.st2 |= ST2_SN
        self._next(ended, 2 if s.fifo[8] == 2 else 1)

    def _read_id(self) -> None:
        s = self._state
        _, track, sectors = self._track()
        s.rotation = s.rotation % sectors + 1
        s.id_cylinder, s.id_head, s.id_sector = track, s.head, s.rotation
        raise _End

    def _format(self, received: bytes | None) -> Step:
        s, drive = self._state, self._drive
        s.id_cylinder, s.id_head, s.id_sector = s.cylinder[s.unit], s.head, 1
        if drive is None or drive.geometry is None:
            raise _End(ST0_ABNORMAL, ST1_MA)
        if drive.readonly:
            raise _End(ST0_ABNORMAL, ST1_NW)
        size = 4 * s.fifo[3]
        if size and received is None:
            if not self._dma:
                return Take(size)
            received, _ = self._dma_take(size)
        track = drive.track(s.cylinder[s.unit])
        if track is None or s.head >= drive.geometry.heads or s.rate != drive.rate() or not s.fifo[0] & MFM:
            raise _End(ST0_ABNORMAL | ST0_EQUIPMENT)  # such a track has no place in the image
        data = bytes((s.fifo[5],)) * SECTOR_BYTES
        ids = received or b""
        for c, h, r, n in zip(ids[0::4], ids[1::4], ids[2::4], ids[3::4], strict=True):
            s.id_cylinder, s.id_head, s.id_sector = c, h, r
            known = (c, h, n) == (track, s.head, SECTOR_SIZE_CODE) and 1 <= r <= drive.geometry.sectors
            if known and not drive.write(track, s.head, r, data):
                raise _End(ST0_ABNORMAL, ST1_DE)
        raise _End
