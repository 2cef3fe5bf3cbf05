"""The window at 0xa0000: write and read modes, addressing, and when it becomes plain memory."""

from __future__ import annotations

import random

import numpy as np
import pytest

from ringfence.devices.vga_memory import _PATIENCE as PATIENCE
from ringfence.devices.vga_state import LAYOUT_QUAD, LAYOUT_TEXT
from tests.unit.devices.vga_rig import GFX, SEQ, Rig

WINDOW = 0xA0000


@pytest.fixture
def planar() -> Rig:
    """640x480 with 16 colours; planes hold 0x11, 0x22, 0x44 and 0x88 in byte 0, and the latches hold them."""
    rig = Rig()
    rig.mode("640x480x16")
    rig.load_planes((b"\x11\xa1", b"\x22\xa2", b"\x44\xa3", b"\x88\xa4"))
    rig.set(SEQ, 2, 0xF)
    rig.peek(WINDOW)
    return rig


def planes(rig: Rig, offset: int) -> bytes:
    """Bytes of the four planes, read in read mode 0.  Leaves the latches loaded with them."""
    rig.set(GFX, 5, 0)
    found = b""
    for plane in range(4):
        rig.set(GFX, 4, plane)
        found += rig.peek(WINDOW + offset)
    return found


def test_write_mode_0_goes_to_the_planes_of_map_mask(planar: Rig) -> None:
    planar.set(SEQ, 2, 0b0101)
    planar.poke(WINDOW, 0x5A)
    assert planes(planar, 0) == b"\x5a\x22\x5a\x88"


def test_rotate_and_bit_mask(planar: Rig) -> None:
    planar.set(GFX, 3, 3)
    planar.set(GFX, 8, 0xF0)
    planar.poke(WINDOW, 0b1011_0110)  # rotated right by 3: 1101_0110
    assert planes(planar, 0) == bytes(0xD0 | old & 0x0F for old in (0x11, 0x22, 0x44, 0x88))


def test_set_reset_replaces_the_data_of_enabled_planes(planar: Rig) -> None:
    planar.set(GFX, 0, 0b0110)
    planar.set(GFX, 1, 0b0011)
    planar.poke(WINDOW, 0x3C)
    assert planes(planar, 0) == b"\x00\xff\x3c\x3c"


@pytest.mark.parametrize(("function", "expected"), [(1, b"\x10\x20\x40\x80"), (2, b"\xf1\xf2\xf4\xf8"), (3, b"\xe1\xd2\xb4\x78")])
def test_functions_with_the_latches(planar: Rig, function: int, expected: bytes) -> None:
    planar.set(GFX, 3, function << 3)
    planar.poke(WINDOW, 0xF0)
    assert planes(planar, 0) == expected


def test_write_mode_1_copies_the_latches(planar: Rig) -> None:
    planar.set(GFX, 5, 1)
    planar.set(GFX, 8, 0)  # of no influence
    planar.poke(WINDOW + 5, 0x99)
    assert planes(planar, 5) == b"\x11\x22\x44\x88"


def test_write_mode_2_spreads_a_color_over_the_planes(planar: Rig) -> None:
    planar.set(GFX, 5, 2)
    planar.set(GFX, 8, 0x81)
    planar.poke(WINDOW, 0b1001)
    assert planes(planar, 0) == b"\x91\x22\x44\x89"


def test_write_mode_3_draws_set_reset_through_the_data(planar: Rig) -> None:
    planar.set(GFX, 5, 3)
    planar.set(GFX, 0, 0b0011)
    planar.set(GFX, 3, 1)
    planar.set(GFX, 8, 0x7F)
    planar.poke(WINDOW, 0b0000_0111)  # rotated 1000_0011, masked 0000_0011
    assert planes(planar, 0) == b"\x13\x23\x44\x88"


def test_read_mode_1_compares_colors(planar: Rig) -> None:
    planar.load_planes((b"\x0f", b"\x33", b"\x55", b"\x00"))  # pixels 0, 4, 2, 6, 1, 5, 3, 7
    planar.set(GFX, 5, 8)
    planar.set(GFX, 2, 6)
    planar.set(GFX, 7, 0xF)
    assert planar.peek(WINDOW) == b"\x10"
    planar.set(GFX, 7, 0b0110)  # plane 0 does not matter: 6 and 7
    assert planar.peek(WINDOW) == b"\x11"
    planar.set(GFX, 7, 0)
    assert planar.peek(WINDOW) == b"\xff"


