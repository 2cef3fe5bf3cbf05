"""The test device: QEMU's layout as kvm-unit-tests use it."""

from __future__ import annotations

from ringfence.bus.bus import Bus
from ringfence.bus.irq import IrqLine
from ringfence.devices import testdev
from ringfence.devices.testdev import TestDevice


class Rig:
    def __init__(self) -> None:
        self.lines = [IrqLine(f"gsi{n}") for n in range(24)]
        self.device = TestDevice([None if n == 2 else line.pin() for n, line in enumerate(self.lines)])
        self.ports = Bus("ports", 0x10000)
        self.mmio = Bus("mmio", 1 << 52)
        self.ports.add(testdev.REGISTER_PORT, 4, self.device.register, "register")
        self.ports.add(testdev.FLUSH_PORT, 4, self.device.flush, "flush")
        self.ports.add(testdev.BYTE_REGISTER_PORT, 4, self.device.register, "byte-register")
        self.ports.add(testdev.IRQ_PORT, testdev.IRQ_LINES, self.device.irqs, "irqs")
        self.mmio.add(testdev.IOMEM_BASE, testdev.IOMEM_BYTES, self.device.iomem, "iomem")

    def levels(self) -> list[int]:
        return [n for n, line in enumerate(self.lines) if line.level]


def test_the_register_takes_all_sizes() -> None:
    rig = Rig()
    rig.ports.write(0xE0, 4, 0x12345678)
    assert rig.ports.read(0xE0, 4) == 0x12345678 == rig.ports.read(0xE8, 4)
    rig.ports.write(0xE1, 1, 0xAB)
    rig.ports.write(0xEA, 2, 0xCDEF)
    assert rig.ports.read(0xE0, 4) == 0xCDEFAB78 and rig.ports.read(0xE2, 2) == 0xCDEF


def test_a_page_can_be_flushed() -> None:
    rig = Rig()
    for address in (0x1000, 0xFFFFF000, 0):
        rig.ports.write(0xE4, 4, address)
    assert rig.ports.read(0xE4, 4) == 0


def test_interrupt_lines() -> None:
    rig = Rig()
    rig.ports.write(0x200A, 1, 1)
    rig.ports.write(0x2017, 1, 0x80)
    rig.ports.write(0x2002, 1, 1)  # the cascade belongs to nobody
    assert rig.levels() == [10, 23]
    saved = rig.device.save()
    rig.ports.write(0x200A, 1, 0)
    assert rig.levels() == [23]
    other = Rig()
    other.device.load(saved)
    assert other.levels() == [10, 23]
    rig.device.reset()
    assert rig.levels() == []


def test_memory() -> None:
    rig = Rig()
    base = testdev.IOMEM_BASE
    rig.mmio.write(base + 0x1003, 8, 0x1122334455667788)
    assert rig.mmio.read(base + 0x1003, 8) == 0x1122334455667788 and rig.mmio.read(base + 0x1004, 2) == 0x6677
    rig.mmio.write(base + 0xFFFF, 1, 0x5A)
    assert rig.mmio.read(base + 0xFFFF, 1) == 0x5A and len(rig.device.state.iomem) == 0x10000
    assert rig.device.iomem.read(0xFFFF, 4) == 0x5A
    rig.device.iomem.write(0xFFFE, 8, (1 << 64) - 1)
    assert len(rig.device.state.iomem) == 0x10000
