"""I/O APIC (Intel 82093AA data sheet, order 290566-001) with the EOI register of version 0x20 (ICH, PCI 2.3 message form).

An input that is due is sent as an MSI message to the local APICs.  Levels given to the inputs mean "asserted": the
polarity bit is kept for the guest and has no effect.
"""

from __future__ import annotations

from collections.abc import Callable

from ringfence.core.state import Field, State
from ringfence.devices.api import Device

IOAPIC_BASE = 0xFEC0_0000
IOAPIC_SIZE = 0x1000
IOAPIC_INPUTS = 24
_VERSION = 0x20 | (IOAPIC_INPUTS - 1) << 16
_MASKED, _LEVEL, _REMOTE_IRR, _STATUS = 1 << 16, 1 << 15, 1 << 14, 1 << 12
_WRITABLE = 0xFFFF_FFFF_0001_AFFF & ~(0x00FF_FFFF << 32)  # destination, mask, trigger, polarity, modes, vector
_MSI_BASE = 0xFEE0_0000


class IoApicState(State):
    ioregsel = Field(8, doc="register that IOWIN shows")
    ident = Field(4, doc="identification (register 0, bits 27:24)")
    table = Field(64, count=IOAPIC_INPUTS, reset=_MASKED, doc="redirection table")
    lines = Field(IOAPIC_INPUTS, doc="levels of the inputs")


class IoApic(Device):
    """A handler for the page at 0xfec00000.  `deliver(address, data)` takes the messages (`ApicBus.send_msi`)."""

    name = "ioapic"

    def __init__(self, deliver: Callable[[int, int], None]) -> None:
        self.state: IoApicState = IoApicState()
        self._deliver = deliver

    def reset(self) -> None:
        """Input levels belong to whoever drives them; everything else starts anew."""
        lines = self.state.lines
        self.state.reset()
        self.state.lines = lines

    def input(self, number: int) -> Callable[[bool], None]:
        """The listener for input `number` (0-23)."""
        if not 0 <= number < IOAPIC_INPUTS:
            raise ValueError(f"the I/O APIC has no input {number}")
        return lambda level: self._set_line(number, level)

    def eoi(self, vector: int) -> None:
        """A local APIC's EOI of a level-triggered interrupt; sends again what is still asserted."""
        table = self.state.table
        for number, entry in enumerate(table):
            if entry & 0xFF == vector and entry & _REMOTE_IRR:
                table[number] = entry & ~_REMOTE_IRR
                self._service_level(number)

    def _set_line(self, number: int, level: bool) -> None:
        s = self.state
        bit = 1 << number
        if not level:
            s.lines &= ~bit
            return
        rising = not s.lines & bit
        s.lines |= bit
        entry = s.table[number]
        # 82093AA 3.2.4: an edge on a masked input is ignored, not kept.
        if entry & _LEVEL:
            self._service_level(number)
        elif rising and not entry & _MASKED:
            self._send(entry)

    def _service_level(self, number: int) -> None:
        s = self.state
        entry = s.table[number]
        if s.lines >> number & 1 and entry & (_LEVEL | _MASKED | _REMOTE_IRR) == _LEVEL:
            if entry >> 8 & 7 in (0, 1):  # only fixed and lowest priority are answered by an EOI
                s.table[number] = entry | _REMOTE_IRR
            self._send(entry)

    def _send(self, entry: int) -> None:
        address = _MSI_BASE | (entry >> 56) << 12 | (entry >> 11 & 1) << 2
        self._deliver(address, entry & 0x87FF | 1 << 14)

    def read(self, offset: int, size: int) -> int:
        register, byte = offset & 0xFF0, offset & 0xF
        if offset >= 0x50 or byte >= 4:
            return 0
        s = self.state
        value = s.ioregsel if register == 0 else self._read_window(s.ioregsel) if register == 0x10 else 0
        return int(value) >> 8 * byte

    def _read_window(self, index: int) -> int:
        if index in (0, 2):
            return int(self.state.ident) << 24
        if index == 1:
            return _VERSION
        number = index - 0x10 >> 1
        if 0 <= number < IOAPIC_INPUTS:
            return int(self.state.table[number]) >> 32 * (index & 1) & 0xFFFF_FFFF
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        value &= 0xFFFF_FFFF
        if offset == 0:
            self.state.ioregsel = value & 0xFF
        elif offset == 0x10:
            self._write_window(self.state.ioregsel, value)
        elif offset == 0x40:
            self.eoi(value & 0xFF)

    def _write_window(self, index: int, value: int) -> None:
        s = self.state
        if index == 0:
            s.ident = value >> 24 & 0xF
            return
        number = index - 0x10 >> 1
        if not 0 <= number < IOAPIC_INPUTS:
            return
        shift = 32 * (index & 1)
        old = s.table[number]
        entry = old & ~(0xFFFF_FFFF << shift) | value << shift
        entry = entry & _WRITABLE | old & (_REMOTE_IRR | _STATUS)
        if not entry & _LEVEL:
            entry &= ~_REMOTE_IRR  # drivers for version 0x1x acknowledge by switching to edge and back
        s.table[number] = entry
        self._service_level(number)
