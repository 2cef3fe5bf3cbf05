"""The software MMU: guest physical memory, page walk, TLB (SDM 3A 4.3-4.7).

Addresses of code are *RAM offsets*: page number in the flat numbering of all regions of memory, times 4096, plus offset.
"""

from __future__ import annotations

from ringfence.translate import layout
from ringfence.translate.layout import (
    EXECUTED,
    EXECUTED_BYTES,
    EXECUTED_USER,
    FIELDS,
    JUMP_KEY,
    LOCALS,
    MAX_LOCALS,
    PAGE_ENTRY_BYTES,
    PAGES,
    PIECES,
    READ_ONLY,
    STORES,
    TLB,
    TLB_MASK,
    TLB_TABLE_BYTES,
    TLB_TABLES,
    WORDS,
)
from ringfence.translate.lower import DEFERRED, FAULTED
from ringfence.translate.native import cas32, cas64, fill64, ld32, ld64, native, sar, st32, st64
from ringfence.translate.native_codes import EXECUTE, MODE_BITS, MODE_TABLE, PF, READ, WRITE
from ringfence.translate.native_points import watched_page
from ringfence.translate.native_points_layout import WATCH_PAGES, WATCH_READ, WATCH_WRITE

INVALID = 1  # a tag that no page address equals
FRAME = 0x000FFFFFFFFFF000
PHYSICAL_RESERVED = 0x000FFF0000000000  # CPUID announces 40 physical address bits
WALK_FAULT = 1 << 63
GLOBAL = 4  # in `walk_writable`
NOT_CANONICAL = 1 << 62
LARGE_BLOOM_WORDS = 64
LARGE_BLOOM = -layout.FRONT_BYTES  # 4096 bits in the room below the vCPU pointer: 2 MiB regions with large pages


@native
def region_of(cpu: int, pa: int) -> int:
    """The record of the piece that holds a guest physical address, or 0."""
    r = cpu + PIECES
    while True:
        end = ld64(r + 8)
        if end == 0:
            return 0
        if pa < end and pa >= ld64(r):
            return r
        r += 32


@native
def host_of(cpu: int, pa: int) -> int:
    at = pa & ld64(cpu + WORDS["a20_mask"])
    r = region_of(cpu, at)
    if r == 0:
        return 0
    return ld64(r + 16) + at - ld64(r)


@native
def ram_offset(cpu: int, host: int) -> int:
    """The RAM offset of a host address inside of guest memory."""
    r = cpu + STORES
    while True:
        end = ld64(r + 8)
        if end == 0:
            return 0xFFFFFFFFFFFFFFFF
        if host < end and host >= ld64(r):
            return (ld64(r + 16) << 12) + host - ld64(r)
        r += 32


@native
def is_global(cr4: int, e: int) -> int:
    """GLOBAL where CR4.PGE and the G bit of the last entry say so (SDM 3A 4.10.2.4)."""
    return ((cr4 >> 7) & (e >> 8) & 1) << 2


@native
def page_rights(cpu: int, rights: int, access: int, table: int) -> int:
    """Of a page whose entries together give `rights` (U/S and R/W where entries have them): 0 where the access is forbidden, else 1, and
    bit 1 where writing is allowed (SDM 3A 4.6.1, without XD)."""
    cr4 = ld64(cpu + FIELDS["cr4"])
    if table == 1:
        if (rights & 4) == 0:
            return 0
    elif rights & 4:
        if access == EXECUTE:
            if (cr4 >> 20) & 1:
                return 0
        elif ((cr4 >> 21) & 1) and table == 0:
            return 0
    writable = (rights >> 1) & 1
    if table != 1 and ((ld64(cpu + FIELDS["cr0"]) >> 16) & 1) == 0:
        writable = 1
    if access == WRITE and writable == 0:
        return 0
    return 1 | (writable << 1)


