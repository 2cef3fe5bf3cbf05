"""The DSDT: what an operating system cannot find out about the board by itself.

ACPI 6.4, chapter 5.7 (objects), 6 (device configuration), 7.4 (sleep states), 13 of "PCI Firmware 3.3" for the host bridge.  Legacy
parts are named by their PNP identifiers, virtio-mmio transports by LNRO0005 (Linux drivers/virtio/virtio_mmio.c).
"""

from __future__ import annotations

from collections.abc import Iterator

from ringfence.machine.boot import aml
from ringfence.machine.boot.acpi_config import AcpiConfig, PciConfig, SerialPort, VirtioMmioSlot

_ROUTED_PCI_SLOTS = 32
_MODEL = "\\PICM"
_STA_PRESENT_ENABLED_FUNCTIONING = 0x0F


def dsdt_body(config: AcpiConfig) -> bytes:
    """The AML after the table's header."""
    s5 = config.power.s5_sleep_type
    parts = [aml.name("\\_S5", aml.package([s5, s5, 0, 0]))]
    if config.pci is not None and config.pci.pic_irqs:
        # 5.8.1: the operating system tells which interrupt model it uses; the 8259 pair until then.
        parts += [aml.name(_MODEL, 0), aml.method("\\_PIC", 1, aml.store(aml.ARG0, aml.name_path(_MODEL)))]
    parts.append(aml.scope("\\_SB", *_devices(config)))
    return b"".join(parts)


def _devices(config: AcpiConfig) -> Iterator[bytes]:
    for index in range(config.cpus):
        yield aml.device(f"C{index:03X}", aml.name("_HID", "ACPI0007"), aml.name("_UID", index))
    for index, port in enumerate(config.serial_ports):
        yield _serial(index + 1, port)
    if config.rtc:
        yield _legacy("RTC", "PNP0B00", aml.io_ports(0x70, 2), aml.irq(8))
    if config.ps2:
        yield _legacy("KBD", "PNP0303", aml.io_ports(0x60, 1), aml.io_ports(0x64, 1), aml.irq(1))
        yield _legacy("MOU", "PNP0F13", aml.irq(12))
    if config.floppy:
        floppy_ports = (aml.io_ports(0x3F2, 4), aml.io_ports(0x3F7, 1))
        yield _legacy("FDC0", "PNP0700", *floppy_ports, aml.irq(6), aml.dma(2))
    for index, port in enumerate(config.parallel_ports):
        yield _legacy(f"LPT{index + 1}", "PNP0400", aml.io_ports(port.base, 8), aml.irq(port.irq))
    if config.hpet_base is not None:
        yield _legacy("HPET", "PNP0103", aml.memory32_fixed(config.hpet_base, 0x400))
    for index, slot in enumerate(config.virtio_mmio):
        yield _virtio(index, slot)
    if config.pci is not None:
        yield _host_bridge(config.pci)
        if config.pci.ecam_base is not None:
            yield _ecam_reservation(config.pci.ecam_base, config.pci.ecam_bytes)


def _legacy(path: str, pnp_id: str, *descriptors: bytes) -> bytes:
    return aml.device(path, aml.name("_HID", aml.eisa_id(pnp_id)), aml.name("_CRS", aml.resources(*descriptors)))


def _serial(unit: int, port: SerialPort) -> bytes:
    return aml.device(
        f"COM{unit}",
        aml.name("_HID", aml.eisa_id("PNP0501")),
        aml.name("_UID", unit),
        aml.name("_STA", _STA_PRESENT_ENABLED_FUNCTIONING),
        aml.name("_CRS", aml.resources(aml.io_ports(port.base, 8), aml.irq(port.irq))),
    )


def _virtio(index: int, slot: VirtioMmioSlot) -> bytes:
    return aml.device(
        f"VR{index:02X}",
        aml.name("_HID", "LNRO0005"),
        aml.name("_UID", index),
        aml.name("_CCA", 1),
        aml.name("_CRS", aml.resources(aml.memory32_fixed(slot.base, slot.size_bytes), aml.interrupt(slot.gsi))),
    )


def _host_bridge(pci: PciConfig) -> bytes:
    config_ports = (0xCF8, 0xD00)
    windows = [aml.bus_numbers(0, pci.bus_count), aml.io_ports(config_ports[0], 8)]
    windows += [aml.io_window(0, config_ports[0]), aml.io_window(config_ports[1], 0x10000)]
    windows += [aml.memory_window(base, base + size_bytes) for base, size_bytes in (pci.memory_window,)]
    if pci.memory_window64 is not None:
        base, size_bytes = pci.memory_window64
        windows.append(aml.memory_window64(base, base + size_bytes))
    express = pci.ecam_base is not None
    identity = [aml.name("_HID", aml.eisa_id("PNP0A08" if express else "PNP0A03"))]
    if express:
        identity.append(aml.name("_CID", aml.eisa_id("PNP0A03")))
    return aml.device(
        "PCI0",
        *identity,
        aml.name("_UID", 0),
        aml.name("_BBN", 0),
        aml.name("_CRS", aml.resources(*windows)),
        _routing(pci),
    )


def _routing(pci: PciConfig) -> bytes:
    """_PRT (6.2.13), fixed routes without link devices; which of them, the interrupt model says."""
    if not pci.pic_irqs:
        return aml.name("_PRT", aml.routing(_routes(pci.gsis)))
    io_apic = aml.if_(aml.name_path(_MODEL), aml.return_(aml.routing(_routes(pci.gsis))))
    return aml.method("_PRT", 0, io_apic, aml.return_(aml.routing(_routes(pci.pic_irqs))))


def _routes(wires: tuple[int, ...]) -> list[tuple[int, int, int]]:
    return [(slot, pin, wires[(slot + pin) % len(wires)]) for slot in range(_ROUTED_PCI_SLOTS) for pin in range(4)]


def _ecam_reservation(base: int, size_bytes: int) -> bytes:
    """PCI Firmware 3.3, 4.1.2: the configuration window is a motherboard resource."""
    return _legacy("MBRD", "PNP0C02", aml.memory32_fixed(base, size_bytes))
