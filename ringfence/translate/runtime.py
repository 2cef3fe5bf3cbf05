"""The native run time of translated code: TLB, page walk, dispatch, linking, invalidation, delivery.

Written in the subset of `native.py`.  `cpu` is the vCPU pointer (see `layout.py`), `data` points at the operands that a
cold thunk carries behind its call (see `block.py`):

    slow access  i32 resume, u16 rip, u8 size, u8 length, u16 remaining, u8 kind, u8 store length
    fault, exit  u16 rip, u16 next, u16 remaining, u8 kind
    link         u16 rip, u16 -, i32 site          budget  u16 rip, u16 instructions
    native call  the 64-byte record of lower.py

Addresses of code are *RAM offsets*: page number in the flat numbering of all RAM regions, times 4096, plus offset.
Page walk: SDM 3A 4.5-4.7.  Exceptions during delivery: SDM 3A 6.15, #DF.
"""

from __future__ import annotations

from ringfence.isa.x86.state import REQUEST_FLUSH, REQUEST_INVLPG, REQUEST_MODE
from ringfence.translate import layout
from ringfence.translate.layout import (
    BLOCK_BYTES,
    BLOCKS,
    BOUNCE,
    BOUNCE_BYTES,
    BOUNCE_SLOTS,
    BUDGET,
    FIELDS,
    HASH,
    HASH_ENTRIES,
    JUMP_CACHE,
    JUMP_CACHE_ENTRIES,
    JUMP_KEY,
    MAX_RAM_REGIONS,
    PAGE_ENTRY_BYTES,
    PAGES,
    REGIONS,
    TLB,
    TLB_ENTRIES,
    TLB_MASK,
    TLB_TABLE_BYTES,
    TLB_TABLES,
    WORDS,
)
from ringfence.translate.lower import DEFERRED, EXITED, FAULTED, JUMP, NEXT, RECORD_IMM, RECORD_NEXT, SYSTEM_ACCESS
from ringfence.translate.native import (
    copy_forward,
    fill64,
    invoke,
    ld8,
    ld16,
    ld32,
    ld64,
    native,
    or64,
    rdtsc,
    sar,
    sext32,
    st8,
    st16,
    st32,
    st64,
)

# Why translated code was left.
LEFT_TRANSLATE, LEFT_EXIT, LEFT_DEFER, LEFT_KICK, LEFT_DEADLINE, LEFT_SHUTDOWN, LEFT_STEP, LEFT_MODE = range(1, 9)

READ, WRITE, EXECUTE = 0, 1, 2
INVALID = 1  # a tag that no page address equals
# Translation mode: part of every block's key.
MODE_TABLE, MODE_FP_SLOW, MODE_STEP = 3, 4, 8
FRAME = 0x000FFFFFFFFFF000
PHYSICAL_RESERVED = 0x000FFF0000000000  # CPUID announces 40 physical address bits
WALK_FAULT = 1 << 63
NOT_CANONICAL = 1 << 62
BLOCK_DEAD, BLOCK_CROSSING = 1, 2
# Block record.
B_RA, B_CODE, B_CODE_BYTES, B_GUEST_BYTES, B_COUNT, B_PAGE_NEXT, B_HASH_NEXT, B_MODE, B_FLAGS, B_RA2, B_PAGE2_NEXT = (
    0,
    8,
    12,
    16,
    20,
    24,
    28,
    32,
    36,
    40,
    48,
)
KIND_UNCHANGED = 0xFF
PF, DF = 14, 8
CONTRIBUTORY = 1 << 0 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13
PUSHES_ERROR = 0x227D00
LARGE_BLOOM_WORDS = 64
LARGE_BLOOM = -layout.FRONT_BYTES  # 4096 bits in the room below the vCPU pointer: 2 MiB regions with large pages


def n_deliver(cpu: int, data: int) -> int:
    """Delivery itself: the body `(deliver)` of isa/x86/delivery.py as a native function, linked in by image.py."""
    raise TypeError("compiled only")


def translate_block(cpu: int, p: int, ra: int, mode: int) -> int:
    """The native translator, of native_translate.py."""
    raise TypeError("compiled only")


@native
def region_of(cpu: int, pa: int) -> int:
    """The region record that holds a guest physical address, or 0."""
    r = cpu + REGIONS
    end = r + 32 * MAX_RAM_REGIONS
    while r != end:
        if pa >= ld64(r) and pa < ld64(r + 8):
            return r
        r += 32
    return 0


@native
def host_of(cpu: int, pa: int) -> int:
    r = region_of(cpu, pa)
    if r == 0:
        return 0
    return ld64(r + 16) + pa - ld64(r)


