"""Where the tables of breakpoints and watchpoints lie (native_points.py), and the numbers that go with them."""

from __future__ import annotations

from ringfence.translate.layout import FRONT_BYTES

MODE_ONE = 1 << 30  # only in the key of blocks, never in the vCPU's own mode
LEFT_POINT = 0x40  # beside the reasons of runtime.py
WATCH_READ, WATCH_WRITE = 1, 2
MAX_BREAKPOINTS, MAX_WATCHES = 128, 28
DEBUG_REGISTERS = 4
WATCH_BYTES = 24  # first byte, last byte, WATCH_*
NEVER = 1 << 63 | 1  # no linear address
ARMED = 0xFF  # bits of DR7
STEP, CHANGED = 1, 2

_BASE = 2048 - FRONT_BYTES
POINT_PAGES = _BASE  # bit n: a breakpoint lies on a page whose number is n modulo 64
POINT_COUNT = _BASE + 8  # a debugger's
POINT_NEAR = _BASE + 16  # MODE_ONE when what was dispatched last lies on a page with a breakpoint, else 0
WATCH_PAGES = _BASE + 24
WATCH_COUNT = _BASE + 32  # places of the table to look at; 0 where there is nothing to watch
WATCH_HIT = _BASE + 40  # 1 + place of a debugger's watchpoint that an implicit access has met (a descriptor, an exception's frame)
OWN_POINT_PAGES = _BASE + 48  # a debugger's part of POINT_PAGES, WATCH_PAGES
OWN_WATCH_PAGES = _BASE + 56
OWN_WATCH_COUNT = _BASE + 64
SEEN = _BASE + 72  # DR7 (0 when nothing is armed) and DR0-DR3 as they were entered last
POINTS = _BASE + 128
WATCHES = POINTS + 8 * (DEBUG_REGISTERS + MAX_BREAKPOINTS)
NONE, NEAR, HERE = 0, 1, 2
