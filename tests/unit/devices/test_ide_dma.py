"""Bus-master DMA: descriptor tables of every make, the order of command and start, slow transfers, aborts."""

from __future__ import annotations

import errno
import os

import pytest

from ringfence.devices.ide_drive import PIECE_BYTES, SYNC_BYTES
from tests.unit.devices.ide_driver import (
    BSY,
    BUFFER,
    DRDY,
    DRQ,
    DSC,
    ERR,
    ERROR,
    SRST,
    START,
    STATUS,
    TABLE,
    TO_MEMORY,
    Rig,
    disk_rig,
    make_disk,
)

ACTIVE, FAILED, INTERRUPT = 1, 2, 4


def succeeded(rig: Rig, active: int = 0) -> bool:
    assert rig.line.level and rig.bm_status == INTERRUPT | active
    rig.bm_out(2, INTERRUPT)
    return rig.inb(STATUS) == DRDY | DSC and not rig.line.level and rig.bm_status == active


@pytest.mark.parametrize("start_first", [False, True])
@pytest.mark.parametrize("pieces", [(4096,), (512, 3584), (2, 1022, 3072), (2048, 1024, 1024)])
def test_read_and_write(pieces: tuple[int, ...], start_first: bool) -> None:
    rig, disk, _ = disk_rig()
    rig.prd(*((BUFFER + 0x10000 * k, size) for k, size in enumerate(pieces)))
    pattern = os.urandom(4096)
    at = 0
    for k, size in enumerate(pieces):
        rig.memory.write(BUFFER + 0x10000 * k, pattern[at : at + size])
        at += size
    for command, to_memory in ((0xCA, False), (0xC8, True)):
        if start_first:
            rig.start(to_memory)
            rig.command(command, 8, 40)
        else:
            rig.command(command, 8, 40)
            assert rig.alt & DRQ and not rig.line.level
            rig.start(to_memory)
        assert succeeded(rig)
        if not to_memory:
            assert disk.data[40 * 512 : 48 * 512] == pattern
            disk.data[40 * 512 : 48 * 512] = pattern[::-1]
    got = b"".join(rig.memory.read(BUFFER + 0x10000 * k, size) for k, size in enumerate(pieces))
    assert got == pattern[::-1]


def test_a_count_of_zero_is_64_kib_and_neighbours_are_read_at_once() -> None:
    rig, disk, _ = disk_rig()
    rig.prd((BUFFER, 0), (BUFFER + 0x10000, 0))
    rig.command(0xC8, 0, 1000)
    rig.start()
    assert succeeded(rig)
    assert rig.memory.read(BUFFER, 256 * 512) == disk.data[1000 * 512 : 1256 * 512] and disk.calls == ["read"]


def test_observers_hear_of_what_was_written() -> None:
    rig, _, _ = disk_rig()
    seen: list[tuple[int, int]] = []
    rig.memory.on_write(lambda region, offset, size: seen.append((offset, size)))
    rig.prd((BUFFER, 512), (BUFFER + 0x1000, 512))
    seen.clear()
    rig.command(0xC8, 2, 0)
    rig.start()
    assert seen == [(BUFFER, 512), (BUFFER + 0x1000, 512)]


def test_more_descriptors_than_data_leave_the_engine_active() -> None:
    rig, disk, _ = disk_rig()
    rig.prd((BUFFER, 4096))
    rig.command(0xC8, 1, 7)
    rig.start()
    assert succeeded(rig, ACTIVE)
    assert rig.memory.read(BUFFER, 1024) == disk.data[7 * 512 : 8 * 512] + bytes(512)
    rig.bm_out(0, 0)
    assert rig.bm_status == 0


def test_fewer_descriptors_than_data_leave_the_drive_waiting() -> None:
    rig, disk, _ = disk_rig()
    rig.prd((BUFFER, 1024))
    rig.command(0xC8, 4, 7)
    rig.start()
    assert rig.bm_status == 0 and not rig.line.level and rig.alt & (BSY | DRQ | ERR) == DRQ
    rig.prd((BUFFER + 1024, 1024))  # a table with the rest
    rig.start()
    assert succeeded(rig) and rig.memory.read(BUFFER, 2048) == disk.data[7 * 512 : 11 * 512]
    rig.prd((BUFFER, 100))
    rig.command(0xCA, 4, 7)
    rig.start(False)
    assert rig.bm_status == 0 and not rig.line.level and disk.calls.count("write") == 0
    rig.control(SRST)
    rig.control(0)
    assert rig.alt == DRDY | DSC


@pytest.mark.parametrize("command", [0xC8, 0xCA])
@pytest.mark.parametrize("entry", [(0xFFFF_FFFE, 512), (0x3F_FF00, 512), (0x8000_0000, 0)])
def test_data_outside_of_ram_stops_the_engine(command: int, entry: tuple[int, int]) -> None:
    rig, disk, _ = disk_rig()
    before = bytes(disk.data)
    rig.prd((BUFFER, 512), entry)
    rig.command(command, 2, 0)
    rig.start(command == 0xC8)
    assert rig.bm_status == FAILED and not rig.line.level and rig.alt & DRQ
    assert disk.data == before
    rig.bm_out(2, FAILED)
    assert rig.bm_status == 0


@pytest.mark.parametrize("table", [0xFFFF_FFFC, 0x40_0000 - 4, 0x7000_0000])
def test_a_table_outside_of_ram(table: int) -> None:
    rig, _, _ = disk_rig()
    rig.command(0xC8, 2, 0)
    rig.start(table=table)
    assert rig.bm_status & (ACTIVE | FAILED) == FAILED and not rig.line.level