def test_latches_can_be_read_at_their_own_register(planar: Rig) -> None:
    for plane, value in enumerate((0x11, 0x22, 0x44, 0x88)):
        planar.set(GFX, 4, plane)
        assert planar.get(0x3D4, 0x22) == value


def test_a_wide_access_is_bytes_in_order(planar: Rig) -> None:
    planar.mmio.write(WINDOW + 8, 4, 0x04030201)
    planar.set(GFX, 4, 0)
    assert planar.mmio.read(WINDOW + 6, 8) == 0x0000_0403_0201_0000


@pytest.mark.parametrize(
    ("select", "base", "size"), [(0, 0xA0000, 0x20000), (1, 0xA0000, 0x10000), (2, 0xB0000, 0x8000), (3, 0xB8000, 0x8000)]
)
def test_memory_map_select(planar: Rig, select: int, base: int, size: int) -> None:
    planar.set(GFX, 6, select << 2 | 1)
    planar.poke(base, 0x77)
    assert planar.peek(base) == b"\x77"
    size = min(size, 0x10000)
    planar.poke(base + size - 1, 0x78)
    assert planar.peek(base + size - 1) == b"\x78"
    for address in {0xA0000, 0xB0000, 0xB8000, 0xBFFFF}:
        if not base <= address < base + max(size, 0x20000 * (select == 0)):
            planar.poke(address, 0x55)
            assert planar.peek(address) == b"\xff"


def test_nothing_answers_while_ram_is_disabled(planar: Rig) -> None:
    planar.out(0x3C2, 0xE1)
    planar.poke(WINDOW, 0x77)
    assert planar.peek(WINDOW) == b"\xff"
    planar.out(0x3C2, 0xE3)
    assert planes(planar, 0) == b"\x11\x22\x44\x88"


def test_chain_4_spreads_bytes_over_the_planes() -> None:
    rig = Rig()
    rig.mode("320x200x256")
    rig.poke(WINDOW + 4, 1, 2, 3, 4)
    rig.set(SEQ, 4, 6)
    assert planes(rig, 1) == b"\x01\x02\x03\x04"


def test_map_mask_holds_in_chain_4() -> None:
    rig = Rig()
    rig.mode("320x200x256")
    rig.set(SEQ, 2, 0b1010)
    rig.poke(WINDOW, 1, 2, 3, 4)
    assert rig.peek(WINDOW, 4) == b"\x00\x02\x00\x04"


def test_odd_even_sends_characters_and_attributes_to_planes_0_and_1() -> None:
    rig = Rig()
    rig.mode("80x25")
    rig.poke(0xB8000, *b"A\x1eB\x2f")
    assert rig.peek(0xB8000, 4) == b"A\x1eB\x2f"
    rig.set(GFX, 6, 5)
    rig.set(SEQ, 4, 6)
    assert (planes(rig, 0), planes(rig, 1)) == (b"A\x1e\0\0", b"B\x2f\0\0")


# -- plain memory ---------------------------------------------------------------------------------------------------


def use(rig: Rig, base: int) -> None:
    for k in range(PATIENCE):
        assert rig.direct is None
        rig.mmio.write(base + k, 1, k)


@pytest.mark.parametrize(
    ("mode", "base", "size"),
    [("80x25", 0xB8000, 0x8000), ("mono", 0xB0000, 0x8000), ("cga4", 0xB8000, 0x8000), ("320x200x256", 0xA0000, 0x10000)],
)
def test_the_window_becomes_plain_memory_with_use(mode: str, base: int, size: int) -> None:
    rig = Rig()
    rig.mode(mode)
    use(rig, base)
    assert rig.direct == (base, size)
    assert rig.peek(base, PATIENCE) == bytes(range(PATIENCE)), "what was written through the handler is there"
    rig.poke(base + size - 1, 0x42)
    rig.set(GFX, 8, 0x0F)
    assert rig.direct is None
    assert rig.peek(base + size - 1) == b"\x42", "and the other way round"


@pytest.mark.parametrize(
    ("port", "index", "value"),
    [(SEQ, 2, 7), (SEQ, 4, 6), (GFX, 1, 1), (GFX, 3, 8), (GFX, 3, 1), (GFX, 5, 0x48), (GFX, 5, 0x42), (GFX, 6, 9)],
)
def test_what_is_not_plain_leaves_plain_memory(port: int, index: int, value: int) -> None:
    rig = Rig()
    rig.mode("320x200x256")
    use(rig, WINDOW)
    assert rig.direct is not None
    old = rig.get(port, index)
    rig.set(port, index, value)
    assert rig.direct is None
    rig.set(port, index, old)
    use(rig, WINDOW)
    assert rig.direct is not None


