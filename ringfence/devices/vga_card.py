"""A VGA with the Bochs VBE extension, as an ISA card and as the PCI function 1234:1111.

    ports 0x3b0-0x3df ── vga_registers ──┐
    ports 0x1ce-0x1d1 ── vga_dispi ──────┼── VgaState ── vga_mode ── vga_render, vga_text ── Frame, TextScreen
    0xa0000-0xbffff ──── vga_memory ─────┘
    BAR 0, or 0xe0000000 (ISA): video memory itself     BAR 2: the ports, memory-mapped

The PCI card answers at the legacy addresses whatever its COMMAND register says.  QEMU, docs/specs/standard-vga.rst, describes BAR 2.
Video memory belongs to the machine's memory and is saved with it, not with the card.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Any

from ringfence.backends.api import Frame, TextScreen
from ringfence.bus.bus import Bus
from ringfence.bus.pci import PciFunction, PciState
from ringfence.core.clock import Clock
from ringfence.core.errors import SnapshotError
from ringfence.core.late import LateModule
from ringfence.core.units import PAGE_BYTES
from ringfence.devices.api import Device
from ringfence.devices.ports import BytePorts
from ringfence.devices.vga_dispi import DISPI_BASE, DISPI_PORTS, Dispi
from ringfence.devices.vga_edid import EDID
from ringfence.devices.vga_memory import WINDOW_BASE, WINDOW_BYTES, VgaMemory
from ringfence.devices.vga_mode import Kind, blanked, shape
from ringfence.devices.vga_registers import PORT_RANGES, VgaPorts
from ringfence.devices.vga_state import DEFAULT_VRAM_BYTES, DISPI_COUNT, LAYOUT_TEXT, VgaState
from ringfence.devices.vga_timing import Retrace
from ringfence.memory.guest_memory import GuestMemory

if TYPE_CHECKING:
    from ringfence.devices import vga_render, vga_text
else:  # they bring numpy with them: wanted with the first picture
    vga_render = LateModule("ringfence.devices.vga_render")
    vga_text = LateModule("ringfence.devices.vga_text")

ISA_LFB_BASE = 0xE0000000  # where the Bochs BIOS for ISA expects the linear frame buffer
_IDLE_WIDTH, _IDLE_HEIGHT = 640, 400  # what is shown before anything was programmed
_MIN_WIDTH, _MIN_HEIGHT = 64, 32


class VgaCard(Device):
    """A VGA; a `Screen` for displays.  `map_legacy` puts it onto a machine's buses, once."""

    name = "vga"

    def __init__(self, memory: GuestMemory, clock: Clock, vram_bytes: int = DEFAULT_VRAM_BYTES) -> None:
        """`vram_bytes` is a power of two from 256 KiB to 256 MiB."""
        if not 256 << 10 <= vram_bytes <= 256 << 20 or vram_bytes & vram_bytes - 1:
            raise ValueError(f"video memory of {vram_bytes} bytes is not a power of two from 256 KiB to 256 MiB")
        self.state: VgaState = VgaState()
        self._clock = clock
        self._guest_memory = memory
        self.vram = memory.add_backing(vram_bytes, "vga")
        self.memory = VgaMemory(self.state, memory, self.vram)
        self.retrace = Retrace(clock, self.state)
        self.ports = VgaPorts(self.state, self.retrace, self.memory.mode_changed, self.memory.access_changed)
        self.dispi = Dispi(self.state, vram_bytes, self._clear, self.memory.mode_changed)

    def map_legacy(self, ports: Bus, mmio: Bus) -> None:
        """The I/O ports and the window at 0xa0000, where RAM does not answer any more."""
        self._guest_memory.overlay(WINDOW_BASE, WINDOW_BYTES, None)
        mmio.add(WINDOW_BASE, WINDOW_BYTES, self.memory, "vga window")
        for base, count in PORT_RANGES:
            ports.add(base, count, self._byte_ports(base, count), "vga")
        ports.add(DISPI_BASE, DISPI_PORTS, self.dispi, "vbe")

    def _byte_ports(self, base: int, count: int) -> BytePorts:
        return BytePorts(count, lambda k: self.ports.read(base + k), lambda k, value: self.ports.write(base + k, value))

    def _clear(self, size_bytes: int) -> None:
        self.vram.view[:size_bytes] = bytes(size_bytes)

    # -- Screen -------------------------------------------------------------------------------------------------------

    def frame(self) -> Frame:
        s = self.state
        if s.vbe:
            mode = self.dispi.mode()
            return vga_render.black(mode.width, mode.height) if blanked(s) else vga_render.linear(s, self.memory, mode)
        look = shape(s)
        width = look.cells * look.dots * look.dot_width
        if width < _MIN_WIDTH or look.lines < _MIN_HEIGHT:
            return vga_render.black(_IDLE_WIDTH, _IDLE_HEIGHT)
        if blanked(s):
            return vga_render.black(width, look.lines)
        if look.kind is Kind.TEXT:
            return vga_text.render(s, self.memory, look, self._clock.now_ns() // self.retrace.frame_ns)
        return vga_render.graphics(s, self.memory, look)

    def text(self) -> TextScreen | None:
        s = self.state
        look = shape(s)
        if s.vbe or look.kind is not Kind.TEXT or blanked(s):
            return None
        return vga_text.text(s, self.memory, look)

    # -- Device -------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Registers only: video memory keeps what it holds, as the part's does."""
        self.memory.set_layout(LAYOUT_TEXT)
        self.state.reset()
        self._registers_replaced()

    def load(self, saved: dict[str, Any]) -> None:
        self.state.load(saved)
        self.ports.settle()
        self.dispi.settle()
        self._registers_replaced()

    def _registers_replaced(self) -> None:
        self.retrace.changed()
        self.memory.mode_changed()


class VgaIsa(VgaCard):
    """Its BIOS (vgabios-isavga.bin) is given to the firmware by the board: an ISA card's ROM has no register."""

    def map_legacy(self, ports: Bus, mmio: Bus) -> None:
        super().map_legacy(ports, mmio)
        self._guest_memory.overlay(ISA_LFB_BASE, self.vram.size_bytes, self.vram)


# BAR 2
_EDID_END = 0x400
_VGA_PORTS, _VGA_PORTS_END = 0x400, 0x420  # ports 0x3c0-0x3df
_DISPI, _DISPI_END = 0x500, 0x500 + 2 * DISPI_COUNT
_EXTENDED, _EXTENDED_BYTES = 0x600, 8  # their size, and the frame buffer's byte order
_LITTLE_ENDIAN = 0x1E1E1E1E


class VgaRegistersBar:
    """A bus handler for BAR 2."""

    def __init__(self, card: VgaCard) -> None:
        self._card = card

    def read(self, offset: int, size: int) -> int:
        if offset < _EDID_END:
            return int.from_bytes(EDID[offset : offset + size], "little")
        if _VGA_PORTS <= offset < _VGA_PORTS_END:
            port = offset - _VGA_PORTS + 0x3C0
            return sum(self._card.ports.read(port + k) << 8 * k for k in range(min(size, 0x3E0 - port)))
        if _DISPI <= offset < _DISPI_END:
            return self._card.dispi.read_register(offset - _DISPI >> 1) >> 8 * (offset & 1)
        if _EXTENDED <= offset < _EXTENDED + _EXTENDED_BYTES:
            return (_EXTENDED_BYTES | _LITTLE_ENDIAN << 32) >> 8 * (offset - _EXTENDED)
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """The byte order cannot be changed."""
        if _VGA_PORTS <= offset < _VGA_PORTS_END:
            port = offset - _VGA_PORTS + 0x3C0
            for k in range(min(size, 0x3E0 - port)):
                self._card.ports.write(port + k, value >> 8 * k & 0xFF)
        elif _DISPI <= offset < _DISPI_END and size >= 2 and not offset & 1:
            self._card.dispi.write_register(offset - _DISPI >> 1, value & 0xFFFF)


class VgaPci(PciFunction, Device):
    """`card` as the PCI function that Bochs and QEMU made known ("-vga std"); goes into a `PciBus` that has the memory.

    `rom` is the video BIOS (vgabios-stdvga.bin), shown by the expansion ROM register; empty: none.
    """

    state: PciState

    def __init__(self, memory: GuestMemory, clock: Clock, rom: bytes = b"", vram_bytes: int = DEFAULT_VRAM_BYTES) -> None:
        super().__init__(
            "vga", 0x1234, 0x1111, 0x030000, revision_id=2, subsystem_vendor_id=0x1AF4, subsystem_id=0x1100
        )  # revision 2: BAR 2 has the extended registers
        self.card = VgaCard(memory, clock, vram_bytes)
        self.add_ram_bar(0, self.card.vram)
        self.add_bar(2, PAGE_BYTES, VgaRegistersBar(self.card))
        if rom:
            size_bytes = max(1 << (len(rom) - 1).bit_length(), mmap.PAGESIZE)
            region = memory.add_backing(size_bytes, "vga-rom")
            region.view[: len(rom)] = rom
            self.add_rom(region)

    def map_legacy(self, ports: Bus, mmio: Bus) -> None:
        self.card.map_legacy(ports, mmio)

    def frame(self) -> Frame:
        return self.card.frame()

    def text(self) -> TextScreen | None:
        return self.card.text()

    def reset(self) -> None:
        self.card.reset()
        super().reset()

    def save(self) -> dict[str, Any]:
        return {**super().save(), "card": self.card.save()}

    def load(self, saved: dict[str, Any]) -> None:
        own = dict(saved)
        card = own.pop("card", None)
        if card is None:
            raise SnapshotError(f"{self.name}: the card's own registers are missing")
        super().load(own)
        self.card.load(card)
