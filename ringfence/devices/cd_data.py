"""What is on a CD: sectors and the table of contents of a disc with one data track.

MMC-5 (T10/1675D revision 4) (READ CD, READ TOC/PMA/ATIP); ECMA-130, clause 14 (sectors).
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from ringfence.backends.api import Block

CD_SECTOR_BYTES = 2048
PREGAP_FRAMES = 150  # LBA 0 is at 00:02:00
FRAMES_PER_SECOND = 75
MAX_CD_SECTORS = 99 * 60 * FRAMES_PER_SECOND - PREGAP_FRAMES  # what 99 minutes hold; a larger image is a DVD
LEAD_OUT = 0xAA
_DATA_TRACK = 0x14  # ADR 1, CONTROL 4: data, recorded without interruption
_SYNC = b"\0" + b"\xff" * 10 + b"\0"
_CORRECTION_BYTES = 288


def sectors_of(medium: Block) -> int:
    return -(-medium.size_bytes // CD_SECTOR_BYTES)


def is_dvd(medium: Block) -> bool:
    return sectors_of(medium) > MAX_CD_SECTORS


def msf(lba: int) -> tuple[int, int, int]:
    """Minute, second, frame; addresses that no CD has are cut to the last there is."""
    seconds, frame = divmod(lba + PREGAP_FRAMES, FRAMES_PER_SECOND)
    minute, second = divmod(seconds, 60)
    return (minute, second, frame) if minute < 256 else (255, 59, 74)


class RawLayout:
    """Parts of a mode 1 sector by bits of READ CD's byte 9 (from bit 3): EDC and ECC, user data, header codes, sync.

    Error detection and correction bytes read as zero: nothing here has been read with errors.
    """

    CORRECTION, USER_DATA, HEADER, SUBHEADER, SYNC = 1, 2, 4, 8, 16

    def __init__(self, parts: int) -> None:
        """No parts at all means plain user data."""
        self.parts = parts or self.USER_DATA
        self.before = (12 if self.parts & self.SYNC else 0) + (4 if self.parts & self.HEADER else 0)
        self.user = CD_SECTOR_BYTES if self.parts & self.USER_DATA else 0
        self.sector_bytes = self.before + self.user + (_CORRECTION_BYTES if self.parts & self.CORRECTION else 0)

    def head(self, lba: int) -> bytes:
        """ECMA-130, clause 14: sync pattern; address in BCD and mode."""
        minute, second, frame = (part // 10 % 10 << 4 | part % 10 for part in msf(lba))
        header = bytes((minute, second, frame, 1)) if self.parts & self.HEADER else b""
        return (_SYNC if self.parts & self.SYNC else b"") + header


def fill_sectors(medium: Block, lba: int, layout: RawLayout, buffer: memoryview) -> None:
    """Reads whole sectors from `lba` on; what the image lacks of its last one reads as zero.  Raises what the medium raises."""
    if layout.parts == RawLayout.USER_DATA:
        _fill(medium, lba * CD_SECTOR_BYTES, buffer)
        return
    for at in range(0, len(buffer), layout.sector_bytes):
        buffer[at : at + layout.before] = layout.head(lba)
        if layout.user:
            _fill(medium, lba * CD_SECTOR_BYTES, buffer[at + layout.before : at + layout.before + layout.user])
        lba += 1


def _fill(medium: Block, offset: int, buffer: memoryview) -> None:
    inside = max(0, min(len(buffer), medium.size_bytes - offset))
    medium.read(offset, buffer[:inside])
    if inside < len(buffer):
        buffer[inside:] = bytes(len(buffer) - inside)


# -- table of contents --------------------------------------------------------------------------------------------


def _address(lba: int, as_msf: bool) -> bytes:
    return bytes((0, *msf(lba))) if as_msf else struct.pack(">I", lba)


def toc(total: int, as_msf: bool, first: int) -> bytes | None:
    """Format 0: tracks from number `first` on, and the lead-out.  None when there is no such track."""
    if first > 1 and first != LEAD_OUT:
        return None
    entries = b"" if first == LEAD_OUT else bytes((0, _DATA_TRACK, 1, 0)) + _address(0, as_msf)
    entries += bytes((0, _DATA_TRACK, LEAD_OUT, 0)) + _address(total, as_msf)
    return struct.pack(">HBB", len(entries) + 2, 1, 1) + entries


def sessions(total: int, as_msf: bool, first: int) -> bytes | None:
    """Format 1: first and last session, and where the last one begins."""
    return struct.pack(">HBB", 10, 1, 1) + bytes((0, _DATA_TRACK, 1, 0)) + _address(0, as_msf)


def full_toc(total: int, as_msf: bool, first: int) -> bytes | None:
    """Format 2: the Q sub-channel of the lead-in; `first` is a session's number.  Addresses are always MSF."""
    if first > 1:
        return None
    points = ((0xA0, (1, 0, 0)), (0xA1, (1, 0, 0)), (0xA2, msf(total)), (1, msf(0)))
    entries = b"".join(bytes((1, _DATA_TRACK, 0, point, 0, 0, 0, 0, *value)) for point, value in points)
    return struct.pack(">HBB", len(entries) + 2, 1, 1) + entries


TOC_FORMATS: dict[int, Callable[[int, bool, int], bytes | None]] = {0: toc, 1: sessions, 2: full_toc}
