"""Firmware configuration: items, the file directory, DMA, hostile access structures."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import pytest

from ringfence.core.units import MIB
from ringfence.devices.debug_console import DebugConsole
from ringfence.devices.fw_cfg import FwCfg
from ringfence.memory.guest_memory import GuestMemory

ACCESS = 0x1000
ERROR, READ, SKIP, SELECT, WRITE = 1, 2, 4, 8, 16


class Rig:
    def __init__(self) -> None:
        self.memory = GuestMemory()
        self.memory.add_ram(0, MIB)
        self.device = FwCfg(self.memory, {5: b"\x01\0"}, {"etc/b": b"bravo", "etc/a": b"alpha!"})

    def take(self, key: int, count: int) -> bytes:
        self.device.select.write(0, 2, key)
        return bytes(self.device.select.read(1, 1) for _ in range(count))

    def dma(self, control: int, length: int, address: int, at: int = ACCESS) -> int:
        self.memory.write(at, struct.pack(">IIQ", control, length, address))
        self.device.write(0, 4, int.from_bytes((at >> 32).to_bytes(4, "big"), "little"))
        self.device.write(4, 4, int.from_bytes((at & 0xFFFF_FFFF).to_bytes(4, "big"), "little"))
        return int.from_bytes(self.memory.read(at, 4), "big")


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.memory.close()


def test_signature_and_features(rig: Rig) -> None:
    assert rig.take(0, 5) == b"QEMU\0" and rig.take(1, 4) == b"\x03\0\0\0"
    assert rig.take(5, 2) == b"\x01\0" and rig.take(0x7777, 3) == b"\0\0\0"
    assert b"".join(rig.device.read(at, 4).to_bytes(4, "little") for at in (0, 4)) == b"QEMU CFG"


def test_directory_names_the_files_and_their_keys(rig: Rig) -> None:
    assert rig.take(0x19, 4) == b"\0\0\0\x02"
    directory = rig.take(0x19, 4 + 128)[4:]
    entries = [struct.unpack(">IHH56s", directory[n : n + 64]) for n in (0, 64)]
    assert [(size, name.rstrip(b"\0")) for size, _, _, name in entries] == [(6, b"etc/a"), (5, b"etc/b")]
    assert [rig.take(key, size) for size, key, _, _ in entries] == [b"alpha!", b"bravo"]


def test_dma_selects_reads_skips_and_refuses_to_write(rig: Rig) -> None:
    assert rig.dma(0x20 << 16 | SELECT | READ, 4, 0x2000) == 0
    assert rig.memory.read(0x2000, 4) == b"alph"
    assert rig.dma(READ, 6, 0x2000) == 0
    assert rig.memory.read(0x2000, 6) == b"a!\0\0\0\0"
    assert rig.dma(0x21 << 16 | SELECT | SKIP, 3, 0) == 0
    assert rig.dma(READ, 2, 0x3000) == 0 and rig.memory.read(0x3000, 2) == b"vo"
    assert rig.dma(0x21 << 16 | SELECT | WRITE, 2, 0x3000) == ERROR
    assert rig.take(0x21, 5) == b"bravo"


@pytest.mark.parametrize(("length", "address"), [(0xFFFF_FFFF, 0), (16, MIB - 8), (1, 1 << 60), (0xFFFF_FFFF, (1 << 64) - 1)])
def test_dma_beyond_ram_is_an_error(rig: Rig, length: int, address: int) -> None:
    at = 0x1000 if address else MIB - 16
    result = rig.dma(READ, length, address, at)
    assert result & ERROR or address == 0  # the transfer ran over its own access structure


def test_access_structure_outside_of_ram_is_ignored(rig: Rig) -> None:
    rig.device.write(0, 4, 0xFFFFFFFF)
    rig.device.write(4, 4, 0xFFFFFFFF)
    assert rig.device.state.dma_high == 0


def test_random_accesses(rig: Rig) -> None:
    draw = random.Random(2)
    for _ in range(2000):
        size = draw.choice((1, 2, 4, 8))
        handler, span = draw.choice(((rig.device, 8), (rig.device.select, 2)))
        handler.read(draw.randrange(span), size)
        handler.write(draw.randrange(span), size, draw.getrandbits(8 * size))


def test_names_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="too long"):
        FwCfg(GuestMemory(), {}, {"x" * 56: b""})


def test_debug_console_hands_out_lines() -> None:
    lines: list[str] = []
    console = DebugConsole(lines.append)
    assert console.read(0, 1) == 0xE9
    for byte in b"SeaBIOS\r\n\n" + b"x" * 300 + b"\xff\n":
        console.write(0, 1, byte)
    assert lines == ["SeaBIOS", "", "x" * 256, "x" * 44 + "ÿ"]
