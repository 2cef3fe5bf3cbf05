"""Host bridge and the ways into PCI configuration space.

Intel 82441FX (440FX PMC), 290549-001: host bridge 8086:1237 at 00:00.0 and configuration mechanism #1 at ports 0xCF8
and 0xCFC (also PCI Local Bus Specification 3.0, 3.2.2.3.2).  `Ecam` is the memory-mapped way of PCI Express Base 3.0,
7.2.2.
"""

from __future__ import annotations

from typing import Any

from ringfence.bus.bus import Handler
from ringfence.bus.pci import CONFIG_BYTES, PciBus, PciFunction
from ringfence.core.errors import SnapshotError
from ringfence.core.state import Field, State
from ringfence.devices.api import Device

CONFIG_ADDRESS_PORT = 0xCF8
CONFIG_PORTS = 8
ADDRESS_ENABLE = 1 << 31
ADDRESS_WRITABLE = 0x80FFFFFC
ECAM_BYTES_PER_BUS = 1 << 20


class PciHostState(State):
    config_address = Field(32, doc="CONFADD: enable, bus, device, function, register")


class PciHost(Device):
    """The host bridge; a handler for the eight ports from 0xCF8.

    Only 32-bit accesses reach the address register.  A byte access to 0xCF9 in its midst goes to `reset_control`, the
    chipset's reset control register, at offset 0.
    """

    name = "pci-host"
    state: PciHostState

    def __init__(self, bus: PciBus, reset_control: Handler | None = None, bridge: PciFunction | None = None) -> None:
        """`bridge` is the function at 00:00.0, a plain one where none is given."""
        self.state = PciHostState()
        self.bus = bus
        self.bridge = bridge or PciFunction("host-bridge", 0x8086, 0x1237, 0x060000, revision_id=2)
        self._reset_control = reset_control
        bus.add(0, self.bridge)

    def read(self, offset: int, size: int) -> int:
        if offset >= 4 and offset - 4 + size <= 4:
            address = self.state.config_address
            if address & ADDRESS_ENABLE and not address & 0xFF0000:
                return self.bus.read_config(address >> 8 & 0xFF, (address & 0xFC) + offset - 4, size)
        elif offset == 0 and size == 4:
            return int(self.state.config_address)
        elif offset == 1 and size == 1 and self._reset_control is not None:
            return self._reset_control.read(0, 1)
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        if offset >= 4 and offset - 4 + size <= 4:
            address = self.state.config_address
            if address & ADDRESS_ENABLE and not address & 0xFF0000:
                self.bus.write_config(address >> 8 & 0xFF, (address & 0xFC) + offset - 4, size, value)
        elif offset == 0 and size == 4:
            self.state.config_address = value & ADDRESS_WRITABLE
        elif offset == 1 and size == 1 and self._reset_control is not None:
            self._reset_control.write(0, 1, value)

    def reset(self) -> None:
        self.state.reset()
        self.bridge.reset()

    def save(self) -> dict[str, Any]:
        return {"host": self.state.save(), "bridge": self.bridge.save()}

    def load(self, saved: dict[str, Any]) -> None:
        if saved.keys() != {"host", "bridge"}:
            raise SnapshotError(f"{self.name}: parts differ: {sorted(saved)}")
        self.state.load(saved["host"])
        self.bridge.load(saved["bridge"])


class Ecam:
    """Handler for `ECAM_BYTES_PER_BUS` of MMIO: bus 0, 4 KiB a function.  Without state of its own.

    The functions here are conventional: their extended space reads as zero, which means "no extended capabilities".
    """

    def __init__(self, bus: PciBus) -> None:
        self._bus = bus

    def read(self, offset: int, size: int) -> int:
        devfn, register = offset >> 12 & 0xFF, offset & 0xFFF
        if devfn not in self._bus.functions:
            return (1 << 8 * size) - 1
        return self._bus.read_config(devfn, register, size) if register + size <= CONFIG_BYTES else 0

    def write(self, offset: int, size: int, value: int) -> None:
        register = offset & 0xFFF
        if register + size <= CONFIG_BYTES:
            self._bus.write_config(offset >> 12 & 0xFF, register, size, value)
