"""Two drives on a cable, resets, missing drives; the PCI function around two channels; what is saved."""

from __future__ import annotations

import pytest

from ringfence.bus.bus import Bus
from ringfence.bus.irq import IrqLine
from ringfence.bus.pci import PciBus
from ringfence.core.errors import SnapshotError
from ringfence.devices.ata_drive import AtaDrive
from ringfence.devices.atapi_drive import AtapiDrive
from ringfence.devices.ide_channel import PRIMARY, SECONDARY, IdeChannel
from ringfence.devices.ide_pci import PiixIde
from tests.unit.devices.ide_driver import (
    BSY,
    BUFFER,
    COUNT,
    DATA,
    DEVICE,
    DRDY,
    DRQ,
    DSC,
    ERROR,
    HIGH,
    LOW,
    MID,
    SRST,
    STATUS,
    TABLE,
    Rig,
    disk_rig,
    make_disc,
    make_disk,
    numbered,
)
from tests.unit.virtio.driver import Posted, make_memory


def disk_and_cd() -> Rig:
    posted = Posted()
    return Rig(AtaDrive(make_disk(), posted), AtapiDrive(make_disc(), posted))


def signature(rig: Rig, device: int) -> list[int]:
    rig.outb(DEVICE, device << 4)
    return [rig.inb(r) for r in (COUNT, LOW, MID, HIGH, ERROR)]


def test_soft_reset_tells_what_is_there() -> None:
    rig = disk_and_cd()
    rig.outb(DEVICE, 0x10)
    rig.control(SRST)
    assert rig.alt == BSY and rig.inb(STATUS) == BSY
    rig.outb(STATUS, 0xEC)
    assert rig.alt == BSY
    rig.control(0)
    assert rig.alt == DRDY | DSC and not rig.line.level
    assert signature(rig, 0) == [1, 1, 0, 0, 1]
    assert signature(rig, 1) == [1, 1, 0x14, 0xEB, 1] and rig.alt == 0


def test_diagnostics_are_for_both() -> None:
    rig = disk_and_cd()
    rig.outb(DEVICE, 0x10)
    rig.outb(MID, 9)
    rig.outb(STATUS, 0x90)
    assert rig.line.level and rig.inb(STATUS) == DRDY | DSC and rig.inb(DEVICE) & 0x10 == 0
    assert signature(rig, 0) == [1, 1, 0, 0, 1] and signature(rig, 1) == [1, 1, 0x14, 0xEB, 1]


def test_a_soft_reset_ends_a_transfer_and_keeps_the_geometry() -> None:
    rig, disk, _ = disk_rig()
    rig.chs(0x91, 17, 0, 3, 0)
    rig.command(0x20, 2, 0)
    rig.take(100)
    rig.control(SRST)
    rig.control(0)
    assert rig.alt == DRDY | DSC and not rig.line.level and rig.channel.read(DATA, 2) == 0
    rig.chs(0x20, 1, 1, 0, 1)
    assert rig.read_pio(1) == disk.data[68 * 512 : 69 * 512]


def test_registers_go_to_both_and_interrupts_come_from_the_selected_one() -> None:
    rig = disk_and_cd()
    rig.outb(COUNT, 0x55)
    rig.outb(DEVICE, 0xB0)
    assert rig.inb(COUNT) == 0x55 and rig.inb(DEVICE) == 0xB0
    rig.outb(DEVICE, 0xA0)
    rig.outb(STATUS, 0x10)
    assert rig.line.level
    rig.outb(DEVICE, 0xB0)
    assert not rig.line.level
    rig.outb(DEVICE, 0xA0)
    assert rig.line.level


def test_the_master_answers_for_a_missing_slave() -> None:
    rig, _, _ = disk_rig()
    rig.outb(DEVICE, 0xB0)
    rig.outb(COUNT, 0x55)
    rig.outb(LOW, 0xAA)
    assert (rig.inb(COUNT), rig.inb(LOW)) == (0x55, 0xAA) and rig.inb(DEVICE) == 0xB0
    assert rig.inb(STATUS) == rig.alt == rig.inb(ERROR) == 0
    rig.outb(STATUS, 0xEC)
    assert rig.alt == 0 and not rig.line.level and rig.channel.read(DATA, 2) == 0
    rig.outb(DEVICE, 0xA0)
    assert rig.alt == DRDY | DSC