def test_a_table_without_end_is_left_after_64_kib() -> None:
    rig, _, _ = disk_rig()
    rig.memory.write(TABLE, (BUFFER | 2 << 32).to_bytes(8, "little") * 20000)
    rig.command48(0x25, 0, 0)
    assert rig.inb(STATUS) & ERR  # more than the disk has
    rig.command(0xC8, 0, 0)
    rig.start()
    assert rig.bm_status == 0 and not rig.line.level and rig.alt & DRQ


def test_odd_addresses_and_counts_lose_their_low_bit() -> None:
    rig, disk, _ = disk_rig()
    rig.prd((BUFFER + 1, 513))
    rig.command(0xC8, 1, 5)
    rig.start()
    assert succeeded(rig) and rig.memory.read(BUFFER, 512) == disk.data[5 * 512 : 6 * 512]


def test_large_transfers_go_through_the_worker_in_pieces() -> None:
    sectors = (SYNC_BYTES + 2 * PIECE_BYTES) // 512
    rig, disk, posted = disk_rig(make_disk(sectors))
    rig.prd(*((BUFFER + (k % 4 << 16), 0) for k in range(sectors // 128)))
    rig.command48(0x25, sectors, 0)
    disk.gate.clear()
    rig.start()
    assert rig.alt == BSY and not rig.line.level and rig.bm_status == ACTIVE
    disk.gate.set()
    for _ in range(2):
        posted.run_one()
    assert succeeded(rig) and disk.calls == ["read"] * 3
    last = sectors * 512 - 0x10000
    assert rig.memory.read(BUFFER + (sectors // 128 - 1) % 4 * 0x10000, 0x10000) == disk.data[last:]
    rig.channel.pause()


@pytest.mark.parametrize("how", ["reset", "stop", "pause", "save"])
def test_a_slow_transfer_is_interrupted(how: str) -> None:
    """Nothing reaches the guest afterwards, and after pause and save the transfer goes on."""
    sectors = 2 * PIECE_BYTES // 512
    rig, disk, posted = disk_rig(make_disk(sectors))
    rig.prd(*((BUFFER + (k % 4 << 16), 0) for k in range(sectors // 128)))
    rig.command48(0x25, sectors, 0)
    rig.start()
    if how == "reset":
        rig.control(SRST)
        assert rig.alt == BSY
        rig.control(0)
        assert rig.alt == DRDY | DSC
    elif how == "stop":
        rig.bm_out(0, 0)
        assert rig.bm_status == 0 and rig.alt == DRDY | DSC | DRQ
    elif how == "pause":
        rig.channel.pause()
        assert rig.alt == DRDY | DSC | DRQ
        rig.channel.resume()
        assert rig.alt == BSY
    else:
        saved = rig.channel.save()
        fresh, disk, fresh_posted = disk_rig(make_disk(sectors))
        fresh.memory.write(TABLE, rig.memory.read(TABLE, 0x1000))
        fresh.channel.load(saved)
        rig.channel.reset()
        rig, posted = fresh, fresh_posted
    if how in ("pause", "save"):
        while not rig.line.level:
            posted.run_one()
        assert succeeded(rig)
        assert rig.memory.read(BUFFER + 0x30000, 0x10000) == disk.data[-0x10000:]
    else:
        rig.memory.write(BUFFER, bytes(0x40000))
        posted.run_all()
        assert rig.memory.read(BUFFER, 0x40000) == bytes(0x40000) and not rig.line.level
    rig.channel.pause()


def test_errors_of_the_host() -> None:
    rig, disk, posted = disk_rig()
    disk.error = OSError(errno.EIO, "bad")
    rig.prd((BUFFER, 0))
    for command, error in ((0xC8, 0x40), (0xCA, 0x04)):
        rig.command(command, 4, 9)
        rig.start(command == 0xC8)
        assert rig.line.level and rig.bm_status & INTERRUPT and rig.inb(STATUS) == DRDY | DSC | ERR and rig.inb(ERROR) == error
        assert rig.lba == 9
        rig.bm_out(0, 0)
    rig.command48(0x25, 1024, 0)
    rig.prd(*[(BUFFER, 0)] * 8)
    rig.start()
    posted.run_one()
    assert rig.line.level and rig.inb(STATUS) == DRDY | DSC | ERR
    rig.channel.pause()


def test_forced_unit_access_is_flushed() -> None:
    rig, disk, posted = disk_rig()
    rig.prd((BUFFER, 512))
    rig.memory.write(BUFFER, b"x" * 512)
    rig.command48(0x3D, 1, 3)
    rig.start(False)
    posted.run_one()
    assert succeeded(rig) and disk.calls == ["write", "flush"] and disk.data[3 * 512 : 4 * 512] == b"x" * 512
    rig.channel.pause()


def test_registers() -> None:
    rig, _, _ = disk_rig()
    assert rig.bm is not None
    rig.bm_out(4, 0x12345677, 4)
    assert rig.bm.ports.read(4, 4) == 0x12345674 and rig.bm.ports.read(5, 1) == 0x56
    rig.bm_out(5, 0xAB)
    assert rig.bm.ports.read(4, 4) == 0x1234AB74
    rig.bm_out(0, 0xFF)
    assert rig.bm.ports.read(0, 1) == START | TO_MEMORY and rig.bm_status == ACTIVE
    rig.bm_out(2, 0x60)
    assert rig.bm_status == ACTIVE | 0x60
    rig.bm_out(0, 0)
    rig.bm_out(2, 0)
    assert rig.bm_status == 0 and rig.bm.ports.read(1, 1) == 0


def test_a_command_without_a_running_engine_moves_nothing() -> None:
    rig, disk, _ = disk_rig()
    rig.command(0xC8, 1, 0)
    assert rig.alt & DRQ and disk.calls == []
    rig.command(0xEC)  # ignored: only a reset ends the command
    assert rig.alt & DRQ and not rig.line.level
