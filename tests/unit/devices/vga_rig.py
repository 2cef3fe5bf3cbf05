"""A video card on buses of its own, seen as a guest sees it."""

from __future__ import annotations

from collections.abc import Iterable

from ringfence.bus.bus import Bus
from ringfence.core.clock import ManualClock
from ringfence.devices.vga_card import VgaCard, VgaIsa
from ringfence.memory.guest_memory import GuestMemory
from tests.unit.devices.vga_modes import set_dac, set_mode

RAMP = bytes(value for index in range(256) for value in (index & 63, index >> 1 & 63, index >> 2 & 63))  # every colour differs
SEQ, GFX, CRTC, MONO_CRTC = 0x3C4, 0x3CE, 0x3D4, 0x3B4


class Rig:
    def __init__(self, kind: type[VgaCard] = VgaIsa, vram_bytes: int = 4 << 20) -> None:
        self.memory = GuestMemory()
        self.memory.add_ram(0, 0x100000)
        self.clock = ManualClock()
        self.ports, self.mmio = Bus("ports", 1 << 16), Bus("mmio", 1 << 40)
        self.card = kind(self.memory, self.clock, vram_bytes)
        self.card.map_legacy(self.ports, self.mmio)

    # -- ports

    def out(self, port: int, value: int) -> None:
        self.ports.write(port, 1, value)

    def read_port(self, port: int) -> int:
        return self.ports.read(port, 1)

    def set(self, port: int, index: int, value: int) -> None:
        """A register behind an index port."""
        self.ports.write(port, 2, value << 8 | index)

    def get(self, port: int, index: int) -> int:
        self.out(port, index)
        return self.read_port(port + 1)

    def set_attr(self, index: int, value: int) -> None:
        self.read_port(0x3DA)
        self.read_port(0x3BA)
        self.out(0x3C0, index | 0x20)
        self.out(0x3C0, value)

    def mode(self, name: str) -> None:
        set_mode(self.out, self.read_port, name)
        set_dac(self.out, RAMP)

    def vbe(self, **registers: int) -> None:
        """Named as in the specification, in the order given."""
        names = "id xres yres bpp enable bank virt_width virt_height x_offset y_offset video_memory".split()
        for name, value in registers.items():
            self.ports.write(0x1CE, 2, names.index(name))
            self.ports.write(0x1CF, 2, value)

    def get_vbe(self, index: int) -> int:
        self.ports.write(0x1CE, 2, index)
        return self.ports.read(0x1CF, 2)

    # -- memory, as the CPU reaches it: what is visible directly, else the bus

    @property
    def direct(self) -> tuple[int, int] | None:
        """The part of the legacy window that is plain memory now: guest address and size."""
        pieces = [p for p in self.memory.pieces if p.region is self.card.vram and p.base < 0x100000]
        assert len(pieces) < 2
        return (pieces[0].base, pieces[0].end - pieces[0].base) if pieces else None

    def poke(self, address: int, *values: int) -> None:
        for k, value in enumerate(values):
            if self.memory.contains(address + k, len(values) - k):
                self.memory.write(address + k, bytes(values[k:]))
                return
            self.mmio.write(address + k, 1, value)

    def peek(self, address: int, count: int = 1) -> bytes:
        found = bytearray()
        for k in range(count):
            if self.memory.contains(address + k, count - k):
                return bytes(found) + self.memory.read(address + k, count - k)
            found.append(self.mmio.read(address + k, 1))
        return bytes(found)

    def load_planes(self, planes: Iterable[bytes], offset: int = 0) -> None:
        """Fills planes 0, 1, ... from `offset` on; leaves the registers of planar access."""
        self.set(SEQ, 4, 6)
        for index, value in enumerate((0, 0, 0, 0, 0, 0, 5, 0xF, 0xFF)):
            self.set(GFX, index, value)
        for plane, data in enumerate(planes):
            self.set(SEQ, 2, 1 << plane)
            self.poke(0xA0000 + offset, *data)

    # -- the picture

    def pixel(self, x: int, y: int) -> tuple[int, int, int]:
        frame = self.card.frame()
        at = 3 * (y * frame.width + x)
        red, green, blue = frame.rgb[at : at + 3]
        return red, green, blue

    def row(self, y: int, x: int, count: int) -> list[int]:
        """DAC indices of pixels in a line; RAMP makes colours tell them."""
        frame = self.card.frame()
        at = 3 * (y * frame.width + x)
        return [COLORS[frame.rgb[at + 3 * k : at + 3 * k + 3]] for k in range(count)]


def rgb(index: int) -> bytes:
    """What the screen shows for a colour of RAMP."""
    return bytes(value << 2 | value >> 4 for value in RAMP[3 * index : 3 * index + 3])


COLORS = {rgb(index): index for index in range(256)}
assert len(COLORS) == 256
