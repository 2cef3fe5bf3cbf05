"""What a disk says of itself: the words of IDENTIFY DEVICE.  ATA/ATAPI-6 (T13/1410D revision 3b), clause 8."""

from __future__ import annotations

from ringfence.devices.ata_geometry import Geometry
from ringfence.devices.ide_registers import SECTOR_BYTES, ata_string, identify_block

FIRMWARE_REVISION = "1.0"
_LBA28_SECTORS = 0x0FFF_FFFF
# 48-bit address, FLUSH CACHE (EXT); bit 14 marks the words as valid
_VALID, _FLUSH_EXT, _FLUSH, _LBA48 = 1 << 14, 1 << 13, 1 << 12, 1 << 10
_READ_BUFFER, _WRITE_BUFFER, _LOOK_AHEAD, _WRITE_CACHE, _POWER, _SMART = 1 << 13, 1 << 12, 1 << 6, 1 << 5, 1 << 3, 1 << 0


def identify_device(
    *,
    sectors: int,
    native: Geometry,
    current: Geometry,
    max_multiple: int,
    multiple: int,
    dma: bool,
    mdma: int,
    udma: int,
    write_cache: bool,
    smart: bool,
    is_slave: bool,
    model: str,
    serial: str,
) -> bytes:
    """512 bytes.  `mdma` and `udma` are the selected DMA modes, one bit set in the one that is."""
    lba28 = min(sectors, _LBA28_SECTORS)
    capacity = min(current.cylinders * current.heads * current.sectors, lba28)
    supported = _READ_BUFFER | _WRITE_BUFFER | _LOOK_AHEAD | _WRITE_CACHE | _POWER | _SMART
    enabled = supported & ~(_WRITE_CACHE | _SMART) | (_WRITE_CACHE if write_cache else 0) | (_SMART if smart else 0)
    words = {
        0: 0x0040,  # fixed drive
        1: native.cylinders,
        3: native.heads,
        4: native.sectors * SECTOR_BYTES,  # unformatted bytes a track and a sector: ATA-1, for drivers of its time
        5: SECTOR_BYTES,
        6: native.sectors,
        20: 3,  # ATA-1: dual-ported buffer with read cache, of
        21: 512,  # so many sectors
        47: 0x8000 | max_multiple,
        48: 1,  # ATA-1: 32-bit data register
        49: 1 << 11 | 1 << 9 | (1 << 8 if dma else 0),  # IORDY, LBA, DMA
        50: _VALID,
        51: 0x0200,  # PIO mode 2 for drivers that know no more
        53: 0x0007 if dma else 0x0003,  # words 54-58, 64-70, 88 are valid
        54: current.cylinders,
        55: current.heads,
        56: current.sectors,
        57: capacity & 0xFFFF,
        58: capacity >> 16,
        59: 0x0100 | multiple if multiple else 0,
        60: lba28 & 0xFFFF,
        61: lba28 >> 16,
        64: 0x0003,  # PIO modes 3 and 4
        67: 120,  # cycle times in ns
        68: 120,
        80: 0x007E,  # ATA-1 to ATA/ATAPI-6
        81: 0x0019,  # T13/1410D
        82: supported,
        83: _VALID | _FLUSH_EXT | _FLUSH | _LBA48,
        84: _VALID,
        85: enabled,
        86: _FLUSH_EXT | _FLUSH | _LBA48,
        87: _VALID,
        # 80-conductor cable; how the device number was found: by jumper
        93: _VALID | 1 << 13 | (0x0B00 if is_slave else 0x000B),
        **{100 + k: sectors >> 16 * k for k in range(4)},
    }
    if dma:
        words |= {52: 0x0200, 62: 0x0007, 63: 0x0007 | mdma << 8, 65: 120, 66: 120, 88: 0x003F | udma << 8}
    strings = {10: ata_string(serial, 20), 23: ata_string(FIRMWARE_REVISION, 8), 27: ata_string(model, 40)}
    return identify_block(words, strings)
