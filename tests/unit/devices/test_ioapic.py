"""I/O APIC: redirection table, edge and level delivery, remote IRR."""

from __future__ import annotations

import pytest

from ringfence.devices.ioapic import IoApic


def make() -> tuple[IoApic, list[tuple[int, int]]]:
    sent: list[tuple[int, int]] = []
    return IoApic(lambda address, data: sent.append((address, data))), sent


def write(apic: IoApic, index: int, value: int) -> None:
    apic.write(0, 4, index)
    apic.write(0x10, 4, value)


def read(apic: IoApic, index: int) -> int:
    apic.write(0, 4, index)
    return apic.read(0x10, 4)


def test_identification() -> None:
    apic, _ = make()
    write(apic, 0, 0x0F00_0000)
    assert read(apic, 0) == 0x0F00_0000
    assert read(apic, 1) == 0x0017_0020
    assert read(apic, 0x10) == 0x0001_0000  # masked after reset
    assert read(apic, 0xFF) == 0


def test_edge_delivery() -> None:
    apic, sent = make()
    write(apic, 0x14, 0x0000_0930)  # input 2, logical, lowest priority
    write(apic, 0x15, 0x0300_0000)
    line = apic.input(2)
    line(True)
    line(True)
    assert sent == [(0xFEE0_3004, 0x4130)]
    line(False)
    line(True)
    assert len(sent) == 2


def test_an_edge_on_a_masked_input_is_lost() -> None:
    apic, sent = make()
    apic.input(4)(True)
    write(apic, 0x18, 0x44)
    assert sent == []


def test_level_delivery_waits_for_eoi() -> None:
    apic, sent = make()
    write(apic, 0x22, 0x8000 | 0x51)
    apic.input(9)(True)
    assert sent == [(0xFEE0_0000, 0xC051)]
    assert read(apic, 0x22) == 0xC051  # remote IRR
    apic.input(9)(True)
    assert len(sent) == 1
    apic.eoi(0x52)
    assert len(sent) == 1
    apic.eoi(0x51)
    assert len(sent) == 2  # still asserted
    apic.input(9)(False)
    apic.write(0x40, 4, 0x51)
    assert len(sent) == 2 and read(apic, 0x22) == 0x8051


def test_unmasking_an_asserted_level_input_delivers() -> None:
    apic, sent = make()
    write(apic, 0x22, 0x1_8000 | 0x51)
    apic.input(9)(True)
    assert sent == []
    write(apic, 0x22, 0x8051)
    assert len(sent) == 1


def test_remote_irr_is_read_only_and_cleared_by_edge_mode() -> None:
    apic, _ = make()
    write(apic, 0x22, 0x8051)
    apic.input(9)(True)
    write(apic, 0x22, 0x1_8051)
    assert read(apic, 0x22) & 0x4000
    write(apic, 0x22, 0x1_0051)
    assert not read(apic, 0x22) & 0x4000


def test_there_are_24_inputs() -> None:
    apic, _ = make()
    with pytest.raises(ValueError, match="no input 24"):
        apic.input(24)
