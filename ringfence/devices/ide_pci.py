"""IDE function of the PIIX3 (Intel 82371SB data sheet, 290550-002, 2.3 and 2.7): two channels with bus-master DMA.

    configuration   20-23 BMIBA   40-41 IDETIM primary   42-43 IDETIM secondary   44 SIDETIM
    BMIBA + 0       bus master of the primary channel, + 8 of the secondary

The channels keep the ports and ISA interrupts of old (programming interface 80h: compatibility mode, bus master).  Timings
are kept and without effect; IDE Decode Enable (IDETIM bit 15) counts.  It is set after a reset, other than in the data
sheet, as boards may start a kernel without firmware.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ringfence.bus.irq import IrqPin
from ringfence.bus.pci import STATUS, BarKind, PciFunction, PciState
from ringfence.core.errors import SnapshotError
from ringfence.devices.api import Device
from ringfence.devices.ide_busmaster import BUS_MASTER_PORTS, BusMaster
from ringfence.devices.ide_channel import IdeChannel
from ringfence.devices.ide_drive import IdeDrive
from ringfence.memory.guest_memory import GuestMemory

VENDOR_INTEL, DEVICE_PIIX3_IDE, CLASS_IDE = 0x8086, 0x7010, 0x010180
BMIBA_BAR, BMIBA_PORTS = 4, 16
IDETIM, SIDETIM = 0x40, 0x44
DECODE_ENABLE = 1 << 15
_STATUS_RESET = 0x0280  # fast back-to-back, medium DEVSEL#
_LATENCY_TIMER = 0x0D


class PiixIde(Device):
    """`drives` are primary master and slave, secondary master and slave; `irqs` the pins of ISA IRQ 14 and 15.

    The board plugs `function` into PCI (function 1 of the PIIX's slot) and the channels into the port space.
    """

    name = "piix-ide"
    state: PciState

    def __init__(self, memory: GuestMemory, irqs: tuple[IrqPin, IrqPin], drives: Sequence[IdeDrive | None]) -> None:
        slots = [*drives, None, None, None, None][: max(4, len(drives))]
        if len(slots) > 4:
            raise ValueError(f"{self.name}: {len(slots)} drives; there is room for four")
        self.channels = [
            IdeChannel(irq, slots[2 * k : 2 * k + 2], BusMaster(memory), f"ide{k}") for k, irq in zip((0, 1), irqs, strict=True)
        ]
        self.function = PciFunction(self.name, VENDOR_INTEL, DEVICE_PIIX3_IDE, CLASS_IDE)
        self.state = self.function.state
        self.function.add_bar(BMIBA_BAR, BMIBA_PORTS, self, BarKind.IO)
        self.function.preset(STATUS, 2, _STATUS_RESET)
        self.function.allow(_LATENCY_TIMER, 1, 0xF0)
        for offset in (IDETIM, IDETIM + 2):
            self.function.preset(offset, 2, DECODE_ENABLE)
            self.function.allow(offset, 2, 0xFFFF)
        self.function.allow(SIDETIM, 1, 0xFF)
        self.function.on_config_write(IDETIM, 4, self._decode)

    def _decode(self) -> None:
        for k, channel in enumerate(self.channels):
            channel.decoded = bool(self.function.read_config(IDETIM + 2 * k, 2) & DECODE_ENABLE)

    # -- BMIBA ----------------------------------------------------------------------------------------------------

    def _port(self, offset: int, size: int) -> tuple[BusMaster, int] | None:
        bus_master = self.channels[offset // BUS_MASTER_PORTS].bus_master
        inside = offset % BUS_MASTER_PORTS
        return (bus_master, inside) if bus_master is not None and inside + size <= BUS_MASTER_PORTS else None

    def read(self, offset: int, size: int) -> int:
        port = self._port(offset, size)
        return port[0].ports.read(port[1], size) if port is not None else (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        port = self._port(offset, size)
        if port is not None:
            port[0].ports.write(port[1], size, value)

    # -- life -----------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        for channel in self.channels:
            channel.reset()
        self.function.reset()
        self._decode()

    def save(self) -> dict[str, Any]:
        return {**self.function.save(), "channels": [channel.save() for channel in self.channels]}

    def load(self, saved: dict[str, Any]) -> None:
        saved = dict(saved)
        channels = saved.pop("channels", None)
        if not isinstance(channels, list) or len(channels) != len(self.channels):
            raise SnapshotError(f"{self.name}: the channels are missing")
        self.function.load(saved)
        self._decode()
        for channel, fields in zip(self.channels, channels, strict=True):
            channel.load(fields)

    def pause(self) -> None:
        for channel in self.channels:
            channel.pause()

    def resume(self) -> None:
        for channel in self.channels:
            channel.resume()
