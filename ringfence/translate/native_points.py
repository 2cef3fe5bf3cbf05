"""Breakpoints and watchpoints in translated code, a debugger's and the guest's own in DR0-DR3: exact, and free of cost for
everything far from them.

A linear page that holds a breakpoint is executed in blocks of one instruction (MODE_ONE in their key) that are neither linked
nor kept in the jump cache, so each of them is dispatched, and dispatch looks at the addresses.  A watched page is kept out of
the TLB's tags, so its accesses take the slow path, which leaves those that touch watched bytes to the interpreter.

The tables lie in the room below the vCPU pointer; their first four places are the debug registers' (SDM 3B 18.2), the others are
written by the engine's `Points`.
"""

from __future__ import annotations

from ringfence.isa.x86.state import RF
from ringfence.translate.layout import FIELDS
from ringfence.translate.lower import SYSTEM_ACCESS
from ringfence.translate.native import ld64, native, st64
from ringfence.translate.native_points_layout import (
    ARMED,
    CHANGED,
    DEBUG_REGISTERS,
    HERE,
    NEAR,
    NEVER,
    NONE,
    OWN_POINT_PAGES,
    OWN_WATCH_COUNT,
    OWN_WATCH_PAGES,
    POINT_COUNT,
    POINT_PAGES,
    POINTS,
    SEEN,
    STEP,
    WATCH_BYTES,
    WATCH_COUNT,
    WATCH_HIT,
    WATCH_PAGES,
    WATCH_READ,
    WATCH_WRITE,
    WATCHES,
)


@native
def breakpoint_at(cpu: int, va: int) -> int:
    """Whether a breakpoint is HERE, or NEAR: on the same page."""
    if ((ld64(cpu + POINT_PAGES) >> ((va >> 12) & 63)) & 1) == 0:
        return NONE
    found = NONE
    p = cpu + POINTS
    end = p + 8 * (DEBUG_REGISTERS + ld64(cpu + POINT_COUNT))
    while p != end:
        at = ld64(p)
        if at == va:
            return HERE
        if (at >> 12) == (va >> 12):
            found = NEAR
        p += 8
    return found


@native
def watched_page(cpu: int, va: int) -> int:
    """WATCH_* bits of the watchpoints that reach into the page of `va`."""
    if ((ld64(cpu + WATCH_PAGES) >> ((va >> 12) & 63)) & 1) == 0:
        return 0
    page = va & ~0xFFF
    kinds = 0
    w = cpu + WATCHES
    end = w + WATCH_BYTES * ld64(cpu + WATCH_COUNT)
    while w != end:
        if ld64(w) <= page + 4095 and ld64(w + 8) >= page:
            kinds |= ld64(w + 16)
        w += WATCH_BYTES
    return kinds


@native
def watched(cpu: int, va: int, flags: int, access: int) -> int:
    """Whether a slow access of (flags & 0xff) bytes is to be left to the interpreter.  Implicit accesses never are, because
    delivery cannot be: they are noted, and told before the next block."""
    last = va + (flags & 0xFF) - 1
    w = cpu + WATCHES
    number = 0
    count = ld64(cpu + WATCH_COUNT)
    while number != count:
        number += 1
        if va <= ld64(w + 8) and last >= ld64(w) and (ld64(w + 16) & access):
            if (flags & SYSTEM_ACCESS) == 0:
                return 1
            if number > DEBUG_REGISTERS:
                st64(cpu + WATCH_HIT, number - DEBUG_REGISTERS)
                return 0
        w += WATCH_BYTES
    return 0


@native
def refresh_points(cpu: int) -> int:
    """Enters the debug registers, and makes the filters anew from them and a debugger's points."""
    dr7 = ld64(cpu + SEEN)
    point_pages = ld64(cpu + OWN_POINT_PAGES)
    watch_pages = ld64(cpu + OWN_WATCH_PAGES)
    count = ld64(cpu + OWN_WATCH_COUNT)
    if count:
        count += DEBUG_REGISTERS
    n = 0
    while n != DEBUG_REGISTERS:
        at = ld64(cpu + SEEN + 8 + 8 * n)
        kind = (dr7 >> (16 + 4 * n)) & 3
        armed = (dr7 >> (2 * n)) & 3
        st64(cpu + POINTS + 8 * n, NEVER)
        w = cpu + WATCHES + WATCH_BYTES * n
        st64(w + 16, 0)
        if armed and kind == 0:
            st64(cpu + POINTS + 8 * n, at)
            point_pages |= 1 << ((at >> 12) & 63)
        if armed and (kind & 1):
            size = ((dr7 >> (18 + 4 * n)) & 3) + 1
            if size == 3:
                size = 8
            at = at & ~(size - 1)
            st64(w, at)
            st64(w + 8, at + size - 1)
            st64(w + 16, WATCH_WRITE if kind == 1 else WATCH_READ | WATCH_WRITE)
            watch_pages |= 1 << ((at >> 12) & 63)
            if count == 0:
                count = DEBUG_REGISTERS
        n += 1
    st64(cpu + POINT_PAGES, point_pages)
    st64(cpu + WATCH_PAGES, watch_pages)
    st64(cpu + WATCH_COUNT, count)
    return 0


@native
def look_at_debug_registers(cpu: int) -> int:
    """STEP where only single steps can do what they ask (I/O breakpoints, an instruction that RF lets pass); CHANGED when TLB
    and jump cache hold what they must not hold any more."""
    dr7 = ld64(cpu + FIELDS["dr7"]) & 0xFFFF00FF
    if (dr7 & ARMED) == 0:
        dr7 = 0
    result = 0
    if ld64(cpu + SEEN) != dr7:
        result = CHANGED
    if dr7:
        n = 0
        while n != DEBUG_REGISTERS:
            at = ld64(cpu + FIELDS["dr0"] + 8 * n)
            if at != ld64(cpu + SEEN + 8 + 8 * n):
                st64(cpu + SEEN + 8 + 8 * n, at)
                result |= CHANGED
            if ((dr7 >> (2 * n)) & 3) and ((dr7 >> (16 + 4 * n)) & 3) == 2:
                result |= STEP
            n += 1
        if ld64(cpu + FIELDS["rflags_sys"]) & RF:
            result |= STEP
    if result & CHANGED:
        st64(cpu + SEEN, dr7)
        refresh_points(cpu)
    return result
