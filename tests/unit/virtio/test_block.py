"""The block device: every request type, both ways of performing them, errors, draining."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator

import pytest

from ringfence.devices.virtio import block_request
from ringfence.devices.virtio.block import (
    F_CONFIG_WCE,
    F_DISCARD,
    F_FLUSH,
    F_RO,
    MAX_BYTES_IN_FLIGHT,
    SYNC_BYTES,
    WRITEBACK_OFFSET,
    VirtioBlock,
)
from ringfence.devices.virtio.block_request import (
    MAX_WRITE_ZEROES_SECTORS,
    S_IOERR,
    S_OK,
    S_UNSUPP,
    T_DISCARD,
    T_FLUSH,
    T_GET_ID,
    T_IN,
    T_OUT,
    T_WRITE_ZEROES,
)
from ringfence.devices.virtio.device import NEEDS_RESET
from tests.unit.virtio.driver import BUFFERS, F_EVENT_IDX, F_INDIRECT_DESC, READ, WRITE, Disk, MmioDriver, Posted, make_memory

HEADER, STATUS, DATA = BUFFERS, BUFFERS + 0x100, BUFFERS + 0x1000
LARGE = SYNC_BYTES + 512


class Rig:
    def __init__(self, disk: Disk | None = None, features: int | None = None) -> None:
        self.disk = disk or Disk()
        self.posted = Posted()
        self.device = VirtioBlock(self.disk, self.posted, serial="serial-number-that-is-too-long")
        self.memory = make_memory()
        self.driver = MmioDriver(self.device, self.memory)
        self.driver.start(self.device, features)
        self.ring = self.driver.rings[0]
        self._slot = 0

    def offer(self, kind: int, sector: int = 0, size: int = 0, data: bytes = b"", pieces: int = 1) -> int:
        """Puts a request into the queue; returns the address of its status byte."""
        header = HEADER + 32 * self._slot
        status = STATUS + 0x800 + self._slot
        self._slot = (self._slot + 1) % 32
        self.memory.write(header, struct.pack("<IIQ", kind, 0, sector))
        self.memory.write(status, b"\xff")
        if data:
            self.memory.write(DATA, data)
        step = (size or len(data)) // pieces
        buffers = [(DATA + k * step, step, not data) for k in range(pieces)] if size or data else []
        self.ring.offer((header, 16, READ), *buffers, (status, 1, WRITE))
        return status

    def do(self, *what: object, **how: object) -> int:
        """Performs one request; the guest's status."""
        status = self.offer(*what, **how)  # type: ignore[arg-type]
        self.driver.kick()
        if not self.ring.collect():
            self.posted.run_one()
            assert self.ring.collect()
        return self.memory.read_uint(status, 1)


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.disk.gate.set()
    made.device.pause()


@pytest.mark.parametrize("size", [512, 4096, LARGE])
@pytest.mark.parametrize("pieces", [1, 4])
def test_write_then_read(rig: Rig, size: int, pieces: int) -> None:
    pattern = os.urandom(size)
    assert rig.do(T_OUT, sector=3, data=pattern, pieces=pieces) == S_OK
    assert rig.disk.data[1536 : 1536 + size] == pattern
    rig.memory.write(DATA, bytes(size))
    assert rig.do(T_IN, sector=3, size=size, pieces=pieces) == S_OK
    assert rig.memory.read(DATA, size) == pattern


def test_small_ones_stay_on_the_device_thread(rig: Rig) -> None:
    rig.do(T_IN, size=4096)
    rig.do(T_OUT, data=bytes(4096))
    assert rig.disk.threads == {threading.get_ident()}
    rig.do(T_IN, size=LARGE)
    rig.do(T_FLUSH)
    assert len(rig.disk.threads) == 2


def test_everything_follows_the_worker_while_it_is_busy(rig: Rig) -> None:
    rig.disk.gate.clear()
    slow = rig.offer(T_FLUSH)
    rig.driver.kick()
    quick = rig.offer(T_IN, size=512)
    rig.driver.kick()
    assert rig.ring.collect() == [] and rig.memory.read_uint(quick, 1) == 0xFF
    rig.disk.gate.set()
    rig.posted.run_one()
    while len(rig.disk.calls) < 2 or rig.memory.read_uint(quick, 1):
        rig.posted.run_one()
    assert rig.disk.calls == ["flush", "read"] and rig.memory.read_uint(slow, 1) == S_OK
    assert threading.get_ident() not in rig.disk.threads


