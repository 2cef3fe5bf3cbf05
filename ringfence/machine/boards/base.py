"""What every board is: buses, interrupt wiring, the parts that all PCs have, and the seam towards the machine.

    GSI 0-15    ISA lines: to the 8259 pair and to the I/O APIC (the timer's IRQ 0 to input 2)
    GSI 16-23   to the I/O APIC only

A board's own file lists its parts with their addresses; this one holds what they have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from ringfence.backends.api import Char, Screen
from ringfence.bus.bus import Bus, Handler
from ringfence.bus.irq import IrqLine, IrqPin
from ringfence.core.clock import Clock
from ringfence.core.errors import UserError
from ringfence.core.late import LateModule
from ringfence.core.record import Record
from ringfence.core.units import KIB
from ringfence.devices import acpi_pm, debug_exit, ioapic, kvmclock, pic8259, pit8254, reset, rtc, uart16550
from ringfence.devices.api import Device, Executor
from ringfence.devices.apic import APIC_BASE, APIC_SIZE, ApicBus, LocalApic
from ringfence.devices.parallel import LPT1_BASE, LPT1_IRQ
from ringfence.devices.ps2_keyboard import Ps2Keyboard
from ringfence.devices.ps2_mouse import Ps2Mouse
from ringfence.engine.api import InterruptController
from ringfence.machine.boards.cpus import CpuParts, OwnApicSpace
from ringfence.machine.boards.drives import Drive
from ringfence.machine.boards.isa_parts import IsaParts
from ringfence.machine.boards.msrs import MsrRouter
from ringfence.machine.boot.acpi import AcpiConfig, PowerConfig, SerialPort, build_tables
from ringfence.machine.boot.cmos import BootDevice
from ringfence.memory.guest_memory import GuestMemory

if TYPE_CHECKING:
    from ringfence.devices.virtio import block as virtio_block
    from ringfence.devices.virtio import console as virtio_console
    from ringfence.devices.virtio import rng as virtio_rng
    from ringfence.devices.virtio import serial as virtio_serial
    from ringfence.devices.virtio.device import VirtioDevice
else:  # what a machine was given
    virtio_block = LateModule("ringfence.devices.virtio.block")
    virtio_console = LateModule("ringfence.devices.virtio.console")
    virtio_rng = LateModule("ringfence.devices.virtio.rng")
    virtio_serial = LateModule("ringfence.devices.virtio.serial")

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


class FurtherCpu(Protocol):
    """A vCPU beside the first, as its local APIC sees it; `clock` is for the APIC's timer."""

    clock: Clock

    def interrupt_changed(self) -> None: ...

    def init(self) -> None: ...

    def startup(self, vector: int) -> None: ...

    def is_elsewhere(self) -> bool: ...


class Surroundings(Record):
    """Everything that a board is given: the guest's RAM, what the host supplies, and whom to tell of the guest's wishes.

    The callbacks are called on the device thread.  `debug_exit` gets the exit status, not the value written.  `reset` is the reset
    button, `cpu_reset` resets the CPU alone.  With `firmware`, the ROM's content, the guest starts there and finds a whole PC;
    without, a kernel is started and finds only the parts that it was given something for.
    """

    memory: GuestMemory
    clock: Clock
    executor: Executor
    drives: Sequence[Drive]
    console: Char
    extras: frozenset[str]
    tsc_hz: int
    read_tsc: Callable[[], int]
    interrupt_changed: Callable[[], None]
    power_off: Callable[[], None]
    reset: Callable[[], None]
    cpu_reset: Callable[[], None]
    debug_exit: Callable[[int], None]
    firmware: bytes | None = None
    boot_order: Sequence[BootDevice] = ()
    display: bool = False
    serial_terminal: bool = False
    """Somebody reads the serial line who may have no other way to see the screen."""
    printer: Char | None = None
    start_kernel: Callable[[], None] | None = None
    """Firmware has come so far that the kernel can be loaded; None where it has to find something to start itself."""
    further_cpus: Sequence[FurtherCpu] = ()
    is_elsewhere: Callable[[], bool] = lambda: False
    """Whether the calling thread is not the first vCPU's."""

    @property
    def cpus(self) -> int:
        return 1 + len(self.further_cpus)


