"""ISA bridge with the PCI interrupt router: Intel 82371SB of the PIIX3 (data sheet 290550-002), function 0.

    PIRQA-PIRQD --PIRQRC 0x60-0x63--> ISA interrupt lines (8259 pair, level-triggered by the ELCR)

Devices sit on PIRQ (slot - 1 + pin) mod 4.  The reset control register 0xcf9 is in `reset`, behind the host bridge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ringfence.bus.irq import IrqPin
from ringfence.bus.pci import PciFunction, PciState
from ringfence.core.state import Field
from ringfence.devices.api import Device

PIRQRC = 0x60
PIRQS = 4
ROUTABLE_IRQS = (3, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15)  # 2.2.7: 0-2, 8 and 13 are reserved
_ROUTING_OFF = 0x80


class Piix3State(PciState):
    pirq = Field(1, count=PIRQS, doc="levels of PIRQA-PIRQD")


class Piix3(PciFunction, Device):
    """`irqs` are this part's ends of the ISA lines it may drive, by number (those of ROUTABLE_IRQS)."""

    state_class = Piix3State
    state: Piix3State

    def __init__(self, irqs: Mapping[int, IrqPin]) -> None:
        super().__init__("isa-bridge", 0x8086, 0x7000, 0x060100)
        self._irqs = dict(irqs)
        self.preset(PIRQRC, PIRQS, int.from_bytes(bytes([_ROUTING_OFF]) * PIRQS, "little"))
        self.allow(PIRQRC, PIRQS, int.from_bytes(b"\x8f" * PIRQS, "little"))
        self.preset(0x4C, 1, 0x4D)  # ISA I/O recovery timer, X-Bus chip select, top of memory: kept, without effect
        self.preset(0x4E, 2, 0x0003)
        self.preset(0x69, 1, 0x02)
        for offset, size, mask in ((0x4C, 1, 0x7F), (0x4E, 2, 0x01FF), (0x69, 1, 0xFE)):
            self.allow(offset, size, mask)
        self.on_config_write(PIRQRC, PIRQS, self._route)

    def pirq(self, number: int) -> Callable[[bool], None]:
        """The listener for PIRQ line `number` (0 is PIRQA)."""

        def changed(level: bool) -> None:
            self.state.pirq[number] = int(level)
            self._route()

        return changed

    def _wanted(self) -> set[int]:
        config = self.state.config
        routes = [config[PIRQRC + n] for n in range(PIRQS) if self.state.pirq[n]]
        return {route & 0x0F for route in routes if not route & _ROUTING_OFF}

    def _route(self) -> None:
        wanted = self._wanted()
        for number, pin in self._irqs.items():
            pin.set(number in wanted)

    def reset(self) -> None:
        """Levels belong to whoever drives them."""
        pirq = self.state.pirq
        super().reset()
        self.state.pirq = pirq
        self._route()

    def load(self, saved: dict[str, Any]) -> None:
        super().load(saved)
        wanted = self._wanted()
        for number, pin in self._irqs.items():
            pin.restore(number in wanted)
