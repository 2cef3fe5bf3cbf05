"""The tables of blocks: finding them by RAM offset and mode, and dropping those whose bytes change."""

from __future__ import annotations

from ringfence.translate.layout import (
    BLOCK_BYTES,
    BLOCKS,
    BUDGET,
    HASH,
    HASH_ENTRIES,
    PAGE_ENTRY_BYTES,
    PAGES,
    WORDS,
)
from ringfence.translate.native import ld32, ld64, native, st32, st64
from ringfence.translate.native_mmu import ram_offset
from ringfence.translate.native_smp import drop_write_tags, lock_code, page_host, shake_hands, unlock_code

BLOCK_DEAD, BLOCK_CROSSING, BLOCK_REGION = 1, 2, 4
# A region has a record for each place where it is entered, and one, in no hash, for each stretch of bytes that it was made from.  Each
# knows the first entry; entries are a list.
B_FIRST_ENTRY, B_NEXT_ENTRY = 40, 52
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
    """Takes a block out of the hash and overwrites its aligned head by a call of the stale stub; a region at all its entries.  With the
    lock held.  A loop within a region passes no head, so other vCPUs are seen out of it."""
    b = cpu + BLOCKS + index * BLOCK_BYTES
    if (ld32(b + B_FLAGS) & BLOCK_REGION) == 0:
        return kill_head(cpu, index)
    st32(b + B_FLAGS, ld32(b + B_FLAGS) | BLOCK_DEAD)
    entry = ld32(b + B_FIRST_ENTRY)
    while entry != 0:
        kill_head(cpu, entry)
        entry = ld32(cpu + BLOCKS + entry * BLOCK_BYTES + B_NEXT_ENTRY)
    if ld64(cpu + WORDS["smp"]):
        shake_hands(cpu, 0)
    return 0


@native
def kill_head(cpu: int, index: int) -> int:
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
def charge(cpu: int, n: int) -> int:
    """Work beside instructions uses the budget up as `n` of them would, so that the deadline is looked at in time; the exact count
    of instructions stays."""
    st32(cpu + BUDGET, ld32(cpu + BUDGET) - n)
    st64(cpu + WORDS["icount"], ld64(cpu + WORDS["icount"]) - n)
    return 0


@native
def drop_code(cpu: int, ra: int, size: int) -> int:
    """Kills every block made from these bytes, which lie within one page.  With the lock held."""
    entry = cpu + PAGES + (ra >> 12) * PAGE_ENTRY_BYTES
    if ld64(entry) == 0:
        return 0
    cost = 32
    low = ra & 0xFFF
    high = low + size
    page = ra >> 12
    granules = 0
    p = entry + 8
    while ld32(p) != 0:
        cost += 4
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
    charge(cpu, cost)
    return 0


@native
def drop_range(cpu: int, ra: int, size: int) -> int:
    """drop_code over any number of pages: DMA has written there."""
    while size != 0:
        n = 4096 - (ra & 0xFFF)
        if n > size:
            n = size
        if ld64(cpu + PAGES + (ra >> 12) * PAGE_ENTRY_BYTES):
            lock_code(cpu)
            drop_code(cpu, ra, n)
            unlock_code(cpu)
        ra += n
        size -= n
    return 0


@native
def protect_page(cpu: int, ra: int) -> int:
    """The page got its first code: stores to it must take the slow path from now on."""
    return drop_write_tags(cpu, page_host(cpu, ra >> 12))
