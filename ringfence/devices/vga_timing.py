"""Where the beam is: bits 0 and 3 of input status register 1.

The position follows from the CRT controller's registers and the clock alone.  A retrace is short (a vertical one lasts two
lines of 450, 64 us) and a guest that is translated or waits for a busy host may look less often than that, so no edge is lost: a
bit that has come and gone since the guest last looked is told once.
"""

from __future__ import annotations

from ringfence.core.clock import Clock
from ringfence.devices.vga_state import VgaState, vertical

DISPLAY_OFF, VERTICAL_RETRACE = 0x01, 0x08
_NS = 1_000_000_000
_CLOCK_HZ = (25_175_000, 28_322_000, 25_175_000, 25_175_000)  # by Miscellaneous Output bits 3:2; the rest are not wired


class Retrace:
    def __init__(self, clock: Clock, state: VgaState) -> None:
        self._clock = clock
        self._state = state
        self._last_blank = self._last_retrace = 0  # interval last told, see `status`
        self.changed()

    def changed(self) -> None:
        """After a write to the CRT controller, Clocking Mode or Miscellaneous Output."""
        self._stale = True

    def _update(self) -> None:
        s = self._state
        crtc = s.crtc
        dots = (8 if s.seq[1] & 1 else 9) << (s.seq[1] >> 3 & 1)
        self._hz = _CLOCK_HZ[s.misc >> 2 & 3]
        self._line_dots = (crtc[0] + 5) * dots
        self._shown_dots = (crtc[1] + 1) * dots
        double = crtc[0x17] >> 2 & 1  # the vertical counter counts every second line
        self._lines = vertical(crtc, 0x06, 0, 5) + 2 << double
        self._shown_lines = min(vertical(crtc, 0x12, 1, 6) + 1 << double, self._lines)
        start = vertical(crtc, 0x10, 2, 7)
        self._retrace_line = start << double
        # CR11 bits 3:0 are compared with the low bits of the line counter
        self._retrace_lines = (crtc[0x11] - start & 15 or 16) << double
        self._stale = False

    @property
    def frame_ns(self) -> int:
        """Duration of a picture in nanoseconds, 1 us at least."""
        if self._stale:
            self._update()
        return int(max(self._line_dots * self._lines * _NS // self._hz, 1000))

    def status(self) -> int:
        """DISPLAY_OFF and VERTICAL_RETRACE.

        Time is cut into intervals with numbers that grow, even ones with the bit clear and odd ones with it set.  Within the
        interval it has told already the guest is told the same; in a later one, the bit that it has not seen last.
        """
        if self._stale:
            self._update()
        dot = self._clock.now_ns() * self._hz // _NS
        line, dot_in_line = divmod(dot, self._line_dots)
        frame, line = divmod(line, self._lines)

        after_shown = line >= self._shown_lines or (line == self._shown_lines - 1 and dot_in_line >= self._shown_dots)
        shown_before = self._shown_lines if after_shown else line + 1
        off = after_shown or dot_in_line >= self._shown_dots
        blank = 2 * (frame * self._lines + shown_before) + off
        since_retrace = line - self._retrace_line
        if since_retrace < 0:
            retrace = 2 * frame
        else:
            retrace = 2 * frame + (1 if since_retrace < self._retrace_lines else 2)

        self._last_blank = self._tell(self._last_blank, blank)
        self._last_retrace = self._tell(self._last_retrace, retrace)
        return (self._last_blank & 1) * DISPLAY_OFF | (self._last_retrace & 1) * VERTICAL_RETRACE

    @staticmethod
    def _tell(told: int, interval: int) -> int:
        """The interval to tell of: the present one, or the one before it when the guest would not see that the bit changed."""
        if interval > told + 1 and (interval ^ told) & 1 == 0:
            return interval - 1
        return interval
