"""A guest that writes anything: no exception, no endless work, nothing outside of the disk and the guest's memory."""

from __future__ import annotations

import errno
import random
import struct

import pytest

from ringfence.devices.ata_drive import AtaDrive
from ringfence.devices.atapi_drive import AtapiDrive
from ringfence.devices.ide_drive import MAX_BLOCK_BYTES
from tests.unit.devices.ide_driver import BUFFER, DATA, DEVICE, STATUS, TABLE, Rig
from tests.unit.virtio.driver import RAM_BYTES, Disk, Posted

COMMANDS = (
    *(0x20, 0x24, 0x25, 0x29, 0x30, 0x34, 0x35, 0x39, 0x3D, 0x40, 0x42, 0x70, 0x90, 0x91, 0xA0, 0xA1, 0xB0, 0xC4, 0xC5),
    *(0xC6, 0xC8, 0xCA, 0xCE, 0xE4, 0xE7, 0xE8, 0xEC, 0xEF, 0x08, 0x10, 0x27, 0xF8, 0xE5),
)
PACKETS = (
    *(0x00, 0x03, 0x12, 0x1A, 0x1B, 0x1E, 0x25, 0x28, 0x2B, 0x42, 0x43, 0x46, 0x4A, 0x51, 0x52, 0x5A, 0xA8, 0xBB, 0xBD, 0xBE),
    0xFF,
)


class CheckedDisk(Disk):
    """Counts, and refuses what a Block must not be asked for."""

    moved = 0

    def read(self, offset: int, buffer: memoryview) -> None:
        assert offset >= 0 and offset % 512 == 0 and offset + len(buffer) <= self.size_bytes
        self.moved += len(buffer)
        super().read(offset, buffer)

    def write(self, offset: int, data: memoryview) -> None:
        assert not self.readonly and offset >= 0 and offset % 512 == len(data) % 512 == 0 and offset + len(data) <= self.size_bytes
        self.moved += len(data)
        super().write(offset, data)


def attack(rig: Rig, rng: random.Random, drives: tuple[AtaDrive, AtapiDrive], discs: tuple[Disk | None, ...]) -> None:
    """One thing that a guest may do."""
    what = rng.randrange(12)
    if what < 3:
        rig.outb(rng.choice((1, 2, 3, 4, 5, 6)), rng.choice((0, 1, 2, 16, 0xFF, rng.getrandbits(8))))
    elif what == 3:
        rig.outb(DEVICE, rng.choice((0xE0, 0xF0, 0xA0, 0xB0, rng.getrandbits(8))))
    elif what == 4:
        rig.outb(STATUS, rng.choice(COMMANDS) if rng.random() < 0.9 else rng.getrandbits(8))
    elif what == 5:
        size = rng.choice((1, 2, 4, 8))
        for _ in range(rng.choice((1, 6, 300))):
            assert 0 <= rig.channel.read(DATA, size) < 1 << 8 * size
    elif what == 6:
        size = rng.choice((1, 2, 4, 8))
        for _ in range(rng.choice((1, 6, 300))):
            rig.channel.write(DATA, size, rng.getrandbits(8 * size))
    elif what == 7:
        size, count = rng.choice((1, 2, 4)), rng.choice((1, 3, 256, 100_000))
        got = rig.channel.read_many(rng.choice((DATA, DATA, STATUS)), size, count)
        assert size <= len(got) <= min(size * count, MAX_BLOCK_BYTES) and len(got) % size == 0
        assert 1 <= rig.channel.write_many(DATA, size, rng.randbytes(size * min(count, 4096))) <= count
    elif what == 8:
        rig.control(rng.choice((0, 0, 0, 2, 4, 0x80)))
    elif what == 9:
        random_table(rig, rng)
        rig.bm_out(rng.choice((0, 0, 0, 2, 4, 5, 7)), rng.choice((0, 1, 9, 0xFF, rng.getrandbits(8))))
        if rng.random() < 0.7:
            rig.start(rng.random() < 0.5, rng.choice((TABLE, TABLE, TABLE, RAM_BYTES - 8, 0xFFFF_FFF8, rng.getrandbits(32))))
    elif what == 10:
        rig.control(0)
        rig.outb(DEVICE, 0xB0)
        for register, value in ((1, rng.randrange(2)), (4, rng.getrandbits(8)), (5, rng.choice((0, 1, 8, 0xFF)))):
            rig.outb(register, value)
        rig.outb(STATUS, 0xA0)
        packet = bytes([rng.choice(PACKETS)]) + rng.randbytes(11)
        if rng.random() < 0.5:
            packet = struct.pack(">BBIBHBBB", packet[0], 0, rng.randrange(300), 0, rng.randrange(200), rng.choice((0x10, 0xF8, 8)), 0, 0)
        rig.channel.write_many(DATA, 2, packet)
    elif rng.random() < 0.2:
        drives[1].change_medium(rng.choice(discs))
    elif rng.random() < 0.2:
        rig.channel.reset()


