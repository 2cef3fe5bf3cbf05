"""What every virtio device keeps, over both transports: reset, snapshots, odd accesses, wild descriptors."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator

import pytest

from ringfence.core.errors import SnapshotError
from ringfence.devices.api import Device, Executor
from ringfence.devices.virtio.block import VirtioBlock
from ringfence.devices.virtio.console import VirtioConsole
from ringfence.devices.virtio.device import NEEDS_RESET, VirtioDevice
from ringfence.devices.virtio.rng import VirtioRng
from tests.unit.virtio.driver import BUFFERS, RAM_BYTES, READ, WRITE, Disk, Driver, MmioDriver, PciDriver, Posted, make_memory

DEVICES: dict[str, Callable[[Executor], VirtioDevice]] = {
    "block": lambda executor: VirtioBlock(Disk(), executor),
    "console": lambda executor: VirtioConsole(None, executor),
    "rng": lambda executor: VirtioRng(),
}
WINDOW_BYTES = {MmioDriver: 0x200, PciDriver: 0x4000}


class Rig:
    def __init__(self, name: str, kind: type[MmioDriver] | type[PciDriver]) -> None:
        self.posted = Posted()
        self.device = DEVICES[name](self.posted)
        self.memory = make_memory()
        self.driver: Driver = kind(self.device, self.memory)
        self.transport: Device = self.driver.transport  # type: ignore[attr-defined]
        self.window_bytes = WINDOW_BYTES[kind]

    def use(self) -> None:
        self.driver.start(self.device)
        for index, ring in enumerate(self.driver.rings):
            ring.offer((BUFFERS, 16, READ), (BUFFERS + 0x100, 513, WRITE))
            self.driver.kick(index)


@pytest.fixture(params=[(n, k) for n in DEVICES for k in WINDOW_BYTES], ids=lambda p: f"{p[0]}-{p[1].__name__}")
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    made = Rig(*request.param)
    yield made
    made.transport.pause()


def test_reset_is_idempotent(rig: Rig) -> None:
    rig.transport.reset()
    first = rig.transport.save()
    rig.transport.reset()
    assert rig.transport.save() == first
    rig.use()
    assert rig.transport.save() != first
    rig.transport.reset()
    assert rig.transport.save() == first


def test_snapshot_mutate_restore(rig: Rig) -> None:
    rig.use()
    rig.transport.pause()
    saved = rig.transport.save()
    rig.transport.resume()
    rig.driver.set_status(0)
    assert rig.transport.save() != saved
    rig.transport.load(saved)
    assert rig.transport.save() == saved


def test_snapshots_that_do_not_fit_are_refused(rig: Rig) -> None:
    saved = rig.transport.save()
    for damaged in ({}, {**saved, "more": 1}, {k: v for k, v in saved.items() if k != "device"}):
        with pytest.raises(SnapshotError):
            rig.transport.load(damaged)
    device = saved["device"]
    with pytest.raises(SnapshotError):
        rig.transport.load({**saved, "device": {**device, "queues": device["queues"][:-1]}})
    with pytest.raises(SnapshotError):
        rig.transport.load({**saved, "device": {**device, "queues": [{**q, "ready": 1, "desc_addr": 1} for q in device["queues"]]}})


def test_every_offset_and_size_can_be_read_and_written(rig: Rig) -> None:
    handler = rig.transport
    for size in (1, 2, 4, 8):
        for offset in [*range(0x200), *range(0x1000, 0x1010), *range(0x2000, 0x2060), *range(0x3000, 0x3010)]:
            if offset + size <= rig.window_bytes:
                assert handler.read(offset, size) >= 0  # type: ignore[attr-defined]
                handler.write(offset, size, (1 << 8 * size) - 1)  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed", range(3))
def test_wild_descriptors_do_no_harm(rig: Rig, seed: int) -> None:
    """Rings of random descriptors, most of them nearly right; after each failure the driver resets and goes on."""
    chance = random.Random(seed)
    rig.driver.start(rig.device)
    failures = 0
    for _ in range(1200):
        index = chance.randrange(len(rig.driver.rings))
        ring = rig.driver.rings[index]
        for k in range(4):
            addr = chance.choice((BUFFERS, ring.desc, ring.used, RAM_BYTES - 8, 0, chance.getrandbits(64), 0x1_0000_0000))
            size = chance.choice((0, 1, 15, 16, 512, 513, 4096, 0xFFFF_FFFF, RAM_BYTES, chance.getrandbits(32)))
            flags = chance.choice((0, 1, 1, 2, 2, 3, 4, 5, chance.getrandbits(16)))
            ring.describe(k, addr, size, flags, chance.choice((1, 2, 3, 0, 0xFFFF)))
        if chance.random() < 0.5:  # a request that begins well
            ring.describe(0, BUFFERS, 16, 1, 1)
            rig.memory.write(BUFFERS, struct.pack("<IIQ", chance.choice((0, 1, 4, 8, 11, 13, 99)), 0, chance.choice((0, 2047, 1 << 63))))
        ring.make_available(chance.choice((0, 0, 0, 1, 2, 0xFFFF)))
        if chance.random() < 0.02:
            rig.memory.write_uint(ring.avail + 2, 2, chance.getrandbits(16))
        rig.driver.kick(index)
        rig.posted.run_all()
        if rig.driver.status() & NEEDS_RESET:
            failures += 1
            rig.driver.start(rig.device)
    assert failures > 50
    rig.driver.start(rig.device)
    assert not rig.driver.status() & NEEDS_RESET
