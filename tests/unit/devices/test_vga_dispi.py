"""The Bochs VBE registers: identity, capabilities, values that make no picture."""

from __future__ import annotations

import random

import pytest

from tests.unit.devices.vga_rig import Rig

ID, XRES, YRES, BPP, ENABLE, BANK, VIRT_WIDTH, VIRT_HEIGHT, X_OFFSET, Y_OFFSET, MEMORY = range(11)


def test_identity() -> None:
    rig = Rig()
    assert (rig.get_vbe(ID), rig.get_vbe(MEMORY), rig.get_vbe(11)) == (0xB0C5, 64, 0)
    rig.vbe(id=0xB0C2)  # a driver asks for an older interface
    assert rig.get_vbe(ID) == 0xB0C2
    rig.vbe(id=0x1234)
    assert rig.get_vbe(ID) == 0xB0C2
    rig.ports.write(0x1CE, 2, ID)
    assert rig.ports.read(0x1D0, 2) == 0xB0C2 and rig.ports.read(0x1CE, 2) == ID


def test_capabilities() -> None:
    rig = Rig()
    rig.vbe(xres=640, yres=480, bpp=8, enable=2)
    assert (rig.get_vbe(XRES), rig.get_vbe(YRES), rig.get_vbe(BPP)) == (2560, 1600, 32)
    rig.vbe(enable=0)
    assert (rig.get_vbe(XRES), rig.get_vbe(YRES), rig.get_vbe(BPP)) == (640, 480, 8)


def test_enabling_sets_up_the_virtual_screen_and_clears_memory() -> None:
    rig = Rig()
    rig.card.memory.bytes[:] = 0xEE
    rig.vbe(x_offset=5, y_offset=6, virt_width=99, xres=1024, yres=768, bpp=16, enable=0x41)
    assert [rig.get_vbe(k) for k in (VIRT_WIDTH, VIRT_HEIGHT, X_OFFSET, Y_OFFSET)] == [1024, 2048, 0, 0]
    shown = 1024 * 768 * 2
    assert not rig.card.memory.bytes[:shown].any() and (rig.card.memory.bytes[shown:] == 0xEE).all()
    rig.card.memory.bytes[:] = 0xEE
    rig.vbe(enable=0)
    rig.vbe(enable=0xC1)
    assert (rig.card.memory.bytes == 0xEE).all()


def test_text_returns_when_vbe_is_disabled() -> None:
    rig = Rig()
    rig.mode("80x25")
    rig.poke(0xB8000, *b"o\x07k\x07")
    rig.vbe(xres=640, yres=480, bpp=32, enable=0xC1)
    assert rig.card.text() is None and rig.card.frame()[:2] == (640, 480)
    rig.vbe(enable=0)
    screen = rig.card.text()
    assert screen is not None and screen.lines[0].startswith("ok")


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ((1001, 700, 32), (1000, 700, 32)),
        ((0, 0, 0), (8, 1, 8)),
        ((0xFFFF, 0xFFFF, 0xFFFF), (2560, 409, 32)),  # 4 MiB hold no more lines
        ((640, 480, 13), (640, 480, 15)),
        ((2560, 1600, 8), (2560, 1600, 8)),
        ((2560, 1600, 4), (2560, 1600, 4)),
    ],
)
def test_what_makes_no_picture_is_pulled_to_what_does(asked: tuple[int, int, int], given: tuple[int, int, int]) -> None:
    rig = Rig()
    rig.vbe(xres=asked[0], yres=asked[1], bpp=asked[2], enable=1)
    assert tuple(rig.get_vbe(k) for k in (XRES, YRES, BPP)) == given


def test_a_picture_may_start_anywhere_but_not_end_behind_memory() -> None:
    rig = Rig()
    rig.vbe(xres=800, yres=600, bpp=32, enable=0x41)
    rig.vbe(x_offset=700, y_offset=709)  # of 1310 lines: the last line ends 700 pixels into line 1309
    assert (rig.get_vbe(X_OFFSET), rig.get_vbe(Y_OFFSET)) == (700, 709)
    rig.vbe(y_offset=0xFFFF)
    assert (rig.get_vbe(X_OFFSET), rig.get_vbe(Y_OFFSET)) == (0, 710)


def test_random_registers_always_describe_a_picture_within_memory() -> None:
    rng = random.Random(4)
    rig = Rig(vram_bytes=1 << 20)
    for _ in range(2000):
        rig.ports.write(0x1CE, 2, rng.randrange(12))
        rig.ports.write(0x1CF, 2, rng.choice((rng.randrange(64), rng.randrange(2048), rng.getrandbits(16))))
        if rig.card.state.vbe:
            mode = rig.card.dispi.mode()
            bytes_wide = mode.width // 8 if mode.bpp == 4 else mode.width * (mode.bpp + 7 >> 3)
            size = (1 << 20) // (4 if mode.bpp == 4 else 1)
            assert mode.start + (mode.height - 1) * mode.pitch_bytes + bytes_wide <= size
            assert 8 <= mode.width <= 2560 and 1 <= mode.height <= 1600
