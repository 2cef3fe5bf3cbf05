"""Conventional PCI: functions, their configuration space, and the bus they sit on.

PCI Local Bus Specification 3.0, chapter 6 (type 0 headers, 6.2.5 base address registers, 6.7 capabilities).  A
function's base address registers (BARs) claim ranges on the machine's `Bus`es while COMMAND enables decoding; those with
memory of their own (a frame buffer, an expansion ROM) become visible in guest memory itself.  A guest may program any
nonsense: a BAR whose range is taken, is RAM, or lies outside of the address space, claims nothing until the conflict is
gone.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, ClassVar, NamedTuple

from ringfence.bus.bus import Bus, Handler, Range
from ringfence.bus.irq import IrqPin
from ringfence.core.state import Field, State
from ringfence.core.trace import tracer
from ringfence.memory.guest_memory import GuestMemory, Overlay, Region

trace = tracer("pci")

CONFIG_BYTES = 256
FIRST_CAPABILITY = 0x40
# Offsets in a type 0 header
VENDOR_ID, DEVICE_ID, COMMAND, STATUS, REVISION_ID, HEADER_TYPE = 0x00, 0x02, 0x04, 0x06, 0x08, 0x0E
BAR0, SUBSYSTEM_VENDOR_ID, SUBSYSTEM_ID, CAPABILITIES, INTERRUPT_LINE, INTERRUPT_PIN = 0x10, 0x2C, 0x2E, 0x34, 0x3C, 0x3D
COMMAND_IO, COMMAND_MEMORY, COMMAND_BUS_MASTER, COMMAND_INTX_DISABLE = 1 << 0, 1 << 1, 1 << 2, 1 << 10
COMMAND_WRITABLE = 0x0547
STATUS_INTX, STATUS_CAPABILITIES = 1 << 3, 1 << 4
EXPANSION_ROM = 0x30
HEADER_MULTIFUNCTION = 0x80
_ROM_BAR = 6
_ROM_MIN_BYTES = 2048  # the register's bits 10:1 are reserved (6.2.5.2)


class BarKind(Enum):
    IO = 0x1
    MEM32 = 0x0
    MEM64 = 0x4
    PREFETCHABLE32 = 0x8
    PREFETCHABLE64 = 0xC

    @property
    def is_io(self) -> bool:
        return self is BarKind.IO

    @property
    def register_bytes(self) -> int:
        return 8 if self.value & 4 else 4


class Bar(NamedTuple):
    """`size_bytes` (a power of two) of address space behind base address register `number`; a 64-bit one takes two registers.

    Behind it is a `handler`, or bytes that the guest reads, writes and executes directly: a `region`.  Number 6 is the expansion
    ROM's register, which is decoded while its own bit 0 is set too.
    """

    number: int
    size_bytes: int
    kind: BarKind
    handler: Handler | None
    region: Region | None = None

    @property
    def is_rom(self) -> bool:
        return self.number == _ROM_BAR

    @property
    def offset(self) -> int:
        """Of the register in configuration space."""
        return EXPANSION_ROM if self.is_rom else BAR0 + 4 * self.number


class PciState(State):
    config = Field(8, count=CONFIG_BYTES, doc="configuration space")
    intx = Field(1, doc="level the function wants on its INTx pin")


class PciFunction:
    """One function: 256 bytes of configuration space, BARs, capabilities, INTA#.

    It keeps the contract of a device (reset, save, load), which `bus` may not import: layering rule 3.
    Subclasses and owners declare BARs and capabilities while they are built; from `PciBus.add` on the guest drives it.
    Bus mastering is not gated by COMMAND: a function answers to a driver that programmed it, enabled or not.
    A subclass with more state of its own declares it in a `state_class` that extends PciState.
    """

    state_class: ClassVar[type[PciState]] = PciState

    def __init__(
        self,
        name: str,
        vendor_id: int,
        device_id: int,
        class_code: int,
        *,
        revision_id: int = 0,
        subsystem_vendor_id: int = 0,
        subsystem_id: int = 0,
        irq: IrqPin | None = None,
    ) -> None:
        """`class_code` is 24 bits: class, subclass, programming interface."""
        self.name = name
        self.state: PciState = self.state_class()
        self.bars: list[Bar] = []
        self._bus: PciBus | None = None
        self._irq = irq
        self._initial = bytearray(CONFIG_BYTES)
        self._writable = bytearray(CONFIG_BYTES)
        self._next_capability = FIRST_CAPABILITY
        self._last_capability_link = CAPABILITIES
        self._watches: list[tuple[int, int, Callable[[], None]]] = []
        self._mapped: dict[int, Range] = {}
        self._visible: dict[int, tuple[int, Overlay]] = {}  # bars with memory of their own: base, and what undoes it
        self.preset(VENDOR_ID, 2, vendor_id)
        self.preset(DEVICE_ID, 2, device_id)
        self.preset(REVISION_ID, 4, class_code << 8 | revision_id)
        self.preset(SUBSYSTEM_VENDOR_ID, 2, subsystem_vendor_id)
        self.preset(SUBSYSTEM_ID, 2, subsystem_id)
        self.preset(INTERRUPT_PIN, 1, 1 if irq is not None else 0)
        self.allow(COMMAND, 2, COMMAND_WRITABLE)
        self.allow(INTERRUPT_LINE, 1, 0xFF)
        self.allow(0x0C, 1, 0xFF)  # cache line size: without effect, but drivers read it back

    # -- building -------------------------------------------------------------------------------------------------

    def preset(self, offset: int, size: int, value: int) -> None:
        """Sets what the guest finds in configuration space, now and after every reset."""
        data = value.to_bytes(size, "little")
        self._initial[offset : offset + size] = data
        self.state.config[offset : offset + size] = data

    def allow(self, offset: int, size: int, mask: int) -> None:
        """Lets the guest write the bits of `mask`."""
        self._writable[offset : offset + size] = mask.to_bytes(size, "little")

    def add_bar(self, number: int, size_bytes: int, handler: Handler, kind: BarKind = BarKind.MEM32) -> Bar:
        """Declares a BAR; `handler` sees offsets from its base."""
        return self._declare(Bar(number, size_bytes, kind, handler))

    def add_ram_bar(self, number: int, region: Region, kind: BarKind = BarKind.PREFETCHABLE32) -> Bar:
        """Declares a BAR behind which are the bytes of `region` (from `GuestMemory.add_backing`), a power of two."""
        return self._declare(Bar(number, region.size_bytes, kind, None, region))

    def add_rom(self, region: Region) -> Bar:
        """Declares the expansion ROM (6.2.5.2); `region` holds its image and is a power of two long."""
        return self._declare(Bar(_ROM_BAR, region.size_bytes, BarKind.MEM32, None, region))

    def _declare(self, bar: Bar) -> Bar:
        minimum = _ROM_MIN_BYTES if bar.is_rom else 4 if bar.kind.is_io else 16
        if bar.size_bytes < minimum or bar.size_bytes & bar.size_bytes - 1:
            raise ValueError(f"{self.name}: a BAR of {bar.size_bytes} bytes is not a power of two of at least {minimum}")
        self.bars.append(bar)
        width = bar.kind.register_bytes
        self.preset(bar.offset, width, bar.kind.value)
        self.allow(bar.offset, width, -bar.size_bytes & (1 << 8 * width) - 1 | bar.is_rom)
        return bar

    def add_capability(self, capability_id: int, body: bytes, writable: bytes = b"") -> int:
        """Appends to the capabilities list; `body` follows the two bytes of ID and link, `writable` masks it.

        Returns the capability's offset in configuration space.
        """
        offset = self._next_capability
        self._next_capability = offset + 2 + len(body) + 3 & ~3
        if self._next_capability > CONFIG_BYTES:
            raise ValueError(f"{self.name}: the capabilities do not fit")
        self.preset(self._last_capability_link, 1, offset)
        self._last_capability_link = offset + 1
        self.preset(offset, 1, capability_id)
        for k, byte in enumerate(body):
            self.preset(offset + 2 + k, 1, byte)
        for k, mask in enumerate(writable):
            self.allow(offset + 2 + k, 1, mask)
        self.preset(STATUS, 2, STATUS_CAPABILITIES)
        return offset

    def on_config_write(self, offset: int, size: int, callback: Callable[[], None]) -> None:
        """`callback` runs after a write that touches [offset, offset + size)."""
        self._watches.append((offset, offset + size, callback))

    # -- the guest's side -----------------------------------------------------------------------------------------

    def read_config(self, offset: int, size: int) -> int:
        """`offset` + `size` lie within the 256 bytes."""
        return int.from_bytes(self.state.config[offset : offset + size], "little")

    def write_config(self, offset: int, size: int, value: int) -> None:
        config, writable = self.state.config, self._writable
        for k in range(offset, offset + size):
            config[k] = config[k] & ~writable[k] | value & writable[k]
            value >>= 8
        end = offset + size
        if offset < COMMAND + 2 and end > COMMAND:
            self._drive_intx()
            self._remap()
        elif (offset < BAR0 + 24 and end > BAR0) or (offset < EXPANSION_ROM + 4 and end > EXPANSION_ROM):
            self._remap()
        for start, stop, callback in self._watches:
            if offset < stop and start < end:
                callback()

    @property
    def command(self) -> int:
        config = self.state.config
        return int(config[COMMAND] | config[COMMAND + 1] << 8)

    def set_intx(self, level: bool) -> None:
        """Asserts or deasserts INTA#."""
        self.state.intx = int(level)
        self._drive_intx()

    def _intx_level(self) -> bool:
        return bool(self.state.intx) and not self.command & COMMAND_INTX_DISABLE

    def _drive_intx(self) -> None:
        config = self.state.config
        config[STATUS] = config[STATUS] & ~STATUS_INTX | (STATUS_INTX if self.state.intx else 0)
        if self._irq is not None:
            self._irq.set(self._intx_level())

    # -- decoding -------------------------------------------------------------------------------------------------

    def bar_address(self, bar: Bar) -> int | None:
        """Where the BAR decodes, or None while COMMAND keeps it off or nobody has placed it (address 0)."""
        if not self.command & (COMMAND_IO if bar.kind.is_io else COMMAND_MEMORY):
            return None
        raw = self.read_config(bar.offset, bar.kind.register_bytes)
        if bar.is_rom and not raw & 1:
            return None
        return raw & -bar.size_bytes or None

    def _remap(self) -> None:
        if self._bus is not None:
            self._bus.remap()

    def _unmap_moved(self, bus: PciBus) -> None:
        for bar in self.bars:
            entry = self._mapped.get(bar.number)
            if entry is not None and entry.base != self.bar_address(bar):
                (bus.pio if bar.kind.is_io else bus.mmio).remove(entry)
                del self._mapped[bar.number]
            shown = self._visible.get(bar.number)
            if shown is not None and bus.memory is not None and shown[0] != self.bar_address(bar):
                bus.memory.remove(shown[1])
                del self._visible[bar.number]

    def _map_missing(self, bus: PciBus) -> None:
        for bar in self.bars:
            if bar.number in self._mapped or bar.number in self._visible or (base := self.bar_address(bar)) is None:
                continue
            try:
                if bar.handler is not None:
                    space = bus.pio if bar.kind.is_io else bus.mmio
                    self._mapped[bar.number] = space.add(base, bar.size_bytes, bar.handler, f"{self.name} BAR {bar.number}")
                elif bar.region is not None:
                    self._visible[bar.number] = base, bus.show(base, bar.region, writable=not bar.is_rom)
            except ValueError as conflict:  # the guest's choice of address; tried again whenever a BAR moves
                if trace:
                    trace("%s BAR %d not mapped: %s", self.name, bar.number, conflict)

    # -- life -----------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        self.state.reset()
        self.state.config[:] = self._initial
        self._drive_intx()
        self._remap()

    def save(self) -> dict[str, Any]:
        return self.state.save()

    def load(self, saved: dict[str, Any]) -> None:
        self.state.load(saved)
        if self._irq is not None:
            self._irq.restore(self._intx_level())
        self._remap()