@native
def walk(cpu: int, va: int, access: int, table: int) -> int:
    """The guest physical address of `va`, or WALK_FAULT with the #PF error code.  Sets A and D; an entry that another
    vCPU changes meanwhile is looked at anew.  `walk_writable` tells whether a write needs no further walk, bit 1 whether the page is
    larger than 4 KiB, bit 2 whether it is global."""
    cr0 = ld64(cpu + FIELDS["cr0"])
    lines = ld64(cpu + WORDS["a20_mask"])
    if (cr0 >> 31) == 0:
        st64(cpu + WORDS["walk_writable"], 1)
        return va & lines
    if ((ld64(cpu + FIELDS["efer"]) >> 10) & 1) == 0:
        if ((ld64(cpu + FIELDS["cr4"]) >> 5) & 1) == 0:
            found = walk_32(cpu, va, access, table)
            return found if found & WALK_FAULT else found & lines
    else:
        high = sar(va, 47)
        if high != 0 and high != 0xFFFFFFFFFFFFFFFF:
            return WALK_FAULT | NOT_CANONICAL
    user = table == 1
    efer = ld64(cpu + FIELDS["efer"])
    cr4 = ld64(cpu + FIELDS["cr4"])
    nxe = (efer >> 11) & 1
    error = WALK_FAULT | (user << 2)
    if access == WRITE:
        error |= 2
    if access == EXECUTE and (nxe or (cr4 >> 20) & 1):
        error |= 16
    reserved = PHYSICAL_RESERVED
    if nxe == 0:
        reserved |= 1 << 63
    base = ld64(cpu + FIELDS["cr3"]) & FRAME
    rights = 6
    nx = 0
    shift = 39
    if ((efer >> 10) & 1) == 0:  # PAE without long mode: four entries that give no rights, SDM 3A 4.4
        host = host_of(cpu, (ld64(cpu + FIELDS["cr3"]) & 0xFFFFFFE0) + ((va >> 30) << 3))
        if host == 0:
            return error | 9
        e = ld64(host)
        if (e & 1) == 0:
            return error
        if e & (PHYSICAL_RESERVED | 0xFFF00000000001E6):
            return error | 9
        base = e & FRAME
        shift = 21
    while True:
        host = host_of(cpu, base + (((va >> shift) & 511) << 3))
        if host == 0:
            return error | 9
        e = ld64(host)
        if (e & 1) == 0:
            return error
        if e & reserved:
            return error | 9
        if shift == 39 and (e & 0x80):
            return error | 9
        rights &= e
        nx |= e >> 63
        if shift == 12 or (e & 0x80):
            break
        if (e & 0x20) == 0 and cas64(host, e, e | 0x20) != e:
            return walk(cpu, va, access, table)
        base = e & FRAME
        shift -= 9
    size_mask = (1 << shift) - 1
    if shift != 12 and (e & FRAME & size_mask & ~0x1000):
        return error | 9
    allowed = page_rights(cpu, rights, access, table)
    if allowed == 0:
        return error | 1
    writable = allowed >> 1
    if access == EXECUTE and nx:
        return error | 1
    new = e | 0x20
    if access == WRITE:
        new |= 0x40
    if new != e and cas64(host, e, new) != e:
        return walk(cpu, va, access, table)
    st64(cpu + WORDS["walk_writable"], (writable & (new >> 6)) | ((shift != 12) << 1) | is_global(cr4, e))
    return ((e & FRAME & ~size_mask) | (va & size_mask)) & lines


