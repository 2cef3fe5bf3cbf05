from __future__ import annotations

import pytest

from ringfence.core.errors import UserError
from ringfence.core.units import GIB, KIB, MIB
from ringfence.machine.boot import layout
from ringfence.machine.boot.layout import E820_RAM, E820_RESERVED, E820Entry
from ringfence.memory.guest_memory import GuestMemory
from tests.unit.boot.images import machine_memory


def test_small_machine_has_one_region_and_the_bios_hole() -> None:
    memory = machine_memory()
    assert [(r.base, r.size_bytes) for r in memory.regions] == [(0, 64 * MIB)]
    assert layout.memory_map(memory) == [
        E820Entry(0, 0x9FC00, E820_RAM),
        E820Entry(0x9FC00, KIB, E820_RESERVED),
        E820Entry(0xE0000, 0x20000, E820_RESERVED),
        E820Entry(MIB, 63 * MIB, E820_RAM),
    ]


def test_ram_above_three_gib_moves_behind_the_hole() -> None:
    memory = machine_memory(5 * GIB)
    assert [(r.base, r.size_bytes) for r in memory.regions] == [(0, 3 * GIB), (4 * GIB, 2 * GIB)]
    assert layout.low_ram_end(memory) == 3 * GIB
    entries = layout.memory_map(memory, [(0xE000_0000, MIB)])
    assert entries[-2:] == [E820Entry(0xE000_0000, MIB, E820_RESERVED), E820Entry(4 * GIB, 2 * GIB, E820_RAM)]
    assert sum(e.size_bytes for e in entries if e.kind == E820_RAM) == 5 * GIB - (MIB - layout.EBDA_ADDR)


def test_reserved_range_inside_ram_is_a_mistake_of_the_board() -> None:
    memory = machine_memory()
    with pytest.raises(ValueError, match="overlaps"):
        layout.memory_map(memory, [(32 * MIB, MIB)])


@pytest.mark.parametrize("size_bytes", [0, MIB, 2 * MIB + 1])
def test_impossible_sizes_are_refused(size_bytes: int) -> None:
    with pytest.raises(UserError):
        layout.add_ram(GuestMemory(), size_bytes)