@native
def ram_offset(cpu: int, host: int) -> int:
    """The RAM offset of a host address inside of guest RAM."""
    r = cpu + REGIONS
    end = r + 32 * MAX_RAM_REGIONS
    while r != end:
        start = ld64(r + 16)
        if host >= start and host - start < ld64(r + 8) - ld64(r):
            return (ld64(r + 24) << 12) + host - start
        r += 32
    return 0xFFFFFFFFFFFFFFFF


@native
def walk(cpu: int, va: int, access: int, table: int) -> int:
    """The guest physical address of `va`, or WALK_FAULT with the #PF error code.  Sets A and D.  `walk_writable` tells
    whether a write needs no further walk, bit 1 whether the page is larger than 4 KiB."""
    high = sar(va, 47)
    if high != 0 and high != 0xFFFFFFFFFFFFFFFF:
        return WALK_FAULT | NOT_CANONICAL
    user = table == 1
    efer = ld64(cpu + FIELDS["efer"])
    cr4 = ld64(cpu + FIELDS["cr4"])
    nxe = (efer >> 11) & 1
    wp = (ld64(cpu + FIELDS["cr0"]) >> 16) & 1
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
        if (e & 0x20) == 0:
            or64(host, 0x20)
        base = e & FRAME
        shift -= 9
    size_mask = (1 << shift) - 1
    if shift != 12 and (e & FRAME & size_mask & ~0x1000):
        return error | 9
    if user:
        if (rights & 4) == 0:
            return error | 1
    elif rights & 4:
        if access == EXECUTE:
            if (cr4 >> 20) & 1:
                return error | 1
        elif ((cr4 >> 21) & 1) and table == 0:
            return error | 1
    writable = (rights >> 1) & 1
    if user == 0 and wp == 0:
        writable = 1
    if access == WRITE and writable == 0:
        return error | 1
    if access == EXECUTE and nx:
        return error | 1
    new = e | 0x20
    if access == WRITE:
        new |= 0x40
    if new != e:
        or64(host, new)
    st64(cpu + WORDS["walk_writable"], (writable & (new >> 6)) | ((shift != 12) << 1))
    return (e & FRAME & ~size_mask) | (va & size_mask)


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
def tlb_fill(cpu: int, va: int, access: int, table: int) -> int:
    """Walks and fills the TLB entry; returns it, or 0 with `status` set (a fault, or no RAM there: deferred)."""
    pa = walk(cpu, va, access, table)
    if pa & WALK_FAULT:
        return raise_page_fault(cpu, va, pa)
    st64(cpu + WORDS["tlb_refills"], ld64(cpu + WORDS["tlb_refills"]) + 1)
    r = region_of(cpu, pa)
    if r == 0:
        st64(cpu + WORDS["status"], DEFERRED)
        return 0
    page = va & ~0xFFF
    host = ld64(r + 16) + (pa & ~0xFFF) - ld64(r)
    e = cpu + TLB + table * TLB_TABLE_BYTES + ((va >> 7) & TLB_MASK)
    known = ld64(cpu + WORDS["walk_writable"])
    if (known & 2) and ((ld64(cpu + LARGE_BLOOM + ((va >> 27) & 63) * 8) >> ((va >> 21) & 63)) & 1) == 0:
        slot = cpu + LARGE_BLOOM + ((va >> 27) & 63) * 8
        st64(slot, ld64(slot) | (1 << ((va >> 21) & 63)))
    if ld64(e) != page or ld64(e + 24) != host - page:
        st64(e + 16, INVALID)
    st64(e, page)
    st64(e + 24, host - page)
    st64(e + 8, INVALID)
    if access == EXECUTE:
        st64(e + 16, page)
    if known & 1:
        number = ld64(r + 24) + ((pa - ld64(r)) >> 12)
        if ld64(cpu + PAGES + number * PAGE_ENTRY_BYTES) == 0:
            st64(e + 8, page)
    st64(cpu + WORDS["dirty_tables"], ld64(cpu + WORDS["dirty_tables"]) | (1 << table))
    return e


