"""Registers of the ATA interface and their bits.  ATA/ATAPI-6 (T13/1410D revision 3b), clause 7."""

from __future__ import annotations

# Command block, as offsets from its base.  Where reading and writing differ: read name / write name.
DATA, ERROR, SECTOR_COUNT, LBA_LOW, LBA_MID, LBA_HIGH, DEVICE, STATUS = range(8)
FEATURES, COMMAND = ERROR, STATUS
COMMAND_BLOCK_PORTS, CONTROL_BLOCK_PORTS = 8, 1

# Status
BSY, DRDY, DF, DSC, DRQ, ERR = 0x80, 0x40, 0x20, 0x10, 0x08, 0x01
# Error
ICRC, UNC, IDNF, ABRT = 0x80, 0x40, 0x10, 0x04
DIAGNOSTIC_PASSED = 0x01  # what the error register holds after a reset or self test
# Device
DEVICE_LBA, DEVICE_DEV, DEVICE_OBSOLETE = 0x40, 0x10, 0xA0
# Device control
HOB, SRST, NIEN = 0x80, 0x04, 0x02
# Interrupt reason, the sector count register of packet commands (PACKET, clause 8)
REASON_COMMAND, REASON_TO_HOST = 0x01, 0x02

SECTOR_BYTES = 512


def ata_string(text: str, size_bytes: int) -> bytes:
    """IDENTIFY DEVICE, "ATA strings": two characters to a word, the first in its high byte; padded with blanks."""
    padded = text.encode("ascii", "replace")[:size_bytes].ljust(size_bytes)
    return bytes(byte for k in range(0, size_bytes, 2) for byte in (padded[k + 1], padded[k]))


def identify_block(words: dict[int, int], strings: dict[int, bytes]) -> bytes:
    """512 bytes of identification from words by number and strings by the number of their first word, with the integrity word."""
    block = bytearray(SECTOR_BYTES)
    for number, word in words.items():
        block[2 * number : 2 * number + 2] = (word & 0xFFFF).to_bytes(2, "little")
    for number, text in strings.items():
        block[2 * number : 2 * number + len(text)] = text
    block[510] = 0xA5  # integrity word: signature, and a byte that makes the sum of all zero
    block[511] = -sum(block[:511]) & 0xFF
    return bytes(block)
