"""The VGA's I/O ports 0x3b0-0x3df: register files behind index ports, and the DAC.

IBM, "PS/2 Hardware Interface Technical Reference, Video Subsystem" (1992).  Reserved bits of the sequencer, the graphics and the
attribute controller read as zero.  Not there: the light pen, the vertical interrupt (few boards wire it), the adapter's sleep bit.
"""

from __future__ import annotations

from collections.abc import Callable

from ringfence.devices.vga_state import ATTR_COUNT, CRTC_COUNT, DISPI_8BIT_DAC, DISPI_ENABLE, GFX_COUNT, SEQ_COUNT, VgaState
from ringfence.devices.vga_timing import Retrace

# The ranges that the card decodes: 0x3bc-0x3be belong to a printer.
PORT_RANGES = ((0x3B4, 2), (0x3BA, 1), (0x3C0, 16), (0x3D4, 2), (0x3DA, 1))

MISC_COLOR = 0x01
PALETTE_ADDRESS_SOURCE = 0x20
CRTC_PROTECT = 0x80  # in CR11
_SEQ_MASKS = (0x03, 0x3D, 0x0F, 0x3F, 0x0E)
_GFX_MASKS = (0x0F, 0x0F, 0x0F, 0x1F, 0x03, 0x7B, 0x0F, 0x0F, 0xFF)
_ATTR_MASKS = (*[0x3F] * 16, 0xEF, 0xFF, 0x3F, 0x0F, 0x0F)
_DAC_READING, _DAC_WRITING = 3, 0
_SWITCH_SENSE = 0x10  # input status 0: a colour monitor is attached
_LINE_COMPARE_BIT8 = 0x10  # in CR07
_WRITTEN = 0x100  # in crtc_elsewhere
_LATCH_INDEX, _FLIP_FLOP_INDEX = 0x22, 0x24  # read-only and undocumented, but every VGA has them


