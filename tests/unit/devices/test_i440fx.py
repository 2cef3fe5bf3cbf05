"""Shadow RAM: each of the four combinations of a PAM nibble, SMRAM, the lock, reset."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ringfence.bus.bus import Bus
from ringfence.core.errors import GuestMemoryError
from ringfence.core.units import KIB, MIB
from ringfence.devices.i440fx import PAM0, SMRAM, I440Fx
from ringfence.memory.guest_memory import GuestMemory

ROM, RAM, DEVICE = "rom", "ram", "device"


class Rig:
    """A bridge over RAM full of 0xaa, a ROM of 256 KiB full of its own address's bits 12-19, and video memory's device."""

    def __init__(self) -> None:
        self.memory = GuestMemory()
        self.memory.add_ram(0, 2 * MIB)
        self.memory.write(0, b"\xaa" * (2 * MIB))
        self.rom = self.memory.add_backing(256 * KIB, "rom")
        for page in range(64):
            self.rom.view[page * 4096 : (page + 1) * 4096] = bytes([page]) * 4096
        self.mmio = Bus("mmio", 1 << 40)
        self.memory.overlay(0xA0000, 0x20000, None)
        self.bridge = I440Fx(self.memory, self.mmio, self.rom)

    def set(self, register: int, value: int) -> None:
        self.bridge.write_config(register, 1, value)

    def source(self, address: int) -> str:
        """Who answers a read."""
        try:
            byte = self.memory.read(address, 1)[0]
        except GuestMemoryError:
            return DEVICE
        return ROM if byte == (address - 0x100000 >> 12) + 64 else RAM

    def written(self, address: int) -> bool:
        """Whether a write, as a CPU makes it, arrives in RAM."""
        self.memory.regions[0].view[address] = 0xAA
        try:
            self.memory.write(address, b"\x55")
        except GuestMemoryError:
            self.mmio.write(address, 1, 0x55)
        arrived = self.memory.regions[0].view[address] == 0x55
        self.memory.regions[0].view[address] = 0xAA
        return arrived


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.memory.close()


SEGMENTS = [(0xF0000, PAM0, 4)] + [(0xC0000 + 0x4000 * n, PAM0 + 1 + n // 2, 4 * (n & 1)) for n in range(12)]


def test_power_on_shows_the_rom_twice_and_holes_below(rig: Rig) -> None:
    assert [rig.source(a) for a in (0x9FFFF, 0xA0000, 0xC0000, 0xDFFFF, 0xE0000, 0xFFFFF, 0x100000)] == [
        RAM,
        DEVICE,
        DEVICE,
        DEVICE,
        ROM,
        ROM,
        RAM,
    ]
    assert rig.bridge.read_config(0, 4) == 0x12378086 and rig.bridge.read_config(0x2C, 4) == 0x11001AF4


@pytest.mark.parametrize(("base", "register", "shift"), SEGMENTS)
def test_each_segment_has_its_nibble(rig: Rig, base: int, register: int, shift: int) -> None:
    end = 0x100000 if base == 0xF0000 else base + 0x4000
    below = ROM if base >= 0xE0000 else DEVICE
    for nibble, reads, writes in (
        (0, below, False),
        (1, RAM, False),
        (2, below, True),
        (3, RAM, True),
        (2, below, True),
        (0, below, False),
    ):
        rig.set(register, nibble << shift)
        for address in (base, end - 1):
            assert (rig.source(address), rig.written(address)) == (reads, writes), f"{nibble} at {address:#x}"
        for address in (base - 1, end):
            if 0xC0000 <= address < 0x100000:
                assert not rig.written(address)


def test_wide_writes_go_behind_the_rom(rig: Rig) -> None:
    rig.set(PAM0, 0x20)
    told: list[tuple[int, int]] = []
    rig.memory.on_write(lambda region, offset, size: told.append((offset, size)))
    rig.mmio.write(0xF1000, 4, 0x44332211)
    assert bytes(rig.memory.regions[0].view[0xF1000:0xF1004]) == b"\x11\x22\x33\x44"
    assert told and rig.memory.read(0xF1000, 1) != b"\x11"
    rig.set(PAM0, 0x10)
    assert rig.memory.read(0xF1000, 4) == b"\x11\x22\x33\x44"


def test_reserved_bits_stay_clear(rig: Rig) -> None:
    for register in range(PAM0, PAM0 + 7):
        rig.set(register, 0xFF)
    assert [rig.bridge.read_config(r, 1) for r in range(PAM0, PAM0 + 7)] == [0x30] + [0x33] * 6


def test_smram_opens_until_it_is_closed_or_locked(rig: Rig) -> None:
    assert rig.bridge.read_config(SMRAM, 1) == 0x02
    rig.set(SMRAM, 0x48)
    assert (rig.bridge.read_config(SMRAM, 1), rig.source(0xA0000), rig.written(0xBFFFF)) == (0x4A, RAM, True)
    rig.set(SMRAM, 0x68)
    assert rig.source(0xA0000) == DEVICE
    rig.set(SMRAM, 0x58)
    assert (rig.bridge.read_config(SMRAM, 1), rig.source(0xA0000)) == (0x1A, DEVICE)
    rig.set(SMRAM, 0x48)
    assert (rig.bridge.read_config(SMRAM, 1), rig.source(0xA0000)) == (0x1A, DEVICE)
    rig.bridge.reset()
    rig.set(SMRAM, 0x48)
    assert rig.source(0xA0000) == RAM


def test_reset_and_load_bring_the_map_along(rig: Rig) -> None:
    for register in range(PAM0, PAM0 + 7):
        rig.set(register, 0x33)
    saved, pieces = rig.bridge.save(), list(rig.memory.pieces)
    rig.bridge.reset()
    assert rig.source(0xFFFF0) == ROM and rig.source(0xC0000) == DEVICE
    rig.bridge.load(saved)
    assert rig.memory.pieces == pieces and rig.source(0xFFFF0) == RAM


def test_a_write_that_changes_nothing_leaves_the_map_alone(rig: Rig) -> None:
    changes: list[int] = []
    rig.memory.on_remap(lambda: changes.append(1))
    rig.set(PAM0, 0)
    rig.bridge.write_config(PAM0 - 1, 4, 0)
    assert not changes
    rig.bridge.write_config(0x5C, 4, 0x33333333)
    assert len(changes) == 1


def test_without_a_rom_there_are_holes() -> None:
    memory = GuestMemory()
    memory.add_ram(0, MIB)
    I440Fx(memory, Bus("mmio", 1 << 40), None)
    with pytest.raises(GuestMemoryError):
        memory.read(0xFFFF0, 16)
    memory.close()