def test_get_id_is_cut_to_twenty_bytes(rig: Rig) -> None:
    assert rig.do(T_GET_ID, size=20) == S_OK
    assert rig.memory.read(DATA, 20) == b"serial-number-that-i"


def test_header_and_data_in_any_pieces(rig: Rig) -> None:
    rig.memory.write(HEADER, struct.pack("<IIQ", T_OUT, 0, 1) + b"A" * 512)
    rig.ring.offer((HEADER, 5, READ), (HEADER + 5, 523, READ), (STATUS, 1, WRITE))
    rig.driver.kick()
    assert rig.disk.data[512:1024] == b"A" * 512
    rig.memory.write(HEADER, struct.pack("<IIQ", T_IN, 0, 1))
    rig.ring.offer((HEADER, 16, READ), (DATA, 513, WRITE))
    rig.driver.kick()
    assert rig.memory.read(DATA, 513) == b"A" * 512 + b"\0"
    assert [written for _, written in rig.ring.collect()] == [1, 513]


@pytest.mark.parametrize(
    ("kind", "sector", "size", "expected"),
    [
        (T_IN, 2048, 512, S_IOERR),
        (T_IN, 2047, 1024, S_IOERR),
        (T_IN, 2**55, 512, S_IOERR),
        (T_IN, 2**64 - 1, 512, S_IOERR),
        (T_IN, 0, 511, S_IOERR),
        (T_IN, 2048, 0, S_OK),
        (99, 0, 512, S_UNSUPP),
    ],
)
def test_what_cannot_be_done(rig: Rig, kind: int, sector: int, size: int, expected: int) -> None:
    assert rig.do(kind, sector=sector, size=size) == expected


@pytest.mark.parametrize("size", [512, LARGE])
def test_errors_of_the_host_reach_the_guest(rig: Rig, size: int) -> None:
    rig.disk.error = OSError(28, "No space left on device")
    assert rig.do(T_OUT, data=bytes(size)) == S_IOERR
    assert rig.do(T_IN, size=size) == S_IOERR
    assert rig.do(T_FLUSH) == S_IOERR
    rig.disk.error = None
    assert rig.do(T_IN, size=size) == S_OK


def test_a_fault_of_ours_is_raised_on_the_device_thread(rig: Rig) -> None:
    rig.disk.error = KeyError("bug")
    rig.offer(T_FLUSH)
    rig.driver.kick()
    with pytest.raises(KeyError):
        rig.posted.run_one()
    rig.disk.error = None


def test_readonly_disk() -> None:
    rig = Rig(Disk(readonly=True))
    assert rig.device.features & F_RO and not rig.device.features & F_DISCARD
    assert rig.do(T_OUT, data=bytes(512)) == S_IOERR
    assert rig.do(T_DISCARD, data=struct.pack("<QII", 0, 8, 0)) == S_IOERR
    assert rig.do(T_IN, size=512) == S_OK
    assert rig.disk.calls == ["read"]


def test_discard_and_write_zeroes(rig: Rig) -> None:
    assert rig.do(T_DISCARD, data=struct.pack("<QII", 16, 8, 0)) == S_OK
    rig.disk.data[:1024] = b"x" * 1024
    assert rig.do(T_WRITE_ZEROES, data=struct.pack("<QII", 0, 1, 1)) == S_OK
    assert rig.disk.calls == ["discard 8192 4096", "write_zeroes 0 512 True"]
    assert rig.disk.data[:1024] == bytes(512) + b"x" * 512
    assert rig.do(T_DISCARD, data=struct.pack("<QII", 0, 8, 1)) == S_UNSUPP
    assert rig.do(T_WRITE_ZEROES, data=struct.pack("<QII", 0, 8, 2)) == S_UNSUPP
    assert rig.do(T_WRITE_ZEROES, data=struct.pack("<QII", 2047, 2, 0)) == S_IOERR
    assert rig.do(T_WRITE_ZEROES, data=struct.pack("<QII", 2**64 - 1, 1, 0)) == S_IOERR
    assert rig.do(T_WRITE_ZEROES, data=struct.pack("<QII", 0, MAX_WRITE_ZEROES_SECTORS + 1, 0)) == S_IOERR
    assert rig.do(T_DISCARD, data=bytes(15)) == S_IOERR
    assert rig.do(T_DISCARD, data=bytes(32)) == S_IOERR
    assert len(rig.disk.calls) == 2