def test_an_empty_channel_and_a_slave_alone() -> None:
    rig = Rig()
    rig.outb(COUNT, 0x55)
    rig.outb(STATUS, 0xEC)
    rig.control(SRST)
    rig.control(0)
    assert [rig.inb(r) for r in range(8)] == [0] * 8
    rig = Rig(None, AtaDrive(make_disk(), Posted()))
    assert rig.inb(STATUS) == 0
    rig.command(0x20, 1, 3, device=1)
    assert rig.read_pio(1) == numbered(4)[3 * 512 :]


def test_wide_accesses_to_registers() -> None:
    rig, _, _ = disk_rig()
    rig.channel.write(LOW, 2, 0x3412)
    rig.channel.write(COUNT, 1, 0x56)
    assert rig.channel.read(COUNT, 4) == 0xA0341256 & 0xFFFFFF
    rig.outb(DEVICE, 0xA0)
    assert rig.channel.read(COUNT, 4) == 0xA0341256 - 0xA0000000 | 0x00000000
    assert rig.channel.read(DEVICE, 2) == 0x50A0


# -- saving ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reading", [True, False])
def test_a_block_half_moved_goes_on_after_loading(reading: bool) -> None:
    rig, disk, _ = disk_rig()
    rig.command(0xC6, 4)
    rig.command(0xC4 if reading else 0xC5, 6, 20)
    if reading:
        rig.take(700)
    else:
        rig.give(b"a" * 700)
    saved = rig.channel.save()
    assert rig.channel.save() == saved
    fresh, fresh_disk, _ = disk_rig()
    fresh.channel.load(saved)
    assert fresh.channel.save() == saved and fresh.line.level == rig.line.level and fresh.edges == 0
    if reading:
        assert fresh.take(6 * 512 - 700) == disk.data[20 * 512 + 700 : 26 * 512]
    else:
        fresh.give(b"b" * (6 * 512 - 700))
        assert fresh_disk.data[20 * 512 : 26 * 512] == b"a" * 700 + b"b" * (6 * 512 - 700)
    assert fresh.alt == DRDY | DSC


def test_a_snapshot_of_another_channel_is_refused() -> None:
    rig, _, _ = disk_rig()
    saved = rig.channel.save()
    for change in (
        {"drives": [saved["drives"][0]]},
        {"drives": [None, None]},
        {"drives": [{**saved["drives"][0], "data": "text"}, None]},
        {"drives": [{**saved["drives"][0], "data": [256]}, None]},
        {"drives": [{**saved["drives"][0], "read_stop": 5}, None]},
        {"drives": [{**saved["drives"][0], "heads": 0}, None]},
        {"bus_master": None},
        {"selected": 2},
    ):
        with pytest.raises(SnapshotError):
            rig.channel.load({**saved, **change})
        rig.channel.load(saved)


# -- PCI --------------------------------------------------------------------------------------------------------------


class PciRig:
    def __init__(self) -> None:
        self.memory, self.posted = make_memory(), Posted()
        self.lines = IrqLine("irq14"), IrqLine("irq15")
        self.disks = [make_disk(), make_disk(64)]
        drives = [AtaDrive(self.disks[0], self.posted), None, AtapiDrive(make_disc(), self.posted), AtaDrive(self.disks[1], self.posted)]
        self.ide = PiixIde(self.memory, (self.lines[0].pin(), self.lines[1].pin()), drives)
        self.ports = Bus("ports", 0x10000)
        self.pci = PciBus(Bus("mmio", 1 << 32), self.ports)
        self.pci.add(1, self.ide.function, 1)
        for channel, (base, control, _) in zip(self.ide.channels, (PRIMARY, SECONDARY), strict=True):
            self.ports.add(base, 8, channel, channel.name)
            self.ports.add(control, 1, channel.control, f"{channel.name}-control")


DEVFN = 1 << 3 | 1


