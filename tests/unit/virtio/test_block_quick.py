"""Requests done at one go give what the general way gives, well-formed ones and all others."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from ringfence.devices.virtio.block import VirtioBlock
from ringfence.devices.virtio.block_quick import LEFT, SYNC_BYTES, QuickRequests
from ringfence.devices.virtio.block_request import S_IOERR, S_OK, T_GET_ID, T_IN, T_OUT
from ringfence.devices.virtio.queue import DESC_INDIRECT, DESC_NEXT, DESC_WRITE
from tests.unit.virtio.driver import BUFFERS, RAM_BYTES, Disk, MmioDriver, Posted, VectorDisk, make_memory

TABLE, HEADER, STATUS, DATA = BUFFERS, BUFFERS + 0x2000, BUFFERS + 0x2100, BUFFERS + 0x3000


class Descriptor(NamedTuple):
    addr: int
    size: int
    flags: int
    following: int


class Rig:
    """A disk whose requests are written as the descriptors of one indirect table."""

    def __init__(self, quick: bool, disk: Disk) -> None:
        self.disk = disk
        self.disk.data[:] = random.Random(1).randbytes(len(disk.data))
        self.memory = make_memory()
        self.told: list[tuple[int, int]] = []
        self.memory.on_write(lambda _, offset, size: self.told.append((offset, size)))
        self.posted = Posted()
        self.device = VirtioBlock(self.disk, self.posted)
        if not quick:
            self.device._quick = _Never(disk)
        self.driver = MmioDriver(self.device, self.memory)
        self.driver.start(self.device)
        self.ring = self.driver.rings[0]

    def do(self, header: bytes, table: list[Descriptor], head_flags: int = DESC_INDIRECT, table_bytes: int | None = None) -> None:
        self.memory.write(HEADER, header)
        self.memory.write(STATUS, b"\xff")
        for k, descriptor in enumerate(table):
            self.memory.write(TABLE + 16 * k, struct.pack("<QIHH", *descriptor))
        self.ring.describe(0, TABLE, 16 * len(table) if table_bytes is None else table_bytes, head_flags)
        self.told.clear()
        self.ring.make_available(0)
        self.driver.kick()
        self.device.drain()

    @property
    def status(self) -> int:
        return self.memory.read_uint(STATUS, 1)

    def outcome(self) -> tuple[object, ...]:
        touched = {byte for offset, size in self.told if offset >= DATA for byte in (offset, offset + size - 1)}
        return self.memory.read(0, RAM_BYTES), bytes(self.disk.data), self.ring.collect(), self.device.state.status, touched


class _Never(QuickRequests):
    def perform(self, *_: object) -> int:
        return LEFT


@pytest.fixture(params=[Disk, VectorDisk])
def rigs(request: pytest.FixtureRequest) -> Iterator[tuple[Rig, Rig]]:
    both = Rig(True, request.param()), Rig(False, request.param())
    yield both
    for rig in both:
        rig.device.pause()


def request(kind: int, sector: int, sizes: list[int]) -> tuple[bytes, list[Descriptor]]:
    flags = DESC_NEXT | (DESC_WRITE if kind != T_OUT else 0)
    table = [Descriptor(HEADER, 16, DESC_NEXT, 1)]
    # from the end downwards, as a kernel's pages come
    table += [Descriptor(DATA + 0x1000 * (len(sizes) - k), size, flags, k + 2) for k, size in enumerate(sizes)]
    table.append(Descriptor(STATUS, 1, DESC_WRITE, 0))
    return struct.pack("<IIQ", kind, 0, sector), table


@pytest.mark.parametrize("kind", [T_IN, T_OUT, T_GET_ID])
@pytest.mark.parametrize("sizes", [[512], [4096], [4096] * 5, [512, 1024], [100, 412], [100], [4096] * 254, []])
def test_both_ways_agree(rigs: tuple[Rig, Rig], kind: int, sizes: list[int]) -> None:
    for sector in (0, 7, 2047, 2048, 1 << 55, (1 << 64) - 1):
        for rig in rigs:
            rig.do(*request(kind, sector, sizes))
        assert rigs[0].outcome() == rigs[1].outcome()


def test_it_is_used(rigs: tuple[Rig, Rig]) -> None:
    quick = rigs[0]
    quick.do(*request(T_IN, 3, [4096]))
    quick.do(*request(T_OUT, 3, [4096, 4096]))
    vectors = isinstance(quick.disk, VectorDisk)
    assert quick.status == S_OK and quick.disk.calls == ["read", "write_vector" if vectors else "write"]


def test_errors_and_readonly_disks() -> None:
    rig = Rig(True, VectorDisk())
    rig.disk.error = OSError(5, "Input/output error")
    for kind in (T_IN, T_OUT):
        for sizes in ([512], [512, 512]):
            rig.do(*request(kind, 0, sizes))
            assert rig.status == S_IOERR and rig.ring.collect() == [(0, 0)]
    rig = Rig(True, VectorDisk(readonly=True))
    rig.do(*request(T_OUT, 0, [512, 512]))
    assert rig.status == S_IOERR and rig.disk.calls == []


@pytest.mark.parametrize("seed", range(4))
def test_damaged_tables(rigs: tuple[Rig, Rig], seed: int) -> None:
    """One field after the other becomes something else; both ways must do the same, and neither more than fail."""
    chance = random.Random(seed)
    for _ in range(150):
        kind = chance.choice((T_IN, T_OUT))
        header, table = request(kind, chance.randrange(2048), [512 * chance.randrange(1, 9) for _ in range(chance.choice((1, 1, 2, 3)))])
        head_flags, table_bytes = DESC_INDIRECT, 16 * len(table)
        for _ in range(chance.choice((1, 1, 2))):
            match chance.randrange(4):
                case 0:
                    header = struct.pack("<IIQ", chance.choice((kind, 2, 99)), chance.randrange(2), chance.choice((2047, 2048, 1 << 60)))
                case 1:
                    table_bytes = chance.choice((0, 1, 15, 16, 32, 47, 48, 49, 64, 16 << 10, 0xFFFFFFF0, table_bytes))
                case 2:
                    head_flags = chance.choice((0, 1, 2, 3, 4, 5, 6, 7, 0xFFFF))
                case _:
                    k = chance.randrange(len(table))
                    field, values = chance.choice(
                        (
                            ("addr", (0, DATA, RAM_BYTES - 1, RAM_BYTES, (1 << 64) - 1, TABLE)),
                            ("size", (0, 1, 15, 16, 17, 511, 512, 1 << 20, 0xFFFFFFFF)),
                            ("flags", (0, 1, 2, 3, 4, 5, 7, 0x8001)),
                            ("following", (0, 1, 2, 3, 200, 0xFFFF)),
                        )
                    )
                    table[k] = table[k]._replace(**{field: chance.choice(values)})
        for rig in rigs:
            rig.do(header, table, head_flags, table_bytes)
        assert rigs[0].outcome() == rigs[1].outcome(), (header, table, head_flags, table_bytes)
        if not rigs[0].device.running:
            for rig in rigs:
                rig.driver.start(rig.device)
                rig.ring = rig.driver.rings[0]


@pytest.mark.parametrize("pieces", [1, 2, 100])
def test_large_reads_go_to_the_worker_where_the_disk_must_be_asked(pieces: int) -> None:
    rig = Rig(True, VectorDisk())
    data = bytes(rig.disk.data)
    sizes = [(SYNC_BYTES + 512 * pieces) // 512 // pieces * 512] * pieces
    header, table = request(T_IN, 0, sizes)
    table[1:-1] = [d._replace(addr=DATA + sum(sizes[:k])) for k, d in enumerate(table[1:-1])]
    for rig.disk.cached, calls in ((True, ["read_vector"]), (False, ["read_vector", "read"])):
        rig.disk.calls.clear()
        rig.memory.write(DATA, bytes(sum(sizes)))
        rig.do(header, table)
        assert rig.status == S_OK and rig.disk.calls == calls
        assert rig.memory.read(DATA, sum(sizes)) == data[: sum(sizes)]
