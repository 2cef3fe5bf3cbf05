"""The CD-ROM drive: packets over PIO and DMA, as boot firmware and operating systems send them."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from ringfence.devices.atapi_drive import AtapiDrive
from ringfence.devices.cd_data import MAX_CD_SECTORS
from tests.unit.devices.ide_driver import (
    BSY,
    BUFFER,
    COUNT,
    DEVICE,
    DRDY,
    DRQ,
    DSC,
    ERR,
    ERROR,
    HIGH,
    LOW,
    MID,
    SRST,
    STATUS,
    Rig,
    cd_rig,
    make_disc,
)
from tests.unit.virtio.driver import Disk, Posted

ACTIVE, FAILED, INTERRUPT = 1, 2, 4
NOT_READY, NOT_READY_OPEN, CHANGED = (2, 0x3A, 1), (2, 0x3A, 2), (6, 0x28, 0)
INVALID_FIELD, INVALID_OPCODE, BEYOND = (5, 0x24, 0), (5, 0x20, 0), (5, 0x21, 0)


def do(rig: Rig, *packet: int, limit: int = 0xFFFE) -> bytes:
    rig.packet(packet, limit)
    return rig.reply()


def refused(rig: Rig, *packet: int) -> tuple[int, int, int]:
    rig.packet(packet)
    return rig.sense()


def read_10(lba: int, count: int) -> bytes:
    return struct.pack(">BBIBHB2x", 0x28, 0, lba, 0, count, 0)


def allocation(opcode: int, *rest: int, size: int = 0xFFFF) -> list[int]:
    """A packet with its allocation length in bytes 7 and 8."""
    return [opcode, *rest, *[0] * (6 - len(rest)), size >> 8, size & 0xFF]


# -- ATA commands -----------------------------------------------------------------------------------------------------


def test_no_disk() -> None:
    rig, _, _, _ = cd_rig()
    for command in (0xEC, 0x20):
        rig.outb(MID, 0)
        rig.outb(STATUS, command)
        assert rig.line.level and rig.inb(STATUS) & ERR and rig.inb(ERROR) == 4
        assert [rig.inb(r) for r in (COUNT, LOW, MID, HIGH)] == [1, 1, 0x14, 0xEB]
    rig.outb(STATUS, 0xC8)
    assert rig.inb(STATUS) & ERR


def test_identify_packet_device() -> None:
    rig, _, _, _ = cd_rig(serial="S1", model="Drive")
    rig.command(0xEF, 0x42, feature=3)
    assert rig.inb(STATUS) == DRDY | DSC
    rig.outb(STATUS, 0xA1)
    block = struct.unpack("<256H", rig.read_pio(1))
    assert block[0] == 0x85C0 and block[49] & 0x300 == 0x300 and block[88] == 0x043F
    assert struct.pack(">20H", *block[27:47]) == b"Drive".ljust(40)
    rig = Rig(AtapiDrive(make_disc(), Posted(), dma=False), bus_master=False)
    rig.outb(STATUS, 0xA1)
    assert struct.unpack("<256H", rig.read_pio(1))[49] & 0x300 == 0x200
    rig.outb(ERROR, 1)
    rig.outb(STATUS, 0xA0)
    assert rig.inb(STATUS) & ERR and rig.inb(ERROR) == 4


def test_device_reset_works_while_busy_and_without_interrupt() -> None:
    rig, _, _, _ = cd_rig()
    rig.packet(read_10(0, 4), 2048)
    rig.take(100)
    rig.inb(STATUS)
    rig.outb(STATUS, 0x08)
    assert rig.alt == 0 and not rig.line.level
    assert [rig.inb(r) for r in (COUNT, LOW, MID, HIGH, ERROR)] == [1, 1, 0x14, 0xEB, 1]
    assert do(rig, 0) == b""


# -- reading ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [2048, 0x8000, 0xFFFE, 0xFFFF, 512, 2047, 7, 1])
def test_read_with_any_byte_count_limit(limit: int) -> None:
    rig, disc, _, _ = cd_rig()
    assert do(rig, *read_10(16, 5), limit=limit) == disc.data[16 * 2048 : 21 * 2048]


def test_boot_sectors_as_firmware_reads_them() -> None:
    """One sector at a time, polled with interrupts off: the volume descriptor, the catalogue, the boot image."""
    rig, disc, _, _ = cd_rig()
    disc.data[17 * 2048 : 17 * 2048 + 30] = b"\0CD001\1EL TORITO SPECIFICATION".ljust(30)[:30]
    rig.control(2)
    assert do_polled(rig, [0x12, 0, 0, 0, 36])[:2] == b"\x05\x80"
    assert do_polled(rig, [0x00]) == b""
    assert do_polled(rig, [0x25]) == struct.pack(">II", 999, 2048)
    for lba in (17, 30, 31, 999):
        assert do_polled(rig, list(struct.pack(">BBII2x", 0xA8, 0, lba, 1))) == disc.data[lba * 2048 : lba * 2048 + 2048]
    assert rig.edges == 0


def do_polled(rig: Rig, packet: list[int]) -> bytes:
    rig.packet(packet, 2048)
    data = b""
    while rig.alt & DRQ:
        size = rig.inb(MID) | rig.inb(HIGH) << 8
        data += rig.take(size)
    assert rig.inb(STATUS) == DRDY | DSC
    return data


def test_a_byte_count_limit_of_zero_is_refused_where_there_is_data() -> None:
    rig, _, _, _ = cd_rig()
    rig.packet([0x25], 0)
    assert rig.line.level and rig.inb(STATUS) & (ERR | DRQ) == ERR and rig.inb(ERROR) == 4
    assert do(rig, 0, limit=0) == b""


def test_read_by_dma() -> None:
    rig, disc, _, _ = cd_rig()
    rig.prd((BUFFER, 2048), (BUFFER + 0x4000, 4096 - 512), (BUFFER + 0x8000, 512))
    for start_first in (False, True):
        if start_first:
            rig.start()
        rig.packet(read_10(50, 3), dma=True)
        if not start_first:
            assert rig.alt & DRQ
            rig.start()
        assert rig.line.level and rig.bm_status == INTERRUPT
        assert rig.inb(STATUS) == DRDY | DSC and rig.inb(COUNT) & 3 == 3
        got = rig.memory.read(BUFFER, 2048) + rig.memory.read(BUFFER + 0x4000, 3584) + rig.memory.read(BUFFER + 0x8000, 512)
        assert got == disc.data[50 * 2048 : 53 * 2048]
        rig.memory.write(BUFFER, bytes(0x10000))
        rig.bm_out(0, 0)


def test_replies_by_dma() -> None:
    rig, _, _, _ = cd_rig()
    rig.prd((BUFFER, 4), (BUFFER + 0x1000, 100))
    rig.packet([0x25], dma=True)
    rig.start()
    assert rig.bm_status == INTERRUPT | ACTIVE and rig.inb(STATUS) == DRDY | DSC
    assert rig.memory.read(BUFFER, 4) + rig.memory.read(BUFFER + 0x1000, 5) == struct.pack(">IIx", 999, 2048)
    rig.bm_out(0, 0)
    rig.prd((BUFFER, 6))
    rig.packet([0x25], dma=True)
    rig.start()
    assert rig.bm_status == 0 and rig.alt & DRQ and not rig.line.level  # two bytes are still to be fetched
    rig.prd((BUFFER + 6, 2))
    rig.start()
    assert rig.bm_status == INTERRUPT and rig.memory.read(BUFFER, 8) == struct.pack(">II", 999, 2048)


def test_dma_into_nowhere() -> None:
    rig, _, _, _ = cd_rig()
    for packet in (read_10(0, 1), bytes([0x25])):
        rig.prd((0x7000_0000, 2048))
        rig.packet(packet, dma=True)
        rig.start()
        assert rig.bm_status == FAILED and not rig.line.level and rig.alt & (BSY | DRQ) == DRQ
        rig.control(SRST)
        rig.control(0)


def test_a_large_read_goes_through_the_worker() -> None:
    rig, disc, _, posted = cd_rig()
    rig.prd(*((BUFFER + (k % 4 << 16), 0) for k in range(20)))
    rig.packet(read_10(100, 640), dma=True)
    disc.gate.clear()
    rig.start()
    assert rig.alt == BSY
    disc.gate.set()
    posted.run_one()
    posted.run_all()
    assert rig.line.level and rig.inb(STATUS) == DRDY | DSC
    assert rig.memory.read(BUFFER + 0x30000, 0x10000) == disc.data[100 * 2048 + 19 * 0x10000 :][:0x10000]
    rig.channel.pause()


def test_errors_of_reading() -> None:
    rig, disc, _, _ = cd_rig()
    assert refused(rig, *read_10(999, 2)) == BEYOND
    assert refused(rig, *struct.pack(">BBII2x", 0xA8, 0, 0xFFFF_FFFF, 0xFFFF_FFFF)) == BEYOND
    assert refused(rig, 0x2B, 0, 0, 0, 0xFF, 0xFF) == BEYOND
    assert do(rig, *read_10(5, 0)) == b"" and do(rig, 0x2B) == b""
    disc.error = OSError(errno.EIO, "scratch")
    assert refused(rig, *read_10(5, 1)) == (3, 0x11, 0)
    rig.prd((BUFFER, 2048))
    rig.packet(read_10(5, 1), dma=True)
    rig.start()
    assert rig.sense() == (3, 0x11, 0)


def test_an_image_that_ends_within_a_sector() -> None:
    disc = Disk(2048 * 3 + 512, readonly=True)
    disc.data[:] = os.urandom(disc.size_bytes)
    rig, _, _, _ = cd_rig(disc)
    assert do(rig, 0x25) == struct.pack(">II", 3, 2048)
    assert do(rig, *read_10(2, 2)) == disc.data[4096:] + bytes(1536)


def test_read_cd() -> None:
    rig, disc, _, _ = cd_rig()

    def read(parts: int, count: int = 2) -> bytes:
        return do(rig, *struct.pack(">BBIBHBBx", 0xBE, 0, 20, 0, count, parts, 0), limit=0x9300)

    user = disc.data[20 * 2048 : 22 * 2048]
    assert read(0x10) == user and read(0) == b"" and read(0x40) == b""
    raw = read(0xF8)
    assert len(raw) == 2 * 2352
    assert raw[:16] == b"\0" + b"\xff" * 10 + b"\0" + b"\x00\x02\x20\x01" and raw[16:2064] == user[:2048]
    assert raw[2352 + 12 : 2352 + 16] == b"\x00\x02\x21\x01" and raw[2352 + 16 : 2352 + 2064] == user[2048:]
    assert read(0x20) == b"\x00\x02\x20\x01\x00\x02\x21\x01"
    assert refused(rig, 0xBE, 1 << 2, 0, 0, 0, 0, 0, 0, 1, 0x10) == INVALID_FIELD  # audio
    assert refused(rig, 0xBE, 0, 0, 0, 0, 0, 0, 0, 1, 0x10, 1) == INVALID_FIELD  # sub-channels
    assert refused(rig, 0xBE, 0, 0, 0, 4, 0, 0, 0, 1, 0) == BEYOND


# -- what the drive tells ------------------------------------------------------------------------------------------------


def test_inquiry_is_cut_to_its_allocation() -> None:
    rig, _, _, _ = cd_rig()
    full = do(rig, 0x12, 0, 0, 0, 96)
    assert len(full) == 36 and full[:5] == b"\x05\x80\x00\x21\x1f" and full[8:16] == b"RINGFNCE"
    assert do(rig, 0x12, 0, 0, 0, 5) == full[:5] and do(rig, 0x12) == b""
    assert refused(rig, 0x12, 1, 0x80, 0, 255) == INVALID_FIELD


def test_table_of_contents() -> None:
    rig, _, _, _ = cd_rig()
    lba = do(rig, *allocation(0x43))
    assert lba == struct.pack(">HBB", 18, 1, 1) + struct.pack(">BBBBI", 0, 0x14, 1, 0, 0) + struct.pack(">BBBBI", 0, 0x14, 0xAA, 0, 1000)
    assert do(rig, *allocation(0x43, 2))[8:12] == b"\0\0\2\0" and do(rig, *allocation(0x43, 2))[16:] == bytes((0, 0, 15, 25))
    assert do(rig, *allocation(0x43, 0, 0, 0, 0, 0, 0xAA)) == struct.pack(">HBB", 10, 1, 1) + lba[12:]
    assert do(rig, *allocation(0x43, size=4)) == lba[:4]
    assert do(rig, *allocation(0x43, 2, 1)) == struct.pack(">HBB", 10, 1, 1) + b"\0\x14\1\0" + b"\0\0\2\0"
    full = do(rig, *allocation(0x43, 2, 2))
    assert len(full) == 4 + 4 * 11 and [full[k] for k in range(7, 48, 11)] == [0xA0, 0xA1, 0xA2, 1]
    assert full[4 + 22 + 8 : 4 + 33] == bytes((0, 15, 25)) and full[-3:] == bytes((0, 2, 0))
    assert do(rig, 0x43, 2, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0x80) == full  # SFF-8020i puts the format here
    for bad in ((0, 0, 0, 0, 0, 2), (0, 3), (0, 5)):
        assert refused(rig, *allocation(0x43, *bad)) == INVALID_FIELD


def test_mode_sense() -> None:
    rig, _, _, _ = cd_rig()
    for page, size in ((0x01, 8), (0x0D, 8), (0x0E, 16), (0x2A, 20)):
        ten = do(rig, *allocation(0x5A, 0, page))
        assert ten[:3] == struct.pack(">HB", 6 + size, 1) and len(ten) == 8 + size and ten[8:10] == bytes((page, size - 2))
        six = do(rig, 0x1A, 0, page, 0, 255)
        assert six[:4] == bytes((3 + size, 1, 0, 0)) and six[4:] == ten[8:]
        changeable = do(rig, *allocation(0x5A, 0, page | 0x40))
        assert changeable[8:10] == ten[8:10] and not any(changeable[10:])
    assert len(do(rig, *allocation(0x5A, 0, 0x3F))) == 8 + 52
    assert refused(rig, *allocation(0x5A, 0, 0x05)) == INVALID_FIELD
    assert refused(rig, *allocation(0x5A, 0, 0xC1)) == (5, 0x39, 0)
    assert not do(rig, *allocation(0x5A, 0, 0x2A))[8 + 6] & 2
    do(rig, 0x1E, 0, 0, 0, 1)
    assert do(rig, *allocation(0x5A, 0, 0x2A))[8 + 6] & 2


def test_configuration() -> None:
    rig, _, drive, _ = cd_rig()

    def features(*rest: int) -> tuple[int, dict[int, bytes]]:
        data = do(rig, *allocation(0x46, *rest))
        length, profile = struct.unpack_from(">IxxH", data)
        assert length == len(data) - 4
        found, at = {}, 8
        while at < len(data):
            code, _, size = struct.unpack_from(">HBB", data, at)
            found[code] = data[at : at + 4 + size]
            at += 4 + size
        return profile, found

    profile, everything = features()
    assert profile == 8 and list(everything) == sorted(everything) and {0, 1, 3, 0x10, 0x1E} <= set(everything)
    assert features(0, 0, 0x1E)[1].keys() == {c for c in everything if c >= 0x1E}
    assert features(2, 0, 0x10)[1] == {0x10: everything[0x10]} and features(2, 0, 0x20)[1] == {}
    assert 0x1F not in features(1)[1] and 0x1E in features(1)[1]
    assert refused(rig, *allocation(0x46, 3)) == INVALID_FIELD
    drive.medium = Disk(0)
    drive.medium.size_bytes = (MAX_CD_SECTORS + 1) * 2048
    assert features()[0] == 0x10 and 0x1F in features(1)[1]
    drive.medium = None
    assert features()[0] == 0 and 0x10 not in features(1)[1]


def test_small_commands() -> None:
    rig, _, _, _ = cd_rig()
    assert do(rig, 0xBB) == b""
    assert do(rig, 0xBD, 0, 0, 0, 0, 0, 0, 0, 0, 8) == b"\0\0\0\0\0\1\0\0"
    disc_info = do(rig, *allocation(0x51))
    assert len(disc_info) == 34 and disc_info[:7] == struct.pack(">HBBBBB", 32, 0x0E, 1, 1, 1, 1)
    assert refused(rig, *allocation(0x51, 1)) == INVALID_FIELD
    for kind, number in ((0, 999), (1, 1), (2, 1)):
        track = do(rig, *allocation(0x52, kind, 0, 0, number >> 8, number & 0xFF))
        assert len(track) == 36 and track[2:4] == b"\1\1" and struct.unpack_from(">I", track, 24) == (1000,)
    assert refused(rig, *allocation(0x52, 1, 0, 0, 0, 2)) == refused(rig, *allocation(0x52, 0, 0, 0, 0x10, 0)) == INVALID_FIELD
    assert do(rig, *allocation(0x42, 2, 0x40, 1))[4:12] == b"\1\x14\1\1\0\0\2\0" and do(rig, *allocation(0x42)) == b"\0\x15\0\0"
    assert refused(rig, *allocation(0x42, 0, 0x40, 9)) == INVALID_FIELD
    for opcode in (0x2A, 0x55, 0xFF, 0x04):
        assert refused(rig, opcode) == INVALID_OPCODE


def test_sense_is_told_once() -> None:
    rig, _, _, _ = cd_rig()
    rig.packet([0xFF])
    assert rig.inb(STATUS) == DRDY | ERR and rig.inb(ERROR) == 0x54
    assert do(rig, 3, 0, 0, 0, 18)[2] == 5 and do(rig, 3, 0, 0, 0, 18)[2] == 0
    rig.packet([0xFF])
    rig.inb(STATUS)
    do(rig, 0)
    assert do(rig, 3, 0, 0, 0, 18)[2] == 0


# -- medium and tray -------------------------------------------------------------------------------------------------------


def event(rig: Rig) -> tuple[int, int]:
    data = do(rig, *allocation(0x4A, 1, 0, 0, 0x10))
    assert data[:4] == b"\0\6\4\x10"
    return data[4], data[5]


def test_a_changed_disc_is_seen_as_gone_and_then_as_new() -> None:
    rig, old, drive, _ = cd_rig()
    new = make_disc(20)
    assert drive.change_medium(new) is old
    assert do(rig, 0x12, 0, 0, 0, 36) and do(rig, 3, 0, 0, 0, 18)[2] == 0
    assert refused(rig, 0) == NOT_READY and refused(rig, 0) == CHANGED and do(rig, 0) == b""
    assert event(rig) == (2, 2) and event(rig) == (0, 2)
    assert do(rig, 0x25) == struct.pack(">II", 19, 2048)


def test_an_empty_drive() -> None:
    rig, old, drive, _ = cd_rig()
    assert drive.change_medium(None) is old
    for packet in ([0], list(read_10(0, 1)), [0x25], allocation(0x43), allocation(0x51)):
        assert refused(rig, *packet) == NOT_READY
    assert event(rig) == (3, 0) and do(rig, *allocation(0x5A, 0, 1))[2] == 0x70
    drive.change_medium(old)
    assert refused(rig, 0) == CHANGED and do(rig, 0) == b"" and event(rig) == (2, 2)


def test_a_disc_taken_out_while_it_is_read() -> None:
    rig, _, drive, _ = cd_rig()
    rig.packet(read_10(0, 4), 2048)
    rig.take(100)
    rig.inb(STATUS)
    drive.change_medium(None)
    assert rig.sense() == NOT_READY


def test_eject_and_lock() -> None:
    rig, _, drive, _ = cd_rig()
    do(rig, 0x1E, 0, 0, 0, 1)
    assert refused(rig, 0x1B, 0, 0, 0, 2) == (5, 0x53, 2) and drive.ready
    do(rig, 0x1E, 0, 0, 0, 0)
    assert do(rig, 0x1B, 0, 0, 0, 2) == b"" and not drive.ready
    assert refused(rig, 0) == NOT_READY_OPEN and event(rig) == (3, 3)
    assert do(rig, 0xBD, 0, 0, 0, 0, 0, 0, 0, 0, 8)[1] == 0x10 and do(rig, *allocation(0x5A, 0, 1))[2] == 0x71
    assert do(rig, 0x1B, 0, 0, 0, 3) == b"" and drive.ready
    assert refused(rig, 0) == CHANGED and do(rig, 0) == b""
    assert do(rig, 0x1B, 0, 0, 0, 1) == b"" and do(rig, 0x1B, 0, 0, 0, 0) == b"" and drive.ready


def test_event_status_is_polled() -> None:
    rig, _, _, _ = cd_rig()
    assert refused(rig, *allocation(0x4A, 0, 0, 0, 0x10)) == INVALID_FIELD
    assert do(rig, *allocation(0x4A, 1, 0, 0, 0x02)) == b"\0\2\x80\x10"


def test_a_reply_half_taken_goes_on_after_loading() -> None:
    rig, disc, _, _ = cd_rig()
    rig.packet(read_10(3, 40), 0x8000)
    first = rig.take(2100)
    saved = rig.channel.save()
    fresh, _, _, _ = cd_rig()
    fresh.channel.load(saved)
    fresh.inb(STATUS)
    rest = fresh.take(0x8000 - 2100)
    assert first + rest + fresh.reply() == disc.data[3 * 2048 : 43 * 2048]


def test_the_slave_is_told_apart() -> None:
    rig = Rig(None, AtapiDrive(make_disc(), Posted()))
    rig.packet([0x25], device=1)
    assert rig.reply() == struct.pack(">II", 999, 2048) and rig.inb(DEVICE) & 0x10
