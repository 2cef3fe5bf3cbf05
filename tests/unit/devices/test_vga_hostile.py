"""Guests that write nonsense: a picture comes out, of bounded size, and the card stays within its memory."""

from __future__ import annotations

import random

import pytest

from ringfence.devices.vga_mode import MAX_DOTS
from tests.unit.devices.vga_modes import MODES
from tests.unit.devices.vga_rig import Rig

SIZES = (1, 2, 4, 8)


def nonsense(rig: Rig, rng: random.Random) -> None:
    kind = rng.random()
    size = rng.choice(SIZES)
    if kind < 0.25:
        rig.ports.write(rng.choice((0x3B4, 0x3C0, 0x3C2, 0x3C4, 0x3C6, 0x3C8, 0x3CE, 0x3D4)), 2, rng.getrandbits(16) & 0xFF1F)
    elif kind < 0.5:
        rig.ports.write(rng.randrange(0x3B0, 0x3E0), size, rng.getrandbits(8 * size))
    elif kind < 0.6:
        rig.ports.write(0x1CE, 2, rng.randrange(12))
        rig.ports.write(0x1CF, 2, rng.choice((rng.randrange(256), rng.getrandbits(16))))
    elif kind < 0.65:
        rig.ports.read(rng.randrange(0x3B0, 0x3E0), size)
    elif kind < 0.66:
        rig.mode(rng.choice(list(MODES)))
    elif kind < 0.9:
        # whatever is visible directly needs no handler; a mistaken engine may call it all the same
        rig.mmio.write(rng.randrange(0xA0000, 0xC0000 - 8), size, rng.getrandbits(8 * size))
    else:
        assert 0 <= rig.mmio.read(rng.randrange(0xA0000, 0xC0000 - 8), size) < 1 << 8 * size


@pytest.mark.parametrize("seed", range(6))
def test_random_registers_and_memory(seed: int) -> None:
    rng = random.Random(seed)
    rig = Rig(vram_bytes=rng.choice((256 << 10, 1 << 20, 4 << 20)))
    rig.card.memory.bytes[:] = list(rng.randbytes(4096)) * (rig.card.vram.size_bytes // 4096)
    sizes = set()
    for step in range(1500):
        nonsense(rig, rng)
        rig.clock.advance(rng.randrange(100_000))
        if step % 12 == 0:
            frame = rig.card.frame()
            assert len(frame.rgb) == 3 * frame.width * frame.height
            if not rig.card.state.vbe:
                assert 1 <= frame.width <= MAX_DOTS and 1 <= frame.height <= MAX_DOTS
            screen = rig.card.text()
            if screen is not None:
                assert len(screen.lines) == screen.rows and {len(line) for line in screen.lines} == {screen.columns}
                assert len(screen.attributes) == screen.columns * screen.rows
            sizes.add(frame[:2])
            pieces = [p for p in rig.memory.pieces if p.region is rig.card.vram and p.base < 0x100000]
            assert all(p.base >= 0xA0000 and p.end <= 0xC0000 and p.offset + p.end - p.base <= p.region.size_bytes for p in pieces)
            assert len(pieces) < 2
    assert len(sizes) > 3


@pytest.mark.parametrize("seed", range(6))
def test_random_state_from_a_snapshot(seed: int) -> None:
    """Every register random at once."""
    rng = random.Random(seed)
    rig = Rig(vram_bytes=1 << 20)
    fields = rig.card.state.FIELDS
    for _ in range(15):
        saved = {
            name: rng.getrandbits(f.bits) if f.count is None else [rng.getrandbits(f.bits) for _ in range(f.count)]
            for name, f in fields.items()
        }
        saved["dispi"][4] = rng.choice((0, 1, saved["dispi"][4]))
        saved["attr_index"] |= 0x20
        saved["seq"][1] &= ~0x20
        rig.card.load(saved)
        frame = rig.card.frame()
        assert len(frame.rgb) == 3 * frame.width * frame.height
        rig.card.text()
        for _ in range(60):
            nonsense(rig, rng)
        rig.card.frame()