def test_the_function() -> None:
    rig = PciRig()
    read, write = rig.pci.read_config, rig.pci.write_config
    assert read(DEVFN, 0, 4) == 0x70108086 and read(DEVFN, 8, 4) == 0x01018000 and read(DEVFN, 0x3D, 1) == 0
    write(DEVFN, 0x20, 4, 0xFFFF_FFFF)
    assert read(DEVFN, 0x20, 4) == 0xFFFF_FFF1
    write(DEVFN, 0x20, 4, 0xC000)
    write(DEVFN, 4, 2, 5)
    rig.memory.write(TABLE, (BUFFER | (512 | 0x80000000) << 32).to_bytes(8, "little"))
    for base, bm, line, disk, device in ((0x1F0, 0xC000, rig.lines[0], rig.disks[0], 0), (0x170, 0xC008, rig.lines[1], rig.disks[1], 1)):
        rig.ports.write(base + DEVICE, 1, 0xE0 | device << 4)
        for register, value in ((COUNT, 1), (LOW, 9), (MID, 0), (HIGH, 0), (STATUS, 0xC8)):
            rig.ports.write(base + register, 1, value)
        rig.ports.write(bm + 4, 4, TABLE)
        rig.ports.write(bm, 1, 9)
        assert line.level and rig.ports.read(bm + 2, 1) == 4 and rig.ports.read(base + STATUS, 1) == DRDY | DSC
        assert rig.memory.read(BUFFER, 512) == disk.data[9 * 512 : 10 * 512]
    assert rig.ports.read(0xC004, 4) == TABLE and rig.ports.read(0xC006, 4) == 0xFFFF_FFFF


def test_ide_decode_enable() -> None:
    rig = PciRig()
    assert rig.ports.read(0x1F7, 1) == rig.ports.read(0x3F6, 1) == DRDY | DSC
    rig.pci.write_config(DEVFN, 0x40, 2, 0x2307)
    assert rig.pci.read_config(DEVFN, 0x40, 2) == 0x2307
    rig.ports.write(0x1F2, 1, 0x12)
    rig.ports.write(0x3F6, 1, SRST)
    assert rig.ports.read(0x1F7, 1) == rig.ports.read(0x3F6, 1) == 0xFF and rig.ports.read(0x1F0, 2) == 0xFFFF
    assert rig.ports.read_many(0x1F0, 2, 4) == b"\xff\xff" and rig.ports.write_many(0x1F0, 2, bytes(8)) == 1
    assert rig.ports.read(0x176, 1) == 0 or rig.ports.read(0x177, 1) != 0xFF
    rig.pci.write_config(DEVFN, 0x40, 4, 0x8000_8000)
    assert rig.ports.read(0x1F7, 1) == DRDY | DSC and rig.ports.read(0x1F2, 1) == 1
    rig.pci.write_config(DEVFN, 0x42, 2, 0)
    assert rig.ports.read(0x177, 1) == 0xFF
    saved = rig.ide.save()
    rig.ide.reset()
    assert rig.ports.read(0x177, 1) != 0xFF
    rig.ide.load(saved)
    assert rig.ports.read(0x177, 1) == 0xFF and rig.ports.read(0x1F7, 1) == DRDY | DSC


def test_bulk_access_through_the_bus() -> None:
    rig = PciRig()
    for register, value in ((COUNT, 1), (LOW, 9), (MID, 0), (HIGH, 0), (DEVICE, 0xE0), (STATUS, 0x20)):
        rig.ports.write(0x1F0 + register, 1, value)
    assert rig.ports.read_many(0x1F0, 2, 1000) == rig.disks[0].data[9 * 512 : 10 * 512]
    assert rig.ports.read_many(0x3F6, 1, 3) == bytes([DRDY | DSC] * 3)  # a handler without bulk access
    assert rig.ports.read_many(0x9999, 2, 2) == b"\xff" * 4
    assert rig.ports.write_many(0x9999, 2, bytes(6)) == 3
    assert len(rig.ports.read_many(0x9999, 2, 1000)) == 128 and rig.ports.write_many(0x9999, 1, bytes(1000)) == 64


def test_too_many_drives() -> None:
    rig = PciRig()
    pins = rig.lines[0].pin(), rig.lines[1].pin()
    with pytest.raises(ValueError, match="room for four"):
        PiixIde(rig.memory, pins, [None] * 5)
    with pytest.raises(ValueError, match="room for two"):
        IdeChannel(pins[0], [None] * 3)


def test_drq_is_seen_on_the_selected_drive_only() -> None:
    rig = disk_and_cd()
    rig.command(0x20, 1, 0)
    assert rig.alt & DRQ
    rig.outb(DEVICE, 0xB0)  # ignored while a command is under way
    assert rig.alt & DRQ and rig.inb(DEVICE) & 0x10 == 0
