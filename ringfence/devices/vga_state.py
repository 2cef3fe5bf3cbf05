"""Registers of a VGA and its Bochs VBE extension, and how often the beam passes.

IBM, "PS/2 Hardware Interface Technical Reference, Video Subsystem" (1992), "VGA function"; the register names and numbers are its.
The extension ("dispi") has ID 0xB0C5.
"""

from __future__ import annotations

from ringfence.core.state import Field, State

SEQ_COUNT, GFX_COUNT, CRTC_COUNT, ATTR_COUNT = 5, 9, 25, 21
DAC_BYTES = 768
DEFAULT_VRAM_BYTES = 16 << 20

# How the first 256 KiB of video memory hold the four planes (see vga_memory)
LAYOUT_QUAD, LAYOUT_TEXT = 0, 1

DISPI_ID0, DISPI_ID5 = 0xB0C0, 0xB0C5
DISPI_ID, DISPI_XRES, DISPI_YRES, DISPI_BPP, DISPI_ENABLE, DISPI_BANK = range(6)
DISPI_VIRT_WIDTH, DISPI_VIRT_HEIGHT, DISPI_X_OFFSET, DISPI_Y_OFFSET, DISPI_VIDEO_MEMORY_64K = range(6, 11)
DISPI_COUNT = 11
DISPI_ENABLED, DISPI_GETCAPS, DISPI_8BIT_DAC, DISPI_LFB_ENABLED, DISPI_NOCLEARMEM = 0x01, 0x02, 0x20, 0x40, 0x80
DISPI_MAX_XRES, DISPI_MAX_YRES, DISPI_MAX_BPP = 2560, 1600, 32


class VgaState(State):
    misc = Field(8, doc="miscellaneous output")
    feature = Field(8, doc="feature control")
    seq_index = Field(8)
    seq = Field(8, count=SEQ_COUNT, doc="sequencer: reset, clocking mode, map mask, character map select, memory mode")
    gfx_index = Field(8)
    gfx = Field(
        8,
        count=GFX_COUNT,
        doc="set/reset, enable set/reset, color compare, data rotate, read map select, mode, miscellaneous, color don't care, bit mask",
    )
    crtc_index = Field(8)
    crtc = Field(8, count=CRTC_COUNT, doc="CRT controller")
    crtc_index_elsewhere = Field(8)
    crtc_elsewhere = Field(9, count=CRTC_COUNT, doc="written at the other address of the CRT controller (bit 8): waits for its move")
    attr_index = Field(6, doc="attribute address, with the palette address source in bit 5")
    attr_is_data = Field(1, doc="the next write to 0x3c0 is data")
    attr = Field(8, count=ATTR_COUNT, doc="16 palette entries, mode control, overscan, plane enable, PEL panning, color select")
    dac_mask = Field(8, reset=0xFF, doc="PEL mask")
    dac_read_index = Field(8)
    dac_write_index = Field(8)
    dac_component = Field(2, doc="0 red, 1 green, 2 blue comes next")
    dac_state = Field(2, doc="3 after the read address was written, 0 after the write address")
    dac = Field(8, count=DAC_BYTES, doc="256 colours of red, green and blue")
    dac_written = Field(8, count=2, doc="red and green on their way into the DAC")
    latch = Field(32, doc="graphics controller latches, plane 0 in the low byte")
    layout = Field(1, reset=LAYOUT_TEXT, doc="how the first 256 KiB of video memory hold the planes")
    dispi_index = Field(16)
    dispi = Field(16, count=DISPI_COUNT, doc="Bochs VBE registers")

    def reset(self) -> None:
        super().reset()
        self.dispi[DISPI_ID] = DISPI_ID5

    @property
    def vbe(self) -> bool:
        """The extension, not the VGA, makes the picture."""
        return bool(self.dispi[DISPI_ENABLE] & DISPI_ENABLED)


def vertical(crtc: list[int], low: int, bit8: int, bit9: int) -> int:
    """A ten-bit vertical register: `low` from `crtc[low]`, the others from bits of Overflow (CR07)."""
    overflow = crtc[7]
    return crtc[low] | (overflow >> bit8 & 1) << 8 | (overflow >> bit9 & 1) << 9