@native
def walk_32(cpu: int, va: int, access: int, table: int) -> int:
    """The same through the two-level tables of 32-bit entries (SDM 3A 4.3), 4 MiB pages with PSE-36 included."""
    user = table == 1
    cr4 = ld64(cpu + FIELDS["cr4"])
    error = WALK_FAULT | (user << 2)
    if access == WRITE:
        error |= 2
    if access == EXECUTE and (cr4 >> 20) & 1:
        error |= 16
    host = host_of(cpu, (ld64(cpu + FIELDS["cr3"]) & 0xFFFFF000) + ((va >> 22) << 2))
    if host == 0:
        return error | 9
    e = ld32(host)
    if (e & 1) == 0:
        return error
    rights = e & 6
    frame = ((e & 0xFFC00000) | ((e & 0x1E000) << 19)) + (va & 0x3FFFFF)
    large = (e >> 7) & (cr4 >> 4) & 1
    if large:
        if e & 0x200000:
            return error | 9
    else:
        if (e & 0x20) == 0 and cas32(host, e, e | 0x20) != e:
            return walk_32(cpu, va, access, table)
        host = host_of(cpu, (e & 0xFFFFF000) + (((va >> 12) & 1023) << 2))
        if host == 0:
            return error | 9
        e = ld32(host)
        if (e & 1) == 0:
            return error
        rights &= e
        frame = (e & 0xFFFFF000) + (va & 0xFFF)
    allowed = page_rights(cpu, rights, access, table)
    if allowed == 0:
        return error | 1
    writable = allowed >> 1
    new = e | 0x20
    if access == WRITE:
        new |= 0x40
    if new != e and cas32(host, e, new) != e:
        return walk_32(cpu, va, access, table)
    st64(cpu + WORDS["walk_writable"], (writable & (new >> 6)) | (large << 1) | is_global(cr4, e))
    return frame


@native
def raise_page_fault(cpu: int, va: int, pa: int) -> int:
    """Turns a failed walk into #PF or #GP; returns 0."""
    if pa & NOT_CANONICAL:
        st64(cpu + FIELDS["exc_vector"], 13)
        st64(cpu + FIELDS["exc_error"], 0)
    else:
        st64(cpu + FIELDS["exc_vector"], PF)
        st64(cpu + FIELDS["exc_error"], pa & 0xFFFF)
        st64(cpu + WORDS["fault_addr"], va)
    st64(cpu + WORDS["status"], FAULTED)
    return 0


@native
def large_slot(cpu: int, va: int) -> int:
    """The word of LARGE_BLOOM for the 128 MiB around an address: a kernel's half of the address space, all of which may lie in
    large pages, has words of its own."""
    return cpu + LARGE_BLOOM + ((((va >> 27) & 31) | ((va >> 63) << 5)) << 3)


@native
def tlb_fill(cpu: int, va: int, access: int, table: int) -> int:
    """Walks and fills the TLB entry; returns it, or 0 with `status` set (a fault, or no RAM there: deferred)."""
    pa = walk(cpu, va, access, table)
    if pa & WALK_FAULT:
        return raise_page_fault(cpu, va, pa)
    st64(cpu + WORDS["tlb_refills"], ld64(cpu + WORDS["tlb_refills"]) + 1)
    r = region_of(cpu, pa)
    if r == 0 or (access == WRITE and (ld64(r + 24) & READ_ONLY)):
        st64(cpu + WORDS["status"], DEFERRED)
        return 0
    page = va & ~0xFFF
    host = ld64(r + 16) + (pa & ~0xFFF) - ld64(r)
    e = cpu + TLB + table * TLB_TABLE_BYTES + ((va >> 7) & TLB_MASK)
    known = ld64(cpu + WORDS["walk_writable"])
    if known & 2:  # a page of 4 MiB, without PAE, covers two of the bloom's regions
        slot = large_slot(cpu, va)
        bits = 3 << ((va >> 21) & 62)
        if (ld64(slot) & bits) != bits:
            st64(slot, ld64(slot) | bits)
    if ld64(e) != page or ld64(e + 24) != host - page:
        st64(e + 16, INVALID)
    kept_out = 0
    if ld64(cpu + WATCH_PAGES):
        kept_out = watched_page(cpu, va)
    st64(e, INVALID if kept_out & WATCH_READ else page)
    st64(e + 24, host - page)
    st64(e + 8, INVALID)
    if access == EXECUTE:
        st64(e + 16, page)
    if (known & 1) and (ld64(r + 24) & READ_ONLY) == 0:
        number = ld64(r + 24) + ((pa - ld64(r)) >> 12)
        if ld64(cpu + PAGES + number * PAGE_ENTRY_BYTES) == 0 and (kept_out & WATCH_WRITE) == 0:
            st64(e + 8, page)
    st64(cpu + WORDS["dirty_tables"], ld64(cpu + WORDS["dirty_tables"]) | (1 << table))
    if (known & GLOBAL) == 0:
        count = ld64(cpu + WORDS["locals"])
        if count < MAX_LOCALS:
            st32(cpu + LOCALS + (count << 2), e - cpu)
        st64(cpu + WORDS["locals"], count + 1)
        if access == EXECUTE and table != 1:
            st64(cpu + WORDS["local_code"], 1)
    return e


