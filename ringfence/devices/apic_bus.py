"""Messages between local APICs, I/O APIC and MSI devices: who is meant by a destination (Intel SDM volume 3A, sections
"Determining IPI Destination" and "Message Signalled Interrupts")."""

from __future__ import annotations

from typing import Protocol

from ringfence.devices.apic_state import FIXED, INIT, LOWEST_PRIORITY

_SELF, _ALL, _OTHERS = 1, 2, 3
_ASSERT, _LEVEL = 1 << 14, 1 << 15


class Destination(Protocol):
    """A local APIC, as a message sees it."""

    def is_destination(self, destination: int, logical: bool) -> bool: ...

    def priority(self) -> int: ...

    def deliver(self, mode: int, vector: int, level_triggered: bool = False) -> None: ...


class ApicBus:
    """All local APICs of a machine; is a `bus.irq.MsiSink`."""

    def __init__(self) -> None:
        self._apics: list[Destination] = []

    def add(self, apic: Destination) -> None:
        self._apics.append(apic)

    def send_msi(self, address: int, data: int) -> None:
        """A write of `data` to 0xfeexxxxx; a write elsewhere is not an interrupt and goes nowhere."""
        if address >> 20 != 0xFEE:
            return
        # Bits 11:5 extend the destination to 15 bits where the guest was told so (KVM_FEATURE_MSI_EXT_DEST_ID).
        destination = address >> 12 & 0xFF | (address >> 5 & 0x7F) << 8
        mode = data >> 8 & 7
        if mode == FIXED and address & 8:  # redirection hint
            mode = LOWEST_PRIORITY
        level_triggered = bool(data & _LEVEL)
        if level_triggered and not data & _ASSERT:
            return
        self._send(destination, bool(address & 4), mode, data & 0xFF, level_triggered)

    def send_ipi(self, source: Destination, destination: int, icr: int) -> None:
        """An interprocessor interrupt; `icr` is the low half of the sender's ICR."""
        mode, vector, shorthand = icr >> 8 & 7, icr & 0xFF, icr >> 18 & 3
        if mode == INIT and icr & _LEVEL and not icr & _ASSERT:
            return  # INIT level de-assert: nothing is left of it in integrated APICs
        if shorthand == 0:
            self._send(destination, bool(icr >> 11 & 1), mode, vector, False)
            return
        for apic in self._apics:
            if shorthand == _ALL or (apic is source) == (shorthand == _SELF):
                apic.deliver(mode, vector)

    def _send(self, destination: int, logical: bool, mode: int, vector: int, level_triggered: bool) -> None:
        targets = [apic for apic in self._apics if apic.is_destination(destination, logical)]
        if mode == LOWEST_PRIORITY and len(targets) > 1:
            targets = [min(targets, key=lambda apic: apic.priority())]
        for apic in targets:
            apic.deliver(mode, vector, level_triggered)