@native
def tlb_flush(cpu: int) -> int:
    dirty = ld64(cpu + WORDS["dirty_tables"])
    table = 0
    while table != TLB_TABLES:
        if (dirty >> table) & 1:
            fill64(cpu + TLB + table * TLB_TABLE_BYTES, INVALID, TLB_TABLE_BYTES // 8)
        table += 1
    st64(cpu + WORDS["dirty_tables"], 0)
    fill64(cpu + LARGE_BLOOM, 0, LARGE_BLOOM_WORDS)
    st64(cpu + WORDS["tlb_flushes"], ld64(cpu + WORDS["tlb_flushes"]) + 1)
    new_generation(cpu)
    return 0


@native
def new_generation(cpu: int) -> int:
    """Makes every entry of the jump cache unreachable."""
    st64(cpu + WORDS["generation"], ld64(cpu + WORDS["generation"]) + 1)
    st64(cpu + WORDS["exec_bloom"], 0)
    set_key(cpu)
    return 0


@native
def set_key(cpu: int) -> int:
    """A guest may jump to any 64-bit value, canonical or not.  So that none meets an entry of another generation or mode, or
    an empty one, keys are a one-to-one scramble (SplitMix64's) of mode and generation, which began at a secret number."""
    x = ld64(cpu + WORDS["generation"]) ^ (ld64(cpu + WORDS["mode"]) << 60)
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    st64(cpu + JUMP_KEY, x ^ (x >> 31))
    return 0


@native
def invalidate_page(cpu: int, va: int) -> int:
    """INVLPG."""
    if (ld64(cpu + LARGE_BLOOM + ((va >> 27) & 63) * 8) >> ((va >> 21) & 63)) & 1:
        return tlb_flush(cpu)  # part of a large page: its 4 KiB pieces may be anywhere in the TLB
    page = va & ~0xFFF
    table = 0
    while table != TLB_TABLES:
        e = cpu + TLB + table * TLB_TABLE_BYTES + ((va >> 7) & TLB_MASK)
        if ld64(e) == page:
            st64(e, INVALID)
            st64(e + 8, INVALID)
            st64(e + 16, INVALID)
        table += 1
    if (ld64(cpu + WORDS["exec_bloom"]) >> ((va >> 12) & 63)) & 1:
        new_generation(cpu)
    return 0


@native
def compute_mode(cpu: int) -> int:
    cr0 = ld64(cpu + FIELDS["cr0"])
    cr4 = ld64(cpu + FIELDS["cr4"])
    flags = ld64(cpu + FIELDS["rflags_sys"])
    mode = 0
    if ld8(cpu + FIELDS["cpl"]) == 3:
        mode = 1
    elif ((cr4 >> 21) & 1) and ((flags >> 18) & 1):
        mode = 2
    masked = (ld64(cpu + FIELDS["mxcsr"]) & 0x1F80) == 0x1F80 and (ld64(cpu + FIELDS["fcw"]) & 0x3F) == 0x3F
    if (cr0 & 0xC) != 0 or ((cr4 >> 9) & 1) == 0 or masked == 0:
        mode |= MODE_FP_SLOW
    # Single steps, armed debug registers and alignment checks run one instruction at a time in the interpreter.
    if (flags & 0x100) or (ld64(cpu + FIELDS["dr7"]) & 0xFF) or (mode == 1 and (cr0 >> 18) & 1 and (flags >> 18) & 1):
        mode |= MODE_STEP
    st64(cpu + WORDS["mode"], mode)
    set_key(cpu)
    if (ld64(cpu + FIELDS["cs_attr"]) & 0x200) == 0:
        st64(cpu + WORDS["exit_reason"], LEFT_MODE)
    return 0


@native
def serve_requests(cpu: int) -> int:
    request = ld32(cpu + FIELDS["request"])
    st32(cpu + FIELDS["request"], 0)
    if request & REQUEST_FLUSH:
        tlb_flush(cpu)
    elif request & REQUEST_INVLPG:
        invalidate_page(cpu, ld64(cpu + FIELDS["request_address"]))
    if request & REQUEST_MODE:
        compute_mode(cpu)
    return 0


# ---- guest memory for native functions
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
def rt_load(cpu: int, va: int, flags: int) -> int:
    """Host address for a load of (flags & 0xff) bytes; across a page end through a bounce buffer."""
    size = flags & 0xFF
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
def holds_code(cpu: int, host: int, size: int) -> int:
    """Whether bytes of one page overlap 64-byte granules that blocks were made from."""
    ra = ram_offset(cpu, host)
    granules = ld64(cpu + PAGES + (ra >> 12) * PAGE_ENTRY_BYTES)
    if granules == 0 or size == 0:
        return 0
    first = (ra & 0xFFF) >> 6
    last = ((ra & 0xFFF) + size - 1) >> 6
    mask = 0xFFFFFFFFFFFFFFFF << first
    if last != 63:
        mask &= (1 << (last + 1)) - 1
    return (granules & mask) != 0


@native
def rt_window(cpu: int, va: int, flags: int) -> int:
    """Host address for a read-modify-write; across a page end or over code it is left to the interpreter."""
    size = flags & 0xFF
    p = write_pointer(cpu, va, access_table(cpu, flags))
    if p == 0:
        return 0
    if (va & 0xFFF) + size > 4096 or holds_code(cpu, p, size):
        st64(cpu + WORDS["status"], DEFERRED)
        return 0
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
            drop_code(cpu, ram_offset(cpu, p), size)
        store_bytes(p, size, low, high)
        return 0
    second = (va + size - 1) & ~0xFFF
    q = write_pointer(cpu, second, table)
    if q == 0:
        return ld64(cpu + WORDS["status"])
    first = second - va
    b = bounce(cpu)
    store_bytes(b, size, low, high)
    if holds_code(cpu, p, first):
        drop_code(cpu, ram_offset(cpu, p), first)
    if holds_code(cpu, q, size - first):
        drop_code(cpu, ram_offset(cpu, q), size - first)
    copy_forward(p, b, first)
    copy_forward(q, b + first, size - first)
    return 0


@native
def rt_store(cpu: int, va: int, flags: int, low: int, high: int) -> int:
    return store_at(cpu, va, flags, low, high)


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


# ---- blocks
@native
def hash_slot(cpu: int, ra: int, mode: int) -> int:
    return cpu + HASH + (((ra ^ (ra >> 14) ^ (mode * 0x1F35)) & (HASH_ENTRIES - 1)) << 2)


@native
def find_block(cpu: int, ra: int, mode: int) -> int:
    """The live block for (RAM offset, mode), or 0."""
    index = ld32(hash_slot(cpu, ra, mode))
    while index != 0:
        b = cpu + BLOCKS + index * BLOCK_BYTES
        if ld64(b + B_RA) == ra and ld32(b + B_MODE) == mode:
            return b
        index = ld32(b + B_HASH_NEXT)
    return 0


@native
def unhash(cpu: int, index: int) -> int:
    b = cpu + BLOCKS + index * BLOCK_BYTES
    p = hash_slot(cpu, ld64(b + B_RA), ld32(b + B_MODE))
    while ld32(p) != 0:
        if ld32(p) == index:
            st32(p, ld32(b + B_HASH_NEXT))
            return 0
        p = cpu + BLOCKS + ld32(p) * BLOCK_BYTES + B_HASH_NEXT
    return 0


@native
def kill_block(cpu: int, index: int) -> int:
    """Takes a block out of the hash and overwrites its aligned head by a call of the stale stub."""
    b = cpu + BLOCKS + index * BLOCK_BYTES
    unhash(cpu, index)
    st32(b + B_FLAGS, ld32(b + B_FLAGS) | BLOCK_DEAD)
    head = ld64(cpu + WORDS["code_rx"]) + ld32(b + B_CODE)
    relative = (ld64(cpu + WORDS["stub_stale"]) - (head + 5)) & 0xFFFFFFFF
    w = head + ld64(cpu + WORDS["code_rw_delta"])
    st64(w, (ld64(w) & ~0xFFFFFFFFFF) | 0xE8 | (relative << 8))
    st64(cpu + WORDS["invalidated"], ld64(cpu + WORDS["invalidated"]) + 1)
    return 0


@native
def span_granules(low: int, high: int) -> int:
    """The granule bits of bytes low..high (inclusive) of a page."""
    mask = 0xFFFFFFFFFFFFFFFF << (low >> 6)
    if (high >> 6) != 63:
        mask &= (1 << ((high >> 6) + 1)) - 1
    return mask


@native
def drop_code(cpu: int, ra: int, size: int) -> int:
    """Kills every block made from these bytes, which lie within one page."""
    entry = cpu + PAGES + (ra >> 12) * PAGE_ENTRY_BYTES
    if ld64(entry) == 0:
        return 0
    low = ra & 0xFFF
    high = low + size
    page = ra >> 12
    granules = 0
    p = entry + 8
    while ld32(p) != 0:
        index = ld32(p)
        b = cpu + BLOCKS + index * BLOCK_BYTES
        start = ld64(b + B_RA)
        second = (start >> 12) != page
        if second:  # the tail of a block that began on another page
            first = 0
            last = ((start & 0xFFF) + ld32(b + B_GUEST_BYTES)) & 0xFFF
        else:
            first = start & 0xFFF
            last = first + ld32(b + B_GUEST_BYTES)
            if last > 4096:
                last = 4096
        following = b + B_PAGE2_NEXT if second else b + B_PAGE_NEXT
        if ld32(b + B_FLAGS) & BLOCK_DEAD:
            st32(p, ld32(following))
        elif first < high and last > low:
            kill_block(cpu, index)
            st32(p, ld32(following))
            # a block on two pages stays, dead, in the other page's list until that is walked
        else:
            granules |= span_granules(first, last - 1)
            p = following
    st64(entry, granules)
    return 0


@native
def drop_range(cpu: int, ra: int, size: int) -> int:
    """drop_code over any number of pages: DMA has written there."""
    while size != 0:
        n = 4096 - (ra & 0xFFF)
        if n > size:
            n = size
        drop_code(cpu, ra, n)
        ra += n
        size -= n
    return 0


@native
def protect_page(cpu: int, ra: int) -> int:
    """The page got its first code: stores to it must take the slow path from now on."""
    r = cpu + REGIONS
    number = ra >> 12
    host = 0
    while r != cpu + REGIONS + 32 * MAX_RAM_REGIONS:
        first = ld64(r + 24)
        if number >= first and number - first < (ld64(r + 8) - ld64(r)) >> 12:
            host = ld64(r + 16) + ((number - first) << 12)
        r += 32
    e = cpu + TLB
    end = e + TLB_TABLES * TLB_TABLE_BYTES
    while e != end:
        tag = ld64(e + 8)
        if tag != INVALID and tag + ld64(e + 24) == host:
            st64(e + 8, INVALID)
        e += 32
    return 0


@native
def dispatch(cpu: int) -> int:
    """Host address of the block for RIP, or 0 to leave (`exit_reason` says why)."""
    while True:
        if ld32(cpu + FIELDS["request"]):
            serve_requests(cpu)
        if ld64(cpu + WORDS["exit_reason"]):
            return 0
        mode = ld64(cpu + WORDS["mode"])
        if mode & MODE_STEP:
            st64(cpu + WORDS["exit_reason"], LEFT_STEP)
            return 0
        va = ld64(cpu + FIELDS["rip"])
        page = va & ~0xFFF
        e = cpu + TLB + (mode & MODE_TABLE) * TLB_TABLE_BYTES + ((va >> 7) & TLB_MASK)
        if ld64(e + 16) != page:
            e = tlb_fill(cpu, va, EXECUTE, mode & MODE_TABLE)
            if e == 0:
                if ld64(cpu + WORDS["status"]) == DEFERRED:
                    st64(cpu + WORDS["exit_reason"], LEFT_DEFER)
                    return 0
                deliver_exception(cpu)
                continue
        ra = ram_offset(cpu, va + ld64(e + 24))
        b = find_block(cpu, ra, mode)
        if b == 0:
            b = translate_block(cpu, va + ld64(e + 24), ra, mode)
        if b == 0:
            st64(cpu + WORDS["cur_phys"], ra)
            st64(cpu + WORDS["exit_reason"], LEFT_TRANSLATE)
            return 0
        host = ld64(cpu + WORDS["code_rx"]) + ld32(b + B_CODE)
        j = cpu + JUMP_CACHE + (((va ^ (va >> 12)) & (JUMP_CACHE_ENTRIES - 1)) << 4)
        st64(j, va ^ ld64(cpu + JUMP_KEY))
        st64(j + 8, host)
        st64(cpu + WORDS["exec_bloom"], ld64(cpu + WORDS["exec_bloom"]) | (1 << ((va >> 12) & 63)))
        st64(cpu + FIELDS["vpage"], page)
        st64(cpu + WORDS["lookups"], ld64(cpu + WORDS["lookups"]) + 1)
        return host


@native
def settle_flags(cpu: int) -> int:
    """Brings the flag words in memory into settled form (see isa/x86/flags.py)."""
    kind = ld8(cpu + FIELDS["flags_kind"])
    if kind == 0:
        return 0
    x = ld64(cpu + FIELDS["fr"])
    y = ld64(cpu + FIELDS["fa"])
    w = 8 << ((kind - 1) & 3)
    up = 64 - w
    x = (x << up) >> up
    y = (y << up) >> up
    if kind <= 4:
        r = x - y
        carries = (~x & y) | ((~x | y) & r)
    else:
        r = x
        a = x - y
        carries = (a & y) | ((a | y) & ~r)
    high = (carries << up) & (3 << 62)
    st64(cpu + FIELDS["fr"], sar(r << up, up))
    st64(cpu + FIELDS["fa"], high | (carries & 8))
    st8(cpu + FIELDS["flags_kind"], 0)
    return 0


@native
def is_contributory(vector: int) -> int:
    return vector < 32 and (CONTRIBUTORY >> vector) & 1


@native
def leave_between_exceptions(cpu: int) -> int:
    """A handler that faults at once, for ever, executes no instruction that would use up the budget."""
    if ld64(cpu + WORDS["exit_reason"]) == 0 and (ld64(cpu + WORDS["delivered"]) & 63) == 0:
        if ld32(cpu + FIELDS["kick"]):
            st64(cpu + WORDS["exit_reason"], LEFT_KICK)
        elif rdtsc() >= ld64(cpu + WORDS["deadline_tsc"]):
            st64(cpu + WORDS["exit_reason"], LEFT_DEADLINE)
    return 0


@native
def deliver_exception(cpu: int) -> int:
    """Delivers exc_vector with exc_error at RIP; exceptions on the way become #DF or a triple fault."""
    settle_flags(cpu)
    first = ld64(cpu + FIELDS["exc_vector"])
    st64(cpu + WORDS["first_fault"], first)
    while True:
        vector = ld64(cpu + FIELDS["exc_vector"])
        if vector == PF:
            st64(cpu + FIELDS["cr2"], ld64(cpu + WORDS["fault_addr"]))
        st64(cpu + WORDS["delivered"], ld64(cpu + WORDS["delivered"]) + 1)
        st64(cpu + FIELDS["exc_pending"], (PUSHES_ERROR >> vector) & 1 if vector < 32 else 0)
        status = n_deliver(cpu, 0)
        if status == JUMP:
            if ld32(cpu + FIELDS["request"]):
                serve_requests(cpu)
            leave_between_exceptions(cpu)
            return 1
        if status != FAULTED or vector == DF:
            st64(cpu + WORDS["exit_reason"], LEFT_SHUTDOWN)
            return 0
        second = ld64(cpu + FIELDS["exc_vector"])
        if second == PF:  # CR2 tells of the newer page fault, also when #DF follows: kernels find stack overflows by it
            st64(cpu + FIELDS["cr2"], ld64(cpu + WORDS["fault_addr"]))
        if (is_contributory(vector) and is_contributory(second)) or (vector == PF and (is_contributory(second) or second == PF)):
            st64(cpu + FIELDS["exc_vector"], DF)
            st64(cpu + FIELDS["exc_error"], 0)


@native
def inject(cpu: int, vector: int) -> int:
    """An external interrupt or NMI."""
    settle_flags(cpu)
    st64(cpu + FIELDS["exc_vector"], vector)
    st64(cpu + FIELDS["exc_error"], 0)
    st64(cpu + FIELDS["exc_pending"], 0)
    status = n_deliver(cpu, 0)
    if status == JUMP:
        if ld32(cpu + FIELDS["request"]):
            serve_requests(cpu)
        return 1
    if status == FAULTED:
        return deliver_exception(cpu)
    st64(cpu + WORDS["exit_reason"], LEFT_SHUTDOWN)
    return 0


# ---- what thunks call: each returns a host address to go on at, or 0 to leave
@native
def set_kind(cpu: int, kind: int) -> int:
    if kind != KIND_UNCHANGED:
        st8(cpu + FIELDS["flags_kind"], kind)
    return 0


@native
def refund(cpu: int, n: int) -> int:
    st32(cpu + BUDGET, ld32(cpu + BUDGET) + n)
    return 0


@native
def begin_again(cpu: int, rip: int, remaining: int, kind: int) -> int:
    """The instruction has not begun: fault or leave, as `status` says."""
    st64(cpu + FIELDS["rip"], ld64(cpu + FIELDS["vpage"]) + rip)
    refund(cpu, remaining)
    set_kind(cpu, kind)
    if ld64(cpu + WORDS["status"]) == DEFERRED:
        st64(cpu + WORDS["exit_reason"], LEFT_DEFER)
        return 0
    deliver_exception(cpu)
    return dispatch(cpu)


@native
def t_slow_read(cpu: int, va: int, data: int) -> int:
    """A pointer for the load (then resume), or 0: the stub dispatches or leaves by `resume_status`."""
    p = rt_load(cpu, va, ld8(data + 6))
    if p == 0:
        st64(cpu + WORDS["resume_status"], begin_again(cpu, ld16(data + 4), ld16(data + 8), ld8(data + 10)))
    return p


@native
def t_slow_window(cpu: int, va: int, data: int) -> int:
    p = rt_window(cpu, va, ld8(data + 6))
    if p == 0:
        st64(cpu + WORDS["resume_status"], begin_again(cpu, ld16(data + 4), ld16(data + 8), ld8(data + 10)))
    return p


@native
def touches_own_code(cpu: int, host: int, table: int) -> int:
    """Whether a store to this page may change the block that makes it: then the interpreter makes the store, and the next
    instruction is fetched anew (SDM 3A 12.6)."""
    own = execute_pointer(cpu, ld64(cpu + FIELDS["vpage"]), table)
    return own == 0 or (own >> 12) == (host >> 12)


@native
def t_slow_write(cpu: int, va: int, data: int, low: int, high: int) -> int:
    """A pointer (the stencil stores through it), 1 when the store is done, or 0."""
    size = ld8(data + 6)
    table = ld64(cpu + WORDS["mode"]) & MODE_TABLE
    p = write_pointer(cpu, va, table)
    over_code = 0
    if p != 0:
        if (va & 0xFFF) + size <= 4096:
            if holds_code(cpu, p, size) == 0:
                return p
            over_code = touches_own_code(cpu, p, table)
        else:
            second = (va + size - 1) & ~0xFFF
            if holds_code(cpu, p, second - va):
                over_code = touches_own_code(cpu, p, table)
            p = write_pointer(cpu, second, table)
            if p != 0 and holds_code(cpu, p, va + size - second):
                over_code |= touches_own_code(cpu, p, table)
    if p != 0 and over_code:
        st64(cpu + WORDS["status"], DEFERRED)
        p = 0
    if p == 0 or store_at(cpu, va, size, low, high):
        st64(cpu + WORDS["resume_status"], begin_again(cpu, ld16(data + 4), ld16(data + 8), ld8(data + 10)))
        return 0
    return 1


@native
def t_link(cpu: int, data: int) -> int:
    target = ld64(cpu + FIELDS["vpage"]) + ld16(data)
    mode = ld64(cpu + WORDS["mode"])
    st64(cpu + FIELDS["rip"], target)
    host = dispatch(cpu)
    if host != 0 and ld64(cpu + FIELDS["rip"]) == target and ld64(cpu + WORDS["mode"]) == mode:
        site = data + sext32(ld32(data + 4))
        st32(site + ld64(cpu + WORDS["code_rw_delta"]), host - (site + 4))
        st64(cpu + WORDS["links"], ld64(cpu + WORDS["links"]) + 1)
    return host


@native
def t_stale(cpu: int, after: int) -> int:
    """A dead block was entered: find what replaces it, and turn the old head into a jump there."""
    b = cpu + BLOCKS + ld32(after - 5 - 8) * BLOCK_BYTES
    st64(cpu + FIELDS["rip"], ld64(cpu + FIELDS["vpage"]) + (ld64(b + B_RA) & 0xFFF))
    return dispatch(cpu)


@native
def t_budget(cpu: int, data: int) -> int:
    """The budget is used up, or somebody kicked."""
    st64(cpu + FIELDS["rip"], ld64(cpu + FIELDS["vpage"]) + ld16(data))
    refund(cpu, ld16(data + 2))
    if ld32(cpu + FIELDS["kick"]):
        st64(cpu + WORDS["exit_reason"], LEFT_KICK)
        return 0
    slice = ld64(cpu + WORDS["budget_slice"])
    used = slice - sext32(ld32(cpu + BUDGET))
    st64(cpu + WORDS["icount"], ld64(cpu + WORDS["icount"]) + used)
    st32(cpu + BUDGET, slice)
    if rdtsc() >= ld64(cpu + WORDS["deadline_tsc"]):
        st64(cpu + WORDS["exit_reason"], LEFT_DEADLINE)
        return 0
    return dispatch(cpu)


@native
def t_fault(cpu: int, data: int) -> int:
    st64(cpu + WORDS["status"], FAULTED)
    if ld64(cpu + FIELDS["exc_vector"]) == 0x100:
        st64(cpu + WORDS["status"], DEFERRED)
    return begin_again(cpu, ld16(data), ld16(data + 4), ld8(data + 6))


@native
def t_exit(cpu: int, data: int) -> int:
    st64(cpu + FIELDS["rip"], ld64(cpu + FIELDS["vpage"]) + ld16(data + 2))
    refund(cpu, ld16(data + 4) - 1)
    set_kind(cpu, ld8(data + 6))
    st64(cpu + WORDS["exit_reason"], LEFT_EXIT)
    return 0


@native
def t_cross(cpu: int, data: int) -> int:
    """A block that runs into the next page: 1 while that page is still the one it was made from."""
    va = ld64(cpu + FIELDS["vpage"]) + 4096
    table = ld64(cpu + WORDS["mode"]) & MODE_TABLE
    e = cpu + TLB + table * TLB_TABLE_BYTES + ((va >> 7) & TLB_MASK)
    if ld64(e + 16) != va:
        e = tlb_fill(cpu, va, EXECUTE, table)
        if e == 0:
            return begin_again(cpu, ld16(data), ld16(data + 2), KIND_UNCHANGED)
    if ram_offset(cpu, va + ld64(e + 24)) == ld64(data + 8):
        return 1
    refund(cpu, ld16(data + 2))
    kill_block(cpu, ld32(data + 4))
    st64(cpu + FIELDS["rip"], ld64(cpu + FIELDS["vpage"]) + ld16(data))
    return dispatch(cpu)


@native
def t_native_call(cpu: int, data: int) -> int:
    """Runs a native instruction body: 1 to go on behind it."""
    dropped = ld64(cpu + WORDS["invalidated"])
    status = invoke(ld64(cpu + WORDS["code_rx"]) + ld32(data), cpu, data)
    if status == NEXT:
        if ld32(cpu + FIELDS["request"]) == 0 and ld64(cpu + WORDS["invalidated"]) == dropped:
            return 1
        st64(cpu + FIELDS["rip"], ld64(cpu + FIELDS["vpage"]) + ld32(data + RECORD_NEXT))
        refund(cpu, ld16(data + 8) - 1)
        set_kind(cpu, ld8(data + 10))
        return dispatch(cpu)
    if status == JUMP:
        set_kind(cpu, ld8(data + 10))
        return dispatch(cpu)
    if status == EXITED:
        st64(cpu + FIELDS["rip"], ld64(cpu + FIELDS["vpage"]) + ld32(data + RECORD_NEXT))
        refund(cpu, ld16(data + 8) - 1)
        set_kind(cpu, ld8(data + 10))
        st64(cpu + WORDS["exit_reason"], LEFT_EXIT)
        return 0
    st64(cpu + WORDS["status"], status)
    return begin_again(cpu, ld16(data + 4), ld16(data + 8), ld8(data + 7))


# ---- bulk string operations, by page chunks; what is left over goes element by element
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
def b_rep_movs(cpu: int, data: int) -> int:
    size = ld64(data + RECORD_IMM[0])
    if ld8(cpu + FIELDS["df"]):
        return NEXT
    table = ld64(cpu + WORDS["mode"]) & MODE_TABLE
    while ld32(cpu + FIELDS["kick"]) == 0:
        count = ld64(cpu + FIELDS["rcx"])
        source = ld64(cpu + FIELDS["rsi"])
        target = ld64(cpu + FIELDS["rdi"])
        n = 4096 - (source & 0xFFF)
        if 4096 - (target & 0xFFF) < n:
            n = 4096 - (target & 0xFFF)
        n = n // size
        if n > count:
            n = count
        if n == 0:
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
            drop_code(cpu, ram_offset(cpu, q), bytes)
        copy_forward(q, p, bytes)
        st64(cpu + FIELDS["rcx"], count - n)
        st64(cpu + FIELDS["rsi"], source + bytes)
        st64(cpu + FIELDS["rdi"], target + bytes)
        if stale:
            return begin_bulk_again(cpu, data)
        look_at_deadline(cpu, count - n)
    return NEXT


@native
def b_rep_stos(cpu: int, data: int) -> int:
    size = ld64(data + RECORD_IMM[0])
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
        count = ld64(cpu + FIELDS["rcx"])
        target = ld64(cpu + FIELDS["rdi"])
        n = (4096 - (target & 0xFFF)) // size
        if n > count:
            n = count
        if n == 0:
            return NEXT
        q = write_pointer(cpu, target, table)
        if q == 0:
            return NEXT
        bytes = n * size
        stale = holds_code(cpu, q, bytes)
        if stale:
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
        st64(cpu + FIELDS["rcx"], count - n)
        st64(cpu + FIELDS["rdi"], target + bytes)
        if stale:
            return begin_bulk_again(cpu, data)
        look_at_deadline(cpu, count - n)
    return NEXT


@native
def execute_pointer(cpu: int, va: int, table: int) -> int:
    """For the Python side: host address of a byte for execution, or 0 with `status`."""
    e = cpu + TLB + table * TLB_TABLE_BYTES + ((va >> 7) & TLB_MASK)
    if ld64(e + 16) != (va & ~0xFFF):
        e = tlb_fill(cpu, va, EXECUTE, table)
        if e == 0:
            return 0
    return va + ld64(e + 24)


@native
def initialize(cpu: int) -> int:
    """Empty TLBs, jump cache and block tables."""
    fill64(cpu + TLB, INVALID, TLB_TABLES * TLB_ENTRIES * 4)
    fill64(cpu + JUMP_CACHE, 1, JUMP_CACHE_ENTRIES * 2)
    fill64(cpu + HASH, 0, HASH_ENTRIES // 2)
    st64(cpu + WORDS["dirty_tables"], 0)
    return 0
