"""The disk, driven through its registers: PIO, addresses, commands without data, errors."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from ringfence.devices.ata_geometry import Geometry
from tests.unit.devices.ide_driver import (
    BSY,
    COUNT,
    DATA,
    DEVICE,
    DRDY,
    DRQ,
    DSC,
    ERR,
    ERROR,
    HIGH,
    HOB,
    LOW,
    MID,
    NIEN,
    STATUS,
    Rig,
    disk_rig,
    make_disk,
)

ABRT, IDNF, UNC = 4, 0x10, 0x40


def words(rig: Rig) -> tuple[int, ...]:
    rig.command(0xEC)
    return struct.unpack("<256H", rig.read_pio(1))


def failed(rig: Rig, error: int) -> bool:
    assert rig.line.level
    return rig.inb(STATUS) == DRDY | DSC | ERR and rig.inb(ERROR) == error and not rig.line.level


def test_identify() -> None:
    rig, _, _ = disk_rig(make_disk(20160), serial="AB123", model="A model")
    block = words(rig)
    assert block[0] == 0x40 and block[1:4:2] == (20, 16) and block[6] == 63
    assert struct.pack(">10H", *block[10:20]) == b"AB123".ljust(20) and struct.pack(">20H", *block[27:47]) == b"A model".ljust(40)
    assert block[60] | block[61] << 16 == 20160 == block[100] | block[101] << 16
    assert block[54:57] == (20, 16, 63) and block[57] | block[58] << 16 == 20160
    assert block[49] & 0x300 == 0x300 and block[63] & 7 == 7 and block[88] & 0x3F == 0x3F
    assert sum(struct.pack("<256H", *block)) & 0xFF == 0
    rig, _, _ = disk_rig(dma=False)
    block = words(rig)
    assert block[49] & 0x300 == 0x200 and block[63] == block[88] == 0
    rig.command(0xC8, 1)
    assert failed(rig, ABRT)


@pytest.mark.parametrize(("count", "register"), [(1, 1), (5, 5), (256, 0)])
def test_read_sectors(count: int, register: int) -> None:
    rig, disk, _ = disk_rig()
    rig.command(0x20, register, 0x123)
    assert rig.read_pio(count) == disk.data[0x123 * 512 : (0x123 + count) * 512]
    assert rig.edges == count and rig.inb(COUNT) == 0 and rig.lba == 0x123 + count


def test_read_multiple_gives_blocks_and_a_rest() -> None:
    rig, disk, _ = disk_rig()
    rig.command(0xC6, 4)
    assert rig.line.level and rig.inb(STATUS) == DRDY | DSC
    rig.command(0xC4, 10, 7)
    data = b""
    for sectors in (4, 4, 2):
        assert rig.line.level and rig.inb(STATUS) & DRQ
        data += rig.take(sectors * 512)
    assert data == disk.data[7 * 512 : 17 * 512] and rig.inb(STATUS) == DRDY | DSC
    assert words(rig)[59] == 0x104
    rig.command(0xC6, 3)
    assert failed(rig, ABRT)
    rig.command(0xC6, 0)
    rig.inb(STATUS)
    rig.command(0xC4, 1, 0)
    assert failed(rig, ABRT) and words(rig)[59] == 0


@pytest.mark.parametrize(("command", "multiple"), [(0x30, 1), (0xC5, 8), (0x3C, 1)])
def test_write(command: int, multiple: int) -> None:
    rig, disk, _ = disk_rig()
    before = bytes(disk.data)
    pattern = os.urandom(8 * 512)
    rig.command(0xC6, 8)
    rig.inb(STATUS)
    rig.command(command, 8, 100)
    rig.write_pio(pattern, 512 * multiple)
    assert disk.data[100 * 512 : 108 * 512] == pattern
    assert disk.data[: 100 * 512] == before[: 100 * 512] and disk.data[108 * 512 :] == before[108 * 512 :]


def test_48_bit_addresses_and_the_previous_contents() -> None:
    rig, disk, _ = disk_rig()
    rig.command48(0x24, 2, 0x0ABC)
    assert rig.read_pio(2) == disk.data[0xABC * 512 : 0xABE * 512]
    rig.command48(0x34, 0x102, 0x50)
    pattern = os.urandom(0x102 * 512)
    rig.write_pio(pattern)
    assert disk.data[0x50 * 512 : 0x152 * 512] == pattern
    rig.command48(0x24, 1, 0x1234_5678_9ABC)
    assert failed(rig, IDNF)
    assert [rig.inb(r) for r in (LOW, MID, HIGH)] == [0xBC, 0x9A, 0x78]
    rig.control(HOB)
    assert [rig.inb(r) for r in (LOW, MID, HIGH)] == [0x56, 0x34, 0x12]
    rig.outb(COUNT, 0)  # writing a register ends the look back
    assert rig.inb(LOW) == 0xBC


def test_cylinders_heads_and_sectors() -> None:
    rig, disk, _ = disk_rig(geometry=Geometry(16, 8, 32))
    rig.chs(0x20, 1, 3, 5, 7)
    lba = (3 * 8 + 5) * 32 + 6
    assert rig.read_pio(1) == disk.data[lba * 512 : lba * 512 + 512]
    rig.chs(0x20, 2, 0, 7, 32)  # on to the next cylinder
    assert rig.read_pio(2) == disk.data[255 * 512 : 257 * 512]
    assert (rig.inb(LOW), rig.inb(MID), rig.inb(DEVICE) & 15) == (2, 1, 0)
    for head, sector in ((0, 0), (0, 33), (8, 1)):
        rig.chs(0x20, 1, 0, head, sector)
        assert failed(rig, IDNF)
    rig.outb(DEVICE, 0xA3)  # four heads
    rig.outb(COUNT, 16)
    rig.outb(STATUS, 0x91)
    assert rig.inb(STATUS) == DRDY | DSC
    rig.chs(0x21, 1, 1, 3, 16)
    assert rig.read_pio(1) == disk.data[127 * 512 : 128 * 512]
    block = words(rig)
    assert block[54:57] == (64, 4, 16) and (block[1], block[3], block[6]) == (16, 8, 32)
    rig.outb(COUNT, 0)
    rig.outb(STATUS, 0x91)
    assert failed(rig, ABRT)


def test_beyond_the_end() -> None:
    rig, disk, _ = disk_rig()
    rig.command(0x20, 2, 4095)
    assert rig.inb(STATUS) & DRQ
    assert rig.take(512) == disk.data[-512:]
    assert failed(rig, IDNF) and rig.lba == 4096
    for command in (0x20, 0x30, 0x40, 0x70, 0xC8):
        rig.command(command, 1, 4096)
        assert failed(rig, IDNF), hex(command)
    for command in (0x40, 0x70):
        rig.command(command, 1, 4095)
        assert rig.inb(STATUS) == DRDY | DSC


def test_errors_of_the_host() -> None:
    rig, disk, _ = disk_rig()
    rig.command(0x20, 3, 10)
    rig.take(512)
    disk.error = OSError(errno.EIO, "bad sector")
    rig.take(512)
    # the third block was being read when the error came
    assert failed(rig, UNC) and rig.lba == 12
    rig.command(0x40, 1, 20)
    assert failed(rig, UNC) and rig.lba == 20
    disk.error = OSError(errno.ENOSPC, "full")
    rig.command(0x30, 2, 30)
    rig.give(bytes(512))
    assert failed(rig, ABRT) and rig.lba == 30
    disk.error = None
    rig.command(0x20, 1, 30)
    assert rig.read_pio(1) == disk.data[30 * 512 : 31 * 512]


def test_read_only_disks_refuse_writes() -> None:
    rig, disk, _ = disk_rig(make_disk(readonly=True))
    for command in (0x30, 0xC5, 0xCA, 0x34, 0x35):
        rig.command(command, 1, 0)
        assert failed(rig, ABRT)
    rig.command(0xE7)
    assert rig.line.level and rig.inb(STATUS) == DRDY | DSC
    assert disk.calls == []


def test_flush_goes_to_the_worker_and_shows_busy() -> None:
    rig, disk, posted = disk_rig()
    disk.gate.clear()
    rig.command(0xE7)
    assert rig.alt == BSY and not rig.line.level
    rig.outb(LOW, 0x77)  # the task file is the drive's now
    rig.outb(STATUS, 0xEC)
    assert rig.alt == BSY
    disk.gate.set()
    posted.run_one()
    assert rig.line.level and rig.inb(STATUS) == DRDY | DSC and disk.calls == ["flush"] and rig.inb(LOW) == 0
    disk.error = OSError(errno.EIO, "gone")
    rig.command(0xEA)
    posted.run_one()
    assert failed(rig, ABRT)
    rig.channel.pause()


def test_without_write_cache_every_write_is_flushed() -> None:
    rig, disk, posted = disk_rig()
    rig.command(0xEF, feature=0x82)
    posted.run_one()
    assert rig.inb(STATUS) == DRDY | DSC and words(rig)[85] & 0x20 == 0
    disk.calls.clear()
    rig.command(0x30, 2, 5)
    rig.give(bytes(512))
    assert rig.alt == BSY
    posted.run_one()
    assert rig.line.level and rig.inb(STATUS) & DRQ
    rig.give(bytes(512))
    posted.run_one()
    assert rig.inb(STATUS) == DRDY | DSC
    assert disk.calls == ["write", "flush", "write", "flush"]
    rig.command(0xEF, feature=0x02)
    assert rig.inb(STATUS) == DRDY | DSC and words(rig)[85] & 0x20
    rig.channel.pause()


def test_transfer_modes() -> None:
    rig, _, _ = disk_rig()
    for mode, word, bit in ((0x20, 63, 0x100), (0x22, 63, 0x400), (0x45, 88, 0x2000), (0x40, 88, 0x100)):
        rig.command(0xEF, mode, feature=3)
        assert rig.inb(STATUS) == DRDY | DSC
        block = words(rig)
        assert block[word] & 0x3F00 == bit and not block[63 + 88 - word] & 0x3F00
    for mode in (0x0C, 0x00, 0x01):
        rig.command(0xEF, mode, feature=3)
        assert rig.inb(STATUS) == DRDY | DSC
    for mode in (0x46, 0x23, 0x0D, 0xFF):
        rig.command(0xEF, mode, feature=3)
        assert failed(rig, ABRT)
    rig.command(0xEF, feature=0x77)
    assert failed(rig, ABRT)


def test_small_commands() -> None:
    rig, _, _ = disk_rig()
    for command in (0x10, 0x1F, 0x94, 0xE0, 0xE1, 0xE3, 0xE6):
        rig.command(command)
        assert rig.line.level and rig.inb(STATUS) == DRDY | DSC, hex(command)
    for command in (0x98, 0xE5):
        rig.command(command)
        assert rig.inb(STATUS) == DRDY | DSC and rig.inb(COUNT) == 0xFF
    for command in (0x00, 0x08, 0xA0, 0xA1, 0xFF, 0x06, 0x50, 0xF9):
        rig.command(command)
        assert failed(rig, ABRT), hex(command)
    rig.command(0xF8)
    assert rig.inb(STATUS) == DRDY | DSC and rig.lba == 4095
    rig.command48(0x27, 0, 0)
    assert rig.inb(STATUS) == DRDY | DSC and rig.inb(LOW) | rig.inb(MID) << 8 == 4095
    rig.control(HOB)
    assert [rig.inb(r) for r in (LOW, MID, HIGH)] == [0, 0, 0]


def test_read_and_write_buffer() -> None:
    rig, disk, _ = disk_rig()
    pattern = os.urandom(512)
    rig.command(0xE8)
    rig.write_pio(pattern)
    rig.command(0xE4)
    assert rig.read_pio(1) == pattern and disk.calls == []


def test_smart() -> None:
    rig, _, _ = disk_rig()
    rig.command(0xB0, feature=0xDA, lba=0xC24F00)
    assert rig.inb(STATUS) == DRDY | DSC and (rig.inb(MID), rig.inb(HIGH)) == (0x4F, 0xC2)
    rig.command(0xB0, feature=0xD0, lba=0xC24F00)
    assert sum(rig.read_pio(1)) & 0xFF == 0
    rig.command(0xB0, feature=0xDA)
    assert failed(rig, ABRT)
    rig.command(0xB0, feature=0xD9, lba=0xC24F00)
    assert rig.inb(STATUS) == DRDY | DSC and not words(rig)[85] & 1
    rig.command(0xB0, feature=0xD0, lba=0xC24F00)
    assert failed(rig, ABRT)
    rig.command(0xB0, feature=0xD8, lba=0xC24F00)
    assert rig.inb(STATUS) == DRDY | DSC and words(rig)[85] & 1


def test_interrupts_wait_behind_nien_and_end_with_status() -> None:
    rig, _, _ = disk_rig()
    rig.control(NIEN)
    rig.command(0x10)
    assert not rig.line.level
    rig.control(0)
    assert rig.line.level
    assert rig.alt == DRDY | DSC and rig.line.level
    rig.inb(STATUS)
    assert not rig.line.level
    rig.command(0x10)
    assert rig.line.level
    rig.command(0xEC)  # a new command ends the old interrupt
    assert rig.edges == 3


@pytest.mark.parametrize("width", [1, 2, 4])
def test_widths_of_the_data_register(width: int) -> None:
    rig, disk, _ = disk_rig()
    rig.command(0x20, 1, 9)
    assert rig.take(512, width) == disk.data[9 * 512 : 10 * 512] and rig.inb(STATUS) == DRDY | DSC
    rig.command(0x30, 1, 9)
    rig.give(bytes(range(256)) * 2, width)
    assert rig.inb(STATUS) == DRDY | DSC and disk.data[9 * 512 : 10 * 512] == bytes(range(256)) * 2


def test_an_access_over_the_end_of_a_block() -> None:
    rig, disk, _ = disk_rig()
    rig.command(0x20, 1, 9)
    rig.take(510)
    assert rig.channel.read(DATA, 4) == int.from_bytes(disk.data[10 * 512 - 2 : 10 * 512], "little")
    assert rig.inb(STATUS) == DRDY | DSC and rig.channel.read(DATA, 2) == 0
    rig.command(0x30, 1, 9)
    rig.give(bytes(510))
    rig.channel.write(DATA, 4, 0x44332211)
    assert rig.inb(STATUS) == DRDY | DSC and disk.data[10 * 512 - 2 : 10 * 512 + 2] == b"\x11\x22\x0a\0"


def test_bulk_access_stops_at_each_block() -> None:
    rig, disk, _ = disk_rig()
    rig.command(0x20, 2, 3)
    first = rig.channel.read_many(DATA, 2, 512)
    assert first == disk.data[3 * 512 : 4 * 512] and rig.line.level and rig.inb(STATUS) & DRQ
    assert rig.channel.read_many(DATA, 4, 10) == disk.data[4 * 512 : 4 * 512 + 40]
    assert rig.channel.read_many(DATA, 4, 1000) == disk.data[4 * 512 + 40 : 5 * 512]
    assert rig.inb(STATUS) == DRDY | DSC and rig.channel.read_many(DATA, 2, 5) == bytes(2)
    pattern = os.urandom(1024)
    rig.command(0x30, 2, 3)
    assert rig.channel.write_many(DATA, 2, pattern) == 256
    assert rig.channel.write_many(DATA, 4, memoryview(pattern)[512:]) == 128
    assert rig.inb(STATUS) == DRDY | DSC and disk.data[3 * 512 : 5 * 512] == pattern
    assert rig.channel.write_many(DATA, 2, pattern) == 1
    assert rig.channel.read_many(STATUS, 1, 3) == bytes([DRDY | DSC])
    assert rig.channel.write_many(LOW, 1, b"\x12\x34") == 1 and rig.inb(LOW) == 0x12
