"""Page walks of a debugger in every paging mode."""

from __future__ import annotations

import pytest

from ringfence.debug.paging import translate
from tests.unit.debug.fakes import FLAT64, Ram

LEGACY = {"cr0": 0x80000001, "cr3": 0x1000, "cr4": 0, "efer": 0}


def put32(ram: Ram, at: int, value: int) -> None:
    ram.write(at, value.to_bytes(4, "little"))


def test_without_paging_addresses_are_physical() -> None:
    assert translate({"cr0": 1, "cr3": 0, "cr4": 0, "efer": 0}, Ram(), 0x1_0000_1234) == 0x1234


@pytest.mark.parametrize(("cr4", "large"), [(0, None), (1 << 4, 0x1234567)])
def test_32_bit(cr4: int, large: int | None) -> None:
    ram = Ram()
    put32(ram, 0x1000 + 4 * 1, 0x2003)
    put32(ram, 0x2000 + 4 * 3, 0x5003)
    put32(ram, 0x1000 + 4 * 2, 0x0100_0083)
    registers = {**LEGACY, "cr4": cr4}
    assert translate(registers, ram, 0x0040_3ABC) == 0x5ABC
    assert translate(registers, ram, 0x0040_4000) is None and translate(registers, ram, 0) is None
    assert translate(registers, ram, 0x0080_0000 | 0x234567) == (None if large is None else 0x0123_4567)


def test_pse36_reaches_above_4_gib() -> None:
    ram = Ram()
    put32(ram, 0x1000, 0x83 | 5 << 13)
    assert translate({**LEGACY, "cr4": 1 << 4}, ram, 0x123) == 5 << 32 | 0x123


def test_pae() -> None:
    ram = Ram()
    ram.put(0x1020 + 8 * 3, 0x2001)
    ram.put(0x2000 + 8 * 511, 0x3003, 0)
    ram.put(0x3000 + 8 * 511, 0x8000_0000_0000_9003)
    ram.put(0x2000, 0xA0_0083)
    registers = {**LEGACY, "cr3": 0x1020, "cr4": 1 << 5}
    assert translate(registers, ram, 0xFFFF_FFFE) == 0x9FFE
    assert translate(registers, ram, 0xC000_1234) == 0xA0_1234
    assert translate(registers, ram, 0) is None


def test_long_mode() -> None:
    ram = Ram()
    ram.put(0x1000 + 8 * 511, 0x2003)
    ram.put(0x2000 + 8 * 510, 0x3003, 0x4000_0083)
    ram.put(0x3000, 0x4003, 0x20_0083)
    ram.put(0x4000, 0x7003)
    registers = dict(FLAT64)
    assert translate(registers, ram, 0xFFFF_FFFF_8000_0005) == 0x7005
    assert translate(registers, ram, 0xFFFF_FFFF_8020_1234) == 0x20_1234
    assert translate(registers, ram, 0xFFFF_FFFF_C123_4567) == 0x4123_4567
    assert translate(registers, ram, 0x8000_0000_0000) is None, "not canonical"
    assert translate({**registers, "cr3": 0xFFFF_F000}, ram, 0) is None, "tables outside of memory"