def test_planar_modes_are_never_plain() -> None:
    for mode in ("640x480x16", "320x200x16", "320x240x256", "cga2"):
        rig = Rig()
        rig.mode(mode)
        for k in range(3 * PATIENCE):
            rig.mmio.write(0xA0000 + k, 1, 1)
            rig.mmio.write(0xB8000 + k, 1, 1)
        assert rig.direct is None, mode


def test_a_font_is_loaded_into_plain_memory() -> None:
    rig = Rig()
    rig.mode("80x25")
    rig.poke(0xB8000, *b"x\x07")
    for port, index, value in ((SEQ, 2, 4), (SEQ, 4, 7), (GFX, 4, 2), (GFX, 5, 0), (GFX, 6, 4)):
        rig.set(port, index, value)
    use(rig, WINDOW)
    assert rig.direct == (WINDOW, 0x10000)
    rig.poke(WINDOW + 0x100, 0xAA, 0x55)
    assert rig.card.memory.plane2(0x100, 2).tolist() == [0xAA, 0x55]
    assert rig.card.state.layout == LAYOUT_TEXT
    rig.mode("80x25")
    assert rig.peek(0xB8000, 2) == b"x\x07"


def test_vbe_banks_are_plain_memory() -> None:
    rig = Rig()
    rig.mode("320x200x256")
    rig.vbe(xres=640, yres=480, bpp=8, enable=1, bank=3)
    use(rig, WINDOW)
    assert rig.direct == (WINDOW, 0x10000)
    rig.poke(WINDOW + 0x20, 0x99)
    assert rig.card.vram.view[0x30020] == 0x99
    rig.vbe(bank=4)
    assert rig.direct is None
    use(rig, WINDOW)
    rig.poke(WINDOW + 0x20, 0x98)
    assert (rig.card.vram.view[0x30020], rig.card.vram.view[0x40020]) == (0x99, 0x98)
    rig.vbe(bank=0xFFFF)  # only banks that exist
    rig.poke(WINDOW, 0x97)
    assert rig.card.vram.view[(4 << 20) - 0x10000] == 0x97


def test_layouts_hold_the_same_planes() -> None:
    rig, rng = Rig(), random.Random(3)
    memory = rig.card.memory
    memory.bytes[:] = list(rng.randbytes(1 << 16)) * 64
    offsets = [0, 1, 0x1234, 0xFFFF]
    at = np.array(offsets)
    before = memory.quads(at).tolist()
    beyond = memory.bytes[1 << 18 :].copy()
    for layout in (LAYOUT_QUAD, LAYOUT_TEXT, LAYOUT_QUAD):
        memory.set_layout(layout)
        assert memory.quads(at).tolist() == before
        assert [memory._load(offset) for offset in offsets] == before
    assert (memory.bytes[1 << 18 :] == beyond).all()


def test_plain_memory_and_handlers_agree_in_any_history() -> None:
    """The same guest on two cards, one of which never goes over to plain memory."""
    rng = random.Random(9)
    rigs = [Rig(), Rig()]
    rigs[1].card.memory._approach = lambda: None  # type: ignore[method-assign]
    went_direct = 0
    for _ in range(40):
        mode = rng.choice(("80x25", "320x200x256", "cga4", "640x480x16", "320x240x256", "mono"))
        steps = [(rng.random(), rng.randrange(0x40), rng.randrange(256)) for _ in range(60)]
        for rig in rigs:
            rig.mode(mode)
            base = {"80x25": 0xB8000, "cga4": 0xB8000, "mono": 0xB0000}.get(mode, 0xA0000)
            for kind, offset, value in steps:
                if kind < 0.9:
                    rig.poke(base + offset, value)
                elif kind < 0.95:
                    rig.set(SEQ, 2, value)
                elif mode.endswith("256") and kind < 0.97:
                    rig.set(SEQ, 4, 0xE if value & 1 else 6)
                went_direct += rig.direct is not None
        assert rigs[0].peek(base, 0x48) == rigs[1].peek(base, 0x48)
        assert rigs[0].card.frame() == rigs[1].card.frame()
    assert went_direct > 5


def test_reset_keeps_video_memory() -> None:
    rig = Rig()
    rig.mode("320x200x256")
    rig.poke(WINDOW, *range(20))
    rig.card.reset()
    assert rig.direct is None
    rig.mode("320x200x256")
    assert rig.peek(WINDOW, 20) == bytes(range(20))
