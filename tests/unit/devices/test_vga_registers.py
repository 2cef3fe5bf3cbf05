"""The VGA's ports: register files, the DAC, retrace, BAR 2."""

from __future__ import annotations

import pytest

from ringfence.bus.bus import Bus
from ringfence.bus.pci import PciBus
from ringfence.core.clock import ManualClock
from ringfence.core.errors import SnapshotError
from ringfence.devices.vga_card import VgaCard, VgaPci
from ringfence.memory.guest_memory import GuestMemory
from tests.unit.devices.vga_rig import CRTC, GFX, MONO_CRTC, SEQ, Rig

LINE_NS, FRAME_NS = 31_777, 14_268_285  # 900 dots at 28.322 MHz; 449 lines of it
DISPLAY_OFF, RETRACE = 1, 8


def test_registers_read_back_without_reserved_bits() -> None:
    rig = Rig()
    for port, masks in ((SEQ, (0x03, 0x3D, 0x0F, 0x3F, 0x0E)), (GFX, (0x0F, 0x0F, 0x0F, 0x1F, 0x03, 0x7B, 0x0F, 0x0F, 0xFF))):
        for index, mask in enumerate(masks):
            rig.set(port, index, 0xFF)
            assert rig.get(port, index) == mask
        rig.set(port, len(masks), 0xFF)
        assert rig.get(port, len(masks)) == 0


def test_attribute_port_takes_index_and_value_in_turn() -> None:
    rig = Rig()
    rig.read_port(0x3BA)  # the monochrome address, as Miscellaneous Output is 0
    rig.out(0x3C0, 0x11)
    assert rig.get(MONO_CRTC, 0x24) == 0x80
    rig.out(0x3C0, 0x3C)
    rig.out(0x3C0, 0x12)
    rig.read_port(0x3BA)
    rig.out(0x3C0, 0x31)
    assert (rig.read_port(0x3C0), rig.read_port(0x3C1)) == (0x31, 0x3C)
    rig.out(0x3C0, 0x3D)
    assert rig.read_port(0x3C1) == 0x3D
    rig.out(0x3C0, 0x1F)
    rig.out(0x3C0, 0xFF)
    assert rig.read_port(0x3C1) == 0


def test_miscellaneous_output_moves_the_crt_controller() -> None:
    rig = Rig()
    rig.set(MONO_CRTC, 0x0F, 0x5A)
    assert rig.get(CRTC, 0x0F) == 0xFF
    rig.out(0x3C2, 0x67)
    assert rig.get(CRTC, 0x0F) == 0x5A
    assert rig.get(MONO_CRTC, 0x0F) == rig.read_port(0x3BA) == 0xFF
    assert rig.read_port(0x3CC) == 0x67


def test_the_crt_controller_can_be_set_up_before_it_is_moved() -> None:
    """As SeaVGABIOS does.  A search for a second card finds none and changes nothing."""
    rig = Rig()
    rig.mode("80x25")
    rig.set(MONO_CRTC, 0x0F, 0x99)
    assert (rig.get(CRTC, 0x0F), rig.get(MONO_CRTC, 0x0F), rig.read_port(0x3BA)) == (0, 0xFF, 0xFF)
    rig.out(0x3C2, 0x67)
    assert rig.get(CRTC, 0x0F) == 0
    rig.out(0x3C2, 0x66)
    assert rig.get(MONO_CRTC, 0x0F) == 0x99
    rig.set(MONO_CRTC, 0x0F, 0)
    rig.out(0x3C2, 0x67)
    rig.out(0x3C2, 0x66)
    assert rig.get(MONO_CRTC, 0x0F) == 0


def test_crtc_protection_spares_line_compare() -> None:
    rig = Rig()
    rig.mode("80x25")
    rig.set(CRTC, 0x11, 0x8E)
    rig.set(CRTC, 0x00, 0x12)
    rig.set(CRTC, 0x07, 0x00)
    assert (rig.get(CRTC, 0x00), rig.get(CRTC, 0x07)) == (0x5F, 0x0F)
    rig.set(CRTC, 0x11, 0x0E)
    rig.set(CRTC, 0x07, 0x55)
    assert rig.get(CRTC, 0x07) == 0x55


