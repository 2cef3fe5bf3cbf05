"""The guest's side of IDE, as small as it goes: a channel with its registers, written as a driver of the time would use them."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from ringfence.bus.irq import IrqLine
from ringfence.devices.ata_drive import AtaDrive
from ringfence.devices.atapi_drive import AtapiDrive
from ringfence.devices.ide_busmaster import BusMaster
from ringfence.devices.ide_channel import IdeChannel
from ringfence.devices.ide_drive import IdeDrive
from ringfence.memory.guest_memory import GuestMemory
from tests.unit.virtio.driver import Disk, Posted, make_memory

DATA, ERROR, COUNT, LOW, MID, HIGH, DEVICE, STATUS = range(8)
BSY, DRDY, DF, DSC, DRQ, ERR = 0x80, 0x40, 0x20, 0x10, 0x08, 0x01
SRST, NIEN, HOB = 4, 2, 0x80
TABLE, BUFFER = 0x8000, 0x100000  # guest memory
START, TO_MEMORY = 1, 8
END = 0x80000000


def numbered(sectors: int, sector_bytes: int = 512) -> bytearray:
    """Every sector tells its number, and differs from the next in each byte."""
    return bytearray(
        b"".join((struct.pack("<I", k) + bytes([k * 37 & 0xFF])).ljust(sector_bytes, bytes([k & 0xFF])) for k in range(sectors))
    )


def make_disk(sectors: int = 4096, readonly: bool = False) -> Disk:
    disk = Disk(sectors * 512, readonly)
    disk.data[:] = numbered(sectors)
    return disk


def make_disc(sectors: int = 1000) -> Disk:
    disc = Disk(sectors * 2048, readonly=True)
    disc.data[:] = numbered(sectors, 2048)
    return disc


class Rig:
    """A channel with master and slave over disks (readonly ones with 2048-byte sectors become CD-ROM drives)."""

    def __init__(self, master: IdeDrive | None = None, slave: IdeDrive | None = None, bus_master: bool = True) -> None:
        self.memory: GuestMemory = make_memory()
        self.edges = 0
        self.line = IrqLine("irq14", self._irq)
        self.bm = BusMaster(self.memory) if bus_master else None
        self.channel = IdeChannel(self.line.pin(), (master, slave), self.bm)

    def _irq(self, level: bool) -> None:
        self.edges += level

    # registers
    def inb(self, register: int) -> int:
        return self.channel.read(register, 1)

    def outb(self, register: int, value: int) -> None:
        self.channel.write(register, 1, value)

    def control(self, value: int) -> None:
        self.channel.control.write(0, 1, value)

    @property
    def alt(self) -> int:
        return self.channel.control.read(0, 1)

    # commands
    def command(self, command: int, count: int = 0, lba: int = 0, device: int = 0, feature: int = 0) -> None:
        """LBA28; `device` 0 or 1."""
        self.outb(DEVICE, 0xE0 | device << 4 | lba >> 24 & 15)
        self.outb(ERROR, feature)
        self.outb(COUNT, count & 0xFF)
        for k in range(3):
            self.outb(LOW + k, lba >> 8 * k & 0xFF)
        self.outb(STATUS, command)

    def command48(self, command: int, count: int, lba: int, device: int = 0) -> None:
        self.outb(DEVICE, 0xE0 | device << 4)
        for byte in (1, 0):
            self.outb(COUNT, count >> 8 * byte & 0xFF)
            for k in range(3):
                self.outb(LOW + k, lba >> 8 * (k + 3 * byte) & 0xFF)
        self.outb(STATUS, command)

    def chs(self, command: int, count: int, cylinder: int, head: int, sector: int, device: int = 0) -> None:
        self.outb(DEVICE, 0xA0 | device << 4 | head)
        for register, value in ((COUNT, count), (LOW, sector), (MID, cylinder & 0xFF), (HIGH, cylinder >> 8)):
            self.outb(register, value)
        self.outb(STATUS, command)

    @property
    def lba(self) -> int:
        return self.inb(LOW) | self.inb(MID) << 8 | self.inb(HIGH) << 16 | (self.inb(DEVICE) & 15) << 24

    # PIO data
    def take(self, size_bytes: int, width: int = 2) -> bytes:
        return b"".join(self.channel.read(DATA, width).to_bytes(width, "little") for _ in range(size_bytes // width))

    def give(self, data: bytes, width: int = 2) -> None:
        for k in range(0, len(data), width):
            self.channel.write(DATA, width, int.from_bytes(data[k : k + width], "little"))

    def read_pio(self, blocks: int, block_bytes: int = 512) -> bytes:
        """Interrupt-driven: one interrupt before each block, none after the last."""
        data = b""
        for _ in range(blocks):
            assert self.line.level and self.alt & (BSY | DRQ | ERR) == DRQ
            assert self.inb(STATUS) & DRQ and not self.line.level
            data += self.take(block_bytes)
        assert not self.line.level and self.inb(STATUS) == DRDY | DSC
        return data

    def write_pio(self, data: bytes, block_bytes: int = 512) -> None:
        """No interrupt before the first block, one after each."""
        assert not self.line.level
        for start in range(0, len(data), block_bytes):
            assert self.inb(STATUS) & (BSY | DRQ | ERR) == DRQ
            self.give(data[start : start + block_bytes])
            assert self.line.level
        assert self.inb(STATUS) == DRDY | DSC and not self.line.level

    # bus master
    def prd(self, *entries: tuple[int, int]) -> None:
        """A table of (address, count as in the table); the last entry gets the end mark."""
        for k, (addr, count) in enumerate(entries):
            self.memory.write(TABLE + 8 * k, struct.pack("<II", addr, count | (END if k == len(entries) - 1 else 0)))

    def bm_out(self, port: int, value: int, size: int = 1) -> None:
        assert self.bm is not None
        self.bm.ports.write(port, size, value)

    def start(self, to_memory: bool = True, table: int = TABLE) -> None:
        self.bm_out(0, 0)
        self.bm_out(4, table, 4)
        self.bm_out(2, 6)
        self.bm_out(0, START | (TO_MEMORY if to_memory else 0))

    @property
    def bm_status(self) -> int:
        assert self.bm is not None
        return self.bm.ports.read(2, 1)

    # packets
    def packet(self, packet: Sequence[int], limit: int = 0xFFFE, dma: bool = False, device: int = 0) -> None:
        self.outb(DEVICE, 0xA0 | device << 4)
        self.outb(ERROR, int(dma))
        self.outb(MID, limit & 0xFF)
        self.outb(HIGH, limit >> 8)
        self.outb(STATUS, 0xA0)
        assert self.alt & (BSY | DRQ | ERR) == DRQ and self.inb(COUNT) & 3 == 1 and not self.line.level
        self.give(bytes(packet).ljust(12, b"\0"))

    def reply(self) -> bytes:
        """Takes a command's data, block by block as announced, until its status; asserts that it succeeded."""
        data = b""
        while True:
            assert self.line.level
            status = self.inb(STATUS)
            assert not status & BSY and not self.line.level
            if not status & DRQ:
                break
            assert self.inb(COUNT) & 3 == 2
            size = self.inb(MID) | self.inb(HIGH) << 8
            assert size
            data += self.take(size + 1 & ~1)[:size]
        assert status == DRDY | DSC and self.inb(COUNT) & 3 == 3, (status, self.inb(ERROR))
        return data

    def sense(self, device: int = 0) -> tuple[int, int, int]:
        """After a failed command: (key, code, qualifier) as REQUEST SENSE tells."""
        assert self.line.level and self.inb(STATUS) == DRDY | ERR
        key = self.inb(ERROR) >> 4
        self.packet([3, 0, 0, 0, 18], device=device)
        found = self.reply()
        assert len(found) == 18 and found[0] == 0x70 and found[2] == key
        return found[2], found[12], found[13]


def disk_rig(disk: Disk | None = None, **how: object) -> tuple[Rig, Disk, Posted]:
    disk = disk or make_disk()
    posted = Posted()
    return Rig(AtaDrive(disk, posted, **how), bus_master=how.get("dma", True) is True), disk, posted  # type: ignore[arg-type]


def cd_rig(disc: Disk | None = None, **how: object) -> tuple[Rig, Disk, AtapiDrive, Posted]:
    disc = disc or make_disc()
    posted = Posted()
    drive = AtapiDrive(disc, posted, **how)  # type: ignore[arg-type]
    return Rig(drive), disc, drive, posted