def random_table(rig: Rig, rng: random.Random) -> None:
    for k in range(rng.choice((1, 3, 20))):
        addr = rng.choice((BUFFER, TABLE, RAM_BYTES - 512, 0xFFFF_FFFF, rng.randrange(RAM_BYTES), rng.getrandbits(32)))
        count = rng.choice((0, 1, 2, 512, 513, 4096, 0xFFFE, rng.getrandbits(16))) | (0x80000000 if rng.random() < 0.2 else 0)
        rig.memory.write(TABLE + 8 * k, struct.pack("<II", addr, count))


@pytest.mark.parametrize("seed", range(6))
def test_anything(seed: int) -> None:
    rng = random.Random(seed)
    posted = Posted()
    disk, disc = CheckedDisk(1 << 20, readonly=seed == 5), CheckedDisk(300 * 2048, readonly=True)
    discs = disc, CheckedDisk(512, readonly=True), CheckedDisk(0, readonly=True), None
    drives = AtaDrive(disk, posted), AtapiDrive(disc, posted)
    rig = Rig(*drives)
    for _ in range(1500):
        if rng.random() < 0.02:
            for each in (disk, disc):
                each.error = rng.choice((None, None, OSError(errno.EIO, "no")))
        before = disk.moved + disc.moved
        attack(rig, rng, drives, discs)
        # What one register access can set off: a command's worth (READ VERIFY EXT is bound by the disk).
        assert disk.moved + disc.moved - before <= 4 << 20
        assert len(drives[0]._data) <= MAX_BLOCK_BYTES and len(drives[1]._data) <= MAX_BLOCK_BYTES
        if rng.random() < 0.05:
            posted.run_all()
        if rng.random() < 0.02:
            rig.channel.load(rig.channel.save())
    rig.channel.pause()
    rig.channel.reset()
    rig.channel.resume()
    # After a reset both work as if nothing had been.
    for each in (disk, disc):
        each.error = None
    rig.bm_out(0, 0)
    drives[1].change_medium(None)
    drives[1].change_medium(disc)
    rig.command(0x20, 1, 9)
    assert rig.read_pio(1) == disk.data[9 * 512 : 10 * 512]
    rig.packet([0x12, 0, 0, 0, 36], device=1)
    assert len(rig.reply()) == 36
    rig.channel.pause()


def test_empty_media() -> None:
    """A disk and a disc of no bytes at all."""
    posted = Posted()
    rig = Rig(AtaDrive(Disk(0), posted), AtapiDrive(Disk(0), posted))
    rig.command(0xEC)
    assert len(rig.read_pio(1)) == 512
    for command in (0x20, 0x30, 0xC8, 0x40, 0x70):
        rig.command(command, 1, 0)
        assert rig.inb(STATUS) & 1
    rig.command(0xF8)
    assert rig.inb(STATUS) & 0x80 == 0
    rig.packet([0x25], device=1)
    assert rig.reply() == struct.pack(">II", 0, 2048)
    for packet in ([0x43, 0, 0, 0, 0, 0, 0, 0, 99], [0x51, 0, 0, 0, 0, 0, 0, 0, 99]):
        rig.packet(packet, device=1)
        assert rig.reply()
    rig.packet([0x28, 0, 0, 0, 0, 0, 0, 0, 1], device=1)
    assert rig.sense(device=1) == (5, 0x21, 0)


def test_resets_in_the_midst_of_slow_work_leave_no_pile_of_jobs() -> None:
    posted = Posted()
    disk = Disk(8 << 20)
    drive = AtaDrive(disk, posted)
    rig = Rig(drive)
    rig.prd(*[(BUFFER, 0)] * 100)
    for _ in range(50):
        rig.command48(0x25, 8192, 0)
        rig.start()
        rig.control(4)
        assert not drive.busy
        rig.control(0)
        rig.command(0xE7)
        rig.outb(STATUS, 0xE7)
        rig.control(4)
        rig.control(0)
    assert disk.calls.count("flush") == 50
