"""What every board is: buses, interrupt wiring, the parts that all PCs have, and the seam towards the machine.

    GSI 0-15    ISA lines: to the 8259 pair and to the I/O APIC (the timer's IRQ 0 to input 2)
    GSI 16-23   to the I/O APIC only

A board's own file lists its parts with their addresses; this one holds what they have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ringfence.backends.api import Block, Char
from ringfence.bus.bus import Bus, Handler
from ringfence.bus.irq import IrqLine, IrqPin
from ringfence.core.clock import Clock
from ringfence.core.units import KIB
from ringfence.devices import acpi_pm, debug_exit, ioapic, kvmclock, pic8259, pit8254, reset, rtc, uart16550
from ringfence.devices.api import Device, Executor
from ringfence.devices.apic import APIC_BASE, APIC_SIZE, ApicBus, LocalApic
from ringfence.devices.virtio.block import VirtioBlock
from ringfence.devices.virtio.console import VirtioConsole
from ringfence.devices.virtio.device import VirtioDevice
from ringfence.devices.virtio.rng import VirtioRng
from ringfence.machine.boards.msrs import MsrRouter
from ringfence.machine.boot.acpi import AcpiConfig, PowerConfig, SerialPort, build_tables
from ringfence.memory.guest_memory import GuestMemory

PORT_SPACE_BYTES = 64 * KIB
PHYSICAL_ADDRESS_BITS = 52
TIMER_IRQ, SERIAL_IRQ, RTC_IRQ, SCI_IRQ = 0, 4, 8, 9
SERIAL_PORT = 0x3F8
GSIS = 24
_PIC_CASCADE = 2
_APIC_SVR, _APIC_LVT_LINT0, _APIC_LVT_LINT1 = 0xF0, 0x350, 0x360
_TIMER_GSI = 2
AnyDevice = TypeVar("AnyDevice", bound=Device)
POWER = PowerConfig(sci_gsi=SCI_IRQ)


@dataclass(frozen=True)
class Surroundings:
    """Everything that a board is given: the guest's RAM, what the host supplies, and whom to tell of the guest's wishes.

    The callbacks are called on the device thread.  `debug_exit` gets the exit status, not the value written.
    """

    memory: GuestMemory
    clock: Clock
    executor: Executor
    disks: Sequence[Block]
    console: Char
    extras: frozenset[str]
    tsc_hz: int
    read_tsc: Callable[[], int]
    interrupt_changed: Callable[[], None]
    power_off: Callable[[], None]
    reset: Callable[[], None]
    debug_exit: Callable[[int], None]


class Board:
    """The parts that a PC of any make has.  A subclass adds the way to its virtio devices."""

    name = "board"

    def __init__(self, host: Surroundings) -> None:
        self.host = host
        self.memory = host.memory
        self.ports = Bus("ports", PORT_SPACE_BYTES)
        self.mmio = Bus("mmio", 1 << PHYSICAL_ADDRESS_BITS)
        self.devices: list[Device] = []
        self._lines = [IrqLine(f"gsi{n}") for n in range(GSIS)]
        self._wire_interrupts()
        self._add_legacy_parts()
        self._console: VirtioConsole | None = None
        for device in self._virtio_devices():
            self.add_virtio(device)
        self._start_virtual_wire()

    # -- wiring

    def _wire_interrupts(self) -> None:
        host = self.host
        self.apics = ApicBus()
        self.apic = LocalApic(0, host.clock, host.tsc_hz, host.read_tsc, host.interrupt_changed, self._eoi, self.apics, host.memory)
        self.apics.add(self.apic)
        self.pic = self.add(pic8259.PicPair(self._pic_output))
        self.apic.connect_pic(self.pic)
        self.ioapic = self.add(ioapic.IoApic(self.apics.send_msi))
        self.add(self.apic)
        self.kvmclock = self.add(kvmclock.KvmClock(host.memory, host.clock, host.tsc_hz, host.read_tsc))
        self.interrupts = self.apic
        self.msrs = MsrRouter(self.apic, self.kvmclock)
        for number, line in enumerate(self._lines):
            if number < 16 and number != _PIC_CASCADE:
                line.connect(self.pic.input(number))
            if number == TIMER_IRQ:
                line.connect(self.ioapic.input(_TIMER_GSI))
            elif number != _TIMER_GSI:
                line.connect(self.ioapic.input(number))

    def _start_virtual_wire(self) -> None:
        """What firmware leaves behind: the 8259 pair reaches the CPU through LINT0, NMI through LINT1 (MP Specification 1.4, 3.6.2.2)."""
        for register, value in ((_APIC_SVR, 0x1FF), (_APIC_LVT_LINT0, 0x700), (_APIC_LVT_LINT1, 0x400)):
            self.apic.write(register, 4, value)

    def _pic_output(self, level: bool) -> None:
        self.apic.set_lint0(level)

    def _eoi(self, vector: int) -> None:
        self.ioapic.eoi(vector)

    def _add_legacy_parts(self) -> None:
        host, ports = self.host, self.map_ports
        self.pit = self.add(pit8254.Pit(self.pin(TIMER_IRQ), host.clock))
        self.rtc = self.add(rtc.Rtc(self.pin(RTC_IRQ), host.clock))
        self.uart = self.add(uart16550.Uart(self.pin(SERIAL_IRQ), host.console, host.clock))
        self.power = self.add(acpi_pm.AcpiPm(self.pin(SCI_IRQ), host.clock, host.power_off))
        self.reset_control = self.add(reset.ResetControl(host.reset))
        ports(pic8259.MASTER_BASE, 2, self.pic.master, "pic-master")
        ports(pic8259.SLAVE_BASE, 2, self.pic.slave, "pic-slave")
        ports(pic8259.ELCR_BASE, 2, self.pic.elcr, "pic-elcr")
        ports(0x40, 4, self.pit.ports, "pit")
        ports(0x61, 1, self.pit.port61, "system-control-b")
        ports(0x70, 2, self.rtc, "rtc")
        ports(SERIAL_PORT, 8, self.uart, "com1")
        ports(reset.KEYBOARD_DATA_PORT, 1, self.reset_control.keyboard_data, "keyboard-data")
        ports(reset.KEYBOARD_COMMAND_PORT, 1, self.reset_control.keyboard_command, "keyboard-command")
        ports(reset.SYSTEM_CONTROL_PORT, 1, self.reset_control.port_a, "system-control-a")
        ports(POWER.pm1_event_port, 4, self.power.pm1_event, "acpi-pm1-event")
        ports(POWER.pm1_control_port, 2, self.power.pm1_control, "acpi-pm1-control")
        ports(POWER.pm_timer_port, 4, self.power.timer, "acpi-pm-timer")
        self.map_mmio(ioapic.IOAPIC_BASE, ioapic.IOAPIC_SIZE, self.ioapic, "ioapic")
        self.map_mmio(APIC_BASE, APIC_SIZE, self.apic, "local-apic")
        if "debug-exit" in host.extras:
            part = self.add(debug_exit.DebugExit(host.debug_exit))
            ports(debug_exit.DEBUG_EXIT_BASE, debug_exit.DEBUG_EXIT_PORTS, part, "debug-exit")

    def _virtio_devices(self) -> list[VirtioDevice]:
        """Disks first: they appear in the order of the spec (vda, vdb, ...)."""
        host = self.host
        found: list[VirtioDevice] = [VirtioBlock(disk, host.executor) for disk in host.disks]
        found.append(VirtioRng())
        if "virtio-console" in host.extras:
            self._console = VirtioConsole(host.console, host.executor)
            found.append(self._console)
        return found

    def add_virtio(self, device: VirtioDevice) -> None:
        raise NotImplementedError(f"the board {self.name} has no place for {device.name}")

    def add(self, device: AnyDevice) -> AnyDevice:
        self.devices.append(device)
        return device

    def pin(self, gsi: int) -> IrqPin:
        return self._lines[gsi].pin()

    def map_ports(self, base: int, count: int, handler: Handler, name: str) -> None:
        self.ports.add(base, count, handler, name)

    def map_mmio(self, base: int, size_bytes: int, handler: Handler, name: str) -> None:
        self.mmio.add(base, size_bytes, handler, name)

    # -- for the machine

    def acpi_config(self) -> AcpiConfig:
        return AcpiConfig(power=POWER, serial_ports=(SerialPort(SERIAL_PORT, SERIAL_IRQ),))

    def write_tables(self) -> int:
        """Writes the ACPI tables and returns the address of the RSDP."""
        return build_tables(self.memory, self.acpi_config())

    def command_line(self) -> list[str]:
        """Words that this board adds to a kernel's command line."""
        return []

    def receive(self, data: bytes) -> None:
        """Bytes typed at the console: the virtio console's where there is one, else the first serial port's."""
        if self._console is not None:
            self._console.receive(data)
        else:
            self.uart.receive(data)

    def interrupt_waits(self) -> bool:
        """Whether a halted vCPU has to wake up."""
        return self.apic.pending() or self.apic.nmi_pending

    def resize_console(self, columns: int, rows: int) -> None:
        if self._console is not None:
            self._console.resize(columns, rows)

    def press_power_button(self) -> None:
        self.power.press_power_button()

    def reset(self) -> None:
        for device in self.devices:
            device.reset()
        self._start_virtual_wire()

    def pause(self) -> None:
        """Brings every device to rest: work under way is finished, output is written out."""
        for device in self.devices:
            device.pause()