class Board:
    """The parts that a PC of any make has.  A subclass adds the way to its virtio devices."""

    name = "board"
    has_acpi = True
    has_virtio = True
    has_old_parts = True  # whether firmware or the spec may put keyboard, screen, floppies and the like onto it

    def __init__(self, host: Surroundings) -> None:
        self.host = host
        self.memory = host.memory
        self.ports = Bus("ports", PORT_SPACE_BYTES)
        self.mmio = Bus("mmio", 1 << PHYSICAL_ADDRESS_BITS)
        self.devices: list[Device] = []
        self.screen: Screen | None = None
        self.keyboard: Ps2Keyboard | None = None
        self.mouse: Ps2Mouse | None = None
        self._lines = [IrqLine(f"gsi{n}") for n in range(GSIS)]
        self._wire_interrupts()
        self.reset_control: reset.ResetControl
        self.isa = IsaParts(self)
        self._add_legacy_parts()
        self._console: virtio_console.VirtioConsole | None = None
        self.serial_ports: virtio_serial.VirtioSerial | None = None
        """For the guest's agent."""
        for device in self._virtio_devices():
            self.add_virtio(device)
        self._leave_as_firmware()

    # -- wiring

    def _wire_interrupts(self) -> None:
        host = self.host
        self.apics = ApicBus()
        self.apic = LocalApic(
            0, host.clock, host.tsc_hz, host.read_tsc, host.interrupt_changed, self._eoi, self.apics, host.memory,
            is_elsewhere=host.is_elsewhere,
        )  # fmt: skip
        if host.further_cpus:
            self.apic.on_init(host.cpu_reset)
        self.apics.add(self.apic)
        self.pic = self.add(pic8259.PicPair(self._pic_output))
        self.apic.connect_pic(self.pic)
        self.ioapic = self.add(ioapic.IoApic(self.apics.send_msi))
        self.add(self.apic)
        origin_ns = host.clock.now_ns()
        self.kvmclock = self.add(kvmclock.KvmClock(host.memory, host.clock, host.tsc_hz, host.read_tsc, origin_ns))
        self.interrupts = self.apic
        self.msrs = MsrRouter(self.apic, self.kvmclock)
        self.further = [self._further_cpu(number, cpu, origin_ns) for number, cpu in enumerate(host.further_cpus, 1)]
        for number, line in enumerate(self._lines):
            if number < 16 and number != _PIC_CASCADE:
                line.connect(self.pic.input(number))
            if number == TIMER_IRQ:
                line.connect(self.ioapic.input(_TIMER_GSI))
            elif number != _TIMER_GSI:
                line.connect(self.ioapic.input(number))

    def _further_cpu(self, number: int, cpu: FurtherCpu, origin_ns: int) -> CpuParts:
        host = self.host
        apic = self.add(
            LocalApic(
                number, cpu.clock, host.tsc_hz, host.read_tsc, cpu.interrupt_changed, self._eoi, self.apics, host.memory,
                cpu.init, cpu.startup, cpu.is_elsewhere,
            )
        )  # fmt: skip
        self.apics.add(apic)
        clock = self.add(kvmclock.KvmClock(host.memory, host.clock, host.tsc_hz, host.read_tsc, origin_ns))
        clock.name = f"kvmclock{number}"
        return CpuParts(apic, MsrRouter(apic, clock), OwnApicSpace(self.mmio, apic))

    def _leave_as_firmware(self) -> None:
        """What firmware leaves behind: the 8259 pair reaches the CPU through LINT0, NMI through LINT1 (MP Specification 1.4, 3.6.2.2).

        Firmware itself finds the same: pins of a CPU whose local APIC is off are INTR and NMI.
        """
        for register, value in ((_APIC_SVR, 0x1FF), (_APIC_LVT_LINT0, 0x700), (_APIC_LVT_LINT1, 0x400)):
            self.apic.write(register, 4, value)
        self.isa.start_as_firmware()

    def _pic_output(self, level: bool) -> None:
        self.apic.set_lint0(level)

    def _eoi(self, vector: int) -> None:
        self.ioapic.eoi(vector)

    def _add_legacy_parts(self) -> None:
        host, ports = self.host, self.map_ports
        self.pit = self.add(pit8254.Pit(self.pin(TIMER_IRQ), host.clock))
        self.rtc = self.add(rtc.Rtc(self.pin(RTC_IRQ), host.clock))
        self.uart = self.add(uart16550.Uart(self.pin(SERIAL_IRQ), host.console, host.clock))
        self.power = self.add(
            acpi_pm.AcpiPm(self.pin(SCI_IRQ), host.clock, host.power_off, legacy_start=host.firmware is not None and self.has_acpi)
        )
        ports(pic8259.MASTER_BASE, 2, self.pic.master, "pic-master")
        ports(pic8259.SLAVE_BASE, 2, self.pic.slave, "pic-slave")
        ports(pic8259.ELCR_BASE, 2, self.pic.elcr, "pic-elcr")
        ports(0x40, 4, self.pit.ports, "pit")
        ports(0x61, 1, self.pit.port61, "system-control-b")
        ports(0x70, 2, self.rtc, "rtc")
        ports(SERIAL_PORT, 8, self.uart, "com1")
        self.ports.hints.update({SERIAL_PORT: self.uart.transmitter, SERIAL_PORT + 5: self.uart.line_status})
        self._map_power_ports()
        self.map_mmio(ioapic.IOAPIC_BASE, ioapic.IOAPIC_SIZE, self.ioapic, "ioapic")
        self.map_mmio(APIC_BASE, APIC_SIZE, self.apic, "local-apic")
        if "debug-exit" in host.extras:
            part = self.add(debug_exit.DebugExit(host.debug_exit))
            ports(debug_exit.DEBUG_EXIT_BASE, debug_exit.DEBUG_EXIT_PORTS, part, "debug-exit")

    def _map_power_ports(self) -> None:
        ports = self.map_ports
        ports(POWER.pm1_event_port, 4, self.power.pm1_event, "acpi-pm1-event")
        ports(POWER.pm1_control_port, 2, self.power.pm1_control, "acpi-pm1-control")
        ports(POWER.pm_timer_port, 4, self.power.timer, "acpi-pm-timer")

    def _virtio_devices(self) -> list[VirtioDevice]:
        """Disks first: they appear in the order of the spec (vda, vdb, ...)."""
        host = self.host
        found: list[VirtioDevice] = [virtio_block.VirtioBlock(d.block, host.executor) for d in host.drives if d.interface == "virtio"]
        # A kernel's start needs randomness and the kernel is recent; what firmware starts may be older than the device.
        if host.firmware is None and self.has_virtio or "virtio-rng" in host.extras:
            found.append(virtio_rng.VirtioRng())
        if "virtio-console" in host.extras:
            self._console = virtio_console.VirtioConsole(host.console, host.executor)
            found.append(self._console)
        if "agent" in host.extras:
            self.serial_ports = virtio_serial.VirtioSerial()
            found.append(self.serial_ports)
        return found

    def add_virtio(self, device: VirtioDevice) -> None:
        raise UserError(f"The board {self.name} has no place for {device.name}.", "Use --board pc.")

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
        return AcpiConfig(
            cpus=self.host.cpus,
            power=POWER,
            serial_ports=(SerialPort(SERIAL_PORT, SERIAL_IRQ),),
            ps2=self.isa.has_keyboard,
            vga=self.screen is not None,
            floppy=self.isa.has_floppy,
            parallel_ports=(SerialPort(LPT1_BASE, LPT1_IRQ),) if self.isa.has_parallel else (),
        )

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

    def interrupt_waits(self, deaf: bool = False) -> bool:
        """Whether the first vCPU, halted, has to wake up; of one with interrupts disabled, only for an NMI."""
        return self.apic.nmi_pending or (not deaf and self.apic.pending())

    def interrupts_of(self, number: int) -> InterruptController:
        """Of the vCPU with this APIC id."""
        return self.further[number - 1].apic if number else self.interrupts

    def resize_console(self, columns: int, rows: int) -> None:
        if self._console is not None:
            self._console.resize(columns, rows)

    def press_power_button(self) -> None:
        self.power.press_power_button()

    def reset(self) -> None:
        """The reset button: every device."""
        for device in self.devices:
            device.reset()
        self._leave_as_firmware()

    def cpu_reset(self) -> None:
        """What goes with a reset of the CPU alone: its local APIC, and the gate that could hide the reset vector."""
        for apic in (self.apic, *(parts.apic for parts in self.further)):
            apic.reset()
        self._leave_as_firmware()
        self.isa.open_a20()

    def pause(self) -> None:
        """Brings every device to rest: work under way is finished, output is written out."""
        for device in self.devices:
            device.pause()
