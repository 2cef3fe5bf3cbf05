"""A real video BIOS on our card: SeaVGABIOS executed by an outside CPU (unicorn), called by INT 10h as programs do."""

from __future__ import annotations

from pathlib import Path

import pytest
import unicorn
from unicorn import x86_const as x86

from ringfence.bus.bus import Bus
from ringfence.bus.pci import PciBus
from ringfence.core.clock import ManualClock
from ringfence.devices.pci_host import CONFIG_ADDRESS_PORT, CONFIG_PORTS, PciHost
from ringfence.devices.vga_card import VgaIsa, VgaPci
from ringfence.devices.vga_memory import WINDOW_BASE, WINDOW_BYTES
from ringfence.machine.boot.firmware import find_vga_bios
from ringfence.memory.guest_memory import GuestMemory

LFB, REGISTERS = 0xE0000000, 0xF0000000
STOP, IRET = 0xFFF00, 0xFFF53  # where a BIOS call returns to; what all interrupt vectors point to
STACK_TOP = 0x7000
DEVFN = 2 << 3


class Bios:
    """Memory below 0xa0000 and the ROMs are unicorn's, everything else is ours."""

    def __init__(self, rom: bytes, isa: bool) -> None:
        self.memory = GuestMemory()
        self.ports, self.mmio = Bus("ports", 1 << 16), Bus("mmio", 1 << 32)
        clock = ManualClock()
        self.card: VgaIsa | VgaPci = VgaIsa(self.memory, clock) if isa else VgaPci(self.memory, clock, rom)
        self.card.map_legacy(self.ports, self.mmio)
        if isinstance(self.card, VgaPci):
            pci = PciBus(self.mmio, self.ports, self.memory)
            pci.add(DEVFN >> 3, self.card)
            self.ports.add(CONFIG_ADDRESS_PORT, CONFIG_PORTS, PciHost(pci), "pci")
            for offset, value in ((0x10, LFB), (0x18, REGISTERS), (0x04, 7)):
                pci.write_config(DEVFN, offset, 4, value)
        self.handled = 0  # accesses to the window that were not to plain memory
        self.cpu = cpu = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_16)
        cpu.mem_map(0, 0xA0000)
        cpu.mem_map(0xC0000, 0x40000)
        for base, size in ((WINDOW_BASE, WINDOW_BYTES), (REGISTERS, 0x1000)):
            cpu.mmio_map(base, size, self._read, base, self._write, base)
        cpu.hook_add(unicorn.UC_HOOK_INSN, lambda _, port, size, __: self.ports.read(port, size), None, 1, 0, x86.UC_X86_INS_IN)
        cpu.hook_add(unicorn.UC_HOOK_INSN, lambda _, port, size, v, __: self.ports.write(port, size, v), None, 1, 0, x86.UC_X86_INS_OUT)
        cpu.hook_add(unicorn.UC_HOOK_INTR, self._interrupt)
        cpu.mem_write(0xC0000, rom)
        cpu.mem_write(STOP, b"\xf4")
        cpu.mem_write(IRET, b"\xcf")
        cpu.mem_write(0, b"\x53\xff\x00\xf0" * 256)
        self._call(0xC000, 3, ax=DEVFN)

    def _read(self, _: unicorn.Uc, offset: int, size: int, base: int) -> int:
        address = base + offset
        if self.memory.contains(address, size):
            return self.memory.read_uint(address, size)
        self.handled += 1
        return self.mmio.read(address, size)

    def _write(self, _: unicorn.Uc, offset: int, size: int, value: int, base: int) -> None:
        address = base + offset
        value &= (1 << 8 * size) - 1
        if self.memory.contains(address, size):
            self.memory.write_uint(address, size, value)
        else:
            self.handled += 1
            self.mmio.write(address, size, value)

    def _interrupt(self, cpu: unicorn.Uc, number: int, _: object) -> None:
        for register in (x86.UC_X86_REG_EFLAGS, x86.UC_X86_REG_CS, x86.UC_X86_REG_IP):
            self._push(cpu.reg_read(register))
        vector = int.from_bytes(cpu.mem_read(4 * number, 4), "little")
        cpu.reg_write(x86.UC_X86_REG_CS, vector >> 16)
        cpu.reg_write(x86.UC_X86_REG_IP, vector & 0xFFFF)

    def _push(self, value: int) -> None:
        sp = self.cpu.reg_read(x86.UC_X86_REG_SP) - 2
        self.cpu.reg_write(x86.UC_X86_REG_SP, sp)
        self.cpu.mem_write(sp, (value & 0xFFFF).to_bytes(2, "little"))

    def _call(self, segment: int, offset: int, flags: int | None = None, **registers: int) -> int:
        cpu = self.cpu
        cpu.reg_write(x86.UC_X86_REG_SS, 0)
        cpu.reg_write(x86.UC_X86_REG_ESP, STACK_TOP)
        for value in (flags, STOP >> 4 & 0xF000, STOP & 0xFFFF):
            if value is not None:
                self._push(value)
        for name in ("ax", "bx", "cx", "dx", "di", "bp"):
            cpu.reg_write(getattr(x86, f"UC_X86_REG_E{name.upper()}"), registers.get(name, 0))
        cpu.reg_write(x86.UC_X86_REG_ES, registers.get("es", 0))
        cpu.reg_write(x86.UC_X86_REG_CS, segment)
        cpu.emu_start(16 * segment + offset, STOP, timeout=30_000_000)
        assert cpu.reg_read(x86.UC_X86_REG_IP) == STOP & 0xFFFF, "the BIOS did not return"
        return int(cpu.reg_read(x86.UC_X86_REG_AX))

    def int10(self, ax: int, **registers: int) -> int:
        vector = int.from_bytes(self.cpu.mem_read(4 * 0x10, 4), "little")
        return self._call(vector >> 16, vector & 0xFFFF, 2, ax=ax, **registers)

    def type(self, text: str, color: int = 7) -> None:
        for character in text:
            self.int10(0x0E00 | ord(character), bx=color)