def test_dac_counts_on_and_tells_its_state() -> None:
    rig = Rig()
    rig.out(0x3C8, 254)
    for value in (1, 2, 0xFF, 4, 5, 6, 7, 8, 9):
        rig.out(0x3C9, value)
    assert (rig.read_port(0x3C8), rig.read_port(0x3C7)) == (1, 0)
    rig.out(0x3C7, 254)
    assert rig.read_port(0x3C7) == 3
    assert [rig.read_port(0x3C9) for _ in range(9)] == [1, 2, 0x3F, 4, 5, 6, 7, 8, 9]
    rig.out(0x3C8, 3)
    rig.out(0x3C9, 9)
    rig.out(0x3C9, 9)  # a colour that is never completed does not change the DAC
    rig.out(0x3C7, 3)
    assert rig.read_port(0x3C9) == 0


def test_eight_bit_dac() -> None:
    rig = Rig()
    rig.vbe(enable=0x20)
    rig.out(0x3C8, 0)
    for value in (0x81, 0xFE, 0xFF):
        rig.out(0x3C9, value)
    rig.out(0x3C7, 0)
    assert [rig.read_port(0x3C9) for _ in range(3)] == [0x81, 0xFE, 0xFF]


def test_retrace_follows_the_clock() -> None:
    """Text mode: 449 lines, 400 of them shown, retrace from line 412 on for two lines; 720 of 900 dots shown."""
    rig = Rig()
    rig.mode("80x25")
    rig.clock.advance(5 * FRAME_NS - rig.clock.now_ns() + 1000)
    expected = {0.1: 0, 0.5: 0, 0.9: 1, 200.1: 0, 399.7: 0, 399.9: 1, 400.5: 1, 411.9: 1, 412.1: 9, 413.9: 9, 414.1: 1}
    start = rig.clock.now_ns()
    for line, bits in expected.items():
        rig.clock.advance(start + int(line * LINE_NS) - rig.clock.now_ns())
        rig.read_port(0x3DA)  # tells of what came and went since the last look
        assert rig.read_port(0x3DA) == bits, line


def test_no_edge_is_lost_however_slowly_the_guest_looks() -> None:
    rig = Rig()
    rig.mode("80x25")
    seen = []
    for _ in range(40):
        rig.clock.advance(3 * FRAME_NS + 1)  # always at the same place of the picture, outside of the retrace
        seen.append(rig.read_port(0x3DA) & RETRACE)
    assert seen[:6] in ([0, 8, 0, 8, 0, 8], [8, 0, 8, 0, 8, 0])
    rig.clock.advance(10_000)
    changes = [rig.read_port(0x3DA) & DISPLAY_OFF for _ in range(4) if rig.clock.advance(2 * LINE_NS) is None]
    assert 0 in changes and 1 in changes
    assert len({rig.read_port(0x3DA) for _ in range(10)}) == 1, "time stands still, and so does the beam"


def test_wide_accesses_reach_ports_in_order() -> None:
    rig = Rig()
    rig.ports.write(0x3C4, 2, 0x0F02)
    assert rig.ports.read(0x3C4, 2) == 0x0F02
    rig.ports.write(0x3CE, 4, 0x0508_0308)
    assert rig.get(GFX, 8) == 3


def test_printer_ports_are_left_alone() -> None:
    rig = Rig()
    assert all(rig.ports.find(port) is None for port in (0x3BC, 0x3BD, 0x3BE, 0x3D0, 0x378, 0x1CD, 0x1D2))


class PciRig:
    def __init__(self, rom: bytes = b"") -> None:
        self.memory = GuestMemory()
        self.memory.add_ram(0, 0x100000)
        self.ports, self.mmio = Bus("ports", 1 << 16), Bus("mmio", 1 << 32)
        self.bus = PciBus(self.mmio, self.ports, self.memory)
        self.vga = VgaPci(self.memory, ManualClock(), rom, 4 << 20)
        self.vga.map_legacy(self.ports, self.mmio)
        self.bus.add(2, self.vga)

    def config(self, offset: int, value: int, size: int = 4) -> None:
        self.bus.write_config(2 << 3, offset, size, value)

    def read(self, offset: int, size: int = 4) -> int:
        return self.bus.read_config(2 << 3, offset, size)