@native
def tlb_flush(cpu: int) -> int:
    empty_tlb(cpu)
    fill64(cpu + LARGE_BLOOM, 0, LARGE_BLOOM_WORDS)
    new_generation(cpu)
    return 0


@native
def tlb_flush_local(cpu: int) -> int:
    """CR3 was written: translations of global pages stay, and with them what the jump cache knows of a kernel's code."""
    count = ld64(cpu + WORDS["locals"])
    if count > MAX_LOCALS or ld64(cpu + WORDS["without_globals"]):
        return tlb_flush(cpu)
    p = cpu + LOCALS
    end = p + (count << 2)
    while p != end:
        e = cpu + ld32(p)
        st64(e, INVALID)
        st64(e + 8, INVALID)
        st64(e + 16, INVALID)
        p += 4
    st64(cpu + WORDS["locals"], 0)
    st64(cpu + WORDS["tlb_flushes"], ld64(cpu + WORDS["tlb_flushes"]) + 1)
    st64(cpu + WORDS["generation_user"], ld64(cpu + WORDS["generation_user"]) + 1)
    forget_executed(cpu, EXECUTED_USER, WORDS["executed_user"])
    if ld64(cpu + WORDS["local_code"]):
        st64(cpu + WORDS["local_code"], 0)
        st64(cpu + WORDS["generation"], ld64(cpu + WORDS["generation"]) + 1)
        forget_executed(cpu, EXECUTED, WORDS["executed"])
    set_key(cpu)
    return 0


