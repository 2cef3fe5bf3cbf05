"""What the ACPI tables say about a board, as plain data.  Ports, addresses and interrupt numbers are the board's own choice."""

from __future__ import annotations

from ringfence.core.errors import UserError
from ringfence.core.record import Record
from ringfence.core.units import MIB

_LEGACY_GSIS = 16


class SerialPort(Record):
    """A 16550 at eight I/O ports from `base` on, with an ISA interrupt line."""

    base: int = 0x3F8
    irq: int = 4


class VirtioMmioSlot(Record):
    """A virtio-mmio transport; level-triggered, active high."""

    base: int
    gsi: int
    size_bytes: int = 0x200


class PowerConfig(Record):
    """Fixed ACPI hardware (ACPI 6.4, 4.8): PM1a event block (4 ports), PM1a control block (2), PM timer (4), reset register (1).

    `s5_sleep_type` is what the guest writes to SLP_TYP of PM1a_CNT to power off.  The SCI is level-triggered, active high.
    With `smi_command_port` the machine starts in legacy mode; `acpi_enable` and `acpi_disable` written there switch.
    """

    sci_gsi: int = 9
    pm1_event_port: int = 0x600
    pm1_control_port: int = 0x604
    pm_timer_port: int = 0x608
    pm_timer_bits: int = 32
    reset_port: int = 0xCF9
    reset_value: int = 0x06
    s5_sleep_type: int = 5
    smi_command_port: int = 0
    acpi_enable: int = 0
    acpi_disable: int = 0


class PciConfig(Record):
    """A PCI host bridge with configuration at ports 0xcf8-0xcff and, where `ecam_base` is given, memory-mapped too.

    `memory_window` and `memory_window64` are (base, bytes) from which BARs are assigned.  Pin p (INTA = 0) of slot s is wired to
    `gsis[(s + p) % len(gsis)]`, level-triggered; firmware may have routed the same wires to `pic_irqs` of the 8259 pair, for
    systems that use no I/O APIC.
    """

    memory_window: tuple[int, int]
    gsis: tuple[int, ...] = (16, 17, 18, 19)
    pic_irqs: tuple[int, ...] = ()
    memory_window64: tuple[int, int] | None = None
    ecam_base: int | None = None
    bus_count: int = 1

    @property
    def ecam_bytes(self) -> int:
        return self.bus_count * MIB


class AcpiConfig(Record):
    """Local APIC identifiers are 0 to `cpus` - 1.  `pic` says that there is an 8259 pair, whose line 0 (timer) is wired to GSI 2."""

    cpus: int = 1
    power: PowerConfig = PowerConfig()
    local_apic_base: int = 0xFEE0_0000
    io_apic_base: int = 0xFEC0_0000
    io_apic_id: int = 0
    pic: bool = True
    serial_ports: tuple[SerialPort, ...] = (SerialPort(),)
    rtc: bool = True
    ps2: bool = False
    vga: bool = False
    floppy: bool = False
    parallel_ports: tuple[SerialPort, ...] = ()
    hpet_base: int | None = None
    virtio_mmio: tuple[VirtioMmioSlot, ...] = ()
    pci: PciConfig | None = None

    def level_gsis(self) -> list[int]:
        """GSIs below 16 that are level-triggered, unlike ISA lines."""
        gsis = {self.power.sci_gsi, *(slot.gsi for slot in self.virtio_mmio), *(self.pci.gsis if self.pci else ())}
        return sorted(gsi for gsi in gsis if gsi < _LEGACY_GSIS)

    def reserved_ranges(self) -> list[tuple[int, int]]:
        """(base, bytes) outside of RAM that the memory map has to reserve."""
        return [(self.pci.ecam_base, self.pci.ecam_bytes)] if self.pci and self.pci.ecam_base is not None else []

    def check(self) -> None:
        """Raises UserError for what cannot be expressed."""
        if not 1 <= self.cpus <= 0x1000:
            raise UserError(f"{self.cpus} CPUs cannot be described to the guest.", "Choose 1 to 4096.")
        if len(self.virtio_mmio) > 0x100:
            raise UserError(f"{len(self.virtio_mmio)} virtio-mmio slots cannot be described to the guest.", "Choose at most 256.")