def test_pci_identity_and_bars() -> None:
    rig = PciRig()
    assert (rig.read(0), rig.read(8)) == (0x1111_1234, 0x0300_0002)
    for offset in (0x10, 0x18, 0x30):
        rig.config(offset, 0xFFFFFFFF)
    assert (rig.read(0x10), rig.read(0x18), rig.read(0x30)) == (0xFFC00008, 0xFFFFF000, 0)


def test_bar_0_is_video_memory() -> None:
    rig = PciRig()
    rig.config(0x10, 0xE0000000)
    rig.config(4, 2, 2)
    rig.memory.write(0xE0012345, b"there")
    assert rig.vga.card.vram.view[0x12345:0x1234A] == b"there"


def test_expansion_rom() -> None:
    rom = b"\x55\xaa\x4c" + bytes(range(256)) * 150  # 38,403 bytes: no power of two
    rig = PciRig(rom)
    rig.config(0x30, 0xFFFFF801)
    assert rig.read(0x30) == 0xFFFF0001
    rig.config(0x30, 0xF0000001)
    rig.config(4, 2, 2)
    assert rig.memory.read(0xF0000000, len(rom)) == rom


def test_bar_2_holds_edid_ports_and_dispi() -> None:
    """As Linux' bochs driver uses it."""
    rig = PciRig()
    rig.config(0x18, 0xF1000000)
    rig.config(4, 2, 2)
    mmio, base = rig.mmio, 0xF1000000
    edid = bytes(mmio.read(base + k, 1) for k in range(128))
    assert edid[:8] == b"\x00\xff\xff\xff\xff\xff\xff\x00" and sum(edid) & 0xFF == 0
    assert mmio.read(base + 128, 4) == 0
    assert (mmio.read(base + 0x600, 4), mmio.read(base + 0x604, 4)) == (8, 0x1E1E1E1E)
    assert (mmio.read(base + 0x500, 2), mmio.read(base + 0x514, 2)) == (0xB0C5, 64)
    mmio.write(base + 0x402, 1, 0x67)
    mmio.write(base + 0x414, 2, 0x770F)
    assert rig.vga.card.state.crtc[0xF] == 0x77
    for index, value in ((1, 800), (2, 600), (3, 32), (4, 0x41)):
        mmio.write(base + 0x500 + 2 * index, 2, value)
    assert (mmio.read(base + 0x50C, 2), mmio.read(base + 0x50E, 2)) == (800, (4 << 20) // 3200)
    rig.ports.write(0x3C0, 1, 0x20)
    rig.ports.read(0x3DA, 1)
    rig.ports.write(0x3C0, 1, 0x20)
    assert (rig.vga.frame().width, rig.vga.frame().height) == (800, 600)


def test_pci_card_saves_both_of_its_parts() -> None:
    rig = PciRig()
    rig.config(0x10, 0xE0000000)
    rig.ports.write(0x3C2, 1, 0x67)
    saved = rig.vga.save()
    rig.vga.reset()
    assert rig.vga.save() != saved and rig.read(0x10) == 8
    rig.vga.load(saved)
    assert rig.vga.save() == saved
    with pytest.raises(SnapshotError):
        rig.vga.load({name: value for name, value in saved.items() if name != "card"})


def test_loaded_state_is_freed_of_bits_that_no_register_has() -> None:
    rig = Rig()
    saved = rig.card.save()
    saved |= {"seq": [255] * 5, "gfx": [255] * 9, "attr": [255] * 21, "dac_component": 3, "dac_read_index": 255, "dispi": [0xFFFF] * 11}
    rig.card.load(saved)
    rig.poke(0xA0000, 1)
    rig.read_port(0x3C9)
    rig.card.frame()
    rig.card.dispi.mode()


def test_video_memory_must_be_a_power_of_two() -> None:
    for size in (0, 128 << 10, 3 << 20, 512 << 20):
        with pytest.raises(ValueError, match="power of two"):
            VgaCard(GuestMemory(), ManualClock(), size)
