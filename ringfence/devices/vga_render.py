"""Pictures: from registers and video memory to a `Frame`.

Each distinct line of memory is turned into pixels once and then repeated as often as the beam shows it.  Pixels are made eight at a
time, as bytes of a 64-bit word.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ringfence.backends.api import Frame
from ringfence.devices.vga_dispi import VbeMode
from ringfence.devices.vga_memory import VgaMemory
from ringfence.devices.vga_mode import Ints, Kind, ScanLines, Shape, columns, plane_offsets, scan_lines
from ringfence.devices.vga_palette import Lut, Rgb, attribute_lut, dac_lut, high_color_lut, look_up, to_rgb
from ringfence.devices.vga_state import VgaState

Pixels = NDArray[np.uint8]  # lines, pixels


def _spread(bits: int) -> NDArray[np.uint64]:
    """For every byte: its groups of `bits` bits as bytes of a word, the highest group first in memory."""
    table = np.zeros(256, np.uint64)
    for k in range(8 // bits):
        table |= (np.arange(256, dtype=np.uint64) >> np.uint64(8 - bits - k * bits) & np.uint64((1 << bits) - 1)) << np.uint64(8 * k)
    return table


SPREAD1, _SPREAD2 = _spread(1), _spread(2)


def planar_pixels(quads: NDArray[np.uint32]) -> Pixels:
    """Bit 7 of a byte is the leftmost pixel; plane p gives bit p of a pixel."""
    planes = np.ascontiguousarray(quads).view(np.uint8).reshape(*quads.shape, 4)
    words = SPREAD1[planes[..., 0]]
    for plane in range(1, 4):
        words |= SPREAD1[planes[..., plane]] << np.uint64(plane)
    return words.view(np.uint8)


def cga_pixels(quads: NDArray[np.uint32]) -> Pixels:
    """Four pixels from plane 0 and four from plane 1; planes 2 and 3 give their higher two bits."""
    planes = np.ascontiguousarray(quads).view(np.uint8).reshape(*quads.shape, 4)
    left = _SPREAD2[planes[..., 0]] | _SPREAD2[planes[..., 2]] << np.uint64(2)
    right = _SPREAD2[planes[..., 1]] | _SPREAD2[planes[..., 3]] << np.uint64(2)
    pixels: Pixels = (left | right << np.uint64(32)).view(np.uint8)
    return pixels


def byte_pixels(quads: NDArray[np.uint32]) -> Pixels:
    """Each plane's byte is a pixel."""
    return np.ascontiguousarray(quads).view(np.uint8)


_MAKERS = {Kind.PLANAR: planar_pixels, Kind.CGA: cga_pixels, Kind.BYTES: byte_pixels}


def frame_of(rgb: Rgb) -> Frame:
    return Frame(rgb.shape[1], rgb.shape[0], rgb.tobytes())


def black(width: int, height: int) -> Frame:
    return Frame(width, height, bytes(3 * width * height))


def panned(pixels: NDArray[Any], panning: Ints, split: int, width: int, dot: int = 1) -> NDArray[Any]:
    """Lines of `width` pixels from longer ones: those above and those below the split begin further right, by so many dots."""
    above, below = int(panning[0]) // dot, int(panning[-1]) // dot
    if above == below or split >= len(pixels):
        return pixels[:, above : above + width]
    return np.concatenate((pixels[:split, above : above + width], pixels[split:, below : below + width]))


def repeats(lines: ScanLines) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The first of each group of equal lines, and the lines in each group.  No group reaches over the split."""
    differ = (np.diff(lines.counters) != 0) | (np.diff(lines.row_scans) != 0)
    if 0 < lines.split < len(lines.counters):
        differ[lines.split - 1] = True
    firsts = np.concatenate(([0], np.flatnonzero(differ) + 1))
    return firsts, np.diff(np.concatenate((firsts, [len(lines.counters)])))


def graphics(s: VgaState, memory: VgaMemory, look: Shape) -> Frame:
    """A VGA graphics mode."""
    lines = scan_lines(s, look)
    firsts, counts = repeats(lines)
    counters = lines.counters[firsts, None] + columns(s, look.cells + 1)
    quads = memory.quads(plane_offsets(s, counters, lines.row_scans[firsts, None]))
    pixels = _MAKERS[look.kind](quads)
    dot = 2 if look.kind is Kind.BYTES else 1
    split = int(np.searchsorted(firsts, lines.split))
    shown = panned(pixels, lines.panning, split, look.cells * 8 // dot, dot)
    lut: Lut = dac_lut(s) if look.kind is Kind.BYTES else attribute_lut(s)
    if dot * look.dot_width > 1:
        shown = np.repeat(shown, dot * look.dot_width, axis=1)
    return frame_of(np.repeat(look_up(lut, shown), counts, axis=0))


def linear(s: VgaState, memory: VgaMemory, mode: VbeMode) -> Frame:
    """A mode of the Bochs VBE extension."""
    width, height, bpp = mode.width, mode.height, mode.bpp
    store = memory.bytes
    if bpp == 4:
        cells = np.arange(height)[:, None] * mode.pitch_bytes + mode.start + np.arange(width // 8 + 1)
        pixels = planar_pixels(memory.quads(cells))[:, mode.pan : mode.pan + width]
        return frame_of(look_up(attribute_lut(s), pixels))
    if bpp == 8:
        bytes_ = np.ndarray((height, width), np.uint8, store.data, mode.start, (mode.pitch_bytes, 1))
        return frame_of(look_up(dac_lut(s), bytes_))
    if bpp <= 16:
        words = np.ndarray((height, width), "<u2", store.data, mode.start, (mode.pitch_bytes, 2))
        return frame_of(look_up(high_color_lut(bpp), words))
    size = bpp // 8
    colors = np.ndarray((height, width, 3), np.uint8, store.data, mode.start, (mode.pitch_bytes, size, 1))
    return frame_of(to_rgb(colors, (2, 1, 0)))  # blue comes first in memory
