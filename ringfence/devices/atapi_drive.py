"""A CD-ROM drive on an IDE channel: its commands.

MMC-5 (T10/1675D revision 4) and SFF-8020i revision 2.6 for command packets; ATA/ATAPI-6 (T13/1410D revision 3b), clause 8,
for the few commands outside of packets.  Discs have one data track of mode 1.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from ringfence.backends.api import Block
from ringfence.devices.api import Executor
from ringfence.devices.atapi_pages import (
    PROFILE_CD_ROM,
    PROFILE_DVD_ROM,
    PROFILE_NONE,
    features,
    identify_packet_device,
    inquiry,
    mode_pages,
)
from ringfence.devices.atapi_transport import (
    EVENT_NEW_MEDIA,
    EVENT_REMOVAL,
    INVALID_FIELD,
    INVALID_OPCODE,
    LBA_OUT_OF_RANGE,
    MEDIUM_CHANGED,
    NO_MEDIUM_TRAY_CLOSED,
    NO_MEDIUM_TRAY_OPEN,
    NO_SENSE,
    REMOVAL_PREVENTED,
    SAVING_NOT_SUPPORTED,
    AtapiTransport,
)
from ringfence.devices.cd_data import CD_SECTOR_BYTES, TOC_FORMATS, RawLayout, is_dvd, sectors_of
from ringfence.devices.ide_registers import DEVICE, DEVICE_DEV, FEATURES, SECTOR_COUNT

DEVICE_RESET = 0x08
VENDOR, PRODUCT, REVISION = "RINGFNCE", "CD-ROM", "1.0"
_REQUEST_SENSE = 0x03
_MEDIA_CLASS = 4
_NO_EVENT_AVAILABLE = 0x80


class _Command(NamedTuple):
    execute: Callable[[bytes], None]
    needs_medium: bool = False
    hides_change: bool = False  # performed although a unit attention is pending


class AtapiDrive(AtapiTransport):
    """A drive with `medium` in it; `change_medium` puts another one in.  `dma` says whether its channel has a bus master."""

    def __init__(
        self,
        medium: Block | None,
        executor: Executor,
        *,
        dma: bool = True,
        model: str = "Ringfence CD-ROM",
        serial: str = "RF00000002",
        name: str = "cd-rom",
    ) -> None:
        self._model, self._serial = model, serial
        self._packets = self._packet_table()
        super().__init__(medium, executor, dma, name)

    # -- ATA commands --------------------------------------------------------------------------------------------

    def write_command(self, command: int) -> None:
        if command == DEVICE_RESET:  # also while another command goes on; without an interrupt
            self.soft_reset()
        else:
            super().write_command(command)

    def execute(self, command: int) -> None:
        r = self.state.registers
        if command == 0xA0:
            self._await_packet()
        elif command == 0xA1:
            slave = bool(r[DEVICE] & DEVICE_DEV)
            s = self.state
            self._send(bytearray(identify_packet_device(self._model, self._serial, REVISION, self._dma, s.mdma, s.udma, slave)))
        elif command == 0xEF and r[FEATURES] == 0x03 and self._select_mode(r[SECTOR_COUNT]):
            self._complete()
        elif command in (0xE0, 0xE1, 0xE2, 0xE3, 0xE5, 0xE6):  # power management: always ready
            if command == 0xE5:
                r[SECTOR_COUNT] = 0xFF
            self._complete()
        else:
            if command in (0xEC, 0x20):
                self._sign()  # so does a host find out that this is no disk
            self._abort()

    # -- packets -------------------------------------------------------------------------------------------------

    def _packet_table(self) -> dict[int, _Command]:
        return {
            0x00: _Command(lambda packet: self._good(), needs_medium=True),  # TEST UNIT READY
            _REQUEST_SENSE: _Command(self._request_sense, hides_change=True),
            0x12: _Command(self._inquiry, hides_change=True),
            0x1A: _Command(self._mode_sense_6),
            0x1B: _Command(self._start_stop),
            0x1E: _Command(self._prevent_removal),
            0x25: _Command(self._read_capacity, needs_medium=True),
            0x28: _Command(self._read_10, needs_medium=True),
            0x2B: _Command(self._seek, needs_medium=True),
            0x42: _Command(self._read_sub_channel, needs_medium=True),
            0x43: _Command(self._read_toc, needs_medium=True),
            0x46: _Command(self._get_configuration, hides_change=True),
            0x4A: _Command(self._get_event_status, hides_change=True),
            0x51: _Command(self._read_disc_information, needs_medium=True),
            0x52: _Command(self._read_track_information, needs_medium=True),
            0x5A: _Command(self._mode_sense_10),
            0xA8: _Command(self._read_12, needs_medium=True),
            0xBB: _Command(lambda packet: self._good()),  # SET CD SPEED
            0xBD: _Command(self._mechanism_status),
            0xBE: _Command(self._read_cd, needs_medium=True),
        }

    def perform_packet(self, packet: bytes) -> None:
        s = self.state
        command = self._packets.get(packet[0])
        if packet[0] != _REQUEST_SENSE:
            s.sense_key, s.asc, s.ascq = NO_SENSE
        if command is None:
            self._check(INVALID_OPCODE)
        elif s.change and self.ready and not command.hides_change:
            s.change, sense = (2, NO_MEDIUM_TRAY_CLOSED) if s.change == 1 else (0, MEDIUM_CHANGED)
            self._check(sense)
        elif command.needs_medium and not self.ready:
            self._check(NO_MEDIUM_TRAY_OPEN if s.tray_open else NO_MEDIUM_TRAY_CLOSED)
        else:
            command.execute(packet)

    @property
    def _total(self) -> int:
        return sectors_of(self.medium) if self.medium is not None and self.ready else 0

    def _request_sense(self, packet: bytes) -> None:
        """REQUEST SENSE: fixed format; what was told is forgotten."""
        s = self.state
        sense = struct.pack(">BxB4xB4xBB4x", 0x70, s.sense_key, 10, s.asc, s.ascq)
        s.sense_key, s.asc, s.ascq = NO_SENSE
        self._reply(sense, packet[4])

    def _inquiry(self, packet: bytes) -> None:
        if packet[1] & 1:
            self._check(INVALID_FIELD)  # no vital product data
        else:
            self._reply(inquiry(VENDOR, PRODUCT, REVISION), packet[3] << 8 | packet[4])

    # -- mode pages and features ---------------------------------------------------------------------------------

    def _pages(self, packet: bytes) -> bytes | None:
        control, page = packet[2] >> 6, packet[2] & 0x3F
        if control == 3:
            self._check(SAVING_NOT_SUPPORTED)
            return None
        pages = mode_pages(page, bool(self.state.locked), control == 1)
        if pages is None:
            self._check(INVALID_FIELD)
        return pages

    def _medium_type(self) -> int:
        """SFF-8020i, table 79: data CD; no disc; door open."""
        return 0x71 if self.state.tray_open else 0x01 if self.medium is not None else 0x70

    def _mode_sense_6(self, packet: bytes) -> None:
        pages = self._pages(packet)
        if pages is not None:
            self._reply(bytes((3 + len(pages), self._medium_type(), 0, 0)) + pages, packet[4])

    def _mode_sense_10(self, packet: bytes) -> None:
        pages = self._pages(packet)
        if pages is not None:
            self._reply(struct.pack(">HB5x", 6 + len(pages), self._medium_type()) + pages, packet[7] << 8 | packet[8])

    def _profile(self) -> int:
        if self.medium is None or not self.ready:
            return PROFILE_NONE
        return PROFILE_DVD_ROM if is_dvd(self.medium) else PROFILE_CD_ROM

    def _get_configuration(self, packet: bytes) -> None:
        """GET CONFIGURATION: features from a number on, those that are current, or one."""
        request, first, allocation = packet[1] & 3, packet[2] << 8 | packet[3], packet[7] << 8 | packet[8]
        profile = self._profile()
        chosen = [
            text for code, text in features(profile) if (code == first if request == 2 else code >= first) and (request != 1 or text[2] & 1)
        ]
        if request == 3:
            self._check(INVALID_FIELD)
            return
        body = b"".join(chosen)
        self._reply(struct.pack(">IHH", len(body) + 4, 0, profile) + body, allocation)

    def _get_event_status(self, packet: bytes) -> None:
        """Polled only; media events are the only class."""
        s = self.state
        allocation = packet[7] << 8 | packet[8]
        if not packet[1] & 1:
            self._check(INVALID_FIELD)
        elif packet[4] & 1 << _MEDIA_CLASS:
            present = (1 if s.tray_open else 0) | (2 if self.medium is not None else 0)
            reply = struct.pack(">HBBBBH", 6, _MEDIA_CLASS, 1 << _MEDIA_CLASS, s.event, present, 0)
            if allocation > 4:
                s.event = 0
            self._reply(reply, allocation)
        else:
            self._reply(struct.pack(">HBB", 2, _NO_EVENT_AVAILABLE, 1 << _MEDIA_CLASS), allocation)

    # -- tray ----------------------------------------------------------------------------------------------------

    def _start_stop(self, packet: bytes) -> None:
        """START STOP UNIT: bit 1 asks for the tray, bit 0 says which way."""
        s = self.state
        if packet[4] & 0xF0 or not packet[4] & 2:
            self._good()  # power conditions, spinning
        elif packet[4] & 1:
            if s.tray_open:
                s.tray_open = 0
                if self.medium is not None:
                    s.change, s.event = 2, EVENT_NEW_MEDIA
            self._good()
        elif s.locked and not s.tray_open:
            self._check(REMOVAL_PREVENTED)
        else:
            if not s.tray_open:
                s.tray_open, s.change, s.event = 1, 0, EVENT_REMOVAL
            self._good()

    def _prevent_removal(self, packet: bytes) -> None:
        self.state.locked = packet[4] & 1
        self._good()

    def _mechanism_status(self, packet: bytes) -> None:
        """MECHANISM STATUS: a single-disc drive, idle."""
        door = 0x10 if self.state.tray_open else 0
        self._reply(bytes((0, door, 0, 0, 0, 1, 0, 0)), packet[8] << 8 | packet[9])

    # -- the disc ------------------------------------------------------------------------------------------------

    def _read_capacity(self, packet: bytes) -> None:
        self._reply(struct.pack(">II", min(max(self._total - 1, 0), 0xFFFF_FFFF), CD_SECTOR_BYTES), 8)

    def _read_10(self, packet: bytes) -> None:
        lba, count = struct.unpack_from(">IxH", packet, 2)
        self._read_medium(lba, count)

    def _read_12(self, packet: bytes) -> None:
        lba, count = struct.unpack_from(">II", packet, 2)
        self._read_medium(lba, count)

    def _read_cd(self, packet: bytes) -> None:
        """READ CD: any type of sector or mode 1; parts of sectors, but no C2 pointers and no sub-channels."""
        (lba,) = struct.unpack_from(">I", packet, 2)
        count = int.from_bytes(packet[6:9], "big")
        sector_type, parts = packet[1] >> 2 & 7, packet[9] >> 3
        if sector_type not in (0, 2) or packet[9] & 6 or packet[10] & 7:
            self._check(INVALID_FIELD)
        elif not parts or not RawLayout(parts).sector_bytes:
            if lba + count > self._total:
                self._check(LBA_OUT_OF_RANGE)
            else:
                self._good()
        else:
            self._read_medium(lba, count, parts)

    def _seek(self, packet: bytes) -> None:
        (lba,) = struct.unpack_from(">I", packet, 2)
        if lba >= self._total:
            self._check(LBA_OUT_OF_RANGE)
        else:
            self._good()

    def _read_toc(self, packet: bytes) -> None:
        # SFF-8020i has the format in the last byte's top bits, later editions in byte 2.
        make = TOC_FORMATS.get(packet[2] & 15 or packet[9] >> 6)
        found = make(self._total, bool(packet[1] & 2), packet[6]) if make is not None else None
        if found is None:
            self._check(INVALID_FIELD)
        else:
            self._reply(found, packet[7] << 8 | packet[8])

    def _read_sub_channel(self, packet: bytes) -> None:
        """READ SUB-CHANNEL (MMC-3): nothing is being played; format 1 tells the position, which is the disc's start."""
        allocation = packet[7] << 8 | packet[8]
        if not packet[2] & 0x40:
            self._reply(struct.pack(">BBH", 0, 0x15, 0), allocation)
        elif packet[3] == 1:
            start = bytes((0, 0, 2, 0)) if packet[1] & 2 else bytes(4)
            self._reply(struct.pack(">BBHBBBB", 0, 0x15, 12, 1, 0x14, 1, 1) + start + bytes(4), allocation)
        else:
            self._check(INVALID_FIELD)

    def _read_disc_information(self, packet: bytes) -> None:
        """READ DISC INFORMATION: one complete session."""
        if packet[1] & 7:
            self._check(INVALID_FIELD)
            return
        # erasable and states; first track; sessions; first and last track in the last session; unrestricted use; type
        head = struct.pack(">HBBBBBBB", 32, 0x0E, 1, 1, 1, 1, 0x20, 0x00)
        self._reply(head.ljust(16, b"\0") + b"\xff" * 8 + bytes(10), packet[7] << 8 | packet[8])

    def _read_track_information(self, packet: bytes) -> None:
        """READ TRACK INFORMATION: the one track, found by address, by number or by session."""
        kind, (number,) = packet[1] & 3, struct.unpack_from(">I", packet, 2)
        if not (kind == 0 and number < self._total or kind in (1, 2) and number == 1):
            self._check(INVALID_FIELD)
            return
        # track and session; track mode 4 (data); data mode 1; nothing valid of next writable address
        head = struct.pack(">HBBxBBxI", 34, 1, 1, 0x04, 0x01, 0)
        size = min(self._total, 0xFFFF_FFFF)
        self._reply(head + bytes(12) + struct.pack(">I", size) + bytes(8), packet[7] << 8 | packet[8])
