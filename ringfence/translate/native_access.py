"""Guest memory for native bodies: loads, windows and stores by linear address, across page ends and over code."""

from __future__ import annotations

from ringfence.translate.layout import BOUNCE, BOUNCE_BYTES, BOUNCE_SLOTS, WORDS
from ringfence.translate.lower import DEFERRED, SYSTEM_ACCESS
from ringfence.translate.native import copy_forward, ld64, native, st8, st16, st32, st64
from ringfence.translate.native_blocks import drop_code, holds_code
from ringfence.translate.native_codes import MODE_TABLE
from ringfence.translate.native_mmu import ram_offset, read_pointer, write_pointer
from ringfence.translate.native_points import watched
from ringfence.translate.native_points_layout import WATCH_COUNT, WATCH_READ, WATCH_WRITE
from ringfence.translate.native_smp import lock_code, unlock_code


@native
def access_table(cpu: int, flags: int) -> int:
    """The TLB table of an access: the mode's, or the supervisor's for implicit system accesses."""
    table = ld64(cpu + WORDS["mode"]) & MODE_TABLE
    if (flags & SYSTEM_ACCESS) and table == 1:
        return 0
    return table


@native
def bounce(cpu: int) -> int:
    n = ld64(cpu + WORDS["bounce_next"])
    st64(cpu + WORDS["bounce_next"], (n + 1) % BOUNCE_SLOTS)
    return cpu + BOUNCE + n * BOUNCE_BYTES


@native
def rt_load(cpu: int, va: int, flags: int) -> int:
    """Host address for a load of (flags & 0xff) bytes; across a page end through a bounce buffer."""
    size = flags & 0xFF
    if ld64(cpu + WATCH_COUNT) and watched(cpu, va, flags, WATCH_READ):
        st64(cpu + WORDS["status"], DEFERRED)
        return 0
    table = access_table(cpu, flags)
    p = read_pointer(cpu, va, table)
    if p == 0 or (va & 0xFFF) + size <= 4096:
        return p
    second = (va + size - 1) & ~0xFFF
    q = read_pointer(cpu, second, table)
    if q == 0:
        return 0
    first = second - va
    b = bounce(cpu)
    copy_forward(b, p, first)
    copy_forward(b + first, q, size - first)
    return b


@native
def rt_window(cpu: int, va: int, flags: int) -> int:
    """Host address for a read-modify-write; across a page end it is left to the interpreter.  Blocks made from those bytes are
    dropped; beside other vCPUs those of the whole granules, so that a translator waits for the write (native_smp.py)."""
    size = flags & 0xFF
    if ld64(cpu + WATCH_COUNT) and (flags & SYSTEM_ACCESS) == 0 and watched(cpu, va, flags, WATCH_READ | WATCH_WRITE):
        st64(cpu + WORDS["status"], DEFERRED)
        return 0
    p = write_pointer(cpu, va, access_table(cpu, flags))
    if p == 0:
        return 0
    if (va & 0xFFF) + size > 4096:
        st64(cpu + WORDS["status"], DEFERRED)
        return 0
    if holds_code(cpu, p, size):
        ra = ram_offset(cpu, p)
        if ld64(cpu + WORDS["smp"]):
            size = ((ra & 63) + size + 63) & ~63
            ra &= ~63
        lock_code(cpu)
        drop_code(cpu, ra, size)
        unlock_code(cpu)
    return p


@native
def store_bytes(p: int, size: int, low: int, high: int) -> int:
    if size == 8:
        st64(p, low)
    elif size == 4:
        st32(p, low)
    elif size == 2:
        st16(p, low)
    elif size == 1:
        st8(p, low)
    elif size == 16:
        st64(p, low)
        st64(p + 8, high)
    else:
        st64(p, low)
        st16(p + 8, high)
    return 0


@native
def store_at(cpu: int, va: int, flags: int, low: int, high: int) -> int:
    """A store; 0, or `status` when it cannot be made.  Blocks made from those bytes are dropped."""
    size = flags & 0xFF
    table = access_table(cpu, flags)
    p = write_pointer(cpu, va, table)
    if p == 0:
        return ld64(cpu + WORDS["status"])
    if (va & 0xFFF) + size <= 4096:
        if holds_code(cpu, p, size):
            lock_code(cpu)
            drop_code(cpu, ram_offset(cpu, p), size)
            store_bytes(p, size, low, high)
            unlock_code(cpu)
        else:
            store_bytes(p, size, low, high)
        return 0
    second = (va + size - 1) & ~0xFFF
    q = write_pointer(cpu, second, table)
    if q == 0:
        return ld64(cpu + WORDS["status"])
    first = second - va
    b = bounce(cpu)
    store_bytes(b, size, low, high)
    over_code = holds_code(cpu, p, first) | holds_code(cpu, q, size - first)
    if over_code:
        lock_code(cpu)
        drop_code(cpu, ram_offset(cpu, p), first)
        drop_code(cpu, ram_offset(cpu, q), size - first)
    copy_forward(p, b, first)
    copy_forward(q, b + first, size - first)
    if over_code:
        unlock_code(cpu)
    return 0


@native
def rt_store(cpu: int, va: int, flags: int, low: int, high: int) -> int:
    if ld64(cpu + WATCH_COUNT) and watched(cpu, va, flags, WATCH_WRITE):
        st64(cpu + WORDS["status"], DEFERRED)
        return DEFERRED
    return store_at(cpu, va, flags, low, high)