class PciBus:
    """Bus 0: up to 32 slots of 8 functions, decoding onto the machine's MMIO and port spaces, and into its `memory`."""

    def __init__(self, mmio: Bus, pio: Bus, memory: GuestMemory | None = None) -> None:
        """`memory` is needed for functions that have BARs with memory of their own."""
        self.mmio = mmio
        self.pio = pio
        self.memory = memory
        self.functions: dict[int, PciFunction] = {}  # by devfn = slot << 3 | function number

    def add(self, slot: int, function: PciFunction, number: int = 0) -> None:
        """Plugs a function in; raises ValueError when the place is taken."""
        devfn = slot << 3 | number
        if not (0 <= slot < 32 and 0 <= number < 8) or devfn in self.functions:
            raise ValueError(f"PCI slot {slot}.{number} for {function.name} is taken or does not exist")
        self.functions[devfn] = function
        function._bus = self
        # 6.2.1: function 0 announces the others
        if any(other & 7 for other in self.functions if other >> 3 == slot) and (first := self.functions.get(slot << 3)):
            first.preset(HEADER_TYPE, 1, HEADER_MULTIFUNCTION)
        self.remap()

    def read_config(self, devfn: int, offset: int, size: int) -> int:
        """All ones where no function answers."""
        function = self.functions.get(devfn)
        if function is None:
            return (1 << 8 * size) - 1
        return function.read_config(offset, size)

    def write_config(self, devfn: int, offset: int, size: int, value: int) -> None:
        function = self.functions.get(devfn)
        if function is not None:
            function.write_config(offset, size, value)

    def remap(self) -> None:
        """Brings the buses in line with all BARs; ranges that moved away make room first."""
        for function in self.functions.values():
            function._unmap_moved(self)
        for function in self.functions.values():
            function._map_missing(self)

    def show(self, base: int, region: Region, writable: bool) -> Overlay:
        """Makes a function's memory visible; raises ValueError where RAM answers or nothing can."""
        memory = self.memory
        if memory is None:
            raise ValueError("this bus has no way to memory")
        end = base + region.size_bytes
        # The host bridge passes on only what is not RAM.
        if end > self.mmio.size or any(base < r.end and r.base < end for r in memory.regions):
            raise ValueError(f"{base:#x}-{end:#x} is RAM or lies outside of the address space")
        return memory.overlay(base, region.size_bytes, region, writable=writable)

    def assign_addresses(self, mmio_base: int, mmio_end: int, pio_base: int, pio_end: int) -> None:
        """Places every BAR as firmware would, within the two windows, largest first; decoding stays off.

        For boards that start a kernel without firmware; call it after the last `add`.  The places survive a reset.
        Raises ValueError when a window is too small.
        """
        bars = [(bar, function) for function in self.functions.values() for bar in function.bars]
        next_address = {True: pio_base, False: mmio_base}
        for bar, function in sorted(bars, key=lambda pair: -pair[0].size_bytes):
            is_io = bar.kind.is_io
            base = next_address[is_io] + bar.size_bytes - 1 & -bar.size_bytes
            if base + bar.size_bytes > (pio_end if is_io else mmio_end):
                raise ValueError(f"{function.name} BAR {bar.number} of {bar.size_bytes:#x} bytes does not fit its window")
            next_address[is_io] = base + bar.size_bytes
            function.preset(bar.offset, bar.kind.register_bytes, base | bar.kind.value)
        self.remap()
