"""Both transports with one device behind them: bringing it up, interrupts, reset, hostile drivers."""

from __future__ import annotations

import random

import pytest

from ringfence.bus.pci import PciFunction
from ringfence.devices.virtio import mmio, pci
from ringfence.devices.virtio.device import DRIVER_OK, F_VERSION_1, FEATURES_OK, NEEDS_RESET, VirtioDevice
from ringfence.devices.virtio.mmio import Reg
from ringfence.devices.virtio.rng import VirtioRng
from tests.unit.virtio.driver import BUFFERS, F_EVENT_IDX, RAM_BYTES, READ, WRITE, Driver, MmioDriver, PciDriver, Ring, make_memory

TRANSPORTS = [MmioDriver, PciDriver]


def rng() -> VirtioRng:
    return VirtioRng(entropy=lambda n: bytes(range(256)) * (n // 256) + bytes(range(n % 256)))


@pytest.fixture(params=TRANSPORTS)
def driver(request: pytest.FixtureRequest) -> Driver:
    return request.param(rng(), make_memory())


def device_of(driver: Driver) -> VirtioDevice:
    return driver.transport.device


def test_request_and_interrupt(driver: Driver) -> None:
    driver.start(device_of(driver), F_EVENT_IDX)
    ring = driver.rings[0]
    head = ring.offer((BUFFERS, 100, WRITE))
    driver.kick()
    assert ring.collect() == [(head, 100)]
    assert driver.memory.read(BUFFERS, 100) == bytes(range(100))
    assert driver.interrupts == 1 and driver.line.level
    assert driver.acknowledge() == mmio.USED_BUFFER
    assert not driver.line.level


def test_kick_before_driver_ok_is_not_lost(driver: Driver) -> None:
    device = device_of(driver)
    driver.start(device)
    driver.set_status(0)
    driver.set_status(3)
    driver.accept(device.features)
    driver.set_status(11)
    ring = Ring(driver.memory, 8)
    driver.memory.write(ring.avail, bytes(64))
    driver.memory.write(ring.used, bytes(128))
    driver.set_up_queue(0, ring)
    ring.offer((BUFFERS, 4, WRITE))
    driver.kick()
    assert ring.collect() == []
    driver.set_status(15)
    assert ring.collect() == [(0, 4)]


def test_features_must_be_offered_and_modern(driver: Driver) -> None:
    device = device_of(driver)
    for features in (0, F_VERSION_1 | 1 << 5):
        driver.set_status(0)
        driver.set_status(3)
        driver.accept(features)
        driver.set_status(11)
        assert not driver.status() & FEATURES_OK
        driver.set_status(15)
        assert not driver.status() & DRIVER_OK
    driver.start(device, 0)
    driver.accept(device.features)  # frozen by now
    assert device.state.driver_features == F_VERSION_1


def test_reset_forgets_everything(driver: Driver) -> None:
    device = device_of(driver)
    driver.start(device)
    driver.rings[0].offer((BUFFERS, 4, WRITE))
    driver.kick()
    assert driver.line.level
    driver.set_status(0)
    assert driver.status() == 0 and not driver.line.level and not device.queues[0].ready
    driver.kick()
    driver.start(device)
    driver.rings[0].offer((BUFFERS, 4, WRITE))
    driver.kick()
    assert driver.rings[0].collect() == [(0, 4)]


def test_broken_ring_needs_a_reset_and_recovers(driver: Driver) -> None:
    device = device_of(driver)
    driver.start(device)
    driver.rings[0].offer((RAM_BYTES, 4, WRITE))
    driver.kick()
    assert driver.status() & NEEDS_RESET
    assert driver.acknowledge() == mmio.CONFIG_CHANGE
    driver.kick()
    driver.set_status(15)
    assert driver.status() & NEEDS_RESET  # only a reset takes it away
    driver.start(device)
    driver.rings[0].offer((BUFFERS, 4, WRITE))
    driver.kick()
    assert driver.rings[0].collect() == [(0, 4)]


def test_ring_outside_of_ram_needs_a_reset(driver: Driver) -> None:
    driver.set_status(3)
    driver.accept(device_of(driver).features)
    driver.set_status(11)
    driver.set_up_queue(0, Ring(driver.memory, 8, RAM_BYTES))
    assert driver.status() & NEEDS_RESET


def test_save_and_load(driver: Driver) -> None:
    driver.start(device_of(driver))
    driver.rings[0].offer((BUFFERS, 4, WRITE))
    driver.kick()
    saved = driver.transport.save()
    driver.transport.reset()
    assert driver.transport.save() != saved and not driver.line.level
    driver.transport.load(saved)
    assert driver.transport.save() == saved and driver.line.level
    driver.rings[0].offer((BUFFERS, 8, WRITE))
    driver.kick()
    assert driver.rings[0].collect() == [(0, 4), (1, 8)]


def test_mmio_registers() -> None:
    driver = MmioDriver(rng(), make_memory())
    assert driver.read(Reg.MagicValue).to_bytes(4, "little") == b"virt"
    assert (driver.read(Reg.Version), driver.read(Reg.DeviceID), driver.read(Reg.QueueNumMax)) == (2, 4, 64)
    driver.write(Reg.DeviceFeaturesSel, 1)
    assert driver.read(Reg.DeviceFeatures) & 1
    assert driver.read(Reg.SHMLenLow) == driver.read(Reg.SHMLenLow + 4) == 0xFFFFFFFF
    driver.write(Reg.QueueSel, 1)
    assert driver.read(Reg.QueueNumMax) == 0
    assert driver.read(Reg.MagicValue, 1) == 0
    driver.start(driver.transport.device)
    driver.write(Reg.QueueSel, 0)
    assert driver.read(Reg.QueueReady) == 1
    driver.write(Reg.QueueReady, 0)
    assert driver.read(Reg.QueueReady) == 0


def test_pci_identity_and_capabilities() -> None:
    driver = PciDriver(rng(), make_memory())
    devfn = driver.SLOT << 3
    assert driver.pci.read_config(devfn, 0, 4) == 0x1044_1AF4
    found = {}
    at = driver.pci.read_config(devfn, 0x34, 1)
    while at:
        if driver.pci.read_config(devfn, at, 1) == 9:
            found[driver.pci.read_config(devfn, at + 3, 1)] = driver.pci.read_config(devfn, at + 8, 4)
        at = driver.pci.read_config(devfn, at + 1, 1)
    assert found == {1: pci.COMMON, 2: pci.NOTIFY, 3: pci.ISR, 5: 0}  # no configuration space, no structure for it
    assert isinstance(driver.transport, PciFunction)


def test_pci_msix_vectors() -> None:
    driver = PciDriver(rng(), make_memory())
    driver.start(driver.transport.device)
    driver.enable_msix()
    driver.rings[0].offer((BUFFERS, 4, WRITE))
    driver.kick()
    assert driver.messages.sent == [(0xFEE00000, 0x4001)]
    driver.rings[0].offer((BUFFERS, 4, READ), (RAM_BYTES, 4, READ))
    driver.kick()
    assert driver.messages.sent == [(0xFEE00000, 0x4001), (0xFEE00000, 0x4000)]
    assert driver.interrupts == 0
    driver.write(16, 2, 7)
    assert driver.read(16, 2) == 0xFFFF


def test_pci_intx_is_silent_while_msix_is_enabled() -> None:
    driver = PciDriver(rng(), make_memory())
    driver.start(driver.transport.device)
    driver.rings[0].offer((BUFFERS, 4, WRITE))
    driver.kick()
    assert driver.line.level
    driver.enable_msix()
    assert not driver.line.level


def test_pci_configuration_window_reaches_bar_0() -> None:
    driver = PciDriver(rng(), make_memory())
    devfn = driver.SLOT << 3
    at = next(k for k in range(0x40, 0x100, 4) if driver.pci.read_config(devfn, k, 1) == 9 and driver.pci.read_config(devfn, k + 3, 1) == 5)
    driver.pci.write_config(devfn, at + 4, 1, 0)
    driver.pci.write_config(devfn, at + 8, 4, 20)
    driver.pci.write_config(devfn, at + 12, 4, 1)
    driver.pci.write_config(devfn, at + 16, 1, 3)
    assert driver.status() == 3
    assert driver.pci.read_config(devfn, at + 16, 1) == 3
    driver.pci.write_config(devfn, at + 8, 4, 0xFFFFFFFF)
    driver.pci.write_config(devfn, at + 16, 4, 0)
    driver.pci.read_config(devfn, at + 16, 4)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", TRANSPORTS)
def test_random_register_accesses_do_no_harm(kind: type, seed: int) -> None:
    chance = random.Random(seed)
    driver = kind(rng(), make_memory())
    size_of = {MmioDriver: 0x200, PciDriver: 0x4000}[kind]
    hot = [0x70, 0x30, 0x38, 0x44, 0x50, 0x80, 0x90, 0xA0] if kind is MmioDriver else [8, 12, 20, 22, 24, 26, 28, 32, 40, 48, 0x3000]
    for _ in range(1500):
        size = chance.choice((1, 2, 4, 8))
        offset = chance.choice(hot) if chance.random() < 0.8 else chance.randrange(size_of - size + 1)
        value = chance.choice((0, 1, 15, 0x10000, 0x3FFFF0, chance.getrandbits(8 * size))) & (1 << 8 * size) - 1
        driver.transport.write(offset, size, value)
        driver.transport.read(chance.randrange(size_of - size + 1), size)
    driver.start(driver.transport.device)
    driver.rings[0].offer((BUFFERS, 4, WRITE))
    driver.kick()
    assert driver.rings[0].collect() == [(0, 4)]