@pytest.fixture(scope="module", params=["vgabios-stdvga.bin", "vgabios-isavga.bin"])
def bios(request: pytest.FixtureRequest) -> Bios:
    path: Path | None = find_vga_bios(request.param)
    if path is None:
        pytest.skip(f"{request.param} is not installed (Debian: package seabios)")
    return Bios(path.read_bytes(), isa="isa" in request.param)


@pytest.mark.parametrize(("mode", "columns", "size"), [(1, 40, (720, 400)), (3, 80, (720, 400)), (7, 80, (720, 400))])
def test_text_modes(bios: Bios, mode: int, columns: int, size: tuple[int, int]) -> None:
    bios.handled = 0
    bios.int10(mode)
    bios.type("Hello,\r\nworld")
    assert bios.handled < 100, "the font and the screen are plain memory"
    screen = bios.card.text()
    assert screen is not None
    assert (screen.columns, screen.rows, screen.cursor) == (columns, 25, (5, 1))
    assert [line.rstrip() for line in screen.lines[:3]] == ["Hello,", "world", ""]
    assert bios.card.frame()[:2] == size
    frame = bios.card.frame()
    top = {frame.rgb[k : k + 3] for y in range(16) for k in range(3 * y * size[0], 3 * y * size[0] + 6 * 9 * 3, 3)}
    assert len(top) == 2 and b"\0\0\0" in top, "letters in one colour"


@pytest.mark.parametrize(
    ("mode", "size"),
    [
        (4, (640, 400)),
        (6, (640, 400)),
        (0x0D, (640, 400)),
        (0x0E, (640, 400)),
        (0x10, (640, 350)),
        (0x11, (640, 480)),
        (0x12, (640, 480)),
        (0x13, (640, 400)),
    ],
)
def test_graphics_modes(bios: Bios, mode: int, size: tuple[int, int]) -> None:
    """A dot is written and read back by the BIOS, and is where it belongs."""
    bios.int10(mode)
    assert bios.card.text() is None
    assert not any(bios.card.frame().rgb)
    width = 320 if mode in (4, 0x0D, 0x13) else 640
    lines = size[1] if mode in (0x10, 0x11, 0x12) else 200
    bios.int10(0x0C01, cx=width - 3, dx=lines - 2)
    assert bios.int10(0x0D00, cx=width - 3, dx=lines - 2) & 0xFF == 1
    frame = bios.card.frame()
    assert frame[:2] == size
    across, down = size[0] // width, size[1] // lines
    lit = {divmod(k // 3, size[0]) for k in range(0, len(frame.rgb), 3) if any(frame.rgb[k : k + 3])}
    assert lit == {(y, x) for y in range((lines - 2) * down, (lines - 1) * down) for x in range((width - 3) * across, (width - 2) * across)}


@pytest.mark.parametrize(
    ("mode", "size", "bpp"),
    [(0x101, (640, 480), 8), (0x102, (800, 600), 4), (0x111, (640, 480), 16), (0x115, (800, 600), 24), (0x144, (1024, 768), 32)],
)
def test_vbe_modes(bios: Bios, mode: int, size: tuple[int, int], bpp: int) -> None:
    assert bios.int10(0x4F02, bx=mode | (0x4000 if bpp > 4 else 0)) == 0x004F
    assert bios.card.frame()[:2] == size
    if bpp > 8:
        vram = bios.card.vram if isinstance(bios.card, VgaIsa) else bios.card.card.vram
        vram.view[0 : bpp // 8] = b"\xff" * (bpp // 8)
    else:
        bios.int10(0x0C0F, cx=0, dx=0)
    frame = bios.card.frame()
    assert frame.rgb[:6] == b"\xff\xff\xff\0\0\0"
    bios.int10(3)
    assert bios.card.text() is not None


def test_vbe_tells_of_itself(bios: Bios) -> None:
    bios.cpu.mem_write(0x70000, b"VBE2")
    assert bios.int10(0x4F00, es=0x7000) == 0x004F
    info = bytes(bios.cpu.mem_read(0x70000, 20))
    assert info[:6] == b"VESA\0\3" and int.from_bytes(info[18:20], "little") == 256  # blocks of 64 KiB


def test_scrolling(bios: Bios) -> None:
    bios.int10(3)
    bios.type("\r\n".join(f"line {k}" for k in range(40)))
    screen = bios.card.text()
    assert screen is not None and [line.rstrip() for line in screen.lines] == [f"line {k}" for k in range(15, 40)]