class VgaPorts:
    """Reads and writes single ports.

    `on_mode()` is called after a change of where memory is and how planes are addressed, `on_access()` after one of what an access does.
    """

    def __init__(self, state: VgaState, retrace: Retrace, on_mode: Callable[[], None], on_access: Callable[[], None]) -> None:
        self._state = state
        self._retrace = retrace
        self._on_mode = on_mode
        self._on_access = on_access

    def settle(self) -> None:
        """Clears bits that no register has, after the state was loaded from outside."""
        s = self._state
        s.seq = [value & mask for value, mask in zip(s.seq, _SEQ_MASKS, strict=True)]
        s.gfx = [value & mask for value, mask in zip(s.gfx, _GFX_MASKS, strict=True)]
        s.attr = [value & mask for value, mask in zip(s.attr, _ATTR_MASKS, strict=True)]
        s.dac_component %= 3

    def _answers(self, port: int) -> bool:
        """Miscellaneous Output bit 0 chooses between the CRT controllers at 0x3b4 (monochrome) and 0x3d4 (colour)."""
        if 0x3C0 <= port < 0x3D0:
            return True
        return (port >= 0x3D0) == bool(self._state.misc & MISC_COLOR)

    def read(self, port: int) -> int:
        s = self._state
        if not self._answers(port):
            if port & 0xF == 0xA:
                s.attr_is_data = 0  # SeaVGABIOS reads the colour address even in monochrome modes
            return 0xFF
        match port & 0xF | (0 if 0x3C0 <= port < 0x3D0 else 0x10):
            case 0x0:
                return int(s.attr_index)
            case 0x1:
                index = s.attr_index & 0x1F
                return int(s.attr[index]) if index < ATTR_COUNT else 0
            case 0x2:
                return _SWITCH_SENSE
            case 0x3:
                return 1  # the card is awake
            case 0x4:
                return int(s.seq_index)
            case 0x5:
                return int(s.seq[s.seq_index]) if s.seq_index < SEQ_COUNT else 0
            case 0x6:
                return int(s.dac_mask)
            case 0x7:
                return int(s.dac_state)
            case 0x8:
                return int(s.dac_write_index)
            case 0x9:
                return self._read_dac()
            case 0xA:
                return int(s.feature)
            case 0xC:
                return int(s.misc)
            case 0xE:
                return int(s.gfx_index)
            case 0xF:
                return int(s.gfx[s.gfx_index]) if s.gfx_index < GFX_COUNT else 0
            case 0x14:
                return int(s.crtc_index)
            case 0x15:
                return self._read_crtc()
            case 0x1A:
                s.attr_is_data = 0
                return self._retrace.status()
        return 0xFF

    def _read_crtc(self) -> int:
        s = self._state
        index = s.crtc_index
        if index < CRTC_COUNT:
            return int(s.crtc[index])
        if index == _LATCH_INDEX:
            return int(s.latch >> 8 * (s.gfx[4] & 3) & 0xFF)
        if index == _FLIP_FLOP_INDEX:
            return int(s.attr_is_data << 7)
        return 0

    def write(self, port: int, value: int) -> None:
        s = self._state
        if not self._answers(port):
            self._write_elsewhere(port & 0xF, value)
            return
        match port & 0xF | (0 if 0x3C0 <= port < 0x3D0 else 0x10):
            case 0x0:
                self._write_attribute(value)
            case 0x2:
                self._write_misc(value)
            case 0x4:
                s.seq_index = value & 7
            case 0x5:
                self._write_sequencer(value)
            case 0x6:
                s.dac_mask = value
            case 0x7:
                s.dac_read_index = value
                s.dac_component, s.dac_state = 0, _DAC_READING
            case 0x8:
                s.dac_write_index = value
                s.dac_component, s.dac_state = 0, _DAC_WRITING
            case 0x9:
                self._write_dac(value)
            case 0xE:
                s.gfx_index = value & 0xF
            case 0xF:
                index = s.gfx_index
                if index < GFX_COUNT:
                    value &= _GFX_MASKS[index]
                    if s.gfx[index] != value:
                        s.gfx[index] = value
                        (self._on_mode if index == 6 else self._on_access)()
            case 0x14:
                s.crtc_index = value & 0x3F
            case 0x15:
                self._write_crtc(value)
            case 0x1A:
                s.feature = value & 0x0B

    def _write_misc(self, value: int) -> None:
        s = self._state
        if (s.misc ^ value) & MISC_COLOR:
            for index, waiting in enumerate(s.crtc_elsewhere):
                if waiting & _WRITTEN:
                    s.crtc[index] = waiting & 0xFF
            s.crtc_elsewhere = [0] * CRTC_COUNT
        s.misc = value & 0xEF
        self._retrace.changed()
        self._on_mode()

    def _write_elsewhere(self, port: int, value: int) -> None:
        """To the CRT controller where it is not.

        SeaVGABIOS sets it up at its new address before it moves it there, so what is written waits for the move.  A program that
        looks for a second card finds nothing, for it reads ones.
        """
        s = self._state
        if port == 4:
            s.crtc_index_elsewhere = value & 0x3F
        elif port == 5 and s.crtc_index_elsewhere < CRTC_COUNT:
            s.crtc_elsewhere[s.crtc_index_elsewhere] = _WRITTEN | value

    def _write_sequencer(self, value: int) -> None:
        s = self._state
        index = s.seq_index
        if index < SEQ_COUNT:
            value &= _SEQ_MASKS[index]
            if s.seq[index] != value:
                s.seq[index] = value
                if index == 1:
                    self._retrace.changed()
                elif index == 2:
                    self._on_access()
                elif index == 4:
                    self._on_mode()

    def _write_crtc(self, value: int) -> None:
        s = self._state
        index = s.crtc_index
        if index >= CRTC_COUNT:
            return
        crtc = s.crtc
        if index <= 7 and crtc[0x11] & CRTC_PROTECT:
            if index == 7:  # line compare stays writable
                crtc[7] = crtc[7] & ~_LINE_COMPARE_BIT8 | value & _LINE_COMPARE_BIT8
            return
        crtc[index] = value
        self._retrace.changed()

    def _write_attribute(self, value: int) -> None:
        s = self._state
        if not s.attr_is_data:
            s.attr_index = value & 0x3F
        else:
            index = s.attr_index & 0x1F
            # IBM's part takes palette writes only while the display does not use the palette; later ones do not mind
            if index < ATTR_COUNT:
                s.attr[index] = value & _ATTR_MASKS[index]
        s.attr_is_data ^= 1

    def _read_dac(self) -> int:
        s = self._state
        value = int(s.dac[3 * s.dac_read_index + s.dac_component])
        s.dac_component += 1
        if s.dac_component == 3:
            s.dac_component = 0
            s.dac_read_index = s.dac_read_index + 1 & 0xFF
        return value

    def _write_dac(self, value: int) -> None:
        """A colour takes effect with its last component."""
        s = self._state
        if not s.dispi[DISPI_ENABLE] & DISPI_8BIT_DAC:
            value &= 0x3F
        if s.dac_component < 2:
            s.dac_written[s.dac_component] = value
            s.dac_component += 1
            return
        at = 3 * s.dac_write_index
        s.dac[at : at + 3] = [*s.dac_written, value]
        s.dac_component = 0
        s.dac_write_index = s.dac_write_index + 1 & 0xFF
