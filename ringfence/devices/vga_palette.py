"""Colours: from pixels to the red, green and blue of a `Frame`.

A look-up table (LUT) here is an array of 32-bit words, red in the low byte.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ringfence.devices.vga_state import DISPI_8BIT_DAC, DISPI_ENABLE, VgaState

Lut = NDArray[np.uint32]
Rgb = NDArray[np.uint8]  # lines, pixels, 3


def dac_lut(s: VgaState) -> Lut:
    """The colours of 256 pixel values as they pass the PEL mask and the DAC."""
    colors: NDArray[Any] = np.array(s.dac, np.uint32).reshape(256, 3)
    if not s.dispi[DISPI_ENABLE] & DISPI_8BIT_DAC:
        colors &= 0x3F
        colors = colors << 2 | colors >> 4
    packed: Lut = colors[:, 0] | colors[:, 1] << 8 | colors[:, 2] << 16
    wanted: Lut = packed[np.arange(256) & s.dac_mask]
    return wanted


def attribute_lut(s: VgaState) -> Lut:
    """The colours of 16 pixel values as they pass the attribute controller, too."""
    attr = s.attr
    select = attr[0x14]
    indices = []
    for pixel in range(16):
        color = attr[pixel & attr[0x12]] & 0x3F
        if attr[0x10] & 0x80:  # bits 5:4 come from Color Select
            color = color & 0x0F | (select & 3) << 4
        indices.append(color | (select & 0x0C) << 4)
    return dac_lut(s)[indices]


def look_up(lut: Lut, pixels: NDArray[Any]) -> Rgb:
    """`pixels` are below the table's length."""
    packed = np.take(lut, pixels, mode="wrap")  # of numpy's ways the fastest
    return to_rgb(packed.view(np.uint8).reshape(*packed.shape, 4))


def to_rgb(colors: NDArray[np.uint8], order: tuple[int, int, int] = (0, 1, 2)) -> Rgb:
    """Picks three bytes of each pixel (`colors`: lines, pixels, bytes), a colour at a time, which is several times faster than at once."""
    out = np.empty((*colors.shape[:2], 3), np.uint8)
    for component, source in enumerate(order):
        out[..., component] = colors[..., source]
    return out


def _widen(values: NDArray[Any], bits: int) -> NDArray[Any]:
    """`bits` (5 or 6) to 8: the highest ones are repeated below, so that all ones stay all ones."""
    return values << 8 - bits | values >> 2 * bits - 8


@cache
def high_color_lut(bpp: int) -> Lut:
    """The colours of 65,536 pixel values: 15 bits are five a colour, 16 have six for green."""
    pixels = np.arange(1 << 16, dtype=np.uint32)
    green_bits = bpp - 10
    red, green, blue = pixels >> 5 + green_bits & 31, pixels >> 5 & (1 << green_bits) - 1, pixels & 31
    packed: Lut = _widen(red, 5) | _widen(green, green_bits) << 8 | _widen(blue, 5) << 16
    return packed