def test_write_through_flushes_before_it_acknowledges(rig: Rig) -> None:
    rig.driver.write_config(WRITEBACK_OFFSET, 1, 0)
    assert rig.driver.read_config(WRITEBACK_OFFSET, 1) == 0
    assert rig.do(T_OUT, data=bytes(512)) == S_OK
    assert rig.disk.calls == ["write", "flush"]
    rig.driver.set_status(0)
    assert rig.driver.read_config(WRITEBACK_OFFSET, 1) == 1


def test_a_driver_that_cannot_flush_gets_write_through() -> None:
    rig = Rig(features=F_CONFIG_WCE)
    assert rig.do(T_OUT, data=bytes(512)) == S_OK
    assert rig.disk.calls == ["write", "flush"]
    plain = Rig(features=F_FLUSH)
    plain.driver.write_config(WRITEBACK_OFFSET, 1, 0)  # not negotiated: stays write-back
    assert plain.do(T_OUT, data=bytes(512)) == S_OK
    assert plain.disk.calls == ["write"]
    rig.device.pause()


@pytest.mark.parametrize("chain", ["no status", "no header", "short header"])
def test_requests_without_form_need_a_reset(rig: Rig, chain: str) -> None:
    buffers = {
        "no status": [(HEADER, 16, READ)],
        "no header": [(STATUS, 1, WRITE)],
        "short header": [(HEADER, 15, READ), (STATUS, 1, WRITE)],
    }[chain]
    rig.ring.offer(*buffers)
    rig.driver.kick()
    assert rig.driver.status() & NEEDS_RESET


def test_pause_drains_and_resume_goes_on(rig: Rig) -> None:
    first = rig.offer(T_IN, size=LARGE)
    rig.driver.kick()
    rig.device.pause()
    assert rig.memory.read_uint(first, 1) == S_OK
    assert not any(t.name == rig.device.name for t in threading.enumerate())
    second = rig.offer(T_IN, size=512)
    rig.driver.kick()
    saved = rig.device.save()
    assert rig.memory.read_uint(second, 1) == 0xFF
    rig.device.load(saved)
    rig.device.resume()
    assert rig.memory.read_uint(second, 1) == S_OK


def test_reset_waits_for_the_worker(rig: Rig) -> None:
    rig.offer(T_OUT, data=bytes(LARGE))
    rig.driver.kick()
    rig.driver.set_status(0)
    assert rig.disk.calls == ["write"]
    before = rig.memory.read(rig.ring.used, 64)
    rig.posted.run_all()
    assert rig.memory.read(rig.ring.used, 64) == before


def test_memory_for_requests_under_way_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(Disk(4 << 20))
    size = 2 << 20
    rig.disk.gate.clear()
    count = MAX_BYTES_IN_FLIGHT // size + 4
    statuses = [rig.offer(T_IN, size=size) for _ in range(count)]
    rig.driver.kick()
    assert rig.device.queues[0].last_avail == MAX_BYTES_IN_FLIGHT // size
    rig.disk.gate.set()
    returned = 0
    while returned < count:
        rig.posted.run_one()
        returned += len(rig.ring.collect())
    assert {rig.memory.read_uint(status, 1) for status in statuses} == {S_OK}
    monkeypatch.setattr(block_request, "MAX_REQUEST_BYTES", 1024)
    assert rig.do(T_IN, size=1536) == S_IOERR
    rig.device.pause()


@pytest.mark.parametrize("features", [F_FLUSH, F_FLUSH | F_EVENT_IDX | F_INDIRECT_DESC])
def test_many_requests_lose_none(features: int) -> None:
    rig = Rig(features=features)
    done = 0
    for k in range(600):
        rig.offer((T_IN, T_FLUSH, T_OUT)[k % 3], **({"size": 512} if k % 3 == 0 else {"data": b"z" * 512} if k % 3 == 2 else {}))
        rig.driver.kick()
        rig.posted.run_all()
        done += len(rig.ring.collect())
    while done < 600:
        rig.posted.run_one()
        done += len(rig.ring.collect())
    assert done == 600
    rig.device.pause()


def test_configuration_space(rig: Rig) -> None:
    read = rig.driver.read_config
    assert read(0, 8) == 2048 and read(12, 4) == 254 and read(20, 4) == 512
    assert read(24, 1) == 3 and read(34, 2) == 1 and read(56, 1) == 1
    assert read(60, 4) == 0
