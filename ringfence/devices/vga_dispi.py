"""The Bochs VBE extension: sixteen-bit registers behind ports 0x1ce (index) and 0x1cf (data), for modes beyond the VGA's.

Bochs, "VBE Display Interface" (DISPI), ID 0xB0C5.  While ENABLE's bit 0 is set these registers alone give the picture's shape, and
values that make no picture are pulled to ones that do: what the guest reads back is what it gets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ringfence.devices.vga_state import (
    DISPI_8BIT_DAC,
    DISPI_BANK,
    DISPI_BPP,
    DISPI_COUNT,
    DISPI_ENABLE,
    DISPI_ENABLED,
    DISPI_GETCAPS,
    DISPI_ID,
    DISPI_ID0,
    DISPI_ID5,
    DISPI_LFB_ENABLED,
    DISPI_MAX_BPP,
    DISPI_MAX_XRES,
    DISPI_MAX_YRES,
    DISPI_NOCLEARMEM,
    DISPI_VIDEO_MEMORY_64K,
    DISPI_VIRT_HEIGHT,
    DISPI_VIRT_WIDTH,
    DISPI_X_OFFSET,
    DISPI_XRES,
    DISPI_Y_OFFSET,
    DISPI_YRES,
    VgaState,
)

DISPI_BASE, DISPI_PORTS = 0x1CE, 4
_BANK_SHIFT = 16
_DEPTHS = (4, 8, 15, 16, 24, 32)
_CAPABILITIES = {DISPI_XRES: DISPI_MAX_XRES, DISPI_YRES: DISPI_MAX_YRES, DISPI_BPP: DISPI_MAX_BPP}
_SHAPE = frozenset((DISPI_XRES, DISPI_YRES, DISPI_BPP, DISPI_VIRT_WIDTH, DISPI_X_OFFSET, DISPI_Y_OFFSET))


class VbeMode(NamedTuple):
    """`pitch_bytes` and `start` are in bytes of the linear frame buffer; of each plane with 4 bits a pixel."""

    width: int
    height: int
    bpp: int
    pitch_bytes: int
    start: int
    pan: int  # pixels, 4 bits a pixel only


def pitch_bytes(width: int, bpp: int) -> int:
    """Of a line of `width` pixels (a multiple of 8), in bytes; of one plane with 4 bits a pixel."""
    return width // 8 if bpp == 4 else width * ((bpp + 7) // 8)


class Dispi:
    """Reads and writes the extension's registers.  `on_change()` is called after what memory shows or where has changed."""

    def __init__(self, state: VgaState, vram_bytes: int, clear: Callable[[int], None], on_change: Callable[[], None]) -> None:
        """`clear(n)` zeroes the first n bytes of video memory."""
        self._state = state
        self._vram_bytes = vram_bytes
        self._clear = clear
        self._on_change = on_change

    # -- ports 0x1ce-0x1d1: a handler ---------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """Words at 0x1ce and 0x1cf (0x1d0 too, for machines that cannot do odd ones); bytes give the low half."""
        return int(self._state.dispi_index) if offset == 0 else self.read_register(self._state.dispi_index)

    def write(self, offset: int, size: int, value: int) -> None:
        value &= 0xFFFF
        if offset == 0:
            self._state.dispi_index = value
        else:
            self.write_register(self._state.dispi_index, value)

    # -- registers ----------------------------------------------------------------------------------------------------

    def read_register(self, index: int) -> int:
        s = self._state
        if index == DISPI_VIDEO_MEMORY_64K:
            return self._vram_bytes >> 16
        if index >= DISPI_COUNT:
            return 0
        if s.dispi[DISPI_ENABLE] & DISPI_GETCAPS and index in _CAPABILITIES:
            return _CAPABILITIES[index]
        return int(s.dispi[index])

    def write_register(self, index: int, value: int) -> None:
        regs = self._state.dispi
        if index == DISPI_ID:
            if DISPI_ID0 <= value <= DISPI_ID5:
                regs[DISPI_ID] = value
        elif index == DISPI_ENABLE:
            self._enable(value)
        elif index == DISPI_BANK:
            regs[DISPI_BANK] = value & (self._vram_bytes >> _BANK_SHIFT) - 1
            self._on_change()
        elif index in _SHAPE:
            regs[index] = value
            self.settle()
            self._on_change()

    def _enable(self, value: int) -> None:
        regs = self._state.dispi
        was, now = regs[DISPI_ENABLE] & DISPI_ENABLED, value & DISPI_ENABLED
        regs[DISPI_ENABLE] = value & (DISPI_ENABLED | DISPI_GETCAPS | DISPI_8BIT_DAC | DISPI_LFB_ENABLED | DISPI_NOCLEARMEM)
        if now and not was:
            regs[DISPI_VIRT_WIDTH] = regs[DISPI_X_OFFSET] = regs[DISPI_Y_OFFSET] = 0
            self.settle()
        if now != was:
            regs[DISPI_BANK] = 0
        self._on_change()
        if now and not was and not value & DISPI_NOCLEARMEM:
            shown = pitch_bytes(regs[DISPI_VIRT_WIDTH], regs[DISPI_BPP]) * regs[DISPI_YRES]
            self._clear(shown * 4 if regs[DISPI_BPP] == 4 else shown)

    def settle(self) -> None:
        """While enabled: makes the registers describe a picture that lies within video memory."""
        regs = self._state.dispi
        if not regs[DISPI_ENABLE] & DISPI_ENABLED:
            return
        wanted = regs[DISPI_BPP] or 8
        bpp = regs[DISPI_BPP] = next((d for d in _DEPTHS if d >= wanted), DISPI_MAX_BPP)
        vram = self._vram_bytes // 4 if bpp == 4 else self._vram_bytes  # of one plane
        width = regs[DISPI_XRES] = min(max(regs[DISPI_XRES] & ~7, 8), DISPI_MAX_XRES)
        virtual = regs[DISPI_VIRT_WIDTH] = max(regs[DISPI_VIRT_WIDTH] & ~7, width)
        pitch = pitch_bytes(virtual, bpp)
        lines = vram // pitch
        height = regs[DISPI_YRES] = min(max(regs[DISPI_YRES], 1), DISPI_MAX_YRES, lines)
        regs[DISPI_VIRT_HEIGHT] = min(lines, 0xFFFF)
        # A picture may begin anywhere in a line, even where its own lines then run over the virtual ones.
        if self.mode().start + (height - 1) * pitch + pitch_bytes(width, bpp) > vram:
            regs[DISPI_X_OFFSET] = min(regs[DISPI_X_OFFSET], virtual - width)
            regs[DISPI_Y_OFFSET] = min(regs[DISPI_Y_OFFSET], lines - height)

    def mode(self) -> VbeMode:
        """What is shown; call while enabled."""
        regs = self._state.dispi
        bpp, x, y = regs[DISPI_BPP], regs[DISPI_X_OFFSET], regs[DISPI_Y_OFFSET]
        pitch = pitch_bytes(regs[DISPI_VIRT_WIDTH], bpp)
        start = y * pitch + (x // 8 if bpp == 4 else x * ((bpp + 7) // 8))
        return VbeMode(regs[DISPI_XRES], regs[DISPI_YRES], bpp, pitch, start, x & 7 if bpp == 4 else 0)
