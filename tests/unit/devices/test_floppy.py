"""82077AA: the commands as SeaBIOS, DOS and Linux give them, over DMA and without, on media of all kinds."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.bus.irq import IrqLine
from ringfence.core.clock import ManualClock
from ringfence.core.errors import UserError
from ringfence.core.units import KIB
from ringfence.devices.dma8237 import Dma8237
from ringfence.devices.floppy import Floppy
from ringfence.devices.floppy_media import FORMATS, STANDARD, DriveKind, geometry_of
from ringfence.memory.guest_memory import GuestMemory
from tests.unit.virtio.driver import Disk

BUFFER = 0x10000
TO_MEMORY, FROM_MEMORY = 0x46, 0x4A  # DMA modes as drivers write them: single mode, channel 2
READ, WRITE, FORMAT, READ_ID, VERIFY, READ_TRACK = 0xE6, 0xC5, 0x4D, 0x4A, 0xD6, 0x42
RATES = {DriveKind.K360: 2, DriveKind.M1_2: 0, DriveKind.M1_44: 0, DriveKind.M2_88: 3}


def floppy_image(size_bytes: int = STANDARD.size_bytes, readonly: bool = False) -> Disk:
    """Every sector tells its number."""
    disk = Disk(size_bytes)
    for sector in range(size_bytes // 512):
        disk.data[sector * 512 : sector * 512 + 512] = sector.to_bytes(2, "little") * 256
    disk.readonly = readonly
    return disk


class Rig:
    """The controller, its DMA channel and a driver for both."""

    def __init__(self, *media: Disk | None, kinds: tuple[DriveKind | None, ...] = (), start: bool = True) -> None:
        self.clock = ManualClock()
        self.memory = GuestMemory()
        self.memory.add_ram(0, 0x40000)
        self.dma = Dma8237(self.memory)
        self.edges = 0
        self.line = IrqLine("irq6", self._changed)
        self.floppy = Floppy(self.line.pin(), self.clock, self.dma.channel(2), media or (floppy_image(),), kinds)
        if start:
            self.start()

    def _changed(self, level: bool) -> None:
        self.edges += level

    def out(self, port: int, value: int) -> None:
        (self.floppy.port7 if port == 7 else self.floppy.ports).write(0 if port == 7 else port, 1, value)

    def into(self, port: int) -> int:
        return (self.floppy.port7 if port == 7 else self.floppy.ports).read(0 if port == 7 else port, 1)

    def start(self, rate: int = 0, non_dma: bool = False) -> None:
        self.out(2, 0x00)
        self.out(2, 0x1C)
        self.wait()
        for unit in range(4):
            assert self.command(0x08) == [0xC0 | unit, 0]
        self.command(0x03, 0xDF, 0x02 | non_dma)
        self.out(7, rate)
        self.recalibrate()

    def wait(self) -> None:
        """For the interrupt, which must not be there yet."""
        before = self.edges
        assert not self.line.level
        self.clock.advance(1_100_000)
        assert self.line.level and self.edges == before + 1

    def send(self, *data: int) -> None:
        for byte in data:
            assert self.into(4) & 0xC0 == 0x80, hex(self.into(4))
            self.out(5, byte)

    def result(self) -> list[int]:
        found = []
        while self.into(4) & 0xD0 == 0xD0:
            found.append(self.into(5))
        assert self.into(4) & 0xF0 == 0x80, hex(self.into(4))
        return found

    def command(self, *data: int) -> list[int]:
        self.send(*data)
        return self.result()

    def data_command(self, *data: int) -> list[int]:
        """A command with an execution phase."""
        self.send(*data)
        assert self.into(4) & 0xD0 == 0x10
        self.wait()
        found = self.result()
        assert len(found) == 7 and not self.line.level
        return found

    def seek(self, cylinder: int, unit: int = 0, head: int = 0) -> None:
        self.send(0x0F, head << 2 | unit, cylinder)
        assert self.into(4) & 0x0F == 1 << unit
        self.wait()
        assert self.command(0x08) == [0x20 | head << 2 | unit, cylinder]
        assert not self.line.level

    def recalibrate(self, unit: int = 0) -> None:
        self.send(0x07, unit)
        self.wait()
        assert self.command(0x08) == [0x20 | unit, 0]

    def program_dma(self, mode: int, size_bytes: int) -> None:
        for port, value in (
            (0x0A, 6), (0x0B, mode), (0x0C, 0), (4, BUFFER & 0xFF), (4, BUFFER >> 8 & 0xFF),
            (5, size_bytes - 1 & 0xFF), (5, size_bytes - 1 >> 8), (0x0A, 2),
        ):  # fmt: skip
            self.dma.low.write(port, 1, value)
        self.dma.pages.write(1, 1, BUFFER >> 16)

    def numbers(self, count: int) -> list[int]:
        """Which sectors arrived in memory."""
        return [self.memory.read_uint(BUFFER + 512 * k, 2) for k in range(count)]


def test_a_reset_interrupts_once_and_has_four_statuses() -> None:
    rig = Rig(start=False)
    assert rig.into(2) == 0 and rig.into(4) == 0  # held in reset since power-on
    rig.out(2, 0x0C)
    rig.wait()
    for unit in range(4):
        assert rig.command(0x08) == [0xC0 | unit, 0]
        assert not rig.line.level
    assert rig.command(0x08) == [0x80]
    rig.out(4, 0x80)  # the other kind of reset
    assert rig.into(4) == 0
    rig.wait()
    assert rig.command(0x08) == [0xC0, 0]


def test_the_interrupt_is_gated_by_the_dor() -> None:
    rig = Rig(start=False)
    rig.out(2, 0x04)
    rig.clock.advance(10**6)
    assert not rig.line.level and rig.into(4) == 0x80
    rig.out(2, 0x0C)
    assert rig.line.level
    rig.out(2, 0x08)
    assert not rig.line.level and rig.into(2) == 0x08


def test_what_it_says_of_itself() -> None:
    rig = Rig()
    assert rig.command(0x10) == [0x90]
    assert rig.command(0x18) == [0x80]  # PART ID: an 82077AA does not know it
    for invalid in (0x00, 0x01, 0x1F, 0x4F, 0x28, 0x2E, 0x33, 0x8E, 0xCD):
        assert rig.command(invalid) == [0x80]
    assert not rig.line.level
    assert rig.floppy.kinds == (DriveKind.M1_44, DriveKind.NONE)
    assert rig.into(0) == rig.into(1) == 0xFF
    rig.out(3, 2)
    assert rig.into(3) & 3 == 2


def test_configure_lock_perpendicular_dumpreg_and_what_a_reset_leaves() -> None:
    rig = Rig()
    assert rig.command(0x13, 0, 0x57, 0x20) == []
    assert rig.command(0x12, 0x80 | 0x14 | 0x03) == []
    assert rig.command(0x12, 0x3C | 0x01) == []  # without OW the drive bits stay
    assert rig.command(0x0E) == [0, 0, 0, 0, 0xDF, 0x02, 0, 0x15, 0x57, 0x20]
    assert rig.command(0x94) == [0x10]
    rig.out(4, 0x80)
    rig.wait()
    assert rig.command(0x0E)[7:] == [0x94, 0x07, 0x20]  # FIFO settings and drives stay, EIS, POLL, GAP and WGATE go
    assert rig.command(0x14) == [0x00]
    rig.out(4, 0x80)
    rig.clock.advance(10**6)
    assert rig.command(0x0E)[7:] == [0x14, 0x20, 0x00]


def test_one_sector_by_dma() -> None:
    rig = Rig()
    rig.seek(5)
    rig.program_dma(TO_MEMORY, 512)
    assert rig.data_command(READ, 0x04, 5, 1, 7, 2, 18, 0x1B, 0xFF) == [0x04, 0, 0, 5, 1, 8, 2]
    assert rig.numbers(2) == [5 * 36 + 18 + 6, 0]


def test_many_sectors_over_both_sides() -> None:
    rig = Rig()
    rig.seek(2)
    rig.program_dma(TO_MEMORY, 36 * 512)
    assert rig.data_command(READ, 0, 2, 0, 1, 2, 18, 0x1B, 0xFF) == [0x04, 0, 0, 3, 0, 1, 2]
    assert rig.numbers(36) == list(range(72, 108))
    rig.program_dma(TO_MEMORY, 18 * 512)
    assert rig.data_command(READ, 0, 2, 0, 1, 2, 18, 0x1B, 0xFF) == [0, 0, 0, 2, 1, 1, 2]  # ends between the sides
    rig.program_dma(TO_MEMORY, 36 * 512)
    # without multi-track the first side's end is the end
    assert rig.data_command(READ & 0x7F, 0, 2, 0, 17, 2, 18, 0x1B, 0xFF) == [0x40, 0x80, 0, 2, 0, 18, 2]
    assert rig.numbers(2) == [72 + 16, 72 + 17]


def test_the_count_may_end_within_a_sector() -> None:
    rig = Rig()
    rig.program_dma(TO_MEMORY, 700)
    assert rig.data_command(READ, 0, 0, 0, 1, 2, 18, 0x1B, 0xFF)[:3] == [0, 0, 0]
    assert rig.numbers(1) == [0] and rig.memory.read(BUFFER + 698, 4) == b"\x01\0\0\0"
    disk = floppy_image()
    rig = Rig(disk)
    rig.memory.write(BUFFER, b"w" * 1024)
    rig.program_dma(FROM_MEMORY, 700)
    assert rig.data_command(WRITE, 0, 0, 0, 3, 2, 18, 0x1B, 0xFF) == [0, 0, 0, 0, 0, 5, 2]
    assert disk.data[1024:2048] == b"w" * 700 + bytes(324)  # the rest of the sector is zeroes


def test_a_dma_channel_that_does_not_serve_is_an_overrun() -> None:
    rig = Rig()
    for mode in (FROM_MEMORY, TO_MEMORY):
        rig.program_dma(mode, 512)
        if mode == TO_MEMORY:
            rig.dma.low.write(0x0A, 1, 6)
        assert rig.data_command(READ, 0, 0, 0, 1, 2, 18, 0x1B, 0xFF)[:3] == [0x40, 0x10, 0]
    rig.program_dma(TO_MEMORY, 512)
    assert rig.data_command(WRITE, 0, 0, 0, 1, 2, 18, 0x1B, 0xFF)[:3] == [0x40, 0x10, 0]


def test_verify_mode_of_the_dma_controller_reads_to_nowhere() -> None:
    rig = Rig()
    rig.program_dma(0x42, 1024)
    assert rig.data_command(READ, 0, 0, 0, 2, 2, 18, 0x1B, 0xFF) == [0, 0, 0, 0, 0, 4, 2]
    assert rig.numbers(1) == [0]


def test_write_and_read_back_on_the_second_drive() -> None:
    first, second = floppy_image(), floppy_image(720 * KIB)
    rig = Rig(first, second)
    before = bytes(first.data)
    rig.out(2, 0x2D)
    rig.out(7, 2)
    rig.recalibrate(1)
    rig.seek(79, unit=1, head=1)
    rig.memory.write(BUFFER, b"AB" * 256 + b"CD" * 256)
    rig.program_dma(FROM_MEMORY, 1024)
    assert rig.data_command(WRITE, 0x05, 79, 1, 8, 2, 9, 0x1B, 0xFF) == [0x05, 0, 0, 80, 0, 1, 2]
    assert second.data[-1024:] == b"AB" * 256 + b"CD" * 256 and first.data == before


@pytest.mark.parametrize("command", [WRITE, 0xC9, FORMAT])
def test_write_protection(command: int) -> None:
    disk = floppy_image(readonly=True)
    rig = Rig(disk)
    rig.program_dma(FROM_MEMORY, 512)
    parameters = (0, 2, 18, 0x6C, 0xF6) if command == FORMAT else (0, 0, 0, 1, 2, 18, 0x1B, 0xFF)
    assert rig.data_command(command, *parameters)[:3] == [0x40, 0x02, 0]
    assert rig.command(0x04, 0) == [0x78]
    assert disk.data == floppy_image().data


def test_sense_drive_status() -> None:
    rig = Rig(floppy_image(), None)
    assert rig.command(0x04, 0x04) == [0x3C]
    rig.seek(3)
    assert rig.command(0x04, 0) == [0x28]
    assert rig.command(0x04, 1) == [0x39]
    assert rig.command(0x04, 2) == [0x2A]  # no drive: no track 0


def test_recalibrate_needs_track_0() -> None:
    rig = Rig()
    rig.send(0x07, 1)
    rig.wait()
    assert rig.command(0x08) == [0x71, 0]
    rig.seek(83)
    rig.send(0x07, 0)
    rig.wait()
    assert rig.command(0x08) == [0x70, 0]  # 79 steps were not enough
    rig.recalibrate()
    assert rig.command(0x04, 0) == [0x38]


def test_seeks_overlap_and_each_tells_its_end() -> None:
    rig = Rig(floppy_image(), floppy_image())
    rig.send(0x0F, 1, 10)
    rig.clock.advance(10)
    rig.send(0x0F, 0, 20)
    assert rig.into(4) == 0x83
    rig.clock.advance(10**6)
    assert rig.into(4) == 0x80
    assert rig.command(0x08) == [0x20, 20] and rig.line.level
    assert rig.command(0x08) == [0x21, 10] and not rig.line.level
    assert rig.command(0x08) == [0x80]


def test_relative_and_implied_seeks() -> None:
    rig = Rig()
    rig.send(0xCF, 0, 7)
    rig.wait()
    assert rig.command(0x08) == [0x20, 7]
    rig.send(0x8F, 0, 3)
    rig.wait()
    assert rig.command(0x08) == [0x20, 4]
    rig.program_dma(TO_MEMORY, 512)
    assert rig.data_command(READ, 0, 60, 0, 1, 2, 18, 0x1B, 0xFF)[:3] == [0x40, 0x04, 0x10]
    rig.command(0x13, 0, 0x47, 0)
    rig.program_dma(TO_MEMORY, 512)
    assert rig.data_command(READ, 0, 60, 0, 1, 2, 18, 0x1B, 0xFF)[:3] == [0, 0, 0]
    assert rig.numbers(1) == [60 * 36] and rig.command(0x0E)[0] == 60


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"cylinder": 1}, [0x40, 0x04, 0x10]),
        ({"head": 1}, [0x40, 0x04, 0]),
        ({"sector": 0}, [0x40, 0x04, 0]),
        ({"sector": 19, "eot": 40}, [0x40, 0x04, 0]),
        ({"code": 3}, [0x40, 0x04, 0]),
        ({"first": 0xA6}, [0x40, 0x01, 0]),  # FM
        ({"rate": 2}, [0x40, 0x01, 0]),
    ],
)
def test_sectors_that_are_not_there(change: dict[str, int], status: list[int]) -> None:
    rig = Rig()
    get = {"first": READ, "cylinder": 0, "head": 0, "sector": 1, "code": 2, "eot": 18, "rate": 0, **change}
    rig.out(7, get["rate"])
    rig.program_dma(TO_MEMORY, 512)
    asked = [get["cylinder"], get["head"], get["sector"], get["code"]]
    found = rig.data_command(get["first"], 0, *asked, get["eot"], 0x1B, 0xFF)
    assert found == [*status, *asked[:3], 2]


def test_read_id_tells_the_format() -> None:
    rig = Rig(floppy_image(1200 * KIB))
    rig.seek(9)
    met = {rig.data_command(READ_ID, 0x04)[5] for _ in range(20)}
    assert met == set(range(1, 16))
    assert rig.data_command(READ_ID, 0x04)[:5] == [0x04, 0, 0, 9, 1]
    rig.seek(83)  # nothing is recorded there
    assert rig.data_command(READ_ID, 0)[:2] == [0x40, 0x01]


def test_an_empty_drive_answers_at_all() -> None:
    rig = Rig(None)
    assert rig.data_command(READ_ID, 0)[:2] == [0x40, 0x01]
    assert rig.data_command(READ, 0, 0, 0, 1, 2, 18, 0x1B, 0xFF)[:2] == [0x40, 0x01]
    assert rig.data_command(FORMAT, 0, 2, 18, 0x6C, 0xF6)[:2] == [0x40, 0x01]


def test_the_disk_change_line() -> None:
    rig = Rig(floppy_image(), start=False)
    rig.out(2, 0x1C)
    rig.wait()
    assert rig.into(7) == 0x80  # since power-on
    for _ in range(4):
        rig.command(0x08)
    rig.recalibrate()
    assert rig.into(7) == 0x80  # the head did not step
    rig.seek(1)
    assert rig.into(7) == 0
    rig.floppy.change_medium(0, None)
    rig.seek(0)
    assert rig.into(7) == 0x80
    rig.floppy.change_medium(0, floppy_image(720 * KIB))
    assert rig.into(7) == 0x80
    rig.seek(1)
    assert rig.into(7) == 0
    rig.out(7, 2)
    assert rig.data_command(READ_ID, 0)[:4] == [0, 0, 0, 1]
    rig.out(2, 0x2D)
    assert rig.into(7) == 0  # no drive, no change
    with pytest.raises(ValueError, match="no floppy drive 1"):
        rig.floppy.change_medium(1, None)
    with pytest.raises(UserError):
        rig.floppy.change_medium(0, Disk(8 << 20))
    assert rig.data_command(READ_ID, 0)[:4] == [0, 0, 0, 1]


@pytest.mark.parametrize("size_bytes", sorted(FORMATS))
def test_every_medium_is_read_from_first_to_last_sector(size_bytes: int) -> None:
    geometry = geometry_of(size_bytes)
    assert geometry.size_bytes == size_bytes
    rig = Rig(floppy_image(size_bytes))
    kind = rig.floppy.kinds[0]
    rig.out(7, RATES[kind] if geometry.size_bytes > 830 * KIB else 2)
    last = geometry.cylinders - 1
    for cylinder in (0, last):
        rig.seek(cylinder)
        size = geometry.heads * geometry.sectors * 512
        rig.program_dma(TO_MEMORY, size)
        first = READ if geometry.heads == 2 else READ & 0x7F
        assert rig.data_command(first, 0, cylinder, 0, 1, 2, geometry.sectors, 0x1B, 0xFF)[1:3] == [0, 0]
        number = cylinder * geometry.heads * geometry.sectors
        assert rig.numbers(size // 512) == list(range(number, number + size // 512))
    assert rig.data_command(READ_ID, 4)[1] == (0 if geometry.heads == 2 else 1)


def test_a_48_tpi_medium_in_a_96_tpi_drive() -> None:
    rig = Rig(floppy_image(360 * KIB), kinds=(DriveKind.M1_2,))
    rig.seek(20)
    rig.out(7, 2)
    assert rig.data_command(READ_ID, 0)[:2] == [0x40, 1]
    rig.out(7, 1)  # 300 kbit/s: the drive turns faster
    assert rig.data_command(READ_ID, 0)[:4] == [0, 0, 0, 10]
    rig.seek(21)
    assert rig.data_command(READ_ID, 0)[:2] == [0x40, 1]


def test_images_of_other_sizes() -> None:
    disk = Disk(512)
    disk.data[:] = b"b" * 512
    rig = Rig(disk)
    rig.memory.write(BUFFER, b"q" * 1024)
    rig.program_dma(TO_MEMORY, 1024)
    assert rig.data_command(READ, 0, 0, 0, 1, 2, 18, 0x1B, 0xFF)[:3] == [0, 0, 0]
    assert rig.memory.read(BUFFER, 1024) == b"b" * 512 + bytes(512)
    rig.program_dma(FROM_MEMORY, 1024)
    assert rig.data_command(WRITE, 0, 0, 0, 1, 2, 18, 0x1B, 0xFF) == [0x40, 0x20, 0x20, 0, 0, 2, 2]
    assert Rig(Disk(2000 * KIB)).floppy.kinds[0] is DriveKind.M2_88
    with pytest.raises(UserError, match="no known format"):
        Rig(Disk(4 << 20))


def test_format_track() -> None:
    disk = floppy_image()
    rig = Rig(disk)
    rig.seek(4)
    ids = b"".join(bytes((4, 1, sector, 2)) for sector in range(1, 19))
    rig.memory.write(BUFFER, ids)
    rig.program_dma(FROM_MEMORY, len(ids))
    assert rig.data_command(FORMAT, 0x04, 2, 18, 0x6C, 0xF6)[:3] == [0x04, 0, 0]
    start = (4 * 36 + 18) * 512
    assert disk.data[start : start + 18 * 512] == b"\xf6" * 18 * 512
    untouched = floppy_image().data
    assert disk.data[:start] == untouched[:start] and disk.data[start + 18 * 512 :] == untouched[start + 18 * 512 :]
    rig.program_dma(FROM_MEMORY, len(ids))
    rig.out(7, 2)  # as a 720 KiB disk: the image cannot hold that
    assert rig.data_command(FORMAT, 0x04, 2, 9, 0x6C, 0xF6)[:3] == [0x54, 0, 0]


def test_verify() -> None:
    rig = Rig()
    assert rig.data_command(VERIFY, 0, 0, 0, 1, 2, 18, 0x1B, 0) == [4, 0, 0, 1, 0, 1, 2]  # to EOT of the second side
    assert rig.data_command(VERIFY, 0x80, 0, 0, 1, 2, 18, 0x1B, 5) == [0, 0, 0, 0, 0, 6, 2]  # five sectors
    assert rig.data_command(VERIFY & 0x7F, 0x80, 0, 0, 1, 2, 18, 0x1B, 30)[:2] == [0x40, 0x80]
    assert rig.data_command(VERIFY, 0, 0, 0, 1, 2, 30, 0x1B, 0)[:2] == [0x40, 0x04]


def test_read_track_ignores_ids_and_tells() -> None:
    rig = Rig()
    rig.program_dma(TO_MEMORY, 4 * 512)
    assert rig.data_command(READ_TRACK, 0, 0, 0, 1, 2, 18, 0x1B, 0xFF)[:3] == [0, 0, 0]
    assert rig.numbers(4) == [0, 1, 2, 3]
    rig.program_dma(TO_MEMORY, 36 * 512)
    assert rig.data_command(READ_TRACK, 0, 9, 0, 1, 2, 3, 0x1B, 0xFF)[:3] == [0x40, 0x84, 0]
    rig.program_dma(TO_MEMORY, 36 * 512)
    assert rig.data_command(READ_TRACK, 0, 0, 0, 1, 2, 99, 0x1B, 0xFF)[:3] == [0x40, 0x80, 0]
    assert rig.numbers(18) == list(range(18))


def test_deleted_data() -> None:
    rig = Rig()
    rig.program_dma(TO_MEMORY, 1024)
    assert rig.data_command(0xCC, 0, 0, 0, 2, 2, 18, 0x1B, 0xFF) == [0, 0, 0x40, 0, 0, 2, 2]
    assert rig.numbers(2) == [1, 0]
    assert rig.data_command(0xEC, 0, 0, 0, 1, 2, 18, 0x1B, 0xFF)[:3] == [0x44, 0x80, 0x40]  # all skipped
    rig.memory.write(BUFFER, b"d" * 512)
    rig.program_dma(FROM_MEMORY, 512)
    assert rig.data_command(0xC9, 0, 0, 0, 1, 2, 18, 0x1B, 0xFF)[:3] == [0, 0, 0]


@pytest.mark.parametrize(("command", "delta", "found"), [(0xD1, 0, 0x08), (0xD9, 1, 0), (0xDD, -1, 0), (0xD1, 1, 0x04)])
def test_scan(command: int, delta: int, found: int) -> None:
    disk = floppy_image()
    rig = Rig(disk)
    disk.data[:512] = bytes([100]) * 512
    rig.memory.write(BUFFER, bytes([100 + delta]) * 511 + b"\xff")
    rig.program_dma(FROM_MEMORY, 512)
    status = rig.data_command(command & 0x7F, 0, 0, 0, 1, 2, 1, 0x1B, 1)
    assert status[:3] == [0, 0, found]


def test_non_dma_read_and_write() -> None:
    disk = floppy_image()
    rig = Rig(disk)
    rig.command(0x03, 0xDF, 0x03)
    rig.send(READ & 0x7F, 0, 0, 0, 17, 2, 18, 0x1B, 0xFF)
    for number in (16, 17):
        assert rig.into(4) == 0x30
        rig.wait()
        assert rig.into(4) == 0xF0
        data = bytes(rig.into(5) for _ in range(512))
        assert data == number.to_bytes(2, "little") * 256 and not rig.line.level
    rig.wait()
    assert rig.result() == [0x40, 0x80, 0, 0, 0, 18, 2]  # nothing ever asserts TC
    rig.send(WRITE & 0x7F, 0, 0, 0, 18, 2, 18, 0x1B, 0xFF)
    rig.wait()
    assert rig.into(4) == 0xB0
    for k in range(512):
        rig.out(5, k & 0xFF)
    rig.wait()
    assert rig.result()[:3] == [0x40, 0x80, 0]
    assert disk.data[17 * 512 : 18 * 512] == bytes(range(256)) * 2
    rig.send(FORMAT, 0, 2, 1, 0x6C, 0x11)
    rig.wait()
    for byte in (0, 0, 3, 2):
        rig.out(5, byte)
    rig.wait()
    assert rig.result()[:3] == [0, 0, 0] and disk.data[1024:1536] == b"\x11" * 512


def test_a_host_that_stops_overruns_a_non_dma_transfer() -> None:
    disk = floppy_image()
    rig = Rig(disk)
    rig.command(0x03, 0xDF, 0x03)
    rig.send(READ, 0, 0, 0, 1, 2, 18, 0x1B, 0xFF)
    rig.wait()
    for _ in range(3):
        for _ in range(100):
            rig.into(5)
        rig.clock.advance(15_000_000)
        assert rig.into(4) == 0xF0 and rig.line.level
    edges = rig.edges
    rig.clock.advance(50_000_000)
    assert rig.edges == edges + 1 and rig.result() == [0x40, 0x10, 0, 0, 0, 1, 2]
    rig.send(WRITE, 0, 0, 0, 1, 2, 18, 0x1B, 0xFF)
    rig.wait()
    for _ in range(700):
        rig.out(5, 0xEE)  # one sector, and what comes before the next is asked for
    rig.clock.advance(100_000_000)
    assert rig.result() == [0x40, 0x10, 0, 0, 0, 2, 2]
    assert disk.data[:514] == b"\xee" * 512 + b"\1\0"
    assert rig.clock.next_deadline_ns() is None


def test_errors_of_the_host_are_data_errors() -> None:
    disk = floppy_image()
    rig = Rig(disk)
    disk.error = OSError(5, "error")
    rig.program_dma(TO_MEMORY, 512)
    assert rig.data_command(READ, 0, 0, 0, 1, 2, 18, 0x1B, 0xFF) == [0x40, 0x20, 0x20, 0, 0, 1, 2]
    rig.program_dma(FROM_MEMORY, 512)
    assert rig.data_command(WRITE, 0, 0, 0, 1, 2, 18, 0x1B, 0xFF)[:3] == [0x40, 0x20, 0x20]
    rig.floppy.pause()


def test_a_command_under_way_survives_a_snapshot() -> None:
    rig = Rig()
    rig.seek(5)
    rig.program_dma(TO_MEMORY, 512)
    rig.send(READ, 0, 5, 0, 1, 2, 18, 0x1B, 0xFF)
    rig.floppy.pause()
    saved, dma = rig.floppy.save(), rig.dma.save()
    other = Rig(start=False)
    other.clock.advance(10**12)
    other.floppy.load(saved)
    other.dma.load(dma)
    other.wait()
    assert other.result() == [0, 0, 0, 5, 0, 2, 2] and other.numbers(1) == [180]


def test_a_reset_ends_everything_under_way() -> None:
    rig = Rig()
    rig.program_dma(TO_MEMORY, 512)
    rig.send(READ, 0, 0, 0, 2, 2, 18, 0x1B, 0xFF)
    rig.out(2, 0x18)
    assert rig.clock.next_deadline_ns() is None
    rig.out(2, 0x1C)
    rig.wait()
    assert rig.command(0x08) == [0xC0, 0] and rig.numbers(1) == [0]


@given(st.integers(0, 2**32 - 1))
def test_no_sequence_of_accesses_upsets_it(seed: int) -> None:
    rng = random.Random(seed)
    rig = Rig(floppy_image(160 * KIB), Disk(512) if rng.random() < 0.5 else None)
    starts = (0xE6, 0x46, 0xC5, 0x45, 0x4D, 0x4A, 0xD6, 0x42, 0x0F, 0xCF, 0x07, 0x08, 0x03, 0x13, 0x94, 0xCC, 0xD1, 0xDD, 0x0E, 0x12)
    for _ in range(120):
        match rng.randrange(6):
            case 0:
                rig.out(rng.choice((0, 1, 2, 3, 4, 5, 7)), rng.getrandbits(8))
            case 1:
                rig.into(rng.choice((2, 4, 5, 7)))
            case 2:
                for byte in (rng.choice(starts), *(rng.choice((0, 1, 2, 4, 9, rng.getrandbits(8))) for _ in range(8))):
                    rig.out(5, byte)
            case 3:
                rig.program_dma(rng.choice((TO_MEMORY, FROM_MEMORY, 0x42, 0x56)), rng.randrange(1, 0x5000))
            case 4:
                for _ in range(600):
                    rig.into(5)
            case _:
                rig.clock.advance(rng.choice((10, 10**6)))
    rig.floppy.load(rig.floppy.save())
    rig.floppy.reset()
    rig.start()
