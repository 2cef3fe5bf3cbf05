"""Video memory and the window on it at 0xa0000-0xbffff.

The store is one region of RAM: bytes 0 to its end are what a linear frame buffer shows.  The four planes of 64 KiB that VGA modes
know live in its first 256 KiB, in one of two layouts; which one, is chosen so that what guests do most is plain memory:

    quad   byte o of plane p at 4*o + p: 256-colour modes, chain 4 and VBE are linear
    text   planes 0 and 1 at 2*o + p, then plane 2, then plane 3: the text window is linear, and so is the font in plane 2

Where the registers make the window behave like plain memory it *is* plain memory (an overlay that the guest writes without anybody
being told), else every access comes to `read` and `write`.  The guest notices one thing: accesses to plain memory do not load the
latches.  Going over to an overlay costs more than an access, and firmware changes registers often: it is done after a few accesses.

Planes hold the bytes of odd/even and chain-4 modes without gaps, where IBM's part leaves every second byte, or three of four,
unused (its CRT controller skips them with word and doubleword addressing; vga_mode follows).  Guests see that only when they fill
memory in one mode and read it in another.  The linear frame buffer shows planes 0-3 in quad layout while VBE is enabled.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from ringfence.core.late import LateModule
from ringfence.devices.vga_state import DISPI_BANK, DISPI_BPP, LAYOUT_QUAD, LAYOUT_TEXT, VgaState
from ringfence.memory.guest_memory import GuestMemory, Overlay, Region

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    np = LateModule("numpy")  # a machine at whose screen nobody looks does without

WINDOW_BASE, WINDOW_BYTES = 0xA0000, 0x20000
PLANE_BYTES = 0x10000
BANK_BYTES = 0x10000
_PLANAR_BYTES = 4 * PLANE_BYTES
_PLANE2, _PLANE3 = 2 * PLANE_BYTES, 3 * PLANE_BYTES
# Graphics controller, Miscellaneous, bits 3:2: offset and size of what the card answers
_MAPS = ((0x00000, 0x20000), (0x00000, 0x10000), (0x10000, 0x08000), (0x18000, 0x08000))
_PATIENCE = 12  # accesses that go through handlers before the window becomes plain memory
_EXPAND = tuple(sum(0xFF << 8 * p for p in range(4) if n >> p & 1) for n in range(16))  # a bit a plane to a byte a plane
_BYTES = 0x01010101
MISC_RAM_ENABLE = 0x02
CHAIN4, SEQUENTIAL = 0x08, 0x04  # sequencer, Memory Mode
_GFX_ODD_EVEN = 0x10  # graphics controller, Mode
GFX_CHAIN_ODD_EVEN, GFX_GRAPHICS = 0x02, 0x01  # graphics controller, Miscellaneous

Plain = tuple[int, int, int, int]  # guest address, size, offset in the store, layout


class VgaMemory:
    """A bus handler for the window; `store` is the video memory."""

    def __init__(self, state: VgaState, memory: GuestMemory, store: Region) -> None:
        self._state = state
        self._memory = memory
        self.store = store
        self._v8 = store.view
        self._v16: Any = store.view.cast("H")
        self._v32: Any = store.view.cast("I")
        self._overlay: Overlay | None = None
        self._shown: Plain | None = None
        self.mode_changed()

    @cached_property
    def bytes(self) -> NDArray[np.uint8]:
        """The store as an array, for those who look at it."""
        return np.frombuffer(self.store.view, np.uint8)

    # -- planes -------------------------------------------------------------------------------------------------------

    def set_layout(self, layout: int) -> None:
        if layout == self._state.layout:
            return
        self._state.layout = layout
        planes = (slice(0, _PLANE2, 2), slice(1, _PLANE2, 2), slice(_PLANE2, _PLANE3), slice(_PLANE3, _PLANAR_BYTES))
        quads = tuple(slice(plane, _PLANAR_BYTES, 4) for plane in range(4))
        to, where = (quads, planes) if layout == LAYOUT_QUAD else (planes, quads)
        old, new = bytearray(self._v8[:_PLANAR_BYTES]), bytearray(_PLANAR_BYTES)
        for new_place, old_place in zip(to, where, strict=True):
            new[new_place] = old[old_place]
        self._v8[:_PLANAR_BYTES] = new

    def quads(self, offsets: NDArray[Any]) -> NDArray[np.uint32]:
        """What the four planes hold at `offsets` (any integers; they wrap): plane 0 in the low byte."""
        if self._state.layout == LAYOUT_QUAD:
            all_quads = self.bytes.view(np.uint32)
            found: NDArray[np.uint32] = all_quads[offsets & len(all_quads) - 1]
            return found
        at = offsets & PLANE_BYTES - 1
        pairs = self.bytes[:_PLANE2].view(np.uint16)
        high = self.bytes[_PLANE2:_PLANE3][at].astype(np.uint32) | self.bytes[_PLANE3:_PLANAR_BYTES][at].astype(np.uint32) << 8
        joined: NDArray[np.uint32] = pairs[at] | high << 16
        return joined

    def plane2(self, offset: int, size_bytes: int) -> NDArray[np.uint8]:
        """A copy of a part of plane 2, where fonts are."""
        at = np.arange(offset, offset + size_bytes)
        return (self.quads(at) >> 16 & 0xFF).astype(np.uint8)

    def _load(self, offset: int) -> int:
        if self._state.layout == LAYOUT_QUAD:
            return int(self._v32[offset])
        return int(self._v16[offset] | self._v8[_PLANE2 + offset] << 16 | self._v8[_PLANE3 + offset] << 24)

    def _store(self, offset: int, quad: int) -> None:
        if self._state.layout == LAYOUT_QUAD:
            self._v32[offset] = quad
        else:
            self._v16[offset] = quad & 0xFFFF
            self._v8[_PLANE2 + offset] = quad >> 16 & 0xFF
            self._v8[_PLANE3 + offset] = quad >> 24

    # -- the registers, made ready for accesses -----------------------------------------------------------------------

    def mode_changed(self) -> None:
        """After a change of Miscellaneous Output, Memory Mode, the graphics controller's Miscellaneous or the VBE registers."""
        s = self._state
        vbe = s.vbe
        if vbe and s.layout != LAYOUT_QUAD:
            self.set_layout(LAYOUT_QUAD)  # the linear frame buffer shows it from now on
        self._vbe_linear = vbe and s.dispi[DISPI_BPP] > 4
        self._bank = s.dispi[DISPI_BANK] * BANK_BYTES if vbe else 0
        self._offset_mask = len(self._v32) - 1 if vbe else PLANE_BYTES - 1
        memory_mode, misc = s.seq[4], s.gfx[6]
        if self._vbe_linear:
            self._base, self._size = 0, BANK_BYTES
        elif vbe or s.misc & MISC_RAM_ENABLE:
            self._base, self._size = _MAPS[misc >> 2 & 3]
        else:
            self._base, self._size = 0, 0
        # VBE's 4 bits a pixel are planes, whatever the sequencer was left at
        self._chain4 = bool(memory_mode & CHAIN4) and not vbe
        self._odd_even_write = not memory_mode & SEQUENTIAL and not vbe
        self._odd_even_shift = misc >> 1 & 1
        # what the layout should be; it is changed with the next access
        self._layout = LAYOUT_TEXT if not vbe and (not misc & GFX_GRAPHICS or self._odd_even_shift) else LAYOUT_QUAD
        self.access_changed()

    def access_changed(self) -> None:
        """After a change of Map Mask or another register of the graphics controller: some programs do it for every pixel."""
        s = self._state
        gfx = s.gfx
        mode = gfx[5]
        self._odd_even_read = bool(mode & _GFX_ODD_EVEN) and not s.vbe
        self._write_mode = mode & 3
        self._color_compare = mode & 8
        self._rotate = gfx[3] & 7
        self._function = gfx[3] >> 3
        self._set_reset = _EXPAND[gfx[0]]
        self._enable_set_reset = _EXPAND[gfx[1]]
        self._bit_mask = gfx[8] * _BYTES
        self._map_mask = s.seq[2]
        self._plain = self._find_plain()
        if self._overlay is not None and self._plain != self._shown:
            self._hide()
        self._patience = _PATIENCE

    def _find_plain(self) -> Plain | None:
        """Whether the window behaves like plain memory now."""
        s = self._state
        gfx = s.gfx
        base, size = WINDOW_BASE + self._base, self._size
        if self._vbe_linear:
            return base, size, self._bank & self.store.size_bytes - BANK_BYTES, LAYOUT_QUAD
        # write mode 0 and read mode 0; nothing set or rotated; all bits written
        if not size or gfx[5] & 0x0B or gfx[1] or gfx[3] or gfx[8] != 0xFF or s.vbe:
            return None
        if self._chain4:
            return (base, size, 0, LAYOUT_QUAD) if self._map_mask == 0xF and self._layout == LAYOUT_QUAD else None
        if self._layout != LAYOUT_TEXT:
            return None
        read_map = gfx[4]
        if self._odd_even_write and self._odd_even_read and self._odd_even_shift:
            return (base, size, 0, LAYOUT_TEXT) if self._map_mask == 3 and not read_map & 2 else None
        # a font on its way into plane 2
        if self._map_mask == 4 and read_map == 2 and not self._odd_even_write and not self._odd_even_read:
            return base, min(size, PLANE_BYTES), _PLANE2, LAYOUT_TEXT
        return None

    def _approach(self) -> None:
        """An access came here though the window could be plain memory."""
        self._patience -= 1
        if self._patience == 0 and self._plain is not None:
            base, size, offset, layout = self._plain
            self.set_layout(layout)
            self._overlay = self._memory.overlay(base, size, self.store, offset)
            self._shown = self._plain

    def _hide(self) -> None:
        if self._overlay is not None:
            self._memory.remove(self._overlay)
            self._overlay = self._shown = None

    # -- accesses -----------------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        if self._layout != self._state.layout:
            self.set_layout(self._layout)
        value = 0
        for k in range(size):
            value |= self._read8(offset + k) << 8 * k
        if self._plain is not None:
            self._approach()
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        if self._layout != self._state.layout:
            self.set_layout(self._layout)
        for k in range(size):
            self._write8(offset + k, value >> 8 * k & 0xFF)
        if self._plain is not None:
            self._approach()

    def _read8(self, offset: int) -> int:
        at = offset - self._base
        if not 0 <= at < self._size:
            return 0xFF
        s = self._state
        if self._vbe_linear:
            return self._v8[self._bank + at & self.store.size_bytes - 1]
        gfx = s.gfx
        if self._chain4:
            plane, at = at & 3, at >> 2
        elif self._odd_even_read:
            plane, at = gfx[4] & 2 | at & 1, at >> self._odd_even_shift
        else:
            plane = gfx[4]
        latch = s.latch = self._load(at + self._bank & self._offset_mask)
        if not self._color_compare:
            return int(latch >> 8 * plane & 0xFF)
        # read mode 1: a bit is set where all planes that are cared for match Color Compare
        differ = (latch ^ _EXPAND[gfx[2]]) & _EXPAND[gfx[7]]
        return int(~(differ | differ >> 8 | differ >> 16 | differ >> 24) & 0xFF)

    def _write8(self, offset: int, value: int) -> None:
        at = offset - self._base
        if not 0 <= at < self._size:
            return
        if self._vbe_linear:
            self._v8[self._bank + at & self.store.size_bytes - 1] = value
            return
        planes = self._map_mask
        if self._chain4:
            planes &= 1 << (at & 3)
            at >>= 2
        elif self._odd_even_write:
            planes &= 0b1010 if at & 1 else 0b0101
            at >>= self._odd_even_shift
        if not planes:
            return
        latch = self._state.latch
        mode = self._write_mode
        if mode == 1:
            data = latch
        else:
            bit_mask = self._bit_mask
            if mode == 2:
                data = _EXPAND[value & 0xF]
            else:
                rotated = (value >> self._rotate | value << 8 - self._rotate & 0xFF) * _BYTES
                if mode == 0:
                    data = rotated & ~self._enable_set_reset | self._set_reset & self._enable_set_reset
                else:
                    data = self._set_reset
                    bit_mask &= rotated
            if self._function == 1:
                data &= latch
            elif self._function == 2:
                data |= latch
            elif self._function == 3:
                data ^= latch
            data = data & bit_mask | latch & ~bit_mask
        at = at + self._bank & self._offset_mask
        if planes != 0xF:
            write = _EXPAND[planes]
            data = data & write | self._load(at) & ~write
        self._store(at, data)
