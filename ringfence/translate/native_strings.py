"""REP MOVS and REP STOS by page chunks; what is left over goes element by element (isa/x86/strings.py)."""

from __future__ import annotations

from ringfence.translate.layout import FIELDS, WORDS
from ringfence.translate.lower import JUMP, NEXT, RECORD_IMM
from ringfence.translate.native import copy_forward, fill64, ld8, ld16, ld32, ld64, native, rdtsc, sar, st8, st16, st32, st64
from ringfence.translate.native_blocks import drop_code, holds_code
from ringfence.translate.native_codes import MODE_TABLE
from ringfence.translate.native_mmu import ram_offset, read_pointer, write_pointer
from ringfence.translate.native_points import watched_page
from ringfence.translate.native_points_layout import WATCH_READ, WATCH_WRITE
from ringfence.translate.native_smp import lock_code, unlock_code
from ringfence.translate.runtime import refund

SEGMENT_BYTES = FIELDS["cs"] - FIELDS["es"]  # between the segments' fields
LIMIT_BYTES = FIELDS["cs_rlimit"] - FIELDS["es_rlimit"]
BULK_CHECKED = 1 << 10  # as in recipes.py


@native
def begin_bulk_again(cpu: int, data: int) -> int:
    """Code was overwritten, perhaps this very block: what is left is done by a block made from what is there now."""
    st64(cpu + FIELDS["rip"], ld64(cpu + FIELDS["vpage"]) + ld16(data + 4))
    refund(cpu, ld16(data + 8))
    return JUMP


@native
def look_at_deadline(cpu: int, left: int) -> int:
    """A long operation is left in time; the budget cannot tell."""
    if left != 0 and rdtsc() >= ld64(cpu + WORDS["deadline_tsc"]):
        st32(cpu + FIELDS["kick"], 1)
    return 0


@native
def bulk_mask(code: int) -> int:
    """What index and count registers are cut to, by the address size (see recipes.py)."""
    size = (code >> 8) & 3
    if size == 0:
        return 0xFFFFFFFFFFFFFFFF
    if size == 1:
        return 0xFFFFFFFF
    return 0xFFFF


@native
def put_index(cpu: int, register: int, value: int, mask: int) -> int:
    if mask == 0xFFFF:
        st16(cpu + register, value)
    else:
        st64(cpu + register, value & mask)
    return 0


@native
def bulk_room(limit: int, offset: int, mask: int) -> int:
    """Bytes from `offset` to the end of what may be touched without a closer look, at most a page."""
    if sar(limit, 63) != 0 or offset > limit:
        return 0
    room = limit - offset + 1
    if mask == 0xFFFF and 0x10000 - offset < room:
        room = 0x10000 - offset
    if room > 4096:
        room = 4096
    return room


@native
def b_rep_movs(cpu: int, data: int) -> int:
    code = ld64(data + RECORD_IMM[0])
    size = code & 0xFF
    mask = bulk_mask(code)
    if ld8(cpu + FIELDS["df"]):
        return NEXT
    table = ld64(cpu + WORDS["mode"]) & MODE_TABLE
    while ld32(cpu + FIELDS["kick"]) == 0:
        count = ld64(cpu + FIELDS["rcx"]) & mask
        si = ld64(cpu + FIELDS["rsi"]) & mask
        di = ld64(cpu + FIELDS["rdi"]) & mask
        source = si
        target = di
        n = 4096
        if code & BULK_CHECKED:
            segment = (code >> 12) & 7
            source = (si + ld64(cpu + FIELDS["es_base"] + segment * SEGMENT_BYTES)) & 0xFFFFFFFF
            target = (di + ld64(cpu + FIELDS["es_base"])) & 0xFFFFFFFF
            n = bulk_room(ld64(cpu + FIELDS["es_rlimit"] + segment * LIMIT_BYTES), si, mask)
            room = bulk_room(ld64(cpu + FIELDS["es_wlimit"]), di, mask)
            if room < n:
                n = room
        if 4096 - (source & 0xFFF) < n:
            n = 4096 - (source & 0xFFF)
        if 4096 - (target & 0xFFF) < n:
            n = 4096 - (target & 0xFFF)
        n = n // size
        if n > count:
            n = count
        if n == 0 or (watched_page(cpu, source) & WATCH_READ) or (watched_page(cpu, target) & WATCH_WRITE):
            return NEXT
        p = read_pointer(cpu, source, table)
        if p == 0:
            return NEXT  # the element-wise body raises the fault, or defers
        q = write_pointer(cpu, target, table)
        if q == 0:
            return NEXT
        bytes = n * size
        if q - p < bytes and q != p:
            return NEXT  # overlapping upwards: bytes copied now are read again
        stale = holds_code(cpu, q, bytes)
        if stale:
            lock_code(cpu)
            drop_code(cpu, ram_offset(cpu, q), bytes)
        copy_forward(q, p, bytes)
        if stale:
            unlock_code(cpu)
        put_index(cpu, FIELDS["rcx"], count - n, mask)
        put_index(cpu, FIELDS["rsi"], si + bytes, mask)
        put_index(cpu, FIELDS["rdi"], di + bytes, mask)
        if stale:
            return begin_bulk_again(cpu, data)
        look_at_deadline(cpu, count - n)
    return NEXT


@native
def b_rep_stos(cpu: int, data: int) -> int:
    code = ld64(data + RECORD_IMM[0])
    size = code & 0xFF
    mask = bulk_mask(code)
    if ld8(cpu + FIELDS["df"]):
        return NEXT
    table = ld64(cpu + WORDS["mode"]) & MODE_TABLE
    pattern = ld64(cpu + FIELDS["rax"])
    if size == 1:
        pattern = (pattern & 0xFF) * 0x0101010101010101
    elif size == 2:
        pattern = (pattern & 0xFFFF) * 0x0001000100010001
    elif size == 4:
        pattern = (pattern & 0xFFFFFFFF) * 0x0000000100000001
    while ld32(cpu + FIELDS["kick"]) == 0:
        count = ld64(cpu + FIELDS["rcx"]) & mask
        di = ld64(cpu + FIELDS["rdi"]) & mask
        target = di
        n = 4096
        if code & BULK_CHECKED:
            target = (di + ld64(cpu + FIELDS["es_base"])) & 0xFFFFFFFF
            n = bulk_room(ld64(cpu + FIELDS["es_wlimit"]), di, mask)
        if 4096 - (target & 0xFFF) < n:
            n = 4096 - (target & 0xFFF)
        n = n // size
        if n > count:
            n = count
        if n == 0 or (watched_page(cpu, target) & WATCH_WRITE):
            return NEXT
        q = write_pointer(cpu, target, table)
        if q == 0:
            return NEXT
        bytes = n * size
        stale = holds_code(cpu, q, bytes)
        if stale:
            lock_code(cpu)
            drop_code(cpu, ram_offset(cpu, q), bytes)
        fill64(q, pattern, bytes >> 3)
        p = q + (bytes & ~7)
        if bytes & 4:
            st32(p, pattern)
            p += 4
        if bytes & 2:
            st16(p, pattern)
            p += 2
        if bytes & 1:
            st8(p, pattern)
        if stale:
            unlock_code(cpu)
        put_index(cpu, FIELDS["rcx"], count - n, mask)
        put_index(cpu, FIELDS["rdi"], di + bytes, mask)
        if stale:
            return begin_bulk_again(cpu, data)
        look_at_deadline(cpu, count - n)
    return NEXT
