"""PCI configuration space, BARs that come and go, MSI-X, the two ways into configuration space."""

from __future__ import annotations

import random

import pytest

from ringfence.bus.bus import Bus
from ringfence.bus.irq import IrqLine
from ringfence.bus.msix import BAR_BYTES, PBA_OFFSET, Msix
from ringfence.bus.pci import BarKind, PciBus, PciFunction
from ringfence.devices.pci_host import ECAM_BYTES_PER_BUS, Ecam, PciHost

ALL_ONES = 0xFFFFFFFF


class Registers:
    """A handler that remembers."""

    def __init__(self, value: int = 0) -> None:
        self.value = value
        self.writes: list[tuple[int, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        return self.value + offset

    def write(self, offset: int, size: int, value: int) -> None:
        self.writes.append((offset, size, value))


class Sink:
    def __init__(self) -> None:
        self.sent: list[tuple[int, int]] = []

    def send_msi(self, address: int, data: int) -> None:
        self.sent.append((address, data))


class Rig:
    """A bus with one function in slot 1."""

    def __init__(self) -> None:
        self.mmio, self.ports = Bus("mmio", 1 << 46), Bus("ports", 1 << 16)
        self.bus = PciBus(self.mmio, self.ports)
        self.line = IrqLine("INTA")
        self.function = PciFunction("card", 0x1234, 0x5678, 0x020000, irq=self.line.pin())
        self.mem, self.io, self.high = Registers(0x100), Registers(0x200), Registers(0x300)
        self.function.add_bar(0, 0x1000, self.mem)
        self.function.add_bar(1, 0x20, self.io, BarKind.IO)
        self.function.add_bar(2, 0x4000, self.high, BarKind.MEM64)
        self.sink = Sink()
        self.msix = Msix(self.function, 3, 4, self.sink)
        self.bus.add(1, self.function)

    def read(self, offset: int, size: int = 4) -> int:
        return self.bus.read_config(1 << 3, offset, size)

    def write(self, offset: int, value: int, size: int = 4) -> None:
        self.bus.write_config(1 << 3, offset, size, value)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_header(rig: Rig) -> None:
    assert rig.read(0) == 0x56781234
    assert rig.read(8) == 0x02000000
    assert rig.read(0x3D, 1) == 1
    rig.write(0, 0)
    rig.write(0x3C, 0xFF0B)
    assert rig.read(0) == 0x56781234 and rig.read(0x3C, 2) == 0x010B


def test_bars_tell_their_size(rig: Rig) -> None:
    for offset in (0x10, 0x14, 0x18, 0x1C, 0x20, 0x24):
        rig.write(offset, ALL_ONES)
    assert [rig.read(o) for o in (0x10, 0x14, 0x18, 0x1C)] == [0xFFFFF000, 0xFFFFFFE1, 0xFFFFC004, ALL_ONES]


def test_bars_decode_while_enabled_and_move(rig: Rig) -> None:
    rig.write(0x10, 0xE0000000)
    rig.write(0x14, 0xC000)
    rig.write(0x18, 0)
    rig.write(0x1C, 0x10)  # 64 GiB
    assert rig.mmio.read(0xE0000004, 4) == ALL_ONES
    rig.write(4, 0x0003, 2)
    assert rig.mmio.read(0xE0000004, 4) == 0x104
    assert rig.ports.read(0xC004, 1) == 0x204 & 0xFF
    assert rig.mmio.read(0x10_0000_0008, 4) == 0x308
    rig.write(0x10, 0xE1000000)
    assert rig.mmio.read(0xE0000004, 4) == ALL_ONES and rig.mmio.read(0xE1000004, 4) == 0x104
    rig.write(4, 0x0001, 2)
    assert rig.mmio.read(0xE1000004, 4) == ALL_ONES and rig.ports.read(0xC001, 1) == 0x01


def test_overlapping_bars_wait_for_their_turn(rig: Rig) -> None:
    other = PciFunction("other", 1, 2, 0)
    registers = Registers(0x900)
    other.add_bar(0, 0x1000, registers)
    rig.bus.add(2, other)
    rig.mmio.add(0xFEC00000, 0x1000, Registers(), "ioapic")
    rig.write(0x10, 0xE0000000)
    rig.write(4, 2, 2)
    rig.bus.write_config(2 << 3, 0x10, 4, 0xE0000000)
    rig.bus.write_config(2 << 3, 4, 2, 2)
    assert rig.mmio.read(0xE0000000, 4) == 0x100  # first come
    rig.write(0x10, 0xFEC00000)  # taken by the board
    assert rig.mmio.read(0xE0000000, 4) == 0x900
    assert rig.mmio.read(0xFEC00004, 4) == 4


def test_intx_and_its_disable_bit(rig: Rig) -> None:
    rig.function.set_intx(True)
    assert rig.line.level and rig.read(6, 2) & 8
    rig.write(4, 0x0400, 2)
    assert not rig.line.level and rig.read(6, 2) & 8
    rig.write(4, 0, 2)
    assert rig.line.level
    rig.function.set_intx(False)
    assert not rig.line.level and not rig.read(6, 2) & 8


def msix_on(rig: Rig, control: int = 0x8000) -> int:
    at = rig.read(0x34, 1)
    assert rig.read(at, 1) == 0x11 and rig.read(at + 2, 2) & 0x7FF == 2
    rig.write(at + 2, control, 2)
    return at


def test_msix_sends_masks_and_remembers(rig: Rig) -> None:
    rig.write(0x20, 0xE0100000)
    rig.write(4, 2, 2)
    table = 0xE0100000
    at = msix_on(rig)
    rig.msix.notify(1)  # masked out of reset
    assert rig.sink.sent == [] and rig.mmio.read(table + PBA_OFFSET, 8) == 2
    rig.mmio.write(table + 16, 8, 0xFEE01004)
    rig.mmio.write(table + 24, 4, 0x41)
    rig.mmio.write(table + 28, 4, 0)
    assert rig.sink.sent == [(0xFEE01004, 0x41)] and rig.mmio.read(table + PBA_OFFSET, 8) == 0
    assert rig.mmio.read(table + 16, 8) == 0xFEE01004 and rig.mmio.read(table + 26, 1) == 0
    rig.write(at + 2, 0xC000, 2)
    rig.msix.notify(1)
    rig.msix.notify(1)
    assert len(rig.sink.sent) == 1
    rig.write(at + 2, 0x8000, 2)
    assert len(rig.sink.sent) == 2
    rig.msix.notify(3)
    rig.msix.notify(0xFFFF)
    assert len(rig.sink.sent) == 2


def test_msix_survives_any_access(rig: Rig) -> None:
    random.seed(1)
    msix_on(rig)
    for _ in range(5000):
        size = random.choice((1, 2, 4, 8))
        offset = random.randrange(BAR_BYTES - size + 1)
        assert 0 <= rig.msix.read(offset, size) < 1 << 8 * size
        rig.msix.write(offset, size, random.getrandbits(8 * size))
        rig.msix.notify(random.randrange(5))


def test_save_and_load_bring_bars_back(rig: Rig) -> None:
    rig.write(0x10, 0xE0000000)
    rig.write(4, 2, 2)
    rig.function.set_intx(True)
    saved = rig.function.save()
    rig.function.reset()
    assert rig.mmio.read(0xE0000000, 4) == ALL_ONES and not rig.line.level
    rig.function.load(saved)
    assert rig.mmio.read(0xE0000000, 4) == 0x100 and rig.line.level
    assert rig.function.save() == saved


def test_assigned_addresses_survive_reset(rig: Rig) -> None:
    rig.bus.assign_addresses(0xE0000000, 0xE0010000, 0xC000, 0xC100)
    before = [rig.read(o) for o in range(0x10, 0x28, 4)]
    rig.function.reset()
    assert [rig.read(o) for o in range(0x10, 0x28, 4)] == before
    rig.write(4, 3, 2)
    assert len(list(rig.mmio)) == 3 and len(list(rig.ports)) == 1
    with pytest.raises(ValueError, match="window"):
        rig.bus.assign_addresses(0xE0000000, 0xE0001000, 0xC000, 0xC100)


def test_multifunction_is_announced(rig: Rig) -> None:
    assert rig.read(0x0E, 1) == 0
    rig.bus.add(1, PciFunction("second", 1, 2, 0), 1)
    assert rig.read(0x0E, 1) == 0x80
    with pytest.raises(ValueError):
        rig.bus.add(1, PciFunction("third", 1, 2, 0), 1)


def test_configuration_mechanism_1(rig: Rig) -> None:
    reset = Registers(0x55)
    host = PciHost(rig.bus, reset)
    rig.ports.add(0xCF8, 8, host, "pci-host")
    assert rig.ports.read(0xCFC, 4) == ALL_ONES
    rig.ports.write(0xCF8, 4, 0x80000000)
    assert rig.ports.read(0xCF8, 4) == 0x80000000
    assert rig.ports.read(0xCFC, 4) == 0x12378086 and rig.ports.read(0xCFE, 2) == 0x1237 and rig.ports.read(0xCFD, 1) == 0x80
    rig.ports.write(0xCF8, 4, 0x80000804)
    rig.ports.write(0xCFC, 2, 0x0007)
    assert rig.read(4, 2) == 7
    rig.ports.write(0xCF8, 4, 0x80001000)  # nobody in slot 2
    assert rig.ports.read(0xCFC, 4) == ALL_ONES
    rig.ports.write(0xCF8, 4, 0x80010800)  # bus 1
    assert rig.ports.read(0xCFC, 4) == ALL_ONES
    rig.ports.write(0xCF9, 1, 6)
    assert reset.writes == [(0, 1, 6)] and rig.ports.read(0xCF9, 1) == 0x55
    assert rig.ports.read(0xCF8, 4) == 0x80010800
    assert rig.ports.read(0xCFA, 4) == int.from_bytes(b"\xff\xff\xff\xff", "little")
    saved = host.save()
    host.reset()
    host.load(saved)
    assert host.save() == saved


def test_ecam(rig: Rig) -> None:
    ecam = Ecam(rig.bus)
    assert ecam.read(1 << 15, 4) == 0x56781234
    assert ecam.read((1 << 15) + 0x100, 4) == 0
    assert ecam.read(2 << 15, 4) == ALL_ONES
    ecam.write((1 << 15) + 4, 2, 7)
    assert rig.read(4, 2) == 7


def test_random_configuration_writes_do_no_harm(rig: Rig) -> None:
    random.seed(2)
    host, ecam = PciHost(rig.bus), Ecam(rig.bus)
    rig.mmio.add(0xFEE00000, 0x1000, Registers(), "apic")
    for _ in range(5000):
        size = random.choice((1, 2, 4))
        if random.random() < 0.5:
            host.write(0, 4, 0x80000000 | random.randrange(3) << 11 | random.randrange(64) << 2)
            host.write(random.randrange(4, 9 - size), size, random.choice((0, 7, ALL_ONES, 0xFEE00000, random.getrandbits(32))))
        else:
            offset = random.randrange(ECAM_BYTES_PER_BUS - size)
            ecam.write(random.choice((offset, offset & 0xF0FF)), size, random.getrandbits(8 * size))
        host.read(random.randrange(9 - size), size)
        rig.mmio.read(0xFEE00000, 4)
    assert rig.read(0) == 0x56781234