@native
def forget_executed(cpu: int, table: int, word: int) -> int:
    if ld64(cpu + word):
        st64(cpu + word, 0)
        fill64(cpu + table, 0, EXECUTED_BYTES // 8)
    return 0


@native
def executed_bit(va: int) -> int:
    """Which bit of the tables of executed pages stands for this page: those of the upper half of the address space have their own."""
    page = (va >> 12) ^ (va >> 25)
    return (page & (EXECUTED_BYTES * 4 - 1)) | ((va >> 63) * EXECUTED_BYTES * 4)


@native
def mark_executed(cpu: int, va: int, mode: int) -> int:
    """The jump cache gets an entry for code at `va`."""
    bit = executed_bit(va)
    table = cpu + EXECUTED
    if (mode & MODE_TABLE) == 1:
        table = cpu + EXECUTED_USER
        st64(cpu + WORDS["executed_user"], 1)
    else:
        st64(cpu + WORDS["executed"], 1)
    at = table + ((bit >> 6) << 3)
    st64(at, ld64(at) | (1 << (bit & 63)))
    return 0


@native
def empty_tlb(cpu: int) -> int:
    dirty = ld64(cpu + WORDS["dirty_tables"])
    table = 0
    while table != TLB_TABLES:
        if (dirty >> table) & 1:
            fill64(cpu + TLB + table * TLB_TABLE_BYTES, INVALID, TLB_TABLE_BYTES // 8)
        table += 1
    st64(cpu + WORDS["dirty_tables"], 0)
    st64(cpu + WORDS["locals"], 0)
    st64(cpu + WORDS["local_code"], 0)
    st64(cpu + WORDS["tlb_flushes"], ld64(cpu + WORDS["tlb_flushes"]) + 1)
    return 0


@native
def new_generation(cpu: int) -> int:
    """Makes every entry of the jump cache unreachable."""
    st64(cpu + WORDS["generation"], ld64(cpu + WORDS["generation"]) + 1)
    st64(cpu + WORDS["generation_user"], ld64(cpu + WORDS["generation_user"]) + 1)
    forget_executed(cpu, EXECUTED, WORDS["executed"])
    forget_executed(cpu, EXECUTED_USER, WORDS["executed_user"])
    set_key(cpu)
    return 0


@native
def set_key(cpu: int) -> int:
    """A guest may jump to any 64-bit value, canonical or not.  So that none meets an entry of another generation or mode, or
    an empty one, keys are a one-to-one scramble (SplitMix64's) of mode and generation, which began at a secret number."""
    mode = ld64(cpu + WORDS["mode"])
    x = ld64(cpu + WORDS["generation"])
    if (mode & MODE_TABLE) == 1:
        x = ld64(cpu + WORDS["generation_user"])
    x = x ^ (mode << (64 - MODE_BITS))
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    st64(cpu + JUMP_KEY, x ^ (x >> 31))
    return 0


@native
def invalidate_page(cpu: int, va: int) -> int:
    """INVLPG."""
    if (ld64(large_slot(cpu, va)) >> ((va >> 21) & 63)) & 1:
        return tlb_flush(cpu)  # part of a large page: its 4 KiB pieces may be anywhere in the TLB
    page = va & ~0xFFF
    table = 0
    while table != TLB_TABLES:
        e = cpu + TLB + table * TLB_TABLE_BYTES + ((va >> 7) & TLB_MASK)
        if ld64(e) == page or ld64(e + 8) == page or ld64(e + 16) == page:  # a watched page has not all of its tags
            st64(e, INVALID)
            st64(e + 8, INVALID)
            st64(e + 16, INVALID)
        table += 1
    bit = executed_bit(va)
    at = cpu + ((bit >> 6) << 3)
    if ((ld64(at + EXECUTED) | ld64(at + EXECUTED_USER)) >> (bit & 63)) & 1:
        new_generation(cpu)
    return 0


@native
def read_pointer(cpu: int, va: int, table: int) -> int:
    """Host address of one byte for reading, or 0 with `status`."""
    e = cpu + TLB + table * TLB_TABLE_BYTES + ((va >> 7) & TLB_MASK)
    if ld64(e) != (va & ~0xFFF):
        e = tlb_fill(cpu, va, READ, table)
        if e == 0:
            return 0
    return va + ld64(e + 24)


@native
def write_pointer(cpu: int, va: int, table: int) -> int:
    """The same for writing; the page may hold code."""
    e = cpu + TLB + table * TLB_TABLE_BYTES + ((va >> 7) & TLB_MASK)
    if ld64(e + 8) != (va & ~0xFFF):
        e = tlb_fill(cpu, va, WRITE, table)
        if e == 0:
            return 0
    return va + ld64(e + 24)


@native
def rt_pload(cpu: int, pa: int) -> int:
    host = host_of(cpu, pa)
    if host == 0:
        return 0xFFFFFFFFFFFFFFFF
    return ld64(host)


@native
def rt_pstore(cpu: int, pa: int, value: int) -> int:
    host = host_of(cpu, pa)
    if host != 0:
        st64(host, value)
    return 0


@native
def execute_pointer(cpu: int, va: int, table: int) -> int:
    """Host address of a byte for execution, or 0 with `status`."""
    e = cpu + TLB + table * TLB_TABLE_BYTES + ((va >> 7) & TLB_MASK)
    if ld64(e + 16) != (va & ~0xFFF):
        e = tlb_fill(cpu, va, EXECUTE, table)
        if e == 0:
            return 0
    return va + ld64(e + 24)
