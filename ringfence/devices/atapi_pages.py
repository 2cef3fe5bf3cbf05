"""Fixed tables of a CD-ROM drive: identification, mode pages, features.

ATA/ATAPI-6 (T13/1410D revision 3b), clause 8 (IDENTIFY PACKET DEVICE); MMC-5 (T10/1675D revision 4) for features and mode
pages; the CD pages 0Dh and 0Eh, and the layout of page 2Ah, as in SFF-8020i revision 2.6 and MMC-3.
"""

from __future__ import annotations

import struct

from ringfence.devices.ide_registers import ata_string, identify_block

PROFILE_NONE, PROFILE_CD_ROM, PROFILE_DVD_ROM = 0x0000, 0x0008, 0x0010
ALL_PAGES = 0x3F
_SPEED_KBYTES = 56 * 176  # 56 times an audio CD
_BUFFER_KBYTES = 512


def identify_packet_device(model: str, serial: str, revision: str, dma: bool, mdma: int, udma: int, is_slave: bool) -> bytes:
    """512 bytes.  `mdma` and `udma` are the selected DMA modes, one bit set in the one that is."""
    words = {
        0: 0x85C0,  # packets, CD-ROM, removable, DRQ within 50 us of PACKET, packets of 12 bytes
        48: 1,  # ATA-1: 32-bit data register
        49: 1 << 11 | 1 << 9 | (1 << 8 if dma else 0),  # IORDY, LBA, DMA
        51: 0x0200,
        53: 0x0006 if dma else 0x0002,
        64: 0x0003,
        67: 120,
        68: 120,
        80: 0x0070,  # ATA/ATAPI-4 to -6
        81: 0x0019,
        82: 1 << 14 | 1 << 9 | 1 << 4,  # NOP, DEVICE RESET, PACKET
        83: 1 << 14,
        84: 1 << 14,
        85: 1 << 14 | 1 << 9 | 1 << 4,
        87: 1 << 14,
        93: 1 << 14 | 1 << 13 | (0x0B00 if is_slave else 0x000B),
    }
    if dma:
        words |= {52: 0x0200, 62: 0x0007, 63: 0x0007 | mdma << 8, 65: 120, 66: 120, 88: 0x003F | udma << 8}
    return identify_block(words, {10: ata_string(serial, 20), 23: ata_string(revision, 8), 27: ata_string(model, 40)})


def inquiry(vendor: str, product: str, revision: str) -> bytes:
    """INQUIRY: a removable CD-ROM drive behind ATAPI."""
    texts = (vendor, 8), (product, 16), (revision, 4)
    return bytes((0x05, 0x80, 0x00, 0x21, 31, 0, 0, 0)) + b"".join(text.encode()[:size].ljust(size) for text, size in texts)


def _mode_pages(locked: bool) -> dict[int, bytes]:
    return {
        0x01: bytes((0, 5, 0, 0, 0, 0)),  # read error recovery: five retries
        0x0D: struct.pack(">BBHH", 0, 0x0D, 60, 75),  # seconds a minute, frames a second
        0x0E: bytes((4, 0, 0, 0, 0, 75, 1, 0xFF, 2, 0xFF, 0, 0, 0, 0)),  # audio: immediate; two ports at full volume
        0x2A: struct.pack(
            ">BBBBBBHHHHBBBB",
            0x0F,  # reads CD-R, CD-RW, fixed packets, DVD-ROM
            0x00,  # writes nothing
            0x70,  # mode 2 form 1 and 2, multi-session
            0x00,
            0x29 | (0x02 if locked else 0),  # tray, ejects, locks; locked
            0x00,
            _SPEED_KBYTES,
            0,
            _BUFFER_KBYTES,
            _SPEED_KBYTES,
            *(0, 0, 0, 0),
        ),
    }


def mode_pages(page: int, locked: bool, changeable: bool) -> bytes | None:
    """One page, or all; None when there is no such page.  No field is changeable."""
    pages = _mode_pages(locked)
    if page != ALL_PAGES and page not in pages:
        return None
    chosen = pages if page == ALL_PAGES else {page: pages[page]}
    return b"".join(bytes((code, len(body))) + (bytes(len(body)) if changeable else body) for code, body in chosen.items())


def features(profile: int) -> list[tuple[int, bytes]]:
    """MMC-5, 5.3: descriptors by feature code, ascending; `profile` is the current one."""
    cd, dvd = profile == PROFILE_CD_ROM, profile == PROFILE_DVD_ROM
    profiles = b"".join(struct.pack(">HBx", p, p == profile) for p in (PROFILE_DVD_ROM, PROFILE_CD_ROM))

    def feature(code: int, version: int, persistent: bool, current: bool, body: bytes = b"") -> tuple[int, bytes]:
        return code, struct.pack(">HBB", code, version << 2 | persistent << 1 | current, len(body)) + body

    return [
        feature(0x0000, 0, True, True, profiles),
        feature(0x0001, 2, True, True, struct.pack(">IB3x", 2, 1)),  # core: ATAPI; device busy events
        feature(0x0002, 1, True, True, bytes((2, 0, 0, 0))),  # morphing: polled operational change events
        feature(0x0003, 0, True, True, bytes((0x29, 0, 0, 0))),  # removable medium: tray, ejects, locks
        feature(0x0010, 0, False, cd or dvd, struct.pack(">IHBx", 2048, 16 if dvd else 1, 1)),  # random readable
        feature(0x001D, 0, False, cd),  # multi-read
        feature(0x001E, 2, False, cd, bytes(4)),  # CD read
        feature(0x001F, 0, False, dvd),  # DVD read
        feature(0x0100, 0, True, True),  # power management
        feature(0x0105, 0, True, True),  # timeout
    ]
